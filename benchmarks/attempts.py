"""What was tried to make it faster, each against doing without, in turns on one machine.

    python -m benchmarks.attempts [--rounds 5] [--compile] [--only WORD ...]

What was predicted stands in the table, from facts of the method and the machine's measured rates; what was measured beside it.
--compile adds torch.compile, which needs a C++ compiler and minutes.
"""

from __future__ import annotations

import argparse
import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F

import resshift_core as rs
from resshift_core import matmul, noise, swin, tile_runs, vqgan, winograd
from resshift_core.device import resolve_device
from resshift_core.resize import bicubic
from resshift_core.unet import ResBlock

from . import plain, timing
from .__main__ import published, run_of
from .arguments import positive


@dataclass(frozen=True)
class Attempt:
    """Two runs that give the same picture, or nearly."""

    name: str
    predicted: str  # how many times as fast, and why
    kept: str
    without: Callable
    with_it: Callable


class Tile:
    """Inputs of one tile, and the stages that an attempt may change."""

    def __init__(self, model: rs.ResShiftModel, side: int, count: int = 1):
        scale, device = model.scale, model.device
        generator = torch.Generator().manual_seed(0)
        self.model = model
        self.lq = torch.rand(count, 3, side, side, generator=generator).to(device) * 2 - 1
        self.latent = model.autoencoder.encode(torch.rand(count, 3, side * scale, side * scale).to(device) * 2 - 1).float()
        self.condition = model.unet.condition(self.lq)
        self.t = torch.full((count,), float(model.schedule.tau[-1]), device=device)
        self.constants = model.constants(model.schedule)[-1]

    def step(self, unet=None):
        unet = self.model.unet if unet is None else unet
        return unet(self.latent, None, condition=self.condition, constants=self.constants)

    def step_alone(self):
        return self.model.unet(self.latent, self.t, condition=self.condition)

    def decode(self, decode=None):
        return (decode or self.model.autoencoder.decode)(self.latent, quantize=False)

    def codes(self):
        return self.model.autoencoder.quantize(self.latent)


def row_major(model: rs.ResShiftModel) -> rs.ResShiftModel:
    twin = copy.copy(model)
    twin.unet, twin.autoencoder = copy.deepcopy(model.unet), copy.deepcopy(model.autoencoder)
    for module in (twin.unet, twin.autoencoder):
        module.to(memory_format=torch.contiguous_format)
    return twin


def of_published(device: torch.device) -> Iterator[Attempt]:
    exact = published(device, "fp32")

    def without_ours(layer: type) -> rs.ResShiftModel:
        return plain.replace_methods(exact, {layer: plain.METHODS[layer]})

    ours, full = Tile(published(device, "auto"), 64), Tile(exact, 64)

    yield Attempt("half precision, decoder", "rate of its products over float32's", "yes", full.decode, ours.decode)
    yield Attempt("half precision, network", "the same, less the norms", "yes", full.step, ours.step)
    rows = Tile(row_major(ours.model), 64)
    yield Attempt("channels last, decoder", "1.1 to 1.5: no reordering around convolutions", "yes", rows.decode, ours.decode)
    yield Attempt("channels last, network", "1.1 to 1.5", "yes", rows.step, ours.step)
    materialised = Tile(without_ours(swin.WindowAttention), 64)
    yield Attempt(
        "fused attention, network in float32", "1.05: attention is 3 % of the work, its scores 25 MB a layer", "yes",
        materialised.step, full.step,
    )  # fmt: skip
    middle = Tile(without_ours(vqgan.AttnBlock), 64)
    yield Attempt(
        "fused attention, decoder in float32", "1.0; memory O(N) instead of O(N^2)", "yes", middle.decode, full.decode
    )
    yield Attempt(
        "FiLM and window biases once a run",
        "1.02 on a CPU; a quarter fewer launches on a GPU",
        "yes",
        ours.step_alone,
        ours.step,
    )
    whole = Tile(without_ours(vqgan.Codebook), 64)
    yield Attempt("nearest codes in parts", "1.0 to 1.5: distances stay in the cache", "yes", whole.codes, full.codes)

    direct = Tile(without_ours(winograd.Conv3x3), 64)
    yield Attempt(
        "minimal filtering, decoder in float32", "1.7: a quarter of the products, 250 bytes moved per value", "yes",
        direct.decode, full.decode,
    )  # fmt: skip
    yield Attempt("minimal filtering, network in float32", "1.15: half of its work", "yes", direct.step, full.step)
    for name, run in (("network in float32", full.step), ("decoder in float32", full.decode)):
        yield Attempt(
            f"filtering's limits of AVX512, {name}", "1.1: direct convolutions are at their limit there", "where there is AVX512",
            plain.instead(winograd, "limits", lambda: winograd.Limits(128, 64, 256), run), run,
        )  # fmt: skip
    wider = Tile(ours.model, 128)
    for name, run, predicted in (
        ("network in float32", full.step, "1.05: two of its products a layer"),
        ("decoder in float32", full.decode, "1.3: twice the rate of the products after filtering"),
        ("decoder", ours.decode, "1.1: the middle's attention is a tenth of the work"),
        ("decoder, 128 px", wider.decode, "1.25: attention is a third of the work"),
    ):
        yield Attempt(
            f"products by oneDNN, {name}", predicted, "on AMD's processors with AVX512",
            plain.instead(matmul, "_onednn", lambda: None, run), run,
        )  # fmt: skip


