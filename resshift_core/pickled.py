"""What torch's restricted unpickler would be asked to do, looked at before it does it.

`weights_only=True` runs no code of a file, but a few hundred bytes can still ask it for any memory (`bytearray(10**11)`), or for
any time: the hash of a tuple of tuples of tuples doubles with every level.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import BinaryIO

# What weights are made by. Others make things as large as their arguments say, or copy these each time that they are called.
CALLED = {
    "collections.OrderedDict", "torch.Size", "torch.device", "torch.serialization._get_layout",
    *(f"torch._utils._rebuild_{word}" for word in (
        "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor", "meta_tensor_no_storage",
        "nested_tensor",
    )),
}  # fmt: skip
MOST_IN_TUPLE = 100_000  # things in a tuple and in the tuples in it, each time that they are reached: its hash looks at all
MOST_KEYS = 5000  # of dictionaries that are no texts: numbers may be chosen so that each is compared with all before
DEEPEST = 8  # tuples in one another
MOST_CALLS = 200_000
MOST_STATES = 64  # set on objects; networks have one, of a dictionary of weights
LEGACY = 5  # pickles in a row in a file that is no archive: magic number, version, system, the object, names of its storages
MARK, TEXT = object(), object()
MOST_SIZES = 64  # of sparse tensors, which are refused later, and in settings


class Refused(pickle.UnpicklingError):
    """No weights do that."""


def check_pickles(file: BinaryIO, count: int) -> None:
    """Go through `count` pickles from the file's position on. What torch itself refuses is not looked at further.

    Raises:
        Refused: they ask for more than weights do; the text has "GLOBAL name" where it is about one, as torch's has.
    """
    for _ in range(count):
        _Walk().through(file)


class _Walk:
    """pickle's machine without the things: its methods are called as pickletools calls the operations. On the stack lies for each
    tuple (how deep it is nested, how much is in it), the name of each function, TEXT for a text and 0 for all else.
    """

    def __init__(self):
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.calls = self.states = self.sizes = self.keys = 0

    def through(self, file: BinaryIO) -> None:
        for op, argument, _ in pickletools.genops(file):
            step = getattr(self, op.name.lower(), None)
            if op.name == "GLOBAL":
                self._named(argument.replace(" ", "."))
            elif step is not None:
                step(argument)
            elif op.name in ("PROTO", "FRAME", "STOP"):
                continue
            else:  # a constant, or what torch does not know and refuses
                for _ in range(len(op.stack_before)):
                    self._pop()
                text = op.name.endswith(("UNICODE", "STRING"))
                self.stack.extend(TEXT if text else 0 for _ in op.stack_after)

    def _pop(self):
        if not self.stack:
            raise Refused("more is taken from the stack than lies on it")
        return self.stack.pop()

    def _items(self) -> list:
        items = []
        while (item := self._pop()) is not MARK:
            items.append(item)
        return items

    def _tuple(self, items: list) -> None:
        inner = [item for item in items if isinstance(item, tuple)]
        depth = 1 + max((depth for depth, _ in inner), default=0)
        size = len(items) + sum(size for _, size in inner)
        if depth > DEEPEST or size > MOST_IN_TUPLE:
            raise Refused(f"tuples are nested more than {DEEPEST} deep, or hold more than {MOST_IN_TUPLE} things")
        self.stack.append((depth, size))

    def mark(self, _) -> None:
        self.stack.append(MARK)

    def tuple(self, _) -> None:
        self._tuple(self._items())

    def empty_tuple(self, _) -> None:
        self.stack.append((1, 0))

    def tuple1(self, _) -> None:
        self._tuple([self._pop()])

    def tuple2(self, _) -> None:
        self._tuple([self._pop() for _ in range(2)])

    def tuple3(self, _) -> None:
        self._tuple([self._pop() for _ in range(3)])

    def list(self, _) -> None:
        self._items()
        self.stack.append(0)

    def dict(self, _) -> None:
        self.setitems(_)
        self.stack.append(0)

    def appends(self, _) -> None:
        self._items()

    additems = appends

    def setitems(self, _) -> None:
        self._count(self._items()[1::2])  # the last value lies on top

    def _count(self, keys: list) -> None:
        self.keys += sum(key is not TEXT for key in keys)
        if self.keys > MOST_KEYS:
            raise Refused(f"more than {MOST_KEYS} of its names are no texts")

    def append(self, _) -> None:
        self._pop()

    def setitem(self, _) -> None:
        self._pop()
        self._count([self._pop()])

    def build(self, _) -> None:
        self._pop()
        self.states += 1
        if self.states > MOST_STATES:
            raise Refused(f"it sets the state of more than {MOST_STATES} objects")

    def _named(self, name: str) -> None:
        self.stack.append(name)

    def reduce(self, _) -> None:
        arguments, function = self._pop(), self._pop()
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise Refused(f"it calls functions more than {MOST_CALLS} times")
        if not isinstance(function, str) or function not in CALLED:
            raise Refused(f"GLOBAL {function}" if isinstance(function, str) else "it calls what is no function")
        self.sizes += function == "torch.Size"
        if self.sizes > MOST_SIZES or (function == "collections.OrderedDict" and arguments != (1, 0)):
            raise Refused(f"it makes copies of its contents by {function.rpartition('.')[2]}")
        self.stack.append(0)

    newobj = reduce

    def binput(self, place) -> None:
        self.memo[place] = self.stack[-1] if self.stack else 0

    long_binput = put = binput

    def memoize(self, _) -> None:
        self.binput(len(self.memo))

    def binget(self, place) -> None:
        self.stack.append(self.memo.get(place, 0))

    long_binget = get = binget

    def pop(self, _) -> None:
        self._pop()

    def pop_mark(self, _) -> None:
        self._items()

    def dup(self, _) -> None:
        self.stack.append(self.stack[-1] if self.stack else 0)
