"""One run as a person sees it: its directory, SLURM's queue and accounting, and its figures, joined."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which

from launcher import slurm
from launcher.record import Launch, Submission, refuse_others
from launcher.views import figures, verdict
from launcher.views.figures import NOTHING, Figures
from launcher.views.verdict import FOR_GOOD, State, Told
from moco_dist.errors import UserError

__all__ = ["FOR_GOOD", "Run", "State", "find", "listed", "look", "survey", "wait"]

_POLL_SECONDS = 1.0
_READERS = 16  # on a network disk each file takes milliseconds
_Question = Callable[[Collection[str], float], dict[str, slurm.Job]]


@dataclass(frozen=True)
class Run:
    """A run, as it stands."""

    launch: Launch
    state: State
    reason: str = ""
    """Why it waits or has ended, in one line; may be empty."""
    live: bool = False
    """Whether it waits or runs. Neither live nor ended: nobody could tell."""
    ended: bool = False
    """Whether it has ended. SLURM ends a job whose node died for some seconds, before it requeues it."""
    submission: Submission | None = None
    job: slurm.Job | None = None
    """Its job as SLURM has it; None of a local one, and where SLURM does not know it."""
    told: Told | None = None
    """What its directory tells; None where it cannot be read."""
    figures: Figures = NOTHING
    silence: str = ""
    """Why SLURM did not tell of its job, where it was asked and did not."""

    @property
    def name(self) -> str:
        """What to call it on a command line from here."""
        path, here = self.launch.run_dir.resolve(), Path.cwd()
        if path.parent == here / "runs":
            return path.name
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max(self.figures.step, self.saved_step)

    @property
    def saved_step(self) -> int:
        """Step in status.json: of the last save, or of the end."""
        return self.told.step if self.told else 0

    @property
    def word(self) -> str:
        """State in status.json, where that is of the last start; else empty: this start has not begun to train."""
        return (self.told.state or "") if self.told and self.told.fresh else ""

    @property
    def starts(self) -> int:
        """Starts so far, of all its jobs."""
        return self.told.starts if self.told else 0

    @property
    def local(self) -> bool:
        """Whether it runs without SLURM."""
        return self.submission is not None and self.submission.executor == "local"

    @property
    def leaves(self) -> bool:
        """Whether SLURM has begun to end its job: it trains no more, but the nodes are not free yet."""
        return self.job is not None and self.job.state == "COMPLETING"

    @property
    def waits(self) -> bool:
        """Whether its job is in the queue, to be started."""
        return self.job is not None and self.job.waits


def find(text: str) -> Launch:
    """The run that a person means by a run directory, a name under runs/, or a job's id.

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
        raise UserError.of("RUN", text, f"cannot be read: {error}", "name another") from None
    if re.fullmatch(r"\d+(_\d+)?", text):
        return _of_job(text)
    rule = "is neither a run that was submitted, nor the name of one in runs/, nor a job's id"
    raise UserError.of("RUN", text, rule, "python -m launcher status lists them")


def find_all(text: str) -> list[Launch]:
    """The run that a person means, or the members of the sweep. Raises as `find`."""
    for folder in (Path(text), Path("runs") / text):
        members = [] if _is_run(folder) else listed([folder])
        if members and all((sent := _sent(m).submission) and sent.sweep for m in members):
            return members
    return [find(text)]


def listed(places: Iterable[Path]) -> list[Launch]:
    """The runs among the places and right inside them, and the members of sweeps there, by name.

    Those that cannot be read are among them.
    """
    found: dict[Path, None] = {}
    for place in places:
        inside = _inside(place)
        sweeps = [folder for folder in inside if not _is_run(folder) and (folder / "launch").is_dir()]
        folders = [place, *inside, *(member for sweep in sweeps for member in _inside(sweep))]
        found.update((folder.resolve(), None) for folder in folders if _is_run(folder))
    return [Launch(path) for path in found]


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def look(launches: Sequence[Launch], timeout_seconds: float = 10.0) -> list[Run]:
    """How runs stand. Never raises for a broken run directory, nor for SLURM: see `state` and `silence`.

    Args:
        launches: the runs.
        timeout_seconds: how long SLURM may take for its answers, in all.
    """
    return _look(launches, _Slurm(timeout_seconds))


def answered(launches: Sequence[Launch]) -> list[Run]:
    """How the runs stand, before anything is done to one.

    Raises:
        UserError: one cannot be read.
        Unavailable: SLURM does not tell of one.
    """
    found = look(launches)
    for run in found:
        if run.silence:
            raise slurm.Unavailable(run.silence)
        if run.state == "unreadable":
            raise UserError.of("RUN", run.name, run.reason, "mend it, or use SLURM's own commands")
    return found


def survey(places: Sequence[Path] = (), timeout_seconds: float = 10.0) -> tuple[list[Run], str]:
    """The runs in places; without places those in runs/, and those of this user's live jobs.

    Returns:
        The runs, and why SLURM did not tell, where it was asked and did not.
    """
    cluster = _Slurm(timeout_seconds)
    with ThreadPoolExecutor(_READERS) as pool:
        answer = pool.submit(cluster.all)
        launches = listed(places or [Path("runs")])
        known = dict(zip(launches, pool.map(figures.read, launches), strict=True))  # while SLURM thinks
        live = [job.run_dir for job in answer.result() if job.live and job.run_dir.startswith("/")]
    if not places:
        launches += listed(map(Path, dict.fromkeys(live)))
    found = _look(list({launch.run_dir.resolve(): launch for launch in launches}.values()), cluster, known)
    return found, next((run.silence for run in found if run.silence), "" if places else cluster.silence)


