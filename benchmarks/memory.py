"""The most memory that a training step takes: ours with 1 and 8 BatchNorm groups and in parts, the authors', the bare.

python -m benchmarks.memory [--device cuda] [--json PATH] [CONFIG.yaml] [section.key=value ...]

Each way to train is a process of its own, of one rank, which takes a few steps on random images. On a GPU: the most
bytes that torch allocated. On the CPU: the resident set at its largest, without what it was before the networks were
built. The setting is that of `benchmarks.throughput` on the CPU, configs/imagenet_v2.yaml on a GPU.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import steps
from benchmarks.runs import HERE, command_of, config_of, machine, parser_of
from benchmarks.throughput import SETTING
from moco_dist import files

OVERLAPPED = "device.engine=overlapped"
WAYS = {
    "bare step": (steps.bare, ()),
    "the authors' structure": (steps.of_the_authors, ()),
    "moco-dist, 1 BatchNorm group": (steps.ours, (OVERLAPPED, "moco.bn_groups=1")),
    "moco-dist, 8 BatchNorm groups": (steps.ours, (OVERLAPPED, "moco.bn_groups=8")),
    "moco-dist, 8 groups in 4 parts": (steps.ours, (OVERLAPPED, "moco.bn_groups=8", "optim.accumulate=4")),
    "moco-dist, 8 groups, exact": (steps.ours, ("device.engine=exact", "moco.bn_groups=8")),
}
STEPS = 3
SETTINGS = {"cpu": str(SETTING), "cuda": "configs/imagenet_v2.yaml"}


def main(arguments: Sequence[str]) -> int:
    """Measure each way, print, write. Returns the exit status."""
    parser = parser_of("benchmarks.memory", __doc__)
    parser.add_argument("--device", choices=tuple(SETTINGS), default="cpu")
    parser.add_argument(
        "--way", choices=tuple(WAYS), help="measure this one in this process, and print its bytes alone"
    )
    options = parser.parse_args(arguments)
    own_file = any(word.endswith(".yaml") for word in options.words)
    data = ("data.source=synthetic", "data.root=null", f"device.type={options.device}")
    words = [*(() if own_file else (SETTINGS[options.device],)), *data, *options.words]
    if options.way:
        print(peak_bytes(options.way, words, torch.device(options.device)))
        return 0
    config = config_of(words, "benchmarks.memory", __doc__)
    rows = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.memory", "--device", options.device, "--way", way, *options.words]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({"step": way, "MiB": round(int(done.stdout.split()[-1]) / 2**20)})
        print(f"{way:32} {rows[-1]['MiB']:8} MiB  {rows[-1]['MiB'] / rows[0]['MiB']:.2f} of the bare step", flush=True)
    for row in rows:
        row["of the bare step"] = round(row["MiB"] / rows[0]["MiB"], 2)
    what = f"{config.model.arch}, {config.data.image_size}², batch {config.optim.global_batch}"
    results = {"command": command_of("benchmarks.memory", arguments), "machine": machine(options.device), "what": what}
    if options.json:
        files.write_text(options.json, json.dumps({**results, "rows": rows}, indent=1) + "\n")
    return 0


def peak_bytes(way: str, words: Sequence[str], device: torch.device) -> int:
    """Take a few steps in this process, and return the most bytes that they took."""
    make, own = WAYS[way]
    config = config_of([*words, *own], "benchmarks.memory", __doc__)
    torch.set_num_threads(config.device.threads)
    before = _most_resident_bytes()
    steps.seconds(make(config, device), STEPS)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _most_resident_bytes() - before


def _most_resident_bytes() -> int:
    """Return the largest resident set that this process has had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
