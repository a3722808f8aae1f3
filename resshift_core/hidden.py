"""What a walk through folders passes over."""

from __future__ import annotations

SYSTEMS_OWN = ("$recycle.bin", "system volume information")  # on every drive of Windows: what was deleted, and what is locked
LIBRARY = ".photoslibrary"  # a folder that macOS shows as one file


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name, met in a folder, is not meant for people: hidden (as macOS' companions `._a.jpg`
    are), or kept by the operating system for itself.
    """
    word = name.casefold()
    return name.startswith(".") or word in SYSTEMS_OWN or word.endswith(LIBRARY)
