"""Many pictures through one model: a thread reads one ahead, a thread writes, the chain runs in between."""

from __future__ import annotations

import io
import json
import os
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..atomic_file import remove_leftovers
from ..device import PROCESSOR, first_that_fits
from ..errors import InputError, ResShiftError, first_line
from ..image_io import (
    MAX_PIXELS,
    READABLE,
    WRITABLE,
    Picture,
    check_folder,
    check_room,
    picture_size,
    read_picture,
    to_image,
    write_picture,
)
from ..model import ResShiftModel
from ..pipeline import upscale
from ..progress import StepEvent
from ..resize import target_size
from ..sheet import compare_sheet
from ..version import __version__
from .console import Console, OutputError, Progress, write_out
from .report import Record, Report
from .sources import Job, Source, same_file
from .stop import raise_if_stopped


@dataclass(frozen=True)
class Chain:
    """What the picture depends on beside model and input; written into PNG files and records."""

    model: str  # name, never a path
    steps: int
    kappa: float
    p: float
    seed: int
    sampler: str
    noise: str
    color_fix: str
    scale: float
    wrap: str
    tile: int | str
    overlap: int | None

    def as_text(self) -> dict[str, str]:
        """Text chunks of a PNG."""
        return {"Software": f"ResShift {__version__}", "resshift": json.dumps(asdict(self))}

    def as_label(self) -> str:
        """For the before/after sheet."""
        return f"ResShift x{self.scale:g}, {self.model}, {self.steps} step{'s' if self.steps > 1 else ''}"


@dataclass(frozen=True)
class Handling:
    """How files are treated."""

    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    mask: Path | None = None  # a file for all pictures, or a folder with one of the same name for each
    alike: frozenset[str] = frozenset()  # names (without endings) that several pictures have, in different folders
    quality: int | None = None  # 1 to 100, of JPEG, WebP and AVIF; None = `image_io.OPTIONS`


@dataclass(frozen=True)
class Loaded:
    """What the reading thread hands over."""

    picture: Picture
    hole: torch.Tensor | None  # (1, 1, H, W)


