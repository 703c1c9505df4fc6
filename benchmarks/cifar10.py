"""A second dataset, so that nothing is tuned to digits: CIFAR-10 by the authors' demo recipe, configs/cifar10.yaml.

python -m benchmarks.cifar10 --root FOLDER [--out DIR] [--ranks 2]
python -m benchmarks.cifar10 --root FOLDER --full [--minutes 8] [--out DIR] [--ranks 1]

FOLDER is torchvision's CIFAR-10, or holds train/ and test/ with a folder of images for each class. The first command
trains for an hour on two cores, with fewer epochs and in bfloat16; then it measures kNN on the test images, with the
trained encoder and with the same encoder as it began. With --full, all 200 epochs are trained, first with the loss of
one direction and then with that of both, and kNN is put beside what the authors report. That takes a GPU. With
--minutes, a call takes no longer than so many minutes, and exits with 75 where there is more to do.

Written: a file in benchmarks/results/ and its table in docs/cifar10.md. Each command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.runs import DOCS, RESULTS, put_table, taken, torchrun, train
from moco_dist import config as configs
from moco_dist import files
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder
from moco_dist.run import status
from moco_dist.run.paths import RunPaths

CONFIG = "configs/cifar10.yaml"
HOUR = ("optim.epochs=11", "device.precision=bf16")
"""The setting of an hour: as many epochs as two cores do in it."""
SPARE_MINUTES = 1.0
"""A start, the last checkpoint of a piece, or the evaluation takes at most this long."""


class FullRun(NamedTuple):
    """A full run trains all 200 epochs."""

    name: str
    loss: str
    """The name of the loss, for people."""
    symmetric: str
    authors: float
    """Accuracy of kNN on the test images that the authors' demo reports, in %."""


FULL = (
    FullRun("asymmetric", "one direction", "false", 82.6),
    FullRun("symmetric", "both directions", "true", 85.3),
)


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the images")
    parser.add_argument("--full", action="store_true", help="train 200 epochs, with the loss of one direction and both")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end a call of --full after so many minutes")
    parser.add_argument("--out", type=Path, help="run directory, or with --full the folder of both")
    parser.add_argument("--ranks", type=int, help="1 with --full, else 2")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the results are written")
    parser.add_argument("--page", type=Path, default=DOCS / "cifar10.md", help="the page of the table")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for a trial; needs --results, --page"
    )
    options = parser.parse_args(arguments)
    if options.overrides and (options.results == RESULTS or options.page.parent == DOCS):
        parser.error("a trial's figures are not written beside the others; give --results and --page")
    if options.minutes <= 2 * SPARE_MINUTES:
        parser.error(f"argument --minutes: must be more than {2 * SPARE_MINUTES:g}, which a start and an end take")
    options.out = options.out or Path("runs/cifar10_full" if options.full else "runs/cifar10_hour")
    options.ranks = options.ranks or (1 if options.full else 2)
    options.results.mkdir(exist_ok=True)
    return full(options) if options.full else hour(options)