def queued_for(run_dir: Path, timeout_seconds: float = 10.0) -> slurm.Job | None:
    """A live job that names the directory, whether there is a record of it or not. None where SLURM does not tell."""
    jobs = _Slurm(timeout_seconds).all()
    return next((job for job in jobs if job.live and job.run_dir == str(run_dir.absolute())), None)


def wait(launches: Sequence[Launch], over: Callable[[Run], bool], seconds: float) -> list[Run]:
    """Look until all the runs are as wished, or the time is up. Returns how they stand then."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        found = look(launches, timeout_seconds=max(1.0, min(10.0, left)))
        if all(over(run) for run in found) or left <= 0:
            return found
        time.sleep(min(_POLL_SECONDS, max(0.0, left)))


class _Slurm:
    """SLURM's answers, all of them within a time."""

    def __init__(self, timeout_seconds: float) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self._all: dict[str, slurm.Job] | None = None
        self.silence = ""

    def all(self) -> Collection[slurm.Job]:
        """This user's jobs in the queue; none, and no word of it, where there is no SLURM."""
        self._all = {}
        if which("squeue"):
            try:
                self._all = slurm.queue(timeout_seconds=self._left())
            except slurm.Unavailable as error:
                self.silence = str(error)
        return self._all.values()

    def queued(self, ids: Collection[str]) -> dict[str, slurm.Job]:
        """The named jobs, as far as the queue has them."""
        if self._all is not None and not self.silence:
            return {job: self._all[job] for job in ids if job in self._all}
        return self._ask(slurm.queue, ids)

    def accounts(self, ids: Collection[str]) -> dict[str, slurm.Job]:
        """The named jobs, as far as the accounting has them."""
        return self._ask(slurm.accounting, ids) if which("sacct") else {}

    def _ask(self, command: _Question, ids: Collection[str]) -> dict[str, slurm.Job]:
        if not ids or self.silence:
            return {}
        try:
            return command(ids, self._left())
        except slurm.Unavailable as error:
            self.silence = str(error)
            return {}

    def _left(self) -> float:
        return max(0.1, round(self._deadline - time.monotonic(), 1))


def _look(launches: Sequence[Launch], cluster: _Slurm, known: Mapping[Launch, Figures] = {}) -> list[Run]:
    """The runs. SLURM is asked ahead of the directories: a job that has ended since has left its status there."""
    with ThreadPoolExecutor(_READERS) as pool:
        sent = list(pool.map(_sent, launches))
        ids = {run.submission.job for run in sent if run.submission and not run.local}
        jobs = cluster.queued(ids)
        read = list(pool.map(functools.partial(_read, known), sent))
    lost = {r.submission.job for r in read if r.submission and r.told and not r.told.settled} & (ids - jobs.keys())
    jobs |= cluster.accounts(lost)
    return [_judge(run, jobs, cluster.silence) for run in read]


def _sent(launch: Launch) -> Run:
    """A run with its submission, if that can be read."""

    def read() -> Run:
        submission = launch.submission()
        if submission is None:
            launch.job_file.read_bytes()  # the cause, where there is one
            return Run(launch, "unreadable", "launch/job.json is damaged, or of another version")
        return Run(launch, "unknown", submission=submission)

    return _readable(launch, read)


def _read(known: Mapping[Launch, Figures], run: Run) -> Run:
    """A run with what its directory tells, if that can be read."""

    def read() -> Run:
        if run.submission is None:
            return run
        told = verdict.read(run.launch, run.submission)
        return replace(run, told=told, figures=known.get(run.launch) or figures.read(run.launch))

    return _readable(run.launch, read)


def _readable(launch: Launch, read: Callable[[], Run]) -> Run:
    """What could be read of a run, or a run that says why it could not."""
    try:
        return read()
    except UserError as error:
        return Run(launch, "unreadable", str(error))
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        return Run(launch, "unreadable", cause or f"a file in it is damaged: {error}")


def _judge(run: Run, jobs: dict[str, slurm.Job], silence: str) -> Run:
    """A run with how it stands."""
    if run.submission is None or run.told is None:
        return run
    name = run.submission.job
    if run.local:
        return replace(run, **verdict.of_local(name, run.told)._asdict())
    job = jobs.get(name)
    if job and _is_job_of(job, run):
        return replace(run, job=job, **verdict.of_job(job, run.told)._asdict())
    silence = "" if job else silence  # the job of another directory: SLURM counts anew, or this one was moved
    return replace(run, silence=silence, **verdict.of_silence(name, run.told, silence)._asdict())


def _is_job_of(job: slurm.Job, run: Run) -> bool:
    """Whether SLURM's job is the run's, by its comment: its directory, or its sweep's folder, where SLURM tells."""
    assert run.submission is not None
    own = {run.launch.run_dir.resolve(), Path(run.submission.sweep or run.launch.run_dir).resolve()}
    return not job.run_dir.startswith("/") or Path(job.run_dir).resolve() in own


def _is_run(folder: Path) -> bool:
    """Whether the launcher has sent it, or it may be so and cannot be read."""
    try:
        return Launch(folder).job_file.is_file()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _of_job(job: str) -> Launch:
    """The run whose last submission a job is. Raises UserError, Unavailable."""
    found = _sent_as(job, Path("runs"))
    if len(found) != 1 and (known := slurm.queue([job]).get(job)) and known.run_dir.startswith("/"):
        found = _sent_as(job, Path(known.run_dir)) or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(launch.run_dir.name for launch in found)
    rule = f"is the job of {names}" if found else "is no job of a run in runs/, and no job in the queue that names one"
    raise UserError.of("RUN", job, rule, "name the run directory")


def _sent_as(job: str, place: Path) -> list[Launch]:
    """The runs in a place whose last submission a job is; another user's are none."""
    return [launch for launch in listed([place]) if (sent := _sent(launch).submission) and sent.job == job]
