"""The speed of ranks, of which one is made slow."""

from __future__ import annotations

import time

import pytest
import torch

from moco_dist.ranks import speed
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks


def measures(world: World) -> None:
    product = torch.mm

    def slow_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2 if world.rank == world.size - 1 else 0.0)
        return product(left, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", slow_product)
        measured = speed.measure(world)
    assert measured.slowest == world.size - 1
    assert (measured.gib_per_second > 0) is (world.size > 1)
    assert (measured.slower > 1) is (world.size > 1)


@pytest.mark.parametrize("size", [1, 2])
def test_the_slowest_rank_is_named(ranks: Ranks, size: int) -> None:
    ranks.run(size, measures)