def hour(options: argparse.Namespace) -> int:
    """Train for an hour on two cores, and evaluate the encoder as it ends and as it began."""
    data = _data(options.root)
    train(options.out, options.ranks, CONFIG, *data, *HOUR, *options.overrides)
    torchrun(options.ranks, "moco_dist.evaluate", str(options.out), data[1], "--knn")
    untrained = options.out / "untrained"
    untrained.mkdir(exist_ok=True)
    config = configs.load(Path(CONFIG), [*data, *options.overrides])
    encoder = RunPaths(untrained).encoder
    weights.save_backbone(build_encoder(config.model, 3, config.run.seed), encoder)
    torchrun(options.ranks, "moco_dist.evaluate", str(encoder), CONFIG, *data, *options.overrides, "--knn")
    summary, used = json.loads(RunPaths(options.out).summary.read_text()), taken(options.out)
    rows: list[dict[str, Any]] = [
        {"encoder": f"MoCo v1, {summary['epoch']} epochs", **_knn(options.out), "steps": summary["step"]},
        {"encoder": "as it began", **_knn(untrained), "steps": 0, "wall": 0.0, "cpu": 0.0},
    ]
    rows[0] |= used._asdict()
    files.write_text(options.results / "cifar10.json", json.dumps({"rows": rows}, indent=1) + "\n")
    lines = ["| encoder | steps | minutes | CPU minutes | kNN on the test images, % |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        figures = (row["steps"], round(row["wall"] / 60), round(row["cpu"] / 60))
        lines.append(f"| {row['encoder']} | {' | '.join(map(str, figures))} | {100 * row['test_accuracy_mean']:.2f} |")
    put_table(options.page, "python -m benchmarks.cifar10", "\n".join(lines))
    return 0


def full(options: argparse.Namespace) -> int:
    """Train both full runs as far as the minutes go, and write what is known. Returns the exit status."""
    data, ends_at = _data(options.root), time.monotonic() + 60 * options.minutes
    for run in FULL:
        folder = options.out / run.name
        if status.read(folder).state != "done":
            minutes = (ends_at - time.monotonic()) / 60 - SPARE_MINUTES
            if minutes < SPARE_MINUTES or not _train_a_piece(folder, run, minutes, data, options):
                return _more_to_do(folder)
        if not RunPaths(folder).evaluation_table.is_file():
            if ends_at - time.monotonic() < 60 * SPARE_MINUTES:
                return _more_to_do(folder)
            torchrun(options.ranks, "moco_dist.evaluate", str(folder), data[1], "--knn")
        write_full(options, copies=data[0] == "data.source=imagefolder")
    return 0


def _train_a_piece(
    folder: Path, run: FullRun, minutes: float, data: Sequence[str], options: argparse.Namespace
) -> bool:
    """Train for so many minutes at most; return whether the run is done. Raises SystemExit where it fails."""
    until = () if math.isinf(minutes) else (f"run.max_minutes={minutes:.2f}",)
    try:
        train(folder, options.ranks, CONFIG, *data, f"moco.symmetric={run.symmetric}", *until, *options.overrides)
    except SystemExit:
        if status.read(folder).state != "stopped":
            raise
        return False
    return True


def _more_to_do(folder: Path) -> int:
    now = status.read(folder)
    print(f"{folder}: {now.state or 'not begun'} at step {now.step} of {now.total_steps}; the same command goes on")
    return status.EXIT_CODES["stopped"]


def write_full(options: argparse.Namespace, *, copies: bool) -> None:
    """Write the results of the full runs that are evaluated, and the table of all."""
    rows: list[dict[str, Any]] = []
    for run in FULL:
        folder = options.out / run.name
        if RunPaths(folder).evaluation_table.is_file():
            summary = json.loads(RunPaths(folder).summary.read_text())
            length = {"epochs": summary["epoch"], "steps": summary["step"], "ranks": options.ranks}
            rows.append({"loss": run.loss, **length, **taken(folder)._asdict(), **_knn(folder), "copies": copies})
    files.write_text(options.results / "cifar10_full.json", json.dumps({"rows": rows}, indent=1) + "\n")
    put_table(options.page, "python -m benchmarks.cifar10 --full", full_table(rows))


def full_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the full runs; what has no row was not run."""
    lines = ["| loss | epochs | minutes | kNN on the test images, % | the authors', % |", "|---|---:|---:|---:|---:|"]
    of_loss = {row["loss"]: row for row in rows}
    for run in FULL:
        row = of_loss.get(run.loss)
        figures = ["not run"] * 3
        if row:
            figures = [str(row["epochs"]), f"{row['wall'] / 60:.1f}", f"{100 * row['test_accuracy_mean']:.2f}"]
        lines.append(f"| {run.loss} | {' | '.join(figures)} | {run.authors} |")
    if any(row["copies"] for row in rows):
        lines += ["", "The images are JPEG copies of CIFAR-10's, whose pixels differ a little."]
    return "\n".join(lines)


def _data(root: Path) -> tuple[str, str]:
    """Return the overrides that name the source and the folder."""
    return "data.source=" + ("imagefolder" if (root / "train").is_dir() else "cifar10"), f"data.root={root}"


def _knn(folder: Path) -> dict[str, Any]:
    rows = json.loads(RunPaths(folder).evaluation_table.read_text())["rows"]
    row = next(row for row in rows if row["method"] == "kNN")
    return {name: row[name] for name in ("method", "test_accuracy_mean", "seconds")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
