"""The library on a second device with an end to its memory: see `accelerator`. In processes of their own, because a
device cannot be taken out of torch again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from . import accelerator
from .comfyui_server import ROOT

HEAD = """
import json, sys
import torch
import torch_npu
import resshift_core as rs
from tests import standin
from tests.test_pipeline import picture
card, told = torch.ops.resshift_card, {}

def apart(one, other, latent=False):
    difference = (one.cpu() - other).abs()
    return float(difference.median() if latent else difference.max())

torch.manual_seed(0)
"""
TAIL = """
print("RESULT " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def on_the_device():
    """Runs lines of Python there; gives their `told`."""
    accelerator.skip_unless_built()
    variables = accelerator.environment(8192)
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)

    def run(lines: str) -> dict:
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", HEAD + lines + TAIL], capture_output=True, text=True, env=environment, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.rpartition("RESULT ")[2])

    return run


@pytest.mark.slow
def test_what_is_for_gpus_passes_on_it():
    """But for training, which was made for NVIDIA's and AMD's."""
    accelerator.skip_unless_built()
    variables = accelerator.environment(8192)
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "RESSHIFT_TEST_DEVICE": "npu"}
    words = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-m", "cuda"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:]


def test_the_device_is_one(on_the_device):
    """Two devices are an error, memory ends, and is given back."""
    told = on_the_device("""
there = torch.ones(1 << 18, device="npu")
told["used"], told["sum"], told["type"] = card.used(), float(there.sum()), there.device.type
try:
    there + torch.ones(1 << 18)
except RuntimeError as error:
    told["two"] = str(error)
card.set_limit(2 << 20)
try:
    torch.ones(1 << 20, device="npu")
except torch.OutOfMemoryError as error:
    told["memory"] = str(error)
del there
told["after"] = card.used()
""")
    assert told["used"] == 1 << 20 and told["sum"] == 1 << 18 and told["type"] == "npu" and told["after"] == 0
    assert "at least two devices" in told["two"] and "Tried to allocate 4194304 bytes" in told["memory"]


def test_pictures_are_the_processors(on_the_device):
    """Of the built-in model and narrow networks of the published kinds; afterwards only weights are left there.

    Codes of stand-in weights lie close together, and some are others where a sum is rounded in another order.
    """
    told = on_the_device(
        """
def built_in():
    return rs.load_model("builtin", device="cpu", dtype="fp32")

lq, mask = picture(70, 50, count=2), (picture(70, 50, channels=1) > 0.6).float()
makers = {"builtin": built_in} | {v: (lambda v=v: standin.narrow_model(v)) for v in ("realsr_x4_s4", "inpaint_imagenet_s4", "faceir_s4")}
for name, make in makers.items():
    words = dict(seed=1, steps=2, color_fix="wavelet", tile=64, overlap=0, mask=mask if "inpaint" in name else None)
    expected, model = rs.upscale(make(), lq, **words), make().to("npu")
    weights = card.used()
    result = rs.upscale(model, lq.to("npu"), **words)
    told[name] = [result.device.type, apart(result, expected, name != "builtin"), weights > 0]
    del result
    told[name].append(card.used() - weights)
    del model
    told[name].append(card.used())
"""
    )
    for name, (device, difference, moved, beside, after) in told.items():
        assert device == "npu" and difference < (2e-5 if name == "builtin" else 1e-3) and moved, name
        assert beside < 1 << 20 and after < 1 << 20, (name, beside, after)  # schedules and indices may be kept


