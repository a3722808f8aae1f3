"""Train a VQGAN from nothing: the latent space that a ResShift network of one's own can work in.

    python training/train_autoencoder.py --data PICTURES --output OUT                      # the published f4 configuration
    python training/train_autoencoder.py --data PICTURES --output OUT --ch 64 --ch-mult 1 2 4 8 --num-res-blocks 1 2 3 4 \\
        --z-channels 8 --embed-dim 8 --n-embed 4096                                        # the face one (f8)

Loss: absolute error + --lpips times LPIPS + codebook and commitment terms + a patch discriminator from
--adversarial-from on. Writes OUT/autoencoder.safetensors (for `load_model(autoencoder=)`, or the `model` part of a
configuration for finetune.py --config), OUT/state/ (--resume auto goes on exactly), OUT/log.csv and OUT/pictures/*.png.
Runs in one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.train_autoencoder` runs
    folder = Path(__file__).resolve().parent  # a portable Python has its library at sys.path[0], not this folder
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

import resshift_core as rs
from resshift_core.checkpoint_file import save_weights
from resshift_core.device import resolve_device, resolve_dtype
from resshift_core.limits import check_settings
from resshift_core.ranks import Rank
from training.data import Crops, CropSettings, Positions, default_workers, load_batches
from training.distributed import Processes
from training.interrupts import HALF_STEP, Interrupts, Stopped
from training.losses import DETAIL_WINDOW, Discriminator, make_lpips, relativistic
from training.metrics import psnr
from training.program import GOES_ON, exit_status
from training.report import Table, save_picture
from training.scan import find_images, scan
from training.settings import NOT_NEGATIVE, POSITIVE, SHARE, SettingsError, check_ranges, tell_changes, to_dict
from training.sole import alone_in
from training.state import first_mismatch, load_state, save_state, saved
from training.trainer import BAD_STEPS, NotFinite, load_moments, make_average
from training.upload import may_run_ahead

log = logging.getLogger("resshift.training")


@dataclass(frozen=True)
class AutoencoderSettings:
    """Architecture and training; the defaults are the published f4 autoencoder."""

    data: Path  # folder of pictures, searched through
    output: Path
    # Architecture
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192
    # Training
    iterations: int = 100000
    batch_size: int = 8
    crop: int = 256
    learning_rate: float = 4.5e-5
    ema: float = 0.999
    commitment: float = 0.25  # of the encoder to its code, beside the codebook's own term
    lpips: float = 1.0  # 0 = without (its weights are fetched once)
    adversarial: float = 0.5
    adversarial_from: int = 20000  # iteration
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    resume: Literal["never", "auto"] = "never"
    seed: int = 0
    save_every: int = 1000
    workers: int | None = None
    cache_mib: int = 4096

    @property
    def architecture(self) -> rs.VQGANConfig:
        return rs.VQGANConfig(self.ch, self.ch_mult, self.num_res_blocks, self.z_channels, self.embed_dim, self.n_embed)


def codebook_loss(codes: torch.Tensor, z: torch.Tensor, commitment: float) -> torch.Tensor:
    """||sg(z) - e||^2 + commitment ||z - sg(e)||^2 (van den Oord et al., 2017). Both (B, C, h, w)."""
    return F.mse_loss(codes, z.detach()) + commitment * F.mse_loss(z, codes.detach())


class AutoencoderTrainer:
    """Weights, optimisers and average of one run."""

    def __init__(self, settings: AutoencoderSettings, device: torch.device):
        torch.manual_seed(settings.seed)
        self.settings, self.device, self.iteration, self.skipped_in_row = settings, device, 0, 0
        self.net = rs.VQGAN(settings.architecture).to(device)
        self.average = make_average(self.net, settings.ema)
        self.judge = Discriminator().to(device)
        betas = (0.5, 0.9)
        self.optimizer = torch.optim.Adam(self.net.parameters(), settings.learning_rate, betas=betas)
        self.judge_optimizer = torch.optim.Adam(self.judge.parameters(), settings.learning_rate, betas=betas)
        self.lpips = make_lpips("vgg", device) if settings.lpips else None
        self.precision = resolve_dtype(settings.precision, device)
        if self.precision == torch.float16:
            self.precision = torch.float32  # fp16 wants a scaler, which is not here

    def parts(self) -> dict:
        return {
            "net": self.net, "average": self.average, "judge": self.judge,
            "optimizer": self.optimizer, "judge_optimizer": self.judge_optimizer,
        }  # fmt: skip

    def reconstruct(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(reconstruction in [-1, 1], codebook loss)."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            z = self.net.encode(image)
            with torch.autocast(self.device.type, enabled=False):
                z = z.float()
                codes = self.net.quantize.embedding(self.net.quantize.codes(z)).permute(0, 3, 1, 2)
                book = codebook_loss(codes, z, self.settings.commitment)
                straight = z + (codes - z).detach()
            return self.net.decode(straight, quantize=False).float(), book

    def step(self, image: torch.Tensor) -> dict[str, float]:
        """One update from (B, 3, H, W) in [-1, 1]; a loss that is not finite changes nothing.

        Raises:
            NotFinite: the third such step in a row.
        """
        settings = self.settings
        result, book = self.reconstruct(image)
        parts = {"l1": F.l1_loss(result, image), "codebook": book}
        loss = parts["l1"] + book
        if self.lpips is not None:
            parts["lpips"] = self.lpips(result, image).mean()
            loss = loss + settings.lpips * parts["lpips"]
        adversarial = settings.adversarial if self.iteration >= settings.adversarial_from else 0.0
        if adversarial:
            self.judge.advance()
            self.judge.requires_grad_(False)  # it learns below
            with torch.no_grad():
                truth = self.judge(image)
            loss = loss + adversarial * relativistic(self.judge(result), truth)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge.requires_grad_(True)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        sound = bool(torch.isfinite(norm) & torch.isfinite(loss))
        if sound:
            self.optimizer.step()
            self.average.update_parameters(self.net)
            self.skipped_in_row = 0
        else:
            self._skip()
        if adversarial and sound:
            parts["discriminator"] = relativistic(*self.judge(torch.cat([image, result.detach()])).chunk(2))
            self.judge_optimizer.zero_grad(set_to_none=True)
            parts["discriminator"].backward()
            self.judge_optimizer.step()
        self.iteration += 1
        return {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in parts.items()}}

    def _skip(self) -> None:
        log.warning("The loss of iteration %d is not finite; the step is skipped.", self.iteration)
        self.skipped_in_row += 1
        if self.skipped_in_row == BAD_STEPS:
            raise NotFinite(
                f"The loss was not finite in {BAD_STEPS} steps in a row, the last at iteration {self.iteration}. Lower "
                f"--learning-rate (now {self.settings.learning_rate:g}) or use --precision fp32; then start again with --resume auto."
            )

    def save(self) -> None:
        """State, and OUTPUT/autoencoder.safetensors with the averaged weights."""
        output = self.settings.output
        state = {name: part.state_dict() for name, part in self.parts().items()}
        settings = json.dumps(to_dict(self.settings))
        save_state(output / "state", self.iteration, {**state, "iteration": self.iteration, "settings": settings})
        notes = {
            "format": "pt",
            "steps_trained": str(self.iteration),
            "training": settings,
        }
        save_weights(self.average.module.state_dict(), notes, output / "autoencoder.safetensors")

    def resume(self) -> bool:
        """Take over the newest state, with the settings given now; False where there is none.

        Raises:
            SettingsError: it is of another autoencoder.
        """
        state = load_state(self.settings.output / "state")
        if state is None:
            return False
        if not set(self.parts()) <= set(state):
            raise SettingsError(
                f"The state in {self.settings.output / 'state'} is of another program. Choose another --output."
            )
        if "settings" in state:  # a run may be older than this note
            tell_changes(json.loads(state["settings"]), self.settings)
        try:
            for name, part in self.parts().items():
                if isinstance(part, torch.optim.Optimizer):
                    load_moments(part, state[name])
                else:
                    part.load_state_dict(state[name])
        except RuntimeError as error:
            raise SettingsError(
                f"The state in {self.settings.output / 'state'} is of another autoencoder than this run's ({first_mismatch(error)}). Give "
                "the settings that it was started with, or choose another --output."
            ) from error
        self.iteration = state["iteration"]
        return True

    @torch.no_grad()
    def show(self, image: torch.Tensor) -> float:
        """Write input and reconstruction side by side; PSNR in dB."""
        result = self.average.module.decode(self.average.module.encode(image)).float().clamp(-1, 1)
        both = torch.cat([image, result], 3).add(1).div(2)
        save_picture(torch.cat(list(both[:4]), 1), self.settings.output / "pictures" / f"{self.iteration:09d}.png")
        return psnr(result.add(1).div(2), image.add(1).div(2))


def loop(trainer: AutoencoderTrainer, crops: Crops, workers: int) -> None:
    """Until the last iteration; Ctrl-C and SIGTERM save after the step that they fall into, and stop.

    Raises:
        Stopped: by one of them. NotFinite: see `AutoencoderTrainer.step`.
    """
    with Interrupts(together=False) as interrupts:
        try:
            _iterate(trainer, crops, workers, interrupts)
        except KeyboardInterrupt:
            if interrupts.half:
                print(HALF_STEP)
            else:
                trainer.save()
                print(f"Stopped at iteration {trainer.iteration}; --resume auto goes on from there.")
            raise Stopped(interrupts.status) from None


def _iterate(trainer: AutoencoderTrainer, crops: Crops, workers: int, interrupts: Interrupts) -> None:
    settings, device = trainer.settings, trainer.device
    table = Table(settings.output / "log.csv", ["loss", "l1", "codebook", "lpips", "discriminator", "psnr"], trainer.iteration)
    positions = Positions(trainer.iteration, settings.batch_size, 0, 1)
    batches = interrupts.passing(load_batches(crops, positions, workers, pin=device.type == "cuda"))
    with closing(table), tqdm(total=settings.iterations, initial=trainer.iteration, desc="training", disable=None) as bar:
        for _, batch in batches:
            if trainer.iteration >= settings.iterations:
                trainer.save()  # a run may have been killed between its last state and its file
                break
            image = batch["hr"].to(device, non_blocking=may_run_ahead(device)) * 2 - 1
            with interrupts.step():
                values = trainer.step(image)
            bar.update()
            bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
            done = trainer.iteration >= settings.iterations
            if trainer.iteration % settings.save_every == 0 or done:
                values["psnr"] = trainer.show(image)
                trainer.save()
                bar.write(f"saved at {trainer.iteration}: loss {values['loss']:.4f}, PSNR {values['psnr']:.2f} dB")
            if trainer.iteration % 10 == 0 or "psnr" in values:
                table.add(trainer.iteration, values)
            if interrupts.asked and not done:
                raise KeyboardInterrupt


def run(settings: AutoencoderSettings) -> None:
    """Everything from the pictures to the file.

    Raises:
        SettingsError, DataError, OfflineError: told as sentences.
    """
    sizes = ("iterations", "batch_size", "save_every", "n_embed", "ch", "z_channels", "embed_dim", "crop", "learning_rate")
    check_ranges(settings, sizes, POSITIVE)
    check_ranges(settings, ("lpips", "commitment", "adversarial", "adversarial_from", "cache_mib"), NOT_NEGATIVE)
    check_ranges(settings, ("ema",), SHARE)
    if not 0 <= settings.seed < 2**63 or (settings.workers or 0) < 0:
        raise SettingsError("--seed and --workers must not be negative, and --seed is below 2**63.")
    if Rank.from_environment().count > 1:
        raise SettingsError("train_autoencoder.py runs in one process; start it without torchrun.")
    try:
        check_settings(settings.architecture)
    except ValueError as error:
        raise SettingsError(f"There is no such autoencoder: {error}.") from error
    factor = settings.architecture.factor
    if settings.crop % factor:
        raise SettingsError(f"--crop is {settings.crop}; it must be a multiple of {factor}, the pixels of a latent position.")
    if settings.adversarial and settings.crop < DETAIL_WINDOW:
        raise SettingsError(f"--crop is {settings.crop}; --adversarial needs {DETAIL_WINDOW} pixels at least.")
    if settings.resume != "auto" and saved(settings.output / "state"):
        raise SettingsError(f"{settings.output} holds a run already. Add --resume auto, or choose another --output.")
    device = resolve_device(settings.device)
    with alone_in(settings.output, Processes(0, 1, device)):
        train(settings, device)


def train(settings: AutoencoderSettings, device: torch.device) -> None:
    """From the pictures to the file, with settings that have been checked."""
    found = scan(
        find_images(settings.data, "train", without=settings.output), settings.crop, settings.output / "scan.json", quiet=False
    )
    print(found.report())
    trainer = AutoencoderTrainer(settings, device)
    if settings.resume == "auto" and trainer.resume():
        print(f"Going on from iteration {trainer.iteration}.")
    crops = Crops(found.used, CropSettings(settings.crop), settings.seed, settings.cache_mib)
    loop(trainer, crops, default_workers(device, 1) if settings.workers is None else settings.workers)


def main(argv=None) -> int:
    """The program."""
    return exit_status(
        lambda: run(tyro.cli(AutoencoderSettings, args=argv, description=__doc__, config=(tyro.conf.FlagConversionOff,))),
        GOES_ON,
    )


if __name__ == "__main__":
    sys.exit(main())
