"""EXIF data of picture files: what of it travels with a picture, and the turn that it asks for."""

from __future__ import annotations

from collections.abc import MutableMapping

from PIL import Image

from .errors import first_line

ORIENTATION, EXIF_IFD, GPS_IFD, PIXEL_WIDTH, PIXEL_HEIGHT = 0x0112, 0x8769, 0x8825, 0xA002, 0xA003
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# EXIF is a small TIFF: in a TIFF file these tags describe how *its* pixels lie, on pages and on maps, and must not travel.
LAYOUT_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 297, 301, 317, 318, 319, 320, 322, 323, 324, 325, 330,
    332, 333, 334, 336, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33550, 33723, 33922, 34264, 34377, 34675,
}  # fmt: skip
# What libtiff, which compresses, writes as it is; others, and folders of tags, it writes wrongly, or not at all.
PLAIN_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432}


def exif_and_upright(image: Image.Image, notes: list[str]) -> tuple[bytes, Image.Image]:
    """The EXIF block without what belongs to this file's layout, orientation reset; and the picture turned upright."""
    upright = image
    try:
        exif = image.getexif()
        turn = UPRIGHT.get(exif.get(ORIENTATION))
        # Pillow turns TIFF while it decodes; before Pillow 10 it forgot to say so
        if turn is not None and image.format != "TIFF":
            upright = image.transpose(turn)
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        for tag in LAYOUT_TAGS & set(exif):
            del exif[tag]
        return _exif_block(exif, notes), upright
    except Exception as error:  # EXIF is written by anything, and read by anything
        notes.append(f"Its EXIF data is damaged ({first_line(error)}) and is left out.")
        return b"", upright


class _Latin(str):
    """Text of EXIF: Pillow reads it as Latin-1, byte by byte, and would write question marks for what is not ASCII."""

    def encode(self, *_) -> bytes:
        return str.encode(self, "latin-1", "replace")


def _exif_block(exif: Image.Exif, notes: list[str]) -> bytes:
    """The bytes of it; b"" where there is nothing. Tags that cannot be written are left out."""
    folders = _with_letters(exif)
    try:
        return exif.tobytes() if len(exif) else b""
    except Exception as error:
        notes.append(f"Some of its EXIF data is damaged ({first_line(error)}) and is left out.")
    for tags in folders:
        for tag, value in list(tags.items()):
            alone = Image.Exif()
            alone[tag] = value
            try:
                if tag not in (EXIF_IFD, GPS_IFD):
                    alone.tobytes()
            except Exception:
                del tags[tag]
    return exif.tobytes() if len(exif) else b""


def _with_letters(exif: Image.Exif) -> tuple[MutableMapping, ...]:
    """Its folders of tags, whose texts will be written as they are."""
    folders = (exif, *(exif.get_ifd(folder) for folder in (EXIF_IFD, GPS_IFD) if folder in exif))
    for tags in folders:
        for tag, value in list(tags.items()):
            if isinstance(value, str) and not value.isascii():
                tags[tag] = _Latin(value)
    return folders


def exif_for(block: bytes, size: tuple[int, int]) -> bytes:
    """The EXIF block with the new size in pixels, where it tells one. Without an orientation, which means upright: Pillow takes it
    out of what it writes as AVIF, and then writes the whole block anew, question marks for letters.
    """
    if not block:
        return block
    exif = Image.Exif()
    exif.load(block)
    exif.pop(ORIENTATION, None)
    details = exif.get_ifd(EXIF_IFD) if EXIF_IFD in exif else {}  # asked for it, Pillow makes one
    for tag, pixels in zip((PIXEL_WIDTH, PIXEL_HEIGHT), size):
        if tag in details:
            details[tag] = pixels
    return _exif_block(exif, [])


def tiff_options(block: bytes) -> dict:
    """Pillow's, to write a TIFF with the EXIF block: compressed where that can hold it, as the resolution and names of scans."""
    exif = Image.Exif()
    exif.load(block)
    _with_letters(exif)
    compressed = {"compression": "tiff_adobe_deflate"} if set(exif) <= PLAIN_TAGS else {}
    return {"exif": exif, **compressed}
