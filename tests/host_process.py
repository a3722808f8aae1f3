"""A host (ComfyUI, WebUI) as a subprocess: started, waited for, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
from abc import ABC, abstractmethod
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HostProcess(ABC):
    """The part that hosts share. Subclasses say what to run, and `get` a page that answers once the host is up."""

    name, start_s, first_page = "The host", 240, "/"

    def __init__(self, checkout: Path, base: Path):
        self.checkout, self.base, self.port = checkout, base, free_port()

    @abstractmethod
    def command(self) -> list[str]:
        """What starts the host."""

    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "2", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}

    @abstractmethod
    def get(self, path: str):
        """The page; raises while the host does not answer."""

    def __enter__(self):
        self.log = open(self.base / "server.log", "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            self.command(), cwd=self.checkout, stdout=self.log, stderr=subprocess.STDOUT, env=self.environment()
        )
        self._wait_until_it_answers()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        self.log.close()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + self.start_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.text()}")
            try:
                self.get(self.first_page)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise RuntimeError(f"{self.name} did not start in {self.start_s} s:\n{self.text()}")

    def text(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int:
        """Bytes of main memory that the server holds (Linux)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")
