"""What a person sees of a run: progress bar, tables, TensorBoard, pictures."""

from __future__ import annotations

import csv
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from resshift_core.atomic_file import atomic_path

log = logging.getLogger("resshift.training")

LINE_EVERY = 30  # seconds, where there is no bar


def memory_text(device: torch.device) -> str:
    """Peak memory: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource  # not on Windows
    except ImportError:
        return "?"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def save_picture(image: torch.Tensor, path: Path) -> None:
    """(3, H, W) in [0, 1] to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()).save(path)


class Table:
    """A CSV file of one row per iteration that grows; what is beyond the iteration resumed from is dropped at the start."""

    def __init__(self, path: Path, columns: list[str], iteration: int):
        self.path, self.columns = path, ["iteration", *columns]
        self._waiting: list[dict] = []  # rows that could not be written yet
        kept = [row for row in self.read(path) if row["iteration"] <= iteration] if iteration else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**row, "iteration": int(row["iteration"])} for row in kept)

    def add(self, iteration: int, values: dict[str, float]) -> None:
        """Write a row. Windows lets nobody write to a file that a spreadsheet has open: then it waits for the next one."""
        self._waiting.append({"iteration": iteration, **{name: repr(float(value)) for name, value in values.items()}})
        error = self._write()
        if error is not None and len(self._waiting) == 1:
            log.warning("%s cannot be written now (%s); close it elsewhere, its rows wait.", self.path, error.strerror)

    def close(self) -> None:
        """Write the rows that wait, if it can be done now."""
        error = self._write() if self._waiting else None
        if error is not None:
            lost = len(self._waiting)
            log.warning("%s cannot be written (%s); its last rows, %d, are lost.", self.path, error.strerror, lost)

    def _write(self) -> PermissionError | None:
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, restval="", extrasaction="ignore").writerows(self._waiting)
        except PermissionError as error:
            return error
        self._waiting.clear()
        return None

    @staticmethod
    def read(path: Path) -> list[dict[str, float]]:
        """Rows as numbers; a row torn by a crash is left out."""
        if not path.is_file():
            return []
        rows = []
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(line.replace("\0", "") for line in file):
                try:
                    rows.append({name: float(value) for name, value in row.items() if name and value})
                except (TypeError, ValueError):
                    continue
        return [row for row in rows if "iteration" in row]


def _tensorboard(folder: Path, iteration: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed (pip install tensorboard); its logs are left out.")
        return None
    return SummaryWriter(str(folder), purge_step=iteration + 1)


class Report:
    """Progress bar (in a file of output, a line now and then), OUTPUT/log.csv, OUTPUT/validation.csv, OUTPUT/validation/*.png, OUTPUT/tensorboard. First process only."""

    def __init__(self, output: Path, iterations: int, iteration: int, loss_names: list[str]):
        self.output, self.iterations = output, iterations
        columns = ["loss", *loss_names, "rate", "gradient", "images_per_second", "skipped"]
        self.losses = Table(output / "log.csv", columns, iteration)
        self.scores = Table(output / "validation.csv", ["psnr", "ssim", "lpips"], iteration)
        self.board = _tensorboard(output / "tensorboard", iteration)
        self.bar = tqdm(total=iterations, initial=iteration, desc="training", dynamic_ncols=True, unit="it", disable=None)
        self.told = time.monotonic()

    def step(self, device: torch.device, values: dict[str, float], images_per_second: float) -> None:
        self.bar.update()
        self.bar.set_postfix_str(
            f"loss {values['loss']:.5f}, {images_per_second:.1f} images/s, {memory_text(device)}", refresh=False
        )

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self.losses.add(iteration, values)
        if self.bar.disable and time.monotonic() - self.told > LINE_EVERY:
            self.told = time.monotonic()
            rate = values["images_per_second"]
            self.say(f"iteration {iteration} of {self.iterations}: loss {values['loss']:.5f}, {rate:.1f} images/s")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"training/{name}", value, iteration)

    def validated(self, iteration: int, scores: dict[str, float], grid: torch.Tensor) -> None:
        self.scores.add(iteration, scores)
        save_picture(grid, self.output / "validation" / f"{iteration:09d}.png")
        if self.board is not None:
            for name, value in scores.items():
                self.board.add_scalar(f"validation/{name}", value, iteration)
            self.board.add_image("validation: input, result, truth", grid, iteration)
        self.say(f"validation at {iteration}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def say(self, text: str) -> None:
        tqdm.write(text)
        sys.stdout.flush()  # a file of output would keep it for later

    def close(self) -> None:
        self.bar.close()
        self.losses.close()
        self.scores.close()
        if self.board is not None:
            self.board.close()


def _curve(axis, rows, name: str, title: str) -> None:
    points = [(row["iteration"], row[name]) for row in rows if name in row]
    if points:
        iterations, values = zip(*points)
        many = len(points) >= 20
        axis.plot(iterations, values, marker=None if many else "o", markersize=3, alpha=0.4 if many else 1)
        if many:  # single batches differ more than a run improves: a mean over a tenth of it
            width = len(points) // 10
            means = np.convolve(values, np.ones(width) / width, "valid")
            axis.plot(iterations[width - 1 :], means, color="C0")
    axis.set_title(title)
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.3)


def before_and_after(first: Path, last: Path, side: int = 128) -> np.ndarray:
    """The middle `side` pixels of two validation grids, two pictures in a row: input, before, after, truth. (H, W, 3)."""
    grids = [np.asarray(Image.open(path).convert("RGB")) for path in (first, last)]
    tile = grids[0].shape[1] // 3
    start = (tile - side) // 2

    def cut(grid, row, column):
        top, left = row * tile + start, column * tile + start
        return np.pad(grid[top : top + side, left : left + side], ((2, 2), (2, 2), (0, 0)), constant_values=255)

    strips = []
    for row in range(min(grid.shape[0] for grid in grids) // tile):
        cuts = [cut(grids[0], row, 0), cut(grids[0], row, 1), cut(grids[1], row, 1), cut(grids[1], row, 2)]
        strips.append(np.pad(np.concatenate(cuts, 1), ((0, 0), (0, 12), (0, 0)), constant_values=255))
    strips += [np.full_like(strips[0], 255)] * (len(strips) % 2)
    return np.concatenate([np.concatenate(strips[i : i + 2], 1) for i in range(0, len(strips), 2)], 0)


def write_summary(output: Path) -> Path | None:
    """OUTPUT/summary.png: loss and validation curves, and details before and after. None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("matplotlib is not installed (pip install matplotlib); summary.png is left out.")
        return None
    losses, scores = Table.read(output / "log.csv"), Table.read(output / "validation.csv")
    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["loss", "psnr", "ssim"], ["grids", "grids", "grids"]], height_ratios=[1, 1.3])
    _curve(axes["loss"], losses, "loss", "loss")
    _curve(axes["psnr"], scores, "psnr", "PSNR of held-out pictures, dB")
    _curve(axes["ssim"], scores, "ssim", "SSIM of held-out pictures")
    grids = sorted((output / "validation").glob("[0-9]*.png"))
    axes["grids"].axis("off")
    if grids:
        axes["grids"].imshow(before_and_after(grids[0], grids[-1]), interpolation="nearest")
        times = f"before (iteration {int(grids[0].stem)}), after ({int(grids[-1].stem)})"
        axes["grids"].set_title(f"held-out pictures: input, {times}, truth")
    path = output / "summary.png"
    figure.savefig(path, dpi=100)
    return path
