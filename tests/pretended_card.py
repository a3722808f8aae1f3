"""A graphics card that is pretended: tensors say that they lie on `cuda:0`, and their numbers lie on the processor.

With it machines without a card notice what would fail, or wait, on one: an operation of tensors of two devices is an error, as
there, and transfers and waits are counted. Kernels, formats and speed it says nothing about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CARD = torch.device("cuda:0")
FREE = 8 << 30  # bytes that it says it has
CROSSING = (aten._to_copy.default, aten.copy_.default)  # of two devices by nature
INDEXING = (aten.index.Tensor, aten.index_put_.default)  # take indices from the processor
READING = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)  # the processor wants to know the result


class There(torch.Tensor):
    """A tensor on the card; `here` has its numbers."""

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=CARD
        )
        made.here = here
        return made

    def __repr__(self):
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended tensor, whose card is gone")


class Card(TorchDispatchMode):
    """Runs operations of pretended tensors on the processor; `counts` has "up", "down", "wait" and "launch".

    "stall" is of "up" what is not asked for with non_blocking: torch then waits until the card has done all that was launched.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, There)]
        goes_up = "device" in kwargs and kwargs["device"] is not None and torch.device(kwargs["device"]).type == CARD.type
        if not there and not goes_up:
            return func(*args, **kwargs)
        strangers = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
        if strangers and there and func not in (*CROSSING, *INDEXING):
            raise RuntimeError(f"{func}: some tensors are on {CARD}, others, {strangers}, on the processor")
        if strangers and func in INDEXING:
            self.counts["stall"] += 1
        here_args, here_kwargs = tree_map_only(There, lambda tensor: tensor.here, (args, kwargs))
        asked = here_kwargs.get("device")
        if asked is not None:
            here_kwargs["device"] = torch.device("cpu")
        result = func(*here_args, **here_kwargs)
        if func is aten.copy_.default:
            self._count_copy(args)
            return args[0]
        if func is aten._to_copy.default and asked is not None:
            self.counts["up" if goes_up and not there else "launch" if goes_up else "down"] += 1
            self.counts["stall"] += goes_up and not there and not kwargs.get("non_blocking")
            if not goes_up:
                self.counts["wait"] += 1
                return result
        elif func in READING:
            self.counts["wait"] += 1
        elif not func.is_view:
            self.counts["launch"] += 1
        known = {id(tensor.here): tensor for tensor in there}  # what is changed in place is the same tensor afterwards
        return tree_map_only(torch.Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else There(tensor), result)

    def _count_copy(self, args) -> None:
        target, source = (isinstance(tensor, There) for tensor in args[:2])
        self.counts["launch" if target and source else "up" if target else "down"] += 1
        self.counts["stall"] += target and not source and not (len(args) > 2 and args[2])
        self.counts["wait"] += not target


@contextmanager
def pretended_card() -> Iterator[Card]:
    """Within it `.to("cuda")` works; models moved there must be new ones, for their weights are replaced."""
    torch._C._ensureCUDADeviceGuardSet()
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    tensor, empty, generator = torch.tensor, torch.empty, torch.Generator

    def tensor_there(data, *, device=None, **words):
        made = tensor(data, **words)
        return made if device is None else made.to(device)

    def empty_anywhere(*size, pin_memory=False, **words):
        return empty(*size, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "tensor", tensor_there)
        patch.setattr(torch, "empty", empty_anywhere)
        patch.setattr(torch, "Generator", lambda device=None: generator())
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (FREE, FREE))
        for name in ("memory_reserved", "memory_allocated", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda device=None: 0)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with Card() as card:
                yield card
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(replaces)
