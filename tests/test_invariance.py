"""The trainer's whole path, from the data to the weights, on 1, 2 and 4 ranks: equal bits in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moco_dist import config as configs
from moco_dist.data import sources, stream
from moco_dist.data.augment import Augment, Recipe
from moco_dist.data.loader import make_loader
from moco_dist.engine import schedule
from moco_dist.engine.build import build
from moco_dist.methods import moco
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

STEPS = 8
COMMON = ["model.width=8", "optim.global_batch=64", "optim.warmup_epochs=0"]
RUNS = {
    "v1": ["model.mlp=false", "moco.symmetric=false", "moco.bn_groups=4"],
    "v1 in parts": ["model.mlp=false", "moco.symmetric=false", "moco.bn_groups=4", "optim.accumulate=2"],
    "v1 all_to_all": ["model.mlp=false", "moco.symmetric=false", "moco.bn_groups=4", "moco.shuffle=all_to_all"],
    "v2 all_to_all": ["data.augmentation=v2", "moco.symmetric=false", "moco.bn_groups=4", "moco.shuffle=all_to_all"],
    "v2 none": ["moco.symmetric=false", "moco.bn_groups=4", "moco.shuffle=none"],
    "symmetric": ["moco.bn_groups=8"],
    "symmetric, odd queue": ["moco.bn_groups=4", "moco.queue_size=201", "data.augmentation=v2"],
}


def outcome(
    world: World, overrides: list[str], *, crops_travel: bool = True
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Figures of the first steps on digits, and what they leave."""
    config = configs.load(None, [*COMMON, *overrides])
    plan, data = configs.layout(config, world.size), sources.load(config)
    engine = build(moco.MoCo(config, world, build_encoder(config.model, 1, seed=0)), config, plan, world)
    if not crops_travel:
        engine.method.own_places = None
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
    pairs = stream.pretraining(data.train, config, world, engine.method.own_places)
    loader = make_loader(pairs, range(STEPS), 0, world.device)
    figures = []
    for step, (views, _) in enumerate(stream.on_device(loader, augmentation, world.device, engine.image_dtype)):
        lr = schedule.learning_rate(config.optim, step, 11)
        figures.append(engine.step(views, step, lr).values.tolist())
    state = {**engine.state()["encoder_q"], "queue": engine.state()["queue"]}
    return figures, {name: tensor.clone() for name, tensor in state.items()}


def outcomes(world: World) -> dict[str, Any]:
    by_name = {name: outcome(world, overrides) for name, overrides in RUNS.items()}
    return {**by_name, "images travel": outcome(world, RUNS["v2 all_to_all"], crops_travel=False)}


@pytest.fixture(scope="module")
def by_size(ranks: Ranks) -> dict[int, dict[str, Any]]:
    return {size: ranks.run(size, outcomes, timeout_seconds=300)[0] for size in (1, 2, 4)}


@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_ranks_gives_the_same_bits(name: str, by_size: dict[int, dict[str, Any]]) -> None:
    figures, state = by_size[1][name]
    for size in (2, 4):
        other_figures, other_state = by_size[size][name]
        assert other_figures == figures, f"{size} ranks"
        for key, tensor in state.items():
            assert torch.equal(other_state[key], tensor), f"{key} on {size} ranks"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_keys_are_the_same_wherever_their_images_are_augmented(size: int, by_size: dict[int, dict[str, Any]]) -> None:
    (figures, state), (other_figures, other_state) = by_size[size]["v2 all_to_all"], by_size[size]["images travel"]
    assert other_figures == figures
    assert all(torch.equal(other_state[key], tensor) for key, tensor in state.items())


def test_parts_and_the_way_to_shuffle_change_nothing(by_size: dict[int, dict[str, Any]]) -> None:
    figures, _ = by_size[4]["v1"]
    assert by_size[4]["v1 in parts"][0] == figures and by_size[4]["v1 all_to_all"][0] == figures
    assert by_size[4]["v2 none"][0] != figures  # what is equal could differ
