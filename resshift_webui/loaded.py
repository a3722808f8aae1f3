"""The model in memory: one at a time, loaded when it is first used, off the device between runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import resshift_core as rs
from resshift_core import registry
from resshift_core.checkpoint import resolve_path
from resshift_core.device import DTYPES
from resshift_core.downloads import download_missing, missing_files, refuse_unchecked
from resshift_core.errors import CheckpointError, InputError, NotHere, VariantOpen

from . import host

log = logging.getLogger("resshift")

DTYPE_WORDS = ("auto", *DTYPES)


def stamp(source: str) -> tuple:
    """Changes when the file behind a name or path does."""
    try:
        path = resolve_path(source)
        status = path.stat()
    except (rs.ResShiftError, OSError):
        return (source,)
    return str(path), status.st_size, status.st_mtime_ns


class _Keeper:
    """Holds the last model, on the processor, until another one or another number format is asked for."""

    def __init__(self):
        self.lock = threading.RLock()
        self.key: tuple | None = None
        self.model: rs.ResShiftModel | None = None

    def get(self, source: str, dtype: str, device, on_progress) -> rs.ResShiftModel:
        key = (stamp(source), dtype, str(device))
        if key != self.key or self.model is None:
            self.free()
            self.model, self.key = _load(source, dtype, device, on_progress), key
        return self.model.to(device=device)

    def rest(self) -> None:
        """After a run: leave the device, and memory too unless it is to be kept."""
        if self.model is None:
            return
        self.model.to(device="cpu")
        if not host.option("keep_loaded", True):
            self.free()
        host.collect_garbage()

    def free(self) -> None:
        self.model, self.key = None, None


_keeper = _Keeper()


@contextmanager
def on_device(source: str, on_progress=None) -> Iterator[rs.ResShiftModel]:
    """The model of a registry name or path, on the host's device for as long as the context lasts.

    on_progress: called with (bytes done, bytes in all or None) while a published model is fetched; what it raises stops that.

    Raises:
        rs.ResShiftError: it cannot be loaded or fetched, or may not be fetched; a sentence.
    """
    with _keeper.lock:
        _fetch_missing(source, on_progress)
        host.make_room()
        try:
            yield _keeper.get(source, _dtype(), host.device(), on_progress)
        finally:
            _keeper.rest()


@contextmanager
def on_processor(source: str) -> Iterator[rs.ResShiftModel]:
    """The same in float32 on the processor, for what the device cannot hold."""
    with _keeper.lock:
        host.collect_garbage()
        yield _load(source, "fp32", "cpu", None)


def free() -> None:
    """Forget the model: the scripts are being unloaded."""
    with _keeper.lock:
        _keeper.free()
    host.collect_garbage()


def _dtype() -> str:
    word = host.option("dtype", "auto")
    if word not in DTYPE_WORDS:
        raise InputError(f"The option resshift_dtype is {word!r}; known are {', '.join(DTYPE_WORDS)}.")
    return "fp32" if word == "auto" and host.refuses_half() else word


def _load(source: str, dtype: str, device, on_progress) -> rs.ResShiftModel:
    """A published network under another name says only while it is loaded which autoencoder it needs."""
    missing = None
    try:
        return rs.load_model(source, device=device, dtype=dtype)
    except NotHere as error:
        missing = error.name
    except VariantOpen as error:
        raise CheckpointError(f"{error} In WebUI: put that word into the file's name.") from error
    _fetch_missing(missing, on_progress)
    return rs.load_model(source, device=device, dtype=dtype)


def _fetch_missing(source: str, on_progress) -> None:
    missing = missing_files(source) if source in registry.REGISTRY else []
    if not missing:
        return
    folder = registry.first_writable(host.model_folders())
    for entry in missing:
        refuse_unchecked(entry)  # before other advice, which would not help
    if not host.option("download", True):
        names = " and ".join(f"{entry.file} from {entry.url}" for entry in missing)
        raise InputError(
            f"{source} is not on this machine, and Settings > ResShift does not allow downloads. Allow them there, or put {names} "
            f"into {folder}. Licence: {missing[0].licence}."
        )
    download_missing(source, on_progress=on_progress, confirm=_tell_licence, folder=folder)


def _tell_licence(entry: registry.Entry) -> bool:
    log.warning("%s is downloaded from %s. Its licence: %s.", entry.name, entry.url, entry.licence)
    return True
