"""Model files from strangers: thousands of damaged and hostile ones, and each kind of attack that once went through."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resshift_core as rs
from resshift_core import checkpoint_file, pins
from resshift_core.checkpoint import CONFIG_KEY
from resshift_core.checkpoint_file import read_file
from resshift_core.cli import main
from resshift_core.limits import MAX_LAYERS
from resshift_core.peek import peek_config

from . import standin

ROOT = Path(__file__).parent.parent


def fuzz(module: str, *words: str, minutes: float) -> dict:
    """Run a fuzzer of tests/fuzz in a process of its own, whose memory nobody else uses; returns its summary."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.fuzz.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60 * minutes)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.skipif(os.name == "nt", reason="the fuzzer limits its memory in ways that Windows does not have")
class TestFuzzer:
    def test_some_files(self):
        summary = fuzz("model_files", "--count", "150", minutes=5)
        assert summary["files"] == 150 and not summary["failures"] and not summary["code_ran"]

    @pytest.mark.slow
    def test_many_files(self):
        summary = fuzz("model_files", "--first", "1000", "--count", "5000", minutes=60)
        assert summary["files"] == 5000 and not summary["failures"] and not summary["code_ran"]


def refused(path: Path, told: str) -> None:
    with pytest.raises(rs.CheckpointError, match=told) as error:
        read_file(path)
    assert path.name in str(error.value) and len(str(error.value)) < 2000


class TestClaims:
    """A tensor in a pickle can claim any size. The claim must be checked before somebody makes a copy of that size."""

    @pytest.mark.parametrize("zipped", [True, False])
    def test_one_number_that_claims_to_be_many(self, tmp_path, zipped):
        path = tmp_path / "wide.pth"
        torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path, _use_new_zipfile_serialization=zipped)
        refused(path, r"has \d+ bytes and claims to hold 4000000000000 bytes of weights")

    def test_a_few_repeated_numbers_are_no_attack(self, tmp_path):
        torch.save({"a": torch.zeros(1).expand(1000), "b": torch.ones(2)}, tmp_path / "a.pth")
        state, _ = read_file(tmp_path / "a.pth")
        assert state["a"].shape == (1000,)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda: torch.zeros(2, 2).to_sparse(), "not a plain tensor .*sparse"),
            (lambda: torch.empty(10**6, 10**6, device="meta"), "not a plain tensor .*empty"),
            (
                lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
                "not a plain tensor .*nested|no plain dictionary",
            ),
            (  # torch before 2.6 does not read it at all
                lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
                "asks for torch._utils._rebuild_qtensor|no plain dictionary of tensors",
            ),
        ],
    )
    def test_tensors_that_are_not_numbers_in_memory(self, tmp_path, make, told):
        path = tmp_path / "odd.pth"
        odd = make()
        try:
            torch.save({"a": torch.zeros(1), "b": odd}, path)
        except RuntimeError:  # so does torch 2.1 with a nested tensor
            pytest.skip("this torch cannot write it")
        refused(path, told)


class TestArchives:
    def members(self, state) -> dict[str, bytes]:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with zipfile.ZipFile(buffer) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def archive(self, path: Path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("it was unpacked"))
        files = {**self.members({"a": torch.zeros(2)}), "archive/data/9": bytes(32 << 20)}
        refused(self.archive(tmp_path / "bomb.pth", files), r"has \d+ bytes and would unpack to \d+")

    def test_one_that_somebody_packed_again_is_read(self, tmp_path):
        state = {"a": torch.rand(5000)}
        read, _ = read_file(self.archive(tmp_path / "again.pth", self.members(state)))
        assert torch.equal(read["a"], state["a"])

    def test_what_follows_an_archive_could_hide_another_one(self, tmp_path):
        path = self.archive(tmp_path / "two.pth", self.members({"a": torch.zeros(2)}), zipfile.ZIP_STORED)
        path.write_bytes(path.read_bytes() + b"\0")
        refused(path, "does not end as an archive does")

    def test_far_too_many_parts(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoint_file, "MAX_WEIGHTS", 100)
        path = tmp_path / "many.pth"
        torch.save({str(i): torch.zeros(1) for i in range(101)}, path)
        refused(path, r"has \d+ parts")
        torch.save({str(i): torch.zeros(1) for i in range(101)}, path, _use_new_zipfile_serialization=False)
        refused(path, "holds 101 weights")


class Asks:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def many_deep(levels: int):
    thing = ()
    for _ in range(levels):
        thing = (thing, thing)
    return thing


def looked_up(name: str) -> bytes:
    return "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()


