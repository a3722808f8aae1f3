"""What resuming needs, on disk: written whole or not at all, checked when read, the two newest kept."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path

import torch

from resshift_core.atomic_file import replace
from resshift_core.checkpoint_file import sha256_of
from resshift_core.errors import brief

log = logging.getLogger("resshift.training")

KEPT = 2
NAME = re.compile(r"(\d{9})-([0-9a-f]{16})\.pt")  # iteration, first digits of the file's sha256


def first_mismatch(error: RuntimeError) -> str:
    """Of those that `load_state_dict` lists: which network, and the first of its weights that does not fit."""
    return brief(" ".join(str(error).split("\n\t")[:2]))


class StateError(RuntimeError):
    """The state could not be written; the text says why and what to do."""


class _Hashing:
    """A binary file that hashes what is written to it, and keeps the error of writing, which torch turns into another one."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def saved(folder: Path) -> list[Path]:
    """State files, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)


def _write(part: Path, state: dict) -> str:
    """Write the state to the disk and return its hexadecimal SHA-256; what could not be written whole is deleted."""
    hashing = None
    try:
        with open(part, "wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else hashing.error
        if reason is None:
            raise
        raise StateError(
            f"The state cannot be written to {part.parent} ({reason.strerror or reason}). Make room there and run the same "
            "command with --resume auto: it goes on from the state before."
        ) from error
    return hashing.digest.hexdigest()


def save_state(folder: Path, iteration: int, state: dict) -> Path:
    """Write one state file by atomic rename, then drop all but the newest two.

    Raises:
        StateError: the disk is full or the folder cannot be written; the files before stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.part"
    digest = _write(part, state)
    path = folder / f"{iteration:09d}-{digest[:16]}.pt"
    replace(part, path)
    same = [old for old in saved(folder) if old.name[:9] == path.name[:9] and old != path]
    others = [old for old in saved(folder) if old not in same]
    for old in same + others[KEPT:]:
        with contextlib.suppress(PermissionError):  # Windows, while a scanner looks at it: it goes the next time
            old.unlink(missing_ok=True)
    return path


def load_state(folder: Path) -> dict | None:
    """The newest state file that is whole; None where there is none. Damaged ones are named and passed over.

    Raises:
        StateError: all are damaged.
    """
    for path in saved(folder):
        wanted = NAME.fullmatch(path.name)[2]
        try:
            if sha256_of(path)[:16] != wanted:
                raise ValueError("its contents changed after it was written")
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a torn file fails in many ways
            log.warning("%s cannot be used (%s); falling back to the one before.", path, error)
    if saved(folder):
        raise StateError(
            f"No state in {folder} can be used any more. Choose another --output, or remove that folder to start anew."
        )
    return None
