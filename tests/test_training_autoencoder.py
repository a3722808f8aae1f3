"""train_autoencoder.py: its losses, exact resume, and a file that the engine takes for an autoencoder."""

from __future__ import annotations

import signal

import pytest
import torch

from resshift_core.checkpoint import load_autoencoder, read_file
from resshift_core.vqgan import VQGAN
from training import train_autoencoder
from training.report import Table
from training.scan import find_images, read_rgb
from training.state import save_state
from training.train_autoencoder import codebook_loss

from .training_run import make_pictures

pytestmark = pytest.mark.usefixtures("one_thread")


def words(data, output, *more) -> list[str]:
    small = ("--ch", 32, "--ch-mult", 1, 2, "--num-res-blocks", 1, 1, "--n-embed", 32, "--crop", 32, "--batch-size", 2)
    run = ("--data", data, "--output", output, "--device", "cpu", "--lpips", 0, "--workers", 0, "--precision", "fp32")
    return [str(word) for word in (*run, *small, "--learning-rate", 1e-3, "--save-every", 5, *more)]


def test_gradients_of_the_codebook_loss():
    codes, z = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    codebook_loss(codes, z, 0.25).backward()
    torch.testing.assert_close(codes.grad, 2 * (codes - z).detach() / codes.numel())
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z - codes).detach() / z.numel())


def test_a_trained_autoencoder_loads_and_resumes_exactly(tmp_path):
    data = make_pictures(tmp_path / "pictures", 3, 48)
    late = ("--iterations", 14, "--adversarial-from", 8)
    assert train_autoencoder.main(words(data, tmp_path / "whole", *late)) == 0
    assert train_autoencoder.main(words(data, tmp_path / "parts", "--iterations", 10, "--adversarial-from", 8)) == 0
    assert train_autoencoder.main(words(data, tmp_path / "parts", *late)) == 2  # holds a run already
    assert train_autoencoder.main(words(data, tmp_path / "parts", *late, "--resume", "auto")) == 0
    whole, _ = read_file(tmp_path / "whole" / "autoencoder.safetensors")
    parts, _ = read_file(tmp_path / "parts" / "autoencoder.safetensors")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    config, state = load_autoencoder(tmp_path / "whole" / "autoencoder.safetensors")
    assert (config.ch, config.ch_mult, config.n_embed) == (32, (1, 2), 32) and state
    assert list((tmp_path / "whole" / "pictures").glob("*.png"))


def test_a_resumed_run_takes_the_settings_given_now(tmp_path, monkeypatch, caplog):
    """A lower rate is what the sentence about losses that are not finite advises."""
    data, seen = make_pictures(tmp_path / "pictures", 3, 48), []
    output = tmp_path / "run"
    assert train_autoencoder.main(words(data, output, "--iterations", 5, "--adversarial-from", 0)) == 0
    step = train_autoencoder.AutoencoderTrainer.step

    def noted(trainer, image):
        seen.extend(group["lr"] for part in (trainer.optimizer, trainer.judge_optimizer) for group in part.param_groups)
        assert trainer.optimizer.state and trainer.judge_optimizer.state  # the moments go on
        return step(trainer, image)

    monkeypatch.setattr(train_autoencoder.AutoencoderTrainer, "step", noted)
    more = ("--iterations", 7, "--adversarial-from", 0, "--resume", "auto", "--learning-rate", 1e-5)
    assert train_autoencoder.main(words(data, output, *more)) == 0
    assert seen == [1e-5] * 4
    assert "iterations was 5, is 7" in caplog.text and "learning_rate was 0.001, is 1e-05" in caplog.text
    assert "ch_mult" not in caplog.text and "resume" not in caplog.text


@pytest.mark.parametrize(
    "word", [("--commitment", -1), ("--adversarial", "nan"), ("--adversarial-from", -5), ("--cache-mib", -5)]
)
def test_weights_that_are_none_are_said(tmp_path, capsys, word):
    data = make_pictures(tmp_path / "pictures", 2, 48)
    assert train_autoencoder.main(words(data, tmp_path / "out", *word)) == 2
    assert f"{word[0]} is" in (said := capsys.readouterr().err) and "must be 0 or a number above it" in said


def test_every_psnr_is_in_the_log(tmp_path):
    data = make_pictures(tmp_path / "pictures", 2, 48)
    assert train_autoencoder.main(words(data, tmp_path / "run", "--iterations", 4, "--save-every", 3, "--adversarial", 0)) == 0
    rows = Table.read(tmp_path / "run" / "log.csv")
    assert [(row["iteration"], row["psnr"] > 0) for row in rows] == [(3, True), (4, True)]


def test_a_state_of_another_program_is_a_sentence(tmp_path, capsys):
    data = make_pictures(tmp_path / "pictures", 2, 48)
    save_state(tmp_path / "run" / "state", 1, {"trainer": {}, "settings": "{}"})
    assert train_autoencoder.main(words(data, tmp_path / "run", "--resume", "auto")) == 2
    assert "is of another program. Choose another --output" in capsys.readouterr().err


def test_the_file_does_not_say_where_the_pictures_lay(tmp_path):
    data = make_pictures(tmp_path / "pictures", 2, 48)
    assert train_autoencoder.main(words(data, tmp_path / "run", "--iterations", 1, "--adversarial", 0)) == 0
    _, notes = read_file(tmp_path / "run" / "autoencoder.safetensors")
    assert '"learning_rate": 0.001' in notes["training"] and str(tmp_path) not in str(notes)


