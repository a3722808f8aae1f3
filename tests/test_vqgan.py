"""The autoencoders: recorded outputs, exact quantisation, chunking that changes nothing."""

import pytest
import torch

import resshift_core as rs
from resshift_core import SpaceToDepth, SpaceToDepthConfig, vqgan
from resshift_core.vqgan import AttnBlock, Codebook, VQGANConfig

from . import standin
from .test_unet import recording, relative


@pytest.fixture(scope="module")
def recorded():
    return recording("vq_f4_128x128")


@pytest.fixture
def autoencoder(published_model):
    return published_model("realsr_x4_s4").autoencoder


@torch.inference_mode()
def test_encoder_and_codes_agree_with_the_recorded_ones(autoencoder, recorded):
    latent = autoencoder.encode(recorded["image"])
    assert relative(latent, recorded["latent"]) < 1e-4
    assert torch.equal(autoencoder.quantize.codes(latent), recorded["codes"].long())


@torch.inference_mode()
def test_decoder_agrees_with_the_recorded_one(autoencoder, recorded):
    assert relative(autoencoder.decode(recorded["latent"]), recorded["decoded"]) < 2e-3
    assert relative(autoencoder.decode(recorded["latent"], quantize=False), recorded["decoded_unquantized"]) < 1e-4


def test_the_nearest_code_is_the_nearest(monkeypatch):
    """Against all distances at once in float64, over a number of vectors that is no multiple of the chunk; of equals, the first."""
    monkeypatch.setattr(vqgan, "CODES_CHUNK_CPU", 100)
    torch.manual_seed(0)
    book = Codebook(VQGANConfig(n_embed=512))
    torch.nn.init.normal_(book.embedding.weight)
    book.embedding.weight.data[256:] = book.embedding.weight.data[:256]
    z = torch.randn(2, 3, 17, 19)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 3).double()
    distances = torch.cdist(vectors, book.embedding.weight.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = distances.argmin(1).view(2, 17, 19)
    assert torch.equal(book.codes(z), expected)
    torch.testing.assert_close(book(z), book.embedding.weight[expected].permute(0, 3, 1, 2))


def test_converting_a_model_leaves_the_codes_exact():
    model = standin.standin_model(
        rs.ModelConfig(
            rs.UNetConfig(model_channels=32, channel_mult=(1,), swin_channels=32),
            VQGANConfig(32, (1, 1, 1), (1, 1, 1), n_embed=64),
        )
    )
    codes = model.autoencoder.quantize.embedding.weight.clone()
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype=dtype)
        assert model.autoencoder.decoder.conv_in.weight.dtype == dtype
        assert torch.equal(model.autoencoder.quantize.embedding.weight, codes)
    assert torch.equal(model.in_float32().autoencoder.quantize.embedding.weight, codes)
    copied = model.copied("cpu", torch.bfloat16)
    assert torch.equal(copied.autoencoder.quantize.embedding.weight, codes) and copied.dtype == torch.bfloat16
    assert model.to(device="meta").autoencoder.quantize.embedding.weight.device.type == "meta"
    assert model.autoencoder.to_empty(device="cpu").quantize.embedding.weight.device.type == "cpu"


def test_a_copy_lies_as_its_device_likes():
    """Copies from devices that take planes of channels, on the processor."""
    model = standin.small_model()
    model.unet.to(memory_format=torch.contiguous_format)
    conv = next(part for part in model.copied("cpu", torch.float32).unet.modules() if isinstance(part, torch.nn.Conv2d))
    assert conv.kernel_size == (3, 3) and conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_distances_without_products_find_the_same_codes(autoencoder, recorded):
    """As CUDA takes them."""
    z, book = recorded["latent"], autoencoder.quantize.embedding.weight
    vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    distances = vqgan._distances_exactly(vectors, book, book.square().sum(1))
    assert (distances.argmin(1) == autoencoder.quantize.codes(z).flatten()).float().mean() > 0.9995


def test_gradients_pass_straight_through_the_codebook():
    book = Codebook(VQGANConfig(n_embed=16))
    z = torch.randn(1, 3, 4, 4, requires_grad=True)
    weights = torch.randn(1, 3, 4, 4)
    (book(z) * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


def test_attention_in_chunks_is_attention(monkeypatch):
    torch.manual_seed(0)
    block, x = AttnBlock(32), torch.randn(2, 32, 20, 12)
    with torch.inference_mode():
        whole = block(x)
        monkeypatch.setattr(vqgan, "QUERIES_CHUNK", 37)
        torch.testing.assert_close(block(x), whole, rtol=1e-5, atol=1e-6)
        h = block.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (block.q, block.k, block.v))  # (B, C, N)
        scores = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / 32**0.5, dim=2)
        explicit = x + block.proj_out(torch.einsum("bqk,bck->bcq", scores, v).unflatten(2, (20, 12)))
    torch.testing.assert_close(whole, explicit, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_is_given_what_fused_kernels_take(monkeypatch):
    """AMD's convolutions return planes of channels; unless channels are innermost, torch makes the whole score matrix there."""
    block, given = AttnBlock(32), []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(vqgan.F, "scaled_dot_product_attention", lambda *parts: given.extend(parts) or attend(*parts))
    block(torch.randn(2, 32, 16, 16))
    assert len(given) == 3 and {part.stride(-1) for part in given} == {1}


def test_space_to_depth_loses_nothing():
    module, image = SpaceToDepth(SpaceToDepthConfig(4)), torch.rand(2, 3, 16, 24)
    latent = module.encode(image)
    assert latent.shape == (2, 48, 4, 6)
    assert torch.equal(module.decode(latent), image)
    assert torch.equal(latent[0, 16:32, 1, 2], image[0, 1, 4:8, 8:12].flatten())  # colours outermost, then rows
