"""The command line, mostly in this process through main(): a person's habits, damage, interruption, pipes, several ranks."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file
from tqdm import tqdm

import resshift_core as rs
from resshift_core import registry, sheet
from resshift_core.cli import batch, doctor, main
from resshift_core.cli import upscale as upscale_module
from resshift_core.cli.console import Console
from resshift_core.cli.sources import Naming, _in_folder
from resshift_core.cli.stop import raise_if_stopped
from resshift_core.hidden import is_hidden
from resshift_core.image_io import Picture

from . import standin
from .test_image_io import MAKE, SRGB, colours, exif_block, png_texts, saved

ROOT = Path(__file__).parent.parent
NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Python's own modules are others there")
Image.init()
AVIF = "avif, " if "AVIF" in Image.SAVE else ""  # not with Pillow before 11.3


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """A model that runs in milliseconds, called "small" inside."""
    return rs.save_model(standin.small_model(), tmp_path_factory.mktemp("models") / "of-a-test.safetensors")


class Terminal(io.StringIO):
    """A standard error on which a bar is drawn."""

    def isatty(self):
        return True


class Windows:
    """What the command line asks of `os`, there."""

    name = "nt"


class Gone(io.StringIO):
    """A standard output that nobody reads any more, in the words of Windows."""

    def __init__(self, pipe):
        super().__init__()
        self.fileno = pipe.fileno

    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in; paths on the command line are relative to it."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def upscale(folder, model_file):
    """upscale(*words) -> exit status of `resshift upscale` with the small model in float32."""

    def run(*words) -> int:
        return main(["upscale", *map(str, words), "--model", str(model_file), "--dtype", "fp32", "--device", "cpu"])

    return run


def picture(path, seed=0, size=(15, 13), channels=3, format=None, **options) -> np.ndarray:
    """Write a random picture and return its pixels."""
    pixels = colours(size[1], size[0], channels, seed)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format, **options)
    return pixels


def expected(model_file, pixels, **settings) -> np.ndarray:
    """What the library makes of 8-bit RGB pixels, as 8-bit pixels."""
    model = rs.load_model(model_file, device="cpu", dtype="fp32")
    out = rs.upscale(model, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, **settings)
    return (out[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def listing(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- the program


class TestProgram:
    def test_help_and_version(self, capsys):
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in ("upscale", "doctor", "convert"))
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"resshift {rs.__version__}\n"

    @pytest.mark.parametrize("command", ["upscale", "models", "download", "info", "convert", "schedule", "doctor"])
    def test_help_of_commands(self, command, capsys):
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out.isascii()

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell's")
    @pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
    def test_without_standard_streams(self, folder, closed):
        """As a service, or under pythonw."""
        picture("a.png")
        command = f"{shlex.quote(sys.executable)} -m resshift_core upscale a.png --json -o out/ {closed}"
        done = subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert (done.returncode, listing("out")) == (0, ["a_x4.png"]), done.stderr
        assert "Traceback" not in done.stderr + done.stdout

    @pytest.mark.parametrize("command", ["upscale x.png", "doctor"])
    @pytest.mark.parametrize(
        "platform, remedy",
        [("win32", "Redistributable"), pytest.param("linux", "as pytorch.org says", marks=NOT_ON_WINDOWS)],
    )
    def test_a_library_of_torch_is_missing(self, command, platform, remedy, tmp_path):
        """Of Windows' redistributable, say: torch itself fails to load, in an OSError."""
        (tmp_path / "torch.py").write_text("raise OSError('[WinError 126] Module not found. Error loading shm.dll.')")
        code = f"import sys; from resshift_core.cli import main; sys.platform = {platform!r}; sys.exit(main({command.split()}))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        assert "cannot be loaded: [WinError 126] Module not found" in done.stderr and remedy in done.stderr

    def test_help_does_not_wait_for_torch(self):
        code = (
            "import sys; from resshift_core.cli import main; main(['--help']); main(['models']); print('torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert out.splitlines()[-1] == "False"

    @pytest.mark.parametrize(
        "words, said",
        [
            ([], "required"),
            (["paint"], "invalid choice"),
            (["upscale"], "required"),
            (["upscale", "a.png", "--steps", "0"], "'0' is not a whole number of at least 1"),
            (["upscale", "a.png", "--kappa", "much"], "'much' is not a number"),
            (["upscale", "a.png", "--scale", "nan"], "'nan' is not a number"),
            (["upscale", "a.png", "--tile", "-1"], "'-1' is not a whole number of at least 0"),
            (["upscale", "a.png", "--sampler", "euler"], "invalid choice"),
            (["upscale", "a.png", "--color-fix", "magic"], "invalid choice"),
            (["upscale", "a.png", "--dtype", "int8"], "invalid choice"),
            (["upscale", "a.png", "--variant", "x9"], "invalid choice"),
            (["upscale", "a.png", "-o", "b.gif"], "b.gif ends in .gif, which cannot be written; known"),
            (["upscale", "a.png", "--format", "gif"], f"--format gif cannot be written; known are {AVIF}bmp, "),
            (["upscale", "a.png", "-o", "b.png", "--format", "jpg"], "contradict"),
            (["upscale", "a.png", "-o", ""], "-o is empty"),
            (["upscale", "a.png", "--format", ""], "--format is empty"),
            (["upscale", ""], "an input is empty"),
            (["upscale", "a.png", "c.png", "-o", "b.png"], "b.png is a file, but there are several inputs"),
            (["upscale", "*.png", "-o", "b.png"], "b.png is a file, but there are several inputs"),
            (["upscale", "a.png", "c.png", "-o", "-"], "several inputs"),
            (["upscale", "a.png", "-"], "must be the only input"),
            (["upscale", "a.png", "-o", "-", "--json"], "both want standard output"),
            (["upscale", "a.png", "-o", "-", "--compare"], "needs a place"),
            (["upscale", "a.png", "--mask", "gone.png"], "There is no mask gone.png"),
            (["upscale", "a.png", "--model", "gone"], "no model file gone"),
            (["upscale", "a.png", "--model", "realsr_x4_s4"], "resshift download realsr_x4_s4"),
            (["upscale", "a.png", "--device", "abacus"], "'abacus' cannot be used"),
            (["download", "gone"], "no model called 'gone'"),
            (["upscale", "a.png", "-\x1b[31mred.png"], "unrecognized arguments: -?[31mred.png"),  # a file, by the shell's *
            (["convert", "a.safetensors", "b.pth"], "must end in .safetensors"),
            (["schedule", "--model", "realsr_x4_s4", "--plot", "a.jpg"], "must end in .png"),
            (["schedule", "--model", "realsr_x4_s4", "--p", "-1"], "must be a positive number"),
        ],
    )
    def test_wrong_arguments(self, folder, words, said, capsys, model_file):
        picture("a.png")
        if words[:1] == ["upscale"] and "--model" not in words:
            words = [*words, "--model", str(model_file)]
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert said in err and "Traceback" not in err and not out
        assert listing(folder) == ["a.png"]

    @pytest.mark.parametrize("words", [("--kappa", "-1"), ("--p", "0"), ("--scale", "0"), ("--scale", "1000")])
    def test_values_that_only_the_core_can_judge(self, upscale, folder, words, capsys):
        picture("a.png")
        assert upscale("a.png", *words) == 2
        assert "error: " in capsys.readouterr().err and listing(folder) == ["a.png"]

    def test_a_reader_that_goes_away(self, folder):
        command = f'"{sys.executable}" -m resshift_core models --json'
        process = subprocess.Popen(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read() and process.wait() in (0, 1)

    def test_a_reader_that_goes_away_on_windows(self, folder, monkeypatch, capsys):
        """It says EINVAL there."""
        with open("pipe", "wb") as pipe:
            monkeypatch.setattr("resshift_core.cli.console.os", Windows)
            monkeypatch.setattr(sys, "stdout", Gone(pipe))
            assert main(["models"]) == 1 and capsys.readouterr().err == ""

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="nothing here says that it is full")
    @pytest.mark.parametrize(
        "words", ["models", "models --json", "info builtin", "schedule", "doctor", "upscale a.png --json", "upscale a.png -o -"]
    )
    def test_a_full_disk(self, folder, words):
        picture("a.png")
        command = f'"{sys.executable}" -m resshift_core {words} > /dev/full'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        last = done.stderr.splitlines()[-1]
        assert last == "error: Standard output could not be written (No space left on device)." and done.returncode == 1
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="nothing here says that it is full")
    def test_a_full_disk_is_no_failed_picture(self, folder):
        for name in ("a.png", "a_x4.png"):
            picture(name)
        command = f'"{sys.executable}" -m resshift_core upscale a.png --json > /dev/full'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        assert "already there" in done.stderr and "failed" not in done.stderr and done.returncode == 1


# ---------------------------------------------------------------------------------------------------- where things go


