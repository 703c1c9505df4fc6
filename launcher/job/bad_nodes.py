"""Find the nodes on which starts of a run fail again and again, and have SLURM leave them out."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence

from launcher import nodes, slurm
from launcher.record import Launch

_FAILURES = 2
"""After so many failures a node is left out."""
_TRIES = 6
_PAUSE_SECONDS = 0.5


def leave_out(launch: Launch, job: str, names: Sequence[str]) -> None:
    """Have the next start of a job that waits again leave out these nodes, and those that were left out before."""
    submission = launch.submission()
    if submission is None or not names:
        return
    left_out = (*submission.left_out, *names)
    for tries in range(_TRIES):
        try:
            nodes.exclude(job, (*submission.profile.exclude, *left_out))
            break
        except (slurm.Refused, slurm.Unavailable) as error:  # the job is on its way back into the queue
            if tries == _TRIES - 1:
                launch.say(f"{', '.join(names)} cannot be left out ({error})")
                return
            time.sleep(_PAUSE_SECONDS)
    last = launch.submission()
    if last is not None and last.job == submission.job:  # else another job has taken over meanwhile
        with contextlib.suppress(OSError):  # SLURM has the list
            launch.write(last.model_copy(update={"left_out": left_out}))
    launch.say(f"{', '.join(names)} is left out from now on: {_FAILURES} starts have failed on it")


def repeated(launch: Launch) -> list[str]:
    """List the nodes that are to be left out from now on; none where the job would have too few without them."""
    submission = launch.submission()
    if submission is None:
        return []
    jobs = {submission.job, *submission.earlier_jobs}
    at_fault = Counter(str(name) for end in launch.ends() if end["job"] in jobs for name in end.get("bad_nodes", ()))
    names = [name for name, count in at_fault.items() if count >= _FAILURES and name not in submission.left_out]
    if not names:
        return []
    try:
        profile = submission.profile
        partition = os.environ.get("SLURM_JOB_PARTITION") or profile.partition
        if fixed := sorted({*names} & {*nodes.hostnames([profile.sbatch.get("nodelist", "")])}):
            launch.say(f"{', '.join(fixed)} is not left out, since the job asks for it by sbatch.nodelist")
            if not (names := [name for name in names if name not in fixed]):
                return []
        usable = nodes.usable(partition, profile)
        rest = usable - {*nodes.hostnames(profile.exclude), *submission.left_out, *names}
    except (slurm.Refused, slurm.Unavailable) as error:
        launch.say(f"{', '.join(names)} is not left out, since SLURM does not tell of other nodes ({error})")
        return []
    if len(rest) < submission.fewest_nodes:
        launch.say(f"{', '.join(names)} is not left out, since too few nodes would be left")
        return []
    return names
