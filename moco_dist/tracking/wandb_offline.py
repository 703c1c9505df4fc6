"""Read what earlier starts of a run have left in files for W&B, and put these files away."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KINDS = ("train", "eval")


def last_steps(summary: Mapping[str, Any]) -> dict[str, int]:
    """Return the last step of training and of evaluation by a run's summary at W&B; 0 for none."""
    return {kind: int(summary.get(f"{kind}/step", 0)) for kind in _KINDS}


def arrived(folder: Path, run_id: str) -> dict[str, int]:
    """Return the last step of training and of evaluation in the files of earlier starts; 0 for none.

    Files of online starts count as arrived: they very nearly are.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: W&B's reader is missing, or cannot read a file.
    """
    steps = [last_steps(_summary(file)) for file in folder.glob(f"*run-*/run-{run_id}.wandb")]
    return {kind: max((of_file[kind] for of_file in steps), default=0) for kind in _KINDS}


def retire(folder: Path, run_id: str) -> None:
    """Put offline runs away from `wandb sync`: what the server lacked of them is sent again from metrics.jsonl."""
    for segment in folder.glob(f"offline-run-*-{run_id}"):
        (folder / "superseded").mkdir(exist_ok=True)
        segment.rename(folder / "superseded" / segment.name)


def _summary(file: Path) -> dict[str, Any]:
    """Read the last figures in a `.wandb` file, up to where a kill has cut it, by `wandb leet inspect --summary`."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--summary", "--json", "--no-observability", "--run-file", str(file)]
    done = subprocess.run(
        [*command, str(file.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal: an older wandb would open a view on it
        # It would leave its settings in the home.
        env={
            **os.environ,
            "HOME": os.devnull,
            "XDG_CONFIG_HOME": os.devnull,
        },
    )
    if done.returncode:
        raise OSError(f"{file.name}: {done.stderr}")
    return dict(json.loads(done.stdout)["summary"])
