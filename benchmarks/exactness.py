"""Measure what the same bits on 1, 2 and 4 ranks cost on the CPU: CPU time of the parts of a step, for an image.

python -m benchmarks.exactness --root FOLDER [--ranks N] [--json PATH] [section.key=value ...]

The setting is that of `benchmarks.throughput`. Each rank takes its share of the batch: the bare step, ours with more
and more BatchNorm groups, and what comes around it, in turns for several rounds. The figures are the medians of rank 0.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks import steps
from benchmarks.runs import HERE, command_of, config_of, machine
from benchmarks.throughput import setting
from moco_dist import config as configs
from moco_dist import files
from moco_dist.data import sources, stream
from moco_dist.data.augment import Augment, Recipe
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank

OWN_RESULT = "MOCO_DIST_EXACTNESS_RESULT"
"""Variable by which the ranks know that they are ranks, and where rank 0 writes."""


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, print, write. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exactness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="folder of images")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="changes of the setting")
    options = parser.parse_args(arguments)
    config = config_of(setting(options.words, options.root, "cpu", small=False), "benchmarks.exactness", __doc__)
    config = configs.with_decoder(config, None)
    if OWN_RESULT in os.environ:
        measure(config, options.rounds, Path(os.environ[OWN_RESULT]))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "rows.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.ranks}"]
        command = [sys.executable, *launch, "-m", "benchmarks.exactness", *arguments]
        subprocess.run(command, cwd=HERE.parent, env={**os.environ, OWN_RESULT: str(result)}, check=True)
        rows = json.loads(result.read_text())
    for row in rows:
        print(f"{row['what']:64} {row['CPU ms an image']:6.2f}")
    results = {"command": command_of("benchmarks.exactness", arguments), "machine": machine("cpu"), "rows": rows}
    if options.json:
        files.write_text(options.json, json.dumps({**results, "ranks": options.ranks}, indent=1) + "\n")
    return 0


def measure(config: configs.Config, rounds: int, result: Path) -> None:
    """Measure all parts on this rank, beside the others; rank 0 writes."""
    devices.prepare(config, torch.device("cpu"))
    world = World.join(Rank.from_environment(), torch.device("cpu"), 600)
    share = config.optim.global_batch // world.size
    parts = {**_steps(config, share), **_exchanges(world, config), **_images(world, config)}
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, action in parts.items():
            began = time.process_time()
            action()
            times[name].append(1e3 * (time.process_time() - began) / share)
    rows = [{"what": name, "CPU ms an image": round(statistics.median(of[1:]), 2)} for name, of in times.items()]
    if world.rank == 0:
        files.write_text(result, json.dumps(rows))
    world.leave()


def _steps(config: configs.Config, share: int) -> dict[str, Callable[[], object]]:
    """Return steps of this rank alone, without a word to the others."""
    cpu, tree = torch.device("cpu"), config.model_dump(mode="json")
    tree["optim"]["global_batch"] = share
    made = {"the bare step": steps.bare(configs.parse({**tree, "moco": {**tree["moco"], "bn_groups": 1}}), cpu)}
    for groups in (1, 2, 4):
        name = f"our step, {groups} BatchNorm group{'s' * (groups > 1)} a rank, one at a time"
        made[name] = steps.ours(configs.parse({**tree, "moco": {**tree["moco"], "bn_groups": groups}}), cpu)
    return {name: functools.partial(steps.seconds, step, 1) for name, step in made.items()}


def _exchanges(world: World, config: configs.Config) -> dict[str, Callable[[], object]]:
    """Return two ways to average the gradients over the ranks."""
    encoder = build_encoder(config.model, config.data.channel_count, config.run.seed)
    if config.device.channels_last is True:
        encoder.to(memory_format=torch.channels_last)
    gradients = [parameter.detach().clone() for parameter in encoder.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return {
        "mean of the gradients over the ranks, added up in a fixed order": lambda: world.mean_(gradients),
        "gloo's all_reduce of as many numbers, whose order is not fixed": lambda: dist.all_reduce(flat),
    }


def _images(world: World, config: configs.Config) -> dict[str, Callable[[], object]]:
    """Return what makes the views of a step."""
    source = sources.load(config).train
    batches, numbers = stream.pretraining(source, config, world), itertools.count()
    augment, batch = Augment(Recipe.of(config.data), *source.pixel_statistics), batches[0]
    return {
        "reading, decoding and cropping both views": lambda: batches[next(numbers)],
        "colours, blur and flip of both views": lambda: [augment(batch.views[v], batch.draws[v]) for v in range(2)],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
