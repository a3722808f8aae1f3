"""Measure models as the ResShift paper does: tables and the perception-distortion plot, on your own pictures.

    python training/evaluate.py --truth PICTURES --output OUT                          # degraded by the paper's Appendix B.1
    python training/evaluate.py --truth PICTURES --degradation bicubic --output OUT    # or plainly
    python training/evaluate.py --truth HIGH --lq LOW --output OUT                     # pairs by the same names
    python training/evaluate.py --lq LOW --pyiqa True --output OUT                     # no truth: CLIPIQA and MUSIQ alone

    --models builtin OUT/best.safetensors     several models in one table
    --steps 1 2 4 --kappa 1 2 --p 0.3 1       every combination (the paper's Table 1); left out: as trained
    --others RealESRGAN_x4.pth SwinIR.pth     other upscalers, through spandrel (pip install spandrel)

Writes OUT/table.md, OUT/table.csv and OUT/plot.png (the paper's Fig. 7). PSNR and SSIM are taken of the luminance unless
--channel rgb; texture is the energy at frequencies that the low-resolution picture cannot hold, over the truth's; LPIPS comes
where its weights are on this machine, or with --lpips True (they are then fetched once). --pyiqa True adds CLIPIQA and MUSIQ
by pyiqa, which you install yourself: it and its weights are for non-commercial use only.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.evaluate` runs
    folder = Path(__file__).resolve().parent  # a portable Python has its library at sys.path[0], not this folder
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import csv
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

import resshift_core as rs
from resshift_core.device import is_out_of_memory, resolve_device
from resshift_core.registry import VARIANTS
from training.data import match_pairs
from training.degradation import make_degradation
from training.losses import make_lpips
from training.metrics import lpips_distance, lpips_is_here, luma, psnr, ssim, texture
from training.program import exit_status
from training.report import save_picture
from training.scan import find_images, read_rgb, scan
from training.settings import SettingsError
from training.validation import given_pairs, make_pairs

PYIQA_LICENCE = "pyiqa and the weights it fetches are licensed for non-commercial use only (PolyForm NC, NTU S-Lab)."
WHOLE = 10**6  # pixels: no picture's middle is cut out
CROP_LEAST = 16  # pixels
SSIM_WINDOW = 11  # pixels: the least that a border may leave
PERCEPTUAL = ("lpips", "clipiqa", "musiq")
ARROWS = {
    "psnr": "PSNR ↑",
    "ssim": "SSIM ↑",
    "texture": "texture → 1",
    "lpips": "LPIPS ↓",
    "clipiqa": "CLIPIQA ↑",
    "musiq": "MUSIQ ↑",
}


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure on what."""

    output: Path  # folder for the tables and the plot
    truth: Path | None = None  # folder of ground truth
    lq: Path | None = None  # folder of low-resolution pictures
    models: tuple[str, ...] = ("builtin",)  # registry names or files
    variant: str | None = None  # of all of them, where a file leaves it open
    autoencoder: str | None = None
    others: tuple[Path, ...] = ()  # other upscalers' files
    steps: tuple[int, ...] = ()
    kappa: tuple[float, ...] = ()
    p: tuple[float, ...] = ()
    sampler: Literal["stochastic", "deterministic"] = "stochastic"
    degradation: Literal["paper-b1", "everyday", "realesrgan", "mixed", "bicubic"] | None = (
        None  # None: paper-b1; inpainting: bicubic
    )
    crop: int = 0  # pixels of the truth's middle; 0 = whole pictures; the paper's are 256
    limit: int = 0  # pictures; 0 = all
    channel: Literal["y", "rgb"] = "y"  # of PSNR and SSIM
    border: int = 0  # pixels left out on every side before anything is measured; papers leave out as many as the scale
    lpips: bool = False  # fetch LPIPS' weights if they are not here
    pyiqa: bool = False  # CLIPIQA and MUSIQ
    save: bool = False  # keep the results as OUT/NAME/*.png
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """One row of the table: how it is called, and what it makes of a low-resolution picture."""

    name: str
    steps: str
    kappa: str
    p: str
    upscale: Callable[..., torch.Tensor]  # ((1, 3, H, W) in [0, 1], hole (1, 1, H, W) or None) -> (1, 3, H s, W s)


# ---------------------------------------------------------------------------------------------------- candidates


