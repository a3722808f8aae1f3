"""evaluate.py: its numbers against plain formulas, every combination of settings, every kind of input."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs
from training import evaluate
from training.metrics import lpips_distance, luma, psnr, ssim, texture

from . import standin
from .training_run import make_pictures, save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return make_pictures(folder / "truth", 3, 64), save_tiny_model(folder / "tiny.safetensors")


def table(output) -> list[dict]:
    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words(*more) -> list[str]:
    return [str(word) for word in (*more, "--device", "cpu", "--dtype", "fp32")]


def test_psnr_is_its_formula():
    a, b = torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20)
    assert psnr(a, b) == pytest.approx(-10 * math.log10(float((a.double() - b.double()).square().mean())), rel=1e-5)


def test_ssim_of_constant_pictures_is_its_formula():
    a, b = torch.full((1, 1, 32, 32), 0.3), torch.full((1, 1, 32, 32), 0.5)
    c1 = 0.01**2
    assert ssim(a, b) == pytest.approx((2 * 0.3 * 0.5 + c1) / (0.3**2 + 0.5**2 + c1), rel=1e-4)


def test_luma_is_that_of_bt601():
    rgb = torch.tensor([[0.2, 0.5, 0.9]]).view(1, 3, 1, 1)
    assert float(luma(rgb)) * 255 == pytest.approx(16 + 65.481 * 0.2 + 128.553 * 0.5 + 24.966 * 0.9, abs=0.1)


def test_every_combination_has_a_row(place, tmp_path):
    truth, model = place
    more = ("--steps", 1, 2, "--kappa", 0.1, 0.2, "--p", 0.3, 1)
    assert evaluate.main(words("--truth", truth, "--models", model, "--output", tmp_path, *more)) == 0
    rows = table(tmp_path)
    assert [row["model"] for row in rows] == ["bicubic"] + ["tiny"] * 8
    assert len({(row["steps"], row["kappa"], row["p"]) for row in rows[1:]}) == 8
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.count("\n") == 2 + 9 and "PSNR ↑" in text
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_of_a_folder_with_a_manifest_what_is_held_out_is_measured(place, tmp_path, capsys):
    truth = shutil.copytree(place[0], tmp_path / "truth")
    names = sorted(path.name for path in truth.iterdir())
    settings = evaluate.EvaluationSettings(tmp_path / "out", truth=truth)
    (truth / "MANIFEST.csv").write_text("file,split\n" + "".join(f"{name},train\n" for name in names))
    assert len(evaluate.load_samples(settings, 4)) == 3
    (truth / "MANIFEST.csv").write_text("file,split\n" + f"{names[0]},train\n{names[1]},val\n")
    assert [sample.name for sample in evaluate.load_samples(settings, 4)] == [Path(names[1]).stem]
    assert "only the pictures of its split val are measured" in capsys.readouterr().out


def test_a_file_that_says_what_it_is_takes_no_variant(place, capsys):
    settings = evaluate.EvaluationSettings(Path("out"), variant="realsr_x4_s4", device="cpu")
    assert evaluate._load(str(place[1]), settings).scale == 4
    assert "leaves nothing open: --variant is not used" in capsys.readouterr().out
    with pytest.raises(rs.CheckpointError, match="no_such"):
        evaluate._load("no_such.safetensors", settings)
    with pytest.raises(rs.InputError, match="of_mine"):
        evaluate._load(str(place[1]), evaluate.EvaluationSettings(Path("out"), variant="of_mine", device="cpu"))


@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_that_no_similarity_can_be_told_of_are_named(place, tmp_path, capsys, scale):
    truth = shutil.copytree(place[0], tmp_path / "truth")
    Image.new("RGB", (7, 4)).save(truth / "icon.png")
    samples = evaluate.load_samples(evaluate.EvaluationSettings(tmp_path / "out", truth=truth), scale)
    assert len(samples) == 3 and "icon.png" in capsys.readouterr().out
    Image.new("RGB", (6, 6)).save(truth / "icon.png")
    (sample,) = (
        s for s in evaluate.load_samples(evaluate.EvaluationSettings(tmp_path / "out", truth=truth), scale) if s.name == "icon"
    )
    assert ssim(sample.truth, sample.truth) == pytest.approx(1)


def test_pairs_give_the_numbers_of_the_formula(place, tmp_path):
    truth, model = place
    low = tmp_path / "low"
    low.mkdir()
    for path in truth.iterdir():
        with Image.open(path) as image:
            image.resize((16, 16), Image.Resampling.BICUBIC).save(low / path.name)
    out = tmp_path / "out"
    more = ("--lq", low, "--channel", "rgb", "--save", "True")
    assert evaluate.main(words("--truth", truth, "--models", model, "--output", out, *more)) == 0
    row = next(row for row in table(out) if row["model"] == "tiny")
    saved = next(path for path in out.iterdir() if path.is_dir() and path.name.startswith("tiny"))
    values = []
    for path in sorted(truth.iterdir()):
        a, b = (np.asarray(Image.open(file), dtype=np.float64) / 255 for file in (path, saved / path.name))
        values.append(-10 * np.log10(np.mean((a - b) ** 2)))
    assert float(row["psnr"]) == pytest.approx(np.mean(values), abs=1e-3)
    with Image.open(low / "picture_0.png") as image:
        lq = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    result = rs.upscale(rs.load_model(model, device="cpu", dtype="fp32"), lq)
    kept = torch.from_numpy(np.array(Image.open(saved / "picture_0.png"))).permute(2, 0, 1)[None] / 255
    assert float((result - kept).abs().max()) <= 0.5 / 255 + 1e-6


def test_a_border_is_left_out(place, tmp_path, capsys):
    """As in papers on super-resolution, by the plain formula."""
    truth, model = place
    more = ("--truth", truth, "--models", model, "--output", tmp_path, "--degradation", "bicubic")
    more += ("--channel", "rgb", "--save", "True")
    assert evaluate.main(words(*more, "--border", 4)) == 0
    values = []
    for path in sorted(truth.iterdir()):
        a, b = (
            np.asarray(Image.open(file), dtype=np.float64)[4:-4, 4:-4] / 255
            for file in (path, tmp_path / "bicubic" / path.name)
        )
        values.append(-10 * np.log10(np.mean((a - b) ** 2)))
    assert float(table(tmp_path)[0]["psnr"]) == pytest.approx(np.mean(values), abs=1e-3)
    assert evaluate.main(words(*more, "--border", 30)) == 2
    assert "leaves too little of picture_0" in capsys.readouterr().err


def test_the_smallest_pictures_are_measured(place, tmp_path):
    (tmp_path / "tiny").mkdir()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "tiny" / "a.png")
    more = ("--truth", tmp_path / "tiny", "--models", place[1], "--output", tmp_path / "out", "--degradation", "bicubic")
    assert evaluate.main(words(*more)) == 0 and float(table(tmp_path / "out")[0]["psnr"]) > 0


@pytest.mark.parametrize("kind", ["paper-b1", "everyday", "realesrgan", "mixed", "bicubic"])
def test_thin_pictures_are_measured_after_every_degradation(place, tmp_path, kind):
    """No side is to get shorter than 4 pixels on the way; of these, the result is."""
    (tmp_path / "thin").mkdir()
    for n, (height, width) in enumerate([(8, 40), (12, 150), (60, 11)]):
        pixels = np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "thin" / f"{n}.png")
    more = ("--truth", tmp_path / "thin", "--models", place[1], "--output", tmp_path / "out", "--degradation", kind)
    assert evaluate.main(words(*more)) == 0 and float(table(tmp_path / "out")[0]["psnr"]) > 0


def test_what_is_measured_is_kept(place, tmp_path, monkeypatch, capsys):
    """What a model refuses is told before anything is measured; what fails later costs no rows."""
    student = save_tiny_model(tmp_path / "student.safetensors", steps=1, default_steps=1)
    more = ("--truth", place[0], "--output", tmp_path / "out", "--models", place[1], student)
    assert evaluate.main(words(*more, "--steps", 1, 2)) == 1 and not (tmp_path / "out").exists()
    assert "cannot run 2" in capsys.readouterr().err

    def short(image, hole=None):
        raise MemoryError("there is none left")

    monkeypatch.setattr(evaluate, "load_other", lambda *_: evaluate.Candidate("other", "", "", "", short))
    assert evaluate.main(words(*more, "--others", "other.pth")) == 1
    assert [row["model"] for row in table(tmp_path / "out")] == ["bicubic", "tiny", "student"]


def test_the_seed_is_that_of_the_noise():
    model, image = standin.small_model(), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        settings = evaluate.EvaluationSettings(Path(), seed=seed)
        (candidate,) = evaluate._own_candidates(settings, model, "small")
        assert torch.equal(candidate.upscale(image), rs.upscale(model, image, seed=seed))


def test_an_exact_picture_does_not_make_the_mean_infinite():
    exact = torch.rand(1, 3, 8, 8)
    assert psnr(exact, exact) == 100.0


def test_lpips_of_small_pictures():
    """Its networks' pooling leaves nothing of fewer than 31 pixels."""
    seen = []
    net = lambda a, b: seen.append((a, b)) or (a - b).square().mean((1, 2, 3), True)  # noqa: E731
    result, truth = torch.rand(1, 3, 20, 40), torch.rand(1, 3, 20, 40)
    lpips_distance(net, result, truth)
    ((a, b),) = seen
    assert a.shape == b.shape == (1, 3, 32, 40) and torch.equal(b[:, :, :20], truth * 2 - 1)
    assert torch.equal(a[:, :, 25], result[:, :, 19] * 2 - 1)


