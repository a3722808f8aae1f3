"""From the words on the command line to a list of pictures, and to the files that they become."""

from __future__ import annotations

import glob
import os
import re
import sys
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

from ..errors import InputError, first_line
from ..hidden import is_hidden
from ..image_io import READABLE, UNREAD, WRITABLE, can_write, writable_format

PIPE = "-"
NEVER = '<>"|?*'  # in names, on Windows
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "123456789")}
CASEFOLD = sys.platform == "darwin"  # its disks tell neither A from a nor é from e and an accent; `normcase` does not know
SHEET = r"(_[a-z]+)?_compare"
OUTPUT_STEM = re.compile(rf"(?P<stem>.+)_x\d+(\.\d+)?(e-\d+)?({SHEET})?")  # of the names that this program gives


@dataclass(frozen=True)
class Source:
    """A picture to read."""

    path: Path | None  # None = standard input
    below: Path  # its place below the output folder, e.g. Path("trip/day 1/a.jpg")
    data: bytes | None = field(default=None, repr=False)  # of standard input

    @property
    def label(self) -> str:
        """What messages and records call it."""
        return PIPE if self.path is None else str(self.path)


@dataclass(frozen=True)
class Job:
    """A picture to read and where it goes."""

    index: int  # in the list of this process
    source: Source
    target: Path | None  # None = standard output
    format: str  # Pillow's word; "" = as the input (standard output)
    compare: Path | None = None  # the before/after sheet

    @property
    def target_label(self) -> str:
        return PIPE if self.target is None else str(self.target)


@dataclass(frozen=True)
class Problem:
    """An input that cannot even be tried."""

    label: str
    error: str


@dataclass(frozen=True)
class Findings:
    """What inputs stand for."""

    sources: list[Source]
    inside: list[Path]  # found by patterns in the output folder, and left out
    problems: list[Problem]
    unknown: list[Path]  # photographs beside them that nobody here can read, and left out


# ---------------------------------------------------------------------------------------------------- finding


def find_sources(words: list[str], recursive: bool, leave_out: Path | None) -> Findings:
    """Expand files, folders, patterns and "-", in the order given; folders and patterns are sorted.

    Args:
        recursive: also the folders in the folders.
        leave_out: the output folder. Folders and patterns that begin above it do not find what lies in it.
    """
    sources: list[Source] = []
    inside: list[Path] = []
    problems: list[Problem] = []
    unknown: list[Path] = []
    folders = [word for word in words if word != PIPE and os.path.isdir(word)]
    for word in words:
        unread: list[Path] = []
        if word == PIPE:
            found = [Source(None, Path("stdin"), _standard_input())]
        elif os.path.isdir(word):
            found, closed = _in_folder(Path(word), recursive, leave_out, len(folders) > 1, unread)
            problems += closed
            if closed and not found:
                continue
        elif glob.has_magic(word) and not os.path.exists(word):  # the shell of Windows hands patterns on as they are
            found, skipped = _matching(word, leave_out, unread)
            inside += skipped
        else:
            found = [Source(Path(word), Path(Path(word).name))]
        if not found:
            problems.append(Problem(word, _nothing_found(word, recursive, unread)))
            unread = []
        unknown += unread
        sources += found
    return Findings(_without_repetition(sources), inside, problems, unknown)


def _standard_input() -> bytes:
    """All of it, read here and now: a thread that waits for a pipe could not be interrupted."""
    if sys.stdin is None:
        raise InputError("There is no standard input: it was closed when this program was started.")
    if sys.stdin.isatty():
        raise InputError("Standard input is a terminal, not a picture. Use: resshift upscale - < small.png > large.png")
    return sys.stdin.buffer.read()


def _in_folder(
    folder: Path, recursive: bool, leave_out: Path | None, several: bool, unknown: list[Path]
) -> tuple[list[Source], list[Problem]]:
    """The pictures of a folder, and the folders that cannot be opened; several folders keep their names in the output.

    `unknown` gets those that nobody here can read.
    """
    top = Path(folder.resolve().name) if several else Path()
    found, closed, seen = [], [], set()

    def note(error: OSError) -> None:
        place = error.filename or str(folder)
        closed.append(Problem(place, f"The folder {place} cannot be opened ({first_line(error)}). Check its permissions."))

    for place, folders, files in os.walk(folder, onerror=note, followlinks=True):
        if (identity := _identity(Path(place))) in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(
            name for name in folders if recursive and not is_hidden(name) and not _same(Path(place, name), leave_out)
        )
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in READABLE and not is_hidden(name):
                found.append(Source(path, top / path.relative_to(folder)))
            elif path.suffix.lower() in UNREAD and not is_hidden(name):
                unknown.append(path)
    return found, closed


