"""Break a real job at random moments and see whether anything shows in its result.

python -m tests.chaos --kills 20 --ranks 2 [--seed S] [--workers N] [--steps N]
python -m tests.chaos --elastic 4,2,1,4
python -m tests.chaos --fault disk-full|torn-checkpoint|bit-flip|hang|oom|worker [--ranks N]

Trains on digits under torchrun. Exits 0 where all that is promised held.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.jobs import (
    CHECKPOINT_EVERY,
    EPOCH_STEPS,
    Job,
    checkpoints,
    compare,
    knn,
    last_step,
    rows,
    send,
    status,
)

GONE_SECONDS = 15.0  # what may pass from the death of torchrun to that of its last process
END_SECONDS = 45.0  # from the death of a rank to the end of the job
KILL_DELAY_SECONDS = 30.0  # torchrun's own, between SIGTERM and SIGKILL
HANG_SECONDS = 14


class Chaos:
    """One experiment: its folder, its dice, its settings."""

    def __init__(self, folder: Path, seed: int, ranks: int, workers: int, steps: int) -> None:
        self.folder, self.dice, self.ranks, self.steps = folder, random.Random(seed), ranks, steps
        self.settings: dict[str, Any] = {"optim.steps": steps, "data.workers": workers}
        self.seen: set[int] = set()

    def start(self, name: str, ranks: int | None = None, **options: Any) -> Job:
        settings = {**self.settings, **options.pop("settings", {})}
        return Job(self.folder / name, ranks or self.ranks, settings, **options)

    def end(self, job: Job) -> None:
        """Let a job run to its end, which must be a good one."""
        with job:
            code = job.wait()
            assert code == 0, f"exit status {code}:\n{job.log}"
            job.until_gone(GONE_SECONDS)
        self.seen |= job.seen

    def reference(self, ranks: int | None = None, **options: Any) -> Path:
        """A run that nothing interrupts."""
        job = self.start("reference", ranks, **options)
        with job:
            job.until_step(1)
            self.start_seconds = time.monotonic() - job.began
            self.end(job)
        return job.run_dir

    def left_in_shared_memory(self) -> list[str]:
        """Files in /dev/shm that bear the number of one of our processes."""
        names = [path.name for path in Path("/dev/shm").iterdir()]
        return [name for name in names if {int(n) for n in re.findall(r"\d+", name)} & self.seen]


def kills(chaos: Chaos, count: int) -> bool:
    """Kill a run so many times, at random moments; True where its end is that of a run never killed."""
    reference = chaos.reference()
    print(f"reference: {chaos.steps} steps on {chaos.ranks} ranks, first step after {chaos.start_seconds:.1f} s")
    run, landed, slowest = chaos.folder / "run", Counter[str](), 0.0
    for number in range(count):
        with chaos.start("run") as job:
            if not _random_moment(chaos, job, number, count):
                assert job.wait() != 0, f"over after {number} kills, before the next: give it more --steps\n{job.log}"
                raise AssertionError(f"died by itself before kill {number + 1}:\n{job.log}")
            where, victim = _where(job), _kill_one(chaos, job)
            killed = time.monotonic()
            if victim.startswith("rank"):  # torchrun must see to the others
                code = job.wait(END_SECONDS)
                assert code != 0, f"torchrun says 0 after the loss of {victim}"
            job.until_gone(GONE_SECONDS)
            slowest = max(slowest, time.monotonic() - killed)
            if list(run.glob("checkpoints/.step_*")):
                where = "checkpoint"
            landed[where] += 1
            chaos.seen |= job.seen
            print(f"kill {number + 1}: {victim}, in {where}, after step {last_step(run)}", flush=True)
    chaos.end(chaos.start("run"))
    comparison = compare(run, reference, chaos.steps)
    shared_memory = chaos.left_in_shared_memory()
    print(f"kills survived: {count} (in {', '.join(f'{n} {w}' for w, n in sorted(landed.items()))})")
    print(f"longest until the last process was gone: {slowest:.1f} s; left in /dev/shm: {shared_memory or 'nothing'}")
    print(comparison)
    return comparison.exact and not shared_memory


def _random_moment(chaos: Chaos, job: Job, number: int, count: int) -> bool:
    """Wait for the moment of a kill; False where the job ended before. The moments move through the run."""
    kind = chaos.dice.choice(["start-up", "step", "step", "checkpoint", "checkpoint", "evaluation", "epoch"])
    if kind == "start-up":
        time.sleep(chaos.dice.uniform(0, 1.1 * chaos.start_seconds))
        return job.process.poll() is None
    target = int(chaos.steps * (number + chaos.dice.random()) / (count + 1))
    done = max(target, last_step(job.run_dir) + 1, 1)
    if kind == "step":
        wait, delay = done, chaos.dice.uniform(0, 0.2)
    elif kind == "checkpoint":
        wait, delay = -(-done // CHECKPOINT_EVERY) * CHECKPOINT_EVERY, 0.0
    else:
        wait, delay = -(-done // EPOCH_STEPS) * EPOCH_STEPS, chaos.dice.uniform(0, 0.3)
    if wait >= chaos.steps:
        wait, kind = min(done, chaos.steps - 1), "step"
    if not job.until_step(wait):
        return False
    if kind == "checkpoint":  # a file in the making is there for milliseconds
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not list(job.run_dir.glob("checkpoints/.step_*")):
            pass
        delay = chaos.dice.uniform(0, 0.005)
    if kind == "epoch":
        job.until(lambda: wait in knn(job.run_dir), f"evaluation after step {wait}")
    time.sleep(delay)
    return job.process.poll() is None


def _where(job: Job) -> str:
    """Return what the job is doing, by what it has written."""
    metrics, step = job.run_dir / "metrics.jsonl", last_step(job.run_dir)
    if not metrics.exists() or metrics.stat().st_mtime < job.began_at:
        return "start-up"
    if step and step % EPOCH_STEPS == 0:
        return "epoch change" if step in knn(job.run_dir) else "evaluation"
    return "step"


def _kill_one(chaos: Chaos, job: Job) -> str:
    """SIGKILL to a random victim. Returns its name."""
    ranks = job.ranks()
    names = [*(f"rank {rank}" for rank in ranks), "torchrun", "all processes", "all processes"]
    name = chaos.dice.choice(names)
    if name == "all processes":
        for pid in job.pids():
            send(pid, signal.SIGKILL)
    elif name == "torchrun":
        send(job.process.pid, signal.SIGKILL)
    else:
        send(ranks[int(name.removeprefix("rank "))], signal.SIGKILL)
    return name


def elastic(chaos: Chaos, ranks: list[int]) -> bool:
    """Stop a run and go on with another number of ranks; True where the curve is that of one number."""
    good = True
    for precision, steps, bound in (("fp64", chaos.steps, 1e-9), ("fp32", 20, 1e-4)):
        settings = {"device.precision": precision, "optim.steps": steps}
        folder = Chaos(chaos.folder / precision, chaos.dice.getrandbits(32), ranks[0], 0, steps)
        folder.folder.mkdir()
        reference = folder.reference(settings=settings)
        for number, size in enumerate(ranks[:-1], 1):
            with folder.start("run", size, settings=settings) as job:
                assert job.until_step(steps * number // len(ranks)), job.log
                if folder.dice.random() < 0.5:
                    name = f"SIGTERM to rank {(victim := folder.dice.choice(sorted(job.ranks())))}"
                    send(job.ranks()[victim], signal.SIGTERM)
                else:
                    name = "SIGKILL to all"
                    job.kill_all()
                job.wait(END_SECONDS)
                job.until_gone(GONE_SECONDS)
                said = status(job.run_dir)["state"]
                step = last_step(job.run_dir)
                print(f"{precision}: {size} ranks until step {step}: {name}, status {said}", flush=True)
                assert said == ("stopped" if "TERM" in name else "running"), job.log
        folder.end(folder.start("run", ranks[-1], settings=settings))
        comparison = compare(folder.folder / "run", reference, steps)
        print(
            f"{precision}: ranks {ranks} against {ranks[0]} throughout, {steps} steps: {len(comparison.lost)} lost, "
            f"{len(comparison.doubled)} doubled, "
            f"largest difference of the losses {comparison.difference:.3g} (bound {bound:g})"
        )
        good = good and not comparison.lost and not comparison.doubled and comparison.difference <= bound
    return good


def disk_full(chaos: Chaos) -> bool:
    """The disk takes no checkpoint for a while. The kernel refuses: no file may outgrow 200 kB."""
    reference = chaos.reference()
    with chaos.start("run") as job:
        job.until_step(20)
        resource.prlimit(job.ranks()[0], resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        kept = checkpoints(job.run_dir)
        job.until_step(20 + 3 * CHECKPOINT_EVERY)
        failures = [row.get("checkpoint_failures", 0) for row in rows(job.run_dir)]
        warnings = [line for line in job.log.splitlines() if "not saved" in line]
        print(f"refused by the kernel, training went on to step {last_step(job.run_dir)}; failures told {failures[-1]}")
        print("\n".join(warnings[:1]))
        good = failures[-1] >= 2 and bool(warnings) and checkpoints(job.run_dir)[-1] >= kept[-1]
        job.kill_all()
        print(f"killed; kept: {[path.name for path in checkpoints(job.run_dir)]}")
    chaos.end(chaos.start("run"))
    print(comparison := compare(chaos.folder / "run", reference, chaos.steps))
    return good and comparison.exact


def _damaged(chaos: Chaos, damage: Callable[[Path], None], word: str) -> bool:
    reference = chaos.reference()
    with chaos.start("run") as job:
        job.until_step(3 * CHECKPOINT_EVERY + chaos.dice.randrange(CHECKPOINT_EVERY))
        job.until(lambda: len(checkpoints(job.run_dir)) == 2, "second checkpoint")
        job.kill_all()
    newest = checkpoints(job.run_dir)[-1]
    damage(newest)
    again = chaos.start("run")
    chaos.end(again)
    messages = [line for line in again.log.splitlines() if newest.name in line]
    print("\n".join(messages))
    print(comparison := compare(chaos.folder / "run", reference, chaos.steps))
    return comparison.exact and any(word in line for line in messages)


def torn_checkpoint(chaos: Chaos) -> bool:
    """The newest checkpoint is cut at a random place."""
    return _damaged(chaos, lambda path: os.truncate(path, chaos.dice.randrange(path.stat().st_size)), "cut short")


def bit_flip(chaos: Chaos) -> bool:
    """One bit of the newest checkpoint is another."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chaos.dice.randrange(len(content) - 100)] ^= 1 << chaos.dice.randrange(8)
        path.write_bytes(content)

    return _damaged(chaos, flip, "checksum")


