"""The loader node: a choice of the combo becomes a model, downloaded first if need be."""

from __future__ import annotations

import logging
import math
import os
import time

import comfy.model_management as mm
import comfy.utils
import torch

from .. import resshift_core as rs
from ..resshift_core.downloads import download_missing, missing_files
from ..resshift_core.errors import NotHere, VariantOpen
from ..resshift_core.peek import is_whole
from ..resshift_core.registry import REGISTRY, Entry
from .described import described
from .folders import AUTO, download_folder, locate, plain_name
from .managed import ManagedModel, choose_dtypes
from .told import show_text

log = logging.getLogger("resshift")

PAUSE = 0.2  # seconds between two texts on a node


def _fetch(name: str, with_autoencoder: bool, node_id: str | None) -> None:
    """Download what is missing of a model of the registry into ComfyUI's folder; the bar and the text show on the node."""
    bar, licence = comfy.utils.ProgressBar(1), REGISTRY[name].licence
    shown, licences = -math.inf, []

    def note(done: int, total: int | None) -> None:
        nonlocal shown
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total or max(done, 1))
        of = f" of {total / 1e6:.0f}" if total else ""
        if time.monotonic() - shown > PAUSE:  # thousands of pieces come in a second, and each text is a message to the page
            shown = time.monotonic()
            show_text(node_id, f"Downloading {name} ({licence}): {done / 1e6:.0f}{of} MB")

    def tell_licence(entry: Entry) -> bool:
        log.warning("%s is downloaded from %s. Its licence: %s.", entry.name, entry.url, entry.licence)
        licences.append(f"{entry.name}: {entry.licence}")
        show_text(node_id, "; ".join(licences))  # one line is all that a node has
        return True

    try:
        download_missing(
            name, with_autoencoder=with_autoencoder, on_progress=note, confirm=tell_licence, folder=download_folder()
        )  # fmt: skip
    except rs.DownloadError:
        show_text(node_id, f"{name} could not be downloaded.")
        raise
    show_text(node_id, f"{name} has been downloaded.")


def _fingerprint(value: str | None):
    """Changes when the user's own file behind a choice does; a published one never does, but for its download at the first run.

    None: a link gives the choice, and ComfyUI does not say it before the run.
    """
    found = None if value is None else locate(value)
    if found is None or isinstance(found, str):
        return ""
    status = os.stat(found)
    return f"{found} {status.st_size} {status.st_mtime_ns}"


def _refusal(value: str, what: str) -> str | None:
    """Why a choice cannot be loaded."""
    if not isinstance(value, str):
        return f"The {what} is {value!r}; it must be one of the names in the list."
    if value == AUTO and what == "autoencoder" or locate(value) is not None:
        return None
    return (
        f"There is no {what} called {plain_name(value)!r} on this machine. Put the file into {download_folder()}, press R to read "
        "the folder again, or choose another one."
    )


@described
class LoadResShiftModel:
    """See inputs.LOADER."""

    @classmethod
    def VALIDATE_INPUTS(cls, model=None, autoencoder=None):
        """Instead of ComfyUI's list check: sizes in labels, and separators of paths, may differ from those in a workflow."""
        given = [(model, "model"), (autoencoder, "autoencoder")]
        # None: a link gives it, or nothing does, which ComfyUI says itself
        refused = [_refusal(value, what) for value, what in given if value is not None]
        return next(filter(None, refused), True)

    @classmethod
    def IS_CHANGED(cls, model, autoencoder, dtype, **_):
        return _fingerprint(model), _fingerprint(autoencoder) if autoencoder != AUTO else "", dtype

    def run(self, model, autoencoder, dtype, unique_id=None):
        for value, what in ((model, "model"), (autoencoder, "autoencoder")):
            if (refused := _refusal(value, what)) is not None:  # ComfyUI checks no further what a link gives
                raise rs.InputError(refused)
        found = locate(model)
        if isinstance(found, str) and missing_files(found, autoencoder == AUTO):
            _fetch(found, autoencoder == AUTO, unique_id)
        network, decoder = choose_dtypes(dtype)
        offload = mm.unet_offload_device()
        try:
            loaded = _load(found, None if autoencoder == AUTO else locate(autoencoder), offload, unique_id)
        except VariantOpen as error:
            raise rs.CheckpointError(f"{error} In ComfyUI: put that word into the file's name.") from error
        if autoencoder != AUTO and is_whole(found):
            show_text(unique_id, f"{plain_name(model)} contains its autoencoder; {plain_name(autoencoder)} is not used.")
        loaded.unet.to(dtype=network)  # each from float32: --fp32-vae wants all that the file has
        loaded.autoencoder.to(device=mm.vae_offload_device(), dtype=decoder)
        return (ManagedModel(loaded),)


def _load(found, decoder_file, device, node_id: str | None) -> rs.ResShiftModel:
    """In float32. Only the file says whether it needs an autoencoder, and which: that is downloaded then."""
    try:
        return rs.load_model(found, autoencoder=decoder_file, device=device, dtype=torch.float32)
    except NotHere as error:
        missing = error.name
    _fetch(missing, False, node_id)
    return rs.load_model(found, autoencoder=decoder_file, device=device, dtype=torch.float32)