def _matching(pattern: str, leave_out: Path | None, unknown: list[Path]) -> tuple[list[Source], list[Path]]:
    """The pictures that a pattern matches, and those of them that lie in `leave_out`, unless all do.

    Folders that `**` goes through are kept below the pattern's fixed part, in whose names [ and ? are mere letters.
    """
    parts = Path(pattern).parts
    depth = next((depth for depth in range(len(parts) - 1) if not os.path.exists(Path(*parts[: depth + 1]))), len(parts) - 1)
    fixed = Path(*parts[:depth])
    paths = sorted(map(Path, glob.glob(os.path.join(glob.escape(str(fixed)), *parts[depth:]), recursive=True)))
    unknown += [path for path in paths if path.suffix.lower() in UNREAD]
    paths = [path for path in paths if path.suffix.lower() in READABLE and path.is_file()]
    outer = None if leave_out is None else Path(_identity(leave_out))
    inside = [] if outer is None or _lies_in(fixed, outer) else [path for path in paths if _lies_in(path, outer)]
    left_out = set(inside)
    return [Source(path, path.relative_to(fixed)) for path in paths if path not in left_out], inside


def _endings(paths: list[Path]) -> str:
    return ", ".join(sorted({path.suffix.lower() for path in paths}))


def _nothing_found(word: str, recursive: bool, left_out: list[Path]) -> str:
    if left_out:
        return (
            f"{word}: there are only pictures that Pillow cannot read ({_endings(left_out)}). Export them as JPEG or PNG first."
        )
    if not os.path.isdir(word):
        return f"No picture matches {word}."
    deeper = not recursive and any(entry.is_dir() for entry in Path(word).iterdir())
    return f"There is no picture in the folder {word}.{' --recursive also looks into the folders in it.' if deeper else ''}"


def _identity(path: Path) -> str:
    """One word for a file, whatever it is called; unlike `Path.resolve`, it takes a link that leads to itself as it is."""
    try:
        return _spelling(os.path.realpath(path))
    except OSError:  # Windows, of a path that is too long, or of what is no file
        return _spelling(os.path.abspath(path))


def _spelling(name: str) -> str:
    """The same for every way to write a name that the operating system takes for one."""
    name = os.path.normcase(name)
    return unicodedata.normalize("NFC", name).casefold() if CASEFOLD else name


def same_file(a: Path, b: Path) -> bool:
    """Whether two files that are there are one. Some drives of Windows number none of their files, or all with 0."""
    first, second = os.stat(a), os.stat(b)
    return os.path.samestat(first, second) if first.st_ino else _identity(a) == _identity(b)


def _same(a: Path, b: Path | None) -> bool:
    return b is not None and _identity(a) == _identity(b)


def _lies_in(path: Path, outer: Path) -> bool:
    """Whether a path is a folder, given by its identity, or anything in it."""
    own = Path(_identity(path))
    return own == outer or outer in own.parents


def _without_repetition(sources: list[Source]) -> list[Source]:
    """Each file once, however it was named; a link to another is a file of its own: its result has another name."""
    first: dict[str, Source] = {}
    for source in sources:
        path = source.path
        first.setdefault(PIPE if path is None else os.path.join(_identity(path.parent), _spelling(path.name)), source)
    return list(first.values())


# ---------------------------------------------------------------------------------------------------- naming


def _check_windows_name(option: str, name: str) -> None:
    """Refuse what no file can be called on Windows, or what would be no file: a stream of another one, or a device.

    Raises:
        InputError: what is wrong with the name.
    """
    rest = PureWindowsPath(name.removeprefix("\\\\?\\"))
    parts = [part for part in rest.parts if part != rest.anchor]
    if any(set(part) & set(NEVER + ":") for part in parts):
        raise InputError(
            f"{option} {name} has a character that no name can have on Windows. A stroke before a quotation mark makes the mark "
            "a part of the name: leave it out, or use / instead."
        )
    device = next((part for part in parts if part.split(".")[0].rstrip().lower() in DEVICES), None)
    if device is not None:
        raise InputError(f"{option} {name}: on Windows, {device} is not a file but a device. Choose another name.")


