"""Files that W&B's runs leave in the run directory: the id of all starts, and what earlier starts have shown."""

import contextlib
import json
import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_dist import config as configs
from moco_dist import files

KINDS = ("train", "eval")
"""The prefixes of figures' names at W&B: those of training, and of evaluations."""


def fixed_id(folder: Path) -> str:
    """Return the run's id, in `folder/id`, made once for all its starts; the launcher makes it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "id"
    with contextlib.suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(4))
    run_id = files.read_text(file).strip()
    if not re.fullmatch(r"[\w-]+", run_id):  # killed between making the file and writing it
        run_id = secrets.token_hex(4)
        files.write_text(file, run_id)
    return run_id


def id_of_start(folder: Path, config: Mapping[str, Any], start_step: int) -> str:
    """Return the run's id for a start, in `folder/id` too.

    A start that died ahead of its first checkpoint leaves rows at W&B. One that begins again takes the same steps, so
    that they count; but not where its config gives another curve: then it gets a new id.

    Args:
        folder: W&B's folder in the run directory.
        config: of this start, a tree of sections.
        start_step: steps done.

    Raises:
        OSError: the folder cannot be written.
    """
    run_id, file = fixed_id(folder), folder / "config.json"
    before, now = configs.flat(files.read_object(file)), configs.flat(config)
    if start_step == 0 and any(configs.effect_of(key, before[key], now.get(key)) == "curve" for key in before):
        run_id = secrets.token_hex(4)
        files.write_text(folder / "id", run_id)
    files.write_text(file, json.dumps(config) + "\n")
    return run_id


def last_steps(summary: Mapping[str, Any]) -> dict[str, int]:
    """Return the last step of training and of evaluation by a run's summary at W&B; 0 for none."""
    return {kind: int(summary.get(f"{kind}/step", 0)) for kind in KINDS}


def arrived(folder: Path, run_id: str) -> dict[str, int]:
    """Return the last step of training and of evaluation in the files of earlier starts; 0 for none.

    Files of online starts count as arrived: they very nearly are.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: W&B's reader is missing, or cannot read a file.
    """
    steps = [last_steps(_summary(file)) for file in folder.glob(f"*run-*/run-{run_id}.wandb")]
    return {kind: max((of_file[kind] for of_file in steps), default=0) for kind in KINDS}


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
        env={**os.environ, "HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull},  # it would leave its settings there
    )
    if done.returncode:
        raise OSError(f"{file.name}: {done.stderr}")
    return dict(json.loads(done.stdout)["summary"])
