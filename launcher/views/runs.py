"""Look at runs as a person sees them: each one's directory, its job at SLURM, and its figures, joined."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from launcher import slurm
from launcher.record import Launch, Submission
from launcher.views import figures, find, verdict
from launcher.views.figures import NOTHING, Latest
from moco_dist.errors import UserError

_POLL_SECONDS = 1.0
_READERS = 16  # on a network disk each file takes milliseconds


@dataclass(frozen=True)
class Run:
    """A run, as it stands."""

    launch: Launch
    state: verdict.State
    reason: str = ""
    """Why it waits or has ended, in one line; may be empty."""
    submission: Submission | None = None
    job: slurm.Job | None = None
    """The job as SLURM has it; None for a local one, and where SLURM does not know it."""
    evidence: verdict.Evidence = verdict.UNREAD
    """What the run directory shows, where it can be read."""
    figures: Latest = NOTHING
    slurm_error: str = ""
    """Why SLURM did not answer about the job; empty where it did, or was not asked."""

    @property
    def live(self) -> bool:
        """Whether it waits or runs. If it is neither live nor ended, nobody could tell."""
        return self.confirmed and self.state in get_args(verdict.Live)

    @property
    def ended(self) -> bool:
        """Whether it has ended. SLURM ends a job whose node died for some seconds, before it requeues it."""
        return self.confirmed and self.state in get_args(verdict.Ended)

    @property
    def confirmed(self) -> bool:
        """Whether the state is sure; else it is what the directory shows, and SLURM did not answer."""
        return not self.slurm_error or self.evidence.settled or bool(self.evidence.writer)

    @property
    def name(self) -> str:
        """What to call it on a command line from here."""
        path, here = self.launch.run_dir.resolve(), Path.cwd()
        if path.parent == here / "runs":
            return path.name
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @property
    def job_id(self) -> str:
        """Id of its last job, or of the local one's process; empty where nobody knows it."""
        return self.submission.job if self.submission else self.job.id if self.job else ""

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max(self.figures.step, self.evidence.step)

    @property
    def trainer_state(self) -> str:
        """The state in status.json; empty while the last start has not begun to train."""
        return (self.evidence.state or "") if self.evidence.fresh else ""

    @property
    def local(self) -> bool:
        """Whether it runs without SLURM."""
        return self.submission is not None and self.submission.executor == "local"

    @property
    def waits(self) -> bool:
        """Whether its job is in the queue, to be started."""
        return self.job is not None and self.job.waits

    @property
    def nodes(self) -> str:
        """Where it runs or has run last, in SLURM's words or as a list of names; may be empty."""
        if self.waits:
            return ""
        return (self.job.nodes if self.job else "") or ",".join(self.evidence.nodes)

    @property
    def saved(self) -> str:
        """Which checkpoint there is to go on from, in words."""
        step = self.launch.checkpoint_step()
        return f"saved at step {step}" if step else "no checkpoint yet"

    def ask_to_save(self, signal: str) -> bool:
        """Send a signal to the ranks of a job: USR2 or TERM. Returns whether they train, and will save."""
        if self.job is None or self.trainer_state != "running":
            return False  # it has saved, or has not begun to train in this start
        try:
            slurm.signal(self.job.id, signal)
            return True
        except slurm.Refused:  # it has just ended
            return False


def look(launches: Sequence[Launch], timeout_seconds: float | None = None) -> list[Run]:
    """Look how runs stand. Never raises for a broken run directory, nor for SLURM: see `state` and `slurm_error`.

    Args:
        launches: the runs.
        timeout_seconds: how long SLURM may take for its answers, in all; None: as long as the user's patience lasts.
    """
    return _look(launches, slurm.Answers(timeout_seconds))


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


def survey(places: Sequence[Path] = (), timeout_seconds: float | None = None) -> tuple[list[Run], str]:
    """Look at the runs in places; without places at those in runs/, and those of this user's live jobs.

    Returns:
        The runs, and why SLURM did not answer; empty where it did, or was not asked.
    """
    answers = slurm.Answers(timeout_seconds)
    with ThreadPoolExecutor(_READERS) as pool:
        own_jobs = pool.submit(answers.own_jobs)
        launches = find.list_runs(places or [Path("runs")])
        figures_read = dict(zip(launches, pool.map(figures.read, launches), strict=True))  # while SLURM thinks
        live = [job for job in own_jobs.result() if job.live and job.run_dir.startswith("/")]
    if not places:
        launches += find.list_runs(map(Path, dict.fromkeys(job.run_dir for job in live)))
    runs = _look(list({launch.run_dir.resolve(): launch for launch in launches}.values()), answers, figures_read)
    inside = [job for job in live if not places or any(_is_inside(Path(job.run_dir), place) for place in places)]
    runs = _with_unrecorded(runs, inside)
    return runs, next((run.slurm_error for run in runs if run.slurm_error), "" if places else answers.error)


