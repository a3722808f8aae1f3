"""Interleaved timing: every case once a round, in turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def interleaved(
    cases: dict[str, Callable], rounds: int, device: torch.device, warm: bool = True, least: float = 0.0
) -> dict[str, float]:
    """{name: median seconds} of `rounds` runs each, after one that does not count, or of as many as take `least` seconds a round."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    if warm:
        for run in cases.values():
            run()
    for number in range(rounds):
        order = list(cases)[number % len(cases) :] + list(cases)[: number % len(cases)]
        for name in order:
            ends = time.perf_counter() + least
            times[name].append(seconds(cases[name], device))
            while time.perf_counter() < ends:
                times[name].append(seconds(cases[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def flops(run: Callable) -> int:
    """Floating-point operations of the products and convolutions in one run, as torch counts them (2 per multiply-add)."""
    with FlopCounterMode(display=False, custom_mapping=_on_processors()) as counter:
        run()
    return counter.get_total_flops()


def _on_processors() -> dict:
    """What torch's counter leaves out: attention on a processor, and the products of `resshift_core.matmul`."""

    def attention(q, k, *more, out_shape=None, **settings):
        return 4 * math.prod(q) * k[-2]

    def product(a, b, *more, out_shape=None, **settings):
        return 2 * math.prod(a) * b[0]

    names = ("aten", "_scaled_dot_product_flash_attention_for_cpu", attention), ("mkldnn", "_linear_pointwise", product)
    known = ((getattr(getattr(torch.ops, library), name, None), count) for library, name, count in names)
    return {operator: count for operator, count in known if operator is not None}


class _Operations(TorchDispatchMode):
    """Counts what makes new values: views of what is there launch nothing."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += not (function.is_view or function._schema.name == "aten::_unsafe_view")
        return result


def operations(run: Callable) -> int:
    """torch's operations in one run, views apart: on a GPU each is a kernel or more to launch."""
    with _Operations() as counter:
        run()
    return counter.count


def peak_mib(run: Callable, device: torch.device) -> float | None:
    """MiB that a run takes at its peak above what was held before; None where this machine does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs left in the allocator's hands would hide this one's needs
        CLEAR.write_text("5")  # Linux: the peak starts anew
        before = _kib("VmRSS")
        run()
        return (_kib("VmHWM") - before) / 2**10
    except OSError:
        run()
        return None


def _kib(word: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{word}:"))
    return int(line.split()[1])


def bytes_touched(module: torch.nn.Module, run: Callable) -> int:
    """Bytes of the weights, inputs and outputs of all layers of a run: what has to move at least, one layer at a time."""
    total = [0]

    def count(layer, inputs, output):
        tensors = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
        total[0] += sum(t.numel() * t.element_size() for t in (*tensors, *layer.parameters(recurse=False)))

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if not list(layer.children())]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return total[0]


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int = 4096) -> float:
    """FLOP/s of the product of two square matrices, best of five."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    a @ a
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


def bandwidth(device: torch.device, mib: int = 256) -> float:
    """Bytes per second read and written by a copy, best of five."""
    a = torch.empty(mib << 20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.numel() / min(seconds(lambda: b.copy_(a), device) for _ in range(5))
