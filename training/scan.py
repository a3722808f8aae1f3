"""The check of the data before a run: every picture is decoded once, and what cannot be used is named."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from resshift_core.atomic_file import atomic_path
from resshift_core.cli.console import BREAKS, harmless
from resshift_core.hidden import is_hidden

log = logging.getLogger("resshift.training")

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".avif"}
OF_RUNS = ("config.json", "contact_sheet.png", "autoencoder.safetensors", "estimator.safetensors")  # beside scan.json
REMEMBER_EVERY = 60.0  # seconds between two writings of what a check has found so far
NAMED = 10  # files named in a report on the terminal


class DataError(ValueError):
    """The folder cannot be trained on; the text says why and what to do."""


@dataclass(frozen=True)
class Picture:
    """What the check learned about one file."""

    path: str
    stamp: str  # size and time of change: the check is not repeated for a file that did not change
    height: int = 0
    width: int = 0
    grey: bool = False
    digest: str = ""  # of the pixels
    problem: str = ""  # why it cannot be decoded


@dataclass(frozen=True)
class Scan:
    """The pictures to train on, and those that were left out or look odd, as lines of text with file names."""

    used: tuple[Picture, ...]
    unreadable: tuple[str, ...]
    tiny: tuple[str, ...]
    duplicate: tuple[str, ...]
    grey: tuple[str, ...]  # used all the same
    memory: str = ""  # the file that names all of them

    @property
    def paths(self) -> list[Path]:
        return [Path(picture.path) for picture in self.used]

    @property
    def fingerprint(self) -> str:
        """Changes when pictures are added, removed or altered."""
        return hashlib.sha256("".join(picture.digest for picture in self.used).encode()).hexdigest()[:16]

    def report(self) -> str:
        """One paragraph per finding."""
        lines = [f"{len(self.used)} pictures can be used."]
        findings = (
            ("cannot be read and are left out", self.unreadable),
            ("are too small and are left out", self.tiny),
            ("hold the same pixels as another file and are left out", self.duplicate),
            ("are grey (used all the same)", self.grey),
        )
        for what, names in findings:
            if names:
                place = f" (all in {self.memory})" if self.memory else ""
                more = f" and {len(names) - NAMED} more{place}" if len(names) > NAMED else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:NAMED])}{more}.")
        return "\n".join(harmless(line).translate(BREAKS) for line in lines)


def find_images(root: str | os.PathLike, split: str | None = None, without: Path | None = None) -> list[Path]:
    """All pictures below `root`, sorted; `split` keeps those that a MANIFEST.csv in `root` lists under that word, `without`
    leaves a folder out, such as that of a run.

    Raises:
        DataError: there is no such folder, its MANIFEST.csv cannot be read, or it is the one to leave out.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    manifest = root / "MANIFEST.csv"
    if split and manifest.is_file():
        listed = sorted(root / file for file, word in _listed(manifest) if word == split)
        below = Path(os.path.normpath(root))  # by its words: links to pictures elsewhere are the user's own
        outside = [path for path in listed if below not in Path(os.path.normpath(path)).parents]
        if outside:
            raise DataError(f"{manifest} lists {outside[0]}, which lies outside of its folder. Remove that line.")
        return listed
    if without is not None and without.resolve() == root.resolve():
        raise DataError(
            f"{root} holds the pictures and is to hold the output, too, whose pictures would be taken for more of them. "
            "Choose another --output."
        )
    return sorted(path for path in files_below(root, without) if path.suffix.lower() in SUFFIXES and path.is_file())


def _listed(manifest: Path) -> list[tuple[str, str]]:
    """(file, split) of every line; from a spreadsheet, too, which likes semicolons and a mark at the beginning.

    Raises:
        DataError: it is not text, or has no such columns.
    """
    try:
        lines = manifest.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest} cannot be read as UTF-8 text ({error}). Save it as such.") from error
    head = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    if not {"file", "split"} <= set(rows.fieldnames or ()):
        raise DataError(f"{manifest} has no columns called file and split (but {head!r}). Name them so, or remove the file.")
    pairs = [(row["file"].strip(), row["split"].strip().lower()) for row in rows if row["file"] and row["split"]]
    others = sorted({split for _, split in pairs} - {"train", "val"})
    if others:
        log.warning("%s: pictures under %s are not used; what is used is called train or val.", manifest, ", ".join(others))
    return pairs


def files_below(root: Path, without: Path | None = None) -> Iterator[Path]:
    """Every file below a folder, behind links to folders, too, each folder once; not what is hidden, as macOS' companions are."""
    seen = {root.resolve()} | ({without.resolve()} if without is not None else set())
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not is_hidden(name)
            and (place := Path(folder, name).resolve()) not in seen
            and not seen.add(place)
            and not _is_of_a_run(place)
        ]
        yield from (Path(folder, name) for name in files if not is_hidden(name))


