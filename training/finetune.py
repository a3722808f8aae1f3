"""Train or fine-tune a ResShift model.

    python training/finetune.py --data DIR --output DIR                      # fine-tune the built-in model
    python training/finetune.py --data DIR --output DIR --config training/configs/builtin.json   # train from nothing

Writes OUTPUT/last.safetensors (EMA weights, ready for `resshift_core.load_model`) and OUTPUT/state/ (what resuming
needs: `--resume auto`). Crops depend on (seed, images seen) alone, so a resumed run sees what the unbroken one would have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python training/finetune.py` from anywhere

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import resshift_core as rs
from resshift_core.unet import ResBlock
from training.data import CropConfig, CropSource, find_images
from training.degradation import mixed


@dataclass(frozen=True)
class TrainConfig:
    """Everything that fixes a run but the data and the model."""

    iterations: int = 4000
    batch_size: int = 16
    crop: int = 160  # pixels of the high-resolution crop
    learning_rate: float = 1e-3
    final_rate: float = 0.01  # of learning_rate, at the end of the cosine
    warmup: int = 50
    ema: float = 0.999  # reached as (1 + n) / (10 + n) grows
    clip: float = 1.0  # gradient norm
    damaged_share: float = 0.3  # of crops degraded by Appendix B.1; the rest is plain bicubic
    last_step_share: float = 0.5  # of samples trained at t = T, where the picture is made; the rest is uniform in t
    drawn_share: float = 0.08  # of crops that are rendered text or line art
    seed: int = 0
    save_every: int = 200


def new_model(path: Path) -> rs.ResShiftModel:
    """A model of the configuration in a JSON file, with every residual branch and the output starting at zero."""
    model = rs.ResShiftModel(rs.ModelConfig.from_dict(json.loads(path.read_text(encoding="utf-8"))["model"]))
    for module in model.unet.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.out_layers[3].weight)
    nn.init.zeros_(model.unet.out[2].weight)
    nn.init.zeros_(model.unet.out[2].bias)
    return model


class Trainer:
    """One run: model, optimiser, EMA and position in the data."""

    def __init__(self, model: rs.ResShiftModel, config: TrainConfig, source: CropSource, output: Path, device: str):
        self.model, self.config, self.source, self.output = model, config, source, output
        self.device = torch.device(device)
        model.to(self.device, torch.float32)
        self.net = model.unet.train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0)
        self.ema = {key: value.clone() for key, value in self.net.state_dict().items()}
        schedule = model.schedule
        self.eta = torch.tensor(schedule.eta, dtype=torch.float32)
        space = model.config.space
        self.input_scale = torch.tensor([schedule.input_scale(t, space) for t in range(1, schedule.steps + 1)])
        self.iteration = 0

    def learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.iteration + 1) / config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.iteration / config.iterations)))
        return config.learning_rate * warm * (config.final_rate + (1 - config.final_rate) * cosine)

    def batch(self):
        """(lq in [-1, 1], x0, y0, t counted from 0, noise) for this iteration, from (seed, images seen)."""
        config = self.config
        first = self.iteration * config.batch_size
        hr = self.source.batch(first, config.batch_size)
        lq = mixed(hr, config.seed, first, config.damaged_share, self.model.scale) * 2 - 1
        up = F.interpolate(lq, scale_factor=self.model.scale, mode="bicubic", align_corners=False)
        encode = self.model.autoencoder.encode
        x0, y0 = encode(hr * 2 - 1), encode(up)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + first)
        last = self.model.schedule.steps - 1
        t = torch.randint(0, last + 1, (config.batch_size,), generator=generator)
        t[torch.rand(config.batch_size, generator=generator) < config.last_step_share] = last
        noise = torch.randn(x0.shape, generator=generator)
        return lq, x0, y0, t, noise

    def loss(self, lq, x0, y0, t, noise):
        """Mean absolute error of the predicted x0, (eq. 8 with w_t = 1 and L1 in place of L2)."""
        eta = self.eta[t].view(-1, 1, 1, 1)
        x_t = x0 + eta * (y0 - x0) + self.model.schedule.kappa * eta.sqrt() * noise  # eq. 2
        x = (x_t * self.input_scale[t].view(-1, 1, 1, 1)).to(self.device, memory_format=torch.channels_last)
        lq = lq.to(self.device, memory_format=torch.channels_last)
        target = (x0 - y0 if self.model.config.predict == "residual" else x0).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.net(x, t.to(self.device), lq)
        return F.l1_loss(out.float(), target)

    def step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = self.loss(*self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()
        self.iteration += 1
        decay = min(self.config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for key, value in self.net.state_dict().items():
                self.ema[key].lerp_(value, 1 - decay)
        return loss.item()

    def export(self) -> rs.ResShiftModel:
        """The model with its EMA weights, on the CPU."""
        model = rs.ResShiftModel(self.model.config, self.model.metadata)
        model.unet.load_state_dict(self.ema)
        model.autoencoder.load_state_dict(self.model.autoencoder.state_dict())
        return model

    def save(self) -> None:
        state = self.output / "state"
        state.mkdir(parents=True, exist_ok=True)
        part = state / "state.pt.part"
        torch.save(
            {"net": self.net.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict(),
             "iteration": self.iteration, "config": asdict(self.config)}, part,
        )  # fmt: skip
        os.replace(part, state / "state.pt")
        notes = {"steps_trained": str(self.iteration), "training": json.dumps(asdict(self.config))}
        rs.save_model(self.export(), self.output / "last.safetensors", notes)

    def resume(self) -> bool:
        path = self.output / "state" / "state.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.ema = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        return True

    def run(self, report=print) -> None:
        started, losses = time.time(), []
        while self.iteration < self.config.iterations:
            losses.append(self.step())
            if self.iteration % 50 == 0:
                pace = (time.time() - started) / len(losses)
                report(
                    f"{self.iteration} loss {np.mean(losses[-50:]):.5f} lr {self.learning_rate():.2e} {pace:.3f} s/iteration"
                )
            if self.iteration % self.config.save_every == 0:
                self.save()
        self.save()


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures; a MANIFEST.csv's split 'train' is used")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="builtin", help="what to start from")
    parser.add_argument("--config", type=Path, help="JSON with 'model' and 'training': train from nothing")
    parser.add_argument("--fonts", type=Path, help="folder of .ttf files for rendered text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", choices=["auto", "never"], default="auto")
    for setting in fields(TrainConfig):
        kind = int if setting.type == "int" else float
        parser.add_argument("--" + setting.name.replace("_", "-"), type=kind, default=None)
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    config = TrainConfig(**json.loads(args.config.read_text(encoding="utf-8"))["training"]) if args.config else TrainConfig()
    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if getattr(args, f.name) is not None}
    config = replace(config, **given)
    torch.manual_seed(config.seed)
    model = new_model(args.config) if args.config else rs.load_model(args.model, device="cpu", dtype="fp32")
    fonts = sorted(str(path) for path in args.fonts.rglob("*.ttf")) if args.fonts else None
    crops = CropConfig(size=config.crop, drawn_share=config.drawn_share)
    source = CropSource(find_images(args.data, "train"), crops, config.seed, fonts)
    trainer = Trainer(model, config, source, args.output, args.device)
    if args.resume == "auto" and trainer.resume():
        print(f"resumed at iteration {trainer.iteration}", flush=True)
    trainer.run(lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
