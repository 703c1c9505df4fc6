"""The real W&B SDK, offline and against a server of ours: each row once, and nothing stops training.

Runs live in processes of their own, so that W&B's threads and exit handlers stay out of pytest's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import jobs, wandb_file
from tests.fake_wandb import KEY, FakeWandb
from tests.wandb_faults import fill_disk
from tests.without import without

JOB = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
import numpy as np
from moco_dist import config
from moco_dist.run.rows import MetricsFile, read_rows
from moco_dist.tracking.guard import Guard
from moco_dist.tracking.wandb_run import WandbRun, core_processes

run_dir, mode, start, end, fault = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
if fault == "stop":  # wandb asks every 15 seconds
    from wandb.sdk.lib import run_stopping
    run_stopping._SLEEP = lambda seconds: asyncio.sleep(0.1)
metrics = MetricsFile(run_dir / "metrics.jsonl")
metrics.rewind(start)
stops, began = [], time.monotonic()
track = {"wandb": mode, "project": "moco", "tags": ["tried"], "notes": "a note", "group": "few", "artifact": True}
lr = 0.5 if fault == "lr" else 0.05
run = WandbRun(
    run_dir, config.parse({"run": {"name": "digits"}, "track": track, "optim": {"lr": lr}}),
    list(read_rows(metrics.path)),
    say=lambda line: print("say", line), warn=lambda line: print("warn", line), stop=lambda: stops.append(1),
    probe_timeout=1, init_timeout=3, finish_timeout=2, start_step=start,
)
sink = Guard(run, run.warn)
sink.wait_for_start()
print("seconds", time.monotonic() - began)
for step in range(start + 1, end + 1):
    row = {"step": step, "loss": 1 / step, "lr": 0.03}
    metrics.append(row)
    sink.log(row)
    if step % 5 == 0:
        evaluation = {"step": step, "knn_top1": step / 100}
        metrics.append(evaluation)
        sink.log(evaluation)
    if step == end - 2 and fault == "wait":
        print("ready", flush=True)
        sys.stdin.readline()
    if step == end - 2 and fault == "die":  # the first rows get to the file, the last do not
        time.sleep(2.5)
    if step == end - 2 and fault in ("SIGKILL", "SIGSTOP"):  # to wandb-core, with two steps to go
        time.sleep(0.5)
        for process in core_processes():
            os.kill(process, getattr(signal, fault))
        time.sleep(0.5)
if fault == "image":
    sink.image("augmented_pairs", np.zeros((8, 16, 1), np.uint8), "pairs")
if fault == "encoder":
    (run_dir / "encoder.safetensors").write_bytes(b"weights")
    sink.encoder(run_dir / "encoder.safetensors", {"images": 10, "classes": 2, "digest": "0123456789abcdef"})
if fault == "alert":
    sink.alert("health: at_chance begins at step 6", "the loss is 6.2; change optim.lr=0.01")
    sink.log({"step": 6, "epoch": 0, "finding": "at_chance", "state": "begins", "evidence": "the loss is 6.2"})
if fault == "die":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "stop":
    for _ in range(100):
        if stops: break
        time.sleep(0.05)
    print("stops", stops)
began = time.monotonic()
sink.finish({"preempted": 75, "failed": 1}.get(fault, 0), preempted=fault == "preempted")
print("seconds", time.monotonic() - began)
"""


@dataclass
class Job:
    """The output of a job."""

    status: int
    out: str
    err: str

    def lines(self, word: str) -> list[str]:
        return [line.removeprefix(word + " ") for line in self.out.splitlines() if line.startswith(word + " ")]

    @property
    def seconds(self) -> list[float]:
        return [float(text) for text in self.lines("seconds")]


def environment(extra: dict[str, str]) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "http", "HTTP"))}
    return {**clean, "HOME": "/nonexistent", **extra}


def job(
    run_dir: Path, mode: str, start: int, end: int, fault: str = "", env: dict[str, str] | None = None, status: int = 0
) -> Job:
    command = [sys.executable, "-c", JOB, str(run_dir), mode, str(start), str(end), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(env or {}))
    result = Job(done.returncode, done.stdout, done.stderr)
    assert result.status == status, result
    if not status:
        assert len((run_dir / "metrics.jsonl").read_text().splitlines()) >= end  # training went on to its end
        assert result.err == ""  # no chatter, no traceback at exit
    return result


