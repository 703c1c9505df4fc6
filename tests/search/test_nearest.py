"""The same images are the nearest, in whatever parts the features come."""

from __future__ import annotations

import numpy as np
import pytest

from moco_dist.embed.stream import Rows
from moco_dist.search.nearest import Nearest


@pytest.mark.parametrize("part", [1, 7, 100])
def test_parts_give_what_the_whole_gives(part: int) -> None:
    rng = np.random.default_rng(0)
    features, queries = (rng.standard_normal((n, 5)).astype(np.float32) for n in (60, 3))
    features[40] = 2 * features[10]  # of the same direction
    nearest = Nearest(queries, 8)
    for first in range(0, 60, part):
        places = np.arange(first, min(60, first + part))
        nearest.add(Rows(places + 1000, features[places]))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for number, query in enumerate(queries / np.linalg.norm(queries, axis=1, keepdims=True)):
        cosines = unit @ query
        expected = sorted(range(60), key=lambda place: (-round(float(cosines[place]), 5), place))[:8]
        assert nearest.places[number].tolist() == [1000 + place for place in expected]
        np.testing.assert_allclose(nearest.similarities[number], cosines[expected], atol=1e-5)


def test_equal_similarities_are_in_the_order_of_the_folder() -> None:
    nearest = Nearest(np.ones((1, 2), np.float32), 3)
    for places in ([5, 9], [2, 7], [4]):  # the last bits of the features differ
        rows = 1 + 1e-7 * np.arange(2 * len(places)).reshape(-1, 2)
        nearest.add(Rows(np.array(places), rows.astype(np.float32)))
    assert nearest.places.tolist() == [[2, 4, 5]] and nearest.similarities.tolist() == [[1, 1, 1]]


def test_features_of_zeros_are_near_to_nothing() -> None:
    nearest = Nearest(np.ones((1, 2), np.float32), 3)
    nearest.add(Rows(np.arange(2), np.array([[0, 0], [-1, -1]], np.float32)))
    assert nearest.places.tolist() == [[0, 1]] and nearest.similarities.tolist() == [[0, -1]]
