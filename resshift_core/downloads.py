"""`download`: a model of the registry onto this machine, when a person asks for it.

Its licence is told first. What arrives is compared with the registry's size and hash, or, where nobody has published them,
strictly with the architecture it must be; then its own hash is noted, and the file must stay the same from then on.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from safetensors import SafetensorError

from .atomic_file import replace
from .checkpoint_file import HEAD, describe_text, open_safetensors, pickles_are_safe, read_weights, sha256_of
from .detection import check_entry
from .errors import Cancelled, CheckpointError, DownloadError, InputError, brief
from .file_lock import file_lock
from .pins import PINS, check_pin, pin, pinned_sha256
from .registry import VARIANTS, Entry, find_in, get_entry, models_dir
from .transfer import Progress, StorageError, Transfer, TransferError, bytes_of, discard, is_allowed

log = logging.getLogger("resshift")

MIRROR = "RESSHIFT_MIRROR"


Confirm = Callable[[Entry], bool]


def download_url(entry: Entry) -> str:
    """Where the file is fetched from: the registry's address, its host replaced by `RESSHIFT_MIRROR` if that is set.

    The mirror may have a path: https://mirror.example/github + /owner/project/releases/... of the original address.

    Raises:
        DownloadError: the mirror is no https address (http is for this machine only).
    """
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return entry.url
    try:
        plain = is_allowed(mirror) and not (urlsplit(mirror).query or urlsplit(mirror).fragment or "@" in mirror)
        plain = plain and urlsplit(mirror).port != 0  # raises for what is no port
    except ValueError:
        plain = False
    if not plain:
        raise DownloadError(
            f"{MIRROR} is {mirror!r}. It must be an address like https://mirror.example/path; http is for this machine only."
        )
    return mirror.rstrip("/") + urlsplit(entry.url).path


# ------------------------------------------------------------------------------------------------------- checking


def _check_hash(path: Path, entry: Entry) -> None:
    if entry.size is not None and bytes_of(path) != entry.size:
        raise CheckpointError(f"It has {bytes_of(path)} bytes, the published file has {entry.size}.")
    found = sha256_of(path)
    if found != entry.sha256:
        raise CheckpointError(f"Its sha256 is {found}, that of the published file is {entry.sha256}.")


def _check(path: Path, entry: Entry, noted: str | None) -> str | None:
    """Whether a file is what the entry says. Returns the hash to note where nobody has published one.

    Raises:
        CheckpointError: it is something else; a sentence.
    """
    with open(path, "rb") as file:
        if kind := describe_text(file.read(HEAD)):
            raise CheckpointError(f"It is {kind}.")
    if entry.sha256 is not None:
        _check_hash(path, entry)
        return None
    found = sha256_of(path)
    if noted is not None and found != noted:
        raise CheckpointError(f"Its sha256 is {found}, but {PINS} says {noted} since the first download.")
    state, _ = read_weights(path, entry.file)
    check_entry(state, entry, entry.file)
    return found


def _note(path: Path, found: str | None) -> None:
    """Pin a hash that nobody has published; a folder that cannot be written is no reason to refuse the model."""
    if found is None:
        return
    log.warning("%s: nobody has published its hash; noted in %s as sha256 %s.", path.name, PINS, found)
    try:
        pin(path, found)
    except OSError as error:
        log.warning("%s could not be written (%s).", path.parent / PINS, error)


def _can_be_fetched(entry: Entry) -> bool:
    """Whether this torch can check what would come."""
    return entry.sha256 is not None or pickles_are_safe()


def refuse_unchecked(entry: Entry) -> None:
    """
    Raises:
        DownloadError: this torch could not check the file, wherever it came from.
    """
    if not _can_be_fetched(entry):
        raise DownloadError(_needs_torch(entry))


def _needs_torch(entry: Entry) -> str:
    return (
        f"{entry.file} is a pickle whose hash nobody has published, and this torch cannot open such a file safely. Update "
        "torch to 2.6 or later, or convert the file on a machine that has it: resshift convert IN OUT.safetensors."
    )


def _present(entry: Entry, folder: Path | None, level: int = logging.WARNING) -> Path | None:
    """The file if it is on this machine, or in `folder`, and intact. A converted copy is taken as it is.

    Raises:
        DownloadError: it is there, but cannot be opened, or this torch cannot check it.
    """
    path = entry.find()
    if path is None and folder is not None:
        path = find_in(folder, entry.file)
    if path is None or entry.bundled or path.suffix.lower() != Path(entry.file).suffix.lower():
        return path
    noted = pinned_sha256(path)
    if entry.sha256 is None and noted is None and not pickles_are_safe():
        raise DownloadError(f"{path} is there and cannot be checked on this torch. {_needs_torch(entry)}")
    try:
        if entry.sha256 is None and noted is not None:
            check_pin(path)
        else:
            _note(path, _check(path, entry, None))
    except CheckpointError as error:
        replaced = " and will be replaced" if _can_be_fetched(entry) else ""
        log.log(level, "%s is not usable%s. %s", path, replaced, error)
        return None
    except OSError as error:
        raise DownloadError(f"{path} cannot be opened ({brief(error)}). Check its permissions.") from error
    return path


def _keep_strangers(path: Path) -> None:
    """What could be weights under the name of the file that is coming may be somebody's own work: it is moved aside."""
    try:
        if not _looks_whole(path):
            return
        aside = path.with_name(f"{path.name}.{sha256_of(path)[:8]}")
        replace(path, aside)
    except FileNotFoundError:
        return
    log.warning("%s was another file; that is kept as %s.", path.name, aside.name)


