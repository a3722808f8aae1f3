"""Damage that needs no knowledge of a format: what disks, networks and clumsy tools do to bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

EDGES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    head = rng.choice((64, 1024, len(data)))  # headers are where it matters
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(min(head, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 512))
    filler = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:at] + filler + data[at + length :]


def put_number(data: bytes, rng: random.Random) -> bytes:
    """A number at the edge of its range, where another one may have been."""
    order, kind = rng.choice("<>"), rng.choice("BHIQ")
    number = struct.pack(order + kind, rng.choice(EDGES) % 2 ** (8 * struct.calcsize(kind)))
    at = rng.randrange(min(len(data), rng.choice((64, 1024, len(data)))))
    return data[:at] + number + data[at + len(number) :]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 7, 64, 4096)) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((1, 8, 512))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b"\0" * 4096, rng.randbytes(100), data))


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncate, flip_bits, overwrite, put_number, cut_out, repeat, append,
)  # fmt: skip


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes after it)."""
    how = rng.choice(DAMAGES)
    return how.__name__, how(data, rng) if data else data


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
