"""Train the linear probe by SGD, for features that fit into no memory: the encoder is run on every step's crops.

The protocol of MoCo (He et al. 2020, section 4.1, and the authors' `main_lincls.py`): a linear layer on frozen features
as they come out of the pooling, trained on random crops and flips. Nothing is stored; `linear.py` solves the problem
for features that are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.config.section import Interval
from moco_dist.data import augment, loader, store, stream
from moco_dist.errors import UserError
from moco_dist.evaluate.features import Encode
from moco_dist.evaluate.linear import Probe
from moco_dist.ranks import collectives, watchdog
from moco_dist.summation import PairwiseSum

_LR_BATCH = 256
"""Images of the batch that a recipe's learning rate is for."""

_PIECE, _PIECES = 32, 8
"""Images encoded together at most, and pieces of a batch at least: so many ranks compute the same pieces."""

_INITIAL_STD = 0.01


@dataclass(frozen=True)
class ProbeRecipe:
    """The recipe says how the classifier is trained; the defaults are the paper's, or else the authors' code's."""

    epochs: int = 100
    """Passes over the source, each without its last incomplete batch."""
    batch: int = 256
    """Images of one step over all ranks."""
    lr: float = 30.0
    """Initial learning rate of a batch of 256; of another one, in proportion (Goyal et al. 2017, section 2.1)."""
    milestones: tuple[int, ...] = (60, 80)
    """Epochs, counted from 0, at whose beginning the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    """Factor of the learning rate at each milestone; the weights have no decay."""
    momentum: float = 0.9
    """Momentum of SGD."""
    crop_scale: Interval = (0.08, 1.0)
    """Area of the random crop as a fraction of the image's, least and most; torchvision's default."""
    flip: float = 0.5
    """Probability of the horizontal flip."""
    crop_ratio: Interval = (3 / 4, 4 / 3)
    """Width over height of the random crop, least and most; torchvision's default."""

    def learning_rate(self, epoch: int) -> float:
        """Compute `lr (batch / 256) decay^n` after n milestones; epoch is counted from 0."""
        passed = sum(epoch >= milestone for milestone in self.milestones)
        return self.lr * self.batch / _LR_BATCH * self.decay**passed

    def steps(self, samples: int) -> int:
        """Count the steps of the whole training on a source of so many images."""
        return self.epochs * stream.steps_per_epoch(samples, self.batch)


def fit(
    encode: Encode,
    source: store.Source,
    classes: int,
    feature_dim: int,
    world: collectives.World,
    config: Config,
    augmentation: augment.Augment,
    recipe: ProbeRecipe,
    progress: Callable[[int, float, Tensor], None] = lambda step, lr, loss: None,
    dtype: torch.dtype = torch.float32,
) -> Probe:
    """Train a linear classifier on the mean cross-entropy of a source's random crops.

    What it sees is a function of the seed alone. On the CPU with one thread, 1, 2 and 4 ranks give the same bits.

    Args:
        encode: normalised images [n, C, size, size] to features [n, D], in evaluation mode and without gradients.
        source: labelled images.
        classes: of the problem.
        feature_dim: D.
        world: the ranks; each computes its slice of every batch.
        config: of the run, for its seed, the side of the crops, and how and by how many processes files are decoded.
        augmentation: of the run, for its normalisation.
        recipe: epochs, batch, learning rate and crops.
        progress: called after each step, on each rank, with the number of steps done, the learning rate, and the mean
            loss of the batch before the step, on the device.
        dtype: of the images; the classifier is in float32 or wider.

    Returns:
        The classifier, the same on all ranks, on the device.

    Raises:
        UserError: the batch does not divide over the ranks, or is larger than the source.
    """
    pieces = _pieces(recipe.batch, len(source), world.size)
    wide = torch.promote_types(dtype, torch.float32)
    view = augmentation.flipping(recipe.flip)
    probe = _initial(classes, feature_dim, config.run.seed, wide, world.device)
    optimizer = torch.optim.SGD(list(probe), lr=recipe.lr, momentum=recipe.momentum)

    def of_piece(crops: Tensor, draws: Tensor, labels: Tensor) -> list[Tensor]:
        """Compute what a piece adds to the mean loss of this rank's slice, and to its gradients."""
        with torch.no_grad():
            images = view(crops, draws, wide)
            features = encode(images.to(dtype))  # [n / pieces, D]
        loss = F.cross_entropy(probe.logits(features), labels.to(world.device, non_blocking=True)) / pieces
        return [loss.detach(), *torch.autograd.grad(loss, probe)]

    assert source.labels is not None
    data = config.data.model_copy(update={"crop_scale": recipe.crop_scale, "crop_ratio": recipe.crop_ratio})
    keys = stream.StreamKeys(config.run.seed, randomness.Stream.PROBE_ORDER, randomness.Stream.PROBE_VIEW)
    batches = stream.BatchStream(source, data, keys, recipe.batch, rank=world.rank, ranks=world.size)
    steps = range(recipe.steps(len(source)))
    for step, batch in enumerate(loader.make_loader(batches, steps, config.data.workers, world.device)):
        labels = torch.from_numpy(source.labels[batch.samples.numpy()])
        total = PairwiseSum()
        of_batch = batch.views_on(world.device, source)[0], batch.draws[0], labels
        for piece in zip(*(t.chunk(pieces) for t in of_batch), strict=True):
            total.add(of_piece(*piece))
        world.mean_(means := total.total())
        loss, probe.weight.grad, probe.bias.grad = means
        lr = recipe.learning_rate(step // stream.steps_per_epoch(len(source), recipe.batch))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        watchdog.beat()
        progress(step + 1, lr, loss)
    return Probe(*(t.detach() for t in probe))


def _pieces(batch: int, samples: int, ranks: int) -> int:
    """Count the equal pieces that a rank's slice is encoded in: a power of two, so that all sums meet in one tree.

    The slice is halved until a piece is small enough, or odd. How small follows from the batch alone, so that the
    pieces are the same on any number of ranks that is a power of two.
    """
    if batch % ranks:
        fix = f"use batch={-(-batch // ranks) * ranks}"
        raise UserError.of("batch", batch, f"must be divisible by the {ranks} ranks", fix)
    if batch > samples:
        rule = f"the training set has {samples} images, less than one batch"
        raise UserError.of("batch", batch, rule, f"use at most batch={samples // ranks * ranks}")
    share, most, pieces = batch // ranks, min(_PIECE, batch // _PIECES), 1
    while share // pieces > most and share % (2 * pieces) == 0:
        pieces *= 2
    return pieces


def _initial(classes: int, feature_dim: int, seed: int, dtype: torch.dtype, device: torch.device) -> Probe:
    """Make the classifier that is trained: weights N(0, 0.01), no bias, as the authors have it."""
    generator = torch.Generator().manual_seed(seed)
    weight = _INITIAL_STD * torch.randn(classes, feature_dim, generator=generator)
    return Probe(*(t.to(device, dtype).requires_grad_() for t in (weight, torch.zeros(classes))))
