"""The life of one evaluating process: from valid options to its exit status."""

from __future__ import annotations

from collections.abc import Sequence

from moco_dist.config import Config
from moco_dist.data.loader import no_workers_left
from moco_dist.errors import UserError
from moco_dist.evaluate import results
from moco_dist.evaluate.cells import Cell, Cells
from moco_dist.evaluate.evaluation import Evaluation, writing
from moco_dist.evaluate.options import Options, refuse
from moco_dist.evaluate.subject import open_subject
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.start import start

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
    try:
        world = start(config, rank, _PATIENCE_SECONDS)
        try:
            evaluate(options, config, world)
        finally:
            world.leave()
        return 0
    except UserError as error:
        return refuse(rank, error)


def evaluate(options: Options, config: Config, world: World) -> None:
    """Evaluate on ranks that have met. Raises UserError."""
    evaluation = Evaluation(options, open_subject(options.path, config, world, options.features))
    with writing(options.out_folder):
        cache = world.from_first(lambda: Cells(options.out_folder / "evaluation"))
    cells = evaluation.run(cache)
    with writing(options.out_folder):
        world.from_first(lambda: report(options, evaluation, cells))


def report(options: Options, evaluation: Evaluation, cells: Sequence[Sequence[Cell]]) -> None:
    """Print the table, write evaluation.json and draw the pictures, on rank 0 alone. Raises OSError."""
    from rich.console import Console

    from moco_dist.evaluate import pictures

    subject, out = evaluation.subject, options.out_folder
    rows = [results.row(of_method) for of_method in cells]
    about = {"weights": subject.digest, "split": subject.split, "held_out": len(subject.held_out)}
    about["settings"] = evaluation.all_settings
    results.write(out / "evaluation.json", rows, about)
    pictures.draw(subject, rows, cells, options.path, out / "evaluation")
    title = f"{options.path}: {len(subject.held_out)} {subject.split} images"
    Console().print(results.table(rows, subject.split, title))
    print(f"results: {out} (evaluation.json, evaluation/)")
