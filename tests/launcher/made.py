"""Run directories made up for tests, and a SLURM made up of lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from launcher import slurm
from launcher.cluster import Profile
from launcher.record import Launch, Submission
from moco_dist.config import Config
from moco_dist.run import status


def replace_sleep(monkeypatch: pytest.MonkeyPatch, module: ModuleType, sleep: Callable[[float], None]) -> None:
    """Replace the sleep of one module alone: the threads of others sleep on."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))


def make_run(
    run_dir: Path,
    *,
    job: str = "12",
    state: status.State | None = None,
    step: int = 0,
    reason: str = "",
    starts: int = 0,
    rows: Iterable[Mapping[str, object]] = (),
    optim: str = "{global_batch: 64, epochs: 10}",
    total_steps: int | None = 1000,
    saved: Iterable[int] = (),
    **submission: Any,
) -> Launch:
    """A run directory as the launcher and the trainer leave it; the status is of the last start."""
    launch = Launch(run_dir)
    for folder in (launch.folder, launch.logs, launch.submitit):
        folder.mkdir(parents=True, exist_ok=True)
    launch.write(Submission(job=job, **submission))
    launch.config_file.write_text(f"run: {{name: x}}\noptim: {optim}\n")
    for restart in range(starts):
        launch.add_start(job=job, restart=restart, step=10 * restart, time=time.time(), nodes=["n1"])
    if starts:
        earlier(launch.starts_file, 1)
    if state:
        status.write(run_dir, state, step, reason, total_steps=total_steps)
    for saved_step in saved:
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "checkpoints" / f"step_{saved_step:09d}.pt").touch()
    if rows := list(rows):
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return launch


def job_in(
    run_dir: Path,
    config: Config,
    profile: Profile,
    nodes: int = 1,
    stage: str | None = None,
    executor: Literal["slurm", "local"] = "slurm",
) -> tuple[Config, Submission]:
    """Make what preflight checks: a config with another run directory, and its submission."""
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(run_dir)})})
    return config, Submission(profile=profile, nodes=nodes, stage=stage, executor=executor)


def earlier(file: Path, seconds: float) -> None:
    """Make a file older."""
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))


def train_row(step: int, **more: float) -> dict[str, float]:
    """A training row of a run of 100 steps an epoch."""
    row = {"step": step, "epoch": (step - 1) // 100, "loss": 5.0, "lr": 0.03, "images_per_second": 640.0}
    return {**row, **more}


def knn_row(step: int, knn_top1: float) -> dict[str, float]:
    """An evaluation row of such a run."""
    return {"step": step, "epoch": step // 100, "knn_top1": knn_top1}


class MadeUp:
    """Answers in place of SLURM's commands; `asked` has the commands that were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._queue: list[str] = []
        self._accounts: list[str] = []
        self._texts: dict[str, str] = {}
        self.broken: dict[str, Exception] = {}
        """Commands that fail, and how."""
        monkeypatch.setattr(slurm, "call", self._call)
        monkeypatch.setattr(slurm, "which", lambda name: f"/usr/bin/{name}")

    def queues(
        self,
        job: str,
        state: str,
        run_dir: Path | str = "",
        reason: str = "None",
        left: str = "1:00",
        started: str = "N/A",
    ) -> None:
        """Let the queue have a job; once more replaces it."""
        self._queue = [line for line in self._queue if not line.startswith(f"{job}|")]
        self._queue.append(f"{job}|{state}|{reason}|n[1-2]|{left} {started}|{run_dir}")

    def forgets(self, job: str) -> None:
        """Take a job from the queue."""
        self._queue = [line for line in self._queue if not line.startswith(f"{job}|")]

    def accounts(self, job: str, state: str) -> None:
        """Let the accounting have a job."""
        self._accounts.append(f"{job}|{state}|n[1-2]")

    def tells(self, command: str, text: str) -> None:
        """Let a command answer with a text, whatever the question."""
        self._texts[command] = text

    def _call(self, *command: str, timeout_seconds: float | None = None) -> str:
        self.asked.append(" ".join(command))
        if command[0] in self.broken:
            raise self.broken[command[0]]
        lines = {"squeue": self._queue, "sacct": self._accounts}.get(command[0], [])
        return self._texts.get(command[0], "\n".join(lines))
