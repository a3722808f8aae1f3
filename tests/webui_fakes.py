"""As much of WebUI's modules and of Gradio as the extension uses, behaving as A1111 1.10 and Forge do where it matters.

What a real Forge does with it is tested in test_webui_live.py. The fake Gradio has the components that Gradio 3 and 4 share,
and no others: using one more fails here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "resshift_upscaler.py"
LANCZOS = Image.Resampling.LANCZOS


class Component:
    """A control: remembers what it was made with. `tooltip` is the host's addition, as in A1111 and Forge."""

    knows_tooltips = True

    def __init__(self, *args, tooltip=None, **keywords):
        if tooltip is not None and not self.knows_tooltips:
            raise TypeError("unexpected keyword argument 'tooltip'")
        self.args, self.keywords, self.tooltip, self.clicked = args, keywords, tooltip, None

    def click(self, fn, inputs, outputs):
        self.clicked = fn

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def quoted(value):
    """Words of a picture's text with what ends a word in them."""
    return json.dumps(value) if set(",:\n") & set(str(value)) else value


class State:
    """shared.state during and between jobs."""

    def __init__(self):
        self.job, self.job_no, self.job_count = "", 0, 0
        self.sampling_step, self.sampling_steps, self.textinfo = 0, 0, None
        self.skipped, self.interrupted, self.time_start = False, False, None
        self.current_image, self.id_live_preview, self.texts, self.bars = None, 0, [], []
        self._starts = 0

    def __setattr__(self, name, value):
        if name == "textinfo" and value:
            self.texts.append(value)
            self.bars.append((self.job_no, self.sampling_step, self.sampling_steps))
        super().__setattr__(name, value)

    def begin(self, job="(unknown)"):
        self._starts += 1
        self.job, self.job_no, self.job_count, self.time_start = job, 0, -1, float(self._starts)
        self.skipped = self.interrupted = False
        self.sampling_step, self.textinfo = 0, None

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def end(self):
        self.job, self.job_count = "", 0

    def assign_current_image(self, image):
        self.current_image = image
        self.id_live_preview += 1


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, category_id=None
    ):  # fmt: skip
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section, self.category_id, self.comment_after, self.onchange = section, category_id, "", onchange

    def info(self, text):
        self.comment_after += text
        return self


class Options:
    """shared.opts: an option that nobody has added is an AttributeError."""

    def __init__(self):
        self.__dict__["data"], self.__dict__["data_labels"] = {}, {}
        self.data.update(ESRGAN_tile=192, ESRGAN_tile_overlap=8, live_previews_enable=True)

    def __getattr__(self, name):
        if name in self.data:
            return self.data[name]
        raise AttributeError(name)

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def set(self, key, value):
        """Whether the option has changed; the option may refuse."""
        before, self.data[key] = self.data[key], value
        try:
            self.data_labels[key].onchange()
        except Exception:
            self.data[key] = before
        return self.data[key] != before


