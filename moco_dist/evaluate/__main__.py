"""What a run has learned: kNN, linear probe, few labels, and the supervised baseline beside them.

python -m moco_dist.evaluate RUN_DIR [--knn] [--linear] [--labels N] [...] [section.key=value ...]
python -m moco_dist.evaluate WEIGHTS CONFIG.yaml data.root=FOLDER [...]
torchrun --nproc_per_node=4 -m moco_dist.evaluate RUN_DIR [...]

A table on the terminal; evaluation.json and evaluation/ (pictures; a cell for each draw, so that a broken-off
evaluation goes on) in the run directory. Ranks share the work, and change no figure.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import math
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import record

from moco_dist import data, randomness
from moco_dist.config import Config
from moco_dist.data.loader import no_workers_left
from moco_dist.errors import UserError
from moco_dist.evaluate import classifier, features, few, knn, linear, plots, propagation, results, sgd_probe, subject
from moco_dist.evaluate import labels as few_labels
from moco_dist.evaluate.few import FewLabels, Outcome
from moco_dist.evaluate.linear import Probe
from moco_dist.evaluate.results import Cell, Cells, Key
from moco_dist.evaluate.subject import Subject
from moco_dist.networks import batchnorm
from moco_dist.networks import resnet as encoders
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.start import start
from moco_dist.run import status
from moco_dist.run.rows import read_rows

VALIDATION_FRACTION = 0.1
"""Part of the labelled images that chooses the regularisation of the probe on all of them."""

_SHOWN = 100
"""Wrong images in the picture of them, at most."""

_PATIENCE_SECONDS = 24 * 3600.0
"""Ranks wait for one another between draws, which may take long; a rank that dies takes the others along at once."""


class _Parser(argparse.ArgumentParser):
    """A mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line. It raises UserError."""
    p = _Parser(
        prog="python -m moco_dist.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("path", metavar="RUN_DIR|WEIGHTS", type=Path, help="a run directory, or .safetensors or .pt")
    p.add_argument("config", nargs="*", metavar="CONFIG.yaml|section.key=value", help="as for the trainer")
    p.add_argument("--knn", action="store_true", help="weighted kNN with eval.knn_k and eval.knn_temperature")
    p.add_argument("--linear", action="store_true", help="linear probe on the features of all labelled images")
    p.add_argument("--solver", choices=("auto", "lbfgs", "sgd"), default="auto", help="of --linear; auto: by memory")
    p.add_argument("--features", choices=("backbone", "head"), default="backbone", help="of --knn and --linear")
    few_ = p.add_mutually_exclusive_group()
    few_.add_argument("--labels", type=int, metavar="N", help="few labels: N images, equally many of each class")
    few_.add_argument("--label-fraction", type=float, metavar="F", help="the same, as a part of the labelled images")
    p.add_argument("--draws", type=int, metavar="D", help="draws of the few labels (1)")
    p.add_argument("--finetune", action="store_true", help="fine-tune the encoder on the few labels")
    p.add_argument("--supervised", action="store_true", help="the baseline: from scratch on the same labels")
    p.add_argument("--no-semi", dest="semi", action="store_false", help="without the semi-supervised method")
    p.add_argument(
        "--split", choices=("test", "validation"), default="test", help="judge by it; validation: for tuning"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where results go; RUN_DIR, or beside the weights")
    return p


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    labels: int | None
    draws: int
    run: Callable[[int], Outcome]
    """A draw, by its number."""
    before: Callable[[], object]
    """What the ranks compute together before the first draw, and all draws share."""
    together: bool
    """Whether the ranks work on one draw together, or each on its own."""
    uses: Sequence[object]
    """What its figures depend on, beside the encoder and the images."""


class Evaluation:
    """What was asked for, of one subject. All ranks make it together. Raises UserError."""

    def __init__(self, asked: argparse.Namespace, subject_: Subject) -> None:
        self.asked, self.subject, self.world = asked, subject_, subject_.world
        self.shares = functools.cache(subject_.shares)
        self.methods = self._methods()

    def _methods(self) -> list[Method]:
        """The cheap first."""
        asked, count = self.asked, self._label_count()
        nothing = not (asked.knn or asked.linear or count)
        chosen: list[Method] = []
        if asked.knn or nothing:
            chosen.append(self._of_knn())
        if asked.linear or nothing:
            chosen.append(self._of_linear())
        return chosen if count is None else [*chosen, *self._of_few_labels(count, asked.draws or 1)]

    def _of_layer(self) -> tuple[str, list[object]]:
        """What the name of a method of --features has at its end, and what its figures depend on."""
        layer = self.asked.features
        return ("", [layer]) if layer == "backbone" else (f" ({layer})", [layer, self.subject.head_digest])

    def _of_knn(self) -> Method:
        of, (layer, uses) = self.subject.config.eval, self._of_layer()
        uses = [*uses, of.knn_k, of.knn_temperature, _code(knn)]
        before = functools.partial(self.shares, self.asked.features)
        return Method(f"kNN{layer}", None, 1, self._knn, before, together=True, uses=uses)

    def _of_linear(self) -> Method:
        layer, uses = self._of_layer()
        if self._fits():
            uses = [*uses, VALIDATION_FRACTION, _code(linear, few_labels)]
            before = functools.partial(self.shares, self.asked.features)
            return Method(f"linear{layer}", None, 1, self._linear, before, together=True, uses=uses)
        recipe = self._recipe()
        run, uses = functools.partial(self._linear_by_sgd, recipe), [*uses, recipe, _code(sgd_probe)]
        return Method(f"linear by SGD{layer}", None, 1, run, lambda: None, together=True, uses=uses)

    def _of_few_labels(self, count: int, draws: int) -> Iterator[Method]:
        asked, s = self.asked, self.subject
        few_labels.draw(s.train_labels, s.classes, count, 0, 0)  # told before long work
        f = FewLabels(s, functools.partial(self.shares, "backbone"), count, draws)
        uses = [s.labelled_augmentation.recipe, _code(few, few_labels, linear, propagation, classifier)]

        def method(name: str, run: Callable[[int], Outcome], before: Callable[[], object]) -> Method:
            return Method(name, count, draws, run, before, together=False, uses=uses)

        yield method("linear", f.linear, lambda: (f.labelled, f.held_out))
        if asked.finetune:
            yield method("fine-tuned", f.fine_tuned, lambda: f.labelled)
        if asked.semi:
            yield method("semi-supervised", f.semi_supervised, lambda: (f.labelled, f.graphs))
        if asked.supervised:
            yield method(f"supervised {s.config.model.arch}", f.supervised, lambda: None)
            yield method("supervised small net", f.supervised_small, lambda: None)

    def _label_count(self) -> int | None:
        fraction: float | None = self.asked.label_fraction
        if fraction is None:
            count: int | None = self.asked.labels
            return count
        if not 0 < fraction <= 1:
            raise UserError.of("--label-fraction", fraction, "must be above 0 and at most 1", "0.01 is one percent")
        images, classes = len(self.subject.train), self.subject.classes
        count = round(fraction * images)
        if count < classes:
            rule = f"is {count} of {images} images, and there are {classes} classes"
            unit = 10.0 ** (math.floor(math.log10(classes / images)) - 1)  # two digits, rounded up
            enough = math.ceil(classes / images / unit) * unit
            raise UserError.of("--label-fraction", fraction, rule, f"use {enough:.2g} or more")
        return count

    def _knn(self, draw: int) -> Outcome:
        bank, held_out = self.shares(self.asked.features)
        of, world = self.subject.config.eval, self.world
        share = bank.rows, bank.labels, bank.indices
        queries = held_out.gathered(world).rows
        return Outcome(knn.predict(queries, *share, k=of.knn_k, temperature=of.knn_temperature, world=world).cpu())

    def _linear(self, draw: int) -> Outcome:
        classes, world = self.subject.classes, self.world
        train, held_out = (share.gathered(world) for share in self.shares(self.asked.features))
        fold = few_labels.held_out(train.labels.numpy(), VALIDATION_FRACTION, self.subject.config.run.seed)
        decay, accuracy = linear.choose_decay(train.rows, train.labels, classes, [fold], world)

        def on_cpu() -> Probe:  # what a rank sends to the others would keep the number of its GPU
            return Probe(*(t.cpu() for t in linear.fit(train.rows, train.labels, classes, decay)))

        probe = Probe(*(t.to(world.device) for t in world.from_first(on_cpu)))
        return Outcome(probe.predict(held_out.rows).cpu(), {"decay": decay, "validation": accuracy})

    def _fits(self) -> bool:
        """Whether every rank can hold the features of all images, and as much again while they are sorted."""
        if self.asked.solver != "auto":
            return bool(self.asked.solver == "lbfgs")
        wanted = 2 * 4 * len(self.subject.train) * self.subject.feature_dim(self.asked.features)
        return all(self.world.gather_objects(wanted < devices.memory(self.world.device)))

    def _recipe(self) -> sgd_probe.Recipe:
        s = self.subject
        batch = -(-sgd_probe.Recipe().batch // s.world.size) * s.world.size  # of the ranks' equal shares
        if len(s.train) < batch:
            rule = f"the training set has {len(s.train)} images, less than one batch of {batch}"
            raise UserError.of("--solver", "sgd", rule, "use --solver lbfgs")
        return sgd_probe.Recipe(batch=batch, flip=s.augmentation.recipe.flip)  # no flip where MoCo had none

    def _linear_by_sgd(self, recipe: sgd_probe.Recipe, draw: int) -> Outcome:
        s, layer, data = self.subject, self.asked.features, self.subject.config.data
        epoch_steps = recipe.steps(len(s.train)) // recipe.epochs

        def progress(step: int, lr: float, loss: torch.Tensor) -> None:
            if step % (10 * epoch_steps) == 0:
                told = f"epoch {step // epoch_steps} of {recipe.epochs}, loss {float(loss):.4f}"
                s.world.tell(f"moco_dist.evaluate: linear probe by SGD, {told}")

        probe = sgd_probe.fit(
            s.encode(layer),
            s.train,
            s.classes,
            s.feature_dim(layer),
            s.world,
            size=data.image_size,
            augmentation=s.augmentation,
            dtype=torch.float32,
            seed=s.config.run.seed,
            recipe=recipe,
            workers=data.workers,
            progress=progress,
        )
        return Outcome(s.classify(lambda images: probe.logits(s.encode(layer)(images)), s.world))

    def run(self, cells: Cells) -> list[dict[str, Any]]:
        """Compute what is missing, draw by draw. Returns the rows, the same on all ranks."""
        rows = []
        for method in self.methods:
            known = {n: cells.get(self.key(method, n)) for n in range(method.draws)}
            missing = [number for number, cell in known.items() if cell is None]
            if missing:
                method.before()
            at_once = 1 if method.together else self.world.size
            for first in range(0, len(missing), at_once):
                found = self._cells(method, missing[first : first + at_once])
                known |= {cell.key.draw: cell for cell in found}
                with writing(cells.path):
                    self.world.from_first(functools.partial(cells.add, found))
            rows.append(results.row([cell for cell in known.values() if cell]))
        return rows

    def _cells(self, method: Method, numbers: Sequence[int]) -> list[Cell]:
        def cell(number: int) -> Cell:
            began = time.perf_counter()
            outcome = method.run(number)
            seconds = time.perf_counter() - began
            accuracy = self.subject.accuracy(outcome.predicted)
            return Cell(self.key(method, number), accuracy, seconds, outcome.notes, outcome.predicted.tolist())

        return [cell(n) for n in numbers] if method.together else self.world.share_out(numbers, cell)

    def key(self, method: Method, number: int) -> Key:
        """Of a draw's cell."""
        settings = results.digest(self.settings, *method.uses)
        return Key(method.name, method.labels, number, self.subject.split, settings)

    @cached_property
    def settings(self) -> str:
        """Digest of what all figures depend on: weights, images, code."""
        s, config = self.subject, self.subject.config
        kept = config.model_dump(mode="json", include={"data": True, "model": True})
        for free in ("root", "workers", "download"):
            del kept["data"][free]
        images = [source.digest() for source in (s.train, s.held_out)]
        of_images = (importlib.import_module(f"{data.__name__}.{m.name}") for m in pkgutil.iter_modules(data.__path__))
        code = _code(subject, features, encoders, batchnorm, *of_images, randomness)
        return results.digest(s.digest, *images, config.run.seed, json.dumps(kept, sort_keys=True), code)

    @property
    def all_settings(self) -> str:
        """Digest of what the figures of any method depend on: the rows of a file are made alike."""
        of = self.subject.config.eval
        code = _code(knn, linear, sgd_probe, few_labels, few, propagation, classifier)
        return results.digest(self.settings, of.knn_k, of.knn_temperature, code)


