"""Time commands that say `--help`, refuse a config, or import what training needs, beside `import torch`.

python -m benchmarks.startup [--rounds N] [--json PATH]

CPU seconds of a process and its children, the least of some rounds: waiting for a shared machine does not count. Each
command may take 0.7 s or a fifth of `import torch`, whichever is more; the exit status is 1 where one takes longer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.runs import command_of, machine

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS, LIMIT_SHARE = 0.7, 0.2
LAUNCHER = ("submit", "status", "logs", "cancel", "requeue", "sweep", "preflight")
TRAINING = "import moco_dist.methods.moco, moco_dist.train.process"


def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 1 where a command takes longer than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    options = parser.parse_args(arguments)
    torch_seconds = cpu_seconds(["-c", "import torch"], options.rounds)
    limit = max(LIMIT_SECONDS, LIMIT_SHARE * torch_seconds)
    commands = {
        "train --help": ["-m", "moco_dist.train", "--help"],
        "train optim.lr=fast": ["-m", "moco_dist.train", "optim.lr=fast"],
        "evaluate --help": ["-m", "moco_dist.evaluate", "--help"],
        "evaluate without a run": ["-m", "moco_dist.evaluate", "no/such/run"],
        "launcher --help": ["-m", "launcher", "--help"],
        **{f"launcher {name} --help": ["-m", "launcher", name, "--help"] for name in LAUNCHER},
        "launcher submit optim.lr=fast": ["-m", "launcher", "submit", "optim.lr=fast"],
    }
    seconds = {name: cpu_seconds(command, options.rounds) for name, command in commands.items()}
    training = cpu_seconds(["-c", TRAINING], options.rounds)
    print(f"{'import torch':32} {torch_seconds:6.2f} s of CPU time")
    print(f"{'what training imports':32} {training:6.2f} s, {training / torch_seconds:.2f} of import torch")
    for name, of_command in seconds.items():
        print(f"{name:32} {of_command:6.2f} s{'' if of_command <= limit else '  TOO LONG'}")
    print(f"a command may take {limit:.2f} s")
    if options.json:
        measured = {"import torch": torch_seconds, "what training imports": training, **seconds}
        rows = [{"command": name, "CPU seconds": round(of_command, 2)} for name, of_command in measured.items()]
        results = {"command": command_of("benchmarks.startup", arguments), "machine": machine("cpu"), "rows": rows}
        options.json.write_text(json.dumps({**results, "limit_seconds": limit}, indent=1) + "\n")
    return 1 if max(seconds.values()) > limit else 0


def cpu_seconds(command: list[str], rounds: int) -> float:
    """Return the least CPU time of a Python command over some rounds, after one that fills the disk's cache."""
    times = []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