class Upscaler:
    """The base class, whose `upscale` runs up to three passes and floors sides to multiples of 8."""

    name, model_path, user_path, scalers = None, None, None, ()

    def __init__(self, create_dirs=False):
        self.half, self.scale = True, 1

    def do_upscale(self, img, selected_model):
        return img

    def upscale(self, img, scale, selected_model=None):
        size = (int(img.width * scale) // 8 * 8, int(img.height * scale) // 8 * 8)
        for i in range(3):
            if img.width >= size[0] and img.height >= size[1] and (i > 0 or scale != 1):
                break
            img = self.do_upscale(img, selected_model)
        return img if img.size == size else img.resize(size, LANCZOS)


def no_scalers(self, dirname=None):
    self.scalers = []


class UpscalerData:
    def __init__(self, name, path, upscaler=None, scale=4, model=None, sha256=None):
        self.name, self.data_path, self.scaler, self.scale = name, path, upscaler, scale


@dataclass
class Postprocessed:
    """What scripts are given and change."""

    image: Image.Image
    info: dict = field(default_factory=dict)
    extra_images: list = field(default_factory=list)
    nametags: list = field(default_factory=list)
    disable_processing: bool = False

    def create_copy(self, image, *, nametags=None, disable_processing=False):
        return Postprocessed(image, dict(self.info), [], [*self.nametags, *(nametags or [])], disable_processing)


class ScriptPostprocessing:
    order, name = 1000, None

    def process_firstpass(self, pp, **args):
        pass

    def image_changed(self):
        pass


class UpscaleScript(ScriptPostprocessing):
    """Extras' own script with its cache, which knows pictures and names alone."""

    name = "Upscale"

    def __init__(self, host):
        self.host, self.cache = host, {}

    def upscaled(self, image, data, factor):
        key = (image.mode, image.tobytes(), data.name, factor)
        if key not in self.cache:
            self.cache[key] = data.scaler.upscale(image, factor, data.data_path)
        return self.cache[key]

    def process(self, pp, upscaler=None, factor=4.0, second=None, crop=None):
        """crop: (width, height) of "Scale to", with "Crop to fit"."""
        listed = {item.name: item for item in self.host.shared.sd_upscalers}
        if upscaler not in listed:
            return
        if crop is not None:
            factor = max(crop[0] / pp.image.width, crop[1] / pp.image.height)
        image = self.upscaled(pp.image, listed[upscaler], factor)
        pp.info["Postprocess upscaler"] = upscaler
        if second is not None:
            image = Image.blend(image, self.upscaled(pp.image, listed[second], factor), 0.5)
            pp.info["Postprocess upscaler 2"] = second
        if crop is not None:
            image = image.crop((0, 0, *crop))
            pp.info["Postprocess crop to"] = f"{crop[0]}x{crop[1]}"
        pp.image = image

    def image_changed(self):
        self.cache.clear()


class WebUI:
    """The fake host. `load()` loads the script as the host does; `extras()` runs a job of the Extras tab."""

    def __init__(self, base: Path, fixed_upscalers: bool = False):
        self.base, self.fixed = base, fixed_upscalers
        self.callbacks: dict[str, list] = {}
        self.made_room, self.collected, self.knows_firstpass = 0, 0, True
        self.modules = self._modules()

    def _modules(self) -> dict[str, types.ModuleType]:
        def module(name, **contents):
            made = types.ModuleType(name)
            vars(made).update(contents)
            return made

        def count(name):
            return lambda *_: setattr(self, name, getattr(self, name) + 1)

        self.shared = module(
            "modules.shared", opts=Options(), state=State(), models_path=str(self.base / "models"), OptionInfo=OptionInfo,
            cmd_opts=types.SimpleNamespace(resshift_models_path=None, no_half=False), device=torch.device("cpu"), sd_upscalers=[],
        )  # fmt: skip
        self.devices = module(
            "modules.devices", torch_gc=count("collected"), get_device_for=lambda task: torch.device("cpu"),
        )  # fmt: skip
        words = ("ui_settings", "before_ui", "app_started", "script_unloaded")
        callbacks = {f"on_{word}": self.callbacks.setdefault(word, []).append for word in words}
        self.runner = types.SimpleNamespace(image_changed=lambda: [script.image_changed() for script in self.scripts])
        self.gradio = module("gradio", update=lambda **_: "unchanged")
        for name in ("Slider", "Dropdown", "Checkbox", "Radio", "Number", "HTML", "Row", "Accordion", "Button"):
            setattr(self.gradio, name, type(name, (Component,), {}))
        self.upscaler = module("modules.upscaler", Upscaler=type("Upscaler", (Upscaler,), {}), UpscalerData=UpscalerData)
        parts = {
            "shared": self.shared,
            "devices": self.devices,
            "upscaler": self.upscaler,
            "scripts_postprocessing": module("modules.scripts_postprocessing", ScriptPostprocessing=ScriptPostprocessing),
            "ui_components": module("modules.ui_components", InputAccordion=Component, ToolButton=Component),
            "script_callbacks": module("modules.script_callbacks", **callbacks),
            "scripts": module("modules.scripts", scripts_postproc=self.runner),
            "call_queue": module("modules.call_queue", queue_lock=threading.Lock()),
            "infotext_utils": module("modules.infotext_utils", quote=quoted),
            "esrgan_model": module("modules.esrgan_model", UpscalerESRGAN=type("UpscalerESRGAN", (), {"__init__": no_scalers})),
        }
        package = module("modules", __path__=[], **parts)
        forge = module("modules_forge.utils", prepare_free_memory=count("made_room"))
        named = {"modules_forge": module("modules_forge", __path__=[], utils=forge), "modules_forge.utils": forge}
        return {"modules": package, "gradio": self.gradio, **named, **{f"modules.{name}": part for name, part in parts.items()}}

    def load(self) -> types.ModuleType:
        """Scripts, then upscalers, then the hooks before the UI: the host's order, at start and at every Reload UI."""
        for registered in self.callbacks.values():
            registered.clear()
        spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        kinds = [kind for kind in vars(script).values() if isinstance(kind, type) and issubclass(kind, ScriptPostprocessing)]
        self.scripts = [UpscaleScript(self), *(kind() for kind in kinds)]
        self.scripts.sort(key=lambda script: script.order)
        self.list_upscalers()
        self.call("before_ui")
        return script

    def list_upscalers(self) -> None:
        """At start and at Reload UI; Forge Neo's list, which is fixed, has a button for it."""
        found = {str(kind): kind for kind in self.upscaler.Upscaler.__subclasses__()}.values()
        classes = [self.modules["modules.esrgan_model"].UpscalerESRGAN] if self.fixed else found
        self.shared.sd_upscalers[:] = [item for kind in classes for item in kind(None).scalers]

    def call(self, word: str, *arguments) -> None:
        for callback in self.callbacks[word]:
            callback(*arguments)

    @property
    def script(self):
        return next(script for script in self.scripts if script.name == "ResShift")

    def set(self, **options) -> None:
        self.shared.opts.data.update({f"resshift_{word}": value for word, value in options.items()})

    def extras(self, image, upscaler=None, factor=4.0, second=None, crop=None, **controls) -> Postprocessed:
        """One picture through all scripts; without `controls` as the API does it: every control of ours is None."""
        upscale = {"upscaler": upscaler, "factor": factor, "second": second, "crop": crop}
        state = self.shared.state
        state.begin("extras")
        state.job_count = 1
        state.nextjob()
        state.skipped = False
        pp = Postprocessed(image)
        names = ("enable", "model", "scale", *INPUT_IDS)
        ours = {name: controls.get(name) for name in names}
        try:
            for script in self.scripts:
                if self.knows_firstpass:
                    script.process_firstpass(pp, **({} if script.name == "Upscale" else ours))
            for script in self.scripts:
                if state.skipped:
                    break
                state.job = script.name
                script.process(pp, **(upscale if script.name == "Upscale" else ours))
        finally:
            state.end()
        return pp


INPUT_IDS = ("steps", "kappa", "p", "sampler", "seed", "tile", "overlap", "tile_batch", "color_fix", "compare")


@contextlib.contextmanager
def installed(host: WebUI, monkeypatch):
    """The host's modules importable, and the extension imported anew."""
    for name, module in host.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    forget()
    try:
        yield host
    finally:
        forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "resshift_webui"]:
        del sys.modules[name]
