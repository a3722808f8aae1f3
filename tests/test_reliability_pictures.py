"""Pictures from strangers: thousands of damaged and hostile ones, alone and among sound ones on the command line."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from resshift_core.cli import main
from resshift_core.image_io import read_picture

from .standin import small_model
from .test_reliability_models import fuzz, rs


@pytest.mark.skipif(os.name == "nt", reason="the fuzzer measures its memory in ways that Windows does not have")
class TestFuzzer:
    def test_some_pictures(self):
        summary = fuzz("pictures", "--count", "120", minutes=5)
        assert summary["pictures"] == 120 and not summary["failures"]

    @pytest.mark.slow
    def test_many_pictures(self):
        summary = fuzz("pictures", "--first", "1000", "--count", "5000", minutes=60)
        assert summary["pictures"] == 5000 and not summary["failures"]


@pytest.fixture
def upscale(tmp_path, monkeypatch, capsys):
    """upscale(*words) -> (exit status, {name: record}) in a folder of its own."""
    model = rs.save_model(small_model(), tmp_path / "model.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*words):
        status = main(["upscale", *words, "--model", str(model), "--json", "--quiet", "--device", "cpu", "--dtype", "fp32"])
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return status, {record["input"]: record for record in records}

    return run


NAMES = [
    "日本語.png",
    "ελληνικά.png",
    "a b  c.png",
    "-o.png",
    "100%.png",
    "quote'`.png" if os.name == "nt" else "quote'\"`.png",
    "😀.png",
    "ünïcode.png",
    "x" * 200 + ".png",
]


class TestFolders:
    def test_names_in_every_script(self, upscale):
        for name in NAMES:
            Image.new("RGB", (9, 7), "red").save(f"./{name}")
        status, records = upscale(".", "-o", "out")
        assert status == 0 and len(records) == len(NAMES)
        assert sorted(os.listdir("out")) == sorted(name.replace(".png", "_x4.png") for name in NAMES)

    @pytest.mark.skipif(os.name == "nt", reason="links need a right of their own on Windows")
    def test_links(self, upscale, tmp_path):
        """A link to a picture elsewhere is read where it lies; the result goes where it was asked for; loops end."""
        (tmp_path / "elsewhere").mkdir()
        Image.new("RGB", (9, 7), "red").save(tmp_path / "elsewhere" / "a.png")
        os.symlink(tmp_path / "elsewhere" / "a.png", "link.png")
        os.symlink("nowhere.png", "broken.png")
        os.symlink("loop.png", "loop.png")
        os.symlink(".", "again")
        status, records = upscale(".", "-o", "out", "--recursive")
        assert status == 1
        assert {name: record["status"] for name, record in records.items()} == {
            "link.png": "done", "broken.png": "failed", "loop.png": "failed",
        }  # fmt: skip
        assert os.listdir("out") == ["link_x4.png"] and os.listdir(tmp_path / "elsewhere") == ["a.png"]

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
    def test_what_only_looks_like_a_file(self, upscale):
        """A named pipe that nobody writes to must not hold up the rest."""
        os.mkfifo("pipe.png")
        os.mkdir("folder.png")
        Image.new("RGB", (9, 7), "red").save("sound.png")
        status, records = upscale(".", "-o", "out")
        assert status == 1 and records["sound.png"]["status"] == "done"
        assert records["pipe.png"]["status"] == "failed" and "pipe.png" in records["pipe.png"]["error"]

    @pytest.mark.parametrize("name", ["x" * 300 + ".png", "x" * 5000, "no/such/folder/*.png"])
    def test_names_that_no_file_has(self, upscale, name):
        Image.new("RGB", (9, 7), "red").save("sound.png")
        status, records = upscale(name, "sound.png", "-o", "out/")
        assert status == 1 and records["sound.png"]["status"] == "done" and len(records) == 2

    def test_a_file_that_vanishes(self, upscale, monkeypatch):
        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGB", (9, 7), "red").save(name)
        from resshift_core.cli import batch

        def read(path, **words):
            if path.name == "b.png":
                os.unlink(path)
            return read_picture(path, **words)

        monkeypatch.setattr(batch, "read_picture", read)
        status, records = upscale(".", "-o", "out")
        assert status == 1 and [record["status"] for record in records.values()] == ["done", "failed", "done"]
        assert "There is no file b.png" in records["b.png"]["error"]


class TestFullDisk:
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
    @pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "bmp"])
    def test_nothing_half_written(self, upscale, monkeypatch, ending):
        """The disk is full while the second of three results is written: a sentence, no debris, the others are made."""
        from resshift_core import image_io

        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGB", (9, 7), "red").save(name)
        real = image_io.Image.Image.save
        calls = []

        def save(image, part, format=None, **options):
            calls.append(1)
            if len(calls) != 2:
                return real(image, part, format=format, **options)
            with open("/dev/full", "wb") as full:
                real(image, full, format=format, **options)

        monkeypatch.setattr(image_io.Image.Image, "save", save)
        status, records = upscale(".", "-o", "out", "--format", ending)
        assert status == 1 and [record["status"] for record in records.values()] == ["done", "failed", "done"]
        assert "cannot be written" in records["b.png"]["error"]
        assert sorted(os.listdir("out")) == [f"a_x4.{ending}", f"c_x4.{ending}"]

    def test_a_model_on_a_full_disk(self, tmp_path, monkeypatch):
        from resshift_core import checkpoint_file

        def save(state, part, metadata=None):
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint_file, "save_file", save)
        with pytest.raises(rs.CheckpointError, match="model.safetensors cannot be written .*No space left"):
            rs.save_model(small_model(), tmp_path / "model.safetensors")
        assert os.listdir(tmp_path) == []

    def test_a_folder_for_reading_only(self, upscale, monkeypatch):
        from resshift_core import atomic_file

        Image.new("RGB", (9, 7), "red").save("a.png")

        def touch(path, *rest, **words):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(atomic_file.Path, "touch", touch)
        status, records = upscale("a.png", "-o", "out/")
        assert status == 1 and "cannot be written (Permission denied" in records["a.png"]["error"]
