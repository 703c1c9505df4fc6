"""The start of a node's ranks by torch's elastic agent. Nothing trains here."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launcher.cluster import Profile
from launcher.job import start
from launcher.record import Submission
from tests.launcher.made import make_run


@pytest.mark.parametrize(
    ("least", "names", "expected"), [(2, "n1", (1, 1)), (2, "n1 n2 n3", (2, 3)), (None, "n1 n2", (2, 2))]
)
def test_a_start_on_fewer_nodes_than_min_nodes_needs_them_all(
    least: int | None, names: str, expected: tuple[int, int]
) -> None:
    """A job of --nodes 1-4 may start on one node, though its min_nodes are two."""
    hosts, submission = tuple(names.split()), Submission(profile=Profile(min_nodes=least))
    made_up = SimpleNamespace(
        submission=submission, profile=submission.profile, hostnames=hosts, addresses=hosts, node=0, restart=0,
        job="12", port=lambda attempt: 10000,
    )  # fmt: skip
    agent = start._agent(cast(start.Start, made_up), 0)
    assert (agent.min_nodes, agent.max_nodes) == expected


def test_a_port_that_is_taken_is_told_in_the_jobs_own_log(tmp_path: Path) -> None:
    launch, submission = make_run(tmp_path / "run"), Submission(profile=Profile(gpus_per_node=1))
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        made_up = SimpleNamespace(
            launch=launch, submission=submission, profile=submission.profile, hostnames=("here",), node=0, restart=0,
            ranks=1, job="12", addresses=("127.0.0.1",), stop_mark=launch.stop_mark("12", 0), port=lambda attempt: port,
            say=launch.say,
        )  # fmt: skip
        assert not start.run_ranks(cast(start.Start, made_up), [], 0)
    [line] = (launch.logs / "launcher.log").read_text().splitlines()
    assert "the nodes do not meet, or have lost each other: DistNetworkError: " in line and "EADDRINUSE" in line
