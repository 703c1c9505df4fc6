"""Features and kNN on any number of ranks, against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.data.augment import Augment, Recipe
from moco_dist.data.store import ArraySource
from moco_dist.evaluate import features, knn
from moco_dist.evaluate.features import Features
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

BANK, QUERIES, CLASSES, DIM = 211, 61, 5, 6
SHARES = {
    "one": lambda size: [np.arange(BANK)] + [np.arange(0)] * (size - 1),
    "the last": lambda size: [np.arange(0)] * (size - 1) + [np.arange(BANK)],
    "in turns": lambda size: [np.arange(rank, BANK, size) for rank in range(size)],
    "few and many": lambda size: np.split(np.arange(BANK), [1, 3, 3][: size - 1]),
    "backwards": lambda size: np.array_split(np.arange(BANK)[::-1], size),
}


def clusters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank, its labels, queries, their labels: classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, DIM, generator=generator)
    labels = torch.arange(BANK + QUERIES) % CLASSES
    points = F.normalize(centres[labels] + 1.2 * torch.randn(BANK + QUERIES, DIM, generator=generator))
    return points[:BANK], labels[:BANK], points[BANK:], labels[BANK:]


def duplicated() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every image of the bank stands in it several times, under other labels; queries are near the first of them."""
    bank, _, _, query_labels = clusters()
    bank = bank[torch.arange(BANK) % 17]
    noise = torch.randn(QUERIES, DIM, generator=torch.Generator().manual_seed(1))
    queries = F.normalize(bank[torch.arange(QUERIES) % 3] + 0.2 * noise)
    return bank, torch.arange(BANK) // 17 % CLASSES, queries, query_labels


def slow(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> list[int]:
    """One query at a time; of equally near images those of lower index count."""
    predictions = []
    # Rounded from float64, so that equal images are equally near.
    for cosines in (queries.double() @ bank.double().T).float().tolist():
        nearest = sorted(range(len(bank)), key=lambda i: (-cosines[i], i))[:k]
        votes = np.zeros(CLASSES)
        for i in nearest:
            votes[labels[i]] += np.exp(cosines[i] / temperature)
        predictions.append(int(votes.argmax()))
    return predictions


def predict(world: World, data: tuple[Tensor, ...], k: int, temperature: float, how: str) -> list[int]:
    bank, labels, queries, _ = data
    mine = torch.from_numpy(SHARES[how](world.size)[world.rank].copy())
    predicted = knn.predict(
        queries, Features(bank[mine], labels[mine], mine), k=k, temperature=temperature, world=world
    )
    assert predicted.dtype == torch.int64
    return predicted.tolist()


def everything(world: World) -> list[list[int]]:
    predictions = []
    for data in (clusters(), duplicated()):
        for how in SHARES if world.size > 1 else ["in turns", "backwards"]:
            predictions += [predict(world, data, k, t, how) for k, t in SETTINGS]
    return predictions


SETTINGS = [(1, 0.1), (7, 0.1), (20, 0.07), (20, 1.0), (211, 0.1), (1000, 0.5)]


@pytest.mark.parametrize(("k", "temperature"), SETTINGS)
def test_against_scikit_learn(k: int, temperature: float) -> None:
    bank, labels, queries, truth = clusters()
    # Of unit vectors: cosine = 1 - distance^2 / 2, in the order of the distances.
    classifier = KNeighborsClassifier(
        n_neighbors=min(k, BANK),
        weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature),
        algorithm="brute",
    ).fit(bank.double().numpy(), labels.numpy())
    expected = classifier.predict(queries.double().numpy()).tolist()
    world = World(0, 1, 0, torch.device("cpu"))
    assert predict(world, clusters(), k, temperature, "one") == expected
    if k < 100:
        assert 0.3 < np.mean(np.array(expected) == truth.numpy()) < 1  # neither chance nor trivial


def test_temperature_and_k_count() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    predictions = {tuple(predict(world, clusters(), k, t, "one")) for k, t in SETTINGS}
    assert len(predictions) >= 5


def test_any_number_of_ranks_and_any_shares_give_equal_predictions(ranks: Ranks) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    expected = []
    for data in (clusters(), duplicated()):
        expected.append([predict(world, data, k, t, "one") for k, t in SETTINGS])
        bank, labels, queries, _ = data
        assert expected[-1] == [slow(bank, labels, queries, k, t) for k, t in SETTINGS]
    for size, ways in ((1, 2), (2, len(SHARES)), (4, len(SHARES))):
        for predictions in ranks.run(size, everything):
            assert predictions == [p for of_data in expected for _ in range(ways) for p in of_data], f"{size} ranks"


