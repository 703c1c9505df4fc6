"""Curves are thinned without hiding a spike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moco_dist.report.thin import smoothed, thinned

VALUES = arrays.arrays(np.float64, st.integers(1, 3000), elements=st.floats(-1e6, 1e6))


@given(VALUES, st.integers(4, 400))
def test_few_points_keep_the_extremes_and_the_ends(values: np.ndarray, most: int) -> None:
    kept = thinned(values, most)
    assert len(kept) <= most and (np.diff(kept) > 0).all()
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    assert values[kept].min() == values.min() and values[kept].max() == values.max()


@pytest.mark.parametrize("place", [0, 1, 4999, 50_003, 99_998, 99_999])
@pytest.mark.parametrize("height", [-1e6, 1e6])
def test_a_spike_of_one_row_in_100_000_is_drawn(place: int, height: float) -> None:
    values = np.sin(np.arange(100_000) / 50)
    values[place] = height
    kept = thinned(values, 1000)
    assert place in kept and len(kept) > 900


def test_short_curves_are_drawn_whole() -> None:
    assert thinned(np.array([3.0, 1.0, 2.0, 2.0]), 4).tolist() == [0, 1, 2, 3]


def test_the_smoothed_curve_is_the_mean_of_a_hundredth() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    places, means = smoothed(values)
    assert places[0] == 0 and places[-1] == 999 and len(places) == 160
    middle = int(places[80])
    assert means[80] == pytest.approx(values[middle - 5 : middle + 6].mean())
    assert means[0] == pytest.approx(values[:6].mean())
    assert len(smoothed(values[:199])[0]) == 0
