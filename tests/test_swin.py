"""Window attention against timm's, and the masks of shifted windows against their description, pair by pair."""

import pytest
import torch

from resshift_core.swin import (
    MASKED,
    SwinBlock,
    SwinLayer,
    WindowAttention,
    relative_position_index,
    window_kinds,
    window_masks,
)

CPU = torch.device("cpu")


def shift_mask(kind: str, rows: int, columns: int) -> torch.Tensor:
    """Of every window, (rows * columns, 64, 64)."""
    return window_masks(kind, 8)[window_kinds(kind, rows, columns, CPU)]


@pytest.fixture(scope="module")
def timm_swin():
    return pytest.importorskip("timm.models.swin_transformer")


@pytest.mark.parametrize("masked", [False, True])
def test_attention_agrees_with_timm(timm_swin, masked):
    torch.manual_seed(0)
    oracle = timm_swin.WindowAttention(dim=96, num_heads=3, window_size=8).eval()
    ours = WindowAttention(96, heads=3, window=8).eval()
    torch.nn.init.normal_(oracle.relative_position_bias_table)
    state = {key: value for key, value in oracle.state_dict().items() if key in ours.state_dict()}
    ours.load_state_dict(state, strict=True)
    x = torch.randn(8, 64, 96)  # two images of four windows
    mask = torch.where(torch.rand(4, 64, 64) < 0.3, -100.0, 0.0) if masked else None
    with torch.inference_mode():
        bias = ours.bias() + mask[:, None] if masked else None
        torch.testing.assert_close(ours(x, bias), oracle(x, mask), rtol=1e-4, atol=1e-5)


def test_the_textbook_mask_agrees_with_timm(timm_swin):
    block = timm_swin.SwinTransformerBlock(dim=32, input_resolution=(24, 40), num_heads=1, window_size=8, shift_size=4)
    torch.testing.assert_close(shift_mask("swin", 3, 5), block.attn_mask)


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (8, 8)])
def test_the_resshift_mask_is_what_the_facts_say(rows, columns):
    """Only the bottom row of windows; inside it the left 4 columns and the right 4 columns do not see each other."""
    mask = shift_mask("resshift", rows, columns).unflatten(0, (rows, columns))
    assert (mask[:-1] == 0).all()
    for window in mask[-1]:
        for query in range(64):
            for key in range(64):
                parted = (query % 8 < 4) != (key % 8 < 4)
                assert window[query, key] == (MASKED if parted else 0)


def test_unknown_mask_is_an_error():
    with pytest.raises(ValueError, match="'shifted'"):
        window_masks("shifted", 8)


def test_a_shifted_block_sees_across_window_borders_and_a_plain_one_does_not():
    """The reach of one pixel: its own window without shift, its shifted window with it."""
    torch.manual_seed(0)
    for shift, rows in ((False, range(0, 8)), (True, range(4, 12))):
        block = SwinBlock(32, 1, 8, 2, "none", shift, "swin").eval()
        x = torch.randn(1, 32, 24, 24)
        changed = x.clone()
        changed[0, :, 7, 7] += 1
        with torch.inference_mode():
            difference = (block(changed) - block(x)).abs().amax(1)[0] > 1e-6
        touched = difference.nonzero()
        assert set(touched[:, 0].tolist()) == set(rows) and set(touched[:, 1].tolist()) == set(rows)


def test_a_layer_that_never_shifts_has_no_shifted_block():
    layer = SwinLayer(16, 32, 2, 1, 8, 4, "group", shifts=False, mask_kind="resshift")
    assert [block.shift for block in layer.blocks] == [0, 0]
    layer = SwinLayer(16, 32, 2, 1, 8, 4, "group", shifts=True, mask_kind="resshift")
    assert [block.shift for block in layer.blocks] == [0, 4]


def test_what_an_upscale_keeps_serves_training():
    """Validation runs in inference mode between the steps of a training run, with windows of the same numbers."""
    window_masks.cache_clear()
    window_kinds.cache_clear()
    relative_position_index.cache_clear()
    layer = SwinLayer(8, 8, 2, 2, 8, 2.0, "group", True, "resshift")
    x = torch.rand(1, 8, 16, 16)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("at_once", [False, True])
@torch.no_grad()
def test_masks_are_what_fused_kernels_of_a_gpu_take(monkeypatch, at_once):
    """They refuse one whose last dimension is not dense; torch then makes all scores, in float32."""
    layer, masks = SwinLayer(32, 32, 2, 2, 8, 4.0, "group", True, "resshift"), []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *parts, attn_mask: masks.append(attn_mask) or attend(*parts, attn_mask=attn_mask),
    )
    layer(torch.randn(2, 32, 16, 16), {block: block.biases() for block in layer.blocks} if at_once else None)
    assert len(masks) == 2 and {mask.stride(-1) for mask in masks} == {1}
