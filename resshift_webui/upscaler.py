"""The entries in WebUI's lists of upscalers: Extras, hires fix, SD upscale, img2img."""

from __future__ import annotations

import logging

import modules.upscaler
from PIL import Image

from . import host
from .entries import Entry, find_entry, listed_or_builtins
from .session import SESSION
from .upscaling import upscale_image

log = logging.getLogger("resshift")

BLOCK = 8  # the host's upscalers give sides that are multiples of this


def host_size(width: int, height: int, scale: float, blended: bool = False) -> tuple[int, int]:
    """(width, height) that the host's own upscalers give: mostly floored to multiples of 8, except where nothing would be left.

    67 * (1856 / 67) is less than 1856 and becomes 1848 there, to which *Crop to fit* adds black borders; not so here, but where
    the picture is `blended` with one of theirs.
    """
    sides = (int(side * scale + (0 if blended else 1e-6)) for side in (width, height))
    block = BLOCK if host.floors_sizes() else 1
    return tuple(side // block * block or max(1, side) for side in sides)


class UpscalerResShift(modules.upscaler.Upscaler):
    """One object for all entries. `upscale` is the host's contract of size, in one pass instead of up to three."""

    name = "ResShift"

    def __init__(self, dirname=None):
        try:  # an exception here would keep the server from starting
            super().__init__(False)
            self.user_path = dirname
            host.make_folder()
        except Exception as error:
            log.warning("ResShift's models folder is not available: %s", error)
        self.name = "ResShift"
        self.scalers = [
            modules.upscaler.UpscalerData(entry.name, entry.source, self, entry.scale) for entry in listed_or_builtins()
        ]

    def upscale(self, img: Image.Image, scale, selected_model: str | None = None) -> Image.Image:
        """img at `scale` times its size. Where the user stops the run, and for factors under 1, img merely resized.

        Raises:
            rs.ResShiftError: the model cannot be loaded or run; the host shows the sentence.
        """
        self.scale = scale
        size = host_size(img.width, img.height, scale, SESSION.blended)
        if scale >= 1:
            result = self._run(img, selected_model, size)
            if result is not None:
                return result
        else:
            SESSION.remember(self._entry(selected_model).name, size, None)
        return img.resize(size, Image.Resampling.LANCZOS)

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        """img at the model's own scale; where the user stops the run, img."""
        return self._run(img, selected_model, None) or img

    def load_model(self, path: str):
        """The host's interface asks for it; models are loaded when they run."""
        return None

    def _run(self, img: Image.Image, source: str | None, size: tuple[int, int] | None) -> Image.Image | None:
        if host.interrupted():  # while the host read the picture; its cache will take what we return for the result
            SESSION.stopped = True
            return None
        entry = self._entry(source)
        result = upscale_image(img, entry, SESSION.settings(), size=size, owns_bar=SESSION.in_extras())
        if result is None:
            return None
        SESSION.remember(entry.name, result.image.size, result.made, result.sheet)
        SESSION.remember_outside(result.image, result.made)
        return result.image

    def _entry(self, source: str | None) -> Entry:
        """The entry that was listed with this source; the file may be gone by now, which loading it will say."""
        for scaler in self.scalers:
            if source in (scaler.data_path, scaler.name):
                return Entry(scaler.name, scaler.data_path, int(scaler.scale))
        return find_entry(source or "builtin")
