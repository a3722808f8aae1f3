"""The pack in a real ComfyUI. COMFYUI_DIR names one checkout, or several with os.pathsep between them (an old and a recent
one); COMFYUI_PYTHON is the Python that runs them, where it is not this one. With COMFYUI_CARD_MIB everything runs on a second
device of so much memory (see `accelerator`), as on a graphics card; COMFYUI_CARD_NAME=privateuseone makes it DirectML's.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
import urllib.error
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resshift_core as rs

from . import standin
from .comfyui_graphs import read, to_prompt
from .comfyui_server import PACK, ROOT, Server

pytestmark = pytest.mark.host
CHECKOUTS = [Path(part) for part in os.environ.get("COMFYUI_DIR", "").split(os.pathsep) if part]
KEYS = (
    "LoadResShiftModel", "ResShiftUpscaleImage", "TiledResShiftUpscaleImage", "ResShiftInpaint", "ResShiftToUpscaleModel",
)  # fmt: skip
INPAINTING = "inpaint_small.safetensors"
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


def gradient(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture with structure, (H, W, C) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [y * 255 / max(1, height - 1), x * 255 / max(1, width - 1), ((x // 4 + y // 4) % 2) * 200, 128 + 127 * (x > y)]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def save_inpainting_model(path: Path) -> None:
    """A small network with random weights that fills holes: published ones are not free to be passed on."""
    unet = rs.UNetConfig(
        mask=True, lq_stages=2, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, swin_channels=32, head_channels=16
    )
    autoencoder = rs.VQGANConfig(32, (1, 1, 2), (1, 1, 1), 3, 3, 64)
    config = rs.ModelConfig(unet, autoencoder, scale=1, task="inpaint", tile=64, overlap=16, name="inpaint_small")
    rs.save_model(standin.standin_model(config), path)


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: path.name if path else "none")
def comfy(request, tmp_path_factory):
    if request.param is None:
        pytest.skip("needs a checkout of ComfyUI: set COMFYUI_DIR")
    base = tmp_path_factory.mktemp("comfyui") / "Mein Comfy"
    base.mkdir()
    server = Server(request.param, base)
    save_inpainting_model(base / "models" / "resshift" / INPAINTING)
    server.put_image("example.png", gradient(48, 64))
    with server:
        yield server


def graph(image: str = "example.png", model: str = "builtin", key: str = "ResShiftUpscaleImage", **widgets) -> dict:
    """Loader, picture, one node of ours, preview; node 3 is ours, node 4 the preview."""
    settings = {"seed": 1, "steps": 0, "kappa": 0.0, "p": 0.0, "sampler": "stochastic", "noise": "per_image"}
    if key != "ResShiftInpaint":
        settings |= {"scale": 0.0, "color_fix": "none"}
    if key == "TiledResShiftUpscaleImage":
        settings |= {"tile": 0, "overlap": 0, "tile_batch": 0, "wrap": "none"}
    settings |= widgets
    return {
        "1": {"class_type": "LoadResShiftModel", "inputs": {"model": model, "autoencoder": "auto", "dtype": "auto"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": image}},
        "3": {"class_type": key, "inputs": {"model": ["1", 0], "image": ["2", 0], **settings}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def example(comfy: Server, path: Path) -> dict:
    """The prompt of an example workflow, with the small inpainting model for the published one."""
    prompt = to_prompt(read(path), comfy.get("/object_info"))
    for node in prompt.values():
        if node["class_type"] == "LoadResShiftModel" and node["inputs"]["model"].startswith("inpaint"):
            node["inputs"]["model"] = INPAINTING
    return prompt


class TestLoading:
    def test_the_pack_is_imported_without_a_word_and_quickly(self, comfy):
        line = next(line for line in comfy.text().splitlines() if line.strip().endswith(PACK))
        assert "IMPORT FAILED" not in line
        assert float(re.search(r"([\d.]+) seconds", line).group(1)) <= 1.0  # an import beside a busy server start
        before = comfy.text().split("Import times")[0]
        assert "resshift" not in before.lower().replace(PACK.lower(), "")

    @pytest.mark.parametrize("key", KEYS)
    def test_object_info(self, comfy, key):
        info = comfy.get(f"/object_info/{key}")[key]
        assert info["category"] == "image/upscaling/ResShift" and info["description"]
        declared = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert all(declaration[1]["tooltip"] for declaration in declared.values())
        assert len(info["output_tooltips"]) == len(info["output"])

    def test_the_loader_lists_the_catalogue_and_the_files(self, comfy):
        models = comfy.get("/object_info/LoadResShiftModel")["LoadResShiftModel"]["input"]["required"]["model"][0]
        assert models[:2] == ["builtin", "builtin-real"] and models[-1] == INPAINTING
        assert any(name.startswith("realsr_x4_s4 [478 MB, S-Lab 1.0, non-commercial]") for name in models)

    def test_the_page_gets_scripts_help_and_translations(self, comfy):
        extensions = comfy.get("/extensions")
        quoted = "/extensions/" + urllib.parse.quote(PACK)
        ours = [path for path in extensions if path.startswith(quoted)]
        assert f"{quoted}/resshift.js" in ours
        for path in ours:
            name = path.removeprefix(quoted).removeprefix("/")
            assert comfy._ask(path) == (ROOT / "web" / name).read_bytes()
        with pytest.raises(urllib.error.HTTPError):
            comfy._ask(f"{quoted}/..%2F__init__.py")
        quoted += "/docs/ResShiftUpscaleImage"
        assert b"ResShift Upscale" in comfy._ask(f"{quoted}.md")
        assert b"ResShift" in comfy._ask(f"{quoted}/fr.md")
        french = comfy.get("/i18n")["fr"]["nodeDefs"]["ResShiftUpscaleImage"]
        assert french["inputs"]["image"]["tooltip"].startswith("L’image")

    def test_templates_are_listed_and_served(self, comfy):
        listed = comfy.get("/workflow_templates")[PACK]
        assert sorted(listed) == [path.stem for path in WORKFLOWS]
        for path in WORKFLOWS:
            address = f"/api/workflow_templates/{urllib.parse.quote(PACK)}/{urllib.parse.quote(path.name)}"
            assert comfy._ask(address) == path.read_bytes()
            assert comfy._ask(address.removesuffix("json") + "jpg") == path.with_suffix(".jpg").read_bytes()

    def test_facts_of_a_model(self, comfy):
        facts = comfy.get("/resshift/model?name=builtin")
        config = rs.load_model("builtin", device="cpu").config
        assert [facts[word] for word in ("scale", "trained_steps", "kappa", "p")] == [
            config.scale, config.steps, config.kappa, config.p
        ]  # fmt: skip
        assert comfy.get(f"/resshift/model?name={INPAINTING}")["task"] == "inpaint"


class TestRuns:
    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_every_example_workflow_finishes(self, comfy, path):
        entry = comfy.run(example(comfy, path))
        assert entry["status"]["status_str"] == "success"
        shown = [item for output in entry["outputs"].values() for item in output.get("images", ())]
        assert shown and all(Image.open(io.BytesIO(comfy.file(item))).size[0] >= 64 for item in shown)

    def test_the_result_is_what_the_library_gives(self, comfy):
        import torch

        entry = comfy.run(graph(seed=5, color_fix="wavelet"))
        (shown,) = comfy.images(entry, "4")
        lq = torch.from_numpy(gradient(48, 64)).float().movedim(-1, 0)[None] / 255
        expected = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), lq, seed=5, color_fix="wavelet")
        levels = (expected[0].movedim(0, -1) * 255).clamp(0, 255).numpy().astype(np.uint8)
        limit = 3 if comfy.card_mib else 1  # a device has half precision; else two builds of torch, one picture
        assert np.abs(shown.astype(int) - levels).max() <= limit

    def test_the_same_prompt_twice_gives_the_same_bytes(self, comfy):
        first = comfy.run(graph(seed=11))
        comfy.post("/free", {"unload_models": True, "free_memory": True})
        comfy.run(graph(seed=12))
        second = comfy.run(graph(seed=11))
        pictures = [comfy.images(entry, "4")[0] for entry in (first, second)]
        assert pictures[0].tobytes() == pictures[1].tobytes()
        assert pictures[0].tobytes() != comfy.images(comfy.run(graph(seed=12)), "4")[0].tobytes()

    def test_progress_and_previews_arrive(self, comfy):
        prompt = comfy.queue(graph(seed=100, key="TiledResShiftUpscaleImage", tile=32, overlap=8))
        values, previews = [], []
        for kind, data in comfy.events(prompt):
            if kind == "progress":
                values.append(data["value"] / data["max"])
            if kind == "preview":
                previews.append(Image.open(io.BytesIO(data)))
        assert len(values) >= (20 if comfy.passes_on_all_progress else 6)  # six tiles, each with a preview
        assert values == sorted(values) and values[-1] == 1
        assert previews and previews[-1].size[0] * 3 == previews[-1].size[1] * 4  # ComfyUI enlarges them

    def test_before_and_after_are_there_for_the_slider(self, comfy):
        entry = comfy.run(graph(seed=200))
        pair = json.loads(*entry["outputs"]["3"]["resshift_compare"])
        sizes = {Image.open(io.BytesIO(comfy.file(pair[word]))).size for word in ("before", "after")}
        assert sizes == {(256, 192)} and (pair["width"], pair["height"]) == (256, 192)

    @pytest.mark.parametrize("channels, mode", [(4, "RGBA"), (1, "L")])
    def test_other_channels(self, comfy, channels, mode):
        levels = gradient(20, 30, channels)
        comfy.put_image(f"{mode}.png", levels if channels > 1 else levels[..., 0])
        (shown,) = comfy.images(comfy.run(graph(f"{mode}.png")), "4")
        assert shown.shape[:2] == (80, 120)

    def test_before_and_after_come_again_from_the_cache(self, comfy):
        """For a page that was loaded anew; a node with nothing but cached nodes behind it says nothing by itself."""
        first, again = (comfy.run(graph(seed=77))["outputs"] for _ in range(2))
        assert again["3"]["resshift_compare"] == first["3"]["resshift_compare"]

    def test_one_pixel(self, comfy):
        comfy.put_image("one.png", gradient(1, 1))
        assert comfy.images(comfy.run(graph("one.png")), "4")[0].shape == (4, 4, 3)

    def test_a_mismatch_is_a_sentence(self, comfy):
        with pytest.raises(RuntimeError, match="does not fill holes. Load an inpainting model"):
            comfy.put_image("hole.png", gradient(40, 40, 4))
            wrong = graph("hole.png", key="ResShiftInpaint")
            wrong["3"]["inputs"]["mask"] = ["2", 1]
            comfy.run(wrong)
        with pytest.raises(ValueError, match="There is no model called 'gone.pth'"):
            comfy.queue(graph(model="gone.pth"))

    def test_labels_of_other_times_and_machines_are_understood(self, comfy):
        assert comfy.queue(graph(model="builtin [9 GB, some licence]"))
        folder = comfy.base / "models" / "resshift" / "mine"
        folder.mkdir(exist_ok=True)
        save_inpainting_model(folder / "copy.safetensors")
        comfy.get("/object_info/LoadResShiftModel")
        windows = graph(model="mine\\copy.safetensors", key="ResShiftInpaint")
        windows["3"]["inputs"]["mask"] = ["2", 1]
        assert comfy.run(windows)["status"]["status_str"] == "success"

    def test_a_black_mask_loads_no_model(self, comfy):
        """The published model would have to be downloaded first."""
        black = graph(model="inpaint_imagenet_s4", key="ResShiftInpaint", seed=400)
        black["3"]["inputs"]["mask"] = ["2", 1]
        (shown,) = comfy.images(comfy.run(black), "4")
        assert np.abs(shown.astype(int) - gradient(48, 64)).max() <= 1
        assert not list((comfy.base / "models" / "resshift").glob("resshift_*"))

    def test_interruption_in_the_middle_of_a_tile(self, comfy):
        comfy.put_image("large.png", gradient(256, 256))
        prompt = comfy.queue(graph("large.png", seed=1, steps=400))
        asked, ended = None, None
        for kind, data in comfy.events(prompt):
            if kind == "progress" and asked is None and 0 < data["value"] < data["max"]:
                comfy.post("/interrupt", {})
                asked = time.monotonic()
            if kind == "execution_interrupted":
                ended = time.monotonic()
        assert ended is not None and ended - asked < 5
        assert comfy.run(graph(seed=300))["status"]["status_str"] == "success"

    def test_prompts_that_alternate_give_what_each_gives_alone(self, comfy):
        """Queued all at once, two settings and two sizes of one model by turns, its cached pictures freed in between."""
        comfy.put_image("other.png", gradient(40, 72))
        first = [graph(seed=3000 + i, steps=2) if i % 2 else graph("other.png", seed=3000 + i) for i in range(6)]
        alone = [comfy.images(comfy.run(prompt), "4")[0] for prompt in first]
        for i in range(2):
            comfy.run(graph(seed=3100 + i))  # so that ComfyUI remembers none of them
        queued = [comfy.queue(prompt) for prompt in first[::-1]]
        for _ in comfy.events(queued[-1]):
            pass
        together = [comfy.images(comfy.get(f"/history/{prompt}")[prompt], "4")[0] for prompt in queued]
        assert all(np.array_equal(a, b) for a, b in zip(alone, together[::-1]))

    def test_twenty_prompts_leave_memory_where_it_was(self, comfy):
        for seed in range(5):
            comfy.run(graph(seed=1000 + seed))
        before = comfy.memory()
        for seed in range(20):
            comfy.run(graph(seed=2000 + seed))
        assert comfy.memory() - before < 48 * 2**20


class TestSavedWorkflows:
    """Workflows saved by earlier versions of the pack; files are added with each release and never changed."""

    @pytest.mark.parametrize("path", sorted((ROOT / "tests" / "workflows").glob("*.json")), ids=lambda path: path.stem)
    def test_still_run(self, comfy, path):
        entry = comfy.run(to_prompt(read(path), comfy.get("/object_info")))
        assert entry["status"]["status_str"] == "success"
