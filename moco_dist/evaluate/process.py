"""The life of one evaluating process: from valid options to its exit status."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from moco_dist import packages
from moco_dist.config import Config
from moco_dist.data.loader import no_workers_left
from moco_dist.errors import UserError
from moco_dist.evaluate import all_labels, features, few, methods, results
from moco_dist.evaluate.cells import Cell, Cells, Key, digest
from moco_dist.evaluate.methods import EvaluationMethod
from moco_dist.evaluate.options import Options, refuse
from moco_dist.evaluate.subject import Subject, open_subject
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.start import start
from moco_dist.run.paths import EVALUATION, EVALUATION_TABLE, RunPaths

LIBRARIES = "torch", "scipy", "scikit-learn"
"""Libraries whose versions all figures depend on."""

_PATIENCE_SECONDS = 24 * 3600.0
"""Ranks wait for one another between draws, which may take long; a rank that dies takes the others along at once."""


@no_workers_left()
def run(options: Options, config: Config, rank: Rank) -> int:
    """Evaluate on all ranks.

    Args:
        options: what the command line asks for.
        config: of the run that is evaluated.
        rank: this process.

    Returns:
        The exit status; raises whatever else goes wrong.
    """
    world: World | None = None
    try:
        world = start(config, rank, _PATIENCE_SECONDS)
        try:
            evaluate(options, config, world)
        finally:
            world.leave()
        return 0
    except UserError as error:
        return refuse(rank, error, met=world is not None)


def evaluate(options: Options, config: Config, world: World) -> None:
    """Evaluate on ranks that have met. Raises UserError."""
    evaluation = Evaluation(options, open_subject(options.path, config, world, options.features))
    out = options.out or (options.path if options.path.is_dir() else options.path.parent)
    with writing(out):
        cache = world.from_first(lambda: Cells(RunPaths(out).evaluation))
    cells = [evaluation.cells_of(method, cache) for method in evaluation.methods]
    with writing(out):
        world.from_first(lambda: report(options.path, evaluation, cells, out))


def report(path: Path, evaluation: Evaluation, cells: Sequence[Sequence[Cell]], out: Path) -> None:
    """Print the table, write evaluation.json and draw the pictures, on rank 0 alone. Raises OSError."""
    from moco_dist.evaluate import pictures

    subject = evaluation.subject
    rows = [results.row(of_method) for of_method in cells]
    about = {"weights": subject.digest, "split": subject.split, "held_out": len(subject.held_out)}
    about["settings"] = evaluation.all_settings
    results.write(RunPaths(out).evaluation_table, rows, about)
    pictures.draw(subject, rows, cells, path, RunPaths(out).evaluation)
    results.show(rows, subject.split, f"{path}: {len(subject.held_out)} {subject.split} images")
    print(f"results: {out} ({EVALUATION_TABLE}, {EVALUATION}/)")


class Evaluation:
    """The methods that the options ask for, tried on one subject by all ranks together. Raises UserError."""

    def __init__(self, options: Options, subject: Subject) -> None:
        self.subject, self.world = subject, subject.world
        self.methods = methods.table_of(options, subject)

    def cells_of(self, method: EvaluationMethod, cache: Cells) -> list[Cell]:
        """Compute the cells that are missing. Returns all of the method, one a draw, the same on all ranks."""
        by_draw = {number: cache.get(self.key(method, number)) for number in range(method.draws)}
        missing = [number for number, cell in by_draw.items() if cell is None]
        if missing:
            method.before()
        at_once = 1 if method.labels is None else self.world.size
        for first in range(0, len(missing), at_once):
            computed = self._compute(method, missing[first : first + at_once])
            by_draw |= {cell.key.draw: cell for cell in computed}
            with writing(cache.path):
                self.world.from_first(functools.partial(cache.add, computed))
        return [cell for cell in by_draw.values() if cell]

    def _compute(self, method: EvaluationMethod, numbers: Sequence[int]) -> list[Cell]:
        def cell(number: int) -> Cell:
            began = time.perf_counter()
            outcome = method.run(number)
            seconds = time.perf_counter() - began
            accuracy = self.subject.accuracy(outcome.predicted)
            return Cell(self.key(method, number), accuracy, seconds, outcome.notes, outcome.predicted.tolist())

        return [cell(n) for n in numbers] if method.labels is None else self.world.share_out(numbers, cell)

    def key(self, method: EvaluationMethod, number: int) -> Key:
        """Return the key of a draw's cell."""
        settings = digest(self.settings, *method.settings)
        return Key(method.name, method.labels, number, self.subject.split, settings)

    @cached_property
    def settings(self) -> str:
        """Digest of what all figures depend on: weights, images, config, versions, and how features are computed."""
        s, config = self.subject, self.subject.config
        sections = config.model_dump(mode="json", include={"data": True, "model": True})
        for free in ("root", "workers", "download"):
            del sections["data"][free]
        images = [source.digest() + source.sample_digest() for source in (s.train, s.held_out)]
        text, revision = json.dumps(sections, sort_keys=True), features.REVISION
        libraries = packages.versions(*LIBRARIES)
        return digest(s.digest, *images, config.run.seed, text, revision, *libraries)

    @property
    def all_settings(self) -> str:
        """Digest of what the figures of any method depend on: the rows of a file are made alike."""
        section = self.subject.config.eval
        return digest(self.settings, section.knn_k, section.knn_temperature, all_labels.REVISIONS, few.REVISIONS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of writing within the block into the user's mistake. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError.of("--out", path, f"cannot be written: {error.strerror}", "give another --out DIR") from None
