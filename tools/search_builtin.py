"""Small architectures for the built-in model, each trained with the same amount of computing: the table in docs/training.md.

    python tools/search_builtin.py --data PHOTOS --fonts FONTS --output OUT --seconds 480
    python tools/search_builtin.py --data PHOTOS --output OUT --table True              # the table of what lies in OUT

Every candidate gets the same processor time on one thread, in as many iterations as it does in it (its learning rate's cosine
fits), so that neither other programs nor idle cores favour one. Compared on the manifest's held-out pictures, which no
training sees; never on the pictures of the model card. Candidates differ from the reference in the words of their line; where
the chain runs in latents, half of the time trains their autoencoder.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import resshift_core as rs  # noqa: E402
from benchmarks.fidelity import enlarge, gain  # noqa: E402
from training import distributed, finetune  # noqa: E402
from training.data import Crops, CropSettings, Positions, collate, load_batches  # noqa: E402
from training.dataset import prepare_data  # noqa: E402
from training.degradation import bicubic, make_degradation  # noqa: E402
from training.metrics import luma, psnr  # noqa: E402
from training.program import exit_status  # noqa: E402
from training.scan import DataError, find_images, scan  # noqa: E402
from training.settings import SettingsError, parse, read_config  # noqa: E402
from training.train_autoencoder import AutoencoderSettings, AutoencoderTrainer  # noqa: E402
from training.validation import make_pairs  # noqa: E402

CONFIG = Path(__file__).resolve().parent.parent / "training" / "configs" / "builtin.json"
RECIPE = {
    "degradation": "everyday", "damaged_share": 0.5, "last_step_share": 0.4, "optimizer": "muon", "learning_rate": 2e-3,
    "warmup_share": 0.05, "batch_size": 16,
}  # fmt: skip
REFERENCE = {"trunk_blocks": 8, "model_channels": 32, "num_res_blocks": 0}
SMALL_VQGAN = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": [1, 1, 1], "z_channels": 8, "embed_dim": 8, "n_embed": 2048}
VQGAN_TRAINING = {"batch_size": 4, "crop": 160, "learning_rate": 1e-3, "lpips": 0.0, "adversarial": 0.0, "save_every": 10**9}
WARM_UP, TIMED = 16, 16  # updates before and while the speed is measured: every new size of a batch costs time once


@dataclass(frozen=True)
class Candidate:
    """What differs from CONFIG's model and RECIPE."""

    unet: dict
    model: dict
    training: dict
    vqgan: dict | None = None  # VQGANConfig's words: the chain runs in its latents, and half of the time trains it


def _candidate(unet=None, model=None, vqgan=None, **training) -> Candidate:
    if vqgan:
        width = vqgan["embed_dim"]
        unet = {"in_channels": width, "out_channels": width, **(unet or {})}
        model = {"space": "latent", "autoencoder": {"kind": "vqgan", **vqgan}, **(model or {})}
    return Candidate({**REFERENCE, **(unet or {})}, model or {}, training, vqgan)


CANDIDATES = {
    # size and shape of the network
    "64 ch, trunk 12, step 5": _candidate({"model_channels": 64, "trunk_blocks": 12, "num_res_blocks": 1}),
    "64 ch, trunk 4, step 3": _candidate({"model_channels": 64, "trunk_blocks": 4}),
    "48 ch, trunk 12, step 3": _candidate({"model_channels": 48, "trunk_blocks": 12}),
    "48 ch, trunk 6, step 3": _candidate({"model_channels": 48, "trunk_blocks": 6}),
    "32 ch, trunk 16, step 3": _candidate({"trunk_blocks": 16}),
    "32 ch, trunk 8, step 3": _candidate(),
    "32 ch, trunk 6, deeper level": _candidate({"trunk_blocks": 6, "channel_mult": [1, 2]}),
    "32 ch, no trunk, step 11": _candidate({"trunk_blocks": 0, "num_res_blocks": 4}),
    # the optimiser
    "rate 0.001": _candidate(learning_rate=1e-3),
    "rate 0.004": _candidate(learning_rate=4e-3),
    "AdamW, rate 0.0015": _candidate(optimizer="adamw", learning_rate=1.5e-3),
    # the chain
    "predict x0": _candidate(model={"predict": "x0"}),
    "T = 1": _candidate(model={"steps": 1, "default_steps": 1}),
    "T = 8": _candidate(model={"steps": 8, "default_steps": 8}),
    "kappa = 0.3": _candidate(model={"kappa": 0.3}),
    "kappa = 1": _candidate(model={"kappa": 1.0}),
    "x_t of eq. 2": _candidate(rollout_share=0.0),
    # latents instead of blocks of pixels
    "small VQGAN": _candidate(vqgan=SMALL_VQGAN),
    # the loss
    "MSE": _candidate(loss="mse"),
}


