"""The ranks measure themselves, and the figures are told by node."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist import config as configs
from moco_dist.data.views import Views
from moco_dist.engine.engine import Details
from moco_dist.engine.fingerprint import PIECES, are_apart, fingerprint
from moco_dist.ranks import devices, transfers
from moco_dist.ranks.busy import BusyTime
from moco_dist.ranks.collectives import World
from moco_dist.run import figures
from moco_dist.train import ends, meters
from tests import standin
from tests.engine.test_engines import Plain, config_of, engine_of
from tests.jobs import FAST, Pair, rows
from tests.ranks import Ranks

NO_GPU = {"gpu_memory": [-1.0] * 4, "gpu_use": [-1.0] * 4}


@pytest.mark.parametrize(
    ("local_ranks", "nodes"), [([0], [0]), ([0, 1, 0, 1], [0, 0, 1, 1]), ([0, 0, 1, 2], [0, 1, 1, 1])]
)
def test_a_node_begins_at_each_first_rank(local_ranks: list[int], nodes: list[int]) -> None:
    assert meters.node_numbers(local_ranks) == nodes


def made(nodes: list[int]) -> meters.Meters:
    one = meters.Meters(World(0, 1, 0, torch.device("cpu")))
    one._nodes = nodes
    return one


def test_figures_are_told_by_node() -> None:
    of_ranks = {
        "step_seconds": [1.0, 2.0, 3.0, 5.0],
        "busy_seconds": [1.0, 1.5, 4.0, 2.0],
        "waited_share": [0.0, 0.5, 0.1, 0.2],
        "memory_gib": [10.0, -1, 20.0, -1],
        **NO_GPU,
    }
    on_cpus = {
        **{"slowest_rank": 2, "slowest_lag": 2.25},
        **{"node/0/step_seconds": 1.5, "node/0/data_wait": 0.25, "node/0/memory_gib": 10.0},
        **{"node/1/step_seconds": 4.0, "node/1/data_wait": 0.15, "node/1/memory_gib": 20.0},
    }
    assert made([0, 0, 1, 1]).figures(of_ranks) == on_cpus
    of_gpus = {"gpu_memory": [1.0, 2.0, 3.0, 2.5], "gpu_use": [0.5, 0.7, -1, -1]}
    on_gpus = {"gpu_memory_gib": 3.0, "node/0/gpu_memory_gib": 2.0, "node/1/gpu_memory_gib": 3.0, "node/0/gpu_use": 0.6}
    assert made([0, 0, 1, 1]).figures({**of_ranks, **of_gpus}) == {**on_cpus, **on_gpus}
    assert not {name for name in on_gpus | on_cpus if not figures.is_measured(name)}


def test_nothing_is_told_of_the_slowest_where_a_rank_has_not_measured_or_is_alone() -> None:
    of_ranks = {name: [1.0, 1.0] for name in ("step_seconds", "waited_share", "memory_gib", "gpu_memory", "gpu_use")}
    assert "slowest_rank" not in made([0, 0]).figures({**of_ranks, "busy_seconds": [1.0, -1.0]})
    alone = {name: values[:1] for name, values in of_ranks.items()}
    assert "slowest_rank" not in made([0]).figures({**alone, "busy_seconds": [1.0]})


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_means_are_taken_since_the_last_row_and_pauses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    meter = made([0])
    assert meter.take()["step_seconds"] == meter.take()["waited_share"] == -1
    for clock.now, waited in ((10.0, 9.0), (12.0, 0.5), (16.0, 1.0)):
        meter.begin_step(waited)
    measured = meter.take()
    assert (measured["step_seconds"], measured["waited_share"]) == (3.0, 0.25)
    meter.pause()
    for clock.now in (1000.0, 1001.0):
        meter.begin_step(0.0)
    measured = meter.take()
    assert (measured["step_seconds"], measured["waited_share"]) == (1.0, 0.0)
    assert measured["memory_gib"] > 0 and measured["gpu_memory"] == measured["gpu_use"] == -1


def test_who_waits_for_others_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    world = World(0, 2, 0, torch.device("cpu"))
    measure = BusyTime(world)
    for pause in (False, True):
        measure.begin_step()
        for _ in range(2):
            clock.now += 2
            with transfers.others("a collective", world.waits):
                clock.now += 16
            with transfers.others("a collective that computes"):
                clock.now += 1
            if not pause:
                measure.begin_step()
            measure.pause()
            clock.now += 1000
            measure.begin_step()
        assert measure.take_seconds() == (0.0 if pause else 3.0)
        measure.pause()


def test_on_a_device_nobody_waits_to_measure() -> None:
    with standin.present(strict=True) as device:
        measure = BusyTime(World(0, 2, 0, device))
        for _ in range(3):
            measure.begin_step()
        assert measure.take_seconds() == 0.001
        for _ in range(3):
            measure.begin_step()
            measure.pause()
        assert measure.take_seconds() == 0.001


def test_what_has_not_passed_on_a_device_is_read_later() -> None:
    with standin.present(strict=True) as device:
        measure = BusyTime(World(0, 2, 0, device))
        measure.begin_step()
        torch.ones(2, device=device).to("cpu", non_blocking=True)  # under way until somebody waits
        for _ in range(3):
            measure.begin_step()
        assert measure.take_seconds() == 0
        measure._events[1].synchronize()
        measure.begin_step()
        assert measure.take_seconds() == 0.001


def test_use_of_a_gpu_is_left_out_where_nobody_tells_it() -> None:
    with standin.present() as device:
        assert devices.use(device) is None
        meter = meters.Meters(World(0, 1, 0, device))
        assert meter.take()["gpu_use"] == -1 and meter.take()["gpu_memory"] == 1


def test_fingerprints_tell_any_difference_but_order_within_a_row() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5), torch.tensor(7), torch.randn(2, 2, 2, 2).bfloat16()]
    reference = fingerprint(tensors).tolist()
    assert all(number == int(number) and 0 <= number < 2**20 for number in reference)
    assert fingerprint([tensor.clone() for tensor in tensors]).tolist() == reference
    for place in range(len(tensors)):
        others = [tensor.clone() for tensor in tensors]
        others[place].view(-1)[-1] += 1
        assert fingerprint(others).tolist() != reference
    assert fingerprint([tensors[0].flip(0), *tensors[1:]]).tolist() != reference
    assert fingerprint([tensors[1], tensors[0], *tensors[2:]]).tolist() != reference


def test_rounding_of_the_sums_over_ranks_is_no_difference() -> None:
    third = torch.tensor([2**20 - 1], dtype=torch.float32) / 3
    assert not are_apart([[float(third * 3), 2.0**20 - 1.01]])
    assert are_apart([[1.0, 1.0], [5.0, 6.0]])


def apart(world: World, encoder_differs: bool) -> list[bool]:
    keys = ["device.precision=fp32", "optim.global_batch=24", "moco.bn_groups=6"]
    engine = engine_of(config_of("overlapped", *keys), Plain, world)
    answers = []
    for step in range(3):
        if step == 1 and encoder_differs and world.rank == 1:
            with torch.no_grad():
                next(engine.method.parameters()).view(-1)[0] += 1e-6
        images = torch.randn(2, 24 // world.size, 3, 2, 2, generator=torch.Generator().manual_seed(step))
        of_step = engine.step(Views(images), step, 0.1, None, Details({"x": world.rank}, True))
        assert of_step.by_rank()["x"] == pytest.approx([*range(world.size)])
        answers.append(are_apart(of_step.by_rank()[name] for name in PIECES))
    return answers


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_part_are_seen(ranks: Ranks, size: int) -> None:
    assert ranks.run(size, apart, False) == [[False] * 3] * size
    assert ranks.run(size, apart, True) == [[False, True, True]] * size


@pytest.mark.parametrize(("log_every", "compare_every"), [(1, 1), (1, 7), (10, 25), (10, 100), (7, 3), (3, 0)])
def test_ranks_are_compared_in_the_first_row_after_so_many_steps(log_every: int, compare_every: int) -> None:
    keys = [f"track.log_every={log_every}", f"track.compare_ranks_every={compare_every}"]
    due = ends.Due(configs.load(FAST, keys), 22, 1000, evaluates=False)
    written = [step for step in range(1, 301) if due.row(step)]
    every = compare_every or 10**9
    expected = {row for last, row in pairwise([0, *written]) if last // every < row // every}
    assert {step for step in written if due.comparison(step)} == expected
    assert bool(expected) is bool(compare_every)


def test_a_run_of_two_ranks_tells_it_all(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim.steps": 9, "track.compare_ranks_every": 4, "checkpoint.every_steps": 4}
    with Pair(tmp_path / "run", settings) as pair:
        assert pair.exits() == [0, 0], pair.log
    training = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in training if "ranks_apart" in row] == [4, 8]
    assert not any(row.get("ranks_apart", 0) for row in training)
    assert [row["step"] for row in training if row["checkpoint_stall"] > 0] == [5, 9]
    assert all(row["slowest_rank"] in (0, 1) and row["slowest_lag"] >= 0 for row in training[2:4])
    assert all(row["node/0/step_seconds"] > 0 and row["node/0/memory_gib"] > 0 for row in training[2:4])
    unlisted = {name for row in rows(tmp_path / "run") for name in row if figures.of(name) is None}
    assert unlisted == {"step", "epoch"}
