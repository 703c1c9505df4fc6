"""TensorBoard and Trackio show each step once, whatever kills the run, and read back by their own readers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_dist import packages
from moco_dist.config import Config, parse
from moco_dist.errors import UserError
from moco_dist.run.paths import RunPaths
from moco_dist.tracking import sinks
from moco_dist.tracking.guard import Guard
from moco_dist.tracking.names import by_section
from moco_dist.tracking.tensorboard import TensorBoard
from moco_dist.tracking.trackio import Trackio
from tests import jobs
from tests.without import without

FINDING = {"step": 4, "epoch": 0, "finding": "at_chance", "state": "begins", "kind": "finding", "evidence": "6.2"}


def figures_of(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "lr": 0.03}


def scalars(run_dir: Path, tag: str) -> dict[int, float]:
    """Read a tag by TensorBoard's own reader, which must see each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0})
    events.Reload()
    read = events.Scalars(tag)
    assert len({event.step for event in read}) == len(read), [event.step for event in read]
    return {event.step: event.value for event in read}


def trackio_rows(run_dir: Path, project: str = "moco-dist") -> dict[str, Any]:
    """Read the runs' rows and alerts by Trackio's own reader, in a process, since it is bound to a folder."""
    script = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
[run] = SQLiteStorage.get_runs(sys.argv[1])
logs = SQLiteStorage.get_logs(sys.argv[1], run)
print(json.dumps({"run": run, "logs": logs, "alerts": SQLiteStorage.get_alerts(sys.argv[1])}))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(run_dir / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, project]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def of_trackio(run_dir: Path, name: str) -> dict[int, float]:
    pairs = [(row["step"], row[name]) for row in trackio_rows(run_dir)["logs"] if name in row]
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def board(run_dir: Path, lines: list[str], rows: list[dict[str, Any]], start_step: int) -> Guard:
    sink = Guard(TensorBoard(run_dir / "tensorboard", rows, start_step, lambda line: None), lines.append)
    sink.wait_for_start()
    return sink


def track(run_dir: Path, lines: list[str], rows: list[dict[str, Any]], start_step: int = 0) -> tuple[Guard, Trackio]:
    config = parse({"run": {"name": "digits"}})
    sink = Trackio(run_dir / "trackio", config, rows, start_step, lambda line: None, start_seconds=60)
    kept = Guard(sink, lines.append)
    kept.wait_for_start()
    return kept, sink


def killed_and_resumed(run_dir: Path, settings: dict[str, Any]) -> None:
    """Train, kill by SIGKILL behind a checkpoint, and train to the end."""
    settings = {**settings, "optim.steps": 30, "eval.knn_every": 1}
    with jobs.Job(run_dir, 0, settings) as job:
        assert job.until_step(12), job.log
        job.kill_all()
    with jobs.Job(run_dir, 0, settings) as job:
        assert job.wait() == 0, job.log
        assert "is lost" not in job.log


