"""Decide which variables of the shell that submits reach SLURM's commands and the job.

A job inherits the environment of its submission. What an allocation, a task of srun or another job of ours has set
there is of that job alone, and variables for sbatch would beat the profile and the command line.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_OPTIONS = r"(SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|SCONTROL)_\w+"
"""A user's settings of SLURM's commands: `SBATCH_PARTITION`, `SQUEUE_FORMAT` ..."""
_SLURM = r"SLURMD?_\w+"
"""Variables that SLURM sets for a job, and settings of srun."""
_CLUSTER = r"SLURM_(CONF|CONF_SERVER|CLUSTERS|JWT|SACK_\w+)|SBATCH_CLUSTERS"
"""Variables that say which cluster is meant, and who asks."""
_RANK = r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
_OURS = rf"SUBMITIT_\w+|TORCHELASTIC_\w+|MOCO_DIST_(JOB|RESTART)|{_RANK}"
"""Variables that a job of ours sets for its tasks and ranks."""


def left_out() -> list[str]:
    """List the variables of this process that reach neither SLURM's commands nor a job."""
    names = [name for name in os.environ if re.fullmatch(f"{_OPTIONS}|{_SLURM}|{_OURS}", name)]
    return sorted(name for name in names if not re.fullmatch(_CLUSTER, name) or _names_own_cluster(name))


def _names_own_cluster(name: str) -> bool:
    """Return whether a variable names the cluster that this job runs on: SLURM would ask its database for that one."""
    return name.endswith("_CLUSTERS") and os.environ[name] == os.environ.get("SLURM_CLUSTER_NAME")


def for_slurm() -> dict[str, str]:
    """Return the environment of this process without what is left out."""
    names = left_out()
    return {name: value for name, value in os.environ.items() if name not in names}


@contextlib.contextmanager
def only_for_slurm(**more: str) -> Iterator[None]:
    """Give this process the environment of SLURM's commands until the context ends, with further variables."""
    before = dict(os.environ)
    kept = for_slurm() | more
    os.environ.clear()
    os.environ.update(kept)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def settings_left_out() -> list[str]:
    """List those that are left out, and by which the user may have meant to set options of sbatch and srun."""
    own = r"(SBATCH|SRUN)_\w+" if job_of_shell() else r"(SBATCH|SRUN|SLURM)_\w+"  # else the allocation's
    return [name for name in left_out() if re.fullmatch(own, name) and not re.fullmatch(_CLUSTER, name)]


def job_of_shell() -> str | None:
    """Return the id of the SLURM job that this process runs in; None outside of one."""
    return os.environ.get("SLURM_JOB_ID")


def cluster_of_shell() -> str | None:
    """Return the cluster that this shell's variables have SLURM's commands ask; None for the local one, or several."""
    names = os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS") or ""
    return names if re.fullmatch(r"[\w.-]+", names) and names != "all" else None


def python_path(first: str | Path) -> str:
    """Return the PYTHONPATH of a process that finds its modules in a folder first."""
    return os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH")]))


def refusal(name: str) -> str | None:
    """Say why a profile may not set a variable of this name; None where it may."""
    if re.fullmatch(_CLUSTER, name):
        return None
    if re.fullmatch(rf"{_OURS}|PYTHON(SAFEPATH|HOME)", name):
        return "is set by the job itself; drop it"
    if re.fullmatch(f"{_OPTIONS}|{_SLURM}", name):
        return "is SLURM's, and would come too late for srun; export it in a line of setup"
    return None
