"""The ComfyUI nodes without ComfyUI: against resshift_core itself, with the host's modules faked."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import resshift_core as rs
from resshift_core.registry import REGISTRY

from . import standin
from .comfyui_fakes import ROOT, Comfy, InterruptProcessingException, ModelPatcher, import_pack
from .linked_folder import link_folder

KEYS = {  # for ever: key -> (title, inputs in order)
    "LoadResShiftModel": ("Load ResShift Model", "model autoencoder dtype"),
    "ResShiftUpscaleImage": ("ResShift Upscale", "model image seed steps kappa p sampler scale color_fix noise mask"),
    "TiledResShiftUpscaleImage": (
        "Tiled ResShift",
        "model image seed steps kappa p sampler scale color_fix noise tile overlap tile_batch wrap mask",
    ),
    "ResShiftInpaint": ("ResShift Inpaint", "model image mask seed steps kappa p sampler noise"),
    "ResShiftToUpscaleModel": ("ResShift as Upscale Model", "model seed steps kappa p color_fix"),
}
CLOSE = {"atol": 1e-6, "rtol": 0}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A fake ComfyUI with the pack in a folder whose name has a space and letters beyond ASCII."""
    comfy = Comfy(tmp_path)
    for folder in ("custom_nodes", "models/resshift", "models/vae"):
        (tmp_path / folder).mkdir(parents=True)
    for name, module in comfy.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    folder = tmp_path / "custom_nodes" / "ResShift für Comfy 中"
    link_folder(folder, ROOT)
    before = set(sys.modules)
    comfy.pack = import_pack(folder)
    comfy.nodes = comfy.pack.NODE_CLASS_MAPPINGS
    name = comfy.pack.__name__
    comfy.part = lambda part: sys.modules[f"{name}.{part}"]
    yield comfy
    for module in set(sys.modules) - before:
        if module.startswith(name):
            del sys.modules[module]


def save(host, model: rs.ResShiftModel, name: str) -> str:
    rs.save_model(model, host.base / "models" / "resshift" / name)
    return name


def load(host, model: rs.ResShiftModel | None = None, name: str = "small.safetensors", dtype: str = "fp32"):
    """The socket's value for a model saved into the host's folder."""
    save(host, model or standin.small_model(), name)
    return host.nodes["LoadResShiftModel"]().run(name, "auto", dtype)[0]


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """IMAGE (B, H, W, C)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def upscaled(host, key: str, socket, image, **widgets) -> torch.Tensor:
    defaults = {i.id: i.default for i in host.part("nodes.inputs").NODES[key].inputs if not i.is_socket}
    return host.nodes[key]().run(model=socket, image=image, **{**defaults, **widgets})["result"][0]


def of_library(model, image, **settings) -> torch.Tensor:
    return rs.upscale(model, image.movedim(-1, 1), **settings).movedim(1, -1)


def inpainting_model() -> rs.ResShiftModel:
    unet = rs.UNetConfig(
        mask=True, lq_stages=2, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, swin_channels=32, head_channels=16
    )
    autoencoder = rs.VQGANConfig(32, (1, 1, 2), (1, 1, 1), 3, 3, 64)
    return standin.standin_model(rs.ModelConfig(unet, autoencoder, scale=1, task="inpaint", tile=64, overlap=16))


class TestContract:
    @pytest.mark.parametrize("key", KEYS)
    def test_ids_titles_and_order_never_change(self, host, key):
        title, ids = KEYS[key]
        types = host.nodes[key].INPUT_TYPES()
        declared = [*types["required"], *types.get("optional", {})]
        assert host.pack.NODE_DISPLAY_NAME_MAPPINGS[key] == title and " ".join(declared) == ids
        assert host.nodes[key].CATEGORY == "image/upscaling/ResShift"
        assert all(options["tooltip"] for _, options in {**types["required"], **types.get("optional", {})}.values())

    @pytest.mark.parametrize("key", KEYS)
    def test_labels_for_languages_that_we_do_not_speak(self, host, key):
        types = host.nodes[key].INPUT_TYPES()
        shown = {id: options["display_name"] for id, (_, options) in {**types["required"], **types.get("optional", {})}.items()}
        assert all(shown.values()) and shown.get("color_fix", "colour fix") == "colour fix"

    def test_there_are_no_others(self, host):
        assert list(host.nodes) == list(KEYS)
        assert not {"ResShiftLoader", "ResShiftUpscale"} & set(host.nodes)  # another pack's

    def test_ranges(self, host):
        types = host.nodes["TiledResShiftUpscaleImage"].INPUT_TYPES()["required"]
        assert types["seed"][1]["max"] == 0xFFFFFFFFFFFFFFFF and types["seed"][1]["control_after_generate"]
        for word in ("steps", "kappa", "p", "scale", "tile", "overlap", "tile_batch"):
            assert types[word][1]["default"] == types[word][1]["min"] == 0
        assert types["scale"][1]["max"] == 8

    @pytest.mark.parametrize("key", KEYS)
    def test_numbers_are_shown_and_kept_as_they_are_set(self, host, key):
        """The page rounds what is typed, and what the arrows give, to the place of the step's first digit."""
        types = host.nodes[key].INPUT_TYPES()["required"]
        places = {id: max(0, -math.floor(math.log10(o["step"]))) for id, (kind, o) in types.items() if kind == "FLOAT"}
        assert all(round(types[id][1]["step"], count) == types[id][1]["step"] for id, count in places.items())
        assert places.get("scale", 2) >= 2 and places.get("kappa", 3) >= 3  # 2.25 times; builtin is trained with kappa 0.05
        widgets = [item.id for item in host.part("nodes.inputs").NODES[key].inputs if not item.is_socket]
        for path in (ROOT / "example_workflows").glob("*.json"):
            for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
                values = [value for value in node.get("widgets_values", ()) if value != "fixed"]
                chosen = dict(zip(widgets, values)) if node["type"] == key else {}
                assert all(round(chosen[id], places[id]) == chosen[id] for id in chosen.keys() & places.keys())

    def test_choices_are_those_of_the_library(self, host):
        from resshift_core.arguments import NOISES
        from resshift_core.color import COLOR_FIXES
        from resshift_core.sampler import SAMPLERS
        from resshift_core.wrap import WRAPS

        types = host.nodes["TiledResShiftUpscaleImage"].INPUT_TYPES()["required"]
        assert tuple(types["sampler"][0]) == SAMPLERS and tuple(types["color_fix"][0]) == COLOR_FIXES
        assert tuple(types["wrap"][0]) == WRAPS and set(types["noise"][0]) < set(NOISES)


