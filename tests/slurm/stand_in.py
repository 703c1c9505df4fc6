"""A job that behaves towards SLURM and its run directory as a run does, without training: python stand_in.py RUN_DIR.

USR2: saves, says stopped, requeues itself. TERM: saves, says stopped, stays. With `deaf` it does nothing on either.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

run_dir, deaf = Path(sys.argv[1]), "deaf" in sys.argv
job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
asked: list[int] = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda number, _: asked.append(number))


def tell(state: str, step: int, reason: str = "") -> None:
    """Replace status.json."""
    aside = run_dir / ".status"
    aside.write_text(json.dumps({"state": state, "step": step, "reason": reason}))
    aside.replace(run_dir / "status.json")


def append(file: str, line: str) -> None:
    """Add a line to a file of the run directory."""
    with (run_dir / file).open("a") as out:
        out.write(line + "\n")


(run_dir / "checkpoints").mkdir(exist_ok=True)
step = max((int(file.stem[5:]) for file in (run_dir / "checkpoints").glob("step_*.pt")), default=0)
start = {"job": job, "restart": restart, "step": step, "time": time.time(), "nodes": [os.environ["SLURMD_NODENAME"]]}
append("launch/starts.jsonl", json.dumps(start))
append("launch/logs/rank_00000.log", f"--- job {job}, start {restart}")
time.sleep(0.05)
tell("running", step)
while not asked or deaf:
    step += 1
    row = {"step": step, "epoch": step // 1000, "loss": 5.0, "lr": 0.03, "images_per_second": 64.0}
    append("metrics.jsonl", json.dumps(row))
    append("launch/logs/rank_00000.log", f"step {step}")
    time.sleep(0.1)
time.sleep(2)  # the time that saving takes
(run_dir / "checkpoints" / f"step_{step:08d}.pt").touch()
tell("stopped", step, f"stopped on request after step {step}")
append("launch/logs/rank_00000.log", "saved")
if asked[0] == signal.SIGUSR2:
    subprocess.run(["scontrol", "requeue", job], check=True)
time.sleep(600)
