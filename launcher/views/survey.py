"""Look at all runs that a person may want to see: those in places, and those of this user's live jobs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from launcher import job_ids, slurm_jobs
from launcher.record import Launch
from launcher.views import figures, find, verdict
from launcher.views.answers import Answers
from launcher.views.runs import READERS, Run, is_job_of, look_by


def survey(places: Sequence[Path] = (), timeout_seconds: float | None = None) -> tuple[list[Run], str]:
    """Look at the runs in places; without places at those in runs/, and those of this user's live jobs.

    Returns:
        The runs, and why SLURM did not answer; empty where it did, or was not asked.
    """
    answers = Answers(timeout_seconds)
    with ThreadPoolExecutor(READERS) as pool:
        own_jobs = pool.submit(answers.own_jobs)
        launches = find.list_runs(places or [Path("runs")])
        figures_read = dict(zip(launches, pool.map(figures.read, launches), strict=True))  # while SLURM thinks
        live = [job for job in own_jobs.result() if job.live and job.run_dir.startswith("/")]
    if not places:
        launches += find.list_runs(map(Path, dict.fromkeys(job.run_dir for job in live)))
    runs = look_by(list({launch.run_dir.resolve(): launch for launch in launches}.values()), answers, figures_read)
    inside = [job for job in live if not places or any(_is_inside(Path(job.run_dir), place) for place in places)]
    runs = _with_unrecorded(runs, inside)
    return runs, next((run.slurm_error for run in runs if run.slurm_error), "" if places else answers.error)


def _is_inside(run_dir: Path, place: Path) -> bool:
    return run_dir.resolve().is_relative_to(place.resolve())


def _with_unrecorded(runs: Sequence[Run], live: Sequence[slurm_jobs.Job]) -> list[Run]:
    """Return the runs, and those live jobs that no run directory names as its own.

    It was deleted, moved, or never written; of one that was moved the record still has the job.
    """
    owners: dict[str, list[Run]] = {}
    for run in runs:
        for job in (run.submission.job, *run.submission.earlier_jobs) if run.submission else ():
            for name in {job, job_ids.number(job)}:
                owners.setdefault(name, []).append(run)
    left = [job for job in live if not any(is_job_of(job, run) for run in owners.get(job.id, ()))]
    by_folder = {Path(job.run_dir).resolve(): job for job in left}
    shown = [run if run.submission else replace(run, job=by_folder.get(run.launch.run_dir.resolve())) for run in runs]
    damaged = {run.launch.run_dir.resolve() for run in runs if run.submission is None}
    alone = [job for job in left if Path(job.run_dir).resolve() not in damaged]
    return shown + [Run(Launch(Path(job.run_dir)), *verdict.without_record(job), job=job) for job in alone]
