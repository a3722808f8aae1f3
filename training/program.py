"""How the programs of this folder end: every expected error as a sentence, and an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import resshift_core as rs
from resshift_core.cli.console import harmless

from .data import end_workers
from .interrupts import Stopped
from .losses import OfflineError
from .scan import DataError
from .settings import SettingsError
from .state import StateError
from .trainer import NotFinite

GOES_ON = "Make room, or look at the folder; training then goes on from its last state by --resume auto."


def exit_status(work: Callable[[], None], on_disk: str = "") -> int:
    """Run `work`. 0 done, 1 it failed, 2 wrong settings, 130 Ctrl-C, 143 SIGTERM. `on_disk`: what to do about a file's error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files, on a console that lacks the letters
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        work()
    except SettingsError as error:
        print(harmless(str(error)), file=sys.stderr)
        return 2
    except (DataError, OfflineError, NotFinite, StateError, MemoryError, rs.ResShiftError) as error:
        print(harmless(str(error)), file=sys.stderr)
        return 1
    except OSError as error:
        print(harmless(f"A file cannot be read or written ({error}). {on_disk}".rstrip()), file=sys.stderr)
        return 1
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return 130
    finally:
        end_workers()
    return 0