@pytest.mark.parametrize("variant, side, few, many", [("builtin", 150, 8, 60), ("realsr_x4_s4", 70, 4, 30)])
def test_any_allocation_may_fail(on_the_device, variant, side, few, many, request):
    """The picture, or that of smaller tiles, all the same, or a sentence; nothing is kept."""
    count = many if request.config.getoption("--slow") else few
    told = on_the_device(
        f"""
import random
def make():
    return rs.load_model("builtin", device="cpu", dtype="fp32") if "{variant}" == "builtin" else standin.narrow_model("{variant}")

lq = picture({side}, {side} - 6)
words = dict(seed=1, steps=2, color_fix="wavelet")
model = make().to("npu")
card.refuse(-1)
expected = rs.upscale(model, lq, **words)
total, weights = card.asked(), card.used()
smaller = rs.upscale(model, lq, **words, tile=64, overlap=16)
random.seed(5)
told |= dict(total=total, sentences=0, differences=[], left=0)
for number in sorted(random.sample(range(total), min(total, {count}))):
    card.refuse(number)
    try:
        result = rs.upscale(model, lq, **words)
        told["differences"].append(min(apart(result, one, "{variant}" != "builtin") for one in (expected, smaller)))
        del result
    except rs.OutOfMemory as error:
        told["sentences"] += 1
        told["sentence"] = str(error)
    told["left"] = max(told["left"], card.used() - weights)
card.refuse(-1)
told["again"] = float((rs.upscale(model, lq, **words) - expected).abs().max())
"""
    )
    assert told["total"] > 100 and len(told["differences"]) + told["sentences"] == min(told["total"], count)
    assert told["again"] == 0 and told["left"] < 1 << 20, told
    assert max(told["differences"]) < (1e-4 if variant == "builtin" else 1e-3) and told["sentences"] <= count // 4, told


@pytest.mark.parametrize("mib, tiles", [(200, (256,)), (36, (256, 128)), (16, (256, 128, 64))])
def test_tiles_shrink_to_the_memory(on_the_device, mib, tiles):
    """The picture is that of the tile that fits, which takes no more than is estimated."""
    told = on_the_device(f"""
import logging
said = []
logging.getLogger("resshift").addFilter(lambda record: said.append(record.getMessage()) or True)
model, lq = rs.load_model("builtin", device="cpu", dtype="fp32"), picture(300, 280)
expected = rs.upscale(model, lq, seed=1, tile={tiles[-1]})
model = model.to("npu")
weights = card.used()
card.reset_peak()
card.set_limit(({mib} << 20) + weights)
result = rs.upscale(model, lq, seed=1)
told["said"], told["difference"] = said, float((result - expected).abs().max())
told["left"], told["peak"] = card.used() - weights, card.peak() - weights
told["estimate"] = model.bytes_per_tile({tiles[-1]}, {tiles[-1]})
""")
    refused = [tile for tile in tiles if any(f"with a tile of {tile} pixels" in line for line in told["said"])]
    assert refused == list(tiles[:-1])
    assert told["difference"] < 2e-5 and told["left"] < 1 << 20
    if len(tiles) == 1:  # else the tile that did not fit is in the peak, too
        assert told["peak"] < told["estimate"]


@pytest.mark.parametrize("asked, mib", [("auto", 0), ("auto", 5), ("npu", 0), ("npu", 5)])
def test_the_command_line_goes_on_with_the_processor(on_the_device, tmp_path, asked, mib):
    """Where the weights (0 MiB) or the smallest tile (5 MiB) do not fit; a device that was asked for is not replaced."""
    told = on_the_device(f"""
from pathlib import Path
from PIL import Image
from resshift_core import device
from resshift_core.cli import main
folder = Path({str(tmp_path)!r})
sources = [folder / "one.png", folder / "two.png"]
for number, source in enumerate(sources):
    Image.effect_noise((96, 80), 30 + number).convert("RGB").save(source)

def status(asked, out):
    words = ["--device", asked, "--dtype", "fp32", "--tile", "64", "--seed", "1", "-o", str(folder / out), "--suffix", ""]
    return main(["upscale", *map(str, sources), *words])

device._accelerator = lambda: torch.device("npu")
card.set_limit({mib} << 20)
told["status"] = status({asked!r}, "here")
told["left"] = card.used()
told["expected"] = status("cpu", "there")
told["same"] = [
    (folder / "here" / source.name).exists() and Image.open(folder / "here" / source.name) == Image.open(folder / "there" / source.name)
    for source in sources
]
""")
    replaced = asked == "auto"
    assert told["same"] == [replaced] * 2 and told["expected"] == 0
    assert told["status"] == (0 if replaced else 1 if mib else 2)
