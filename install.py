"""Run by ComfyUI-Manager and by WebUI after the pack is put in place: installs what the host lacks, and nothing else.

torch, numpy and Pillow belong to the host. Nothing is upgraded, and no dependency of a dependency is pulled in: either could
replace the host's own versions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HOSTS_OWN = ("torch", "torchvision", "torchaudio", "numpy", "pillow")


def required(text: str) -> list[str]:
    """Requirements of a requirements.txt, without comments."""
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    """The distribution's name, as packaging compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def missing(requirements: list[str]) -> list[str]:
    """Those that are not there in any version and are not the host's own business."""
    return [line for line in requirements if name_of(line) not in HOSTS_OWN and not is_installed(name_of(line))]


def main() -> int:
    wanted = missing(required((Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8")))
    if not wanted:
        return 0
    print(f"ResShift: installing {', '.join(wanted)}")
    return subprocess.call([sys.executable, "-m", "pip", "install", "--no-deps", *wanted])


if __name__ == "__main__":
    sys.exit(main())
