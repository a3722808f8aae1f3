"""The benchmark's own tools: a baseline that computes the same, and counts that closed forms give."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resshift_core as rs
from benchmarks import __main__ as benchmark
from benchmarks import plain, stages, timing

from . import standin

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def latent_model() -> rs.ResShiftModel:
    """A narrow network with Swin layers and a VQGAN, as the published ones have them."""
    unet = rs.UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, swin_channels=32, head_channels=16)
    config = rs.ModelConfig(unet, rs.VQGANConfig(32, (1, 1, 2), (1, 1, 1), 3, 3, 64), name="narrow", tile=64)
    return standin.standin_model(config)


def test_the_plain_baseline_gives_the_same_picture(latent_model):
    image = torch.rand(1, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    ours, theirs = (rs.upscale(model, image, tile=None) for model in (latent_model, plain.make_plain(latent_model)))
    assert (ours - theirs).abs().max() < 1e-3
    kinds = {type(layer) for layer in [*latent_model.unet.modules(), *latent_model.autoencoder.modules()]}
    assert set(plain.METHODS) <= kinds  # all that is replaced was there


def test_the_plain_baseline_materialises_its_distances(latent_model):
    """It is no copy of ours: one product for all latent vectors, instead of chunks."""
    latent = torch.randn(1, 3, 40, 40)
    mine, theirs = latent_model.autoencoder.quantize, plain.make_plain(latent_model).autoencoder.quantize
    assert torch.equal(mine.codes(latent), theirs.codes(latent))
    assert theirs.codes.__func__ is not type(mine).codes


def test_operations_and_bytes_of_a_convolution():
    layer = nn.Conv2d(3, 5, 3, padding=1)
    image = torch.rand(2, 3, 8, 7)
    assert timing.flops(lambda: layer(image)) == 2 * 2 * 5 * 8 * 7 * 3 * 9
    q, k = torch.rand(2, 3, 40, 16), torch.rand(2, 3, 24, 16)
    with torch.no_grad():
        assert timing.flops(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * 2 * 3 * 40 * 24 * 16
    if torch.backends.mkldnn.is_available():
        a, b = torch.rand(4, 5, 160), torch.rand(130, 160)
        assert timing.flops(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")) == 2 * 20 * 160 * 130
    assert timing.bytes_touched(layer, lambda: layer(image)) == 4 * (2 * 3 * 56 + 2 * 5 * 56 + 5 * 27 + 5)


def test_cases_take_turns():
    order: list[str] = []
    cases = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(cases, 3, CPU)
    assert order == list("abc") + list("abc") + list("bca") + list("cab") and set(times) == set("abc")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process")
def test_peak_memory_of_a_known_allocation():
    assert 90 < timing.peak_mib(lambda: torch.ones(100 << 18), CPU) < 130


def test_operations_are_those_that_make_values():
    a = torch.rand(3, 4)
    assert timing.operations(lambda: (a.t() @ a).view(16).relu_()) == 2
    assert timing.operations(lambda: a.transpose(0, 1).reshape(12)[1:]) == 1  # the copy


def test_stages_of_both_kinds(latent_model):
    peaks, copy = {torch.float32: 1e11}, 1e10
    names = [stage.name for stage in stages.measure(latent_model, 32, 1, peaks, copy)]
    assert names == ["encode", "nearest codes", "decode", "network, one step", "blend"]
    small = stages.measure(standin.small_model(), 32, 1, peaks, copy)
    assert [stage.name for stage in small] == ["trunk", "network, one step", "blend"]
    assert all(stage.seconds > 0 for stage in small) and small[1].tflop > 0


@pytest.mark.parametrize("windows", [False, True])
def test_the_command_prints_and_saves(windows, tmp_path, monkeypatch, capsys):
    if windows:
        monkeypatch.delattr(benchmark.os, "getloadavg", raising=False)
    monkeypatch.setattr(benchmark, "published", lambda device, dtype: standin.small_model(name="published x4"))
    monkeypatch.setattr(timing, "matmul_peak", lambda device, dtype: 1e11)
    monkeypatch.setattr(timing, "bandwidth", lambda device: 1e10)
    words = ["benchmarks", "--only", "stages", "--rounds", "1", "--device", "cpu", "--json", str(tmp_path / "all.json")]
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    saved = json.loads((tmp_path / "all.json").read_text())
    assert len(saved["stages"]) == 2 and saved["machine"]["threads"] > 0
    shown = capsys.readouterr().out
    assert "| network, one step |" in shown and (", load " in shown) == (saved["machine"]["load average"] is not None)


PROGRAMS = {
    "benchmarks/fidelity.py": "{empty}",
    "benchmarks/student.py": "builtin builtin {empty}",
    "benchmarks/loader.py": "--data {empty}",
    "tools/measure_settings.py": "{empty}",
    "tools/make_thumbnails.py": "{empty}/none.png",
    "tools/ship_builtin.py": "{empty}/none.safetensors words",
    "tools/search_builtin.py": "--data {empty} --output {empty} --only nobody",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_there_is_told_in_a_sentence(program, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")  # they read settings of training
    words = PROGRAMS[program].format(empty=tmp_path).split()
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    said = capsys.readouterr().err.strip()
    assert ended.value.code in (1, 2) and said.endswith((".", "`")) and "Traceback" not in said


def test_without_the_peers_packages_the_rest_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PEERS_NEED", ("no_such_package",))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "peers", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 1 and "no_such_package is not installed" in capsys.readouterr().err
