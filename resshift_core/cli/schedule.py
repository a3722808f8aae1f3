"""`resshift schedule`: the table of the chain for given settings, and its drawing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError
from . import arguments as types
from .console import Console, write_out
from .table import text_table


def schedule(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift schedule`."""
    types.add_chain(parser)
    parser.add_argument(
        "--model",
        default="builtin",
        metavar="NAME|FILE",
        help="whose trained schedule the settings start from: a name of `resshift models`, a variant or a file (default: builtin)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw sqrt(eta_t) against the trained curve")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the table; draw it if asked."""
    from ..image_io import write_picture
    from .model_file import trained_schedule
    from .plot import plot_schedule

    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {args.plot} must end in .png.")
    trained, usual_steps = trained_schedule(args.model)
    asked = trained.retime(args.steps or usual_steps, args.kappa, args.p)
    columns = {"sqrt_eta": asked.sqrt_eta, "eta": asked.eta, "tau": asked.tau}
    rows = [{"t": t, **{name: float(values[t - 1]) for name, values in columns.items()}} for t in range(1, asked.steps + 1)]
    if args.json:
        write_out(json.dumps({"steps": asked.steps, "kappa": asked.kappa, "p": asked.p, "table": rows}, indent=2))
    else:
        cells = [[str(row["t"]), *(f"{row[name]:.{digits}f}" for name, digits in zip(columns, (6, 6, 4)))] for row in rows]
        write_out(text_table(("t", *columns), cells, right=(0, 1, 2, 3)))
    if args.plot is not None:
        write_picture(plot_schedule(trained, asked), args.plot, "PNG")
        console.say(f"{args.plot} is written.")
    return 0