def _code(*modules: ModuleType) -> str:
    """Digest of modules: what other code has computed is computed again."""
    return results.digest(*(inspect.getsource(module) for module in modules))


def evaluate(arguments: Sequence[str], rank: Rank) -> None:
    """Do what was asked for, on all ranks. Raises UserError."""
    asked = parser().parse_intermixed_args(arguments)
    _check(asked)
    config = subject.of_path(asked.path, asked.config, asked.split)
    world = start(config, rank, _PATIENCE_SECONDS)
    try:
        answer(asked, config, world)
    finally:
        world.leave()


def _check(asked: argparse.Namespace) -> None:
    """What of the options does not fit together. Raises UserError."""
    if asked.draws is not None and asked.draws < 1:
        raise UserError.of("--draws", asked.draws, "must be 1 or more", "drop it for one draw")
    if asked.labels is None and asked.label_fraction is None:
        for option in ("draws", "finetune", "supervised"):
            if given := getattr(asked, option):
                raise UserError.of(f"--{option}", given, "is about few labels", "add --labels N or --label-fraction F")


def answer(asked: argparse.Namespace, config: Config, world: World) -> None:
    """Evaluate on ranks that have met. Raises UserError."""
    opened = subject.open_subject(asked.path, config, world, asked.features)
    out: Path = asked.out or (asked.path if asked.path.is_dir() else asked.path.parent)
    evaluation = Evaluation(asked, opened)
    with writing(out):
        cells = world.from_first(lambda: Cells(out / "evaluation"))
    rows = evaluation.run(cells)
    with writing(out):
        world.from_first(lambda: report(evaluation, rows, cells, out))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written in here is the user's mistake."""
    try:
        yield
    except OSError as error:
        raise UserError.of("--out", path, f"cannot be written: {error.strerror}", "give another --out DIR") from None