class TestLoader:
    def test_lists_the_whole_catalogue_then_files(self, host):
        save(host, standin.small_model(), "mine.safetensors")
        (host.base / "models" / "resshift" / "readme.txt").write_text("not a model")
        (host.base / "models" / "resshift" / "._mine.safetensors").write_bytes(b"\0\5\26\7")  # macOS leaves such
        (host.base / "models" / "resshift" / "resshift_realsrx4_s4_v3.pth").write_bytes(b"a file of the catalogue")
        models = host.nodes["LoadResShiftModel"].INPUT_TYPES()["required"]["model"][0]
        assert models[:2] == ["builtin", "builtin-real"] and models[-1] == "mine.safetensors"
        assert [name.split(" [")[0] for name in models[:-1]] == [e.name for e in REGISTRY.values() if e.task != "autoencoder"]
        assert all("non-commercial" in name and "MB" in name for name in models[2:-1])

    def test_a_file_may_be_called_as_a_built_in_one(self, host):
        """It is no download of ours: `builtin` means the one in the pack."""
        save(host, standin.small_model(), "builtin.safetensors")
        listed = host.nodes["LoadResShiftModel"].INPUT_TYPES()["required"]["model"][0]
        assert listed[0] == "builtin" and listed[-1] == "builtin.safetensors"
        assert host.part("nodes.folders").locate(listed[-1]) == host.base / "models" / "resshift" / "builtin.safetensors"

    def test_autoencoders_say_what_they_cost_and_under_which_licence(self, host):
        loader = host.nodes["LoadResShiftModel"]
        listed = loader.INPUT_TYPES()["required"]["autoencoder"][0]
        assert listed[0] == "auto" and listed[1] == "vq_f4 [221 MB, S-Lab 1.0, non-commercial]"
        assert len(listed) == 4 and all("MB, S-Lab 1.0, non-commercial]" in name for name in listed[1:])
        assert all(loader.VALIDATE_INPUTS("builtin", name) is True for name in (*listed, "vq_f4", "vq_f8_face"))
        assert host.part("nodes.folders").locate(listed[1]) == "vq_f4"

    def test_the_folder_key_is_the_users_whatever_its_case(self, host, tmp_path):
        host.folders.clear()
        mine = tmp_path / "elsewhere"
        mine.mkdir()
        host.folders.update({"vae": ([str(host.vae_folder)], set()), "ResShift": ([str(mine)], set())})
        host.pack.register_folder()
        assert "resshift" not in host.folders and host.folders["ResShift"][1] == {".safetensors", ".pth", ".pt", ".ckpt"}
        assert host.part("nodes.folders").download_folder() == mine

    def test_dtype_follows_the_flags(self, host):
        choose = host.part("nodes.managed").choose_dtypes
        assert choose("auto") == (torch.float32, torch.float32) and choose("fp16") == (torch.float16, torch.float16)
        host.bf16 = True
        assert choose("auto") == (torch.bfloat16, torch.bfloat16)
        host.flags = {"unet": torch.float16, "vae": torch.float32}
        assert choose("auto") == (torch.float16, torch.float32)
        host.flags = {"unet": torch.float8_e4m3fn}
        assert choose("auto")[0] == torch.bfloat16
        host.flags = {"unet": torch.float16, "cast": torch.float32}  # held in half precision, computed in single
        assert choose("auto")[0] == torch.float32
        socket = load(host, dtype="bf16")
        assert socket.model.dtype == torch.bfloat16
        with pytest.raises(
            host.part("resshift_core").InputError, match="dtype is 'float32'; it must be one of auto, fp32, bf16, fp16"
        ):
            load(host, dtype="float32")  # over a link, which ComfyUI does not check

    @pytest.mark.parametrize("given", [5, None])
    def test_a_choice_that_is_no_name(self, host, given):
        loader = host.nodes["LoadResShiftModel"]
        with pytest.raises(
            host.part("resshift_core").InputError, match=f"The model is {given}; it must be one of the names in the list"
        ):
            loader().run(given, "auto", "fp32")
        with pytest.raises(host.part("resshift_core").InputError, match=f"The autoencoder is {given};"):
            loader().run("builtin", given, "fp32")
        with pytest.raises(host.part("resshift_core").InputError, match="no autoencoder called 'gone.pth'"):
            loader().run("builtin", "gone.pth", "fp32")  # it was taken for "auto"
        assert loader.VALIDATE_INPUTS(5, "auto").startswith("The model is 5;")

    @pytest.mark.parametrize("written", ["sub/mine.safetensors", "sub\\mine.safetensors"])
    def test_separators_of_another_system(self, host, written):
        (host.base / "models" / "resshift" / "sub").mkdir()
        save(host, standin.small_model(), "sub/mine.safetensors")
        assert host.nodes["LoadResShiftModel"].VALIDATE_INPUTS(written, "auto") is True
        assert host.nodes["LoadResShiftModel"]().run(written, "auto", "fp32")[0].model.scale == 4

    def test_validation_knows_labels_and_names_what_is_missing(self, host):
        check = host.nodes["LoadResShiftModel"].VALIDATE_INPUTS
        assert check("builtin", "auto") is True and check("realsr_x4_s4 [1 GB, other words]", "vq_f4") is True
        assert check(autoencoder="auto") is True and check(model="builtin") is True  # ComfyUI itself says what is left out
        assert "no model called 'gone.pth'" in check("gone.pth", "auto")
        assert "no autoencoder called 'gone.pth'" in check("builtin", "gone.pth")

    def test_choices_that_come_over_a_link_are_not_known_before_the_run(self, host):
        """ComfyUI says None for them."""
        loader = host.nodes["LoadResShiftModel"]
        assert loader.VALIDATE_INPUTS(None, "auto") is True and loader.VALIDATE_INPUTS("builtin", None) is True
        assert loader.IS_CHANGED(None, None, None) == loader.IS_CHANGED(None, None, None)

    def test_brackets_in_a_files_name(self, host):
        """Sizes in labels stand in brackets, too."""
        folders = host.part("nodes.folders")
        path = rs.save_model(standin.small_model(), folders.download_folder() / "my model [v2].safetensors")
        assert folders.locate(path.name) == path
        assert host.nodes["LoadResShiftModel"].VALIDATE_INPUTS(path.name, "auto") is True
        assert folders.locate("realsr_x4_s4 [other words]") == "realsr_x4_s4"

    def test_an_autoencoder_in_the_vae_folder(self, host):
        host.vae_folder.joinpath("vq.pth").write_bytes(b"x")
        types = host.nodes["LoadResShiftModel"].INPUT_TYPES()["required"]
        assert types["autoencoder"][0][-1] == "vae/vq.pth"
        assert host.part("nodes.folders").locate("vae/vq.pth") == host.vae_folder / "vq.pth"

    def test_a_published_autoencoder_in_the_vae_folder_is_not_fetched_again(self, host):
        path = host.vae_folder / REGISTRY["vq_f4"].file
        path.write_bytes(b"x")
        assert host.part("resshift_core.registry").REGISTRY["vq_f4"].find() == path

    def test_a_folder_of_ours_may_be_called_vae(self, host):
        folders = host.part("nodes.folders")
        path = folders.download_folder() / "vae" / "mine.safetensors"
        rs.save_model(standin.small_model(), path)
        assert folders.locate("vae/mine.safetensors") == path and folders.locate("vae/other.safetensors") is None

    def test_downloads_go_to_the_first_folder_and_show_on_the_node(self, host, monkeypatch):
        core, asked = host.part("resshift_core"), {}

        def download(name, *, with_autoencoder, on_progress, confirm, folder):
            asked.update(name=name, with_autoencoder=with_autoencoder, folder=folder)
            assert confirm(core.registry.REGISTRY[name])
            assert confirm(core.registry.REGISTRY["vq_f4"])  # a node has one line: both licences stand in it
            on_progress(10_000_000, 478_000_000)
            raise core.DownloadError("no network in a test")

        monkeypatch.setattr(host.part("nodes.loader"), "download_missing", download)
        with pytest.raises(Exception, match="no network in a test"):
            host.nodes["LoadResShiftModel"]().run("realsr_x4_s4 [478 MB, x]", "auto", "auto", unique_id="7")
        assert asked == {"name": "realsr_x4_s4", "with_autoencoder": True, "folder": host.base / "models" / "resshift"}
        assert host.texts == [
            "realsr_x4_s4: S-Lab License 1.0 (non-commercial)",
            "realsr_x4_s4: S-Lab License 1.0 (non-commercial); vq_f4: S-Lab License 1.0 (non-commercial)",
            "Downloading realsr_x4_s4 (S-Lab License 1.0 (non-commercial)): 10 of 478 MB",
            "realsr_x4_s4 could not be downloaded.",
        ]  # fmt: skip
        assert host.progress[-1][:2] == (10_000_000, 478_000_000)

    def test_an_autoencoder_that_the_model_does_not_need_is_not_fetched(self, host, monkeypatch, caplog):
        monkeypatch.setattr(host.part("nodes.loader"), "download_missing", lambda *_, **__: pytest.fail("fetched"))
        save(host, standin.small_model(), "mine.safetensors")
        for name in ("builtin", "mine.safetensors"):
            assert host.nodes["LoadResShiftModel"]().run(name, "vq_f4 [221 MB]", "fp32", unique_id="7")[0].model.scale == 4
            assert "contains its autoencoder; vq_f4 is not used" in caplog.text
            assert host.texts.pop() == f"{name} contains its autoencoder; vq_f4 is not used."
            host.nodes["LoadResShiftModel"]().run(name, "auto", "fp32", unique_id="7")
            assert not host.texts
            caplog.clear()

    @pytest.mark.parametrize("chosen", ["auto", "vq_f4_face [221 MB]"])
    def test_the_autoencoder_that_a_network_needs_is_fetched(self, host, monkeypatch, chosen):
        """Whether it needs one, and of a renamed one which, only loading tells."""
        core, fetched = host.part("resshift_core"), []

        def load_model(*_, autoencoder, **__):
            assert autoencoder == (None if chosen == "auto" else "vq_f4_face")
            if not fetched:
                raise host.part("resshift_core.errors").NotHere("vq_f4_face is not on this machine.", "vq_f4_face")
            return standin.small_model()

        save(host, standin.small_model(), "mine.safetensors")
        monkeypatch.setattr(core, "load_model", load_model)
        monkeypatch.setattr(host.part("nodes.loader"), "download_missing", lambda name, **_: fetched.append(name))
        host.nodes["LoadResShiftModel"]().run("mine.safetensors", chosen, "auto")
        assert fetched == ["vq_f4_face"]

    def test_number_formats_of_network_and_autoencoder_come_from_what_is_stored(self, host, monkeypatch):
        """--fp32-vae means all digits of the file, whatever the network runs in."""
        model = inpainting_model()
        save(host, model, "mine.safetensors")
        mm = host.modules["comfy.model_management"]
        monkeypatch.setattr(mm, "unet_dtype", lambda **_: torch.bfloat16)
        monkeypatch.setattr(mm, "vae_dtype", lambda *_: torch.float32)
        loaded = host.nodes["LoadResShiftModel"]().run("mine.safetensors", "auto", "auto")[0].model
        assert loaded.dtype == torch.bfloat16
        stored = model.autoencoder.state_dict()
        assert all(torch.equal(value, stored[key]) for key, value in loaded.autoencoder.state_dict().items())

    def test_the_console_says_the_licence_of_a_download(self, host, monkeypatch, caplog):
        registry = host.part("resshift_core.registry")
        loader = host.part("nodes.loader")
        monkeypatch.setattr(loader, "download_missing", lambda name, confirm, **_: confirm(registry.REGISTRY[name]))
        loader._fetch("sinsr_x4_s1", False, None)
        assert "Its licence: CC BY-NC-SA 4.0 (non-commercial)" in caplog.text

    def test_a_download_can_be_interrupted(self, host, monkeypatch):
        host.interrupted = True
        monkeypatch.setattr(host.part("nodes.loader"), "download_missing", lambda name, on_progress, **_: on_progress(1, 2))
        with pytest.raises(InterruptProcessingException):
            host.nodes["LoadResShiftModel"]().run("realsr_x4_s4", "auto", "auto")

    def test_a_network_whose_kind_is_open_says_what_to_do_here(self, host, monkeypatch):
        core = host.part("resshift_core")

        def refuse(*_, **__):
            raise host.part("resshift_core.errors").VariantOpen("x.pth: Say which one it is with variant=: a, b.")

        save(host, standin.small_model(), "x.safetensors")
        monkeypatch.setattr(core, "load_model", refuse)
        with pytest.raises(Exception, match="In ComfyUI: put that word into the file's name"):
            host.nodes["LoadResShiftModel"]().run("x.safetensors", "auto", "auto")

    def test_a_changed_file_is_loaded_again(self, host):
        changed = host.nodes["LoadResShiftModel"].IS_CHANGED
        save(host, standin.small_model(), "mine.safetensors")
        first = changed("mine.safetensors", "auto", "fp32")
        assert changed("mine.safetensors", "auto", "fp32") == first
        save(host, standin.small_model(trunk_blocks=2), "mine.safetensors")
        assert changed("mine.safetensors", "auto", "fp32") != first

    def test_a_download_at_the_first_run_makes_no_second_run(self, host):
        changed = host.nodes["LoadResShiftModel"].IS_CHANGED
        before = changed("realsr_x4_s4", "auto", "auto")
        (host.part("nodes.folders").download_folder() / REGISTRY["realsr_x4_s4"].file).write_bytes(b"here now")
        assert changed("realsr_x4_s4", "auto", "auto") == before

    def test_a_download_tells_the_page_a_few_times_a_second(self, host, monkeypatch):
        def fetch(name, on_progress, **_):
            for piece in range(3000):
                on_progress(piece, 3000)

        monkeypatch.setattr(host.part("nodes.loader"), "download_missing", fetch)
        host.part("nodes.loader")._fetch("realsr_x4_s4", False, "7")
        assert 2 <= len(host.texts) < 30 and host.texts[-1].endswith("has been downloaded.")

    def test_downloads_go_to_the_first_folder_that_can_be_written(self, host, tmp_path, monkeypatch):
        folders, registry = host.part("nodes.folders"), host.part("resshift_core.registry")
        shared, own = tmp_path / "shared", tmp_path / "own" / "models"  # the second does not exist yet
        shared.mkdir()
        host.folders[folders.folder_key()] = ([str(shared), str(own)], set())
        assert folders.download_folder() == shared
        monkeypatch.setattr(registry.os, "access", lambda place, mode: Path(place) != shared)
        assert folders.download_folder() == own
        monkeypatch.setattr(registry.os, "access", lambda place, mode: False)
        assert folders.download_folder() == shared

    def test_downloads_trust_what_comfyui_trusts(self, host, monkeypatch):
        transfer = host.part("resshift_core.transfer")
        monkeypatch.setitem(sys.modules, "certifi", types.SimpleNamespace(where=lambda: "all.pem"))
        host.part("nodes.folders").register_folder()
        assert transfer._certificates == ["all.pem"]

    def test_windows_is_asked_where_a_file_can_be_put(self, host, tmp_path, monkeypatch):
        """Its `os.access` says yes to every folder."""
        registry, shared = host.part("resshift_core.registry"), tmp_path / "shared"
        shared.mkdir()
        monkeypatch.setattr(registry.sys, "platform", "win32")
        assert registry.can_be_written(shared) and list(shared.iterdir()) == []

        def refuse(path, flags):
            raise PermissionError(13, "Access is denied", str(path))

        monkeypatch.setattr(registry.os, "open", refuse)
        assert not registry.can_be_written(shared)

    def test_a_request_cannot_make_windows_ask_another_server(self, host, tmp_path, monkeypatch):
        """To resolve //evil/share is to send it the user's name. Files are served only where the pack's name needs quoting."""

        class NotFound(Exception):
            pass

        web = types.SimpleNamespace(HTTPNotFound=NotFound, FileResponse=lambda path: path)
        monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=web))
        (tmp_path / "x.js").write_text("")
        serve, resolved, plain = (
            importlib.import_module(f"{host.pack.__name__}.nodes.routes")._files_of(tmp_path),
            [],
            Path.resolve,
        )
        monkeypatch.setattr(Path, "resolve", lambda self: resolved.append(str(self)) or plain(self))

        def ask(path):
            return asyncio.run(serve(types.SimpleNamespace(match_info={"path": path})))

        assert ask("x.js") == tmp_path / "x.js" and len(resolved) == 1
        for path in (r"\\evil.example\share\x.js", "//evil.example/share/x.js", "C:/x.js", "x.js:stream"):
            with pytest.raises(NotFound):
                ask(path)
        assert len(resolved) == 1

    def test_a_request_gets_nothing_from_outside_the_served_folder(self, host, tmp_path, monkeypatch):
        web = types.SimpleNamespace(HTTPNotFound=LookupError, FileResponse=lambda path: path)
        monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=web))
        served = tmp_path / "web" / "sub"
        served.mkdir(parents=True)
        for path in (served / "x.js", tmp_path / "secret.js", tmp_path / "web2.js"):
            path.write_text("")
        serve = importlib.import_module(f"{host.pack.__name__}.nodes.routes")._files_of(tmp_path / "web")

        def ask(path):
            return asyncio.run(serve(types.SimpleNamespace(match_info={"path": path})))

        assert ask("sub/x.js") == served / "x.js"
        for path in ("../secret.js", "sub/../../secret.js", "../web2.js", "sub", "."):
            with pytest.raises(LookupError):
                ask(path)

    def test_a_second_copy_of_the_pack_lets_the_server_start(self, host, monkeypatch, caplog):
        """A backup beside it, or the Manager's and a clone."""
        monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=types.SimpleNamespace()))
        routes = importlib.import_module(f"{host.pack.__name__}.nodes.routes")
        for folder in ("resshift", "resshift old"):
            routes.add_routes(Path(folder))
        paths = [route.path for route in sys.modules["server"].PromptServer.instance.routes]
        assert len(set(paths)) == len(paths) == 3 and paths[0] == "/resshift/model"
        assert "ResShift is there twice: ComfyUI takes its nodes from resshift old" in caplog.text

    def test_text_on_a_node_is_no_markup(self, host):
        """Pages of 2025 put it into the page as it is."""
        host.part("nodes.told").show_text("7", '<img src=x onerror="f()"> & [[1,2]]')
        assert host.texts == ['img src=x onerror="f()"  1,2']

    def test_a_file_may_begin_with_a_published_name(self, host):
        name = "realsr_x4_s4 [mine].safetensors"
        save(host, standin.small_model(), name)
        assert host.part("nodes.folders").locate(name).name == name


