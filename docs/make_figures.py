"""Draws the pictures of the README and the model card with the shipped model.

    python docs/make_figures.py --photos DIR               # DIR holds the training photos' `val` pictures
    python docs/make_figures.py --photos DIR --sheets      # those of docs/builtin.md
    python docs/make_figures.py --photos DIR --real        # those of docs/builtin-real.md

Needs the extra `train` (matplotlib).
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import resshift_core as rs
from benchmarks import line_art, text_pages
from benchmarks.fidelity import enlarge, plainly, to_tensor, with_jpeg, with_noise
from training.degradation import bicubic, make_degradation

IMAGES = Path(__file__).parent / "images"
CAT = "scikit-image/chelsea.webp"
WORST = [with_jpeg(70), with_jpeg(30), with_noise(8), with_noise(25)]


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return tensor[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def load(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1], sides cropped to multiples of 4."""
    truth = to_tensor(image)
    height, width = (side // 4 * 4 for side in truth.shape[-2:])
    return truth[..., :height, :width]


def before_after(
    models: dict[str, rs.ResShiftModel],
    rows: list[tuple[Image.Image, tuple[int, int]]],
    path: Path,
    damages=None,
    side: int = 240,
    quality: int = 92,
) -> None:
    """One row per (picture, corner of a window): low resolution, bicubic, the models by their titles, original.

    damages: one function per row, (picture (1, 3, H, W), row) -> the small picture; None = all are shrunk cleanly.
    """
    titles = ("low resolution", "bicubic ×4", *models, "original")
    columns = len(titles)
    figure, axes = plt.subplots(len(rows), columns, figsize=(3.1 * columns, 3.2 * len(rows)), squeeze=False)
    for number, (line, (image, (x, y))) in enumerate(zip(axes, rows)):
        truth = load(image)
        small = damages[number](truth, number) if damages else bicubic(truth)
        results = [rs.upscale(model, small) for model in models.values()]
        pictures = (F.interpolate(small, scale_factor=4), enlarge(small), *results, truth)
        for axis, picture, title in zip(line, pictures, titles):
            axis.imshow(to_array(picture)[y : y + side, x : x + side], interpolation="nearest")
            axis.set_axis_off()
            if number == 0:
                axis.set_title(title, fontsize=12)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / (3.2 * len(rows)), wspace=0.02, hspace=0.02)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": quality, "subsampling": 0})
    plt.close(figure)


def busiest(image: Image.Image, side: int) -> tuple[int, int]:
    """Corner of the window of side x side pixels with the strongest edges, on a grid of 20 pixels."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    edges = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    places = [(x, y) for y in range(0, image.height - side, 20) for x in range(0, image.width - side, 20)]
    return max(places, key=lambda place: edges[place[1] : place[1] + side, place[0] : place[0] + side].sum())


def held_out(photos: Path) -> dict[str, Image.Image]:
    """The pictures of the manifest's `val`, by name; those large enough halved, which takes their compression away."""
    with open(photos / "MANIFEST.csv", encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["split"] == "val"]
    found = {}
    for name in names:
        picture = Image.open(photos / name).convert("RGB")
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        found[Path(name).stem] = half if min(half.size) > 240 else picture
    return found


def drawn_pages() -> list[tuple[Image.Image, tuple[int, int]]]:
    """Text and line art, with the corners of their windows."""
    pages = [text_pages.make_page(n, 7) for n in (0, 1, 2)] + [line_art.make_drawing(n, 7) for n in (0, 1)]
    return list(zip(pages, [(60, 60), (60, 400), (300, 60), (200, 200), (300, 300)]))


def damaged_cat(photos: Path) -> list[tuple[Image.Image, tuple[int, int]]]:
    """The rows for WORST."""
    return [(Image.open(photos / CAT).convert("RGB"), (60, 20))] * len(WORST)


def by_realesrgan(truth: torch.Tensor, number: int) -> torch.Tensor:
    return make_degradation("realesrgan", 4, 5)(truth, [number])


def sheets(model: rs.ResShiftModel, photos: Path) -> None:
    """docs/images/builtin_*.jpg: every validation picture, text and line art, damaged pictures."""
    shown = {"ResShift, built-in model": model}
    rows = [(picture, busiest(picture, 240)) for picture in held_out(photos).values()]
    before_after(shown, rows, IMAGES / "builtin_photos.jpg", quality=82)
    before_after(shown, drawn_pages(), IMAGES / "builtin_drawn.jpg", quality=82)
    before_after(shown, damaged_cat(photos), IMAGES / "builtin_damaged.jpg", WORST, quality=82)


def real_sheets(models: dict[str, rs.ResShiftModel], photos: Path) -> None:
    """docs/images/real_*.jpg: both built-in models on damaged, clean, and drawn pictures."""
    pictures = held_out(photos)
    rows = [(picture, busiest(picture, 240)) for picture in pictures.values()]
    before_after(models, rows, IMAGES / "real_clean.jpg", quality=80)
    before_after(models, rows, IMAGES / "real_damaged.jpg", [by_realesrgan] * len(rows), quality=80)
    kinds = [plainly, with_jpeg(50), with_noise(12), plainly, with_jpeg(50)]
    before_after(models, drawn_pages(), IMAGES / "real_drawn.jpg", kinds, quality=80)
    before_after(models, damaged_cat(photos), IMAGES / "real_cat.jpg", WORST, quality=82)


