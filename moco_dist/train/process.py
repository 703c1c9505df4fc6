"""The life of one training process: from a valid config to its exit status."""

import functools
import sys
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from moco_dist import tracking
from moco_dist.config import Config, Layout
from moco_dist.data import loader, sources
from moco_dist.errors import UserError, masked
from moco_dist.ranks import collectives, transfers, watchdog
from moco_dist.ranks.rank import Rank
from moco_dist.run import directory, status
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.train import beginning, ends, loop, restarts


@loader.no_workers_left()
def run(
    config: Config,
    plan: Layout,
    rank: Rank,
    run_dir: directory.RunDirectory,
    make_method: loop.MakeMethod,
    met: Callable[[collectives.World], None] = lambda world: None,
) -> int:
    """Train to the end of the run, to a request to stop, or to a mistake of the user's.

    Args:
        config: of the run.
        plan: how its batch lies on the ranks.
        rank: this process.
        run_dir: its run directory, not opened yet.
        make_method: makes what is trained.
        met: called on all ranks once they have met.

    Returns:
        The exit status; raises whatever else goes wrong.
    """
    world: collectives.World | None = None
    try:
        tracking.check(config, rank.rank)
        last = functools.partial(last_words, run_dir, rank)
        world = collectives.World.start(config, rank, config.run.hang_timeout_seconds, last)
        met(world)
        data = sources.on_all_ranks(config, world, sources.load)
        config = sources.with_statistics(config, data.train)
        start = world.from_first(lambda: beginning.first_weights(config, CheckpointIndex(run_dir.paths.checkpoints)))
        encoder = world.agreed(lambda: beginning.first_encoder(config, data, world, start))
        watchdog.beat()
        stop = ends.StopRequest(config.run.max_minutes)  # not before: a start that is broken off must end at once
        world.from_first(run_dir.open)
        run_dir.ours = True
        with loader.heeding(stop.raised):
            loop.Training(config, world, plan, data, encoder, make_method, run_dir, stop).run()
        world.barrier()  # rank 0 has closed its books: now torchrun may end the others
        return 0
    except UserError as error:
        return restarts.refuse(rank, run_dir, error, met=world is not None)
    except ends.StoppedAlone as end:
        run_dir.stopped_alone(end.step, str(end))
        print(f"moco_dist.train: rank {rank.rank}: {end}", file=sys.stderr, flush=True)
        return restarts.end_for_good(rank, status.EXIT_CODES[end.state], alone=True)
    except ends.Ended as end:
        rank.tell(f"moco_dist.train: {end}")
        code = restarts.end_for_good(rank, status.EXIT_CODES[end.state])
        assert world is not None
        world.barrier()
        return code
    except Exception as error:
        if _hides_traceback(run_dir, rank, error):
            return status.EXIT_CODES["crashed"]
        raise
    except BaseException as error:
        run_dir.crashed(rank.rank, error)
        raise
    finally:
        run_dir.close()
        if world is not None:
            world.leave()


def _hides_traceback(run_dir: directory.RunDirectory, rank: Rank, error: Exception) -> bool:
    """Tell on one line why this rank fails. Returns whether no traceback is to follow, since another rank has it.

    A rank that has lost another one, or that fails as another one has, would only hide the cause behind its traceback.
    """
    if isinstance(error.__cause__, transfers.PeerLost):  # rank 0's error: that rank tells it
        transfers.let_the_cause_show()
    first, own = run_dir.crashed(rank.rank, error), directory.cause(error)
    lost = isinstance(error, transfers.PeerLost)
    same = first.partition(": ")[2] == own
    why = f"ends, since {first or error}" if lost else f"fails as {first}" if same else own
    print(masked(f"moco_dist.train: rank {rank.rank}: {why}"), file=sys.stderr, flush=True)
    if same and not lost:
        transfers.let_the_cause_show()
    return lost or same


def last_words(run_dir: directory.RunDirectory, rank: Rank, hang: watchdog.Hang) -> None:
    """Leave the cause of a hang where scripts and torchrun look for it."""
    run_dir.crashed(rank.rank, hang)
    try:
        raise hang
    except watchdog.Hang:  # the handler records what is being handled
        get_error_handler().record_exception(hang)
