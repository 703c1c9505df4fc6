"""The linear probe by SGD: against a loop written from the paper, and on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moco_dist import config as configs
from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data import augment, photographs
from moco_dist.data.augment import DRAWS, Augment
from moco_dist.data.crops import CROP_DRAWS
from moco_dist.data.store import ArraySource, FileSource
from moco_dist.errors import UserError
from moco_dist.evaluate import features, sgd_probe
from moco_dist.evaluate.linear import Probe
from moco_dist.evaluate.sgd_probe import ProbeRecipe
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
CLASSES, DIM, SIDE, SEED = 5, 12, 8, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
RECIPE = ProbeRecipe(epochs=4, batch=64, lr=8.0, milestones=(2, 3))


def images(count: int) -> ArraySource:
    """Noise around a colour of each class; classes are of unequal size."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES + 2, count) % CLASSES
    colours = np.array([[60, 60, 60], [190, 60, 60], [60, 190, 60], [60, 60, 190], [190, 190, 190]])
    pixels = colours[labels, :, None, None] + 60 * rng.standard_normal((count, 3, SIDE, SIDE))
    return ArraySource(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels, (MEAN, STD))


def encode(x: Tensor) -> Tensor:
    """A convolution, a ReLU and a global pool, with fixed weights; the scale of ResNet's features."""
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(DIM, 3, 3, 3, generator=generator, dtype=torch.float64).to(x.dtype) / 5
    return F.conv2d(x, kernel, padding=1).relu().mean((2, 3))


def normalisation() -> Augment:
    """Return the normalisation of a run whose augmentation is not that of the probe."""
    return Augment(augment.Recipe.of(DataSection(augmentation="v2")), MEAN, STD)


def config_of(seed: int = SEED, workers: int = 0) -> Config:
    return configs.load(None, [f"run.seed={seed}", f"data.image_size={SIDE}", f"data.workers={workers}"])


def fit(
    world: World, source: ArraySource, recipe: ProbeRecipe, seed: int = SEED, workers: int = 0, **others: Any
) -> Probe:
    config = config_of(seed, workers)
    return sgd_probe.fit(encode, source, CLASSES, DIM, world, config, normalisation(), recipe, **others)


def predict(world: World, probe: Probe, source: ArraySource) -> Tensor:
    """Classes of a source's images, in its order."""
    data = config_of().data
    (logits, _, indices), _ = features.extract(
        lambda x: probe.logits(encode(x)), source, world, data, normalisation(), torch.float32
    )
    return features.in_order(logits.argmax(1), indices, world)


# ----------------------------------------------------------------------------------------------------- what is computed


def crops(source: ArraySource, recipe: ProbeRecipe, epoch: int, samples: np.ndarray) -> Tensor:
    """Normalised crops, one image at a time, in float64."""
    out = []
    data = DataSection(image_size=SIDE, crop_scale=recipe.crop_scale)
    for sample in samples:
        draws = randomness.uniform(SEED, randomness.Stream.PROBE_VIEW, epoch, sample[None], DRAWS)
        crop, _ = source.crops(sample[None], draws[None, :, :CROP_DRAWS], data)
        x = crop[0, 0].double() / 255
        mean, std = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (MEAN, STD))
        x = (x - mean) / std
        flipped = draws[0, CROP_DRAWS + 4] < recipe.flip
        out.append(x.flip(2) if flipped else x)
    return torch.stack(out)


