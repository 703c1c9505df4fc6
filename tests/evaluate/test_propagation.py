"""Label propagation against the closed form, and scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import xlogy
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from moco_dist.evaluate import propagation
from moco_dist.evaluate.labels import Fold
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))


def moons(count: int = 400) -> tuple[Tensor, np.ndarray]:
    """Two interleaved arcs on a sphere: the nearest labelled point is often of the other class."""
    angle = torch.linspace(0, np.pi, count // 2)
    one = torch.stack([angle.cos(), angle.sin()], 1)
    two = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    flat = torch.cat([one, two]) + 0.06 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return F.normalize(torch.cat([flat, torch.full((count, 1), 3.0)], 1), dim=1), np.repeat([0, 1], count // 2)


def neighbours(world: World, rows: int = 64, columns: int = 100) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "_ROWS", rows)
        patch.setattr(propagation, "_COLUMNS", columns)
        return propagation.nearest(moons()[0], 12, world)


def test_neighbours_are_scikit_learns_on_any_number_of_ranks(ranks: Ranks) -> None:
    whole, cosines = neighbours(ALONE)
    for block in ((400, 400), (400, 13)):
        assert torch.equal(neighbours(ALONE, *block)[0].sort(1).values, whole.sort(1).values)
    for size in (2, 4):
        for found, similar in ranks.run(size, neighbours):
            assert torch.equal(found, whole) and torch.equal(similar, cosines)
    rows = moons()[0].numpy()
    distance, theirs = NearestNeighbors(n_neighbors=13, metric="cosine").fit(rows).kneighbors(rows)
    for mine, other, far in zip(whole.tolist(), theirs.tolist(), distance[:, -1], strict=True):
        differ = set(mine) ^ set(other[1:])
        assert len(differ) <= 2 and all(abs(1 - rows[i] @ rows[other[0]] - far) < 1e-6 for i in differ if i != other[0])


def test_it_solves_the_papers_equation() -> None:
    features, truth = moons()
    indices, cosines = neighbours(ALONE)
    edges = propagation.graph(indices, cosines)
    labelled = np.array([5, 395])
    spread = propagation.spread(edges, labelled, truth[labelled], 2)
    # by hand, densely
    weights = np.zeros((400, 400))
    for i, (js, cs) in enumerate(zip(indices.tolist(), cosines.tolist(), strict=True)):
        weights[i, js] = np.array(cs) ** 3
    weights = weights + weights.T
    degree = weights.sum(1)
    system = np.eye(400) - 0.99 * weights / np.sqrt(degree[:, None] * degree)
    begin = np.zeros((400, 2))
    begin[labelled, truth[labelled]] = 1
    scores = np.linalg.solve(system, begin)
    shares = scores / scores.sum(1, keepdims=True)
    certainty = 1 + xlogy(shares, shares).sum(1) / np.log(2)
    certainty[labelled] = 1
    balanced = shares * np.clip((200 / np.bincount(shares.argmax(1))) ** 5, 0.5, 2)
    assert np.array_equal(spread.balanced, balanced.argmax(1))
    np.testing.assert_allclose(spread.certainty, certainty, atol=1e-3)
    assert (spread.balanced == truth).mean() > 0.97
    nearest = labelled[(features @ features[labelled].T).argmax(1).numpy()]
    assert (truth[nearest] == truth).mean() < 0.95  # the graph knows more than the nearest label


def test_a_class_that_has_too_many_images_gives_away_the_uncertain_ones() -> None:
    centres = torch.eye(3)
    centres[2, :2] = torch.tensor([0.2, 0.18])  # half of the second class, a little nearer to the first
    rows = centres.repeat_interleave(10, 0) + 0.1 * torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    edges = propagation.graph(*propagation.nearest(F.normalize(rows, dim=1), 11, ALONE))
    labels = np.array([0, 1, 10, 11]), np.array([0, 0, 1, 1])
    spread = propagation.spread(edges, *labels, 2)
    assert spread.balanced.tolist() == [0] * 10 + [1] * 20
    assert spread.certainty[20:].max() < spread.certainty[:20].min()
    assert spread.plain.tolist() == [0] * 10 + [1] * 10 + [0] * 10


def test_an_image_far_from_every_label_is_not_certain() -> None:
    features = F.normalize(torch.cat([torch.eye(3).repeat_interleave(5, 0)]) + 1e-3 * torch.rand(15, 3), dim=1)
    edges = propagation.graph(*propagation.nearest(features, 4, ALONE))
    spread = propagation.spread(edges, np.array([0, 5]), np.array([0, 1]), 2)
    assert spread.balanced[:10].tolist() == [0] * 5 + [1] * 5
    assert (spread.certainty[:10] > 0.9).all() and (spread.certainty[10:] < 0.01).all()


def leaving_out(count: int, *hidden: list[int]) -> list[Fold]:
    return [(np.delete(np.arange(count), some), np.array(some)) for some in hidden]


def test_classes_of_equal_size_are_given_up_where_the_labels_speak_against_them() -> None:
    """The first class has five islands of six; each other one lies a little nearer to its own than to the second."""
    islands = torch.eye(6)
    islands[2:, :2] = torch.tensor([0.2, 0.18])
    rows = islands.repeat_interleave(10, 0) + 0.1 * torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    graphs = {11: propagation.graph(*propagation.nearest(F.normalize(rows, dim=1), 11, ALONE))}
    labels = np.array([0, 1, 10, 11, 20, 30, 40, 50]), np.array([0, 0, 1, 1, 0, 0, 0, 0])
    assert propagation.choose(graphs, *labels, 2, leaving_out(8, [4], [5], [6], [7])) == (11, False)
    assert propagation.choose(graphs, *labels, 2, leaving_out(8, [4])) == (11, True)  # one label is chance
    assert propagation.choose(graphs, *labels, 2, []) == (11, True)


def test_more_neighbours_are_taken_where_the_labels_speak_for_them() -> None:
    """Each class is islands of six that see no other one by four neighbours: a hidden label is then anyone's guess."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.cat([torch.eye(2).repeat_interleave(8, 0), 0.3 * torch.eye(16)], 1), dim=1)
    rows = F.normalize(centres.repeat_interleave(6, 0) + 0.01 * torch.rand(96, 18, generator=generator), dim=1)
    truth = np.repeat([0, 1], 48)
    where, cosines = propagation.nearest(rows, 20, ALONE)
    graphs = {k: propagation.graph(where[:, :k], cosines[:, :k]) for k in (20, 4)}
    labelled = np.arange(0, 96, 6)
    labels = labelled, truth[labelled]
    assert propagation.choose(graphs, *labels, 2, leaving_out(16, *([n, n + 8] for n in range(8)))) == (20, True)
    assert propagation.choose(graphs, *labels, 2, leaving_out(16, [0, 8])) == (4, True)