class TestMemory:
    def test_what_the_host_reserves_is_left_alone(self, host):
        host.flags["reserved"] = 3 << 30
        assert load(host).model.reserved_bytes == 3 << 30

    def test_weights_are_in_the_hosts_hands(self, host):
        socket = load(host)
        upscaled(host, "ResShiftUpscaleImage", socket, picture(1, 16, 16, 3))
        (patchers, required, whole), *_ = host.loads
        assert patchers == socket.patchers and whole and required > 0
        assert all(isinstance(patcher, ModelPatcher) for patcher in patchers)
        assert [patcher.model for patcher in patchers] == [socket.model.unet]  # space to depth has no weights

    def test_the_autoencoder_waits_where_the_host_keeps_autoencoders(self, host, monkeypatch):
        monkeypatch.setattr(host.modules["comfy.model_management"], "vae_offload_device", lambda: torch.device("meta"))
        loaded = load(host, inpainting_model()).model
        assert loaded.device.type == "cpu" and next(loaded.autoencoder.parameters()).device.type == "meta"

    def test_loading_layer_by_layer_is_left_to_the_hosts_own_layers(self, host, monkeypatch):
        """Newer hosts' patcher hangs pointers on modules, which no copy survives, and forbids `patch_model`."""

        class CoreModelPatcher(ModelPatcher):
            def __init__(self, *_, **__):
                raise AssertionError

        monkeypatch.setattr(host.modules["comfy.model_patcher"], "CoreModelPatcher", CoreModelPatcher, raising=False)
        socket = load(host, inpainting_model())
        assert [type(patcher) for patcher in socket.patchers] == [ModelPatcher, ModelPatcher]

    @pytest.mark.parametrize(
        "device, layout",
        [(name, torch.contiguous_format) for name in ("mps", "privateuseone", "hpu")] + [("cuda", torch.channels_last)],
    )
    def test_weights_lie_as_the_device_likes(self, host, device, layout):
        """The host moves them as they lie; Apple's GPU and foreign ones (privateuseone is DirectML) want them contiguous."""
        host.device = torch.device(device)
        socket = load(host, inpainting_model())
        weights = [weight for part in (socket.model.unet, socket.model.autoencoder) for weight in part.parameters()]
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights if weight.ndim == 4)

    def test_a_network_that_another_pack_has_converted_runs_as_it_was_loaded(self, host):
        """Some call `upscale_model.model.to(...)`, and the loader keeps its model for the next prompt."""
        socket, image = load(host, dtype="bf16"), picture(1, 16, 16, 3)
        before = upscaled(host, "ResShiftUpscaleImage", socket, image)
        adapter = host.nodes["ResShiftToUpscaleModel"]().run(socket, seed=0, steps=0, kappa=0.0, p=0.0, color_fix="none")[0]
        adapter.model.to(torch.float32)
        assert torch.equal(upscaled(host, "ResShiftUpscaleImage", socket, image), before)
        assert socket.model.dtype == torch.bfloat16

    def test_weights_that_do_not_fit_end_on_the_processor(self, host, monkeypatch, caplog):
        socket, image = load(host), picture(1, 16, 16, 3)

        def full(*_, **__):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        expected = of_library(socket.model, image)
        monkeypatch.setattr(host.modules["comfy.model_management"], "load_models_gpu", full)
        monkeypatch.setattr(socket, "device", torch.device("meta"))
        torch.testing.assert_close(upscaled(host, "ResShiftUpscaleImage", socket, image), expected, **CLOSE)
        assert (
            "the model's weights do not fit on meta (CUDA out of memory" in caplog.text
            and "Trying the processor" in caplog.text
        )
        monkeypatch.setattr(socket, "device", torch.device("cpu"))
        with pytest.raises(host.part("resshift_core").OutOfMemory, match="weights do not fit on cpu"):
            upscaled(host, "ResShiftUpscaleImage", socket, image)

    def test_weights_that_the_host_kept_back_are_fetched(self, host, monkeypatch):
        socket = load(host)
        monkeypatch.setattr(host.modules["comfy.model_management"], "load_models_gpu", lambda *_, **__: None)
        socket.device = torch.device("meta")
        socket.load()
        assert socket.patchers[0].moves == ["patch"] and socket.model.device.type == "meta"

    def test_out_of_memory_moves_others_away_and_ends_on_the_processor(self, host, monkeypatch):
        socket, calls, core = load(host), [], host.part("resshift_core")
        real = core.upscale

        def tight(model, images, **settings):
            calls.append(model)
            if len(calls) < 3:
                raise core.OutOfMemory("Out of memory: a tile of 64 pixels needs 9 GiB.")
            return real(model, images, **settings)

        monkeypatch.setattr(core, "upscale", tight)
        monkeypatch.setattr(socket, "device", torch.device("meta"))
        monkeypatch.setattr(socket, "load", lambda *_: socket.model)
        image = picture(1, 16, 16, 3)
        result = upscaled(host, "ResShiftUpscaleImage", socket, image)
        assert calls[0] is calls[1] is socket.model and calls[2].device.type == "cpu"
        assert host.freed == [1e30, "cache", 1e30] and socket.patchers[0].moves == ["detach"]
        torch.testing.assert_close(result, of_library(socket.model, image), **CLOSE)

    def test_weights_come_back_for_the_next_frames(self, host, monkeypatch):
        """The processor has taken some frames of a film: the weights, in half precision, must not stay there for the rest."""
        socket = load(host)
        monkeypatch.setattr(host.part("nodes.upscaling"), "CHUNK_FRAMES", 2)
        upscaled(host, "ResShiftUpscaleImage", socket, picture(5, 16, 16, 3))
        assert len(host.loads) == 3

    def test_out_of_memory_on_the_processor_is_a_sentence(self, host, monkeypatch):
        socket, core = load(host), host.part("resshift_core")

        def tight(*_, **__):
            raise core.OutOfMemory("Out of memory: 9 GiB.")

        monkeypatch.setattr(core, "upscale", tight)
        with pytest.raises(core.OutOfMemory, match="9 GiB"):
            upscaled(host, "ResShiftUpscaleImage", socket, picture(1, 16, 16, 3))


