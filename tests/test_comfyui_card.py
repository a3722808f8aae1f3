"""The pack in a real ComfyUI (COMFYUI_DIR) whose models do not run where they rest: on a second device with little memory.

The device is `accelerator`'s: real tensors in the host's memory, an error where two devices meet, and an end to its memory. It
shows that weights are moved, fall back and are let go as on a graphics card. It is none: kernels and speed are not seen here.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import resshift_core as rs

from . import accelerator, standin
from .comfyui_server import PYTHON, Server
from .test_comfyui import CHECKOUTS, INPAINTING, WORKFLOWS, example, gradient, graph, save_inpainting_model

pytestmark = pytest.mark.host
WEIGHTS = 2_100_000  # bytes of the built-in model's 1.09 M numbers in half precision
PICTURE, LARGE = gradient(72, 96), gradient(300, 400)


def start(tmp_path_factory, mib: int, *arguments: str) -> Server:
    if not CHECKOUTS:
        pytest.skip("needs a checkout of ComfyUI: set COMFYUI_DIR")
    accelerator.skip_unless_built(PYTHON)
    server = Server(CHECKOUTS[-1], tmp_path_factory.mktemp("comfyui"), arguments, card_mib=mib)
    server.put_image("example.png", PICTURE)
    return server


def in_use(comfy: Server) -> int:
    """Bytes of the device's memory that are taken."""
    (device,) = comfy.get("/system_stats")["devices"]
    assert device["type"] == "npu", device
    return device["vram_total"] - device["vram_free"]


def emptied(comfy: Server) -> int:
    """What is still taken after the button that unloads all models.

    It is pressed again: the host's worker does not hear of it on its way from one prompt's end to the wait for the next.
    """
    end = time.monotonic() + 20
    while time.monotonic() < end:
        comfy.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.2)
        if not in_use(comfy):
            break
    return in_use(comfy)


@functools.cache
def _upscaled(dtype: str, height: int, width: int) -> np.ndarray:
    lq = torch.from_numpy(gradient(height, width)).float().movedim(-1, 0)[None] / 255
    result = rs.upscale(rs.load_model("builtin", device="cpu", dtype=dtype), lq, seed=1)
    return (result[0].movedim(0, -1) * 255).clamp(0, 255).numpy().astype(np.uint8)


def upscaled(dtype: str, picture: np.ndarray = PICTURE) -> np.ndarray:
    """What the library gives on the processor."""
    return _upscaled(dtype, *picture.shape[:2])


def save_wide_model(path) -> None:
    """A network of 11 M numbers in pixel space with random weights."""
    model = rs.load_model("builtin", device="cpu", dtype="fp32")
    unet = replace(model.config.unet, model_channels=192)
    config = replace(model.config, unet=unet, name=path.stem)
    rs.save_model(standin.standin_model(config), path)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    server = start(tmp_path_factory, 24)
    save_inpainting_model(server.base / "models" / "resshift" / INPAINTING)
    with server:
        yield server


IN_BF16 = 5  # levels that single pixels may differ by from float32; the library's own bf16 differs by 4


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


FLAGS = [
    ((), 1), (("--lowvram",), 1), (("--novram",), 1), (("--highvram",), 1), (("--gpu-only",), 1), (("--bf16-unet",), 1),
    (("--fp32-unet",), 2), (("--force-fp32",), 2),
]  # fmt: skip


@pytest.mark.parametrize("flags, size", FLAGS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_flags_of_memory_and_formats(tmp_path_factory, flags, size):
    """The picture is the library's; the weights, and nothing else, lie on the device after a run, and nothing when all are unloaded."""
    with start(tmp_path_factory, 1024, *flags) as comfy:
        (first,) = comfy.images(comfy.run(graph()), "4")
        assert differ(first, upscaled("fp32")) <= (1 if size == 2 else IN_BF16)
        kept = 4 * first.size if flags == ("--gpu-only",) else 0  # by the host: the picture in float32
        assert size * WEIGHTS <= in_use(comfy) - kept < 1.1 * size * WEIGHTS
        assert emptied(comfy) == 0
        (second,) = comfy.images(comfy.run(graph(sampler="stochastic")), "4")
        assert np.array_equal(first, second)
        assert emptied(comfy) == 0
        assert "Trying" not in comfy.text()


@pytest.mark.parametrize(
    "mib, said", [(64, None), (20, "starting again with 128"), (12, "starting again with 64"), (1, "Trying the processor")]
)
def test_short_memory_is_no_error(tmp_path_factory, mib, said):
    """Smaller tiles, and at last the processor, give what plenty of memory gives."""
    with start(tmp_path_factory, mib) as comfy:
        comfy.put_image("large.png", LARGE)
        for key in ("ResShiftUpscaleImage", "TiledResShiftUpscaleImage"):
            (shown,) = comfy.images(comfy.run(graph("large.png", key=key)), "4")
            assert differ(shown, upscaled("fp32", LARGE)) <= IN_BF16
        assert ("Out of memory" in comfy.text()) == bool(said) and (said or "") in comfy.text()
        assert emptied(comfy) == 0


def test_models_that_do_not_fit_together_take_turns(tmp_path_factory):
    """The weights of one go when another needs the room, without a fall back."""
    with start(tmp_path_factory, 48) as comfy:
        names = ["one", "two", "three"]
        for name in names:
            save_wide_model(comfy.base / "models" / "resshift" / f"{name}.safetensors")
        first_round = {}
        for steps, name in [(steps, name) for steps in (0, 4) for name in names]:  # two ways to say the same
            (shown,) = comfy.images(comfy.run(graph(model=f"{name}.safetensors", steps=steps)), "4")
            assert 20_000_000 < in_use(comfy) < 45_000_000
            assert np.array_equal(first_round.setdefault(name, shown), shown)
        assert "Out of memory" not in comfy.text()
        assert emptied(comfy) == 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_where_memory_is_short(tmp_path_factory, crowded, path):
    """Every example, films, inpainting and core's own node among them, on a device that holds tiles of 64 pixels."""
    assert crowded.run(example(crowded, path))["status"]["status_str"] == "success"
    assert emptied(crowded) == 0
