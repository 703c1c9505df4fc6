"""A classifier is trained on all labels by a recipe, as a training by hand does it, on any number of ranks."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moco_dist import config as configs
from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.data.augment import DRAWS, Augment, Recipe
from moco_dist.data.crops import CROP_DRAWS
from moco_dist.data.decode import Unreadable
from moco_dist.errors import UserError
from moco_dist.evaluate import training
from moco_dist.evaluate.classifier import Classifier
from moco_dist.evaluate.training import FINE_TUNING, FROM_SCRATCH, TrainingRecipe
from moco_dist.networks import batchnorm
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks.collectives import World
from tests import standin
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
CONFIG = configs.load(None, ["model.width=8"])
DIGITS = sources.open_source(CONFIG, "train")
AUGMENTATION = Augment(Recipe.of(CONFIG.data), *DIGITS.pixel_statistics)
SHORT = replace(FINE_TUNING, epochs=2, batch=32, group=8, flip=0.5)
SOME = DIGITS.subset(range(70))  # two batches of 32; 6 images are left over


def begun(seed: int = 0) -> Classifier:
    return Classifier(build_encoder(CONFIG.model, 1, seed), 10)


def trained(world: World = ALONE, recipe: TrainingRecipe = SHORT, config: Config = CONFIG) -> tuple[Classifier, Any]:
    """Train a classifier, and return it with the losses at the ends of the epochs."""
    classifier, losses = begun().to(world.device), list[float]()

    def epoch_done(epoch: int, loss: float, unreadable: list[Unreadable]) -> None:
        assert epoch == len(losses) + 1 and not unreadable
        losses.append(loss)

    training.train_(classifier, SOME, recipe, world, config, AUGMENTATION, epoch_done)
    return classifier, losses


def test_the_recipes_are_those_of_their_sources() -> None:
    shared = {"momentum": 0.9, "batch": 256, "group": 32, "crop_scale": (0.08, 1.0), "flip": 0.5}
    simclr = {"epochs": 30, "lr": 0.05, "schedule": "cosine", "nesterov": True, "weight_decay": 0.0}
    torchvision = {"epochs": 90, "lr": 0.1, "schedule": "thirds", "nesterov": False, "weight_decay": 1e-4}
    assert FINE_TUNING.settings().items() >= {"name": "SimCLR", **shared, **simclr}.items()
    assert FROM_SCRATCH.settings().items() >= {"name": "torchvision", **shared, **torchvision}.items()


def test_the_learning_rate_falls_by_the_batch_and_the_schedule() -> None:
    def rates(recipe: TrainingRecipe) -> list[float]:
        return [recipe.learning_rate(step, 2) for step in range(2 * recipe.epochs)]

    assert rates(replace(FROM_SCRATCH, epochs=3)) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    steps = [FROM_SCRATCH.learning_rate(epoch * 5, 5) for epoch in (0, 29, 30, 59, 60, 89)]
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rates(replace(FROM_SCRATCH, epochs=1, batch=128)) == [0.05, 0.05]
    cosine = rates(replace(FINE_TUNING, epochs=10, batch=512))
    assert cosine[0] == 0.1 and cosine[10] == pytest.approx(0.05) and 0 < cosine[-1] < 0.001
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize(
    ("samples", "ranks", "batch", "group"),
    [
        *((1438, 1, 256, 32), (1438, 4, 256, 32), (1438, 8, 256, 32), (1438, 3, 288, 32), (10_000, 16, 512, 32)),
        *((255, 1, 128, 32), (255, 4, 128, 32), (100, 1, 64, 32), (100, 2, 64, 32), (100, 3, 96, 32)),
        *((32, 1, 32, 32), (31, 1, 31, 31), (2, 1, 2, 2)),
    ],
)
def test_a_batch_is_whole_groups_for_each_rank(samples: int, ranks: int, batch: int, group: int) -> None:
    fitted = FROM_SCRATCH.fitted(samples, ranks, flip=0.5)
    assert (fitted.batch, fitted.group, fitted.epochs, fitted.flip) == (batch, group, 90, 0.5)
    assert batch <= samples and fitted.epoch_steps(samples) >= 1


def test_a_run_without_a_flip_gets_none_and_the_user_sets_the_length() -> None:
    fitted = FINE_TUNING.fitted(1438, 1, flip=0.0, epochs=7)
    assert fitted == replace(FINE_TUNING, flip=0.0, epochs=7)


def test_fewer_images_than_groups_are_a_mistake() -> None:
    with pytest.raises(UserError) as raised:
        FROM_SCRATCH.fitted(100, 4, flip=0.5)
    rule = "100 images are less than a BatchNorm group of 32 for each of 4 ranks"
    assert str(raised.value) == f"--labels = all: {rule}; use at most --nproc_per_node=3"


def crops(recipe: TrainingRecipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised crops of a step, and their labels."""
    epoch, within = divmod(step, len(SOME) // recipe.batch)
    order = randomness.permutation(CONFIG.run.seed, randomness.Stream.FULL_ORDER, epoch, 0, len(SOME))
    samples = order[within * recipe.batch :][: recipe.batch]
    draws = randomness.uniform(CONFIG.run.seed, randomness.Stream.FULL_VIEW, epoch, samples, DRAWS)
    data = CONFIG.data.model_copy(update={"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)})
    images, _ = SOME.crops(samples, draws[None, :, :CROP_DRAWS], data)
    x = images[0].float() / 255
    flipped = torch.from_numpy(draws[:, CROP_DRAWS + 4] < recipe.flip)
    x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in DIGITS.pixel_statistics)
    assert SOME.labels is not None
    return (x - mean) / std, torch.from_numpy(SOME.labels[samples])


@pytest.mark.parametrize(
    "recipe", [SHORT, replace(SHORT, nesterov=False, schedule="thirds", weight_decay=0.01, flip=1.0)]
)
def test_a_training_is_the_one_by_hand(recipe: TrainingRecipe) -> None:
    """The training by hand takes all groups at once.

    With Nesterov's momentum, `v <- m v + grad, w <- w - lr (grad + m v)`; else the step is `w <- w - lr v`.
    """
    classifier, losses = trained(recipe=recipe)
    assert not classifier.training
    by_hand = begun().train()
    batchnorm.set_group_size(by_hand, recipe.group)
    weights = {n: p for n, p in by_hand.named_parameters() if not n.startswith("net.fc.")}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    expected = []
    for step in range(4):
        images, labels = crops(recipe, step)
        loss = F.cross_entropy(by_hand(images), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        rate = 0.05 * 32 / 256 * (0.1 ** (step // 2) if recipe.schedule == "thirds" and step // 2 * 3 >= 2 else 1)
        if recipe.schedule == "cosine":
            rate = 0.05 * 32 / 256 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 4)).item())
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                gradient = gradient + recipe.weight_decay * weight
                velocity[name].mul_(0.9).add_(gradient)
                weight -= rate * (gradient + 0.9 * velocity[name] if recipe.nesterov else velocity[name])
        batchnorm.fold_statistics_(by_hand, batchnorm.take_group_sums_(by_hand), 4)
        expected.append(loss.item())
    assert losses == pytest.approx([expected[1], expected[3]], rel=1e-4)
    ours, start = dict(classifier.named_parameters()), dict(begun().named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(ours[name].detach(), weight.detach(), rtol=1e-3, atol=1e-5)
        assert not torch.equal(ours[name], start[name]) or name.endswith("bias"), name
    assert torch.equal(ours["net.fc.0.weight"], start["net.fc.0.weight"])  # MoCo's head is not used
    for one, other in zip(*map(batchnorm.running_statistics, (classifier, by_hand)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def digests(world: World, overrides: list[str]) -> tuple[str, list[float]]:
    config = configs.load(None, ["model.width=8", *overrides])
    classifier, losses = trained(world, config=config)
    sha256 = hashlib.sha256()
    for tensor in classifier.state_dict().values():
        sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest(), losses


@pytest.mark.parametrize("overrides", [[], ["device.precision=bf16"]])
def test_ranks_change_no_bit(ranks: Ranks, overrides: list[str]) -> None:
    (expected,) = ranks.run(1, digests, overrides)
    assert expected == digests(ALONE, overrides) and len(expected[1]) == 2
    for size in (2, 4):
        for of_rank in ranks.run(size, digests, overrides):
            assert of_rank == expected, f"{size} ranks"


def test_the_precision_and_the_seed_count_and_workers_do_not() -> None:
    exact = digests(ALONE, [])
    assert digests(ALONE, ["data.workers=1"]) == exact
    half = digests(ALONE, ["device.precision=fp16"])
    assert half[1] == pytest.approx(exact[1], rel=0.05) and half != exact
    assert digests(ALONE, ["run.seed=1"])[1] != exact[1]


@pytest.mark.standin
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_device_computes_all_groups_of_a_part_at_once(accumulate: int) -> None:
    expected, losses = trained()
    config = configs.load(None, ["model.width=8", f"optim.accumulate={accumulate}"])
    sizes = set[int]()
    with standin.present() as device, pytest.MonkeyPatch.context() as patch:
        forward = Classifier.forward
        patch.setattr(Classifier, "forward", lambda self, x: sizes.add(len(x)) or forward(self, x))
        classifier, of_device = trained(World(0, 1, 0, device), config=config)
        held = {name: standin.held(tensor) for name, tensor in classifier.state_dict().items()}
    assert sizes == {32 // accumulate}
    assert of_device == pytest.approx(losses, rel=1e-3)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(held[name].contiguous(), tensor.contiguous(), rtol=1e-2, atol=1e-4, msg=name)


def test_the_classifier_that_is_given_is_trained_and_no_other() -> None:
    one = begun()
    copied = copy.deepcopy(one)
    training.train_(copied, SOME, replace(SHORT, epochs=1), ALONE, CONFIG, AUGMENTATION)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), begun().parameters(), strict=True))
    assert not torch.equal(one.net.conv1.weight, copied.net.conv1.weight)
