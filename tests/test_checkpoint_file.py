"""Model files as bytes: every container and wrapper of the wild, every kind of damage, and code that must not run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file

import resshift_core as rs
from resshift_core import checkpoint_file, registry
from resshift_core.checkpoint_file import canonical, describe_text, read_file, save_weights, sha256_of

from .file_server import PAGE

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
CONTAINERS = (".safetensors", ".pth", "legacy.pth", ".pt", ".ckpt")


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(64, 32, 3, 3, generator=generator),
        "a.bias": torch.randn(64, generator=generator),
        "b.half": torch.randn(5, generator=generator).half(),
        "b.brain": torch.randn(5, generator=generator).bfloat16(),
        "b.scalar": torch.tensor(3.0),
        "b.empty": torch.empty(0, 4),
    }


def write(state, path: Path) -> Path:
    """Save in the container that the name says; `legacy` is torch's format before zip archives."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


def assert_equal(found, wanted) -> None:
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(tmp_path, container):
    state, metadata = read_file(write(weights(), tmp_path / f"model{container}"))
    assert_equal(state, weights())
    assert metadata == {}


@pytest.mark.parametrize("actual", [".safetensors", ".pth", "legacy.pth"])
@pytest.mark.parametrize("claimed", [".safetensors", ".pth", ".PTH"])
def test_a_wrong_ending_does_no_harm(tmp_path, actual, claimed):
    path = write(weights(), tmp_path / f"model{actual}").rename(tmp_path / f"renamed{claimed}")
    assert_equal(read_file(path)[0], weights())


def test_metadata(tmp_path):
    save_file(weights(), tmp_path / "m.safetensors", metadata={"a": "ü"})
    assert read_file(tmp_path / "m.safetensors")[1] == {"a": "ü"}


def test_a_header_that_happens_to_look_like_a_page(tmp_path):
    """A length of 0x...3c20 bytes begins with a blank and '<'."""
    for first in (0x3C20, 0x3C, 0x3C0A):
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        header = header.ljust(first if first > len(header) else len(header))
        if len(header) & 0xFFFF != first:
            header = header.ljust((1 << 16) + first)
        path = tmp_path / "m.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.5))
        assert read_file(path)[0]["w"].item() == 2.5


def test_weights_live_on_when_the_file_changes(tmp_path):
    """They are copies: a view of the file would change with it, and Windows could not replace it."""
    path = write(weights(), tmp_path / "m.safetensors")
    state, _ = read_file(path)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert_equal(state, weights())


# ------------------------------------------------------------------------------------------------- wrappers, prefixes


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"ema": state, "step": 5},
        lambda state: {"params_ema": state, "params": {"a.bias": torch.zeros(1)}},
        lambda state: {"params": state},
        lambda state: {"model": {"state_dict": state}, "epoch": 3},
        lambda state: {"state_dict": {"a.bias": torch.zeros(1)}, "ema": state},
        lambda state: {"ema": {}, "state_dict": state},
        lambda state: OrderedDict(state_dict=OrderedDict(state)),
        lambda state: {**state, "n_averaged": torch.tensor(7)},
        lambda state: {"state_dict": {"a.bias": torch.zeros(1)}, "state_dict_ema": state},
        lambda state: {"model": {"a.bias": torch.zeros(1)}, "model_ema": state},
        lambda state: {"model": {"a.bias": torch.zeros(1)}, "ema_model": {"module": state}},
        lambda state: {"ema": {"decay": 0.999, "shadow_params": [torch.zeros(1)]}, "state_dict": state},
        lambda state: {"ema": {"decay": torch.tensor(0.999), "shadow": {}}, "model": state},
        lambda state: {"ema": {"decay": 0.999, "shadow": state}, "model": {"a.bias": torch.zeros(1)}},
        *(
            lambda state, word=word: {
                "step": torch.tensor(5),
                "epoch": 3,
                word: state,
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1}]},
            }
            for word in ("model_state_dict", "net", "net_g", "weights")
        ),
        lambda state: {"model": {"net": state}},
        lambda state: {**state, "version": 3, "name": "x", "nothing": None},
    ],
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module."]
)
def test_wrappers_and_prefixes(wrap, prefix):
    prefixed = {prefix + key: value for key, value in weights().items()}
    assert_equal(canonical(wrap(prefixed)), weights())


def test_prefixes_in_the_middle():
    """A part of a model that was compiled or distributed on its own."""
    assert set(canonical({"unet._orig_mod.a": torch.zeros(1), "autoencoder.module.b": torch.zeros(1)})) == {
        "unet.a",
        "autoencoder.b",
    }
    assert set(canonical({"submodule.a": torch.zeros(1), "x_module.a": torch.zeros(1)})) == {"submodule.a", "x_module.a"}


def test_buffers_are_dropped():
    state = {**weights(), "x.attn.relative_position_index": torch.zeros(4, 4).long(), "x.attn_mask": torch.zeros(2)}
    assert_equal(canonical(state), weights())