def offline_steps(run_dir: Path, key: str = "train/loss") -> list[int]:
    segments = sorted((run_dir / "wandb").glob("offline-run-*"))
    return [step for segment in segments for step in wandb_file.read(segment).steps(key)]


def counts(last: int) -> list[int]:
    return list(range(1, last + 1))


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with FakeWandb() as fake:
        yield fake


def test_offline_file_reads_back(tmp_path: Path) -> None:
    result = job(tmp_path, "offline", 0, 6, "image", env={"WANDB_MODE": "disabled"})  # the config beats the variable
    (segment,) = (tmp_path / "wandb").glob("offline-run-*")
    content = wandb_file.read(segment)
    assert content.run["project"] == "moco" and content.run["display_name"] == "digits"
    assert content.run["run_id"] == (tmp_path / "wandb/id").read_text()
    assert content.config["optim"]["lr"] == 0.05
    assert [row["train/loss"] for row in content.history if "train/loss" in row] == [1 / step for step in range(1, 7)]
    (evaluation,) = (row for row in content.history if "eval/knn_top1" in row)
    assert evaluation["train/step"] == 5 and evaluation["eval/knn_top1"] == 0.05 and "train/loss" not in evaluation
    assert any(metric.get("glob_name") == "*" and metric["step_metric"] == "train/step" for metric in content.metrics)
    assert any("augmented_pairs" in str(row) for row in content.history)
    assert list(segment.glob("files/media/images/augmented_pairs*.png"))
    assert content.exit_code == 0
    assert result.lines("say") == [f"W&B: offline, look with: wandb leet {tmp_path}/wandb"] and not result.lines("warn")


def test_a_finding_is_an_alert_and_no_figure(tmp_path: Path) -> None:
    job(tmp_path, "offline", 0, 6, "alert")
    (segment,) = (tmp_path / "wandb").glob("offline-run-*")
    content = wandb_file.read(segment)
    alert, _ = content.alerts
    assert alert["title"] == "health: at_chance begins at step 6" and alert["level"] == "WARN"
    assert "optim.lr=0.01" in alert["text"]
    assert not any("finding" in key for row in content.history for key in row)
    assert offline_steps(tmp_path) == counts(6) and offline_steps(tmp_path, "eval/knn_top1") == [5]


def test_a_missing_wandb_stops_nothing_here(tmp_path: Path) -> None:
    """The sink by itself, without the check that comes ahead of it in the trainer."""
    result = job(tmp_path, "offline", 0, 3, env=without(tmp_path / "bare", "wandb"))
    assert result.lines("warn") == [
        "W&B is lost (No module named 'wandb'); training goes on, metrics.jsonl has every row"
    ]


def test_offline_resume_after_an_older_checkpoint(tmp_path: Path) -> None:
    job(tmp_path, "offline", 0, 10)
    job(tmp_path, "offline", 6, 16)
    assert offline_steps(tmp_path) == counts(16)
    assert offline_steps(tmp_path, "eval/knn_top1") == [5, 10, 15]


def test_offline_rows_of_a_killed_start_follow(tmp_path: Path) -> None:
    """A killed trainer's W&B loses what it has not flushed; only its file tells how much that is."""
    job(tmp_path, "offline", 0, 10, "die", status=-signal.SIGKILL)
    before = offline_steps(tmp_path)
    assert before == counts(len(before)) and len(before) < 12  # all that W&B has written by then
    job(tmp_path, "offline", 9, 12)
    assert offline_steps(tmp_path) == counts(12)
    assert offline_steps(tmp_path, "eval/knn_top1") == [5, 10]


def test_a_run_that_begins_anew_with_another_config_has_a_run_of_its_own(server: FakeWandb, tmp_path: Path) -> None:
    """A start that died ahead of its first checkpoint leaves rows at W&B; with another config, others would follow."""
    job(tmp_path, "online", 0, 4, env=server.env())
    job(tmp_path, "online", 0, 6, env=server.env())  # the same rows again
    job(tmp_path, "online", 0, 8, "lr", env=server.env())
    shown = [[row["train/step"] for row in run.history if "train/loss" in row] for run in server.runs.values()]
    assert shown == [counts(6), counts(8)]