@dataclass(frozen=True)
class Naming:
    """Where outputs go: the options -o, --format, --compare and --suffix, checked.

    Raises (by `from_arguments`):
        InputError: they contradict each other or the number of inputs.
    """

    folder: Path | None = None  # None = beside the input
    file: Path | None = None  # for a single input
    pipe: bool = False
    suffix: str = ""  # of --format, e.g. ".png"; "" = as the input
    compare: bool = False
    mark: str | None = None  # of --suffix: what a name has after the input's; None = _x and the scale

    @classmethod
    def from_arguments(
        cls, output: str | None, format: str | None, compare: bool, words: list[str], mark: str | None = None
    ) -> Naming:
        for option, given in (("-o", output), ("--format", format), ("an input", "" if "" in words else None)):
            if given == "":
                raise InputError(f"{option} is empty: is a variable of the shell not set? Name it, or leave it out.")
        if mark is not None and set(mark) & set("/\\\0"):
            raise InputError(f"--suffix {mark!r} has a character that separates folders. It is a part of a file's name.")
        if sys.platform == "win32":
            for option, given in (("-o", output), ("--suffix", mark)):
                if given:
                    _check_windows_name(option, given)
        suffix = "." + format.lower().lstrip(".") if format else ""
        if suffix and not can_write(suffix):
            known = ", ".join(sorted(ending[1:] for ending in WRITABLE if can_write(ending)))
            raise InputError(f"--format {format} cannot be written; known are {known}.")
        if words.count(PIPE) and len(words) > 1:
            raise InputError("- (standard input) must be the only input.")
        if output == PIPE or (output is None and words == [PIPE]):
            if len(words) > 1 or not _is_one(words[0]):
                raise InputError("-o - writes one picture to standard output, but there are several inputs. Give a folder.")
            if compare:
                raise InputError("--compare needs a place for its sheet: give a file or a folder with -o.")
            return cls(pipe=True, suffix=suffix)
        if output is None:
            return cls(suffix=suffix, compare=compare, mark=mark)
        if _is_folder(output, words):
            return cls(folder=Path(output), suffix=suffix, compare=compare, mark=mark)
        if len(words) > 1 or not _is_one(words[0]):
            raise InputError(f"-o {output} is a file, but there are several inputs. Give a folder.")
        try:
            format_of_file = writable_format(output)
        except InputError as error:
            raise InputError(f"{error} If it is to be a folder, write {output}/ with a stroke at the end.") from None
        if suffix and writable_format("x" + suffix) != format_of_file:
            raise InputError(f"-o {output} and --format {format} contradict each other. Leave --format out.")
        if mark is not None:
            raise InputError(f"-o {output} is the whole name of the output. Leave --suffix out, or give a folder.")
        return cls(file=Path(output), compare=compare)

    def ending(self, source: Source) -> str:
        """Of the result."""
        given = source.below.suffix
        return self.suffix or (given if can_write(given) else ".png")

    def target(self, source: Source, scale: float, apart: bool = False) -> Path | None:
        """`<stem>_x4.<ending>`, or what -o and --suffix say; None = standard output.

        apart: the input's ending is in the name, too.
        """
        if self.pipe or self.file is not None:
            return self.file
        stem = stem_with_ending(source.below) if apart else source.below.stem
        name = f"{stem}{f'_x{scale:g}' if self.mark is None else self.mark}{self.ending(source)}"
        if self.folder is not None:
            return self.folder / source.below.parent / name
        return source.path.parent / name

    def stem_of_input(self, stem: str) -> str | None:
        """Of which input a name without its ending could be the result, or the sheet; None = of none."""
        match = OUTPUT_STEM.fullmatch(stem)
        if self.mark:
            match = match or re.fullmatch(rf"(?P<stem>.+){re.escape(self.mark)}({SHEET})?", stem)
        elif self.mark == "" and self.compare:
            match = match or re.fullmatch(rf"(?P<stem>.+?){SHEET}", stem)
        return match and match["stem"]

    def folder_of(self, source: Source) -> Path | None:
        """Where a picture's result goes under a name made of its own; None = nowhere."""
        if self.pipe or self.file is not None or source.path is None:
            return None
        return source.path.parent if self.folder is None else self.folder / source.below.parent

    def job(self, index: int, source: Source, scale: float, apart: bool = False) -> Job:
        target = self.target(source, scale, apart)
        if target is None:
            return Job(index, source, None, writable_format("x" + self.suffix) if self.suffix else "")
        sheet = target.with_name(f"{target.stem}_compare.png") if self.compare else None
        return Job(index, source, target, writable_format(target), sheet)


