"""The studies share runs of the trainer that go on where they were stopped, and tables in docs/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from moco_dist import config as configs
from moco_dist import files
from moco_dist.errors import UserError
from moco_dist.run import status

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"


class Taken(NamedTuple):
    """The time that the training of a run has taken over all its starts."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all ranks and their workers together."""


def config_of(arguments: Sequence[str], module: str, description: str | None) -> configs.Config:
    """Read `[CONFIG.yaml] [section.key=value ...]`. Raises SystemExit for `--help` and for a mistake."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        usage="%(prog)s [-h] [CONFIG.yaml] [section.key=value ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.yaml, section.key=value", help="as for moco_dist.train")
    try:
        return configs.load(*configs.parse_arguments(parser.parse_args(arguments).words))
    except UserError as error:
        print(f"{module}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that takes a config, and `--json` for what `write_rows` writes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("words", nargs="*", metavar="CONFIG.yaml, section.key=value", help="changes of the setting")
    return parser


def write_rows(
    file: Path, module: str, arguments: Sequence[str], device: str, rows: Sequence[Mapping[str, object]]
) -> None:
    """Write rows as a result that `benchmarks.performance` makes a table of, with its command and machine."""
    results = {"command": command_of(module, arguments), "machine": machine(device), "rows": rows}
    files.write_text(file, json.dumps(results, indent=1) + "\n")


def command_of(module: str, arguments: Sequence[str]) -> str:
    """Return the command line that a result was made with, without the place of the data and of the result."""
    shown = list(arguments)
    for option, name in (("--root", "FOLDER"), ("--json", None)):
        if option in shown:
            place = shown.index(option)
            shown[place : place + 2] = [option, name] if name else []
    return " ".join(["python -m", module, *shown])


def machine(device: str) -> dict[str, object]:
    """Return what computes, and the versions that matter."""
    import torch

    from moco_dist.ranks.machine import cpu_model

    what = {"processor": cpu_model(), "cores": os.cpu_count()}
    if device == "cuda":
        what |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return {**what, "torch": torch.__version__, "python": platform.python_version()}


def torchrun(ranks: int, module: str, *arguments: str) -> None:
    """Run a module on so many ranks of this machine. Raises SystemExit where it fails or is stopped."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if subprocess.run([*command, "-m", module, *arguments], cwd=HERE.parent).returncode:
        raise SystemExit(f"{module} has not ended well; the same command goes on from here")


def train(run_dir: Path, ranks: int, config: str, *overrides: str) -> None:
    """Train to the end, or go on with it; nothing where it is done. Raises SystemExit."""
    if status.read(run_dir).state == "done":
        return
    wall, cpu = time.perf_counter(), _cpu_seconds()
    fixed = (f"run.dir={run_dir}", f"run.name={run_dir.name}", "track.wandb=disabled")
    try:
        torchrun(ranks, "moco_dist.train", config, *fixed, *overrides)
    finally:  # a run that was stopped has taken the time of all its starts
        if run_dir.is_dir():
            before = taken(run_dir)
            now = Taken(before.wall + time.perf_counter() - wall, before.cpu + _cpu_seconds() - cpu)
            files.write_text(run_dir / "taken.json", json.dumps(now._asdict()) + "\n")


def taken(run_dir: Path) -> Taken:
    """Return what the training of a run has taken until now."""
    file = run_dir / "taken.json"
    return Taken(**json.loads(file.read_text())) if file.exists() else Taken(0.0, 0.0)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def put_table(page: Path, mark: str, table: str) -> None:
    """Write a table between `<!-- table: mark -->` and `<!-- end of table -->` of a page."""
    begin, end = f"<!-- table: {mark} -->", "<!-- end of table -->"
    before, mark_in_page, rest = page.read_text().partition(begin)
    assert mark_in_page and end in rest, f"{page} has no {begin}"
    files.write_text(page, f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}")
