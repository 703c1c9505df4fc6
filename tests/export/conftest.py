"""Make runs to export from: one of torchvision's network, and one that only some formats can hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import evaluation_row
from moco_dist.train import run as train

NARROW = [
    "track.wandb=disabled",
    "model.width=8",
    "optim.steps=4",
    "optim.global_batch=32",
    "moco.queue_size=64",
    "checkpoint.every_steps=2",
    "eval.knn_every=0",
]
STANDARD = [
    "track.wandb=disabled",
    "data.source=synthetic",
    "data.samples=16",
    "data.image_size=32",
    "model.arch=resnet18",
    "model.stem=imagenet",
    "model.width=64",
    "optim.steps=2",
    "optim.global_batch=8",
    "moco.queue_size=16",
    "moco.bn_groups=1",
    "eval.knn_every=0",
]

EVALUATION = {"knn_top1": 0.75, "linear_top1": 0.5, "linear_train_top1": 0.625}
"""Accuracies that stand in the narrow run's rows; to measure them would take longer than the training."""


@pytest.fixture(scope="session")
def of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run whose encoder has a small stem, eight channels in its first stage, and sees gray images."""
    folder = tmp_path_factory.mktemp("runs") / "narrow"
    assert train([f"run.dir={folder}", *NARROW]) == 0
    with RunPaths(folder).metrics.open("a") as rows:
        rows.write(json.dumps(evaluation_row(4, 1, EVALUATION)) + "\n")
    return folder


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run whose encoder is torchvision's ResNet-18; its files are large, so that all tests share it."""
    folder = tmp_path_factory.mktemp("runs") / "standard"
    assert train([f"run.dir={folder}", *STANDARD]) == 0
    return folder


@pytest.fixture
def narrow(of_digits: Path, tmp_path: Path) -> Path:
    """Copy the run of the narrow encoder, so that a test can spoil it."""
    return Path(shutil.copytree(of_digits, tmp_path / "narrow"))
