"""The shipped models: there, free of seams and casts, better than bicubic or crisper, the same on every run."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import resshift_core as rs
from training.degradation import bicubic
from training.metrics import texture

from . import standin

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model():
    return rs.load_model("builtin", device="cpu")


@pytest.fixture(scope="module")
def real():
    return rs.load_model("builtin-real", device="cpu")


@pytest.fixture(scope="module", params=["builtin", "builtin-real"])
def either(request):
    return rs.load_model(request.param, device="cpu")


@pytest.fixture(scope="module")
def photo():
    """The README's sample as a float tensor, sides cropped to multiples of 4. (1, 3, H, W) in [0, 1]."""
    pixels = np.array(Image.open(ROOT / "docs" / "images" / "sample.png").convert("RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    return image[..., : image.shape[2] // 4 * 4, : image.shape[3] // 4 * 4]


def psnr_y(a, b):
    """Of luma (ITU-R 601, 16..235), without a rim of 4 pixels."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    difference = ((a - b) * weights).sum(1)[..., 4:-4, 4:-4]
    return -10 * torch.log10(difference.square().mean()).item()


@pytest.mark.parametrize(("name", "card"), [("builtin", "MODEL_CARD.md"), ("builtin-real", "MODEL_CARD_REAL.md")])
def test_file_is_small_licensed_and_described(name, card):
    path = ROOT / "resshift_core" / "weights" / f"{name}.safetensors"
    assert path.stat().st_size < 12 * 2**20
    model = rs.load_model(name, device="cpu")
    assert model.config.licence == "Apache-2.0" and model.scale == 4 and model.config.default_steps == 4
    assert json.loads(model.metadata["training"])["iterations"] > 0
    assert f"`{name}.safetensors`" in (path.parent / card).read_text(encoding="utf-8")


def test_it_beats_bicubic_with_all_four_steps(model, photo):
    small = bicubic(photo)
    plain = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
    steps = []
    out = rs.upscale(model, small, on_step=lambda event: steps.append(event.step) if event.phase == "step" else None)
    assert steps == [1, 2, 3, 4]
    assert psnr_y(out, photo) > psnr_y(plain, photo) + 0.3
    assert (out.mean((2, 3)) - small.mean((2, 3))).abs().max() < 0.5 / 255  # no colour cast


def test_the_network_is_not_an_interpolation_in_disguise(either, photo):
    """Every step's network call changes the picture: guards against weights that do nothing."""
    states = []
    rs.upscale(either, photo[..., :32, :32], on_step=lambda e: states.append(e.preview()) if e.phase == "step" else None)
    assert all(not torch.equal(a, b) for a, b in zip(states, states[1:]))
    assert max(p.abs().max().item() for p in either.unet.out[2].parameters()) > 0


FLAT = torch.full((1, 3, 150, 170), 0.5)
GRADIENT = torch.linspace(0.1, 0.9, 170).expand(1, 3, 150, 170).contiguous()


@pytest.mark.parametrize(("name", "least"), [("builtin", 36.5), ("builtin-real", 33.5)])
def test_borders_of_sides_that_are_no_multiple_of_anything(name, least, photo):
    """PSNR of the last 4 rows and columns; what is mirrored beyond them counts (34.1 and 31.7 dB where the last pixel is not)."""
    truth = photo[..., 2:142, 2:222]
    out = rs.upscale(rs.load_model(name, device="cpu", dtype="fp32"), bicubic(truth))
    parts = (out - truth)[..., -4:, :], (out - truth)[..., -4:]
    assert sum(-10 * torch.log10(part.square().mean()).item() for part in parts) / 2 > least


@pytest.mark.parametrize("lq", [FLAT, GRADIENT], ids=["flat", "gradient"])
def test_tiles_show_no_seam(either, lq):
    """Whole pictures and tiles of 64 and 128 agree within 4 of 255 levels, and stay near what bicubic gives."""
    whole = rs.upscale(either, lq, tile=None)
    for tile in (64, 128):
        tiled = rs.upscale(either, lq, tile=tile)
        assert (tiled - whole).abs().max() * 255 < 4
    smooth = F.interpolate(lq, scale_factor=4, mode="bicubic")
    assert (whole - smooth).abs().max() * 255 < 6


def test_tiles_cannot_be_told_on_a_photograph(model, photo):
    """Detail makes seams harder to see but easier to measure: under one level anywhere."""
    whole = rs.upscale(model, photo, tile=None)
    assert (rs.upscale(model, photo, tile=64) - whole).abs().max() * 255 < 1


def test_flat_areas_have_no_speckle(either):
    out = rs.upscale(either, FLAT[..., :64, :64]) * 255
    assert out.std() < 1 and abs(out.mean() - 127.5) < 0.5


def test_seeds_change_little(model, photo):
    """A fidelity model: pictures of different seeds are over 35 dB apart."""
    a, b = (rs.upscale(model, photo[..., :64, :64], seed=seed) for seed in (1, 2))
    assert not torch.equal(a, b)
    assert -10 * torch.log10((a - b).square().mean()) > 35


def test_alone_in_a_batch_and_again(either, photo):
    lq = photo[..., :48, :48]
    first = rs.upscale(either, lq, seed=3)
    assert torch.equal(rs.upscale(either, lq, seed=3), first)
    batch = rs.upscale(either, lq.expand(2, -1, -1, -1), seed=[3, 3], tile_batch=2)
    assert (batch - first).abs().max() * 255 < 1


@pytest.mark.parametrize("name", ["builtin", "builtin-real"])
def test_default_precision_is_close_to_float32(name, photo):
    lq = photo[..., :64, :64]
    exact = rs.upscale(rs.load_model(name, device="cpu", dtype="fp32"), lq)
    for dtype in ("auto", "bf16"):
        out = rs.upscale(rs.load_model(name, device="cpu", dtype=dtype), lq)
        error = (out - exact).square().mean().clamp_min(1e-12)
        assert -10 * torch.log10(error) > 45


def test_the_real_one_is_crisper(model, real, photo):
    """Nearer to the original's energy at high frequencies, and no cast."""
    small = bicubic(photo)
    faithful, crisp = (rs.upscale(each, small) for each in (model, real))
    less, more = (texture(out, photo, 4) for out in (faithful, crisp))
    assert more > 1.3 * less and abs(1 - more) < abs(1 - less)
    assert (crisp.mean((2, 3)) - small.mean((2, 3))).abs().max() < 1 / 255


def test_the_real_one_takes_noise_and_jpeg_out(real):
    """Of a flat picture most of what enlarging leaves; a disc is restored with and without JPEG after the noise."""

    def noisy(image, levels):
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * levels / 255
        return (image + noise).clamp(0, 1)

    def enlarged(small):
        return F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)

    flat = noisy(torch.full((1, 3, 48, 48), 0.5), 12)
    assert rs.upscale(real, flat).std() < 0.4 * enlarged(flat).std()
    x = torch.arange(192.0)
    inside = ((x - 90).square() + (x[:, None] - 100).square() < 70**2).float()
    disc = torch.stack([0.2 + 0.6 * inside, 0.3 + 0.3 * inside, 0.7 - 0.5 * inside])[None]
    stored = io.BytesIO()
    pixels = noisy(bicubic(disc), 20)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stored, "JPEG", quality=70)
    compressed = torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1)[None].float() / 255
    for damaged in (compressed, noisy(bicubic(disc), 12)):
        assert psnr_y(rs.upscale(real, damaged), disc) > psnr_y(enlarged(damaged), disc) + 2


