"""Numbers on their way to the device, without a wait for what it still computes."""

from __future__ import annotations

import torch


def may_run_ahead(device) -> bool:
    """Whether a transfer may go on when its source is forgotten: not on Apple's GPU, which reads what lies there by then."""
    return torch.device(device).type == "cuda"


def upload(values, device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What `torch.tensor(values, dtype=dtype, device=device)` returns, but that lets a GPU finish all that was launched first.

    Then nothing is launched ahead, and the GPU idles between two kernels for as long as Python takes. For lists: CUDA takes
    up to 64 KiB over before it returns; larger tensors must lie in pinned memory for that.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=may_run_ahead(device))
