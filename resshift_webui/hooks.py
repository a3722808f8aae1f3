"""What WebUI calls when. Registered each time the scripts are loaded; the host forgets its callbacks at Reload UI."""

from __future__ import annotations

import contextlib
import itertools

from modules import script_callbacks

from resshift_core.transfer import also_trust

from . import api, host, loaded, page
from .accordion import ScriptPostprocessingResShift, upscale_begins
from .session import SESSION
from .upscaler import UpscalerResShift


def register() -> None:
    with contextlib.suppress(ImportError):  # it comes with the host's own downloads
        import certifi

        also_trust(certifi.where())
    page.add_options()  # now: a host without a UI never asks for them, and its API knows only those that are there by then
    script_callbacks.on_ui_settings(page.add_options)
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_app_started(_watch)  # hosts without a UI draw no page
    script_callbacks.on_script_unloaded(loaded.free)
    script_callbacks.on_script_unloaded(host.leave_lists_to_come)
    script_callbacks.on_script_unloaded(host.leave_upscale)


def _before_ui() -> None:
    """A page is about to be drawn. Some hosts have a fixed list of upscalers."""
    ScriptPostprocessingResShift.drawn = itertools.count(1)
    _watch()
    host.add_upscalers(lambda: UpscalerResShift().scalers)


def _watch(*_) -> None:
    host.watch_upscale(upscale_begins, SESSION.upscale_ends)