def _ends(chaos: Chaos, name: str, job: Job, since: float, limit_seconds: float, *words: str) -> bool:
    """The job ends in time, not with 0, and tells the cause; started again, it ends well."""
    with job:
        code = job.wait(limit_seconds + 60)
        seconds = time.monotonic() - since
        job.until_gone(GONE_SECONDS)
    chaos.seen |= job.seen
    last_block = job.log[job.log.rindex("Root Cause") :] if "Root Cause" in job.log else ""
    missing = [word for word in words if not re.search(word, last_block)]
    said = status(job.run_dir)
    print(f"{name}: exit {code} after {seconds:.1f} s (limit {limit_seconds:.0f} s), status {said}")
    if missing:
        print(f"not told: {missing}\n{job.log}")
    chaos.end(chaos.start(job.run_dir.name))
    return code != 0 and seconds <= limit_seconds and not missing and said["state"] == "crashed"


def _continued(chaos: Chaos, reference: Path, *names: str) -> bool:
    good = True
    for name in names:
        print(f"{name}, started again:\n{(comparison := compare(chaos.folder / name, reference, chaos.steps))}")
        good = good and comparison.exact
    return good and not chaos.left_in_shared_memory()


def hang(chaos: Chaos) -> bool:
    """A rank sleeps for good in a step; a rank is stopped by SIGSTOP, so that it cannot even tell."""
    reference, last = chaos.reference(), chaos.ranks - 1
    settings = {"run.hang_timeout_seconds": HANG_SECONDS}
    chaos.settings |= settings
    step = chaos.dice.randrange(10, 20)
    with chaos.start("sleep", module="tests.faulty", environment={"FAULT": f"sleep:{last}:{step}"}) as job:
        job.until_step(step)
        expected = f"rank {last} hangs by itself", rf"rank +: {last} "
        good = _ends(chaos, f"rank {last} sleeps", job, time.monotonic(), HANG_SECONDS, *expected)
    with chaos.start("stop") as job:
        job.until_step(step)
        send(job.ranks()[last], signal.SIGSTOP)
        limit = HANG_SECONDS + 10 + KILL_DELAY_SECONDS
        good &= _ends(chaos, f"SIGSTOP to rank {last}", job, time.monotonic(), limit, "waits for other ranks")
    return _continued(chaos, reference, "sleep", "stop") and good


