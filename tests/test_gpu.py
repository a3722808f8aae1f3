"""Everything that computes, on a real GPU: `pytest -m cuda`, some three minutes. Without one nothing of this runs; see `gpu`.

What is exact on the processor is held to the processor's numbers within what a device's own sums allow.
"""

from __future__ import annotations

import json
import logging
import math
import threading

import pytest
import torch

import resshift_core as rs
from resshift_core.cli import main
from resshift_core.device import resolve_device, resolve_dtype
from resshift_core.image_io import read_picture, to_image

from . import gpu, standin
from .test_pipeline import picture
from .test_unet import relative
from .training_run import arguments, make_pictures, save_tiny_model, vq_model, weights

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def card() -> torch.device:
    return gpu.find()


@pytest.fixture
def exact():
    """float32 is float32: by default, torch's convolutions on NVIDIA's cards keep ten bits of it (TF32)."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def built_in(card):
    """built_in(dtype="fp32", where=card, name="builtin")"""

    def load(dtype="fp32", where=card, name="builtin"):
        return rs.load_model(name, device=where, dtype=dtype)

    return load


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    mse = (one.cpu().double() - other.cpu().double()).square().mean().item()
    return math.inf if mse == 0 else -10 * math.log10(mse)


class TestPictures:
    @pytest.mark.parametrize("name", ["builtin", "builtin-real"])
    @pytest.mark.parametrize("dtype, decibels", [("fp32", 60), ("bf16", 45), ("fp16", 45), ("auto", 45)])
    def test_are_the_processors(self, built_in, card, name, dtype, decibels):
        lq = picture(75, 90)
        expected = rs.upscale(built_in("fp32", "cpu", name), lq, seed=3, tile=64)
        found = rs.upscale(built_in(dtype, card, name), lq.to(card), seed=3, tile=64)
        assert found.device.type == card.type and found.dtype == torch.float32
        assert psnr(found, expected) > decibels

    @pytest.mark.parametrize(
        "words",
        [
            {"scale": 2.5, "color_fix": "wavelet"},
            {"wrap": "both", "tile": 64},
            {"sampler": "deterministic", "color_fix": "adain"},
            {"noise": "periodic"},
            {"noise": "shared", "kappa": 0.07, "steps": 6, "p": 0.5},
            {"tile": 0},
            {"tile": 64, "overlap": 0, "tile_batch": 3},
            {"size": (100, 333)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_with_every_setting(self, built_in, card, exact, words, channels):
        lq = picture(70, 50, count=2, channels=channels)
        expected = rs.upscale(built_in(where="cpu"), lq, seed=[4, 9], **words)
        found = rs.upscale(built_in(), lq.to(card), seed=[4, 9], **words)
        assert found.shape == expected.shape and (found.cpu() - expected).abs().max() < 1e-3

    @pytest.mark.parametrize("variant", sorted(standin.PARTS))
    def test_of_the_published_kinds(self, card, exact, variant):
        """Codes of stand-in weights lie close together, and some are others where sums are rounded in another order."""
        torch.manual_seed(0)
        lq, mask = picture(70, 50, count=2), (picture(70, 50, channels=1) > 0.6).float()
        words = dict(seed=1, color_fix="wavelet", tile=64, overlap=0, mask=mask if "inpaint" in variant else None)
        expected = rs.upscale(standin.narrow_model(variant), lq, **words)
        found = rs.upscale(standin.narrow_model(variant).to(card), lq.to(card), **words)
        assert found.shape == expected.shape and (found.cpu() - expected).abs().median() < 1e-3

    def test_are_the_same_bytes_again(self, built_in, card):
        """Also after other work, and of a model that was away."""
        model, lq = built_in("auto"), picture(70, 90).to(card)
        first = rs.upscale(model, lq, tile=64)
        rs.upscale(model, picture(33, 44).to(card), steps=2)
        assert torch.equal(rs.upscale(model, lq, tile=64), first)
        model.to("cpu")
        assert torch.equal(rs.upscale(model.to(card), lq, tile=64), first)

    def test_do_not_depend_on_their_neighbours(self, built_in, card, exact):
        """Alone or in a batch, many tiles at a time or one."""
        model, frames = built_in(), picture(70, 90, count=3).to(card)
        together = rs.upscale(model, frames, seed=5, tile=64, tile_batch=8)
        for number, frame in enumerate(frames):
            alone = rs.upscale(model, frame[None], seed=5 + number, tile=64, tile_batch=1)
            assert (together[number] - alone[0]).abs().max() < 1e-4

    def test_have_no_seams(self, built_in, card, exact):
        ramp = torch.linspace(0.2, 0.8, 150).expand(1, 3, 150, 150).contiguous().to(card)
        model = built_in()
        assert (rs.upscale(model, ramp, tile=64) - rs.upscale(model, ramp, tile=0)).abs().max() < 2 / 255

    @pytest.mark.parametrize("kind", ["channels last", "a part", "double", "half", "on the processor"])
    def test_of_any_tensor(self, built_in, card, kind):
        model, lq = built_in(), picture(40, 48, seed=3)
        given = {
            "channels last": lambda: lq.to(card).contiguous(memory_format=torch.channels_last),
            "a part": lambda: torch.nn.functional.pad(lq, (3, 5, 7, 1)).to(card)[..., 7:-1, 3:-5],
            "double": lambda: lq.to(torch.float64) if card.type == "mps" else lq.to(card, torch.float64),
            "half": lambda: lq.to(card, torch.float16),
            "on the processor": lambda: lq,
        }[kind]()
        found = rs.upscale(model, given)
        assert found.device == given.device
        assert (found.cpu() - rs.upscale(model, lq.to(card)).cpu()).abs().max() < (0.02 if kind == "half" else 1e-3)

    def test_under_what_callers_set(self, built_in, card):
        model, lq = built_in("fp32"), picture(40, 48).to(card)
        expected = rs.upscale(model, lq)
        with torch.device(card):
            by_default = rs.upscale(model, lq)
        with torch.autocast(card.type, torch.float16 if card.type == "cuda" else torch.bfloat16):
            in_halves = rs.upscale(model, lq)
        assert torch.equal(by_default, expected) and torch.equal(in_halves, expected)

    def test_in_threads(self, built_in, card):
        model, pictures, results = built_in("auto"), [picture(64, 80, seed=n).to(card) for n in range(4)], {}
        expected = [rs.upscale(model, lq) for lq in pictures]

        def run(number):
            results[number] = rs.upscale(model, pictures[number])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(results[number], expected[number]) for number in range(4))

    def test_with_previews_and_stopped(self, built_in, card):
        model, lq, seen = built_in("auto"), picture(100, 130).to(card), []
        expected = rs.upscale(model, lq, tile=64)

        def on_step(event):
            seen.append(event.preview().shape)
            return len(seen) < 7

        with pytest.raises(rs.Cancelled):
            rs.upscale(model, lq, tile=64, on_step=on_step)
        assert len(seen) == 7 and torch.equal(rs.upscale(model, lq, tile=64), expected)

    def test_that_overflow_are_computed_in_float32(self, card, caplog, exact):
        def model():
            made = standin.small_model()
            with torch.no_grad():
                made.unet.out[2].weight.mul_(0.02)
                made.unet.input_blocks[0][0].weight.mul_(1e5)
            return made

        lq = picture(40, 48)
        expected = rs.upscale(model().to("cpu", torch.float16).to("cpu", torch.float32), lq)
        with caplog.at_level(logging.WARNING, "resshift"):
            found = rs.upscale(model().to(card, torch.float16), lq.to(card))
        assert "float32" in caplog.text and psnr(found, expected) > 50


@pytest.fixture(scope="module")
def parts(published_model):
    model = published_model("realsr_x4_s4")
    lq, x = picture(64, 64), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    image, time = picture(256, 256, seed=2) * 2 - 1, torch.tensor([2.0])
    with torch.no_grad():
        latent = model.autoencoder.encode(image)
        step = model.unet(x, time, lq=lq * 2 - 1)
        decoded = model.autoencoder.decode(latent)
    return model, dict(lq=lq * 2 - 1, x=x, time=time, image=image), dict(latent=latent, step=step, decoded=decoded)


class TestNetworks:
    """facts.md and the issue's bounds: 2e-2 of the norm for a step, 45 dB for decoding equal codes."""

    @pytest.mark.parametrize("dtype, norm, decibels", [("fp32", 3e-3, 60), ("auto", 2e-2, 45)])
    def test_one_step_and_the_decoder(self, parts, card, dtype, norm, decibels):
        model, given, expected = parts
        there = standin.standin_model(model.config).to(card, resolve_dtype(dtype, card))
        with torch.no_grad():
            step = there.unet(given["x"].to(card), given["time"].to(card), lq=given["lq"].to(card))
            codes = model.autoencoder.quantize(expected["latent"])
            decoded = there.autoencoder.decode(codes.to(card), quantize=False)
            assert torch.equal(there.autoencoder.quantize(codes.to(card)).cpu(), codes)  # a code is the nearest to itself
            latent = there.autoencoder.encode(given["image"].to(card))
        assert relative(step.float().cpu(), expected["step"]) < norm
        assert relative(latent.float().cpu(), expected["latent"]) < 2 * norm
        assert psnr((decoded.float() + 1) / 2, (expected["decoded"] + 1) / 2) > decibels

    def test_nearest_codes(self, parts, card):
        """Also where hosts let products of matrices be in TF32."""
        model, _, expected = parts
        book = standin.standin_model(model.config).autoencoder.quantize.to(card)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            found = book.codes(expected["latent"].to(card)).cpu()
        finally:
            torch.set_float32_matmul_precision(before)
        assert (found == model.autoencoder.quantize.codes(expected["latent"])).float().mean() > 0.999


