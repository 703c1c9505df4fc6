"""A job that takes a range of nodes uses a number of them that its batch can be shared by."""

from __future__ import annotations

from typing import Any

import pytest

from launcher import elastic
from launcher.cluster import Profile
from launcher.record import Submission
from moco_dist import config as configs
from moco_dist.errors import UserError


def config_of(batch: int, groups: int | None, accumulate: int = 1) -> configs.Config:
    optim = {"global_batch": batch, "accumulate": accumulate}
    return configs.parse({"moco": {"bn_groups": groups, "queue_size": 64}, "optim": optim})


def submission(least: int | None, most: int, gpus: int = 2, **profile: Any) -> Submission:
    return Submission(nodes=most, least_nodes=least, profile=Profile(gpus_per_node=gpus, **profile))


@pytest.mark.parametrize(
    ("batch", "groups", "least", "most", "sizes"),
    [
        (64, 8, 1, 4, [1, 2, 4]),
        (64, 8, 2, 3, [2]),
        (48, 24, 1, 6, [1, 2, 3, 4, 6]),
        (64, 2, 1, 4, [1]),
        (64, 8, None, 2, [2]),
    ],
)
def test_sizes_are_those_that_divide_batch_and_groups(
    batch: int, groups: int, least: int | None, most: int, sizes: list[int]
) -> None:
    assert elastic.sizes(config_of(batch, groups), submission(least, most)) == sizes
    narrowed = elastic.narrowed(config_of(batch, groups), submission(least, most))
    assert (narrowed.least_nodes, narrowed.nodes) == ((sizes[0] if len(sizes) > 1 else None), sizes[-1])


@pytest.mark.parametrize(
    ("config", "job", "line"),
    [
        (
            config_of(64, None, accumulate=2),
            submission(1, 4),
            "moco.bn_groups = null: with --nodes 1-4 the groups would change with the nodes, and with them the curve; "
            "set it, for example moco.bn_groups=16",
        ),
        (
            config_of(64, 8),
            submission(3, 3 + 4, gpus=3),
            "--nodes = 3-7: no such number of nodes divides optim.global_batch=64 and its groups; "
            "choose another moco.bn_groups, or other nodes",
        ),
        (
            config_of(64, 8),
            submission(1, 4, tasks="rank"),
            "--nodes = 1-4: with tasks=rank a job has one number of nodes; use tasks=node",
        ),
    ],
)
def test_what_no_number_of_nodes_can_do_is_told_in_a_line(config: configs.Config, job: Submission, line: str) -> None:
    with pytest.raises(UserError) as caught:
        elastic.narrowed(config, job)
    assert str(caught.value) == line
