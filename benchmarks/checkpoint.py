"""Measure what checkpoints cost the training loop, as a share of the time of the steps between two.

python -m benchmarks.checkpoint [--saves N] [--disk MB] [--json PATH] [CONFIG.yaml] [section.key=value ...]

One process trains as the trainer does. Blocks of steps that begin with a save alternate with blocks that do not, each
followed by what the writer behind still takes away from the steps. Printed: the median over the saves of

    stall   the save call, in which the loop copies the state and does nothing else
    total   the stall, and what the next steps lose while the writer's thread hashes and writes (noisy: the difference
            of two times; below 0 where the machine was faster beside the writer than without)

over the time of `checkpoint.every_steps` steps without a save. `--disk 20` makes the writer as slow as a disk that
takes 20 MB a second. Exits 1 where the stall is 2 % or more.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.runs import config_of, parser_of, write_rows
from benchmarks.training import endless
from moco_dist import config as configs
from moco_dist.data import sources
from moco_dist.engine.checkpoint import Checkpoints, _HashingFile
from moco_dist.engine.engine import Engine
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

BLOCK_STEPS = 10
BOUND = 0.02


def main(arguments: list[str]) -> int:
    """Measure, print, write. Returns the exit status."""
    parser = parser_of("benchmarks.checkpoint", __doc__)
    parser.add_argument("--saves", type=int, default=15, metavar="N", help="how many are measured (15)")
    parser.add_argument("--disk", type=float, metavar="MB", help="megabytes a second that the disk takes")
    options = parser.parse_args(arguments)
    config = config_of(options.words, "benchmarks.checkpoint", __doc__)
    world = World(0, 1, 0, devices.pick(config, local_rank=0))
    engine, step = training(config, sources.load(config), world)
    for _ in range(5):  # buffers, caches
        next(step)
    stalls, losses, plain, size = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder, slow_disk(options.disk):
        checkpoints = Checkpoints(Path(folder), config.checkpoint.keep)
        for number in range(1, options.saves + 1):
            state = {"step": number, "config": config.model_dump(mode="json"), **engine.state()}
            began = time.perf_counter()
            checkpoints.save(number, state)
            stalls.append(time.perf_counter() - began)
            busy = [next(step) for _ in range(BLOCK_STEPS)]
            checkpoints.wait()
            idle = [next(step) for _ in range(BLOCK_STEPS)]
            losses.append(stalls[-1] + sum(busy) - sum(idle))
            plain += idle
        assert not checkpoints.failures
        size = checkpoints.index.path(options.saves).stat().st_size
    every = config.checkpoint.every_steps or 1000
    interval = every * statistics.median(plain)
    shares = {"stall": [s / interval for s in stalls], "total": [s / interval for s in losses]}
    print(f"{config.run.name} on {world.device.type}: a step takes {1e3 * statistics.median(plain):.1f} ms (median)")
    print(f"{every} steps to a save: {interval:.1f} s; a checkpoint of {size / 1e6:.1f} MB")
    print(f"stall of each save, ms: {' '.join(f'{1e3 * s:.1f}' for s in stalls)}")
    print(f"with lost time after it, ms: {' '.join(f'{1e3 * s:.1f}' for s in losses)}")
    for name, values in shares.items():
        median, worst = 100 * statistics.median(values), 100 * max(values)
        print(f"{name}: median {median:.3f} % of the training time, worst {worst:.3f} %")
    if options.json:
        what = f"{config.model.arch}, {size / 1e6:.0f} MB every {interval:.0f} s"
        rows = [
            {"what": f"{name}, {what}", "median %": percent(statistics.median(values)), "most %": percent(max(values))}
            for name, values in shares.items()
        ]
        write_rows(options.json, "benchmarks.checkpoint", arguments, world.device.type, rows)
    return 0 if statistics.median(shares["stall"]) < BOUND else 1


def percent(share: float) -> float:
    """Return a share in percent, as far as it means something."""
    return round(100 * share, 3)


def slow_disk(megabytes: float | None) -> AbstractContextManager[Any]:
    """Return a context in which a checkpoint is written at so many megabytes a second at most; None: at full speed."""
    if megabytes is None:
        return nullcontext()
    write = _HashingFile.write

    def slowly(file: _HashingFile, data: Any) -> int:
        time.sleep(memoryview(data).nbytes / (1e6 * megabytes))
        return write(file, data)

    return mock.patch.object(_HashingFile, "write", slowly)


def training(config: configs.Config, data: sources.Data, world: World) -> tuple[Engine, Iterator[float]]:
    """Return an engine, and an endless iterator that takes its steps and yields the seconds of each."""
    engine, batches = endless(config, data, world)

    def steps() -> Iterator[float]:
        began = time.perf_counter()
        for views, step, lr in batches:
            engine.step(views, step, lr).values.tolist()  # the loop reads the loss too
            yield time.perf_counter() - began
            began = time.perf_counter()

    return engine, steps()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
