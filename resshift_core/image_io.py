"""Picture files in and out: what cameras, editors and the web put into them, and files that are there whole or not at all.

Reading applies the EXIF rotation and keeps the colour profile, the other EXIF data, alpha and grey; writing puts them back
beside the upscaled pixels. Everything that could not be kept is said in `notes`.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from . import png
from .atomic_file import atomic_path, try_to_make
from .errors import InputError, first_line
from .exif import exif_and_upright, exif_for, tiff_options
from .modes import decode, layout_of, matching_profile

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".tif": "TIFF",
    ".tiff": "TIFF", ".avif": "AVIF", ".bmp": "BMP",
}  # fmt: skip
READABLE = {*WRITABLE, ".gif", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".jp2", ".ico", ".dds", ".mpo", ".apng"}
HEIC = (".heic", ".heif")  # of phones; Pillow cannot read them
RAW = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")  # of cameras; nor these
UNREAD = {*HEIC, *RAW, ".jxl"}
FOREIGN = ("EPS", "WMF")  # formats that another program decodes: Ghostscript, Windows
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs

OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "TIFF": {},
    "BMP": {},
}
LONGEST_PATH = 259  # characters, on Windows as it is installed
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536}  # pixels that the format can hold
LARGEST = {"TIFF": 2**32 - 2**20, "BMP": 2**32 - 2**20}  # bytes before compression: places in the file are numbers of 32 bits
LONGEST_EXIF = {"JPEG": 65533 - 2}  # bytes
WITHOUT_ALPHA = ("JPEG", "BMP")
WITHOUT_METADATA = ("BMP",)

KIND, TILE_WIDTH, TILE_LENGTH = 254, 322, 323  # tags of a TIFF


@dataclass(frozen=True)
class Picture:
    """A picture as read: upright, with what has to be written beside its pixels."""

    pixels: np.ndarray  # (H, W, C); uint8, or float32 in [0, 1] if the file is deeper; C = 1, 3 or 4 (alpha last)
    mode: str  # "L", "LA", "RGB" or "RGBA", what it is written as; LA has its grey three times in `pixels`
    format: str  # Pillow's word for what the file contains, whatever its name says
    icc: bytes | None = None
    exif: bytes = b""
    text: Mapping[str, str] = field(default_factory=dict)  # of a PNG
    colour: Mapping[bytes, bytes] = field(
        default_factory=dict
    )  # chunks of a PNG without a profile that say what its numbers mean
    notes: tuple[str, ...] = ()  # sentences: what is not as the file had it

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def tensor(self) -> torch.Tensor:
        """(1, C, H, W) float32 in [0, 1]."""
        pixels = torch.from_numpy(self.pixels).permute(2, 0, 1)[None]
        return pixels.float().div_(255) if self.pixels.dtype == np.uint8 else pixels

    def brightness(self) -> torch.Tensor:
        """(1, 1, H, W) in [0, 1]: the mean of the channels; on black, where the picture is transparent."""
        bright = self.tensor()[:, :3].mean(1, keepdim=True)
        return bright * self.tensor()[:, 3:] if self.mode in ("LA", "RGBA") else bright

    def hole(self) -> torch.Tensor:
        """The picture as a mask, (1, 1, H, W): 1 where it is at least half bright, else 0 (lossy files have no clean black)."""
        return (self.brightness() >= 0.5).float()


# ---------------------------------------------------------------------------------------------------- reading


def read_picture(source: str | os.PathLike | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a file, or the bytes of one. The content decides what it is, not the name.

    Args:
        name: what errors call it; None = the path.
        max_pixels: larger pictures are refused before they are decoded; 0 = any size.

    Raises:
        InputError: there is no such file, it is no picture, damaged or too large.
    """
    name = name or ("The picture" if isinstance(source, bytes) else str(source))

    def read() -> Picture:
        with _open(io.BytesIO(source) if isinstance(source, bytes) else _existing(source, name)) as image:
            _check_size(image.size, name, max_pixels)
            _check_tiff(image, name)
            return _picture(image)

    try:
        return _with_long_texts(read)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(_not_a_picture(source, name)) from None
    except Image.DecompressionBombError as error:  # of the host's limit, or of a format that decodes before it tells its size
        count = re.search(r"\((\d+) pixels\)", str(error))
        size = _pixels(int(count.group(1))) if count else "too many"
        limit = max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(_too_many(name, f"{size} pixels", limit)) from error
    except PermissionError as error:
        raise InputError(f"{name} cannot be opened ({first_line(error)}). Check its permissions.") from error
    except MemoryError as error:
        raise InputError(
            f"There is not enough memory to read {name}. Close other programs, or give a smaller picture."
        ) from error
    except Exception as error:  # decoders raise a dozen kinds for a damaged file
        raise InputError(f"{name} cannot be read ({first_line(error)}). It may be damaged: save or copy it again.") from error


