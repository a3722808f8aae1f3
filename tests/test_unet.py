"""The network against the recorded outputs, and the structure facts.md describes."""

import math

import pytest
import torch
from safetensors import safe_open

from benchmarks.timing import operations
from resshift_core import SwinUNet, UNetConfig, winograd
from resshift_core.normalization import GroupNorm, PositionNorm
from resshift_core.unet import ResBlock, TimestepEmbedding, Trunk

from .standin import GOLDEN, UNETS, standin_unet


def recording(name: str) -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def relative(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_norms_of_groups_have_as_many_as_divide_the_channels():
    assert [GroupNorm(channels).num_groups for channels in (20, 32, 48, 320)] == [4, 32, 16, 32]


@pytest.mark.parametrize("dtype, size, tolerance", [(torch.float32, 1e-3, 1e-5), (torch.float16, 300, 2e-3)])
def test_the_norm_of_positions_is_its_formula_for_small_values_and_large_ones(dtype, size, tolerance):
    """Squares of what half precision holds are too large for it."""
    norm, x = PositionNorm(8).requires_grad_(False), size * torch.randn(2, 8, 4, 5)
    norm.weight.copy_(torch.rand(8))
    expected = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight[:, None, None]
    assert relative(norm.to(dtype)(x.to(dtype)).double(), expected) < tolerance


@pytest.mark.parametrize(
    "name, variant",
    [
        ("unet_realsr_x4_s4_64x64", "realsr_x4_s4"),
        ("unet_realsr_x4_s4_64x128", "realsr_x4_s4"),
        ("unet_inpaint_64x64", "inpaint_imagenet_s4"),
    ],
)
def test_outputs_agree_with_the_recorded_ones(published_model, name, variant):
    unet, data = published_model(variant).unet, recording(name)
    keys = [key for key in data if key.startswith("out_t")]
    assert keys
    with torch.inference_mode():
        for key in keys:
            t = torch.tensor([int(key.removeprefix("out_t"))])
            out = unet(data["x"], t, data["lq"], data.get("mask"))
            assert relative(out, data[key]) < 1e-4
            split = unet(data["x"], t, condition=unet.condition(data["lq"], data.get("mask")))
            assert torch.equal(out, split)


def test_constants_of_all_steps_change_nothing_but_the_number_of_operations(published_model, monkeypatch):
    """FiLM vectors and biases once a run: the recorded outputs again, in two batches of two pictures, with fewer operations."""
    monkeypatch.setattr(winograd.Conv3x3, "filters", lambda *args: False)  # as on a GPU: every convolution is one operation
    unet, data = published_model("realsr_x4_s4").unet, recording("unet_realsr_x4_s4_64x64")
    names = [key for key in data if key.startswith("out_t")]
    with torch.inference_mode():
        condition = unet.condition(data["lq"])
        steps = unet.constants(torch.tensor([float(key.removeprefix("out_t")) for key in names]))
        twice = {"x": data["x"].repeat(2, 1, 1, 1), "condition": condition.repeat(2, 1, 1, 1)}
        for key, constants in zip(names, steps, strict=True):
            out = unet(**twice, t=None, constants=constants)
            assert relative(out[:1], data[key]) < 1e-4 and relative(out[1:], data[key]) < 1e-4
        t = torch.tensor([0.0])
        with_them = operations(lambda: unet(data["x"], None, condition=condition, constants=steps[0]))
        without = operations(lambda: unet(data["x"], t, condition=condition))
    assert with_them <= 440 and without - with_them > 100  # 432 and 533; the published code has 1,210


def test_the_textbook_mask_would_be_far_off(published_model):
    """The recorded output needs the reference's mask: guards against a 'correction' of it."""
    unet, data = published_model("realsr_x4_s4").unet, recording("unet_realsr_x4_s4_64x64")
    blocks = [module for module in unet.modules() if getattr(module, "mask_kind", None)]
    try:
        for block in blocks:
            block.mask_kind = "swin"
        with torch.inference_mode():
            off = relative(unet(data["x"], torch.tensor([3]), data["lq"]), data["out_t3"])
    finally:
        for block in blocks:
            block.mask_kind = "resshift"
    assert off > 0.02


def test_published_size():
    with torch.device("meta"):
        unet = SwinUNet(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(118.59e6, abs=0.005e6)
    assert unet.config.latent_multiple == 64


@pytest.mark.parametrize("name", UNETS)
def test_which_blocks_shift(name):
    """Nominal 64 / 2^level decides: the lowest level (8) never shifts, the others do in every second block."""
    with torch.device("meta"):
        unet = SwinUNet(UNETS[name])
    shifted = {key for key, module in unet.named_modules() if getattr(module, "shift", 0)}
    expected = {f"input_blocks.{i}.1.blocks.1" for i in (1, 4, 7)} | {f"output_blocks.{i}.1.blocks.1" for i in (3, 6, 9)}
    assert shifted == expected


def test_time_embedding_is_cosines_then_sines_and_takes_fractions():
    embedding = TimestepEmbedding(160)
    sinusoids = []
    embedding[0].register_forward_hook(lambda module, inputs, output: sinusoids.append(inputs[0]))
    embedding(torch.tensor([2.75, 14.0]))
    for row, t in zip(sinusoids[0], (2.75, 14.0)):
        angles = [t * 10000 ** (-i / 80) for i in range(80)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected), atol=2e-6, rtol=0)


def test_fractional_time_lies_between_its_neighbours(published_model):
    unet, data = published_model("realsr_x4_s4").unet, recording("unet_realsr_x4_s4_64x64")
    with torch.inference_mode():
        out = {t: unet(data["x"], torch.tensor([t]), data["lq"]) for t in (2.0, 2.001, 3.0)}
    assert 0 < relative(out[2.001], out[2.0]) < 0.05 * relative(out[3.0], out[2.0])


@pytest.mark.parametrize(
    "words",
    [
        {"channel_mult": (1,), "swin_depth": 0, "norm": "none", "trunk_blocks": 3},
        {"channel_mult": (1, 2), "swin_channels": 32, "norm": "position", "shift_mask": "swin"},
        {"channel_mult": (1, 2, 2), "num_res_blocks": 1, "swin_channels": 64, "swin_depth": 2, "image_size": 32},
        {"lq_stages": 2, "mask": True, "channel_mult": (1,), "swin_depth": 0},
    ],
    ids=["trunk", "position-norm", "three-levels", "mask"],
)
def test_small_configurations_run(words):
    unet = standin_unet(UNetConfig(model_channels=32, **words))
    size = 2 * unet.config.latent_multiple * (2 if unet.config.swin_depth == 0 else 1)
    lq = torch.rand(2, 3, size * 2**unet.config.lq_stages, size * 2**unet.config.lq_stages)
    mask = lq[:, :1] if unet.config.mask else None
    out = unet(torch.rand(2, 3, size, size), torch.tensor([0.0, 1.5]), lq, mask)
    assert out.shape == (2, 3, size, size) and torch.isfinite(out).all()
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("out_channels", [8, 16, 24], ids=["narrower", "as wide", "wider"])
@pytest.mark.parametrize("learning", [False, True])
def test_a_block_without_a_norm_takes_its_skip_unjoined(out_channels, learning):
    """As of the joined picture, with gradients and without; "as wide" has no convolution beside the two."""
    torch.manual_seed(0)
    block = ResBlock(16, out_channels, 0, "none").requires_grad_(learning)
    x, skip = (torch.randn(2, 8, 12, 20, requires_grad=learning) for _ in range(2))
    joined = block(torch.cat([x, skip], dim=1))
    if learning:
        joined.square().sum().backward()
        expected = [tensor.grad.clone() for tensor in (x, skip, *block.parameters())]
        for tensor in (x, skip, *block.parameters()):
            tensor.grad = None
    apart = block([x.clone(), skip.clone()])
    torch.testing.assert_close(apart, joined, atol=1e-6, rtol=1e-5)
    if learning:
        apart.square().sum().backward()
        for tensor, gradient in zip((x, skip, *block.parameters()), expected):
            torch.testing.assert_close(tensor.grad, gradient, atol=1e-4, rtol=1e-4)


def test_a_unet_without_norms_joins_nothing(monkeypatch):
    """Every tensor of a step is as wide as the others: what was made large is freed in pieces, and memory grows by the holes."""
    unet = standin_unet(UNetConfig(3, 3, model_channels=32, channel_mult=(1,), num_res_blocks=1, swin_depth=0, norm="none"))
    with torch.inference_mode():
        (constants,) = unet.constants(torch.tensor([1.0]))
        monkeypatch.setattr(torch, "cat", lambda *_, **__: pytest.fail("joined"))
        condition = unet.condition(torch.rand(1, 3, 16, 16))
        assert unet(torch.rand(1, 3, 16, 16), None, condition=condition, constants=constants).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("norm, leaves", [("none", False), ("position", True), ("group", True)])
def test_an_embedding_that_all_share_goes_into_the_weights(norm, leaves, out_channels):
    """The same as where each picture has its own, with an operation less on every feature."""
    torch.manual_seed(0)
    block = ResBlock(32, out_channels, 8, norm).requires_grad_(False)
    emb, x = torch.randn(1, 8), torch.randn(2, 32, 12, 20)
    *_, film = block.prepared(block.film(emb))
    assert (film is not None) is leaves
    apart = block(x, emb.repeat(2, 1))
    torch.testing.assert_close(block(x, prepared=block.prepared(block.film(emb))), apart, atol=1e-5, rtol=1e-5)
    if norm == "none":
        pair = list(x.split([12, 20], dim=1))
        prepared = block.prepared(block.film(emb))
        torch.testing.assert_close(block([part.clone() for part in pair], prepared=prepared), apart, atol=1e-5, rtol=1e-5)


def test_a_trunk_learns_from_one_picture_as_from_several_and_says_the_same_without():
    torch.manual_seed(0)
    trunk = Trunk(torch.nn.Conv2d(3, 16, 3, padding=1), ResBlock(16, 16, 8, "none"), ResBlock(16, 16, 8, "none"))
    emb, x = torch.randn(1, 8), torch.randn(1, 3, 12, 12)
    gradients = []
    for count in (1, 2):
        trunk.zero_grad()
        out = trunk(x.repeat(count, 1, 1, 1), emb.repeat(count, 1))
        out.square().mean().backward()
        gradients.append([weight.grad.clone() for weight in trunk.parameters()])
    for one, several in zip(*gradients, strict=True):
        torch.testing.assert_close(one, several, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(trunk(x, emb), out[:1], atol=1e-5, rtol=1e-5)


def test_many_steps_share_the_weights(monkeypatch):
    """FiLM in the weights of thousands of steps would take gigabytes."""
    network = standin_unet(UNetConfig(3, 3, model_channels=32, channel_mult=(1,), num_res_blocks=1, swin_depth=0, norm="none"))
    block = network.middle_block[0]
    with torch.inference_mode():
        (few,), many = network.constants(torch.tensor([1.0])), network.constants(torch.arange(200.0))
        assert few[block][0] is not block.in_layers[2].weight and few[block][2] is None
        assert all(step[block][0] is block.in_layers[2].weight for step in many)
        words = {"x": torch.rand(1, 3, 16, 16), "t": None, "lq": torch.rand(1, 3, 16, 16)}
        apart = network(**words, constants=many[1])
        torch.testing.assert_close(network(**words, constants=few), apart, atol=1e-4, rtol=1e-4)


def test_position_norm_and_no_norm_make_tiles_exact():
    """A pixel's result must not depend on what lies beyond its reach; with GroupNorm it does."""
    for norm, exact in (("none", True), ("position", True), ("group", False)):
        config = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, swin_depth=0, norm=norm)
        unet = standin_unet(config)
        x, lq = torch.rand(1, 3, 48, 48), torch.rand(1, 3, 48, 48)
        far = x.clone()
        far[..., 40:] += 1
        with torch.inference_mode():
            a, b = (unet(part, torch.tensor([1.0]), lq)[..., :8] for part in (x, far))
        assert torch.allclose(a, b, atol=1e-6) == exact