class TestUpscale:
    def test_equals_the_library(self, host):
        socket, image = load(host), picture(2, 20, 28, 3)
        widgets = {"seed": 7, "steps": 6, "kappa": 0.12, "p": 0.5, "sampler": "deterministic", "scale": 2.5}
        result = upscaled(host, "ResShiftUpscaleImage", socket, image, color_fix="wavelet", noise="shared", **widgets)
        expected = of_library(socket.model, image, color_fix="wavelet", noise="shared", **widgets)
        assert result.shape == (2, 50, 70, 3) and result.dtype == torch.float32
        torch.testing.assert_close(result, expected, **CLOSE)

    def test_zeros_mean_as_trained(self, host):
        socket, image = load(host), picture(1, 16, 16, 3)
        result = upscaled(host, "TiledResShiftUpscaleImage", socket, image)
        torch.testing.assert_close(result, of_library(socket.model, image), **CLOSE)

    def test_tiled_hands_its_widgets_on(self, host):
        socket, image = load(host), picture(1, 40, 56, 3)
        widgets = {"tile": 32, "overlap": 16, "tile_batch": 2, "wrap": "both"}
        result = upscaled(host, "TiledResShiftUpscaleImage", socket, image, **widgets)
        torch.testing.assert_close(result, of_library(socket.model, image, **widgets), **CLOSE)

    @pytest.mark.parametrize("noise", ["per_image", "shared"])
    def test_many_frames_go_through_in_parts(self, host, monkeypatch, noise):
        monkeypatch.setattr(host.part("nodes.upscaling"), "CHUNK_FRAMES", 2)
        socket, image, core = load(host), picture(5, 16, 16, 3), host.part("resshift_core")
        sizes, real = [], core.upscale
        monkeypatch.setattr(core, "upscale", lambda model, images, **s: sizes.append(len(images)) or real(model, images, **s))
        result = upscaled(host, "ResShiftUpscaleImage", socket, image, seed=3, noise=noise)
        assert sizes == [2, 2, 1]
        torch.testing.assert_close(result, of_library(socket.model, image, seed=3, noise=noise), **CLOSE)
        values = [value for value, _, _ in host.progress]
        assert values == sorted(values) and values[-1] == 1000

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_channels_come_back_as_they_were(self, host, channels):
        image = picture(1, 9, 7, channels)
        socket = load(host)
        result = upscaled(host, "ResShiftUpscaleImage", socket, image)
        assert result.shape == (1, 36, 28, channels)
        torch.testing.assert_close(result, of_library(socket.model, image), **CLOSE)

    def test_odd_values_and_one_pixel(self, host):
        image = torch.tensor([float("nan"), float("inf"), -3.0]).reshape(1, 1, 1, 3)
        result = upscaled(host, "ResShiftUpscaleImage", load(host), image)
        assert result.shape == (1, 4, 4, 3) and torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1

    def test_no_frames(self, host):
        assert upscaled(host, "ResShiftUpscaleImage", load(host), picture(0, 8, 8, 3)).shape == (0, 32, 32, 3)

    def test_a_mask_keeps_the_rest_plain(self, host):
        socket, image = load(host), picture(2, 16, 16, 3)
        mask = torch.zeros(1, 16, 16)
        mask[:, :8] = 1
        result = upscaled(host, "ResShiftUpscaleImage", socket, image, mask=mask)
        plain = torch.nn.functional.interpolate(image.movedim(-1, 1), scale_factor=4, mode="bicubic").clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(result[:, :24], of_library(socket.model, image)[:, :24], **CLOSE)
        torch.testing.assert_close(result[:, 40:], plain[:, 40:], **CLOSE)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_a_mask_on_a_texture_brings_no_seam(self, host, channels):
        """What the model does not work on is enlarged as a texture, too."""
        image, mask = picture(1, 16, 16, channels), torch.zeros(1, 16, 16)
        mask[:, 6:10, 6:10] = 1
        image[..., 3:] = 1
        image[:, :2, :4, 3:] = 0  # hidden, white, and near the other side
        image[:, :2, :4, :3] = 1
        result = upscaled(host, "TiledResShiftUpscaleImage", load(host), image, mask=mask, wrap="both")
        resize = host.part("resshift_core.alpha").resize_visible
        around = resize(image.movedim(-1, 1).repeat(1, 1, 3, 3), (192, 192))[..., 64:128, 64:128].movedim(1, -1)
        for edge in (slice(0, 16), slice(48, 64)):
            torch.testing.assert_close(result[:, edge], around[:, edge], **CLOSE)
            torch.testing.assert_close(result[:, :, edge], around[:, :, edge], **CLOSE)

    def test_a_black_mask_costs_no_run_and_is_told(self, host):
        """LoadImage gives one of 64 x 64 where a picture has no transparency."""
        socket, image = load(host), picture(2, 16, 16, 3)
        result = upscaled(host, "ResShiftUpscaleImage", socket, image, mask=torch.zeros(1, 64, 64), scale=2.0, unique_id="3")
        plain = host.part("resshift_core.resize").resize(image.movedim(-1, 1), (32, 32)).movedim(1, -1)
        torch.testing.assert_close(result, plain, **CLOSE)
        assert host.loads == [] and "The mask is black everywhere, so this is the plain enlargement" in host.texts[-1]

    @pytest.mark.parametrize("tile", [-1, -5, -64])
    def test_a_negative_tile_over_a_link_is_a_sentence(self, host, tile):
        with pytest.raises(host.part("resshift_core").InputError, match="tile and overlap must not be negative"):
            upscaled(host, "TiledResShiftUpscaleImage", load(host), picture(1, 16, 16, 3), tile=tile)

    def test_what_is_wrong_with_an_overlap_is_told_once(self, host, caplog, monkeypatch):
        monkeypatch.setattr(host.part("nodes.upscaling"), "CHUNK_FRAMES", 1)
        upscaled(host, "TiledResShiftUpscaleImage", load(host), picture(3, 32, 32, 3), tile=16, overlap=30)
        assert caplog.text.count("is more than half of the tile") == 1

    def test_progress_previews_and_switching_them_off(self, host):
        socket, image = load(host), picture(1, 24, 40, 3)
        upscaled(host, "TiledResShiftUpscaleImage", socket, image, tile=16, overlap=8)
        kind, shown, size = [preview for _, _, preview in host.progress if preview][-1]
        assert kind == "JPEG" and size == 512 and shown.size == (40, 24)
        host.progress.clear()
        host.args.preview_method = host.modules["comfy.cli_args"].LatentPreviewMethod.NoPreviews
        upscaled(host, "ResShiftUpscaleImage", socket, image)
        assert host.progress and not any(preview for _, _, preview in host.progress)

    def test_the_last_preview_looks_like_the_result(self, host):
        socket, image = load(host), picture(1, 32, 32, 3)
        result = upscaled(host, "ResShiftUpscaleImage", socket, image)
        _, shown, _ = host.progress[-1][2]
        import numpy as np

        small = torch.nn.functional.avg_pool2d(result.movedim(-1, 1), 4)[0].movedim(0, -1)
        assert np.abs(np.asarray(shown) / 255 - small.numpy()).mean() < 0.02

    def test_interruption_stops_at_the_next_step(self, host, monkeypatch):
        """Asked for by ourselves: not every host's bar does."""
        told = []

        class Bar:
            def __init__(self, total):
                pass

            def update_absolute(self, value, total=None, preview=None):
                told.append(value)
                host.interrupted = len(told) == 3

        monkeypatch.setattr(host.modules["comfy.utils"], "ProgressBar", Bar)
        with pytest.raises(InterruptProcessingException):
            upscaled(host, "ResShiftUpscaleImage", load(host), picture(1, 16, 16, 3), steps=50)
        assert len(told) == 3

    def test_odd_values_where_no_model_looks(self, host):
        image = torch.full((1, 8, 8, 3), 0.5)
        image[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -3.0])
        black = torch.zeros(1, 8, 8)
        for key, socket in (("ResShiftUpscaleImage", load(host)), ("ResShiftInpaint", None)):
            result = upscaled(host, key, socket, image, mask=black)
            assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1

    def test_a_mask_on_a_cut_out_brings_no_rim(self, host):
        """Where the mask is black the picture is plainly enlarged; the black under alpha 0 must not bleed into it."""
        y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
        alpha = (9 - ((y - 12) ** 2 + (x - 12) ** 2).sqrt()).clamp(0, 1)
        image = torch.cat([(alpha > 0).float()[..., None].expand(-1, -1, 3), alpha[..., None]], dim=-1)[None]
        mask = torch.zeros(1, 24, 24)
        mask[:, :12] = 1
        result = upscaled(host, "ResShiftUpscaleImage", load(host), image, mask=mask)
        plain = result[:, 60:]  # 0.75 at its darkest where the black bled
        assert (plain[..., :3] * plain[..., 3:] + 1 - plain[..., 3:]).min() > 0.97

    def test_pictures_in_float16_where_comfyui_wants_them(self, host):
        """--fp16-intermediates: sums are still made in float32, and the batch is held in half of the memory."""
        socket, image, mask = load(host), picture(2, 16, 24, 3), torch.zeros(1, 16, 24)
        mask[:, :8] = 0.3
        exact = [upscaled(host, "ResShiftUpscaleImage", socket, image, mask=mask) for mask in (None, mask)]
        host.modules["comfy.model_management"].intermediate_dtype = lambda: torch.float16
        half = [upscaled(host, "ResShiftUpscaleImage", socket, image, mask=mask) for mask in (None, mask)]
        assert all(result.dtype == torch.float16 for result in half)
        for one, other in zip(exact, half):
            torch.testing.assert_close(other.float(), one, atol=6e-4, rtol=0)
        taken = upscaled(host, "ResShiftUpscaleImage", socket, image.half(), mask=mask)
        torch.testing.assert_close(taken.float(), exact[1], atol=0.02, rtol=0)

    def test_masks_of_many_frames_are_fitted_a_few_at_a_time(self, host, monkeypatch):
        upscaling, seen = host.part("nodes.upscaling"), []
        resize = upscaling.resize
        monkeypatch.setattr(upscaling, "resize", lambda images, size: seen.append(len(images)) or resize(images, size))
        masks = torch.zeros(18, 8, 8)
        masks[::2] = 1
        image = picture(20, 8, 8, 3)
        result = upscaled(host, "ResShiftUpscaleImage", load(host), image, mask=masks)
        assert max(seen) <= upscaling.CHUNK_FRAMES
        plain = upscaled(host, "ResShiftUpscaleImage", load(host), image, mask=torch.zeros(1, 8, 8))
        whole = upscaled(host, "ResShiftUpscaleImage", load(host), image)
        for i in range(20):
            marked = i < 18 and i % 2 == 0  # the last mask, which is black, serves the frames beyond it
            torch.testing.assert_close(result[i], (whole if marked else plain)[i])

    def test_laying_a_mask_over_frames_can_be_interrupted(self, host, monkeypatch):
        """The bar is full by then: frames may be large and many."""
        upscaling, laid = host.part("nodes.upscaling"), []
        real = upscaling.resize_visible

        def resize_visible(*given):
            laid.append(given)
            host.interrupted = len(laid) == 2
            return real(*given)

        monkeypatch.setattr(upscaling, "resize_visible", resize_visible)
        with pytest.raises(InterruptProcessingException):
            upscaled(host, "ResShiftUpscaleImage", load(host), picture(5, 8, 8, 3), mask=torch.ones(1, 8, 8))
        assert len(laid) == 2

    @pytest.mark.parametrize("node, more, tiles", [
        ("ResShiftUpscaleImage", {}, 1),
        ("TiledResShiftUpscaleImage", {"tile": 64, "overlap": 16, "tile_batch": 256}, 3 * 6),  # of three frames
        ("TiledResShiftUpscaleImage", {"tile": 64, "overlap": 16, "tile_batch": 2}, 2),
        ("TiledResShiftUpscaleImage", {"tile": 512, "tile_batch": 256}, 3),
    ])  # fmt: skip
    def test_room_is_asked_for_the_tiles_that_there_are(self, host, node, more, tiles):
        """What is asked for beyond them moves other models away for nothing."""
        socket = load(host)
        asked, real = [], socket.bytes_per_run
        socket.bytes_per_run = lambda tile, tiles: asked.append((tile, tiles)) or real(tile, tiles)
        upscaled(host, node, socket, picture(3, 100, 140, 3), **more)
        assert asked[0][1] == tiles and asked[0][0] <= 144 and host.loads[-1][1] == real(*asked[0])

    def test_the_room_grows_with_the_tiles(self, host):
        socket = load(host)
        assert socket.bytes_per_run(96, 3) == 3 * socket.model.bytes_per_tile(96, 96)

    def test_an_empty_batch_of_masks_is_none(self, host):
        socket, image = load(host), picture(1, 8, 8, 3)
        plain = upscaled(host, "ResShiftUpscaleImage", socket, image)
        assert torch.equal(upscaled(host, "ResShiftUpscaleImage", socket, image, mask=torch.zeros(0, 8, 8)), plain)

    def test_a_scale_that_is_no_number_is_a_sentence(self, host):
        with pytest.raises(Exception, match="scale is nan"):
            upscaled(host, "ResShiftUpscaleImage", load(host), picture(1, 8, 8, 3), scale=float("nan"))

    def test_before_and_after_for_the_slider(self, host):
        from PIL import Image

        node = host.nodes["ResShiftUpscaleImage"]()
        defaults = {i.id: i.default for i in host.part("nodes.inputs").UPSCALE.inputs if not i.is_socket}
        answer = node.run(model=load(host), image=picture(1, 300, 200, 4), **defaults)
        (text,) = answer["ui"]["resshift_compare"]
        pair = json.loads(text)  # ComfyUI counts a dict as one more picture of the run
        sizes = {Image.open(host.base / "temp" / pair[word]["filename"]).size for word in ("before", "after")}
        assert sizes == {(683, 1024)} and (pair["width"], pair["height"]) == (800, 1200)
        assert pair["picture"] == [200, 300]

    def test_the_slider_shows_colours_without_alpha_and_grey_in_their_own_size(self, host):
        from PIL import Image

        colour = torch.tensor([0.9, 0.3, 0.1, 0.5]).expand(1, 16, 24, 4)
        answer = host.part("nodes.comparison").compared(colour, torch.full((1, 16, 24, 1), 0.4))
        pair = json.loads(answer["resshift_compare"][0])
        for word, wanted in (("before", (0.9, 0.3, 0.1)), ("after", (0.4, 0.4, 0.4))):
            with Image.open(host.base / "temp" / pair[word]["filename"]) as image:
                assert image.size == (24, 16)
                assert [level / 255 for level in image.getpixel((12, 8))] == pytest.approx(wanted, abs=0.02)

    def test_a_full_disk_costs_the_slider_only(self, host, monkeypatch):
        from PIL import Image

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr(Image.Image, "save", full)
        compared = host.part("nodes.comparison").compared
        nothing = {"resshift_compare": []}  # with its key: ComfyUI joins the answers for a list of pictures by the first's
        assert compared(picture(1, 8, 8, 3), picture(1, 8, 8, 3)) == nothing
        assert compared(picture(0, 8, 8, 3), picture(0, 8, 8, 3)) == nothing

    def test_a_face_model_asks_for_an_aligned_face(self, host):
        model = standin.small_model(task="face", variant="faceir_s4", name="faceir_s4")
        socket = load(host, model)
        upscaled(host, "ResShiftUpscaleImage", socket, picture(1, 8, 8, 3), unique_id="3")
        assert "aligned faces of 512 x 512 pixels; this picture is 8 x 8" in host.texts[-1]
        note = host.part("nodes.upscaling").note_about_faces
        assert note(model, torch.zeros(1, 512, 512, 3)) == "" and note(standin.small_model(), torch.zeros(1, 8, 8, 3)) == ""


