"""Random weights through save, detect and load: every published kind and models of our own; and every wrong combination."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import struct
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import resshift_core as rs
from resshift_core import checkpoint, registry
from resshift_core.checkpoint import CONFIG_KEY, load_autoencoder, resolve_path
from resshift_core.cli.model_file import describe_file
from resshift_core.detection import published_unet
from resshift_core.device import free_bytes, is_out_of_memory, resolve_device, resolve_dtype
from resshift_core.limits import check_model
from resshift_core.registry import REGISTRY, VARIANTS

from .standin import fill, small_model, standin_unet

FULL_SIZE = pytest.mark.slow


# ------------------------------------------------------------------------- narrow networks of the published structure


def narrow_unet(variant: str) -> rs.UNetConfig:
    """The published network at a hundredth of its size: same keys, same levels, same low-resolution branch."""
    return replace(published_unet(variant), model_channels=16, swin_channels=32)


def narrow_vqgan(name: str) -> rs.VQGANConfig:
    if name == "vq_f8_face":
        return rs.VQGANConfig(16, (1, 2, 4, 8), (1, 2, 3, 4), 8, 8, 64)
    return rs.VQGANConfig(16, (1, 2, 4), (2, 2, 2), 3, 3, 64)


@pytest.fixture(scope="session")
def narrow():
    """narrow(variant) -> (network's weights, autoencoder's weights), made once."""
    made = {}

    def weights(key, make):
        if key not in made:
            made[key] = make().state_dict()
        return dict(made[key])

    def get(variant: str):
        unet, name = narrow_unet(variant), VARIANTS[variant].autoencoder
        return (
            weights(unet, lambda: standin_unet(unet)),
            weights(name, lambda: fill(rs.VQGAN(narrow_vqgan(name)))),
        )

    return get


def with_buffers(state):
    """What training scripts register beside the weights, as published files carry it."""
    buffers = {}
    for key in state:
        if key.endswith("relative_position_bias_table"):
            stem = key.removesuffix("attn.relative_position_bias_table")
            buffers[f"{stem}attn.relative_position_index"] = torch.arange(64 * 64).reshape(64, 64)
            if ".blocks.1." in key:
                buffers[f"{stem}attn_mask"] = torch.zeros(4, 64, 64)
    assert buffers
    return {**state, **buffers}


@dataclass(frozen=True)
class Dress:
    """How a file presents weights."""

    ending: str = ".pth"
    wrapper: str = ""
    prefix: str = ""
    buffers: bool = False
    legacy: bool = False

    def write(self, state, path: Path) -> Path:
        state = with_buffers(state) if self.buffers else state
        state = {self.prefix + key: value for key, value in state.items()}
        path = path.with_suffix(self.ending)
        if self.ending == ".safetensors":
            save_file(state, path)
        else:
            torch.save({self.wrapper: state} if self.wrapper else state, path, _use_new_zipfile_serialization=not self.legacy)
        return path


DRESSES = [
    Dress(),
    Dress(".safetensors", prefix="module."),
    Dress(".safetensors", buffers=True),
    Dress(wrapper="state_dict", buffers=True),
    Dress(wrapper="params_ema", prefix="module."),
    Dress(".ckpt", wrapper="ema", prefix="_orig_mod."),
    Dress(".pt", legacy=True, prefix="module._orig_mod.", buffers=True),
    Dress(legacy=True, wrapper="state_dict", prefix="_orig_mod.module."),
]


def load(path, **settings):
    return rs.load_model(path, device="cpu", dtype=settings.pop("dtype", "fp32"), **settings)


def assert_same_weights(model, unet, autoencoder) -> None:
    for module, wanted in ((model.unet, unet), (model.autoencoder, autoencoder)):
        found = module.state_dict()
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key


@pytest.fixture(scope="session")
def autoencoder_folder(narrow, tmp_path_factory):
    """The published autoencoders, narrow, under their published names."""
    folder = tmp_path_factory.mktemp("autoencoders")
    for variant in ("realsr_x4_s4", "inpaint_face_s4", "faceir_s4"):
        name = VARIANTS[variant].autoencoder
        Dress().write(narrow(variant)[1], folder / REGISTRY[name].file)
    return folder


@pytest.fixture
def autoencoders(autoencoder_folder):
    """The same, where the registry finds them."""
    rs.add_models_dir(autoencoder_folder)


@pytest.fixture
def x4(narrow, tmp_path, autoencoders):
    """A narrow published x4 network under a name that says nothing."""
    return Dress().write(narrow("realsr_x4_s4")[0], tmp_path / "model.pth")


# ---------------------------------------------------------------------------------------------- every kind, every dress


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_finds_its_autoencoder_and_settings(narrow, autoencoders, tmp_path, variant):
    unet, autoencoder = narrow(variant)
    dress = DRESSES[list(VARIANTS).index(variant) % len(DRESSES)]
    model = load(dress.write(unet, tmp_path / "model"), variant=variant)
    assert_same_weights(model, unet, autoencoder)
    kind, config = VARIANTS[variant], model.config
    assert (config.unet, config.autoencoder) == (narrow_unet(variant), narrow_vqgan(kind.autoencoder))
    assert (config.steps, config.min_noise_level, config.scale, config.task) == (
        kind.steps, kind.min_noise_level, kind.scale, kind.task,
    )  # fmt: skip
    assert config.default_steps == (1 if variant == "sinsr_x4_s1" else kind.steps)
    assert model.schedule.steps == kind.steps and model.scale == kind.scale and config.variant == variant
    assert not model.unet.training and not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.parametrize("dress", DRESSES, ids=lambda dress: "-".join(str(value) for value in vars(dress).values() if value))
@pytest.mark.parametrize("variant", ["realsr_x4_s4", "inpaint_imagenet_s4"])
def test_every_dress(narrow, tmp_path, variant, dress):
    unet, autoencoder = narrow(variant)
    path = dress.write(unet, tmp_path / "model")
    own = Dress(dress.ending, dress.wrapper, dress.prefix, legacy=dress.legacy).write(autoencoder, tmp_path / "vq")
    assert_same_weights(load(path, variant=variant, autoencoder=own), unet, autoencoder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_as_one_file_and_back(narrow, autoencoders, tmp_path, variant):
    unet, autoencoder = narrow(variant)
    model = load(Dress().write(unet, tmp_path / "model"), variant=variant)
    path = rs.save_model(model, tmp_path / "whole.safetensors")
    again = load(path)
    assert_same_weights(again, unet, autoencoder)
    assert again.config == model.config


def test_a_model_runs_as_before_it_was_saved(narrow, autoencoders, tmp_path):
    """The low-resolution branch, the network and the autoencoder give the same numbers."""
    path = Dress(".safetensors", prefix="module.").write(narrow("realsr_x2_s4")[0], tmp_path / "model")
    model = load(path)
    again = load(rs.save_model(model, tmp_path / "x.safetensors"))
    generator = torch.Generator().manual_seed(0)
    x, lq = torch.randn(1, 3, 64, 64, generator=generator), torch.randn(1, 3, 128, 128, generator=generator)
    assert torch.equal(again.unet(x, torch.tensor([2.5]), lq=lq), model.unet(x, torch.tensor([2.5]), lq=lq))
    assert torch.equal(again.autoencoder.decode(x[..., :8, :8]), model.autoencoder.decode(x[..., :8, :8]))


@FULL_SIZE
@pytest.mark.parametrize("variant", ["realsr_x4_s4", "inpaint_imagenet_s4"])
def test_full_size(published_model, tmp_path, variant):
    model = published_model(variant)
    unet, autoencoder = model.unet.state_dict(), model.autoencoder.state_dict()
    path = Dress(wrapper="state_dict", prefix="module.", buffers=True).write(unet, tmp_path / "model")
    own = Dress().write(autoencoder, tmp_path / "vq")
    assert_same_weights(load(path, variant=variant, autoencoder=own), unet, autoencoder)


# --------------------------------------------------------------------------------------------------- models of our own


@pytest.mark.parametrize("letters", ["<b>", "a > b", "two\nlines", "x" * 201])
def test_names_and_licences_are_plain_short_texts(letters):
    """They are shown on pages and in terminals, and come from strangers."""
    for word in ("name", "licence"):
        with pytest.raises(ValueError, match=f"{word} is .*not a text of at most 200 letters"):
            check_model(replace(small_model().config, **{word: letters}))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"norm": "position", "swin_depth": 2, "swin_channels": 32, "head_channels": 16, "shift_mask": "swin", "image_size": 16},
        {"norm": "group", "channel_mult": (1, 2), "num_res_blocks": 2, "trunk_blocks": 0, "steps": 1, "default_steps": 1},
        {"steps": 8, "p": 0.7, "kappa": 1.5, "min_noise_level": 0.1, "sqrt_eta_T": 0.9, "tile": 96, "overlap": 8},
    ],
)
def test_models_of_our_own(tmp_path, overrides):
    model = small_model(**overrides)
    again = load(rs.save_model(model, tmp_path / "m.safetensors"))
    assert_same_weights(again, model.unet.state_dict(), model.autoencoder.state_dict())
    assert again.config == model.config


def test_a_model_of_our_own_upscales_as_before(tmp_path):
    model = small_model()
    again = load(rs.save_model(model, tmp_path / "m.safetensors"))
    image = torch.rand(1, 3, 9, 17, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rs.upscale(again, image), rs.upscale(model, image))


def test_metadata_travels(tmp_path):
    model = small_model(licence="CC0-1.0")
    model.metadata = {"parent": "builtin"}
    path = rs.save_model(model, tmp_path / "m.safetensors", {"training": "400 steps", "seed": 3})
    again = load(path)
    wanted = {"parent": "builtin", "training": "400 steps", "seed": "3", "licence": "CC0-1.0"}
    assert wanted.items() <= again.metadata.items() and again.config.licence == "CC0-1.0"
    assert wanted.items() <= load(rs.save_model(again, tmp_path / "n.safetensors")).metadata.items()
    mine = load(rs.save_model(again, tmp_path / "o.safetensors", {"licence": "Mine"}))
    assert mine.metadata["licence"] == mine.config.licence == "Mine" and again.config.licence == "CC0-1.0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_a_model_is_the_dtype_of_its_file(tmp_path, dtype):
    model = small_model()
    wanted = {key: value.to(dtype) for key, value in model.unet.state_dict().items()}
    path = rs.save_model(model.to(dtype=dtype), tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # this model has no codebook, which stays exact
    again = load(path, dtype=dtype)
    assert again.dtype == dtype and all(torch.equal(value, wanted[key]) for key, value in again.unet.state_dict().items())
    exact = load(path, dtype="fp32").unet.state_dict()
    assert all(torch.equal(value, wanted[key].float()) for key, value in exact.items())


def test_saving_over_the_file_a_model_came_from(tmp_path):
    path = rs.save_model(small_model(), tmp_path / "m.safetensors")
    model = load(path)
    assert load(rs.save_model(model, path)).config == model.config and os.listdir(tmp_path) == ["m.safetensors"]


def test_a_newer_configuration_is_told(tmp_path):
    path = rs.save_model(small_model(), tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        state, metadata = {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata()
    config = json.loads(metadata[CONFIG_KEY])
    for damaged in (
        {**config, "telepathy": 1},
        {**config, "steps": 0},
        {"unet": 3},
        [],
        {**config, "autoencoder": {"kind": "x"}},
    ):
        save_file(state, path, metadata={**metadata, CONFIG_KEY: json.dumps(damaged)})
        with pytest.raises(
            rs.CheckpointError, match="m.safetensors carries a configuration that this version cannot read.*Update"
        ):
            load(path)
    save_file(state, path)
    with pytest.raises(rs.CheckpointError, match="m.safetensors has lost its metadata.*Get the original"):
        load(path)
    wider = {**config, "unet": {**config["unet"], "model_channels": 24}}
    save_file(state, path, metadata={CONFIG_KEY: json.dumps(wider)})
    with pytest.raises(rs.CheckpointError, match="m.safetensors does not fit its architecture.*wrong shape"):
        load(path)
    save_file({**state, "discriminator.weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(rs.CheckpointError, match="holds 1 weights that no part of a model uses .first: discriminator.weight"):
        load(path)
    with pytest.raises(rs.CheckpointError, match="holds 1 weights that no part of a model uses .first: discriminator.weight"):
        describe_file(str(path))  # of `resshift info`, which said that all was well
    numbers = {**config, "min_noise_level": 5.0, "kappa": 1.0}
    save_file(state, path, metadata={CONFIG_KEY: json.dumps(numbers)})
    for read in (load, lambda path: describe_file(str(path))):
        with pytest.raises(rs.CheckpointError, match="min_noise_level is 5") as told:
            read(path)
        assert str(told.value).lower().count("get the file again") == 1
    levels = {**config, "autoencoder": {**rs.VQGANConfig(16, (1, 1, 1), (1, 1), 3, 3, 64).__dict__, "kind": "vqgan"}}
    save_file(state, path, metadata={CONFIG_KEY: json.dumps(levels)})
    with pytest.raises(rs.CheckpointError, match="ch_mult and num_res_blocks need one number per level; they have 3 and 2"):
        load(path)


# ---------------------------------------------------------------------------------------------------- which one it is


def test_an_unnamed_file_is_asked_about(x4):
    with pytest.raises(rs.CheckpointError, match="^model.pth.*variant=.*realsr_x4_s15, realsr_x4_s4"):
        load(x4)
    assert load(x4, variant="realsr_x4_s15").config.steps == 15


def test_the_name_decides(x4):
    path = x4.rename(x4.with_name("ResShift-RealSRx4-s15 (2).pth"))
    assert load(path).config.variant == "realsr_x4_s15"


def test_a_registry_name_decides_and_names_the_model(x4, models_dir):
    models_dir.mkdir()
    x4.rename(models_dir / "resshift_realsrx4_s15_v2.pth")
    config = load("realsr_x4_s15_v2").config
    assert (config.name, config.variant, config.steps) == ("realsr_x4_s15_v2", "realsr_x4_s15", 15)
    assert "S-Lab" in config.licence


def test_sinsr_brings_its_own_licence(narrow, autoencoders, models_dir):
    models_dir.mkdir()
    Dress().write(narrow("sinsr_x4_s1")[0], models_dir / "SinSR_v1.pth")
    assert "CC BY-NC-SA 4.0" in load("sinsr_x4_s1").config.licence


def test_an_explicit_word_wins_over_metadata_with_a_warning(x4, tmp_path, caplog):
    converted = rs.convert(x4, tmp_path / "c.safetensors", variant="sinsr_x4_s1")
    assert load(converted).config.variant == "sinsr_x4_s1" and not caplog.records
    assert load(converted, variant="bicsr_x4_s4").config.variant == "bicsr_x4_s4"
    assert "says that it is sinsr_x4_s1; it is used as bicsr_x4_s4" in caplog.text


def test_an_explicit_word_wins_over_a_saved_configuration(x4, tmp_path, caplog):
    path = rs.save_model(load(x4, variant="realsr_x4_s15"), tmp_path / "whole.safetensors")
    with caplog.at_level(logging.WARNING, "resshift"):
        model = load(path, variant="realsr_x4_s4")
    assert (model.config.steps, model.schedule.steps, model.config.min_noise_level) == (4, 4, 0.2)
    assert "says that it is realsr_x4_s15" in caplog.text
    with pytest.raises(rs.CheckpointError, match="is not a faceir_s4 model"):
        load(path, variant="faceir_s4")


def test_words_that_cannot_be(x4, tmp_path):
    with pytest.raises(rs.InputError, match="variant is 'best'; known are"):
        load(x4, variant="best")
    with pytest.raises(rs.CheckpointError, match="model.pth is not a realsr_x2_s4 model"):
        load(x4, variant="realsr_x2_s4")
    own = rs.save_model(small_model(), tmp_path / "m.safetensors")
    with pytest.raises(rs.InputError, match="carries a configuration of its own; variant='realsr_x4_s4' cannot change it"):
        load(own, variant="realsr_x4_s4")


# ------------------------------------------------------------------------------------------------- wrong combinations


def test_a_wrong_autoencoder(x4, narrow, tmp_path):
    f8 = Dress().write(narrow("faceir_s4")[1], tmp_path / "f8")
    told = "model.pth works in 3 latent channels at 1/4.*autoencoder has 8 at 1/8. realsr_x4_s4 belongs with vq_f4"
    with pytest.raises(rs.CheckpointError, match=told):
        load(x4, variant="realsr_x4_s4", autoencoder=f8)
    three_channels = fill(rs.VQGAN(rs.VQGANConfig(16, (1, 2), (1, 1), 3, 3, 16))).state_dict()
    f2 = Dress().write(three_channels, tmp_path / "f2")
    with pytest.raises(rs.CheckpointError, match="the autoencoder has 3 at 1/2"):
        load(x4, variant="realsr_x4_s4", autoencoder=f2)


def test_files_in_each_other_s_place(x4, narrow, tmp_path):
    vq = Dress().write(narrow("realsr_x4_s4")[1], tmp_path / "vq")
    with pytest.raises(
        rs.CheckpointError, match="vq.pth is an autoencoder. Choose a diffusion model, and give this file as auto"
    ):
        load(vq)
    with pytest.raises(
        rs.CheckpointError, match="model.pth is not an autoencoder but a diffusion network.*autoencoder_vq_f4.pth"
    ):
        load(x4, variant="realsr_x4_s4", autoencoder=x4)


def test_a_whole_model_without_a_vqgan_is_no_autoencoder(x4):
    with pytest.raises(rs.CheckpointError, match="builtin.safetensors is not an autoencoder but a whole model, network and"):
        load(x4, variant="realsr_x4_s4", autoencoder="builtin")


def test_a_network_of_no_kind_is_converted_without_a_question(tmp_path, caplog):
    unet = standin_unet(rs.UNetConfig(model_channels=16, swin_channels=32, lq_stages=4))
    rs.convert(Dress().write(unet.state_dict(), tmp_path / "model"), tmp_path / "c.safetensors")
    assert "of no published kind" in caplog.text and "ask again" not in caplog.text and "several" not in caplog.text


def test_the_autoencoder_inside_a_saved_model_can_be_used(x4, tmp_path, narrow):
    whole = rs.save_model(load(x4, variant="realsr_x4_s4"), tmp_path / "whole.safetensors")
    config, state = load_autoencoder(whole)
    assert config == narrow_vqgan("vq_f4") and set(state) == set(narrow("realsr_x4_s4")[1])
    assert load(x4, variant="bicsr_x4_s4", autoencoder=whole).config.variant == "bicsr_x4_s4"


def test_an_autoencoder_that_is_not_needed(tmp_path, caplog):
    path = rs.save_model(small_model(), tmp_path / "m.safetensors")
    load(path, autoencoder="vq_f4")
    assert "m.safetensors contains its autoencoder; vq_f4 is not used" in caplog.text


@pytest.mark.parametrize(
    "keys",
    [
        ["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.bias"],  # ESRGAN
        ["layers.0.residual_group.blocks.0.attn.qkv.weight", "conv_after_body.weight"],  # SwinIR
        ["first_stage_model.encoder.conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"],  # Stable Diffusion
    ],
)
def test_other_people_s_models(tmp_path, keys):
    path = Dress().write({key: torch.zeros(2, 2) for key in keys}, tmp_path / "foreign")
    with pytest.raises(rs.CheckpointError, match=f"foreign.pth is not a ResShift model but something else.*{sorted(keys)[0]}"):
        load(path)
    with pytest.raises(rs.CheckpointError, match="foreign.pth is not an autoencoder but something else"):
        load_autoencoder(path)
    with pytest.raises(rs.CheckpointError, match="foreign.pth is not a ResShift model.*not converted"):
        rs.convert(path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda key, value: None, "1 weights are missing"),
        (lambda key, value: (key + "s", value), "1 weights are missing .* 1 are unknown"),
        (lambda key, value: (key, value[:-1]), r"wrong shape .first: output_blocks.3.0.in_layers.2.bias \(31,\), not \(32,\)"),
        (
            lambda key, value: (key, value.to(torch.int8)),
            "output_blocks.3.0.in_layers.2.bias is torch.int8, not floating point",
        ),
    ],
    ids=["missing", "renamed", "shape", "integers"],
)
def test_damaged_weights(narrow, autoencoders, tmp_path, damage, told):
    state = narrow("realsr_x4_s4")[0]
    key = "output_blocks.3.0.in_layers.2.bias"
    changed = damage(key, state.pop(key))
    path = Dress().write({**state, **dict([changed] if changed else [])}, tmp_path / "model")
    with pytest.raises(rs.CheckpointError, match=f"^model.pth.*{told}"):
        load(path, variant="realsr_x4_s4")
    with pytest.raises(rs.CheckpointError, match=f"^model.pth.*{told}"):
        rs.convert(path, tmp_path / "x.safetensors", variant="realsr_x4_s4")


# --------------------------------------------------------------------------------------------------------------- paths


def test_a_model_that_is_not_here_is_told_how_to_get(models_dir):
    for name in ("realsr_x4_s4", "vq_f4"):
        entry = REGISTRY[name]
        with pytest.raises(rs.CheckpointError) as error:
            resolve_path(name)
        for word in (entry.file, entry.licence, f"resshift download {name}", entry.url, str(models_dir)):
            assert word in str(error.value)


def test_an_autoencoder_beside_the_network_is_found(narrow, models_dir, tmp_path):
    unet, autoencoder = narrow("inpaint_face_s4")
    path = Dress().write(unet, tmp_path / "my_inpaint_face_s4")
    with pytest.raises(rs.CheckpointError, match="vq_f4_face .* is not on this machine") as missing:
        load(path)
    assert missing.value.name == "vq_f4_face"
    Dress().write(autoencoder, path.parent / Path(REGISTRY["vq_f4_face"].file).stem)
    assert_same_weights(load(path), unet, autoencoder)


@pytest.mark.parametrize("spelling", [str, str.upper])
def test_a_converted_autoencoder_beside_the_network_is_found(narrow, tmp_path, spelling):
    unet, autoencoder = narrow("realsr_x4_s4")
    path = Dress().write(unet, tmp_path / "realsr_x4_s4")
    beside = Dress(".safetensors").write(autoencoder, tmp_path / "autoencoder_vq_f4")
    beside.rename(beside.with_name(spelling(beside.name)))
    assert_same_weights(load(path), unet, autoencoder)


def test_a_missing_autoencoder_is_told_as_such(narrow, tmp_path):
    path = Dress().write(narrow("realsr_x4_s4")[0], tmp_path / "model")
    with pytest.raises(rs.CheckpointError, match="vq_f4 .*is not on this machine. Run `resshift download vq_f4`"):
        load(path, variant="realsr_x4_s4")


def test_a_broken_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(rs.CheckpointError, match="weights of builtin are missing.*Install it again"):
        load("builtin")


@pytest.mark.parametrize("name", ["nothing.pth", "realsr", "", "x" * 5000, "a\0b", "no/such/file.pth"])
def test_nothing_of_that_name(name):
    with pytest.raises(rs.CheckpointError, match="There is no model file .*resshift models"):
        load(name)


def test_a_kind_is_no_model():
    with pytest.raises(rs.CheckpointError, match="Of that kind are: realsr_x4_s15_v1, realsr_x4_s15_v2"):
        load("realsr_x4_s15")
    with pytest.raises(rs.CheckpointError, match="no weights were published"):
        load("realsr_x2_s4")


def test_plain_file_names_are_found_in_the_models_folders(models_dir, tmp_path):
    rs.save_model(small_model(), models_dir / "mine.safetensors")
    assert load("mine.safetensors").config.name == "small"
    assert load("MINE.safetensors").config.name == "small"
    rs.add_models_dir(tmp_path / "host")
    rs.save_model(small_model(name="other"), tmp_path / "host" / "other.safetensors")
    assert load("other.safetensors").config.name == "other"


def test_a_file_name_in_full_means_that_file(models_dir):
    """Also where a converted one lies beside it, which a registry name would mean."""
    rs.save_model(small_model(), models_dir / "mine.safetensors")
    (models_dir / "mine.pth").write_bytes(b"")
    assert resolve_path("mine.pth") == models_dir / "mine.pth"


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(tmp_path))
    rs.save_model(small_model(), tmp_path / "mine.safetensors")
    assert load("~/mine.safetensors").config.name == "small"


# ------------------------------------------------------------------------------------------------------------- convert


def test_an_autoencoder_is_of_no_variant(narrow, tmp_path):
    path = Dress().write(narrow("realsr_x4_s4")[1], tmp_path / "vq")
    with pytest.raises(
        rs.InputError, match="vq.pth is an autoencoder, of which there are no variants. Leave .*realsr_x4_s4 out"
    ):
        rs.convert(path, tmp_path / "c.safetensors", variant="realsr_x4_s4")
    own = rs.save_model(small_model(), tmp_path / "m.safetensors")
    with pytest.raises(rs.InputError, match="carries a configuration of its own"):
        rs.convert(own, tmp_path / "c.safetensors", variant="realsr_x4_s4")
    assert not (tmp_path / "c.safetensors").exists()


def test_convert_keeps_numbers_and_cleans_names(narrow, tmp_path):
    state = narrow("inpaint_face_s4")[0]
    formats = [torch.float16, torch.bfloat16, torch.float32]
    mixed = {key: value.to(formats[i % 3]) for i, (key, value) in enumerate(state.items())}
    path = Dress(wrapper="params_ema", prefix="module.", buffers=True).write(mixed, tmp_path / "inpainting_face_s4.pth")
    converted = rs.convert(path, tmp_path / "c.safetensors")
    with safe_open(converted, framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    assert set(found) == set(state)
    assert all(value.dtype == mixed[key].dtype and torch.equal(value, mixed[key]) for key, value in found.items())
    assert metadata["variant"] == "inpaint_face_s4" and "S-Lab" in metadata["licence"]


def test_convert_says_when_it_cannot_tell(x4, tmp_path, caplog):
    converted = rs.convert(x4, tmp_path / "c.safetensors")
    assert "The converted file will ask again" in caplog.text
    with pytest.raises(rs.CheckpointError, match="variant="):
        load(converted)
    with pytest.raises(rs.CheckpointError, match="is not a faceir_s4 model"):
        rs.convert(x4, tmp_path / "d.safetensors", variant="faceir_s4")
    assert not (tmp_path / "d.safetensors").exists()


def test_convert_autoencoders_and_saved_models(narrow, tmp_path):
    vq = narrow("faceir_s4")[1]
    path = Dress(wrapper="state_dict", prefix="module.").write(vq, tmp_path / "vq")
    assert set(load_autoencoder(rs.convert(path, tmp_path / "vq.safetensors"))[1]) == set(vq)
    model = small_model()
    own = rs.save_model(model, tmp_path / "m.safetensors")
    assert load(rs.convert(own, tmp_path / "n.safetensors")).config == model.config


def test_convert_writes_over_itself_and_finds_names(models_dir, x4):
    models_dir.mkdir()
    source = x4.rename(models_dir / "resshift_realsrx4_s4_v3.pth")
    target = rs.convert("realsr_x4_s4", models_dir / "resshift_realsrx4_s4_v3.safetensors")
    source.unlink()
    assert load("realsr_x4_s4").config.variant == "realsr_x4_s4"  # the converted one is found by the same name
    assert load(rs.convert(target, target)).config.variant == "realsr_x4_s4"


def test_convert_writes_nothing_else(x4, tmp_path):
    with pytest.raises(rs.InputError, match="out.pth must end in .safetensors"):
        rs.convert(x4, tmp_path / "out.pth")
    assert os.listdir(tmp_path) == [x4.name]


# ------------------------------------------------------------------------------------------------------ dtype, device


@pytest.mark.parametrize(("word", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_dtype_asked_for(tmp_path, word, dtype):
    model = load(rs.save_model(small_model(), tmp_path / "m.safetensors"), dtype=word)
    assert model.dtype == dtype and {value.dtype for value in model.unet.state_dict().values()} == {dtype}


def test_weights_that_do_not_fit_on_the_device_are_a_sentence(tmp_path, monkeypatch):
    path = rs.save_model(small_model(), tmp_path / "m.safetensors")

    def full(self, *_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    monkeypatch.setattr(rs.ResShiftModel, "to", full)
    with pytest.raises(rs.OutOfMemory, match=r"the weights of m\.safetensors take \d+ MiB, which cpu does not have left"):
        load(path)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory available!",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Current platform can NOT allocate memory block with size larger than 4GB! Tried to allocate 6.85 GiB",
        "GET was unable to find an engine to execute this computation", "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":995, please report a bug to PyTorch.',
        "Invalid buffer size: 12.00 GB", "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "PI_ERROR_OUT_OF_RESOURCES",
    ],
)  # fmt: skip
def test_every_backends_words_for_a_lack_of_memory(words):
    assert is_out_of_memory(RuntimeError(words)) and not is_out_of_memory(ValueError(words))


@pytest.mark.parametrize(
    ("name", "major", "amd", "dtype"),
    [
        ("NVIDIA GeForce RTX 2080 Ti", 7, None, torch.float16), ("NVIDIA GeForce GTX 1660 SUPER", 7, None, torch.float32),
        ("NVIDIA T600 Laptop GPU", 7, None, torch.float32), ("NVIDIA GeForce GTX 1080", 6, None, torch.float16),
        ("NVIDIA GeForce RTX 3060", 8, None, torch.bfloat16), ("NVIDIA H100 80GB HBM3", 9, None, torch.bfloat16),
        ("Radeon RX 6800 XT", 10, "gfx1030", torch.float16), ("Radeon RX 7900 XTX", 11, "gfx1100", torch.bfloat16),
        ("AMD Radeon VII", 9, "gfx906:sramecc+:xnack-", torch.float16), ("AMD Instinct MI210", 9, "gfx90a:sramecc+", torch.bfloat16),
        ("Radeon RX 580", 8, "gfx803", torch.float16), ("AMD Radeon Graphics", 9, "gfx90c:xnack-", torch.float16),
        ("AMD Radeon Graphics", 9, "gfx909", torch.float16), ("AMD Radeon Graphics", 9, "gfx904", torch.float16),
    ],
)  # fmt: skip
def test_the_number_format_of_graphics_cards(monkeypatch, name, major, amd, dtype):
    card = types.SimpleNamespace(name=name, major=major, gcnArchName=amd)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.version, "hip", amd and "6.2")
    assert resolve_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "cuda:99", "nonsense"])
def test_a_device_that_is_not_here_is_a_sentence(device):
    with pytest.raises(rs.InputError, match="cannot be used"):
        resolve_device(device)


def test_free_memory_of_a_card_without_a_number(monkeypatch):
    """`resshift doctor` asks for that of "cuda", which torch 2.3 wants to be told as None."""

    def mem_get_info(device=None):
        assert device is None or isinstance(device, int) or device.index is not None
        return (2**30 + (device or 0), 2**34)

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert free_bytes(torch.device("cuda")) == 2**30 and free_bytes(torch.device("cuda:1")) == 2**30 + 1


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="not told on this system")
def test_free_memory_of_this_machine():
    assert 2**24 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.skipif(sys.platform == "win32", reason="as it is there")
@pytest.mark.parametrize("done, free", [(1, 5 * 2**30), (0, None)])
def test_free_memory_as_windows_tells_it(monkeypatch, done, free):
    def tell(reference):
        status = reference._obj
        assert status.length == ctypes.sizeof(status) == 64
        ctypes.memmove(ctypes.addressof(status) + 16, struct.pack("<Q", 5 * 2**30), 8)
        return done

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell)), raising=False)
    assert free_bytes(torch.device("cpu")) == free


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card that works")
def test_a_card_that_torch_sees_but_was_not_built_for_is_left_alone(monkeypatch, caplog):
    """As GTX 10 with CUDA 13's build: `is_available` says yes, the first kernel says no."""

    def ones(*size, device=None, **words):
        if torch.device(device).type != "cpu":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nFor debugging ...")
        return torch.full(size, 1.0, device=device, **words)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert resolve_device("auto").type != "cuda" and "no kernel image" in caplog.text
    with pytest.raises(rs.InputError, match="'cuda' cannot be used .*no kernel image"):
        resolve_device("cuda")