class TestMemory:
    def test_only_weights_are_left(self, built_in, card):
        model, lq = built_in("auto"), picture(150, 170).to(card)
        rs.upscale(model, lq)
        before = gpu.used(card)
        for number in range(5):
            rs.upscale(model, lq, seed=number, color_fix="wavelet")
        assert gpu.used(card) - before < gpu.MIB
        weights_there = sum(tensor.nbytes for part in (model.unet, model.autoencoder) for tensor in part.state_dict().values())
        del model
        assert before - gpu.used(card) > 0.9 * weights_there

    @pytest.mark.parametrize("variant", ["builtin", "realsr_x4_s4"])
    @pytest.mark.parametrize("tiles", [1, 3])
    def test_a_batch_of_tiles_takes_what_is_estimated(self, built_in, published_model, card, variant, tiles):
        """Less what cuDNN likes to have for itself."""
        if variant == "builtin":
            model, tile = built_in("auto"), 256
        else:
            model, tile = standin.standin_model(published_model(variant).config).to(card, resolve_dtype("auto", card)), 128
        if gpu.used(card) and variant != "builtin" and card.type == "npu":
            pytest.skip("takes ten minutes where the processor computes")
        lq = picture(tile, tile, count=tiles).to(card)
        rs.upscale(model, lq[..., :64, :64], steps=2)
        estimate = tiles * model.bytes_per_tile(tile, tile)
        result = 2 * tiles * 3 * (tile * model.scale) ** 2 * 4
        with gpu.peak(card) as told:
            rs.upscale(model, lq, steps=2, tile=tile, tile_batch=tiles)
        assert 0.2 * estimate < told[0] < 1.2 * estimate + result

    @pytest.mark.parametrize("mib", [400, 60, 30])
    def test_tiles_shrink_to_it(self, built_in, card, caplog, mib):
        """The picture is there all the same, and the next one is none the worse."""
        model, lq = built_in("fp32"), picture(300, 280)
        expected = rs.upscale(model, lq)
        with gpu.only(mib, card), caplog.at_level(logging.WARNING, "resshift"):
            found = rs.upscale(model, lq)
        assert psnr(found, expected) > 50
        assert mib == 60 or ("Out of memory" in caplog.text) == (mib == 30)
        assert torch.equal(rs.upscale(model, lq), expected)

    def test_none_at_all_is_a_sentence(self, built_in, card):
        model, lq = built_in("fp32"), picture(300, 280)
        expected = rs.upscale(model, lq)
        with gpu.only(1, card), pytest.raises(rs.OutOfMemory, match="Out of memory"):
            rs.upscale(model, lq)
        assert torch.equal(rs.upscale(model, lq), expected)


