"""Networks trained on labels."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_dist import config as configs
from moco_dist import randomness
from moco_dist.data import sources
from moco_dist.data.augment import Augment, Recipe
from moco_dist.evaluate.classifier import Classifier, Lesson, Schedule, learn_
from moco_dist.evaluate.linear import Probe
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.networks.small import SmallNet

CONFIG = configs.load(None, ["model.width=8"])
DIGITS = sources.open_source(CONFIG, "train")
AUGMENTATION = Augment(Recipe.of(CONFIG.data), *DIGITS.pixel_statistics)
SHARED = {"data": CONFIG.data, "augmentation": AUGMENTATION}
SCHEDULE = Schedule(steps=4, batch=32, lr=0.05, lr_net=0.05)
assert DIGITS.labels is not None
ALL = Lesson(np.arange(len(DIGITS)), DIGITS.labels, np.ones(len(DIGITS), dtype=np.float32))


def net() -> Encoder:
    return build_encoder(CONFIG.model, 1, seed=0)


def learnt(lesson: Lesson, schedule: Schedule = SCHEDULE, number: int = 0, seed: int = 0) -> Classifier:
    classifier = Classifier(net(), 10)
    learn_(classifier, DIGITS, replace(lesson, number=number), schedule, seed=seed, **SHARED)
    return classifier


def same(one: Classifier, other: Classifier) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("small", [True, False])
def test_it_learns(small: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(SmallNet(1, 8) if small else net(), 10)
    learn_(classifier, DIGITS, ALL, Schedule(steps=120, batch=64, lr=0.05, lr_net=0.05), seed=0, **SHARED)
    assert not classifier.training
    test = sources.open_source(CONFIG, "test")
    pixels, _ = test.centred(np.arange(len(test)), 8)
    with torch.no_grad():
        right = classifier(AUGMENTATION.plain(pixels)).argmax(1).numpy() == test.labels
    assert 0.85 < right.mean() < 1


def test_the_seed_and_the_draw_decide() -> None:
    assert same(learnt(ALL), learnt(ALL))
    assert not same(learnt(ALL), learnt(ALL, seed=1)) and not same(learnt(ALL), learnt(ALL, number=1))


def test_an_image_counts_as_much_as_its_weight() -> None:
    weights = np.ones(len(DIGITS), dtype=np.float32)
    weights[::2] = 0
    wrong = ALL.labels.copy()
    wrong[::2] = (wrong[::2] + 1) % 10
    assert same(learnt(replace(ALL, weights=weights)), learnt(replace(ALL, weights=weights, labels=wrong)))
    assert not same(learnt(ALL), learnt(replace(ALL, labels=wrong)))


def test_one_step_by_hand() -> None:
    few = Lesson(ALL.indices[:16], ALL.labels[:16], np.linspace(0.1, 1, 16).astype(np.float32))
    seen: list[torch.Tensor] = []

    class Watched(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return super().forward(x)

    classifier = Watched(net(), 10)
    torch.nn.init.normal_(classifier.linear.weight, generator=torch.Generator().manual_seed(0))
    by_hand = copy.deepcopy(classifier)
    schedule = Schedule(steps=1, batch=16, lr=0.5, lr_net=0.1, weight_decay=0.01)
    learn_(classifier, DIGITS, few, schedule, seed=0, **SHARED)
    assert len(seen) == 1
    by_hand.train()
    logits = Classifier.forward(by_hand, seen[0])
    chosen = randomness.permutation(0, randomness.Stream.LESSON_ORDER, 0, 0, 16)
    each = F.cross_entropy(logits, torch.from_numpy(few.labels[chosen]), reduction="none")
    weights = torch.from_numpy(few.weights[chosen])
    ((each * weights).sum() / weights.sum()).backward()
    for name, before in by_hand.named_parameters():
        if name.startswith("net.fc."):
            continue  # MoCo's head is not used
        lr = 0.5 if name.startswith("linear") else 0.1
        gradient = before.grad + 0.01 * before
        after = before - lr * 1.9 * gradient  # Nesterov's first step is 1 + momentum
        torch.testing.assert_close(dict(classifier.named_parameters())[name], after.detach(), rtol=1e-4, atol=1e-6)
    assert classifier.net.bn1.num_batches_tracked == 1
    assert not torch.equal(classifier.net.bn1.running_mean, by_hand.net.bn1.running_mean)


def test_it_begins_as_the_probe_that_it_is_given() -> None:
    probe = Probe(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)), torch.arange(10.0))
    encoder = net().eval()
    pixels, _ = DIGITS.centred(np.arange(20), 8)
    images = AUGMENTATION.plain(pixels)
    with torch.no_grad():
        expected = probe.logits(F.normalize(encoder.features(images), dim=1))
        torch.testing.assert_close(Classifier(encoder, 10, probe)(images), expected)
        assert torch.equal(Classifier(encoder, 10)(images), torch.zeros(20, 10))


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [Schedule(steps=100, batch=1, lr=1, lr_net=1).factor(step) for step in range(100)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=0.01)
    assert max(factors) == factors[4] > 0.99 and factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] < 0.001
