"""Files that appear whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RETRIES_S = (0.1, 0.3, 1.0)  # Windows refuses to replace a file while a virus scanner or an indexer looks at it

PART = re.compile(r"\..{0,40}\.[0-9a-f]{8}\.part")  # the names that `atomic_path` gives
STALE_S = 3600.0  # no file takes so long to write


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete what `atomic_path` left in `folder` when its program was killed; parts of the last hour may be somebody's."""
    try:
        for path in Path(folder).iterdir():
            if PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
    except OSError:
        pass  # no such folder, or not ours to tidy


def replace(part: Path, target: Path) -> None:
    """`os.replace`, with a little patience on Windows.

    Raises:
        OSError: the target is in use, or its folder cannot be written.
    """
    for wait in RETRIES_S if os.name == "nt" else ():
        try:
            return os.replace(part, target)
        except PermissionError:
            time.sleep(wait)
    os.replace(part, target)


def _part(path: Path) -> Path:
    """A free name beside `path`."""
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part")  # 40 letters are at most 160 of 255 bytes


def try_to_make(folder: Path, file: bool) -> None:
    """Find out whether files, or else folders, can be made in a folder: Windows allows only folders in its root.

    (`tempfile` tries ten thousand names where it allows none.)

    Raises:
        OSError: they cannot.
    """
    part = _part(folder / "try")
    if not file:
        part.mkdir()
        part.rmdir()
        return
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a free name in the folder of `path`; what is written there becomes `path` when the block ends well.

    When it does not, what was written is deleted, and a file that was at `path` before is untouched.
    """
    path = Path(path)
    part = _part(path)
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # some writers make files that only their owner can read
        replace(part, path)
    finally:
        part.unlink(missing_ok=True)
