"""The linear probe in closed form: against scikit-learn, and the same bits on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from moco_dist.evaluate import ridge
from moco_dist.evaluate.features import Features
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

BANK, QUERIES, CLASSES, DIM = 331, 97, 7, 24
ALONE = World(0, 1, 0, torch.device("cpu"))


def clusters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank, its labels, queries, their labels: classes that overlap, far from the origin as those of a ReLU are.

    In float64, so that sums of numbers that nobody has rounded differ with their order.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    labels = torch.arange(BANK + QUERIES) % CLASSES
    points = centres[labels] + 1.5 * torch.randn(BANK + QUERIES, DIM, generator=generator, dtype=torch.float64)
    points = F.normalize(points + 2)
    return points[:BANK], labels[:BANK], points[BANK:], labels[BANK:]


def share(rows: Tensor, labels: Tensor) -> Features:
    return Features(rows, labels, torch.arange(len(rows)))


def shares(size: int) -> dict[str, list[Tensor]]:
    """Return the images of the bank that lie on each rank."""
    return {
        "in turns": [torch.arange(rank, BANK, size) for rank in range(size)],
        "odd, backwards": list(torch.arange(BANK).flip(0).tensor_split([5, 8, 8][: size - 1])),
        "the last": [torch.arange(0)] * (size - 1) + [torch.arange(BANK)],
    }


@pytest.mark.parametrize("penalty", [ridge.PENALTY, 0.3])
def test_against_scikit_learn(monkeypatch: pytest.MonkeyPatch, penalty: float) -> None:
    monkeypatch.setattr(ridge, "PENALTY", penalty)
    bank, labels, queries, truth = clusters()
    model = Ridge(alpha=penalty * BANK / DIM).fit(bank.numpy(), F.one_hot(labels).numpy())
    weights = ridge.fit(bank, labels, ALONE)
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(weights[:-1].T, model.coef_, rtol=0, atol=1e-4)  # features are rounded
    np.testing.assert_allclose(weights[-1], model.intercept_, rtol=0, atol=1e-4)
    expected = model.predict(queries.numpy()).argmax(1)
    results = ridge.predict(weights, queries)
    assert results.tolist() == expected.tolist()
    accuracy = ridge.accuracy(share(queries, truth), share(bank, labels), world=ALONE)
    assert accuracy == np.mean(expected == truth.numpy()) and 0.4 < accuracy < 0.95


def test_the_penalty_counts() -> None:
    """Else the comparison with scikit-learn could not tell one from another."""
    bank, labels, _, _ = clusters()
    weights = ridge.fit(bank, labels, ALONE)
    for penalty in (0.5 * ridge.PENALTY, 2 * ridge.PENALTY):
        other = Ridge(alpha=penalty * BANK / DIM).fit(bank.numpy(), F.one_hot(labels).numpy())
        assert np.abs(weights[:-1].T.numpy() - other.coef_).max() > 1e-3


def everything(world: World) -> list[tuple[list[list[str]], list[int], float]]:
    """Weights to the last bit, predictions and accuracy, of each way to lay out the bank."""
    bank, labels, queries, truth = clusters()
    some = torch.arange(QUERIES).tensor_split([0, 50, 51][: world.size - 1])[world.rank]
    results = []
    for layout in shares(world.size).values():
        mine = layout[world.rank]
        weights = ridge.fit(bank[mine], labels[mine], world)
        accuracy = ridge.accuracy(share(queries[some], truth[some]), share(bank[mine], labels[mine]), world=world)
        bits = [[number.hex() for number in row] for row in weights.tolist()]
        results.append((bits, ridge.predict(weights, queries).tolist(), accuracy))
    return results


def test_any_number_of_ranks_and_any_shares_give_equal_bits(ranks: Ranks) -> None:
    expected = ranks.run(1, everything)[0][0]
    for size in (1, 2, 3, 4):
        for results in ranks.run(size, everything):
            assert results == [expected] * 3, f"{size} ranks"


def test_sums_are_exact_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, _, _ = clusters()
    expected = ridge.fit(bank, labels, ALONE)
    for block in (1, 7, 100):
        monkeypatch.setattr(ridge, "_BLOCK", block)
        order = torch.randperm(BANK, generator=torch.Generator().manual_seed(block))
        assert torch.equal(ridge.fit(bank[order], labels[order], ALONE), expected)


def test_scores_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes that are alike but for the order of the dimensions, and queries with equal scores for both."""
    half = torch.randn(DIM, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.cat([torch.cat([half, half.flip(0)], dim=1), torch.zeros(1, 2)]).double()
    rows = torch.randn(200, DIM // 2, generator=torch.Generator().manual_seed(1))
    queries = F.normalize(torch.cat([rows, rows.flip(1)], dim=1))
    for block in (1, 3, 64, 4096):
        monkeypatch.setattr(ridge, "_BLOCK", block)
        assert not ridge.predict(weights, queries).any()  # of equal scores the lower class


class Gathered(World):
    """A world whose other ranks bring nothing: what stays of a mean is its division by any number of ranks."""

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor /= self.size


@pytest.mark.parametrize("size", [1, 7, 13, 49, 100])
def test_sums_by_way_of_the_mean_are_exact(size: int) -> None:
    whole = torch.randint(-(2**51) + 1, 2**51, (10000,), generator=torch.Generator().manual_seed(0))
    whole[:2] = torch.tensor([2**51 - 1, 1 - 2**51])
    sums = whole.double() * 2.0**-30
    assert size == 1 or not torch.equal(sums / size * size, sums)  # what could go wrong does
    results = sums.clone()
    ridge.sum_([results], 30, Gathered(0, size, 0, torch.device("cpu")))
    assert torch.equal(results, sums)


def test_features_are_rounded_so_that_the_sums_fit() -> None:
    assert ridge._bits(1) == ridge._bits(1_281_167) == ridge._bits(2**21 - 1) == 15  # ImageNet
    assert ridge._bits(2**21) == 14 and ridge._bits(14_197_122) == 13  # ImageNet-21k


def without(kind: str) -> tuple[Tensor, Tensor]:
    bank, labels, _, _ = clusters()
    match kind:
        case "one class":
            return bank, torch.zeros_like(labels)
        case "a class missing":
            return bank[labels != 3], labels[labels != 3]
        case "one image":
            return bank[:1], labels[:1]
        case "alike":
            return bank[:1].expand(BANK, -1), labels
        case "nothing":
            return torch.zeros_like(bank), labels
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["one class", "a class missing", "one image", "alike", "nothing"])
def test_poor_banks(kind: str) -> None:
    bank, labels = without(kind)
    _, _, queries, truth = clusters()
    weights = ridge.fit(bank, labels, ALONE)
    assert weights.isfinite().all() and weights.shape == (DIM + 1, labels.max() + 1)
    assert set(ridge.predict(weights, queries).tolist()) <= set(labels.tolist())
    assert 0 <= ridge.accuracy(share(queries, truth), share(bank, labels), world=ALONE) < 1


def broken(world: World) -> float:
    bank, labels, queries, truth = clusters()
    mine = torch.arange(world.rank, BANK, world.size)
    rows = bank[mine]
    if world.rank == world.size - 1:
        rows[0, 0] = math.nan
    return ridge.accuracy(share(queries[mine[:2]], truth[mine[:2]]), share(rows, labels[mine]), world=world)


@pytest.mark.parametrize("size", [1, 2])
def test_features_that_are_not_finite_give_no_figure_and_no_error(ranks: Ranks, size: int) -> None:
    assert all(math.isnan(results) for results in ranks.run(size, broken))
