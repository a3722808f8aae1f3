"""A real WebUI (A1111, Forge), started on the CPU from the checkout in WEBUI_DIR with the Python in WEBUI_PYTHON.

With WEBUI_CHECKPOINT, a file that webui_checkpoint.py makes, its own pipelines for hires fix, img2img and SD upscale run too.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .webui_server import EXTENSION, ROOT, Refused, Server, decoded, encoded

pytestmark = pytest.mark.host
BUILTIN, REAL = "ResShift built-in 4x", "ResShift built-in real 4x"
WEIGHTS = ROOT / "resshift_core" / "weights" / "builtin.safetensors"
HEADER = struct.pack("<Q", 1 << 60)


class Evil:
    """Opens the door to whoever unpickles it."""

    def __reduce__(self):
        return os.system, ("touch opened",)


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    checkout = os.environ.get("WEBUI_DIR")
    if not checkout:
        pytest.skip("WEBUI_DIR names no checkout")
    base = tmp_path_factory.mktemp("webui")
    server = Server(Path(checkout), base)
    weights = WEIGHTS.read_bytes()
    if checkpoint := os.environ.get("WEBUI_CHECKPOINT"):
        (base / "models" / "Stable-diffusion").mkdir()
        os.symlink(Path(checkpoint).resolve(), base / "models" / "Stable-diffusion" / "random.safetensors")
    shutil.copy(WEIGHTS, server.models / "mine.safetensors")
    (server.models / "sub").mkdir()
    shutil.copy(WEIGHTS, server.models / "sub" / "größe 模型.safetensors")
    (server.models / "truncated.safetensors").write_bytes(weights[: len(weights) // 2])
    (server.models / "liar.safetensors").write_bytes(HEADER + weights[8:])
    (server.models / "page.pth").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (server.models / "evil.pth").write_bytes(pickle.dumps(Evil()))
    (server.models / "empty.ckpt").write_bytes(b"")
    with server:
        yield server


@pytest.fixture(autouse=True)
def as_installed(request):
    """Options as they are at first, whatever a test sets."""
    yield
    if "webui" in request.fixturenames:
        request.getfixturevalue("webui").options(steps=0, seed=0, compare=False)


def picture(size: tuple[int, int] = (65, 47), mode: str = "RGB") -> Image.Image:
    image = Image.open(ROOT / "docs" / "images" / "sample.png").convert("RGB").crop((0, 0, *size))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image.convert(mode)


class TestExtras:
    def test_is_listed_once_with_every_file(self, webui):
        names = ["ResShift mine 4x", "ResShift sub/größe 模型 4x", "ResShift truncated", "ResShift liar", "ResShift page"]
        assert sorted(webui.upscalers()) == sorted([BUILTIN, REAL, *names, "ResShift evil", "ResShift empty"])

    @pytest.mark.parametrize(
        "factor, size", [(4, (256, 184)), (1.5, (96, 64)), (8, (520, 376)), (1, (64, 40)), (3.3, (208, 152))]
    )
    def test_factors_in_one_pass(self, webui, factor, size):
        before = webui.passes()
        result, words = webui.extras(picture(), BUILTIN, factor)
        assert result.size == size and "ResShift seed: 0" in words and "ResShift steps: 4" in words
        assert webui.passes() - before == 1

    @pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 301)])
    def test_odd_sizes(self, webui, size):
        want = tuple(4 * side // 8 * 8 or 4 * side for side in size)
        assert webui.extras(picture(size), BUILTIN)[0].size == want

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
    def test_modes(self, webui, mode):
        result, _ = webui.extras(picture(mode=mode), BUILTIN)
        assert result.size == (256, 184) and result.mode == (
            "RGBA" if mode == "RGBA" else "RGB"
        )  # the host makes RGB of the others
        if mode == "RGBA":
            alpha = np.asarray(result.getchannel("A")).astype(float)
            want = np.asarray(Image.linear_gradient("L").resize((65, 47)).resize(result.size, Image.Resampling.BICUBIC))
            assert np.abs(alpha - want).max() <= 4

    @pytest.mark.parametrize("first", [True, False])
    def test_a_blend_where_the_hosts_arithmetic_is_a_rounding_error_short(self, webui, first):
        """400 * 2.3 is 919.99 to the host: 912 pixels."""
        listed = [item["name"] for item in webui.get("/sdapi/v1/upscalers")]
        if "Lanczos" not in listed:  # Forge Neo
            pytest.skip("this host lists no upscaler whose sizes are its own arithmetic")
        first, second = (BUILTIN, "Lanczos") if first else ("Lanczos", BUILTIN)
        result, words = webui.extras(picture((400, 24)), first, 2.3, upscaler_2=second, extras_upscaler_2_visibility=0.5)
        assert result.size == (912, 48) and "ResShift model: ResShift built-in 4x" in words
        assert webui.extras(picture((400, 24)), BUILTIN, 2.3)[0].size == (920, 48)

    def test_same_settings_same_bytes_and_changed_settings_a_new_picture(self, webui):
        first = webui.extras(picture(), BUILTIN)[0].tobytes()
        assert webui.extras(picture(), BUILTIN)[0].tobytes() == first
        webui.options(seed=5, steps=2)
        second, words = webui.extras(picture(), BUILTIN)
        assert second.tobytes() != first and "ResShift seed: 5" in words and "ResShift steps: 2" in words
        webui.options(seed=0, steps=0)
        assert webui.extras(picture(), BUILTIN)[0].tobytes() == first

    def test_progress_is_told_and_a_preview_shown(self, webui):
        webui.options(steps=40)
        seen = list(webui.while_running(lambda: webui.extras(picture((160, 120)), BUILTIN)))
        shares = [item["progress"] for item in seen if item["textinfo"]]
        assert len(set(shares)) > 3 and shares == sorted(shares) and max(shares) <= 1
        assert any("step" in (item["textinfo"] or "") for item in seen) and any(item["current_image"] for item in seen)
        assert any(item["eta_relative"] > 0 for item in seen)

    @pytest.mark.parametrize("button", ["interrupt", "skip"])
    def test_stopping_returns_soon_and_the_next_run_is_whole(self, webui, button):
        image, done = picture((160, 120)), {}
        webui.options(steps=400)

        def run():
            try:
                done["result"] = webui.extras(image, BUILTIN)
            except Refused as error:  # of a single skipped picture the API finds no result to send
                done["error"] = error
            done["at"] = time.monotonic()

        pressed = None
        for item in webui.while_running(run):
            if pressed is None and "step" in (item["textinfo"] or "") and item["progress"] > 0.01:
                pressed = time.monotonic()
                webui.post(f"/sdapi/v1/{button}")
        assert pressed is not None and done["at"] - pressed < 5
        webui.options(steps=4)
        whole, words = webui.extras(image, BUILTIN)
        assert "ResShift seed" in words
        if button == "interrupt":
            half, words = done["result"]
            assert "ResShift seed" not in words and half.tobytes() != whole.tobytes()
            assert np.array_equal(half, image.resize(half.size, Image.Resampling.LANCZOS))

    @pytest.mark.parametrize(
        "name, sentence",
        [
            ("truncated", "is damaged"),
            ("liar", "is damaged"),
            ("page", "is a web page"),
            ("evil", "evil.pth"),
            ("empty", "is empty"),
        ],
    )
    def test_bad_files_are_sentences_and_the_server_lives(self, webui, name, sentence):
        with pytest.raises(Refused, match=sentence) as refused:
            webui.extras(picture(), f"ResShift {name}")
        assert refused.value.status == 500
        assert not list(webui.base.rglob("opened")) and not (webui.checkout / "opened").exists()
        assert webui.extras(picture(), BUILTIN)[0].size == (256, 184)

    def test_a_vanished_file_is_a_sentence(self, webui):
        path = webui.models / "mine.safetensors"
        path.rename(webui.base / "away")
        try:
            with pytest.raises(Refused, match="There is no model file"):
                webui.extras(picture(), "ResShift mine 4x")
        finally:
            (webui.base / "away").rename(path)

    def test_a_wrong_option_is_a_sentence(self, webui):
        webui.options(steps=-3)
        with pytest.raises(Refused, match="steps is -3; it must be a whole number"):
            webui.extras(picture(), BUILTIN)
        listed = [item["name"] for item in webui.get("/sdapi/v1/upscalers")]
        sizes = {"Lanczos": (256, 184), "None": (65, 47)}  # Forge Neo lists no Lanczos
        other = next(name for name in sizes if name in listed)
        assert webui.extras(picture(), other)[0].size == sizes[other]

    def test_fp16_on_a_processor_runs_or_is_a_sentence(self, webui):
        """A1111's torch 2.1 does not compute it there."""
        webui.options(dtype="fp16")
        try:
            assert webui.extras(picture(), BUILTIN)[0].size == (256, 184)
        except Refused as error:
            assert error.status == 500 and "Choose auto, fp32 or bf16" in error.text
        finally:
            webui.options(dtype="auto")

    def test_memory_stays_where_it_was(self, webui):
        for seed in range(3):
            webui.options(seed=seed)
            webui.extras(picture((160, 120)), BUILTIN)
        before = webui.memory()
        for seed in range(3, 15):
            webui.options(seed=seed)
            webui.extras(picture((160, 120)), BUILTIN)
        assert webui.memory() - before < 32 * 2**20