class TestFiles:
    def test_a_terminal_without_tqdm_has_no_bar(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setattr(Console, "has_bar", True)
        with Console().progress(2, "B") as progress:
            progress.describe("a picture")

    def test_beside_the_input(self, upscale, folder, model_file, capsys):
        pixels = picture("photo.one.png")
        assert upscale("photo.one.png") == 0
        assert listing(folder) == ["photo.one.png", "photo.one_x4.png"]
        assert np.array_equal(pixels_of("photo.one_x4.png"), expected(model_file, pixels))
        out, err = capsys.readouterr()
        assert not out and "photo.one.png -> photo.one_x4.png (15 x 13 -> 60 x 52, " in err and "%" not in err

    def test_settings_reach_the_chain(self, upscale, folder, model_file):
        pixels = picture("a.png", size=(40, 36))
        words = "--steps 2 --kappa 0.12 --p 0.5 --seed 7 --sampler deterministic --scale 2.5 --tile 32 --overlap 8 --color-fix wavelet"
        assert upscale("a.png", *words.split(), "--tile-batch", "3") == 0
        settings = {"steps": 2, "kappa": 0.12, "p": 0.5, "seed": 7, "sampler": "deterministic", "scale": 2.5}
        again = expected(model_file, pixels, **settings, tile=32, overlap=8, color_fix="wavelet", tile_batch=3)
        assert np.array_equal(pixels_of("a_x2.5.png"), again) and again.shape == (90, 100, 3)
        assert not np.array_equal(again, expected(model_file, pixels, scale=2.5))

    @pytest.mark.parametrize("scale", ["3.3", "4", "1"])
    def test_wrapped_at_any_scale(self, upscale, folder, model_file, scale):
        pixels = picture("a.png")
        assert upscale("a.png", "-o", "out.png", "--wrap", "both", "--scale", scale) == 0
        assert np.array_equal(pixels_of("out.png"), expected(model_file, pixels, wrap="both", scale=float(scale)))

    def test_a_file_or_a_folder(self, upscale, folder):
        picture("a.png"), picture("b.png", 1)
        assert upscale("a.png", "-o", "deep/er/large.webp") == 0
        assert upscale("a.png", "-o", "new folder") == 0
        assert upscale("a.png", "-o", "v1.5/") == 0
        assert upscale("a.png", "b.png", "-o", "both.1") == 0
        assert listing(folder) == [
            "a.png", "b.png", "both.1/a_x4.png", "both.1/b_x4.png", "deep/er/large.webp", "new folder/a_x4.png", "v1.5/a_x4.png",
        ]  # fmt: skip
        assert Image.open("deep/er/large.webp").format == "WEBP"

    def test_formats(self, upscale, folder):
        names = ["a.png", "b.JPG", "c.webp", "d.tif", "e.bmp", "f.gif", "g.ppm"]
        for name in names:
            picture(name)
        assert upscale(*names) == 0
        made = {Path(name).name: Image.open(name).format for name in listing(folder) if "_x4" in name}
        assert made == {
            "a_x4.png": "PNG", "b_x4.JPG": "JPEG", "c_x4.webp": "WEBP", "d_x4.tif": "TIFF", "e_x4.bmp": "BMP",
            "f_x4.png": "PNG", "g_x4.png": "PNG",
        }  # fmt: skip
        assert upscale(*names, "--format", "jpg", "-o", "all") == 0
        assert all(name.endswith("_x4.jpg") for name in os.listdir("all")) and len(os.listdir("all")) == 7

    def test_a_folder_and_its_structure(self, upscale, folder):
        for name in ("in/b.png", "in/a.jpg", "in/sub/c.png", "in/sub/deep/d.png", "in/.hidden.png", "in/.trash/e.png"):
            picture(name)
        Path("in/notes.txt").write_text("no picture")
        assert upscale("in", "-o", "out") == 0
        assert listing("out") == ["a_x4.jpg", "b_x4.png"]
        assert upscale("in", "-o", "all", "--recursive") == 0
        assert listing("all") == ["a_x4.jpg", "b_x4.png", "sub/c_x4.png", "sub/deep/d_x4.png"]

    def test_several_folders_keep_their_names(self, upscale, folder):
        picture("one/a.png"), picture("two/a.png", 1)
        assert upscale("one", "two", "-o", "out") == 0
        assert listing("out") == ["one/a_x4.png", "two/a_x4.png"]

    def test_an_output_folder_inside_the_input_folder(self, upscale, folder):
        picture("in/a.png")
        for _ in range(2):
            assert upscale("in", "-o", "in/large", "--recursive") == 0
        assert listing("in") == ["a.png", "large/a_x4.png"]

    def test_patterns(self, upscale, folder, capsys):
        for name in ("in/a1.png", "in/a2.png", "in/b.png", "in/sub/a3.png", "odd[1].png"):
            picture(name)
        assert upscale("in/a*.png", "-o", "flat") == 0
        assert listing("flat") == ["a1_x4.png", "a2_x4.png"]
        assert upscale("in/**/*.png", "-o", "deep") == 0
        assert listing("deep") == ["a1_x4.png", "a2_x4.png", "b_x4.png", "sub/a3_x4.png"]
        assert upscale("odd[1].png") == 0 and Path("odd[1]_x4.png").exists()
        capsys.readouterr()
        assert upscale("in/z*.png") == 1
        assert capsys.readouterr().err == "error: No picture matches in/z*.png.\n"

    def test_patterns_in_folders_with_brackets(self, upscale, folder):
        """Which are letters like any other to the shell of Windows."""
        picture("[2023] trip/a.png"), picture("[2023] trip/day [1]/b.png")
        assert upscale("[2023] trip/*.png", "-o", "flat") == 0
        assert listing("flat") == ["a_x4.png"]
        assert upscale("[2023] trip/**/*.png", "-o", "deep") == 0
        assert listing("deep") == ["a_x4.png", "day [1]/b_x4.png"]

    def test_nothing_in_a_folder(self, upscale, folder, capsys):
        picture("in/sub/a.png")
        assert upscale("in") == 1
        assert "no picture in the folder in. --recursive also" in capsys.readouterr().err

    def test_photographs_of_phones_are_not_passed_over_in_silence(self, upscale, folder, capsys):
        picture("in/a.png")
        for path in ("in/b.HEIC", "in/.c.heic", "other/d.heif"):
            Path(path).parent.mkdir(exist_ok=True)
            Path(path).write_bytes(b"\0\0\0\x20ftypheic" + bytes(40))
        for word in ("in", "in/*"):
            assert upscale(word, "-o", "out", "--overwrite") == 0
            said = f"note: left out 1 that Pillow cannot read ({Path('in/b.HEIC')})."
            assert said in capsys.readouterr().err
        for word in ("other", "other/*.heif"):
            assert upscale(word) == 1
            assert "there are only pictures that Pillow cannot read (.heif)" in capsys.readouterr().err
        Path("other/e.NEF").write_bytes(b"")
        Path("other/f.jxl").write_bytes(b"")
        assert upscale("other") == 1 and "(.heif, .jxl, .nef)" in capsys.readouterr().err

    def test_links_to_pictures_have_results_of_their_own(self, upscale, folder, capsys):
        """As the frames of a film of which some are equal."""
        picture("in/000002.png")
        for name in ("000001.png", "000003.png"):
            link_or_skip(Path("in", name), "000002.png")
        assert upscale("in", "-o", "out", "--suffix=") == 0
        assert listing("out") == ["000001.png", "000002.png", "000003.png"]
        assert upscale("in/000001.png", "./in/000001.png", "-o", "one") == 0 and listing("one") == ["000001_x4.png"]

    def test_linked_folders_are_followed_once(self, upscale, folder):
        picture("elsewhere/deep/a.png"), picture("in/b.png", 1)
        link_or_skip(Path("in/album"), os.path.abspath("elsewhere"))
        link_or_skip(Path("elsewhere/deep/back"), os.path.abspath("in"))
        assert upscale("in", "-o", "out") == 0 and listing("out") == ["b_x4.png"]
        assert upscale("in", "-o", "out", "--recursive") == 0
        assert listing("out") == ["album/deep/a_x4.png", "b_x4.png"]
        found, _ = _in_folder(Path("in"), True, None, False, [])  # not forty times, by the link that leads back
        assert [source.below for source in found] == [Path("b.png"), Path("album/deep/a.png")]

    def test_once_each(self, upscale, folder, capsys):
        picture("a.png")
        assert upscale("a.png", "./a.png", folder / "a.png", "--json") == 0
        assert len(capsys.readouterr().out.splitlines()) == 1

    def test_earlier_outputs_are_not_inputs(self, upscale, folder, capsys):
        picture("a.png"), picture("b_x2.png", 1)
        assert upscale(".", "--compare") == 0
        once = listing(folder)
        assert once == ["a.png", "a_x4.png", "a_x4_compare.png", "b_x2.png", "b_x2_x4.png", "b_x2_x4_compare.png"]
        capsys.readouterr()
        assert upscale(".", "--overwrite") == 0 and upscale("*.png") == 0
        assert listing(folder) == once
        assert "left out 4 earlier outputs" in capsys.readouterr().err
        assert upscale("a_x4.png") == 0 and Path("a_x4_x4.png").exists()  # named alone, it is meant

    def test_the_smallest_scales_have_names_that_are_known_again(self, upscale, folder):
        picture("a.png")
        for _ in range(2):
            assert upscale("*.png", "--scale", "1e-05") == 0
        assert listing(folder) == ["a.png", "a_x1e-05.png"]

    def test_earlier_outputs_in_the_output_folder_are_not_inputs(self, upscale, folder, capsys):
        """A pattern finds what its first run has made, and so does a shell, which writes it out as words."""
        picture("a/p.png"), picture("q.png", 1)
        for more in ([], [], ["--overwrite"]):
            assert upscale("**/*.png", "-o", "out", *more) == 0
        assert listing("out") == ["a/p_x4.png", "q_x4.png"]
        assert "note: left out 2 that lie in the output folder (out/a/p_x4.png ...)" in capsys.readouterr().err.replace(
            os.sep, "/"
        )
        words = ["a/p.png", "q.png"]
        for scale in ("4", "4", "2"):
            assert upscale(*words, "-o", "flat", "--scale", scale) == 0
            words += ["./flat/p_x4.png", "flat/q_x4.png"]
        assert listing("flat") == ["p_x2.png", "p_x4.png", "q_x2.png", "q_x4.png"]
        capsys.readouterr()
        assert upscale("q.png", "./flat/q_x4.png", "-o", "flat", "--quiet") == 0
        assert "warning: left out an earlier output among the inputs" in capsys.readouterr().err
        for _ in range(2):
            assert upscale("a", "out", "-o", "a", "--recursive") == 0
        assert not [name for name in listing(folder) if "_x4_x4_x4" in name]
        assert upscale("out/q_x4.png", "-o", "out") == 0 and Path("out/q_x4_x4.png").exists()  # named alone, it is meant

    def test_suffix(self, upscale, folder, capsys):
        picture("in/a.png"), picture("in/b c.gif", 1), picture("in/sub/a.png", 2)
        for _ in range(2):
            assert upscale("in", "--recursive", "--suffix", " large", "--compare") == 0
        large = ["a large.png", "a large_compare.png", "a.png", "b c large.png", "b c large_compare.png", "b c.gif"]
        assert listing("in") == [*large, "sub/a large.png", "sub/a large_compare.png", "sub/a.png"]
        assert "left out 6 earlier outputs" in capsys.readouterr().err
        assert upscale("in/a.png", "in/a large.png", "-o", "two", "--suffix", "") == 0  # with another suffix it is an input
        assert listing("two") == ["a large.png", "a.png"]

    @pytest.mark.parametrize("compare, stem", [(True, "a"), (False, None)])
    def test_without_suffix_sheets_alone_are_results_and_only_where_they_are_made(self, compare, stem):
        assert Naming(mark="", compare=compare).stem_of_input("a_compare") == stem
        assert Naming(mark="", compare=compare).stem_of_input("a") is None

    def test_no_suffix_keeps_the_names(self, upscale, folder, capsys):
        picture("in/a.png"), picture("in/sub/a.jpg", 1)
        before = Path("in/a.png").read_bytes()
        for _ in range(2):
            assert upscale("in", "--recursive", "--suffix=", "-o", "out", "--compare") == 0
        assert listing("out") == ["a.png", "a_compare.png", "sub/a.jpg", "sub/a_compare.png"]
        capsys.readouterr()
        assert upscale("in/a.png", "--suffix", "", "--overwrite") == 1
        assert "in/a.png would be overwritten by its own result" in capsys.readouterr().err.replace(os.sep, "/")
        assert upscale("in/a.png", "out/a.png", "--suffix", "", "-o", "out", "--overwrite") == 1
        assert Path("in/a.png").read_bytes() == before

    @pytest.mark.parametrize(
        "words, sentence",
        [
            (("--suffix", "../x"), "has a character that separates folders"),
            (("--suffix", "x", "-o", "b.png"), "is the whole name of the output"),
        ],
    )
    def test_suffixes_that_cannot_be(self, upscale, folder, capsys, words, sentence):
        picture("a.png")
        assert upscale("a.png", *words) == 2
        assert sentence in capsys.readouterr().err
        assert listing(folder) == ["a.png"]

    def test_quality(self, upscale, folder, capsys):
        picture("a.png")
        for format in ("jpg", "webp", "png"):
            for quality in ("20", "100"):
                assert upscale("a.png", "--format", format, "--quality", quality, "--suffix", quality) == 0
        assert upscale("a.png", "--format", "jpg") == 0
        sizes = [os.path.getsize(f"a{name}") for name in ("20.jpg", "_x4.jpg", "100.jpg")]
        assert sizes == sorted(sizes) and len(set(sizes)) == 3
        assert os.path.getsize("a20.webp") < os.path.getsize("a100.webp")
        assert Path("a20.png").read_bytes() == Path("a100.png").read_bytes()
        assert upscale("a.png", "--quality", "0") == 2
        assert "'0' is not a whole number from 1 to 100" in capsys.readouterr().err

    def test_two_that_want_one_name(self, upscale, folder, capsys):
        picture("x/a.png"), picture("y/a.png", 1), picture("b.png", 2)
        assert upscale("x/a.png", "y/a.png", "b.png", "-o", "out") == 1
        said = capsys.readouterr().err.replace(os.sep, "/")
        assert "y/a.png would be written to out/a_x4.png, and so would x/a.png" in said
        assert listing("out") == ["a_x4.png", "b_x4.png"]

    def test_two_that_differ_in_their_endings_alone(self, upscale, folder, capsys):
        """The one that keeps its ending has the name, whichever comes first; results are no inputs of the next run."""
        inputs = [picture("a.gif"), picture("a.png", 1), picture("a.bmp", 2)]
        for _ in range(2):
            assert upscale("a.gif", "a.png", "a.bmp", "--format", "png", "--json") == 0
            records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [record["output"] for record in records] == ["a_gif_x4.png", "a_x4.png", "a_bmp_x4.png"]
        assert upscale(".") == 0
        made = ["a_bmp_x4.png", "a_gif_x4.png", "a_x4.bmp", "a_x4.png"]
        assert listing(folder) == ["a.bmp", "a.gif", "a.png", *made]
        for number, name in enumerate(["a_gif_x4.png", "a_x4.png", "a_bmp_x4.png"]):
            small = np.asarray(Image.fromarray(pixels_of(name)).resize((15, 13), Image.Resampling.BOX)).astype(int)
            assert np.argmin([np.abs(small - given).mean() for given in inputs]) == number

    def test_the_input_is_not_overwritten(self, upscale, folder, capsys):
        picture("a.png")
        before = Path("a.png").read_bytes()
        assert upscale("a.png", "-o", "a.png", "--overwrite") == 1
        assert "would be overwritten by its own result" in capsys.readouterr().err
        assert Path("a.png").read_bytes() == before

    def test_a_place_that_cannot_be_written(self, upscale, folder, capsys):
        picture("a.png"), picture("b.png")
        Path("out").write_text("a file, not a folder")
        for words in (
            ("a.png", "b.png", "-o", "out/x"),
            ("a.png", "-o", "out"),
            ("a.png", "-o", "a.png/"),
            ("a.png", "-o", "out/b.png"),
        ):
            assert upscale(*words) == 2  # before anything is computed
            assert "is a file, so that no folder of that name can be made" in capsys.readouterr().err
        Path("out").unlink()
        os.mkdir("out")
        os.mkdir("out/a_x4.png")
        assert upscale("a.png", "-o", "out", "--overwrite") == 1
        err = capsys.readouterr().err
        assert err.count("cannot be written") == 1 and "Traceback" not in err


LOCKED = """
import os, sys
from resshift_core import registry
from resshift_core.cli import main
for words in (
    ["ok.png", "locked", "-o", "one"], ["tree", "-o", "two", "--recursive"], ["ok.png", "-o", "locked/y.png"], ["no.png"],
    ["ok.png", "locked/x.png", "-o", "three"],
):
    print(main(["upscale", *words, "--model", sys.argv[1], "--device", "cpu"]), file=sys.stderr)
os.environ["RESSHIFT_MODELS_DIR"] = os.path.abspath("locked/models")
main(["doctor", "--model", sys.argv[1], "--device", "cpu"])
print(registry.first_writable([registry.Path("locked/models"), registry.Path("ok.png/x"), registry.Path("out")]))
"""


class TestPermissions:
    def test_what_may_not_be_opened_is_a_sentence_and_the_rest_goes_on(self, folder, model_file):
        for path in ("ok.png", "no.png", "locked/x.png", "tree/a/1.png", "tree/b/2.png"):
            picture(path)
        without_rights = []
        if os.name != "posix":
            pytest.skip("permissions of Unix")
        if os.geteuid() == 0:  # who may do everything
            if shutil.which("setpriv") is None:
                pytest.skip("no program that gives rights up")
            rights = "-dac_override,-dac_read_search"
            without_rights = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
        closed = [Path(name) for name in ("no.png", "locked", "tree/b")]
        for path in closed:
            path.chmod(0)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                [*without_rights, sys.executable, "-c", LOCKED, str(model_file)],
                capture_output=True,
                text=True,
                env=environment,
            )
        finally:
            for path in closed:
                path.chmod(0o755)
        assert "Traceback" not in done.stderr and "not expect" not in done.stderr, done.stderr
        lines = done.stderr.splitlines()
        assert [line for line in lines if line in "0123"] == ["1", "1", "1", "1", "1"]
        assert any("The folder locked cannot be opened (Permission denied). Check its permissions." in line for line in lines)
        assert any("The folder tree/b cannot be opened" in line for line in lines)
        assert any("no.png cannot be opened (Permission denied). Check its permissions." in line for line in lines)
        assert any("locked/x.png cannot be opened" in line for line in lines)
        assert any("locked/y.png cannot be written (Permission denied)" in line for line in lines)
        assert listing("one") == ["ok_x4.png"] and listing("two") == ["a/1_x4.png"] and listing("three") == ["ok_x4.png"]
        assert f"{folder / 'locked'} cannot be written, so that nothing can be downloaded" in done.stdout
        assert done.stdout.splitlines()[-1] == "out"


