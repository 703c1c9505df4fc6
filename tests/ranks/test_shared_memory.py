"""Memory that the ranks of one machine share, and what they do where there is none."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from moco_dist.ranks import shared_memory, transfers
from moco_dist.ranks.collectives import World
from moco_dist.ranks.transfers import PeerLost
from tests.ranks import Ranks

LARGE = 300_000
"""An array of this many numbers of 4 bytes on every rank is averaged in shared memory."""


def averaged(world: World, folder: str) -> dict[str, Any]:
    """Average large tensors twice, then larger ones; `folder`: where this rank looks for files in memory."""
    generator = torch.Generator().manual_seed(world.rank)
    place = mock.patch.object(shared_memory, "_FOLDER", Path(folder))
    with place, mock.patch.object(World, "all_to_all", autospec=True, side_effect=World.all_to_all) as through_sockets:
        means = []
        for length in (LARGE, LARGE, 2 * LARGE):
            tensors = [torch.randn(length, generator=generator), torch.randn(7, 3, generator=generator).T]
            world.mean_(tensors)
            means.append(tensors)
    return {"means": means, "through sockets": through_sockets.call_count}


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, which others do not use meanwhile."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("size", [2, 4])
def test_means_in_shared_memory_have_the_bits_of_means_through_sockets(
    ranks: Ranks, size: int, tmp_path: Path, memory: Path
) -> None:
    shared = ranks.run(size, averaged, str(memory))
    assert [of_rank["through sockets"] for of_rank in shared] == [0] * size
    assert not list(memory.iterdir()), "nothing may be left in memory"
    through_sockets = ranks.run(size, averaged, str(tmp_path / "missing"))
    assert [of_rank["through sockets"] for of_rank in through_sockets] == [3] * size
    for of_rank in [*shared, *through_sockets]:
        assert same(of_rank["means"], through_sockets[0]["means"])


def averaged_on_two_machines(world: World, here: str, there: str) -> dict[str, Any]:
    return averaged(world, there if world.rank else here)


def test_ranks_that_do_not_see_the_same_memory_use_sockets(ranks: Ranks, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    of_ranks = ranks.run(2, averaged_on_two_machines, str(here), str(there))
    assert [of_rank["through sockets"] for of_rank in of_ranks] == [3, 3]
    assert not list(here.iterdir()), "the file that nobody else saw is removed"


def averaged_without_room(world: World, folder: str) -> dict[str, Any]:
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("os.posix_fallocate", side_effect=full):
        return averaged(world, folder)


def test_ranks_use_sockets_where_memory_is_short(ranks: Ranks, memory: Path) -> None:
    of_ranks = ranks.run(2, averaged_without_room, str(memory))
    assert [of_rank["through sockets"] for of_rank in of_ranks] == [3, 3]
    assert not list(memory.iterdir())


def small_ones(world: World) -> bool:
    world.mean_([torch.zeros(3)])
    return bool(world._memory)


def test_small_tensors_need_no_shared_memory(ranks: Ranks) -> None:
    assert ranks.run(2, small_ones) == [False, False]


def lost_between_two_means(world: World) -> str:
    world.mean_([torch.zeros(LARGE)])
    if world.rank == 0:
        return "gone"
    try:
        with mock.patch.object(transfers, "_LET_THE_CAUSE_SHOW_SECONDS", 0):
            world.mean_([torch.zeros(LARGE)])
    except PeerLost as error:
        return str(error)
    return "nothing noticed"


def test_a_lost_rank_is_noticed(ranks: Ranks) -> None:
    gone, noticed = ranks.run(2, lost_between_two_means)
    assert gone == "gone" and "another rank was lost in mean_" in noticed
