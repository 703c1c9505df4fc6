"""A second dataset, so that nothing is tuned to digits: CIFAR-10 by the authors' demo recipe, for an hour on two cores.

python -m benchmarks.cifar10 --root FOLDER [--out DIR] [--ranks 2]

FOLDER holds train/ and test/ with a folder of images for each class. `configs/cifar10.yaml` as it is shipped, but for
fewer epochs and bfloat16; then kNN on the test images by the trained encoder, and by the same encoder as it began.
Written: benchmarks/results/cifar10.json and the table in docs/cifar10.md. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import DOCS, RESULTS, put_table, taken, torchrun, train
from moco_dist import config as configs
from moco_dist import files
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.run.paths import RunPaths

HOUR = ("optim.epochs=11", "device.precision=bf16")
"""As many epochs as two cores do in an hour."""


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_hour"), help="run directory")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args(arguments)
    data = ("data.source=imagefolder", f"data.root={options.root}")
    train(options.out, options.ranks, "configs/cifar10.yaml", *data, *HOUR)
    torchrun(options.ranks, "moco_dist.evaluate", str(options.out), data[1], "--knn")
    untrained = options.out / "untrained"
    untrained.mkdir(exist_ok=True)
    config = configs.load(Path("configs/cifar10.yaml"), data)
    encoder = RunPaths(untrained).encoder
    weights.save_backbone(build_encoder(config.model, 3, config.run.seed), encoder)
    torchrun(options.ranks, "moco_dist.evaluate", str(encoder), "configs/cifar10.yaml", *data, "--knn")
    write(options.out, untrained)
    return 0


def write(run_dir: Path, untrained: Path) -> None:
    """The results and the table."""
    summary, used = json.loads(RunPaths(run_dir).summary.read_text()), taken(run_dir)
    rows: list[dict[str, Any]] = [
        {"encoder": f"MoCo v1, {summary['epoch']} epochs", **_knn(run_dir), "steps": summary["step"], **used._asdict()},
        {"encoder": "as it began", **_knn(untrained), "steps": 0, "wall": 0.0, "cpu": 0.0},
    ]
    RESULTS.mkdir(exist_ok=True)
    files.write_text(RESULTS / "cifar10.json", json.dumps({"rows": rows}, indent=1) + "\n")
    lines = ["| encoder | steps | minutes | CPU minutes | kNN on the test images, % |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        figures = (row["steps"], round(row["wall"] / 60), round(row["cpu"] / 60))
        lines.append(f"| {row['encoder']} | {' | '.join(map(str, figures))} | {100 * row['test_accuracy_mean']:.2f} |")
    put_table(DOCS / "cifar10.md", "python -m benchmarks.cifar10", "\n".join(lines))


def _knn(folder: Path) -> dict[str, Any]:
    rows = json.loads(RunPaths(folder).evaluation_table.read_text())["rows"]
    row = next(row for row in rows if row["method"] == "kNN")
    return {name: row[name] for name in ("method", "test_accuracy_mean", "seconds")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
