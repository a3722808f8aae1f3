"""A disk that is really full: a small file system in memory, which only an administrator on Linux can mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs
from training import finetune
from training.trainer import Trainer

from .standin import small_model
from .test_downloads import server  # noqa: F401 (a fixture)
from .test_reliability_pictures import upscale  # noqa: F401 (a fixture)
from .training_run import arguments, make_pictures, save_tiny_model, weights


class Disk:
    """A mounted file system of `kib`; the path of its root is `root`."""

    def __init__(self, root: Path, kib: int):
        self.root = root
        self._mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.root)], check=True, capture_output=True)

    def resize(self, kib: int) -> None:
        self._mount("-o", f"remount,size={kib}k")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def make_disk(tmp_path):
    """make_disk(kib) -> Disk; skips where mounting is not allowed."""
    disks = []

    def make(kib: int) -> Disk:
        root = tmp_path / f"disk{len(disks)}"
        root.mkdir()
        try:
            disks.append(Disk(root, kib))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here ({error})")
        return disks[-1]

    yield make
    for disk in disks:
        subprocess.run(["umount", "--lazy", str(disk.root)], check=True)


def test_a_picture_that_does_not_fit(make_disk, upscale):  # noqa: F811
    disk, noise = make_disk(512), np.random.default_rng(0)
    for name, side in (("a.png", 8), ("b.png", 200), ("c.png", 8)):
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(name)
    status, records = upscale(".", "-o", str(disk.root / "out"))
    assert status == 1 and [record["status"] for record in records.values()] == ["done", "failed", "done"]
    assert "cannot be written" in records["b.png"]["error"] and "space" in records["b.png"]["error"]
    assert disk.files() == ["out/a_x4.png", "out/c_x4.png"]
    disk.resize(8192)
    status, records = upscale(".", "-o", str(disk.root / "out"))
    assert status == 0 and [record["status"] for record in records.values()] == ["skipped", "done", "skipped"]


def test_a_model_that_does_not_fit(make_disk):
    disk, model = make_disk(64), small_model()
    with pytest.raises(rs.CheckpointError, match="model.safetensors cannot be written .*make room"):
        rs.save_model(model, disk.root / "model.safetensors")
    assert disk.files() == []


@pytest.mark.parametrize("asked", [True, False], ids=["too little from the start", "gone on the way"])
def test_a_download_that_does_not_fit(make_disk, server, monkeypatch, asked):  # noqa: F811
    disk = make_disk(100)
    monkeypatch.setenv("RESSHIFT_MODELS_DIR", str(disk.root))
    if not asked:  # somebody else takes the room after the program asked for it
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    with pytest.raises(rs.DownloadError, match="make room, or choose a folder that can be written with RESSHIFT_MODELS_DIR"):
        rs.download("realsr_x4_s4")
    assert not [name for name in disk.files() if name.endswith(".pth")]
    disk.resize(1024)
    path = rs.download("realsr_x4_s4")
    assert path.stat().st_size == 200_000 and disk.files() == [path.name]


def test_training_stops_with_a_sentence_and_goes_on(make_disk, tmp_path, monkeypatch, capfd):
    pictures, model = make_pictures(tmp_path / "pictures"), save_tiny_model(tmp_path / "tiny.safetensors")
    unbroken, disk = tmp_path / "unbroken", make_disk(4096)
    output, filler = disk.root / "run", disk.root / "filler"
    words = ("--iterations", 6, "--save-every", 2, "--validate-every", 6)
    assert finetune.main(arguments(pictures, unbroken, model, *words)) == 0
    step = Trainer.step

    def fill_the_disk(trainer, *batch):
        if trainer.position.iteration == 3:
            filler.write_bytes(bytes(os.statvfs(disk.root).f_bavail * os.statvfs(disk.root).f_frsize - 8192))
        return step(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", fill_the_disk)
    capfd.readouterr()
    assert finetune.main(arguments(pictures, output, model, *words)) == 1
    said = capfd.readouterr().err
    assert "Make room" in said and "--resume auto" in said and "Traceback" not in said
    assert [name[:19] for name in disk.files() if "state" in name] == ["run/state/000000002"]
    monkeypatch.setattr(Trainer, "step", step)
    filler.unlink()
    assert finetune.main(arguments(pictures, output, model, *words, "--resume", "auto")) == 0
    found, wanted = weights(output / "last.safetensors"), weights(unbroken / "last.safetensors")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
