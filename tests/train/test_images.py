"""Runs on images that are no ordinary photos, from the files to the evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_dist import config, train
from moco_dist.evaluate import command
from moco_dist.run.rows import is_training, read_rows
from tests.jobs import FAST, losses


def arguments(images: Path, run_dir: Path, *overrides: str) -> list[str]:
    data = ["data.source=imagefolder", f"data.root={images}", "data.augmentation=v2", "data.crop_scale=[0.5,1]"]
    sizes = ["optim.global_batch=16", "optim.schedule=constant", "moco.queue_size=32", "moco.bn_groups=1"]
    return [str(FAST), *data, *sizes, f"run.dir={run_dir}", *overrides]


def two_classes(root: Path, suffix: str, values: np.ndarray) -> Path:
    """Write images [2, n, ...] of two classes; of each, the last three are held out."""
    for name, of_class in zip("ab", values, strict=True):
        for n, image in enumerate(of_class):
            place = root / ("val" if n >= len(of_class) - 3 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            if suffix == "npy":
                np.save(place / f"{n:02}.npy", image)
            else:
                Image.fromarray(image).save(place / f"{n:02}.{suffix}")
    return root


def test_five_channels_from_training_to_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 20000, (2, 15, 10, 12, 5)).astype(np.uint16)
    values[1, ..., 4] += 40000  # the last channel alone tells the classes apart
    images, run_dir = two_classes(tmp_path / "images", "npy", values), tmp_path / "run"
    run = arguments(images, run_dir, "data.channels=5", "data.workers=2")
    assert train.run([*run, "optim.steps=2"]) == 0, capsys.readouterr().err
    error = capsys.readouterr().err
    assert error.count("saturation, hue and grayscale are for colour, and are left out") == 1
    kept = config.load(run_dir / "config.yaml").data
    assert kept.mean == pytest.approx([10000 / 65535] * 4 + [30000 / 65535], abs=0.01)
    assert kept.std and len(kept.std) == 5

    assert train.run([*run, "optim.steps=3"]) == 0, capsys.readouterr().err  # the same numbers, or it would be refused
    assert [*losses(run_dir)] == [1, 2, 3]
    with Image.open(run_dir / "augmented_pairs.png") as picture:
        assert picture.mode == "RGB"

    assert command.run([str(run_dir), "--knn"]) == 0, capsys.readouterr().err
    [row] = json.loads((run_dir / "evaluation.json").read_text())["rows"]
    assert row["test_accuracy_mean"] > 0.8 and (run_dir / "evaluation" / "wrong.png").is_file()


def test_sixteen_bits_and_long_images_are_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2000, (2, 15, 12, 10)).astype(np.uint16)
    values[1] += 2000
    images, run_dir = two_classes(tmp_path / "images", "png", values), tmp_path / "run"
    Image.new("L", (60000, 1), 9).save(images / "val" / "a" / "long.png")
    run = arguments(images, run_dir, "data.channels=1", "optim.steps=2", "data.image_size=10")
    assert train.run([*run, "run.name=dark"]) == 0
    assert len(re.findall("hold [0-9]* to 39[0-9]*, under an eighth of it", capsys.readouterr().err)) == 1
    assert train.run([*arguments(images, tmp_path / "light"), *run[-3:], "data.value_range=[0,4095]"]) == 0
    assert "eighth" not in capsys.readouterr().err
    assert losses(run_dir) != losses(tmp_path / "light")
    for path in (images / "train").rglob("*.png"):
        Image.new("F", (12, 12), 300.0).save(path, "TIFF")
    assert train.run([*arguments(images, tmp_path / "floats"), *run[-3:]]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("moco_dist.train: data.value_range = null: ") and line.endswith("and what is white")


def test_a_run_of_photographs_keeps_its_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, run_dir = np.random.default_rng(0), tmp_path / "run"
    images = two_classes(tmp_path / "images", "jpg", rng.integers(0, 256, (2, 15, 40, 50, 3), dtype=np.uint8))
    run = arguments(images, run_dir, "data.image_size=16", "eval.knn_every=0", "track.log_every=1")
    assert train.run([*run, "optim.steps=2", "data.workers=auto"]) == 0
    assert re.search(r"^data\.workers = auto: \d+ of each rank, for ", capsys.readouterr().out, re.MULTILINE)
    recorded = config.load(run_dir / "config.yaml").data
    assert (recorded.decode, recorded.workers) == ("cpu", "auto")
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if is_training(row)]
    assert [row["step"] for row in rows] == [1, 2] and all(0 <= row["data_wait"] <= 1 for row in rows)
    assert train.run([*run, "optim.steps=3", "data.decode=pillow"]) == 2
    assert "data.decode = pillow (was cpu): would change the curve" in capsys.readouterr().err
    assert train.run([*run, "optim.steps=3"]) == 0