def short_names(words: Sequence[str]) -> list[str]:
    """Names of models for the table: of a file its bare name, with as many folders as tell it from the others."""
    paths = [Path(word).resolve().with_suffix("").parts if Path(word).suffix else (word,) for word in words]
    names = ["/".join(parts[-1:]) for parts in paths]
    for depth in range(2, max(map(len, paths), default=0) + 1):
        names = ["/".join(parts[-depth:]) if names.count(name) > 1 else name for name, parts in zip(names, paths)]
    return names


def _own_candidates(settings: EvaluationSettings, model: rs.ResShiftModel, name: str) -> Iterator[Candidate]:
    """Every combination of steps, kappa and p; None = as trained.

    Raises:
        rs.InputError: the model cannot run one of them.
    """
    for steps, kappa, p in itertools.product(settings.steps or (None,), settings.kappa or (None,), settings.p or (None,)):
        trained = model.schedule
        trained.retime(steps, kappa, p)  # what this model refuses is told before anything is measured

        def upscale(image, hole=None, steps=steps, kappa=kappa, p=p):
            mask, seed, sampler = hole if model.config.task == "inpaint" else None, settings.seed, settings.sampler
            return rs.upscale(model, image, mask=mask, steps=steps, kappa=kappa, p=p, seed=seed, sampler=sampler)

        shown = (steps or model.config.default_steps, kappa if kappa is not None else trained.kappa, p or trained.p)
        yield Candidate(name, *(f"{value:g}" for value in shown), upscale)


def load_other(path: Path, scale: int, device) -> Candidate:
    """Another upscaler's file, by spandrel.

    Raises:
        SettingsError: spandrel is missing, or the model is of another kind or scale.
    """
    try:
        import spandrel
    except ImportError as error:
        raise SettingsError(f"{path.name} needs spandrel to be read: pip install spandrel") from error
    try:
        model = spandrel.ModelLoader(device=device).load_from_file(str(path))
    except Exception as error:
        raise SettingsError(f"{path} cannot be read by spandrel ({error}).") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.scale != scale:
        raise SettingsError(f"{path.name} is no upscaler by {scale}; all rows of a table must have one scale.")
    if (model.input_channels, model.output_channels) != (3, 3):
        raise SettingsError(
            f"{path.name} takes {model.input_channels} and returns {model.output_channels} channels; pictures here have 3."
        )
    model.eval()

    @torch.inference_mode()
    def upscale(image, hole=None):
        try:
            return model(image.to(device)).float().cpu().clamp(0, 1)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = "x".join(str(side) for side in image.shape[:-3:-1])
            raise MemoryError(f"{path.name} needs more memory for a picture of {size} than is free. Give --crop.") from error

    return Candidate(f"{path.stem} ({model.architecture.name})", "", "", "", upscale)


def bicubic_candidate(scale: int) -> Candidate:
    def upscale(image, hole=None):
        return F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)

    return Candidate("bicubic", "", "", "", upscale)


# ---------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Sample:
    """One picture to measure on; truth is None where there is none, hole where nothing is to be filled in."""

    name: str
    lq: torch.Tensor
    truth: torch.Tensor | None
    hole: torch.Tensor | None = None


def _names_below(root: Path, paths: Sequence[Path]) -> list[str]:
    """Paths below a folder without their endings, but where two differ by these alone."""
    inner = [path.relative_to(root) for path in paths]
    bare = [path.with_suffix("").as_posix() for path in inner]
    return [name if bare.count(name) == 1 else path.as_posix() for name, path in zip(bare, inner)]


def _pictures_below(root: Path, output: Path) -> list[Path]:
    """Those that its MANIFEST.csv keeps for this, if it has one that does: what was trained on says nothing."""
    held = find_images(root, "val") if (root / "MANIFEST.csv").is_file() else []
    if held:
        print(f"{root / 'MANIFEST.csv'}: only the pictures of its split val are measured.")
    return held or find_images(root, without=output)