def picture_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(width, height) from the header alone, before rotation; None where it cannot be told."""

    def size() -> tuple[int, int]:
        with _open(_existing(path, str(path))) as image:
            return image.size

    try:
        return _with_long_texts(size)
    except Exception:  # whoever reads the picture will say why
        return None


@contextmanager
def _open(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """`Image.open` but for FOREIGN.

    Pillow is not told the path: it would map uncompressed TIFFs into memory, and with them those that are stored lying on
    their side, by the size that they have upright.
    """
    Image.init()
    formats = [format for format in Image.ID if format not in FOREIGN]
    with source if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        with Image.open(file, formats=formats) as image:
            yield image


def _with_long_texts(work: Callable):
    """What `work` returns, done again for a PNG with a text that Pillow takes for too long, before the pixels or after them."""
    try:
        return work()
    except ValueError as error:
        if "decompressed data too large" not in str(error).lower():
            raise
    with png.long_texts():
        return work()


def _existing(source: str | os.PathLike, name: str) -> Path:
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{name} is a folder, not a picture.")
    if not path.exists():
        raise InputError(f"There is no file {name}. Check the path.{_too_long(path)}")
    if not path.is_file():  # opening a named pipe would wait for somebody to write into it, perhaps for ever
        raise InputError(f"{name} is not a file but a pipe or a device. Give a picture file.")
    return path


def _too_long(path: str | os.PathLike | None) -> str:
    """What to do where Windows says of a file that it is not there, and means the length of its path."""
    length = len(os.path.abspath(path)) if os.name == "nt" and path is not None else 0
    if length <= LONGEST_PATH:
        return ""
    return f" The path has {length} characters; Windows takes {LONGEST_PATH} unless long paths are enabled. Shorten it."


def _not_a_picture(source, name: str) -> str:
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size == 0:
        return f"{name} is empty (0 bytes)."
    if name.lower().endswith(HEIC):
        return f"{name} is a HEIC picture, which Pillow cannot read. Export it as JPEG or PNG first."
    if name.lower().endswith(RAW):
        return f"{name} is a raw file of a camera, which Pillow cannot read. Develop it, and save it as TIFF, JPEG or PNG."
    return f"{name} is not a picture that can be read. Known are PNG, JPEG, WebP, TIFF, AVIF, BMP, GIF and a few more."


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if max_pixels and width * height > max_pixels:
        size = f"{width} x {height} = {_pixels(width * height)} pixels"
        raise InputError(_too_many(name, size, max_pixels))


def _check_tiff(image: Image.Image, name: str) -> None:
    """Refuse one whose tiles are far larger than it is: libtiff unpacks whole ones. And raw files, which are called TIFF, too."""
    if image.format != "TIFF":
        return
    kind, *sides = (_number(image.tag_v2.get(tag)) for tag in (KIND, TILE_WIDTH, TILE_LENGTH))
    if kind & 1:
        raise InputError(
            f"{name} begins with a small preview of its picture, as raw files of cameras do, and only that could be read. "
            "Develop it, or save the picture itself, as TIFF, JPEG or PNG."
        )
    area = math.prod(sides)
    if area > 16 * image.width * image.height + (1 << 20):
        raise InputError(f"{name} cannot be read: it is stored in tiles of {_pixels(area)} pixels. Save it anew.")


def _number(value) -> int:
    """Of a tag; 0 where it holds none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _pixels(count: int) -> str:
    return f"{count / 1e6:.0f} million" if count >= 10**7 else f"{count:,}"


def _too_many(name: str, size: str, limit: int) -> str:
    return (
        f"{name} has {size}, more than the limit of {_pixels(limit)}, which protects against damaged and hostile files. "
        "If you trust it, raise the limit: --max-pixels 0 on the command line takes any size."
    )


def _picture(image: Image.Image) -> Picture:
    """Decode the first frame of an opened file."""
    notes = []
    # phones put a second, small picture into an MPO; of a PSD, Pillow opens what its layers make together
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD"):
        notes.append("It has several frames or pages; only the first is used.")  # to count them can take longer than all else
        image.seek(0)
    layout = layout_of(image)  # known until it is decoded
    image.load()
    exif, upright = exif_and_upright(image, notes)
    pixels, mode, icc = decode(upright, layout, notes)
    icc = matching_profile(icc, mode, notes)
    colour = png.colour_chunks(image.info) if image.format == "PNG" and icc is None else {}
    return Picture(pixels, mode, image.format or "", icc, exif, png.texts_of(image), colour, tuple(notes))


def pixels_of(image: Image.Image) -> Picture:
    """A Pillow picture that a host has decoded and turned upright: pixels, mode and notes, without what lies beside them."""
    notes: list[str] = []
    image.load()
    pixels, mode, _ = decode(image, "", notes)
    return Picture(pixels, mode, image.format or "", notes=tuple(notes))


# ---------------------------------------------------------------------------------------------------- writing


def writable_format(path: str | os.PathLike) -> str:
    """Pillow's word for the format that a file name's ending asks for.

    Raises:
        InputError: the ending is unknown, or this Pillow cannot write it.
    """
    suffix = Path(path).suffix.lower()
    if suffix in WRITABLE and can_write(suffix):
        return WRITABLE[suffix]
    known = ", ".join(ending for ending in WRITABLE if can_write(ending))
    raise InputError(f"{path} ends in {suffix or 'nothing'}, which cannot be written; known endings are {known}.")


