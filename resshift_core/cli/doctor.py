"""`resshift doctor`: what was found on this machine, how fast the model runs here, and what is wrong, with the remedy."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import features

from ..arguments import check_tile
from ..checkpoint import load_model
from ..checkpoint_file import pickles_are_safe
from ..device import cpu_has_bf16, free_bytes, resolve_device, resolve_dtype
from ..errors import InputError, ResShiftError
from ..image_io import can_write
from ..model import ResShiftModel
from ..pipeline import upscale
from ..registry import REGISTRY, can_be_written, models_dir, nearest
from ..tiles import Axis, lay_side
from ..version import __version__
from . import arguments as types
from .console import Console, human_bytes, human_seconds, write_out

PACKAGES = ("numpy", "safetensors", "einops", "Pillow", "tqdm", "triton")
EXAMPLE_SIDE = 512  # of the picture whose time is told
RUNS = 2  # timed; the faster one counts
SPARE_BYTES = 2**30  # free memory and disk space under which a sentence is due


@dataclass
class _Findings:
    """What is printed: facts in order, problems at the end."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    works: bool = True  # whether the model could be run


def doctor(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift doctor`."""
    types.add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Look, measure, tell. Status 1 if the model cannot run here."""
    found = _Findings()
    _look_at_software(found)
    _look_at_models(found)
    try:
        device = resolve_device(args.device)
        _look_at_device(found, device, args.dtype)
        _measure(found, args)
    except ResShiftError as error:
        found.works = False
        found.problems.append(str(error))
    _tell(found)
    return 0 if found.works else 1


def _tell(found: _Findings) -> None:
    width = max(map(len, found.facts))
    facts = [f"{name.ljust(width)}  {value}" for name, value in found.facts.items()]
    problems = [f"! {problem}" for problem in found.problems] or ["No problem was found."]
    write_out("\n".join((*facts, "", *problems)))


# ---------------------------------------------------------------------------------------------------- looking


def _look_at_software(found: _Findings) -> None:
    found.facts["ResShift"] = f"{__version__} in {Path(__file__).resolve().parents[1]}"
    found.facts["Python"] = f"{platform.python_version()} on {platform.system()} {platform.release()} ({platform.machine()})"
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else ""
    found.facts["torch"] = f"{torch.__version__} ({built_for or 'without a GPU'})"
    for package in PACKAGES:
        found.facts[package] = _version(package)
    formats = [
        suffix.lstrip(".").upper() for suffix in (".png", ".jpg", ".webp", ".tiff", ".avif", ".bmp") if can_write(suffix)
    ]
    found.facts["picture formats"] = ", ".join(formats)
    if not can_write(".webp") or not can_write(".avif"):
        found.problems.append(
            "This Pillow cannot write WebP or AVIF. If you need them: pip install --upgrade Pillow (11.3 or later)."
        )
    if not features.check("littlecms2"):
        found.problems.append(
            "This Pillow has no colour management: CMYK pictures will look a little off. Install Pillow with pip."
        )
    try:
        torch.from_numpy(np.zeros(1))
    except RuntimeError:
        found.works = False
        found.problems.append(f'torch {torch.__version__} cannot work with numpy {np.__version__}. Run: pip install "numpy<2"')
    if not pickles_are_safe():
        found.problems.append(
            f"torch {torch.__version__} cannot open .pth files safely; only .safetensors and known files are loaded. "
            "Update torch to 2.6 or later."
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed" + (" (optional)" if package in ("triton", "tqdm") else "")


def _look_at_models(found: _Findings) -> None:
    try:
        folder = models_dir()
    except InputError as error:  # models that come with the package run all the same
        found.problems.append(str(error))
        return
    found.facts["models folder"] = f"{folder}{'' if os.path.isdir(folder) else ' (not made yet)'}"
    here = {name: path for name, entry in REGISTRY.items() if (path := entry.find()) is not None}
    for name, path in here.items():
        found.facts[f"model {name}"] = f"{path} ({human_bytes(path.stat().st_size)})"
    if not here:
        found.facts["model"] = "none"
    place = nearest(folder)
    if not can_be_written(place):
        found.problems.append(
            f"{place} cannot be written, so that nothing can be downloaded. Set RESSHIFT_MODELS_DIR to another folder."
        )
    elif shutil.disk_usage(place).free < SPARE_BYTES:
        free = human_bytes(shutil.disk_usage(place).free)
        found.problems.append(f"Only {free} are free where models go ({place}). Make room, or set RESSHIFT_MODELS_DIR.")
    for part in sorted(folder.glob("*.part")) if os.path.isdir(folder) else ():
        found.problems.append(f"{part} is an unfinished download. `resshift download NAME` goes on with it; or delete it.")


def _look_at_device(found: _Findings, device: torch.device, dtype: str) -> None:
    found.facts["device"] = f"{device}{_device_name(device)}"
    found.facts["number format"] = str(resolve_dtype(dtype, device)).removeprefix("torch.")
    for place in dict.fromkeys((device, torch.device("cpu"))):
        free = free_bytes(place)
        found.facts[f"free memory ({place})"] = human_bytes(free) if free is not None else "not known on this system"
        if free is not None and free < SPARE_BYTES:
            found.problems.append(
                f"Only {human_bytes(free)} of memory are free on {place}. Close other programs, or use --tile 64."
            )
    if device.type != "cpu":
        return
    threads = torch.get_num_threads()
    bf16 = "multiplies bf16 itself" if cpu_has_bf16() else "has no bf16"
    found.facts["processor"] = f"{threads} of {os.cpu_count()} threads used; it {bf16}"
    if threads == 1 and (os.cpu_count() or 1) > 1:
        found.problems.append("torch uses one thread only. Unset OMP_NUM_THREADS, or set it to the number of your cores.")
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        found.problems.append(
            "There is an NVIDIA driver, but this torch was built without CUDA. Install the CUDA build of torch from pytorch.org."
        )
    elif torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        found.problems.append("This torch has CUDA but finds no GPU it can use. Update the NVIDIA driver.")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f" ({properties.name}, {human_bytes(properties.total_memory)}, compute capability {properties.major}.{properties.minor})"
    return ""


# ---------------------------------------------------------------------------------------------------- measuring


def _measure(found: _Findings, args: argparse.Namespace) -> None:
    """Run the model on tiles of random pixels; the time does not depend on what is in a picture."""
    model = load_model(
        args.model, autoencoder=args.autoencoder, variant=args.variant, device=args.device, dtype=args.dtype
    )  # fmt: skip
    axis = _axis(model)
    side, tiles = axis.tile, len(axis.starts) ** 2
    tile = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, side, side) if model.config.task == "inpaint" else None
    upscale(model, tile, steps=1, mask=mask)  # the first run compiles, allocates and chooses algorithms
    seconds = min(_seconds(model, tile, mask) for _ in range(RUNS))
    found.facts["measured model"] = f"{args.model}, {model.config.default_steps} steps, x{model.scale}"
    found.facts["seconds per tile"] = f"{seconds:.3g} ({side} x {side} pixels)"
    found.facts[f"{EXAMPLE_SIDE} x {EXAMPLE_SIDE} picture"] = f"{tiles} tiles, about {human_seconds(tiles * seconds)}"
    found.facts["memory per tile"] = f"about {human_bytes(model.bytes_per_tile(side, side))} beside the weights"


def _seconds(model: ResShiftModel, tile: torch.Tensor, mask: torch.Tensor | None) -> float:
    start = time.perf_counter()
    upscale(model, tile, mask=mask)  # the result is on the CPU: all work is done when it is there
    return time.perf_counter() - start


def _axis(model: ResShiftModel) -> Axis:
    """The tiles along one side of the example picture, as `upscale` lays them by default."""
    return lay_side(model.config, EXAMPLE_SIDE, *check_tile(model, "auto", None, (EXAMPLE_SIDE, EXAMPLE_SIDE)))
