"""Picture files: every mode, rotation, profile and depth; damage; and what is written. Files are made by Pillow or by hand."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin

import resshift_core as rs
from resshift_core import image_io, modes
from resshift_core.image_io import Picture, check_room, picture_size, read_picture, to_image, write_picture

MAKE, ORIENTATION, EXIF_IFD, TAKEN, WIDTH, HEIGHT, GPS_IFD = 0x010F, 0x0112, 0x8769, 0x9003, 0xA002, 0xA003, 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def colours(height=6, width=5, channels=3, seed=0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(more_tags: list[tuple[int, int, int]], width: int, height: int, bits: int, data: bytes, places=(273, 279)) -> bytes:
    """A grey TIFF by hand. more_tags: (tag, kind, value)."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (262, 3, 1), (277, 3, 1), *more_tags]
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = sorted([*tags, (places[0], 4, offset), (places[1], 4, len(data))])
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def png(
    width: int, height: int, bits: int, colour_type: int, rows: bytes, transparent: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG by hand: Pillow does not write all that it reads."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"zTXt", after)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts if part[1]) + chunk(b"IEND", b"")


def png_texts(data: bytes) -> dict[str, str]:
    """The tEXt chunks of a PNG, read by hand."""
    texts, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"tEXt":
            key, value = data[at + 8 : at + 8 + length].split(b"\0", 1)
            texts[key.decode()] = value.decode("latin-1")
        at += 12 + length
    return texts


def exif_block(orientation: int = 6, **more) -> bytes:
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "A camera", orientation
    exif[EXIF_IFD] = {TAKEN: "2024:05:06 07:08:09", WIDTH: 5, HEIGHT: 6}
    exif[GPS_IFD] = {1: "N"}
    for tag, value in more.items():
        exif[int(tag[1:])] = value
    return exif.tobytes()


def exif_by_hand(*folders: list[tuple[int, int | str]]) -> bytes:
    """Tags of the main folder, then of the EXIF folder; Pillow writes no text for what is a number."""
    data = b"Exif\0\0II*\0\x08\0\0\0"
    for number, tags in enumerate(folders):
        last = number == len(folders) - 1
        tags = sorted(tags if last else [*tags, (EXIF_IFD, 0)])
        start, body, entries = len(data) - 6, b"", b""
        beyond = start + 2 + 12 * len(tags) + 4
        for tag, value in tags:
            text = value.encode() + b"\0" if isinstance(value, str) else b""
            if text:
                entries += struct.pack("<HHII", tag, 2, len(text), beyond + len(body))
                body += text
            else:
                entries += struct.pack("<HHII", tag, 4, 1, value)
        data += struct.pack("<H", len(tags)) + entries + bytes(4) + body
        if not last:
            data = data.replace(struct.pack("<HHII", EXIF_IFD, 4, 1, 0), struct.pack("<HHII", EXIF_IFD, 4, 1, len(data) - 6))
    return data


# ---------------------------------------------------------------------------------------------------- modes


class TestModes:
    def test_rgb_and_grey(self):
        pixels = colours()
        picture = read_picture(saved(Image.fromarray(pixels)))
        assert (picture.mode, picture.size, picture.format) == ("RGB", (5, 6), "PNG")
        assert np.array_equal(picture.pixels, pixels) and not picture.notes
        assert torch.equal(picture.tensor()[0, 1], torch.from_numpy(pixels[..., 1]).float() / 255)
        grey = colours(channels=1)
        picture = read_picture(saved(Image.fromarray(grey)))
        assert picture.mode == "L" and picture.tensor().shape == (1, 1, 6, 5)
        assert np.array_equal(picture.pixels[..., 0], grey)

    def test_one_bit(self):
        bits = colours(channels=1) > 127
        picture = read_picture(saved(Image.fromarray(bits)))
        assert picture.mode == "L" and np.array_equal(picture.pixels[..., 0], bits * np.uint8(255))

    def test_alpha(self):
        pixels = colours(channels=4)
        picture = read_picture(saved(Image.fromarray(pixels)))
        assert picture.mode == "RGBA" and np.array_equal(picture.pixels, pixels)

    def test_grey_with_alpha_stays_grey(self):
        pixels = colours(channels=2)
        picture = read_picture(saved(Image.fromarray(pixels)))
        assert picture.mode == "LA" and picture.tensor().shape == (1, 4, 6, 5)
        again = np.asarray(to_image(picture.tensor()[0], "LA"))
        assert np.array_equal(again, pixels)

    def test_palette(self):
        image = Image.fromarray(colours(channels=1) % 3).convert("P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture = read_picture(saved(image))
        table = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
        assert picture.mode == "RGB" and np.array_equal(picture.pixels, table[np.asarray(image)])

    def test_palette_of_greys_is_grey(self):
        image = Image.fromarray(colours(channels=1) % 3).convert("P")
        image.putpalette([10, 10, 10, 100, 100, 100, 200, 200, 200, 1, 2, 3])  # the last colour is not used
        picture = read_picture(saved(image))
        assert picture.mode == "L" and set(np.unique(picture.pixels)) == {10, 100, 200}
        in_colour = read_picture(saved(image, icc_profile=SRGB))
        assert (
            in_colour.mode == "RGB" and in_colour.icc == SRGB and not in_colour.notes
        )  # grey files have profiles of their own

    @pytest.mark.parametrize("transparency, alpha", [(1, [255, 0, 255]), (bytes([9, 8, 7]), [9, 8, 7])])
    def test_palette_with_transparency(self, transparency, alpha):
        indices = colours(channels=1) % 3
        image = Image.fromarray(indices).convert("P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture = read_picture(saved(image, transparency=transparency))
        assert picture.mode == "RGBA" and np.array_equal(picture.pixels[..., 3], np.array(alpha, np.uint8)[indices])

    def test_a_transparent_colour(self):
        pixels = colours()
        pixels[2, 3] = pixels[0, 0] = (1, 2, 3)
        picture = read_picture(saved(Image.fromarray(pixels), transparency=(1, 2, 3)))
        assert picture.mode == "RGBA"
        assert set(zip(*np.nonzero(picture.pixels[..., 3] == 0))) == {(0, 0), (2, 3)}
        grey = colours(channels=1)
        picture = read_picture(saved(Image.fromarray(grey), transparency=int(grey[1, 1])))
        assert picture.mode == "LA" and np.array_equal(picture.pixels[..., 3] == 0, grey == grey[1, 1])

    @pytest.mark.parametrize("bits, row, transparent", [(1, 0b01000000, 1), (2, 0b00011011, 2), (4, 0x3F, 3), (4, 0x3F, 15)])
    def test_a_transparent_grey_of_few_bits(self, bits, row, transparent):
        picture = read_picture(png(8 // bits, 1, bits, 0, bytes([0, row]), struct.pack(">H", transparent)))
        samples = [row >> shift & (1 << bits) - 1 for shift in range(8 - bits, -1, -bits)]
        assert picture.mode == "LA" and [value == 0 for value in picture.pixels[0, :, 3]] == [s == transparent for s in samples]

    def test_a_transparent_colour_of_sixteen_bits_hides_nothing_else(self):
        """Pillow hid 0x0042 for 0x0000, and with 0x1234 nothing at all."""
        row = b"\0" + struct.pack(">6H", 0, 0, 0, 0x42, 0x42, 0x42)
        picture = read_picture(png(2, 1, 16, 2, row, struct.pack(">3H", 0, 0, 0)))
        assert picture.mode == "RGB" and any("transparent colour is not kept" in note for note in picture.notes)


class TestDepth:
    def test_sixteen_bits_of_grey_are_read_as_deep_as_they_are(self):
        values = np.arange(0, 60000, 2000, dtype=np.uint16).reshape(6, 5)
        picture = read_picture(saved(Image.fromarray(values)))
        assert picture.mode == "L" and "16 bits" in picture.notes[0] and "8 bits" in picture.notes[0]
        assert np.allclose(picture.tensor().numpy()[0, 0], values / 65535, atol=1e-7)
        big_endian = read_picture(png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 258, 65535)))
        assert np.allclose(big_endian.pixels[0, :, 0], [258 / 65535, 1])

    def test_sixteen_bits_of_colour_get_a_note(self):
        picture = read_picture(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", *(i * 10000 for i in range(6)))))
        assert picture.mode == "RGB" and "16 bits a channel" in picture.notes[0]
        assert np.array_equal(picture.pixels[0, 1], [30000 >> 8, 40000 >> 8, 50000 >> 8])
        grey = read_picture(png(1, 1, 16, 4, b"\0" + struct.pack(">HH", 30000, 50000)))
        assert grey.mode == "LA" and "16 bits a channel" in grey.notes[0]

    @pytest.mark.parametrize("byte_order", ["<", ">"])
    def test_white_may_be_zero_in_a_tiff(self, byte_order):
        values = np.arange(0, 60000, 2000, dtype=f"{byte_order}u2").reshape(6, 5)
        picture = read_picture(saved(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={262: 0}))
        assert np.allclose(picture.pixels[..., 0], 1 - values / 65535, atol=1e-6)
        eight = read_picture(saved(Image.fromarray(values.astype(np.uint8)), "TIFF", tiffinfo={262: 0}))
        assert np.array_equal(eight.pixels[..., 0], values.astype(np.uint8))  # which Pillow turns, both ways

    @pytest.mark.parametrize("largest, white", [(1.0, 1), (1.004, 1), (1.9, 1), (200.0, 255), (256.5, 255), (60000.0, 65535)])
    def test_numbers_with_a_decimal_point(self, largest, white):
        values = np.linspace(0, largest, 30, dtype=np.float32).reshape(6, 5)
        values[0, 0] = np.nan
        picture = read_picture(saved(Image.fromarray(values), "TIFF"))
        assert np.allclose(picture.pixels[..., 0], (np.nan_to_num(values) / white).clip(0, 1), atol=1e-6)
        assert f"0 to {white}" in picture.notes[0]

    def test_infinite_numbers_are_as_bright_as_the_brightest(self):
        picture = read_picture(saved(Image.fromarray(np.array([[np.inf, 0.5, -np.inf, 0.75]], np.float32)), "TIFF"))
        assert picture.pixels[0, :, 0].tolist() == [0.75, 0.5, 0, 0.75]

    @pytest.mark.parametrize("kind, signed, largest, white", [
        ("<i2", True, 32767, 32767), ("<u4", False, 2**32 - 1, 2**32 - 1), ("<u4", False, 65535, 65535), ("<u4", False, 255, 255),
        ("<i4", True, 255, 255),
    ])  # fmt: skip
    def test_numbers_are_as_large_as_the_file_says(self, kind, signed, largest, white):
        """Pillow knows none without a sign: the bright half of 32 bits was black."""
        values = np.linspace(0, largest, 30).astype(kind)
        bits = 8 * values.itemsize
        picture = read_picture(tiff([(339, 3, 2)] if signed else [], 5, 6, bits, values.tobytes()))
        assert np.allclose(picture.pixels.ravel(), values / white, atol=1e-6)
        assert f"It has {bits} bits a pixel, read as 0 to {white:g}" in picture.notes[0]

    def test_numbers_with_a_sign_in_the_order_of_a_mac(self):
        """Pillow calls them I;16BS, not I;16S."""
        tags = [(256, 6), (257, 5), (258, 16), (262, 1), (277, 1), (339, 2), (278, 5), (273, 8 + 2 + 12 * 9 + 4), (279, 60)]
        entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags))
        values = np.linspace(0, 32767, 30).astype(">i2")
        data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + values.tobytes()
        assert np.allclose(read_picture(data).pixels.ravel(), values / 32767, atol=1e-6)

    def test_a_transparent_grey_of_sixteen_bits_is_missed_aloud(self):
        rows, transparent = b"\0" + struct.pack(">HH", 258, 65535), struct.pack(">H", 258)
        picture = read_picture(png(2, 1, 16, 0, rows, transparent=transparent))
        assert picture.mode == "L" and picture.notes[1] == "Its transparent grey is not kept."

    def test_twelve_bits(self):
        picture = read_picture(tiff([], 2, 1, 12, bytes([0xFF, 0xF8, 0x00])))  # 4095 and 2048, three bytes for both
        assert np.allclose(picture.pixels.ravel(), [1, 2048 / 4095]) and "12 bits" in picture.notes[0]

    @pytest.mark.parametrize("largest, white", [(65535, 65535), (2**31 - 1, 2**31 - 1)])
    def test_thirty_two_bits(self, largest, white):
        values = np.linspace(0, largest, 30).astype(np.int32).reshape(6, 5)
        picture = read_picture(saved(Image.fromarray(values), "TIFF"))
        assert np.allclose(picture.pixels[..., 0], values / white, atol=1e-6)


def cmyk_profile() -> bytes:
    """A small profile by hand, in which white paper is white and every full ink alone is the red of L*a*b* (54, 81, 70)."""
    white, red, black = (255, 128, 128), (138, 209, 198), (0, 128, 128)
    corners = [white if not any(inks) else red if sum(inks) == 1 else black for inks in np.ndindex(2, 2, 2, 2)]
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += ramp * 4 + b"".join(map(bytes, corners)) + ramp * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(8 + 2 + 1 + 67)
    white_point = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    parts, offset, index = [(b"A2B0", table), (b"desc", text), (b"wtpt", white_point)], 128 + 4 + 12 * 3, b""
    body = b""
    for name, data in parts:
        index += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 3) + index + body


class TestColour:
    def test_cmyk_goes_through_its_profile(self):
        inks = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [255, 255, 255, 255]]], np.uint8), "CMYK")
        picture = read_picture(saved(inks, "TIFF", icc_profile=cmyk_profile()))
        assert picture.mode == "RGB" and picture.icc is None and "CMYK" in picture.notes[0]
        white, cyan, black = picture.pixels[0].astype(int)
        assert white.min() > 250 and black.max() < 5
        assert abs(cyan - (255, 0, 0)).max() < 12  # the profile says that this ink is red; Pillow's formula would say cyan

    def test_cmyk_without_a_profile_or_with_a_broken_one(self):
        inks = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
        assert tuple(read_picture(saved(inks, "TIFF")).pixels[0, 0]) == (0, 255, 255)
        broken = bytes(16) + b"CMYK" + bytes(200)
        picture = read_picture(saved(inks, "TIFF", icc_profile=broken))
        assert tuple(picture.pixels[0, 0]) == (0, 255, 255) and "cannot be used" in picture.notes[1]

    def test_lab(self):
        lab = Image.new("LAB", (2, 2), (138, 209, 198))  # 54 % of 255, and 128 more than 81 and 70: red
        picture = read_picture(saved(lab, "TIFF"))
        assert abs(picture.pixels[0, 0].astype(int) - (255, 0, 0)).max() < 12

    def test_a_profile_of_another_colour_model_is_left_out(self):
        picture = read_picture(saved(Image.fromarray(colours(channels=1)), icc_profile=SRGB))
        assert picture.icc is None and "another colour model" in picture.notes[0]

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
    def test_a_profile_survives(self, format):
        if f".{format.lower()}" in image_io.WRITABLE and not image_io.can_write(f".{format.lower()}"):
            pytest.skip(f"this Pillow cannot write {format}")
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), icc_profile=SRGB))
        buffer = io.BytesIO()
        assert write_picture(Image.fromarray(colours(64, 64)), buffer, format, picture) == ()
        assert Image.open(buffer).info["icc_profile"] == SRGB

    def test_a_profile_of_pictures_that_are_stored_in_luma_and_chroma_is_kept(self):
        data = saved(Image.new("YCbCr", (8, 8), (90, 100, 200)), "TIFF", icc_profile=SRGB)
        if Image.open(io.BytesIO(data)).mode != "YCbCr":
            pytest.skip("this Pillow reads them as RGB")
        picture = read_picture(data)
        assert picture.mode == "RGB" and picture.icc == SRGB and picture.notes == ()

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
    @pytest.mark.parametrize("mode", ["L", "LA"])
    def test_a_grey_profile_survives_or_is_missed(self, format, mode):
        """Where grey is stored in colour, it would make the file one that no viewer can show right."""
        if not image_io.can_write(f".{format.lower()}".replace("jpeg", "jpg")):
            pytest.skip(f"this Pillow cannot write {format}")
        profile = bytearray(SRGB)
        profile[16:20] = b"GRAY"
        like = Picture(colours(16, 16, channels=1), mode, "", bytes(profile))
        buffer = io.BytesIO()
        notes = write_picture(Image.fromarray(colours(64, 64, channels=1)).convert(mode), buffer, format, like)
        with Image.open(buffer) as image:
            kept = image.info.get("icc_profile") == bytes(profile)
            assert kept == (image.mode in ("L", "LA")) and kept != any("colour profile is of no use" in note for note in notes)
            assert kept or format == "WEBP" or (format, mode) == ("AVIF", "LA")


