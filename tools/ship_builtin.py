"""Makes a shipped model out of a training run's result: float16 weights, its name, and what its card says in the metadata.

    python tools/ship_builtin.py OUT/last.safetensors "123 CC0 pictures, 8 % drawn; ..." --iterations-before 2500
    python tools/ship_builtin.py OUT/last.safetensors "..." --average-with PARENT.safetensors --share 0.3

The second averages the weights with those of the model that the run began with (Wortsman et al., "Robust fine-tuning of zero-shot
models", CVPR 2022): what the run unlearned at the edge of its data comes back, and little of what it learned is lost.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import resshift_core as rs  # noqa: E402
from resshift_core.registry import REGISTRY, WEIGHTS_DIR  # noqa: E402
from training.program import exit_status  # noqa: E402
from training.resize import resize_trunk  # noqa: E402

LIMIT = 12 * 2**20  # bytes: the repository travels often


def average(model: rs.ResShiftModel, other: rs.ResShiftModel, share: float) -> None:
    """Move the weights of `model` by `share` towards those of `other`, whose trunk may be shorter.

    Raises:
        SystemExit: `other` is another network.
    """
    blocks, width = model.config.unet.trunk_blocks, model.config.unet.model_channels
    if blocks != other.config.unet.trunk_blocks:
        other = resize_trunk(other, blocks)
    if width != other.config.unet.model_channels:
        raise SystemExit(f"The other model has {other.config.unet.model_channels} channels, this one {width}.")
    weights, own = other.state_dict(), model.state_dict()
    estimator = [key for key in weights if key.startswith("unet.degradation.")]
    if weights.keys() != own.keys() or any(not torch.equal(weights[key], own[key]) for key in estimator):
        raise SystemExit("Only one of the models is told of degradations, or another estimator tells it.")
    model.load_state_dict({key: value.lerp(weights[key], share) for key, value in own.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("data", help="what it was trained on")
    parser.add_argument("--iterations-before", type=int, default=0, help="of the models it started from")
    parser.add_argument("--average-with", type=Path, help="a model of the same line")
    parser.add_argument("--share", type=float, default=0.3, help="of its weights in the average")
    parser.add_argument("--name", choices=["builtin", "builtin-real"], default="builtin")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        raise SystemExit(f"--share is {args.share}; it must lie between 0 and 1.")
    model = rs.load_model(args.result, device="cpu", dtype="fp32")
    if args.average_with:
        average(model, rs.load_model(args.average_with, device="cpu", dtype="fp32"), args.share)
    if not {"steps_trained", "training"} <= model.metadata.keys():
        raise SystemExit(f"{args.result} is no result of training/finetune.py: it does not say how it was trained.")
    model.config = replace(model.config, name=args.name, licence="Apache-2.0")
    metadata = {
        "data": args.data,
        "steps_trained": str(args.iterations_before + int(model.metadata["steps_trained"])),
        "training": model.metadata["training"],
        "parent_sha256": model.metadata.get("parent_sha256", ""),
        "licence": "Apache-2.0",
    }
    path = WEIGHTS_DIR / REGISTRY[args.name].file
    size = sum(weight.numel() * 2 for weight in model.state_dict().values())
    if size > LIMIT:
        raise SystemExit(f"{path} would have {size / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}.")
    rs.save_model(model.to(dtype=torch.float16), path, metadata)
    print(f"{path}: {size / 2**20:.2f} MiB, {metadata['steps_trained']} iterations")


if __name__ == "__main__":
    sys.exit(exit_status(main))
