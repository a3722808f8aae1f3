"""Which device and number format a model runs in."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from .errors import InputError, OutOfMemory, brief

log = logging.getLogger("resshift")
Result = TypeVar("Result")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WITHOUT_BF16 = ("gfx8", "gfx900", "gfx902", "gfx904", "gfx906", "gfx909", "gfx90c", "gfx10")  # AMD's but for CDNA and RDNA 3 on
BROKEN_FP16 = (
    "1630",
    "1650",
    "1660",
    "T400",
    "T500",
    "T550",
    "T600",
    "T1000",
    "T1200",
    "T2000",
    "MX450",
    "MX550",
    "CMP 30HX",
)  # NVIDIA's Turing without tensor cores: convolutions in fp16 come out as NaN
OUT_OF_MEMORY = (  # in the words of torch, the CPU, CUDA's libraries, DirectML, MPS, XPU
    "out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "not enough gpu video memory",
    "invalid buffer size", "out_of_device_memory", "out_of_host_memory", "out_of_resources", "allocation_failed",
    "can not allocate memory block",
    "unable to find an engine", "unable to find a valid cudnn algorithm",  # cuDNN, when no way of computing finds room
    "cudnn_status_not_initialized", "cublas_status_not_initialized",  # their own memory did not fit
    "nvml_success ==",  # torch asks NVML how full the card is, to say so, and MIG's slices, Jetson, containers do not answer
)  # fmt: skip
PAGE_FILE_FULL = ("os error 1455", "winerror 1455")  # Windows' number in the words of safetensors, Python
UNUSABLE = (RuntimeError, AssertionError, NotImplementedError, ImportError)  # of torch, where a device cannot be used


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" = CUDA (or ROCm), else Intel XPU, else Apple MPS, else the CPU.

    Raises:
        InputError: torch does not know the device, or this machine does not have it, or torch was not built for it.
    """
    if str(device) == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        return _tried(device)
    except TypeError:
        raise InputError(f"device is {device!r:.60}; it must be a word, such as auto or cpu, or a torch.device.") from None
    except UNUSABLE as error:
        if is_out_of_memory(error):  # what is wrong is not the device, and whoever uses it says so
            return torch.device(device)
        raise InputError(f"The device {device!r} cannot be used ({brief(error)}). Try cpu or auto.") from error


def _accelerator() -> torch.device | None:
    """The first one that torch says is there, and that runs a kernel: torch sees cards, too, that it was not built for.

    One whose memory is full is taken: its user is to hear of that, and not to wait for a processor.
    """
    for kind, backend in (("cuda", torch.cuda), ("xpu", getattr(torch, "xpu", None)), ("mps", torch.backends.mps)):
        if backend is None or not backend.is_available():
            continue
        try:
            return _tried(kind)
        except UNUSABLE as error:
            if is_out_of_memory(error):
                return torch.device(kind)
            log.warning("The device %s is here but cannot be used (%s).", kind, brief(error))
    return None


def _tried(device: str | torch.device) -> torch.device:
    resolved = torch.device(device)
    torch.ones(1, device=resolved)  # not `empty`, nor `zeros`: they need no kernel
    return resolved


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere bf16 is emulated and slower."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        probe = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            return True
    if hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        return False
    try:  # torch before 2.4 has no such question
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.cache
def cpu_has_fp16() -> bool:
    """Whether this torch convolves fp16 on the processor; 2.1, which A1111 pins, does not."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float16, device="cpu")
    try:
        torch.nn.functional.conv2d(one, one)
    except RuntimeError:
        return False
    return True


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" = bf16 where the hardware has it, else fp16 on CUDA, else fp32.

    Raises:
        InputError: the word is unknown.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in DTYPES.values():
            raise InputError(f"dtype is {dtype}; use float32, bfloat16 or float16.")
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise InputError(f"dtype is {dtype!r}; known are auto, {', '.join(DTYPES)}.")
    if device.type == "cuda":
        return _cuda_dtype(device)
    if device.type == "xpu" or (device.type == "cpu" and cpu_has_bf16()):
        return torch.bfloat16
    return torch.float32


def _cuda_dtype(device: torch.device) -> torch.dtype:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        generation = getattr(properties, "gcnArchName", "")
        return torch.float16 if generation.startswith(WITHOUT_BF16) else torch.bfloat16
    if properties.major >= 8:
        return torch.bfloat16
    return torch.float32 if any(word in properties.name.upper() for word in BROKEN_FP16) else torch.float16


def cpu_by_default(function):
    """Tensors for which the function names no device lie on the CPU, also under a caller's `torch.set_default_device`."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if torch.empty(0).device.type == "cpu":  # torch 2.3's get_default_device does not see `with torch.device(...)`
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped


def without_autocast(device: torch.device):
    """Context in which a caller's autocast does not change the number formats that a model was given."""
    try:
        return torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError):  # this torch has no autocast for the device
        return contextlib.nullcontext()


def layout_for(device: torch.device) -> torch.memory_format:
    """How weights and activations lie: channels last where torch itself brings the kernels, but for Apple's GPU, whose
    convolutions have a history of wrong results with that. Foreign backends (DirectML, Ascend) may take torch's own group norm,
    which on them is written for planes of channels.
    """
    return torch.channels_last if device.type in ("cpu", "cuda", "xpu", "meta") else torch.contiguous_format


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on the device, in bytes; None where it cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device.index)  # torch 2.3 refuses "cuda" without a number
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return _free_on_windows() if sys.platform == "win32" else _free_on_linux()
    return None


def _free_on_linux() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows, in bytes."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *(
            (name, ctypes.c_uint64)
            for name in ("total", "free", "total_paged", "free_paged", "total_own", "free_own", "extended")
        ),
    ]


def _free_on_windows() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return status.free if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def is_out_of_memory(error: BaseException) -> bool:
    """True for every backend's way of saying so: CUDA has a class of its own, MPS and the CPU raise RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else MemoryError)):
        return True
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    known = OUT_OF_MEMORY if isinstance(error, RuntimeError) else PAGE_FILE_FULL if isinstance(error, OSError) else ()
    text = str(error).lower()  # of an OSError, with a file's name, which may have any words
    return any(words in text for words in known)


PROCESSOR = "the processor"  # what `first_that_fits` calls the attempt there


def first_that_fits(attempts: Sequence[tuple[Callable[[], Result], str]], device: torch.device) -> Result:
    """What the first of some (run, what the log calls it) returns that has enough memory. For the processor there is one attempt.

    Of what runs there although `device` is another one, the log is to say PROCESSOR.

    Raises:
        OutOfMemory: none has, with the words of the last.
    """
    failed = ""
    for run, what in attempts:
        if failed and device.type == "cpu":
            break
        if failed:
            log.warning("%s Trying %s.", failed, what)
        try:
            return run()
        except Exception as error:
            if isinstance(error, OutOfMemory):
                failed = str(error)
            elif is_out_of_memory(error):
                place = PROCESSOR if what == PROCESSOR else device
                failed = f"Out of memory: the model's weights do not fit on {place} ({brief(error)})."
            else:
                raise
    raise OutOfMemory(failed)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back to the device, so that a retry can use them."""
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()
