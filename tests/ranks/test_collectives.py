"""The ranks tell each other what they shall, on 1, 2 and 4 of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moco_dist.errors import UserError
from moco_dist.ranks.collectives import World, gradients
from moco_dist.ranks.transfers import PeerLost
from tests.ranks import Ranks

SIZES = [1, 2, 4]


def gathers(world: World) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
        mine = torch.full((2, 3), world.rank, dtype=dtype)
        expected = torch.arange(world.size).repeat_interleave(2)[:, None].expand(-1, 3).to(dtype)
        assert torch.equal(world.all_gather(mine), expected)
        assert torch.equal(world.all_gather(mine.T.contiguous().T), expected)
    assert world.all_gather(torch.zeros(0, 3)).shape == (0, 3)
    assert world.gather_objects({"rank": world.rank}) == [{"rank": r} for r in range(world.size)]


def exchanges(world: World) -> None:
    """Rank r sends r + s rows to rank s, each of which names sender and receiver."""
    rows = [(world.rank, s) for s in range(world.size) for _ in range(world.rank + s)]
    mine = torch.tensor(rows or [(0, 0)], dtype=torch.int64)
    if world.size == 1:
        assert world.all_to_all(mine, [1], [1]) is mine
        return
    counts = [world.rank + s for s in range(world.size)]
    received = world.all_to_all(mine, sent=counts, received=counts)
    assert received.tolist() == [[s, world.rank] for s in range(world.size) for _ in range(s + world.rank)]


def means(world: World) -> None:
    tensors = [torch.full((2, 2), float(world.rank)), torch.tensor(2.0 * world.rank), torch.ones(3)[::2]]
    places = [t.data_ptr() for t in tensors]
    world.mean_(tensors)
    mean = (world.size - 1) / 2
    assert [t.tolist() for t in tensors] == [[[mean] * 2] * 2, 2 * mean, [1.0, 1.0]]
    assert [t.data_ptr() for t in tensors] == places
    world.mean_([])


def firsts(world: World, folder: str) -> list[Any]:
    called = Path(folder) / f"called_{world.rank}"

    def action() -> int:
        called.touch()
        return 42

    def mistaken() -> int:
        raise UserError.of("optim.lr", world.rank, "must be less", "lower it")

    def broken() -> int:
        raise ZeroDivisionError("on rank 0")

    assert world.from_first(action) == 42
    assert called.exists() == (world.rank == 0)
    assert world.from_first(lambda: None) is None
    errors = []
    for faulty in (mistaken, broken):
        try:
            world.from_first(faulty)
        except Exception as error:
            errors.append((type(error), str(error)))
    assert world.from_first(lambda: "they go on") == "they go on"
    assert world.agreed(lambda: world.rank) == world.rank
    try:
        world.agreed(lambda: mistaken() if world.rank == world.size - 1 else 0)
    except UserError as error:
        errors.append((type(error), str(error)))
    assert world.first_then_others(lambda: world.rank) == world.rank
    world.barrier()
    return errors


@pytest.mark.parametrize("size", SIZES)
def test_collectives(ranks: Ranks, size: int, tmp_path: Path) -> None:
    for function in (gathers, exchanges, means):
        ranks.run(size, function)
    errors = ranks.run(size, firsts, str(tmp_path))
    assert errors == [
        [
            (UserError, "optim.lr = 0: must be less; lower it"),
            (ZeroDivisionError, "on rank 0"),
            (UserError, f"optim.lr = {size - 1}: must be less; lower it"),
        ]
        for _ in range(size)
    ]


def averages(world: World) -> list[float]:
    module = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    parallel = world.data_parallel(module)
    module[1].running_mean.fill_(world.rank)
    assert isinstance(parallel, DistributedDataParallel) == (world.size > 1)
    parallel.eval()
    x = torch.full((1, 2), world.rank + 1.0)
    with gradients(parallel, synchronise=False):
        parallel(x).sum().backward()
    alone = module[0].weight.grad.clone()
    with gradients(parallel, synchronise=True):
        parallel(x).sum().backward()
    assert module[1].running_mean.item() == world.rank  # no buffer is broadcast
    return [alone[0, 0].item(), module[0].weight.grad[0, 0].item()]


@pytest.mark.parametrize("size", SIZES)
def test_gradients_gather_and_then_average(ranks: Ranks, size: int) -> None:
    scale = (1 + 1e-5) ** -0.5  # of BatchNorm in evaluation
    of_ranks = ranks.run(size, averages)
    for rank, (alone, mean) in enumerate(of_ranks):
        assert alone == pytest.approx((rank + 1) * scale)
        assert mean == pytest.approx(2 * (size + 1) / 2 * scale)


def leave_early(world: World) -> str:
    if world.rank == 0:
        return "gone"
    try:
        world.mean_([torch.zeros(1)])
    except PeerLost as error:
        return str(error)
    return "nothing noticed"


def a_mistake_in_the_second_task(world: World) -> tuple[list[int], str]:
    def work(task: int) -> int:
        if task == 11:
            raise UserError("task = 11: is a mistake; drop it")
        return 2 * task

    shared = world.share_out([10, 12, 13], work)
    try:
        world.share_out([10, 11], work)
    except UserError as error:
        return shared, str(error)
    return shared, "nothing noticed"


def test_tasks_are_shared_out_and_a_mistake_in_one_is_everyones(ranks: Ranks) -> None:
    for size in (1, 2, 4):
        expected = ([20, 24, 26], "task = 11: is a mistake; drop it")
        assert ranks.run(size, a_mistake_in_the_second_task) == [expected] * size


def test_a_rank_that_is_left_says_so(ranks: Ranks) -> None:
    gone, left = ranks.run(2, leave_early)
    assert gone == "gone"
    assert left.startswith("another rank was lost in all_to_all: ")


def test_a_failure_of_a_rank_reaches_the_test(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="rank 1 of 2"):
        ranks.run(2, only_the_second_fails)


def only_the_second_fails(world: World) -> None:
    assert world.rank != 1


def threads_after_leaving(world: World) -> list[str]:
    world.gather_objects(None)
    import torch._dynamo  # noqa: F401  # as an optimizer does

    world.leave()
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def threads_after_leaving_a_parallel_module(world: World) -> list[str]:
    parallel = world.data_parallel(nn.Linear(2, 1))
    parallel(torch.ones(1, 2)).sum().backward()
    circle = [parallel]
    circle.append(circle)  # type: ignore[arg-type]
    del parallel, circle
    return threads_after_leaving(world)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's threads")
@pytest.mark.parametrize("leaving", [threads_after_leaving, threads_after_leaving_a_parallel_module])
def test_the_threads_of_a_group_end_with_it(ranks: Ranks, leaving: Callable[[World], list[str]]) -> None:
    """One that let go of a tensor while Python ended would abort the process."""
    for names in ranks.run(2, leaving):
        assert not [name for name in names if "gloo" in name]
