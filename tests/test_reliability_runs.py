"""What `upscale` promises for any input, and what it does when memory, precision or time run out."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import resshift_core as rs
from resshift_core import arguments, noise, pipeline, tile_runs
from resshift_core.cli import main

from . import standin
from .test_reliability_models import fuzz

ROOT = Path(__file__).parent.parent
FP16 = pytest.param(torch.float16, marks=pytest.mark.fp16)
AREA = 6_000  # low-resolution pixels of a picture in the short version
DRAWN = {
    "height": st.integers(1, 300), "width": st.integers(1, 300), "count": st.integers(1, 3), "seed": st.integers(0, 2**64 - 1),
    "tile": st.sampled_from([64, 80, 128, 200, 512]), "batches": st.tuples(st.integers(1, 4), st.integers(2, 7)),
    "steps": st.integers(1, 3), "sampler": st.sampled_from(["stochastic", "deterministic"]),
    "channels": st.sampled_from([1, 3, 4]), "wrap": st.sampled_from(["none", "none", "x", "both"]),
}  # fmt: skip


def gentle(model: rs.ResShiftModel) -> rs.ResShiftModel:
    """Random weights, but small outputs, as a trained residual model has."""
    with torch.no_grad():
        model.unet.out[2].weight.mul_(0.02)
        model.unet.out[2].bias.mul_(0.02)
    return model


@pytest.fixture(scope="module")
def model():
    return gentle(standin.small_model())


@pytest.fixture(scope="module")
def inpainter():
    return gentle(standin.small_model(task="inpaint", scale=1, mask=True, lq_stages=2))


def pictures(count: int, channels: int, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed % 2**63))


# -------------------------------------------------------------------------------------------------------- properties


def check_any_picture(model, height, width, count, channels, seed, tile, batches, steps, sampler, wrap):
    """Exact size, finite, in range; the same picture whatever the tiles and their batches."""
    images = pictures(count, channels, height, width, seed)
    words = {"seed": seed, "steps": steps, "sampler": sampler, "wrap": wrap}
    first = rs.upscale(model, images, tile=tile, overlap=32, tile_batch=batches[0], **words)
    assert first.shape == (count, channels, 4 * height, 4 * width) and first.dtype == torch.float32
    assert torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    other = rs.upscale(model, images, tile=tile, overlap=32, tile_batch=batches[1], **words)
    torch.testing.assert_close(other, first, atol=2e-5, rtol=0)
    whole = rs.upscale(model, images, tile=None, **words)
    torch.testing.assert_close(whole, first, atol=4e-5, rtol=0)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(**DRAWN)
def test_any_picture(model, **drawn):
    assume(drawn["height"] * drawn["width"] * drawn["count"] <= AREA)
    check_any_picture(model, **drawn)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(**DRAWN)
def test_many_pictures(model, **drawn):
    check_any_picture(model, **drawn)


def check_any_hole(inpainter, height, width, seed, soft):
    """What is not to be filled in comes back bit for bit."""
    image = pictures(1, 1 if seed % 3 == 0 else 3, height, width, seed)
    mask = pictures(1, 1, height, width, seed + 1)
    mask = torch.where(mask < 0.3, 0.0, mask) if soft else (mask < 0.5).float()
    out = rs.upscale(inpainter, image, mask=mask, seed=seed, steps=1)
    assert out.shape == image.shape and torch.isfinite(out).all() and 0 <= out.min() and out.max() <= 1
    kept = (mask == 0).expand_as(out)
    assert torch.equal(out[kept], image[kept])


def test_noise_that_could_not_be_drawn_is_drawn_again_with_fewer_tiles(monkeypatch, caplog):
    """By another thread, which has told of its failure and will not tell anything else."""
    monkeypatch.setattr(noise, "_processors", lambda: 2**10)
    model, lq = standin.small_model(), torch.rand(1, 3, 40, 90)
    expected, randn, failed = rs.upscale(model, lq, tile=32, tile_batch=4), torch.randn, []

    def draw(*args, **words):
        if not failed:
            failed.append(1)
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return randn(*args, **words)

    monkeypatch.setattr(torch, "randn", draw)
    assert torch.equal(rs.upscale(model, lq, tile=32, tile_batch=4), expected)
    assert "going on with 2" in caplog.text and "going on with 1" not in caplog.text


HOLES = {"height": st.integers(1, 300), "width": st.integers(1, 300), "seed": st.integers(0, 2**40), "soft": st.booleans()}


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(**HOLES)
def test_any_hole(inpainter, **drawn):
    check_any_hole(inpainter, **drawn)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(**HOLES)
def test_many_holes(inpainter, **drawn):
    check_any_hole(inpainter, **drawn)


# ------------------------------------------------------------------------------------------------------------ memory

STAGES = {  # where a device may say that it has no more memory: (object, attribute), from the model
    "check": lambda model: (arguments.torch, "isfinite"),
    "output": lambda model: (pipeline.torch, "zeros"),
    "crop": lambda model: (tile_runs._Picture, "crop"),
    "upsampling": lambda model: (tile_runs, "bicubic_blocks"),
    "encode": lambda model: (tile_runs, "_encoded"),
    "estimate": lambda model: (model.unet.degradation, "of_picture"),
    "condition": lambda model: (model.unet, "condition"),
    "noise": lambda model: (tile_runs._Shared, "noise"),
    "constants": lambda model: (tile_runs._Shared, "constants"),
    "unet": lambda model: (model.unet, "forward"),
    "decode": lambda model: (model.autoencoder, "decode"),
    "blending": lambda model: (tile_runs._Picture, "place_result"),
    "colours": lambda model: (pipeline, "match_color_around"),
    "resizing": lambda model: (pipeline, "resize_around"),
}
ERRORS = {
    "accelerator": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "processor": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    "python": lambda: MemoryError(),
}


class Failing:
    """A function that fails at its calls of these numbers (counted from 1), or at every call from `first` on."""

    def __init__(self, real, error, first: int, forever: bool):
        self.real, self.error, self.first, self.forever, self.calls = real, error, first, forever, 0

    def __call__(self, *args, **words):
        self.calls += 1
        if self.calls == self.first or (self.forever and self.calls > self.first):
            raise self.error()
        return self.real(*args, **words)


class TestMemory:
    WORDS = {"tile": 96, "overlap": 32, "tile_batch": 2, "steps": 2, "color_fix": "wavelet", "scale": 3}

    @pytest.fixture
    def model(self):
        return gentle(standin.small_model(degradation_channels=8))

    def inject(self, monkeypatch, model, stage: str, error: str, first: int, forever: bool) -> Failing:
        owner, name = STAGES[stage](model)
        failing = Failing(getattr(owner, name), ERRORS[error], first, forever)
        replacement = (lambda *args, **words: failing(*args, **words)) if isinstance(owner, type) else failing
        monkeypatch.setattr(owner, name, replacement)
        return failing

    @pytest.mark.parametrize("error", list(ERRORS))
    @pytest.mark.parametrize("stage", list(STAGES))
    def test_once(self, model, monkeypatch, stage, error):
        """A failure at the first, the third and a late call: the right picture, or the sentence; then all is as before."""
        image = pictures(1, 3, 110, 60, 1)
        expected = rs.upscale(model, image, **self.WORDS)
        for first in (1, 3, 5):
            with monkeypatch.context() as patch:
                failing = self.inject(patch, model, stage, error, first, forever=False)
                try:
                    out = rs.upscale(model, image, **self.WORDS)
                except rs.OutOfMemory as told:
                    assert "MiB" in str(told) and "free" in str(told) and str(told).endswith(".")
                    assert stage in ("check", "output", "upsampling", "colours", "resizing"), "tiles can be run again"
                else:
                    torch.testing.assert_close(out, expected, atol=4e-5, rtol=0)
            assert failing.calls >= 1
        assert torch.equal(rs.upscale(model, image, **self.WORDS), expected)

    @pytest.mark.parametrize("stage", list(STAGES))
    def test_for_good(self, model, monkeypatch, stage):
        image = pictures(1, 3, 110, 60, 1)
        expected = rs.upscale(model, image, **self.WORDS)
        for error in ERRORS:
            with monkeypatch.context() as patch:
                self.inject(patch, model, stage, error, 1, forever=True)
                with pytest.raises(rs.OutOfMemory, match=r"\d+ MiB.*(close|Close) other programs"):
                    rs.upscale(model, image, **self.WORDS)
        assert torch.equal(rs.upscale(model, image, **self.WORDS), expected)

    def test_nothing_stays_behind(self, model, monkeypatch):
        """Neither the ladder nor the error it ends in keeps the tensors of the failed run."""
        made = []
        real = model.autoencoder.decode

        def decode(latent, quantize=True):
            made.append(weakref.ref(latent))
            raise MemoryError

        monkeypatch.setattr(model.autoencoder, "decode", decode)
        with pytest.raises(rs.OutOfMemory) as error:
            rs.upscale(model, pictures(1, 3, 110, 60, 1), **self.WORDS)
        gc.collect()
        assert made and error.value is not None
        assert not [ref for ref in made if ref() is not None]
        monkeypatch.setattr(model.autoencoder, "decode", real)

    def test_one_picture_of_a_folder(self, tmp_path, monkeypatch, capsys):
        """The others are made."""
        from PIL import Image

        path = rs.save_model(standin.small_model(), tmp_path / "model.safetensors")
        for i in range(3):
            Image.new("RGB", (8 + i, 8)).save(tmp_path / f"{i}.png")
        real = pipeline._run

        def run(model, rgb, *rest):
            if rgb.shape[-1] == 9:
                raise MemoryError
            return real(model, rgb, *rest)

        monkeypatch.setattr(pipeline, "_run", run)
        words = ["upscale", *(str(tmp_path / f"{i}.png") for i in range(3)), "-o", str(tmp_path / "out"), "--model", str(path)]
        assert main(words) == 1
        assert sorted(os.listdir(tmp_path / "out")) == ["0_x4.png", "2_x4.png"]
        assert "1.png: Out of memory" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- numbers


class TestNumbers:
    @pytest.mark.parametrize("together", [1, 4])
    @pytest.mark.parametrize("dtype", [FP16, torch.bfloat16])
    def test_a_tile_that_overflows_is_redone_alone(self, monkeypatch, caplog, dtype, together):
        """Infinities in one tile of six: this tile is that of float32, the others are untouched."""
        half = gentle(standin.small_model())
        image = pictures(1, 3, 32, 48, 3)
        words = {"tile": 16, "overlap": 0, "tile_batch": together}
        exact = rs.upscale(half, image, **words)
        half.to(dtype=dtype)
        plain = rs.upscale(half, image, **words)
        real, calls = half.autoencoder.decode, []

        def decode(latent, quantize=True):
            calls.append(1)
            out = real(latent, quantize)
            if len(calls) == (3 if together == 1 else 1):
                out[2 if together > 1 else 0, :, 5] = float("inf")
            return out

        monkeypatch.setattr(half.autoencoder, "decode", decode)
        monkeypatch.setattr(half, "in_float32", lambda: gentle(standin.small_model()))
        out = rs.upscale(half, image, **words)
        assert caplog.text.count("it is done again in float32") == 1
        third = (slice(None), slice(None), slice(0, 64), slice(128, 192))
        torch.testing.assert_close(out[third], exact[third], atol=1e-6, rtol=0)
        others = torch.ones(out.shape, dtype=torch.bool)
        others[third] = False
        assert torch.equal(out[others], plain[others])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP16])
    @pytest.mark.parametrize(
        "value", [0.0, 1.0, 1e-45, 1e-38, 1 - 2**-24, "checks", "one white pixel", "not a number", "infinite"]
    )
    def test_extremes(self, dtype, value):
        model = gentle(standin.small_model()).to(dtype=dtype)
        image = torch.zeros(1, 3, 20, 24)
        if value == "checks":
            image[..., ::2, ::2] = image[..., 1::2, 1::2] = 1
        elif value == "one white pixel":
            image[..., 10, 10] = 1
        elif isinstance(value, str):
            image[..., 3:5, :] = float("nan" if value == "not a number" else "inf")
        else:
            image += value
        for words in ({}, {"color_fix": "wavelet"}, {"color_fix": "adain"}, {"scale": 0.37}):
            out = rs.upscale(model, image, **words)
            assert torch.isfinite(out).all() and 0 <= out.min() and out.max() <= 1

    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
    def test_flat_pictures_stay_flat(self, value):
        """The built-in model on one colour: no texture is made up."""
        out = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), torch.full((1, 3, 40, 40), value), seed=3)
        assert (out - value).abs().max() < 0.02


# ------------------------------------------------------------------------------------------------- many at once, long


def test_ten_threads_with_one_model(model):
    images = [pictures(1, 3, 30 + 7 * i, 90 - 5 * i, i) for i in range(10)]
    words = {"tile": 64, "overlap": 16, "steps": 2}
    expected = [rs.upscale(model, image, seed=i, **words) for i, image in enumerate(images)]
    results: dict[tuple[int, int], torch.Tensor] = {}

    def work(i: int) -> None:
        for again in range(3):
            results[i, again] = rs.upscale(model, images[i], seed=i, **words)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == 30
    for (i, _), result in results.items():
        assert torch.equal(result, expected[i])


def test_processes_that_load_one_file_at_the_same_time(model, tmp_path):
    """Four programs with the same model and picture; every result has the same bytes."""
    file = rs.save_model(model, tmp_path / "model.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = [
        sys.executable,
        "-m",
        "resshift_core",
        "upscale",
        "a.png",
        "--model",
        str(file),
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*words, "-o", f"out{i}.png"], cwd=tmp_path, env=environment) for i in range(4)]
    assert [process.wait(timeout=300) for process in running] == [0] * 4
    assert len({(tmp_path / f"out{i}.png").read_bytes() for i in range(4)}) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="memory and open files are read from /proc")
class TestLongRuns:
    def test_hundred_pictures(self):
        summary = fuzz("long_run", "--count", "120", "--window", "30", minutes=5)
        assert summary["handles_grown"] <= 0 and summary["memory_grown_percent"] < 5

    @pytest.mark.slow
    def test_two_thousand_pictures(self):
        """Memory of the first and the last 200 within 2 %; the second half is as fast as the first."""
        summary = fuzz("long_run", "--count", "2000", "--window", "200", minutes=60)
        assert summary["handles_grown"] <= 0 and abs(summary["memory_grown_percent"]) < 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has neither fork nor these signals")
class TestInterruptions:
    """kill -9, SIGTERM and Ctrl-C while a folder is upscaled, a model converted or downloaded."""

    def test_some_moments(self):
        assert fuzz("interruptions", "--count", "12", minutes=5)["wrong"] == []

    @pytest.mark.slow
    def test_two_hundred_moments(self):
        assert fuzz("interruptions", "--count", "200", "--seed", "1", minutes=60)["wrong"] == []
