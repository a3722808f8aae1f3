"""Model files as bytes on disk: opened without running any code in them, told apart by content, written whole.

What the weights are is the business of `detection`, what becomes of them that of `checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .atomic_file import atomic_path, remove_leftovers
from .device import is_out_of_memory
from .errors import CheckpointError, InputError, OutOfMemory, brief
from .pickled import LEGACY, Refused, check_pickles
from .registry import REGISTRY

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
AVERAGED = ("params_ema", "ema", "state_dict_ema", "model_ema", "ema_model")
WRAPPERS = (*AVERAGED, "state_dict", "params", "model")  # averaged weights first: they are the better ones
NESTED = 4  # wrappers in one another
MAX_NAMES = 100  # in a dictionary around the weights; a hostile file may have any number, each to be looked into
WRAPPED_MODULES = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")  # left by DataParallel and torch.compile
BUFFERS = ("relative_position_index", "attn_mask")  # recomputed, never loaded
HEAD = 512  # bytes that tell what a file is
TEXT = bytes(range(32, 127)) + b"\t\r\n\f"
MAX_WEIGHTS = 20_000  # in one file; the published networks have 600
MAX_KEY = 300  # letters of a weight's name
MAX_GROWTH = 2  # bytes of weights for a byte of file: weights hardly compress, but hostile files do
SPARE_BYTES = 1 << 20  # for the same in tiny files
ARCHIVE_END = 22  # bytes of the record that ends an archive, if nothing follows it,
LOCATOR, LARGE_END = 20, 56  # and of those before it
LONGEST_HEADER = 8 << 20  # bytes of the list of weights in a .safetensors file; that of a published network has 70,000


def sha256_of(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file of that name; False too for a name that no file system could hold, or a home that is not there."""
    try:
        return Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def describe_text(head: bytes) -> str:
    """What a file that begins like this is if it is text ("a web page", ...), else ""."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        return "a web page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it points to"
    return "text" if head and not head.translate(None, TEXT) else ""


def pickles_are_safe() -> bool:
    """`weights_only=True` of torch before 2.6 can be broken out of (CVE-2025-32434)."""
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return version is not None and tuple(map(int, version.groups())) >= (2, 6)


def open_safetensors(path: Path):
    """`safe_open`, which reads the list of weights; of torch's tensors.

    Raises:
        CheckpointError: the list is longer than any of ours; it is not read.
        SafetensorError, OSError: as `safe_open`.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if LONGEST_HEADER < length <= path.stat().st_size:  # of a length that it cannot have, safetensors speaks
        raise CheckpointError(
            f"{path.name} begins with a list of {length} bytes, which no network of this family has: it is damaged or hostile. "
            "Get the original file."
        )
    return safe_open(path, framework="pt")


def _read_safetensors(path: Path) -> tuple[dict, dict[str, str]]:
    with open_safetensors(path) as file:
        if len(file.keys()) > MAX_WEIGHTS:
            raise CheckpointError(f"{path.name} holds {len(file.keys())} weights, more than any network of this family.")
        # Copies: the tensors are a view of the file, which Windows would not let anybody replace while they live.
        return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(file.metadata() or {})


def _check_archive(path: Path, name: str) -> None:
    """Refuse a damaged archive, and one that would unpack to far more than it is, before anything is unpacked."""
    with open(path, "rb") as file:
        if not _ends_like_an_archive(file, path.stat().st_size):
            raise CheckpointError(f"{name} cannot be read as weights (it does not end as an archive does). Get it again.")
    with zipfile.ZipFile(path) as archive:
        size, count = path.stat().st_size, len(archive.infolist())
        if count > MAX_WEIGHTS:
            raise CheckpointError(f"{name} has {count} parts, more than any network of this family. Choose another file.")
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_GROWTH * size + SPARE_BYTES:
            raise CheckpointError(
                f"{name} has {size} bytes and would unpack to {unpacked}, which no weights do: it is damaged or hostile. "
                "Get the original file."
            )
        if damaged := archive.testzip():  # torch does not look at the checksums
            raise CheckpointError(f"{name} is damaged: the checksum of {brief(damaged)} in it is wrong. Get it again.")
        if any(member.filename != member.orig_filename for member in archive.infolist()):  # in which torch sees other names
            raise CheckpointError(f"{name} is damaged: a name in it is written in two ways. Get the original file.")
        pickles = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
        if not pickles:
            raise CheckpointError(f"{name} is an archive of files, not of weights. Unpack it: the model may lie in it.")
        for member in pickles:
            with archive.open(member) as pickle:
                check_pickles(pickle, 1)


