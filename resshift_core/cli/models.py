"""`resshift models`, `download`, `info` and `convert`: the files that models come in."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from ..errors import InputError
from ..registry import VARIANTS, list_models, search_dirs
from .console import BREAKS, Console, harmless, human_bytes, write_out
from .table import text_table

TASKS = {"sr": "upscale", "inpaint": "fill in", "face": "faces", "autoencoder": "autoencoder"}


def _add_variant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant", choices=tuple(VARIANTS), metavar="WORD", help=f"what it is, if it cannot be told: {', '.join(VARIANTS)}"
    )


# ---------------------------------------------------------------------------------------------------- models


def models(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift models`."""
    parser.add_argument("--json", action="store_true", help="the registry as JSON")
    parser.set_defaults(run=run_models)


def run_models(args: argparse.Namespace, console: Console) -> int:
    """Print the registry."""
    entries = list_models()
    if args.json:
        write_out(json.dumps(entries, indent=2))
        return 0
    rows = [
        (
            entry["name"], TASKS[entry["task"]], f"x{entry['scale']}" if entry["steps"] else "", str(entry["steps"] or ""),
            human_bytes(entry["size"]), entry["licence"], "yes" if entry["present"] else "no",
        )
        for entry in entries
    ]  # fmt: skip
    write_out(text_table(("name", "task", "scale", "steps", "size", "licence", "present"), rows, right=(3, 4)))
    console.say(f"Looked for in {', '.join(str(folder) for folder in search_dirs())}. `resshift download NAME` fetches one.")
    return 0


# ---------------------------------------------------------------------------------------------------- download


def download(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift download`."""
    parser.add_argument("name", metavar="NAME", help="of `resshift models`; an autoencoder that it needs comes with it")
    parser.add_argument("--quiet", action="store_true", help="no progress; the licence is shown all the same")
    parser.set_defaults(run=run_download)


def run_download(args: argparse.Namespace, console: Console) -> int:
    """Show the licence, then fetch."""
    from ..downloads import download_url, download_with_autoencoder

    def show_licence(entry) -> bool:
        console.warn(
            f"{entry.name} ({entry.file}, {human_bytes(entry.size)}) is under the {entry.licence}. Fetching {download_url(entry)}"
        )
        return True

    console.quiet = args.quiet
    with _Bars(console) as bars:
        paths = download_with_autoencoder(args.name, on_progress=bars, confirm=show_licence)
    for path in paths:
        console.say(f"{path} is there.")
    return 0


class _Bars:
    """A progress bar for each file of a download."""

    def __init__(self, console: Console):
        self.console, self._open, self._progress = console, None, None
        self._total, self._seen = -1, 0

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error) -> None:
        if self._open is not None:
            self._open.__exit__(*error)

    def __call__(self, count: int, total: int | None) -> None:
        if self._open is None or total != self._total or count < self._seen:
            self.__exit__(None, None, None)
            self._open, self._total, self._seen = self.console.progress(total or 0, unit="B"), total, 0
            self._progress = self._open.__enter__()
        self._progress.advance(count - self._seen)
        self._seen = count


# ---------------------------------------------------------------------------------------------------- info


def info(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift info`."""
    parser.add_argument("file", metavar="FILE", help="a model file, or a name of `resshift models`")
    _add_variant(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace, console: Console) -> int:
    """Print what a file is."""
    from .model_file import describe_file

    facts = describe_file(args.file, args.variant)
    if args.json:
        write_out(json.dumps(asdict(facts), indent=2))
        return 0
    kinds = {
        "model": "a ResShift model with its autoencoder",
        "network": "a ResShift network; its autoencoder is a file of its own",
        "autoencoder": "an autoencoder",
    }
    variant = facts.variant or facts.open_question or "none of the published ones"
    lines = [
        ("file", facts.file),
        ("kind", kinds[facts.kind]),
        *([("variant", variant)] if facts.kind != "autoencoder" else []),
        ("registered as", ", ".join(facts.registered_as) or "nothing known by this hash"),
        ("parameters", f"{facts.parameters / 1e6:.2f} M"),
        ("number format", ", ".join(f"{name} ({count / 1e6:.2f} M)" for name, count in facts.dtypes.items())),
        ("size", human_bytes(facts.bytes)),
        ("sha256", facts.sha256),
        *_flat("config", facts.config),
        *_flat("metadata", facts.metadata),
    ]
    width = max(len(name) for name, _ in lines)
    write_out("\n".join(f"{_one_line(name).ljust(width)}  {_one_line(value)}" for name, value in lines))
    return 0


def _one_line(value) -> str:
    """What a file says must not look like a line of ours."""
    return harmless(str(value)).translate(BREAKS)


def _flat(name: str, values: dict) -> list[tuple[str, object]]:
    """Nested dictionaries as lines: config.unet.model_channels ..."""
    lines = []
    for key, value in values.items():
        lines += _flat(f"{name}.{key}", value) if isinstance(value, dict) else [(f"{name}.{key}", value)]
    return lines


# ---------------------------------------------------------------------------------------------------- convert


def convert(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resshift convert`."""
    parser.add_argument("source", metavar="IN", help="a .pth, .pt, .ckpt or .safetensors file, or a name of `resshift models`")
    parser.add_argument("target", metavar="OUT.safetensors")
    _add_variant(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace, console: Console) -> int:
    """Rewrite a file as .safetensors."""
    from ..checkpoint import convert as convert_file
    from ..checkpoint_file import is_file

    target = os.path.expanduser(args.target)  # where no shell has done so
    if is_file(target) and not args.overwrite:
        raise InputError(f"{target} is already there. Choose another name, or add --overwrite.")
    path = convert_file(args.source, target, args.variant)
    console.say(f"{args.source} -> {path} ({human_bytes(path.stat().st_size)}). `resshift info {path}` says what it is.")
    return 0
