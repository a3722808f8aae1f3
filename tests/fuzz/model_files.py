"""Damaged and hostile model files: `python -m tests.fuzz.model_files --count 5000` tries as many and prints a summary.

File number N is the same everywhere: `--first N --count 1 --keep DIR` makes a failing one again and leaves it there.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes

import resshift_core as rs
from resshift_core.checkpoint import CONFIG_KEY, convert
from resshift_core.cli.model_file import describe_file
from resshift_core.peek import peek_config

from .. import standin
from . import raw, trust_own_pickles

SPARE_ADDRESSES = 2 << 30  # bytes of address space that all files together may take beyond the start
MANY = 30_000  # tensors in the files that take longest to read
READINGS = 5  # times torch's own reading of so many: all that may be done with one file, which is read up to four times
GROWN_MIB = 400  # by which the process may ever be larger than at the start
STRANGE = (
    None, True, False, 0, -1, 1, 3, 7, 1e-300, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**5, 10**9, 2**31, 2**63, 10**40,
    "", "4", "x" * 10000, "../../etc/passwd", "/dev/zero", "<img src=x onerror=alert(1)>", "\x1b[2J\x1b]0;owned\x07", "\0",
    "__import__('os').system('true')", [], {}, [[]], [1] * 50, [0], [1, 2, 2, 4], {"a": 1}, [10**9], [-1, 1], "group", "swin",
)  # fmt: skip
SHAPES = ([], [0], [-1], [2**31], [2**62, 4], [1] * 70, [2**32, 2**32], "4", [1.5], [None], [[1]], None, [2**63], [2**64])
DTYPES = (
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U64",
    "", "float32", 4, None,
)  # fmt: skip
TORCH_DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ----------------------------------------------------------------------------------------------------- whole files


class Material:
    """Sound files of every kind, the smallest that load; what is damaged are copies of them."""

    def __init__(self, folder: Path):
        self.trap = folder / "exploded"
        own = standin.small_model(model_channels=8, name="own")
        rs.save_model(own, folder / "own.safetensors")
        unet = standin.standin_unet(
            rs.UNetConfig(model_channels=16, swin_channels=16, head_channels=8, channel_mult=(1, 1), num_res_blocks=1, window=4)
        )
        with torch.device("meta"):
            vqgan = rs.VQGAN(rs.VQGANConfig(ch=4, num_res_blocks=(1, 1, 1), n_embed=16))
        self.network = unet.state_dict()
        self.autoencoder = folder / "autoencoder_vq_f4.pth"
        state = standin.fill(vqgan).state_dict()
        torch.save(state, self.autoencoder)
        metadata = {"variant": "realsr_x4_s15", "licence": "none", "format": "pt"}
        self.safetensors = {
            "own": (folder / "own.safetensors").read_bytes(),
            "network": safetensors_bytes({k: v.contiguous() for k, v in self.network.items()}, metadata),
            "autoencoder": safetensors_bytes({k: v.contiguous() for k, v in state.items()}),
        }
        self.zips = {"network": saved(self.network), "wrapped": saved({"state_dict": self.network, "epoch": 3})}
        self.legacies = {"network": saved(self.network, False), "wrapped": saved({"params_ema": self.network}, False)}
        self.pickles = {"bare": pickle.dumps({"a": list(range(50)), "b": "text"}, 2)}

    def any(self, rng: random.Random) -> tuple[str, bytes]:
        kinds = {"safetensors": self.safetensors, "zip": self.zips, "legacy": self.legacies, "pickle": self.pickles}
        kind = rng.choice(["safetensors", "safetensors", "zip", "zip", "legacy", "legacy", "pickle"])
        name = rng.choice(sorted(kinds[kind]))
        return f"{kind} {name}", kinds[kind][name]


def saved(thing, zipped: bool = True) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ safetensors


def split_safetensors(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def lying_entry(data: bytes, rng: random.Random) -> bytes:
    """One tensor's shape, number format or place is not what it is."""
    header, body = split_safetensors(data)
    entry = header[rng.choice([key for key in header if key != "__metadata__"])]
    word = rng.choice(("shape", "shape", "dtype", "data_offsets"))
    entry[word] = {
        "shape": lambda: rng.choice([*SHAPES, entry["shape"][::-1], [*entry["shape"], 1], [2 * n for n in entry["shape"]]]),
        "dtype": lambda: rng.choice(DTYPES),
        "data_offsets": lambda: rng.choice(
            [
                [0, 0],
                [0, len(body)],
                [5, 1],
                [0, 2**63],
                [-4, 0],
                [2**64, 2**65],
                "0",
                [0],
                [len(body), len(body) + 400],
                [1.5, 2],
            ]
        ),
    }[word]()
    if rng.random() < 0.1:
        del entry[word]
    return join_safetensors(header, body)


