"""Check on a GPU what only a GPU can show; one line with figures for each check.

python -m tests.gpu [CHECK ...] [--device cuda|cpu] [--traces FOLDER] [--jobs N]

Each check runs in a process of its own, so that one that fails spoils no other. The exit status is 1 if any failed, 2
where there is no GPU. Neither wandb nor submitit is needed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.gpu.result import Result, Setting

ROOT = Path(__file__).parents[2]
CHECKS = {
    "learning": "runs",
    "resume": "runs",
    "nccl": "runs",
    "evaluation": "runs",
    "memory": "numbers",
    "traces": "numbers",
    "augmentation": "numbers",
    "overflow": "numbers",
    "waits": "numbers",
    "groups": "numbers",
}
"""Each check and the module of this package that has it, the longest first."""
LIMIT_SECONDS = 420


def main(arguments: list[str] | None = None) -> int:
    """Run the checks that the arguments name, or all. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small variant of each")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "goldens", metavar="FOLDER")
    parser.add_argument("--jobs", type=int, metavar="N", help="checks at a time; default: one for four cores, to 5")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.checks if name not in CHECKS]:
        parser.error(f"{unknown[0]} is no check; they are {', '.join(CHECKS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("tests.gpu: there is no CUDA device here; --device cpu runs a small variant", file=sys.stderr)
        return 2
    names, began = options.checks or list(CHECKS), time.monotonic()
    if len(names) == 1:
        return 0 if report(names[0], options.device, options.traces) else 1
    print(describe(options.device), flush=True)
    with ThreadPoolExecutor(options.jobs or max(1, min(5, (os.cpu_count() or 1) // 4))) as pool:
        passed = list(pool.map(lambda name: in_process(name, options.device, options.traces), names))
    failed = [name for name, right in zip(names, passed, strict=True) if not right]
    verdict = f"failed: {', '.join(failed)}" if failed else "all passed"
    print(f"{len(names)} checks, {verdict}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def describe(kind: str) -> str:
    """The card and the versions that the figures belong to."""
    card = "CPU"
    if kind == "cuda":
        card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    return f"{card}, torch {torch.__version__}, Python {platform.python_version()}"


def report(name: str, kind: str, traces: Path) -> bool:
    """Run a check in this process and print its line. Returns whether it passed."""
    check = getattr(importlib.import_module(f"tests.gpu.{CHECKS[name]}"), name)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"moco_dist_{name}_") as folder:
        result: Result = check(Setting(kind, Path(folder), traces))
    print(line(name, result.passed, result.figures, time.monotonic() - began), flush=True)
    return result.passed


def in_process(name: str, kind: str, traces: Path) -> bool:
    """Run a check in a process of its own and print its line, also where the process dies or hangs."""
    command = [sys.executable, "-m", "tests.gpu", name, "--device", kind, "--traces", str(traces)]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        errors += f"\nstill running after {LIMIT_SECONDS} s"
    lines = [text for text in output.splitlines() if text.startswith(("ok", "FAIL"))]
    last_words = [text for text in errors.splitlines() if text.strip()] or [f"exit status {process.returncode}"]
    print(lines[-1] if lines else line(name, False, last_words[-1], time.monotonic() - began), flush=True)
    if process.returncode and not lines:
        print(errors, file=sys.stderr, flush=True)
    return process.returncode == 0 and bool(lines)


def line(name: str, passed: bool, figures: str, seconds: float) -> str:
    return f"{'ok  ' if passed else 'FAIL'} {name:12} {seconds:4.0f} s  {figures}"


if __name__ == "__main__":
    sys.exit(main())