def _ends_like_an_archive(file: BinaryIO, size: int) -> bool:
    """Whether the list of contents lies where everybody finds it; else torch might find another one than we check."""
    if size < ARCHIVE_END:
        return False
    file.seek(size - ARCHIVE_END)
    end = file.read(ARCHIVE_END)
    listed = sum(struct.unpack("<II", end[12:20]))  # where the list ends
    if size >= ARCHIVE_END + LOCATOR + LARGE_END:  # of large archives, which torch always writes
        file.seek(size - ARCHIVE_END - LOCATOR)
        locator = file.read(LOCATOR)
        if locator[:4] == b"PK\6\7":
            (place,) = struct.unpack("<Q", locator[8:16])
            file.seek(size - ARCHIVE_END - LOCATOR - LARGE_END)
            record = file.read(LARGE_END)
            fits = place == size - ARCHIVE_END - LOCATOR - LARGE_END and record[:4] == b"PK\6\6"
            return end[:4] == b"PK\5\6" and fits and sum(struct.unpack("<QQ", record[40:56])) == place
    return end[:4] == b"PK\5\6" and listed == size - ARCHIVE_END


def _read_pickle(path: Path, name: str, zipped: bool) -> dict:
    if not pickles_are_safe() and sha256_of(path) not in {entry.sha256 for entry in REGISTRY.values()}:
        raise CheckpointError(
            f"{name} is a pickle, which torch {torch.__version__} cannot open safely. Update torch to 2.6 or later, or "
            "convert the file on a machine that has it: resshift convert IN OUT.safetensors."
        )
    with open(path, "rb") as file:  # by the open file, because new versions of torch go by the ending of a path
        if zipped:
            _check_archive(path, name)
            return torch.load(file, map_location="cpu", weights_only=True)
        # A file would be asked for as many bytes as a lying text claims, and Python would make room for them first.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            check_pickles(view, LEGACY)
            view.seek(0)
            return torch.load(view, map_location="cpu", weights_only=True)


def _check_memory(state: dict[str, torch.Tensor], size: int, name: str) -> None:
    """Refuse tensors that are not simply numbers in memory, and those that claim more memory than the file of `size` bytes has.

    A pickle can hold one number and say that it is a million by a million of them; the first copy would be that large.
    """
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            kind = "quantised" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
            kind = "empty" if value.device.type == "meta" else kind
            raise CheckpointError(f"{name}: the weight {key} is not a plain tensor ({kind}). Get the original file.")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    behind = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    claimed = max(claimed, sum(behind.values()))  # one number of a tensor keeps all of it
    if claimed > MAX_GROWTH * size + SPARE_BYTES:
        raise CheckpointError(
            f"{name} has {size} bytes and claims to hold {claimed} bytes of weights: it is damaged or hostile. Get the original."
        )


def _reason(error: Exception) -> str:
    """Why torch would not load a file, in words for a person: torch's own end in advice to switch the protection off."""
    text = str(error).strip()
    if isinstance(error, Refused) and "GLOBAL" not in text:
        return text
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it asks for {brief(found.group(1))}"
    return "it is no plain dictionary of tensors" if text.startswith("Weights only load failed") else brief(error)


