"""Start the ranks of a node, under torch's elastic agent or one by itself, and find their processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.job.start import Start

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

_WORKER = "launcher.job.worker"


def run(start: Start, overrides: list[str], attempt: int) -> bool:
    """Run this task's ranks until they end. Returns whether all of them ended with exit status 0."""
    return _run_node(start, overrides, attempt) if start.profile.tasks == "node" else _run_rank(start, overrides)


def processes() -> list[int]:
    """Return the ids of the processes that run this task's ranks."""
    children: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += [int(pid) for pid in file.read_text().split()]
    return [pid for pid in children if _WORKER.encode() in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _arguments(start: Start, overrides: list[str]) -> list[str]:
    """Return Python's arguments that make it a rank of the job."""
    run_dir, ranks = str(start.launch.run_dir), str(start.submission.ranks)
    return ["-u", "-m", _WORKER, run_dir, ranks, str(start.stop_mark), *overrides]


def _run_node(start: Start, overrides: list[str], attempt: int) -> bool:
    """Run this node's ranks under torch's elastic agent, which starts crashed ones again."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    try:
        elastic_launch(_agent(start, attempt), sys.executable)(*_arguments(start, overrides))
        return True
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        start.say(f"rank {rank} failed with exit status {failure.exitcode}; this start has no restarts left")
    except SignalException:
        raise SystemExit(128 + signal.SIGINT) from None
    except (RuntimeError, OSError) as error:  # the rendezvous: the other nodes are gone
        start.say(f"the nodes have lost each other: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return False


def _agent(start: Start, attempt: int) -> LaunchConfig:
    """Return the settings of the elastic agent."""
    from torch.distributed.launcher.api import LaunchConfig

    place, profile = start.place, start.profile
    patience_seconds = 3600 if start.submission.stage else 600  # until all nodes are there
    return LaunchConfig(
        min_nodes=profile.min_nodes or len(place.hostnames),
        max_nodes=len(place.hostnames),
        nproc_per_node=profile.gpus_per_node,
        run_id=f"{place.job}.{place.restart}.{attempt}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{place.hostnames[0]}:{place.port(attempt)}",
        rdzv_configs={
            "is_host": place.node == 0,
            "join_timeout": patience_seconds,
            "read_timeout": patience_seconds,
            "last_call_timeout": 30,  # for late nodes, once enough are there to go on without them
            "keep_alive_interval": 5,
            "keep_alive_max_attempt": 6,
        },
        max_restarts=profile.max_restarts,
        monitor_interval=0.2,
        local_addr=place.hostnames[place.node],
        signals_to_handle="SIGINT",  # TERM and USR2 are ours
    )


def _run_rank(start: Start, overrides: list[str]) -> bool:
    """Run one rank in a process of its own."""
    place = start.place
    ranks = {"RANK": place.task, "LOCAL_RANK": place.local_task, "WORLD_SIZE": start.submission.ranks}
    ranks["LOCAL_WORLD_SIZE"] = start.profile.gpus_per_node
    meeting = {"MASTER_ADDR": place.hostnames[0], "MASTER_PORT": str(place.port(0))}
    environment = {**os.environ, **meeting, **{name: str(value) for name, value in ranks.items()}}
    return subprocess.run([sys.executable, *_arguments(start, overrides)], env=environment).returncode == 0
