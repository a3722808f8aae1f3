"""What became of each picture: a line for people, a JSON record for programs, and the sum at the end."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass

from .console import Console, human_seconds, write_out

NAMES_AT_THE_END = 10  # failures that the summary names


@dataclass(frozen=True)
class Record:
    """One picture. With `--json`, one line of standard output."""

    input: str
    output: str | None
    status: str  # "done", "skipped" or "failed"
    compare: str | None = None
    input_size: tuple[int, int] | None = None  # width, height
    output_size: tuple[int, int] | None = None
    seconds: float | None = None  # of the chain, reading and writing left out
    model: str | None = None
    steps: int | None = None
    kappa: float | None = None
    p: float | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


class Report:
    """Takes records from several threads and shows them in the order of the pictures."""

    def __init__(self, console: Console, as_json: bool = False):
        self.console, self.as_json = console, as_json
        self.counts = {"done": 0, "skipped": 0, "failed": 0}
        self._failed: list[str] = []
        self._waiting: dict[int, Record] = {}
        self._tickets = self._shown = 0
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def ticket(self) -> int:
        """A place in the order; each must be given to `add` once."""
        self._tickets += 1
        return self._tickets - 1

    def add(self, ticket: int, record: Record) -> None:
        """Take a record, and show all that no earlier one is missing for."""
        with self._lock:
            self._waiting[ticket] = record
            while self._shown in self._waiting:
                self._show(self._waiting.pop(self._shown))
                self._shown += 1

    def _show(self, record: Record) -> None:
        self.counts[record.status] += 1
        for note in record.notes:
            self.console.say(f"note: {record.input}: {note}")
        if record.status == "failed":
            self._failed.append(record.input)
            self.console.error(record.error)
        elif record.status == "skipped":
            self.console.say(f"{record.input}: {record.output} is already there. --overwrite makes it again.")
        else:
            sizes = " -> ".join(f"{width} x {height}" for width, height in (record.input_size, record.output_size))
            self.console.say(f"{record.input} -> {record.output} ({sizes}, {human_seconds(record.seconds)})")
        if self.as_json:
            write_out(json.dumps(asdict(record)))

    def close(self, stopped: bool = False) -> None:
        """Show what is still waiting, and the sum."""
        with self._lock:
            for ticket in sorted(self._waiting):
                self._show(self._waiting.pop(ticket))
        if sum(self.counts.values()) > 1 or stopped:
            parts = [f"{self.counts['done']} done"]
            parts += [f"{self.counts['skipped']} skipped (already there)"] if self.counts["skipped"] else []
            parts += [f"{self.counts['failed']} failed"] if self.counts["failed"] else []
            self.console.say(f"{', '.join(parts)} in {human_seconds(time.monotonic() - self._start)}.")
        if len(self._failed) > 1:
            more = len(self._failed) - NAMES_AT_THE_END
            names = ", ".join(self._failed[:NAMES_AT_THE_END]) + (f" and {more} more" if more > 0 else "")
            self.console.say(f"Failed: {names}.")
        if stopped:
            self.console.say("Stopped. The same command goes on where this one ended.")

    @property
    def failed(self) -> bool:
        return self.counts["failed"] > 0
