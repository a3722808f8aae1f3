"""The extension in a real WebUI (WEBUI_DIR) that computes on a second device with little memory: see `accelerator`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs

from . import accelerator
from .test_comfyui import gradient
from .webui_server import Server

pytestmark = pytest.mark.host
BUILTIN, REAL = "ResShift built-in 4x", "ResShift built-in real 4x"
MIB = 1024


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    checkout = os.environ.get("WEBUI_DIR")
    if not checkout:
        pytest.skip("WEBUI_DIR names no checkout")
    server = Server(Path(checkout), tmp_path_factory.mktemp("webui"), MIB)
    accelerator.skip_unless_built(server.python)
    with server:
        yield server


@pytest.fixture(autouse=True)
def plenty(webui):
    """All of the device's memory again."""
    webui.get(f"/probe/card?limit={MIB << 20}")


def picture(number: int) -> np.ndarray:
    """Another one for every test: hosts remember what they have upscaled."""
    return gradient(300 - 8 * number, 400)


def expected(number: int) -> np.ndarray:
    lq = torch.from_numpy(picture(number)).float().movedim(-1, 0)[None] / 255
    result = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), lq, seed=0)
    return (result[0].movedim(0, -1) * 255).round().clamp(0, 255).numpy().astype(int)


def shown(webui: Server, number: int, upscaler: str = BUILTIN) -> np.ndarray:
    return np.asarray(webui.extras(Image.fromarray(picture(number)), upscaler)[0].convert("RGB")).astype(int)


def test_it_computes_there_and_leaves(webui):
    assert np.abs(shown(webui, 0) - expected(0)).max() <= 3
    told = webui.get("/probe/card")
    assert told["peak"] > 30 << 20 and told["used"] == 0


@pytest.mark.parametrize("number, mib, said", [(1, 40, "starting again with"), (2, 1, "processor")])
def test_short_memory_is_no_error(webui, number, mib, said):
    """Smaller tiles, and at last the processor, give what plenty of memory gives."""
    before = len(webui.text())
    webui.get(f"/probe/card?limit={mib << 20}")
    assert np.abs(shown(webui, number) - expected(number)).max() <= 3
    assert said in webui.text()[before:]
    assert webui.get("/probe/card")["used"] == 0


def test_models_in_turn_leave_nothing(webui):
    for number, upscaler in ((3, BUILTIN), (4, REAL), (5, BUILTIN), (6, REAL)):
        assert shown(webui, number, upscaler).shape == (*(4 * side for side in picture(number).shape[:2]), 3)
        assert webui.get("/probe/card")["used"] == 0