def test_offline_file_without_a_record_counts_for_nothing(tmp_path: Path) -> None:
    job(tmp_path, "offline", 0, 4, "SIGKILL")
    before = offline_steps(tmp_path)  # nothing as a rule; on a slow machine, what W&B has written by then
    assert before == counts(len(before))
    job(tmp_path, "offline", 4, 6)
    assert offline_steps(tmp_path) == counts(6)


def test_online_run_arrives_whole(server: FakeWandb, tmp_path: Path) -> None:
    result = job(tmp_path, "online", 0, 10, "image", env=server.env())
    ((name, run),) = server.runs.items()
    assert name == (tmp_path / "wandb/id").read_text()
    assert [row["train/step"] for row in run.history if "train/loss" in row] == counts(10)
    assert run.summary["train/step"] == 10 and run.summary["eval/knn_top1"] == 0.1
    assert run.config["optim"]["lr"] == 0.05 and run.display_name == "digits" and run.exit_code == 0
    assert any("augmented_pairs" in upload for upload in run.uploads)
    assert len(result.lines("say")) == 1 and name in result.lines("say")[0] and not result.lines("warn")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_run_tells_what_it_is_and_which_job_trains_it(server: FakeWandb, tmp_path: Path) -> None:
    of_slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "WORLD_SIZE": "4"}
    job(tmp_path, "online", 0, 5, "preempted", env={**server.env(), **of_slurm})
    (run,) = server.runs.values()
    assert run.about == {"tags": ["tried"], "notes": "a note", "groupName": "few", "jobType": "pretrain"}
    assert run.config["job"] == {"slurm_job": "17", "nodes": "n[1-2]", "ranks": "4"}
    job(tmp_path, "online", 5, 6, env={**server.env(), **of_slurm, "SLURM_JOB_ID": "18"})
    assert run.config["job"]["slurm_job"] == "18" and run.about["tags"] == ["tried"]


@pytest.mark.parametrize(
    ("fault", "level", "title", "text"),
    [
        ("", "INFO", "digits: done", "done at step 5, knn_top1 0.05"),
        ("failed", "ERROR", "digits: failed", "exit status 1 at step 5"),
        ("preempted", "INFO", "digits: stopped", "told to stop at step 5; the run goes on from there"),
    ],
)
def test_an_alert_at_each_end(server: FakeWandb, tmp_path: Path, fault: str, level: str, title: str, text: str) -> None:
    job(tmp_path, "online", 0, 5, fault, env=server.env())
    [alert] = server.alerts
    assert (alert["severity"], alert["title"], alert["text"]) == (level, title, text)


def test_evaluations_are_a_table_and_in_the_summary(server: FakeWandb, tmp_path: Path) -> None:
    job(tmp_path, "online", 0, 7, "preempted", env=server.env())
    job(tmp_path, "online", 6, 12, env=server.env())
    (run,) = server.runs.values()
    assert run.summary["eval/knn_top1"] == 0.1
    [table] = [json.loads(data) for name, data in server.stored.items() if name.endswith("evaluations.table.json")]
    assert table["columns"] == ["step", "knn_top1"] and table["data"] == [[5, 0.05], [10, 0.1]]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_encoder_is_an_artifact_that_refers_to_its_file(server: FakeWandb, tmp_path: Path, mode: str) -> None:
    job(tmp_path, mode, 0, 3, "encoder", env=server.env())
    if mode == "offline":  # it has no inputs there
        assert offline_steps(tmp_path) == counts(3)
        return
    artifacts = {one["artifactTypeName"]: one for one in server.artifacts}
    about = {"source": "digits", "images": 10, "classes": 2, "digest": "0123456789abcdef"}
    assert json.loads(artifacts["dataset"]["metadata"]) == about
    assert json.loads(artifacts["model"]["metadata"]) == {"data": about}
    assert server.used == [artifacts["dataset"]["artifactCollectionName"]] == ["digits-0123456789ab"]
    manifest = json.loads(server.stored[f"manifests/{artifacts['model']['id']}"])
    assert manifest["contents"]["encoder.safetensors"]["ref"] == f"file://{tmp_path}/encoder.safetensors"
    assert not [data for data in server.stored.values() if data == b"weights"]


def test_online_resume_after_an_older_checkpoint(server: FakeWandb, tmp_path: Path) -> None:
    job(tmp_path, "online", 0, 10, "preempted", env=server.env())
    (run,) = server.runs.values()
    assert run.preempting and run.exit_code == 75
    job(tmp_path, "online", 6, 16, env=server.env())
    assert list(server.runs.values()) == [run]
    assert [row["train/step"] for row in run.history if "train/loss" in row] == counts(16)
    assert [row["train/step"] for row in run.history if "eval/knn_top1" in row] == [5, 10, 15]


