"""Ranks on a node are looked at without stopping them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.job import look
from launcher.record import Launch
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

RANK = """
import os, sys, time
from pathlib import Path
from launcher.job import worker
from launcher.record import Launch

def hangs_here():
    print("ready", flush=True)
    time.sleep(600)

if {heeds}:
    worker.write_stacks_at_signal(Launch(Path(sys.argv[2])).stacks(int(os.environ["RANK"])))
hangs_here()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return make_run(tmp_path / "run")


@pytest.fixture
def start(launch: Launch) -> Iterator[Start]:
    """Starts a process that is a rank by its words and variables."""
    ranks: list[subprocess.Popen[str]] = []

    def begin(rank: int, *, heeds: bool = True, node: str = "") -> subprocess.Popen[str]:
        words = [sys.executable, "-c", RANK.format(heeds=heeds), "launcher.job.worker", str(launch.run_dir)]
        variables = {**os.environ, "RANK": str(rank), **({"SLURMD_NODENAME": node} if node else {})}
        process = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True)
        ranks.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in ranks:
        process.kill()
        process.communicate()


def test_every_rank_tells_where_it_is_and_goes_on(launch: Launch, start: Start) -> None:
    processes = [start(rank) for rank in (1, 0)]
    for _ in range(2):  # the file of the first time is not told again
        rows = look.stacks(launch)
        assert [(row["rank"], row["pid"]) for row in rows] == [(0, processes[1].pid), (1, processes[0].pid)]
        assert [row["stacks"].count("in hangs_here") for row in rows] == [1, 1]
    assert all(process.poll() is None for process in processes)
    assert oct(launch.stacks(0).stat().st_mode & 0o777) == "0o600"


def test_ranks_are_found_where_the_run_was_sent_by_a_link(launch: Launch, start: Start, tmp_path: Path) -> None:
    launch.run_dir.rename(tmp_path / "disk")
    launch.run_dir.symlink_to("disk")
    process = start(0)
    assert look.ranks_here(tmp_path / "disk") == look.ranks_here(launch.run_dir) == {process.pid: 0}
    assert not look.ranks_here(tmp_path)


def test_a_rank_that_does_not_heed_the_signal_is_not_killed_by_it(launch: Launch, start: Start) -> None:
    launch.stacks(0).write_text("")
    process = start(0, heeds=False)
    [row] = look.stacks(launch)
    assert row["stacks"] == ""
    time.sleep(0.1)
    assert process.poll() is None


def test_ranks_of_other_runs_and_other_nodes_are_left_alone(
    launch: Launch, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = start(0, node="n1"), start(1, node="n2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert look.ranks_here(launch.run_dir) == {here.pid: 0}
    assert look.ranks_here(tmp_path / "another") == {}
    [row] = look.stacks(launch)
    assert (row["rank"], row["host"]) == (0, "n1")


def test_use_is_measured_with_the_gpus_that_nvidia_smi_tells_of(
    launch: Launch, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Programs(tmp_path / "programs", monkeypatch).runs(
        "nvidia-smi", 'printf "0, 97, 40000, 81559\\n1, [N/A], 10, 81559\\n"'
    )
    monkeypatch.setattr(look, "_SAMPLE_SECONDS", 0.05)
    start(0)
    monkeypatch.setattr("sys.argv", ["look", "use", str(launch.run_dir)])
    assert look.main() == 0
    [row] = json.loads(capfd.readouterr().out)
    assert row["ranks"] == [0] and row["cores"] < 1 and row["cores_allowed"] == len(os.sched_getaffinity(0))
    assert 2**20 < row["memory_bytes"] < row["node_memory_bytes"]
    assert 0 < row["node_memory_used_bytes"] < row["node_memory_bytes"]
    assert row["gpus"] == [
        {"index": 0, "use": 97, "memory_mib": 40000, "memory_total_mib": 81559},
        {"index": 1, "use": None, "memory_mib": 10, "memory_total_mib": 81559},
    ]


def test_a_node_without_gpus_and_without_ranks_is_told_too(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    [row] = look.use(launch)
    assert (row["ranks"], row["gpus"], row["memory_bytes"]) == ([], [], 0)