def oom(chaos: Chaos) -> bool:
    """A rank is killed as the kernel does when memory runs out; in another run a rank raises MemoryError."""
    reference, last = chaos.reference(), chaos.ranks - 1
    step, good = chaos.dice.randrange(10, 30), True
    for fault, rank, word in (("killed", last, "Signal 9"), ("killed", 0, "Signal 9"), ("memory", last, "MemoryError")):
        name = f"{fault}{rank}"
        with chaos.start(name, module="tests.faulty", environment={"FAULT": f"{fault}:{rank}:{step}"}) as job:
            job.until_step(step)
            expected = word, rf"rank +: {rank} "
            good &= _ends(chaos, f"rank {rank}: {fault}", job, time.monotonic(), END_SECONDS, *expected)
    return _continued(chaos, reference, "killed0", f"killed{last}", f"memory{last}") and good


def worker(chaos: Chaos) -> bool:
    """An exception in a data worker; a data worker that is killed."""
    chaos.settings["data.workers"] = max(1, chaos.settings["data.workers"])
    reference, last = chaos.reference(), chaos.ranks - 1
    step, good = chaos.dice.randrange(10, 30), True
    for fault, word in (("worker-exception", "an exception of the test"), ("worker-killed", "worker .*killed")):
        with chaos.start(fault, module="tests.faulty", environment={"FAULT": f"{fault}:{last}:{step}"}) as job:
            job.until_step(step - 5)
            expected = word, rf"rank +: {last} "
            good &= _ends(chaos, fault, job, time.monotonic(), END_SECONDS, *expected)
    return _continued(chaos, reference, "worker-exception", "worker-killed") and good


