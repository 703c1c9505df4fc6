"""Train another revision beside this tree and compare what both leave behind, bit for bit.

python -m tests.same_curve --against REV [--scenario NAME ...] [--plain-convolutions] [--mnist FOLDER] [--keep FOLDER]

Both trees train the same small scenarios under torchrun. In each one all ranks are killed by SIGKILL in mid-run, the
run is resumed, and what it has learned is evaluated. The trees may be built differently within: they are driven by
their command lines alone, and compared by the files in their run directories. Exits 1 where anything differs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from moco_dist.run.figures import is_measured
from tests.jobs import ROOT, Job, checkpoints, environment_of, last_step, rows, send, state

SIDES = ("here", "there")
"""This tree, and the other revision."""

COLUMNS = (
    "losses",
    "lr",
    "top1 top5",
    "online kNN",
    "other figures",
    "encoder file",
    "encoders",
    "queue",
    "optimizer",
    "other state",
    "kNN",
    "linear probe",
    "few labels",
    "classes",
)
LOOSE = ("other figures", "other state", "classes")
"""A revision may add to these: what one side alone has is reported, but it is no difference unless it is a tensor."""

_OF_STATE = {
    "encoder_q": "encoders",
    "encoder_k": "encoders",
    "queue": "queue",
    "cursor": "queue",
    "optimizer": "optimizer",
}
_OF_ROW = {"loss": "losses", "lr": "lr", "top1": "top1 top5", "top5": "top1 top5"}
_OF_EVALUATION = dict.fromkeys(("epoch", "knn_top1", "linear_top1"), "online kNN")
_HOW = ("fused", "foreach")
"""Options in a checkpoint that say how its optimizer computes, which must not show in a number."""
_WALL_CLOCK = re.compile("second|minute|hour|time|wait")

START_SECONDS = 300.0  # four ranks of each side on two cores that others use as well
END_SECONDS = 60.0  # from the death of the ranks to that of the last data worker

Things = dict[str, dict[str, Any]]
"""The remains of a run: for each column its figures and tensors by name, those of rows in the order of steps."""


# ----------------------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Verdict:
    """The comparison of two runs in one column."""

    compared: int
    """Figures and tensors that both have."""
    unequal: dict[str, str]
    """Names of those that are not equal bit for bit, in order, with their values in words."""
    largest: float | None
    """Largest difference of a number, where there is one."""
    one_sided: dict[str, list[str]]
    """The names that one side alone has, by side."""
    equal: bool
    """True where all that counts is equal."""

    @property
    def cell(self) -> str:
        """The verdict as it stands in the table."""
        alone = "\n".join(f"{len(names)} only {side}" for side, names in self.one_sided.items() if names)
        if self.equal:
            return f"equal\n{alone}" if alone else "equal"
        if not self.compared and not alone:
            return "NOTHING\nto compare"
        words = ["DIFFERS"]
        first = next(iter(self.unequal), "").partition(",")[0]
        words += [f"from {first}"] if first.startswith("step ") else []
        words += [] if self.largest is None else [f"by {self.largest:.2g}"]
        return "\n".join([*words, alone] if alone else words)

    def lines(self) -> Iterator[str]:
        """Sentences on what differs."""
        if self.unequal:
            name, values = next(iter(self.unequal.items()))
            largest = "" if self.largest is None else f"; the largest difference is {self.largest:.3g}"
            yield f"{len(self.unequal)} of {self.compared} differ, first {name}: {values}{largest}"
        for side, names in self.one_sided.items():
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                yield f"only {side}: {'; '.join(names[:3])}{more}"


def compare(here: Path, there: Path) -> dict[str, Verdict]:
    """Hold two run directories against each other, column by column."""
    ours, theirs = things(here), things(there)
    return {column: _verdict(column, ours[column], theirs[column]) for column in COLUMNS}


def _verdict(column: str, here: dict[str, Any], there: dict[str, Any]) -> Verdict:
    common = [name for name in here if name in there]
    unequal = [name for name in common if not equal_bits(here[name], there[name])]
    distances = [distance(here[name], there[name]) for name in unequal]
    one_sided = {
        "here": [name for name in here if name not in there],
        "there": [name for name in there if name not in here],
    }
    alone = [side[name] for side, names in zip((here, there), one_sided.values(), strict=True) for name in names]
    counts = any(column not in LOOSE or isinstance(value, Tensor) for value in alone)
    missing = not common and column not in LOOSE  # both lack it: a comparison of nothing must not pass
    return Verdict(
        compared=len(common),
        unequal={name: contrast(here[name], there[name]) for name in unequal},
        largest=max((number for number in distances if number is not None), default=None),
        one_sided=one_sided,
        equal=not (unequal or counts or missing),
    )


def equal_bits(one: Any, other: Any) -> bool:
    """Tell whether two figures or tensors are alike in type, shape and every bit; 0.0 is not -0.0, and NaN is NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
    return repr(one) == repr(other)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def distance(one: Any, other: Any) -> float | None:
    """Largest difference between the numbers of two things; None where they are no numbers of one shape."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and one.numel():
        largest = float((one.double() - other.double()).abs().max())
    elif isinstance(one, int | float) and isinstance(other, int | float):
        largest = abs(float(one) - float(other))
    else:
        return None
    return math.inf if math.isnan(largest) else largest


def contrast(one: Any, other: Any) -> str:
    """Say how two unequal things differ: in how many elements, where they have equally many, else what they are."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return f"{sum(map(operator.ne, one, other))} of {len(one)} elements"
    if isinstance(one, Tensor) and isinstance(other, Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape):
        differing = (_bits(one) != _bits(other)).reshape(-1, one.itemsize).any(dim=1)
        return f"{int(differing.sum())} of {one.numel()} elements"
    return f"{_shown(one)} here, {_shown(other)} there"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def things(run_dir: Path) -> Things:
    """Gather all that a run has left and that is not a matter of its clock or its place."""
    gathered: Things = {column: {} for column in COLUMNS}
    for column, name, value in [*_of_rows(run_dir), *_of_weights(run_dir), *_of_evaluation(run_dir)]:
        while name in gathered[column]:  # a row that stands there twice is seen where the other side has it once
            name += " again"
        gathered[column][name] = value
    return gathered


