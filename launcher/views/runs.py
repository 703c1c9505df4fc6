"""Look at runs as a person sees them: each one's directory, its job at SLURM, and its figures, joined."""

import functools
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from launcher import slurm, slurm_jobs
from launcher.record import BEFORE_FIRST_STEP, BEFORE_SAVED, Launch, Submission
from launcher.views import evidence, figures, moments, starting, troubles, verdict
from launcher.views.answers import Answers
from launcher.views.evidence import UNREAD, Evidence
from launcher.views.figures import NOTHING, Latest
from moco_dist import files
from moco_dist.errors import UserError

_POLL_SECONDS = 1.0
READERS = 16  # on a network disk each file takes milliseconds


@dataclass(frozen=True)
class Run:
    """A run is described by SLURM's answers and by its directory."""

    launch: Launch
    state: verdict.State
    reason: str = ""
    """Why it waits or has ended, in one line; may be empty."""
    submission: Submission | None = None
    job: slurm_jobs.Job | None = None
    """The job as SLURM has it; None for a local one, and where SLURM does not know it."""
    evidence: Evidence = UNREAD
    """The evidence in the run directory, where it can be read."""
    figures: Latest = NOTHING
    slurm_error: str = ""
    """Why SLURM did not answer about the job; empty where it did, or was not asked."""
    waits_for: str = ""
    """The thing that its start waits for before the first step; empty where it trains, or does not run."""

    @property
    def shown_state(self) -> str:
        """Return the state as people see it: `starting` for a run whose start has not come to its first step."""
        return "starting" if self.waits_for else self.state

    @property
    def since(self) -> float | None:
        """Return when its state began, in seconds since the epoch; None where nobody knows."""
        if self.state == "running":
            return (moments.of_text(self.job.started) if self.job else None) or self.evidence.began_at
        if self.state == "pending" and self.submission:
            return moments.of_text(self.submission.submitted) or self.evidence.changed_at
        return self.evidence.changed_at or None

    @property
    def seconds(self) -> float | None:
        """Return how long the run has waited or run, or the last start of an ended one has run; None for unknown."""
        begin, end = self.since, time.time()
        if not self.live:
            begin, end = self.evidence.began_at, self.evidence.changed_at
            begin = begin if self.evidence.began else None
        return None if begin is None else max(0.0, end - begin)

    @property
    def live(self) -> bool:
        """Return whether the run waits or runs. If it is neither live nor ended, nobody could tell."""
        return self.confirmed and self.state in get_args(verdict.Live)

    @property
    def ended(self) -> bool:
        """Return whether the run has ended. SLURM ends a job whose node died for some seconds before the requeue."""
        return self.confirmed and self.state in get_args(verdict.Ended)

    @property
    def confirmed(self) -> bool:
        """Return whether the state is sure; else it is what the directory shows, and SLURM did not answer."""
        return not self.slurm_error or self.evidence.settled or bool(self.evidence.writer)

    @property
    def name(self) -> str:
        """Return the word that names the run on a command line in this folder."""
        path, here = self.launch.run_dir.resolve(), Path.cwd()
        runs = (here / "runs").resolve()  # often a link to another disk
        if path.parent == runs:
            return path.name
        if path.is_relative_to(runs):
            return str("runs" / path.relative_to(runs))
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @property
    def job_id(self) -> str:
        """Return the id of the run's last job, or of a local run's process; empty where nobody knows it."""
        return self.submission.job if self.submission else self.job.id if self.job else ""

    @property
    def step(self) -> int:
        """Return the last step that the run is known to have reached."""
        return max(self.figures.step, self.evidence.step)

    @property
    def trainer_state(self) -> str:
        """Return the state in status.json; empty while the last start has not begun to train."""
        return (self.evidence.state or "") if self.evidence.fresh else ""

    @property
    def local(self) -> bool:
        """Return whether the run was started without SLURM."""
        return self.submission is not None and self.submission.executor == "local"

    @property
    def waits(self) -> bool:
        """Return whether the run's job is in the queue, to be started."""
        return self.job is not None and self.job.waits

    @property
    def nodes(self) -> str:
        """Return the nodes that the run is on or was on last, in SLURM's words or as a list of names; may be empty."""
        if self.waits:
            return ""
        return (self.job.nodes if self.job else "") or ",".join(self.evidence.nodes)

    @property
    def saved(self) -> str:
        """Return in words which checkpoint the run can go on from."""
        step = self.launch.checkpoint_step()
        return f"saved at step {step}" if step else "no checkpoint yet"

    @property
    def why(self) -> str:
        """Return why it stands so, in one line: its reason, or what its start waits for."""
        return "; ".join(filter(None, [self.waits_for and f"waits for {self.waits_for}", self.reason]))

    def ask_to_save(self, signal: str) -> bool:
        """Send a signal to the ranks of a job: USR2 or TERM. Returns whether they train, and will save."""
        if self.job is None or self.job.suspended or self.trainer_state != "running":
            return False  # it takes no signal, has saved, or has not begun to train in this start
        try:
            slurm_jobs.signal(self.job.id, signal)
            return True
        except slurm.Refused:  # it has just ended
            return False


