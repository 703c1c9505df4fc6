"""Find the runs that a person means: by a run directory, a name under runs/, a job's id, or the folder of a sweep."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher import slurm
from launcher.record import Launch, Submission, refuse_others
from moco_dist.errors import UserError


def run(text: str, key: str = "RUN") -> Launch:
    """Find the run that a person means by a run directory, a name under runs/, or a job's id.

    Args:
        text: what was typed.
        key: the argument or option that it was typed for.

    Raises:
        UserError: there is none, or it is another user's.
        Unavailable: only SLURM could tell, and it does not answer.
    """
    try:
        for folder in (Path(text), Path("runs") / text):
            if Launch(folder).job_file.is_file():
                refuse_others(folder)
                return Launch(folder.resolve())
    except (OSError, ValueError) as error:
        raise UserError.of(key, text, f"cannot be read: {error}", "name another") from None
    if re.fullmatch(r"\d+(_\d+)?(@[\w.-]+)?", text):
        return _run_of_job(text)
    rule = "is neither a run that was submitted, nor the name of one in runs/, nor a job's id"
    raise UserError.of(key, text, rule, "python -m launcher status lists them")


def runs(texts: Sequence[str]) -> list[Launch]:
    """Find the runs, and the members of the sweeps, that a person means; each once. Raises as `run`."""
    return list(dict.fromkeys(launch for text in texts for launch in _members(text) or [run(text)]))


def list_runs(places: Iterable[Path]) -> list[Launch]:
    """List the runs among the places and right inside them, and the members of sweeps there, by name.

    Those that cannot be read are among them.
    """
    run_dirs: dict[Path, None] = {}
    for place in places:
        inside = _inside(place)
        sweeps = [folder for folder in inside if not _is_run(folder) and (folder / "launch").is_dir()]
        folders = [place, *inside, *(member for sweep in sweeps for member in _inside(sweep))]
        run_dirs.update((folder.resolve(), None) for folder in folders if _is_run(folder))
    return [Launch(path) for path in run_dirs]


def _members(text: str) -> list[Launch]:
    """List the members of the sweep that a person means by its folder; empty if it is none."""
    for folder in (Path(text), Path("runs") / text):
        members = [] if _is_run(folder) else list_runs([folder])
        if members and all((sent := _submission(member)) and sent.sweep for member in members):
            return members
    return []


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    """Return whether the launcher has sent a run from the folder; True where that cannot be read."""
    try:
        return Launch(folder).job_file.is_file()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _run_of_job(job: str) -> Launch:
    """Find the run whose last submission a job is. Raises UserError, Unavailable."""
    launches = _sent_as(job, Path("runs"))
    if len(launches) != 1 and (queued := slurm.queue([job]).get(job)) and queued.run_dir.startswith("/"):
        launches = _sent_as(job, Path(queued.run_dir)) or launches
    if len(launches) == 1:
        return launches[0]
    names = ", ".join(launch.run_dir.name for launch in launches)
    nothing = "is no job of a run in runs/, and no job in the queue that names one"
    raise UserError.of("RUN", job, f"is the job of {names}" if launches else nothing, "name the run directory")


def _sent_as(job: str, place: Path) -> list[Launch]:
    """List the runs in a place whose last submission a job is; another user's are left out."""
    sent = {launch: submission.job for launch in list_runs([place]) if (submission := _submission(launch))}
    return [launch for launch, own in sent.items() if job in (own, slurm.number(own))]


def _submission(launch: Launch) -> Submission | None:
    """Read the last submission of a run; None where it cannot be read, or is another user's."""
    try:
        return launch.submission()
    except UserError:
        return None
