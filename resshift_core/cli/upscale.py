"""`resshift upscale`: pictures in, larger pictures out."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..arguments import NOISES
from ..checkpoint import load_model
from ..color import COLOR_FIXES
from ..device import PROCESSOR, first_that_fits, resolve_device, resolve_dtype
from ..errors import InputError, ResShiftError
from ..heap import kept_memory
from ..image_io import MAX_PIXELS
from ..model import ResShiftModel
from ..pipeline import upscale as upscale_tensor
from ..ranks import Rank
from ..registry import REGISTRY
from ..sampler import SAMPLERS
from ..wrap import WRAPS
from . import arguments as types
from .batch import Batch, Chain, Handling, names_alike, seed_for
from .console import Console
from .report import Record, Report
from .sources import Job, Naming, find_sources, plan, split_earlier_outputs

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(upscale_tensor).parameters.items()}
EXAMPLES = """examples:
  resshift upscale photo.jpg                      writes photo_x4.jpg beside it
  resshift upscale photo.jpg -o large.png
  resshift upscale holiday -o large --recursive   a folder; run it again to go on after an interruption
  resshift upscale - < small.png > large.png
"""

SMALL_PIXELS = 1 << 20  # far below what could hurt


def upscale(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift upscale`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help='files, folders, patterns such as "*.jpg", or - for standard input'
    )
    _add_files(parser.add_argument_group("files"))
    types.add_model(parser)
    _add_chain(types.add_chain(parser))
    _add_geometry(parser.add_argument_group("size and memory"))
    talk = parser.add_argument_group("messages")
    talk.add_argument("--json", action="store_true", help="one JSON record per picture on standard output")
    talk.add_argument("--quiet", action="store_true", help="only warnings and errors")
    parser.set_defaults(run=run)


def _add_files(group) -> None:
    group.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="a file for one input, else a folder; - for standard output (default: IN_x4.ext beside each input)",
    )
    group.add_argument(
        "--format", metavar="EXT", help="write all outputs as png, jpg, webp, tiff, avif or bmp (default: as each input)"
    )
    group.add_argument(
        "--quality",
        type=types.whole(1, 100),
        metavar="N",
        help="of the formats with loss, 1 to 100 (default: jpg and webp 95, avif 90)",
    )
    group.add_argument(
        "--suffix",
        metavar="TEXT",
        help="what the outputs' names have after the input's; --suffix= for the same names, in a folder of their own (default: "
        "_x4, with the scale)",
    )
    group.add_argument(
        "--recursive", action="store_true", help="also take the folders in the folders; the output keeps their structure"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="make outputs again that are already there (default: skip them)"
    )
    group.add_argument("--compare", action="store_true", help="also write a before/after sheet, IN_x4_compare.png")
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="for inpainting models: white is filled in (255; from half bright, 128, on), black is kept (0); or a folder with a "
        "mask of the same name for each input",
    )
    group.add_argument(
        "--max-pixels",
        type=types.whole(0),
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse inputs larger than this; 0 = any size (default: {MAX_PIXELS})",
    )


def _add_chain(group) -> None:
    group.add_argument(
        "--seed",
        type=int,
        default=DEFAULTS["seed"],
        metavar="S",
        help="of the noise; the same seed gives the same picture (default: %(default)s)",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default=DEFAULTS["sampler"],
        help="deterministic: noise at the start only (default: %(default)s)",
    )
    group.add_argument(
        "--noise",
        choices=NOISES,
        default="shared",
        help="shared: every picture uses the seed itself; per_image: the file's name is mixed into it; periodic: shared, and "
        "repeating every 480 pixels (default: %(default)s)",
    )
    group.add_argument(
        "--color-fix",
        choices=COLOR_FIXES,
        default=DEFAULTS["color_fix"],
        help="take the colours from the input (default: %(default)s)",
    )


def _add_geometry(group) -> None:
    group.add_argument(
        "--scale",
        type=types.number,
        default=DEFAULTS["scale"],
        metavar="X",
        help="output size over input size, any number up to 64 (default: the model's own)",
    )
    group.add_argument(
        "--wrap",
        choices=WRAPS,
        default=DEFAULTS["wrap"],
        help="directions in which the picture continues at its opposite side, for textures (default: %(default)s)",
    )
    group.add_argument(
        "--tile",
        type=types.tile,
        default=DEFAULTS["tile"],
        metavar="N",
        help="input pixels per tile; 0 = the whole picture at once (default: %(default)s)",
    )
    group.add_argument(
        "--overlap",
        type=types.whole(0),
        default=DEFAULTS["overlap"],
        metavar="N",
        help="of neighbouring tiles, input pixels (default: the model's own)",
    )
    group.add_argument(
        "--tile-batch",
        type=types.whole(0),
        default=DEFAULTS["tile_batch"],
        metavar="N",
        help="tiles that are computed together; 0 = what fits on an NVIDIA or AMD GPU, elsewhere 1 (default)",
    )


# ---------------------------------------------------------------------------------------------------- running


def run(args: argparse.Namespace, console: Console) -> int:
    """Upscale all inputs. Returns the exit status."""
    rank = Rank.from_environment()
    console.quiet = args.quiet
    console.prefix = f"[{rank.index}] " if rank.count > 1 else ""
    naming = Naming.from_arguments(args.output, args.format, args.compare, args.inputs, args.suffix)
    _check(args, naming)
    found = find_sources(args.inputs, args.recursive, naming.folder)
    sources, outputs = split_earlier_outputs(found.sources, naming, args.overwrite)
    if outputs and rank.index == 0:
        some = ", ".join(source.label for source in outputs[:3]) + (" ..." if len(outputs) > 3 else "")
        words = {str(Path(word)) for word in args.inputs}
        named = any(source.label in words for source in outputs)  # by a person, or by a shell from a pattern
        (console.warn if named else console.say)(f"{'' if named else 'note: '}left out {_earlier(len(outputs))} ({some}).")
    for paths, why in (
        (found.inside, "that lie in the output folder"),
        (found.unknown, "that Pillow cannot read"),
    ):
        if paths and rank.index == 0:
            console.say(f"note: left out {len(paths)} {why} ({paths[0]}{' ...' if len(paths) > 1 else ''}).")
    report = Report(console, args.json)
    model = _load(args, rank) if sources else None
    jobs, more = plan(sources, naming, args.scale or model.scale) if sources else ([], [])
    for problem in found.problems + more if rank.index == 0 else ():
        report.add(report.ticket(), Record(problem.label, None, "failed", error=problem.error))
    if model is not None:
        _run(args, console, report, model, rank.share(jobs), rank, names_alike(sources))
    else:
        report.close()
    return int(rank.any_failed(report.failed))


def _earlier(count: int) -> str:
    return f"{count} earlier outputs among the inputs" if count > 1 else "an earlier output among the inputs"


def _check(args: argparse.Namespace, naming: Naming) -> None:
    """What must be said before minutes are spent."""
    if args.json and naming.pipe:
        raise InputError("--json and the picture both want standard output. Write the picture to a file with -o FILE.")
    if args.mask is not None and not os.path.exists(args.mask):
        raise InputError(f"There is no mask {args.mask}. Check the path.")
    folder = naming.folder or (naming.file and naming.file.parent)
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), None) if folder else None
    if there and not there.is_dir():
        raise InputError(f"-o {args.output}: {there} is a file, so that no folder of that name can be made. Choose another.")


def _load(args: argparse.Namespace, rank: Rank) -> ResShiftModel:
    """The model; whatever is wrong with it is a wrong argument, for no input has been tried yet."""

    def load(device: torch.device) -> ResShiftModel:
        return load_model(args.model, autoencoder=args.autoencoder, variant=args.variant, device=device, dtype=args.dtype)

    try:
        device = resolve_device(rank.device(args.device))
        attempts = [(lambda: load(device), "")]
        if args.device == "auto":
            attempts.append((lambda: load(torch.device("cpu")), PROCESSOR))
        model = first_that_fits(attempts, device)
    except ResShiftError as error:
        raise InputError(str(error)) from error
    inpaints = model.config.task == "inpaint"
    if inpaints and args.mask is None:
        raise InputError("This model fills holes: give --mask FILE, a picture of the same size that is white in the hole.")
    # no pictures: the core checks the arguments, once and before anything is read
    upscale_tensor(model, torch.zeros(0, 3, 8, 8), mask=torch.zeros(0, 1, 8, 8) if args.mask else None, **_arguments(args))
    return model


def _arguments(args: argparse.Namespace) -> dict:
    """Keyword arguments of the core's `upscale` that are the same for all pictures."""
    names = ("steps", "kappa", "p", "sampler", "tile", "overlap", "tile_batch", "color_fix", "scale", "wrap")
    noise = "shared" if args.noise == "per_image" else args.noise  # of a call with one picture; see `seed_for`
    return {"noise": noise, **{name: getattr(args, name) for name in names}}


