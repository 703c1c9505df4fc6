"""Draws of labelled images, and their folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_dist.errors import UserError
from moco_dist.evaluate import labels

OF_ALL = np.random.default_rng(0).permutation(np.repeat(np.arange(10), np.arange(20, 40, 2)))


def test_a_draw_has_equally_many_of_each_class_and_follows_from_seed_and_number() -> None:
    drawn = labels.draw(OF_ALL, 10, 100, seed=0, number=0)
    assert np.bincount(OF_ALL[drawn]).tolist() == [10] * 10
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, labels.draw(OF_ALL, 10, 100, seed=0, number=0))
    for other in (labels.draw(OF_ALL, 10, 100, seed=1, number=0), labels.draw(OF_ALL, 10, 100, seed=0, number=1)):
        assert len(np.intersect1d(drawn, other)) < 70
    assert set(labels.draw(OF_ALL, 10, 50, seed=0, number=0)) < set(drawn)


def test_what_does_not_divide_goes_to_some_classes() -> None:
    counts = [np.bincount(OF_ALL[labels.draw(OF_ALL, 10, 23, seed=0, number=n)]) for n in range(8)]
    assert all(sorted(c) == [2] * 7 + [3] * 3 for c in counts)
    assert len({tuple(c) for c in counts}) > 1


def test_all_images_are_all_of_them_though_classes_differ() -> None:
    assert labels.draw(OF_ALL, 10, len(OF_ALL), seed=0, number=3).tolist() == list(range(len(OF_ALL)))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (9, r"--labels = 9: there are 10 classes; use --labels 10 or more"),
        (210, r"--labels = 210: class 0 has 20 images, and 21 of each are asked for; use at most --labels 200"),
    ],
)
def test_too_few(count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labels.draw(OF_ALL, 10, count, seed=0, number=0)


def test_messages_name_the_class_by_its_folder() -> None:
    of, names = np.array([0, 0, 0, 2, 2, 2, 2]), ("ant", "bee", "cow")
    with pytest.raises(UserError, match="--labels = 3: class bee has no image to learn from; remove it, or add images"):
        labels.draw(of, 3, 3, seed=0, number=0, names=names)
    with pytest.raises(UserError, match="class ant has 1 images, and 2 of each are asked for"):
        labels.draw(np.array([0, 1, 1, 1, 2, 2]), 3, 5, seed=0, number=0, names=names)


@given(st.lists(st.integers(0, 4), min_size=10, max_size=80), st.integers(2, 5))
def test_folds_part_the_images_and_share_out_each_class(of_images: list[int], count: int) -> None:
    of = np.array(of_images)
    folds = labels.folds(of, count, seed=0)
    assert sorted(np.concatenate([held_out for _, held_out in folds]).tolist()) == list(range(len(of)))
    for kept, held_out in folds:
        assert sorted([*kept, *held_out]) == list(range(len(of)))
        for which in range(5):
            share = (of == which).sum() / count
            assert np.floor(share) <= (of[held_out] == which).sum() <= np.ceil(share)


def test_a_fraction_held_out() -> None:
    kept, held_out = labels.held_out(OF_ALL, 0.1, seed=0)
    assert len(held_out) == len(OF_ALL) // 10 and not set(kept) & set(held_out)
