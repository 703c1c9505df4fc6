"""The evaluation during training: its part of the images, and both figures on any number of ranks."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from moco_dist import config as configs
from moco_dist.data import sources
from moco_dist.data.augment import Augment, Recipe
from moco_dist.data.store import ArraySource
from moco_dist.engine.build import build
from moco_dist.evaluate import knn, linear, online, ridge
from moco_dist.evaluate.features import Features
from moco_dist.methods import moco
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
OVERRIDES = ["model.width=8", "optim.global_batch=64", "eval.knn_k=7"]


def numbered(count: int) -> ArraySource:
    """Image i has label i."""
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    return ArraySource(images, np.arange(count), ((0.25,), (0.5,)))


def chosen(data: sources.Data) -> tuple[list[int], list[int]]:
    """Return which images of `numbered` are bank and queries."""
    assert data.bank is not None and data.bank.labels is not None
    assert data.queries is not None and data.queries.labels is not None
    return data.bank.labels.tolist(), data.queries.labels.tolist()


def test_a_part_of_the_bank_and_a_fifth_as_many_queries() -> None:
    data = sources.Data(numbered(1000), numbered(1000), numbered(1000))
    part = online.part(data, 100)
    bank, queries = chosen(part)
    assert part.train is data.train
    assert (len(bank), len(queries)) == (100, 20)
    assert bank == sorted(set(bank)) and queries == sorted(set(queries))
    assert bank != list(range(100)) and np.mean(bank) == pytest.approx(500, abs=100)  # from all over the source
    assert not set(queries) <= set(bank)  # drawn apart
    assert (bank, queries) == chosen(online.part(data, 100))


def test_the_part_is_the_same_for_every_seed() -> None:
    one, other = (
        online.part(sources.load(configs.load(None, [f"run.seed={seed}", "eval.knn_split=validation"])), 100)
        for seed in (0, 5)
    )
    for mine, theirs in ((one.bank, other.bank), (one.queries, other.queries)):
        assert isinstance(mine, ArraySource) and isinstance(theirs, ArraySource)
        assert torch.equal(mine.images, theirs.images)


@pytest.mark.parametrize(("images", "bank", "queries"), [(None, 50, 9), (50, 50, 9), (45, 45, 9), (5, 5, 1), (1, 1, 1)])
def test_as_many_as_there_are(images: int | None, bank: int, queries: int) -> None:
    data = sources.Data(numbered(50), numbered(50), numbered(9))
    part = online.part(data, images)
    assert tuple(map(len, chosen(part))) == (bank, queries)
    assert (part.bank is data.bank) == (bank == 50) and (part.queries is data.queries) == (queries == 9)


def test_nothing_is_a_part_of_nothing() -> None:
    data = sources.Data(numbered(50), None, None)
    assert online.part(data, 10) == data


def figures(world: World, images: int | None, precision: str = "fp32") -> tuple[dict[str, float], int]:
    """Both accuracies of an untrained encoder on digits, and how many images it has seen for them here."""
    config = configs.load(None, [*OVERRIDES, f"device.precision={precision}"])
    plan, data = configs.layout(config, world.size), sources.load(config)
    encoder = build_encoder(config.model, 1, seed=0)
    engine = build(moco.MoCo(config, world, encoder), config, plan, world)
    seen = []
    encoder.conv1.register_forward_hook(lambda _, __, out: seen.append(len(out)))
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
    accuracies, _ = online.accuracies(config, engine, encoder, online.part(data, images), augmentation)
    assert encoder.training
    return accuracies, sum(seen)


def test_both_figures_are_of_the_encoder_as_it_is() -> None:
    accuracies, seen = figures(ALONE, None)
    assert seen == 1438 + 359  # once
    config = configs.load(None, OVERRIDES)
    data, encoder = sources.load(config), build_encoder(config.model, 1, seed=0).eval()
    assert isinstance(data.bank, ArraySource) and isinstance(data.queries, ArraySource)
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
    with torch.no_grad():
        bank, queries = (
            torch.nn.functional.normalize(encoder.features(augmentation.plain(source.images)))
            for source in (data.bank, data.queries)
        )
    learnt = Features(bank, torch.from_numpy(data.bank.labels), torch.arange(1438))
    query_features = Features(queries, torch.from_numpy(data.queries.labels), torch.arange(359))
    every_fifth = Features(*(share[torch.arange(0, 1438, 5)] for share in learnt))  # 1438 / 359 is just over 4
    assert accuracies == {
        "knn_top1": knn.classify(query_features, learnt, k=7, temperature=0.1, world=ALONE).accuracy,
        "linear_top1": ridge.accuracy(query_features, learnt, world=ALONE),
        "linear_train_top1": ridge.accuracy(every_fifth, learnt, world=ALONE),
    }
    assert 0.5 < accuracies["knn_top1"] < 1 and 0.5 < accuracies["linear_top1"] < 1
    assert len(set(accuracies.values())) == 3


@pytest.mark.parametrize("module", [knn, ridge, linear])
def test_the_watchdog_hears_of_every_block(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images of a large data set take longer than `run.hang_timeout_seconds`, in which a rank must make a step."""
    beats: list[None] = []
    monkeypatch.setattr(watchdog, "beat", lambda: beats.append(None))
    monkeypatch.setattr(module, "_BLOCK", 10)
    rows, of = torch.nn.functional.normalize(torch.randn(60, 4), dim=1), torch.arange(60) % 3
    bank = Features(rows, of, torch.arange(60))
    if module is knn:
        knn.predict(rows, bank, k=5, temperature=0.1, world=ALONE)
    elif module is ridge:
        ridge.fit(rows, of, ALONE)
    else:
        linear.fit(rows, of, 3, 1e-2)
    assert len(beats) >= 6


def test_half_precision_tells_nearly_as_much() -> None:
    (whole, _), (half, _) = figures(ALONE, 300), figures(ALONE, 300, "bf16")
    assert all(abs(half[name] - whole[name]) < 0.1 for name in whole)


@pytest.mark.parametrize("images", [None, 600])
def test_any_number_of_ranks_gives_the_same_figures(ranks: Ranks, images: int | None) -> None:
    expected, count = figures(ALONE, images)
    for size in (1, 2, 4):
        of_ranks = ranks.run(size, figures, images)
        assert [accuracies for accuracies, _ in of_ranks] == [expected] * size, f"{size} ranks"
        # Each image on one rank; a rank without any computes one for the width.
        assert count <= sum(seen for _, seen in of_ranks) <= count + 2 * (size - 1)
