"""docs/python.md: its code runs as it stands, and it leaves nothing of the library out."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
import torch
from PIL import Image

import resshift_core as rs

from .test_layers import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, models_dir, small_model):
    """What the page takes for granted: a picture, an inpainting model in the models folder, an autoencoder."""
    Image.effect_noise((20, 16), 64).convert("RGB").save(tmp_path / "small.png")
    models_dir.mkdir()
    painter = small_model(task="inpaint", mask=True, scale=1, lq_stages=2)
    rs.save_model(painter, models_dir / "resshift_inpainting_imagenet_s4.safetensors")
    autoencoder = rs.VQGAN(rs.VQGANConfig(32, (1, 2), (1, 1), n_embed=16))
    torch.save(autoencoder.state_dict(), tmp_path / "autoencoder.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_code_runs(folder, capsys):
    found: dict = {}
    for block in BLOCK.finditer(PAGE):
        line = PAGE[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], "docs/python.md", "exec"), found)  # with the lines of the page
    assert Image.open(folder / "large.png").size == (80, 64)
    assert found["out"].shape == (1, 3, 64, 80) and found["film"].shape == found["both"].shape == (2, 3, 64, 80)
    outside = found["hole"].expand_as(found["images"]) == 0
    assert torch.equal(found["filled"][outside], found["images"][outside])
    assert found["again"].metadata["data"] == "what it was made of" and found["converted"].is_file()
    assert found["shorter"].steps == 2 and "path" not in found  # confirm said no
    said = capsys.readouterr().out
    assert "The run was stopped." in said and "steps is 0; it must be a whole number from 1 to 10000." in said
    assert "builtin Apache-2.0 is here" in said and "vq_f8_face S-Lab" in said


def test_the_shown_values_of_upscale_are_its_defaults():
    parameters = list(inspect.signature(rs.upscale).parameters.values())[2:]
    call = PAGE[PAGE.index("## Upscaling") : PAGE.index("### Frames")]
    shown = re.findall(r"^    (\w+)=(.+?),  #", call, re.MULTILINE)
    assert shown == [(p.name, repr(p.default).replace("'", '"')) for p in parameters]


def test_nothing_public_is_left_out():
    assert not [name for name in rs.__all__ if f"rs.{name}" not in PAGE and name != "__version__"]
    assert not [field.name for field in fields(rs.StepEvent) if f"`{field.name}`" not in PAGE]