def _is_inside(run_dir: Path, place: Path) -> bool:
    return run_dir.resolve().is_relative_to(place.resolve())


def _with_unrecorded(runs: Sequence[Run], live: Sequence[slurm.Job]) -> list[Run]:
    """Return the runs, and those live jobs that no run directory names as its own: it was deleted, or never written."""
    recorded = {job for run in runs if (sent := run.submission) for job in (sent.job, *sent.earlier_jobs)}
    left = [job for job in live if job.id not in recorded | {slurm.number(job) for job in recorded}]
    by_folder = {job.run_dir: job for job in left}
    shown = [run if run.submission else replace(run, job=by_folder.get(str(run.launch.run_dir))) for run in runs]
    damaged = {str(run.launch.run_dir) for run in runs if run.submission is None}
    alone = [job for job in left if job.run_dir not in damaged]
    return shown + [Run(Launch(Path(job.run_dir)), *_stands_without_record(job), job=job) for job in alone]


def _stands_without_record(job: slurm.Job) -> verdict.Verdict:
    state, reason = verdict.of_job(job, verdict.UNREAD)
    return state, "; ".join(filter(None, ["its run directory has no record of it", reason]))


def live_jobs_of(text: str) -> list[slurm.Job]:
    """Find this user's live jobs of a run that have no record there, by the job's id, an array's, or the directory."""
    folders = {str(place.resolve()) for place in (Path(text), Path("runs") / text)}
    jobs = [job for job in slurm.Answers().own_jobs() if job.live and job.run_dir.startswith("/")]
    return [job for job in jobs if text in (job.id, job.id.partition("_")[0]) or job.run_dir in folders]


def queued_for(run_dir: Path, cluster: str | None = None) -> slurm.Job | None:
    """Find a live job that names the directory, whether it has a record or not; None where SLURM does not answer."""
    jobs = slurm.Answers().own_jobs(cluster)
    return next((job for job in jobs if job.live and job.run_dir == str(run_dir.absolute())), None)


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


def _look(launches: Sequence[Launch], answers: slurm.Answers, figures_read: Mapping[Launch, Latest] = {}) -> list[Run]:
    """Look at runs. SLURM is asked ahead of the directories: a job that ends in between leaves its status there."""
    with ThreadPoolExecutor(_READERS) as pool:
        runs = [Run(launch, "unknown") for launch in launches]
        runs = list(pool.map(functools.partial(_readable, _with_submission), runs))
        ids = {run.submission.job for run in runs if run.submission and not run.local}
        jobs = answers.queued(ids)
        with_evidence = functools.partial(_with_evidence, figures_read)
        runs = list(pool.map(functools.partial(_readable, with_evidence), runs))
    unsettled = {run.submission.job for run in runs if run.submission and not run.evidence.settled}
    jobs |= answers.accounted(unsettled & (ids - jobs.keys()))
    return [_judged(run, jobs, answers.error) for run in runs]


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
        run.launch.job_file.read_bytes()  # raises the cause, where there is one
        return replace(run, state="unreadable", reason="launch/job.json is damaged, or of another version")
    return replace(run, submission=submission)


def _with_evidence(figures_read: Mapping[Launch, Latest], run: Run) -> Run:
    """Return a run with what its directory shows."""
    if run.submission is None:
        return run
    evidence = verdict.read(run.launch, run.submission)
    return replace(run, evidence=evidence, figures=figures_read.get(run.launch) or figures.read(run.launch))


def _judged(run: Run, jobs: dict[str, slurm.Job], slurm_error: str) -> Run:
    """Return a run with how it stands."""
    if run.submission is None:
        return run
    name = run.submission.job
    if run.local:
        state, reason = verdict.of_local(name, run.evidence)
        return replace(run, state=state, reason=reason)
    job = jobs.get(name)
    if job and _is_job_of(job, run):
        state, reason = verdict.of_job(job, run.evidence)
        if job.waits and run.submission.left_out:
            names = ", ".join(run.submission.left_out)
            reason = "; ".join(filter(None, [reason, f"left out, since starts failed there: {names}"]))
        return replace(run, job=job, state=state, reason=reason)
    slurm_error = "" if job else slurm_error  # the job of another directory: SLURM counts anew, or this one was moved
    state, reason = verdict.of_unknown_job(name, run.evidence, slurm_error)
    return replace(run, slurm_error=slurm_error, state=state, reason=reason)


def _is_job_of(job: slurm.Job, run: Run) -> bool:
    """Return whether SLURM's job is the run's, by the job's comment: the run directory, or the folder of its sweep."""
    assert run.submission is not None
    own = {run.launch.run_dir.resolve(), Path(run.submission.sweep or run.launch.run_dir).resolve()}
    return not job.run_dir.startswith("/") or Path(job.run_dir).resolve() in own
