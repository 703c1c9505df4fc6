"""The books tell of the time that ranks wait for batches, and count images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moco_dist.engine.figures import Figures
from moco_dist.ranks.collectives import World
from moco_dist.train import books
from moco_dist.train.readout import Reading
from tests.data.made import config_of


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_row_tells_of_all_waits_since_the_last_one(log_every: int) -> None:
    """Batches of several workers come in bursts: the step of a row may wait each time, or never."""
    tracker: Any = SimpleNamespace(writes=lambda step: step % log_every == 0)
    nothing: Any = None
    writer = books.Books(config_of(), nothing, nothing, tracker, nothing, nothing, epoch_steps=1)
    shares = [writer._share_waited(step, 2.0, 1.0 if step % 10 == 0 else 0.0) for step in range(1, 101)]
    written = shares[log_every - 1 :: log_every]
    assert written == (([0.0] * 9 + [0.5]) * 10 if log_every == 1 else [0.05] * 10)


@pytest.mark.parametrize("ranks", [1, 23, 41, 47, 55, 61, 64])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_images_are_counted_on_any_number_of_ranks(ranks: int, images: int) -> None:
    """A sum over the ranks comes as their mean in float32, times their number: less than 1 for one of 41."""
    written: list[Any] = []
    tracker: Any = SimpleNamespace(writes=lambda step: False, log_step=written.append, unreadable=lambda lines: None)
    data: Any = SimpleNamespace(train=range(10_000))
    checkpoints: Any = SimpleNamespace(failures=0)
    nothing: Any = None
    world = World(0, 1, 0, torch.device("cpu"))
    writer = books.Books(config_of(), world, data, tracker, checkpoints, nothing, epoch_steps=100)
    values = torch.tensor([1.0, 0.0, 0.0, float(images), 0.0]).div_(ranks).mul_(ranks)
    figures = Figures(("loss", books.STOP, books.SAVE, books.UNREADABLE, books.WAITED), values, {"lr": 0.1})
    writer.record(Reading(1, figures, []))
    assert written[0]["unreadable"] == writer.unreadable["images"] == images