def report(evaluation: Evaluation, rows: Sequence[dict[str, Any]], cells: Cells, out: Path) -> None:
    """Print the table, write evaluation.json, draw the pictures. Rank 0 alone. Raises OSError."""
    opened = evaluation.subject
    about = {"weights": opened.digest, "split": opened.split, "held_out": len(opened.held_out)}
    about["settings"] = evaluation.all_settings
    results.write(out / "evaluation.json", rows, about)
    pictures(evaluation, rows, cells, out)
    title = f"{evaluation.asked.path}: {len(opened.held_out)} {opened.split} images"
    Console().print(results.table(rows, opened.split, title))
    print(f"results: {out} (evaluation.json, evaluation/)")


def pictures(evaluation: Evaluation, rows: Sequence[dict[str, Any]], cells: Cells, out: Path) -> None:
    """Accuracies, the run's curves, and what the best method gets wrong. Raises OSError."""
    opened, folder = evaluation.subject, out / "evaluation"
    plots.accuracies(folder / "accuracies.png", rows, opened.split)
    if (metrics := evaluation.asked.path / "metrics.jsonl").is_file():
        plots.curves(folder / "curves.png", list(read_rows(metrics)))
    few_or_all = [row for row in rows if row["labels"]] or rows  # who asks for few labels wants to see their errors
    best = max(few_or_all, key=lambda row: row[f"{opened.split}_accuracy_mean"])
    method = next(m for m in evaluation.methods if (m.name, m.labels) == (best["method"], best["labels"]))
    cell = cells.get(evaluation.key(method, 0))
    assert cell is not None
    truth, predicted = opened.truth.numpy(), np.array(cell.predicted)
    wrong = np.flatnonzero(truth != predicted)
    shown, images = wrong[:_SHOWN], np.zeros((0, 1, 1, 1), dtype=np.uint8)
    if len(shown):
        images = opened.held_out.centred(shown, opened.config.data.image_size)[0].numpy()
    plots.confusion(folder / "confusion.png", truth, predicted, opened.class_names)
    pair = truth[shown], predicted[shown]
    plots.wrong_images(folder / "wrong.png", images, *pair, opened.class_names, len(wrong))


@no_workers_left()
def run(arguments: Sequence[str]) -> int:
    """Evaluate as the arguments say. Returns the exit status; raises whatever else goes wrong."""
    rank = Rank.from_environment()
    try:
        evaluate(arguments, rank)
        return 0
    except UserError as error:
        rank.tell(f"moco_dist.evaluate: {error}")
        rank.let_rank_0_end_first()
        return status.EXIT_CODES["user_error"]


@record
def main() -> None:
    """Entry point of `python -m moco_dist.evaluate`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