class TestElsewhere:
    def test_hires_fix_and_img2img(self, webui):
        """Their images.resize_image, inside autocast; Extras' result is cut and resized in the same way."""
        body = {"image": encoded(picture((64, 48))), "upscaler": BUILTIN, "width": 128, "height": 96}
        before = webui.passes()
        result = decoded(webui.post("/probe/resize", body)["image"])
        assert webui.passes() - before == 1
        extras, _ = webui.extras(picture((64, 48)), BUILTIN, 2)
        assert result.size == (128, 96) and np.array_equal(result, extras)

    def test_a_list_made_anew_has_the_entries_once(self, webui):
        before = webui.upscalers()
        webui.post("/probe/list")
        assert sorted(webui.upscalers()) == sorted(before)

    def test_the_page_can_be_told_every_option(self, webui):
        assert len(webui.post("/probe/settings")) == 14

    def test_the_installer_changes_no_package(self, webui):
        def packages():
            return subprocess.run([webui.python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout

        before = packages()
        code = f"from modules import launch_utils; launch_utils.run_extension_installer({str(webui.base / 'extensions' / EXTENSION)!r})"
        for _ in range(2):
            done = subprocess.run([webui.python, "-c", code], cwd=webui.checkout, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert packages() == before


@pytest.mark.skipif(not os.environ.get("WEBUI_CHECKPOINT"), reason="WEBUI_CHECKPOINT names no checkpoint")
class TestPipelines:
    """Whole runs of the host."""

    COMMON = {"prompt": "x", "steps": 1, "cfg_scale": 1, "seed": 1, "denoising_strength": 0.5}

    def passes(self, webui, path: str, **body) -> tuple[Image.Image, int]:
        webui.post("/sdapi/v1/options", {"show_progress_type": "Approx cheap"})  # the others fetch weights of their own
        before = webui.passes()
        answer = webui.post(f"/sdapi/v1/{path}", {**self.COMMON, **body})
        self.text = json.loads(answer["info"])["infotexts"][0]
        return decoded(answer["images"][0]), webui.passes() - before

    def test_hires_fix(self, webui):
        more = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": BUILTIN, "hr_second_pass_steps": 1}
        result, passes = self.passes(webui, "txt2img", width=64, height=64, hr_additional_modules=["Use same choices"], **more)
        assert result.size == (128, 128) and passes == 1
        assert "ResShift seed: 0," in self.text and "ResShift steps: 4," in self.text
        self.passes(webui, "txt2img", width=64, height=64)
        assert "ResShift" not in self.text  # nothing was enlarged

    def test_a_seed_that_was_drawn_is_written(self, webui):
        more = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": BUILTIN, "hr_second_pass_steps": 1, "width": 64, "height": 64}
        more["hr_additional_modules"] = ["Use same choices"]
        webui.post("/sdapi/v1/options", {"resshift_seed": -1})
        try:
            drawn, _ = self.passes(webui, "txt2img", **more)
            seed = int(re.search(r"ResShift seed: (\d+)", self.text)[1])
            webui.post("/sdapi/v1/options", {"resshift_seed": seed})
            again, _ = self.passes(webui, "txt2img", **more)
        finally:
            webui.post("/sdapi/v1/options", {"resshift_seed": 0})
        assert np.array_equal(drawn, again)

    def test_img2img(self, webui):
        webui.post("/sdapi/v1/options", {"upscaler_for_img2img": BUILTIN})
        result, passes = self.passes(webui, "img2img", init_images=[encoded(picture())], width=128, height=64)
        assert result.size == (128, 64) and passes == 1 and "ResShift model: " in self.text

    def test_sd_upscale(self, webui):
        known = webui.get("/sdapi/v1/script-info")
        controls = next(item["args"] for item in known if item["name"] == "sd upscale" and item["is_img2img"])
        wanted = {"Tile overlap": 16, "Upscaler": BUILTIN, "Scale Factor": 2.0}  # their number and order differ between hosts
        script = {"script_name": "SD upscale", "script_args": [wanted.get(item["label"], item["value"]) for item in controls]}
        result, passes = self.passes(webui, "img2img", init_images=[encoded(picture())], width=128, height=128, **script)
        assert result.size == (128, 88) and passes == 1


class TestApi:
    def test_the_hosts_password_guards_it(self, webui):
        for path, body in (("/resshift/v1/models", None), ("/resshift/v1/upscale", {"image": ""})):
            with pytest.raises(Refused) as refused:
                webui.ask(path, body, user="tester:wrong")
            assert refused.value.status == 401

    def test_models_and_settings(self, webui):
        assert webui.get("/resshift/v1/models")[:2] == [
            {"name": BUILTIN, "source": "builtin", "scale": 4},
            {"name": REAL, "source": "builtin-real", "scale": 4},
        ]
        webui.options(steps=3)
        assert webui.get("/resshift/v1/settings")["steps"] == 3
        webui.options(steps=2**70)  # with which the host could neither show its pages nor start again
        assert webui.get("/resshift/v1/settings")["steps"] == 3
        webui.options(seed="7")
        webui.options(seed=[1])
        assert webui.get("/resshift/v1/settings")["seed"] == 7
        assert json.loads((webui.base / "config.json").read_text("utf-8"))["resshift_seed"] == 7  # not "7"

    def test_upscale_with_every_parameter(self, webui):
        body = {
            "image": encoded(picture(mode="RGBA")), "model": "mine.safetensors", "scale": 2.5, "steps": 3, "kappa": 0.06, "p": 0.5,
            "sampler": "deterministic", "seed": 9, "tile": 64, "overlap": 8, "tile_batch": 2, "color_fix": "wavelet", "compare": True,
        }  # fmt: skip
        answer = webui.post("/resshift/v1/upscale", body)
        result = decoded(answer["image"])
        assert result.size == (162, 118) and result.mode == "RGBA" and answer["info"]["ResShift seed"] == 9
        assert "ResShift sampler: deterministic" in result.text["postprocessing"] and decoded(answer["sheet"]).mode == "RGB"

    def test_it_can_be_interrupted(self, webui):
        done = {}

        def run():
            try:
                webui.post("/resshift/v1/upscale", {"image": encoded(picture((160, 120))), "steps": 400})
            except Refused as error:
                done["status"] = error.status

        pressed = False
        for item in webui.while_running(run):
            if not pressed and "step" in (item["textinfo"] or ""):
                pressed = True
                webui.post("/sdapi/v1/interrupt")
        assert done == {"status": 409}

    def test_wrong_requests_are_sentences(self, webui):
        with pytest.raises(Refused, match="There is no ResShift model") as refused:
            webui.post("/resshift/v1/upscale", {"image": encoded(picture()), "model": "none"})
        assert refused.value.status == 422


class TestReload:
    """Last: without a UI, the scripts of img2img are not set up again by this."""

    def test_reload_twice_leaves_one_entry(self, webui):
        before = webui.upscalers()
        for _ in range(2):
            webui.post("/probe/reload")
        assert webui.upscalers() == before
        assert webui.extras(picture(), BUILTIN)[0].size == (256, 184)