def again(number: int) -> bytes:
    """What was put away under a number."""
    return b"j" + struct.pack("<I", number)


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def doubling(levels: int) -> bytes:
    """A list of two lists of two lists ..., each of which is one thing."""
    made = b"]" + put(0)
    for level in range(levels):
        made += b"](" + again(level) * 2 + b"e" + put(level + 1)
    return made


def wide(width: int, levels: int) -> bytes:
    """A tuple of many times one tuple of many times one tuple ..., as a dictionary's key."""
    made = b"N" + put(0)
    for level in range(levels):
        made += b"(" + again(level) * width + b"t" + put(level + 1)
    return made + b"}" + again(levels) + b"Ns"


def often(name: str, argument: bytes, call: bytes = b"R") -> bytes:
    """A function that is called a thousand times with the same argument."""
    return looked_up(name) + put(0) + argument + put(1) + b"](" + (again(0) + again(1) + b"\x85" + call) * 1000 + b"e"


NUMBERS = b"](" + b"K\0" * 20_000 + b"e"
ONE_HASH = b"}(" + b"".join(b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(1, 6000)) + b"u"


class TestGreed:
    """A few hundred bytes that ask torch's restricted unpickler for any memory, or any time."""

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize(
        "make, told",
        [
            (lambda: {"a": Asks(bytearray, 10**12)}, "asks for (builtins|__builtin__).bytearray"),
            (lambda: [many_deep(45)], "tuples are nested more than 8 deep"),
            (lambda: {"a": [Asks(OrderedDict, [("a", 1)])] * 2}, "makes copies of its contents by OrderedDict"),
            (lambda: [torch.zeros(2), *(Asks(torch.Size, [1, n]) for n in range(99))], "makes copies of its contents by Size"),
        ],
    )
    def test_is_refused_at_once(self, tmp_path, make, told, zipped):
        torch.save(make(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        began = time.monotonic()
        refused(tmp_path / "a.pth", told)
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize(
        "asked, told",
        [
            (wide(60, 8), "hold more than 100000 things"),  # its hash would look at 60^8
            (doubling(40) + again(40) + b")R", "calls what is no function"),  # torch would write 2^40 lists into its error
            (doubling(40) + again(40) + b")\x81", "calls what is no function"),
            (often("UserDict.OrderedDict", NUMBERS), "asks for UserDict.OrderedDict"),  # which torch takes for collections'
            (often("collections.Counter", NUMBERS), "asks for collections.Counter"),
            (often("torch.Tensor", NUMBERS), "asks for torch.Tensor"),
            (often("torch.FloatTensor", NUMBERS, b"\x81"), "asks for torch.FloatTensor"),
            (often("torch._tensor._rebuild_from_type_v2", NUMBERS), "asks for torch._tensor._rebuild_from_type_v2"),
            (often("torch._utils._rebuild_device_tensor_from_cpu_tensor", NUMBERS), "_rebuild_device_tensor_from_cpu_tensor"),
            (ONE_HASH, "more than 5000 of its names are no texts"),  # each would be compared with all before it
        ],
    )
    def test_what_no_library_writes_is_refused_at_once(self, tmp_path, asked, told):
        files = TestArchives().members({"a": torch.zeros(2)})
        (name,) = (name for name in files if name.endswith("data.pkl"))
        sound = files[name]
        files[name] = sound[:2] + asked + b"0" + sound[2:]  # made, and thrown away
        path = TestArchives().archive(tmp_path / "a.pth", files)
        began = time.monotonic()
        refused(path, told)
        assert time.monotonic() - began < 5

    @pytest.mark.skipif(
        "torch._utils._rebuild_parameter_with_state" not in torch._weights_only_unpickler._get_allowed_globals(),
        reason="this torch refuses parameters that something is attached to",
    )
    @pytest.mark.parametrize("word", ["numel", "element_size", "untyped_storage", "is_floating_point", "detach", "to", "clone"])
    def test_what_is_attached_to_weights_does_not_matter(self, tmp_path, word):
        weight = torch.nn.Parameter(torch.ones(2))
        weight.__dict__[word] = 5
        torch.save({"a": weight}, tmp_path / "a.pth")
        state, _ = read_file(tmp_path / "a.pth")
        assert torch.equal(state["a"], torch.ones(2)) and word not in vars(state["a"])

    @pytest.mark.parametrize("word", ["items", "values", "get", "keys"])
    def test_nor_what_is_attached_to_dictionaries(self, tmp_path, word):
        class Odd:
            def __reduce__(self):
                return OrderedDict, (), {word: 5}, None, iter([("a", torch.ones(2))])

        torch.save(Odd(), tmp_path / "a.pth")
        read, _ = read_file(tmp_path / "a.pth")
        assert torch.equal(read["a"], torch.ones(2))

    def test_a_name_that_is_written_in_two_ways(self, tmp_path):
        """Python's zipfile takes one of them (since 3.12 also that of an extra field), torch the other."""
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
        data = (tmp_path / "a.pth").read_bytes()
        (tmp_path / "b.pth").write_bytes(data.replace(b"/data/0", b"/dat\0/0"))
        refused(tmp_path / "b.pth", "a name in it is written in two ways")

    def test_one_number_keeps_a_whole_storage(self, tmp_path, monkeypatch):
        """Where the check of the archive did not see it."""
        monkeypatch.setattr(checkpoint_file, "_check_archive", lambda path, name: None)
        torch.save({"a.weight": torch.zeros(3_000_000)[:1]}, tmp_path / "a.pth")
        with (
            zipfile.ZipFile(tmp_path / "a.pth") as archive,
            zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for member in archive.infolist():
                packed.writestr(member.filename, archive.read(member))
        refused(tmp_path / "b.pth", "claims to hold 12000000 bytes")

    def test_two_lists_of_contents(self, tmp_path):
        """Python's zipfile takes the record before the locator, torch that which the locator names."""
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
        data = (tmp_path / "a.pth").read_bytes()
        assert data[-42:-38] == b"PK\6\7"
        (tmp_path / "b.pth").write_bytes(data[:-42] + data[-98:-42] + data[-42:])  # the second record is the one that is read
        refused(tmp_path / "b.pth", "does not end as an archive does")
        assert set(read_file(tmp_path / "a.pth")[0]) == {"a"}

    def test_a_list_of_weights_without_end(self, tmp_path):
        length = checkpoint_file.LONGEST_HEADER + 1
        (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{" + b" " * length)
        refused(tmp_path / "a.safetensors", "begins with a list of 8388609 bytes")
        with pytest.raises(rs.CheckpointError, match="begins with a list"):  # to tell what it is, too
            peek_config(tmp_path / "a.safetensors")
        save_file({f"{n}": torch.zeros(1) for n in range(20_001)}, tmp_path / "b.safetensors")
        refused(tmp_path / "b.safetensors", "holds 20001 weights")


class TestNames:
    @pytest.mark.parametrize("key", ["x" * 301, "a\x1b[31m", "a\nb", 5, (1, 2), None])
    def test_keys_that_are_no_names(self, tmp_path, key):
        path = tmp_path / "names.pth"
        torch.save({"a": torch.zeros(1), key: torch.zeros(1)}, path)
        refused(path, "something that is no name")

    def test_what_a_file_says_does_not_steer_the_terminal(self, tmp_path, capsys):
        path = rs.save_model(standin.small_model(), tmp_path / "m.safetensors", {"note": "\x1b[2J\x1b]0;owned\x07"})
        assert main(["info", str(path)]) == 0
        out, _ = capsys.readouterr()
        assert "\x1b" not in out and "?[2J?]0;owned?" in out

    def test_nor_by_a_single_letter_that_begins_a_command(self, tmp_path, capsys):
        """What ESC [ begins, one letter beyond ASCII begins as well."""
        path = rs.save_model(standin.small_model(), tmp_path / "m.safetensors", {"note": "\x9b2J\x9d0;owned\x9c"})
        assert main(["info", str(path)]) == 0
        assert "?2J?0;owned?" in capsys.readouterr().out

    def test_a_line_break_in_a_name_makes_no_line(self, tmp_path, capsys):
        assert main(["info", str(tmp_path / "a\nerror: b.pth")]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_nor_do_names_of_files(self, tmp_path, capsys):
        assert main(["info", str(tmp_path / "\x1b[2J.pth")]) == 1
        assert "\x1b" not in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody/x.pth", "", ".", "\ud800.pth"])
    def test_names_that_no_file_has(self, name):
        with pytest.raises(rs.CheckpointError):
            rs.load_model(name)
        with pytest.raises(rs.CheckpointError):
            read_file(name)


class TestConfigurations:
    """The configuration in a file's metadata decides what is built, before a weight is compared."""

    @pytest.fixture
    def saved(self, tmp_path) -> Path:
        return rs.save_model(standin.small_model(), tmp_path / "model.safetensors")

    def changed(self, path: Path, change) -> Path:
        state = {key: value.clone() for key, value in load_file(path).items()}  # Windows writes over no file that is mapped
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        config = json.loads(metadata[CONFIG_KEY])
        change(config)
        save_file(state, path, {**metadata, CONFIG_KEY: json.dumps(config)})
        return path

    @pytest.mark.parametrize(
        ("part", "key", "value", "told"),
        [
            ("", "min_noise_level", 1, "min_noise_level is 1, which makes sqrt_eta_1"),
            ("", "steps", 10**9, "steps is 1000000000, not a whole number from 1 to 10000"),
            ("", "steps", 4.0, "steps is 4.0, not a whole number"),
            ("", "kappa", float("nan"), "kappa is nan"),
            ("", "kappa", True, "kappa is True"),
            ("", "tile", -8, "tile is -8"),
            ("", "tile", 0, "tile is 0"),
            ("", "scale", 3, "scale 3 with 0 halvings"),
            ("", "scale", "4", "scale is '4'"),
            ("", "task", "inpaint", "task is 'inpaint', but the network has no mask"),
            ("", "space", "outer", "space is 'outer', not one of latent, pixel"),
            ("", "name", "a\x1b[2J", "name is 'a\\\\x1b"),
            ("", "licence", "x" * 201, "not a text of at most 200 letters"),
            ("unet", "window", 4096, "window is 4096"),
            ("unet", "num_res_blocks", 10**7, "num_res_blocks is 10000000"),
            ("unet", "channel_mult", [1] * 9, "not 1 to 8 numbers"),
            ("unet", "channel_mult", 1, "channel_mult is 1"),
            ("unet", "mask", 1, "mask is 1, not true or false"),
            ("unet", "in_channels", 47, "takes 47 and returns 48 latent channels"),
            ("unet", "mlp_ratio", 10**300, "mlp_ratio"),
            ("autoencoder", "factor", 0, "factor is 0"),
            ("autoencoder", "kind", "os.system", "os.system"),
            ("autoencoder", "__class__", "x", "unknown settings '__class__'"),
        ],
    )
    def test_numbers_that_no_model_has(self, saved, part, key, value, told):
        self.changed(saved, lambda config: (config[part] if part else config).update({key: value}))
        for use in (rs.load_model, peek_config):
            with pytest.raises(rs.CheckpointError, match=f"model.safetensors carries a configuration.*{told}"):
                use(saved)

    def test_far_too_many_layers(self, saved):
        """Each number is within its range; the network they describe took minutes to build."""
        self.changed(saved, lambda config: config["unet"].update(num_res_blocks=64, swin_depth=64))
        for use in (rs.load_model, peek_config):
            with pytest.raises(rs.CheckpointError, match="the network would have about 4225 layers"):
                use(saved)

    def test_nested_beyond_reason(self, saved):
        state = {key: value.clone() for key, value in load_file(saved).items()}
        save_file(state, saved, {CONFIG_KEY: "[" * 10**5})
        for use in (rs.load_model, peek_config):
            with pytest.raises(rs.CheckpointError, match="carries a configuration that this version cannot read"):
                use(saved)

    def test_published_kinds_are_within_the_limits(self):
        for variant in standin.PARTS:
            config = standin.published_config(variant)
            layers = len(config.unet.channel_mult) * (config.unet.num_res_blocks + 1) * (config.unet.swin_depth + 1)
            assert layers == 36 < MAX_LAYERS
            assert rs.ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class TestNotedHashes:
    def test_nested_beyond_reason(self, tmp_path):
        (tmp_path / pins.PINS).write_text('{"a":' * 10**5)
        with pytest.raises(rs.CheckpointError, match="resshift-hashes.json cannot be read"):
            pins.check_pin(tmp_path / "a.pth")

    def test_a_file_that_vanished(self, tmp_path):
        (tmp_path / pins.PINS).write_text(json.dumps({"a.pth": {"sha256": "0"}}))
        with pytest.raises(rs.CheckpointError, match="a.pth cannot be read"):
            pins.check_pin(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("Die Auslagerungsdatei ist zu klein. (os error 1455)"),  # of safetensors, on Windows
        RuntimeError("data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_told_as_such(tmp_path, monkeypatch, error):
    """It is no damage: a damaged file would be fetched again."""
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")

    def full(*arguments, **words):
        raise error

    monkeypatch.setattr(checkpoint_file, "_read_safetensors", full)
    with pytest.raises(rs.OutOfMemory, match="not enough memory to read a.safetensors .*Close other programs"):
        read_file(tmp_path / "a.safetensors")
    monkeypatch.setattr(checkpoint_file, "_read_pickle", full)  # of which torch believes any size
    with pytest.raises(rs.CheckpointError if isinstance(error, RuntimeError) else rs.OutOfMemory):
        read_file(tmp_path / "a.pth")
