"""Pixels of any mode and depth that Pillow has, as arrays; what is lost on the way is said in `notes`."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageCms

from .errors import first_line

PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0


def layout_of(image: Image.Image) -> str:
    """How samples lie in an opened file, in Pillow's words, such as "RGB;16B"; "" where it does not say."""
    told = image.tile[0][3] if image.tile else ""
    word, *more = told if isinstance(told, tuple) and told else (told,)  # beside it are offsets and lengths
    if image.format == "PPM" and more and more[0] > 255:  # the largest sample
        return f"{word};16B"
    return word if isinstance(word, str) else ""


def decode(image: Image.Image, layout: str, notes: list[str]) -> tuple[np.ndarray, str, bytes | None]:
    """(pixels (H, W, C), mode to write, colour profile of those pixels) for any mode that Pillow has."""
    icc = image.info.get("icc_profile")
    _mend_transparent_colour(image, layout, notes)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image, layout, notes), "L", icc
    if "16" in layout:
        notes.append("It has 16 bits a channel; 8 are read and written.")
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV", "RGBX"):
        image, icc = _to_rgb(image, icc, notes)
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La") or layout.split(";")[0] == "LA"
    grey = grey or (_has_grey_palette(image) and not (icc and icc[16:20] == b"RGB "))
    if image.mode == "La":
        image = image.convert("LA")
    mode = ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")
    pixels = np.array(image.convert("RGBA" if alpha else mode))
    return pixels.reshape(*pixels.shape[:2], -1), mode, icc


def _mend_transparent_colour(image: Image.Image, layout: str, notes: list[str]) -> None:
    """Pillow compares the transparent colour of a PNG, as it is stored, with samples of 8 bits."""
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode == "1":
        image.info["transparency"] = 255 if transparent else 0  # as newer versions of Pillow do
    elif isinstance(transparent, int) and layout in ("L;2", "L;4"):
        image.info["transparency"] = transparent * 255 // (2 ** int(layout[2:]) - 1)
    elif transparent is not None and layout.startswith("RGB;16"):
        del image.info["transparency"]
        notes.append("Its transparent colour is not kept.")


def _deep_grey(image: Image.Image, layout: str, notes: list[str]) -> np.ndarray:
    """Grey of more than 8 bits as (H, W, 1) float32 in [0, 1]."""
    values = np.asarray(image).astype(np.float64)
    if layout.startswith("I;32") and "S" not in layout:
        values %= 2**32  # Pillow has numbers with a sign alone
    values = np.nan_to_num(values, posinf=values.max(where=np.isfinite(values), initial=0.0), neginf=0.0)
    white = _white_of(image.mode, layout, float(values.max()))
    if image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values  # Pillow does so with 8 bits alone
    kind = "numbers with a decimal point" if image.mode == "F" else f"{_bits_of(image.mode, layout, white)} bits"
    notes.append(f"It has {kind} a pixel, read as 0 to {white:g}; the result is written with 8 bits.")
    if "transparency" in image.info:
        notes.append("Its transparent grey is not kept.")
    return (values / white).clip(0, 1).astype(np.float32)[..., None]


def _bits_of(mode: str, layout: str, white: float) -> int:
    """Of a sample: as the file says, else what Pillow's mode holds."""
    told = re.match(r"I;(\d+)", layout)
    return int(told.group(1)) if told else 16 if mode.startswith("I;16") or white <= 65535 else 32


def _white_of(mode: str, layout: str, largest: float) -> float:
    """The value that means white. 32 bits may hold less, and nothing in a file says so: there it is guessed from the largest."""
    if mode == "I" and layout.startswith("I;32"):
        whites = (255, 65535, 2**31 - 1, 2**32 - 1) if "S" in layout else (255, 65535, 2**32 - 1)
        return next(white for white in whites if largest <= white)
    if mode == "I" and largest > 65535:
        return 2**31 - 1
    if mode != "F":
        return {"I;12": 4095, "I;16S": 32767, "I;16BS": 32767, "I;16NS": 32767}.get(layout, 65535)
    beyond = {1.0: 2.0, 255.0: 1.02, 65535.0: 1.02}  # what was filtered goes past white; light may be up to twice as bright
    return next((white for white, factor in beyond.items() if largest <= white * factor), largest)


def _to_rgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """Another colour model as RGB: through the profile to sRGB if there is one that fits, else by Pillow's formula."""
    if image.mode in ("YCbCr", "RGBX"):
        return image.convert("RGB"), icc
    notes.append(f"Its colours are {image.mode}; they are converted to sRGB.")
    try:
        if image.mode == "LAB":
            profile = ImageCms.createProfile("LAB")
        elif icc and image.mode == "CMYK" and icc[16:20] == b"CMYK":
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        else:
            return image.convert("RGB"), None
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"), None
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"Its colour profile cannot be used ({first_line(error)}).")
        return image.convert("RGB"), None


def _has_grey_palette(image: Image.Image) -> bool:
    """Whether all colours that a palette picture uses are grey."""
    if image.mode not in ("P", "PA"):
        return False
    palette = np.array(image.convert("P").getpalette("RGB") if image.mode == "PA" else image.getpalette("RGB"))
    used = np.flatnonzero(image.getchannel(0).histogram()[: len(palette) // 3])
    colours = palette.reshape(-1, 3)[used]
    return bool((colours == colours[:, :1]).all())


def matching_profile(icc: bytes | None, mode: str, notes: list[str]) -> bytes | None:
    """A profile describes one colour model: a CMYK or RGB profile in a grey file makes other programs show wrong colours."""
    wanted = b"GRAY" if mode in ("L", "LA") else b"RGB "
    if icc and icc[16:20] != wanted:
        notes.append("Its colour profile belongs to another colour model and is left out.")
        return None
    return icc or None
