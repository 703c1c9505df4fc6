"""The order of the samples, and that no number of ranks, workers or restarts changes what a step sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moco_dist import config, randomness
from moco_dist.data import sources
from moco_dist.data.augment import COLOUR_DRAWS, DRAWS, Augment, Recipe
from moco_dist.data.crops import CROP_DRAWS
from moco_dist.data.loader import make_loader
from moco_dist.data.store import PIXEL_STATISTICS, ArraySource
from moco_dist.data.stream import Batch, BatchStream, StreamKeys, on_device, pretraining, steps_per_epoch
from moco_dist.ranks.collectives import World
from tests.data.made import draw, values

CPU = torch.device("cpu")


def config_of(batch: int, seed: int = 0, samples: int = 50, **data: Any) -> config.Config:
    return config.parse(
        {
            "run": {"seed": seed},
            "data": {"source": "synthetic", "samples": samples, "image_size": 8, **data},
            "optim": {"global_batch": batch},
        }
    )


def steps_of(run: config.Config, rank: int = 0, size: int = 1) -> BatchStream:
    return pretraining(sources.open_source(run, "train"), run, World(rank, size, rank, CPU))


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(one[:3], other[:3], strict=True))


def union(batches: list[Batch]) -> Batch:
    views, draws, samples, unreadable = zip(*batches, strict=True)
    replaced = sorted({image for images in unreadable for image in images})
    return Batch(torch.cat(views, 1), torch.cat(draws, 1), torch.cat(samples), replaced)


@given(samples=st.integers(1, 60), size=st.integers(1, 5), share=st.integers(1, 5), seed=st.integers(0, 2**63 - 1))
def test_the_ranks_share_the_order_of_the_epoch(samples: int, size: int, share: int, seed: int) -> None:
    batch = size * share
    per_epoch = steps_per_epoch(samples, batch)
    if not per_epoch:
        return
    run = config_of(batch, seed, samples)
    source = ArraySource(torch.zeros(samples, 1, 8, 8, dtype=torch.uint8), None, ((0.0,), (1.0,)))
    ranks = [pretraining(source, run, World(rank, size, rank, CPU)) for rank in range(size)]
    for epoch in (0, 1, 7):
        order = randomness.permutation(seed, randomness.Stream.ORDER, epoch, 0, samples)
        seen: Counter[int] = Counter()
        for within in range(per_epoch):
            shares = [r.samples(epoch * per_epoch + within) for r in ranks]
            assert {e for e, _ in shares} == {epoch}
            assert all(len(indices) == share for _, indices in shares)
            together = np.concatenate([indices for _, indices in shares])
            np.testing.assert_array_equal(together, order[within * batch : (within + 1) * batch])
            seen.update(together.tolist())
        assert set(seen.values()) == {1}  # no sample twice
        assert len(seen) == per_epoch * batch > samples - batch  # and none left out that fills a batch


def test_epochs_and_seeds_differ() -> None:
    run = config_of(10)
    one, other = steps_of(run), steps_of(config_of(10, seed=1))
    assert one.samples(0)[0] == 0
    assert one.samples(5)[0] == 1
    assert one.samples(0)[1].tolist() != one.samples(5)[1].tolist()
    assert one.samples(0)[1].tolist() != other.samples(0)[1].tolist()
    again = one.samples(0)[1].tolist()  # back in time
    assert again == steps_of(run).samples(0)[1].tolist()


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_samples_views_do_not_depend_on_the_rank(size: int) -> None:
    run = config_of(12)
    alone = steps_of(run)
    ranks = [steps_of(run, rank, size) for rank in range(size)]
    for step in (0, 3, 4, 9):  # of three epochs
        whole = alone[step]
        assert whole.views.shape == (2, 12, 3, 8, 8)
        assert whole.draws.shape == (2, 12, COLOUR_DRAWS)
        assert equal(union([r[step] for r in ranks]), whole)
    assert not torch.equal(alone[0].views[0], alone[0].views[1])
    assert not torch.equal(alone[0].draws[0], alone[0].draws[1])


def test_a_sample_gets_new_views_in_each_epoch() -> None:
    steps = steps_of(config_of(50))  # one step an epoch, so every sample is in each
    draws = {}
    for epoch in range(2):
        at = np.argsort(steps.samples(epoch)[1])
        draws[epoch] = steps[epoch].draws[:, at]
    rows = torch.cat([draws[0], draws[1]]).reshape(-1, COLOUR_DRAWS)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)


def test_workers_and_a_start_in_the_middle_change_nothing(tmp_path: Path) -> None:
    for n in range(11):
        draw(tmp_path / f"{n:02}.png", 10 + 20 * n, side=12 + n)
    (tmp_path / "05.png").write_bytes(b"no png")
    seen = {}
    for workers in (0, 2):
        run = config_of(4, source="imagefolder", root=str(tmp_path), workers=workers)
        seen[workers] = list(make_loader(steps_of(run), range(9), workers, CPU))
    assert len(seen[0]) == 9
    assert all(map(equal, seen[0], seen[2]))
    assert [b.unreadable for b in seen[0]] == [b.unreadable for b in seen[2]]
    assert {image.name for b in seen[0] for image in b.unreadable} == {str(tmp_path / "05.png")}  # once a batch at most
    for start in (1, 3, 8, 9):
        steps = steps_of(config_of(4, source="imagefolder", root=str(tmp_path)))
        tail = list(make_loader(steps, range(start, 9), 0, CPU))
        assert len(tail) == 9 - start
        assert all(map(equal, tail, seen[0][start:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_on_device_gives_both_views(dtype: torch.dtype) -> None:
    run = config_of(10)
    augmentation = Augment(Recipe.of(run.data), *PIXEL_STATISTICS["colour"])
    batches = make_loader(steps_of(run), range(2, 5), 0, CPU)
    prepared = list(on_device(batches, augmentation, CPU, dtype))
    assert len(prepared) == 3
    wide = torch.promote_types(dtype, torch.float32)
    for (views, unreadable), batch in zip(prepared, batches, strict=True):
        one, two = views.images(0), views.images(1)
        assert one.dtype == two.dtype == dtype
        assert one.shape == (10, 3, 8, 8)
        assert torch.equal(one, augmentation(batch.views[0], batch.draws[0], wide).to(dtype))
        assert torch.equal(two, augmentation(batch.views[1], batch.draws[1], wide).to(dtype))
        assert not unreadable


@pytest.mark.parametrize("lesson", [None, 0, 3])
def test_a_stream_about_some_images_of_a_source(tmp_path: Path, lesson: int | None) -> None:
    """Each image has one view, by the stream's own keys; the next one of the whole source replaces a broken file."""
    for n in range(9):
        draw(tmp_path / f"{n}.png", 10 + 20 * n, side=12)
    (tmp_path / "3.png").write_bytes(b"no png")
    run = config_of(4, source="imagefolder", root=str(tmp_path))
    source, among = sources.open_source(run, "train"), np.array([7, 3, 1, 8, 0])
    streams = randomness.Stream.LESSON_ORDER, randomness.Stream.LESSON_VIEW
    steps = BatchStream(source, run.data, StreamKeys(5, *streams, lesson=lesson), 2, among=among)
    for step in range(6):  # three epochs
        batch, epoch = steps[step], step // 2
        order = randomness.permutation(5, streams[0], *((epoch, 0) if lesson is None else (lesson, epoch)), 5)
        samples = order[2 * (step % 2) :][:2]
        assert batch.samples.tolist() == samples.tolist()
        major, minor = (epoch, samples) if lesson is None else (lesson, np.array([2 * step, 2 * step + 1]))
        draws = randomness.uniform(5, streams[1], major, minor, DRAWS)
        assert torch.equal(batch.draws, torch.from_numpy(draws[None, :, CROP_DRAWS:]))
        crops, unreadable = source.crops(among[samples], draws[None, :, :CROP_DRAWS], run.data)
        assert torch.equal(batch.views, crops)
        expected = [10 + 20 * (4 if n == 3 else n) for n in among[samples]]
        assert values(batch.views[0]) == expected
        assert batch.unreadable == unreadable
        assert [image.name for image in unreadable] == [str(tmp_path / "3.png")] * (3 in among[samples])