@pytest.mark.parametrize("thing", [None, 3, [torch.zeros(1)], {}, {"a": 1}, {"state_dict": {"a": "b"}}, {"state_dict": [1]}])
def test_no_dictionary_of_tensors(thing):
    with pytest.raises(rs.CheckpointError, match="^x.pth holds no weights"):
        canonical(thing, "x.pth")


def test_what_is_inside_is_told():
    with pytest.raises(rs.CheckpointError, match=r"under params_ema, .*Inside is epoch \(int\), args\? \(list\)\. Get"):
        canonical({"epoch": 3, "args\t": [1]}, "x.pth")
    with pytest.raises(rs.CheckpointError, match=r"it is a list, not a dictionary"):
        canonical([1], "x.pth")
    two = {"net_d": weights(), "net_g": weights()}
    with pytest.raises(rs.CheckpointError, match=r"^x\.pth holds several sets of weights: net_d, net_g\..*params_ema, ema,"):
        canonical(two, "x.pth")
    with pytest.raises(rs.CheckpointError, match="holds several"):
        canonical({"wrapper": two}, "x.pth")


def test_dictionaries_in_circles_and_in_each_other_cost_nothing():
    circle: dict = {}
    circle["model"] = circle["other"] = circle
    many, more = {}, {}
    for _ in range(6):
        many, more = {str(i): many for i in range(100)}, {str(i): more for i in range(2000)}
    for thing in (circle, many, more):
        with pytest.raises(rs.CheckpointError, match="holds no weights"):
            canonical(thing, "x.pth")


def test_two_keys_that_become_one():
    with pytest.raises(rs.CheckpointError, match="x.pth holds the weight a twice, once as module.a"):
        canonical({"a": torch.zeros(1), "module.a": torch.ones(1)}, "x.pth")


# ------------------------------------------------------------------------------------------------------------- damage


