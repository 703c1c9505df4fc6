"""Images that cannot be decoded: how often they count, in training and in evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_dist import train
from moco_dist.evaluate import command as evaluate
from moco_dist.evaluate import features
from tests.jobs import rows, status

BROKEN = ("000", "001", "098", "099", "097")
"""Neighbours, across the end of the folder and of a class too: 5 of 500 images, and so not more than 1 %."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    for split, count in (("train", 500), ("val", 20)):
        for number in range(count):
            path = tmp_path / "images" / split / "abcde"[number % 5] / f"{number // 5:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(path)
    for name in BROKEN:
        (tmp_path / "images" / "train" / ("a" if name < "050" else "e") / f"{name}.png").write_bytes(b"")
    return tmp_path / "images"


def test_an_image_counts_once_an_epoch(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "CHUNK", 1)  # neighbours lie in batches of their own
    command = ["data.source=imagefolder", f"data.root={images}", "data.image_size=8", "model.stem=small"]
    command += ["model.width=8", "moco.bn_groups=1", "moco.queue_size=64", "optim.global_batch=50", "optim.steps=20"]
    command += ["track.wandb=disabled", "track.log_every=1", "eval.knn_every=0", "checkpoint.every_steps=3"]
    run = tmp_path / "run"
    for _ in range(2):  # a start goes on in the middle of an epoch
        assert train.run([*command, f"run.dir={run}", "run.max_minutes=0.0001"]) == 75
    assert train.run([*command, f"run.dir={run}"]) == 0
    of_epochs = [sum(row.get("unreadable", 0) for row in rows(run) if row.get("epoch") == epoch) for epoch in (0, 1)]
    assert of_epochs == [5, 5]
    assert evaluate.run([str(run), "--knn"]) == 0
    assert "000.png: " in capsys.readouterr().err

    (images / "train" / "c" / "050.png").write_bytes(b"")
    pattern = rf"data\.root = .*: 6 of 500 images cannot be decoded, more than 1 %; {images}/train/a/000\.png: \w.*;"
    assert train.run([*command, f"run.dir={tmp_path}/worse"]) == 2
    assert re.search(rf"moco_dist\.train: {pattern}".replace(r"a/000\.png", r"./\d+\.png"), capsys.readouterr().err)
    assert status(tmp_path / "worse")["state"] == "user_error"
    assert evaluate.run([str(run), "--knn", "--out", f"{tmp_path}/anew"]) == 2
    assert re.search(rf"moco_dist\.evaluate: {pattern}", capsys.readouterr().err)


def test_a_held_out_image_that_is_replaced_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The label of such an image is judged by another image, so that the accuracy is not told in silence."""
    (images / "val" / "b" / "002.png").write_bytes(b"")
    command = ["data.source=imagefolder", f"data.root={images}", "data.image_size=8", "model.stem=small"]
    command += ["model.width=8", "moco.bn_groups=1", "moco.queue_size=64", "optim.global_batch=50", "optim.steps=1"]
    assert train.run([*command, "track.wandb=disabled", f"run.dir={tmp_path}/run"]) == 0
    errors = capsys.readouterr().err
    assert "cannot be decoded, replaced by other images" in errors and f"{images}/val/b/002.png: cannot" in errors
