"""Images a second from the files to the weights: the trainer, the authors', lightly's on request, and the bare step.

python -m benchmarks.throughput --root FOLDER [--ranks N] [--device cuda] [--json PATH]
    [CONFIG.yaml] [section.key=value ...]

FOLDER holds images, a folder for each class, with or without train/ above. Each program is started by torchrun in turn,
for several rounds; the first steps of a start do not count. Of each round: images a second, and the CPU time of all its
processes for an image, which other users of the machine change less. Printed and written are the medians over the
rounds, and those of the ratios of a round:

    to_authors   ours over the authors' structure (benchmarks.baselines.authors)
    to_bare      ours over the fastest bare step (benchmarks.baselines.bare: NCHW, NHWC, and compiled if --compiled)
    to_lightly   ours over lightly's parts, installed on request in an environment of its own (--lightly)

benchmarks/throughput.yaml is the setting; another CONFIG.yaml or `section.key=value` changes it. The bare step has
neither data nor augmentation nor DDP: on R ranks, R processes take it side by side, each with its share of the batch,
and communicate nothing. `--small` takes a few steps on small images of its own: that shows that all programs run, and
no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.runs import HERE, command_of, config_of, machine
from moco_dist import config as configs
from moco_dist import files
from moco_dist.run.paths import RunPaths

SETTING = HERE / "throughput.yaml"
SMALL = ("optim.global_batch=8", "data.image_size=16", "moco.queue_size=64", "moco.bn_groups=2")
OURS = ("eval.knn_every=0", "track.log_every=1", "track.wandb=disabled", "run.resume=never")
"""Overrides of the trainer beside the setting, so that it trains and does nothing else."""
_TICK = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS = 0.05


class Program(NamedTuple):
    """A program trains, and is started by torchrun."""

    module: str
    words: tuple[str, ...] = ()
    """Words of its command line beside the setting."""
    python: str = sys.executable


OURS_NAME, AUTHORS, LIGHTLY = "moco-dist", "the authors' structure", "lightly"
NCHW, NHWC = "device.channels_last=false", "device.channels_last=true"
BARE = {
    "bare step": Program("benchmarks.baselines.bare", (NCHW, "device.compile=false")),
    "bare step, NHWC": Program("benchmarks.baselines.bare", (NHWC, "device.compile=false")),
    "bare step, NHWC, compiled": Program("benchmarks.baselines.bare", (NHWC, "device.compile=true")),
}
COMPILED = "bare step, NHWC, compiled"
RATIOS = {"to_authors": (AUTHORS,), "to_bare": tuple(BARE), "to_lightly": (LIGHTLY,)}


class Speed(NamedTuple):
    """The speed of one start of a program, without its first steps."""

    images_per_second: float
    cpu_ms_per_image: float
    """CPU time of all processes; 0 where the system does not tell it."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. Raises SystemExit where a program fails."""
    options = _parser().parse_args(arguments)
    programs = {OURS_NAME: Program("moco_dist.train", OURS), AUTHORS: Program("benchmarks.baselines.authors"), **BARE}
    if not options.compiled:
        del programs[COMPILED]
    if options.small:
        del programs["bare step, NHWC"]
    if options.lightly:
        programs[LIGHTLY] = Program("benchmarks.baselines.with_lightly", python=_lightly())
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or made_images(Path(scratch) / "images", 32, 24)
        words = setting(options.words, root, options.device, small=options.small)
        rounds: list[dict[str, Speed]] = []
        for number in range(options.rounds):
            rounds.append({})
            for name, program in programs.items():
                folder = Path(scratch) / f"{number}_{len(rounds[-1])}"
                speed = measure(program, folder, words, options)
                rounds[-1][name] = speed
                line = f"{speed.images_per_second:8.1f} images/s {speed.cpu_ms_per_image:7.2f} CPU ms an image"
                print(f"round {number + 1}  {name:28} {line}", flush=True)
    command = command_of("benchmarks.throughput", arguments)
    results = {"command": command, "machine": machine(options.device), "ranks": options.ranks, **summary(rounds)}
    for name, ratio in results["ratios"].items():
        print(f"{name:12} {ratio:.2f}; in CPU time {results['cpu_ratios'].get(name, 'unknown')}")
    if options.json:
        files.write_text(options.json, json.dumps(results, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--root", type=Path, metavar="FOLDER", help="folder of images")
    data.add_argument("--small", action="store_true", help="a few small steps, on made images")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--warm-up", type=int, default=3, metavar="N", help="first steps of a start, not counted")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="counted steps of a start")
    parser.add_argument("--compiled", action="store_true", help="compile the bare step, too")
    parser.add_argument(
        "--lightly", action="store_true", help="install lightly in an environment of its own; measure it"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="changes of the setting")
    return parser


def setting(words: Sequence[str], root: Path, device: str, *, small: bool) -> list[str]:
    """Return what all programs are told: a config file and what is changed of it. Raises SystemExit for a mistake."""
    own_file = any(word.endswith(".yaml") for word in words)
    fixed = [f"data.root={root}", f"device.type={device}", *(SMALL if small else ())]
    chosen = [*([] if own_file else [str(SETTING)]), *fixed, *words]
    config_of(chosen, "benchmarks.throughput", __doc__)
    return chosen


def measure(program: Program, folder: Path, words: Sequence[str], options: argparse.Namespace) -> Speed:
    """Start a program, and measure the steps after its first ones. Raises SystemExit where it fails.

    Args:
        program: that writes a row for each step.
        folder: for its files, new.
        words: the setting.
        options: of the command line: ranks and steps.
    """
    folder.mkdir()
    first, last = options.warm_up, options.warm_up + options.steps
    steps, rows = last + 1, folder / "rows.jsonl"  # the CPU time is read while the last step is under way
    own = ["--steps", str(steps), "--rows", str(rows)]
    if program.module == "moco_dist.train":
        rows, own = RunPaths(folder / "run").metrics, [f"optim.steps={steps}", f"run.dir={folder / 'run'}"]
    launch = [program.python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.ranks}"]
    command = [*launch, "-m", program.module, *words, *program.words, *own]
    cpu = {}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                written = rows.read_bytes().count(b"\n") if rows.exists() else 0
                for step in {first, last} - cpu.keys():
                    if written >= step:
                        cpu[step] = cpu_seconds(process.pid)
                time.sleep(_LOOK_SECONDS)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise SystemExit(f"{(folder / 'log').read_text()}\n{' '.join(command)}: has failed")
    counted = [row for row in map(json.loads, rows.read_text().splitlines()) if first < row["step"] <= last]
    seconds = sum(1 / row["images_per_second"] for row in counted)
    images = options.steps * configs.load(*configs.parse_arguments(words)).optim.global_batch
    return Speed(len(counted) / seconds, 1e3 * (cpu[last] - cpu[first]) / images)


def cpu_seconds(parent: int) -> float:
    """Add up the CPU time of a process and of all below it, as Linux tells it; elsewhere 0."""
    used, children = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # its name may hold spaces
        except OSError:  # ended since it was listed
            continue
        number = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(number)
        used[number] = sum(map(int, fields[11:15])) / _TICK  # its own and that of the children which have ended
    waiting, total = [parent], 0.0
    while waiting:
        number = waiting.pop()
        total += used.get(number, 0.0)
        waiting += children.get(number, [])
    return total


def summary(rounds: Sequence[dict[str, Speed]]) -> dict[str, Any]:
    """Return the medians of each program and of the ratios of a round, in images a second and in CPU time."""
    rows = []
    for name in rounds[0]:
        speeds = [speeds[name] for speeds in rounds]
        medians = Speed(*(round(statistics.median(of_rounds), 2) for of_rounds in zip(*speeds, strict=True)))
        rows.append({"program": name, **medians._asdict(), "rounds": [round(s.images_per_second, 2) for s in speeds]})
    ratios, cpu_ratios = {}, {}
    for ratio, names in RATIOS.items():
        if others := [name for name in names if name in rounds[0]]:
            pairs = [(speeds[OURS_NAME], [speeds[name] for name in others]) for speeds in rounds]
            quotients = [own.images_per_second / max(other.images_per_second for other in of) for own, of in pairs]
            ratios[ratio] = round(statistics.median(quotients), 3)
            if all(own.cpu_ms_per_image for own, _ in pairs):
                quotients = [min(other.cpu_ms_per_image for other in of) / own.cpu_ms_per_image for own, of in pairs]
                cpu_ratios[ratio] = round(statistics.median(quotients), 3)
    return {"ratios": ratios, "cpu_ratios": cpu_ratios, "rows": rows}


def made_images(folder: Path, count: int, size: int) -> Path:
    """Write JPEG files of noise in two classes, and return their folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        path = folder / f"class_{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def _lightly() -> str:
    """Install lightly in an environment of its own, which sees the packages of this one; return its Python."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moco-dist" / "lightly"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "lightly"], check=True)
    return str(python)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
