"""Runs on a devcluster: sent by the launcher's own command line, disturbed, compared with one that was left alone."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from launcher.__main__ import main
from launcher.checks import site
from slurm.devcluster import Cluster, ClusterError
from tests import jobs

FAST = jobs.ROOT / "tests" / "fast.yaml"
STEPS = 154  # seven epochs of the digits
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def launcher(
    cluster: Cluster, *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the launcher as a user does, with further variables."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        env=cluster.environment | (environment or {}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def submit(cluster: Cluster, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Send a run by the launcher in this process, which then measures each encoder once. Returns its job."""
    site.read.cache_clear()
    variables = cluster.environment | (environment or {})
    with mock.patch.dict(os.environ, variables, clear=True), redirect_stdout(io.StringIO()) as output:
        exit_status = main(arguments)
    match = re.search(r"^job: (\S+)$", output.getvalue(), re.MULTILINE)
    assert exit_status == 0 and match, output.getvalue()
    return match[1]


def submit_arguments(run_dir: Path, settings: dict[str, Any], *options: str) -> list[str]:
    """A submission of the small run on two nodes of two ranks."""
    overrides = {"optim.steps": STEPS, **settings, "run.dir": run_dir}
    words = [str(FAST), *(f"{key}={value}" for key, value in overrides.items())]
    place = ["--cluster", "devcluster", "--nodes", "2", "--gpus-per-node", "2"]
    return ["submit", *words, *place, *options]


class Sent:
    """A run that was sent to the cluster.

    Args:
        cluster: a devcluster.
        run_dir: its run directory.
        settings: overrides of FAST.
        options: further options of `submit`.
        job: of a run that something else has sent.
        environment: further variables of the shell that sends it.
    """

    def __init__(
        self,
        cluster: Cluster,
        run_dir: Path,
        settings: dict[str, Any] | None = None,
        *options: str,
        job: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._environment = environment
        self.cluster, self.run_dir, self._settings, self._options = cluster, run_dir, settings or {}, options
        self.job = job or ""
        if job is None:
            self.send()

    def send(self) -> None:
        """Send it, also again."""
        words = submit_arguments(self.run_dir, self._settings, *self._options)
        self.job = submit(self.cluster, *words, environment=self._environment)

    def state(self) -> str:
        """SLURM's word."""
        try:
            words = self.cluster.call("squeue", "-h", "-a", "-t", "all", f"-j{self.job}", "-o", "%T").split()
        except ClusterError:
            return "UNKNOWN"
        return words[0] if words else "UNKNOWN"

    def log(self) -> str:
        """All that the job has written."""
        files = sorted((self.run_dir / "launch" / "logs").glob("*")) + sorted(
            (self.run_dir / "launch" / "submitit").glob("*log*")
        )
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def starts(self) -> int:
        """Starts so far."""
        try:
            return len((self.run_dir / "launch" / "starts.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def until(self, condition: Callable[[], object], what: str, timeout_seconds: float = 180) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {timeout_seconds} s; {self.state()}\n{self.log()}"
            time.sleep(0.2)

    def until_start(self, number: int) -> None:
        """Wait until so many starts are in the books."""
        self.until(lambda: self.starts() >= number, f"start {number}")

    def until_step(self, step: int) -> None:
        """Wait until so many steps are in the books, in a start that is under way."""
        self.until(lambda: jobs.last_step(self.run_dir) >= step, f"step {step}")

    def wait(self, timeout_seconds: float = 300) -> str:
        """SLURM's last word, once the job has ended for good: a job of a dead node ends before it is requeued."""
        sure_from = None
        deadline = time.monotonic() + timeout_seconds
        while True:
            state, now = self.state(), time.monotonic()
            sure_from = (sure_from or now) if state in _FINAL else None
            if sure_from and (state == "COMPLETED" or now - sure_from > 6):
                return state
            assert now < deadline, f"not over within {timeout_seconds} s: {state}\n{self.log()}"
            time.sleep(0.3)

    def last_job(self) -> str:
        """The job that the run was sent as last, by its record."""
        return str(json.loads((self.run_dir / "launch" / "job.json").read_text())["job"])

    def workers(self) -> list[int]:
        """Processes of its ranks, the youngest last."""
        return self._processes("launcher.job.worker", self.run_dir)

    def tasks(self) -> list[int]:
        """Processes that SLURM has started on the nodes."""
        return self._processes("submitit.core._submit", self.run_dir / "launch" / "submitit")

    def _processes(self, module: str, argument: Path) -> list[int]:
        """Processes that run a module of Python's with an argument; srun, which starts them, is none of them."""
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"python" in words[0] and module.encode() in words and str(argument).encode() in words:
                pids.append(int(folder.name))
        return sorted(pids)

    def kill_worker(self) -> None:
        """SIGKILL to one rank."""
        os.kill(self.workers()[-1], signal.SIGKILL)

    def signal(self, name: str) -> None:
        """A signal to all tasks, as SLURM sends it ahead of a time limit."""
        self.cluster.call("scancel", f"--signal={name}", self.job)

    def has_time(self) -> None:
        """Lift the time limit, which lets a start of the job train for seconds only."""
        self.cluster.call("scontrol", "update", f"JobId={self.job}", "TimeLimit=60")

    def preempt(self) -> None:
        """Have a job of the higher partition take the nodes for a moment."""
        taken = ["-p", "high", "-N2", f"--gpus-per-node={self.cluster.settings.gpus}", "-o", "/dev/null"]
        self.cluster.call("sbatch", *taken, "--wrap", "srun sleep 2")


def small(run_dir: Path, *words: str, steps: int = 3) -> list[str]:
    """Return the arguments for a submission of one rank."""
    overrides = [f"run.dir={run_dir}", f"optim.steps={steps}", "eval.knn_every=0"]
    return ["submit", str(FAST), *overrides, "--cluster", "devcluster", "--gpus-per-node", "1", *words]


def launch(
    cluster: Cluster, *words: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run the launcher as a user does. Returns its exit status, and all that it has printed."""
    done = launcher(cluster, *words, cwd=cwd, environment=environment)
    return done.returncode, done.stdout + done.stderr


def rows(cluster: Cluster, here: Path, *places: str) -> list[dict[str, Any]]:
    """Return the rows of `status`, however busy SLURM is."""
    listed = json.loads(launcher(cluster, "status", *places, "--json", "--patience", "30", cwd=here).stdout)
    assert isinstance(listed, list)
    return listed


def sent(
    cluster: Cluster, run_dir: Path, *words: str, steps: int = 3, environment: dict[str, str] | None = None
) -> Sent:
    """Submit a run."""
    code, said = launch(cluster, *small(run_dir, *words, steps=steps), environment=environment)
    job = re.search(r"^job: (\S+)$", said, re.MULTILINE)
    assert code == 0 and job, said
    return Sent(cluster, run_dir, job=job[1])
