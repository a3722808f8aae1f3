"""Everything that this package asks of the host's modules, one question a function, with an answer where a host lacks it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from modules import devices, shared, upscaler
from PIL import Image

FOLDER = "ResShift"  # below the host's models folder; also the name of our class of upscalers


def option(key: str, default):
    """The option resshift_`key`. Options do not exist yet while the host imports its extensions."""
    value = getattr(shared.opts, f"resshift_{key}", None)
    return default if value is None else value


def model_folders() -> list[Path]:
    """Where model files lie: --resshift-models-path if it is given, then models/ResShift. Downloads go to the first."""
    chosen = os.path.expanduser(getattr(shared.cmd_opts, "resshift_models_path", None) or "")  # no shell does it in --flag=~/x
    own = Path(shared.models_path) / FOLDER
    return [Path(chosen), own] if chosen and _place(chosen) != _place(own) else [own]


def _place(folder: str | Path) -> str:
    """The same for every spelling of a folder, relative or through links."""
    return os.path.normcase(os.path.realpath(folder))


def device() -> torch.device:
    """Where upscalers run; `--use-cpu esrgan` (or all) moves them to the processor."""
    choose = getattr(devices, "get_device_for", None)
    return torch.device(choose("esrgan") if choose else shared.device)


def refuses_half() -> bool:
    """Whether the host was started with --no-half."""
    return bool(getattr(shared.cmd_opts, "no_half", False))


@contextlib.contextmanager
def without_manual_cast():
    """Context in which torch's layers are torch's own again.

    Where a card has no autocast that A1111 trusts (GTX 16xx, Apple's, Intel's), it replaces the layers' `forward` while it makes
    pictures, hires fix and img2img included, by one that computes in its own number format.
    """
    cast = {
        kind: (kind.forward, kind.org_forward)
        for kind in getattr(devices, "patch_module_list", ())
        if "org_forward" in vars(kind)
    }
    for kind, (_, own) in cast.items():
        kind.forward = own
    try:
        yield
    finally:
        for kind, (casting, _) in cast.items():
            kind.forward = casting


def interrupted() -> bool:
    """Whether the user pressed Interrupt or Skip."""
    state = shared.state  # fetched anew: some hosts replace it
    return bool(getattr(state, "interrupted", False) or getattr(state, "skipped", False))


def job() -> object:
    """Something that is equal as long as the same job runs, and None where nothing does."""
    return getattr(shared.state, "time_start", None)


def make_room() -> None:
    """Ask the host to move its own models off the device, where it has a word for that."""
    with contextlib.suppress(ImportError):
        from modules_forge.utils import prepare_free_memory

        prepare_free_memory()
        return
    with contextlib.suppress(ImportError):
        from modules_forge.forge_util import prepare_free_memory

        prepare_free_memory()


def collect_garbage() -> None:
    """Give cached memory of the device back."""
    devices.torch_gc()


def shows_previews() -> bool:
    return bool(getattr(shared.opts, "live_previews_enable", True))


def show_preview(image) -> None:
    """Hand a PIL picture to the live preview."""
    state = shared.state
    if hasattr(state, "assign_current_image"):
        state.assign_current_image(image)
    else:
        state.current_image = image
        state.id_live_preview = getattr(state, "id_live_preview", 0) + 1


def floors_sizes() -> bool:
    """Whether the host's own upscalers give sides that are multiples of 8; those of SD.Next do not."""
    return not hasattr(upscaler, "compile_upscaler")


def forget_cached_pictures() -> None:
    """Empty the Extras tab's cache, which knows pictures and upscalers but not our settings.

    Of its pictures alone, where it can be seen: Forge Neo keeps there, too, what the colours are to be corrected to.
    """
    from modules import scripts

    caches = [getattr(data.module, "upscale_cache", None) for data in _upscale_scripts() if hasattr(data, "module")]
    if caches and all(isinstance(cache, dict) for cache in caches):
        for cache in caches:
            for key in [key for key, value in cache.items() if isinstance(value, Image.Image)]:
                del cache[key]
        return
    runner = getattr(scripts, "scripts_postproc", None)
    if runner is not None:
        runner.image_changed()


def _upscale_scripts() -> list:
    """What the host knows of its script Upscale of the Extras tab."""
    with contextlib.suppress(ImportError):
        from modules import scripts

        known = getattr(scripts, "postprocessing_scripts_data", ())
        return [data for data in known if getattr(data.script_class, "name", None) == "Upscale"]
    return []


def listed() -> dict[str, str]:
    """{name: source} of our entries in the host's list of upscalers."""
    ours = (item for item in shared.sd_upscalers if getattr(item.scaler, "name", None) == FOLDER)
    return {item.name: item.data_path for item in ours}


def add_upscalers(make: Callable[[], list]) -> None:
    """List what `make` gives in a host whose list of upscalers is fixed; does nothing where it is listed already."""
    fixed, known = not listed(), {upscaler.name for upscaler in shared.sd_upscalers}
    shared.sd_upscalers.extend(item for item in make() if item.name not in known)
    if fixed:
        _join_lists_to_come(make)


def _join_lists_to_come(make: Callable[[], list]) -> None:
    """Forge Neo's button makes the list anew, of what its class of ESRGAN models finds: ours are found with them."""
    leave_lists_to_come()
    with contextlib.suppress(ImportError, AttributeError):
        from modules import esrgan_model

        class WithOurs(esrgan_model.UpscalerESRGAN):
            holds_resshift = True

            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.scalers = [*self.scalers, *make()]

        esrgan_model.UpscalerESRGAN = WithOurs


def leave_lists_to_come() -> None:
    """Give the host its own class back."""
    with contextlib.suppress(ImportError, AttributeError):
        from modules import esrgan_model

        if esrgan_model.UpscalerESRGAN.holds_resshift:
            esrgan_model.UpscalerESRGAN = esrgan_model.UpscalerESRGAN.__base__


def watch_upscale(begins: Callable[[dict, tuple[int, int] | None], None], ends: Callable[[object | None], None]) -> None:
    """Have the host's script Upscale tell what its controls say when it begins with a picture, of which size, and which one it leaves."""
    for data in _upscale_scripts():
        kind = data.script_class
        if not hasattr(kind.process, "unwatched"):
            kind.process = _watched(kind.process, begins, ends)


def _watched(process: Callable, begins, ends) -> Callable:
    @functools.wraps(process)
    def watched(self, pp, *arguments, **words):
        begins(words, pp.image.size if pp.image is not None else None)  # SD.Next shows its videos, too
        left = None
        try:
            result = process(self, pp, *arguments, **words)
            left = pp.image
        finally:
            ends(left)
        return result

    watched.unwatched = process
    return watched


def leave_upscale() -> None:
    """Undo `watch_upscale`."""
    for data in _upscale_scripts():
        process = data.script_class.process
        if hasattr(process, "unwatched"):
            data.script_class.process = process.unwatched


def quoted(value) -> str:
    """A value as the host writes it into a picture's text, so that it can be read back."""
    for module in ("modules.infotext_utils", "modules.generation_parameters_copypaste", "modules.infotext"):
        with contextlib.suppress(ImportError, AttributeError):
            return str(importlib.import_module(module).quote(value))
    return str(value)


def make_folder() -> None:
    """Create models/ResShift, so that people find where their files go."""
    with contextlib.suppress(OSError):
        os.makedirs(model_folders()[0], exist_ok=True)