def _lacks_memory(error: Exception, head: bytes) -> bool:
    """Whether it is not the file's fault that it cannot be read. A pickle may ask torch for any amount, whatever its size."""
    asked_by_pickle = isinstance(error, RuntimeError) and head[8:9] != b"{"
    return is_out_of_memory(error) and not asked_by_pickle


def read_weights(path: str | os.PathLike, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As `read_file` whatever the file's name ends in; errors call it `name`."""
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head:
        raise CheckpointError(f"{name} is empty (0 bytes). Download or copy it again.")
    if text := describe_text(head):
        raise CheckpointError(f"{name} is {text}, not a model: the download went wrong. Download it again.")
    try:
        if head[8:9] == b"{":  # eight bytes of length, then JSON
            state, metadata = _read_safetensors(path)
        elif head.startswith((b"PK\3\4", b"\x80")):
            state, metadata = _read_pickle(path, name, zipped=head.startswith(b"PK")), {}
        else:
            raise CheckpointError(f"{name} is damaged, or neither a .safetensors nor a torch file. Get it again.")
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{name} is damaged or no .safetensors file ({brief(error)}). Get it again.") from error
    except Exception as error:  # torch.load raises a dozen kinds for a file that is not what it should be
        if _lacks_memory(error, head):
            size, more = path.stat().st_size / 2**20, ", or let Windows manage its page file" if os.name == "nt" else ""
            raise OutOfMemory(
                f"There is not enough memory to read {name} ({size:.0f} MiB). Close other programs{more}."
            ) from error
        raise CheckpointError(
            f"{name} cannot be read as weights ({_reason(error)}). It is damaged, or holds more than tensors, which is refused "
            "because such files can run code. Get the original, or a .safetensors."
        ) from error
    weights = canonical(_plain(state), name)
    _check_memory(weights, path.stat().st_size, name)
    return weights, metadata


def _plain(thing, depth: int = NESTED, made: dict | None = None):
    """Without what a file has attached to dictionaries and tensors, such as a number called `items`, or `numel`."""
    made = {} if made is None else made
    if isinstance(thing, torch.Tensor):
        return torch.Tensor.detach(thing)
    if not isinstance(thing, dict):
        return thing
    if (id(thing), depth) not in made:  # of the file's, which live on
        items = dict.items(thing) if depth >= 0 else ()
        made[id(thing), depth] = {key: _plain(value, depth - 1, made) for key, value in items}
    return made[id(thing), depth]


def read_file(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(weights with canonical keys, metadata) of a .safetensors, .pth, .pt or .ckpt file. Tensors on the CPU as stored.

    The ending only has to be one of these; the contents decide how the file is read.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or unsafe.
    """
    path = Path(path)
    if not is_file(path):
        raise CheckpointError(f"There is no file {path}. Check the path, or see `resshift models` for names.")
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path.name} is not a model file; known endings are {', '.join(SUFFIXES)}.")
    try:
        return read_weights(path, path.name)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({brief(error)}). Check its permissions.") from error


def _has_tensors(state) -> bool:
    """Whether a dictionary has tensors with dimensions, which a counter of steps lacks."""
    return isinstance(state, dict) and any(isinstance(value, torch.Tensor) and value.ndim for value in state.values())


def _holds_weights(thing) -> bool:
    """Whether a dictionary has tensors, itself or in a dictionary below. An optimiser's go by numbers, and do not count."""
    level, seen = [thing], set()
    for _ in range(NESTED):
        level = list({id(each): each for each in level if isinstance(each, dict) and id(each) not in seen}.values())
        if any(_has_tensors(each) for each in level):
            return True
        seen |= {id(each) for each in level}
        few = [each for each in level if len(each) <= MAX_NAMES]
        level = [value for each in few for key, value in each.items() if isinstance(key, str)]
    return False


def _wrapped(state: dict) -> list[str]:
    """The names in a dictionary under which weights lie."""
    few = state if len(state) <= MAX_NAMES else {}
    return [key for key, value in few.items() if isinstance(key, str) and _holds_weights(value)]


def _unwrap(state):
    """The innermost dictionary below the usual wrappers, which may nest, or below one of another name that is the only one."""
    for _ in range(NESTED):
        if not isinstance(state, dict):
            break
        inner = next((key for key in WRAPPERS if _holds_weights(state.get(key))), None)
        if inner is None and not _has_tensors(state):
            found = _wrapped(state)
            inner = found[0] if len(found) == 1 else None
        if inner is None:
            break
        state = state[inner]
    return state


def _no_weights(state, name: str) -> str:
    """Why nothing could be taken out of a file, with what is in it."""
    wrappers = ", ".join(WRAPPERS)
    if not isinstance(state, dict):
        return f"{name} holds no weights: it is a {type(state).__name__}, not a dictionary of tensors. Get the original file."
    if found := _wrapped(state):
        return (
            f"{name} holds several sets of weights: {_listed(found)}. Save the one that is meant alone, or under one of the names "
            f"that are looked for first: {wrappers}."
        )
    names = [key if isinstance(key, (str, int)) else f"a {type(key).__name__}" for key in state]
    inside = _listed([f"{key} ({type(value).__name__})" for key, value in zip(names, state.values())]) or "nothing"
    return (
        f"{name} holds no weights: there is no dictionary of tensors in it, neither under {wrappers} nor under another name. "
        f"Inside is {inside}. Get the original file."
    )


def _listed(words: list[str], most: int = 8) -> str:
    return ", ".join([*(brief(word, 60) for word in words[:most]), *(["..."] if len(words) > most else [])])


def canonical(state, name: str = "the file") -> dict[str, torch.Tensor]:
    """Unwrap nested dictionaries, strip prefixes of DataParallel and torch.compile, drop buffers.

    Raises:
        CheckpointError: there is no dictionary of tensors in it, or several, it has far too many weights, two of its keys become the same, or one
            is no name.
    """
    state = _unwrap(state)
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(_no_weights(state, name))
    if len(state) > MAX_WEIGHTS:
        raise CheckpointError(f"{name} holds {len(state)} weights, more than any network of this family. Choose another file.")
    weights = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or key == "n_averaged":  # the counter of torch's AveragedModel
            continue
        if not isinstance(key, str) or len(key) > MAX_KEY or not key.isprintable():
            raise CheckpointError(
                f"{name} is damaged: one of its weights is called by something that is no name. Get it again."
            )
        plain = WRAPPED_MODULES.sub(r"\1", key)
        if plain in weights:
            raise CheckpointError(f"{name} holds the weight {plain} twice, once as {key}. Get the original file.")
        weights[plain] = value
    while weights and all(key.startswith("model.") for key in weights):  # an attribute of a training script's wrapper
        weights = {key[len("model.") :]: value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.endswith(BUFFERS)}


def _storable(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, and none sharing memory with another: .safetensors cannot say that two are one."""
    stored, seen = {}, set()
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        stored[key] = value.clone() if storage in seen else value
        seen.add(storage)
    return stored


def _sort_metadata(path: Path) -> None:
    """Put a .safetensors file's metadata in the order of their names: they are written in another one each time.

    The rest of the header stays, and so does its length, which the offsets of the weights are counted from.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else another writer's spelling, which is as good in its own order
            file.seek(8)
            file.write(text.ljust(length))


def save_weights(state: dict[str, torch.Tensor], metadata: dict[str, str], path: str | os.PathLike) -> Path:
    """Write a .safetensors by atomic rename: the file is there whole or not at all. Equal contents make equal bytes.

    Raises:
        InputError: the name does not end in .safetensors.
        CheckpointError: the folder cannot be written.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path.name} must end in .safetensors.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with atomic_path(path) as part:
            save_file(_storable(state), part, metadata=metadata)
            _sort_metadata(part)
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: no name that a file may have
        raise CheckpointError(f"{path} cannot be written ({brief(error)}). Choose another folder, or make room.") from error
    return path
