"""Measure what a run has learned: kNN, linear probe, few labels, and the supervised baseline beside them.

python -m moco_dist.evaluate RUN_DIR [--knn] [--linear] [--labels N] [...] [section.key=value ...]
python -m moco_dist.evaluate WEIGHTS CONFIG.yaml data.root=FOLDER [...]
torchrun --nproc_per_node=4 -m moco_dist.evaluate RUN_DIR [...]

A table on the terminal; evaluation.json and evaluation/ (pictures; a cell for each draw, so that a broken-off
evaluation goes on) in the run directory. Ranks share the work, and change no figure.
"""

from collections.abc import Sequence

from moco_dist.arguments import refused_once
from moco_dist.errors import UserError
from moco_dist.evaluate import options as command_line
from moco_dist.ranks.rank import Rank


def run(arguments: Sequence[str]) -> int:
    """Evaluate as the arguments of the command line say. Returns the exit status; raises whatever else goes wrong."""
    rank = Rank(0, 1, 0)  # who tells that the environment is wrong
    try:
        rank = Rank.from_environment(arguments)
        options = command_line.parse(arguments, __doc__)
        config = command_line.load_config(options)
    except UserError as error:
        return refused_once("moco_dist.evaluate", error, rank)
    from torch.distributed.elastic.multiprocessing.errors import record

    from moco_dist.evaluate import process

    return record(process.run)(options, config, rank) or 0