def _run(
    args, console: Console, report: Report, model: ResShiftModel, jobs: list[Job], rank: Rank, alike: frozenset[str]
) -> None:
    schedule = model.schedule.retime(args.steps or model.config.default_steps, args.kappa, args.p)
    chain = Chain(
        _name(args.model, model), schedule.steps, schedule.kappa, schedule.p, args.seed, args.sampler, args.noise,
        args.color_fix, args.scale or model.scale, args.wrap, args.tile, args.overlap,
    )  # fmt: skip
    batch = Batch(
        model,
        lambda job: replace(chain, seed=seed_for(args.seed, args.noise, job)),
        _arguments(args),
        Handling(args.overwrite, args.max_pixels, args.mask, alike, args.quality),
        console,
        report,
        _on_processor(args, model),
    )
    # Pillow refuses twice its limit, also in what it decodes before it tells a size; `read_picture` is exact. It looks at crops, too:
    # those of a sheet are small
    most = max(args.max_pixels, SMALL_PIXELS) if args.max_pixels else None
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most
    try:
        with warnings.catch_warnings(), kept_memory(model.device):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            batch.run(jobs, show_progress=rank.index == 0)
    except KeyboardInterrupt:
        report.close(stopped=True)
        raise
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    report.close()


def _on_processor(args, model: ResShiftModel) -> Callable[[], ResShiftModel] | None:
    """For pictures that do not fit on a device that was not asked for: a copy of the model, made once."""
    if args.device != "auto" or model.device.type == "cpu":
        return None
    place = torch.device("cpu")
    return functools.cache(lambda: model.copied(place, resolve_dtype(args.dtype, place)))


def _name(asked: str, model: ResShiftModel) -> str:
    """What pictures and records call the model: its name, or its file's, without folders."""
    return asked if asked in REGISTRY else model.config.name or Path(asked).stem