def lying_length(data: bytes, rng: random.Random) -> bytes:
    header, body = split_safetensors(data)
    text = json.dumps(header).encode()
    length = rng.choice([0, 1, len(text) - 1, len(text) + 1, len(text) + len(body), 100_000_001, *raw.EDGES])
    return join_safetensors(text, body, length % 2**64)


def other_header(data: bytes, rng: random.Random) -> bytes:
    """JSON of another kind where the table should be."""
    header, body = split_safetensors(data)
    text = json.dumps(header)
    changed = rng.choice([
        "{" + '"a":[' * 20000, "{}", '{"__metadata__": {}}', text.replace("F32", "F64"), text[:-1] + "," + text[1:],
        text + " " * 5000, text.replace(":", ": "), '{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "{" + "\0" * 30,
        text.replace("weight", "\\u0000weight"), text.replace("weight", "\\ud800"), text[:-1] + ',"__metadata__":{"x":5}}',
    ])  # fmt: skip
    return join_safetensors(changed.encode("utf-8", "surrogatepass"), body)


def tensors_changed(data: bytes, rng: random.Random) -> bytes:
    """A truthful file of other tensors: keys swapped, missing, added; shapes and number formats changed."""
    header, body = split_safetensors(data)
    metadata = header.pop("__metadata__", None)
    state = torch_state(header, body)
    for _ in range(rng.choice((1, 1, 3))):
        change_state(state, rng)
    return safetensors_bytes({k: v.contiguous().clone() for k, v in state.items()}, metadata)


def torch_state(header: dict, body: bytes) -> dict[str, torch.Tensor]:
    return {
        key: torch.frombuffer(bytearray(body[slice(*entry["data_offsets"])]), dtype=torch.float32).reshape(entry["shape"])
        for key, entry in header.items()
    }


def change_state(state: dict[str, torch.Tensor], rng: random.Random) -> None:
    key, other = rng.choice(sorted(state)), rng.choice(sorted(state))
    value = state[key]
    change = rng.choice(("drop", "rename", "swap", "cast", "enlarge", "empty", "index", "many", "nan", "scalar"))
    if change == "drop":
        del state[key]
    elif change == "rename":
        state[key + rng.choice(("x", ".weight", "\x1b[31m", "<b>", "\n", "/../../x"))] = state.pop(key)
    elif change == "swap":
        state[key], state[other] = state[other], value
    elif change == "cast":
        state[key] = value.to(rng.choice(TORCH_DTYPES))
    elif change == "enlarge":
        state[key] = torch.zeros([n * rng.choice((1, 2, 3)) for n in value.shape] or [2])
    elif change == "empty":
        state[key] = torch.zeros([0, *value.shape[1:]])
    elif change == "index":  # a block that does not exist, at a number that is no number of blocks
        state[key.replace("0", rng.choice(("7", "99999999", "٣", "9" * 50)), 1)] = value
    elif change == "many":
        pattern = rng.choice(("input_blocks.{}.0.x", "encoder.down.{}.block.0.conv2.weight", "trunk.{}.x", "{}"))
        state.update({pattern.format(i): torch.zeros(1) for i in range(2000)})
    elif change == "nan":
        state[key] = torch.full_like(value, rng.choice((float("nan"), 1e38, -0.0, 1e-45)))
    else:
        state[key] = torch.zeros(())


def metadata_attack(data: bytes, rng: random.Random) -> bytes:
    """Metadata is data: whatever is in it must be taken, or refused with a sentence."""
    header, body = split_safetensors(data)
    metadata = header.setdefault("__metadata__", {})
    if CONFIG_KEY not in metadata or rng.random() < 0.2:
        metadata[rng.choice(("variant", "licence", CONFIG_KEY, "name", "x" * 1000))] = str(rng.choice(STRANGE))
    else:
        config = json.loads(metadata[CONFIG_KEY])
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.choice((config, config, config.get("unet"), config.get("autoencoder")))
            if isinstance(place, dict) and place:
                strange_setting(place, rng)
        text = json.dumps(config)
        metadata[CONFIG_KEY] = rng.choice([text] * 8 + ["[" * 100000, text[:-5], "null", "5", '"x"', "{}", text + "}"])
    return join_safetensors(header, body)


