"""Text in drawn pictures: the before/after sheet and the schedule's plot."""

from __future__ import annotations

from PIL import ImageFont


def font(size: int):
    """Pillow's own font, so that pictures are the same on every machine; before Pillow 10.1 it has one size only."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        return ImageFont.load_default()


def shortened(text: str, typeface, width: int) -> str:
    """The text, or its beginning and "..." where it is longer than `width` pixels."""
    if typeface.getlength(text) <= width:
        return text
    while text and typeface.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
