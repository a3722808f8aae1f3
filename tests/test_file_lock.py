"""The lock between processes: one holder at a time, freed by every kind of end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from resshift_core import file_lock as module
from resshift_core.file_lock import file_lock

ROOT = Path(__file__).parent.parent
HOLD = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("file_lock", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.file_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


class GaveUp(Exception):
    pass


def give_up():
    raise GaveUp


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    lock = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLD, str(lock), str(ROOT / "resshift_core" / "file_lock.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "held"
        yield lock, process
        process.kill()


def test_another_process_is_kept_out_until_it_is_killed(holder):
    lock, process = holder
    with pytest.raises(GaveUp):
        with file_lock(lock, give_up):
            pytest.fail("the lock was had twice")
    process.kill()
    process.wait()
    with file_lock(lock, give_up):
        assert lock.exists()
    assert not lock.exists()  # nothing is left behind


def test_threads_take_turns_however_many_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("resshift_core.file_lock.POLL_S", 0.001)
    inside, most, turns = [], [], []

    def work():
        for _ in range(5):
            with file_lock(tmp_path / "x.lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()
                turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(turns) == 40 and max(most) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
def test_a_lock_on_a_deleted_file_does_not_count(tmp_path, monkeypatch):
    """The holder before us deletes its file; whoever had it open already would lock a file that nobody else sees."""
    path, lock = tmp_path / "x.lock", module._lock

    def lock_after_deletion(handle):
        path.unlink()
        monkeypatch.setattr(module, "_lock", lock)
        return lock(handle)

    monkeypatch.setattr(module, "_lock", lock_after_deletion)
    waits = []
    with file_lock(path, lambda: waits.append(1)):
        assert waits == [1] and path.exists()
        with pytest.raises(GaveUp), file_lock(path, give_up):
            pytest.fail("the lock was had twice")


def test_an_error_inside_frees_it(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError):
            with file_lock(tmp_path / "x.lock", give_up):
                raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_cannot_be_deleted_is_freed_all_the_same(tmp_path, monkeypatch):
    """As on some network drives."""

    def refuse(*_, **__):
        raise OSError(errno.ETXTBSY, "Text file busy")

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(2):
        with file_lock(tmp_path / "x.lock", give_up):
            pass
    assert (tmp_path / "x.lock").exists()


def test_windows_may_refuse_a_file_that_is_being_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0)
    acquire, refused = module._try_acquire, []

    def refuse(path, times=3):
        if len(refused) < times:
            refused.append(1)
            raise PermissionError(errno.EACCES, "Access is denied")
        return acquire(path)

    monkeypatch.setattr(module, "_try_acquire", refuse)
    monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(module, "_lock", lambda handle: True)
    monkeypatch.setattr(module, "_release", lambda path, handle: os.close(handle))
    with file_lock(tmp_path / "x.lock", give_up):  # nobody is told that somebody else holds it
        assert len(refused) == 3
    monkeypatch.setattr(module, "_try_acquire", lambda path: refuse(path, 10**6))
    with pytest.raises(PermissionError), file_lock(tmp_path / "x.lock"):
        pass
    assert len(refused) == 4 + module.DENIED
