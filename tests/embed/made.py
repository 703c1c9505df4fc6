"""Make what the tests of features and of the search share: a small run, and a folder of images of all kinds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moco_dist.config.schema import ModelSection
from moco_dist.networks.resnet import build_encoder
from moco_dist.train import run as train

SETTINGS = ("model.width=8", "eval.knn_every=0", "optim.steps=4", "checkpoint.every_steps=2", "track.wandb=disabled")
SMALL = ("optim.global_batch=32", "moco.queue_size=64", "device.type=cpu")
DAMAGED = "train/dog/1.png"
STRANGE = os.fsdecode(b"val/cat/line\nbyte\xff.png")


def run_of(folder: Path) -> Path:
    """Train a small run, whose encoder takes gray images of 8 pixels."""
    assert train([f"run.dir={folder}", *SETTINGS, *SMALL]) == 0
    return folder


def images_of(folder: Path) -> list[str]:
    """Make a folder of images; return the names of those that can be read, in the order of the folder."""
    rng = np.random.default_rng(0)
    names = ["beside.png", *(f"train/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(4)), STRANGE]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / DAMAGED).write_bytes(b"no image")
    (folder / "train" / "notes.txt").write_text("no image either")
    return [name for name in names if name != DAMAGED]


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder, to be changed."""
    return Path(shutil.copytree(folder, to))


def save_infinite(file: Path) -> None:
    """Save an encoder of colour images whose features are beyond float32."""
    network = build_encoder(ModelSection(arch="resnet18", stem="small", width=8), 3, seed=0)
    for block in network.layer4:  # the sum of both is too large
        torch.nn.init.constant_(block.bn2.bias, 3e38)
    torch.save(network.state_dict(), file)