def load_samples(settings: EvaluationSettings, scale: int, holes: bool = False) -> list[Sample]:
    """The pictures, degraded or paired; `holes`: with a hole in each.

    Raises:
        SettingsError, DataError: neither folder is given, or nothing can be read.
    """
    if settings.truth is None and settings.lq is None:
        raise SettingsError("Give --truth, a folder of pictures to be degraded and restored, or --lq, or both as pairs.")
    root = settings.truth or settings.lq
    smallest = 1 if settings.truth is None else max(scale * 2, SSIM_WINDOW // 2 + 1)  # which mirrors so much
    found = scan(_pictures_below(root, settings.output), smallest, quiet=False)
    if found.unreadable or found.tiny or found.duplicate:
        print(found.report())
    pictures = sorted(found.used, key=lambda picture: picture.path)[: settings.limit or None]
    names = _names_below(root, [Path(picture.path) for picture in pictures])
    if settings.truth is None and holes:
        raise SettingsError("Inpainting is measured against the truth: give --truth; holes are drawn into its pictures.")
    if settings.truth is None:
        return [Sample(name, read_rgb(picture.path)[None].float() / 255, None) for name, picture in zip(names, pictures)]
    if settings.lq is None:
        kind = settings.degradation or ("bicubic" if holes else "paper-b1")
        degrade = make_degradation(kind, scale, settings.seed)
        pairs = make_pairs(pictures, degrade, scale, settings.crop or WHOLE, holes)
    else:
        partners = match_pairs(pictures, settings.truth, settings.lq, scale)
        pairs = given_pairs(pictures, [partners[p.path] for p in pictures], scale, settings.crop or WHOLE, holes)
    return [Sample(name, pair.lq, pair.truth, pair.hole) for name, pair in zip(names, pairs)]


# ---------------------------------------------------------------------------------------------------- metrics


class Metrics:
    """All metrics that can be had here. metrics(result, truth or None) -> {name: value}."""

    def __init__(self, settings: EvaluationSettings, scale: int):
        self.scale = scale
        self.luminance, self.border, self.lpips, self.blind = settings.channel == "y", settings.border, None, {}
        if settings.lpips or lpips_is_here("alex"):
            self.lpips = make_lpips("alex")
        if settings.pyiqa:
            self.blind = self._pyiqa()

    @staticmethod
    def _pyiqa() -> dict[str, Callable]:
        try:
            import pyiqa
        except ImportError as error:
            raise SettingsError(f"--pyiqa needs pyiqa: pip install pyiqa. {PYIQA_LICENCE}") from error
        print(PYIQA_LICENCE)
        return {name: pyiqa.create_metric(name) for name in ("clipiqa", "musiq")}

    def _without_border(self, image: torch.Tensor) -> torch.Tensor:
        return image[..., self.border : image.shape[-2] - self.border, self.border : image.shape[-1] - self.border]

    @torch.no_grad()
    def __call__(self, result: torch.Tensor, truth: torch.Tensor | None) -> dict[str, float]:
        values = {}
        result = self._without_border(result)
        if truth is not None:
            truth = self._without_border(truth)
            a, b = (luma(result), luma(truth)) if self.luminance else (result, truth)
            values = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
            if self.scale > 1:
                values["texture"] = texture(result, truth, self.scale)
            if self.lpips is not None:
                values["lpips"] = lpips_distance(self.lpips, result, truth)
        for name, metric in self.blind.items():
            values[name] = float(metric(result))
        return values


def measure(candidate: Candidate, samples: Sequence[Sample], metrics: Metrics, keep: Path | None = None) -> dict:
    """A row of the table: means over the samples, and seconds per picture (the first one warms up and is not timed)."""
    values, seconds = [], []
    for sample in tqdm(samples, desc=candidate.name, leave=False, disable=None):
        began = time.perf_counter()
        result = candidate.upscale(sample.lq, sample.hole).cpu()
        seconds.append(time.perf_counter() - began)
        result = result.mul(255).round().div(255)  # as it is in a file
        values.append(metrics(result, sample.truth))
        if keep is not None:
            save_picture(result[0], keep / f"{sample.name}.png")
    timed = seconds[1:] or seconds
    row = {"model": candidate.name, "steps": candidate.steps, "kappa": candidate.kappa, "p": candidate.p}
    row.update({name: sum(value[name] for value in values) / len(values) for name in values[0]})
    return {**row, "seconds": sum(timed) / len(timed)}


# ---------------------------------------------------------------------------------------------------- results


def as_markdown(rows: Sequence[dict]) -> str:
    """The table as people read it."""
    columns = list(rows[0])
    digits = {"psnr": 2, "texture": 3, "musiq": 2, "seconds": 3}

    def cell(row, name):
        value = row[name]
        return f"{value:.{digits.get(name, 4)}f}" if isinstance(value, float) else str(value)

    head = "| " + " | ".join(ARROWS.get(name, name) for name in columns) + " |"
    rule = "|" + "|".join("---" if name == "model" else "---:" for name in columns) + "|"
    body = ["| " + " | ".join(cell(row, name) for name in columns) + " |" for row in rows]
    return "\n".join([head, rule, *body]) + "\n"


def write_csv(rows: Sequence[dict], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _labels(rows: Sequence[dict], perceptual: str) -> dict[tuple[float, float], str]:
    """{place in the plot: the settings of the points there}; settings that all points share are left out."""
    symbols = {"steps": "T", "kappa": "κ", "p": "p"}
    varies = [name for name in symbols if len({row[name] for row in rows}) > 1]
    labels: dict[tuple[float, float], str] = {}
    for row in rows:
        place = (round(row["psnr"], 2), round(row[perceptual], 3))  # where two labels would lie on each other
        text = " ".join(f"{symbols[name]}={row[name]}" for name in varies)
        labels[place] = f"{labels[place]}\n{text}" if place in labels else text
    return labels


def write_plot(rows: Sequence[dict], path: Path) -> bool:
    """Perception against distortion, one point per row, one line per model; False without a pair of metrics to plot."""
    perceptual = next((name for name in (*PERCEPTUAL, "texture", "ssim") if name in rows[0]), None)
    if perceptual is None or "psnr" not in rows[0]:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.margins(0.12)
    for name in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["psnr"])
        axis.plot([row["psnr"] for row in own], [row[perceptual] for row in own], marker="o", label=name)
        for place, text in _labels(own, perceptual).items():
            axis.annotate(text, place, fontsize=7, xytext=(5, -3), textcoords="offset points", va="top")
    axis.set_xlabel("PSNR, dB (higher: less distortion)")
    axis.set_ylabel(ARROWS[perceptual])
    if perceptual == "lpips":
        axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    return True


def _load(word: str, settings: EvaluationSettings) -> rs.ResShiftModel:
    words = {"autoencoder": settings.autoencoder, "device": settings.device, "dtype": settings.dtype}
    try:
        return rs.load_model(word, variant=settings.variant, **words)
    except rs.InputError:  # of a file that says itself what it is, among others
        if settings.variant not in VARIANTS:
            raise
    model = rs.load_model(word, **words)
    print(f"{word} leaves nothing open: --variant is not used.")
    return model


def run(settings: EvaluationSettings) -> list[dict]:
    """Measure everything and write the files; returns the rows.

    Raises:
        SettingsError, DataError, OfflineError, rs.ResShiftError: told as sentences.
    """
    if min(settings.crop, settings.limit, settings.seed, settings.border) < 0:
        raise SettingsError("--crop, --limit, --seed and --border must not be negative.")
    if 0 < settings.crop < CROP_LEAST:
        raise SettingsError(f"--crop is {settings.crop}; it must be 0 or at least {CROP_LEAST}.")
    models = [_load(word, settings) for word in settings.models]
    scales = {model.scale for model in models} or {4}
    if len(scales) != 1:
        raise SettingsError(f"The models have the scales {sorted(scales)}; all rows of a table must have one.")
    scale = scales.pop()
    metrics = Metrics(settings, scale)
    samples = load_samples(settings, scale, any(model.config.task == "inpaint" for model in models))
    narrow = min(samples, key=lambda sample: min(sample.lq.shape[-2:]))
    if settings.border and min(narrow.lq.shape[-2:]) * scale - 2 * settings.border < SSIM_WINDOW:
        raise SettingsError(f"--border {settings.border} leaves too little of {narrow.name} to measure.")
    candidates = [bicubic_candidate(scale)]
    for name, model in zip(short_names(settings.models), models):
        candidates += _own_candidates(settings, model, name)
    device = resolve_device(settings.device)
    candidates += [load_other(path, scale, device) for path in settings.others]
    settings.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for candidate in candidates:
        label = "_".join(filter(None, (candidate.name, candidate.steps, candidate.kappa, candidate.p)))
        label = label.replace(" ", "_").replace("/", "_")
        rows.append(measure(candidate, samples, metrics, settings.output / label if settings.save else None))
        (settings.output / "table.md").write_text(as_markdown(rows), encoding="utf-8")  # what is measured is not lost again
        write_csv(rows, settings.output / "table.csv")
    write_plot(rows, settings.output / "plot.png")
    print(f"{len(samples)} pictures\n{as_markdown(rows)}")
    if settings.truth is None and not settings.pyiqa:
        print("Without a truth nothing but the time could be measured: --pyiqa True adds CLIPIQA and MUSIQ.")
    return rows


def main(argv=None) -> int:
    """The program."""
    return exit_status(
        lambda: run(tyro.cli(EvaluationSettings, args=argv, description=__doc__, config=(tyro.conf.FlagConversionOff,)))
    )


if __name__ == "__main__":
    sys.exit(main())