def test_a_file_called_like_a_lack_of_memory_is_none():
    assert not is_out_of_memory(OSError(28, "No space left on device", "/runs/out of memory/log.csv"))
    assert is_out_of_memory(OSError("The paging file is too small for this operation to complete. (os error 1455)"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card that works")
def test_a_card_whose_memory_is_full_is_not_passed_over(monkeypatch, caplog):
    """What others have on it may be gone in a moment; the processor would take minutes for what a card takes a second for."""

    def ones(*size, **words):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert resolve_device("auto").type == "cuda" and not caplog.text


def test_a_dtype_that_nobody_knows_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(checkpoint, "read_file", lambda path: pytest.fail("read"))
    with pytest.raises(rs.InputError, match="dtype is 'fp8'"):
        load("builtin", dtype="fp8")


@pytest.mark.parametrize("call", [
    lambda: rs.load_model(None),
    lambda: rs.load_model("builtin", device=[]),
    lambda: rs.save_model({}, "a.safetensors"),
])  # fmt: skip
def test_things_of_another_kind_are_sentences(call):
    with pytest.raises(rs.InputError, match="must be"):
        call()


def test_a_file_read_as_another_kind_keeps_its_own_licence(x4, tmp_path):
    path = rs.save_model(load(x4, variant="realsr_x4_s15"), tmp_path / "whole.safetensors", {"licence": "Mine"})
    assert load(path, variant="realsr_x4_s4").config.licence == "Mine"
