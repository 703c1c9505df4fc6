"""Run one training process: from a valid config to its exit status, or for a caller in the process."""

import functools
import signal
import time
import traceback
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from moco_dist import tracking
from moco_dist.config import Config, Layout
from moco_dist.data import loader, sources
from moco_dist.errors import OwnMistake, UserError, masked, tell
from moco_dist.ranks import collectives, transfers, watchdog
from moco_dist.ranks.rank import Rank
from moco_dist.run import directory, status
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.train import ends, initial_encoder, loop, restarts


class Start:
    """A start is one launch of a run in this process: `train`, and `close` however that ends.

    Args:
        config: of the run.
        plan: how its batch lies on the ranks.
        rank: this process.
        run_dir: its run directory, not opened yet.
    """

    def __init__(self, config: Config, plan: Layout, rank: Rank, run_dir: directory.RunDirectory) -> None:
        self.config, self.plan, self.rank, self.run_dir = config, plan, rank, run_dir
        self.world: collectives.World | None = None
        """The ranks, once they have met."""
        self.stop: ends.StopRequest | None = None
        """The request to stop by a signal, which is heeded from the moment that there is something to save."""
        self.began = time.monotonic()
        self.alone = False
        """True where this rank ends without the others."""

    def train(
        self, make_method: loop.MakeMethod, met: Callable[[collectives.World], None] = lambda world: None
    ) -> None:
        """Train to the end of the run.

        Args:
            make_method: makes what is trained.
            met: called on all ranks once they have met.

        Raises:
            UserError: a mistake of the user's.
            Ended: the run ends before its last step.
        """
        config, rank, run_dir = self.config, self.rank, self.run_dir
        last = functools.partial(last_words, run_dir, rank)
        mistake = _mistake_in(lambda: tracking.check(config, rank.rank))  # it imports, for which no rank shall wait
        self.world = world = collectives.World.start(config, rank, config.run.hang_timeout_seconds, last)
        world.agreed(functools.partial(_refuse, mistake))
        met(world)
        data = sources.on_all_ranks(config, world, sources.load)
        config = sources.with_statistics(config, data.train)
        index = CheckpointIndex(run_dir.paths.checkpoints)
        first = world.from_first(lambda: initial_encoder.first_weights(config, index))
        encoder = world.agreed(lambda: initial_encoder.first_encoder(config, data, world, first))
        watchdog.beat()
        # Not before: a start that is broken off must end at once.
        self.stop = ends.StopRequest(config.run.max_minutes, self.began)
        run_dir.claim = world.from_first(run_dir.open)
        with loader.heeding(self.stop.raised):
            training = loop.Training(config, world, self.plan, data, encoder, make_method, run_dir, self.stop)
            training.open_tracker = functools.partial(tracking.Tracker.open, quiet=rank.quiet)
            training.run()
        world.barrier()  # rank 0 has closed its books: now torchrun may end the others

    def close(self) -> None:
        """Give the run directory back, and part from the other ranks."""
        self.run_dir.close()
        if self.world is not None:
            self.world.leave(alone=self.alone)


@loader.no_workers_left()
def run(
    start: Start, make_method: loop.MakeMethod, met: Callable[[collectives.World], None] = lambda world: None
) -> int:
    """Train to the end of the run, to a request to stop, or to a mistake of the user's.

    Args:
        start: this start of the run, which is closed at the end.
        make_method: makes what is trained.
        met: called on all ranks once they have met.

    Returns:
        The exit status; raises whatever else goes wrong.
    """
    rank, run_dir = start.rank, start.run_dir
    try:
        start.train(make_method, met)
        return 0
    except UserError as error:
        start.alone = isinstance(error, OwnMistake)
        return restarts.refuse(rank, run_dir, error, met=start.world is not None)
    except ends.StoppedAlone as end:
        start.alone = True
        run_dir.stopped_alone(end.step, str(end))
        tell(f"moco_dist.train: rank {rank.rank}: {end}")
        return restarts.end_for_good(rank, status.EXIT_CODES[end.state], alone=True)
    except ends.Ended as end:
        rank.tell(f"moco_dist.train: {end}")
        code = restarts.end_for_good(rank, status.EXIT_CODES[end.state])
        assert start.world is not None
        start.world.barrier()
        return code
    except Exception as error:
        start.alone = True
        if _hides_traceback(run_dir, rank, error):
            return status.EXIT_CODES["crashed"]
        raise
    except BaseException as error:
        start.alone = True
        run_dir.crashed(rank.rank, error)
        raise
    finally:
        start.close()


@loader.no_workers_left()
def call(start: Start, make_method: loop.MakeMethod) -> None:
    """Train as `run` does, for a caller that goes on in this process. The status tells the end in the same words.

    Args:
        start: this start of the run, which is closed at the end.
        make_method: makes what is trained.

    Raises:
        UserError: a mistake of the user's, on all ranks that have met.
        Ended: the run has ended before its last step.
        Exception: whatever else goes wrong.
    """
    rank, run_dir = start.rank, start.run_dir
    try:
        start.train(make_method)
    except UserError as error:
        start.alone = isinstance(error, OwnMistake)
        if start.alone or rank.speaks(met=start.world is not None):
            run_dir.refused(str(error))
        traceback.clear_frames(error.__traceback__)  # who keeps the error, as a notebook does, keeps no network by it
        raise
    except ends.Ended as end:
        end.run_dir = run_dir.folder
        if isinstance(end, ends.StoppedAlone):
            start.alone = True
            run_dir.stopped_alone(end.step, str(end))
        elif start.world is not None:
            start.world.barrier()
        traceback.clear_frames(end.__traceback__)
        raise
    except BaseException as error:
        start.alone = True
        _hides_traceback(run_dir, rank, error, say=lambda line: None)
        raise
    finally:
        try:
            start.close()
        finally:
            late = start.stop.put_back() if start.stop else None
    if late is not None:  # there was nothing left to stop: it means the caller
        signal.raise_signal(late)


def _mistake_in(action: Callable[[], None]) -> UserError | None:
    """Run an action, and return the user's mistake that it finds, if any."""
    try:
        action()
    except UserError as error:
        return error
    return None


def _refuse(mistake: UserError | None) -> None:
    if mistake is not None:
        raise mistake


def _hides_traceback(
    run_dir: directory.RunDirectory, rank: Rank, error: BaseException, say: Callable[[str], None] = tell
) -> bool:
    """Tell on one line why this rank fails. Returns whether no traceback is to follow, since another rank has it.

    A rank that has lost another one, or that fails as another one has, would only hide the cause behind its traceback.
    """
    if isinstance(error.__cause__, transfers.PeerLost):  # rank 0's error: that rank tells it
        transfers.let_the_cause_show()
    first, own = run_dir.crashed(rank.rank, error), directory.cause(error)
    lost = isinstance(error, transfers.PeerLost)
    same = first.partition(": ")[2] == own
    why = f"ends, since {first or error}" if lost else f"fails as {first}" if same else own
    say(masked(f"moco_dist.train: rank {rank.rank}: {why}"))
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
