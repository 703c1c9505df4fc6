"""Find the runs that a person means: by a run directory, a name under runs/, a job's id, or the folder of a sweep."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from launcher import job_ids, slurm_jobs
from launcher.record import Launch, Submission, refuse_others
from moco_dist.errors import UserError, some_names


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
    if members := _members(text, key):
        return _the_one(text, members, key)
    if re.fullmatch(r"\d+_\d+(@[\w.-]+)?", text):
        return _the_one(text, _runs_of_job(text, key), key)
    rule = "is neither a run that was submitted, nor the name of one in runs/, nor a job's id"
    raise UserError.of(key, text, rule, "python -m launcher status lists them")


def runs(texts: Sequence[str], key: str = "RUN") -> list[Launch]:
    """Find the runs, and the members of the sweeps and arrays, that a person means; each once. Raises as `run`."""
    return list(dict.fromkeys(launch for text in texts for launch in _members(text, key) or [run(text, key)]))


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


def right_inside(folder: Path) -> list[Launch]:
    """List the runs right inside a folder, such as a sweep's members in its own; not those of sweeps inside it."""
    return [launch for launch in list_runs([folder]) if launch.run_dir.parent == folder.resolve()]


def last_job_after(job: str) -> str | None:
    """Return the last job of the run in runs/ that a job has started; None where there is none."""
    launches = [launch for launch in list_runs([Path("runs")]) if any(row["job"] == job for row in launch.starts())]
    sent = _submission(launches[0]) if len(launches) == 1 else None
    return sent.job if sent else None


def _members(text: str, key: str) -> list[Launch]:
    """List the members of the sweep that a person means by its folder or by its array's id; empty if it is none."""
    folders = (Path(text), Path("runs") / text)
    for folder in folders:
        members = [] if _is_run(folder) else right_inside(folder)
        if members and all((sent := _submission(member)) and sent.sweep for member in members):
            return members
    is_job = re.fullmatch(r"\d+(@[\w.-]+)?", text) and not any(map(_is_run, folders))
    return _runs_of_job(text, key) if is_job else []


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError):
        return []


def _is_run(folder: Path) -> bool:
    """Return whether the launcher has sent a run from the folder; True where that cannot be read."""
    try:
        return Launch(folder).job_file.is_file()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _the_one(text: str, members: Sequence[Launch], key: str) -> Launch:
    """Return the only member of a sweep that is meant. Raises UserError where there are more."""
    if len(members) > 1:
        names = some_names([launch.run_dir.name for launch in members], 8)
        raise UserError.of(key, text, f"is a sweep of {len(members)} runs: {names}", "name the directory of one")
    return members[0]


def _runs_of_job(job: str, key: str) -> list[Launch]:
    """List the run whose last submission a job is, or those of the sweep whose array it is.

    Raises:
        UserError: there is none, or the job's number is that of several.
        Unavailable: only SLURM could tell, and it does not answer.
    """
    sent = _sent_as(job, Path("runs"))
    if not _belong_together(sent):  # SLURM counts anew at times, so that old runs may have the same number
        queued = [one for one in slurm_jobs.queue([job]).values() if one.run_dir.startswith("/")]
        places = dict.fromkeys(Path(one.run_dir) for one in queued)
        sent = {launch: sent for place in places for launch, sent in _sent_as(job, place).items()} or sent
    if not _belong_together(sent):
        names = ", ".join(launch.run_dir.name for launch in sent)
        nothing = "is no job of a run in runs/, and no job in the queue that names one"
        raise UserError.of(key, job, f"is the job of {names}" if sent else nothing, "name the run directory")
    return list(sent)


def _belong_together(sent: Mapping[Launch, Submission]) -> bool:
    """Return whether it is one run, or several members of one sweep."""
    sweeps = {submission.sweep for submission in sent.values()}
    return len(sent) == 1 or (len(sweeps) == 1 and sweeps != {None})


def _sent_as(job: str, place: Path) -> dict[Launch, Submission]:
    """List the runs in a place whose last submission a job or an array is; another user's are left out."""
    sent = {launch: submission for launch in list_runs([place]) if (submission := _submission(launch))}
    return {launch: one for launch, one in sent.items() if job in _names(one.job)}


def _names(job: str) -> set[str]:
    """Return what a job may be called: by its own name or its array's, with its cluster or without."""
    names = {job, job_ids.array(job)}
    return names | set(map(job_ids.number, names))


def _submission(launch: Launch) -> Submission | None:
    """Read the last submission of a run; None where it cannot be read, or is another user's."""
    try:
        return launch.submission()
    except UserError:
        return None