class Batch:
    """Runs jobs one after the other; what goes wrong with one is recorded, and the rest goes on.

    Args:
        chain: gives the settings of a job, its seed among them.
        arguments: further keyword arguments of `upscale`.
        on_processor: gives the model there, for pictures that do not fit on its device; None = these fail.
    """

    def __init__(
        self,
        model: ResShiftModel,
        chain: Callable[[Job], Chain],
        arguments: dict,
        handling: Handling,
        console: Console,
        report: Report,
        on_processor: Callable[[], ResShiftModel] | None = None,
    ):
        self.model, self.chain, self.arguments, self.handling = model, chain, arguments, handling
        self.console, self.report, self.on_processor = console, report, on_processor
        self.folders: set[Path] = set()  # in which files can be made

    def run(self, jobs: list[Job], show_progress: bool = True) -> None:
        """Do all jobs. An interrupt lets the file that is being written end, then passes through."""
        for folder in {job.target.parent for job in jobs if job.target is not None}:
            remove_leftovers(folder)
        weights = _weights(jobs) if show_progress and self.console.has_bar else [0.0] * len(jobs)
        with (
            self.console.progress(sum(weights)) as progress,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            writing: Future | None = None
            for number, (job, reading) in enumerate(_read_ahead(reader, jobs, self._read)):
                raise_if_stopped()
                ticket = self.report.ticket()
                progress.describe(f"[{number + 1}/{len(jobs)}] {Path(job.source.label).name}")
                try:
                    loaded = reading.result()
                    made = loaded and self._compute(job, loaded, progress, weights[number])
                except Exception as error:  # one picture must not cost the others
                    raise_if_stopped()
                    progress.shrink(weights[number])
                    self.report.add(ticket, _failure(job, error))
                    continue
                if made is None:
                    progress.shrink(weights[number])
                    self.report.add(ticket, _skipped(job))
                    continue
                if writing is not None:
                    writing.result()  # at most one finished picture waits in memory
                writing = writer.submit(self._write, ticket, job, loaded.picture, *made)
            if writing is not None:
                writing.result()

    def _read(self, job: Job) -> Loaded | None:
        """Decode a job's files; None where its output is already there."""
        if job.target is not None and os.path.exists(job.target):  # unlike `Path.exists`, in a locked folder, too
            if job.source.path is not None and os.path.exists(job.source.path) and same_file(job.target, job.source.path):
                raise InputError(f"{job.source.label} would be overwritten by its own result. Choose another name with -o.")
            if not self.handling.overwrite:
                return None
        if job.source.path is not None:
            picture = read_picture(job.source.path, max_pixels=self.handling.max_pixels)
        else:
            picture = read_picture(job.source.data, "Standard input", self.handling.max_pixels)
        width, height = picture.size
        size = target_size(height, width, self.arguments.get("scale") or self.model.scale)
        format = job.format or _format_like(picture)
        check_room(job.target_label, format, size[::-1], picture.mode)  # before the work, not after it
        if job.target is not None and job.target.parent not in self.folders:
            check_folder(job.target)
            self.folders.add(job.target.parent)
        return Loaded(picture, self._hole(job, picture))

    def _hole(self, job: Job, picture: Picture) -> torch.Tensor | None:
        path = self.handling.mask
        if path is None:
            return None
        if os.path.isdir(path):
            path = _same_stem(path, job, self.handling.alike)
        mask = read_picture(path, max_pixels=self.handling.max_pixels)
        if mask.size != picture.size:
            sizes = " x ".join(map(str, mask.size)), " x ".join(map(str, picture.size))
            raise InputError(
                f"The mask {path} is {sizes[0]} pixels, {job.source.label} is {sizes[1]}. They must be of one size."
            )
        hole = mask.hole()
        if not hole.any():
            self.console.warn(
                f"The mask {path} is nowhere half bright (its brightest value is {255 * mask.brightness().max().item():.4g} of 255), "
                f"so that nothing of {job.source.label} is filled in. Paint 255 (white) where it is to be, and 0 elsewhere."
            )
        return hole

    def _compute(self, job: Job, loaded: Loaded, progress: Progress, weight: float) -> tuple[torch.Tensor, float]:
        """(result (C, H, W), seconds)."""
        done = 0.0

        def on_step(event: StepEvent) -> None:
            nonlocal done
            progress.advance(max(0.0, event.fraction - done) * weight)  # fraction falls when tiles start again, smaller
            done = max(done, event.fraction)

        chain, start = self.chain(job), time.monotonic()

        image = loaded.picture.tensor()

        def run(model: ResShiftModel) -> torch.Tensor:
            return upscale(model, image, seed=chain.seed, mask=loaded.hole, on_step=on_step, **self.arguments)

        if self.on_processor is None:
            result = run(self.model)
        else:
            attempts = (lambda: run(self.model), ""), (lambda: run(self.on_processor()), PROCESSOR)
            result = first_that_fits(attempts, self.model.device)
        return result[0], time.monotonic() - start

    def _write(self, ticket: int, job: Job, picture: Picture, result: torch.Tensor, seconds: float) -> None:
        try:
            record = self._written(job, picture, result, seconds)
        except OutputError:
            raise
        except Exception as error:
            record = _failure(job, error)
        self.report.add(ticket, record)

    def _written(self, job: Job, picture: Picture, result: torch.Tensor, seconds: float) -> Record:
        chain, image = self.chain(job), to_image(result, picture.mode)
        if job.compare is not None:  # before the output: where that is there, nothing is missing
            sheet = compare_sheet(picture, image, chain.as_label())
            icc = picture.icc if picture.mode in ("RGB", "RGBA") else None
            write_picture(sheet, job.compare, "PNG", Picture(picture.pixels, "RGB", "", icc), chain.as_text())
        notes = picture.notes
        if job.target is not None:
            notes += write_picture(image, job.target, job.format, picture, chain.as_text(), self.handling.quality)
        else:
            notes += self._to_pipe(image, job.format or _format_like(picture), picture, chain.as_text())
        return Record(
            job.source.label, job.target_label, "done", str(job.compare) if job.compare else None, picture.size, image.size,
            round(seconds, 3), chain.model, chain.steps, chain.kappa, chain.p, chain.seed, notes,
        )  # fmt: skip

    def _to_pipe(self, image, format: str, picture: Picture, texts: dict[str, str]) -> tuple[str, ...]:
        buffer = io.BytesIO()
        notes = write_picture(image, buffer, format, picture, texts, self.handling.quality)
        write_out(buffer.getvalue())
        return notes


def seed_for(seed: int, noise: str, job: Job) -> int:
    """The seed of a picture: never its place in the list, so that it comes out the same alone and among others.

    "per_image": another one for each file name. Otherwise `seed` itself.
    """
    if noise != "per_image":
        return seed
    return seed + zlib.crc32(job.source.below.name.encode("utf-8", "surrogateescape"))


def _read_ahead(executor: ThreadPoolExecutor, jobs: list[Job], read: Callable) -> Iterator[tuple[Job, Future]]:
    """(job, its reading), with the next reading under way."""
    ahead: list[tuple[Job, Future]] = []
    for job in jobs:
        ahead.append((job, executor.submit(read, job)))
        if len(ahead) == 2:
            yield ahead.pop(0)
    yield from ahead


def _weights(jobs: list[Job]) -> list[float]:
    """The pictures' pixels: how much of the progress bar each is."""
    sizes = [picture_size(job.source.path) if job.source.path else None for job in jobs]
    return [float(width * height) for width, height in (size or (1, 1) for size in sizes)]


def _same_stem(folder: Path, job: Job, alike: frozenset[str]) -> Path:
    """The mask of a picture in a folder of masks: in the same folder below it, or, unless other pictures are called the same, in
    it itself. A Mac spells é as e and an accent, and other machines keep its names.
    """
    stem, own = _composed(job.source.below.stem), folder / job.source.below.parent
    for place in (own,) if stem in alike else (own, folder):
        for path in sorted(place.glob("*")) if os.path.isdir(place) else ():
            if _composed(path.stem) == stem and path.suffix.lower() in READABLE:
                return path
    raise InputError(f"There is no mask called {stem} in the folder {own if stem in alike else folder} for {job.source.label}.")


def names_alike(sources: list[Source]) -> frozenset[str]:
    """`Handling.alike` of all pictures of a run."""
    counts = Counter((source.below.parent, _composed(source.below.stem)) for source in sources)
    stems = Counter(stem for _, stem in counts)
    return frozenset(stem for stem, count in stems.items() if count > 1)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _format_like(picture: Picture) -> str:
    """The format of a pipe's output: as the input, or PNG where that cannot be written."""
    known = {"MPO": "JPEG"}.get(picture.format, picture.format)
    return known if known in WRITABLE.values() else "PNG"


def _skipped(job: Job) -> Record:
    missing = job.compare is not None and not job.compare.exists()
    notes = (f"Its sheet {job.compare} is not there; --overwrite makes both.",) if missing else ()
    return Record(job.source.label, job.target_label, "skipped", notes=notes)


def _failure(job: Job, error: Exception) -> Record:
    text = str(error) if isinstance(error, ResShiftError) else (
        f"{job.source.label} failed for a reason that this program did not expect ({type(error).__name__}: {first_line(error)})."
    )  # fmt: skip
    if job.source.path is not None and job.source.label not in text:
        text = f"{job.source.label}: {text}"
    return Record(job.source.label, job.target_label, "failed", error=text)