def can_write(suffix: str) -> bool:
    """Whether this Pillow writes files of that ending; AVIF, for one, needs Pillow 11.3."""
    Image.init()
    return WRITABLE.get(suffix.lower(), "") in Image.SAVE


def to_image(result: torch.Tensor, mode: str) -> Image.Image:
    """(C, H, W) in [0, 1] -> 8-bit Pillow picture of `mode`: L (C = 1), LA or RGBA (C = 4), RGB (C = 3)."""
    if mode == "LA":
        result = torch.cat([result[:3].mean(0, keepdim=True), result[3:]])
    pixels = (result.clamp(0, 1) * 255).round_().to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def check_room(name: str, format: str, size: tuple[int, int], mode: str) -> None:
    """
    Raises:
        InputError: a picture of that size, (width, height), cannot be written in that format.
    """
    longest = LONGEST_SIDE.get(format)
    if longest and max(size) > longest:
        raise InputError(f"{name}: a {format} picture can be {longest} pixels long, this one is {max(size)}. Write PNG.")
    count = size[0] * size[1] * len(mode)
    if count > LARGEST.get(format, count):
        raise InputError(f"{name}: a {format} file can have 4 GiB, this picture is {count / 2**30:.1f} GiB. Write PNG.")


def check_folder(target: Path) -> None:
    """Of a folder that is not there yet, the nearest one above counts.

    Raises:
        InputError: no file can be made where `target` is to lie.
    """
    place = target.parent
    try:
        while not os.path.isdir(place):
            if place == place.parent:  # a drive that is not there
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            place = place.parent
        try_to_make(place, file=place == target.parent)
    except OSError as error:
        raise _not_written(str(target), error) from error


def _not_written(name: str, error: Exception) -> InputError:
    return InputError(f"{name} cannot be written ({first_line(error)}).{_too_long(getattr(error, 'filename', None))}")


def write_picture(
    image: Image.Image,
    target: Path | BinaryIO,
    format: str,
    like: Picture | None = None,
    settings: Mapping[str, str] | None = None,
    quality: int | None = None,
) -> tuple[str, ...]:
    """Write `image` with the profile, EXIF data and text of `like`; `settings` become text of a PNG.

    A path appears by atomic rename. The same arguments give the same bytes.

    Args:
        quality: 1 to 100, of the formats with loss (JPEG, WebP, AVIF); None = as OPTIONS.

    Returns:
        Notes: sentences about what the format could not hold.

    Raises:
        InputError: the picture is too large for the format, or the file cannot be written.
    """
    name = str(target) if isinstance(target, Path) else "The output"
    check_room(name, format, image.size, image.mode)
    notes: list[str] = []
    image = _without_alpha(image, notes) if format in WITHOUT_ALPHA else image
    options = OPTIONS[format] | _metadata(image, format, like, notes)
    if format == "AVIF" and image.mode == "L":
        options["subsampling"] = "4:0:0"  # or it would be stored in colour, which a grey profile does not fit
    if quality is not None and "quality" in options:
        options["quality"] = quality
    if format == "PNG":
        options["pnginfo"] = png.to_write({**(like.text if like else {}), **(settings or {})}, like.colour if like else {})
    elif format == "TIFF":
        options |= tiff_options(options.pop("exif", b""))
    try:
        if isinstance(target, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as part:
                image.save(part, format=format, **options)
        else:
            image.save(target, format=format, **options)
    except Exception as error:  # libtiff's RuntimeError on a full disk, among others
        raise _not_written(name, error) from error
    return tuple(notes)


def _without_alpha(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image
    notes.append("The format has no transparency: the picture is laid on white. Write PNG, WebP, TIFF or AVIF to keep it.")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if image.mode == "LA" else "RGB")


def _metadata(image: Image.Image, format: str, like: Picture | None, notes: list[str]) -> dict[str, bytes]:
    """Pillow's options for the profile and EXIF data that the format can hold."""
    options: dict[str, bytes] = {}
    if like is None:
        return options
    if like.text and format != "PNG":
        notes.append(f"{format} holds no texts of a PNG, such as prompts: they are left out. Write PNG to keep them.")
    if format in WITHOUT_METADATA:
        if like.icc or like.exif:
            notes.append(f"{format} holds no colour profile and no EXIF data: they are left out. Write PNG to keep them.")
        return options
    becomes_rgb = format == "WEBP" or (format == "AVIF" and image.mode == "LA")
    if like.icc and becomes_rgb and like.icc[16:20] == b"GRAY":
        notes.append(
            f"{format} holds this grey picture in colour, where its colour profile is of no use: it is left out. "
            "Write PNG to keep it."
        )
    elif like.icc:
        options["icc_profile"] = like.icc
    exif = exif_for(like.exif, image.size)
    if len(exif) > LONGEST_EXIF.get(format, len(exif)):
        notes.append(f"Its EXIF data, {len(exif)} bytes, is too long for {format} and is left out.")
    elif exif:
        options["exif"] = exif
    return options
