"""Whole runs where every operation of tensors of two devices is an error: what a graphics card would say, without one."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import resshift_core as rs
from resshift_core.vqgan import Codebook, VQGANConfig
from training import finetune
from training.degradation import DEGRADATIONS
from training.distributed import Processes
from training.settings import TrainSettings, resolve

from . import standin
from .pretended_card import There, pretended_card
from .test_nodes import host, inpainting_model, load, upscaled  # noqa: F401 (host is a fixture)
from .test_nodes import picture as image_of
from .test_pipeline import picture

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one: pytest -m cuda"),
    pytest.mark.skipif(not hasattr(torch._C, "_ensureCUDADeviceGuardSet"), reason="this torch cannot pretend one"),
]


@pytest.fixture
def card():
    with pretended_card() as card:
        yield card


def test_tensors_of_two_devices_are_an_error(card):
    there = torch.ones(3).to("cuda")
    assert there.device.type == "cuda" and isinstance(there * 2 + 1, There) and there.sum().item() == 3
    with pytest.raises(RuntimeError, match="some tensors are on cuda:0, others"):
        there + torch.ones(3)
    assert torch.equal((there * torch.tensor(2.0)).cpu(), torch.full((3,), 2.0)), "numbers may come from anywhere, as on a card"


@pytest.mark.parametrize("variant", ["realsr_x4_s4", "realsr_x2_s4", "inpaint_imagenet_s4", "faceir_s4"])
@pytest.mark.parametrize("images_there", [False, True])
def test_published_kinds(variant, images_there, one_thread):
    lq = picture(50, 66, count=2)
    words = {"mask": (picture(50, 66, channels=1) > 0.6).float()} if "inpaint" in variant else {}
    words |= {"tile": 64, "overlap": 0, "tile_batch": 2, "steps": 2, "color_fix": "wavelet"}
    model = standin.narrow_model(variant)
    expected = rs.upscale(model, lq, **words)
    with pretended_card():
        model.to("cuda")
        assert model.device.type == "cuda"
        out = rs.upscale(
            model, lq.to("cuda") if images_there else lq, on_step=lambda event: [event.preview()] and None, **words
        )
        assert out.device.type == ("cuda" if images_there else "cpu")
        # codes are found without products of matrices on a card: random codebooks flip here and there
        assert (out.cpu() - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("words", [
    {}, {"color_fix": "wavelet"}, {"color_fix": "adain"}, {"wrap": "both"}, {"wrap": "x", "color_fix": "wavelet"},
    {"noise": "shared"}, {"noise": "periodic"}, {"scale": 2.7}, {"sampler": "deterministic"}, {"tile": None},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("images_there", [False, True])
def test_settings(card, words, channels, images_there, one_thread):
    model, lq = standin.small_model(), picture(40, 56, count=2, channels=channels)
    lq[:, -1, 10:30, 10:30] = 0
    words = {"tile": 32, "overlap": 8, "tile_batch": 3, "steps": 2, **words}
    expected = rs.upscale(model, lq, **words)
    model.to("cuda")
    out = rs.upscale(model, lq.to("cuda") if images_there else lq, **words)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-6, rtol=0)


def test_a_tile_with_more_numbers_than_kernels_count_becomes_smaller(card, one_thread, caplog, monkeypatch):
    """It would be wrong without a word (CUDA, before torch 2.7), or end the process (Apple)."""
    lq = picture(100, 100)
    expected = rs.upscale(standin.small_model(), lq, tile=64, steps=1)
    model = standin.small_model().to("cuda")
    monkeypatch.setattr("resshift_core.model.MOST_NUMBERS", 64 * 64 * 16 * 16)
    out = rs.upscale(model, lq, tile=None, steps=1)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    assert "A tile of 100 pixels makes larger tensors than cuda:0 can count; 64 is used." in caplog.text


def test_a_tile_that_overflows_is_done_again_there(card, one_thread, caplog):
    model = standin.small_model()
    model.unet.out[2].weight.fill_(3e4)
    model.to("cuda", torch.float16)
    out = rs.upscale(model, picture(40, 40), steps=1)
    assert torch.isfinite(out).all() and "done again in float32" in caplog.text


def test_codes_are_found_without_products_of_matrices_nor_cdist(card):
    """torch.cdist has a block of 256 threads for each of 8.4 million numbers, which took longer than the decoder."""
    book, z = Codebook(VQGANConfig(n_embed=64)), torch.randn(1, 3, 8, 8)
    expected, called = book.codes(z), []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Calls():
        assert torch.equal(book.to("cuda").codes(z.to("cuda")).cpu(), expected)
    assert "aten.addcmul.default" in called and not any("cdist" in name or "mm." in name for name in called)


def test_steps_neither_wait_nor_fetch(card, one_thread):
    """A step uploads its noise and launches the network; the processor waits at the end of a batch of tiles alone."""
    model = standin.small_model(steps=8).to("cuda")

    def counts(**words):
        card.counts.clear()
        rs.upscale(model, picture(60, 60), tile=32, overlap=0, tile_batch=4, **words)
        return dict(card.counts)

    few, many = counts(steps=2), counts(steps=8)
    assert few["wait"] == many["wait"] and few["down"] == many["down"]
    assert many["up"] - few["up"] == 6  # noise, of all tiles together
    assert (many["launch"] - few["launch"]) / 6 < 60


def test_previews_cost_nothing_where_nobody_looks(card, one_thread):
    model = standin.small_model().to("cuda")
    card.counts.clear()
    rs.upscale(model, picture(30, 30))
    silent = dict(card.counts)
    card.counts.clear()
    rs.upscale(model, picture(30, 30), on_step=lambda event: None)
    assert dict(card.counts) == silent


@pytest.mark.parametrize("images_there", [False, True])
@pytest.mark.parametrize("key", ["ResShiftUpscaleImage", "TiledResShiftUpscaleImage", "ResShiftInpaint"])
def test_nodes_of_comfyui(host, card, key, images_there, one_thread):  # noqa: F811
    """Weights go to the card for the run; what the host hands on lies on the processor, wherever it came from."""
    host.device = torch.device("cuda")
    inpaints = key == "ResShiftInpaint"
    socket = load(host, inpainting_model() if inpaints else None)
    image, mask = image_of(2, 40, 50, 3), torch.zeros(1, 40, 50)
    mask[:, 10:30, 10:30] = 1
    if images_there:
        image, mask = image.to("cuda"), mask.to("cuda")
    widgets = {"mask": mask} if inpaints else {"color_fix": "wavelet", "mask": mask}
    card.counts.clear()
    out = upscaled(host, key, socket, image, **widgets)
    assert out.device.type == "cpu" and not isinstance(out, There) and torch.isfinite(out).all()
    assert card.counts["launch"] > 100 and socket.model.device.type == "cuda"


def test_the_adapter_of_comfyui(host, card, one_thread):  # noqa: F811
    host.device = torch.device("cuda")
    socket = load(host)
    adapter = host.nodes["ResShiftToUpscaleModel"]().run(socket, 0, steps=0, kappa=0.0, p=0.0, color_fix="none")[0]
    out = adapter(image_of(1, 3, 40, 40).to("cuda"))  # ComfyUI's own node cuts tiles, and sends them there
    assert out.device.type == "cuda" and out.shape == (1, 3, 160, 160)


def trainer_there(model, tmp_path, **words):
    """A trainer on the card; of no more use than for what comes before the way back, which torch's engine has real cards for."""
    settings = TrainSettings(data=tmp_path, output=tmp_path, batch_size=6, precision="fp32", **words)
    return finetune.make_trainer(resolve(settings, model.config), model.to("cuda"), Processes(0, 1, torch.device("cuda:0")))