# ---------------------------------------------------------------------------------------------------- EXIF


class TestLayout:
    """Whether eight bits of sixteen are lost is in how samples lie, beside which Pillow has offsets and lengths."""

    @pytest.mark.parametrize("name, size", [("a.bmp", (720, 8)), ("a.bmp", (533, 8)), ("a.dds", (16, 16)), ("a.tga", (16, 16))])
    def test_numbers_of_the_file_are_not_its_depth(self, tmp_path, name, size):
        Image.new("RGB", size, "red").save(tmp_path / name)
        assert read_picture(tmp_path / name).notes == ()

    def test_deep_ppm(self, tmp_path):
        for most, depth in ((65535, 2), (255, 1)):
            (tmp_path / "a.ppm").write_bytes(b"P6 4 4 %d\n" % most + bytes(48 * depth))
            assert any("16 bits" in note for note in read_picture(tmp_path / "a.ppm").notes) is (depth == 2)


class TestExif:
    # What the EXIF standard says of where row 0 and column 0 of the stored picture lie on the upright one.
    UPRIGHT = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
    def test_rotation_is_applied_and_forgotten(self, orientation, format):
        pixels = colours()
        lossless = {"lossless": True} if format == "WEBP" else {}
        picture = read_picture(saved(Image.fromarray(pixels), format, exif=exif_block(orientation), **lossless))
        assert np.array_equal(picture.pixels, self.UPRIGHT[orientation](pixels))
        exif = Image.Exif()
        exif.load(picture.exif)
        assert exif.get(ORIENTATION, 1) == 1  # a new Pillow turns TIFF itself, and drops the tag
        assert exif[MAKE] == "A camera" and exif.get_ifd(EXIF_IFD)[TAKEN] == "2024:05:06 07:08:09"

    @pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "I;16"])
    @pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
    def test_a_tiff_that_lies_on_its_side(self, orientation, mode, compression, tmp_path):
        """Given a path, Pillow maps the file into memory by the size that it has upright, and mixes the rows up."""
        image = Image.fromarray(colours(20, 30)).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image.save(tmp_path / "lying.tif", compression=compression, tiffinfo={ORIENTATION: orientation})
        found, same = read_picture(tmp_path / "lying.tif"), read_picture((tmp_path / "lying.tif").read_bytes())
        assert np.array_equal(found.pixels, same.pixels)
        if mode in ("L", "RGB"):
            upright = self.UPRIGHT[orientation](np.asarray(image).reshape(20, 30, -1))
            assert np.array_equal(found.pixels.reshape(upright.shape), upright)

    @pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF"])
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
    def test_the_rest_is_kept(self, source, format):
        if format == "AVIF" and not image_io.can_write(".avif"):
            pytest.skip("this Pillow cannot write AVIF")
        picture = read_picture(saved(Image.fromarray(colours(16, 24)), source, exif=exif_block(3)))
        buffer = io.BytesIO()
        assert write_picture(Image.fromarray(colours(64, 96)), buffer, format, picture) == ()
        with Image.open(buffer) as image:
            image.load()
            exif = image.getexif()
            assert image.size == (96, 64)
            assert exif[MAKE] == "A camera" and exif.get(ORIENTATION, 1) == 1 and exif.get_ifd(GPS_IFD)[1] == "N"
            details = exif.get_ifd(EXIF_IFD)
            assert details[TAKEN] == "2024:05:06 07:08:09" and (details[WIDTH], details[HEIGHT]) == (96, 64)

    def test_the_layout_of_a_tiff_does_not_travel(self):
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), "TIFF", description="words", compression="tiff_lzw"))
        exif = Image.Exif()
        exif.load(picture.exif)
        assert set(exif) <= {270, 271, 282, 283, 296} and exif[270] == "words"

    def test_places_on_a_map_are_not_those_of_the_result(self):
        values = {33550: (10.0, 10.0, 0.0), 33922: (0.0,) * 6, 270: "words"}
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), "TIFF", tiffinfo=values))
        exif = Image.Exif()
        exif.load(picture.exif)
        assert not {33550, 33922} & set(exif) and exif[270] == "words"

    @pytest.mark.parametrize("tag, value, lost", [
        (282, "300 dpi", True),  # the resolution as text
        (256, "words", False),  # a tag of the layout, which does not travel anyway
    ])  # fmt: skip
    def test_a_tag_that_cannot_be_written_costs_neither_the_others_nor_the_turn(self, tag, value, lost):
        block = exif_by_hand([(MAKE, "A camera"), (ORIENTATION, 6), (tag, value)], [(TAKEN, "2024:05:06 07:08:09")])
        picture = read_picture(saved(Image.fromarray(colours(8, 16)), "JPEG", exif=block))
        kept = Image.Exif()
        kept.load(picture.exif)
        assert picture.size == (8, 16) and kept[MAKE] == "A camera" and tag not in kept
        assert kept.get_ifd(EXIF_IFD)[TAKEN] == "2024:05:06 07:08:09"
        assert [note.split(" (")[0] for note in picture.notes] == ["Some of its EXIF data is damaged"] * lost

    def test_letters_beyond_ascii(self):
        """Pillow reads bytes as Latin-1, and wrote question marks."""
        words = "José Müller ©"
        block = exif_by_hand([(315, words)], [(0xA434, words)])
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), "JPEG", exif=block))
        buffer = io.BytesIO()
        write_picture(Image.fromarray(colours(64, 64)), buffer, "JPEG", picture)
        kept = Image.open(buffer).getexif()
        assert kept[315].encode("latin-1").decode() == kept.get_ifd(EXIF_IFD)[0xA434].encode("latin-1").decode() == words

    @pytest.mark.skipif(not image_io.can_write(".avif"), reason="Pillow before 11.3")
    def test_letters_beyond_ascii_beside_an_orientation(self):
        """Pillow writes the block anew where it takes the orientation out, as it does for AVIF."""
        block, buffer = exif_by_hand([(0x010E, "café"), (ORIENTATION, 6)]), io.BytesIO()
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), "JPEG", exif=block))
        write_picture(Image.fromarray(colours(64, 64)), buffer, "AVIF", picture)
        assert "café".encode() in buffer.getvalue()

    def test_letters_beyond_ascii_of_a_place(self):
        exif, datum = Image.Exif(), 18
        exif[GPS_IFD] = {datum: "M_nster"}
        block = exif.tobytes().replace(b"M_nster", "Münster".encode("latin-1"))
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), "JPEG", exif=block))
        buffer = io.BytesIO()
        write_picture(Image.fromarray(colours(64, 64)), buffer, "JPEG", picture)
        assert Image.open(buffer).getexif().get_ifd(GPS_IFD)[datum] == "Münster"

    def test_damaged_exif_does_not_cost_the_picture(self):
        data = saved(Image.fromarray(colours(16, 16)), "JPEG", exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 40)
        picture = read_picture(data)
        assert picture.size == (16, 16) and picture.exif == b""

    def test_too_long_for_jpeg(self):
        picture = read_picture(saved(Image.fromarray(colours(16, 16)), exif=exif_block(1, t37500=b"x" * 70000)))
        assert len(picture.exif) > 70000
        buffer = io.BytesIO()
        notes = write_picture(Image.fromarray(colours(16, 16)), buffer, "JPEG", picture)
        assert "too long for JPEG" in notes[0] and not Image.open(buffer).getexif()

    def test_at_the_limit_of_jpeg_the_block_is_lost_and_not_the_picture(self):
        exif, kept = Image.Exif(), []
        for length in range(65470, 65520, 2):
            exif[37500] = b"x" * length
            buffer = io.BytesIO()
            notes = write_picture(Image.new("L", (8, 8)), buffer, "JPEG", Picture(colours(), "L", "", exif=exif.tobytes()))
            kept.append(bool(Image.open(buffer).getexif()))
            assert kept[-1] != any("too long for JPEG" in note for note in notes)
        assert kept[0] and not kept[-1]


