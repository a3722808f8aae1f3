"""What is listed as an upscaler: the built-in models, files in the models folders, and published models the user wants to see."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from resshift_core import registry
from resshift_core.checkpoint_file import SUFFIXES, open_safetensors
from resshift_core.detection import is_autoencoder
from resshift_core.errors import InputError, ResShiftError
from resshift_core.hidden import is_hidden
from resshift_core.peek import peek_config

from . import host

log = logging.getLogger("resshift")

DEFAULT_SCALE = 4  # where only the weights would tell
BUILTIN = "ResShift built-in 4x"


@dataclass(frozen=True)
class Entry:
    """One line of the host's list of upscalers."""

    name: str  # "... 4x" sets the host's slider where the user wants that
    source: str  # a name of the registry, or a path
    scale: int  # output pixels per input pixel


BUILTINS = (Entry(BUILTIN, "builtin", 4), Entry("ResShift built-in real 4x", "builtin-real", 4))  # part of the package


def list_entries() -> list[Entry]:
    """All of them, the built-in ones first. Files are not opened further than their headers."""
    for folder in host.model_folders():
        registry.add_models_dir(folder)
    return [*BUILTINS, *_published(), *_files()]


def listed_or_builtins() -> list[Entry]:
    """`list_entries`, or the built-in ones alone where the folders cannot be read: the host must come up."""
    try:
        return list_entries()
    except Exception as error:
        log.warning("The models folder cannot be read (%s); only the built-in models are listed.", error)
        return list(BUILTINS)


def find_entry(word: str) -> Entry:
    """The entry of that name, that name in the registry, or that file name.

    Raises:
        InputError: there is none; the sentence lists them.
    """
    entries = list_entries()
    for entry in entries:
        if word in (entry.name, entry.source, Path(entry.source).name):
            return entry
    raise InputError(f"There is no ResShift model {word!r} here. There are: {', '.join(entry.name for entry in entries)}.")


def selectable() -> list[registry.Entry]:
    """Published models that upscale: those a user may want listed before they are downloaded."""
    return [entry for entry in registry.REGISTRY.values() if not entry.bundled and entry.task in ("sr", "face")]


def _published() -> list[Entry]:
    wanted = host.option("visible", [])
    wanted = wanted if isinstance(wanted, (list, tuple)) else ()  # options may be set to anything
    return [
        Entry(f"ResShift {entry.name} {entry.scale}x", entry.name, entry.scale)
        for entry in selectable()
        if entry.name in wanted or entry.find() is not None
    ]


def _files() -> list[Entry]:
    known = {Path(entry.file).stem.lower() for entry in registry.REGISTRY.values()}
    found = [
        (path, path.relative_to(folder).as_posix())
        for folder in host.model_folders()
        for path in _below(folder)
        if path.suffix.lower() in SUFFIXES and path.stem.lower() not in known and path.is_file()
    ]
    stems = Counter(Path(name).with_suffix("").as_posix() for _, name in found)
    listed, names = [], set()
    for path, name in found:
        task, scale = _task_and_scale(path)
        if task in ("sr", "face"):
            stem = Path(name).with_suffix("").as_posix()
            shown = _name(stem if stems[stem] == 1 else name, scale)
            if shown not in names:  # the host takes the first of a name
                names.add(shown)
                listed.append(Entry(shown, str(path), scale or DEFAULT_SCALE))
    return listed


def _name(shown: str, scale: int) -> str:
    """The host takes the first factor in a name for the slider's, be it a size."""
    if not scale:
        return f"ResShift {shown}"
    first = re.search(r"(\d)[xX]|[xX](\d)", shown)
    misleads = first is not None and str(scale) not in first.groups()
    return f"ResShift {scale}x {shown}" if misleads else f"ResShift {shown} {scale}x"


def _below(folder: Path) -> list[Path]:
    """Every file, behind links to folders, too, each folder once; not what is hidden, as macOS' companions of files are."""
    found, seen = [], {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not is_hidden(name) and (real := os.path.realpath(Path(place, name))) not in seen and not seen.add(real)
        ]
        found += [Path(place, name) for name in files if not is_hidden(name)]
    return sorted(found)


def _task_and_scale(path: Path) -> tuple[str, int]:
    """(task, scale) by the file's header and name; scale 0 where only its weights would tell, which is no reason to hide it."""
    try:
        config = peek_config(path)
        return config.task, config.scale
    except ResShiftError:
        return ("autoencoder" if _holds_autoencoder(path) else "sr"), 0


def _holds_autoencoder(path: Path) -> bool:
    if "autoencoder" in path.stem.lower():
        return True
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with open_safetensors(path) as file:
            return is_autoencoder(dict.fromkeys(file.keys()))
    except (SafetensorError, OSError, ResShiftError):  # a damaged file is listed; choosing it says what is wrong
        return False