class TestInpaint:
    def test_fills_the_hole_and_leaves_the_rest(self, host):
        socket, image = load(host, inpainting_model()), picture(2, 40, 48, 3)
        mask = torch.zeros(40, 48)
        mask[10:20, 10:30] = 1
        result = upscaled(host, "ResShiftInpaint", socket, image, mask=mask, seed=4)
        expected = of_library(socket.model, image, mask=mask[None, None], seed=4)
        torch.testing.assert_close(result, expected, **CLOSE)
        assert torch.equal(result[:, 25:], image[:, 25:]) and not torch.equal(result[:, 10:20, 10:30], image[:, 10:20, 10:30])

    @pytest.mark.parametrize("frames", [1, 2, 16])
    def test_a_mask_of_another_size_and_count(self, host, monkeypatch, frames):
        monkeypatch.setattr(host.part("nodes.upscaling"), "CHUNK_FRAMES", frames)
        socket, image = load(host, inpainting_model()), picture(3, 32, 32, 3)
        masks = torch.zeros(2, 16, 16)
        masks[1] = 1
        result = upscaled(host, "ResShiftInpaint", socket, image, mask=masks)
        assert torch.equal(result[0], image[0]) and not torch.equal(result[1], image[1])
        assert not torch.equal(result[2], image[2])  # the last mask serves the frames beyond it

    def test_without_a_mask_a_sentence_in_a_users_words(self, host):
        with pytest.raises(Exception, match="fills what a mask marks. Connect a mask"):
            upscaled(host, "ResShiftUpscaleImage", load(host, inpainting_model()), picture(1, 8, 8, 3))

    def test_a_black_mask_costs_no_model(self, host):
        """Nor its download: ComfyUI asks check_lazy_status before it runs the loader."""
        node, image = host.nodes["ResShiftInpaint"](), picture(2, 8, 8, 4)
        black, marked = torch.zeros(1, 16, 16), torch.zeros(2, 16, 16)
        marked[1, 3, 3] = 1
        assert host.nodes["ResShiftInpaint"].INPUT_TYPES()["required"]["model"][1]["lazy"]
        assert node.check_lazy_status(model=None, image=image, mask=black, seed=0) == []
        assert node.check_lazy_status(model=None, image=image, mask=marked, seed=0) == ["model"]
        result = upscaled(host, "ResShiftInpaint", None, image, mask=black, unique_id="3")
        assert torch.equal(result, image) and "The mask is black everywhere" in host.texts[-1]
        assert torch.equal(upscaled(host, "ResShiftInpaint", load(host, inpainting_model()), image, mask=black), image)
        assert host.loads == []

    def test_refuses_a_model_that_cannot(self, host):
        with pytest.raises(Exception, match="does not fill holes. Load an inpainting model"):
            upscaled(host, "ResShiftInpaint", load(host), picture(1, 8, 8, 3), mask=torch.ones(1, 8, 8))


