"""Make the small run that these tests train, look at and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import moco_dist

STEPS = 4
TINY: dict[str, Any] = {
    "model.width": 8,
    "optim.global_batch": 64,
    "optim.steps": STEPS,
    "moco.queue_size": 256,
    "track.wandb": "disabled",
    "device.type": "cpu",
    "eval.knn_every": 0,
}


def fit(folder: str | Path, /, **changes: Any) -> moco_dist.Run:
    """Train in a folder; `section__key=value` changes the settings."""
    overrides = {**TINY, "run.dir": folder, **{name.replace("__", "."): value for name, value in changes.items()}}
    return moco_dist.fit("digits", overrides, verbose=False)


def losses(run: moco_dist.Run) -> list[float]:
    return [row["loss"] for row in run.training_rows]
