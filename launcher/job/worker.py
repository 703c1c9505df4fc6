"""Run the trainer as one rank of a job, with its output in the run directory.

python -m launcher.job.worker RUN_DIR RANKS STOP_MARK [section.key=value ...]
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.job.look import STACKS_SIGNAL
from launcher.record import Launch
from moco_dist import config as configs
from moco_dist import files, train
from moco_dist.errors import UserError, print_masked
from moco_dist.run import status

if TYPE_CHECKING:
    from moco_dist.ranks.collectives import World


def redirect(log: Path) -> None:
    """Append all output of this process to a log; where it cannot be opened, it stays with the job's."""
    try:
        descriptor = files.descriptor(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        print(f"{log}: {error.strerror}; this rank's output stays here", file=sys.stderr)
        return
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def write_stacks_at_signal(file: Path) -> None:
    """Have this process write where each of its threads is to a new file, at a signal, however it hangs."""
    with contextlib.suppress(OSError):
        descriptor = files.descriptor(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
        faulthandler.register(STACKS_SIGNAL, descriptor, all_threads=True)


def header() -> str:
    """Return the line that each start begins with in a rank's log."""
    job, restart = os.environ.get("MOCO_DIST_JOB", "?"), os.environ.get("MOCO_DIST_RESTART", "0")
    worker_restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    rank = f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
    return f"--- job {job}, start {restart}.{worker_restarts}, {rank}, {_host()}, {time.strftime('%Y-%m-%dT%H:%M:%S')}"


def tell_why_again(launch: Launch) -> None:
    """Add to the job's own log why torch's agent starts the ranks again, once for all of them."""
    again, before = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), launch.status()
    if again and os.environ.get("RANK") == "0" and before.state == "crashed":
        launch.say(f"{before.reason}; the ranks start again, restart {again} within this start")


def ends_at_once(launch: Launch, ranks: int, stop_mark: Path) -> int | None:
    """Return the exit status of a rank that would start in vain; None where it should start."""
    if stop_mark.exists():  # the job was told to stop while this start was under way
        return 0
    before = launch.status()
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and before.state in ("user_error", "diverged"):
        print(f"not started again: {before.reason}", file=sys.stderr)
        return status.EXIT_CODES[before.state]
    try:
        config = launch.config()
    except UserError as error:  # the trainer would not know which directory to write it to
        status.write(launch.run_dir, "user_error", launch.checkpoint_step(), str(error))
        print(error, file=sys.stderr)
        return status.EXIT_CODES["user_error"]
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world != ranks:  # nodes were lost: a size that does not divide is no mistake of the user's
        try:
            configs.layout(config, world)
        except UserError as error:
            print(f"{world} of {ranks} ranks cannot go on alone, the job waits for all: {error}", file=sys.stderr)
            return status.EXIT_CODES["stopped"]
    return None


def say_speed(launch: Launch, world: World) -> None:
    """Measure how fast the ranks are, and say it in the job's own log; on a start's later attempts, not again.

    Args:
        launch: the run's record.
        world: the ranks, which have met.
    """
    if world.size == 1 or not world.from_first(lambda: _measures(launch)):
        return
    from moco_dist.ranks import speed

    measured, hosts = speed.measure(world), world.gather_objects(_host())
    if world.rank == 0:
        slowest = f"rank {measured.slowest} on {hosts[measured.slowest]}"
        launch.say(
            f"{world.size} ranks average {measured.gib_per_second:.3g} GiB/s; the slowest is {slowest}, "
            f"{measured.slower:.2f} times the median"
        )


def _measures(launch: Launch) -> bool:
    """Return whether the ranks are to be measured: rank 0 decides it, since restarts are counted on each node alone."""
    submission = launch.submission()
    is_first = not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return submission is not None and submission.profile.check_nodes and is_first


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> int:
    """Run this rank. Returns its exit status: 0 also when it was stopped, which is no failure of a worker."""
    run_dir, ranks, stop_mark, *overrides = sys.argv[1:]
    launch = Launch(Path(run_dir))
    tell_why_again(launch)
    redirect(launch.log(int(os.environ.get("RANK", 0))))
    write_stacks_at_signal(launch.stacks(int(os.environ.get("RANK", 0))))
    print(header(), flush=True)
    if (exit_status := ends_at_once(launch, int(ranks), Path(stop_mark))) is not None:
        return exit_status
    words, met = [configs.literal(launch.config_file), *overrides], functools.partial(say_speed, launch)
    code = train.run(words, supervised=True, goes_on_by=launch.requeue_command, met=met)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Python resets its handlers as it ends: a late signal would kill it
    return 0 if code == status.EXIT_CODES["stopped"] else code


if __name__ == "__main__":
    sys.excepthook = print_masked
    sys.exit(main())
