"""Rows of a made run: a healthy one, with whatever a test wants to be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from moco_dist import config as configs
from moco_dist import health
from moco_dist.run.rows import Row

IMAGES, BATCH, QUEUE = 2048, 64, 512
EPOCH_STEPS = IMAGES // BATCH
CHANCE = math.log(QUEUE + 1)

Changes = Callable[[int], Mapping[str, Any]]


def config_of(**changes: Any) -> configs.Config:
    """Return the config of the made run, with changes by key: `moco__shuffle="none"`."""
    tree: dict[str, dict[str, Any]] = {
        "moco": {"queue_size": QUEUE, "momentum": 0.99, "temperature": 0.2, "bn_groups": 4},
        "optim": {"global_batch": BATCH, "lr": 0.015, "epochs": 20},
        "model": {"dim": 64},
        "track": {"wandb": "disabled"},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree.setdefault(section, {})[key] = value
    return configs.parse(tree)


def healthy_row(step: int) -> dict[str, Any]:
    """Return the row of a step of a run that learns."""
    filled = min(1.0, step * BATCH / QUEUE)
    share = 0.75 + 0.2 * math.exp(-step / 150)
    return {
        "step": step,
        "epoch": (step - 1) // EPOCH_STEPS,
        "loss": share * CHANCE,
        "lr": 0.015,
        "top1": 0.2 if filled < 1 else 0.05,
        "top5": 0.3,
        "loss_at_chance": CHANCE,
        "positive_similarity": 0.75,
        "hardest_similarity": 0.85,
        "entropy": share * CHANCE,
        "gradient_norm": 2.0,
        "momentum": 0.99,
        "queue_filled": filled,
        "queue_age_steps": min(step, QUEUE // BATCH),
        "queue_age_epochs": min(step, QUEUE // BATCH) / EPOCH_STEPS,
        "q_std": 0.9,
        "k_std": 0.9,
        "q_rank": 20.0,
        "k_rank": 20.0,
        "encoder_distance": 0.05,
        "checkpoint_stall": 0.0,
        "skipped_steps": 3,
        "ranks_apart": 0.0,
        "slowest_rank": step % 2,
        "slowest_lag": 0.02,
        "data_wait": 0.01,
        "images_per_second": BATCH / 2.0,
    }


def evaluation(step: int, **figures: float) -> dict[str, Any]:
    """Return the row of an evaluation that gets better and better."""
    better = min(0.1, step / 5000)
    accuracies = {"knn_top1": 0.8 + better, "linear_top1": 0.82 + better, "linear_train_top1": 0.85 + better}
    return {"step": step, "epoch": (step - 1) // EPOCH_STEPS, **accuracies, **figures}


def rows(steps: int, changes: Changes = lambda step: {}, evaluations: Changes = lambda step: {}) -> list[Row]:
    """Return the rows of so many steps, and an evaluation every second epoch.

    Args:
        steps: of the run.
        changes: figures of a step that differ from the healthy run's; None drops a figure.
        evaluations: the same for the evaluation after a step.
    """
    made: list[Row] = []
    for step in range(1, steps + 1):
        made.append(without_none({**healthy_row(step), **changes(step)}))
        if step % (2 * EPOCH_STEPS) == 0:
            made.append(without_none({**evaluation(step), **evaluations(step)}))
    return made


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def monitor_of(config: configs.Config | None = None, **facts: Any) -> health.Monitor:
    """Return a monitor that knows of two workers and eight cores a rank, unless other facts are named."""
    return health.Monitor(health.Facts(config or config_of(), **{"images": IMAGES, "workers": 2, "cores": 8, **facts}))


def events_of(monitor: health.Monitor, some_rows: Iterable[Row]) -> list[Row]:
    """Push rows, and return the rows of findings that the monitor gives, in their order."""
    events: list[Row] = []
    for row in some_rows:
        monitor.push(row)
        events += monitor.events()
    return events


def write_run(run_dir: Path, some_rows: Iterable[Row], status: Mapping[str, Any], config: configs.Config) -> Path:
    """Write a run directory as the trainer leaves it."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(configs.dump(config))
    (run_dir / "status.json").write_text(json.dumps({"step": 0, "reason": "", **status}))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some_rows))
    return run_dir
