"""One run at a time in a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resshift_core.file_lock import file_lock

from .distributed import Processes
from .settings import SettingsError

LOCK = ".running"
PATIENCE = 20.0  # seconds: the loader processes of a run that was killed notice it late


@contextmanager
def alone_in(output: Path, processes: Processes) -> Iterator[None]:
    """`output`, made if it is not there, for this run alone; two would overwrite each other's states.

    Raises:
        SettingsError: it cannot be made or written into, or another run is at work in it.
    """
    waited = None

    def wait() -> None:
        nonlocal waited
        if waited is None:
            waited = time.monotonic()
            print(f"Another run is at work in {output}; waiting for its end for {PATIENCE:.0f} seconds.", flush=True)
        if time.monotonic() - waited > PATIENCE:
            raise SettingsError(f"Another run is at work in {output}. Stop it, or choose another --output.")

    with ExitStack() as held:
        problem = None
        if processes.first:
            try:
                output.mkdir(parents=True, exist_ok=True)
                held.enter_context(file_lock(output / LOCK, wait))
            except SettingsError as error:
                problem = str(error)
            except OSError as error:
                problem = f"--output {output} cannot be made a folder, or is not yours to write into ({error})."
        problem = processes.share(problem)
        if problem:
            raise SettingsError(problem)
        yield