@pytest.mark.parametrize(("found", "wanted"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_there_is_no_half_precision_without_a_scaler(tmp_path, monkeypatch, found, wanted):
    monkeypatch.setattr(train_autoencoder, "resolve_dtype", lambda name, device: {"auto": found}[name])
    settings = train_autoencoder.AutoencoderSettings(
        data=tmp_path, output=tmp_path, ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=32, lpips=0.0
    )
    assert train_autoencoder.AutoencoderTrainer(settings, torch.device("cpu")).precision == wanted


def test_training_makes_reconstructions_better(tmp_path):
    """Of the same pictures, by what is written."""
    data, errors = make_pictures(tmp_path / "pictures", 3, 48), []
    images = torch.stack([read_rgb(path) for path in find_images(data)]) / 127.5 - 1
    for iterations in (1, 60):
        output = tmp_path / f"run{iterations}"
        assert train_autoencoder.main(words(data, output, "--iterations", iterations, "--adversarial", 0)) == 0
        config, state = load_autoencoder(output / "autoencoder.safetensors")
        autoencoder = VQGAN(config).requires_grad_(False)
        autoencoder.load_state_dict(state)
        errors.append(float((autoencoder.decode(autoencoder.encode(images)) - images).abs().mean()))
    assert errors[1] < 0.85 * errors[0]


def test_a_step_that_is_not_finite_changes_no_weight(tmp_path):
    """Of the discriminator neither: once it is not finite, it makes every later step so."""
    settings = train_autoencoder.AutoencoderSettings(
        data=tmp_path, output=tmp_path, ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=32, crop=32, lpips=0.0,
        adversarial=0.1, adversarial_from=0, precision="fp32",
    )  # fmt: skip
    trainer = train_autoencoder.AutoencoderTrainer(settings, torch.device("cpu"))
    before = [weight.clone() for part in (trainer.net, trainer.judge) for weight in part.parameters()]
    trainer.step(torch.full((2, 3, 32, 32), torch.nan))
    after = [weight for part in (trainer.net, trainer.judge) for weight in part.parameters()]
    assert all(map(torch.equal, before, after))
    trainer.step(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert not any(map(torch.equal, before, after[:1])) and all(bool(torch.isfinite(weight).all()) for weight in after)
    shown = trainer.show(picture := torch.rand(2, 3, 32, 32) * 2 - 1)
    trainer.net.decoder.conv_out.weight.data.zero_()
    assert trainer.show(picture) == shown  # by the average
    for share in (torch.nan, torch.nan, 1, torch.nan, torch.nan):  # never three in a row
        trainer.step(torch.rand(2, 3, 32, 32) * share)


def test_a_signal_saves_and_stops(tmp_path, monkeypatch, capsys):
    data = make_pictures(tmp_path / "pictures", 3, 48)
    assert train_autoencoder.main(words(data, tmp_path / "whole", "--iterations", 8)) == 0
    step = train_autoencoder.AutoencoderTrainer.step

    def killed(trainer, image):
        if trainer.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, image)

    monkeypatch.setattr(train_autoencoder.AutoencoderTrainer, "step", killed)
    assert train_autoencoder.main(words(data, tmp_path / "parts", "--iterations", 8)) == 143
    assert "Stopped at iteration 4" in capsys.readouterr().out
    monkeypatch.undo()
    assert train_autoencoder.main(words(data, tmp_path / "parts", "--iterations", 8, "--resume", "auto")) == 0
    whole, parts = (read_file(tmp_path / name / "autoencoder.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_three_bad_steps_in_a_row_stop_the_run(tmp_path, monkeypatch, capsys):
    data = make_pictures(tmp_path / "pictures", 3, 48)
    monkeypatch.setattr(train_autoencoder, "codebook_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    assert train_autoencoder.main(words(data, tmp_path / "run", "--iterations", 50)) == 1
    assert "not finite in 3 steps in a row, the last at iteration 2" in capsys.readouterr().err


def test_levels_must_match(tmp_path, capsys):
    data = make_pictures(tmp_path / "pictures", 1, 48)
    assert train_autoencoder.main(words(data, tmp_path / "run", "--ch-mult", 1, 2, 4)) == 2
    assert "ch_mult and num_res_blocks need one number per level; they have 3 and 2" in capsys.readouterr().err
    assert train_autoencoder.main(words(data, tmp_path / "run", "--num-res-blocks", 1, 1, 1, "--iterations", 1)) == 2
    assert "they have 2 and 3" in capsys.readouterr().err
    assert train_autoencoder.main(words(data, tmp_path / "run", "--crop", 47)) == 2
    assert "--crop is 47; it must be a multiple of 2" in capsys.readouterr().err


def test_the_judge_learns_in_its_own_step_alone(tmp_path):
    """And truth and result are judged by one network: its spectral norms stay as they are between the looks of a step."""
    settings = train_autoencoder.AutoencoderSettings(
        data=tmp_path, output=tmp_path, ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=32, lpips=0.0, adversarial_from=0
    )
    trainer = train_autoencoder.AutoencoderTrainer(settings, torch.device("cpu"))
    seen, real = [], trainer.judge.forward

    def forward(images):
        seen.append({name: value.clone() for name, value in trainer.judge.named_buffers()})
        assert all(parameter.grad is None for parameter in trainer.judge.parameters())
        return real(images)

    trainer.judge.forward = forward
    trainer.step(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert len(seen) == 3 and seen[0] and all(torch.equal(seen[0][name], look[name]) for look in seen for name in seen[0])
