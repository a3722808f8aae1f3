"""The section ResShift of the Settings page; its options are called resshift_<input>."""

from __future__ import annotations

import logging

import gradio as gr
from modules import shared, ui_components

from resshift_core import registry
from resshift_core.errors import InputError

from .controls import LABELS, component
from .entries import selectable
from .loaded import DTYPE_WORDS
from .settings import INPUTS, Settings

log = logging.getLogger("resshift")

SECTION = ("resshift", "ResShift")
EXACT = 2**53 - 1  # the largest whole number that every browser holds exactly


def add_options() -> None:
    """Add them to the host, once or again; saved values stay."""
    defaults = Settings()
    for word, item in INPUTS.items():
        kind, arguments = component(item)
        if word == "seed":
            arguments |= {"minimum": item.minimum, "maximum": EXACT}
        _add(word, getattr(defaults, word), LABELS[word], kind, arguments, item.tooltip)
    _add(
        "dtype", "auto", "Number format", gr.Radio, {"choices": [*DTYPE_WORDS]}, "auto: bf16 or fp16 where the hardware has it"
    )
    _add("keep_loaded", True, "Keep the model in main memory between runs", gr.Checkbox, {}, "it never stays on the GPU")
    _add("download", True, "Download a listed model when it is first used", gr.Checkbox, {}, "its licence is told in the log")
    names = [(_label(entry), entry.name) for entry in selectable()]
    _add(
        "visible", [], "Published models to list although they are not downloaded yet", *_several([name for _, name in names]),
        "; ".join(label for label, _ in names) + "; needs Reload UI",
    )  # fmt: skip


def _label(entry: registry.Entry) -> str:
    return f"{entry.name}: {entry.size_words}, {entry.licence}"


def _several(choices: list[str]) -> tuple[type, dict]:
    """A list of which any number can be chosen.

    The host writes a component's arguments into the page again whenever it is opened, and Gradio 3 then knows no `multiselect`.
    """
    kind = getattr(ui_components, "DropdownMulti", None)
    return (gr.Dropdown, {"choices": choices, "multiselect": True}) if kind is None else (kind, {"choices": choices})


def _add(word: str, default, label: str, kind, arguments: dict, hint: str) -> None:
    key = f"resshift_{word}"
    # the host can show options beside its own, in a bar without sections
    option = shared.OptionInfo(
        default, f"ResShift: {label}", kind, arguments, onchange=lambda: _settle(key, kind), section=SECTION
    )
    if hasattr(option, "info"):
        option = option.info(hint)
    if hasattr(option, "category_id"):
        option.category_id = "postprocessing"
    shared.opts.add_option(key, option)
    try:
        _settle(key, kind)
    except InputError as error:
        log.warning("The saved %s It is %r again.", error, default)
        shared.opts.data[key] = default


def _settle(key: str, kind) -> None:
    """The host sets an option, from the page or its API; an exception makes it take the old value back, and log the new one.

    Raises:
        InputError: with this value, the host could not make its pages any more, nor start again.
    """
    value = shared.opts.data.get(key)
    try:
        if kind is gr.Number and value is not None:
            value = int(value)  # of a text, too: pages would round it
        if isinstance(value, (int, float)) and not -(2**63) <= value < 2**64:
            raise OverflowError
    except (TypeError, ValueError, OverflowError):  # of int: a list, a word, infinity
        raise InputError(f"{key} is {value!r}; pages can show whole numbers of 64 bits.") from None
    if key in shared.opts.data:
        shared.opts.data[key] = value
