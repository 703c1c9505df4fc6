"""The founding study: MNIST with 100 labels, from MoCo's features and without them.

python -m benchmarks.mnist_100_labels --root FOLDER [--out DIR] [--ranks 2] [--only NAME ...]

Each pretraining is a run of the trainer, each row of its table a cell of `moco_dist.evaluate`; what is done is kept
below --out, so the same command goes on where it was stopped. `main` is configs/mnist.yaml as it is shipped; the
ablations are the same for a few epochs, with one thing changed. Written: benchmarks/results/mnist_100_labels.json, the
table in docs/mnist.md between its marks, and the pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import DOCS, RESULTS, put_table, taken, torchrun, train
from moco_dist import files
from moco_dist.evaluate import plots
from moco_dist.run.paths import RunPaths

LABELS = 100

SHORT = ("optim.epochs=4", "eval.knn_every=1")
"""The setting of an ablation: at most ten minutes on two cores with its evaluation, a point of its curve each epoch."""
V1 = ("model.mlp=false", "moco.temperature=0.07")

EFFECTS = (
    ("MLP head and temperature 0.3, not a linear head and 0.07", "v1-", "v2-"),
    ("symmetric loss", "asymmetric", "symmetric"),
    ("shuffle-BN", "no-shuffle", "shuffle"),
    ("turning, slanting and bending the digits", "no-warp", "v2-asymmetric-shuffle"),
    ("all epochs, not an ablation's", "v2-asymmetric-shuffle", "main"),
)
"""The changes that are studied, and how each changes the names of the pretrainings that are compared."""


@dataclass(frozen=True)
class Pretraining:
    """A run of the trainer, and how its encoder is evaluated."""

    name: str
    label: str
    """The name for people."""
    overrides: tuple[str, ...]
    draws: int
    evaluation: tuple[str, ...] = ("--knn", "--finetune")


def _ablations() -> Iterator[Pretraining]:
    for version, of_version in (("v1", V1), ("v2", ())):
        for loss, symmetric in (("asymmetric", "false"), ("symmetric", "true")):
            for shuffled, shuffle in (("shuffle-BN", "all_gather"), ("no shuffle-BN", "none")):
                overrides = (*SHORT, *of_version, f"moco.symmetric={symmetric}", f"moco.shuffle={shuffle}")
                name = f"{version}-{loss}-{'shuffle' if shuffle != 'none' else 'no-shuffle'}"
                yield Pretraining(name, f"MoCo {version}, {loss}, {shuffled}", overrides, draws=2)
    still = ("data.rotation_degrees=0", "data.shear_degrees=0", "data.elastic_pixels=0")
    yield Pretraining("no-warp", "MoCo v2, crops and blur alone", (*SHORT, *still), draws=2)


STUDY = (
    Pretraining("main", "MoCo, configs/mnist.yaml", (), 10, ("--knn", "--linear", "--finetune", "--supervised")),
    *_ablations(),
)


def main(arguments: Sequence[str]) -> int:
    """Do what is missing, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's folder with MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_100_labels"), help="run directories")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[p.name for p in STUDY], help="these alone")
    options = parser.parse_args(arguments)
    for pretraining in STUDY:
        if not options.only or pretraining.name in options.only:
            _do(pretraining, options.root, options.out / pretraining.name, options.ranks)
            write(options.out)
    return 0


def _do(pretraining: Pretraining, root: Path, run_dir: Path, ranks: int) -> None:
    train(run_dir, ranks, "configs/mnist.yaml", f"data.root={root}", *pretraining.overrides)
    few = ("--labels", str(LABELS), "--draws", str(pretraining.draws))
    torchrun(ranks, "moco_dist.evaluate", str(run_dir), f"data.root={root}", *few, *pretraining.evaluation)


def write(out: Path) -> None:
    """The results, the tables and the pictures; rows of runs that are not in this folder stay as they were."""
    file = RESULTS / "mnist_100_labels.json"
    done = [p for p in STUDY if RunPaths(out / p.name).evaluation_table.exists()]
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    rows: list[dict[str, Any]] = []
    for p in STUDY:
        rows += _rows(p, out / p.name) if p in done else (row for row in before if row["run"] == p.name)
    RESULTS.mkdir(exist_ok=True)
    files.write_text(file, json.dumps({"rows": rows}, indent=1) + "\n")
    put_table(DOCS / "mnist.md", "python -m benchmarks.mnist_100_labels", _table(rows))
    pictures = DOCS / "mnist"
    pictures.mkdir(exist_ok=True)
    put_table(DOCS / "mnist.md", "effects", _effects(rows))
    if len(done) == len(STUDY):
        curves = {p.label: plots.Curve.read(out / p.name) for p in done if p.name != "main"}
        plots.save(pictures / "ablations.png", plots.overlay(curves))
    for picture in ("accuracies", "confusion", "curves", "wrong"):
        file = out / f"main/evaluation/{picture}.png"
        if file.exists():
            shutil.copyfile(file, pictures / file.name)


def _rows(pretraining: Pretraining, run_dir: Path) -> Iterator[dict[str, Any]]:
    summary = json.loads(RunPaths(run_dir).summary.read_text())
    for row in json.loads(RunPaths(run_dir).evaluation_table.read_text())["rows"]:
        supervised = row["method"].startswith("supervised")
        yield {
            "run": pretraining.name,
            "pretraining": None if supervised else pretraining.label,
            **row,
            "pretraining_seconds": None if supervised else round(taken(run_dir).wall),
            "pretraining_steps": None if supervised else summary["step"],
            "validation_knn_top1": None if supervised else summary["knn_top1"],
        }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| pretraining | minutes | method | labels | draws | test accuracy, % | seconds a draw |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|")
    for row in rows:
        spread = f" ± {100 * row['test_accuracy_std']:.2f}" if row["draws"] > 1 else ""
        minutes = "" if row["pretraining_seconds"] is None else f"{row['pretraining_seconds'] / 60:.0f}"
        cells = (row["pretraining"] or "none", minutes, row["method"], row["labels"] or "all", row["draws"])
        lines.append(
            f"| {' | '.join(map(str, cells))} | {100 * row['test_accuracy_mean']:.2f}{spread} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def _effects(rows: Sequence[dict[str, Any]]) -> str:
    """Return each change's gain for each method, the mean over the pairs of pretrainings that differ in it alone."""
    of = {(row["run"], row["method"], row["labels"]): row["accuracies"] for row in rows if row["pretraining"]}
    runs, methods = (list(dict.fromkeys(keys)) for keys in ((run for run, *_ in of), (key[1:] for key in of)))
    methods = [m for m in methods if sum((run, *m) in of for run in runs) > 1]
    names = [f"{method}, {labels or 'all'}" for method, labels in methods]
    lines = [f"| change | pairs | {' | '.join(names)} |", "|---|---:|" + "---:|" * len(methods)]
    for change, before, after in EFFECTS:
        pairs = [(run, other) for run in runs if before in run and (other := run.replace(before, after)) in runs]
        if pairs:
            gains = [
                [_gain(of[a, *m], of[b, *m]) for a, b in pairs if {(a, *m), (b, *m)} <= of.keys()] for m in methods
            ]
            cells = [f"{statistics.fmean(gain):+.2f}" if gain else "" for gain in gains]
            lines.append(f"| {change} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "No pair of runs has been made yet."


def _gain(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the gain in percentage points, on the draws that both have."""
    return 100 * statistics.fmean(b - a for a, b in zip(before, after, strict=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
