"""`resshift-hashes.json` beside the models: SHA-256 of files that were downloaded before anybody had published their hash.

The first download is trusted after a strict check of what it holds; from then on the file must stay the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .atomic_file import atomic_path
from .checkpoint_file import sha256_of
from .errors import CheckpointError, brief
from .file_lock import file_lock

PINS = "resshift-hashes.json"


def _read(folder: Path) -> dict[str, dict]:
    path = folder / PINS
    if not path.is_file():
        return {}
    try:
        pins = json.loads(path.read_text(encoding="utf-8-sig"))  # edited in Windows, perhaps
        return {str(name): {**pin, "sha256": str(pin["sha256"])} for name, pin in pins.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({brief(error)}). Delete it; hashes are noted again at the next download."
        ) from error


def pinned_sha256(path: Path) -> str | None:
    """What the file of that name in that folder must hash to, or None where nothing is noted.

    Raises:
        CheckpointError: resshift-hashes.json is damaged.
    """
    return _read(path.parent).get(path.name, {}).get("sha256")


def pin(path: Path, sha256: str) -> None:
    """Note the hash of a file. Size and time are kept too, so that an untouched file need not be hashed at every load.

    Raises:
        OSError: the folder cannot be written.
        CheckpointError: resshift-hashes.json is damaged.
    """
    folder, stat = path.parent, path.stat()
    with file_lock(folder / f"{PINS}.lock"):
        pins = _read(folder)
        pins[path.name] = {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        with atomic_path(folder / PINS) as part:
            part.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_pin(path: str | os.PathLike) -> None:
    """Refuse a file that is not the one that was noted under its name.

    Raises:
        CheckpointError: the contents changed; the text says what to do.
    """
    path = Path(path)
    noted = _read(path.parent).get(path.name)
    if noted is None:
        return
    try:
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (noted.get("size"), noted.get("mtime_ns")):
            return
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({brief(error)}). Check its permissions.") from error
    if found != noted["sha256"]:
        raise CheckpointError(
            f"{path.name} is not the file that was downloaded at first: its sha256 is {found}, {PINS} beside it says "
            f"{noted['sha256']}. Download it again, or delete its entry there if you replaced it on purpose."
        )
