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
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_dist import status
from moco_dist.evaluate import plots
from moco_dist.tracking.metrics import read_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results/mnist_100_labels.json"
DOCS = HERE.parent / "docs"
LABELS = 100
MARKS = ("<!-- table: python -m benchmarks.mnist_100_labels -->", "<!-- end of table -->")

SHORT = "optim.epochs=8"
"""Length of an ablation."""
V1 = ("model.mlp=false", "moco.temperature=0.07")


@dataclass(frozen=True)
class Pretraining:
    """A run of the trainer, and how its encoder is evaluated."""

    name: str
    told: str
    """What people call it."""
    overrides: tuple[str, ...]
    draws: int
    evaluation: tuple[str, ...] = ("--knn", "--linear", "--finetune")


def _ablations() -> Iterator[Pretraining]:
    for version, of_version in (("v1", V1), ("v2", ())):
        for loss, symmetric in (("asymmetric", "false"), ("symmetric", "true")):
            for shuffled, shuffle in (("shuffle-BN", "all_gather"), ("no shuffle-BN", "none")):
                overrides = (SHORT, *of_version, f"moco.symmetric={symmetric}", f"moco.shuffle={shuffle}")
                name = f"{version}-{loss}-{'shuffle' if shuffle != 'none' else 'no-shuffle'}"
                yield Pretraining(name, f"MoCo {version}, {loss}, {shuffled}", overrides, draws=3)
    still = ("data.rotation_degrees=0", "data.shear_degrees=0", "data.elastic_pixels=0")
    yield Pretraining("no-warp", "MoCo v2, crops and blur alone", (SHORT, *still), draws=3)


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
    asked = parser.parse_args(arguments)
    for pretraining in STUDY:
        if not asked.only or pretraining.name in asked.only:
            _do(pretraining, asked.root, asked.out / pretraining.name, asked.ranks)
            write(asked.out)
    return 0


def _do(pretraining: Pretraining, root: Path, run_dir: Path, ranks: int) -> None:
    if status.read(run_dir)[0] != "done":
        began = time.perf_counter()
        fixed = (f"data.root={root}", f"run.dir={run_dir}", f"run.name={pretraining.name}", "track.wandb=disabled")
        try:
            _torchrun(ranks, "moco_dist.train", "configs/mnist.yaml", *fixed, *pretraining.overrides)
        finally:
            _add_seconds(run_dir, time.perf_counter() - began)
    few = ("--labels", str(LABELS), "--draws", str(pretraining.draws))
    _torchrun(ranks, "moco_dist.evaluate", str(run_dir), f"data.root={root}", *few, *pretraining.evaluation)


def _torchrun(ranks: int, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    subprocess.run([*command, "-m", module, *arguments], check=True, cwd=HERE.parent)


def _add_seconds(run_dir: Path, seconds: float) -> None:
    """A run that was stopped has taken the time of all its starts."""
    if run_dir.is_dir():
        status.write_text(run_dir / "seconds.json", json.dumps(_seconds(run_dir) + seconds))


def _seconds(run_dir: Path) -> float:
    file = run_dir / "seconds.json"
    return float(json.loads(file.read_text())) if file.exists() else 0.0


def write(out: Path) -> None:
    """The results, the table and the pictures of all runs that are done."""
    done = [p for p in STUDY if (out / p.name / "evaluation.json").exists()]
    rows = [row for pretraining in done for row in _rows(pretraining, out / pretraining.name)]
    RESULTS.parent.mkdir(exist_ok=True)
    status.write_text(RESULTS, json.dumps({"rows": rows}, indent=1) + "\n")
    before, _, rest = (DOCS / "mnist.md").read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    status.write_text(DOCS / "mnist.md", f"{before}{MARKS[0]}\n\n{_table(rows)}\n\n{MARKS[1]}{after}")
    pictures = DOCS / "mnist"
    pictures.mkdir(exist_ok=True)
    curves = {p.told: list(read_rows(out / p.name / "metrics.jsonl")) for p in done if p.name != "main"}
    if curves:
        plots.overlay(pictures / "ablations.png", curves)
    for picture in ("accuracies", "confusion", "curves", "wrong"):
        file = out / f"main/evaluation/{picture}.png"
        if file.exists():
            shutil.copyfile(file, pictures / file.name)


def _rows(pretraining: Pretraining, run_dir: Path) -> Iterator[dict[str, Any]]:
    summary = json.loads((run_dir / "summary.json").read_text())
    for row in json.loads((run_dir / "evaluation.json").read_text())["rows"]:
        supervised = row["method"].startswith("supervised")
        yield {
            "pretraining": None if supervised else pretraining.told,
            **row,
            "pretraining_seconds": None if supervised else round(_seconds(run_dir)),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
