"""The view of the features: its map, confusions and neighbours, on any number of ranks, and what may fail."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist import config as configs
from moco_dist.data import sources
from moco_dist.evaluate import view
from moco_dist.evaluate.features import Features
from moco_dist.evaluate.knn import Classified
from moco_dist.ranks.collectives import World
from moco_dist.run import features_view
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))


def case() -> tuple[view.Images, Classified, Features]:
    """The digits, their pixels as features, and some of the held-out ones classified wrongly."""
    config = configs.load(None)
    data = sources.load(config)
    assert data.bank is not None and data.queries is not None
    images = view.Images(data.queries, data.bank, config.data.image_size, "test")

    def features_of(source: sources.Source) -> Features:
        indices = np.arange(len(source))
        pixels = source.centred(indices, 8)[0].flatten(1).float()
        assert source.labels is not None
        rows = torch.nn.functional.normalize(pixels, dim=1)
        return Features(rows, torch.from_numpy(source.labels), torch.from_numpy(indices))

    queries = features_of(data.queries)
    predicted = queries.labels.clone()
    predicted[::50] = (predicted[::50] + 1) % 10
    return images, Classified(queries, predicted), features_of(data.bank)


def test_a_view_tells_of_the_images_what_is_true(tmp_path: Path) -> None:
    images, classified, bank = case()
    view.leave(tmp_path / "view.json", classified, bank, images, ALONE, step=7, projection="t-SNE", digest="d")
    read = features_view.read(tmp_path / "view.json")
    assert read and (read.step, read.split, read.images, read.projection, read.digest) == (7, "test", 359, "t-SNE", "d")
    assert read.accuracy == classified.accuracy == 1 - 8 / 359
    assert sum(count for *_, count in read.confusions) == 359 and read.classes == list("0123456789")
    assert read.labels == classified.queries.labels.tolist() and read.right.count(0) == 8
    places = np.array(read.points)
    assert places.shape == (359, 2) and places.min() >= 0 and places.max() <= 1 and np.ptp(places, axis=0).max() > 0.99
    centres = np.array([places[np.array(read.labels) == label].mean(axis=0) for label in range(10)])
    own = np.linalg.norm(places - centres[read.labels], axis=1).mean()
    assert own < 0.5 * np.linalg.norm(places[:, None] - centres, axis=2).mean(), "classes lie apart"


def test_neighbours_are_the_nearest_images(tmp_path: Path) -> None:
    images, classified, bank = case()
    view.leave(tmp_path / "view.json", classified, bank, images, ALONE)
    read = features_view.read(tmp_path / "view.json")
    assert read and len(read.neighbours) == 16 and read.projection == "PCA"
    for near in read.neighbours:
        query = _pixels(near.query)
        [place] = np.flatnonzero((_all_pixels(images.held_out) == query).all(axis=(1, 2)))[:1]
        cosines = classified.queries.rows[place].double() @ bank.rows.double().T
        expected = cosines.topk(6)
        assert near.similarities == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert (_pixels(near.images[0]) == _all_pixels(images.train)[int(expected.indices[0])]).all()
        assert [image.label for image in near.images] == bank.labels[expected.indices].tolist()
    mistaken = [near for near in read.neighbours if near.predicted != near.query.label]
    assert 3 <= len(mistaken) <= 8


def on_a_rank(world: World, folder: str) -> bytes:
    images, classified, bank = case()
    mine = torch.arange(world.rank, len(bank.rows), world.size)
    share = Features(bank.rows[mine], bank.labels[mine], bank.indices[mine])
    view.leave(Path(folder) / f"{world.size}.json", classified, share, images, world)
    return (Path(folder) / f"{world.size}.json").read_bytes()


def test_the_view_does_not_depend_on_the_number_of_ranks(ranks: Ranks, tmp_path: Path) -> None:
    alone = on_a_rank(ALONE, str(tmp_path))
    assert set(ranks.run(2, on_a_rank, str(tmp_path))) == {alone}


def test_the_bank_is_compared_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images of a large data set would in double precision take more memory than training has left."""
    images, classified, bank = case()
    view.leave(tmp_path / "whole.json", classified, bank, images, ALONE)
    sizes, double = list[int](), torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: sizes.append(len(tensor)) or double(tensor))
    monkeypatch.setattr(view, "_BLOCK", 100)
    view._nearest(classified.queries.rows[:3], bank, ALONE)
    assert max(sizes) == 100
    view.leave(tmp_path / "parts.json", classified, bank, images, ALONE)
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_what_fails_in_training_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, classified, bank = case()
    file = tmp_path / "none" / "view.json"
    with caplog.at_level(logging.WARNING):
        view.leave(file, classified, bank, images, ALONE, may_fail=True)
    assert [str(file) in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(OSError, match="No such file"):
        view.leave(file, classified, bank, images, ALONE)


@pytest.mark.parametrize(("side", "channels", "kind"), [(28, 1, "png"), (64, 3, "jpeg"), (48, 3, "png")])
def test_thumbnails_are_small(side: int, channels: int, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, channels), dtype=np.uint8)
    thumbnail = view._thumbnail(pixels, 3)
    assert thumbnail.kind == kind and thumbnail.label == 3
    shown = _pixels(thumbnail)
    assert shown.shape[:2] == (min(side, 48), min(side, 48))
    assert kind == "jpeg" or (shown.reshape(pixels.shape) == pixels).all()


def _pixels(thumbnail: features_view.Thumbnail) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail.picture))))


def _all_pixels(source: sources.Source) -> np.ndarray:
    return source.centred(np.arange(len(source)), 8)[0].squeeze(1).numpy()