def look(launches: Sequence[Launch], timeout_seconds: float | None = None) -> list[Run]:
    """Look how runs stand. Never raises for a broken run directory, nor for SLURM: see `state` and `slurm_error`.

    Args:
        launches: the runs.
        timeout_seconds: how long SLURM may take for its answers, in all; None: as long as the user's patience lasts.
    """
    return look_by(launches, Answers(timeout_seconds))


def look_surely(launches: Sequence[Launch]) -> list[Run]:
    """Look how runs stand, before anything is done to one of them.

    Raises:
        UserError: one cannot be read.
        Unavailable: SLURM does not answer about one.
    """
    runs = look(launches)
    for run in runs:
        if run.slurm_error:
            raise slurm.Unavailable(run.slurm_error)
        if run.state == "unreadable":
            raise UserError.of("RUN", run.name, run.reason, "mend it, or use SLURM's own commands")
    return runs


def live_jobs_of(text: str) -> list[slurm_jobs.Job]:
    """Find this user's live jobs of a run that have no record there, by the job's id, an array's, or the directory."""
    folders = {place.resolve() for place in (Path(text), Path("runs") / text)}
    jobs = [job for job in Answers().own_jobs() if job.live and job.run_dir.startswith("/")]
    return [job for job in jobs if text in (job.id, job.array) or Path(job.run_dir).resolve() in folders]


def queued_for(run_dirs: Sequence[Path], cluster: str | None = None) -> dict[Path, slurm_jobs.Job]:
    """Find live jobs that name directories, whether these have a record or not; none where SLURM does not answer."""
    jobs = [job for job in Answers().own_jobs(cluster) if job.live and job.run_dir.startswith("/")]
    live = {Path(job.run_dir).resolve(): job for job in jobs}
    places = {run_dir: run_dir.resolve() for run_dir in run_dirs}
    return {run_dir: live[place] for run_dir, place in places.items() if place in live}


