"""Recognising weights: the published manifests, configurations of our own, and names as people write them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import resshift_core as rs
from resshift_core import detection, registry
from resshift_core.checkpoint_file import canonical
from resshift_core.detection import (
    autoencoder_of,
    check_entry,
    detect_autoencoder,
    detect_unet,
    find_variant,
    fitting_variants,
    is_autoencoder,
    is_unet,
    published_unet,
    unet_of,
    variant_from_name,
)
from resshift_core.errors import VariantOpen
from resshift_core.peek import peek_config

from .reference.standin_weights import is_buffer
from .standin import PARTS, REFERENCE, UNETS, VQGANS, manifest


def on_meta(shapes) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def build(module, config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return module(config).state_dict()


# --------------------------------------------------------------------------------------------- published architectures


@pytest.mark.parametrize("name", UNETS)
def test_published_networks(name):
    """Recorded keys and shapes -> a configuration whose network has exactly these, and is the one we say it is."""
    state = on_meta(manifest(name))
    assert is_unet(state) and not is_autoencoder(state)
    config = unet_of(state, name)
    with torch.device("meta"):
        assert shapes_of(rs.SwinUNet(config)) == manifest(name)
    assert config == UNETS[name]


@pytest.mark.parametrize("name", VQGANS)
def test_published_autoencoders(name):
    state = on_meta(manifest(name))
    assert is_autoencoder(state) and not is_unet(state)
    config = autoencoder_of(state, name)
    with torch.device("meta"):
        assert shapes_of(rs.VQGAN(config)) == manifest(name)
    assert config == VQGANS[name]


@pytest.mark.parametrize("name", [*UNETS, *VQGANS])
def test_buffers_of_published_files_are_dropped_and_nothing_else(name):
    raw = json.loads((REFERENCE / "manifests" / f"{name}.json").read_text())
    assert any(is_buffer(key) for key in raw) == (name in UNETS)
    assert {key: tuple(value.shape) for key, value in canonical(on_meta(raw)).items()} == manifest(name)


@pytest.mark.parametrize("variant", PARTS)
def test_every_variant_expects_its_published_shapes(variant):
    unet, autoencoder = PARTS[variant]
    assert published_unet(variant) == UNETS[unet]
    assert detection.PUBLISHED_VQGANS[registry.VARIANTS[variant].autoencoder] == VQGANS[autoencoder]
    assert variant in fitting_variants(UNETS[unet])


@pytest.mark.parametrize("name", [name for name in registry.REGISTRY if not registry.REGISTRY[name].bundled])
def test_entries_accept_their_own_architecture_and_no_other(name):
    entry = registry.REGISTRY[name]
    own = PARTS[entry.variant][0] if entry.variant else {"vq_f4_face": "vq_f4"}.get(name, name)
    for other in (*UNETS, *VQGANS):
        state = on_meta(manifest(other))
        if other == own:
            check_entry(state, entry, "x.pth")
        else:
            with pytest.raises(rs.CheckpointError, match=r"^x\.pth "):
                check_entry(state, entry, "x.pth")


# ------------------------------------------------------------------------------------------- configurations of our own


@st.composite
def unet_configs(draw):
    trunk = draw(st.integers(0, 2))
    stages = draw(st.integers(0, 2))
    out_channels = draw(st.sampled_from([3, 8, 48]))
    heads, head = draw(st.integers(1, 3)), draw(st.sampled_from([16, 56]))
    swin = draw(st.sampled_from([{}, {"swin_depth": 1}, {"swin_depth": 2}]))
    if swin:
        ratio = math.nextafter(draw(st.sampled_from([8, 488, 64 * heads])) / (heads * head), math.inf)
        swin |= {
            "swin_channels": heads * head,
            "head_channels": head,
            "window": draw(st.sampled_from([4, 8])),
            "mlp_ratio": ratio,
        }
    return rs.UNetConfig(
        in_channels=out_channels + 5 * draw(st.booleans()) * bool(trunk or stages),  # else no shape parts it from the picture
        out_channels=out_channels,
        mask=draw(st.booleans()),
        lq_stages=stages,
        model_channels=draw(st.sampled_from([16, 48])),
        channel_mult=draw(st.sampled_from([(1,), (1, 2), (2, 1, 3)])),
        num_res_blocks=draw(st.integers(1, 3)),
        norm=draw(st.sampled_from(["group", "position", "none"])),
        trunk_blocks=trunk,
        **(swin or {"swin_depth": 0}),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(unet_configs())
def test_networks_of_our_own(config):
    state = build(rs.SwinUNet, config)
    found = unet_of(state, "x")
    assert {key: value.shape for key, value in build(rs.SwinUNet, found).items()} == {k: v.shape for k, v in state.items()}
    hidden = [int(c.swin_channels * c.mlp_ratio) for c in (found, config)]  # a ratio is known as far as its product
    assert hidden[0] == hidden[1] and replace(found, mlp_ratio=config.mlp_ratio) == config


def test_a_ratio_that_a_quotient_misses():
    """56 * (488 / 56) is less than 488 in floating point, and the layer truncates."""
    assert int(56 * (488 / 56)) == 487
    ratio = math.nextafter(488 / 56, math.inf)
    state = build(
        rs.SwinUNet, rs.UNetConfig(model_channels=16, channel_mult=(1,), swin_channels=56, head_channels=56, mlp_ratio=ratio)
    )
    assert state["middle_block.1.blocks.0.mlp.fc1.weight"].shape[0] == 488
    unet_of(state, "x")


@pytest.mark.parametrize(
    "config",
    [
        rs.VQGANConfig(32, (1,), (1,), 4, 4, 16),
        rs.VQGANConfig(32, (1, 3), (2, 1), 3, 5, 32),
        rs.VQGANConfig(64, (1, 2, 2, 4, 8), (1, 1, 2, 1, 1), 8, 8, 64),
    ],
)
def test_autoencoders_of_our_own(config):
    assert detect_autoencoder(build(rs.VQGAN, config)) == config


# ----------------------------------------------------------------------------------------------------- damaged weights


def damaged(state, **changes):
    state = {**state, **{key: value for key, value in changes.items() if value is not None}}
    return {key: value for key, value in state.items() if key not in changes or changes[key] is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"out.2.weight": None}, "the weight out.2.weight is missing"),
        ({"time_embed.0.weight": None}, "the weight time_embed.0.weight is missing"),
        ({"middle_block.0.in_layers.2.bias": None}, "1 weights are missing .first: middle_block.0.in_layers.2.bias"),
        ({"extra.weight": torch.zeros(3)}, "1 are unknown .first: extra.weight"),
        (
            {"middle_block.0.in_layers.2.bias": torch.zeros(7)},
            r"wrong shape .first: middle_block.0.in_layers.2.bias \(7,\), not \(64,\)",
        ),
        (
            {"middle_block.0.in_layers.2.bias": torch.zeros(64, dtype=torch.int8)},
            "middle_block.0.in_layers.2.bias is torch.int8",
        ),
        ({"time_embed.0.weight": torch.zeros(3)}, "its shapes make no sense"),
        ({"input_blocks.1.1.blocks.0.attn.relative_position_bias_table": torch.zeros(225, 0)}, "its shapes make no sense"),
    ],
)
def test_damage_to_a_network_is_told(changes, told):
    config = rs.UNetConfig(model_channels=16, swin_channels=32)
    with torch.device("meta"):
        state = rs.SwinUNet(config).state_dict()
    with pytest.raises(rs.CheckpointError, match=rf"^model\.pth.*{told}.*Get the"):
        unet_of(damaged(state, **changes), "model.pth")


def test_a_network_without_one_of_its_ends_is_still_called_one():
    state = on_meta(manifest("unet_realsr_x4"))
    del state["time_embed.0.weight"]
    assert is_unet(state) and detection.describe(state) == "a diffusion network"


def test_damage_to_an_autoencoder_is_told():
    state = build(rs.VQGAN, rs.VQGANConfig(32, (1, 2), (1, 1), n_embed=16))
    for changes, told in (
        ({"decoder.conv_in.bias": None}, "1 weights are missing"),
        ({"encoder.conv_out.weight": None}, "the weight encoder.conv_out.weight is missing"),
        ({"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}, "shapes make no sense"),
    ):
        with pytest.raises(rs.CheckpointError, match=rf"^vq\.pth.*{told}"):
            autoencoder_of(damaged(state, **changes), "vq.pth")


def test_networks_that_share_some_keys_are_told_apart():
    """The UNet of latent diffusion has input_blocks and time_embed too."""
    foreign = {"time_embed.0.weight": (1280, 320), "input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3),
               "input_blocks.1.0.in_layers.0.weight": (320,), "input_blocks.1.0.out_layers.3.weight": (320, 320, 3, 3)}  # fmt: skip
    with pytest.raises(rs.CheckpointError, match=r"^sd\.pth does not fit its architecture"):
        unet_of(on_meta(foreign), "sd.pth")


# ------------------------------------------------------------------------------------------------------ which of them


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((entry.file, entry.variant) for entry in registry.REGISTRY.values() if entry.variant),
        ("resshift_realsrx4_s4_v3 (1).pth", "realsr_x4_s4"),
        ("ResShift-RealSRx4-s15-v2.safetensors", "realsr_x4_s15"),
        ("RealSR x4 s15.ckpt", "realsr_x4_s15"),
        ("realsr_x4_s4_ema.pt", "realsr_x4_s4"),
        ("realsr.x2.s4.pth", "realsr_x2_s4"),
        ("my_bicsr_x4_s4.pth", "bicsr_x4_s4"),
        ("SinSR.pth", "sinsr_x4_s1"),
        ("sinsr_x4_s1_fp16.safetensors", "sinsr_x4_s1"),
        ("inpainting-face-s4.pth", "inpaint_face_s4"),
        ("inpaint_s4.pth", ""),  # nothing says of what
        ("inpainting_imagenet_s4_ema.pth", "inpaint_imagenet_s4"),
        ("inpaint-ImageNet256-s4.pth", "inpaint_imagenet_s4"),
        ("inpaint_ffhq_s4.pth", "inpaint_face_s4"),
        ("inpaint_celebahq256_s4.pth", "inpaint_face_s4"),
        ("inpaint_imagenet_celeba_s4.pth", ""),
        ("faceir_s4.pth", "faceir_s4"),
        ("realsr_x4.pth", ""),
        ("realsr_x4_s40.pth", ""),
        ("model.pth", ""),
        ("s4.pth", ""),
        ("cars4.pth", ""),
        ("inpaint_s4_surfaces.pth", ""),
        ("inpaint_imagenet_s4_surfaces.pth", "inpaint_imagenet_s4"),
        ("inpaint_s4_faces.pth", "inpaint_face_s4"),
        ("realsr_x4_s4_x2blur.pth", "realsr_x4_s4"),
    ],
)
def test_names_as_people_write_them(name, variant):
    assert variant_from_name(name) == variant


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"0123456789")
    return path


def find(path, asked=None, metadata=None, unet="unet_realsr_x4") -> str:
    return find_variant(UNETS[unet], path, asked, metadata or {})


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def test_what_stays_open_is_asked_with_the_choices(path):
    with pytest.raises(VariantOpen, match="model.pth.*variant=.*realsr_x4_s15, realsr_x4_s4, bicsr_x4_s4.*sinsr_x4_s1"):
        find(path)
    with pytest.raises(rs.CheckpointError, match="variant= .--variant on.*: inpaint_imagenet_s4, inpaint_face_s4.$") as asked:
        find(path, unet="unet_inpaint")
    assert "realsr" not in str(asked.value)  # which these weights cannot be


def test_shapes_alone_decide_where_only_one_kind_fits(path):
    assert find(path, unet="unet_realsr_x2") == "realsr_x2_s4"
    assert find(path, unet="unet_faceir") == "faceir_s4"


def test_the_order_of_what_is_believed(path, monkeypatch, caplog):
    """The name, above it the hash, above it the metadata, above it the person."""
    path = renamed(path, "bicsr_x4_s4.pth")
    assert find(path) == "bicsr_x4_s4"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = replace(registry.REGISTRY["realsr_x4_s4"], size=10, sha256=digest)
    monkeypatch.setitem(registry.REGISTRY, entry.name, entry)
    assert find(path) == "realsr_x4_s4"
    assert find(path, None, {"variant": "sinsr_x4_s1"}) == "sinsr_x4_s1"
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "resshift"):
        assert find(path, "realsr_x4_s15", {"variant": "sinsr_x4_s1"}) == "realsr_x4_s15"
    assert "says that it is sinsr_x4_s1; it is used as realsr_x4_s15, as asked" in caplog.text


def test_a_glance_believes_a_file_before_its_name(tmp_path):
    """What a host's page is told of a file is what loading it will say."""
    path = tmp_path / "realsr_x4_s15.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"variant": "realsr_x2_s4"})
    config = peek_config(path)
    assert (config.variant, config.scale, config.steps) == ("realsr_x2_s4", 2, 4)


