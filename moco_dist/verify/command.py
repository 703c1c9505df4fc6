"""Replay recorded steps of a run on this machine, and say whether they come out equal to the bit.

python -m moco_dist.verify RUN_DIR [--steps N] [--from STEP] [--out PATH] [section.key=value ...]
torchrun --nproc_per_node=4 -m moco_dist.verify RUN_DIR [...]

The steps begin from a checkpoint that the run keeps, or from step 0. The run is only read, and may go on. Overrides
say where this machine has the data, or how it computes; what would change the curve is refused. Exits with 0 where all
is equal, 1 where something differs, 2 after a mistake. docs/reproducibility.md explains the JSON that it writes.
"""

from collections.abc import Sequence

from moco_dist.arguments import refused_once
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank
from moco_dist.verify import request as requests


def run(arguments: Sequence[str]) -> int:
    """Verify as the arguments of the command line say. Returns the exit status; raises whatever else goes wrong."""
    rank = Rank(0, 1, 0)  # who tells that the environment is wrong
    try:
        rank = Rank.from_environment(arguments)
        request = requests.parse(arguments, rank, __doc__)
    except UserError as error:
        return refused_once("moco_dist.verify", error, rank)
    from torch.distributed.elastic.multiprocessing.errors import record

    from moco_dist.verify import process

    exit_status = record(process.run)(request, rank)
    assert exit_status is not None
    return exit_status