class TestAdapter:
    def make(self, host, model=None, **widgets):
        defaults = {"seed": 2, "steps": 0, "kappa": 0.0, "p": 0.0, "color_fix": "none"}
        return host.nodes["ResShiftToUpscaleModel"]().run(model=load(host, model), **{**defaults, **widgets})[0]

    def test_is_what_hosts_expect(self, host):
        adapter = self.make(host)
        assert adapter.scale == 4 and isinstance(adapter.model, torch.nn.Module)
        assert adapter.to("cpu") is adapter and adapter.eval() is adapter and adapter.train().requires_grad_(False) is adapter
        assert adapter.architecture.name == "ResShift" and next(adapter.parameters()).is_floating_point()
        assert adapter.size_requirements.multiple_of == 1 and not adapter.tags
        out = adapter(torch.rand(1, 3, 12, 20))
        assert out.shape == (1, 3, 48, 80) and out.dtype == torch.float32

    def test_newer_hosts_load_its_patcher(self, host):
        """Core's Upscale Image (using Model) of 2026 asks for the device there, loads, and moves the model once more."""
        adapter = self.make(host)
        management = host.modules["comfy.model_management"]
        device = adapter.patcher.load_device
        management.load_models_gpu([adapter.patcher], memory_required=1 << 30, force_full_load=True)
        adapter.to(device)
        assert adapter(torch.rand(1, 3, 8, 8).to(device).float()).shape == (1, 3, 32, 32)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_gives_rgb_for_any_channels(self, host, channels):
        assert self.make(host)(torch.rand(1, channels, 8, 8)).shape == (1, 3, 32, 32)

    def test_the_same_tile_gives_the_same_pixels_wherever_it_lies(self, host):
        adapter, tile = self.make(host, kappa=0.12), picture(1, 3, 24, 24)
        assert torch.equal(adapter(tile), adapter(tile))
        assert torch.equal(adapter(tile.repeat(2, 1, 1, 1))[1:], adapter(tile))

    def test_neighbours_at_the_distance_of_cores_tiles_agree(self, host):
        """Core cuts 512 pixels every 480: in the 32 that two tiles share, both see the same noise."""
        model = standin.small_model(norm="position", tile=576, kappa=0.3)
        adapter = self.make(host, model, steps=1)
        flat = torch.full((1, 3, 16, 576), 0.5)
        left, right = adapter(flat), adapter(flat[..., :512])
        shared = slice(4 * 500, 4 * 512)  # of the left tile, away from its context
        torch.testing.assert_close(left[..., 4 * 512 : 4 * 540], right[..., 4 * 32 : 4 * 60], atol=1e-5, rtol=0)
        assert left[..., shared].std() > 1e-3

    def test_its_noise_is_in_the_start_alone(self, host):
        """As its help says: pictures of saved workflows stay as they are."""
        model, tile = standin.small_model(kappa=0.3), picture(1, 3, 24, 24)
        words = {"seed": 2, "noise": "periodic", "steps": 4}
        found = self.make(host, model, steps=4)(tile)
        assert torch.equal(found, rs.upscale(model, tile, sampler="deterministic", **words))
        assert not torch.equal(found, rs.upscale(model, tile, **words))

    def test_can_be_interrupted(self, host):
        adapter = self.make(host)
        host.interrupted = True
        with pytest.raises(InterruptProcessingException):
            adapter(torch.rand(1, 3, 8, 8))

    def test_refuses_inpainting(self, host):
        with pytest.raises(Exception, match="needs a mask"):
            self.make(host, inpainting_model())