def by_hand(source: ArraySource, recipe: ProbeRecipe, rates: list[float], steps: int) -> tuple[Tensor, Tensor]:
    """`v <- m v + grad, w <- w - lr v` on whole batches; rates: the learning rate of each epoch."""
    generator = torch.Generator().manual_seed(SEED)
    w = (0.01 * torch.randn(CLASSES, DIM, generator=generator)).double().requires_grad_()
    b = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    velocity = [torch.zeros_like(w), torch.zeros_like(b)]
    for step in range(steps):
        epoch, within = divmod(step, len(source) // recipe.batch)
        order = randomness.permutation(SEED, randomness.Stream.PROBE_ORDER, epoch, 0, len(source))
        samples = order[within * recipe.batch : (within + 1) * recipe.batch]
        logits = encode(crops(source, recipe, epoch, samples)) @ w.T + b
        of_label = logits[torch.arange(len(samples)), torch.from_numpy(source.labels[samples])]
        loss = (logits.logsumexp(1) - of_label).sum() / recipe.batch
        for parameter, v, gradient in zip((w, b), velocity, torch.autograd.grad(loss, (w, b)), strict=True):
            v.mul_(recipe.momentum).add_(gradient)
            with torch.no_grad():
                parameter -= rates[epoch] * v
    return w.detach(), b.detach()


def assert_equal_to(probe: Probe, expected: tuple[Tensor, Tensor], error: float) -> None:
    for ours, theirs in zip(probe, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=error, atol=error)


def test_defaults_are_the_papers() -> None:
    assert ProbeRecipe() == ProbeRecipe(100, 256, 30.0, (60, 80), 0.1, 0.9, (0.08, 1.0), 0.5)
    assert ProbeRecipe().steps(1_281_167) == 100 * 5004


def test_the_first_step_is_the_one_by_hand() -> None:
    source = images(70)  # one batch of 64; 6 images are left over
    recipe = replace(RECIPE, epochs=1)
    probe = fit(ALONE, source, recipe, dtype=torch.float64)
    expected = by_hand(source, recipe, [2.0], 1)  # 8 * 64 / 256
    assert probe.weight.dtype == torch.float64
    assert_equal_to(probe, expected, 1e-12)
    assert (expected[0].abs() > 0.1).any()  # it has left its beginning, of 0.01


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, batch=60, momentum=0.0, crop_scale=(0.5, 0.6), flip=1.0)])
def test_a_training_over_the_milestones_is_the_one_by_hand(recipe: ProbeRecipe) -> None:
    source = images(150)  # two batches an epoch
    base = recipe.lr * recipe.batch / 256
    probe = fit(ALONE, source, recipe, dtype=torch.float64)
    assert_equal_to(probe, by_hand(source, recipe, [base, base, base / 10, base / 100], 8), 1e-12)
    # the learning rate and each epoch's order and crops count
    assert (probe.weight - by_hand(source, recipe, [base] * 4, 8)[0]).abs().max() > 1e-3


def test_the_learning_rate_follows_the_milestones() -> None:
    seen: list[tuple[int, float, float]] = []
    recipe = ProbeRecipe(epochs=5, batch=32, lr=30.0, milestones=(1, 3), decay=0.5)
    probe = fit(ALONE, images(70), recipe, progress=lambda step, lr, loss: seen.append((step, lr, loss.item())))
    assert [step for step, _, _ in seen] == list(range(1, recipe.steps(70) + 1)) == list(range(1, 11))
    assert [lr for _, lr, _ in seen] == [3.75] * 2 + [1.875] * 4 + [0.9375] * 4
    assert seen[0][2] == pytest.approx(np.log(CLASSES), rel=0.05)  # of a classifier that knows nothing
    assert not probe.weight.requires_grad
    assert [ProbeRecipe().learning_rate(epoch) for epoch in (0, 59)] == [30.0, 30.0]
    assert [ProbeRecipe().learning_rate(epoch) for epoch in (60, 79, 80, 99)] == pytest.approx([3.0, 3.0, 0.3, 0.3])


def test_it_learns_separable_classes() -> None:
    source = images(320)
    recipe = ProbeRecipe(epochs=15, batch=32, lr=30.0, milestones=(9, 12))
    kept, held_out = source.subset(np.arange(200)), source.subset(np.arange(200, 320))
    losses: list[float] = []
    probe = fit(ALONE, kept, recipe, progress=lambda step, lr, loss: losses.append(loss.item()))
    right = predict(ALONE, probe, held_out).numpy() == held_out.labels
    assert right.mean() > 0.95
    assert losses[-1] < 0.2 * losses[0]
    nothing = predict(ALONE, Probe(torch.zeros(CLASSES, DIM), torch.zeros(CLASSES)), held_out).numpy()
    assert (nothing == held_out.labels).mean() < 0.5


def test_the_seed_decides() -> None:
    source = images(70)
    one, same, other = (fit(ALONE, source, RECIPE, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, one, same))
    assert not torch.equal(one.weight, other.weight)
    begun = [fit(ALONE, source, replace(RECIPE, lr=1e-9, epochs=1), seed=seed).weight for seed in (0, 1)]
    assert [weight.std().item() for weight in begun] == pytest.approx([0.01] * 2, rel=0.4)
    assert (begun[0] - begun[1]).abs().max() > 0.01


def test_workers_change_nothing() -> None:
    source = images(70)
    one, other = (fit(ALONE, source, replace(RECIPE, epochs=1), workers=workers) for workers in (0, 1))
    assert all(map(torch.equal, one, other))


# ---------------------------------------------------------------------------------------------- on any number of ranks


