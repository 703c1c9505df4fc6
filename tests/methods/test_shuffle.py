"""The exchange of images and keys on 1, 2 and 4 ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moco_dist.methods import shuffle
from moco_dist.ranks.collectives import Transfer, World
from tests.ranks import Ranks

BATCH, MODES = 24, ("all_gather", "all_to_all")


def global_batch(dtype: torch.dtype) -> Tensor:
    x = torch.randn(BATCH, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    x[3, 0, 0, 0], x[5, 0, 0, 0] = float("nan"), -0.0  # every bit must arrive
    return (x * 50).to(dtype)


def own(world: World, rows: Tensor) -> Tensor:
    n = len(rows) // world.size
    return rows[world.rank * n : (world.rank + 1) * n]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def orders() -> list[np.ndarray]:
    named = [np.arange(BATCH), np.arange(BATCH)[::-1].copy(), np.roll(np.arange(BATCH), BATCH // 4)]
    return [*named, *(shuffle.permutation(3, step, direction, BATCH) for step in range(4) for direction in range(2))]


def exchange(world: World) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.uint8):
        rows = global_batch(dtype)
        for order in orders():
            for mode in MODES:
                for layout in (torch.contiguous_format, torch.channels_last):
                    mine = own(world, rows).to(memory_format=layout)
                    shuffled = shuffle.start_shuffle(mine, order, world, mode)()
                    assert bits(shuffled) == bits(own(world, rows[torch.from_numpy(order)])), (dtype, mode)
                    assert shuffled.dtype == dtype
                # An encoder that names its input: the keys come back in the order of the global batch.
                keys = shuffled.flatten(1)[:, :7]
                (restored,) = shuffle.gathered_keys([keys], [order], world, mode)
                assert bits(restored) == bits(rows.flatten(1)[:, :7]), (dtype, mode)
            mine = own(world, rows)
            assert shuffle.start_shuffle(mine, order, world, "none")() is mine
            (gathered,) = shuffle.gathered_keys([mine], [order], world, "none")
            assert bits(gathered) == bits(rows)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_mode_gives_the_slice_of_the_shuffled_batch(ranks: Ranks, size: int) -> None:
    ranks.run(size, exchange)


def count_received(world: World, batch_per_rank: int, mode: str) -> dict[str, Any]:
    """Rows and bytes that a rank is sent in one exchange of images, seen at World's two collectives."""
    seen = {"bytes": 0, "from others": 0}
    real_gather, real_exchange = World.start_all_gather, World.start_all_to_all

    def gather(self: World, tensor: Tensor) -> Transfer:
        transfer = real_gather(self, tensor)
        seen["bytes"] += transfer.wait().nbytes
        return transfer

    def exchange(self: World, tensor: Tensor, sent: list[int], received: list[int]) -> Transfer:
        transfer = real_exchange(self, tensor, sent, received)
        out = transfer.wait()
        assert sum(sent) == len(tensor)
        assert sum(received) == len(out)
        seen["bytes"] += out.nbytes
        seen["from others"] += sum(received) - received[self.rank]
        return transfer

    World.start_all_gather, World.start_all_to_all = gather, exchange
    try:
        images = torch.zeros(batch_per_rank, 3, 8, 8)
        order = shuffle.permutation(0, 1, 0, batch_per_rank * world.size)
        shuffle.start_shuffle(images, order, world, mode)()
    finally:
        World.start_all_gather, World.start_all_to_all = real_gather, real_exchange
    return seen


def test_bytes_received_do_not_grow_with_the_cluster(ranks: Ranks) -> None:
    image = 3 * 8 * 8 * 4
    for size in (2, 4):
        for seen in ranks.run(size, count_received, 16, "all_to_all"):
            assert seen["bytes"] == 16 * image
            assert 0 < seen["from others"] <= 16
        for seen in ranks.run(size, count_received, 16, "all_gather"):
            assert seen["bytes"] == size * 16 * image  # what all_to_all is for


def test_the_permutation_depends_on_seed_step_and_direction() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    shuffled = {key: tuple(shuffle.permutation(*key, 32).tolist()) for key in keys}
    assert len(set(shuffled.values())) == 4
    assert all(sorted(order) == list(range(32)) for order in shuffled.values())