def _looks_whole(path: Path) -> bool:
    """Whether a file is a complete archive of torch's, or a .safetensors, or an old pickle, which has no end to be seen."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"PK"):
        return zipfile.is_zipfile(path)
    if head[8:9] == b"{":
        try:
            with open_safetensors(path):
                return True
        except (SafetensorError, CheckpointError):
            return False
    return head.startswith(b"\x80")


# --------------------------------------------------------------------------------------------------------- fetching


def _by_hand(entry: Entry, url: str, folder: Path) -> str:
    """How to do without us."""
    addresses = entry.url if url == entry.url else f"{entry.url} (or {url})"
    return f"get it from {addresses} in another way and put it into {folder}"


def _transfer(entry: Entry, url: str, part: Path, target: Path, on_progress: Progress | None) -> str | None:
    """Fetch and check the .part. Returns the hash to note.

    What was put together in several attempts and turns out wrong is fetched once more as a whole.
    """
    noted = pinned_sha256(target)
    for last in (False, True):
        pieced = Transfer(url, part, entry.size, on_progress).run()
        try:
            return _check(part, entry, noted)
        except CheckpointError as error:
            wrong = error
        discard(part)
        if last or not pieced:
            break
        log.warning("%s: the parts do not fit together; starting again.", entry.file)
    raise DownloadError(
        f"What came from {url} is not {entry.file}. {wrong} Try later, or {_by_hand(entry, url, target.parent)}."
    ) from wrong


class _Theirs(Exception):
    """What `on_progress` raised."""

    def __init__(self, error: OSError):
        self.error = error


def _set_apart(on_progress: Progress | None) -> Progress | None:
    """`on_progress`, whose failures are not taken for those of a disk."""

    def tell(done: int, total: int | None) -> None:
        try:
            on_progress(done, total)
        except OSError as error:
            raise _Theirs(error) from None

    return tell if on_progress is not None else None


def _fetch(entry: Entry, folder: Path, on_progress: Progress | None) -> Path:
    """Download under a lock, so that a second process waits for the first and then finds the file there."""
    on_progress = _set_apart(on_progress)
    url = download_url(entry)
    target = entry.find() or folder / entry.file  # a damaged file is replaced where it lies
    folder, part = target.parent, target.with_name(f"{target.name}.part")
    waited = False

    def wait() -> None:
        nonlocal waited
        if not waited:
            log.warning("Somebody else is downloading %s; waiting for it.", entry.file)
        waited = True
        if on_progress is not None:
            on_progress(bytes_of(part), entry.size)

    by_hand = _by_hand(entry, url, folder)
    elsewhere = "choose a folder that can be written with RESSHIFT_MODELS_DIR, or " if _is_ours(folder) else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f"{target.name}.lock"), wait):
            if (path := _present(entry, folder, logging.DEBUG)) is not None:  # somebody else was sooner
                return path
            found = _transfer(entry, url, part, target, on_progress)
            _keep_strangers(target)
            replace(part, target)
            discard(part)
            _note(target, found)
    except _Theirs as stopped:
        raise stopped.error from None
    except TransferError as error:
        kept = f" ({bytes_of(part)} bytes are kept, and another try goes on from there)" if bytes_of(part) else ""
        room = f"make room, or {elsewhere}" if isinstance(error, StorageError) else ""
        raise DownloadError(f"{entry.file} could not be downloaded{kept}: {error}; {room}{by_hand}.") from error
    except OSError as error:
        raise DownloadError(
            f"{entry.file} cannot be stored in {folder} ({error.strerror or error}); {elsewhere}{by_hand}."
        ) from error
    log.info("%s is complete: %s", entry.name, target)
    return target


def _is_ours(folder: Path) -> bool:
    """Whether it is `models_dir()`, or in it; hosts have folders of their own, and settings for them."""
    try:
        return models_dir() in (folder, *folder.parents)
    except InputError:
        return False


def _agree(entry: Entry, confirm: Confirm | None) -> None:
    """Tell the licence, and ask."""
    if entry.bundled:
        raise DownloadError(f"{entry.name} is part of this package, but its file is missing. Install the package again.")
    refuse_unchecked(entry)
    if confirm is None:  # a front end that asks shows the licence; without one this is where a person sees it
        log.warning("%s (%s, %s) is under the %s.", entry.name, entry.file, entry.size_words, entry.licence)
    elif not confirm(entry):
        raise Cancelled(f"{entry.name} was not downloaded: its licence, {entry.licence}, was not accepted.")


def _download(entries: list[Entry], folder, on_progress: Progress | None, confirm: Confirm | None) -> list[Path]:
    """All questions first, then all downloads."""
    folder = None if folder is None else Path(os.path.expanduser(folder))
    paths = [_present(entry, folder) for entry in entries]
    for entry, path in zip(entries, paths):
        if path is None:
            _agree(entry, confirm)
    if folder is None and None in paths:
        folder = models_dir()
    return [path or _fetch(entry, folder, on_progress) for entry, path in zip(entries, paths)]


def download(
    name: str,
    *,
    on_progress: Progress | None = None,
    confirm: Confirm | None = None,
    folder: str | os.PathLike | None = None,
) -> Path:
    """Fetch one file of the registry, unless it is on this machine already and intact.

    Args:
        name: a name of `list_models()`.
        on_progress: called with (bytes so far, bytes in all or None); may raise to stop, what has come is kept.
        confirm: asked once, before the first byte, with the registry's entry: show its licence, return whether to go on.
            None = the person has agreed already.
        folder: where to put it; None = `models_dir()`. Another one must be known by `add_models_dir` for the file to be found.

    Raises:
        DownloadError: it cannot be had or stored, or what came is not the file; a sentence with the address and the folder.
        CheckpointError: resshift-hashes.json in that folder is damaged.
        Cancelled: `confirm` said no.
        InputError: the registry knows no such name.
    """
    return _download([get_entry(name)], folder, on_progress, confirm)[0]


def download_with_autoencoder(
    name: str,
    *,
    on_progress: Progress | None = None,
    confirm: Confirm | None = None,
    folder: str | os.PathLike | None = None,
) -> list[Path]:
    """As `download`, for a model and the autoencoder it needs: [model, autoencoder], or one path where it needs none.

    `confirm` is asked for both before the first byte of either.
    """
    entry = get_entry(name)
    entries = [entry, get_entry(VARIANTS[entry.variant].autoencoder)] if entry.variant else [entry]
    return _download(entries, folder, on_progress, confirm)


def missing_files(name: str, with_autoencoder: bool = True) -> list[Entry]:
    """The entries of a model, and of the autoencoder that belongs to it, that are not on this machine.

    Raises:
        InputError: the registry knows no such name.
    """
    entry = get_entry(name)
    entries = [entry, get_entry(VARIANTS[entry.variant].autoencoder)] if entry.variant and with_autoencoder else [entry]
    return [entry for entry in entries if not entry.bundled and entry.find() is None]


def download_missing(
    name: str,
    *,
    with_autoencoder: bool = True,
    on_progress: Progress | None = None,
    confirm: Confirm | None = None,
    folder: str | os.PathLike | None = None,
) -> list[Path]:
    """As `download_with_autoencoder` for hosts: what lies on this machine under those names is left as it is.

    A host that lacks one of two files was not asked to look at the other, which loads, or says why not.
    """
    return _download(missing_files(name, with_autoencoder), folder, on_progress, confirm)
