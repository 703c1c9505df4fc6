"""The launcher's commands say on a real SLURM, through a person's day, how runs wait, start, train and end."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.devcluster import Cluster
from tests import jobs
from tests.slurm.jobs import FAST, Sent, launch, rows, sent, small

LONG = 20_000
"""Steps of a run that does not end by itself within a test."""


@pytest.fixture(autouse=True)
def _idle(cluster: Cluster) -> Iterator[None]:
    """Leave no job to the next test."""
    yield
    cluster.call("scancel", f"--user={os.getuid()}")
    cluster.wait_idle()


def row(cluster: Cluster, run: Sent) -> dict[str, Any]:
    """Return the run as `status` shows it."""
    [shown] = rows(cluster, run.run_dir.parent, str(run.run_dir))
    return shown


def says(cluster: Cluster, here: Path, *words: str, code: int = 0) -> str:
    """Run a command of the launcher, which must end with an exit status. Returns all that it has printed."""
    exit_status, text = launch(cluster, *words, cwd=here)
    assert exit_status == code, text
    return text


def listed(cluster: Cluster, here: Path, *words: str) -> list[str]:
    """Return the names of the runs that `status` shows, in its order."""
    return [shown["run"] for shown in json.loads(says(cluster, here, "status", "--json", *words))]


def test_runs_that_wait_start_and_train_are_told_apart(cluster: Cluster, tmp_path: Path) -> None:
    """One run trains, and a younger one is held."""
    begun = time.time()
    trains = sent(cluster, tmp_path / "runs/trains", "checkpoint.every_steps=20", steps=LONG)
    phases = set()
    while jobs.last_step(trains.run_dir) < 25:
        assert time.time() < begun + 180, trains.log()
        shown = row(cluster, trains)
        phases |= {(shown["state"], shown["starting"], bool(shown["waits_for"]))}
    assert ("running", True, True) in phases, "it was never shown as starting"
    shown = row(cluster, trains)
    assert (shown["state"], shown["starting"], shown["waits_for"]) == ("running", False, None)
    assert 20 <= shown["saved_step"] <= shown["step"] and shown["nodes"] in cluster.nodes
    held = sent(cluster, tmp_path / "runs/held", "--sbatch", "hold")
    assert row(cluster, held)["reason"].endswith(f": scontrol release {held.job}")
    table = says(cluster, tmp_path, "status")
    assert max(map(len, table.splitlines())) <= 100 and table.index("held") < table.index("trains")
    assert listed(cluster, tmp_path) == ["held", "trains"]
    assert listed(cluster, tmp_path, "--state", "running") == ["trains"]
    assert listed(cluster, tmp_path, "--filter", "held") == ["held"]
    assert listed(cluster, tmp_path, "--mine", "--since", "2h") == ["held", "trains"]
    cluster.call("scontrol", "release", held.job)
    assert held.wait() == "COMPLETED", held.log()
    assert row(cluster, held)["state"] == "done"
    checkpoints = trains.run_dir / "checkpoints"
    checkpoints.rename(tmp_path / "aside")
    checkpoints.write_text("")  # no folder, so that nothing can be saved
    trains.until(lambda: row(cluster, trains)["checkpoint_failures"], "checkpoint that fails")
    assert "checkpoint" in says(cluster, tmp_path, "status", "trains")


def test_a_look_into_a_running_job_does_not_stop_it(cluster: Cluster, tmp_path: Path) -> None:
    run = sent(cluster, tmp_path / "runs/seen", steps=LONG)
    run.until_step(3)
    [rank] = json.loads(says(cluster, tmp_path, "stacks", "seen", "--json"))
    assert rank["rank"] == 0 and "moco_dist/train/loop.py" in rank["stacks"]
    assert run.job in says(cluster, tmp_path, "shell", "seen", "--", "printenv", "SLURM_JOB_ID")
    [node] = json.loads(says(cluster, tmp_path, "top", "seen", "--json"))["nodes"]
    assert node["ranks"] == [0] and node["data_wait"] is not None
    run.until_step(jobs.last_step(run.run_dir) + 20)
    assert run.starts() == 1


def test_the_same_run_with_fresh_code(cluster: Cluster, tmp_path: Path) -> None:
    """A live run saves, and goes on by a new job; an ended one says which code it goes on with."""
    run = sent(cluster, tmp_path / "runs/again", steps=LONG)
    run.until_step(10)
    record = run.run_dir / "launch/job.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "code": "0123456789ab"}))  # as if the checkout had changed since
    text = says(cluster, tmp_path, "requeue", "again", "--fresh-code")
    assert f"takes over from job {run.job}, with the checkout's code, " in text
    run.until_start(2)
    run.job = run.last_job()
    reached = jobs.last_step(run.run_dir)
    run.until_step(reached + 3)
    says(cluster, tmp_path, "cancel", "again")
    last = jobs.last_step(run.run_dir)
    assert [*jobs.losses(run.run_dir)] == [*range(1, last + 1)]
    run.wait()  # SLURM may still end the job, which no second one can join
    text = says(cluster, tmp_path, "requeue", "again")
    assert re.search(
        rf"^again: was cancelled, saved at step {last}; sent again as job \d+, with its own copy", text, re.M
    )


def test_a_refused_submission_leaves_nothing_and_a_secret_is_never_shown(cluster: Cluster, tmp_path: Path) -> None:
    code, text = launch(cluster, *small(tmp_path / "runs/refused", "--nodes", "9"), cwd=tmp_path)
    assert code == 2 and "nodes" in text and not (tmp_path / "runs").exists()
    lines = ["partition: main", "cpus_per_gpu: 1", "time_minutes: 10"]
    secret = "environment: {HTTPS_PROXY: 'http://me:hunter2@proxy:80'}"
    (tmp_path / "mine.yaml").write_text("\n".join([*lines, secret]))
    words = ("--cluster", f"{tmp_path}/mine.yaml")
    code, text = launch(cluster, *small(tmp_path / "runs/secret", *words), cwd=tmp_path)
    assert code == 2 and "a secret has no place in a file" in text and "hunter2" not in text
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    variables = {"WANDB_BASE_URL": "https://me:hunter2@host"}  # exported in the shell that submits
    run = sent(cluster, tmp_path / "runs/secret", *words, environment=variables)
    assert run.wait() == "COMPLETED", run.log()
    assert "hunter2" not in run.log() + says(cluster, tmp_path, "status", "--json")
    (run.run_dir / "launch/logs/launcher.log").unlink()
    os.mkfifo(run.run_dir / "launch/logs/launcher.log")
    assert listed(cluster, tmp_path) == ["secret"]


def test_twenty_steps_are_measured_on_one_node_and_on_two(cluster: Cluster, tmp_path: Path) -> None:
    words = ["preflight", str(FAST), f"run.dir={tmp_path / 'runs/measured'}", "--cluster", "devcluster"]
    text = says(cluster, tmp_path, *words, "--gpus-per-node", "1", "--nodes", "2", "--measure")
    sizes = re.findall(r"^ *(\d) +\d", text, re.MULTILINE)
    assert sorted(sizes) == ["1", "2"], text
    assert "4 nodes: not measured, SLURM refuses such a job (" in text, "the cluster has two"
    assert not list((tmp_path / "runs").iterdir())
