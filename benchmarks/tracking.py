"""Measure what the figures of the rows cost, as a share of the time of the steps.

python -m benchmarks.tracking [--rounds N] [--json PATH] [CONFIG.yaml] [section.key=value ...]

One process trains as the trainer does, by three kinds of steps in turns: plain ones, ones whose row is written, with
all its figures, and ones whose row compares the ranks too. The CPU's time of the process is measured on the CPU, since
others may use the machine as well, and the clock's on a GPU. Printed: the median over the rounds of what a row costs,
and what that is of the time of `track.log_every` steps; the share of the comparison, by `track.compare_ranks_every`;
and the speed of a run without rows over that of one with them. Exits 1 where that is 1.01 or more.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from benchmarks.runs import config_of, parser_of, write_rows
from benchmarks.training import endless
from moco_dist import config as configs
from moco_dist.data import sources
from moco_dist.engine.engine import Details
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import MetricsFile
from moco_dist.train.meters import Meters

KINDS = ("plain", "row", "comparison")
BOUND = 1.01


def main(arguments: list[str]) -> int:
    """Measure, print, write. Returns the exit status."""
    parser = parser_of("benchmarks.tracking", __doc__)
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="how many are measured (40)")
    options = parser.parse_args(arguments)
    config = config_of(options.words, "benchmarks.tracking", __doc__)
    world = World(0, 1, 0, devices.pick(config, local_rank=0))
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(config, world, Path(folder), options.rounds)
    plain = statistics.median(seconds["plain"])
    row, comparison = (
        statistics.median(other - own for other, own in zip(seconds[kind], seconds["plain"], strict=True))
        for kind in ("row", "comparison")
    )
    log_every, compare_every = config.track.log_every, config.track.compare_ranks_every
    of_row = row / (log_every * plain)
    of_comparison = max(0.0, comparison - row) / (compare_every * plain) if compare_every else 0.0
    ratio = 1 + of_row + of_comparison
    print(
        f"{config.run.name} on {world.device.type}: a step takes {1e3 * plain:.1f} ms, its row {1e3 * row:.2f} ms more"
    )
    print(f"a row every {log_every} steps: {100 * of_row:.2f} % of the training time")
    print(f"ranks compared every {compare_every} steps: {100 * of_comparison:.2f} %")
    print(f"speed without rows over that with rows: {ratio:.4f}")
    if options.json:
        what = f"{config.model.arch}, {config.data.image_size} pixels, batch {config.optim.global_batch}"
        rows = [
            {"what": what, "step ms": round(1e3 * plain, 2), "row ms": round(1e3 * row, 2), "ratio": round(ratio, 4)}
        ]
        write_rows(options.json, "benchmarks.tracking", arguments, world.device.type, rows)
    return 0 if ratio < BOUND else 1


def measure(config: configs.Config, world: World, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of the steps of each kind, in turns that begin with another kind each round."""
    take_step = training(config, world, folder)
    for kind in KINDS * 2:  # buffers, caches
        take_step(kind)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for place in range(len(KINDS)):
            kind = KINDS[(number + place) % len(KINDS)]
            seconds[kind].append(take_step(kind))
    return seconds


def training(config: configs.Config, world: World, folder: Path) -> Callable[[str], float]:
    """Return what takes the next step of a training in one of the kinds, and returns its seconds."""
    data = sources.load(config)
    devices.prepare(config, world.device)
    engine, batches = endless(config, data, world)
    meters, rows = Meters(world), MetricsFile(RunPaths(folder).metrics)
    on_cpu = not devices.runs_ahead(world.device)
    clock = time.process_time if on_cpu else time.perf_counter

    def steps() -> Generator[float, str, None]:
        kind = yield 0.0
        began = clock()
        for views, step, lr in batches:
            details = None
            if kind != "plain":
                meters.begin_step(0.0)
                details = Details(meters.take(), compare_ranks=kind == "comparison")
            figures = engine.step(views, step, lr, {"stop": 0.0}, details).to_host()
            if not on_cpu:
                devices.of(world.device).synchronize(world.device)
            row = figures.numbers()
            if details:
                rows.append({"step": step + 1, **row, **figures.spreads(), **meters.figures(figures.by_rank())})
            kind = yield clock() - began
            began = clock()

    taking = steps()
    next(taking)
    return taking.send


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
