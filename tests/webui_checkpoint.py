"""Writes a Stable Diffusion 1.5 checkpoint of random weights (2 GB), with which A1111 and Forge run hires fix and img2img.

    cd FORGE && PYTHON_OF_FORGE .../tests/webui_checkpoint.py FILE.safetensors

Then WEBUI_CHECKPOINT=FILE.safetensors for tests/test_webui_live.py. A1111 also wants config.json and tokenizer of
openai/clip-vit-large-patch14 in the Hub's cache; Forge's checkout has the same files under CONFIGS. The pictures are noise;
what matters is that the host's own pipelines reach our upscaler.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

SD15 = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "context_dim": 768,
}  # fmt: skip
CONFIGS = "backend/huggingface/runwayml/stable-diffusion-v1-5"


def main(target: str) -> None:
    sys.argv = [sys.argv[0], "--always-cpu"]  # the host reads it while it is imported
    sys.path[:0] = [".", "packages_3rdparty", "repositories/huggingface_guess"]
    from backend.nn.unet import IntegratedUNet2DConditionModel as UNet
    from backend.nn.vae import IntegratedAutoencoderKL as Autoencoder
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": UNet(**SD15),
        "first_stage_model.": Autoencoder.from_config(Autoencoder.load_config(f"{CONFIGS}/vae")),
        "cond_stage_model.transformer.": CLIPTextModel(CLIPTextConfig.from_pretrained(f"{CONFIGS}/text_encoder")),
    }
    weights = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_file({key: value.contiguous().clone() for key, value in halved.items()}, target)


if __name__ == "__main__":
    main(sys.argv[1])
