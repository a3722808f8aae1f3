"""All figures of speed and memory, in one run on one machine.

    python -m benchmarks [--json FILE] [--plot FILE.png] [--only stages runs peers scaling] [--rounds 3] [--full]

stages   what a tile costs, stage by stage, against the machine's measured product of matrices and copy
runs     whole runs of the published network (random weights: time does not depend on them) and of the built-in model, against a
         plain float32 implementation of the same network
peers    Real-ESRGAN's RRDBNet, SwinIR and LDM on the same picture (pip install ".[bench]")
scaling  time per tile and memory of the built-in model over the size of the picture

Medians of interleaved runs. --full adds the long ones: 15 steps, 256 -> 1024 of the published network, LDM with 100 steps,
512 -> 2048 of the peers, 64 megapixels of output. `python -m benchmarks.attempts` has what was tried for speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

import resshift_core as rs
from resshift_core.device import resolve_device, resolve_dtype

from . import plain, stages, timing
from .arguments import positive

PARTS = ("stages", "runs", "peers", "scaling")
PEERS_NEED = ("spandrel", "diffusers")
SECONDS_AGAIN = 3  # of runs of each picture in every round, where one is shorter


def published(device: torch.device, dtype: str) -> rs.ResShiftModel:
    """The x4 network of the published checkpoints (118.59 M + 55.3 M parameters) with random weights."""
    torch.manual_seed(0)
    model = rs.ResShiftModel(rs.ModelConfig(name="published x4", tile=128))
    return model.to(device, resolve_dtype(dtype, device))


def run_of(model: rs.ResShiftModel, side: int, **settings) -> Callable:
    """One picture of side x side pixels through `rs.upscale`."""
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device)
    return lambda: rs.upscale(model, picture, **settings)


def measure_runs(device: torch.device, rounds: int, full: bool) -> dict:
    ours, exact = published(device, "auto"), published(device, "fp32")
    baseline, builtin = plain.make_plain(exact), rs.load_model("builtin", device=str(device))
    tables = {}
    for steps in (1, 4, 15) if full else (1, 4):
        cases = {name: run_of(model, 64, steps=steps) for name, model in (("default", ours), ("float32", exact))}
        cases["plain"] = plain.without_kept_memory(run_of(baseline, 64, steps=steps))
        tables[f"published, 64 -> 256, {steps} steps"] = _with_ratio(timing.interleaved(cases, rounds, device), "plain")
    if full:
        cases = {"default": run_of(ours, 256, steps=4)}
        tables["published, 256 -> 1024, 4 steps"] = timing.interleaved(cases, 1, device, warm=False)
    for side in (64, 256, 512):
        cases = {f"{steps} steps": run_of(builtin, side, steps=steps) for steps in (1, 4, 15)[: 3 if side < 512 else 2]}
        tables[f"built-in, {side} -> {4 * side}"] = timing.interleaved(cases, rounds if side < 512 else 1, device)
    return tables


def _with_ratio(times: dict[str, float], base: str) -> dict[str, float]:
    return {**times, **{f"{base} / {name}": times[base] / value for name, value in times.items() if name != base}}


def measure_peers(device: torch.device, rounds: int, full: bool) -> dict:
    from . import peers

    builtin = rs.load_model("builtin", device=str(device))
    tables = {}
    small = (64, 128, 512) if full else (64, 128)
    for side in small if device.type == "cpu" else (64, 256, 512):
        cases = {"built-in, default": run_of(builtin, side)}
        if side == 64:
            cases["published x4, 4 steps, default"] = run_of(published(device, "auto"), side, steps=4)
        for dtype in (torch.float32, builtin.dtype):
            ldm = () if side > 64 or dtype != torch.float32 else (15, 100) if full else (15,)
            cases |= peers.cases(side, device, dtype, ldm)
        tables[f"{side} -> {4 * side}"] = timing.interleaved(cases, rounds if side == 64 else 1, device, warm=side < 512)
    return tables


def measure_scaling(device: torch.device, rounds: int, full: bool) -> dict:
    """Seconds per tile, of the first picture and of later ones, waste of overlaps, and memory beyond input and output, of the
    built-in model.
    """
    model, table, runs, areas = rs.load_model("builtin", device=str(device)), {}, {}, {}
    run_of(model, 64)()  # code that is loaded once is not memory that pictures take
    for side in (256, 512, 1024, 2048) if full else (256, 512, 1024):
        tiles: list[int] = []
        run = run_of(model, side, on_step=lambda event, seen=tiles: seen.append(event.tiles))
        timed: list[float] = []
        memory = timing.peak_mib(lambda run=run, timed=timed: timed.append(timing.seconds(run, device)), device)
        name, seconds = f"{side} -> {4 * side}", timed[-1]
        beyond = None if memory is None else round(memory - 3 * 4 * (4 * side) ** 2 / 2**20)
        runs[name], areas[name] = run_of(model, side), tiles[-1] * _tile_side(model, side) ** 2
        table[name] = {
            "tiles": tiles[-1], "seconds": round(seconds, 2),
            "seconds per million tile pixels": round(seconds / areas[name] * 1e6, 2),
            "area of the tiles / of the picture": round(areas[name] / side**2, 2), "MiB beyond the output": beyond,
        }  # fmt: skip
    for name, later in timing.interleaved(runs, rounds, device, warm=False, least=SECONDS_AGAIN).items():
        table[name]["later ones"] = round(later / areas[name] * 1e6, 2)
    return table


def _tile_side(model: rs.ResShiftModel, side: int) -> int:
    from resshift_core.tiles import lay_side

    config = model.config
    return lay_side(config, side, config.tile, config.overlap).tile


def machine(device: torch.device) -> dict:
    dtypes = {torch.float32, rs.load_model("builtin", device=str(device)).dtype}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # Windows has none
        "peaks": {dtype: timing.matmul_peak(device, dtype) for dtype in dtypes},
        "copy": timing.bandwidth(device),
    }


def show(title: str, rows: list[dict]) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(_cell(row[name]) for name in names) + " |")


def _cell(value) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(results: dict, path: Path) -> None:
    """Bars of all timed cases, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{title}: {name}", seconds)
        for part in ("runs", "peers")
        for title, times in results.get(part, {}).items()
        for name, seconds in times.items()
        if " / " not in name
    ]
    if not bars:
        return
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(bars) + 1))
    axes.barh([name for name, _ in bars][::-1], [seconds for _, seconds in bars][::-1])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    try:
        device = resolve_device(args.device)
    except rs.ResShiftError as error:
        raise SystemExit(str(error)) from error
    missing = [name for name in PEERS_NEED if importlib.util.find_spec(name) is None]
    if "peers" in args.only and missing:
        args.only = [part for part in args.only if part != "peers"]
        print(f'The peers are left out: {" and ".join(missing)} is not installed (pip install ".[bench]").', file=sys.stderr)
        if not args.only:
            raise SystemExit(1)
    host = machine(device)
    peaks = {str(dtype).removeprefix("torch."): value for dtype, value in host["peaks"].items()}
    results: dict = {"machine": {**host, "peaks": peaks}}
    print(", ".join(f"{dtype} product {value / 1e9:.0f} GFLOP/s" for dtype, value in peaks.items()), end="; ")
    load = "" if host["load average"] is None else f", load {host['load average']:.1f}"
    print(f"copy {host['copy'] / 1e9:.1f} GB/s; torch {host['torch']}, {host['threads']} threads{load}")
    if "stages" in args.only:
        results["stages"] = {}
        for model, side in ((published(device, "auto"), 64), (rs.load_model("builtin", device=str(device)), 256)):
            found = stages.measure(model, side, args.rounds, host["peaks"], host["copy"])
            title = f"{model.config.name}: stages of a tile of {side} pixels, {model.dtype}"
            results["stages"][title] = [asdict(stage) for stage in found]
            show(title, results["stages"][title])
    for part, run in (("runs", measure_runs), ("peers", measure_peers)):
        if part in args.only:
            results[part] = run(device, args.rounds, args.full)
            for title, times in results[part].items():
                show(f"{part}: {title}", [{"case": name, "seconds (or ratio)": value} for name, value in times.items()])
    if "scaling" in args.only:
        results["scaling"] = measure_scaling(device, args.rounds, args.full)
        show("scaling of the built-in model", [{"picture": name, **row} for name, row in results["scaling"].items()])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2, default=float), encoding="utf-8")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