def joining(model: rs.ResShiftModel) -> rs.ResShiftModel:
    """A built-in model that joins x_t and the trunk's features before every step, and the skip to what it skipped."""

    def condition(unet, lq, mask=None, degradation=None):
        return unet.trunk(lq.to(unet.out[2].weight.dtype), unet.told(lq, degradation))

    def forward(unet, x, t, lq=None, mask=None, condition=None, constants=None):
        first = h = unet.input_blocks[0](torch.cat([x.to(condition.dtype), condition], dim=1), None)
        h = unet.middle_block(h, None, constants)
        return unet.out(unet.output_blocks[0](torch.cat([h, first], dim=1), None, constants))

    twin = model.in_float32().to(dtype=model.dtype)
    twin.unet.condition, twin.unet.forward = (types.MethodType(method, twin.unet) for method in (condition, forward))
    return twin


def _film_apart(block: ResBlock, film, into_weights: bool = False):
    return block.in_layers[2].weight, block.in_layers[2].bias, film


def _blocks_of_the_large(crops, scale: int):
    large = bicubic(crops, tuple(side * scale for side in crops.shape[-2:]))
    edge = tile_runs.CONTEXT * scale
    return F.pixel_unshuffle(large[..., edge:-edge, edge:-edge].contiguous(), scale)


def in_passing(run: Callable, what: str) -> Iterator[Attempt]:
    """What a whole run of the built-in model does beside its convolutions."""
    yield Attempt(
        f"memory kept while a run computes, {what}", "1.05 to 1.3: what the system takes to clear pages", "yes",
        plain.without_kept_memory(run), run,
    )  # fmt: skip
    yield Attempt(
        f"FiLM in the convolution before it, {what}", "1.03: one of five passes over the features of a block", "yes",
        plain.instead(ResBlock, "prepared", _film_apart, run), run,
    )  # fmt: skip
    yield Attempt(
        f"enlargement and blocks as one convolution, {what}", "1.03", "yes",
        plain.instead(tile_runs, "bicubic_blocks", _blocks_of_the_large, run), run,
    )  # fmt: skip
    yield Attempt(
        f"noise drawn by another thread, {what}", "1.05 to 1.1 where a processor is free, else 1", "where one is free",
        plain.instead(noise, "_processors", lambda: 1, run), plain.instead(noise, "_processors", lambda: 2**20, run),
    )  # fmt: skip


def of_builtin(device: torch.device) -> Iterator[Attempt]:
    builtin = rs.load_model("builtin", device=str(device))
    for dtype in (torch.bfloat16, torch.float32):
        model = builtin.in_float32().to(dtype=dtype)
        yield from in_passing(run_of(model, 256), f"built-in, 256 -> 1024, {str(dtype).removeprefix('torch.')}")
        yield Attempt(
            f"features not joined, built-in, 256 -> 1024, {str(dtype).removeprefix('torch.')}",
            "1.05: 3 convolutions of 48 to 48 channels less, of 65", "yes", run_of(joining(model), 256), run_of(model, 256),
        )  # fmt: skip
    small, four = Tile(builtin, 64), Tile(builtin, 64, 4)
    yield Attempt(
        "four tiles of 64 px at a time, built-in", "1.0 to 1.1 on a CPU", "by free memory on a GPU, else 1",
        lambda: [small.step() for _ in range(4)], four.step,
    )  # fmt: skip
    for tile in (128, 512):
        yield Attempt(
            f"tiles of 256 px instead of {tile}, built-in, 512 -> 2048",
            "1.3: overlaps of 128 px tiles" if tile < 256 else "0.8: no overlap, but four times the memory", "yes",
            run_of(builtin, 512, tile=tile), run_of(builtin, 512),
        )  # fmt: skip


def compiled(device: torch.device) -> Iterator[Attempt]:
    builtin, ours = rs.load_model("builtin", device=str(device)), Tile(published(device, "auto"), 64)
    twin = builtin.in_float32().to(dtype=builtin.dtype)
    twin.unet.compile()
    twin.unet.trunk.compile()
    yield Attempt(
        "torch.compile, built-in, 256 -> 1024", "1.2, from the step's 1.3", "no", run_of(builtin, 256), run_of(twin, 256)
    )
    for name, tile in (("built-in", Tile(builtin, 256)), ("published", ours)):
        unet = torch.compile(tile.model.unet)
        yield Attempt(
            f"torch.compile, network, {name}",
            "1.1: fused SiLU and norms",
            "no",
            tile.step,
            lambda tile=tile, unet=unet: tile.step(unet),
        )
    decode = torch.compile(ours.model.autoencoder.decode)
    yield Attempt("torch.compile, decoder", "1.1", "no", ours.decode, lambda: ours.decode(decode))


@torch.no_grad()  # not inference_mode: the models that are made in it could not be moved
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], help="words that an attempt's name must have one of")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    print(
        "| attempt | predicted | without | with | times as fast | MiB without | with | kept |\n|---|---|---:|---:|---:|---:|---:|---|"
    )
    parts = (of_published, of_builtin, compiled) if args.compile else (of_published, of_builtin)
    for attempt in chain.from_iterable(part(device) for part in parts):
        if args.only and not any(word in attempt.name for word in args.only):
            continue
        cases = {"without": attempt.without, "with": attempt.with_it}
        times = timing.interleaved(cases, args.rounds, device)
        memory = [timing.peak_mib(run, device) for run in cases.values()]
        cells = [f"{times['without']:.3f} s", f"{times['with']:.3f} s", f"{times['without'] / times['with']:.2f}"]
        cells += ["" if mib is None else f"{mib:.0f}" for mib in memory]
        print(f"| {attempt.name} | {attempt.predicted} | {' | '.join(cells)} | {attempt.kept} |", flush=True)


if __name__ == "__main__":
    main()