def refused(path: Path, told: str) -> str:
    with pytest.raises(rs.CheckpointError, match=told) as error:
        read_file(path)
    assert path.name in str(error.value) and str(error.value).endswith(".")
    assert "weights_only=False" not in str(error.value)  # torch's advice to switch the protection off
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (PAGE, "is a web page, not a model.*Download it again"),
        (b"\xef\xbb\xbf \n<html lang=en>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b"404: Not Found", "is text, not a model"),
        (b'{"message": "Not Found"}', "is text"),
        (b"\0" * 5000, "neither a .safetensors nor a torch file"),
        (random.Random(0).randbytes(5000), "neither a .safetensors nor a torch file"),
        (b"\x80", "cannot be read as weights"),
        (b"PK\3\4", "cannot be read as weights"),
        (b"PK\3\4" + b"x" * 3000, "cannot be read as weights"),
        (struct.pack("<Q", 1 << 60) + b"{" + b"\0" * 100, "damaged or no .safetensors"),
        (struct.pack("<Q", 20) + b'{"a": [1, 2, "zzz"]}' + b"\0" * 10, "damaged or no .safetensors"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_other_contents(tmp_path, content, told, ending):
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    refused(path, told)


def test_missing_files_and_other_endings(tmp_path):
    refused(tmp_path / "model.pth", "There is no file.*resshift models")
    refused(write(weights(), tmp_path / "model.pth").rename(tmp_path / "model.onnx"), "known endings are .safetensors, .pth")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "There is no file")


@pytest.mark.parametrize("container", [".safetensors", ".pth", "legacy.pth"])
def test_truncated_anywhere(tmp_path, container):
    whole = write(weights(), tmp_path / f"whole{container}").read_bytes()
    path = tmp_path / f"model{container}"
    lengths = random.Random(1).sample(range(1, len(whole)), 40)
    for length in [*lengths, 1, 7, 8, 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, "damaged|cannot be read|neither" if length > 4 else "damaged|cannot be read|neither|is text")


def test_a_flipped_bit_in_an_archive_is_noticed_or_harmless(tmp_path):
    """Checksums cover the weights of a .pth; what they do not cover (dates, padding) changes nothing."""
    whole = write(weights(), tmp_path / "whole.pth").read_bytes()
    path, generator, noticed = tmp_path / "model.pth", random.Random(2), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            state, _ = read_file(path)
        except rs.CheckpointError as error:
            noticed += 1
            assert "model.pth" in str(error)
        else:
            assert_equal(state, weights())
    assert noticed > 100  # most of the file is weights


def test_a_flipped_bit_in_a_header_is_noticed_or_harmless(tmp_path):
    """.safetensors has no checksum: damage to its numbers cannot be seen, but none to its table goes through."""
    whole = safetensors_bytes(weights())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    path, generator, noticed = tmp_path / "model.safetensors", random.Random(3), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(header)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            state, _ = read_file(path)
        except rs.CheckpointError:
            noticed += 1
        else:  # a key that is spelt differently is found by the strict comparison afterwards
            assert sorted(map(tuple, (v.shape for v in state.values()))) == sorted(tuple(v.shape) for v in weights().values())
    assert noticed > 60


# --------------------------------------------------------------------------------------------------------------- code


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_archive_of_files_is_to_be_unpacked(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/readme.txt", "words")
        archive.writestr("model/model.safetensors", bytes(100))
    refused(path, "model.pth is an archive of files, not of weights. Unpack it")


@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".safetensors"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, container, ending):
    exploded, path = tmp_path / "exploded", tmp_path / f"model{ending}"
    state = {**weights(), "bomb": Bomb(exploded)}
    if container == "bare pickle":
        path.write_bytes(pickle.dumps({"bomb": Bomb(exploded)}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    text = refused(path, "holds more than tensors, which is refused because such files can run code")
    names_it = container != "bare pickle" and TORCH >= (2, 6)  # before 2.6 torch does not say what
    assert "mkdir" in text or not names_it
    assert not exploded.exists()
    with open(path, "rb") as file:  # the bomb is real
        pickle.load(file) if container == "bare pickle" else torch.load(file, weights_only=False)
    assert exploded.exists()


@pytest.mark.parametrize("version", ["2.3.1", "2.5.1+cu121"])
def test_an_old_torch_opens_no_pickle(tmp_path, monkeypatch, version):
    """weights_only could be broken out of before 2.6."""
    path = write(weights(), tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", version)
    text = refused(path, "cannot open safely.*Update torch to 2.6 or later, or convert")
    assert version in text
    assert_equal(read_file(write(weights(), tmp_path / "model.safetensors"))[0], weights())


def test_an_old_torch_opens_a_pickle_whose_hash_is_published(tmp_path, monkeypatch):
    path = write(weights(), tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", "2.3.1")
    entry = replace(registry.REGISTRY["realsr_x4_s4"], sha256=sha256_of(path))
    monkeypatch.setitem(registry.REGISTRY, entry.name, entry)
    assert_equal(read_file(path)[0], weights())


@pytest.mark.parametrize(
    ("version", "safe"),
    [("2.6.0", True), ("2.10.0+rocm", True), ("3.0", True), ("2.5.9", False), ("1.99", False), ("unknown", False)],
)
def test_which_torch_is_safe(monkeypatch, version, safe):
    monkeypatch.setattr(torch, "__version__", version)
    assert checkpoint_file.pickles_are_safe() is safe


# ------------------------------------------------------------------------------------------------------------- saving


def test_saved_weights_come_back_as_they_were(tmp_path):
    path = save_weights(weights(), {"a": "b"}, tmp_path / "new" / "folder" / "m.safetensors")
    state, metadata = read_file(path)
    assert_equal(state, weights())
    assert metadata == {"a": "b"} and os.listdir(path.parent) == ["m.safetensors"]


def test_the_same_weights_make_the_same_bytes(tmp_path):
    metadata = {f'{letter}\u00fc\U0001f600\n\t"\\/\x01\x7f': f"{letter}\r{{}}" for letter in "qwertyuiop"}
    files = [save_weights(weights(), dict(metadata), tmp_path / f"{i}.safetensors") for i in range(3)]
    files.append(save_weights(weights(), dict(reversed(metadata.items())), tmp_path / "other.safetensors"))
    assert len({path.read_bytes() for path in files}) == 1
    state, found = read_file(files[0])
    assert_equal(state, weights())
    assert found == metadata
    with open(files[0], "rb") as file:  # as long as it was: nothing had to be left in the writer's order
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert list(header["__metadata__"]) == sorted(metadata)


def test_shared_and_strided_memory_is_saved_plainly(tmp_path):
    base = torch.randn(6, 4, 3, 3)
    state = {
        "one": base,
        "same": base,
        "row": base[2],
        "turned": base.transpose(0, 1),
        "last": base.to(memory_format=torch.channels_last),
    }
    assert_equal(read_file(save_weights(state, {}, tmp_path / "m.safetensors"))[0], state)


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(rs.InputError, match="m.pth must end in .safetensors"):
        save_weights(weights(), {}, tmp_path / "m.pth")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch, error):
    def break_off(state, part, metadata):
        Path(part).write_bytes(b"half a file")
        raise error

    path = save_weights(weights(), {}, tmp_path / "m.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_file, "save_file", break_off)
    expected = rs.CheckpointError if isinstance(error, OSError) else type(error)
    for target in (path, tmp_path / "other.safetensors"):
        with pytest.raises(expected):
            save_weights(weights(), {}, target)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(rs.CheckpointError, match="m.safetensors cannot be written.*Choose another folder"):
        save_weights(weights(), {}, tmp_path / "file" / "m.safetensors")
    with pytest.raises(rs.CheckpointError, match="cannot be written.*null byte"):
        save_weights(weights(), {}, f"{tmp_path}/m\0.safetensors")


def test_saved_files_are_for_everybody_the_umask_allows(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has no umask")
    before = os.umask(0o027)
    try:
        path = save_weights(weights(), {}, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(weights())


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (PAGE, "a web page"),
        (b"<svg>", "text"),
        (b"plain", "text"),
        (b"", ""),
        (b"\x80\x02", ""),
        (b"PK\3\4", ""),
        (b"\x3c\0\0\0\0\0\0\0{", ""),
    ],
)
def test_describe_text(head, what):
    assert describe_text(head) == what
