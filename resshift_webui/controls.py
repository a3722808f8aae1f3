"""Gradio controls of the settings, for accordion and Settings page. Only components that Gradio 3 and 4 share."""

from __future__ import annotations

import gradio as gr

from resshift_core.inputs import Input

# The table's ranges are wide, for workflows and files; a slider ends where people's values do.
SLIDER_ENDS = {"steps": 50, "kappa": 20.0, "p": 5.0, "tile": 1024, "overlap": 256, "tile_batch": 64, "scale": 8.0}
LABELS = {
    "steps": "Steps",
    "kappa": "Kappa",
    "p": "p",
    "sampler": "Sampler",
    "seed": "Seed",
    "tile": "Tile",
    "overlap": "Overlap",
    "tile_batch": "Tiles per batch",
    "color_fix": "Colour fix",
    "compare": "Before/after sheet",
    "scale": "Resize",
}
ZERO = {  # what the lowest value means
    "steps": "0 = as trained",
    "kappa": "0 = as trained",
    "p": "0 = as trained",
    "seed": "-1 = random",
    "tile": "0 = the model's own",
    "overlap": "0 = the model's own",
    "tile_batch": "0 = what fits",
    "scale": "0 = the model's own",
}


def component(item: Input) -> tuple[type, dict]:
    """(Gradio's class, its arguments beside label and value) of an input."""
    if item.kind == "BOOLEAN":
        return gr.Checkbox, {}
    if item.kind == "COMBO":
        return gr.Radio, {"choices": list(item.choices)}
    if item.id == "seed":
        return gr.Number, {"precision": 0}
    return gr.Slider, {"minimum": item.minimum, "maximum": SLIDER_ENDS[item.id], "step": item.step or 1}


def draw(item: Input, value, after: str = ""):
    """One control; hosts that can show its explanation when the mouse rests on it. `after` ends its id."""
    kind, arguments = component(item)
    arguments |= {"label": LABELS[item.id], "value": value, "info": ZERO.get(item.id), "elem_id": f"resshift_{item.id}{after}"}
    try:
        control = kind(**arguments, tooltip=item.tooltip)
    except TypeError:  # Gradio itself knows no tooltips: A1111 and Forge add them
        control = kind(**arguments)
    control.do_not_save_to_config = True  # or the host restores its first value for ever, whatever the Settings page says
    return control
