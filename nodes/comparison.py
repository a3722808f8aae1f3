"""The small before and after pictures that the node's slider shows."""

from __future__ import annotations

import json
import logging
import os
import uuid

import folder_paths
import torch
from PIL import Image

from ..resshift_core.resize import resize

log = logging.getLogger("resshift")

MAX_SIDE = 1024  # pixels
QUALITY = 92


def compared(before: torch.Tensor, after: torch.Tensor) -> dict:
    """The "ui" part of a node's answer: names of two temporary files, of the first frame. Both IMAGE (B, H, W, C)."""
    nothing: dict[str, list] = {"resshift_compare": []}  # with its key, by which ComfyUI joins the answers for a list
    if not len(after):
        return nothing
    try:
        height, width = after.shape[1:3]
        factor = min(1.0, MAX_SIDE / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        pair = {"before": _saved(before[0], size), "after": _saved(after[0], size), "width": width, "height": height}
        pair["picture"] = [before.shape[2], before.shape[1]]  # for the tile grid, where the page cannot know it
    except OSError as error:  # a full disk must not take the result away
        log.warning("No comparison is shown (%s).", error)
        return nothing
    return {"resshift_compare": [json.dumps(pair)]}  # text: ComfyUI counts every dict as one more picture of the run


def _saved(image: torch.Tensor, size: tuple[int, int]) -> dict[str, str]:
    """One picture (H, W, C) as a JPEG in ComfyUI's folder for temporary files."""
    pixels = image.float().cpu().nan_to_num(0).clamp(0, 1).reshape(*image.shape[:2], -1).movedim(-1, 0)[None]
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    levels = (resize(pixels, size)[0].movedim(0, -1) * 255).round().to(torch.uint8)
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    name = f"resshift_{uuid.uuid4().hex}.jpg"
    Image.fromarray(levels.contiguous().numpy()).save(os.path.join(folder, name), quality=QUALITY)
    return {"filename": name, "subfolder": "", "type": "temp"}