def wait(launches: Sequence[Launch], over: Callable[[Run], bool], seconds: float) -> list[Run]:
    """Look until `over` is true of all the runs, or the time is up. Returns how they stand then."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        runs = look(launches, timeout_seconds=max(1.0, min(slurm.patience_seconds(), left)))
        if all(over(run) for run in runs) or left <= 0:
            return runs
        time.sleep(min(_POLL_SECONDS, max(0.0, left)))


def wait_for_saving(saving: Sequence[Run], over: Callable[[Run], bool], seconds: float) -> None:
    """Say that runs are told to save, and wait until `over` is true of all of them, or the time is up."""
    if saving:
        names = ", ".join(run.name for run in saving)
        print(f"{names}: told to save; waiting for up to {seconds:g} s", flush=True)
        wait([run.launch for run in saving], over, seconds)


def look_by(launches: Sequence[Launch], answers: Answers, figures_read: Mapping[Launch, Latest] = {}) -> list[Run]:
    """Look at runs. SLURM is asked ahead of the directories: a job that ends in between leaves its status there."""
    with ThreadPoolExecutor(READERS) as pool:
        runs = [Run(launch, "unknown") for launch in launches]
        runs = list(pool.map(functools.partial(_readable, _with_submission), runs))
        ids = {run.submission.job for run in runs if run.submission and not run.local}
        jobs = answers.queued(ids)
        with_evidence = functools.partial(_with_evidence, figures_read)
        runs = list(pool.map(functools.partial(_readable, with_evidence), runs))
    unsettled = {run.submission.job for run in runs if run.submission and not run.evidence.settled}
    jobs |= answers.accounted(unsettled & (ids - jobs.keys()))
    runs = [_judged(run, jobs, answers.error) for run in runs]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(functools.partial(_readable, _explained), runs))


def _readable(read: Callable[[Run], Run], run: Run) -> Run:
    """Return a run with what `read` adds to it, or a run that says why it cannot be read."""
    try:
        return read(run)
    except UserError as error:
        return Run(run.launch, "unreadable", str(error))
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        return Run(run.launch, "unreadable", cause or f"a file in it is damaged: {error}")


def _with_submission(run: Run) -> Run:
    """Return a run with its submission."""
    submission = run.launch.submission()
    if submission is None:
        files.read_bytes(run.launch.job_file)  # raises the cause, where there is one
        return replace(run, state="unreadable", reason="launch/job.json is damaged, or of another version")
    return replace(run, submission=submission)


def _with_evidence(figures_read: Mapping[Launch, Latest], run: Run) -> Run:
    """Return a run with what its directory shows."""
    if run.submission is None:
        return run
    latest = figures_read.get(run.launch) or figures.read(run.launch)
    return replace(run, evidence=evidence.read(run.launch, run.submission, latest.step), figures=latest)


def _judged(run: Run, jobs: dict[str, slurm_jobs.Job], slurm_error: str) -> Run:
    """Return a run with how it stands."""
    if run.submission is None:
        return run
    name = run.submission.job
    if run.local:
        state, reason = verdict.of_local(name, run.evidence)
        return replace(run, state=state, reason=reason)
    job = jobs.get(name)
    if job and is_job_of(job, run):
        state, reason = verdict.of_job(job, run.evidence)
        if job.waits and run.submission.left_out:
            names = ", ".join(run.submission.left_out)
            reason = "; ".join(filter(None, [reason, f"left out, since starts failed there: {names}"]))
        return replace(run, job=job, state=state, reason=reason)
    slurm_error = "" if job else slurm_error  # the job of another directory: SLURM counts anew, or this one was moved
    state, reason = verdict.of_unknown_job(name, run.evidence, slurm_error, job.run_dir if job else "")
    return replace(run, slurm_error=slurm_error, state=state, reason=reason)


def is_job_of(job: slurm_jobs.Job, run: Run) -> bool:
    """Return whether SLURM's job is the run's, by the job's comment: the run directory, or the folder of its sweep."""
    assert run.submission is not None
    own = {run.launch.run_dir.resolve(), Path(run.submission.sweep or run.launch.run_dir).resolve()}
    return not job.run_dir.startswith("/") or Path(job.run_dir).resolve() in own


def _explained(run: Run) -> Run:
    """Return a judged run with what it waits for, and with causes that its files have, and the command that helps."""
    if run.submission is None:
        return run
    parts, shown, submission = [run.reason], run.evidence, run.submission
    if run.state == "running":
        run = replace(run, waits_for=starting.waits_for(run.launch, submission, shown, run.job))
    if BEFORE_FIRST_STEP in run.reason or BEFORE_SAVED in run.reason:
        command = f"python -m launcher requeue {shlex.quote(run.name)} --time-minutes MINUTES"
        parts.append(f"for more time: {command}")
    parts.append(troubles.of_checkpoints(run.launch, shown, run.figures.checkpoint_failures))
    failed = run.state in ("crashed", "time limit", "lost") or shown.trouble or shown.failure
    if failed and not any(re.search("No space left|quota exceeded", part) for part in parts):
        full = troubles.full_disk(run.launch, submission)
        parts.append(full and f"a disk is full: {full}")
    return replace(run, reason="; ".join(filter(None, parts)))
