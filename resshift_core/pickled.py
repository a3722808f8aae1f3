"""What torch's restricted unpickler would be asked to do, looked at before it does it.

`weights_only=True` runs no code of a file, but a few hundred bytes can still ask it for any memory (`bytearray(10**11)`), or for
any time: the hash of a tuple of tuples of tuples doubles with every level.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import BinaryIO

GREEDY = (  # what makes something as large as its argument says, or copies it each time that it is called
    "builtins.bytearray", "__builtin__.bytearray", "builtins.set", "__builtin__.set", "builtins.frozenset", "collections.Counter",
    "_codecs.encode",
)  # fmt: skip
DEEPEST = 8  # tuples in one another
MOST_CALLS = 200_000
MOST_STATES = 64  # set on objects; networks have one, of a dictionary of weights
LEGACY = 5  # pickles in a row in a file that is no archive: magic number, version, system, the object, names of its storages
MARK = "a mark"
COUNTED = {"collections.OrderedDict": "OrderedDict", "torch.Size": "Size"}  # they copy what they are given
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
    """pickle's machine without the things: its methods are called as pickletools calls the operations. On the stack lies how deep
    each thing is nested in tuples; () for an empty one, and the names of functions that are looked at when they are called.
    """

    def __init__(self):
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.calls = self.states = self.sizes = 0

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
                self.stack.extend(0 for _ in op.stack_after)

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
        depth = 1 + max((item for item in items if isinstance(item, int)), default=0)
        if depth > DEEPEST:
            raise Refused(f"tuples are nested more than {DEEPEST} deep")
        self.stack.append(depth if items else ())

    def mark(self, _) -> None:
        self.stack.append(MARK)

    def tuple(self, _) -> None:
        self._tuple(self._items())

    def empty_tuple(self, _) -> None:
        self.stack.append(())

    def tuple1(self, _) -> None:
        self._tuple([self._pop()])

    def tuple2(self, _) -> None:
        self._tuple([self._pop() for _ in range(2)])

    def tuple3(self, _) -> None:
        self._tuple([self._pop() for _ in range(3)])

    def list(self, _) -> None:
        self._items()
        self.stack.append(0)

    dict = list

    def appends(self, _) -> None:
        self._items()

    setitems = additems = appends

    def append(self, _) -> None:
        self._pop()

    def setitem(self, _) -> None:
        self._pop()
        self._pop()

    def build(self, _) -> None:
        self._pop()
        self.states += 1
        if self.states > MOST_STATES:
            raise Refused(f"it sets the state of more than {MOST_STATES} objects")

    def _named(self, name: str) -> None:
        if name in GREEDY:
            raise Refused(f"GLOBAL {name}")
        self.stack.append(COUNTED.get(name, 0))

    def reduce(self, _) -> None:
        arguments, function = self._pop(), self._pop()
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise Refused(f"it calls functions more than {MOST_CALLS} times")
        self.sizes += function == "Size"
        if self.sizes > MOST_SIZES or (function == "OrderedDict" and arguments != ()):
            raise Refused(f"it makes copies of its contents by {function}")
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
