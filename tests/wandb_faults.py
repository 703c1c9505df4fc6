"""Show what W&B does to training when it fails: real runs online against a server of ours, with a fault in each.

python -m tests.wandb_faults [--steps 100] [--only FAULT ...]

Prints for each fault whether the losses are those of a run without W&B, how many rows there are, and by how many
seconds start and exit take longer than in that run. Between them, the training thread puts rows into a queue.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import jobs, wandb_file
from tests.fake_wandb import FakeWandb


@dataclass
class Seconds:
    """The time that the parts of a run took."""

    start: float
    """Seconds from the config in the run directory, which is written ahead of W&B's start, to the first row."""
    exit: float
    """Seconds from the status `done` to the end of the process."""


@dataclass
class Fault:
    """A fault, which begins with the run or amid it."""

    name: str
    at_start: Callable[[FakeWandb], None] = lambda server: None
    """Does something to the server before the run begins."""
    amid: Callable[[FakeWandb, jobs.Job], None] | None = None
    """Does something when `after` of the steps are done."""
    after: float = 0.5
    killed: bool = False
    """True where the run itself is killed there, and started again."""
    key: bool = True


def fill_disk(trainer: int) -> None:
    """Let every further write to a file by W&B's process of a trainer fail, as where a disk is full."""
    for core in core_of(trainer):
        resource.prlimit(core, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def core_of(trainer: int) -> list[int]:
    """Return the ids of W&B's processes that a trainer has started."""
    children = [
        int(pid) for file in Path(f"/proc/{trainer}/task").glob("*/children") for pid in file.read_text().split()
    ]
    return [child for child in children if Path(f"/proc/{child}/comm").read_text() == "wandb-core\n"]


def signal_core(number: signal.Signals) -> Callable[[FakeWandb, jobs.Job], None]:
    def send(server: FakeWandb, job: jobs.Job) -> None:
        cores = core_of(job.process.pid)
        assert cores, "no wandb-core"
        for core in cores:
            os.kill(core, number)

    return send


def answer(status: int) -> Callable[..., None]:
    return lambda server, job=None: setattr(server, "fail_all", status)


def slow(server: FakeWandb, job: jobs.Job | None = None) -> None:
    server.delay = 10.0


def kill(server: FakeWandb, job: jobs.Job) -> None:
    job.kill_all()


FAULTS = (
    Fault("none"),
    Fault("killed by SIGKILL and started again", amid=kill, killed=True),
    Fault("server down from the start", at_start=FakeWandb.go),
    Fault("server gone in the middle", amid=lambda server, job: server.go()),
    Fault("server gone at the last steps", amid=lambda server, job: server.go(), after=0.97),
    *(Fault(f"{status} from the start", at_start=answer(status)) for status in (500, 429, 403)),
    *(Fault(f"{status} from the middle on", amid=answer(status)) for status in (500, 429, 403)),
    Fault("slow from the start, 10 s an answer", at_start=slow),
    Fault("slow from the middle on, 10 s an answer", amid=slow),
    Fault("W&B's process killed", amid=signal_core(signal.SIGKILL)),
    Fault("W&B's process stopped", amid=signal_core(signal.SIGSTOP)),
    Fault("disk full for W&B's process", amid=lambda server, job: fill_disk(job.process.pid)),
    Fault("no key", key=False),
)


def train(run_dir: Path, steps: int, mode: str, server: FakeWandb | None, fault: Fault) -> Seconds:
    """Train with a fault, and take the times of the last start. Raises AssertionError where it does not end well."""
    settings = {"optim.steps": steps, "eval.knn_every": 0, "checkpoint.every_steps": 20, "track.wandb": mode}
    environment = server.env() if server else {}
    environment = {**environment, "HOME": "/nonexistent"}
    if not fault.key:
        environment.pop("WANDB_API_KEY")
    with jobs.Job(run_dir, 0, settings, environment=environment) as job:
        first_row = watch(job, 1)
        if fault.amid and server:
            job.until_step(int(steps * fault.after))
            fault.amid(server, job)
        if not fault.killed:
            return finish(job, first_row)
    with jobs.Job(run_dir, 0, settings, environment=environment) as job:
        return finish(job, watch(job, jobs.last_step(run_dir)))


def watch(job: jobs.Job, step: int) -> float:
    """Wait for a step, and return when its row was there."""
    job.until(lambda: (job.run_dir / "config.yaml").exists(), "config")
    assert job.until_step(step), job.log
    return time.time()


def finish(job: jobs.Job, first_row: float) -> Seconds:
    assert job.wait(600) == 0, job.log
    ended, done = time.time(), (job.run_dir / "status.json").stat().st_mtime
    began = (job.run_dir / "config.yaml").stat().st_mtime
    return Seconds(first_row - began, ended - done)


def in_files(run_dir: Path) -> int:
    """Count the steps in W&B's files, of which `wandb sync` would send what the server lacks."""
    steps: set[int] = set()
    for segment in run_dir.glob("wandb/*run-*"):
        if list(segment.glob("run-*.wandb")):
            steps |= set(wandb_file.read(segment).steps())
    return len(steps)


def line(fault: Fault, folder: Path, steps: int, reference: dict[int, float], undisturbed: Seconds) -> str:
    """Train with a fault, and write its line of the table."""
    run_dir = folder / "".join(c if c.isalnum() else "_" for c in fault.name)
    with FakeWandb() as server:
        fault.at_start(server)
        took = train(run_dir, steps, "online", server, fault)
        sent = [row["train/step"] for run in server.runs.values() for row in run.history if "train/loss" in row]
    equal = "yes" if jobs.losses(run_dir) == reference else "NO"
    rows = len([row for row in jobs.rows(run_dir) if "loss" in row])
    doubled = " (doubled)" if len(set(sent)) < len(sent) else ""
    start, end = (f"{max(0.0, value):.1f}" for value in (took.start - undisturbed.start, took.exit - undisturbed.exit))
    start = "-" if fault.killed else start  # the second start begins with rows
    return f"| {fault.name} | {equal} | {rows} | {len(sent)}{doubled} | {in_files(run_dir)} | {start} | {end} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", metavar="FAULT", help="words that the names of faults contain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = train(folder / "without", options.steps, "disabled", None, FAULTS[0])
        reference = jobs.losses(folder / "without")
        print("| fault | losses equal | rows | at the server | in W&B's files | start, s | exit, s |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for fault in FAULTS:
            if not options.only or any(word in fault.name for word in options.only):
                print(line(fault, folder, options.steps, reference, undisturbed), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