class TestPipes:
    @pytest.fixture
    def pipe(self, monkeypatch):
        """pipe(bytes): they become standard input."""

        def give(data: bytes, terminal: bool = False) -> None:
            stream = io.TextIOWrapper(io.BytesIO(data))
            stream.isatty = lambda: terminal
            monkeypatch.setattr(sys, "stdin", stream)

        return give

    @pytest.mark.parametrize("format, made", [("PNG", "PNG"), ("JPEG", "JPEG"), ("GIF", "PNG"), ("MPO", "JPEG")])
    def test_in_and_out(self, upscale, pipe, format, made, capfdbinary):
        pipe(saved(Image.fromarray(colours(13, 15)), format))
        assert upscale("-") == 0
        out, err = capfdbinary.readouterr()
        with Image.open(io.BytesIO(out)) as image:
            image.load()
            assert (image.format, image.size) == (made, (60, 52))
        assert b"- -> - (15 x 13 -> 60 x 52" in err

    def test_same_pixels_as_a_file(self, upscale, pipe, folder, model_file, capfdbinary):
        pixels = picture("a.png")
        pipe(Path("a.png").read_bytes())
        assert upscale("-", "--format", "webp", "-o", "-") == 0
        assert Image.open(io.BytesIO(capfdbinary.readouterr().out)).format == "WEBP"
        pipe(Path("a.png").read_bytes())
        assert upscale("-", "-o", "b.png", "--compare") == 0
        assert np.array_equal(pixels_of("b.png"), expected(model_file, pixels)) and Path("b_compare.png").exists()
        assert upscale("a.png", "-o", "-") == 0
        assert capfdbinary.readouterr().out == Path("b.png").read_bytes()

    def test_into_a_folder(self, upscale, pipe, folder):
        pipe(saved(Image.fromarray(colours())))
        assert upscale("-", "-o", "out/") == 0
        assert listing("out") == ["stdin_x4.png"]

    def test_rubbish(self, upscale, pipe, capfdbinary):
        pipe(b"no picture")
        assert upscale("-") == 1
        out, err = capfdbinary.readouterr()
        assert not out and err.startswith(b"error: Standard input is not a picture")

    def test_a_terminal_is_no_picture(self, upscale, pipe, capfdbinary):
        pipe(b"", terminal=True)
        assert upscale("-") == 2
        assert b"Standard input is a terminal" in capfdbinary.readouterr().err

    def test_as_a_program(self, folder, model_file):
        words = [sys.executable, "-m", "resshift_core", "upscale", "-", "--model", str(model_file), "--dtype", "fp32"]
        source = saved(Image.fromarray(colours(13, 15)))
        done = subprocess.run(
            words, input=source, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
        )
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(done.stdout))), expected(model_file, colours(13, 15)))