FAULTS = {
    "disk-full": disk_full,
    "torn-checkpoint": torn_checkpoint,
    "bit-flip": bit_flip,
    "hang": hang,
    "oom": oom,
    "worker": worker,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, help="SIGKILLs at random moments")
    parser.add_argument("--elastic", help="numbers of ranks, one after the other: 4,2,1,4")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="may be given more than once")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="data workers a rank")
    parser.add_argument("--steps", type=int, help="of the run; 180 for --kills, 60 otherwise")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end in order, which takes the job along
    if not (options.kills or options.elastic or options.fault):
        parser.error("give --kills, --elastic or --fault")
    experiments: list[tuple[str, Callable[[Chaos], bool]]] = []
    if options.kills:
        experiments.append((f"{options.kills} kills", lambda chaos: kills(chaos, options.kills)))
    if options.elastic:
        sizes = [int(size) for size in options.elastic.split(",")]
        experiments.append((f"elastic {options.elastic}", lambda chaos: elastic(chaos, sizes)))
    experiments += [(name, FAULTS[name]) for name in options.fault or ()]
    failed = []
    for name, experiment in experiments:
        began = time.monotonic()
        print(f"== {name}: {options.ranks} ranks, seed {options.seed}", flush=True)
        steps = options.steps or (180 if name.endswith("kills") else 60)
        with tempfile.TemporaryDirectory(prefix="moco-dist-chaos-") as folder:
            try:
                good = experiment(Chaos(Path(folder), options.seed, options.ranks, options.workers, steps))
            except AssertionError as error:
                print(error)
                good = False
        print(f"{name}: {'held' if good else 'FAILED'}, {time.monotonic() - began:.0f} s", flush=True)
        failed += [] if good else [name]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