@dataclass(frozen=True)
class SearchSettings:
    """Where, how long, which."""

    data: Path  # the photos, with a MANIFEST.csv
    output: Path  # a folder per candidate
    fonts: Path | None = None
    seconds: float = 480.0  # of processor time for every candidate's training
    only: tuple[str, ...] = ()  # names of candidates
    together: int = 2  # candidates trained at the same time, each on one thread
    table: bool = False  # print the table of OUTPUT, with the time of an upscale measured now, one after another
    one: str | None = None  # what the tool runs itself as, for one candidate


def folder_of(settings: SearchSettings, name: str) -> Path:
    return settings.output / "".join(letter if letter.isalnum() else "_" for letter in name)


def write_config(settings: SearchSettings, name: str) -> Path:
    """The candidate as a configuration that training/finetune.py takes."""
    candidate, values = CANDIDATES[name], read_config(CONFIG)
    values["model"] = {**values["model"], **candidate.model, "unet": {**values["model"]["unet"], **candidate.unet}}
    values["training"] = {**values["training"], **RECIPE, **candidate.training}
    path = folder_of(settings, name) / "candidate.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path


def seconds_per_update(trainer, data) -> float:
    """Processor time of one update, data and degradation included; the trainer is spoilt by it."""
    numbers = itertools.count(10**9)
    for update in range(WARM_UP + TIMED):
        if update == WARM_UP:
            started = time.process_time()
        batch = [next(numbers) for _ in range(trainer.settings.batch_size)]
        trainer.step(batch, collate([data.crops[number] for number in batch]))
    return (time.process_time() - started) / TIMED


def train_vqgan(settings: SearchSettings, name: str, seconds: float) -> Path:
    """Train the candidate's autoencoder for that much processor time; its file."""
    architecture = {key: tuple(value) if isinstance(value, list) else value for key, value in CANDIDATES[name].vqgan.items()}
    wanted = AutoencoderSettings(
        data=settings.data, output=folder_of(settings, name) / "vqgan", device="cpu", **architecture, **VQGAN_TRAINING
    )
    trainer = AutoencoderTrainer(wanted, torch.device("cpu"))
    pictures = scan(find_images(settings.data, "train"), wanted.crop).used
    crops = Crops(pictures, CropSettings(wanted.crop), wanted.seed, wanted.cache_mib)
    started = time.process_time()
    for _, batch in load_batches(crops, Positions(0, wanted.batch_size, 0, 1), 0):
        trainer.step(batch["hr"] * 2 - 1)
        if time.process_time() - started > seconds:
            break
    trainer.save()
    return wanted.output / "autoencoder.safetensors"


