"""What the programs here and in tools/ ask of their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def make_folder(path: Path, parser: argparse.ArgumentParser) -> None:
    """Make it, or end the program with a sentence."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{path} cannot be made a folder ({error.strerror})")
