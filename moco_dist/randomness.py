"""Random numbers are stateless: keyed by what they are for and not by what was drawn before.

A counter-based generator (Philox-4x32-10; Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3")
is a function of (seed, counter). So a sample's augmentation is the same on any rank, in any worker and after any
restart, and nothing about randomness needs to be saved. Numbers are made on the CPU from integers alone: the
same on every machine.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Stream(IntEnum):
    """A stream says what a number is for; the streams of one seed never overlap."""

    ORDER = 0
    SHUFFLE = 1
    VIEW = 2
    SPLIT = 3
    INIT = 4
    DATA = 5
    LABELS = 6
    LESSON_ORDER = 7
    LESSON_VIEW = 8
    PROBE_ORDER = 9
    PROBE_VIEW = 10
    FULL_ORDER = 11
    FULL_VIEW = 12


_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Compute random words from counters by Philox-4x32-10.

    Args:
        counter: [..., 4] 32-bit words.
        seed: the key, 64 bits.

    Returns:
        [..., 4] random 32-bit words.
    """
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], dtype=np.uint64)
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> _HALF) ^ c1 ^ key[0], (product0 >> _HALF) ^ c3 ^ key[1]
        c1, c3 = product1 & _LOW, product0 & _LOW
        key = key + _WEYL & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(seed: int, stream: Stream, major: int, minor: ArrayLike, count: int) -> NDArray[np.uint64]:
    """Draw random 32-bit words for each element of `minor`.

    Args:
        seed: of the run.
        stream: what they are for.
        major: the epoch or the step, below 2^32.
        minor: [...] whatever tells the draws of one `major` apart (samples, say), below 2^32.
        count: how many each, below 2^26.

    Returns:
        [..., count]
    """
    elements = np.asarray(minor, dtype=np.uint64)[..., None]  # [..., 1]
    blocks = np.arange(-(-count // 4), dtype=np.uint64)  # [count / 4]
    counter = np.empty((*np.broadcast_shapes(elements.shape, blocks.shape), 4), dtype=np.uint64)
    counter[..., 0], counter[..., 1], counter[..., 2] = blocks, elements, major
    counter[..., 3] = int(stream)
    return philox(counter, seed).reshape(*elements.shape[:-1], -1)[..., :count]


def uniform(seed: int, stream: Stream, major: int, minor: ArrayLike, count: int) -> NDArray[np.float32]:
    """Draw uniform numbers in [0, 1), [..., count], of 24 bits, so that float32 holds them exactly."""
    return ((words(seed, stream, major, minor, count) >> np.uint64(8)) * 2.0**-24).astype(np.float32)


def permutation(seed: int, stream: Stream, major: int, minor: int, length: int) -> NDArray[np.int64]:
    """Draw a permutation of 0 .. length-1: the order of `length` random 64-bit keys (ties by index)."""
    high, low = words(seed, stream, major, np.array([2 * minor, 2 * minor + 1]), length)
    return np.argsort(high << _HALF | low, kind="stable")
