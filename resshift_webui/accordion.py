"""The accordion in the Extras tab: settings of this run, a pass of its own, and words for the picture's text."""

from __future__ import annotations

import contextlib
import itertools
import logging

import gradio as gr
from modules import scripts_postprocessing, ui_components
from PIL import Image

from resshift_core.errors import InputError
from resshift_core.inputs import SCALE
from resshift_core.resize import target_size

from . import host, loaded
from .controls import draw
from .entries import BUILTIN, find_entry, listed_or_builtins
from .session import SESSION, settings_of_options
from .settings import INPUTS, RANDOM, Settings, check_scale
from .upscaler import host_size
from .upscaling import Result, upscale_image

log = logging.getLogger("resshift")

NOTE = (
    "While its box is ticked, these settings count, not those of the Settings page. If Upscale above uses a ResShift model, "
    "they steer that; otherwise ResShift runs here, with the model and factor below."
)
NOTE_WITHOUT_FIRST_PASS = (
    "While its box is ticked, ResShift runs here, with these settings and the model and factor below, unless Upscale above uses a "
    "ResShift model: that takes the settings of the Settings page."
)
ROWS = (("steps", "kappa", "p"), ("sampler", "color_fix"), ("seed",), ("tile", "overlap", "tile_batch"), ("compare",))
UPSCALERS = ("Postprocess upscaler", "Postprocess upscaler 2")  # the host's words for what Upscale used


class ScriptPostprocessingResShift(scripts_postprocessing.ScriptPostprocessing):
    """Runs after Upscale (order 1000). The host's API hands None to every control: closed, and the options count."""

    name = "ResShift"
    order = 1015
    drawn = itertools.count(1)  # times; begins anew with every page

    def ui(self):
        number = next(type(self).drawn)
        after = f"_{number}" if number > 1 else ""  # the host can show it in txt2img and img2img, too, and finds parts by id
        with _accordion(after) as enable:
            gr.HTML(f"<p class='resshift-note'>{NOTE if _sees_jobs_begin() else NOTE_WITHOUT_FIRST_PASS}</p>")
            with gr.Row():
                names = [entry.name for entry in listed_or_builtins()]
                model = gr.Dropdown(label="Model", choices=names, value=BUILTIN, elem_id=f"resshift_model{after}")
                scale = draw(SCALE, 0.0, after)
            shown = {}
            for row in ROWS:
                with gr.Row():
                    shown |= {word: draw(INPUTS[word], _default_of(word), after) for word in row}
                    if "seed" in row:
                        _seed_buttons(shown["seed"], after)
        return {"enable": enable, "model": model, "scale": scale, **shown}

    def process_firstpass(self, pp, enable=None, model=None, scale=None, **controls):
        """Before any script works on the picture: what the accordion asks, and whether the host's cache still holds."""
        if pp.image is None:
            return
        if not SESSION.sees_jobs:  # what the cache holds was remembered without its job
            SESSION.sees_jobs, SESSION.fingerprint = True, None
        SESSION.begin(Settings.of(controls) if enable else None, pp.image.size)
        _look_at_cache()

    def process(self, pp, enable=None, model=None, scale=None, **controls):
        if pp.image is None:  # SD.Next shows all scripts its videos, too
            return
        names = host.listed()
        used = [pp.info[word] for word in UPSCALERS if pp.info.get(word) in names]
        made = SESSION.made_outside(pp.image)
        if used:
            self._describe(pp, used)
        elif made is not None:  # in txt2img and img2img the host does not say what Upscale used,
            pp.info.update(made.as_text())
            host.forget_cached_pictures()  # nor when a job begins, in which options may be others
        elif enable:
            self._run(pp, model, scale, Settings.of(controls))

    def _describe(self, pp, used: list[str]) -> None:
        """The picture is Upscale's, by one or two of our entries; from its cache, perhaps."""
        if SESSION.stopped:
            return
        size = _size_before_crop(pp)
        for name, after in zip(used, ("", " 2")):
            made = SESSION.found(name, size)
            if made is not None:
                pp.info.update(made.as_text(after))
                SESSION.last = made
        sheets, SESSION.sheets = SESSION.sheets, []  # each once, where a script before Upscale made several pictures of one
        for sheet in sheets:
            _add_sheet(pp, sheet)

    def _run(self, pp, model, scale, settings: Settings) -> None:
        factor, entry = check_scale(scale or 0), find_entry(model or BUILTIN)
        owns_bar = SESSION.in_extras() or not _sees_jobs_begin()
        result: Result | None = upscale_image(pp.image, entry, settings, scale=factor, owns_bar=owns_bar)
        if result is None:  # stopped
            height, width = target_size(pp.image.height, pp.image.width, factor or entry.scale)
            pp.image = pp.image.resize((width, height), Image.Resampling.LANCZOS)
            return
        pp.image = result.image
        pp.info.update(result.made.as_text())
        SESSION.last = result.made
        _add_sheet(pp, result.sheet)

    def image_changed(self):
        """Another picture was put into the tab; nothing of ours depends on that."""