def stem_with_ending(path: Path) -> str:
    """a_gif, of a.gif: for the result where that of a.png is a_x4.png."""
    return f"{path.stem}_{path.suffix[1:].lower()}"


def _is_one(word: str) -> bool:
    """Whether an input is one picture by its form, rather than a folder or a pattern."""
    return word == PIPE or os.path.exists(word) and not os.path.isdir(word) or not (os.path.isdir(word) or glob.has_magic(word))


def _is_folder(output: str, words: list[str]) -> bool:
    """Whether -o means a folder: it is one, ends like one, or has no ending that a picture could have."""
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return True
    suffix = Path(output).suffix
    return not suffix or (not can_write(suffix) and (len(words) > 1 or not _is_one(words[0])))


def split_earlier_outputs(sources: list[Source], naming: Naming, overwrite: bool) -> tuple[list[Source], list[Source]]:
    """(sources, what this program has made of them before, at any scale).

    `a_x4.png` is not upscaled where `a.png` is, nor from the folder that its result goes to: unless results are written
    anew (`overwrite`), for then an input of that name would be lost, and `plan` refuses.
    """
    known = set()
    for source in sources:
        if source.path is not None:
            folders = {_identity(source.path.parent)}
            folder = None if overwrite else naming.folder_of(source)
            if folder is not None:
                folders.add(_identity(folder))
            stems = source.below.stem, stem_with_ending(source.below)
            known |= {(place, _spelling(stem)) for place in folders for stem in stems}

    def is_output(source: Source) -> bool:
        stem = naming.stem_of_input(source.path.stem) if source.path is not None else None
        return stem is not None and (_identity(source.path.parent), _spelling(stem)) in known

    kept: list[Source] = []
    outputs: list[Source] = []
    for source in sources:
        (outputs if is_output(source) else kept).append(source)
    return kept, outputs


def plan(sources: list[Source], naming: Naming, scale: float) -> tuple[list[Job], list[Problem]]:
    """Jobs for the sources, in their order. One that would write over an input is a problem, as are two with one target.

    Of a.gif and a.png, whose results are both called a_x4.png, the second has it, and the first a_gif_x4.png.
    """
    jobs: dict[int, Job] = {}
    problems: list[Problem] = []
    inputs = {_identity(source.path): source for source in sources if source.path is not None}
    taken: dict[str, Source] = {}
    places = range(len(sources))
    for place in sorted(places, key=lambda place: naming.ending(sources[place]) != sources[place].below.suffix):
        source = sources[place]
        job = naming.job(place, source, scale)
        other = taken.get(_identity(job.target)) if job.target is not None else None
        if other is not None and other.below.suffix.lower() != source.below.suffix.lower():
            job = naming.job(place, source, scale, apart=True)
        if job.compare is not None and _identity(job.compare) in taken:  # a.jpg and a.png
            ending = job.target.suffix[1:].lower()
            job = replace(job, compare=job.target.with_name(f"{job.target.stem}_{ending}_compare.png"))
        written = {PIPE if job.target is None else _identity(job.target): job.target_label}
        if job.compare is not None:
            written[_identity(job.compare)] = str(job.compare)
        clash = _clash(job, written, taken, inputs)
        if clash:
            problems.append(Problem(source.label, clash))
            continue
        taken.update(dict.fromkeys(written, source))
        jobs[place] = job
    return [replace(jobs[place], index=index) for index, place in enumerate(sorted(jobs))], problems


def _clash(job: Job, written: dict[str, str], taken: dict[str, Source], inputs: dict[str, Source]) -> str:
    """A sentence about the first file of a job that is another's or an input; nothing where all is well.

    written: the job's files, identity -> name. A result over its own input is refused when it is due (`Batch`).
    """
    for key, name in written.items():
        if key in taken:
            return _collision(name, job.source, taken[key])
        own_result = inputs.get(key) is job.source and name == job.target_label
        if key in inputs and not own_result:
            return _over_an_input(name, job.source, inputs[key])
    return ""


def _collision(name: str, source: Source, other: Source) -> str:
    return (
        f"{source.label} would be written to {name}, and so would {other.label}. "
        "Upscale them one at a time with -o FILE, or into different folders."
    )


def _over_an_input(name: str, source: Source, other: Source) -> str:
    told = "which is that picture itself" if other is source else f"which is an input too ({other.label})"
    return f"{source.label} would be written to {name}, {told}. Choose another name or folder with -o."
