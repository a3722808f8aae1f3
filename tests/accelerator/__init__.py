"""A second device for torch whose memory is the host's, for tests on machines without a graphics card."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "card.cpp"
OLDEST = (2, 14)  # backends of other people change with torch
VERSION_AND_FOLDER = (
    "import torch; print(torch.__version__); print(torch.__path__[0]); print(int(torch.compiled_with_cxx11_abi()))"
)


class CannotBuild(Exception):
    """There is no compiler, or it does not like this torch, or this torch is older than what it was tried with."""


@functools.cache
def built(python: str = sys.executable) -> Path:
    """The library for the torch of this Python, kept among the temporary files.

    Raises:
        CannotBuild: with the compiler's words.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise CannotBuild("needs g++")
    asked = subprocess.run([python, "-c", VERSION_AND_FOLDER], capture_output=True, text=True, check=True)
    version, folder, abi = asked.stdout.split()
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise CannotBuild(f"was not tried with torch {version}")
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode() + folder.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"resshift-card-{key}.so"
    if library.exists():
        return library
    include, unfinished = Path(folder) / "include", library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", str(SOURCE)]
    command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{Path(folder) / 'lib'}"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"g++ does not build it against torch {version}: {done.stderr[-2000:]}")
    unfinished.replace(library)
    return library


def skip_unless_built(python: str = sys.executable) -> None:
    """Skip a test where `built` cannot build."""
    try:
        built(python)
    except CannotBuild as error:
        pytest.skip(str(error))


def environment(mib: int, python: str = sys.executable, name: str = "npu") -> dict[str, str]:
    """Variables for a host: it then finds Ascend's package and a device "npu" of so many MiB, or, with the name "privateuseone",
    DirectML's package and its device.
    """
    path = os.pathsep.join(filter(None, (str(FOLDER), str(FOLDER / name), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "RESSHIFT_CARD": str(built(python)), "RESSHIFT_CARD_MIB": str(mib)}