def _sees_jobs_begin() -> bool:
    """A1111 before 1.7 and SD.Next do not tell."""
    return hasattr(scripts_postprocessing.ScriptPostprocessing, "process_firstpass")


def _size_before_crop(pp) -> tuple[int, int]:
    """(width, height) that Upscale got from the upscaler; it crops to "Scale to" afterwards."""
    if "Postprocess crop to" not in pp.info or SESSION.before is None:
        return pp.image.size
    wanted = [int(side) for side in str(pp.info["Postprocess crop to"]).split("x")]
    factor = max(side / old for side, old in zip(wanted, SESSION.before))
    return host_size(*SESSION.before, factor)


def upscale_begins(words: dict, size: tuple[int, int] | None) -> None:
    """The host's script Upscale begins with a picture of that size; words: what its controls say.

    Our own has not seen the job where it is switched off in the host's settings, and outside of Extras.
    """
    if not SESSION.in_extras():
        SESSION.asked = None
        _look_at_cache()
        if SESSION.sees_jobs:
            SESSION.fingerprint = None  # of what the cache then holds we have no words
    SESSION.upscale_begins(words, size)


def _look_at_cache() -> None:
    """The host's, of pictures that Upscale made: it knows nothing of our settings, and of runs that were stopped."""
    fingerprint = _fingerprint()
    if SESSION.stopped or fingerprint is None or fingerprint != SESSION.fingerprint:
        host.forget_cached_pictures()
        SESSION.forget()
    SESSION.fingerprint, SESSION.stopped = fingerprint, False


def _fingerprint() -> tuple | None:
    """What a cached picture depends on beside itself and its upscaler's name. None: nothing in the cache is of use."""
    try:
        if SESSION.asks_for_random():  # a cached picture has no new seed
            return None
        settings = SESSION.settings()
    except InputError:  # an option out of range matters to those who use our entries, and they are told
        return None
    if settings.compare:  # and no sheet
        return None
    files = tuple((name, loaded.stamp(source)) for name, source in host.listed().items())
    return settings, host.option("dtype", "auto"), files


def _default_of(word: str):
    """For a control: asked for whenever a page is loaded, or what is saved on the Settings page would wait for Reload UI."""
    return lambda: getattr(_defaults(), word)


def _defaults() -> Settings:
    try:
        return settings_of_options()
    except InputError as error:
        log.warning("%s The accordion starts with the defaults.", error)
        return Settings()


def _add_sheet(pp, sheet) -> None:
    if sheet is None or not hasattr(pp, "extra_images"):
        return
    copy = getattr(pp, "create_copy", None)
    pp.extra_images.append(copy(sheet, nametags=["compare"], disable_processing=True) if copy else sheet)


@contextlib.contextmanager
def _accordion(after: str):
    """The host's accordion that is a checkbox as well; hosts before it get one inside a plain accordion."""
    kind = getattr(ui_components, "InputAccordion", None)
    if kind is not None:
        with kind(False, label="ResShift", elem_id=f"extras_resshift{after}") as enable:
            yield enable
        return
    with gr.Accordion("ResShift", open=False, elem_id=f"extras_resshift{after}"):
        yield gr.Checkbox(label="Use these settings", value=False, elem_id=f"extras_resshift_enable{after}")


def _seed_buttons(seed, after: str) -> None:
    kind = getattr(ui_components, "ToolButton", gr.Button)
    draw_new = kind("\U0001f3b2", elem_id=f"resshift_seed_random{after}")
    reuse = kind("\u267b\ufe0f", elem_id=f"resshift_seed_reuse{after}")
    draw_new.click(fn=lambda: RANDOM, inputs=[], outputs=[seed])
    reuse.click(fn=_last_seed, inputs=[], outputs=[seed])


def _last_seed():
    """The seed of the last picture; where there is none, the field stays as it is."""
    return gr.update() if SESSION.last is None else SESSION.last.settings.seed
