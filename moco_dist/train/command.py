"""Train an encoder, or go on with a run.

torchrun --nproc_per_node=4 -m moco_dist.train [CONFIG.yaml] [section.key=value ...]

Without a CONFIG, it is `digits`. Of two overrides of one key the last one counts. RUN_DIR/config.yaml goes on with the
run in that directory. The values below are those of keys that a config leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank
from moco_dist.run.directory import RunDirectory, load_config
from moco_dist.train import restarts

if TYPE_CHECKING:
    from moco_dist.ranks.collectives import World
    from moco_dist.train.loop import MakeMethod


def run(
    arguments: Sequence[str],
    *,
    supervised: bool = False,
    goes_on_by: str = "the same command",
    make_method: MakeMethod | None = None,
    met: Callable[[World], None] = lambda world: None,
) -> int:
    """Train as the arguments say, or print what they may say.

    Args:
        arguments: of the command line.
        supervised: whether someone who reads status.json decides on restarts; else, under torchrun alone, a start
            after one that ended for good ends at once.
        goes_on_by: what a person types to go on with the run when it has been stopped.
        make_method: makes what is trained; None: the MoCo of the config.
        met: called on all ranks once they have met, ahead of all training.

    Returns:
        The exit status; raises whatever else goes wrong.
    """
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        print(configs.usage())
        return 0
    rank, run_dir = Rank(0, 1, 0), None  # who tells that the environment is wrong
    try:
        rank = Rank.from_environment(arguments)
        if not supervised and (code := restarts.ended_already(None)):
            return code
        config = load_config(*configs.parse_arguments(arguments))
        if not supervised and (code := restarts.ended_already(config.run_dir)):
            return code
        run_dir = RunDirectory(config.run_dir, goes_on_by)
        plan = configs.layout(config, rank.size)
    except UserError as error:
        return restarts.refuse(rank, run_dir, error)
    from torch.distributed.elastic.multiprocessing.errors import record

    from moco_dist.methods.moco import MoCo
    from moco_dist.train import process

    exit_status = record(process.run)(process.Start(config, plan, rank, run_dir), make_method or MoCo, met)
    assert exit_status is not None
    return exit_status