def test_steps_and_kappa_trade_texture_against_fidelity_as_in_the_papers_table_1(real, photo):
    small, trained = bicubic(photo), real.schedule.kappa

    def measure(**settings):
        out = rs.upscale(real, small, **settings)
        return texture(out, photo, 4), -psnr_y(out, photo)

    pairs = ({"steps": 2}, {}), ({}, {"steps": 8}), ({}, {"kappa": trained / 4}), ({"kappa": trained * 3}, {})
    for faithful, crisp in pairs:
        assert all(a < b for a, b in zip(measure(**faithful), measure(**crisp))), (faithful, crisp)


def test_the_recipe_is_the_files(real):
    first, recipe = (
        json.loads((ROOT / f"training/configs/{name}.json").read_text(encoding="utf-8"))["training"]
        for name in ("builtin-real", "builtin-real-continue")
    )
    assert first["kappa"] == real.schedule.kappa
    trained = json.loads(real.metadata["training"])
    assert {name: trained[name] for name in recipe} == recipe


@pytest.mark.cuda
def test_cuda_gives_the_same_picture(model, photo):
    on_gpu = rs.upscale(rs.load_model("builtin", device="cuda", dtype="fp32"), photo[..., :64, :64])
    exact = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), photo[..., :64, :64])
    assert -10 * torch.log10((on_gpu - exact).square().mean()) > 60


def test_the_shipping_tool_averages_and_names(tmp_path, monkeypatch):
    pytest.importorskip("tyro")  # the tool reads settings of training
    spec = importlib.util.spec_from_file_location("ship_builtin", ROOT / "tools/ship_builtin.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.manual_seed(0)
    result, parent = standin.small_model(trunk_blocks=3), standin.small_model(trunk_blocks=1)
    files = [
        rs.save_model(model, tmp_path / f"{name}.safetensors", {"steps_trained": "7", "training": "{}"})
        for name, model in (("result", result), ("parent", parent))
    ]
    monkeypatch.setattr(tool, "WEIGHTS_DIR", tmp_path)
    words = [str(files[0]), "six pictures", "--iterations-before", "5", "--average-with", str(files[1]), "--share", "0.25"]
    monkeypatch.setattr("sys.argv", ["ship_builtin", *words[:-1], "5"])
    with pytest.raises(SystemExit, match="--share is 5.0"):
        tool.main()
    monkeypatch.setattr("sys.argv", ["ship_builtin", *words])
    tool.main()
    shipped = rs.load_model(tmp_path / "builtin.safetensors", device="cpu", dtype="fp32")
    assert shipped.metadata["steps_trained"] == "12" and shipped.metadata["data"] == "six pictures"
    assert shipped.config.name == "builtin" and shipped.config.licence == "Apache-2.0"
    for key, mixed in (
        ("trunk.1.in_layers.2.weight", 0.25),
        ("trunk.3.out_layers.3.weight", None),
    ):  # None: it adds nothing yet
        old = parent.unet.state_dict()[key] if mixed else 0
        wanted = 0.75 * result.unet.state_dict()[key] + 0.25 * old
        assert torch.allclose(shipped.unet.state_dict()[key], wanted, atol=1e-3)


def test_a_models_own_weights_are_all_taken_and_no_others():
    model = rs.load_model("builtin", device="cpu")
    own = model.state_dict()
    with pytest.raises(RuntimeError, match=r"2 weights belong to no part of the model \(first: stray.weight\)"):
        model.load_state_dict({**own, "stray.weight": torch.zeros(1), "unett.out.2.bias": torch.zeros(3)})
    model.load_state_dict({name: torch.zeros_like(weight) for name, weight in own.items()})
    assert not any(weight.any() for weight in model.state_dict().values())
