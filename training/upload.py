"""Numbers on their way to the device, without a wait for what it still computes."""

from __future__ import annotations

import torch


def upload(values, device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What `torch.tensor(values, dtype=dtype, device=device)` returns, but that lets a GPU finish all that was launched first.

    Then nothing is launched ahead, and the GPU idles between two kernels for as long as Python takes. For lists: CUDA takes
    up to 64 KiB over before it returns; larger tensors must lie in pinned memory for that.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
