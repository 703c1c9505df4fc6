"""Break real runs on purpose, and compare what `moco_dist.why` finds with what was broken.

Healthy runs are made too, in which nothing is to be found:

python -m tests.broken_runs [NAME ...] [--out DIR] [--mnist ROOT] [--whole] [--figures] [--list]

Without names, all broken and healthy runs on digits are made, small ones, minutes on a CPU; `--mnist` makes those on
MNIST instead, and `--whole` trains as long as the shipped configs say. The runs stay in DIR, for `moco_dist.why`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco_dist import health, train, why
from moco_dist.health import reading
from moco_dist.health.course import SECONDS
from moco_dist.health.learning import pace_of
from moco_dist.health.queue import way_in_queue
from moco_dist.run import directory
from moco_dist.run.rows import read_rows
from tests.jobs import Pair

LEARNS = Path(__file__).parent / "health" / "learns.yaml"
SLOW_STEPS = 26
"""Steps of a run that takes 2.5 seconds for a step: a minute has passed."""


@dataclass(frozen=True)
class Run:
    """A run, and what is to be found in it."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    finds: str = ""
    """Name of the finding; empty for a healthy run."""
    key: str = ""
    """Key that is to be changed."""
    config: str = str(LEARNS)
    fault: str = ""
    """The fault that breaks one of two ranks: `kind:rank:step`, as tests/faulty.py reads it."""


BROKEN = [
    Run("no_shuffle", {"moco.shuffle": "none", "moco.bn_groups": 8}, "batchnorm_leak", "moco.shuffle"),
    Run("lr_times_100", {"optim.lr": 1.5}, "collapsed", "optim.lr"),
    Run("diverges", {"optim.lr": 1e25, "optim.warmup_epochs": 0}, "lr_too_high", "optim.lr"),
    Run("lr_by_100", {"optim.lr": 0.00015, "optim.schedule": "constant"}, "lr_too_low", "optim.lr"),
    Run("large_queue", {"moco.queue_size": 4096, "optim.steps": 8}, "queue_larger_than_data", "moco.queue_size"),
    Run("momentum_0", {"moco.momentum": 0}, "collapsed", "moco.momentum"),
    Run("momentum_1", {"moco.momentum": 1}, "encoders_apart", "moco.momentum"),
    Run(
        "stale_queue",
        {
            "moco.queue_size": 1408,
            "moco.momentum": 0.9,
            "optim.lr": 1.5,
            "optim.schedule": "constant",
            "optim.steps": 104,
        },
        "queue_stale",
        "moco.momentum",
    ),
    Run(
        "same_views",
        {"data.crop_scale": "1.0,1.0", "data.blur_probability": 0, "optim.steps": 176},
        "augmentation_too_weak",
        "data.crop_scale",
    ),
    Run(
        "other_views",
        {"data.crop_scale": "0.02,0.05", "data.rotation_degrees": 180, "data.elastic_pixels": 3},
        "augmentation_too_strong",
        "data.crop_scale",
    ),
    Run("hot", {"moco.temperature": 1.0}, "temperature_too_high", "moco.temperature"),
    Run("cold", {"moco.temperature": 0.01}, "temperature_too_low", "moco.temperature"),
    Run(
        "slow_data",
        {"optim.steps": SLOW_STEPS, "eval.knn_every": 0},
        "data_bound",
        "data.workers",
        fault="slow-batch:0:0",
    ),
    Run("slow_rank", {"optim.steps": SLOW_STEPS, "eval.knn_every": 0}, "slow_rank", "data.workers", fault="slow:1:0"),
    Run(
        "apart",
        {"optim.steps": 40, "eval.knn_every": 0, "track.compare_ranks_every": 10},
        "ranks_apart",
        "device.engine",
        fault="part:1:15",
    ),
]
"""Runs of which each is broken in one way."""

VARIANTS: dict[str, dict[str, Any]] = {
    "v1": {"model.mlp": "false", "moco.temperature": 0.1, "moco.symmetric": "false"},
    "v2": {"model.mlp": "true", "moco.symmetric": "false"},
    "symmetric": {"moco.symmetric": "true"},
    "other": {"moco.queue_size": 768, "moco.temperature": 0.15, "run.seed": 3, "model.dim": 48},
}
HEALTHY = [Run(f"small_{name}", settings) for name, settings in VARIANTS.items()]
HEALTHY_DIGITS = [Run(f"digits_{name}", settings, config="configs/digits.yaml") for name, settings in VARIANTS.items()]
HEALTHY_MNIST = [Run(f"mnist_{name}", settings, config="configs/mnist.yaml") for name, settings in VARIANTS.items()]