# ---------------------------------------------------------------------------------------------------- what is kept


class TestPictures:
    def test_rotation_exif_and_profile(self, upscale, folder, model_file):
        stored = picture("a.jpg", quality=100, subsampling=0, exif=exif_block(6), icc_profile=SRGB)
        decoded = pixels_of("a.jpg")
        assert decoded.shape == stored.shape
        assert upscale("a.jpg", "-o", "b.png") == 0
        upright = np.ascontiguousarray(decoded[::-1].transpose(1, 0, 2))  # 6: the stored left side is up, bottom row first
        assert np.array_equal(pixels_of("b.png"), expected(model_file, upright))
        with Image.open("b.png") as image:
            image.load()
            assert image.info["icc_profile"] == SRGB
            assert image.getexif()[MAKE] == "A camera" and image.getexif().get(0x0112, 1) == 1

    def test_alpha_and_grey(self, upscale, folder, model_file):
        pixels = picture("rgba.png", channels=4)
        picture("grey.png", channels=1), picture("la.png", channels=2)
        assert upscale("rgba.png", "grey.png", "la.png") == 0
        assert [Image.open(name).mode for name in ("rgba_x4.png", "grey_x4.png", "la_x4.png")] == ["RGBA", "L", "LA"]
        model = rs.load_model(model_file, device="cpu", dtype="fp32")
        out = rs.upscale(model, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
        assert np.array_equal(pixels_of("rgba_x4.png"), (out.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())

    def test_sixteen_bits(self, upscale, folder, model_file, capsys):
        values = np.linspace(20000, 21000, 13 * 15).astype(np.uint16).reshape(13, 15)  # four levels of 8 bits
        Image.fromarray(values).save("deep.png")
        assert upscale("deep.png") == 0
        assert "note: deep.png: It has 16 bits a pixel" in capsys.readouterr().err
        model = rs.load_model(model_file, device="cpu", dtype="fp32")
        out = rs.upscale(model, torch.from_numpy(values / 65535).float()[None, None])[0, 0]
        assert np.array_equal(pixels_of("deep_x4.png"), (out * 255).round().to(torch.uint8).numpy())

    def test_a_name_that_lies_and_frames(self, upscale, folder, capsys):
        picture("a.png", format="JPEG")
        frames = [Image.fromarray(colours(seed=i)) for i in range(2)]
        frames[0].save("b.gif", save_all=True, append_images=frames[1:])
        assert upscale("a.png", "b.gif") == 0
        assert Image.open("a_x4.png").format == "PNG"
        assert "note: b.gif: It has several frames" in capsys.readouterr().err

    def test_large_ones_need_a_word(self, upscale, folder, capsys):
        picture("a.png")
        assert upscale("a.png", "--max-pixels", "194") == 1
        assert "a.png has 15 x 13" in capsys.readouterr().err
        assert upscale("a.png", "--max-pixels", "195", "--compare", "--overwrite") == 0
        assert upscale("a.png", "--max-pixels", "0") == 0

    def test_png_tells_its_settings_but_no_path(self, upscale, folder, model_file):
        picture("in/a.png")
        assert upscale(folder / "in" / "a.png", "--steps", "3", "--seed", "5") == 0
        texts = png_texts(Path("in/a_x4.png").read_bytes())
        told = json.loads(texts["resshift"])
        assert (told["model"], told["steps"], told["kappa"], told["p"], told["seed"]) == ("small", 3, 0.1, 0.3, 5)
        everything = " ".join(texts.values())
        assert str(folder) not in everything and str(model_file.parent) not in everything and "/" not in everything

    def test_same_bytes_every_time_alone_and_among_others(self, upscale, folder):
        for i, name in enumerate(("a.png", "b.jpg", "c.png")):
            picture(name, i)
        assert upscale("a.png", "b.jpg", "c.png", "-o", "one") == 0
        assert upscale("c.png", "-o", "two") == 0 and upscale("b.jpg", "-o", "two") == 0
        for name in ("b_x4.jpg", "c_x4.png"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()

    def test_noise_of_its_own_for_each_name(self, upscale, folder, capsys):
        for name in ("a.png", "b.png", "sub/a.png"):
            picture(name)
        names = ["a.png", "b.png", os.path.join("sub", "a.png")]
        assert upscale(*names, "--json") == 0
        assert {json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()} == {0}
        assert np.array_equal(pixels_of("a_x4.png"), pixels_of("b_x4.png"))
        assert upscale(*reversed(names), "--noise", "per_image", "--overwrite", "--json") == 0
        seeds = {json.loads(line)["input"]: json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()}
        assert seeds["a.png"] == seeds[os.path.join("sub", "a.png")] != seeds["b.png"]
        assert not np.array_equal(pixels_of("a_x4.png"), pixels_of("b_x4.png"))
        assert upscale("b.png", "--seed", seeds["b.png"], "-o", "again.png") == 0
        assert np.array_equal(pixels_of("again.png"), pixels_of("b_x4.png"))


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory) -> Path:
    """A model that fills holes."""
    model = standin.small_model(task="inpaint", scale=1, mask=True, lq_channels=3, lq_stages=2)
    return rs.save_model(model, tmp_path_factory.mktemp("models") / "inpainter.safetensors")


def link_or_skip(path: Path, target: str) -> None:
    try:
        path.symlink_to(target)
    except OSError:  # Windows allows it to administrators
        pytest.skip("no symbolic links here")


class TestMasks:
    def test_only_the_hole_changes(self, folder, inpainter):
        pixels = picture("a.png", size=(64, 64))
        hole = np.zeros((64, 64), np.uint8)
        hole[16:40, 8:32] = 255
        Image.fromarray(hole).save("hole.png")
        assert main(["upscale", "a.png", "--model", str(inpainter), "--mask", "hole.png", "--dtype", "fp32"]) == 0
        out = pixels_of("a_x1.png")
        assert np.array_equal(out[hole == 0], pixels[hole == 0])
        assert (out[hole > 0] != pixels[hole > 0]).mean() > 0.5

    def test_a_hole_that_is_drawn_in_alpha(self, folder, inpainter, capsys):
        """White everywhere, opaque in the hole."""
        before = picture("a.png", size=(64, 48))
        mask = np.full((48, 64, 4), 255, np.uint8)
        mask[..., 3] = 0
        mask[10:30, 20:40, 3] = 255
        Image.fromarray(mask).save("hole.png")
        arguments = ["upscale", "a.png", "--model", str(inpainter), "--mask", "hole.png", "--dtype", "fp32", "--overwrite"]
        assert main(arguments) == 0
        changed = (pixels_of("a_x1.png") != before).any(-1)
        assert changed[10:30, 20:40].mean() > 0.5 and changed.sum() == changed[10:30, 20:40].sum()
        capsys.readouterr()
        for colour, brightest in (((255, 255, 255, 0), 0), ((1, 1, 1, 255), 1), ((255, 0, 0, 255), 85)):
            mask[...] = colour
            Image.fromarray(mask).save("hole.png")
            assert main(arguments) == 0
            assert f"hole.png is nowhere half bright (its brightest value is {brightest} of 255)" in capsys.readouterr().err

    def test_a_folder_of_masks(self, folder, inpainter, capsys):
        for i, name in enumerate(("in/a.png", "in/b.png", "in/c.png")):
            picture(name, i, size=(64, 64))
        Path("masks").mkdir()
        Image.new("L", (64, 64)).save("masks/a.png")
        Image.new("L", (32, 64), 255).save("masks/b.bmp")
        assert main(["upscale", "in", "-o", "out", "--model", str(inpainter), "--mask", "masks", "--dtype", "fp32"]) == 1
        err = capsys.readouterr().err
        assert "is 32 x 64 pixels, in/b.png is 64 x 64".replace("/", os.sep) in err and "no mask called c" in err
        assert np.array_equal(pixels_of("out/a_x1.png"), pixels_of("in/a.png"))

    def test_masks_of_pictures_that_are_called_the_same(self, folder, inpainter, capsys):
        """Each has that of its own folder; which of them one at the top would be for, nobody knows."""
        before = {name: picture(f"in/{name}", i, size=(64, 64)) for i, name in enumerate(("a/1.png", "b/1.png", "b/2.png"))}
        for name, columns in (("a/1.png", slice(0, 16)), ("b/1.png", slice(40, 56)), ("2.png", slice(16, 32))):
            hole = np.zeros((64, 64), np.uint8)
            hole[:, columns] = 255
            Path("masks", name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(hole).save(Path("masks", name))
        words = ["upscale", "in", "--recursive", "-o", "out", "--model", str(inpainter), "--mask", "masks", "--dtype", "fp32"]
        assert main(words) == 0
        for name, first, last in (("a/1", 0, 15), ("b/1", 40, 55), ("b/2", 16, 31)):
            changed = np.flatnonzero((pixels_of(f"out/{name}_x1.png") != before[f"{name}.png"]).any((0, 2)))
            assert (changed[0], changed[-1]) == (first, last)
        os.replace("masks/b/1.png", "masks/1.png")
        assert main([*words, "--overwrite"]) == 1
        said = capsys.readouterr().err
        assert f"There is no mask called 1 in the folder {Path('masks/b')} for {Path('in/b/1.png')}." in said

    def test_a_mask_whose_name_a_mac_has_spelt(self, folder, inpainter):
        picture("in/e\u0301.png", size=(64, 64))
        Path("masks").mkdir()
        Image.new("L", (64, 64)).save("masks/\u00e9.png")
        assert main(["upscale", "in", "-o", "out", "--model", str(inpainter), "--mask", "masks", "--dtype", "fp32"]) == 0

    def test_with_the_wrong_model(self, folder, upscale, inpainter, capsys):
        picture("a.png")
        assert upscale("a.png", "--mask", "a.png") == 2
        assert "does not fill holes" in capsys.readouterr().err
        assert main(["upscale", "a.png", "--model", str(inpainter)]) == 2
        assert "give --mask FILE" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- what is said


class TestReport:
    def test_a_bad_file_among_good_ones(self, upscale, folder, capsys):
        picture("a.png"), picture("c.png", 1)
        Path("b.png").write_bytes(Path("a.png").read_bytes()[:300])
        assert upscale("a.png", "b.png", "gone.png", "c.png") == 1
        assert listing(folder) == ["a.png", "a_x4.png", "b.png", "c.png", "c_x4.png"]
        err = capsys.readouterr().err.splitlines()
        errors = [line for line in err if line.startswith("error: ")]
        assert len(errors) == 2 and "b.png cannot be read" in errors[0] and "no file gone.png" in errors[1]
        assert err[-2].startswith("2 done, 2 failed in ") and err[-1] == "Failed: b.png, gone.png."

    def test_an_interrupted_folder_goes_on(self, upscale, folder, capsys):
        for i in range(3):
            picture(f"in/{i}.png", i)
        assert upscale("in/0.png", "in/1.png", "-o", "out") == 0
        before = [Path(f"out/{i}_x4.png").stat().st_mtime_ns for i in (0, 1)]
        capsys.readouterr()
        assert upscale("in", "-o", "out", "--json") == 0
        out, err = capsys.readouterr()
        assert [json.loads(line)["status"] for line in out.splitlines()] == ["skipped", "skipped", "done"]
        assert "already there. --overwrite" in err and "1 done, 2 skipped" in err
        assert before == [Path(f"out/{i}_x4.png").stat().st_mtime_ns for i in (0, 1)]
        Path("out/0_x4.png").write_bytes(b"old")
        assert upscale("in", "-o", "out", "--overwrite") == 0
        assert Image.open("out/0_x4.png").size == (60, 52)

    def test_json(self, upscale, folder, capsys):
        pixels = picture("a.png", channels=4)
        Path("b.png").write_bytes(b"rubbish")
        assert upscale("a.png", "b.png", "--json", "--steps", "2", "--format", "jpg", "--compare") == 1
        good, bad = map(json.loads, capsys.readouterr().out.splitlines())
        assert good.pop("seconds") > 0 and "laid on white" in good.pop("notes")[0]
        assert good == {
            "input": "a.png", "output": "a_x4.jpg", "compare": "a_x4_compare.png", "status": "done", "error": None,
            "input_size": [15, 13], "output_size": [60, 52], "seed": 0, "model": "small", "steps": 2, "kappa": 0.1, "p": 0.3,
        }  # fmt: skip
        assert (bad["status"], bad["output"], bad["output_size"]) == ("failed", "b_x4.jpg", None) and "b.png" in bad["error"]
        assert pixels.shape == (13, 15, 4)

    def test_records_keep_the_order(self, upscale, folder, capsys, monkeypatch):
        """Writing takes longer than failing to read, and still comes first."""
        picture("a.png"), picture("c.png", 1)
        original = batch.write_picture
        monkeypatch.setattr(batch, "write_picture", lambda *args: time.sleep(0.3) or original(*args))
        assert upscale("a.png", "gone1.png", "gone2.png", "c.png", "--json") == 1
        names = [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()]
        assert names == ["a.png", "gone1.png", "gone2.png", "c.png"]

    def test_quiet(self, upscale, folder, capsys):
        picture("a.png")
        assert upscale("a.png", "--quiet") == 0
        assert capsys.readouterr() == ("", "")
        assert upscale("a.png", "gone.png", "--quiet", "--overwrite") == 1
        assert capsys.readouterr().err == "error: There is no file gone.png. Check the path.\n"

    def test_the_core_speaks_in_sentences_and_once(self, upscale, folder, capsys):
        picture("a.png"), picture("b.png")
        assert upscale("a.png", "b.png", "--kappa", "0.5") == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "kappa" in line]
        assert len(lines) == 1 and lines[0].startswith("warning: kappa 0.5 is far from the 0.1")

    def test_a_bar_on_a_terminal(self, upscale, folder, monkeypatch):
        picture("a.png", size=(200, 200)), picture("b.png")
        monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm, mininterval=0))  # it draws ten times a second at most
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert upscale("a.png", "b.png", "gone.png", "--tile", "64") == 1
        shown = sys.stderr.getvalue()
        assert re.search(r"\[1/3\] a\.png +\d+%\|.* left", shown) and "[2/3] b.png" in shown
        assert "200 x 200 -> 800 x 800" in shown and "error: There is no file gone.png" in shown

    def test_a_fault_of_the_program_costs_one_picture(self, upscale, folder, monkeypatch, capsys):
        picture("a.png"), picture("b.png")
        original, calls = batch.upscale, []

        def fails_once(*args, **words):
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("CUDA error: an illegal memory access\nmore lines")
            return original(*args, **words)

        monkeypatch.setattr(batch, "upscale", fails_once)
        assert upscale("a.png", "b.png") == 1
        assert "did not expect (RuntimeError: CUDA error: an illegal memory access)" in capsys.readouterr().err
        assert listing(folder) == ["a.png", "b.png", "b_x4.png"]

    def test_reading_and_writing_overlap_with_computing(self, upscale, folder, monkeypatch):
        """The next picture is read, and the last one written, while one is computed."""
        for i in range(4):
            picture(f"{i}.png", i)
        threads, busy = {"read": set(), "write": set(), "compute": set()}, []
        delays = {"read": 0.05, "compute": 0.3, "write": 0.2}

        def watched(name, original):
            def run(*args, **words):
                threads[name].add(threading.current_thread().name)
                busy.append((name, time.monotonic()))
                time.sleep(delays[name])
                result = original(*args, **words)
                busy.append((name, time.monotonic()))
                return result

            return run

        monkeypatch.setattr(batch, "read_picture", watched("read", batch.read_picture))
        monkeypatch.setattr(batch, "write_picture", watched("write", batch.write_picture))
        monkeypatch.setattr(batch, "upscale", watched("compute", batch.upscale))
        assert upscale(".") == 0
        spans = {name: [at for kind, at in sorted(busy, key=lambda b: b[1]) if kind == name] for name in threads}
        assert spans["read"][3] < spans["compute"][1]  # the second is read before the first is computed
        assert spans["compute"][2] < spans["write"][1]  # the second is computed before the first is written
        assert len(set.union(*threads.values())) == 3


