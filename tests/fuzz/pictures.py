"""Damaged and hostile pictures: `python -m tests.fuzz.pictures --count 5000` tries as many and prints a summary.

Every one is read by itself and written again; then all go through the command line, a folder of 100 at a time. Picture
number N is the same everywhere: `--first N --count 1 --keep DIR` makes a failing one again and leaves it there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

import resshift_core as rs
from resshift_core.cli import main as command_line
from resshift_core.image_io import can_write, read_picture, to_image, writable_format, write_picture

from .. import standin
from . import raw

SECONDS = 5.0  # of the processor, for one picture
GROWN_MIB = 500  # by which the process may ever be larger than at the start
MAX_PIXELS = 1_000_000
FOLDER = 100  # pictures of one call of the command line
ENDINGS = (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp")


# ------------------------------------------------------------------------------------------------------ sound files


def _saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0132] = 6, "a description", "2020:01:01 00:00:00"
    exif.get_ifd(0x8769).update({0xA002: 20, 0xA003: 15, 0x829A: (1, 100), 0x9286: b"comment", 0x927C: b"maker" * 40})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif.tobytes()


def sound() -> dict[str, bytes]:
    """Pictures of 20 x 15 in every format and mode that Pillow writes."""
    y, x = np.mgrid[0:15, 0:20]
    rgb = Image.fromarray(np.stack([x * 12, y * 16, (x + y) * 7], axis=-1).astype(np.uint8))
    deep = Image.fromarray((x * 3000).astype(np.uint16))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    also = {"icc_profile": srgb, "exif": _exif()}
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F")}
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    text = _text()
    made = {
        "PNG rgb": _saved(rgb, "PNG", pnginfo=text, **also), "PNG 16": _saved(deep, "PNG"),
        "PNG animated": _saved(rgb, "PNG", save_all=True, append_images=frames),
        "JPEG rgb": _saved(rgb, "JPEG", comment=b"hello", **also), "JPEG progressive": _saved(rgb, "JPEG", progressive=True),
        "JPEG CMYK": _saved(modes["CMYK"], "JPEG"), "JPEG L": _saved(modes["L"], "JPEG"),
        "WEBP lossy": _saved(rgb, "WEBP", **also), "WEBP lossless": _saved(modes["RGBA"], "WEBP", lossless=True),
        "WEBP animated": _saved(rgb, "WEBP", save_all=True, append_images=frames),
        "TIFF pages": _saved(rgb, "TIFF", save_all=True, append_images=frames), "TIFF exif": _saved(rgb, "TIFF", **also),
        "TIFF 16": _saved(deep, "TIFF"), "TIFF G4": _saved(modes["1"], "TIFF", compression="group4"),
        "GIF": _saved(modes["P"], "GIF"), "GIF animated": _saved(rgb, "GIF", save_all=True, append_images=frames),
        "ICO": _saved(rgb, "ICO", sizes=[(15, 15)]), "PPM": _saved(rgb, "PPM"), "TGA": _saved(rgb, "TGA"),
        "MPO": _saved(rgb, "MPO", save_all=True, append_images=frames[1:2]), "DDS": _saved(modes["RGBA"], "DDS"),
    }  # fmt: skip
    for mode in ("1", "L", "LA", "P", "RGBA"):
        made[f"PNG {mode}"] = _saved(modes[mode], "PNG")
    for mode in ("CMYK", "LAB", "YCbCr", "F", "I", "LA", "RGBA", "P"):
        compression = "tiff_lzw" if mode in ("CMYK", "RGBA", "P") else None
        made[f"TIFF {mode}"] = _saved(modes[mode], "TIFF", compression=compression)
    for mode in ("1", "L", "P", "RGBA"):
        made[f"BMP {mode}"] = _saved(modes[mode], "BMP")
    for format in ("JPEG2000", "AVIF"):
        with contextlib.suppress(KeyError, OSError):  # not in every Pillow
            made[format] = _saved(rgb, format)
    return made


def _text():
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_itxt("Comment", "ein längerer", zip=True)
    text.add_text("zipped", "z" * 500, zip=True)
    return text


# ---------------------------------------------------------------------------------------------- damage with knowledge


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_changed(data: bytes, rng: random.Random) -> bytes:
    """Chunks with right checksums and wrong contents, in another order, twice, or missing."""
    chunks = png_chunks(data)
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    change = rng.choice(("content", "content", "size", "drop", "twice", "order", "bomb", "unknown"))
    if change == "content" and content:
        chunks[i] = kind, raw.damage(content, rng)[1]
    elif change == "size":
        size = struct.pack(">II", rng.choice((0, 1, 21, 999, 2**16, 2**31 - 1)), rng.choice((0, 1, 14, 999, 2**31 - 1)))
        chunks[0] = b"IHDR", size + bytes(rng.choice((chunks[0][1][8:], rng.randbytes(5), b"\x10\x06\0\0\0")))
    elif change == "drop":
        del chunks[i]
    elif change == "twice":
        chunks.insert(rng.randrange(len(chunks)), chunks[i])
    elif change == "order":
        rng.shuffle(chunks)
    elif change == "bomb":
        packed = zlib.compress(bytes(20 << 20), 9)
        chunks.insert(1, rng.choice(((b"zTXt", b"a\0\0" + packed), (b"iCCP", b"a\0\0" + packed), (b"IDAT", packed))))
    else:
        chunks.insert(
            1, (rng.choice((b"abcd", b"ABCD", b"eXIf", b"tRNS", b"acTL", b"fcTL")), rng.randbytes(rng.choice((0, 8, 26))))
        )
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tags_changed(data: bytes, rng: random.Random) -> bytes:
    """An entry of a TIFF folder (or of EXIF data, which is one) with another kind, count or value."""
    at = max(data.find(b"II*\0"), data.find(b"MM\0*"), 0)
    order = "<" if data[at : at + 2] == b"II" else ">"
    places = [at + 10 + 12 * i for i in range(30)] if len(data) > at + 8 else []
    offset = at + struct.unpack(order + "I", data[at + 4 : at + 8])[0] if len(data) >= at + 8 else 0
    places += [offset + 2 + 12 * i for i in range(20)]
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        place = rng.choice(places) + rng.choice((0, 2, 4, 8))
        if place + 4 <= len(data):
            damaged[place : place + 4] = rng.choice((
                struct.pack(order + "I", rng.choice(raw.EDGES) % 2**32), struct.pack(order + "HH", rng.randrange(400), rng.randrange(14)),
            ))  # fmt: skip
    return bytes(damaged)


def jpeg_changed(data: bytes, rng: random.Random) -> bytes:
    """A segment with another length, size or contents."""
    places = [
        i for i in range(len(data) - 10) if data[i] == 0xFF and data[i + 1] in (*range(0xC0, 0xD0), *range(0xD8, 0xF0), 0xFE)
    ]
    at = rng.choice(places)
    return data[: at + 2] + raw.put_number(data[at + 2 : at + 12], rng) + data[at + 12 :]


def make(number: int, files: dict[str, bytes]) -> tuple[str, str, bytes]:
    """(what it is, ending, contents) of picture `number`."""
    rng = random.Random(number)
    name = rng.choice(sorted(files))
    data = files[name]
    own = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(name.split()[0], f".{name.split()[0].lower()}")
    ending = own if rng.random() < 0.7 else rng.choice(ENDINGS)
    changes = [("damage", lambda: raw.damage(data, rng)[1]), ("damage", lambda: raw.damage(data, rng)[1])]
    changes += [("chunks", lambda: png_changed(data, rng))] * 3 if name.startswith("PNG") else []
    changes += [("tags", lambda: tags_changed(data, rng))] * 2 if b"II*\0" in data or b"MM\0*" in data else []
    changes += [("segments", lambda: jpeg_changed(data, rng))] * 2 if name.startswith(("JPEG ", "MPO")) else []
    changes += [("spliced", lambda: raw.splice(data, files[rng.choice(sorted(files))], rng))] if rng.random() < 0.1 else []
    what, change = rng.choice(changes)
    changed = change()
    if rng.random() < 0.2:
        what, changed = f"{what}, damage", raw.damage(changed, rng)[1]
    return f"{name}: {what}", ending, changed


# ----------------------------------------------------------------------------------------------------------- trying


def use(path: Path, number: int) -> str:
    """Read a picture and write it again in every format; an exception that gets out of here is a defect."""
    try:
        picture = read_picture(path, max_pixels=MAX_PIXELS)
    except rs.InputError as error:
        assert path.name in str(error) and len(str(error)) < 1000, str(error)[:500]
        return "refused"
    pixels = picture.tensor()
    assert pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4) and torch.isfinite(pixels).all(), pixels.shape
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert len(picture.exif) < 10**6 and all(len(note) < 1000 for note in picture.notes)
    ending = (".png", ".jpg", ".webp", ".tif", ".bmp", ".avif")[number % 6]
    if can_write(ending) and max(picture.size) < 2000:
        target = path.with_name(f"{path.stem}_out{ending}")
        write_picture(to_image(pixels[0], picture.mode), target, writable_format(target), picture, {"a": "b"})
        with Image.open(target) as written:
            assert written.size == picture.size
        target.unlink()
    return "read, written"


def use_folder(folder: Path, model: Path, sound_ones: list[str]) -> Iterator[str]:
    """All through the command line; yields what is wrong."""
    out, records = folder / "out", io.StringIO()
    inputs = {path.name for path in folder.iterdir() if path.is_file()}
    words = [
        "upscale",
        str(folder),
        "-o",
        str(out),
        "--model",
        str(model),
        "--json",
        "--quiet",
        "--device",
        "cpu",
        "--steps",
        "1",
    ]
    with contextlib.redirect_stdout(records), contextlib.redirect_stderr(io.StringIO()) as said:
        status = command_line([*words, "--max-pixels", "4000"])
    records = [json.loads(line) for line in records.getvalue().splitlines()]
    told = {Path(record["input"]).name: record for record in records}
    if set(told) != inputs:
        yield f"no record of {sorted(inputs - set(told))[:5]}"
    failed = [name for name, record in told.items() if record["status"] == "failed"]
    if status != int(bool(failed)):
        yield f"exit status {status} with {len(failed)} failed"
    for name in failed:
        if "did not expect" in told[name]["error"] or name not in told[name]["error"]:
            yield f"{name}: {told[name]['error'][:300]}"
    if wrong := [name for name in sound_ones if told.get(name, {}).get("status") != "done"]:
        yield f"sound pictures were not done: {wrong}"
    if "Traceback" in said.getvalue():
        yield said.getvalue()[-500:]
    if left := [path.name for path in out.rglob("*") if path.name.endswith(".part")]:
        yield f"left behind: {left}"


def run(first: int, count: int, keep: Path | None) -> dict:
    """Try `count` pictures; the summary holds every failure with its number."""
    torch.set_num_threads(1)
    results: Counter = Counter()
    failures, slowest, began = [], (0.0, -1), time.monotonic()
    files = sound()
    with tempfile.TemporaryDirectory() as name:
        model = rs.save_model(standin.small_model(model_channels=8), Path(name) / "model.safetensors")
        list(use_folder(_folder(Path(name) / "warm", {}, files), model, []))
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        for begin in range(first, first + count, FOLDER):
            made = {number: make(number, files) for number in range(begin, min(begin + FOLDER, first + count))}
            folder = _folder((keep or Path(name)) / f"from_{begin}", made, files)
            for number, (what, ending, _) in made.items():
                clock = time.process_time()
                try:
                    results[use(folder / f"p{number}{ending}", number)] += 1
                except Exception as error:
                    failures.append(f"{number} ({what}): {type(error).__name__}: {str(error)[:300]}")
                slowest = max(slowest, (time.process_time() - clock, number))
            failures += use_folder(folder, model, ["sound.png", "sound.jpg"])
    return {
        "pictures": count, "results": dict(results), "failures": failures, "slowest_seconds": round(slowest[0], 2),
        "slowest": slowest[1], "start_mib": start,
        "grown_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - start,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }  # fmt: skip


def _folder(folder: Path, made: dict[int, tuple[str, str, bytes]], files: dict[str, bytes]) -> Path:
    """A folder with the pictures, and two sound ones among them."""
    folder.mkdir(parents=True)
    (folder / "sound.png").write_bytes(files["PNG rgb"])
    (folder / "sound.jpg").write_bytes(files["JPEG rgb"])
    for number, (_, ending, data) in made.items():
        (folder / f"p{number}{ending}").write_bytes(data)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="folder in which the pictures stay")
    args = parser.parse_args()
    summary = run(args.first, args.count, args.keep)
    print(json.dumps(summary, indent=2))
    return int(bool(summary["failures"]) or summary["slowest_seconds"] > SECONDS or summary["grown_mib"] > GROWN_MIB)


if __name__ == "__main__":
    sys.exit(main())