def _of_rows(run_dir: Path) -> Iterator[tuple[str, str, Any]]:
    """Column, name and value of each figure in metrics.jsonl; findings only judge them, and by the clock too."""
    for row in rows(run_dir):
        if "finding" in row:
            continue
        for key, value in row.items():
            if key != "step" and not is_measured(key) and not _WALL_CLOCK.search(key):
                columns = _OF_ROW if "loss" in row else _OF_EVALUATION
                yield columns.get(key, "other figures"), f"step {row['step']}, {key}", value


def _of_weights(run_dir: Path) -> Iterator[tuple[str, str, Any]]:
    """Column, name and value of what is in the encoder's file and in the last checkpoint."""
    encoder = run_dir / "encoder.safetensors"
    for name, tensor in (load_file(encoder) if encoder.exists() else {}).items():
        yield "encoder file", name, tensor
    for path, value in leaves(state(run_dir) if checkpoints(run_dir) else {}):
        if "config" not in path and path[-1] not in _HOW:  # the config names the run directory
            yield next((_OF_STATE[part] for part in path if part in _OF_STATE), "other state"), ".".join(path), value


def _of_evaluation(run_dir: Path) -> Iterator[tuple[str, str, Any]]:
    """Column, name and value of each figure of `moco_dist.evaluate`, and the classes that it tells the images to be."""
    file, cells = run_dir / "evaluation.json", run_dir / "evaluation" / "cells.jsonl"
    for row in json.loads(file.read_text())["rows"] if file.exists() else ():
        all_labels = "kNN" if row["method"].startswith("kNN") else "linear probe"
        for path, value in leaves(row):
            if not any(map(_WALL_CLOCK.search, path)):
                yield "few labels" if row["labels"] else all_labels, f"{row['method']}, {'.'.join(path)}", value
    for line in cells.read_text().split("\n") if cells.exists() else ():
        if line:
            key, predicted = (json.loads(line)[name] for name in ("key", "predicted"))
            yield "classes", f"{key['method']}, {key['labels'] or 'all'} labels, draw {key['draw']}", predicted


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that is in nested dicts and lists and is itself no dict or list, with the keys on the way to it."""
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


# ------------------------------------------------------------------------------------------------------ the scenarios


@dataclass(frozen=True)
class Scenario:
    """A small run that both trees make."""

    name: str
    about: str
    ranks: int
    steps: int
    kill_after: int
    """Steps that are done, or a few more, when the ranks are killed."""
    labels: int
    """Labels of the evaluation with few labels."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Overrides of tests/fast.yaml and of SETTINGS."""


