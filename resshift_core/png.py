"""What a PNG says beside its pixels: texts, and what its numbers mean as colours."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from PIL import PngImagePlugin

LONGEST_TEXT = 32 * 2**20  # bytes of a compressed text; Pillow's own limit is 1 MiB
OF_THE_FILE = ("XML:com.adobe.xmp", "Raw profile type ")  # texts that repeat its EXIF data, and its orientation
UNIT = 100_000  # of gamma and chromaticities as they are stored

_lock = threading.Lock()


@contextmanager
def long_texts() -> Iterator[None]:
    """While a picture is opened: a workflow or XMP that takes more than a megabyte, compressed in the file, is no attack yet."""
    with _lock:
        before, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, LONGEST_TEXT
        try:
            yield
        finally:
            PngImagePlugin.MAX_TEXT_CHUNK = before


def texts_of(image) -> dict[str, str]:
    """The texts of an opened picture, {} of other formats."""
    return {key: str(value) for key, value in getattr(image, "text", {}).items() if not key.startswith(OF_THE_FILE)}


def colour_chunks(info: Mapping) -> dict[bytes, bytes]:
    """The chunks sRGB, gAMA and cHRM that Pillow has read, as they are stored."""
    chunks = {}
    if "srgb" in info:
        chunks[b"sRGB"] = struct.pack(">B", info["srgb"])
    if "gamma" in info:
        chunks[b"gAMA"] = struct.pack(">I", round(info["gamma"] * UNIT))
    if len(info.get("chromaticity", ())) == 8:
        chunks[b"cHRM"] = struct.pack(">8I", *(round(value * UNIT) for value in info["chromaticity"]))
    return chunks


def to_write(texts: Mapping[str, str], colour: Mapping[bytes, bytes]) -> PngImagePlugin.PngInfo:
    """Pillow's object for texts and `colour_chunks`."""
    chunks = PngImagePlugin.PngInfo()
    for name, data in colour.items():
        chunks.add(name, data)
    for key, value in texts.items():
        chunks.add_text(key, value)
    return chunks
