"""Measure what the evaluations during a training run cost, as a share of the time of the steps between two.

python -m benchmarks.evaluation [CONFIG.yaml] [section.key=value ...]

One process trains as the trainer does. Evaluations on `eval.online_images` alternate with blocks of steps, so that a
machine that others use slows down both. Printed: the median seconds of a step, of an evaluation and of its parts, and

    share = evaluation / (eval.knn_every * steps of an epoch * step)

Exits 1 where that is more than 3 %.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoint import training
from benchmarks.runs import config_of
from moco_dist import config as configs
from moco_dist.data import sources, stream
from moco_dist.data.augment import Augment, Recipe
from moco_dist.evaluate import features, knn, online, ridge
from moco_dist.networks.resnet import Encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

EVALUATIONS = 5
BLOCK_SECONDS = 10.0
BLOCK_STEPS = 3
"""A block of steps has so many at least."""
BOUND_PERCENT = 3.0


def main(arguments: list[str]) -> int:
    config = config_of(arguments, "benchmarks.evaluation", __doc__)
    world = World(0, 1, 0, devices.pick(config, local_rank=0))
    devices.prepare(config, world.device)
    data = sources.load(config)
    if config.eval.knn_every == 0 or data.bank is None or data.queries is None:
        print(f"{config.run.name}: evaluates nothing")
        return 0
    steps, parts = _measure(config, data, world)
    step = statistics.median(steps)
    every = config.eval.knn_every
    interval_steps = every * stream.steps_per_epoch(len(data.train), config.optim.global_batch)
    shares = [100 * seconds / (interval_steps * step) for seconds in parts["evaluation"]]
    print(f"{config.run.name} on {world.device.type}: a step takes {1e3 * step:.1f} ms (median of {len(steps)})")
    print(f"eval.knn_every={every}: {interval_steps} steps to an evaluation, {interval_steps * step:.1f} s")
    for name, seconds in parts.items():
        print(f"{name}: {1e3 * statistics.median(seconds):.1f} ms (median of {len(seconds)})")
    print(f"share: median {statistics.median(shares):.3f} % of the training time, worst {max(shares):.3f} %")
    return 0 if statistics.median(shares) <= BOUND_PERCENT else 1


def _measure(config: configs.Config, data: sources.Data, world: World) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of steps, and of evaluations and their parts."""
    engine, step = training(config, data, world)
    encoder = engine.method.trained
    assert isinstance(encoder, Encoder)
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)

    def evaluate() -> None:
        part = online.part(data, config.eval.online_images)
        online.accuracies(config, engine, encoder, part, augmentation)

    for _ in range(BLOCK_STEPS):  # buffers, caches
        next(step)
    steps: list[float] = []
    parts: dict[str, list[float]] = {}
    for _ in range(EVALUATIONS):
        steps += _block(lambda: next(step))
        for name, seconds in _evaluation(evaluate, world.device).items():
            parts.setdefault(name, []).append(seconds)
    return steps, parts


def _block(step: Callable[[], float]) -> list[float]:
    """The seconds of each step of a block."""
    seconds: list[float] = []
    while len(seconds) < BLOCK_STEPS or sum(seconds) < BLOCK_SECONDS:
        seconds.append(step())
    return seconds


def _evaluation(evaluate: Callable[[], None], device: torch.device) -> dict[str, float]:
    """The seconds of an evaluation and of its parts."""
    taken = dict.fromkeys(("features", "kNN", "probe"), 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            if devices.runs_ahead(device):
                devices.of(device).synchronize(device)
            taken[name] += time.perf_counter() - began
            return result

        return run

    with (
        mock.patch.object(features, "extract", timed("features", features.extract)),
        mock.patch.object(knn, "classify", timed("kNN", knn.classify)),
        mock.patch.object(ridge, "accuracies", timed("probe", ridge.accuracies)),
    ):
        began = time.perf_counter()
        evaluate()
        taken["evaluation"] = time.perf_counter() - began
    return taken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