def ties(world: World) -> list[int]:
    """All images are alike: the k of lowest index vote, wherever they are."""
    bank, labels = torch.ones(40, 2) / 2**0.5, torch.tensor([2] * 5 + [0] * 4 + [1] * 31)
    mine = torch.arange(39 - world.rank, -1, -world.size)
    arguments = bank[:3], Features(bank[mine], labels[mine], mine)
    return [knn.predict(*arguments, k=k, temperature=0.1, world=world)[0].item() for k in (1, 8, 9, 13, 14, 15, 40)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ties_go_to_the_lower_index(ranks: Ranks, size: int) -> None:
    # Votes 2:1, 5:3, 5:4, 5:4:4, 5:4:5 (the lower class of equal votes), 5:4:6, 5:4:31.
    for predicted in ranks.run(size, ties):
        assert predicted == [2, 2, 2, 2, 1, 1, 1]


def test_no_temperature_is_too_low() -> None:
    bank, labels, queries, _ = clusters()
    arguments = queries, Features(bank, labels, torch.arange(BANK))
    predicted = knn.predict(*arguments, k=9, temperature=1e-4, world=World(0, 1, 0, torch.device("cpu")))
    assert torch.equal(predicted, labels[(queries @ bank.T).argmax(1)])  # the nearest alone counts


def uneven(world: World) -> dict[str, Any]:
    rows = torch.arange(10).repeat(2, 1).T.float()
    cuts = {1: [], 2: [7], 4: [0, 7, 8]}[world.size]
    mine = torch.tensor_split(rows, cuts)[world.rank]
    labels = torch.tensor_split(torch.arange(10), cuts)[world.rank]
    bank, bank_labels, queries, truth = clusters()
    turns = torch.arange(world.rank, BANK, world.size)
    few = torch.arange(QUERIES) if world.rank == world.size - 1 else torch.arange(0)
    return {
        "rows": features.gather_rows(mine, world).tolist(),
        "labels": features.gather_rows(labels, world).tolist(),
        "accuracy": knn.classify(
            Features(queries[few], truth[few], few),
            Features(bank[turns], bank_labels[turns], turns),
            k=7,
            temperature=0.1,
            world=world,
        ).accuracy,
    }


@pytest.mark.parametrize("size", [1, 2, 4])
def test_uneven_rows_and_accuracy(ranks: Ranks, size: int) -> None:
    bank, labels, queries, truth = clusters()
    expected = np.mean(np.array(slow(bank, labels, queries, 7, 0.1)) == truth.numpy())
    for result in ranks.run(size, uneven):
        assert result["rows"] == [[n, n] for n in range(10)]
        assert result["labels"] == list(range(10))
        assert result["accuracy"] == pytest.approx(expected)


# ---------------------------------------------------------------- features


SECTION = DataSection(image_size=8, workers=0)


def plain() -> Augment:
    return Augment(Recipe.of(DataSection()), (0.25,), (0.5,))


def numbered(count: int) -> ArraySource:
    """Image i is told by its first four pixels."""
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    for bit in range(4):
        images[:, 0, 0, bit] = torch.arange(count) // 6**bit % 6 * 51
    return ArraySource(images, np.zeros(count, dtype=np.int64), ((0.25,), (0.5,)))


def shares(world: World, count: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    seen = []

    def encode(images: Tensor) -> Tensor:
        assert images.dtype == dtype
        seen.append(len(images))
        return images.flatten(1)[:, :4] * 3

    (rows, labels, indices), _ = features.extract(encode, numbered(count), world, SECTION, plain(), dtype)
    assert len(labels) == len(indices)
    assert rows.shape == (len(indices), 4)
    assert rows.dtype == torch.promote_types(dtype, torch.float32)
    assert max(seen) <= features.CHUNK
    return rows.double().numpy().copy(), indices.numpy().copy()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_features_cover_each_image_once(ranks: Ranks, size: int) -> None:
    for count in (5, features.CHUNK + 1, 3 * features.CHUNK):
        of_ranks = ranks.run(size, shares, count, torch.float32)
        rows, indices = (np.concatenate(part) for part in zip(*of_ranks, strict=True))
        np.testing.assert_array_equal(np.sort(indices), np.arange(count))
        raw = numbered(count).images.double().flatten(1)[:, :4].numpy() / 255
        expected = (raw - 0.25) / 0.5
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, expected[indices], rtol=0, atol=1e-6)


def test_features_keep_a_wide_type() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    shares(world, 5, torch.float64)
    shares(world, 5, torch.bfloat16)


def test_workers_change_nothing() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    one, other = (
        features.extract(
            lambda x: x.flatten(1),
            numbered(600),
            world,
            SECTION.model_copy(update={"workers": workers}),
            plain(),
            torch.float32,
        )[0]
        for workers in (0, 2)
    )
    assert all(map(torch.equal, one, other))
