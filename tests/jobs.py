"""Jobs of real processes for the tests of reliability: started by torchrun, watched, killed, compared."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moco_dist import train
from tests.ranks import free_port

ROOT = Path(__file__).parent.parent
EPOCH_STEPS = 22  # of the 1,438 digits that are trained on, in batches of 64
CHECKPOINT_EVERY = 7
FAST = ROOT / "tests" / "fast.yaml"


class Job:
    """One start of the trainer on so many ranks, in processes that can be told from all others.

    Args:
        run_dir: run directory.
        ranks: processes of torchrun; 0 starts the module alone, without torchrun.
        settings: overrides of the config, `section.key` to value.
        module: what is started.
        config: file of the settings that are overridden; None starts the embedded default.
        torchrun: further options of torchrun.
        environment: further variables.
        tree: checkout whose code runs.
        arguments: command line of the module; unset, the config and the settings.
        terminal: descriptor of a terminal that becomes the job's own; all that it prints goes there, not to the log.
    """

    def __init__(
        self,
        run_dir: Path,
        ranks: int,
        settings: dict[str, Any],
        *,
        module: str = "moco_dist.train",
        config: Path | None = FAST,
        torchrun: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        tree: Path = ROOT,
        arguments: Sequence[str] | None = None,
        terminal: int | None = None,
    ) -> None:
        self.run_dir = run_dir
        self._mark = f"MOCO_DIST_JOB={secrets.token_hex(8)}"
        self.log_file = run_dir.with_name(f"{run_dir.name}.{time.time_ns()}.log")
        overrides = [f"{key}={value}" for key, value in {**settings, "run.dir": run_dir}.items()]
        if arguments is None:
            arguments = [str(config), *overrides] if config else overrides
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *torchrun]
        environment = {**environment_of(tree), **(environment or {})}
        environment.update([self._mark.split("=")])
        self.began, self.began_at = time.monotonic(), time.time()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(launch if ranks else []), "-m", module, *arguments],
                cwd=tree,
                env=environment,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=log if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=terminal and functools.partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0),
            )
        self.seen = {self.process.pid}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def pids(self) -> set[int]:
        """Live processes of this job, whoever their parents are by now."""
        pids = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    pids.add(int(folder.name))
            except OSError:
                continue
        self.seen |= pids
        return pids

    def ranks(self) -> dict[int, int]:
        """Process of each rank that runs now: the children of torchrun."""
        pids = {}
        for pid in self.pids():
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [int(e.removeprefix(b"RANK=")) for e in environment if e.startswith(b"RANK=")]
            if rank and parent == self.process.pid:
                pids[rank[0]] = pid
        return pids

    def workers(self, rank: int) -> list[int]:
        """Data workers of a rank."""
        parent = self.ranks()[rank]
        return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    def wait(self, timeout_seconds: float = 180) -> int:
        """Exit status of torchrun. Raises AssertionError when it takes longer."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log = self.log
            self.kill_all()
            raise AssertionError(f"still running after {timeout_seconds} s:\n{log}") from None

    def until(self, condition: Callable[[], object], what: str, timeout_seconds: float = 180) -> bool:
        """Wait for a condition; False where the job ended before it."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if self.process.poll() is not None:
                return bool(condition())
            if time.monotonic() > deadline:
                log = self.log
                self.kill_all()
                raise AssertionError(f"no {what} within {timeout_seconds} s:\n{log}")
            time.sleep(0.004)
        return True

    def until_step(self, step: int) -> bool:
        """Wait until the step's row is written; False where the job ended before."""
        return self.until(lambda: last_step(self.run_dir) >= step, f"step {step}")

    def until_gone(self, timeout_seconds: float) -> float:
        """Seconds until no process of the job is left. Raises AssertionError when that takes longer."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < timeout_seconds:
            self.process.poll()
            if not self.pids():
                return waited
            time.sleep(0.05)
        left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in self.pids()}
        log = self.log
        self.kill_all()
        raise AssertionError(f"left after {timeout_seconds} s: {left}\n{log}")

    def kill_all(self) -> None:
        """SIGKILL to every process of the job."""
        while pids := self.pids():
            for pid in pids:
                send(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()


class Pair:
    """Two ranks without torchrun: they begin sooner, and the exit status of each is seen.

    Args:
        run_dir: run directory.
        settings: overrides of the config, `section.key` to value.
        environment: further variables.
        module: what is started.
        config: file of the settings that are overridden.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: dict[str, Any],
        *,
        environment: dict[str, str] | None = None,
        module: str = "moco_dist.train",
        config: Path = FAST,
    ) -> None:
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        world = {"WORLD_SIZE": "2", **rendezvous, **(environment or {})}
        places = ({**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
        self.ranks = [Job(run_dir, 0, settings, module=module, environment=place, config=config) for place in places]

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.kill_all()

    @property
    def log(self) -> str:
        return self.ranks[0].log

    def until_step(self, step: int) -> None:
        """Wait until the step's row is written."""
        assert self.ranks[0].until_step(step), self.log

    def exits(self, timeout_seconds: float = 180) -> list[int]:
        """Exit status of each rank. Raises AssertionError when one takes longer."""
        return [rank.wait(timeout_seconds) for rank in self.ranks]

    def signal_all(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            send(rank.process.pid, number)


def train_here(run_dir: Path, settings: dict[str, Any]) -> int:
    """Train on one rank in this process, which has torch already. Returns the exit status."""
    return train.run([str(FAST), *(f"{key}={value}" for key, value in {**settings, "run.dir": run_dir}.items())])


def environment_of(tree: Path) -> dict[str, str]:
    """The environment of a process that imports the code of a checkout, whatever else is installed."""
    others = os.environ.get("PYTHONPATH")
    path = f"{tree}{os.pathsep}{others}" if others else str(tree)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(run_dir: Path) -> int:
    """Step of the last training row."""
    return max((row["step"] for row in rows(run_dir) if "loss" in row), default=0)


def losses(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(run_dir) if "loss" in row}


def knn(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["knn_top1"] for row in rows(run_dir) if "knn_top1" in row}


def status(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return content


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step_*.pt"))


def state(run_dir: Path) -> dict[str, Any]:
    """The state in the last checkpoint, read with torch alone."""
    content: dict[str, Any] = torch.load(checkpoints(run_dir)[-1], weights_only=True)
    return content


def kind(row: dict[str, Any]) -> str:
    """Name the kind of a row: of training, of an evaluation, or of a finding that begins or ends."""
    if "finding" in row:
        return f"{row['finding']} {row['state']}"
    return "train" if "loss" in row else "eval"


@dataclass(frozen=True)
class Comparison:
    """The differences of a run from one that was never interrupted."""

    lost: list[int]
    """Steps without a row."""
    doubled: list[tuple[str, int]]
    """Rows that stand there more than once."""
    difference: float
    """Largest of the losses."""
    knn_equal: bool
    unequal: list[str]
    """Parts of the last checkpoint that are not equal bit for bit."""

    @property
    def exact(self) -> bool:
        return not (self.lost or self.doubled or self.difference or self.unequal) and self.knn_equal

    def __str__(self) -> str:
        parts = ", ".join(self.unequal) or "none"
        return (
            f"steps lost: {len(self.lost)} {self.lost[:9] or ''}\n"
            f"rows doubled: {len(self.doubled)} {self.doubled[:9] or ''}\n"
            f"largest difference of the losses: {self.difference:g}\n"
            f"kNN figures equal: {'yes' if self.knn_equal else 'NO'}\n"
            f"unequal in the last checkpoint (encoders, queue, optimizer ...): {parts}"
        )


def compare(run: Path, reference: Path, steps: int) -> Comparison:
    """Hold a finished run against the reference, both of so many steps."""
    ours, theirs = losses(run), losses(reference)
    assert set(theirs) == set(range(1, steps + 1)), "the reference itself lacks steps"
    times = Counter((kind(row), row["step"]) for row in rows(run))
    one, other = state(run), state(reference)
    return Comparison(
        lost=sorted(set(theirs) - set(ours)),
        doubled=[key for key, count in times.items() if count > 1],
        difference=max(abs(ours[s] - theirs[s]) for s in ours.keys() & theirs.keys()),
        knn_equal=knn(run) == knn(reference),
        unequal=[
            key for key in one.keys() | other.keys() if key != "config" and not equal(one.get(key), other.get(key))
        ],
    )


def equal(one: Any, other: Any) -> bool:
    """Tell whether two states are alike, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)
