"""The WebUI extension without WebUI: against resshift_core itself, with the host's modules faked."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import resshift_core as rs
from resshift_core.errors import VariantOpen
from resshift_core.registry import REGISTRY

from . import standin
from .linked_folder import link_folder
from .webui_fakes import INPUT_IDS, ROOT, Component, Postprocessed, UpscaleScript, WebUI, installed

BUILTIN, REAL = "ResShift built-in 4x", "ResShift built-in real 4x"


@pytest.fixture
def host(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    with installed(WebUI(tmp_path), monkeypatch) as webui:
        webui.load()
        yield webui


@pytest.fixture
def counted(monkeypatch):
    """The number of runs of the chain so far, one-element list."""
    from resshift_core import tile_runs

    runs, real = [0], tile_runs.sample

    def sample(*args, **kwargs):
        runs[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(tile_runs, "sample", sample)
    return runs


def part(name: str):
    return sys.modules[f"resshift_webui.{name}"]


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 12), seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(levels, "RGBA") if mode in ("RGBA", "LA") else Image.fromarray(levels[..., :3])
    return image.convert(mode)


def save(host, model: rs.ResShiftModel, name: str) -> Path:
    path = host.base / "models" / "ResShift" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rs.save_model(model, path)
    return path


def entry_names(host) -> list[str]:
    return [item.name for item in host.shared.sd_upscalers]


def of_library(image: Image.Image, size: tuple[int, int], model=None, **settings) -> Image.Image:
    """What the library gives for an RGB picture, at exactly `size`."""
    from resshift_core.image_io import to_image
    from resshift_core.resize import resize

    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    out = rs.upscale(model or rs.load_model("builtin", device="cpu"), tensor, **settings)
    return to_image(resize(out, (size[1], size[0]))[0], "RGB")


class TestScript:
    def test_registers_one_postprocessing_script_and_not_its_base(self, host):
        assert [script.name for script in host.scripts] == ["Upscale", "ResShift"]

    def test_reload_leaves_one_entry_and_one_set_of_callbacks(self, host):
        once = entry_names(host), {word: len(calls) for word, calls in host.callbacks.items()}
        host.call("script_unloaded")
        host.load()
        host.load()
        assert (entry_names(host), {word: len(calls) for word, calls in host.callbacks.items()}) == once

    def test_unloaded_it_leaves_the_hosts_own_script_as_it_was(self, host, monkeypatch):
        script = type("Watched", (UpscaleScript,), {})
        data, before = [SimpleNamespace(script_class=script)], script.process
        monkeypatch.setattr(host.modules["modules.scripts"], "postprocessing_scripts_data", data, raising=False)
        host.call("app_started", None, SimpleNamespace(routes=[]))
        assert script.process is not before
        host.call("script_unloaded")
        assert script.process is before

    def test_loads_with_the_root_on_the_path_only_meanwhile(self, tmp_path):
        """As A1111 does it; afterwards the folder is gone from sys.path, and a run must still work."""
        code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests import webui_fakes as fakes
from PIL import Image, ImageCms
sys.path.remove({str(ROOT)!r})
host = fakes.WebUI(Path({str(tmp_path)!r}))
sys.modules.update(host.modules)
sys.path.insert(0, {str(ROOT)!r})
host.load()
sys.path.remove({str(ROOT)!r})
assert host.extras(Image.new("RGB", (9, 7)), {BUILTIN!r}).image.size == (32, 24)
assert "nodes" not in sys.modules and "training" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)

    def test_preload_adds_the_path(self):
        spec = importlib.util.spec_from_file_location("preload", ROOT / "preload.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        parser = argparse.ArgumentParser()
        module.preload(parser)
        assert parser.parse_args(["--resshift-models-path", "x"]).resshift_models_path == "x"
        assert parser.parse_args([]).resshift_models_path is None

    def test_a_broken_models_folder_does_not_stop_the_host(self, tmp_path, monkeypatch):
        (tmp_path / "models").write_bytes(b"")  # a file where a folder should be
        with installed(WebUI(tmp_path), monkeypatch) as webui:
            webui.load()
            assert entry_names(webui) == [BUILTIN, REAL]

    def test_a_fixed_list_of_upscalers_gets_the_entries_once(self, tmp_path, monkeypatch):
        with installed(WebUI(tmp_path, fixed_upscalers=True), monkeypatch) as webui:
            webui.load()
            webui.call("before_ui")
            assert entry_names(webui) == [BUILTIN, REAL]
            assert webui.extras(picture(), BUILTIN).image.size == (80, 48)

    def test_a_fixed_list_that_is_made_anew_has_them_too(self, tmp_path, monkeypatch):
        with installed(WebUI(tmp_path, fixed_upscalers=True), monkeypatch) as webui:
            for _ in range(2):
                webui.load()
                save(webui, standin.small_model(), "mine.safetensors")
                webui.list_upscalers()
                assert entry_names(webui) == [BUILTIN, REAL, "ResShift mine 4x"]
            webui.call("script_unloaded")
            webui.list_upscalers()
            assert entry_names(webui) == []


class TestEntries:
    def test_files_are_named_after_their_stem_and_scale(self, host):
        save(host, standin.small_model(), "mine.safetensors")
        save(host, standin.small_model(), "sub/größe 模型.safetensors")
        host.load()
        assert entry_names(host) == [BUILTIN, REAL, "ResShift mine 4x", "ResShift sub/größe 模型 4x"]

    def test_equal_stems_are_told_apart(self, host):
        path = save(host, standin.small_model(), "mine.safetensors")
        path.with_suffix(".pth").write_bytes(b"")
        host.load()
        assert set(entry_names(host)) == {BUILTIN, REAL, "ResShift mine.safetensors 4x", "ResShift mine.pth"}

    def test_autoencoders_and_inpainting_models_are_no_upscalers(self, host):
        folder = host.base / "models" / "ResShift"
        folder.mkdir(parents=True, exist_ok=True)
        from safetensors.torch import save_file

        keys = ("encoder.conv_in.weight", "quantize.embedding.weight")
        save_file({key: torch.zeros(1) for key in keys}, folder / "some_vq.safetensors")
        (folder / "autoencoder_of_mine.pth").write_bytes(b"")
        (folder / REGISTRY["vq_f4"].file).write_bytes(b"")
        (folder / "resshift_inpainting_imagenet_s4.pth").write_bytes(b"")
        host.load()
        assert entry_names(host) == [BUILTIN, REAL]

    def test_linked_folders_are_searched_and_hidden_files_are_not(self, host, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        rs.save_model(standin.small_model(), tmp_path / "elsewhere" / "linked.safetensors")
        folder = host.base / "models" / "ResShift"
        (folder / ".cache").mkdir(parents=True)
        link_folder(folder / "disk", tmp_path / "elsewhere")
        link_folder(folder / "disk" / "back", folder)
        for name in (".cache/part", "._mine"):
            save(host, standin.small_model(), f"{name}.safetensors")
        host.load()
        assert entry_names(host) == [BUILTIN, REAL, "ResShift disk/linked 4x"]

    def test_no_size_in_a_name_is_taken_for_the_factor(self, host):
        """The host sets its slider to the first factor in a name, where the user wants that."""
        for name in ("set 256x256", "fine x4"):
            save(host, standin.small_model(), f"{name}.safetensors")
        host.load()
        assert entry_names(host)[2:] == ["ResShift fine x4 4x", "ResShift 4x set 256x256"]

    @pytest.mark.parametrize("visible", [5, "realsr_x4_s4", None])
    def test_options_that_are_no_list(self, host, visible):
        host.set(visible=visible)
        host.load()
        assert entry_names(host) == [BUILTIN, REAL] and host.script.ui()

    def test_damaged_files_are_listed_and_say_what_is_wrong(self, host):
        path = save(host, standin.small_model(), "half.safetensors")
        path.write_bytes(path.read_bytes()[:100])
        host.load()
        assert entry_names(host) == [BUILTIN, REAL, "ResShift half"]
        with pytest.raises(rs.CheckpointError, match="half.safetensors is damaged"):
            host.extras(picture(), "ResShift half")
        assert host.extras(picture(), BUILTIN).image.size == (80, 48)

    def test_a_vanished_file_is_a_sentence(self, host):
        path = save(host, standin.small_model(), "mine.safetensors")
        host.load()
        path.unlink()
        with pytest.raises(rs.CheckpointError, match="There is no model file"):
            host.extras(picture(), "ResShift mine 4x")

    def test_published_models_appear_when_present_or_wanted(self, host):
        (host.base / "models" / "ResShift").mkdir(parents=True, exist_ok=True)
        (host.base / "models" / "ResShift" / REGISTRY["realsr_x4_s4"].file).write_bytes(b"")
        host.set(visible=["sinsr_x4_s1"])
        host.load()
        assert entry_names(host) == [BUILTIN, REAL, "ResShift realsr_x4_s4 4x", "ResShift sinsr_x4_s1 4x"]

    @pytest.mark.parametrize("theirs, listed", [
        ("theirs.safetensors", ["ResShift theirs 4x", "ResShift mine 4x"]),
        ("mine.safetensors", ["ResShift mine.safetensors 4x"]),  # the host takes the first of a name: no other could be chosen
    ])  # fmt: skip
    def test_the_flag_names_a_folder_that_is_searched_too(self, host, tmp_path, theirs, listed):
        host.shared.cmd_opts.resshift_models_path = str(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        rs.save_model(standin.small_model(), tmp_path / "elsewhere" / theirs)
        save(host, standin.small_model(), "mine.safetensors")
        host.load()
        assert entry_names(host) == [BUILTIN, REAL, *listed]
        assert part("host").model_folders()[0] == tmp_path / "elsewhere"
        assert Path(part("entries").find_entry(listed[0]).source).parent == tmp_path / "elsewhere"

    def test_a_home_in_the_flag(self, host, tmp_path, monkeypatch):
        """`--resshift-models-path=~/models`: no shell expands that."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        host.shared.cmd_opts.resshift_models_path = "~/models"
        assert part("host").model_folders()[0] == tmp_path / "models"

    def test_downloads_only_where_allowed(self, host, file_server, monkeypatch):
        host.set(visible=["realsr_x4_s4"], download=False)
        host.load()
        with pytest.raises(rs.InputError, match="does not allow downloads.*resshift_realsrx4_s4_v3.pth.*S-Lab"):
            host.extras(picture(), "ResShift realsr_x4_s4 4x")

    @pytest.mark.parametrize("allowed", [True, False])
    def test_what_this_torch_cannot_check_is_not_advised(self, host, monkeypatch, allowed):
        """A1111's own is 2.1.2: neither a download nor a file in its place would help."""
        host.set(visible=["realsr_x4_s15_v1"], download=allowed)
        host.load()
        monkeypatch.setattr("resshift_core.downloads.pickles_are_safe", lambda: False)
        with pytest.raises(rs.DownloadError, match="Update torch to 2.6 or later, or convert"):
            host.extras(picture(), "ResShift realsr_x4_s15_v1 4x")

    def test_the_autoencoder_of_a_renamed_network_is_fetched(self, host, monkeypatch):
        loaded, fetched = part("loaded"), []

        def load_model(*_, **__):
            if not fetched:
                raise loaded.NotHere("vq_f4_face is not on this machine.", "vq_f4_face")
            return standin.small_model()

        monkeypatch.setattr(rs, "load_model", load_model)
        monkeypatch.setattr(loaded, "download_missing", lambda name, **_: fetched.append(name))
        monkeypatch.setattr("resshift_core.downloads.pickles_are_safe", lambda: True)
        host.set(download=False)
        with pytest.raises(rs.InputError, match="does not allow downloads"), loaded.on_device("mine.safetensors"):
            pass
        host.set(download=True)
        with loaded.on_device("mine.safetensors") as model:
            assert model.scale == 4 and fetched == ["vq_f4_face"]

    @pytest.mark.parametrize(
        "error", [rs.OutOfMemory("Not even a tile of 64 fits."), torch.cuda.OutOfMemoryError("CUDA out of memory")]
    )
    def test_what_the_device_cannot_hold_is_computed_on_the_processor(self, host, monkeypatch, caplog, error):
        loaded, run = part("loaded"), rs.upscale
        entry, settings = part("entries").find_entry(BUILTIN), part("settings").Settings(seed=3)
        expected = part("upscaling").upscale_image(picture(), entry, settings).image

        def upscale(model, *args, **words):
            if not asked:
                asked.append(model.dtype)
                raise error
            asked.append(model.dtype)
            return run(model, *args, **words)

        asked = []
        monkeypatch.setattr(rs, "upscale", upscale)
        monkeypatch.setattr(part("host"), "device", lambda: torch.device("meta"))
        monkeypatch.setattr(loaded._keeper, "get", lambda source, *_: rs.load_model(source, device="cpu", dtype="bf16"))
        result = part("upscaling").upscale_image(picture(), entry, settings).image
        assert asked == [torch.bfloat16, torch.float32] and "Trying the processor" in caplog.text
        apart = np.abs(np.asarray(result, int) - np.asarray(expected, int))
        assert apart.max() <= 6 and apart.mean() < 1  # of two number formats, in a picture that is noise

    def test_a_processor_without_room_is_a_sentence(self, host, monkeypatch):
        def upscale(*_, **__):
            raise rs.OutOfMemory("Not even a tile of 64 fits.")

        monkeypatch.setattr(rs, "upscale", upscale)
        with pytest.raises(rs.OutOfMemory, match="Not even a tile"):
            part("upscaling").upscale_image(picture(), part("entries").find_entry(BUILTIN), part("settings").Settings())

    def test_a_network_whose_kind_is_open_says_what_to_do_here(self, host, monkeypatch):
        def load_model(*_, **__):
            raise VariantOpen("x.pth: Say which one it is with variant=: a, b.")

        monkeypatch.setattr(rs, "load_model", load_model)
        with pytest.raises(rs.CheckpointError, match="In WebUI: put that word"), part("loaded").on_device("x.pth"):
            pass

    def test_a_download_shows_its_progress_and_can_be_stopped(self, host, file_server, monkeypatch, caplog):
        server = file_server(b"x" * 3_000_000)
        monkeypatch.setenv("RESSHIFT_MIRROR", server.url)
        host.set(visible=["sinsr_x4_s1"])
        host.load()
        fetching, calls = part("progress").Progress.fetching, []

        def press(self, done, total):
            calls.append(done)
            host.shared.state.interrupted = len(calls) == 2
            fetching(self, done, total)

        monkeypatch.setattr(part("progress").Progress, "fetching", press)
        pp = host.extras(picture(), "ResShift sinsr_x4_s1 4x")
        assert len(calls) == 2 and pp.image.size == (80, 48) and "CC BY-NC-SA" in caplog.text
        assert any("downloading" in text and "MB" in text for text in host.shared.state.texts)

    def test_a_list_of_weights_without_end_is_not_read_for_the_list(self, host, monkeypatch):
        """One file of 96 MB took 3 GB and 7 s whenever upscalers were listed."""
        length = 9 << 20
        (host.base / "models" / "ResShift" / "huge.safetensors").write_bytes(
            length.to_bytes(8, "little") + b"{" + b" " * length
        )
        opened, checkpoint_file = [], sys.modules["resshift_core.checkpoint_file"]
        monkeypatch.setattr(checkpoint_file, "safe_open", lambda path, framework: opened.append(path))
        assert any("huge" in entry.name for entry in part("entries").list_entries()) and not opened