def test_offline_spell_is_made_up_for_online(server: FakeWandb, tmp_path: Path) -> None:
    job(tmp_path, "online", 0, 4, env=server.env())
    job(tmp_path, "offline", 4, 8)
    assert offline_steps(tmp_path) == [5, 6, 7, 8]
    job(tmp_path, "online", 6, 10, env=server.env())
    (run,) = server.runs.values()
    assert [row["train/step"] for row in run.history if "train/loss" in row] == counts(10)
    assert not list((tmp_path / "wandb").glob("offline-run-*"))  # else `wandb sync` would send its rows twice
    assert len(list((tmp_path / "wandb/superseded").iterdir())) == 1


@pytest.mark.parametrize("status", [500, 429, 403])
def test_server_error_falls_back_to_offline(server: FakeWandb, tmp_path: Path, status: int) -> None:
    server.fail_all = status
    result = job(tmp_path, "online", 0, 3, env=server.env())
    (warning,) = result.lines("warn")
    assert "W&B is offline" in warning and f"wandb sync {tmp_path}/wandb/offline-run-*" in warning
    assert offline_steps(tmp_path) == counts(3) and result.seconds[0] < 25


def test_unreachable_host_falls_back_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, never listening: refuses
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = job(tmp_path, "online", 0, 3, env={"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY})
    (warning,) = result.lines("warn")
    assert url.removeprefix("http://") in warning and "refused" in warning
    assert offline_steps(tmp_path) == counts(3) and result.seconds[0] < 10


def test_no_key_falls_back_without_a_question(server: FakeWandb, tmp_path: Path) -> None:
    result = job(tmp_path, "online", 0, 3, env={"WANDB_BASE_URL": server.url})
    assert "No API key" in result.lines("warn")[0] and offline_steps(tmp_path) == counts(3)


def test_stop_button_reaches_us_and_interrupts_nothing(server: FakeWandb, tmp_path: Path) -> None:
    server.stop_runs = True
    assert job(tmp_path, "online", 0, 3, "stop", env=server.env()).lines("stops") == ["[1]"]


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_core_process_dies_or_hangs(tmp_path: Path, fault: str) -> None:
    result = job(tmp_path, "offline", 0, 10, fault)
    (warning,) = result.lines("warn")
    assert "W&B is lost" in warning and "training goes on" in warning
    assert result.seconds[-1] < 20


@pytest.mark.parametrize("fault", ["gone", "500", "429", "403", "slow", "full disk"])
def test_a_fault_amid_the_run(tmp_path: Path, fault: str) -> None:
    """W&B's process tries again for hours; the end waits for it only as long as the limits say."""
    with FakeWandb() as server:
        command = [sys.executable, "-c", JOB, str(tmp_path), "online", "0", "5", "wait"]
        env = environment(server.env())
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        match fault:
            case "gone":
                server.go()
            case "slow":
                server.delay = 10
            case "full disk":
                fill_disk(process.pid)
            case status:
                server.fail_all = int(status)
        began = time.monotonic()
        process.communicate("\n", timeout=40)
    assert process.returncode == 0 and time.monotonic() - began < 30
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == counts(5)


def test_online_by_the_command_line_over_a_kill(server: FakeWandb, tmp_path: Path) -> None:
    """The trainer as a user starts it; the server has each step once, with the loss of metrics.jsonl."""
    settings = {"optim.steps": 30, "track.wandb": "online", "eval.knn_every": 1}
    with jobs.Job(tmp_path / "run", 0, settings, environment=server.env()) as first:
        assert first.until_step(12), first.log
        first.kill_all()
    with jobs.Job(tmp_path / "run", 0, settings, environment=server.env()) as second:
        assert second.wait() == 0, second.log
    (run,) = server.runs.values()
    sent = [(row["train/step"], row["train/loss"]) for row in run.history if "train/loss" in row]
    assert sent == list(jobs.losses(tmp_path / "run").items()) and len(sent) == 30
    assert [alert["title"] for alert in server.alerts] == ["fast: done"]
    assert run.exit_code == 0 and run.summary["eval/knn_top1"] == max(jobs.knn(tmp_path / "run").items())[1]
