"""Files appear whole or not at all."""

from __future__ import annotations

import os
import time

import pytest

from resshift_core import atomic_file
from resshift_core.atomic_file import STALE_S, atomic_path, remove_leftovers


def test_it_appears_at_the_end(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as part:
        part.write_text("new")
        assert part.parent == tmp_path and not target.exists()
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error):
        with atomic_path(target) as part:
            part.write_text("half")
            raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_before_anything_was_written(tmp_path):
    with pytest.raises(ValueError):
        with atomic_path(tmp_path / "a.txt"):
            raise ValueError
    assert os.listdir(tmp_path) == []


def test_two_at_once_do_not_share_a_part(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert target.read_text() == "1"  # the last to end


def test_windows_is_given_time(tmp_path, monkeypatch):
    """A scanner that holds the target for a moment must not cost a result."""
    refusals = iter([PermissionError, PermissionError])
    replace = os.replace

    def refuse_twice(part, target):
        for error in refusals:
            raise error
        replace(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.os, "replace", refuse_twice)
        patch.setattr(atomic_file.time, "sleep", lambda seconds: None)
        patch.setattr(atomic_file.os, "name", "nt")
        part, target = str(tmp_path / "part"), str(tmp_path / "target")
        with open(part, "w") as file:
            file.write("x")
        atomic_file.replace(part, target)
    assert os.listdir(tmp_path) == ["target"]


def test_leftovers_of_killed_programs_go_and_nothing_else(tmp_path):
    old = time.time() - STALE_S - 60
    names = [
        ".a b.0123abcd.part",
        ".ü.ffffffff.part",
        ".young.00000000.part",
        "model.pth.part",
        ".x.part",
        ".0123abcd.part",
        "a.png",
    ]
    for name in names:
        (tmp_path / name).write_text("x")
        if "young" not in name:
            os.utime(tmp_path / name, (old, old))
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])
    remove_leftovers(tmp_path / "missing")