class TestUpscaler:
    @pytest.mark.parametrize(
        "factor, size", [(4, (256, 184)), (1.5, (96, 64)), (8, (520, 376)), (1, (64, 40)), (3.3, (208, 152))]
    )
    def test_size_is_the_hosts_in_one_pass(self, host, counted, factor, size):
        image = picture(size=(65, 47))
        result = host.extras(image, BUILTIN, factor)
        assert result.image.size == size and counted == [1]
        assert np.array_equal(result.image, of_library(image, size))

    def test_the_hosts_own_arithmetic_gives_that_size(self, host):
        data = host.shared.sd_upscalers[0]
        plain = host.upscaler.Upscaler()
        plain.do_upscale = lambda img, model: img.resize((img.width * 4, img.height * 4))
        for size in ((65, 47), (8, 9), (33, 100)):
            image = picture(size=size)
            assert data.scaler.upscale(image, 4, data.data_path).size == plain.upscale(image, 4).size

    def test_shrinking_runs_no_chain(self, host, counted):
        assert host.extras(picture(size=(64, 64)), BUILTIN, 0.5).image.size == (32, 32) and counted == [0]

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
    def test_tiny_pictures_give_something(self, host, size):
        result = host.extras(picture(size=size), BUILTIN).image
        assert min(result.size) >= 4

    @pytest.mark.parametrize(
        "mode, back", [("RGBA", "RGBA"), ("LA", "LA"), ("L", "L"), ("P", "RGB"), ("1", "L"), ("RGB", "RGB")]
    )
    def test_modes(self, host, mode, back):
        assert host.extras(picture(mode), BUILTIN).image.mode == back

    def test_alpha_is_kept(self, host):
        image = picture()
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        alpha = np.asarray(host.extras(image, BUILTIN).image.getchannel("A")).astype(float)
        want = np.asarray(image.getchannel("A").resize((80, 48), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(alpha - want).max() <= 8  # 22 levels a pixel, upscaled by the model

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_a_cut_out_has_no_rim_at_any_size(self, host, scale):
        y, x = np.mgrid[:47, :65]
        alpha = (20 - np.hypot(y - 23, x - 32)).clip(0, 1)
        levels = np.dstack([*[255 * (alpha > 0)] * 3, 255 * alpha]).astype(np.uint8)  # white, and black under alpha 0
        data = host.shared.sd_upscalers[0]
        result = data.scaler.upscale(Image.fromarray(levels), scale, data.data_path)
        on_white = Image.alpha_composite(Image.new("RGBA", result.size, "white"), result)
        assert np.asarray(on_white.convert("L")).min() >= 253

    def test_do_upscale_gives_the_models_own_scale(self, host):
        data = host.shared.sd_upscalers[0]
        assert data.scaler.do_upscale(picture(size=(65, 47)), data.data_path).size == (260, 188)

    def test_options_steer_it(self, host):
        host.set(steps=2, seed=7, kappa=0.06, sampler="deterministic", color_fix="wavelet", tile=64)
        image = picture(size=(70, 66))
        want = of_library(image, (280, 264), steps=2, seed=7, kappa=0.06, sampler="deterministic", color_fix="wavelet", tile=64)
        assert np.array_equal(host.extras(image, BUILTIN).image, want)

    @pytest.mark.parametrize(
        "word, value", [("steps", -1), ("steps", 1.5), ("steps", "x"), ("steps", 10**400), ("kappa", float("nan")), ("sampler", "ddim"), ("seed", -2),
                        ("p", True), ("compare", "yes"), ("dtype", "int8")],
    )  # fmt: skip
    def test_wrong_options_are_sentences(self, host, word, value):
        host.set(**{word: value})
        place = "" if word == "dtype" else "^Settings > ResShift: "
        with pytest.raises(rs.InputError, match=place + word):
            host.extras(picture(), BUILTIN)

    def test_works_before_the_options_exist(self, host):
        host.shared.opts.data.clear()
        data = host.shared.sd_upscalers[0]
        assert data.scaler.upscale(picture(), 4, data.data_path).size == (80, 48)

    def test_no_half_means_float32(self, host, monkeypatch):
        seen = []
        real = rs.load_model
        monkeypatch.setattr(rs, "load_model", lambda *args, **kw: seen.append(kw["dtype"]) or real(*args, **kw))
        host.shared.cmd_opts.no_half = True
        host.extras(picture(), BUILTIN)
        host.set(dtype="bf16")
        host.extras(picture(), BUILTIN)
        assert seen == ["fp32", "bf16"]

    def test_the_model_is_loaded_once_and_kept_off_the_device(self, host, monkeypatch):
        loads, real = [], rs.load_model
        monkeypatch.setattr(rs, "load_model", lambda *args, **kw: loads.append(args) or real(*args, **kw))
        moves, move = [], rs.ResShiftModel.to
        monkeypatch.setattr(
            rs.ResShiftModel, "to", lambda self, *args, **kw: moves.append((args, kw)) or move(self, *args, **kw)
        )
        host.extras(picture(), BUILTIN)
        host.extras(picture(seed=1), BUILTIN)
        assert len(loads) == 1 and host.made_room == 2 and host.collected >= 2
        assert moves[-1] == ((), {"device": "cpu"})
        host.set(keep_loaded=False)
        host.extras(picture(seed=2), BUILTIN)
        assert part("loaded")._keeper.model is None
        host.set(keep_loaded=True)
        host.extras(picture(seed=3), BUILTIN)
        assert len(loads) == 2
        host.call("script_unloaded")
        assert part("loaded")._keeper.model is None

    def test_a_run_that_fails_leaves_the_device_too(self, host, monkeypatch):
        def upscale(model, *_, **__):
            before.append(host.collected)
            raise rs.OutOfMemory("Not even a tile of 64 fits.")

        before, moves, move = [], [], rs.ResShiftModel.to
        monkeypatch.setattr(rs.ResShiftModel, "to", lambda self, *a, **words: moves.append(words) or move(self, *a, **words))
        monkeypatch.setattr(rs, "upscale", upscale)
        with pytest.raises(rs.OutOfMemory):
            part("upscaling").upscale_image(picture(), part("entries").find_entry(BUILTIN), part("settings").Settings())
        assert moves[-1] == {"device": "cpu"} and host.collected > before[0]

    def test_two_requests_take_turns_with_the_model(self, host):
        inside, most = [], []

        def run():
            with part("loaded").on_device("builtin"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.3)
                inside.pop()

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert most == [1, 1]

    def test_a_changed_file_is_loaded_again(self, host):
        path = save(host, standin.small_model(), "mine.safetensors")
        host.load()
        before = host.extras(picture(), "ResShift mine 4x").image
        rs.save_model(standin.small_model(model_channels=24), path)
        after = host.extras(picture(), "ResShift mine 4x").image
        assert not np.array_equal(before, after)

    def test_outside_extras_the_bar_is_left_alone(self, host):
        """As in hires fix: the sampling around us owns job and steps."""
        state = host.shared.state
        state.begin("txt2img")
        state.job_no, state.sampling_steps, state.sampling_step = 3, 20, 11
        data = host.shared.sd_upscalers[0]
        data.scaler.upscale(picture(), 4, data.data_path)
        assert set(state.bars) == {(3, 11, 20)} and (state.job_no, state.sampling_steps, state.textinfo) == (3, 20, None)
        assert any("left" in text for text in state.texts)

    def test_a1111s_manual_cast_is_left(self, host, monkeypatch):
        """Within hires fix, on cards without an autocast that A1111 trusts: torch's layers compute in another number format."""
        image, data = picture(size=(33, 24)), host.shared.sd_upscalers[0]
        want = data.scaler.upscale(image, 4, data.data_path)
        kinds, cast = [torch.nn.Conv2d, torch.nn.Linear, torch.nn.GroupNorm], []

        def casting(self, *values):
            cast.append(type(self))
            return self.org_forward(*values).to(torch.float16)

        host.devices.patch_module_list = kinds
        for kind in kinds:
            monkeypatch.setattr(kind, "org_forward", kind.forward, raising=False)
            monkeypatch.setattr(kind, "forward", casting)
        got = data.scaler.upscale(image, 4, data.data_path)
        assert np.array_equal(got, want) and not cast
        assert torch.nn.Conv2d.forward is casting  # the host's own models go on as they were


class TestProgress:
    def test_bar_text_and_preview_then_all_as_before(self, host):
        state = host.shared.state
        host.extras(picture(size=(70, 66)), BUILTIN, enable=True, tile=64)
        numbers, steps, totals = zip(*state.bars)
        assert set(numbers) == {0} and set(totals) == {1000} and list(steps) == sorted(steps) and steps[-1] == 1000
        assert state.id_live_preview > 0 and state.current_image.size == (70, 66)
        assert any(text.startswith("ResShift: tile 2 of 4, step") for text in state.texts)
        assert state.textinfo is None and state.job_no == 1

    def test_no_preview_where_the_user_wants_none(self, host):
        host.shared.opts.data["live_previews_enable"] = False
        host.extras(picture(), BUILTIN)
        assert host.shared.state.id_live_preview == 0

    @pytest.mark.parametrize("button", ["interrupted", "skipped"])
    def test_stopping_returns_the_resized_input_and_is_not_cached(self, host, monkeypatch, button):
        whole = host.extras(picture(seed=9), BUILTIN)  # of that size, too: its words are not those of the next
        assert "ResShift seed" in whole.info
        image = picture()
        progress = part("progress").Progress
        real, calls = progress.__call__, []

        def press(self, event):
            calls.append(event)
            if len(calls) == 2:
                setattr(host.shared.state, button, True)
            return real(self, event)

        monkeypatch.setattr(progress, "__call__", press)
        stopped = host.extras(image, BUILTIN)
        assert len(calls) == 2 and "ResShift seed" not in stopped.info
        assert np.array_equal(stopped.image, image.resize((80, 48), Image.Resampling.LANCZOS))
        whole = host.extras(image, BUILTIN)
        assert np.array_equal(whole.image, of_library(image, (80, 48)))

    def test_a_stop_before_the_run_is_not_cached_either(self, host, monkeypatch):
        image = picture()
        with monkeypatch.context() as patch:
            patch.setattr(host.shared.state, "nextjob", lambda: setattr(host.shared.state, "interrupted", True))
            host.extras(image, BUILTIN)
        assert np.array_equal(host.extras(image, BUILTIN).image, of_library(image, (80, 48)))


class TestExtras:
    def test_cached_where_nothing_changed(self, host, counted):
        for _ in range(3):
            pp = host.extras(picture(), BUILTIN)
        assert counted == [1] and pp.info["ResShift seed"] == 0  # the words come with a cached picture too

    def test_a_changed_option_gives_a_new_picture_and_the_old_one_returns_as_it_was(self, host):
        first = host.extras(picture(), BUILTIN).image
        host.set(seed=1)
        second = host.extras(picture(), BUILTIN).image
        host.set(seed=0)
        third = host.extras(picture(), BUILTIN).image
        assert not np.array_equal(first, second) and np.array_equal(first, third)

    def test_another_number_format_gives_a_new_picture(self, host, counted):
        for runs, dtype in ((1, "fp32"), (2, "bf16"), (2, "bf16")):
            host.set(dtype=dtype)
            host.extras(picture(), BUILTIN)
            assert counted == [runs]

    @pytest.mark.parametrize("before", [False, True])
    def test_where_the_accordion_is_switched_off(self, host, monkeypatch, before):
        """In the host's settings, from the beginning or later: our script is not asked then, and the cache is ours to look at."""
        image, ours, script = picture(), host.script, type("Watched", (UpscaleScript,), {})
        data = [SimpleNamespace(script_class=script)]
        monkeypatch.setattr(host.modules["modules.scripts"], "postprocessing_scripts_data", data, raising=False)
        host.call("before_ui")
        host.scripts[:] = [script(host) if other.name == "Upscale" else other for other in host.scripts]
        if before:
            host.extras(image, BUILTIN)
        host.scripts.remove(ours)
        first = host.extras(image, BUILTIN).image
        host.set(seed=1)
        assert not np.array_equal(host.extras(image, BUILTIN).image, first)
        host.set(seed=2)
        plain = image.resize((80, 48), Image.Resampling.LANCZOS)
        with monkeypatch.context() as patch:
            patch.setattr(host.shared.state, "nextjob", lambda: setattr(host.shared.state, "interrupted", True))
            assert np.array_equal(host.extras(image, BUILTIN).image, plain)
        assert not np.array_equal(host.extras(image, BUILTIN).image, plain)
        host.set(seed=0)
        assert np.array_equal(host.extras(image, BUILTIN).image, first)
        host.scripts.append(ours)
        assert host.extras(image, BUILTIN).info["ResShift seed"] == 0  # of a picture that it saw being made

    def test_each_sheet_is_shown_once(self, host):
        """A script before Upscale may make several pictures of one; all are one job."""
        pp = host.extras(picture(), BUILTIN, enable=True, compare=True)
        assert len(pp.extra_images) == 1
        host.script.process(pp, enable=True, compare=True)
        assert len(pp.extra_images) == 1

    def test_words_say_what_was_used(self, host):
        words = host.extras(picture(), BUILTIN).info
        assert words["ResShift model"] == BUILTIN and words["ResShift steps"] == 4
        assert (words["ResShift kappa"], words["ResShift p"], words["ResShift seed"]) == (0.05, 0.3, 0)

    def test_a_cached_picture_keeps_its_words(self, host, counted):
        """Whatever ran meanwhile elsewhere: the API of our own, hires fix, the accordion by itself."""
        host.set(seed=11, steps=3)
        words = host.extras(picture(), BUILTIN).info
        entry = part("entries").BUILTINS[0]
        part("api")._as_a_job(picture(), entry, part("settings").Settings(steps=2, seed=99), 0.0)
        host.set(seed=5)
        host.shared.state.begin("txt2img")
        host.shared.sd_upscalers[0].scaler.upscale(picture(), 4, "builtin")
        host.shared.state.end()
        host.set(seed=11)
        assert counted == [3]
        again = host.extras(picture(), BUILTIN).info
        assert counted == [3] and again == words and words["ResShift seed"] == 11
        assert part("session").SESSION.last.settings.seed == 11  # what "reuse" takes

    def test_a_picture_that_was_merely_shrunk_has_no_words(self, host, counted):
        image = picture()
        assert "ResShift seed" in host.extras(image, BUILTIN).info
        for _ in range(2):  # from the cache, too
            assert "ResShift seed" not in host.extras(image, BUILTIN, factor=0.5).info
        assert "ResShift seed" in host.extras(image, BUILTIN).info and counted == [1]

    def test_words_come_with_a_cropped_picture(self, host):
        for _ in range(2):
            pp = host.extras(picture(), BUILTIN, crop=(64, 16))
            assert pp.image.size == (64, 16) and pp.info["ResShift seed"] == 0

    def test_two_upscalers_are_both_described(self, host, counted):
        controls = {"enable": True, "seed": -1, "compare": True}
        pp = host.extras(picture(), BUILTIN, second="ResShift built-in real 4x", **controls)
        assert counted == [2] and len(pp.extra_images) == 2
        assert (pp.info["ResShift model"], pp.info["ResShift model 2"]) == (BUILTIN, "ResShift built-in real 4x")
        assert pp.info["ResShift seed"] == pp.info["ResShift seed 2"] >= 0
        another = host.extras(picture(), BUILTIN, **controls)
        assert another.info["ResShift seed"] != pp.info["ResShift seed"] and len(another.extra_images) == 1

    def test_hosts_that_do_not_announce_their_jobs_get_words_too(self, host):
        host.knows_firstpass = False
        for _ in range(2):
            assert host.extras(picture(), BUILTIN).info["ResShift seed"] == 0

    def test_such_hosts_get_words_after_a_stopped_run(self, host):
        host.knows_firstpass = False
        part("session").SESSION.stopped = True
        assert host.extras(picture(), BUILTIN).info["ResShift seed"] == 0

    def test_words_make_the_same_settings_again(self, host):
        module = part("settings")
        settings = module.Settings(3, 0.05, 0.5, "deterministic", 12, 64, 16, 0, "adain")
        as_read = {word: str(value) for word, value in settings.as_text().items()}
        assert set(as_read) == {module.PREFIX + item.name for item in module.CHAIN}
        assert module.Settings.of({item.id: as_read[module.PREFIX + item.name] for item in module.CHAIN}) == settings

    def test_the_accordion_steers_the_entry_in_upscale(self, host, counted):
        image = picture()
        pp = host.extras(image, BUILTIN, enable=True, steps=1, seed=5)
        assert counted == [1] and pp.info["ResShift steps"] == 1
        assert np.array_equal(pp.image, of_library(image, (80, 48), steps=1, seed=5))

    def test_a_cached_picture_is_not_upscaled_again_by_the_accordion(self, host, counted):
        for _ in range(2):
            pp = host.extras(picture(), BUILTIN, enable=True)
        assert counted == [1] and pp.image.size == (80, 48)

    def test_in_txt2img_what_upscale_made_is_not_upscaled_again(self, host, counted, monkeypatch):
        """The host gives every script a picture without words there, and announces no job."""
        host.shared.state.begin("txt2img")
        forgotten = []
        monkeypatch.setattr(part("host"), "forget_cached_pictures", lambda: forgotten.append(True))
        data, accordion = host.shared.sd_upscalers[0], part("accordion").ScriptPostprocessingResShift()
        pp = SimpleNamespace(image=data.scaler.upscale(picture(), 4, data.data_path), info={})
        large = pp.image
        accordion.process(pp, enable=True, model=BUILTIN, scale=0)
        assert pp.image is large and counted == [1] and pp.info["ResShift model"] == data.name and forgotten
        pp = SimpleNamespace(image=picture(), info={})
        accordion.process(pp, enable=True, model=BUILTIN, scale=2)
        assert pp.image.size == (40, 24) and counted == [2]

    def test_words_of_hires_fix(self, host):
        """Those of all pictures of a batch are the same, and so is the seed that was drawn for them."""
        host.set(seed=-1)
        words, data = part("words").ScriptResShiftWords(), host.shared.sd_upscalers[0]

        def generate(*sizes):
            p = SimpleNamespace(extra_generation_params={})
            words.process(p)
            pictures = [data.scaler.upscale(picture(size=size), 4, data.data_path) for size in sizes]
            words.postprocess_image(p, None)
            return p.extra_generation_params, pictures

        host.shared.state.begin("txt2img")
        first, (one, two) = generate((20, 12), (20, 12))
        assert first["ResShift model"] == data.name and first["ResShift seed"] >= 0 and np.array_equal(one, two)
        assert generate() == ({}, [])
        host.shared.state.begin("txt2img")
        second, _ = generate((20, 12))
        assert second["ResShift seed"] != first["ResShift seed"]

    def test_words_do_not_pass_to_the_next_picture_of_a_script(self, host):
        """X/Y/Z plot makes its pictures with one dictionary of words."""
        words, data = part("words").ScriptResShiftWords(), host.shared.sd_upscalers[0]
        p = SimpleNamespace(extra_generation_params={"Hires upscaler": "Other"})
        words.process(p)
        data.scaler.upscale(picture(), 4, data.data_path)
        words.postprocess_image(p, None)
        assert p.extra_generation_params["ResShift model"] == data.name
        words.process(p)
        words.postprocess_image(p, None)
        assert p.extra_generation_params == {"Hires upscaler": "Other"}

    @pytest.mark.parametrize("how", [{"crop": (40, 40)}, {"second": "Other"}, {"crop": (40, 40), "second": "Other"}])
    def test_nor_what_upscale_cropped_or_blended(self, host, counted, monkeypatch, how):
        """It leaves another picture than the entry gave it."""
        module, session = part("host"), part("session").SESSION
        script = type("Watched", (UpscaleScript,), {})
        scripts = SimpleNamespace(postprocessing_scripts_data=[SimpleNamespace(script_class=script)], scripts_postproc=None)
        monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
        monkeypatch.setattr(sys.modules["modules"], "scripts", scripts, raising=False)
        for _ in range(2):  # watched once
            module.watch_upscale(session.upscale_begins, session.upscale_ends)
        host.shared.sd_upscalers.append(host.upscaler.UpscalerData("Other", None, host.upscaler.Upscaler(), 4))
        host.shared.state.begin("txt2img")
        accordion, upscale = part("accordion").ScriptPostprocessingResShift(), script(host)

        def run(**words):
            pp = SimpleNamespace(image=picture(size=(20, 20)), info={})
            upscale.process(pp, factor=2.0, **words)
            after = pp.image, pp.info.pop("Postprocess upscaler", None)
            pp.info.clear()  # the host does not hand these on
            accordion.process(pp, enable=True, model=BUILTIN, scale=0)
            return pp, after

        pp, (left, _) = run(upscaler=BUILTIN, **how)
        assert pp.image is left and counted == [1] and pp.info["ResShift model"] == BUILTIN
        pp, (left, _) = run(upscaler="Other")
        assert pp.image is not left and counted == [2], "an upscaler of the host: ResShift runs here"
        pp, (left, _) = run()
        assert pp.image.size == (80, 80) and counted == [3], "Upscale did nothing: ResShift runs here"
        module.leave_upscale()
        assert script.process is UpscaleScript.process

    @pytest.mark.parametrize("crop", [None, (40, 40)])
    def test_a_host_without_a_first_pass_gets_the_words_of_cropped_pictures_too(self, host, monkeypatch, crop):
        module, session = part("host"), part("session").SESSION
        script = type("Watched", (UpscaleScript,), {})
        scripts = SimpleNamespace(postprocessing_scripts_data=[SimpleNamespace(script_class=script)], scripts_postproc=None)
        monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
        monkeypatch.setattr(sys.modules["modules"], "scripts", scripts, raising=False)
        module.watch_upscale(session.upscale_begins, session.upscale_ends)
        pp = SimpleNamespace(image=picture(size=(20, 12)), info={})
        script(host).process(pp, upscaler=BUILTIN, factor=2.0, crop=crop)
        part("accordion").ScriptPostprocessingResShift().process(pp, enable=True, model=BUILTIN, scale=0)
        assert pp.image.size == (crop or (40, 24)) and pp.info["ResShift model"] == BUILTIN
        session.upscale_begins({}, None)  # a video

    def test_the_note_promises_only_what_the_host_can_do(self, host, monkeypatch):
        accordion, said = part("accordion"), []
        monkeypatch.setattr(accordion.gr, "HTML", said.append)
        accordion.ScriptPostprocessingResShift().ui()
        monkeypatch.delattr(accordion.scripts_postprocessing.ScriptPostprocessing, "process_firstpass")
        accordion.ScriptPostprocessingResShift().ui()
        assert "they steer that" in said[0] and "takes the settings of the Settings page" in said[1]

    @pytest.mark.parametrize("width, scale", [(400, 2.3), (67, 1856 / 67), (64, 3.0)])
    def test_in_a_blend_sizes_are_the_hosts_to_the_last_rounding_error(self, host, width, scale):
        session, data = part("session").SESSION, host.shared.sd_upscalers[0]
        theirs = int((width * scale) // 8 * 8)
        image = Image.new("RGB", (width, 8))
        sizes = {}
        for name, words in (
            ("alone", {"upscaler_2_name": "None", "upscaler_2_visibility": 1.0}),
            ("unseen", {"upscaler_2_name": "Lanczos", "upscaler_2_visibility": 0}),
            ("cropped", {"upscaler_2_name": "Lanczos", "upscaler_2_visibility": 0.5, "upscale_mode": 1, "upscale_crop": True}),
            ("blended", {"upscaler_2_name": "Lanczos", "upscaler_2_visibility": 0.5, "upscale_mode": 0, "upscale_crop": True}),
        ):
            session.upscale_begins(words, (8, 8))
            sizes[name] = data.scaler.upscale(image, scale, data.data_path).width
            session.upscale_ends(image)
        assert sizes["blended"] == theirs
        assert sizes["alone"] == sizes["unseen"] == sizes["cropped"] == int(width * scale + 1e-6) // 8 * 8
        assert not session.blended

    def test_a_blend_takes_no_picture_of_another_size_from_the_cache(self, host, monkeypatch):
        forgotten, session = [], part("session").SESSION
        monkeypatch.setattr(part("host"), "forget_cached_pictures", lambda: forgotten.append(True))
        blend = {"upscaler_2_name": "Lanczos", "upscaler_2_visibility": 0.5}
        for words, times in (({}, 0), (blend, 1), (blend, 1), ({}, 2), ({}, 2)):
            session.upscale_begins(words, (8, 8))
            session.upscale_ends(None)
            assert len(forgotten) == times

    def test_only_pictures_are_taken_out_of_the_hosts_cache(self, host, monkeypatch):
        """Forge Neo keeps there, too, what colours are to be corrected to, from before any script works on the picture."""
        cache = {("RGB", 4): picture(), "cc": np.zeros((4, 4, 3))}
        data = SimpleNamespace(script_class=UpscaleScript, module=SimpleNamespace(upscale_cache=cache))
        others = SimpleNamespace(script_class=type("Other", (), {"name": "CodeFormer"}))
        changed = []
        runner = SimpleNamespace(image_changed=lambda: changed.append(True))
        scripts = SimpleNamespace(postprocessing_scripts_data=[others, data], scripts_postproc=runner)
        monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
        monkeypatch.setattr(sys.modules["modules"], "scripts", scripts, raising=False)
        part("host").forget_cached_pictures()
        assert list(cache) == ["cc"] and not changed
        data.module = SimpleNamespace()  # of a host that keeps them elsewhere
        part("host").forget_cached_pictures()
        assert changed == [True]

    def test_where_the_host_does_not_floor_sizes_neither_do_we(self, host, monkeypatch):
        """SD.Next: in a blend with another upscaler, pictures of two sizes were none."""

        class Exact(host.upscaler.Upscaler):
            def upscale(self, img, scale, selected_model=None):
                return img.resize((int(img.width * scale), int(img.height * scale)), Image.Resampling.LANCZOS)

        host.knows_firstpass = False
        host.shared.sd_upscalers.append(host.upscaler.UpscalerData("Exact", None, Exact()))
        with pytest.raises(ValueError, match="do not match"):
            host.extras(picture(size=(15, 15)), BUILTIN, factor=2.0, second="Exact")
        monkeypatch.setattr(host.upscaler, "compile_upscaler", None, raising=False)
        host.runner.image_changed()
        assert host.extras(picture(size=(15, 15)), BUILTIN, factor=2.0, second="Exact").image.size == (30, 30)

    @pytest.mark.parametrize("controls", [{}, {"enable": True}])
    def test_a_video_is_left_to_others(self, host, controls):
        """SD.Next shows it to all scripts, as a picture that is None."""
        pp = SimpleNamespace(image=None, info={"Postprocess upscaler": BUILTIN})
        host.script.process_firstpass(pp, **controls)
        host.script.process(pp, **controls)
        assert pp.image is None and list(pp.info) == ["Postprocess upscaler"]

    def test_the_accordion_makes_a_pass_of_its_own(self, host, counted):
        image = picture()
        pp = host.extras(image, None, enable=True, model=BUILTIN, scale=2.5, seed=3)
        assert counted == [1] and pp.image.size == (50, 30) and pp.info["ResShift seed"] == 3
        assert np.array_equal(pp.image, of_library(image, (50, 30), seed=3))

    def test_wrong_options_do_not_disturb_who_does_not_use_it(self, host):
        host.set(steps=-1)
        image = picture()
        assert host.extras(image).image is image
        host.shared.sd_upscalers.append(host.upscaler.UpscalerData("Other", None, host.upscaler.Upscaler(), 4))
        assert host.extras(image, "Other").image.size == (80, 48)

    def test_closed_it_does_nothing(self, host, counted):
        image = picture()
        assert host.extras(image).image is image and counted == [0]

    @pytest.mark.parametrize("scale, size", [(0, (80, 48)), (2.5, (50, 30))])
    def test_a_stopped_pass_of_its_own_leaves_the_picture_plainly_enlarged(self, host, monkeypatch, scale, size):
        image = picture()
        monkeypatch.setattr(part("progress").Progress, "__call__", lambda self, event: False)
        pp = host.extras(image, None, enable=True, scale=scale)
        assert np.array_equal(pp.image, image.resize(size, Image.Resampling.LANCZOS)) and "ResShift model" not in pp.info

    def test_accordion_settings_do_not_outlive_their_job(self, host):
        host.extras(picture(), None, enable=True, steps=1)
        host.shared.state.begin("txt2img")
        assert part("session").SESSION.settings().steps == 0

    def test_random_seeds_differ_and_are_told(self, host):
        first, second = (host.extras(picture(), BUILTIN, enable=True, seed=-1) for _ in range(2))
        seeds = first.info["ResShift seed"], second.info["ResShift seed"]
        assert seeds[0] != seeds[1] and min(seeds) >= 0
        assert np.array_equal(second.image, of_library(picture(), (80, 48), seed=seeds[1]))

    @pytest.mark.parametrize("upscaler", [None, BUILTIN])
    def test_the_sheet_is_an_extra_picture_each_time(self, host, upscaler):
        for _ in range(2):
            pp = host.extras(picture(), upscaler, enable=True, compare=True)
            (sheet,) = pp.extra_images
            assert isinstance(sheet, Postprocessed) and sheet.nametags == ["compare"] and sheet.disable_processing
            assert sheet.image.width > pp.image.width


class TestUI:
    def test_controls_are_the_settings_and_have_explanations(self, host):
        controls = host.script.ui()
        assert tuple(controls)[:3] == ("enable", "model", "scale") and set(controls) == {"enable", "model", "scale", *INPUT_IDS}
        assert all(controls[word].tooltip for word in INPUT_IDS) and controls["model"].keywords["choices"] == [BUILTIN, REAL]
        assert controls["steps"].keywords["value"]() == 0
        # or the host would restore what they first were, whatever the Settings page says
        assert all(control.do_not_save_to_config for word, control in controls.items() if word in INPUT_IDS)

    def test_hosts_without_tooltips_or_input_accordions(self, host, monkeypatch):
        monkeypatch.setattr(Component, "knows_tooltips", False)
        monkeypatch.delattr(host.modules["modules.ui_components"], "InputAccordion")
        monkeypatch.delattr(host.modules["modules.ui_components"], "ToolButton")
        controls = host.script.ui()
        assert controls["enable"].keywords["value"] is False and set(INPUT_IDS) < set(controls)

    def test_drawn_three_times_no_id_occurs_twice(self, host, monkeypatch):
        """In txt2img, img2img and Extras: the host's accordions find their checkbox by id, and take the first."""
        ids, real = [], Component.__init__

        def init(self, *args, **keywords):
            real(self, *args, **keywords)
            ids.append(keywords.get("elem_id"))

        monkeypatch.setattr(Component, "__init__", init)
        for _ in range(2):  # the second page begins anew
            host.call("before_ui")
            for _ in range(3):
                host.script.ui()
        named = [word for word in ids if word]
        page = len(named) // 2
        assert named[:page] == named[page:] and len(set(named)) == page
        assert "extras_resshift" in named and "resshift_steps_3" in named

    def test_it_starts_with_the_options(self, host):
        """Of the moment when a page is loaded: what is saved on the Settings page is there without Reload UI."""
        controls = host.script.ui()
        host.set(steps=3, seed=9)
        assert controls["steps"].keywords["value"]() == 3 and controls["seed"].keywords["value"]() == 9
        host.set(steps=-5)
        assert controls["steps"].keywords["value"]() == 0

    def test_dice_and_reuse(self, host, monkeypatch):
        buttons = []
        real = Component.click
        monkeypatch.setattr(
            Component, "click", lambda self, fn, inputs, outputs: buttons.append(fn) or real(self, fn, inputs, outputs)
        )
        host.script.ui()
        dice, reuse = buttons
        assert dice() == -1 and reuse() == "unchanged"
        host.extras(picture(), BUILTIN, enable=True, seed=77)
        assert reuse() == 77

    def test_options_page(self, host):
        host.call("ui_settings")
        labels = host.shared.opts.data_labels
        words = {*INPUT_IDS, "dtype", "keep_loaded", "download", "visible"}
        assert set(labels) == {f"resshift_{word}" for word in words}
        assert all(
            info.section == ("resshift", "ResShift") and info.category_id == "postprocessing" for info in labels.values()
        )
        assert labels["resshift_seed"].default == 0

    def test_saved_options_survive(self, host):
        host.set(steps=2)
        host.load()
        assert host.shared.opts.resshift_steps == 2

    @pytest.mark.parametrize("word", ["seed", "steps"])
    def test_a_number_that_no_page_can_show_is_not_taken(self, host, word, caplog):
        """The host could not start again with it."""
        host.call("ui_settings")
        options, key = host.shared.opts, f"resshift_{word}"
        assert options.set(key, 5) and not options.set(key, 2**64) and not options.set(key, -(2**63) - 1)
        assert options.data[key] == 5 and options.set(key, 2**64 - 1)
        options.data[key] = 123456789012345678901  # as an earlier version saved it
        host.call("ui_settings")
        assert options.data[key] == 0 and f"The saved {key} is 123456789012345678901" in caplog.text

    @pytest.mark.parametrize("value", ["abc", [1], float("inf"), float("nan"), {}])
    def test_a_seed_that_is_no_number_is_not_taken(self, host, value, caplog):
        """Gradio rounds it when a page is made, and the host makes its page before it starts."""
        host.call("ui_settings")
        options = host.shared.opts
        assert options.set("resshift_seed", 5) and not options.set("resshift_seed", value)
        options.data["resshift_seed"] = value
        host.call("ui_settings")
        assert options.data["resshift_seed"] == 0 and f"The saved resshift_seed is {value!r}; pages can show" in caplog.text

    def test_a_seed_in_quotation_marks_is_the_number(self, host):
        host.call("ui_settings")
        options = host.shared.opts
        assert options.set("resshift_seed", "7") and options.data["resshift_seed"] == 7
        options.data["resshift_seed"] = "8"  # as an earlier version saved it
        host.call("ui_settings")
        assert options.data["resshift_seed"] == 8
        options.set("resshift_seed", None)  # no number on the page
        assert options.data["resshift_seed"] is None

    def test_seeds_of_the_options_page_are_those_that_browsers_hold(self, host):
        host.call("ui_settings")
        arguments = host.shared.opts.data_labels["resshift_seed"].component_args
        assert (arguments["minimum"], arguments["maximum"], arguments["precision"]) == (-1, 2**53 - 1, 0)

    def test_settings_are_the_librarys(self, host):
        from resshift_core import inputs

        table = part("settings").INPUTS
        assert tuple(sorted(table)) == tuple(sorted(INPUT_IDS)) == tuple(sorted(part("settings").Settings.__dataclass_fields__))
        for word in set(INPUT_IDS) - {"seed", "compare"}:
            assert table[word] is getattr(inputs, word.upper())
            assert getattr(part("settings").Settings(), word) == table[word].default


class TestApi:
    @pytest.fixture
    def client(self, host):
        fastapi = pytest.importorskip("fastapi")
        from fastapi.testclient import TestClient

        def guard(token: str = ""):
            if token != "let me in":
                raise fastapi.HTTPException(401, "no")

        app = fastapi.FastAPI()
        app.add_api_route("/sdapi/v1/extra-single-image", lambda: None, methods=["POST"], dependencies=[fastapi.Depends(guard)])
        host.call("app_started", None, app)
        client = TestClient(app)
        client.params = {"token": "let me in"}
        return client

    def test_no_routes_where_the_host_has_no_api(self, host):
        fastapi = pytest.importorskip("fastapi")
        app = fastapi.FastAPI()
        host.call("app_started", None, app)
        assert not [route for route in app.routes if "resshift" in getattr(route, "path", "")]

    def test_the_hosts_guard_is_ours(self, client):
        client.params = {}
        assert client.get("/resshift/v1/models").status_code == 401
        assert client.post("/resshift/v1/upscale", json={"image": ""}).status_code == 401

    def test_models_and_settings(self, host, client):
        host.set(steps=2)
        assert client.get("/resshift/v1/models").json() == [
            {"name": BUILTIN, "source": "builtin", "scale": 4},
            {"name": REAL, "source": "builtin-real", "scale": 4},
        ]
        assert client.get("/resshift/v1/settings").json()["steps"] == 2
        host.set(steps=-2)
        assert client.get("/resshift/v1/settings").status_code == 422

    def test_broken_lines_of_base64_and_names_with_commas(self, host, client):
        save(host, standin.small_model(), "a, b: c.safetensors")
        buffer = io.BytesIO()
        picture().save(buffer, "PNG")
        body = {"image": base64.encodebytes(buffer.getvalue()).decode(), "model": "ResShift a, b: c 4x"}
        answer = client.post("/resshift/v1/upscale", json=body)
        assert answer.status_code == 200
        text = Image.open(io.BytesIO(base64.b64decode(answer.json()["image"]))).text["postprocessing"]
        assert text.startswith('ResShift model: "ResShift a, b: c 4x", ResShift steps: 4, ')

    def test_upscale(self, client):
        image = picture(size=(21, 13))
        answer = client.post(
            "/resshift/v1/upscale", json={"image": encoded(image), "model": "builtin", "scale": 2.5, "seed": 4}
        )
        assert answer.status_code == 200 and answer.json()["info"]["ResShift seed"] == 4 and answer.json()["sheet"] == ""
        result = Image.open(io.BytesIO(base64.b64decode(answer.json()["image"])))
        assert result.size == (52, 32) and "ResShift seed: 4" in result.text["postprocessing"]
        assert np.array_equal(result, of_library(image, (52, 32), seed=4))

    def test_pictures_are_read_and_written_as_files_are(self, client):
        """With their profile, and grey of 16 bits before it is cut to 8."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        buffer = io.BytesIO()
        picture().save(buffer, "PNG", icc_profile=profile)
        deep = io.BytesIO()
        values = np.full((16, 16), 1000, np.uint16)
        values[:, 8:] = 1100
        Image.fromarray(values).save(deep, "PNG")
        sent = [base64.b64encode(data.getvalue()).decode() for data in (buffer, deep)]
        answers = [client.post("/resshift/v1/upscale", json={"image": image, "seed": 1}).json() for image in sent]
        tagged, grey = (Image.open(io.BytesIO(base64.b64decode(answer["image"]))) for answer in answers)
        assert tagged.info["icc_profile"] == profile and "ResShift seed: 1" in tagged.text["postprocessing"]
        halves = np.asarray(grey, np.float64)
        assert grey.mode == "L" and halves[:, 40:].mean() - halves[:, :24].mean() > 0.2  # of 0.39 levels between them

    def test_sheet_and_data_address(self, client):
        body = {"image": "data:image/png;base64," + encoded(picture("RGBA")), "compare": True}
        answer = client.post("/resshift/v1/upscale", json=body).json()
        assert Image.open(io.BytesIO(base64.b64decode(answer["sheet"]))).mode == "RGB"
        assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).mode == "RGBA"

    @pytest.mark.parametrize(
        "body, words", [({"image": "?"}, "base64"), ({"image": base64.b64encode(b"text").decode()}, "not a picture"),
                        ({"steps": -1}, "steps is -1"), ({"model": "../../etc/passwd"}, "There is no ResShift model"),
                        ({"scale": 99}, "scale is 99"), ({"kappa": -1}, "kappa")],
    )  # fmt: skip
    def test_wrong_requests_are_sentences(self, client, body, words):
        answer = client.post("/resshift/v1/upscale", json={"image": encoded(picture()), **body})
        assert answer.status_code == 422 and words in json.dumps(answer.json())

    def test_a_broken_model_is_a_500_and_the_next_request_works(self, host, client):
        save(host, standin.small_model(), "bad.safetensors").write_bytes(b"<html>")
        body = {"image": encoded(picture()), "model": "bad.safetensors"}
        answer = client.post("/resshift/v1/upscale", json=body)
        assert answer.status_code == 500 and "bad.safetensors is a web page" in answer.json()["detail"]
        assert client.post("/resshift/v1/upscale", json={**body, "model": BUILTIN}).status_code == 200

    def test_interrupted(self, host, client, monkeypatch):
        monkeypatch.setattr(part("progress").Progress, "__call__", lambda self, event: False)
        assert client.post("/resshift/v1/upscale", json={"image": encoded(picture())}).status_code == 409
        assert host.shared.state.job == ""

    def test_the_queues_lock_is_held(self, host, client, monkeypatch):
        lock, held = host.modules["modules.call_queue"].queue_lock, []
        monkeypatch.setattr(part("progress").Progress, "__call__", lambda self, event: held.append(lock.locked()) or True)
        client.post("/resshift/v1/upscale", json={"image": encoded(picture())})
        assert held and all(held) and not lock.locked()


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
