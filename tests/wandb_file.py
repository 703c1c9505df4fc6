"""Reads `.wandb` files back with W&B's own reader: what `wandb leet inspect` starts, without its second of imports."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WANDB = importlib.util.find_spec("wandb")
assert _WANDB is not None and _WANDB.origin is not None
CORE = Path(_WANDB.origin).parent / "bin" / "wandb-core"


@dataclass
class WandbFile:
    """The contents of a `.wandb` file."""

    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def steps(self, key: str = "train/loss") -> list[int]:
        return [row["train/step"] for row in self.history if key in row]


def read(path: Path) -> WandbFile:
    """Read the `.wandb` file of a run folder, as far as it has been written."""
    (file,) = path.glob("run-*.wandb")
    command = [str(CORE), "leet", "inspect", "--json", "--run-file", str(file), str(path.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise ValueError(f"{file}: {result.stderr}")
    content = WandbFile()
    for line in result.stdout.splitlines():
        record = json.loads(line)
        body = record.get(record["type"]) or {}
        match record["type"]:
            case "run":
                content.run = body
                content.config |= body.get("config", {}).get("update", {})
            case "history":
                content.history.append(body["item"])
            case "metric":
                content.metrics.append(body)
            case "alert":
                content.alerts.append(body)
            case "exit":
                content.exit_code = body.get("exit_code", 0)
    return content
