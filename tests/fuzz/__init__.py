"""Makers of damaged and hostile files. Each mutation follows from a number, so that one that fails can be made again."""

import torch

from resshift_core import checkpoint_file


def trust_own_pickles() -> None:
    """On torch before 2.6 pickles of strangers are refused before they are looked at; what is made here is to be looked at."""
    if not checkpoint_file.pickles_are_safe():
        torch.__version__ = "2.6.0 (pretended)"