SETTINGS: dict[str, Any] = {
    "run.seed": 0,
    "data.crop_ratio": [0.75, 1.3333333333333333],
    "data.rotation_degrees": 0,
    "data.shear_degrees": 0,
    "data.elastic_pixels": 0,
    "data.workers": 0,
    "moco.symmetric": "false",
    "moco.shuffle": "all_gather",
    "optim.sgd_momentum": 0.9,
    "optim.schedule": "cosine",
    "optim.accumulate": 1,
    "device.threads": 1,
    "device.precision": "fp32",
    "device.compile": "false",
    "device.channels_last": "false",
    "checkpoint.every_minutes": "null",
    "eval.knn_temperature": 0.1,
    "eval.knn_split": "test",
}
"""Keys that the curve and the figures depend on and that tests/fast.yaml leaves to defaults, which may change."""

LATER: dict[str, Any] = {"data.decode": "pillow"}
"""Values of keys with which later revisions do what earlier ones, which lack the key, do always."""

PLAIN_CONVOLUTIONS = """import contextlib
with contextlib.suppress(ImportError):  # of an earlier revision
    from moco_dist.networks.convolution import Convolution
    del Convolution.forward
"""
"""Code that Python runs at its start with `--plain-convolutions`: no tree takes those of a single pixel for products,
whose last bits differ."""

NAMES = ("digits", "mnist", "folder")
SYMMETRIC = {
    "moco.symmetric": "true",
    "moco.bn_groups": 14,  # seven a rank: of as many gradients, the order in which they are added up shows
    "moco.queue_size": 500,  # no multiple of the batch
    "optim.global_batch": 56,
}
V1 = {
    "data.augmentation": "v1",
    "data.rotation_degrees": 15,
    "data.shear_degrees": 20,
    "model.mlp": "false",
    "moco.bn_groups": "null",  # one for each part
    "moco.temperature": 0.07,
    "optim.accumulate": 2,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0,
}
V2_OF_FILES = {
    "data.source": "imagefolder",
    "data.image_size": 32,
    "data.augmentation": "v2",
    "data.workers": 1,
    "model.arch": "resnet50",
    "model.stem": "imagenet",
    "moco.shuffle": "all_to_all",
    "moco.queue_size": 96,
    "optim.global_batch": 32,
    "optim.lr": 0.01,
    "optim.schedule": "step",
    "optim.milestones": [4, 8],
    "optim.decay": 0.1,
    "eval.knn_every": 4,
}


def scenarios(data: Path, mnist: Path | None) -> list[Scenario]:
    """All scenarios, in the order of NAMES.

    Args:
        data: folder for the images that are made.
        mnist: torchvision root of MNIST, where there is one.
    """
    v1: dict[str, Any] = V1
    if mnist:
        cut_mnist(mnist, data / "mnist", {"train": 2000, "t10k": 500})
        warp = {"data.image_size": 28, "data.elastic_pixels": 3, "model.stem": "imagenet"}
        v1 = {**V1, **warp, "data.source": "mnist", "data.root": data / "mnist"}
    make_images(data / "images")
    about = "v1, in 2 parts" if mnist else "v1, in 2 parts, on DIGITS, no MNIST here"
    files = {**V2_OF_FILES, "data.root": data / "images"}
    return [
        Scenario("digits", "symmetric", 2, steps=40, kill_after=26, labels=50, settings=SYMMETRIC),
        Scenario("mnist", about, 1, steps=48, kill_after=18, labels=50, settings=v1),
        Scenario("folder", "v2, all_to_all, workers", 4, steps=36, kill_after=17, labels=8, settings=files),
    ]


def make_images(folder: Path) -> None:
    """Write JPEG files of four classes of stripes, of many sizes, some of them gray; the same ones every time."""
    dice = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for number in range(4 * count):
            pixels = stripes(dice, width=1 + number % 4)
            path = folder / split / f"class_{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, :, 0] if number % 7 == 0 else pixels).save(path, quality=90)


def stripes(dice: np.random.Generator, width: int) -> np.ndarray:
    """A noisy image of coloured stripes, uint8 [H, W, 3]."""
    height, across = dice.integers(40, 90, 2)
    along = np.arange(height)[:, None, None] + 0.5 * np.arange(across)[None, :, None]  # [H, W, 1]
    waves = 127 + 60 * np.sin(along / (2 * width) + dice.uniform(0, 6, 3)) + dice.normal(0, 20, (height, across, 3))
    return waves.clip(0, 255).astype(np.uint8)


