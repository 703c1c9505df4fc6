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
from tests.slurm.jobs import FAST, STEPS, Sent, launcher


@pytest.fixture(scope="module")
def clusters(slurm_programs: None) -> Iterator[tuple[Cluster, Cluster]]:
    """The cluster of the shell, and beside it the cluster gpu."""
    with tempfile.TemporaryDirectory(prefix="dc", dir="/tmp") as folder:
        one = Settings(nodes=1, cpus=2, gpus=2)
        with Cluster(f"{folder}/a", one) as home:
            beside = Settings(nodes=1, cpus=2, gpus=2, name="gpu", beside=f"{folder}/a")
            with Cluster(f"{folder}/b", beside) as other:
                yield home, other


def send(home: Cluster, run_dir: Path, *options: str) -> Sent:
    """Send a run of one rank, in a folder `runs`, from the shell's cluster."""
    words = ["submit", str(FAST), f"optim.steps={10 * STEPS}", f"run.dir={run_dir}", "--gpus-per-node", "1"]
    process = launcher(home, *words, "--cluster", "devcluster", *options)
    assert process.returncode == 0, process.stderr
    job = json.loads((run_dir / "launch/job.json").read_text())["job"]
    return Sent(home, run_dir, job=job)


def row(home: Cluster, run_dir: Path) -> dict[str, Any]:
    """The run as `status` shows it from the shell's cluster."""
    process = launcher(home, "status", "--json", cwd=run_dir.parent.parent)
    rows = [one for one in json.loads(process.stdout) if one["run_dir"] == str(run_dir)]
    assert len(rows) == 1, process.stdout + process.stderr
    return dict(rows[0])


def is_preempted_and_cancelled(home: Cluster, other: Cluster, sent: Sent) -> None:
    """Follow a run that the other cluster has begun, through a preemption there, to its end by `cancel`."""
    sent.until_step(3)
    shown = row(home, sent.run_dir)
    assert (shown["state"], shown["job"], shown["nodes"]) == ("running", sent.job, "127.0.0.11")
    inside = json.loads(launcher(home, "top", str(sent.run_dir), "--json", cwd=sent.run_dir.parent.parent).stdout)
    assert len(inside["nodes"]) == 1
    other.call("sbatch", "--clusters=gpu", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    sent.until_start(2)
    saved = jobs.last_step(sent.run_dir)
    sent.until_step(saved + 3)
    process = launcher(home, "cancel", str(sent.run_dir), cwd=sent.run_dir.parent.parent)
    assert process.returncode == 0 and f"job {sent.job} cancelled; saved at step" in process.stdout, process
    other.wait_idle()
    shown = row(home, sent.run_dir)
    assert shown["state"] == "cancelled" and shown["saved_step"] == shown["step"]
    assert [*jobs.losses(sent.run_dir)] == [*range(1, shown["step"] + 1)]


def test_a_run_on_a_cluster_that_is_named(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    home, other = clusters
    sent = send(home, tmp_path / "runs/named", "--slurm-cluster", "gpu")
    assert sent.job.endswith("@gpu")
    is_preempted_and_cancelled(home, other, sent)


def test_a_run_that_a_federation_begins_on_another_cluster(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    """SLURM calls the job revoked on the cluster that it was sent to."""
    home, other = clusters
    home.call("sacctmgr", "-i", "add", "federation", "fed", "clusters=devcluster,gpu")
    home.call("sacctmgr", "-i", "modify", "cluster", "gpu", "set", "features=fast")
    sent = send(home, tmp_path / "runs/fed", "--sbatch", "cluster-constraint=fast")
    assert int(sent.job) >> 26 == 1
    there = ("squeue", "--local", "--noheader", f"--jobs={sent.job}", "--format=%T")
    sent.until(lambda: other.call(*there).strip() == "RUNNING", "start on the other cluster")
    is_preempted_and_cancelled(home, other, sent)
    hours = launcher(home, "status", "--hours", cwd=tmp_path).stdout
    assert "SLURM" in hours, hours


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