def test_appendix_b1_is_harder_than_bicubic(place, tmp_path):
    scores = {}
    for kind in ("paper-b1", "bicubic"):
        out = tmp_path / kind
        more = ("--truth", place[0], "--models", place[1], "--output", out, "--degradation", kind, "--crop", 48)
        assert evaluate.main(words(*more)) == 0
        scores[kind] = float(table(out)[0]["psnr"])
    assert scores["paper-b1"] < scores["bicubic"]


def test_other_upscalers_stand_in_the_same_table(place, tmp_path, monkeypatch, capsys):
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(0)
    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=4)
    torch.save(net.state_dict(), tmp_path / "other.pth")
    more = ("--others", tmp_path / "other.pth", "--limit", 1)
    assert evaluate.main(words("--truth", place[0], "--models", place[1], "--output", tmp_path / "out", *more)) == 0
    assert table(tmp_path / "out")[-1]["model"] == "other (SPAN)" and spandrel

    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(SPAN, "forward", short)
    assert evaluate.main(words("--truth", place[0], "--models", place[1], "--output", tmp_path / "short", *more)) == 1
    assert "other.pth needs more memory for a picture of 16x16 than is free. Give --crop." in capsys.readouterr().err


def test_files_of_the_same_name_are_told_apart(place, tmp_path):
    files = [tmp_path / folder / "last.safetensors" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        shutil.copy(place[1], file)
    more = ("--models", *files, place[1], "--limit", 1)
    assert evaluate.main(words("--truth", place[0], "--output", tmp_path / "out", *more)) == 0
    assert [row["model"] for row in table(tmp_path / "out")] == ["bicubic", "one/last", "two/last", "tiny"]


def test_texture_is_energy_beyond_the_small_picture():
    """Waves of period 6 pixels are texture to a picture of a quarter of the size, waves of period 12 are not; twice as strong is 4."""
    x = torch.arange(96.0)
    coarse, fine = (torch.cos(2 * torch.pi * x / period).expand(1, 3, 96, 96) * 0.1 + 0.5 for period in (12, 6))
    truth = coarse + fine - 0.5
    assert texture(truth, truth, 4) == 1
    assert texture(fine, truth, 4) == pytest.approx(1, rel=1e-3)
    assert texture(fine.mT, truth, 4) == pytest.approx(1, rel=1e-3)
    assert texture(2 * fine, truth, 4) == pytest.approx(4, rel=1e-3)
    assert texture(coarse, truth, 4) < 1e-3
    assert texture(coarse, truth, 8) == pytest.approx(0.5, rel=1e-3)


def test_of_a_flat_truth_the_rounding_of_its_levels_is_the_texture():
    flat = torch.full((1, 3, 96, 96), 0.5)
    half_a_level = flat + 0.5 / 255 * torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    assert texture(flat, flat, 4) < 1e-6 and 0.5 < texture(half_a_level, flat, 4) < 1


def test_holes_are_all_that_inpainting_is_measured_on(place, tmp_path):
    samples = evaluate.load_samples(evaluate.EvaluationSettings(tmp_path, truth=place[0]), 1, holes=True)
    assert len(samples) == 3 and len({float(sample.hole.sum()) for sample in samples}) > 1
    assert all(torch.equal(sample.lq, sample.truth * (1 - sample.hole)) for sample in samples)


def test_pictures_that_differ_by_their_endings_keep_them(tmp_path):
    names = ("a.png", "a.jpg", "b/a.png", "c.png")
    assert evaluate._names_below(tmp_path, [tmp_path / name for name in names]) == ["a.png", "a.jpg", "b/a", "c"]


def test_no_noise_is_called_none_in_the_table(tmp_path):
    settings = evaluate.EvaluationSettings(tmp_path, kappa=(0.0, 0.5))
    assert [row.kappa for row in evaluate._own_candidates(settings, standin.small_model(kappa=2.0), "one")] == ["0", "0.5"]


@pytest.mark.parametrize("count, seconds", [(1, 10), (3, 3)])
def test_the_first_picture_warms_up_and_is_not_timed(monkeypatch, count, seconds):
    clock = iter([0, 10, 20, 22, 30, 34])
    monkeypatch.setattr(evaluate, "time", types.SimpleNamespace(perf_counter=clock.__next__))
    candidate = evaluate.Candidate("one", "", "", "", lambda lq, hole: lq)
    samples = [evaluate.Sample(str(n), torch.rand(1, 3, 8, 8), None) for n in range(count)]
    assert evaluate.measure(candidate, samples, lambda result, truth: {"musiq": 1.0})["seconds"] == seconds


def test_results_are_measured_as_a_file_holds_them():
    seen, sample = [], evaluate.Sample("one", torch.rand(1, 3, 8, 8), None)
    candidate = evaluate.Candidate("one", "", "", "", lambda lq, hole: lq)
    evaluate.measure(candidate, [sample], lambda result, truth: seen.append(result) or {"musiq": 1.0})
    assert torch.equal(seen[0], sample.lq.mul(255).round().div(255))


def test_labels_of_the_plot_say_what_differs():
    rows = [{"steps": steps, "kappa": "2", "p": p, "psnr": float(steps), "ssim": 0.5} for steps in "14" for p in ("0.3", "1")]
    assert evaluate._labels(rows, "ssim") == {(1.0, 0.5): "T=1 p=0.3\nT=1 p=1", (4.0, 0.5): "T=4 p=0.3\nT=4 p=1"}


@pytest.fixture
def fake_pyiqa(monkeypatch):
    """pyiqa's create_metric, as far as it is used here: means of the picture."""
    made = types.ModuleType("pyiqa")
    made.create_metric = lambda name: lambda image: image.mean() * {"clipiqa": 1, "musiq": 100}[name]
    monkeypatch.setitem(sys.modules, "pyiqa", made)


def test_pictures_without_truth(place, tmp_path, capsys, fake_pyiqa):
    more = ("--lq", place[0], "--models", place[1], "--limit", 2, "--output", tmp_path)
    assert evaluate.main(words(*more)) == 0
    assert "--pyiqa True adds" in capsys.readouterr().out and "psnr" not in table(tmp_path)[0]
    assert evaluate.main(words(*more, "--pyiqa", "True")) == 0
    assert "non-commercial" in capsys.readouterr().out
    rows = table(tmp_path)
    assert all(float(row["musiq"]) == pytest.approx(100 * float(row["clipiqa"]), rel=1e-4) for row in rows)
    assert "CLIPIQA ↑" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_nothing_is_lost_or_mixed_up(place, tmp_path):
    """Pictures of one name in two folders, models of one path's end, and what the program has written itself."""
    truth = tmp_path / "truth"
    for number, name in enumerate(("a/x.png", "b/x.png", "y.png")):
        (truth / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place[0] / f"picture_{number}.png", truth / name)
    files = [tmp_path / run / "out" / "best.safetensors" for run in ("one", "two")]
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(place[1], file)
    more = ("--models", *files, "--save", "True", "--steps", 1)
    for _ in range(2):
        assert evaluate.main(words("--truth", truth, "--output", truth / "tables", *more)) == 0
    assert [row["model"] for row in table(truth / "tables")] == ["bicubic", "one/out/best", "two/out/best"]
    saved = sorted(path.relative_to(truth / "tables").as_posix() for path in (truth / "tables").rglob("*.png"))
    folders = ("bicubic", "one_out_best_1_0.1_0.3", "two_out_best_1_0.1_0.3")
    assert saved == sorted(["plot.png", *(f"{folder}/{name}.png" for folder in folders for name in ("a/x", "b/x", "y"))])


def test_a_crop_too_small_to_measure_is_refused(place, tmp_path, capsys):
    assert evaluate.main(words("--truth", place[0], "--models", place[1], "--output", tmp_path, "--crop", 4)) == 2
    assert "--crop is 4; it must be 0 or at least 16." in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--crop", "--limit", "--seed", "--border"])
def test_numbers_below_zero_are_refused(place, tmp_path, capsys, word):
    assert evaluate.main(words("--truth", place[0], "--models", place[1], "--output", tmp_path, word, -2)) == 2
    assert "must not be negative" in capsys.readouterr().err


def test_partners_that_cannot_be_read_are_named(place, tmp_path, capsys):
    low = tmp_path / "low"
    shutil.copytree(place[0], low)
    (low / "picture_0.png").write_bytes(b"no picture")
    assert evaluate.main(words("--truth", place[0], "--lq", low, "--models", place[1], "--output", tmp_path / "out")) == 1
    assert "picture_0.png cannot be read" in capsys.readouterr().err


def test_what_is_missing_is_said(place, tmp_path, capsys):
    assert evaluate.main(words("--models", place[1], "--output", tmp_path)) == 2
    assert "Give --truth" in capsys.readouterr().err
    assert evaluate.main(words("--truth", tmp_path, "--models", place[1], "--output", tmp_path / "out")) == 1
    assert "There are no pictures. Known are files that end in .avif, " in capsys.readouterr().err
    assert evaluate.main(words("--truth", tmp_path / "no", "--models", place[1], "--output", tmp_path)) == 1
    assert "There is no folder" in capsys.readouterr().err
    assert evaluate.main(words("--truth", place[0], "--models", place[1], "--output", tmp_path, "--others", "no.pth")) == 2
    assert "no.pth" in capsys.readouterr().err


def test_pyiqa_is_asked_for_with_its_licence(place, tmp_path, capsys):
    try:
        import pyiqa  # noqa: F401
    except ImportError:
        more = ("--truth", place[0], "--models", place[1], "--output", tmp_path, "--pyiqa", "True")
        assert evaluate.main(words(*more)) == 2
        assert "non-commercial" in capsys.readouterr().err
