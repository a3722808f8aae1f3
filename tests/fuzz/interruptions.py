"""kill -9, SIGTERM and Ctrl-C at random moments: `python -m tests.fuzz.interruptions --count 200` prints a summary.

Each task (upscaling a folder, converting, downloading) runs in a forked process that is stopped after a random time, again
and again on the same folder, until the number of moments is reached; then once to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import resshift_core as rs
from resshift_core import checkpoint, downloads, registry  # noqa: F401  the forked process must have nothing left to import
from resshift_core.cli import main as command_line
from resshift_core.cli import models, upscale  # noqa: F401

from .. import standin
from . import trust_own_pickles

SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
LIMIT_S = 120.0  # for a process that was asked to end
NAME = "realsr_x4_s4"


@dataclass(frozen=True)
class Task:
    """Something to interrupt, and what must hold afterwards."""

    run: Callable[[], int]  # the exit status
    folder: Path  # of the results
    again: Callable[[], None]  # makes work for the next moment where all is done


def start(task: Task) -> int:
    """Fork; the child runs the task, what it says goes to `said(task)`. Returns its process id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a Ctrl-C before `try` would run the parent's code in the child
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process
    status = 70
    try:
        log = os.open(_log(task), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        status = task.run()
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # as the interpreter does at its end: threads that write go on until they have
        os._exit(status)


def _log(task: Task) -> Path:
    return task.folder.with_suffix(".log")


def said(task: Task) -> str:
    """The last thing that the last process said."""
    lines = _log(task).read_text(errors="replace").split("\n") if _log(task).exists() else []
    return next((line.rsplit("\r", 1)[-1].strip() for line in reversed(lines) if line.strip()), "nothing")


def end(process: int) -> int | None:
    """The exit status (negative: of a signal), or None where it did not end and had to be killed."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def interrupt(
    task: Task, count: int, rng: random.Random, within: float, leftovers: tuple[str, ...] = ()
) -> tuple[Counter, list[str]]:
    """(what the processes returned, what was wrong).

    within: share of an undisturbed run in which the moments lie. leftovers: endings that may stay after any end, for resuming.
    """
    began = time.monotonic()
    status = end(start(task))
    length, whole, returned, wrong, debris = time.monotonic() - began, contents(task.folder), Counter(), [], 0
    if status != 0:
        return returned, [f"uninterrupted: exit status {status}, saying: {said(task)}"]
    for number in range(count):
        if rng.random() < 0.3 or contents(task.folder) == whole:
            task.again()
        word, before = rng.choice(sorted(SIGNALS)), contents(task.folder)
        process = start(task)
        time.sleep(rng.uniform(0, within * length))
        os.kill(process, SIGNALS[word])
        status = end(process)
        returned[f"{word}: {status}"] += 1
        if status not in (0, 130, 143, -SIGNALS[word]):
            wrong.append(f"{number}: {word} gave exit status {status}, saying: {said(task)}")
        for name, found in contents(task.folder).items():
            # of a killed process hidden files may stay (ours, or those of safetensors), and locks, which nobody holds
            if name.startswith(".") or name.endswith((".part", ".lock", *leftovers)):
                if status != -SIGNALS[word] and name not in before and not name.endswith(leftovers or ("?",)):
                    wrong.append(f"{number}: {word} left {name}")
                if name.startswith("."):  # nobody goes on from these
                    (task.folder / name).unlink()
                    debris += 1
            elif found != whole.get(name):
                wrong.append(f"{number}: {word} left {name} that is not whole")
    if (status := end(start(task))) != 0 or contents(task.folder) != whole:
        wrong.append(f"afterwards: exit status {status}, {sorted(contents(task.folder))}, saying: {said(task)}")
    returned["hidden .part files that stayed"] = debris
    return returned, wrong


# ------------------------------------------------------------------------------------------------------------ tasks


def upscaling(folder: Path) -> Task:
    inputs, out = folder / "in", folder / "out"
    inputs.mkdir()
    out.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inputs / f"{i}.png")
    model = rs.save_model(standin.small_model(), folder / "model.safetensors")
    words = ["upscale", str(inputs), "-o", str(out), "--model", str(model), "--device", "cpu", "--dtype", "fp32"]
    return Task(lambda: command_line(words), out, lambda: [path.unlink() for path in out.iterdir()])


def converting(folder: Path) -> Task:
    (folder / "converted").mkdir()
    config = rs.UNetConfig(model_channels=64, swin_channels=64, channel_mult=(1, 2), num_res_blocks=1)
    torch.save(standin.standin_unet(config).state_dict(), folder / "network.pth")
    target = folder / "converted" / "network.safetensors"
    words = ["convert", str(folder / "network.pth"), str(target), "--variant", "realsr_x4_s15", "--overwrite"]
    return Task(lambda: command_line(words), target.parent, lambda: None)


def serve(content: bytes) -> tuple[int, int]:
    """A slow server in a process of its own: (process id, port)."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
            first = int(wanted.rstrip("-"))
            self.send_response(206 if first else 200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            try:
                for at in range(first, len(content), 20000):
                    self.wfile.write(content[at : at + 20000])
                    time.sleep(0.01)
            except OSError:
                pass

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    process = os.fork()
    if not process:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.server_close()
    return process, server.server_port


def downloading(folder: Path, port: int, content: bytes) -> Task:
    store = folder / "models"
    store.mkdir()
    entry = replace(registry.REGISTRY[NAME], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    registry.REGISTRY[NAME] = entry
    os.environ.update(RESSHIFT_MODELS_DIR=str(store), RESSHIFT_MIRROR=f"http://127.0.0.1:{port}", no_proxy="127.0.0.1")

    def run() -> int:
        rs.download(NAME)
        return 0

    def terminable() -> int:
        def stop(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        return run()

    return Task(terminable, store, lambda: [path.unlink() for path in store.iterdir()])


def run(count: int, seed: int, within: float) -> dict:
    """`count` moments, shared out among the three tasks."""
    logging.getLogger("resshift").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    rng, began, summary = random.Random(seed), time.monotonic(), {"moments": 0, "wrong": [], "returned": {}}
    content = random.Random(1).randbytes(600_000)
    with tempfile.TemporaryDirectory() as name:
        server, port = serve(content)
        try:
            tasks = {
                "upscale": (upscaling(Path(name)), count - 2 * (count // 3), ()),
                "convert": (converting(Path(name)), count // 3, ()),
                "download": (downloading(Path(name), port, content), count // 3, (".pth.part", ".json")),
            }
            for word, (task, moments, leftovers) in tasks.items():
                returned, wrong = interrupt(task, moments, rng, within, leftovers)
                summary["moments"] += sum(times for what, times in returned.items() if ": " in what)
                summary["returned"][word] = dict(sorted(returned.items()))
                summary["wrong"] += [f"{word} {text}" for text in wrong]
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    return {**summary, "minutes": round((time.monotonic() - began) / 60, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="moments, over all tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--within", type=float, default=1.1, help="share of a run in which the moments lie; 0.3: while it loads"
    )
    args = parser.parse_args()
    trust_own_pickles()
    summary = run(args.count, args.seed, args.within)
    print(json.dumps(summary, indent=2))
    return int(bool(summary["wrong"]) or summary["moments"] != args.count)


if __name__ == "__main__":
    sys.exit(main())
