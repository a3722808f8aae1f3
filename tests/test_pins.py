"""resshift-hashes.json: noted once, compared ever after."""

from __future__ import annotations

import hashlib
import json
import os
import threading

import pytest

from resshift_core import pins
from resshift_core.errors import CheckpointError
from resshift_core.pins import check_pin, pin, pinned_sha256


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    return path


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_not_noted_may_be_anything(model):
    check_pin(model)
    assert pinned_sha256(model) is None


def test_a_noted_file_must_stay_as_it_is(model):
    pin(model, sha256(model))
    check_pin(model)
    assert pinned_sha256(model) == sha256(model)
    model.write_bytes(b"WEIGHTS")
    os.utime(model, ns=(1, 1))  # same size: only the hash can tell
    with pytest.raises(CheckpointError, match="model.pth is not the file that was downloaded at first.*Download it again"):
        check_pin(model)


def test_a_copy_with_another_date_is_the_same_file(model):
    pin(model, sha256(model))
    os.utime(model, ns=(1, 1))
    check_pin(model)


def test_an_untouched_file_is_not_hashed_again(model, monkeypatch):
    pin(model, sha256(model))
    monkeypatch.setattr(pins, "sha256_of", lambda path: pytest.fail("hashed"))
    check_pin(model)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model.pth": 3}', '{"model.pth": {}}', "\xff"])
def test_a_damaged_list_is_told(model, text):
    (model.parent / pins.PINS).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="resshift-hashes.json cannot be read.*Delete it"):
        check_pin(model)


def test_a_hash_that_is_not_text_is_compared_as_text(model):
    """Somebody may have written the list by hand: a hash of digits alone is a number then."""
    (model.parent / pins.PINS).write_text('{"model.pth": {"sha256": 12345}}')
    assert pinned_sha256(model) == "12345"


def test_a_list_that_was_edited_in_windows(model):
    (model.parent / pins.PINS).write_text('{"model.pth": {"sha256": "1"}}', encoding="utf-8-sig")
    assert pinned_sha256(model) == "1"


def test_many_at_once_lose_no_entry(tmp_path, monkeypatch):
    monkeypatch.setattr("resshift_core.file_lock.POLL_S", 0.001)
    files = [tmp_path / f"{i}.pth" for i in range(12)]
    for path in files:
        path.write_bytes(path.name.encode())
    threads = [threading.Thread(target=pin, args=(path, sha256(path))) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    noted = json.loads((tmp_path / pins.PINS).read_text())
    assert {name: value["sha256"] for name, value in noted.items()} == {path.name: sha256(path) for path in files}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files} | {pins.PINS}