# ---------------------------------------------------------------------------------------------------- before and after


class TestCompare:
    def panels(self, sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
        """Where `part` lies in `sheet`, pixel for pixel."""
        first = np.argwhere((sheet[: -part.shape[0] + 1, : -part.shape[1] + 1] == part[0, 0]).all(-1))
        return [
            (y, x) for y, x in first if np.array_equal(sheet[y : y + part.shape[0], x : x + part.shape[1]], part)
        ]  # fmt: skip

    def test_a_small_picture_whole(self, upscale, folder):
        pixels = picture("a.png")
        assert upscale("a.png", "--compare") == 0
        sheet = pixels_of("a_x4_compare.png")
        bicubic = np.asarray(Image.fromarray(pixels).resize((60, 52), Image.Resampling.BICUBIC))
        enlarged = [image.repeat(9, 0).repeat(9, 1) for image in (bicubic, pixels_of("a_x4.png"))]  # 560 // 60
        (left,), (right,) = (self.panels(sheet, part) for part in enlarged)
        assert left[0] == right[0] and left[1] + 540 <= right[1]

    def test_one_that_just_fits_is_shown_whole(self, upscale, folder):
        Image.fromarray(colours(20, 140)).save("a.png")
        assert upscale("a.png", "--compare") == 0
        assert len(self.panels(pixels_of("a_x4_compare.png"), pixels_of("a_x4.png"))) == 1  # 560 wide

    def test_details_of_a_large_one(self, upscale, folder):
        pixels = np.full((40, 200, 3), 90, np.uint8)
        pixels[10:30, 150:180] = colours(20, 30)  # the only detail
        Image.fromarray(pixels).save("a.png")
        assert upscale("a.png", "--compare") == 0
        sheet, result = pixels_of("a_x4_compare.png"), pixels_of("a_x4.png")
        inside = result[60:100, 620:700].repeat(2, 0).repeat(2, 1)
        bicubic = np.asarray(Image.fromarray(pixels).resize((800, 160), Image.Resampling.BICUBIC))
        before = bicubic[60:100, 620:700].repeat(2, 0).repeat(2, 1)
        (left,), (right,) = self.panels(sheet, before), self.panels(sheet, inside)
        assert left[0] == right[0] and left[1] < right[1]

    def test_what_is_transparent_has_no_details(self, folder):
        """What lies under it is not seen, however rich it is."""
        pixels = np.full((200, 400, 4), 90, np.uint8)
        pixels[:, :150, :3], pixels[:, :150, 3] = colours(200, 150), 0
        pixels[:, 300:, :3], pixels[..., 150:, 3] = colours(200, 100) // 4, 255
        places = sheet._detailed_boxes(Picture(pixels, "RGBA", "PNG"), (1600, 800))
        assert all(box.left + box.width > 1200 for box in places)

    def test_places_lie_apart_and_the_upper_one_comes_first(self, folder):
        pixels = np.full((1000, 1000, 3), 90, np.uint8)
        pixels[100:200, 100:200], pixels[700:900, 700:900] = colours(100, 100) // 4, colours(200, 200)
        upper, lower = sheet._detailed_boxes(Picture(pixels, "RGB", "PNG"), (4000, 4000))
        assert upper.top < 800 and upper.left < 800 and lower.top > 2700 and lower.left > 2700

    @pytest.mark.parametrize(
        "mode, size", [("RGBA", (20, 18)), ("LA", (150, 15)), ("L", (1, 1)), ("RGB", (3, 150)), ("I;16", (9, 9))]
    )
    def test_every_kind(self, upscale, folder, mode, size):
        Image.linear_gradient("L").resize(size).convert("I;16" if mode == "I;16" else mode).save("a.png")
        assert upscale("a.png", "--compare") == 0
        with Image.open("a_x4_compare.png") as sheet:
            assert sheet.mode == "RGB" and 560 < sheet.width < 1400 and sheet.height < 1800

    def test_the_profile_goes_with_it(self, upscale, folder):
        picture("a.jpg", icc_profile=SRGB)
        assert upscale("a.jpg", "--compare") == 0
        assert Image.open("a_x4_compare.png").info["icc_profile"] == SRGB
        assert ImageCms.getOpenProfile(io.BytesIO(SRGB)) is not None


# ---------------------------------------------------------------------------------------------------- stopping


class TestStopping:
    def test_interrupt(self, upscale, folder, monkeypatch, capsys):
        for i in range(3):
            picture(f"{i}.png", i)
        original, calls = batch.upscale, []

        def stopped(*args, **words):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args, **words)

        monkeypatch.setattr(batch, "upscale", stopped)
        assert upscale(".") == 130
        assert listing(folder) == ["0.png", "0_x4.png", "1.png", "2.png"]
        assert "1 done in" in (err := capsys.readouterr().err) and "goes on where this one ended" in err
        monkeypatch.setattr(batch, "upscale", original)
        assert upscale(".") == 0 and len(listing(folder)) == 6
        assert "2 done, 1 skipped" in capsys.readouterr().err

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to one process")
    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("module, name", [(upscale_module, "load_model"), (batch, "upscale")])
    def test_a_library_makes_another_error_of_it(self, upscale, folder, monkeypatch, capsys, module, name, number, status):
        """As torch does when safetensors asks it for the length of a storage."""
        for i in range(5):
            picture(f"in/{i}.png", i)

        def eaten(*args, **words):
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(5)  # the signal comes within
            raise rs.CheckpointError("It is damaged.")

        monkeypatch.setattr(module, name, eaten)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &
        try:
            assert upscale("in", "-o", "out") == status
        finally:
            signal.signal(signal.SIGINT, before)
        assert "damaged" not in capsys.readouterr().err and not listing("out")
        raise_if_stopped()  # forgotten with the run

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to one process")
    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signals(self, folder, model_file, number, status):
        for i in range(40):
            picture(f"in/{i:02}.png", i, size=(64, 64))
        words = [sys.executable, "-m", "resshift_core", "upscale", "in", "-o", "out", "--model", str(model_file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            words, stderr=subprocess.PIPE, env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored by what a shell starts with &
        )  # fmt: skip
        deadline = time.monotonic() + 240  # programs that share the cores may make its imports slow
        while not list(Path().glob("out/*_x4.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status and b"Traceback" not in err and b"Stopped." in err
        made = listing("out")
        assert 0 < len(made) < 40 and all(name.endswith("_x4.png") for name in made)
        for name in made:
            assert pixels_of(Path("out", name)).shape == (256, 256, 3)


# ---------------------------------------------------------------------------------------------------- several processes


def test_letters_that_the_output_does_not_know(folder, model_file):
    """Windows writes a redirected report in an old code page; the report must not end at the first strange name."""
    Path("日本.safetensors").write_bytes(Path(model_file).read_bytes())
    command = [sys.executable, "-m", "resshift_core", "info", "日本.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0 and b"\\u65e5\\u672c" in done.stdout, done.stderr


class TestNothingIsWrittenOver:
    """An input is never lost to a result, whatever the names and whatever --overwrite says."""

    def test_a_sheet_where_an_input_is(self, upscale, folder, capsys):
        before = picture("photo_compare.png")
        assert upscale("photo_compare.png", "-o", "photo.png", "--compare") == 1
        assert np.array_equal(pixels_of("photo_compare.png"), before) and listing(folder) == ["photo_compare.png"]
        assert "which is that picture itself" in capsys.readouterr().err

    def test_a_result_where_another_input_is(self, upscale, folder, capsys):
        picture("p/a.png")
        before = picture("q/a_x4.png", seed=1)
        assert upscale("p/a.png", "q/a_x4.png", "-o", "q", "--overwrite") == 1
        assert np.array_equal(pixels_of("q/a_x4.png"), before) and "q/a_x4_x4.png" in listing(folder)
        assert "which is an input too" in capsys.readouterr().err
        assert upscale("p/a.png", "q/a_x4.png", "-o", "q") == 0  # it is left as it is
        assert np.array_equal(pixels_of("q/a_x4.png"), before)

    def test_letter_case_on_a_mac(self, upscale, folder, capsys, monkeypatch):
        picture("x/Photo.png"), picture("y/photo.png", seed=1)
        monkeypatch.setattr("resshift_core.cli.sources.CASEFOLD", True)
        assert upscale("x/Photo.png", "y/photo.png", "-o", "out") == 1
        assert listing("out") == ["Photo_x4.png"] and "and so would" in capsys.readouterr().err

    def test_accents_on_a_mac(self, upscale, folder, monkeypatch):
        """Its disks spell é as e and an accent, or not; either is the output folder, whose pictures are left out."""
        picture("in/a.png"), picture("in/e\u0301/b.png", seed=1)
        monkeypatch.setattr("resshift_core.cli.sources.CASEFOLD", True)
        assert upscale("in", "-o", "in/\u00e9", "--recursive") == 0
        assert [name for name in listing("in/\u00e9") if name != "b.png"] == ["a_x4.png"]  # a Mac has one folder here

    @pytest.mark.skipif(sys.platform == "win32", reason="takes the two results for one")
    def test_an_earlier_output_in_another_letter_case_is_one(self, upscale, folder, monkeypatch):
        picture("DSC_1.png")
        monkeypatch.setattr("resshift_core.cli.sources.CASEFOLD", True)
        os.rename("DSC_1.png", "dsc_1.png")  # as it was typed
        assert upscale("dsc_1.png") == 0
        os.rename("dsc_1.png", "DSC_1.png")
        assert upscale(".") == 0
        assert listing(folder) == ["DSC_1.png", "DSC_1_x4.png", "dsc_1_x4.png"]  # a Mac takes the last two for one

    def test_folders_that_a_system_keeps_for_itself_are_passed_over(self, upscale, folder):
        kept = ("$RECYCLE.BIN/S-1/$R7.png", "System Volume Information/a.png", "Photos Library.photoslibrary/originals/b.png")
        for name in (*kept, "trip/c.png"):
            picture(name)
        assert upscale(".", "--recursive", "-o", "out") == 0 and listing("out") == ["trip/c_x4.png"]
        assert all(is_hidden(name.split("/")[0]) for name in kept) and not is_hidden("trip")
        assert upscale("Photos Library.photoslibrary/originals", "-o", "out") == 0 and "b_x4.png" in listing("out")

    def test_a_drive_that_numbers_no_files(self, upscale, folder, monkeypatch, capsys):
        """Windows, over sshfs and WebDAV: every two files look like one."""
        picture("a.png")
        assert upscale("a.png") == 0
        plain = os.stat

        def stat(path, **words):
            found = plain(path, **words)
            return os.stat_result((found.st_mode, 0, 0, *found[3:])) if Path(path).suffix == ".png" else found

        monkeypatch.setattr("resshift_core.cli.sources.os.stat", stat)
        assert upscale("a.png") == 0 and upscale("a.png", "--overwrite") == 0
        assert upscale("a.png", "-o", "./a.png", "--overwrite") == 1
        assert "would be overwritten by its own result" in capsys.readouterr().err

    def test_a_quotation_mark_that_windows_made_a_letter(self, upscale, folder, monkeypatch, capsys):
        """Of `-o "D:\\my results\\"`, whose last two characters mean a quotation mark."""
        picture("a.png")
        monkeypatch.setattr("resshift_core.cli.sources.sys.platform", "win32")
        assert upscale("a.png", "-o", 'my results" --recursive') == 2
        assert "makes the mark a part of the name" in capsys.readouterr().err and listing(folder) == ["a.png"]

    @pytest.mark.parametrize(
        "words, said",
        [
            (["-o", "ab:c.png"], "ab:c.png has a character that no name can have on Windows"),  # a stream of the file "ab"
            (["-o", "C:/x/b?.png"], "C:/x/b?.png has a character"),
            (["-o", "con.png"], "con.png is not a file but a device"),
            (["-o", "C:/Aux/x.png"], "Aux is not a file but a device"),
            (["-o", "Nul"], "Nul is not a file but a device"),
            (["--suffix", ":x"], "--suffix :x has a character"),
        ],
    )
    def test_names_that_are_none_on_windows(self, upscale, folder, monkeypatch, capsys, words, said):
        picture("a.png")
        monkeypatch.setattr("resshift_core.cli.sources.sys.platform", "win32")
        assert upscale("a.png", *words) == 2
        assert said in capsys.readouterr().err and listing(folder) == ["a.png"]

    @pytest.mark.parametrize(
        "name",
        [
            "C:\\x\\y.png",
            "C:y.png",
            "\\\\?\\C:\\x\\y.png",
            "\\\\server\\share\\y.png",
            "x/console.png",
            "../y.png",
            "-",
            "auxiliary",
        ],
    )
    def test_names_that_windows_knows(self, monkeypatch, name):
        monkeypatch.setattr("resshift_core.cli.sources.sys.platform", "win32")
        Naming.from_arguments(name, None, False, ["a.png"])

    def test_a_path_that_windows_cannot_resolve(self, upscale, folder, monkeypatch):
        """One that is too long, say: `os.path.realpath` raises for it."""
        picture("a.png")
        monkeypatch.setattr("resshift_core.cli.sources.os.path.realpath", lambda path: os.stat("gone"))
        assert upscale("a.png") == 0 and upscale("a.png", "-o", "./a.png", "--overwrite") == 1

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody can write")
    def test_a_folder_in_which_nothing_can_be_written_is_told_before_the_work(self, upscale, folder, monkeypatch, capsys):
        picture("a.png")
        monkeypatch.setattr(batch, "upscale", lambda *_, **__: pytest.fail("computed"))
        assert upscale("a.png", "-o", "/proc/x.png") == 1
        assert "/proc/x.png cannot be written" in capsys.readouterr().err

    def test_two_sheets_of_one_name(self, upscale, folder, capsys):
        picture("c/a.bmp")
        picture("c/a.png", seed=1)
        for _ in range(2):
            assert upscale("c", "-o", "out", "--compare") == 0
        assert listing("out") == ["a_x4.bmp", "a_x4.png", "a_x4_compare.png", "a_x4_png_compare.png"]
        for _ in range(2):
            assert upscale("c", "--compare") == 0
        assert len(listing("c")) == 6

    def test_a_sheet_that_is_missing(self, upscale, folder, capsys):
        picture("a.png")
        assert upscale("a.png") == 0 and upscale("a.png", "--compare") == 0
        assert "Its sheet a_x4_compare.png is not there; --overwrite makes both" in capsys.readouterr().err
        assert upscale("a.png", "--compare", "--overwrite") == 0 and Path("a_x4_compare.png").exists()

    def test_a_result_over_its_own_input_without_overwrite(self, upscale, folder, capsys):
        picture("a.png")
        assert upscale("a.png", "-o", "a.png") == 1
        assert "would be overwritten by its own result" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 500), (900, 1)])
def test_a_sheet_of_a_very_thin_picture(upscale, folder, size):
    picture("thin.png", size=size)
    assert upscale("thin.png", "--compare") == 0
    assert listing(folder) == ["thin.png", "thin_x4.png", "thin_x4_compare.png"]


def test_what_the_format_cannot_hold_is_said_before_the_work(upscale, folder, capsys, monkeypatch):
    picture("wide.webp", size=(4100, 2))
    monkeypatch.setattr("resshift_core.cli.batch.upscale", lambda *args, **words: pytest.fail("it was computed"))
    assert upscale("wide.webp", "--compare") == 1
    assert "a WEBP picture can be 16383 pixels long, this one is 16400" in capsys.readouterr().err
    assert listing(folder) == ["wide.webp"]


def test_a_profile_that_bmp_cannot_hold_is_noted(upscale, folder, capsys):
    picture("a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert upscale("a.png", "-o", "a.bmp", "--json") == 0
    assert "no colour profile" in json.loads(capsys.readouterr().out)["notes"][0]


class TestRanks:
    def test_the_list_is_split(self, upscale, folder, monkeypatch, capsys):
        for i in range(5):
            picture(f"in/{i}.png", i)
        monkeypatch.setenv("WORLD_SIZE", "2")
        parts = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            assert upscale("in", "gone.png", "-o", "out", "--json") == int(rank)  # the missing file is in the second's share
            out, err = capsys.readouterr()
            parts.append([json.loads(line)["input"] for line in out.splitlines()])
            assert f"[{rank}] " in err
        monkeypatch.chdir("in")
        for rank in ("0", "1"):  # the second starts late, and finds what the first has made
            monkeypatch.setenv("RANK", rank)
            assert upscale("**/*.png", "-o", "late") == 0
        assert listing("late") == [f"{i}_x4.png" for i in range(5)]
        monkeypatch.chdir(folder)
        assert sorted(parts[0] + parts[1]) == sorted([*(os.path.join("in", f"{i}.png") for i in range(5)), "gone.png"])
        assert len(parts[0]) == len(parts[1]) == 3 and len(os.listdir("out")) == 5

    def test_each_has_a_gpu_of_its_own(self, monkeypatch):
        from resshift_core.ranks import Rank

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
            monkeypatch.setenv(name, value)
        rank = Rank.from_environment()
        assert rank.device("auto") == rank.device("cuda") == "cuda:2"
        assert rank.device("cpu") == "cpu" and rank.device("cuda:0") == "cuda:0"
        assert Rank().device("auto") == "auto"

    @pytest.mark.parametrize("rank, count", [("2", "2"), ("-1", "2"), ("one", "2")])
    def test_nonsense_in_the_environment(self, upscale, folder, monkeypatch, capsys, rank, count):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", count)
        assert upscale("a.png") == 2
        assert f"RANK={rank}, WORLD_SIZE={count}" in capsys.readouterr().err

    def test_a_launcher_that_left_its_count_behind(self, upscale, folder, monkeypatch, capsys):
        """Half of the pictures would be left out, and nobody else does them."""
        picture("a.png")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert upscale("a.png") == 2 and "RANK=, WORLD_SIZE=2" in capsys.readouterr().err

    def test_torchrun(self, folder, model_file):
        """One process fails early; torchrun must not end the other for it."""
        for i in range(6):
            picture(f"in/{i}.png", i, size=(48, 48))
        Path("in/0.png").write_bytes(b"rubbish")
        Path("in/2.png").write_bytes(b"rubbish")
        Path("in/4.png").write_bytes(b"rubbish")  # the first process has nothing else
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "resshift_core"]
        words += ["upscale", "in", "-o", "out", "--model", str(model_file), "--dtype", "fp32"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode != 0 and "[0] error: " in done.stderr and "[1] 3 done in" in done.stderr, done.stderr
        assert listing("out") == ["1_x4.png", "3_x4.png", "5_x4.png"]


# ---------------------------------------------------------------------------------------------------- models


class TestModels:
    def test_table(self, folder, capsys, models_dir):
        models_dir.mkdir(parents=True)
        for name, size in (("autoencoder_vq_f4.pth", registry.REGISTRY["vq_f4"].size), ("resshift_realsrx4_s4_v3.pth", 5000)):
            (models_dir / name).touch()  # the second is another file, or a part
            os.truncate(models_dir / name, size)
        assert main(["models"]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0].split() == ["name", "task", "scale", "steps", "size", "licence", "present"]
        assert len(lines) == 1 + len(registry.REGISTRY) and str(models_dir) in err
        row = next(line for line in lines if line.startswith("realsr_x4_s4 "))
        assert "x4" in row and "477.9 MB" in row and "S-Lab License 1.0 (non-commercial)" in row and row.endswith("no")
        assert next(line for line in lines if line.startswith("vq_f4 ")).endswith("yes")

    def test_table_as_json(self, folder, capsys):
        assert main(["models", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(rs.list_models()))

    def test_download(self, folder, file_server, monkeypatch, models_dir, capsys):
        from .test_downloads import CONTENT, known

        monkeypatch.setitem(registry.REGISTRY, "vq_f4", known("vq_f4"))
        server = file_server(CONTENT)
        monkeypatch.setenv("RESSHIFT_MIRROR", server.url)
        assert main(["download", "vq_f4"]) == 0
        err = capsys.readouterr().err
        assert err.index("S-Lab License 1.0") < err.index(f"{models_dir / 'autoencoder_vq_f4.pth'} is there")
        assert (models_dir / "autoencoder_vq_f4.pth").read_bytes() == CONTENT

    def test_progress_of_a_download(self, folder, file_server, monkeypatch):
        from .test_downloads import CONTENT, known

        monkeypatch.setitem(registry.REGISTRY, "vq_f4", known("vq_f4"))
        monkeypatch.setenv("RESSHIFT_MIRROR", file_server(CONTENT).url)
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert main(["download", "vq_f4"]) == 0
        assert re.search(r"100%\|.*200k/200k, .*left", sys.stderr.getvalue())

    def test_a_failed_download(self, folder, monkeypatch, capsys):
        monkeypatch.setenv("RESSHIFT_MIRROR", "http://127.0.0.1:9")
        from resshift_core import transfer

        monkeypatch.setattr(transfer, "RETRIES_S", (), raising=False)
        assert main(["download", "vq_f4", "--quiet"]) == 1
        err = capsys.readouterr().err
        assert "S-Lab License" in err and "could not be downloaded" in err and "Traceback" not in err

    def test_info(self, folder, model_file, capsys):
        import hashlib

        assert main(["info", str(model_file), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        model = rs.load_model(model_file, dtype="fp32")
        assert facts["kind"] == "model" and facts["config"] == json.loads(json.dumps(model.config.to_dict()))
        assert facts["parameters"] == sum(p.numel() for p in model.unet.parameters()) == facts["dtypes"]["float32"]
        assert facts["sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
        assert main(["info", str(model_file)]) == 0
        text = capsys.readouterr().out
        assert facts["sha256"] in text and re.search(r"config\.kappa +0\.1", text)

    def test_info_of_networks(self, folder, capsys):
        unet = standin.standin_unet(rs.UNetConfig(model_channels=32, swin_channels=32, channel_mult=(1, 1), image_size=16))
        torch.save({"state_dict": {f"module.{key}": value for key, value in unet.state_dict().items()}}, "net.pth")
        assert main(["info", "net.pth", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["kind"], facts["variant"]) == ("network", "") and "sinsr_x4_s1" in facts["open_question"]
        assert facts["config"]["model_channels"] == 32
        assert main(["info", "net.pth", "--variant", "bicsr_x4_s4"]) == 0
        assert re.search(r"variant +bicsr_x4_s4", capsys.readouterr().out)
        vq = standin.fill(rs.VQGAN(rs.VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=16)))
        torch.save(vq.state_dict(), "vq.pth")
        assert main(["info", "vq.pth", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["kind"] == "autoencoder" and facts["config"]["n_embed"] == 16
        assert main(["info", "vq.pth"]) == 0
        assert not re.search(r"^variant", capsys.readouterr().out, re.MULTILINE)
        rs.save_model(standin.small_model(), "own.safetensors")
        for name, told in (("vq.pth", "there are no variants"), ("own.safetensors", "configuration of its own")):
            assert main(["info", name, "--variant", "bicsr_x4_s4"]) == 2
            assert told in capsys.readouterr().err

    def test_info_of_something_else(self, folder, capsys):
        torch.save({"layer.weight": torch.zeros(2)}, "other.pth")
        Path("text.pth").write_text("not a model")
        config = standin.small_model().config.to_dict()
        config["unet"]["model_channels"] = -3
        save_file({"unet.x": torch.zeros(1)}, "odd.safetensors", metadata={"resshift_config": json.dumps(config)})
        for name in ("other.pth", "text.pth", "gone.pth", "odd.safetensors"):
            assert main(["info", name]) == 1
            out, err = capsys.readouterr()
            assert name in err and not out and "Traceback" not in err

    def test_info_of_a_model_that_lacks_weights(self, folder, capsys):
        config = json.dumps(standin.small_model().config.to_dict())
        save_file({"unet.x": torch.zeros(1)}, "half.safetensors", metadata={"resshift_config": config})
        assert main(["info", "half.safetensors"]) == 1
        assert "half.safetensors does not fit its architecture" in capsys.readouterr().err

    def test_convert(self, folder, capsys):
        unet = standin.standin_unet(rs.UNetConfig(model_channels=32, swin_channels=32, channel_mult=(1, 1), image_size=16))
        torch.save({f"module.{key}": value.half() for key, value in unet.state_dict().items()}, "net.pth")
        assert main(["convert", "net.pth", "out/net.safetensors", "--variant", "realsr_x4_s4"]) == 0
        assert main(["info", "out/net.safetensors", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["variant"] == "realsr_x4_s4" and list(facts["dtypes"]) == ["float16"]
        assert main(["convert", "net.pth", "out/net.safetensors"]) == 2
        assert "already there" in capsys.readouterr().err
        assert main(["convert", "net.pth", "out/net.safetensors", "--variant", "sinsr_x4_s1", "--overwrite"]) == 0
        capsys.readouterr()
        assert main(["info", "out/net.safetensors", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["variant"] == "sinsr_x4_s1"


class TestSchedule:
    def test_the_published_table(self, folder, capsys):
        """Numbers of the reference: T = 15, m = 0.04."""
        told = ".0200 .1172 .1763 .2336 .2916 .3510 .4124 .4759 .5417 .6099 .6807 .7540 .8300 .9086 .9900"
        assert main(["schedule", "--model", "realsr_x4_s15_v1"]) == 0
        header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
        assert header == ["t", "sqrt_eta", "eta", "tau"] and [row[0] for row in rows] == [str(t) for t in range(1, 16)]
        for t, (row, value) in enumerate(zip(rows, told.split())):
            assert (
                abs(float(row[1]) - float(value)) < 5e-5
                and abs(float(row[2]) - float(value) ** 2) < 1e-4
                and float(row[3]) == t
            )

    def test_other_settings(self, folder, capsys, model_file):
        """Eq. 10 with p = 1 is a straight line of the logarithm between the trained ends."""
        assert main(["schedule", "--model", "realsr_x4_s4", "--steps", "3", "--p", "1", "--kappa", "2.5", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["steps"], told["kappa"], told["p"]) == (3, 2.5, 1.0)
        assert [row["sqrt_eta"] for row in told["table"]] == pytest.approx([0.1, (0.1 * 0.99) ** 0.5, 0.99])
        assert [row["tau"] for row in told["table"]][::2] == [0, 3] and 0 < told["table"][1]["tau"] < 1
        assert main(["schedule", "--model", str(model_file)]) == 0 and len(capsys.readouterr().out.splitlines()) == 5
        assert main(["schedule", "--model", "sinsr_x4_s1"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == ["1", "0.990000", "0.980100", "14.0000"]

    def test_of_files(self, folder, capsys):
        """A network whose kind only its weights tell, one that nothing tells, and an autoencoder."""
        faces = standin.standin_unet(
            rs.UNetConfig(in_channels=8, out_channels=8, lq_stages=3, model_channels=32, swin_channels=32)
        )
        torch.save(faces.state_dict(), "a.pth")
        plain = standin.standin_unet(rs.UNetConfig(model_channels=32, swin_channels=32))
        torch.save(plain.state_dict(), "b.pth")
        vq = standin.fill(rs.VQGAN(rs.VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=16)))
        torch.save(vq.state_dict(), "c.pth")
        assert main(["schedule", "--model", "a.pth"]) == 0
        assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]][::3] == ["0.100000", "0.990000"]
        for name, said in (("b.pth", "several models"), ("c.pth", "it is an autoencoder"), ("gone.pth", "no model file")):
            assert main(["schedule", "--model", name]) == 1
            assert said in capsys.readouterr().err

    @pytest.mark.parametrize("words", [(), ("--steps", "6"), ("--p", "3"), ("--steps", "200", "--p", "0.05"), ("--steps", "1")])
    def test_plot(self, folder, words):
        """Each curve passes through its points: the colour is there, and is not where the other curve is."""
        assert main(["schedule", "--model", "realsr_x4_s15", *words, "--plot", "plots/a.png"]) == 0
        image = pixels_of("plots/a.png").astype(int)
        assert image.shape == (620, 960, 3)
        trained = rs.ShiftSchedule(15, 2.0, 0.3, 0.04)
        options = dict(zip(words[::2], words[1::2]))
        asked = trained.retime(int(options.get("--steps", 15)), None, float(options.get("--p", 0.3)))
        pairs = [(asked, (214, 84, 22))] + ([(trained, (120, 130, 148))] if words else [])
        for schedule, colour in pairs:
            steps = schedule.steps
            for t in range(2, steps):
                x = 92 + (t - 1) / (steps - 1) * (960 - 92 - 28)
                y = 620 - 84 - schedule.sqrt_eta[t - 1] * (620 - 64 - 84)
                near = image[round(y) - 7 : round(y) + 8, round(x) - 7 : round(x) + 8].reshape(-1, 3)
                hidden = any(s is not schedule and abs(np.interp((t - 1) / (steps - 1), np.linspace(0, 1, s.steps), s.sqrt_eta)
                             - schedule.sqrt_eta[t - 1]) < 0.03 for s, _ in pairs if s.steps > 1)  # fmt: skip
                assert hidden or np.abs(near - colour).max(1).min() < 40, (steps, t)

    def test_same_bytes(self, folder):
        for name in ("a.png", "b.png"):
            assert main(["schedule", "--model", "realsr_x4_s4", "--plot", name]) == 0
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


class TestDoctor:
    def test_a_healthy_machine(self, folder, capsys, models_dir):
        model = rs.save_model(standin.small_model(tile=32), folder / "small.safetensors")
        models_dir.mkdir(parents=True)
        (models_dir / "SinSR_v1.pth").write_bytes(b"x" * 1500)
        (models_dir / "autoencoder_vq_f4.pth.part").write_bytes(b"x")
        assert main(["doctor", "--model", str(model), "--device", "cpu", "--dtype", "fp32"]) == 0
        out = capsys.readouterr().out
        for fact in ("ResShift", "Python", "torch", "numpy", "Pillow", "device", "number format", "free memory"):
            assert re.search(rf"^{fact}.*\S", out, re.M), fact
        assert re.search(r"^model sinsr_x4_s1 .*SinSR_v1.pth \(1.5 kB\)", out, re.M)
        assert re.search(r"^number format +float32", out, re.M) and torch.__version__ in out
        seconds = float(re.search(r"^seconds per tile +([\d.e-]+) \(32 x 32", out, re.M)[1])
        tiles = int(re.search(r"^512 x 512 picture +(\d+) tiles", out, re.M)[1])
        assert 0 < seconds < 60 and tiles == 31**2  # 32 + 30 * 16 = 512
        assert "! " in out and "unfinished download" in out

    def test_without_the_built_in_model(self, folder, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path / "none")
        assert main(["doctor"]) == 1
        assert "! The weights of builtin are missing" in capsys.readouterr().out

    def test_a_torch_too_old_for_numpy(self, folder, model_file, monkeypatch, capsys):
        def unavailable(*_):
            raise RuntimeError("Numpy is not available")

        monkeypatch.setattr(torch, "from_numpy", unavailable)
        main(["doctor", "--model", str(model_file), "--device", "cpu"])
        assert f'cannot work with numpy {np.__version__}. Run: pip install "numpy<2"' in capsys.readouterr().out

    def test_what_is_wrong_is_said_with_its_remedy(self, folder, model_file, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "pickles_are_safe", lambda: False)
        monkeypatch.setattr(doctor, "free_bytes", lambda device: 10**9)
        monkeypatch.setattr(
            doctor, "shutil", SimpleNamespace(which=str, disk_usage=lambda place: SimpleNamespace(free=5 * 10**8))
        )
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        assert main(["doctor", "--model", str(model_file), "--device", "cpu"]) == 0
        told = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("! ")]
        for words in (
            "cannot open .pth files safely", "Only 500.0 MB are free where models go", "Only 1.0 GB of memory are free on cpu",
            "torch uses one thread only", "this torch was built without CUDA",
        ):  # fmt: skip
            assert any(words in line for line in told), words
        monkeypatch.setattr(doctor, "can_be_written", lambda place: False)
        main(["doctor", "--model", str(model_file), "--device", "cpu"])
        assert "Set RESSHIFT_MODELS_DIR to another folder" in capsys.readouterr().out
        monkeypatch.setenv("RESSHIFT_MODELS_DIR", "~nobody-of-that-name/x")
        main(["doctor", "--model", str(model_file), "--device", "cpu"])
        if sys.platform != "win32":  # which guesses where it would be
            assert "! This user has no home folder" in capsys.readouterr().out

    def test_a_model_that_fills_holes(self, folder, inpainter):
        assert main(["doctor", "--model", str(inpainter), "--device", "cpu"]) == 0

    def test_a_device_that_is_not_there(self, folder, model_file, capsys):
        assert main(["doctor", "--model", str(model_file), "--device", "cuda:77"]) == 1
        assert "! The device 'cuda:77' cannot be used" in capsys.readouterr().out


def test_only_noise_per_image_mixes_the_files_name_into_the_seed():
    jobs = [SimpleNamespace(source=SimpleNamespace(below=Path(name))) for name in ("a.png", "b.png")]
    for noise, count in (("shared", 1), ("periodic", 1), ("per_image", 2)):
        seeds = {batch.seed_for(7, noise, job) for job in jobs}
        assert len(seeds) == count and (count == 2 or seeds == {7})


def test_pillows_limit_is_put_back_after_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    before = Image.MAX_IMAGE_PIXELS
    assert main(["upscale", "a.png", "--max-pixels", "5000000"]) == 0
    assert Image.MAX_IMAGE_PIXELS == before
