"""The command line: `resshift COMMAND ...`. Each command's module is imported when that command is used."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from ..errors import InputError, ResShiftError, brief
from ..version import __version__
from .console import Console, OutputError, core_messages, harmless
from .stop import Terminated, raise_if_stopped, stoppable

# command -> (module with a function of that name, which gives the parser its arguments and its `run`; summary)
COMMANDS = {
    "upscale": ("upscale", "Upscale pictures: files, folders, patterns, or - for a pipe."),
    "models": ("models", "List the models that can be had by name, with their licences."),
    "download": ("models", "Fetch a model of that list."),
    "info": ("models", "Say what a model file is."),
    "convert": ("models", "Rewrite a model file as .safetensors."),
    "schedule": ("schedule", "Print or draw the noise schedule for given settings."),
    "doctor": ("doctor", "Say what this machine has, how fast it is, and what is wrong."),
}
REDISTRIBUTABLE = (
    "On Windows, Microsoft's Visual C++ Redistributable is mostly what is missing or too old: "
    "https://aka.ms/vs/17/release/vc_redist.x64.exe. If that does not help, install PyTorch again as pytorch.org says."
)
DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 done; 1 some input failed, the others are written; 2 wrong arguments; 130 interrupted; 143 terminated.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # Windows writes a report to a file in its old code page
    try:
        with _quiet_warnings(), stoppable():
            return _run(arguments)
    except SystemExit as stop:  # argparse, after --help or a wrong argument
        return stop.code if isinstance(stop.code, int) else WRONG_ARGUMENTS
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputError as error:
        if not error.is_closed:
            Console().error(str(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at exit
        return FAILED


def _open_streams() -> None:
    """A program started without standard output or error (`>&-`, a service, pythonw) has nobody to tell, and works all the same."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # for as long as the program runs


def _run(arguments: list[str]) -> int:
    console = Console()
    try:
        with core_messages(console), _stops_first():
            parsed = _parser(next((word for word in arguments if word in COMMANDS), None)).parse_args(arguments)
            return parsed.run(parsed, console)
    except InputError as error:
        console.error(str(error))
        return WRONG_ARGUMENTS
    except ResShiftError as error:
        console.error(str(error))
        return FAILED


class _Parser(argparse.ArgumentParser):
    """Its messages quote what the shell made of a pattern: names of files of strangers."""

    def error(self, message: str) -> NoReturn:
        super().error(harmless(message))


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` alone: the others' modules would import torch for nothing."""
    parser = _Parser(
        prog="resshift",
        description="Upscale pictures with ResShift, a short diffusion chain from the small picture to the large one.",
        epilog="`resshift COMMAND --help` lists a command's options. Exit status: 0 done, 1 some input failed, 2 wrong arguments.",
    )
    parser.add_argument("--version", action="version", version=f"resshift {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == command:
            getattr(_module(module), name)(subparser)
    return parser


def _module(name: str) -> ModuleType:
    """A command's module, which imports torch: where a library of the system is missing, that fails, and is no error of ours.

    Raises:
        ResShiftError: what is missing, and the remedy.
    """
    try:
        return import_module(f".{name}", __name__)
    except (ImportError, OSError) as error:
        remedy = REDISTRIBUTABLE if sys.platform == "win32" else "Install what it names again, PyTorch as pytorch.org says."
        raise ResShiftError(f"What this program builds on cannot be loaded: {brief(error, 400)}. {remedy}") from error


@contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Python's warnings name source lines, for developers. `python -W default` brings them back."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _stops_first() -> Iterator[None]:
    """An error after Ctrl-C or SIGTERM is what a library has made of it: pass the stop on instead."""
    try:
        yield
    except Exception:
        raise_if_stopped()
        raise