def test_the_person_agrees_with_the_file(path, caplog):
    assert find(path, "sinsr_x4_s1", {"variant": "sinsr_x4_s1"}) == "sinsr_x4_s1"
    assert find(path, "realsr_x4_s15") == "realsr_x4_s15"
    assert not caplog.records


def test_hints_that_shapes_contradict_are_not_believed(path):
    with pytest.raises(rs.CheckpointError, match="variant="):
        find(path, None, {"variant": "realsr_x2_s4"})
    with pytest.raises(rs.CheckpointError, match="variant="):
        find(path, None, {"variant": "nonsense"})
    with pytest.raises(rs.CheckpointError, match="variant="):
        find(renamed(path, "faceir_s4.pth"))


def test_a_word_that_shapes_contradict(path):
    with pytest.raises(rs.CheckpointError, match="is not a realsr_x2_s4 model.*0 stages and no mask.*It may be: realsr_x4_s15"):
        find(path, "realsr_x2_s4")
    with pytest.raises(rs.CheckpointError, match="It may be: inpaint_imagenet_s4, inpaint_face_s4"):
        find(path, "realsr_x4_s4", unet="unet_inpaint")


def test_a_word_that_nobody_knows(path):
    with pytest.raises(rs.InputError, match="variant is 'realsr'; known are realsr_x4_s15"):
        find(path, "realsr")


def test_a_network_of_no_published_kind(path):
    with pytest.raises(rs.CheckpointError, match="of no published kind"):
        find_variant(rs.UNetConfig(lq_stages=4), path, None, {})


def test_only_files_of_a_known_size_are_hashed(path, monkeypatch):
    monkeypatch.setattr(detection, "sha256_of", lambda path: pytest.fail("hashed"))
    with pytest.raises(rs.CheckpointError):
        find(path)


def test_detection_needs_no_numbers():
    """Configurations are read from shapes: half precision, or no memory at all, tell the same."""
    state = {key: value.half() for key, value in on_meta(manifest("unet_inpaint")).items()}
    assert detect_unet(state) == UNETS["unet_inpaint"]
