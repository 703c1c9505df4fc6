"""Ranks meet again and again in the same processes, without an agent of torchrun's."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from moco_dist.errors import UserError
from moco_dist.ranks import collectives
from moco_dist.ranks.collectives import World
from moco_dist.ranks.meeting import check_device, name_of_start
from moco_dist.ranks.rank import Rank
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]

MEETINGS = """
import time
import torch
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
rank = Rank.from_environment()
for meeting in range(4):
    world = World.join(rank, torch.device("cpu"), 30)
    assert world.gather_objects((rank.rank, meeting)) == [(0, meeting), (1, meeting)]
    if rank.rank == 0:
        time.sleep(0.2)  # it has the store, and the other rank is at the next meeting before it has left this one
    world.leave()
"""


def test_a_rank_that_leaves_late_is_met_again() -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEETINGS],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


def test_ranks_that_do_not_come_are_missed() -> None:
    store = torch.distributed.HashStore()
    store.set("moco_dist", "a name of a dead rank 0")
    with pytest.raises(TimeoutError, match="rank 1: the other ranks did not start within 0 s"):
        name_of_start(Rank(1, 2, 1), store, 0.3)


def test_a_node_without_its_gpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's ranks would wait for those of gloo until both give up."""
    store = torch.distributed.HashStore()
    check_device(Rank(4, 8, 0), store, "cuda")
    check_device(Rank(5, 8, 1), store, "cuda")
    monkeypatch.setattr(collectives, "_stores", {})
    monkeypatch.setattr(collectives._untyped, "rendezvous", lambda *_, **__: iter([(store, 0, 8)]))
    host = re.escape(socket.gethostname())
    pattern = (
        rf"^device\.type = auto: rank 0 on {host} has cpu, and rank 4 on {host} has cuda; mend or leave out the node"
    )
    with pytest.raises(UserError, match=pattern):
        World.join(Rank(0, 8, 0), torch.device("cpu"), 5)
