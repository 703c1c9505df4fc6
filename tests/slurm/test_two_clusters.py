"""Two real clusters that share their accounting: a job is sent to the other one, or a federation begins it there."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.devcluster import Cluster, Misuse, Settings
from tests import jobs
from tests.slurm.jobs import STEPS, Sent, launcher, rows, sent


@pytest.fixture(scope="module")
def clusters(slurm_programs: None) -> Iterator[tuple[Cluster, Cluster]]:
    """The cluster of the shell, and beside it the cluster gpu."""
    with tempfile.TemporaryDirectory(prefix="dc", dir="/tmp") as folder:
        one = Settings(nodes=1, cpus=2, gpus=2)
        with Cluster(f"{folder}/a", one) as home:
            beside = Settings(nodes=1, cpus=2, gpus=2, name="gpu", beside=f"{folder}/a")
            with Cluster(f"{folder}/b", beside) as other:
                yield home, other


def row(home: Cluster, run_dir: Path) -> dict[str, Any]:
    """The run as `status` shows it from the shell's cluster."""
    shown = [one for one in rows(home, run_dir.parent.parent) if one["run_dir"] == str(run_dir)]
    assert len(shown) == 1, shown
    return shown[0]


def is_preempted_and_cancelled(home: Cluster, other: Cluster, run: Sent) -> None:
    """Follow a run that the other cluster has begun, through a preemption there, to its end by `cancel`."""
    run.until_step(3)
    shown = row(home, run.run_dir)
    assert (shown["state"], shown["job"], shown["nodes"]) == ("running", run.job, "127.0.0.11")
    inside = json.loads(launcher(home, "top", str(run.run_dir), "--json", cwd=run.run_dir.parent.parent).stdout)
    assert len(inside["nodes"]) == 1
    other.call("sbatch", "--clusters=gpu", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    run.until_start(2)
    saved = jobs.last_step(run.run_dir)
    run.until_step(saved + 3)
    process = launcher(home, "cancel", str(run.run_dir), cwd=run.run_dir.parent.parent)
    assert process.returncode == 0 and f"job {run.job} cancelled; saved at step" in process.stdout, process
    other.wait_idle()
    shown = row(home, run.run_dir)
    assert shown["state"] == "cancelled" and shown["saved_step"] == shown["step"]
    assert [*jobs.losses(run.run_dir)] == [*range(1, shown["step"] + 1)]


def test_a_run_on_a_cluster_that_is_named(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    home, other = clusters
    run = sent(home, tmp_path / "runs/named", "--slurm-cluster", "gpu", steps=10 * STEPS)
    assert run.job.endswith("@gpu")
    is_preempted_and_cancelled(home, other, run)


def test_a_run_that_a_federation_begins_on_another_cluster(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    """SLURM calls the job revoked on the cluster that it was sent to."""
    home, other = clusters
    home.call("sacctmgr", "-i", "add", "federation", "fed", "clusters=devcluster,gpu")
    home.call("sacctmgr", "-i", "modify", "cluster", "gpu", "set", "features=fast")
    run = sent(home, tmp_path / "runs/fed", "--sbatch", "cluster-constraint=fast", steps=10 * STEPS)
    assert int(run.job) >> 26 == 1
    there = ("squeue", "--local", "--noheader", f"--jobs={run.job}", "--format=%T")
    run.until(lambda: other.call(*there).strip() == "RUNNING", "start on the other cluster")
    is_preempted_and_cancelled(home, other, run)
    hours = json.loads(launcher(home, "status", "--hours", "--json", cwd=tmp_path).stdout)
    [starts] = [one["starts"] for one in hours["runs"] if one["run"] == "fed"]
    assert [start["by"] for start in starts] == ["SLURM", "SLURM"], hours


def test_a_cluster_stands_beside_one_that_has_accounting(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    home, other = clusters
    with pytest.raises(Misuse, match=r"^beside = .* holds no cluster with accounting of its own; "):
        Cluster(tmp_path / "c", Settings(name="c", beside=str(other.directory))).start()
    with pytest.raises(Misuse, match=r"^name = devcluster: is that of the cluster beside; choose another"):
        Cluster(tmp_path / "c", Settings(beside=str(home.directory))).start()
    with pytest.raises(Misuse, match=r"^beside = .*: clusters are known to each other by their accounting"):
        Settings(beside=str(home.directory), accounting=False)
    command = ["squeue", "--clusters=all", "--noheader"]
    assert subprocess.run(command, env=other.environment, check=True, capture_output=True).returncode == 0
