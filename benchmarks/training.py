"""Run a training without an end, for benchmarks that measure the work beside its steps."""

from __future__ import annotations

from collections.abc import Iterator

from moco_dist import config as configs
from moco_dist.data import sources, stream
from moco_dist.data.augment import Augment, Recipe
from moco_dist.data.loader import make_loader
from moco_dist.data.views import Views
from moco_dist.engine import schedule
from moco_dist.engine.build import build
from moco_dist.engine.engine import Engine
from moco_dist.methods import moco
from moco_dist.ranks.collectives import World
from moco_dist.train.initial_encoder import first_encoder, first_weights

_LAST_SCHEDULED_STEP = 1000
"""Later steps have the learning rate of this one, so that the schedule does not end."""


def endless(
    config: configs.Config, data: sources.Data, world: World
) -> tuple[Engine, Iterator[tuple[Views, int, float]]]:
    """Return an engine, and for each of its steps the views, the number from 0 on, and the learning rate."""
    plan = configs.layout(config, 1)
    engine = build(
        moco.MoCo(config, world, first_encoder(config, data, world, first_weights(config))), config, plan, world
    )
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
    epoch_steps = stream.steps_per_epoch(len(data.train), config.optim.global_batch)
    pairs = stream.pretraining(data.train, config, world, engine.method.own_places)
    loader = make_loader(pairs, range(10**6), config.data.workers, world.device)
    images = stream.on_device(loader, data.train, augmentation, world.device, engine.image_dtype)

    def batches() -> Iterator[tuple[Views, int, float]]:
        for step, (views, _) in enumerate(images):
            yield views, step, schedule.learning_rate(config.optim, min(step, _LAST_SCHEDULED_STEP), epoch_steps)

    return engine, batches()