def training(world: World, count: int, recipe: ProbeRecipe) -> tuple[list[list[float]], list[float]]:
    losses: list[float] = []
    probe = fit(world, images(count), recipe, progress=lambda step, lr, loss: losses.append(loss.item()))
    return [t.tolist() for t in probe], losses


@pytest.mark.parametrize("batch", [256, 64, 100, 8])
def test_ranks_change_no_bit(ranks: Ranks, batch: int) -> None:
    recipe = ProbeRecipe(epochs=3, batch=batch, lr=30.0 * 64 / batch, milestones=(2,))
    count = 2 * batch + batch // 2
    (expected,) = ranks.run(1, training, count, recipe)
    assert len(expected[1]) == 6
    for size in (2, 4):
        for trained in ranks.run(size, training, count, recipe):
            assert trained == expected, f"{size} ranks"


def test_three_ranks_agree_to_float_error(ranks: Ranks) -> None:
    recipe = replace(RECIPE, batch=36)
    (expected,) = ranks.run(1, training, 80, recipe)
    trained = ranks.run(3, training, 80, recipe)
    assert trained[0] == trained[1] == trained[2]
    np.testing.assert_allclose(trained[0][0][0], expected[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "size", "pieces"),
    [
        *((256, 1, 8), (256, 2, 4), (256, 4, 2), (256, 8, 1), (256, 16, 1)),
        *((1024, 1, 32), (1024, 4, 8), (64, 1, 8), (64, 4, 2), (100, 1, 4), (100, 4, 1), (7, 1, 1), (252, 3, 4)),
    ],
)
def test_pieces(batch: int, size: int, pieces: int) -> None:
    assert sgd_probe._pieces(batch, 10_000, size) == pieces


def test_pieces_are_what_is_encoded() -> None:
    seen = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return encode(x)

    recipe = ProbeRecipe(epochs=1)
    sgd_probe.fit(counted, images(300), CLASSES, DIM, ALONE, config_of(), normalisation(), recipe)
    assert seen == [32] * 8


@pytest.mark.parametrize("decode", ["cpu", "pillow"])
def test_files_are_decoded_as_the_config_says(decode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        Image.new("RGB", (SIDE, SIDE), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    names, labels = np.array([b"0.png", b"1.png", b"2.png", b"3.png"]), np.array([0, 0, 1, 1])
    source, fast = FileSource(tmp_path, names, labels, (), 3, (MEAN, STD)), list[Path]()
    crop_views = photographs.crop_views

    def counted(file: Path, *arguments: Any) -> list[Tensor]:
        fast.append(file)
        return crop_views(file, *arguments)

    monkeypatch.setattr(photographs, "crop_views", counted)
    config = configs.load(None, [f"data.image_size={SIDE}", f"data.decode={decode}"])
    recipe = ProbeRecipe(epochs=1, batch=4)
    sgd_probe.fit(encode, source, 2, DIM, ALONE, config, normalisation(), recipe)
    assert len(fast) == (4 if decode == "cpu" else 0)


def prediction(world: World, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(2)
    probe = Probe(torch.randn(CLASSES, DIM, generator=generator), torch.randn(CLASSES, generator=generator))
    return predict(world, probe, images(count)).tolist()


@pytest.mark.parametrize("count", [5, 2 * features.CHUNK + 7])
def test_predictions_are_in_the_order_of_the_source(ranks: Ranks, count: int) -> None:
    source = images(count)
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(CLASSES, DIM, generator=generator), torch.randn(CLASSES, generator=generator)
    mean, std = (torch.tensor(t)[:, None, None] for t in (MEAN, STD))
    expected = (encode((source.images / 255 - mean) / std) @ weight.T + bias).argmax(1).tolist()
    assert len(set(expected)) > 1
    for size in (1, 2, 4):
        for predicted in ranks.run(size, prediction, count):
            assert predicted == expected, f"{size} ranks"


# ------------------------------------------------------------------------------------------------ mistakes of the user


@pytest.mark.parametrize(
    ("batch", "size", "message"),
    [
        (30, 4, "batch = 30: must be divisible by the 4 ranks; use batch=32"),
        (72, 4, "batch = 72: the training set has 70 images, less than one batch; use at most batch=68"),
    ],
)
def test_a_bad_batch_is_told_in_one_line(batch: int, size: int, message: str) -> None:
    world = World(0, size, 0, torch.device("cpu"))
    started = partial(fit, world, images(70), replace(RECIPE, batch=batch))
    with pytest.raises(UserError) as raised:
        started()
    assert str(raised.value) == message
