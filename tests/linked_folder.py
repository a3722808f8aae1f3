"""Links to folders, as people make them."""

from __future__ import annotations

import os
from pathlib import Path


def link_folder(link: Path, target: Path) -> None:
    """A link to a folder; on Windows a junction, which needs no right of its own."""
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)
