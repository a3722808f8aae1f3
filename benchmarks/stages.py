"""What one tile costs, stage by stage, and how near each stage comes to what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import resshift_core as rs
from resshift_core.heap import kept_memory
from resshift_core.tiles import Axis

from . import timing

IN_ITS_FORMAT = ("encode", "decode", "trunk", "network, one step")  # the others compute in float32


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    tflop: float
    peak_share: float  # of the machine's measured product of matrices in the same number format
    bandwidth_share: float  # of its measured copy, for the bytes of all layers' weights, inputs and outputs
    peak_mib: float | None
    operations: int  # of torch, views apart


def stages_of(model: rs.ResShiftModel, side: int) -> dict[str, tuple[torch.nn.Module | None, Callable]]:
    """{stage: (module, run)} for a tile of side x side low-resolution pixels."""
    config, device = model.config, model.device
    lq = torch.rand(1, 3, side, side, device=device) * 2 - 1
    image = torch.rand(1, 3, side * config.scale, side * config.scale, device=device) * 2 - 1
    latent = model.autoencoder.encode(image).float()
    told = model.unet.degradation(lq) if config.unet.degradation_channels else None
    condition = model.unet.condition(lq, degradation=told)
    constants = model.constants(model.schedule)[-1]
    found: dict[str, tuple[torch.nn.Module | None, Callable]] = {}
    if list(model.autoencoder.parameters()):
        quantizer = model.autoencoder.quantize
        found["encode"] = (model.autoencoder, lambda: model.autoencoder.encode(image))
        found["nearest codes"] = (quantizer, lambda: quantizer(latent))
        found["decode"] = (model.autoencoder, lambda: model.autoencoder.decode(latent, quantize=False))
    if told is not None:
        estimator, picture = model.unet.degradation, lq[0] / 2 + 0.5
        found["estimate, once a picture"] = (estimator, lambda: estimator.of_picture(picture))
    if config.unet.trunk_blocks:
        found["trunk"] = (model.unet.trunk, lambda: model.unet.condition(lq, degradation=told))
    found["network, one step"] = (model.unet, lambda: model.unet(latent, None, condition=condition, constants=constants))
    found["blend"] = (None, _blend(side, config.scale, device))
    return found


def _blend(side: int, scale: int, device) -> Callable:
    overlap = side // 8
    axis = Axis(2 * side - overlap, side, (0, side - overlap), overlap)
    weights, out = axis.weights(0, scale).to(device), torch.zeros(3, side * scale, side * scale, device=device)
    tile = torch.rand_like(out)
    return lambda: out.add_(tile * weights[:, None] * weights)


@torch.inference_mode()
def measure(model: rs.ResShiftModel, side: int, rounds: int, peaks: dict[torch.dtype, float], copy: float) -> list[Stage]:
    """All stages, in turns. peaks: FLOP/s of matrix products by dtype; copy: bytes per second."""
    found = stages_of(model, side)
    with kept_memory(model.device):
        times = timing.interleaved({name: run for name, (_, run) in found.items()}, rounds, model.device)
    rows = []
    for name, (module, run) in found.items():
        work = timing.flops(run)
        dtype = model.dtype if name in IN_ITS_FORMAT else torch.float32
        moved = timing.bytes_touched(module, run) if module is not None else 4 * 3 * (side * model.scale) ** 2 * 4
        rows.append(
            Stage(
                name,
                times[name],
                work / 1e12,
                work / times[name] / peaks[dtype],
                moved / times[name] / copy,
                timing.peak_mib(run, model.device),
                timing.operations(run),
            )  # fmt: skip
        )
    return rows
