"""Consistency between an image and its augmented views."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_dist import config as configs
from moco_dist.data import augment, sources
from moco_dist.encoders import SmallNet
from moco_dist.evaluate import fixmatch
from moco_dist.evaluate import labels as few
from moco_dist.evaluate.classifier import Classifier, Lesson, Schedule, learn_
from moco_dist.evaluate.fixmatch import Recipe

CONFIG = configs.load(None)
DIGITS = sources.open_source(CONFIG, "train")
AUGMENTATION = augment.Augment(augment.Recipe.of(CONFIG.data), *DIGITS.statistics)
SHARED = {"data": CONFIG.data, "augmentation": AUGMENTATION, "device": torch.device("cpu")}
assert DIGITS.labels is not None
DRAWN = few.draw(DIGITS.labels, 10, 40, seed=0, number=0)
FEW = Lesson(DRAWN, DIGITS.labels[DRAWN], np.ones(40, dtype=np.float32))


def begun() -> Classifier:
    """A small net that has learnt the few labels alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(SmallNet(1, 8), 10)
    learn_(classifier, DIGITS, FEW, Schedule(steps=100, batch=40, lr=0.05, lr_net=0.05), seed=0, number=0, **SHARED)
    return classifier


def taught(recipe: Recipe, seed: int = 0, number: int = 0) -> tuple[Classifier, Classifier]:
    """Teacher and student."""
    student = begun()
    return fixmatch.learn(student, DIGITS, FEW, recipe, seed=seed, number=number, **SHARED), student


def accuracy(classifier: Classifier) -> float:
    test = sources.open_source(CONFIG, "test")
    pixels, _ = test.centred(np.arange(len(test)), 8)
    with torch.no_grad():
        return float((classifier(AUGMENTATION.plain(pixels)).argmax(1).numpy() == test.labels).mean())


def same(one: Classifier, other: Classifier) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_images_without_labels_help() -> None:
    few_alone = accuracy(begun())
    teacher, _ = taught(Recipe(steps=300, unlabelled=128))
    untaught, _ = taught(Recipe(steps=300, unlabelled=128, threshold=1.1))  # no guess is learnt
    assert not teacher.training
    assert accuracy(teacher) > max(few_alone, accuracy(untaught)) + 0.02


def test_the_seed_and_the_draw_decide() -> None:
    recipe = Recipe(steps=3)
    (one, _), (again, _) = taught(recipe), taught(recipe)
    assert same(one, again)
    assert not same(one, taught(recipe, seed=1)[0]) and not same(one, taught(recipe, number=1)[0])


@pytest.mark.parametrize("threshold", [0.0, 0.8])
def test_one_step_by_hand(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    forward = Classifier.forward

    def watched(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return forward(self, x)

    before = begun()
    monkeypatch.setattr(Classifier, "forward", watched)
    recipe = Recipe(steps=1, lr=0.2, weight_decay=0.01, labelled=8, unlabelled=32, threshold=threshold, warmup_steps=1)
    student = copy.deepcopy(before)
    teacher = fixmatch.learn(student, DIGITS, FEW, recipe, seed=0, number=0, **SHARED)
    plain, augmented = seen
    assert (len(plain), len(augmented)) == (32, 40)
    chosen = fixmatch.Exercises(DIGITS, FEW, 8, CONFIG.data, 0, 0)[0]
    told = F.softmax(forward(before, plain), dim=1)
    logits = forward(before, augmented)
    each = F.cross_entropy(logits[8:], told.argmax(1), reduction="none")
    sure = told.max(1).values >= threshold
    assert sure.sum() > 0 and (threshold == 0) == bool(sure.all())
    loss = F.cross_entropy(logits[:8], chosen.labels) + (each * sure).sum() / 32
    for (name, parameter), gradient in zip(
        before.named_parameters(), torch.autograd.grad(loss, [*before.parameters()]), strict=True
    ):
        after = parameter.detach() - 0.2 * 1.9 * (gradient + 0.01 * parameter.detach())  # Nesterov's first step
        torch.testing.assert_close(dict(student.named_parameters())[name].detach(), after, rtol=1e-4, atol=1e-6)
        following = 0.1 * parameter.detach() + 0.9 * after  # the momentum of the first step is 0.1
        torch.testing.assert_close(dict(teacher.named_parameters())[name].detach(), following, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_and_falls_to_a_fifth() -> None:
    recipe = Recipe(steps=1000, lr=1.0)
    rates = [recipe.learning_rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50) and max(rates) > 0.99
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(np.cos(7 * np.pi / 16), abs=0.01)