class TestCommandLine:
    def test_a_folder(self, card, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        for number, size in enumerate([(96, 80), (40, 33), (260, 300)]):
            to_image(picture(*size, seed=number)[0], "RGB").save(tmp_path / "in" / f"{number}.png")
        words = ["upscale", str(tmp_path / "in"), "--seed", "1", "--json"]
        assert main([*words, "-o", str(tmp_path / "there"), "--device", str(card), "--dtype", "fp32"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(records) == 3 and not any(record["error"] for record in records)
        assert main([*words, "-o", str(tmp_path / "here"), "--device", "cpu", "--dtype", "fp32"]) == 0
        for there in (tmp_path / "there").iterdir():
            one, other = (read_picture(path).tensor() for path in (there, tmp_path / "here" / there.name))
            assert psnr(one, other) > 50

    def test_doctor_names_it(self, card, capsys):
        if card != resolve_device("auto"):
            pytest.skip("is not what is taken by itself")
        assert main(["doctor"]) == 0
        assert card.type in capsys.readouterr().out.lower()

    def test_saved_files_do_not_know_where_they_were_made(self, built_in, card, tmp_path):
        there, here = (
            rs.save_model(built_in("fp32", where), tmp_path / name / "m.safetensors").read_bytes()
            for name, where in (("there", card), ("here", "cpu"))
        )
        assert there == here


@pytest.fixture
def training(card, tmp_path):
    """training(output, model, *options) runs finetune.py on the device and gives the trained weights."""
    finetune = pytest.importorskip("training.finetune")
    if card.type not in ("cuda", "cpu"):
        pytest.skip("training was made for NVIDIA's and AMD's cards")
    data = make_pictures(tmp_path / "data")

    def run(output, model, *options, status=0):
        words = ("--device", card.type, "--precision", "auto", "--degradation", "mixed", *options)
        assert finetune.main(arguments(data, tmp_path / output, model, *words)) == status
        return weights(tmp_path / output / "last.safetensors") if status == 0 else None

    return run


class TestTraining:
    @pytest.mark.parametrize(
        "options",
        [
            ("--degradation", "realesrgan"),
            ("--degradation", "paper-b1"),
            ("--degradation", "everyday", "--spectrum", 0.2, "--adversarial", 0.004, "--loss", "l1"),
            ("--degradation", "bicubic", "--variety", "True", "--leaves-share", 0.3, "--frame-share", 0.3),
        ],
        ids=str,
    )
    def test_of_the_built_in_model(self, training, options):
        trained, before = training("out", "builtin", *options), weights("builtin")
        assert all(torch.isfinite(tensor).all() for tensor in trained.values())
        assert any(not torch.equal(trained[key], before[key]) for key in before)

    @pytest.mark.parametrize(
        "options",
        [(), ("--spectrum", 0.2), ("--optimizer", "adamw"), ("--precision", "fp16"), ("--rollout-share", 1)],
        ids=str,
    )
    def test_of_a_network_in_a_latent(self, training, tmp_path, options):
        training("out", rs.save_model(vq_model(), tmp_path / "vq.safetensors"), "--crop", 64, *options)
        model = rs.load_model(tmp_path / "out/last.safetensors")
        assert torch.isfinite(rs.upscale(model, picture(20, 20))).all()

    def test_goes_on_where_it_was(self, training, tmp_path, monkeypatch):
        """Bit for bit on a processor; a card's own sums may differ from run to run."""
        from training.trainer import Trainer

        file, step = save_tiny_model(tmp_path / "tiny.safetensors"), Trainer.step
        whole = training("whole", file)

        def interrupted(trainer, *batch):
            if trainer.position.iteration == 3:
                raise KeyboardInterrupt
            return step(trainer, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", interrupted)
            training("parts", file, status=130)
        parts = training("parts", file, "--resume", "auto")
        assert max((whole[key] - parts[key]).abs().max() for key in whole) < 1e-5

    def test_learns_what_the_processor_does(self, training, tmp_path):
        file = save_tiny_model(tmp_path / "tiny.safetensors")
        words = ("--precision", "fp32", "--degradation", "bicubic", "--iterations", 12)
        there, here = training("there", file, *words), training("here", file, *words, "--device", "cpu")
        before = weights(file)
        moved = sum((here[key] - before[key]).square().sum() for key in here).sqrt()
        apart = sum((here[key] - there[key]).square().sum() for key in here).sqrt()
        assert apart < 0.05 * moved

    def test_jpeg_is_the_processors(self, card, training):
        from training.jpeg import jpeg_blocks

        images, qualities = picture(64, 96, count=4), [30, 55, 75, 95]
        assert (jpeg_blocks(images.to(card), qualities).cpu() - jpeg_blocks(images, qualities)).abs().mean() < 0.1 / 255

    @pytest.mark.parametrize("name", ["distill", "train_estimator", "train_autoencoder"])
    def test_of_students_estimators_and_autoencoders(self, card, training, tmp_path, name):
        program = pytest.importorskip(f"training.{name}")
        data = make_pictures(tmp_path / "data")
        words = {
            "distill": ["--iterations", 2, "--batch-size", 2, "--crop", 64, "--validation-count", 1, "--validation-crop", 64],
            "train_estimator": ["--iterations", 2, "--batch-size", 2, "--crop", 64],
            "train_autoencoder": [
                "--iterations", 2, "--batch-size", 2, "--crop", 64, "--lpips", 0,
                "--ch", 32, "--ch-mult", 1, 1, 1, "--n-embed", 64,
            ],
        }[name]  # fmt: skip
        words = ["--data", data, "--output", tmp_path / "out", "--device", card.type, *words]
        assert program.main([str(word) for word in words]) == 0
        assert list((tmp_path / "out").glob("*.safetensors"))
