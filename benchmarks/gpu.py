"""Measure the trainer on a GPU beside a bare step of torchvision's networks: speed, memory, data, checkpoints.

python -m benchmarks.gpu [PART ...] [--minutes 8] [--json PATH] [--device cpu]

One process, one GPU, no network, neither wandb nor submitit. The parts come in the order of their weight, and each
figure is printed when it is measured; a part for which the minutes no longer suffice is left out by name. What is
compared takes turns, and the median over the turns counts. torch.compile finds its cache empty. The exit status is 0
whatever the figures are, 1 where a part has failed, 2 without a GPU. `--device cpu` runs a small variant, which shows
that the parts work and nothing of a GPU's speed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import gpu_parts
from benchmarks.gpu_parts import Figure, Setting
from benchmarks.runs import command_of, machine
from moco_dist import files


class Part(NamedTuple):
    """A part of the benchmark has a name and the time that it takes at most."""

    measure: Callable[[Setting], Iterator[Figure]]
    seconds: int


PARTS = {
    "shipped": Part(gpu_parts.shipped, 210),
    "augmentation": Part(gpu_parts.augmentation, 10),
    "groups": Part(gpu_parts.groups, 30),
    "batch32": Part(gpu_parts.batch32, 180),
    "cifar10": Part(gpu_parts.cifar10, 110),
    "checkpoint": Part(gpu_parts.checkpoint, 30),
    "jpeg": Part(gpu_parts.jpeg, 15),
}


def main(arguments: Sequence[str]) -> int:
    """Measure the parts, print, write. Returns the exit status."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help="for all parts together; default: 8")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there, too")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small variant")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device here; --device cpu runs a small variant", file=sys.stderr)
        return 2
    results = {"command": command_of("benchmarks.gpu", arguments), "machine": machine(options.device)}
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    print("\n| part | what | figure | target |\n|---|---|---:|---:|", flush=True)
    rows, left_out, failed = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "TRITON_CACHE_DIR": f"{scratch}/triton"}
        setting = Setting(torch.device(options.device), Path(scratch))
        for name in options.parts or PARTS:
            left = 60 * options.minutes - (time.monotonic() - began)
            if setting.on_gpu and PARTS[name].seconds > left:
                left_out.append(name)
                print(f"| {name} | left out: {left:.0f} s left, it may take {PARTS[name].seconds} | | |", flush=True)
                continue
            try:
                for figure in PARTS[name].measure(setting):
                    rows.append({"part": name, **figure._asdict(), "met": figure.met})
                    print(f"| {name} | {figure.what} | {figure.shown} | {figure.target} |", flush=True)
            except Exception:
                traceback.print_exc()
                failed.append(name)
    print(f"\n{time.monotonic() - began:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if options.json:
        content = {**results, "rows": rows, "left_out": left_out, "failed": failed}
        files.write_text(options.json, json.dumps(content, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