def train_one(settings: SearchSettings, name: str) -> None:
    """Train one candidate and measure it; folder/result.json."""
    torch.set_num_threads(1)
    folder, seconds, autoencoder = folder_of(settings, name), settings.seconds, []
    if CANDIDATES[name].vqgan:
        seconds /= 2
        autoencoder = ["--autoencoder", train_vqgan(settings, name, seconds)]
    words = ["--config", write_config(settings, name), "--data", settings.data, "--output", folder, "--device", "cpu"]
    words += [*autoencoder, *(["--fonts", settings.fonts] if settings.fonts else [])]
    processes = distributed.start("cpu")
    wanted, start = finetune.prepare(parse([str(word) for word in words]), processes)
    data = prepare_data(wanted, start.model, processes)
    per_update = seconds_per_update(finetune.make_trainer(wanted, copy.deepcopy(start.model), processes), data)
    iterations = max(1, round(seconds / per_update))
    wanted = replace(wanted, iterations=iterations, validate_every=iterations, save_every=iterations)
    trainer = finetune.make_trainer(wanted, start.model, processes)
    finetune.train(wanted, start, trainer, data)
    result = {"name": name, "iterations": iterations, **measure(trainer.averaged_model(), settings.data)}
    (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(result, flush=True)


def measure(model: rs.ResShiftModel, photos: Path) -> dict:
    """Parameters, FLOPs of a picture of 512 x 512, and gains over bicubic interpolation on the held-out pictures."""
    found = {"parameters": sum(weight.numel() for part in (model.unet, model.autoencoder) for weight in part.parameters())}
    with FlopCounterMode(display=False) as counter:
        rs.upscale(model, torch.rand(1, 3, 128, 128), seed=0)
    found["flops_512"] = counter.get_total_flops() * 16
    pictures = scan(find_images(photos, "val"), 16).used
    for kind in ("bicubic", "paper-b1"):
        pairs = make_pairs(pictures, make_degradation(kind, model.scale, 0), model.scale, 512)
        found[kind] = sum(gain(model, pair.truth, pair.lq)[0] for pair in pairs) / len(pairs)
    if model.config.space == "latent":  # what the autoencoder makes of the truth itself
        found["reconstruction"] = sum(reconstruction_gain(model, pair) for pair in pairs) / len(pairs)
    return found


@torch.no_grad()
def reconstruction_gain(model: rs.ResShiftModel, pair) -> float:
    """Gain over bicubic interpolation of the clean small picture, in dB, of the autoencoder given the truth itself."""
    code = model.autoencoder.encode(pair.truth * 2 - 1)
    result = model.autoencoder.decode(code).float().add(1).div(2).clamp(0, 1)
    plain = enlarge(bicubic(pair.truth))
    return psnr(luma(result), luma(pair.truth)) - psnr(luma(plain), luma(pair.truth))


def seconds_per_picture(model: rs.ResShiftModel) -> float:
    """512 x 512 -> 2048 x 2048 on the threads that torch takes, the faster of two after a small one."""
    picture, times = torch.rand(1, 3, 512, 512), []
    rs.upscale(model, picture[..., :128, :128], seed=0)
    for _ in range(2):
        started = time.perf_counter()
        rs.upscale(model, picture, seed=0)
        times.append(time.perf_counter() - started)
    return min(times)


def table(settings: SearchSettings) -> str:
    """Markdown of every candidate that is done; run it on an idle machine."""
    rows = ["| | parameters | GFLOPs | 512 -> 2048 | iterations | clean | B.1 |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name in CANDIDATES:
        path = folder_of(settings, name) / "result.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = seconds_per_picture(rs.load_model(path.parent / "last.safetensors"))
        rows.append(
            f"| {name} | {found['parameters'] / 1e6:.2f} M | {found['flops_512'] / 1e9:.0f} | {seconds:.1f} s "
            f"| {found['iterations']} | {found['bicubic']:+.2f} | {found['paper-b1']:+.2f} |"
        )
        if "reconstruction" in found:
            rows[-1] += f" (its autoencoder, given the truth: {found['reconstruction']:+.2f})"
    return "\n".join(rows)


def run_one(settings: SearchSettings, name: str) -> bool:
    """`train_one` in a process of its own, with one thread; what it says goes to folder/log.txt. Whether it was done."""
    folder = folder_of(settings, name)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--data", settings.data, "--output", settings.output, "--seconds", settings.seconds, "--one", name]
    words += ["--fonts", settings.fonts] if settings.fonts else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        status = subprocess.run(
            [sys.executable, __file__, *map(str, words)], stdout=log, stderr=log, env=environment
        ).returncode
    print(f"{name}: " + (f"it ended with status {status}, see {folder / 'log.txt'}" if status else "done"), flush=True)
    return status == 0


def main() -> None:
    """The program."""
    settings = tyro.cli(SearchSettings, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    unknown = sorted({*settings.only, *filter(None, [settings.one])} - CANDIDATES.keys())
    if unknown:
        raise SettingsError(f"There is no candidate {', '.join(unknown)}. They are: {', '.join(CANDIDATES)}.")
    if settings.table:
        print(table(settings))
    elif settings.one:
        train_one(settings, settings.one)
    else:
        for split in ("train", "val"):
            if not find_images(settings.data, split):
                raise DataError(f"There is no picture of the split {split} in {settings.data}, which needs a MANIFEST.csv.")
        with ThreadPoolExecutor(settings.together) as pool:
            done = list(pool.map(lambda name: run_one(settings, name), settings.only or CANDIDATES))
        if not all(done):
            raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(exit_status(main))
