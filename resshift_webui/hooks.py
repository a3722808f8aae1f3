"""What WebUI calls when. Registered each time the scripts are loaded; the host forgets its callbacks at Reload UI."""

from __future__ import annotations

from modules import script_callbacks

from . import api, host, loaded, page
from .upscaler import UpscalerResShift


def register() -> None:
    page.add_options()  # now: a host without a UI never asks for them, and its API knows only those that are there by then
    script_callbacks.on_ui_settings(page.add_options)
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_script_unloaded(loaded.free)


def _before_ui() -> None:
    """Some hosts have a fixed list of upscalers."""
    host.add_upscalers(UpscalerResShift().scalers)
