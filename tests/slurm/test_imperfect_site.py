"""The launcher on a real SLURM that is not as one would wish, with runs of a few steps on one rank."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.devcluster import Cluster
from tests import jobs
from tests.slurm import events
from tests.slurm.jobs import Sent, launch, rows, sent, small


@pytest.fixture(autouse=True)
def _idle(cluster: Cluster) -> Iterator[None]:
    """Leave no job to the next test."""
    yield
    cluster.call("scancel", f"--user={os.getuid()}")
    cluster.wait_idle()


def until(condition: Callable[[], object], what: Callable[[], object], timeout_seconds: float = 120) -> None:
    """Wait for a condition, and say what there is where it does not come about."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def is_done(status: Path) -> bool:
    return status.exists() and jobs.status(status.parent)["state"] == "done"


def test_what_a_shell_has_exported_changes_no_job(cluster: Cluster, tmp_path: Path) -> None:
    """One run is sent from a shell with a site's defaults, another from a step of an array task.

    The profile of the first has a path of Python's with other code; and its node is known by its name.
    """
    inner = " ".join(map(shlex.quote, [sys.executable, "-m", "launcher", *small(tmp_path / "inner")]))
    script = f"export PYTHONPATH={jobs.ROOT}; srun --cpu-bind=none {inner}"
    array = ["--array=3", "--time=3", f"--output={tmp_path}/array.log", "--wrap", script]
    cluster.call("sbatch", "--gpus-per-node=1", *array)
    (tmp_path / "theirs" / "moco_dist").mkdir(parents=True)
    (tmp_path / "theirs" / "moco_dist" / "__init__.py").write_text("raise SystemExit(1)\n")
    profile = f"partition: main\ncpus_per_gpu: 1\ntime_minutes: 10\nenvironment: {{PYTHONPATH: {tmp_path}/theirs}}\n"
    (tmp_path / "mine.yaml").write_text(profile)
    outer = sent(cluster, tmp_path / "outer", "--cluster", f"{tmp_path}/mine.yaml", environment=events.OF_A_SHELL)
    details = cluster.call("scontrol", "show", "job", outer.job)
    words = dict(word.split("=", 1) for word in details.split() if "=" in word)
    names = ("JobName", "Partition", "TimeLimit", "Requeue")
    assert [words[name] for name in names] == ["fast", "main", "00:10:00", "1"]
    for status in (tmp_path / "outer" / "status.json", tmp_path / "inner" / "status.json"):
        until(functools.partial(is_done, status), (tmp_path / "array.log").read_text)
    assert (outer.starts(), outer.wait()) == (1, "COMPLETED")
    assert "this shell is in job" in (tmp_path / "array.log").read_text()
    [start] = map(json.loads, (tmp_path / "outer" / "launch" / "starts.jsonl").read_text().splitlines())
    [row] = rows(cluster, tmp_path, "outer")
    assert start["nodes"] == [row["nodes"]] and row["nodes"] in cluster.nodes
    assert f" {row['nodes']}: job {outer.job}, start 0, from step 0 on {row['nodes']}" in outer.log()


def test_only_starts_that_ended_by_themselves_count_and_a_refused_requeue_is_no_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Three runs at once: one that SLURM never lets begin, one on a site without requeues, one without a controller."""
    with ThreadPoolExecutor() as pool:
        early = sent(cluster, tmp_path / "early", steps=20)
        disturbed = [pool.submit(events.stopped_before_its_first_step, early)]
        forbidden = sent(cluster, tmp_path / "forbidden", steps=40)
        disturbed.append(pool.submit(events.may_not_be_requeued, forbidden))
        for event in disturbed:
            event.result()
    assert (early.wait(), early.starts()) == ("COMPLETED", 4), early.log()
    assert forbidden.wait() == "COMPLETED", forbidden.log()
    assert f"job {forbidden.job} goes on with the run" in forbidden.log()
    away = sent(cluster, tmp_path / "away", steps=40)
    events.controller_away(away)
    assert away.wait() == "COMPLETED", away.log()
    assert away.starts() == 2 and f"job {away.job} is requeued" in away.log(), away.log()
    for run in (forbidden, away):
        steps = [row["step"] for row in jobs.rows(run.run_dir) if "loss" in row]
        assert steps == list(range(1, 41))
        assert not (run.run_dir / "launch" / "failures.jsonl").exists()


SLOW = """#!/bin/sh
# A controller under load: what it is asked for comes after a while.
case "$0" in */sbatch) ;; *) sleep 5 ;; esac
exec {program} "$@"
"""


def slow_programs(folder: Path) -> str:
    """Make SLURM's commands answer after five seconds. Returns PATH with them."""
    folder.mkdir()
    for name in ("scontrol", "sinfo", "squeue", "sacct", "scancel", "sbatch"):
        (folder / name).write_text(SLOW.format(program=shutil.which(name)))
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_jobs_that_wait_or_that_nobody_knows_of(cluster: Cluster, tmp_path: Path) -> None:
    """Four held or waiting jobs: slow answers, a chain that can never go on, a lost record, and more memory."""
    slow = {"PATH": slow_programs(tmp_path / "slow")}
    with ThreadPoolExecutor() as pool:
        first = sent(cluster, tmp_path / "runs" / "first", "--after", f"any:{held(cluster)}")
        patient = pool.submit(
            sent, cluster, tmp_path / "runs" / "patient", "--after", f"any:{held(cluster)}", environment=slow
        )
        chain = small(tmp_path / "chain", "--after", "first", "--wait")
        waits = pool.submit(launch, cluster, *chain, cwd=tmp_path)
        until((tmp_path / "chain" / "launch" / "job.json").exists, lambda: "the second of the chain is not sent")
        lost = patient.result()
        shutil.rmtree(lost.run_dir)
        seen = [(row["job"], row["state"]) for row in rows(cluster, tmp_path) if row["run"] == "patient"]
        assert seen == [(lost.job, "pending")]
        code, said = launch(cluster, "cancel", lost.job, cwd=tmp_path)
        assert code == 0 and f"job {lost.job}: cancelled" in said, said
        waits_too = f"--dependency=afterok:{first.job}"
        array = cluster.call("sbatch", "--parsable", "--array=0-3%2", waits_too, "-o", "/dev/null", "--wrap", "true")
        code, said = launch(cluster, "requeue", "first", "--memory-gib", "2", "--time-minutes", "7", cwd=tmp_path)
        assert code == 0 and f"takes over from job {first.job}" in said, said
        second = first.last_job()
        details = cluster.call("scontrol", "show", "job", second)
        assert "TimeLimit=00:07:00" in details and re.search(r"MinMemoryNode=2G", details)
        second_of_chain = Sent(cluster, tmp_path / "chain", job="").last_job()
        for job in (second_of_chain, array.strip()):
            assert f"Dependency=afterok:{second}(" in cluster.call("scontrol", "show", "job", job)
        # Its first job is cancelled, so that the second can never start: SLURM cancels that too, and --wait ends.
        cluster.call("scancel", second)
        code, said = waits.result()
        assert code == 1, said
    code, said = launch(cluster, *small(tmp_path / "never", "--after", first.job))
    assert code == 2 and "and will never succeed; use --after any:" in said, said
    code, said = launch(cluster, *small(tmp_path / "never", "--exclude", "n9"))
    assert code == 2 and "exclude = n9: the cluster has no node n9" in said, said


def held(cluster: Cluster) -> str:
    """Send a job that waits until it is cancelled. Returns its id."""
    return cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true").strip()
