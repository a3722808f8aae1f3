"""Other upscalers with random weights: time does not depend on them. They need the extra `bench` (spandrel, diffusers)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from resshift_core.device import layout_for


def make_rrdbnet(device: torch.device, dtype: torch.dtype):
    """Real-ESRGAN's RRDBNet, x4, 16.7 M parameters."""
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    return (
        RRDBNet(in_nc=3, out_nc=3, num_filters=64, num_blocks=23, scale=4)
        .to(device, dtype, memory_format=layout_for(device))
        .eval()
    )


def make_swinir(device: torch.device, dtype: torch.dtype):
    """SwinIR for real pictures, x4, the middle size (11.7 M parameters)."""
    from spandrel.architectures.SwinIR import SwinIR

    net = SwinIR(
        upscale=4, in_chans=3, img_size=64, window_size=8, img_range=1.0, depths=[6] * 6, embed_dim=180, num_heads=[6] * 6,
        mlp_ratio=2, upsampler="nearest+conv", resi_connection="1conv",
    )  # fmt: skip
    return net.to(device, dtype).eval()


def make_ldm(device: torch.device, dtype: torch.dtype):
    """LDM's x4 super-resolution (Rombach et al., 2022) by diffusers' pipeline, of the published sizes (113.6 M and 55 M)."""
    from diffusers import DDIMScheduler, UNet2DModel, VQModel
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion_superresolution as ldm  # without transformers

    unet = UNet2DModel(
        sample_size=64, in_channels=6, out_channels=3, block_out_channels=(160, 320, 320, 640), layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"), attention_head_dim=32,
    )  # fmt: skip
    vqvae = VQModel(
        block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=3, num_vq_embeddings=8192,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    pipeline = ldm.LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler()).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def cases(side: int, device: torch.device, dtype: torch.dtype, ldm_steps: tuple[int, ...] = ()) -> dict[str, Callable]:
    """{name: run} on one picture of side x side pixels."""
    image = torch.rand(1, 3, side, side, device=device, dtype=dtype).contiguous(memory_format=layout_for(device))
    word = str(dtype).removeprefix("torch.")
    networks = {"Real-ESRGAN (RRDBNet)": make_rrdbnet(device, dtype)}
    if dtype == torch.float32:  # its attention mixes float32 into other formats
        networks["SwinIR-M"] = make_swinir(device, dtype)
    found = {f"{name}, {word}": _inference(net, image) for name, net in networks.items()}
    if ldm_steps:
        pipeline = make_ldm(device, dtype)
        for steps in ldm_steps:
            found[f"LDM-{steps}, {word}"] = _inference(pipeline, image, num_inference_steps=steps, output_type="np")
    return found


def _inference(run, image, **more) -> Callable:
    def call():
        with torch.inference_mode():
            run(image, **more)

    return call