class TestFacts:
    def test_of_a_catalogue_model_that_is_not_here(self, host):
        describe = importlib.import_module(f"{host.pack.__name__}.nodes.facts").describe
        facts = describe("realsr_x4_s15_v2 [about 480 MB, x]")
        schedule = rs.ShiftSchedule(15, 2.0, 0.3, 0.04)
        assert (facts["trained_steps"], facts["scale"], facts["multiple"]) == (15, 4, 64)
        assert facts["sqrt_eta_1"] == pytest.approx(schedule.sqrt_eta[0]) and facts["sqrt_eta_T"] == 0.99

    def test_a_student_runs_in_fewer_steps_than_it_was_trained_with(self, host):
        describe = importlib.import_module(f"{host.pack.__name__}.nodes.facts").describe
        facts = describe("sinsr_x4_s1")
        assert (facts["steps"], facts["trained_steps"]) == (1, 15)
        built_in = describe("builtin")  # padded no further than its network needs
        assert built_in["padding"] < built_in["multiple"]

    def test_memory_is_what_the_model_says(self, host):
        model = standin.small_model()
        save(host, model, "mine.safetensors")
        describe = importlib.import_module(f"{host.pack.__name__}.nodes.facts").describe
        facts = describe("mine.safetensors")
        assert facts["bytes_per_pixel"] * 96 * 64 == pytest.approx(model.bytes_per_tile(96, 64))

    def test_what_only_loading_would_tell(self, host):
        (host.base / "models" / "resshift" / "unknown.pth").write_bytes(b"x")
        describe = importlib.import_module(f"{host.pack.__name__}.nodes.facts").describe
        with pytest.raises(Exception, match="can only be told by loading it"):
            describe("unknown.pth")