def strange_setting(place: dict, rng: random.Random) -> None:
    key = rng.choice(sorted(place))
    kind = rng.random()
    if kind < 0.06:
        del place[key]
    elif kind < 0.1:
        place["__class__" if kind < 0.08 else "extra"] = place[key]
    elif kind < 0.3 and isinstance(place[key], (int, float)):
        place[key] = place[key] * rng.choice((-1, 2, 3, 10, 1000)) + rng.choice((0, 1))
    else:
        place[key] = rng.choice(STRANGE)


SAFETENSORS: tuple[Callable, ...] = (
    lying_entry, lying_entry, lying_length, other_header, tensors_changed, tensors_changed, metadata_attack, metadata_attack,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- pickles


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(files: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lying_pickle(data: bytes, rng: random.Random) -> bytes:
    """One instruction of a pickle with another argument: a number at its edge, another name, another order."""
    try:
        found = [(op, at) for op, _, at in pickletools.genops(data)]
    except Exception:  # the end of a legacy file is no pickle
        found = list(_operations(data))
    numbers = [(op, at) for op, at in found if op.name in ("BININT", "BININT1", "BININT2", "LONG1")]
    kind = rng.random()
    if kind < 0.6 and numbers:
        op, at = rng.choice(numbers)
        length = {"BININT": 5, "BININT1": 2, "BININT2": 3}.get(op.name) or 2 + data[at + 1]
        value = rng.choice((0, 1, 255, 65535, 2**31 - 1, 2**33, 2**45, 2**62, 2**63, -1, 10**30))
        number = value.to_bytes(16, "little", signed=True)
        return data[:at] + b"\x8a\x10" + number + data[at + length :]
    if kind < 0.8:
        return data.replace(b"torch", rng.choice((b"numpy", b"nt", b"torch.nn")), 1)
    if kind < 0.9:
        return data.replace(b"FloatStorage", rng.choice((b"LongStorage", b"DoubleStorage", b"QInt8Storage", b"HalfStorage")))
    op, at = rng.choice(found)
    return (
        data[:at]
        + rng.choice((b"\x8e" + struct.pack("<Q", 2**40), b"X\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"0", b"."))
        + data[at:]
    )


def _operations(data: bytes) -> Iterator:
    """Instructions up to the first that makes no sense."""
    stream = io.BytesIO(data)
    while True:
        start = stream.tell()
        try:
            for op, _, at in pickletools.genops(stream):
                yield op, at
        except Exception:
            return
        if stream.tell() == start:
            return


def zip_changed(data: bytes, rng: random.Random) -> bytes:
    """A sound archive, checksums and all, of other contents."""
    files = members(data)
    pickled = next(name for name in files if name.endswith("data.pkl"))
    storage = rng.choice([name for name in files if "/data/" in name])
    change = rng.choice(
        ("pickle", "pickle", "pickle", "bytes", "short", "long", "drop", "rename", "word", "bomb", "overlap", "path")
    )
    if change == "pickle":
        files[pickled] = lying_pickle(files[pickled], rng)
    elif change == "bytes":
        files[pickled] = raw.damage(files[pickled], rng)[1]
    elif change in ("short", "long"):
        files[storage] = files[storage][:-4] if change == "short" else files[storage] + b"\0" * 400
    elif change == "drop":
        del files[rng.choice(sorted(files))]
    elif change == "rename":
        files[rng.choice(("other/data.pkl", "archive/constants.pkl", "archive/code/x.py"))] = files[storage]
    elif change == "word":
        name = rng.choice([name for name in files if name.endswith(("byteorder", "version"))])
        files[name] = rng.choice((b"big", b"", b"999999999999", b"\xff", b"x" * 10000))
    elif change == "bomb":  # the claimed numbers are there, but take no room in the file
        files["archive/data/bomb"] = bytes(rng.choice((8, 64)) << 20)
        return zipped(files, zipfile.ZIP_DEFLATED)
    elif change == "overlap":
        return _overlapping(zipped(files), rng)
    else:
        files[rng.choice(("../../../tmp/x", "/etc/passwd", "C:\\x", "archive/data/../data.pkl"))] = b"x"
    return zipped(files, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _overlapping(data: bytes, rng: random.Random) -> bytes:
    """An archive whose directory claims other sizes and places than the members have."""
    damaged, at = bytearray(data), 0
    while (at := data.find(b"PK\1\2", at + 1)) > 0:
        if rng.random() < 0.4:
            field = at + rng.choice((20, 24, 42))  # packed size, size, place
            damaged[field : field + 4] = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1, len(data))))
    return bytes(damaged)


def odd_objects(material: Material, rng: random.Random) -> dict | list:
    """What people and attackers hand to torch.save."""
    state = dict(material.network)
    key = rng.choice(sorted(state))
    shape = state[key].shape
    recursive: dict = dict(state)
    recursive["model"] = recursive
    deep: object = torch.zeros(1)
    for _ in range(400):
        deep = {"model": deep}
    thing = rng.choice((
        lambda: {**state, key: torch.zeros(1).expand(10**6, 10**5)},
        lambda: {k: v.flatten()[:1].expand(v.numel()).view(v.shape) if v.numel() else v for k, v in state.items()},
        lambda: {**state, "quantize.embedding.weight": torch.zeros(1).expand(10**7, 10**4)},
        lambda: {**state, key: torch.zeros(1).expand(10**6, *shape[1:])},
        lambda: {**state, key: torch.zeros(shape, layout=torch.strided).to_sparse()},
        lambda: {**state, key: torch.empty(shape, device="meta")},
        lambda: {**state, key: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)},
        lambda: {**state, key: state[key].to(rng.choice(TORCH_DTYPES))},
        lambda: {**state, key: torch.nn.Parameter(state[key])},
        lambda: {**state, key: state[key].transpose(0, -1)},
        lambda: {**state, 5: torch.zeros(1), (1, 2): torch.zeros(1), b"x": torch.zeros(1), None: 3},
        lambda: {**state, "bomb": Bomb(material.trap)},
        lambda: Bomb(material.trap),
        lambda: {**state, "f": os.system},
        lambda: {**state, "x" * 10**6: torch.zeros(1)},
        lambda: recursive,
        lambda: {"state_dict": {"model": {"ema": state}}, "optimizer": [state, {"lr": 1e-4}]},
        lambda: deep,
        lambda: [state],
        lambda: {"unet." + k: v for k, v in state.items()},
        lambda: many_tensors(),
        lambda: {k: state[key] for k in state},
        lambda: {k: v.view(-1)[:1] if v.dim() else v for k, v in state.items()},
        lambda: torch.nn.Linear(2, 2),
        lambda: {k: torch.zeros(0) for k in state},
    ))()  # fmt: skip
    return thing


def many_tensors() -> dict[str, torch.Tensor]:
    return {f"{i}": torch.zeros(1) for i in range(MANY)}


def other_containers(material: Material, rng: random.Random) -> bytes:
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    return rng.choice((
        lambda: page, lambda: zipped({"index.html": page}), lambda: b"PK\5\6" + b"\0" * 18, lambda: b"", lambda: rng.randbytes(3000),
        lambda: b"\x89PNG\r\n\x1a\n" + rng.randbytes(99), lambda: b"GGUF" + rng.randbytes(99), lambda: b"\x80" + rng.randbytes(500),
        lambda: b"\x93NUMPY\x01\0v\0" + rng.randbytes(99), lambda: b"\x1f\x8b\x08" + rng.randbytes(99), lambda: zipped({}),
        lambda: pickle.dumps(Bomb(material.trap), rng.randrange(2, 6)), lambda: pickle.dumps({"a": Bomb(material.trap)}, 4),
        lambda: b"\x80\x02" + b"(" * 10**5 + b".", lambda: b"\x80\x02" + b"]" * 10**5 + b".", lambda: b"\x80\x04\x8e" + b"\xff" * 7,
        lambda: b"ustar".join([rng.randbytes(257), b"\0" * 300]), lambda: b"\x80\x02" + b"]" + b"2a" * 30000 + b".",
        lambda: zipped({"mimetype": b"application/epub+zip", "x/data.pkl": pickle.dumps({"a": 1}, 2), "x/version": b"3\n"}),
        lambda: scripted(),
    ))()  # fmt: skip


def scripted() -> bytes:
    """The layout of a TorchScript archive, which carries code."""
    files = members(saved({"a": torch.zeros(2)}))
    return zipped({**files, "archive/constants.pkl": pickle.dumps((), 2), "archive/code/__torch__.py": b"import os\n"})


def make(number: int, material: Material) -> tuple[str, str, bytes]:
    """(what it is, ending, contents) of file `number`."""
    rng = random.Random(number)
    ending = rng.choice((".safetensors", ".pth", ".pt", ".ckpt"))
    kind = rng.random()
    if kind < 0.3:
        name, data = material.any(rng)
        how, data = raw.damage(data, rng)
        return f"{name}: {how}", ending, data
    if kind < 0.6:
        name = rng.choice(sorted(material.safetensors))
        how = rng.choice(SAFETENSORS)
        return f"safetensors {name}: {how.__name__}", ending, how(material.safetensors[name], rng)
    if kind < 0.75:
        name = rng.choice(sorted(material.zips))
        return f"zip {name}: changed", ending, zip_changed(material.zips[name], rng)
    if kind < 0.82:
        name = rng.choice(sorted(material.legacies))
        return f"legacy {name}: lying_pickle", ending, lying_pickle(material.legacies[name], rng)
    if kind < 0.93:
        return "odd objects", ending, saved(odd_objects(material, rng), rng.random() < 0.5)
    if kind < 0.97:
        return "another container", ending, other_containers(material, rng)
    (name, data), (other_name, other) = material.any(rng), material.any(rng)
    return f"{name} spliced with {other_name}", ending, raw.splice(data, other, rng)


# ----------------------------------------------------------------------------------------------------------- trying


def use(path: Path, material: Material, number: int) -> str:
    """Do with a file what people do; returns what came of it. Any exception that gets out of here is a defect."""
    refusals = 0
    calls = [lambda: peek_config(path)]
    if number % 3 == 0:
        calls.append(lambda: describe_file(str(path)))
    if number % 5 == 0:
        calls.append(lambda: convert(path, path.with_name("converted.safetensors"), None))
    for call in calls:
        try:
            call()
        except rs.CheckpointError as error:
            _check_sentence(error, path)
            refusals += 1
    try:
        variant = None if number % 2 else "realsr_x4_s15"
        model = rs.load_model(path, autoencoder=material.autoencoder, variant=variant, device="cpu", dtype="fp32")
    except (rs.CheckpointError, rs.InputError) as error:
        if isinstance(error, rs.InputError) and "variant=" not in str(error):
            raise
        _check_sentence(error, path)
        return "refused"
    if model.config.multiple > 64:
        return "loaded"
    try:
        out = rs.upscale(model, torch.full((1, 3, 3, 2), 0.5), steps=1)
        assert torch.isfinite(out).all() and out.shape == (1, 3, 3 * model.scale, 2 * model.scale)
    except rs.InputError as error:
        assert "not finite" in str(error), error
        return "loaded, told as damaged when it ran"
    return "loaded, ran"


def _check_sentence(error: Exception, path: Path) -> None:
    text = str(error)
    assert path.name in text, f"the file is not named: {text[:300]}"
    assert len(text) < 2000, f"{len(text)} letters: {text[:300]}"
    assert text.endswith("."), f"no sentence: {text[-300:]}"


def reading_seconds(path: Path) -> float:
    """Processor time of torch's own reading of `MANY` tensors: how fast this machine is at what takes longest here."""
    torch.save(many_tensors(), path)
    clock = time.process_time()
    torch.load(str(path), weights_only=True, mmap=True)  # torch 2.1 wants text
    return time.process_time() - clock


def run(first: int, count: int, keep: Path | None) -> dict:
    """Try `count` files; the summary holds every failure with its number."""
    logging.getLogger("resshift").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    results: Counter = Counter()
    failures, slowest, began = [], (0.0, -1), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = Material(folder)
        rs.load_model(folder / "own.safetensors", device="cpu")
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        limit = READINGS * reading_seconds(folder / "many.pth")
        _limit_addresses()
        for number in range(first, first + count):
            what, ending, data = make(number, material)
            path = (keep or folder) / f"model_{number}{ending}"
            path.write_bytes(data)
            clock = time.process_time()
            try:
                results[use(path, material, number)] += 1
            except Exception as error:
                failures.append(f"{number} ({what}): {type(error).__name__}: {str(error)[:300]}")
            slowest = max(slowest, (time.process_time() - clock, number))
            if not keep:
                path.unlink()
        exploded = material.trap.exists()
    return {
        "files": count, "results": dict(results), "failures": failures, "code_ran": exploded,
        "slowest_seconds": round(slowest[0], 2), "limit_seconds": round(limit, 2), "slowest": slowest[1], "start_mib": start,
        "grown_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - start,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }  # fmt: skip


def _limit_addresses() -> None:
    """A file that asks for gigabytes must not get them: asking is a failure of ours."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if os.path.exists("/proc") else 0
    if taken:
        resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_ADDRESSES, resource.RLIM_INFINITY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="folder in which the files stay")
    args = parser.parse_args()
    trust_own_pickles()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    summary = run(args.first, args.count, args.keep)
    print(json.dumps(summary, indent=2))
    bad = summary["failures"] or summary["code_ran"]
    return int(bool(bad) or summary["slowest_seconds"] > summary["limit_seconds"] or summary["grown_mib"] > GROWN_MIB)


if __name__ == "__main__":
    sys.exit(main())