def cut_mnist(root: Path, target: Path, counts: dict[str, int]) -> None:
    """Copy the first images of MNIST, since the neighbours of all of them take longer than the training here.

    Args:
        root: torchvision root with MNIST.
        target: torchvision root to be made.
        counts: images of each split, by the split's name in the files.
    """
    (target / _RAW).mkdir(parents=True)
    for split, count in counts.items():
        for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
            content = (root / _RAW / name).read_bytes()
            dimensions = content[3]  # the format: magic with the number of dimensions, their sizes, bytes
            begin = 4 + 4 * dimensions
            _, *item = struct.unpack(f">{dimensions}I", content[4:begin])
            header = content[:4] + struct.pack(f">{dimensions}I", count, *item)
            (target / _RAW / name).write_bytes(header + content[begin : begin + count * math.prod(item)])


_RAW = Path("MNIST") / "raw"


def has_mnist(root: Path) -> bool:
    """Tell whether a folder is a torchvision root with MNIST."""
    return (root / _RAW / "train-images-idx3-ubyte").is_file()


# --------------------------------------------------------------------------------------------------- the two revisions


class UnknownRevision(Exception):
    """Git cannot check a revision out; the message is its own."""


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out into a folder, and leave no trace of it at the end. Raises UnknownRevision."""
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    try:
        completed = git(["git", "worktree", "add", "--detach", str(folder), revision])
        if completed.returncode:
            raise UnknownRevision(completed.stderr.strip())
        yield folder
    finally:
        git(["git", "worktree", "remove", "--force", str(folder)])
        git(["git", "worktree", "prune"])


def imported_package(tree: Path) -> Path:
    """Return the folder that a process of this tree imports the package from.

    Raises AssertionError where that is in another tree.
    """
    command = [sys.executable, "-c", "import moco_dist; print(moco_dist.__file__)"]
    completed = subprocess.run(command, cwd=tree, env=environment_of(tree), capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    package = Path(completed.stdout.strip()).resolve().parent
    assert package.is_relative_to(tree.resolve()), f"the package of {tree} is hidden by {package}"
    return package


def later(tree: Path) -> dict[str, Any]:
    """Return those of LATER whose keys a tree has."""
    command = [sys.executable, "-m", "moco_dist.train", "--help"]
    usage = subprocess.run(command, cwd=tree, env=environment_of(tree), capture_output=True, text=True, check=True)
    return {key: value for key, value in LATER.items() if key in usage.stdout}


def train(scenario: Scenario, trees: dict[str, Path], folder: Path) -> None:
    """Train a scenario in both trees side by side, killed once and resumed, then evaluate it.

    Raises:
        AssertionError: a run does not do what any revision promises; with its log.
    """
    folder.mkdir(parents=True)
    settings = {**SETTINGS, **scenario.settings, "optim.steps": scenario.steps}
    # The semi-supervised method would take minutes.
    options = ["--knn", "--linear", "--labels", str(scenario.labels), "--no-semi"]
    with ExitStack() as stack:
        of_sides = {side: {**settings, **later(tree)} for side, tree in trees.items()}

        def start(side: str, ranks: int, **how: Any) -> Job:
            return stack.enter_context(Job(folder / side, ranks, of_sides[side], tree=trees[side], **how))

        jobs = [start(side, scenario.ranks) for side in SIDES]
        kill(jobs, scenario)
        kept = {side: saved_rows(folder / side) for side in SIDES}
        finish([start(side, scenario.ranks) for side in SIDES])
        for side, before in kept.items():  # rows have wall-clock figures: steps done again have others
            after = [row for row in rows(folder / side) if "loss" in row]
            assert before == after[: len(before)], f"{folder / side} began anew, it did not resume"
        module = "moco_dist.evaluate"
        finish([start(side, 0, module=module, arguments=[str(folder / side), *options]) for side in SIDES])


def kill(jobs: Sequence[Job], scenario: Scenario) -> None:
    """SIGKILL all ranks of each job, as soon as it has done so many steps and left a checkpoint."""
    waiting, deadline = list(jobs), time.monotonic() + START_SECONDS
    while waiting:
        for job in list(waiting):
            ended = job.process.poll() is not None
            assert not ended, f"{job.run_dir} ended before it was killed:\n{job.log}"
            assert time.monotonic() < deadline, f"{job.run_dir} is not at step {scenario.kill_after} yet:\n{job.log}"
            if last_step(job.run_dir) >= scenario.kill_after and checkpoints(job.run_dir):
                victims = job.ranks()
                assert len(victims) == scenario.ranks, f"{job.run_dir} has the ranks {sorted(victims)}:\n{job.log}"
                for pid in victims.values():
                    send(pid, signal.SIGKILL)
                waiting.remove(job)
        time.sleep(0.01)
    for job in jobs:
        assert job.wait(END_SECONDS) != 0, f"{job.run_dir} ended well without its ranks:\n{job.log}"
        job.until_gone(END_SECONDS)
        assert last_step(job.run_dir) < scenario.steps, f"{job.run_dir} was at its end before it was killed"


def saved_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The training rows up to the last checkpoint, which a resumed run leaves as they are."""
    step = int(checkpoints(run_dir)[-1].stem.removeprefix("step_"))
    return [row for row in rows(run_dir) if "loss" in row and row["step"] <= step]


