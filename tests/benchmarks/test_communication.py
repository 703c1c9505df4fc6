"""The traffic between the ranks of a step is counted in real steps, and is as the formula says."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.communication import formula, model
from benchmarks.communication.count import Case, count
from benchmarks.communication.formula import Shapes
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

SHARE, QUEUE = 16, 512
"""Images of a rank, whatever the number of ranks."""
SCHEMES = [("authors", False), ("all_gather", False), ("all_to_all", False), ("all_to_all", True), ("none", True)]


def cases(size: int) -> list[Case]:
    return [Case(scheme, symmetric, SHARE * size, QUEUE, groups=4) for scheme, symmetric in SCHEMES]


def counts(world: World) -> list[dict[str, Any]]:
    return [count(world, case, of_step=False) for case in cases(world.size)]


@pytest.fixture(scope="module")
def counted(ranks: Ranks) -> dict[int, list[list[dict[str, Any]]]]:
    """Count the traffic of each rank in each case, on 2 and 4 ranks."""
    return {size: ranks.run(size, counts) for size in (2, 4)}


def test_the_formula_is_what_is_counted(counted: dict[int, list[list[dict[str, Any]]]]) -> None:
    for size, of_ranks in counted.items():
        for of_rank in of_ranks:
            for case, figures in zip(cases(size), of_rank, strict=True):
                assert figures["counted"] == figures["formula"], case
                assert figures["counted"]["gradients"].received > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a connection's bytes")
def test_nothing_moves_that_is_not_counted(counted: dict[int, list[list[dict[str, Any]]]]) -> None:
    """TCP's own counters agree, but for gloo's headers."""
    for size, of_ranks in counted.items():
        for number, case in enumerate(cases(size)):
            wire = sum(of_rank[number]["wire"] for of_rank in of_ranks)
            received = sum(t.received for of_rank in of_ranks for t in of_rank[number]["counted"].values())
            assert received < wire < 1.02 * received, case


def test_the_images_of_all_to_all_do_not_grow_with_the_ranks(counted: dict[int, list[list[dict[str, Any]]]]) -> None:
    """A rank receives its own share of images at most, and holds it twice; with all_gather it receives all others'."""
    shapes = Shapes.of(Case("all_to_all").config())
    crop, image = shapes.image, 4 * shapes.image
    for size, of_ranks in counted.items():
        for of_rank in of_ranks:
            of = dict(zip(SCHEMES, of_rank, strict=True))
            for symmetric in (False, True):
                exchanged = of["all_to_all", symmetric]["counted"]["images"]
                assert 0 < exchanged.received < (2 * SHARE * image if symmetric else SHARE * crop)
                assert exchanged.calls == 1 + symmetric
            held = of["all_to_all", False]["shuffle_peak"]
            assert 2 * SHARE * crop <= held <= 3 * SHARE * crop  # gloo may let go of its input late
            for scheme, each in (("authors", image), ("all_gather", crop)):
                assert of[scheme, False]["counted"]["images"].received == (size - 1) * SHARE * each
                assert of[scheme, False]["shuffle_peak"] >= (size + 1) * SHARE * each
            assert of["none", True]["counted"]["images"] == formula.NOTHING


def test_buckets_are_those_of_ddp() -> None:
    """The buckets agree for networks larger than those that are counted, too."""
    sizes = (100, 3_000_000, 5_000_000, 9_000_000, 1_000, 400_000, 20, 200_000)
    shapes = Shapes(image=1, dim=1, queue_size=1, parameters=sizes, channels=())
    last_first = [torch.empty(numbers) for numbers in reversed(sizes)]
    indices, _ = dist._compute_bucket_assignment_by_size(last_first, [1 << 20, 25 << 20])
    assert shapes.buckets() == [sum(last_first[i].nbytes for i in bucket) for bucket in indices]
    assert len(indices) == 4


def test_one_rank_sends_nothing() -> None:
    shapes = Shapes.of(Case("none").config())
    for scheme, symmetric in SCHEMES:
        messages = formula.messages(scheme, shapes, 32, 1, symmetric)
        assert all(t.received == t.sent == 0 for t in formula.add_up(messages, 0, 1).values())


def test_the_model_knows_nodes() -> None:
    """A ring brings its bytes into a node once; an all_to_all brings each rank's bytes in, but for the node's own."""
    cluster = model.Cluster(gpus_per_node=4, inside_gbytes=8.0, between_gbytes=2.0)
    gathered = formula.Message("images", "all_gather", size=8 * 10**9, kept=10**9)
    exchanged = formula.Message("images", "all_to_all", size=8 * 10**9, kept=10**9)
    assert cluster.seconds(gathered, 8) == pytest.approx(7 / 2)
    assert cluster.seconds(exchanged, 8) == pytest.approx(4 * 4 / 2)  # 4 of a rank's 7 GB come from the other node
    assert cluster.seconds(formula.Message("images", "all_gather", size=4 * 10**9, kept=10**9), 4) == 3 / 8
    assert cluster.seconds(formula.Message("gradients", "all_reduce", size=10**9), 8) == pytest.approx(2 * 7 / 8 / 2)


def test_the_model_at_a_thousand_ranks() -> None:
    shapes = Shapes(image=100, dim=4, queue_size=64, parameters=(1000, 10), channels=(8,))
    of = {(row["ranks"], row["scheme"]): row["received"] for row in model.rows(shapes, model.Cluster(), 32)}
    assert of[1024, "all_gather"]["images"] == 1023 * 32 * 100
    assert of[1024, "all_to_all"]["images"] == pytest.approx(32 * 100 * 1023 / 1024)
    assert of[1024, "authors"]["keys"] == 2 * of[1024, "all_to_all"]["keys"]
    assert of[8, "authors"]["buffers"] > 64 * 4 * 4 and of[8, "all_gather"]["buffers"] == 0