IMPORT = """
import json, os, socket, sys, time, types
sys.path.insert(0, {tests!r})
import torch
for name in ("utils", "nodes", "models", "src", "ldm", "resshift", "training", "scripts"):
    sys.modules[name] = types.ModuleType(name)  # other packs' and ComfyUI's own
def refuse(*_, **__):
    raise AssertionError("the network was used")
socket.socket.connect = refuse
import comfyui_fakes
from pathlib import Path
host = comfyui_fakes.Comfy(Path({base!r}))
sys.modules.update(host.modules)
path, foreign = list(sys.path), {{n: m for n, m in sys.modules.items() if "resshift" not in n.lower()}}
wall, cpu = time.perf_counter(), time.process_time()
pack = comfyui_fakes.import_pack(Path({folder!r}))
spent = min(time.perf_counter() - wall, time.process_time() - cpu)
same = all(sys.modules.get(name) is module for name, module in foreign.items())
outside = [n for n in ("resshift_core", "torchvision", "timm", "kornia") if n in sys.modules]
print(json.dumps([spent, sys.path == path, same, outside, sorted(pack.NODE_CLASS_MAPPINGS)]))
"""


class TestImport:
    def test_beside_modules_of_other_people(self, tmp_path):
        """Names that ComfyUI and other packs own are there; import takes no time, changes nothing and says nothing."""
        folder = tmp_path / "custom nodes" / "Пакет ResShift"
        folder.parent.mkdir()
        link_folder(folder, ROOT)
        script = IMPORT.format(tests=str(ROOT / "tests"), base=str(tmp_path), folder=str(folder))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        spent, path_is_same, modules_are_same, outside, keys = json.loads(done.stdout)
        assert path_is_same and modules_are_same and outside == [] and keys == sorted(KEYS)
        assert spent < 0.3
        told = [line for line in done.stderr.splitlines() if "aiohttp" not in line]  # ComfyUI brings it
        assert told == []

    def test_the_root_is_importable_without_comfyui(self):
        spec = importlib.util.spec_from_file_location("some_name", ROOT / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.NODE_CLASS_MAPPINGS == {} and Path(ROOT / module.WEB_DIRECTORY).is_dir()

    def test_glue_never_imports_by_absolute_name(self):
        """A path is the package's name: `import resshift_core` would find a copy, or nothing."""
        for file in [ROOT / "__init__.py", *(ROOT / "nodes").glob("*.py")]:
            for line in file.read_text(encoding="utf-8").splitlines():
                assert not line.strip().startswith(("import resshift_core", "from resshift_core", "import nodes", "from nodes"))