def finish(jobs: Sequence[Job]) -> None:
    """Let jobs run to a good end. Raises AssertionError."""
    for job in jobs:
        code = job.wait(START_SECONDS)
        assert code == 0, f"{job.run_dir}: exit status {code}:\n{job.log}"
        job.until_gone(END_SECONDS)


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    """Compare as the arguments say. Returns 0 where all is equal, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_curve", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", required=True, metavar="REV", help="git revision to compare this tree with")
    parser.add_argument("--scenario", action="append", choices=NAMES, help="may be given more than once; default: all")
    text = "convolutions of one pixel are torch's own in both trees"
    parser.add_argument("--plain-convolutions", action="store_true", help=text)
    parser.add_argument("--mnist", type=Path, help="torchvision root of MNIST; default: ../shared/data/mnist")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep runs and images in this new folder")
    options = parser.parse_args(arguments)
    if options.mnist and not has_mnist(options.mnist):
        parser.error(f"--mnist {options.mnist}: holds no MNIST of torchvision's layout")
    if options.keep and options.keep.exists():
        parser.error(f"--keep {options.keep}: is there already")
    mnist = options.mnist or ROOT.parent / "shared" / "data" / "mnist"
    for number in _ENDINGS:
        signal.signal(number, _end)
    with tempfile.TemporaryDirectory(prefix="moco-dist-curve-") as aside:
        if options.plain_convolutions:
            at_start(PLAIN_CONVOLUTIONS, Path(aside) / "at_start")
        folder = (options.keep or Path(aside) / "runs").resolve()
        try:
            with checkout(options.against, Path(aside) / "tree") as other:
                trees = dict(zip(SIDES, (ROOT, other), strict=True))
                for side, tree in trees.items():
                    print(f"{side}: {imported_package(tree)}", flush=True)
                chosen = scenarios(folder / "data", mnist if has_mnist(mnist) else None)
                chosen = [scenario for scenario in chosen if scenario.name in (options.scenario or NAMES)]
                return 0 if all_equal(chosen, trees, folder) else 1
        except UnknownRevision as error:
            parser.error(f"--against {options.against}: {error}")


def at_start(lines: str, folder: Path) -> None:
    """Have every process that is started from now on run some lines of Python first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(lines)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End in order: jobs and checkout go. A second signal must not break that off."""
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)


def all_equal(chosen: Sequence[Scenario], trees: dict[str, Path], folder: Path) -> bool:
    """Train and compare scenarios, print the table; True where nothing differs."""
    table = Table("scenario", "ranks", *(column.replace(" ", "\n") for column in COLUMNS), box=None)
    details, good = [], True
    for scenario in chosen:
        began, title = time.monotonic(), f"{scenario.name}:\n{scenario.about}".replace(", ", ",\n")
        try:
            train(scenario, trees, folder / scenario.name)
            verdicts = compare(*(folder / scenario.name / side for side in SIDES))
            table.add_row(title, str(scenario.ranks), *(verdict.cell for verdict in verdicts.values()))
            details += [f"{scenario.name}, {name}: {line}" for name, v in verdicts.items() for line in v.lines()]
            good = good and all(verdict.equal for verdict in verdicts.values())
        except AssertionError as error:
            print(error)
            table.add_row(title, str(scenario.ranks), *["FAILED"] * len(COLUMNS))
            good = False
        print(f"{scenario.name}: {time.monotonic() - began:.0f} s", flush=True)
    Console(width=200).print(table)
    print("\n".join([*details, "all equal" if good else "NOT equal"]))
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