def make(
    run: Run, run_dir: Path, further: Mapping[str, Any] | None = None, *, minute_seconds: float = SECONDS
) -> dict[str, Any]:
    """Train a run, on two ranks where one of them is to be broken, and return what `why --json` tells of it.

    Args:
        run: what to train.
        run_dir: where it stays.
        further: more settings.
        minute_seconds: how long a broken rank is watched until its speed is judged.
    """
    settings = {"track.wandb": "disabled", **run.settings, **(further or {})}
    if run.fault:
        environment = {"FAULT": run.fault, "MINUTE": str(minute_seconds)}
        with Pair(run_dir, settings, environment=environment, module="tests.faulty", config=LEARNS) as pair:
            pair.exits(600)
    else:
        overrides = [f"{key}={value}" for key, value in {**settings, "run.dir": run_dir}.items()]
        train.run([run.config, *overrides])
    return why.as_json(reading.read(run_dir))


def fault_of(run: Run, answer: Mapping[str, Any]) -> str:
    """Say what is wrong with what was found in a run; empty where that is what was broken."""
    names = [finding["name"] for finding in answer["findings"]]
    if not run.finds:
        return f"a healthy run has {names}" if names else ""
    for finding in answer["findings"]:
        if finding["name"] == run.finds:
            return "" if finding["key"] == run.key else f"{finding['key']} is to be changed, not {run.key}"
    return f"{run.finds} was not found, but {names or 'nothing'}"


def judged(course: health.Course) -> dict[str, float]:
    """Return what the rules compare with their thresholds, of the last window."""
    window, facts = course.window, course.facts
    return {
        "share of chance": course.chance_share(),
        "q_std": window.mean("q_std"),
        "q_rank": window.mean("q_rank"),
        "positive": window.mean("positive_similarity"),
        "positive - hardest": window.mean("positive_similarity") - window.mean("hardest_similarity"),
        "share of entropy": window.mean("entropy") / math.log(facts.config.moco.queue_size + 1),
        "loss / entropy": window.mean("loss") / facts.directions / window.mean("entropy"),
        "distance": window.mean("encoder_distance"),
        "pace": pace_of(course),
        "way in queue": way_in_queue(course),
    }


def extremes(run_dir: Path) -> str:
    """Return the least and the largest value that each rule has judged in a run that had settled, in a line."""
    config = directory.load_config(run_dir / "config.yaml")
    monitor = health.Monitor(health.Facts(config))
    values: dict[str, list[float]] = {}
    window = monitor.course.window
    for row in read_rows(run_dir / "metrics.jsonl"):
        monitor.push(row)
        if monitor.course.window is not window and monitor.course.is_settled:
            window = monitor.course.window
            for name, value in judged(monitor.course).items():
                values.setdefault(name, []).append(value)
        if "linear_train_top1" in row:
            values.setdefault("gap of the probe", []).append(row["linear_train_top1"] - row["linear_top1"])
    return ", ".join(f"{name} {min(some):.2g} to {max(some):.2g}" for name, some in values.items())


def main(arguments: Sequence[str]) -> int:
    """Make the runs that the command line names. Returns 1 where something else was found than was broken."""
    parser = argparse.ArgumentParser("python -m tests.broken_runs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of runs; without, all of them")
    parser.add_argument("--out", type=Path, help="where the runs stay")
    parser.add_argument("--mnist", metavar="ROOT", help="healthy runs on MNIST, which torchvision has put there")
    parser.add_argument("--whole", action="store_true", help="healthy runs as long as the shipped configs say")
    parser.add_argument("--figures", action="store_true", help="show what the rules judged, least and largest")
    parser.add_argument("--list", action="store_true", help="name all runs, and what is to be found in them")
    options = parser.parse_args(arguments)
    runs, further = [*BROKEN, *HEALTHY], {}
    if options.whole:
        runs += HEALTHY_DIGITS
    if options.mnist:
        runs, further = HEALTHY_MNIST, {"data.root": options.mnist}
        if not options.whole:
            further |= {"optim.epochs": 2, "track.log_every": 1}
    if options.names:
        every_run = {run.name: run for run in [*BROKEN, *HEALTHY, *HEALTHY_DIGITS, *HEALTHY_MNIST]}
        runs = [every_run[name] for name in options.names]
    out = options.out or Path(tempfile.mkdtemp(prefix="broken_runs."))
    faults = 0
    for run in runs:
        if options.list:
            print(f"{run.name}: {run.finds or 'healthy'} {run.key} {dict(run.settings)} {run.fault}")
            continue
        answer = make(run, out / run.name, further)
        fault = fault_of(run, answer)
        faults += bool(fault)
        names = ", ".join(f"{f['name']} ({f['key']}={f['value']})" for f in answer["findings"]) or "nothing"
        print(f"{run.name}: found {names}; {fault or 'as it should be'}", flush=True)
        if options.figures:
            print(f"  {extremes(out / run.name)}", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
