"""Measure how long `python -m launcher status` takes for many runs, a third of which run, wait, or have crashed.

python -m benchmarks.status [--runs N] [--rounds N]

The runs are made up in a folder that is removed again: 500 rows, a log of 200 lines and two checkpoints each. SLURM's
commands are programs that answer at once, so what is measured is the launcher's own time, in seconds of the clock: the
least of some rounds. The exit status is 1 where that is more than 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.record import Launch, Submission
from moco_dist.run import status

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 2.0
COMMANDS = (["status"], ["status", "--json"], ["status", "--hours"])


def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 1 where the command takes longer than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.status", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args(arguments)
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make(place, options.runs)
        for words in COMMANDS:
            seconds = min(measure(place, words) for _ in range(options.rounds))
            slowest = max(slowest, seconds)
            print(f"python -m launcher {' '.join(words):18} {seconds:5.2f} s for {options.runs} runs")
    return int(slowest > LIMIT_SECONDS)


def make(place: Path, count: int) -> None:
    """Make runs, and programs in place of SLURM's."""
    queue = []
    for number in range(count):
        launch, job = Launch(place / "runs" / f"imagenet_v2_lr0.03_seed{number}"), str(1000 + number)
        for folder in (launch.logs, launch.submitit, launch.paths.checkpoints):
            folder.mkdir(parents=True, mode=0o700)
        launch.write(Submission(job=job, submitted=time.strftime("%Y-%m-%dT%H:%M:%S"), nodes=2))
        launch.config_file.write_text("optim: {global_batch: 64, steps: 1000}\n")
        launch.add_start(job=job, restart=0, step=0, time=time.time() - 3600, nodes=["n1", "n2"])
        row = {"epoch": 0, "loss": 5.0, "lr": 0.03, "images_per_second": 640.0, "checkpoint_failures": 1}
        launch.paths.metrics.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in range(1, 501)))
        launch.log(0).write_text("step, loss, learning rate\n" * 200)
        for step in (100, 200):
            (launch.paths.checkpoints / f"step_{step:09d}.pt").touch()
        slurm_state = ("RUNNING", "PENDING", "FAILED")[number % 3]
        status.write(launch.run_dir, "crashed" if slurm_state == "FAILED" else "running", 300, "", total_steps=1000)
        queue.append(f"{job}|{slurm_state}|None|n[1-2]|1:00|{launch.run_dir}\n")
    answers = {"squeue": "".join(queue), "sacct": ""}
    (place / "bin").mkdir()
    for name, answer in answers.items():
        (place / name).write_text(answer)
        (place / "bin" / name).write_text(f"#!/bin/sh\nexec cat {place / name}\n")
        (place / "bin" / name).chmod(0o755)


def measure(place: Path, words: Sequence[str]) -> float:
    """Return how long the command takes, in seconds."""
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    command = [sys.executable, "-m", "launcher", *words]
    subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