def _is_of_a_run(folder: Path) -> bool:
    """Whether a program of ours wrote it: what it shows are the pictures again, those to validate on included."""

    def has(name: str) -> bool:
        return (folder / name).is_file()

    trained = has("scan.json") and any(map(has, OF_RUNS))
    ours = trained or has("table.csv") and has("table.md")  # of evaluate.py
    if ours:
        log.warning("%s is the folder of a run: its pictures are left out.", folder)
    return ours


def read_rgb(path: str | os.PathLike) -> torch.Tensor:
    """uint8 (3, H, W), upright; transparency is laid on white.

    Raises:
        OSError, ValueError, SyntaxError and others of Pillow's: the file cannot be decoded.
    """
    with open(path, "rb") as file, Image.open(file) as image:  # of a path, Pillow maps TIFFs, and turns some wrongly
        is_tiff = image.format == "TIFF"
        image = ImageOps.exif_transpose(image)
        deep = image.mode == "I" and (is_tiff or max(image.getextrema()) > 65535)  # of PNG it is 16 bits
        if image.mode == "F" or deep:
            raise ValueError(f"its numbers are of a kind ({image.mode}) that says nothing about black and white")
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to white
            image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def inspect(path: Path) -> Picture:
    """Decode one file; never raises."""
    try:
        stamp = _stamp(path)
        pixels = read_rgb(path)
    except Exception as error:  # Pillow raises a dozen kinds; the run must not end by any
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Picture(str(path), "", problem=reason[:200])
    grey = bool((pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all())
    digest = hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()
    return Picture(str(path), stamp, pixels.shape[1], pixels.shape[2], grey, digest)


def _known(memory: Path | None) -> dict[tuple[str, str], Picture]:
    if memory is None or not memory.is_file():
        return {}
    try:
        rows = json.loads(memory.read_text(encoding="utf-8"))["pictures"]
        return {(row["path"], row["stamp"]): Picture(**row) for row in rows if row["stamp"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _inspect_all(paths: list[Path], memory: Path | None, quiet: bool) -> list[Picture]:
    known = _known(memory)

    def one(path: Path) -> Picture:
        try:
            return known.get((str(path), _stamp(path))) or inspect(path)
        except OSError:
            return inspect(path)

    done, written = [], time.monotonic()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        try:
            for picture in tqdm(
                pool.map(one, paths), total=len(paths), desc="checking pictures", disable=quiet or None, leave=False
            ):
                done.append(picture)
                if time.monotonic() - written > REMEMBER_EVERY:
                    _remember(memory, _with_new(known, done))
                    written = time.monotonic()
        except BaseException:  # Ctrl-C on a large folder: the next check goes on from here
            _remember(memory, _with_new(known, done))
            raise
    return done


def _with_new(known: dict[tuple[str, str], Picture], done: list[Picture]) -> list[Picture]:
    """What earlier checks found and this one has not come to yet stays known."""
    paths = {picture.path for picture in done}
    return done + [picture for picture in known.values() if picture.path not in paths]


def _remember(memory: Path | None, pictures: list[Picture], **findings: tuple[str, ...]) -> None:
    if memory is None:
        return
    memory.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**findings, "pictures": [asdict(picture) for picture in pictures]}, indent=1)
    with atomic_path(memory) as part:
        part.write_text(text, encoding="utf-8")


def scan(paths: Iterable[Path], smallest: int, memory: Path | None = None, quiet: bool = True) -> Scan:
    """Check every picture. `smallest`: shorter sides than this are tiny. `memory`: JSON file that spares a second check.

    Raises:
        DataError: nothing is left to train on.
    """
    paths = list(paths)
    pictures = _inspect_all(paths, memory, quiet)
    used, seen = [], {}
    unreadable, tiny, duplicate, grey = [], [], [], []
    for picture in pictures:
        if picture.problem:
            unreadable.append(f"{picture.path} ({picture.problem})")
        elif min(picture.height, picture.width) < smallest:
            tiny.append(f"{picture.path} ({picture.width}x{picture.height})")
        elif picture.digest in seen:
            duplicate.append(f"{picture.path} (as {seen[picture.digest]})")
        else:
            seen[picture.digest] = picture.path
            used.append(picture)
            if picture.grey:
                grey.append(picture.path)
    named = memory.name if memory is not None else ""
    result = Scan(tuple(used), tuple(unreadable), tuple(tiny), tuple(duplicate), tuple(grey), named)
    _remember(memory, pictures, unreadable=result.unreadable, tiny=result.tiny, duplicate=result.duplicate, grey=result.grey)
    if not paths:
        raise DataError(
            f"There are no pictures. Known are files that end in {', '.join(sorted(SUFFIXES))}; of a folder with a MANIFEST.csv, "
            "those that it lists under the split train or val."
        )
    if not used:
        raise DataError(
            f"None of {len(paths)} files can be used for crops of {smallest} pixels. {result.report()} "
            "Give a folder with larger pictures, or a smaller --crop."
        )
    return result
