"""The pack in a real ComfyUI (COMFYUI_DIR) beside what it meets there: a download server, films, other people's packs.

COMFYUI_PACKS names folders of other packs (os.pathsep between them) and COMFYUI_CHECKPOINT a Stable Diffusion 1.5 checkpoint, for
which webui_checkpoint.py makes random weights; tests that need one are skipped without it.
"""

from __future__ import annotations

import functools
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from resshift_core.registry import REGISTRY

from . import standin
from .comfyui_server import Server
from .test_comfyui import CHECKOUTS, gradient, graph

pytestmark = pytest.mark.host
CHECKPOINT = os.environ.get("COMFYUI_CHECKPOINT")
PACKS = [Path(part) for part in os.environ.get("COMFYUI_PACKS", "").split(os.pathsep) if part]


class Mirror(ThreadingHTTPServer):
    """Serves a folder, and remembers what was asked for."""

    def __init__(self, folder: Path):
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Files(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    server = Mirror(tmp_path_factory.mktemp("mirror"))
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, mirror):
    if not CHECKOUTS:
        pytest.skip("needs a checkout of ComfyUI: set COMFYUI_DIR")
    base = tmp_path_factory.mktemp("comfyui")
    server = Server(CHECKOUTS[0], base)
    for pack in PACKS:
        os.symlink(pack.resolve(), base / "custom_nodes" / pack.name, target_is_directory=True)
    if CHECKPOINT:
        (base / "models" / "checkpoints").mkdir()
        os.symlink(Path(CHECKPOINT).resolve(), base / "models" / "checkpoints" / "random.safetensors")
    server.put_image("example.png", gradient(48, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESSHIFT_MIRROR", f"http://127.0.0.1:{mirror.server_port}")
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.delenv(name, raising=False)
        with server:
            yield server


class TestDownload:
    """A published model at its full size, with stand-in weights: only its hash is not checked, for none has been published."""

    @pytest.mark.slow
    def test_on_the_node(self, comfy, mirror, tmp_path):
        folder = Path(mirror.RequestHandlerClass.keywords["directory"])
        for name in ("faceir_s4", "vq_f8_face"):
            entry = REGISTRY[name]
            path = folder / entry.url.split("/", 3)[3]
            path.parent.mkdir(parents=True, exist_ok=True)
            model = standin.standin_model(standin.published_config("faceir_s4"))
            part = model.autoencoder if entry.task == "autoencoder" else model.unet
            torch.save(part.state_dict(), path)
        label = next(
            name
            for name in comfy.get("/object_info/LoadResShiftModel")["LoadResShiftModel"]["input"]["required"]["model"][0]
            if name.startswith("faceir_s4 [")
        )
        said, values = b"", []
        for kind, data in comfy.events(comfy.queue(graph(model=label, steps=1))):
            if kind == "preview":
                said += data
            if kind == "progress":
                values.append(data["value"])
            assert kind != "execution_error", data
        assert b"Downloading faceir_s4 (" in said and b" MB" in said and b"S-Lab License 1.0 (non-commercial)" in said
        assert len(values) > (20 if comfy.passes_on_all_progress else 5)
        here = comfy.base / "models" / "resshift"
        assert all((here / REGISTRY[name].file).is_file() for name in ("faceir_s4", "vq_f8_face"))
        asked = len(mirror.asked)
        assert comfy.run(graph(model=label, steps=1, seed=2))["status"]["status_str"] == "success"
        assert len(mirror.asked) == asked


class TestFilms:
    def test_memory_grows_by_input_and_output_alone(self, comfy):
        """The peak over 150 frames against that over 20."""

        def peak(frames: int) -> int:
            prompt = graph(noise="shared", seed=frames)
            prompt["5"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": frames}}
            prompt["6"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["3", 0], "batch_index": 0, "length": 1}}
            prompt["3"]["inputs"]["image"], prompt["4"]["inputs"]["images"] = ["5", 0], ["6", 0]
            comfy.post("/free", {"unload_models": True, "free_memory": True})
            Path(f"/proc/{comfy.process.pid}/clear_refs").write_text("5")  # the peak starts anew
            comfy.run(prompt)
            for line in Path(f"/proc/{comfy.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
            raise RuntimeError("no VmHWM")

        peak(20)  # warms up
        few, many = peak(20), peak(150)
        one = (48 * 64 + 192 * 256) * 3 * 4  # bytes of a frame, in and out
        assert many - few < 130 * one * 1.25 + 24 * 2**20

    def test_equal_frames_stay_equal(self, comfy):
        prompt = graph(noise="shared", seed=3)
        prompt["5"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 20}}
        prompt["3"]["inputs"]["image"] = ["5", 0]
        frames = comfy.images(comfy.run(prompt), "4")
        assert len(frames) == 20 and all(np.array_equal(frame, frames[0]) for frame in frames)


class TestOtherPacks:
    @pytest.mark.skipif(not CHECKPOINT, reason="COMFYUI_CHECKPOINT names no checkpoint")
    def test_ultimate_sd_upscale_takes_the_adapter(self, comfy):
        if "UltimateSDUpscale" not in comfy.get("/object_info"):
            pytest.skip("COMFYUI_PACKS has no Ultimate SD Upscale")
        of_clip = {"clip": ["1", 1], "text": "x"}
        settings = {
            "upscale_by": 2.0, "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.0,
            "mode_type": "None", "tile_width": 64, "tile_height": 64, "mask_blur": 8, "tile_padding": 8, "seam_fix_mode": "None",
            "seam_fix_denoise": 1.0, "seam_fix_width": 64, "seam_fix_mask_blur": 8, "seam_fix_padding": 16,
            "force_uniform_tiles": True, "tiled_decode": False, "batch_size": 1,
        }  # fmt: skip
        sockets = {"image": ["5", 0], "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "vae": ["1", 2]}
        prompt = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "random.safetensors"}},
            "2": {"class_type": "CLIPTextEncode", "inputs": of_clip},
            "3": {"class_type": "CLIPTextEncode", "inputs": of_clip},
            "4": {"class_type": "LoadResShiftModel", "inputs": {"model": "builtin", "autoencoder": "auto", "dtype": "auto"}},
            "5": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
            "6": {
                "class_type": "ResShiftToUpscaleModel",
                "inputs": {"model": ["4", 0], "seed": 1, "steps": 0, "kappa": 0.0, "p": 0.0, "color_fix": "none"},
            },
            "7": {"class_type": "UltimateSDUpscale", "inputs": {**sockets, **settings, "upscale_model": ["6", 0]}},
            "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        }
        (plain,) = comfy.images(comfy.run(prompt), "8")
        assert plain.shape == (96, 128, 3)
        small = plain.reshape(48, 2, 64, 2, 3).astype(float).mean((1, 3))
        assert np.abs(small - gradient(48, 64)).mean() < 8  # nothing is redrawn: the picture is ours, made smaller
        prompt["7"]["inputs"] |= {"mode_type": "Linear", "denoise": 0.2}
        (redrawn,) = comfy.images(comfy.run(prompt), "8")
        assert redrawn.shape == (96, 128, 3)