# ---------------------------------------------------------------------------------------------------- odd and bad files


class TestOddFiles:
    def test_the_white_of_numbers_is_guessed_from_the_largest(self):
        """What was filtered goes a little past white, and light may be up to twice as bright."""
        largest = [0.5, 1.9, 2.1, 255, 259, 300, 66000, 70000]
        assert [modes._white_of("F", "", number) for number in largest] == [1, 1, 255, 255, 255, 65535, 65535, 70000]

    @pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
    def test_the_first_of_several_frames(self, format):
        frames = [Image.fromarray(colours(seed=i)) for i in range(3)]
        lossless = {"lossless": True} if format == "WEBP" else {}
        picture = read_picture(saved(frames[0], format, save_all=True, append_images=frames[1:], **lossless))
        assert "several frames" in picture.notes[0]
        if format != "GIF":  # which has a palette only
            assert np.array_equal(picture.pixels, colours(seed=0))

    def test_a_phones_second_picture_is_not_an_animation(self):
        frames = [Image.fromarray(colours(seed=i)) for i in range(2)]
        picture = read_picture(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]))
        assert picture.format == "MPO" and not picture.notes

    def test_the_layers_of_a_psd_are_no_pages(self):
        """Pillow counts them from 1, and opens what they make together."""
        layer = struct.pack(">4i", 0, 0, 1, 2) + struct.pack(">H", 3)  # where it lies, how many channels
        layer += b"".join(struct.pack(">hI", channel, 2 + 2) for channel in range(3)) + b"8BIMnorm" + bytes([255, 0, 0, 0])
        layer += struct.pack(">III", 12, 0, 0) + b"\x02L1\0"
        layers = struct.pack(">h", 2) + 2 * layer + 2 * 3 * bytes(4)
        header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 1, 2, 8, 3) + bytes(8)
        section = struct.pack(">I", len(layers)) + layers + bytes(4)
        picture = read_picture(header + struct.pack(">I", len(section)) + section + bytes(2) + bytes(range(6)))
        assert picture.format == "PSD" and not picture.notes and picture.pixels.tolist() == [[[0, 2, 4], [1, 3, 5]]]

    def test_a_name_that_lies(self, tmp_path):
        path = tmp_path / "picture.png"
        path.write_bytes(saved(Image.fromarray(colours(16, 16)), "JPEG"))
        assert read_picture(path).format == "JPEG"

    @pytest.mark.parametrize(
        "name, content, words",
        [
            ("empty.png", b"", "is empty"),
            ("text.jpg", b"a letter to a friend " * 9, "is not a picture"),
            ("phone.heic", b"\0\0\0\x20ftypheic" + bytes(40), "HEIC"),
            ("cut.png", saved(Image.fromarray(colours(64, 64)))[:4000], "cannot be read .*damaged"),
            ("cut.jpg", saved(Image.fromarray(colours(64, 64)), "JPEG")[:1500], "cannot be read .*damaged"),
        ],
    )
    def test_no_picture(self, tmp_path, name, content, words):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(rs.InputError, match=words) as caught:
            read_picture(path)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    def test_a_lack_of_memory_is_no_damage(self, monkeypatch):
        monkeypatch.setattr(image_io, "_picture", lambda image: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(rs.InputError, match="There is not enough memory to read The picture."):
            read_picture(saved(Image.fromarray(colours())))

    def test_no_file(self, tmp_path):
        with pytest.raises(rs.InputError, match="There is no file .*gone.png"):
            read_picture(tmp_path / "gone.png")
        with pytest.raises(rs.InputError, match="is a folder"):
            read_picture(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"\xd7\xcd\xc6\x9a" + bytes(60)]
    )
    def test_formats_that_start_another_program_are_not_opened(self, tmp_path, content, monkeypatch):
        """A PostScript file, or one of Windows' metafiles, under a picture's name."""
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
        path = tmp_path / "cat.jpg"
        path.write_bytes(content)
        with pytest.raises(rs.InputError, match="not a picture that can be read"):
            read_picture(path)
        assert picture_size(path) is None

    def test_an_icon_is_no_targa(self):
        """Whose header is a guess: the size of an icon's first picture may look like one."""
        noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
        icon = saved(Image.fromarray(noise), "ICO", sizes=[(150, 150)])
        assert len(icon) >> 16 == 1
        assert np.array_equal(read_picture(icon).pixels[..., :3], noise)

    def test_a_bomb_in_an_icon(self, tmp_path, monkeypatch):
        """Pillow decodes icons when it opens them."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        icon = saved(Image.fromarray(colours(32, 32)), "ICO", sizes=[(32, 32)])
        with pytest.raises(rs.InputError, match="more than the limit"):
            read_picture(icon)

    def test_a_bomb_is_refused_before_it_goes_off(self):
        bomb = png(50000, 50000, 8, 2, b"")
        with pytest.raises(rs.InputError, match="2500 million|exceeds limit"):
            read_picture(bomb)
        small = png(2, 2, 8, 0, b"\0ab\0cd")
        with pytest.raises(rs.InputError, match="2500 million pixels, more than the limit of 20 million"):
            read_picture(bomb, max_pixels=20_000_000)
        with pytest.raises(rs.InputError, match="2 x 2 = 4 pixels, more than the limit of 3, .*--max-pixels 0"):
            read_picture(small, max_pixels=3)
        assert read_picture(small, max_pixels=4).size == read_picture(small, max_pixels=0).size == (2, 2)

    FILES = [
        saved(Image.fromarray(colours(16, 16)), "PNG", icc_profile=SRGB, exif=exif_block()),
        saved(Image.fromarray(colours(16, 16)), "JPEG", exif=exif_block()),
        saved(Image.fromarray(colours(16, 16)), "TIFF", exif=exif_block()),
        saved(Image.fromarray(colours(16, 16)), "WEBP", lossless=True),
        saved(Image.fromarray(colours(16, 16)), "GIF"),
        saved(Image.fromarray(colours(16, 16)), "BMP"),
    ]

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from(FILES),
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
        st.data(),
    )
    def test_damage_gives_a_picture_or_a_sentence(self, file, changes, data):
        damaged = bytearray(file[: data.draw(st.integers(len(file) // 2, len(file)))])
        for at, value in changes:
            damaged[at % len(damaged)] = value
        try:
            picture = read_picture(bytes(damaged), max_pixels=10**6)
        except rs.InputError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
        else:
            assert picture.tensor().shape[1] in (1, 3, 4)


# ---------------------------------------------------------------------------------------------------- writing


class TestWriting:
    def test_a_scan_is_compressed_with_its_resolution(self):
        flat = Image.new("RGB", (300, 200), (9, 90, 200))
        scan = read_picture(
            saved(flat, "TIFF", dpi=(300, 300), compression="tiff_lzw", tiffinfo={271: "J?ger"}).replace(b"J?ger", b"J\xe4ger")
        )
        buffer = io.BytesIO()
        assert write_picture(flat, buffer, "TIFF", scan) == () and len(buffer.getvalue()) < 10_000
        with Image.open(buffer) as image:
            assert (image.info["compression"], image.info["dpi"]) == ("tiff_adobe_deflate", (300, 300))
            assert image.getexif()[271] == "J\xe4ger" and 34665 not in image.getexif()

    @pytest.mark.parametrize("more", [{271: "J\u00e4ger"}, {34665: {36867: "2024:05:06 07:08:09"}}, {40091: b"a\0\0\0"}])
    def test_what_a_compressed_tiff_cannot_hold_is_kept_without(self, more):
        flat, exif = Image.new("RGB", (300, 200), (9, 90, 200)), Image.Exif()
        exif.update({272: "A model", **more})
        block = exif.tobytes().replace(b"J?ger", b"J\xe4ger")  # Pillow itself writes ASCII
        like, buffer = read_picture(saved(flat, "JPEG", exif=block)), io.BytesIO()
        assert write_picture(flat, buffer, "TIFF", like) == ()
        exif = Image.Exif()
        exif.load(read_picture(buffer.getvalue()).exif)
        folder = exif.get_ifd(34665) if 34665 in exif else {}
        found = {**exif, 34665: folder}
        assert {tag: found[tag] for tag in (272, *more)} == {272: "A model", **more}

    @pytest.mark.parametrize("format", ["TIFF", "BMP"])
    def test_what_does_not_fit_into_4_gib_is_refused(self, format):
        check_room("a", format, (37000, 37000), "RGB")
        check_room("a", format, (50000, 50000), "L")
        check_room("a", "PNG", (50000, 50000), "RGB")
        with pytest.raises(rs.InputError, match=f"a {format} file can have 4 GiB, this picture is 7.0 GiB. Write PNG"):
            check_room("a", format, (50000, 50000), "RGB")

    @pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF", "BMP"])
    def test_texts_that_only_a_png_holds_are_missed(self, format):
        source = PngImagePlugin.PngInfo()
        source.add_text("parameters", "a cat")
        like = read_picture(saved(Image.fromarray(colours()), pnginfo=source))
        (note,) = write_picture(Image.fromarray(colours()), io.BytesIO(), format, like)
        assert note == f"{format} holds no texts of a PNG, such as prompts: they are left out. Write PNG to keep them."

    def test_rounding(self):
        values = torch.tensor([0.0, 0.49, 0.51, 127.4, 254.6, 255.0, 300.0, -7.0]) / 255
        image = to_image(values.reshape(1, 1, 8), "L")
        assert list(np.asarray(image)[0]) == [0, 0, 1, 127, 255, 255, 255, 0]

    def test_a_jpeg_has_all_of_its_colours(self):
        buffer = io.BytesIO()
        write_picture(Image.fromarray(colours(32, 32)), buffer, "JPEG")
        with Image.open(buffer) as image:
            assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4

    def test_settings_are_text_of_a_png(self, tmp_path):
        source = PngImagePlugin.PngInfo()
        source.add_text("parameters", "a cat")
        picture = read_picture(saved(Image.fromarray(colours()), pnginfo=source))
        write_picture(Image.fromarray(colours()), tmp_path / "a.png", "PNG", picture, {"resshift": json.dumps({"steps": 4})})
        texts = png_texts((tmp_path / "a.png").read_bytes())
        assert texts["parameters"] == "a cat" and json.loads(texts["resshift"]) == {"steps": 4}

    def test_a_tile_that_is_far_larger_than_its_picture(self):
        """libtiff unpacks whole ones: a pixel in a tile of 4096 x 4096 took 64 MiB."""
        tags = [(259, 3, 8), (322, 4, 4096), (323, 4, 4096)]
        data = tiff(tags, 1, 1, 8, zlib.compress(bytes(4096 * 4096)), places=(324, 325))
        with pytest.raises(rs.InputError, match="stored in tiles of 17 million pixels"):
            read_picture(data)
        odd = tiff(
            [(254, 2, 0x78), *tags], 1, 1, 8, zlib.compress(bytes(4096 * 4096)), places=(324, 325)
        )  # a text for a number
        with pytest.raises(rs.InputError, match="stored in tiles of 17 million pixels"):
            read_picture(odd)

    def test_the_preview_in_a_raw_file_is_not_the_picture(self):
        """A DNG or NEF is a TIFF whose first page is a thumbnail; the picture lies where Pillow does not look."""
        with pytest.raises(rs.InputError, match="begins with a small preview of its picture, as raw files of cameras do"):
            read_picture(tiff([(254, 4, 1)], 4, 3, 8, bytes(12)))
        assert read_picture(tiff([(254, 4, 2)], 4, 3, 8, bytes(12))).size == (4, 3)  # a page of several
        with pytest.raises(rs.InputError, match="is a raw file of a camera, which Pillow cannot read"):
            read_picture(b"FUJIFILMCCD-RAW 0201", "a.RAF")

    def test_long_texts_are_no_damage(self, tmp_path):
        """A workflow of 3 MB that takes a few kB in the file; Pillow's own limit is one."""
        source, long = PngImagePlugin.PngInfo(), "nodes " * 500_000
        source.add_text("workflow", long, zip=True)
        picture = read_picture(saved(Image.fromarray(colours()), pnginfo=source))
        assert picture.text["workflow"] == long and PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
        late = png(1, 1, 8, 0, b"\0\0", after=b"workflow\0\0" + zlib.compress(long.encode()))
        assert read_picture(late).text["workflow"] == long and PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
        source.add_text("bomb", "0" * (1 << 26), zip=True)
        with pytest.raises(rs.InputError, match="cannot be read"):
            read_picture(saved(Image.fromarray(colours()), pnginfo=source))

    def test_texts_longer_than_any_workflow_are_refused(self):
        """By our own limit: Pillow itself stops at 64 MiB, after it has unpacked them."""
        bomb = b"bomb\0\0" + zlib.compress(bytes(33 << 20))
        with pytest.raises(rs.InputError, match="(?i)decompressed data too large"):
            read_picture(png(1, 1, 8, 0, b"\0\0", after=bomb))

    def test_what_the_numbers_of_a_png_mean_is_kept(self, tmp_path):
        """Gamma 1 and wide primaries; with a profile, which says more, neither."""
        source = PngImagePlugin.PngInfo()
        source.add(b"gAMA", struct.pack(">I", 100000))
        wide = [31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600]
        source.add(b"cHRM", struct.pack(">8I", *wide))
        picture = read_picture(saved(Image.fromarray(colours()), pnginfo=source))
        write_picture(Image.fromarray(colours()), tmp_path / "a.png", "PNG", picture)
        with Image.open(tmp_path / "a.png") as image:
            assert image.info["gamma"] == 1 and [round(v * 100000) for v in image.info["chromaticity"]] == wide
        data = (tmp_path / "a.png").read_bytes()
        assert data.index(b"gAMA") < data.index(b"IDAT") and data.index(b"cHRM") < data.index(b"IDAT")
        assert not read_picture(saved(Image.fromarray(colours()), pnginfo=source, icc_profile=SRGB)).colour

    def test_texts_that_repeat_the_orientation_are_left_out(self, tmp_path):
        source = PngImagePlugin.PngInfo()
        source.add_text("Raw profile type exif", "\nexif\n      4\n4d4d002a\n")
        source.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
        source.add_text("Author", "somebody")
        picture = read_picture(saved(Image.fromarray(colours()), pnginfo=source))
        write_picture(Image.fromarray(colours()), tmp_path / "a.png", "PNG", picture)
        assert png_texts((tmp_path / "a.png").read_bytes()) == {"Author": "somebody"}

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP"])
    def test_same_bytes_and_near_pixels(self, format):
        if format == "AVIF" and not image_io.can_write(".avif"):
            pytest.skip("this Pillow cannot write AVIF")
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(90)), axis=-1)
        picture = read_picture(saved(Image.fromarray(pixels), icc_profile=SRGB, exif=exif_block()))
        files = []
        for _ in range(2):
            buffer = io.BytesIO()
            write_picture(Image.fromarray(pixels), buffer, format, picture, {"a": "b"})
            files.append(buffer.getvalue())
        assert files[0] == files[1]
        error = np.abs(np.asarray(Image.open(io.BytesIO(files[0]))).astype(int) - pixels)
        assert error.max() <= (8 if format in ("JPEG", "WEBP", "AVIF") else 0)

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    @pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
    def test_alpha_is_kept(self, mode, format):
        if format == "AVIF" and not image_io.can_write(".avif"):
            pytest.skip("this Pillow cannot write AVIF")
        image = Image.new(mode, (16, 16), (*(200,) * (len(mode) - 1), 255))
        image.putalpha(Image.linear_gradient("L").resize((16, 16)))
        buffer = io.BytesIO()
        assert write_picture(image, buffer, format) == ()
        alpha = np.asarray(Image.open(buffer).convert("RGBA"))[..., 3].astype(int)
        assert np.abs(alpha - np.asarray(image)[..., -1]).max() <= (4 if format == "AVIF" else 0)

    @pytest.mark.parametrize("format", ["JPEG", "BMP"])
    def test_transparency_becomes_white_where_there_is_none(self, format):
        image = Image.fromarray(np.full((16, 16, 4), (200, 0, 100, 51), np.uint8))  # a fifth of the colour, four of white
        buffer = io.BytesIO()
        notes = write_picture(image, buffer, format)
        assert "laid on white" in notes[0]
        shown = np.asarray(Image.open(buffer)).astype(int)
        assert np.abs(shown - (244, 204, 224)).max() <= 3

    def test_too_long_for_the_format(self, tmp_path):
        with pytest.raises(rs.InputError, match="16383 pixels long, this one is 16384. Write PNG"):
            write_picture(Image.new("L", (16384, 1)), tmp_path / "a.webp", "WEBP")
        assert not list(tmp_path.iterdir())

    def test_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        path.write_bytes(b"before")

        def fails(self, target, **options):
            with open(target, "wb") as file:
                file.write(b"half of")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fails)
        with pytest.raises(rs.InputError, match="a.png cannot be written .No space left on device"):
            write_picture(Image.new("L", (2, 2)), path, "PNG")
        assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "out").write_bytes(b"")
        with pytest.raises(rs.InputError, match="cannot be written"):
            write_picture(Image.new("L", (2, 2)), tmp_path / "out" / "a.png", "PNG")

    def test_a_folder_is_tried_before_the_work(self, tmp_path, monkeypatch):
        for name in ("a.png", "new/newer/a.png"):
            image_io.check_folder(tmp_path / name)
        assert not list(tmp_path.iterdir())
        with monkeypatch.context() as only_folders:  # as in the root of a drive of Windows
            only_folders.setattr(Path, "touch", lambda path: os.stat("gone"))
            image_io.check_folder(tmp_path / "new/newer/a.png")
            with pytest.raises(rs.InputError, match="a.png cannot be written"):
                image_io.check_folder(tmp_path / "a.png")
        with pytest.raises(rs.InputError, match="cannot be written .No such file or directory"):
            image_io.check_folder(PureWindowsPath("Q:/pictures/a.png"))  # a drive that is not there

    def test_endings(self):
        assert image_io.writable_format("a/b.JPG") == "JPEG"
        for name in ("a.gif", "a.xyz", "a"):
            with pytest.raises(rs.InputError, match=f"^{name} ends in .*\\.png"):
                image_io.writable_format(name)

    def test_masks_are_cut_at_half_brightness(self):
        picture = Picture(np.array([[[0], [127], [128], [255]]], np.uint8), "L", "PNG")
        assert picture.hole().flatten().tolist() == [0, 0, 1, 1]
        red = Picture(np.array([[[255, 0, 0]]], np.uint8), "RGB", "PNG")
        assert not red.hole().any() and red.brightness().item() == pytest.approx(1 / 3)
        grey = np.array([[[255, 255, 255, 0], [255, 255, 255, 127], [255, 255, 255, 128], [0, 0, 0, 255]]], np.uint8)
        for mode in ("RGBA", "LA"):
            assert Picture(grey, mode, "PNG").hole().flatten().tolist() == [0, 0, 1, 0]


def test_paths_that_are_too_long_for_windows(tmp_path, monkeypatch):
    """It says of them that they are not there, of those that a folder lists, too."""
    path = tmp_path / ("a" * 150) / ("b" * 150) / "c.png"
    monkeypatch.setattr(image_io, "os", SimpleNamespace(name="nt", path=os.path))
    told = f"The path has {len(str(path))} characters; Windows takes 259"
    with pytest.raises(rs.InputError, match=f"no file .*c.png. Check the path. {told}"):
        read_picture(path)
    monkeypatch.setattr(Path, "touch", lambda part: open(path))
    with pytest.raises(rs.InputError, match=f"short.png cannot be written .*{told}"):
        write_picture(Image.new("L", (4, 4)), tmp_path / "short.png", "PNG")
    with pytest.raises(rs.InputError, match="Check the path.$"):
        read_picture(tmp_path / "c.png")
