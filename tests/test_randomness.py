"""Philox against its published answers, and the numbers made of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_dist.randomness import Stream, permutation, philox, uniform, words

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # kat_vectors of Random123, the authors' own implementation
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    out = philox(np.array(counter, dtype=np.uint64), key[1] << 32 | key[0])
    assert " ".join(f"{word:08x}" for word in out.tolist()) == answer


def test_uniform_is_uniform() -> None:
    x = uniform(0, Stream.VIEW, 1, np.arange(4000), 13).astype(np.float64)
    assert x.shape == (4000, 13)
    assert x.min() >= 0
    assert x.max() < 1
    n = x.size
    assert abs(x.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs((x**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    counts = np.histogram(x, bins=64, range=(0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
    neighbours = np.corrcoef(x.T) - np.eye(13)  # draws of one sample
    assert np.abs(neighbours).max() < 5 / np.sqrt(4000)
    assert abs(np.corrcoef(x[1:, 0], x[:-1, 0])[0, 1]) < 5 / np.sqrt(4000)  # samples that follow one another


def test_each_part_of_the_key_counts() -> None:
    base = (3, Stream.VIEW, 5, 7)
    others = [(4, Stream.VIEW, 5, 7), (3 + 2**32, Stream.VIEW, 5, 7), (3 + 2**62, Stream.VIEW, 5, 7)]
    others += [(3, s, 5, 7) for s in Stream if s != Stream.VIEW]
    others += [(3, Stream.VIEW, 6, 7), (3, Stream.VIEW, 5, 8), (3, Stream.VIEW, 7, 5), (5, Stream.VIEW, 3, 7)]
    drawn = {key: tuple(words(*key, 64).tolist()) for key in [base, *others]}
    pooled = [word for key in drawn for word in drawn[key]]
    assert len(set(pooled)) > len(pooled) - 3  # of 32 bits: a pair may meet by chance, a stream may not


@given(
    seed=st.integers(0, 2**63 - 1),
    major=st.integers(0, 2**32 - 1),
    minor=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9),
    count=st.integers(1, 11),
)
def test_a_subset_draws_the_same_numbers(seed: int, major: int, minor: list[int], count: int) -> None:
    together = words(seed, Stream.VIEW, major, np.array(minor), count)
    assert together.shape == (len(minor), count)
    for element, row in zip(minor, together, strict=True):
        np.testing.assert_array_equal(words(seed, Stream.VIEW, major, element, count), row)
    np.testing.assert_array_equal(words(seed, Stream.VIEW, major, np.array(minor), count + 5)[:, :count], together)


@given(seed=st.integers(0, 2**63 - 1), length=st.integers(1, 300))
def test_permutation_is_one(seed: int, length: int) -> None:
    order = permutation(seed, Stream.ORDER, 0, 0, length)
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    np.testing.assert_array_equal(permutation(seed, Stream.ORDER, 0, 0, length), order)


def test_permutations_differ() -> None:
    keys = [(0, Stream.ORDER, 0, 0), (1, Stream.ORDER, 0, 0), (0, Stream.SHUFFLE, 0, 0), (0, Stream.SHUFFLE, 0, 1)]
    keys += [(0, Stream.SHUFFLE, step, 0) for step in range(1, 20)]
    assert len({tuple(permutation(*key, 40).tolist()) for key in keys}) == len(keys)


@pytest.mark.parametrize("by", ["major", "minor", "seed"])
def test_small_permutations_are_equally_frequent(by: str) -> None:
    draws = 2400
    counts: dict[tuple[int, ...], int] = {}
    for i in range(draws):
        seed, major, minor = (i if by == name else 0 for name in ("seed", "major", "minor"))
        order = tuple(permutation(seed, Stream.SHUFFLE, major, minor, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    expected = draws / 24
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 23 + 5 * np.sqrt(2 * 23)
