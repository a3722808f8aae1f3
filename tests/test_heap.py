"""Memory between layers: kept while a run computes, given back after it, and only where the C library is GNU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resshift_core import heap
from resshift_core.heap import KEPT, USUAL, kept_memory

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
RUNS = """
import json, resource, threading, torch
import resshift_core as rs
from resshift_core.heap import kept_memory
model = rs.load_model("builtin", device="cpu", dtype="fp32")
picture, faults = torch.rand(1, 3, 128, 128), []

def run():
    with kept_memory(torch.device("cpu")):
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            rs.upscale(model, picture)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if {thread}:
    thread = threading.Thread(target=run)
    thread.start(), thread.join()
else:
    run()
print(json.dumps(sum(faults[2:])))
"""


@pytest.fixture
def calls(monkeypatch):
    """What the C library is told, in order."""
    told = []
    library = SimpleNamespace(
        mallopt=lambda number, value: told.append((number, value)) or 1, malloc_trim=lambda pad: told.append("trim")
    )
    monkeypatch.setattr(heap, "_library", lambda: library)
    return told


def faults(thread: bool, **more: str) -> int:
    environment = {key: value for key, value in os.environ.items() if key not in heap.CHOSEN}
    words = [sys.executable, "-c", RUNS.replace("{thread}", str(thread))]
    done = subprocess.run(words, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(heap._library() is None, reason="another C library, or one that was set up")
@pytest.mark.parametrize("thread", [False, True])
def test_pages_are_not_taken_anew_for_every_layer(thread):
    """Hosts compute in threads of their own, whose heaps are others."""
    as_usual = faults(thread, GLIBC_TUNABLES="glibc.malloc.arena_test=8")  # which is the default
    assert faults(thread) < as_usual / 3


def test_of_several_runs_the_first_begins_and_the_last_ends(calls):
    with kept_memory(CPU):
        assert calls == list(KEPT.items())
        with kept_memory(CPU):
            pass
        assert calls == list(KEPT.items())
    assert calls == [*KEPT.items(), *USUAL.items()]


def test_a_run_that_fails_ends_it_too(calls):
    with pytest.raises(ValueError), kept_memory(CPU):
        raise ValueError
    assert calls == [*KEPT.items(), *USUAL.items()]


def test_runs_of_several_threads_give_all_heaps_back(calls):
    def overlapping():
        with kept_memory(CPU):
            pass

    with kept_memory(CPU):
        thread = threading.Thread(target=overlapping)
        thread.start(), thread.join()
    assert calls == [*KEPT.items(), *USUAL.items(), "trim"]
    calls.clear()
    with kept_memory(CPU):
        pass
    assert calls == [*KEPT.items(), *USUAL.items()]  # one alone does not: its next run would take all pages anew


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_process_does_not_wait_for_its_parent_s_run(calls):
    with kept_memory(CPU):
        calls.clear()
        child = os.fork()
        if not child:
            with kept_memory(CPU):
                os._exit(0 if calls == [*USUAL.items(), *KEPT.items()] else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_process_has_the_threads_of_its_own_runs_alone(calls):
    begun, ends = threading.Event(), threading.Event()

    def beside():
        with kept_memory(CPU):
            begun.set(), ends.wait()

    thread = threading.Thread(target=beside)
    thread.start(), begun.wait()
    child = os.fork()
    if not child:
        calls.clear()
        with kept_memory(CPU):
            pass
        os._exit(0 if calls == [*KEPT.items(), *USUAL.items()] else 1)
    ends.set(), thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_run_elsewhere_tells_the_processor_s_memory_nothing(calls):
    with kept_memory(torch.device("meta")):
        pass
    assert calls == []


def test_an_older_library_takes_what_it_can(monkeypatch):
    told = []
    refuses = lambda number, value: told.append(value) or int(value <= 32 << 20 or number != heap.MMAP_THRESHOLD)  # noqa: E731
    monkeypatch.setattr(heap, "_library", lambda: SimpleNamespace(mallopt=refuses, malloc_trim=None))
    with kept_memory(CPU):
        assert told == [64 << 20, 32 << 20, 64 << 20, 1 << 30]


@pytest.mark.parametrize("name", heap.CHOSEN)
def test_what_the_user_chose_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    heap._library.cache_clear()
    try:
        assert heap._library() is None
    finally:
        monkeypatch.undo()
        heap._library.cache_clear()


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    heap._library.cache_clear()
    try:
        with kept_memory(CPU):
            assert heap._library() is None
    finally:
        monkeypatch.undo()
        heap._library.cache_clear()