def _box(axis, x, y, width, height, text, colour):
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc=colour, ec="#333", lw=1.2)
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11)


def _arrow(axis, start, end, text="", bend=0.0):
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=14, color="#333", lw=1.3, connectionstyle=f"arc3,rad={bend}"
        )
    )
    if text:
        axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", fontsize=10)


def method(image: Image.Image, corner: tuple[int, int], path: Path) -> None:
    """The chain in one drawing: real states of eq. 2 for T = 4 on top, what computes a step below, the curve at the right."""
    schedule = rs.ShiftSchedule(4, 0.1, 0.3, 0.2)
    truth = load(image)
    small = bicubic(truth)
    x, y = corner
    x0, y0 = (picture[..., y : y + 160, x : x + 160] * 2 - 1 for picture in (truth, enlarge(small)))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    figure = plt.figure(figsize=(13.2, 4.5))
    axis = figure.add_axes((0, 0, 0.74, 1))
    axis.set_xlim(0, 13)
    axis.set_ylim(0.5, 6.6)
    axis.set_axis_off()
    names = ["$x_4 = y_0 + \\kappa\\sqrt{\\eta_4}\\,\\epsilon$", "$x_3$", "$x_2$", "$x_1$", "$x_0$"]
    for place, t in enumerate((4, 3, 2, 1, 0)):
        mean, std = schedule.marginal(x0, y0, t) if t else (x0, 0.0)
        left = 0.25 + 2.6 * place
        axis.imshow(to_array((mean + std * noise + 1) / 2), extent=(left, left + 2.0, 3.6, 5.6), aspect="auto", zorder=2)
        axis.text(left + 1.0, 5.75, names[place], ha="center", fontsize=12)
        if t:
            _arrow(axis, (left + 2.03, 4.6), (left + 2.57, 4.6))
    axis.set_aspect("auto")
    axis.text(5.2 + 1.25, 6.32, "the residual $e_0 = y_0 - x_0$ is shifted away, step by step", ha="center", fontsize=12)
    colours = ("#dbe9f6", "#fde2c4", "#d9f0d3")
    _box(axis, 0.25, 1.0, 2.4, 1.1, "low-resolution\npicture $y$", colours[0])
    _box(axis, 3.6, 1.0, 3.2, 1.1, "network $f(x_t,\\,t,\\,y)$\npredicts $\\hat x_0$", colours[1])
    _box(axis, 7.9, 0.85, 4.9, 1.4,
         "$x_{t-1} = \\frac{\\eta_{t-1}}{\\eta_t}x_t + \\frac{\\alpha_t}{\\eta_t}\\hat x_0"
         " + \\kappa\\sqrt{\\frac{\\eta_{t-1}}{\\eta_t}\\alpha_t}\\;\\epsilon$", colours[2])  # fmt: skip
    _arrow(axis, (2.67, 1.55), (3.58, 1.55))
    _arrow(axis, (6.82, 1.55), (7.88, 1.55))
    _arrow(axis, (1.25, 2.12), (1.25, 3.56), "")
    axis.text(1.4, 2.8, "upsampled,\nencoded: $y_0$", fontsize=10, va="center")
    _arrow(axis, (3.9, 3.56), (4.9, 2.14))
    axis.text(4.75, 2.85, "$x_t$", fontsize=11)
    _arrow(axis, (10.4, 2.28), (6.6, 3.56), bend=0.12)
    axis.text(9.35, 3.2, "$x_{t-1}$", fontsize=11)
    axis.text(11.6, 3.3, "decoded: the result", ha="center", fontsize=10)
    curve = figure.add_axes((0.785, 0.2, 0.2, 0.62))
    for steps, p, least in ((15, 0.3, 0.04), (15, 1.0, 0.04), (4, 0.3, 0.2)):
        s = rs.ShiftSchedule(steps, 2.0, p, least)
        curve.plot(np.linspace(0, 1, steps), s.sqrt_eta, marker="o", ms=3, label=f"T={steps}, p={p}")
    curve.set_title("how fast: $\\sqrt{\\eta_t}$ over $t$", fontsize=11)
    curve.set_xticks([0, 1], ["1", "T"])
    curve.grid(alpha=0.3)
    curve.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--sheets", action="store_true", help="the sheets of docs/builtin.md alone")
    parser.add_argument("--real", nargs="?", const="builtin-real", help="those of docs/builtin-real.md alone, by this model")
    args = parser.parse_args()
    if args.sheets:
        sheets(rs.load_model(args.model), args.photos)
        return
    if args.real:
        real_sheets({"builtin": rs.load_model(args.model), "builtin-real": rs.load_model(args.real)}, args.photos)
        return

    def photo(name, width=None):
        image = Image.open(args.photos / name).convert("RGB")
        return image if width is None else image.resize((width, round(image.height * width / image.width)), Image.LANCZOS)

    cat = photo(CAT)
    method(cat, (110, 50), IMAGES / "method.png")
    model = rs.load_model(args.model)
    penguin, flower, field = (
        photo("ibm-max-pexels-cc0/penguin.webp", 700), photo("pd-art-photos/botanic.webp", 800), photo("met-nasa/met-435809.webp", 1200)
    )  # fmt: skip
    before_after(
        {"ResShift, built-in model": model},
        [(cat, (60, 20)), (flower, (250, 300)), (field, (820, 560)), (penguin, (240, 120))],
        IMAGES / "before_after.jpg",
    )


if __name__ == "__main__":
    main()
