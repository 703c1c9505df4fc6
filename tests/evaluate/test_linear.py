"""The linear probe against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from moco_dist.evaluate import labels, linear
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))


def digits() -> tuple[Tensor, Tensor]:
    """Pixels as features of length 1, far from centred, and labels."""
    found = load_digits()
    return F.normalize(torch.from_numpy(found.data).float(), dim=1), torch.from_numpy(found.target)


@pytest.mark.parametrize("decay", [1e-5, 1e-2])
def test_it_is_scikit_learns(decay: float) -> None:
    rows, of = digits()
    kept, held_out = labels.held_out(of.numpy(), 0.25, seed=0)
    ours = linear.fit(rows[kept], of[kept], 10, decay)
    theirs = LogisticRegression(C=1 / (decay * len(kept)), tol=1e-8, max_iter=20_000)
    theirs.fit(rows[kept].double().numpy(), of[kept].numpy())
    # Both biases move along (1, ..., 1) freely.
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=2e-3, atol=2e-3)
    predicted = ours.predict(rows[held_out])
    assert np.array_equal(predicted.numpy(), theirs.predict(rows[held_out].double().numpy()))
    assert 0.85 < float((predicted == of[held_out]).double().mean()) < 1


def test_the_gradient_is_zero_at_the_end_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, of = digits()
    whole = linear.fit(rows, of, 10, 1e-3)
    monkeypatch.setattr(linear, "_BLOCK", 100)
    weight, bias = (t.clone().requires_grad_() for t in linear.fit(rows, of, 10, 1e-3))
    loss = F.cross_entropy(F.linear(rows.double(), weight, bias), of) + 1e-3 / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-5 and bias.grad.abs().max() < 1e-5
    torch.testing.assert_close(weight.detach(), whole.weight, rtol=1e-2, atol=1e-3)


def test_a_class_without_an_example_is_not_told() -> None:
    rows, of = digits()
    probe = linear.fit(rows[of < 5], of[of < 5], 10, 1e-3)
    assert set(probe.predict(rows).tolist()) == set(range(5))


def test_weaker_regularisations_are_tried_as_long_as_the_weakest_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, of = digits()
    parts = labels.folds(of[:300].numpy(), 3, seed=0)

    def choose(*decays: float) -> tuple[float, float]:
        monkeypatch.setattr(linear, "DECAYS", decays)
        return linear.choose_decay(rows[:300], of[:300], 10, parts, ALONE)

    decay, accuracy = choose(0.1, 1.0)
    assert decay < 0.05
    monkeypatch.setattr(linear, "_WEAKEST", 1.0)  # no further
    assert accuracy > choose(0.1, 1.0)[1]
    assert accuracy >= choose(decay / 10, 1.0)[1]


def chosen(world: World) -> tuple[float, float]:
    rows, of = digits()
    return linear.choose_decay(rows[:300], of[:300], 10, labels.folds(of[:300].numpy(), 3, seed=0), world)


def test_the_regularisation_is_the_best_on_what_was_held_out_on_any_number_of_ranks(ranks: Ranks) -> None:
    decay, accuracy = chosen(ALONE)
    for size in (2, 4):
        assert set(ranks.run(size, chosen)) == {(decay, accuracy)}
    rows, of = digits()
    by_hand = {}
    for candidate in linear.DECAYS:
        right = 0
        for kept, held_out in labels.folds(of[:300].numpy(), 3, seed=0):
            probe = linear.fit(rows[kept], of[kept], 10, candidate)
            right += int((probe.predict(rows[held_out]) == of[held_out]).sum())
        by_hand[candidate] = right / 300
    assert accuracy == max(by_hand.values()) > min(by_hand.values())
    assert decay == max(d for d, a in by_hand.items() if a == accuracy)
