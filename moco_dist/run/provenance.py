"""Keep what each start of a run ran on, in `provenance.jsonl`: a line of JSON for each start.

A line has `step` (steps done before it), `total_steps` (length of the run by its config), `time` (UTC), `ranks`,
`hosts` by name, `device` (its type), `devices` and `cpus` (how many of each model), `exact` (the engine),
`deterministic`, `data` (the identity of the training images), `code` (git revision, and sha256 of the trainer's files),
and `versions`. Runs of earlier revisions have no such file.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_dist.files import parse_object, read_text, write_text
from moco_dist.run import code
from moco_dist.run.paths import RunPaths

Start = Mapping[str, Any]
"""The machine and software of one start; a key is missing where it was not recorded."""

_KINDS: dict[str, tuple[type, ...]] = {
    "time": (str,),
    "total_steps": (int,),
    "ranks": (int,),
    "hosts": (list, str),
    "device": (str,),
    "devices": (dict, int),
    "cpus": (dict, int),
    "exact": (bool,),
    "deterministic": (bool,),
    "data": (dict, int, str),
    "code": (dict, str),
    "versions": (dict, str),
}
"""Type of each key, and the types of what it holds: what is of another one is damaged, and counts as not recorded."""


def describe(machines: Sequence[Mapping[str, str]], libraries: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Describe what a start runs on.

    Args:
        machines: of each rank, its `host`, its `cpu` and its `device`, in words.
        libraries: versions of those that are no Python packages, such as CUDA.
        more: further keys, such as `step`.

    Raises:
        OSError: the trainer's own files cannot be read.
    """
    of_hosts = {machine["host"]: machine["cpu"] for machine in machines}
    return {
        **more,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ranks": len(machines),
        "hosts": list(of_hosts),
        "devices": dict(Counter(machine["device"] for machine in machines)),
        "cpus": dict(Counter(of_hosts.values())),
        "code": {"git": code.git_revision(), "sha256": code.digest()},
        "versions": {**code.versions(), **libraries},
    }


def add(run_dir: Path, start: Start) -> None:
    """Add the line of a start; a reader finds the old file or the new one. Raises OSError."""
    file = RunPaths(run_dir).provenance
    before = read_text(file, errors="replace") if file.exists() else ""
    whole = before if before.endswith("\n") or not before else f"{before}\n"
    write_text(file, f"{whole}{json.dumps(start)}\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Read what the starts of a run ran on, in their order; nothing where it was not recorded."""
    try:
        lines = read_text(RunPaths(run_dir).provenance, errors="replace").splitlines()
    except OSError:
        return []
    starts = (_parse(line) for line in lines)
    return [start for start in starts if start is not None]


def of_step(starts: Sequence[Start], step: int) -> Start | None:
    """Return the start that took a step, counted from 1: the last one that began before it; None if none is kept.

    A later start that began from an earlier checkpoint has taken the steps after that one again.
    """
    return next((start for start in reversed(starts) if start["step"] < step), None)


def _parse(line: str) -> dict[str, Any] | None:
    start = parse_object(line)
    if type(start.get("step")) is not int or not 0 <= start["step"] < 2**53:
        return None
    return {key: value for key, value in start.items() if key not in _KINDS or _is_of(value, _KINDS[key])}


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value is of the first kind, and all its values, where it has some, of the second."""
    kind, *of_parts = kinds
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return type(value) is kind and all(type(part) in of_parts for part in parts)
