"""The library and training on a second device with an end to its memory: see `accelerator`. In processes of their own, because a
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
from dataclasses import replace
import torch
import torch_npu
import resshift_core as rs
from tests import standin
from tests.test_pipeline import picture
card, told = torch.ops.resshift_card, {}
torch.manual_seed(0)
"""
TAIL = """
print("RESULT " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def on_the_device():
    """Runs lines of Python there; gives their `told`."""
    try:
        variables = accelerator.environment(8192)
    except accelerator.CannotBuild as error:
        pytest.skip(str(error))
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)

    def run(lines: str) -> dict:
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", HEAD + lines + TAIL], capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.rpartition("RESULT ")[2])

    return run


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
    told = on_the_device("""
def narrow(variant):
    config = standin.published_config(variant)
    unet = replace(config.unet, model_channels=32, swin_channels=32, swin_depth=2, channel_mult=(1, 1, 1, 1))
    autoencoder = replace(config.autoencoder, ch=8, num_res_blocks=(1,) * len(config.autoencoder.ch_mult))
    return standin.standin_model(replace(config, unet=unet, autoencoder=autoencoder))

def built_in():
    return rs.load_model("builtin", device="cpu", dtype="fp32")

lq, mask = picture(70, 50, count=2), (picture(70, 50, channels=1) > 0.6).float()
makers = {"builtin": built_in} | {v: (lambda v=v: narrow(v)) for v in ("realsr_x4_s4", "inpaint_imagenet_s4", "faceir_s4")}
for name, make in makers.items():
    words = dict(seed=1, steps=2, color_fix="wavelet", tile=64, overlap=0, mask=mask if "inpaint" in name else None)
    expected, model = rs.upscale(make(), lq, **words), make().to("npu")
    weights = card.used()
    result = rs.upscale(model, lq.to("npu"), **words)
    told[name] = [result.device.type, float((result.cpu() - expected).abs().median()), weights > 0]
    del result
    told[name].append(card.used() - weights)
    del model
    told[name].append(card.used())
""")
    for name, (device, difference, moved, beside, after) in told.items():
        assert device == "npu" and difference < 1e-3 and moved, name
        assert beside < 1 << 20 and after < 1 << 20, (name, beside, after)  # schedules and indices may be kept


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
