"""ResShift in Stable-Diffusion-WebUI (A1111, Forge, reForge): glue around resshift_core.

Reading order: hooks (what WebUI calls when), upscaler and accordion (the two surfaces), controls (the accordion's), upscaling
(what both do), settings, entries (what is listed), loaded (the model in memory), session (what one surface tells the other),
words (beside a picture), progress, api, page (Settings), host (everything asked of WebUI).
"""