def test_tensorboard_over_kill_and_resume(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed_and_resumed(run_dir, {"track.tensorboard": True})
    assert len(list((run_dir / "tensorboard").glob("events.*"))) == 2
    losses = jobs.losses(run_dir)
    assert set(losses) == set(range(1, 31))
    assert scalars(run_dir, "learning/loss") == {step: float(np.float32(loss)) for step, loss in losses.items()}
    accuracies = {step: float(np.float32(accuracy)) for step, accuracy in jobs.knn(run_dir).items()}
    assert scalars(run_dir, "evaluation/knn_top1") == accuracies and accuracies


def test_trackio_over_kill_and_resume(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed_and_resumed(run_dir, {"track.trackio": True})
    assert of_trackio(run_dir, "learning/loss") == jobs.losses(run_dir)
    assert of_trackio(run_dir, "evaluation/knn_top1") == jobs.knn(run_dir)
    assert len(jobs.losses(run_dir)) == 30 and jobs.knn(run_dir)


def test_rows_that_a_killed_start_has_not_written_follow(tmp_path: Path) -> None:
    """Between a row in metrics.jsonl and its event lies a queue, which a kill empties."""
    lines: list[str] = []
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.old").touch()  # someone has put it aside
    rows = [figures_of(step) for step in range(1, 11)]
    first = board(tmp_path, lines, [], 0)
    for row in [*rows[:4], FINDING]:
        first.log(row)
    first.finish(1)
    second = board(tmp_path, lines, [*rows[:4], FINDING, *rows[4:7]], 7)
    for row in rows[7:]:
        second.log(row)
    second.finish(0)
    assert scalars(tmp_path, "learning/loss").keys() == set(range(1, 11)) and not lines


def test_a_finding_is_a_text_and_a_picture_is_an_image(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines: list[str] = []
    sink = board(tmp_path, lines, [figures_of(4), FINDING], 4)
    sink.image("augmented_pairs", np.zeros((8, 16, 1), np.uint8), "pairs")
    sink.alert("a title", "a text")
    sink.finish(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("health/findings")
    assert text.step == 4 and b"at_chance begins at step 4" in text.tensor_proto.string_val[0]
    [image] = events.Images("augmented_pairs")
    assert (image.height, image.width) == (8, 16) and not lines


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = board(tmp_path, lines, [], 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        for step in range(1, 50):
            sink.log(figures_of(step))
        sink.finish(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert lines == ["TensorBoard is lost ([Errno 27] File too large); training goes on, metrics.jsonl has every row"]
    again = board(tmp_path, lines, [figures_of(step) for step in range(1, 50)], 49)  # the torn event harms nothing
    again.finish(0)
    assert scalars(tmp_path, "learning/loss").keys() == set(range(1, 50)) and len(lines) == 1


def test_trackio_has_findings_once_as_alerts(tmp_path: Path) -> None:
    lines: list[str] = []
    for start in range(2):
        sink, _ = track(tmp_path, lines, [figures_of(4), FINDING] if start else [], 4 * start)
        if not start:
            sink.log(figures_of(4))
            sink.log(FINDING)
        sink.finish(0)
    [alert] = trackio_rows(tmp_path)["alerts"]
    assert alert["title"] == "health: at_chance begins at step 4" and alert["step"] == 4 and not lines


def test_trackio_begins_anew_with_the_run(tmp_path: Path) -> None:
    """A start that died ahead of its first checkpoint leaves rows that the next one may not take."""
    lines: list[str] = []
    for loss in (1.0, 2.0):
        sink, _ = track(tmp_path, lines, [])
        sink.log({"step": 4, "loss": loss})
        sink.finish(1)
    assert of_trackio(tmp_path, "learning/loss") == {4: 2.0} and not lines


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_trackios_process_dies_or_hangs(tmp_path: Path, number: signal.Signals) -> None:
    lines: list[str] = []
    kept, sink = track(tmp_path, lines, [])
    sink.finish_seconds = 0.5
    assert sink._process is not None
    sink._process.send_signal(number)
    if number == signal.SIGKILL:
        sink._process.wait()
    for step in range(1, 10):
        kept.log(figures_of(step))
    kept.finish(0)
    assert len(lines) == 1 and lines[0].startswith("Trackio is lost (")
    assert sink._process.wait() == -signal.SIGKILL


def test_trackio_that_writes_nothing_is_told(tmp_path: Path) -> None:
    """Trackio itself warns, and goes on: a directory stands where its database belongs."""
    lines: list[str] = []
    (tmp_path / "trackio" / "moco-dist.db").mkdir(parents=True)
    kept, _ = track(tmp_path, lines, [])
    kept.log(figures_of(1))
    kept.finish(0)
    assert len(lines) == 1 and lines[0].startswith("Trackio is lost (")


def test_names_are_grouped_by_the_sections_of_figures() -> None:
    row = {"step": 3, "epoch": 1, "loss": 0.5, "node/1/gpu_use": 0.9, "knn_top1": 0.4, "unheard_of": 2.0, "word": "x"}
    names = by_section(row)
    assert names["learning/loss"] == 0.5 and names["nodes/node/1/gpu_use"] == 0.9
    assert names["evaluation/knn_top1"] == 0.4 and names["others/unheard_of"] == 2.0
    assert not any("step" in name or "word" in name for name in names)


@pytest.mark.parametrize("package", ["tensorboard", "trackio"])
def test_a_missing_package_is_named_before_anything_slow(tmp_path: Path, package: str) -> None:
    command = [sys.executable, "-m", "moco_dist.train", f"run.dir={tmp_path / 'run'}", f"track.{package}=true"]
    environment = {**os.environ, **without(tmp_path / "bare", package)}
    done = subprocess.run([*command, "track.wandb=disabled"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    fix = f"install it (pip install 'moco-dist[{package}]'), or use track.{package}=false"
    assert done.stderr == f"moco_dist.train: track.{package} = true: {package} is not installed here; {fix}\n"


def test_other_ranks_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: False)
    config = parse({"track": {"tensorboard": True, "trackio": True, "wandb": "disabled"}})
    sinks.check(config, rank=1)
    with pytest.raises(UserError, match=r"^track\.tensorboard = true"):
        sinks.check(config, rank=0)


def test_what_is_off_is_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # the config beats the variable
    config: Config = parse({"track": {"wandb": "disabled"}})
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    assert not sinks.open_all(config, RunPaths(tmp_path), [], 0, sinks.Tellers(nothing, nothing, nothing))
    assert not list(tmp_path.iterdir())