def is_ahead(card) -> bool:
    """Whether nothing since counts were cleared has waited for the card."""
    return not card.counts["wait"] and not card.counts["stall"] and not card.counts["down"]


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_degradations_do_not_wait(card, degradation, tmp_path, one_thread):
    """While the card is at one micro-batch, Python is at the next one's damage: hundreds of small kernels."""
    trainer = trainer_there(standin.small_model(), tmp_path, degradation=degradation, damaged_share=0.8, crop=32)
    card.counts.clear()
    points = trainer.chain.draw(list(range(6)), {"hr": torch.rand(6, 3, 32, 32)})
    assert points.lq.device.type == "cuda" and card.counts["launch"] and is_ahead(card)


@pytest.mark.parametrize("latent", [False, True])
def test_losses_do_not_wait(card, latent, tmp_path, one_thread):
    model = standin.narrow_model("realsr_x4_s4") if latent else standin.small_model(steps=4)
    words = {"crop": 256} if latent else {"crop": 32, "spectrum": 0.1}
    trainer = trainer_there(model, tmp_path, degradation="bicubic", rollout_share=1.0, last_step_share=0.0, **words)
    numbers, crops = list(range(2 if latent else 6)), {"hr": torch.rand(2 if latent else 6, 3, words["crop"], words["crop"])}
    points = trainer.chain.draw(numbers, crops)
    trainer.objective(trainer.net, points)  # constants of the windows go there once
    card.counts.clear()
    loss, _, _ = trainer.objective(trainer.net, points)
    assert any(t is not None for t in points.rolled) and card.counts["launch"] and is_ahead(card)
    assert torch.isfinite(loss)
