"""Evaluate during training, by kNN and a linear probe on the features of the query encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.data.augment import Augment
from moco_dist.data.decode import Unreadable
from moco_dist.data.sources import Data
from moco_dist.data.store import Source
from moco_dist.engine.engine import Engine
from moco_dist.evaluate import features, knn, ridge, view
from moco_dist.evaluate.features import Features
from moco_dist.networks.resnet import Encoder


def part(data: Data, images: int | None) -> Data:
    """Return the data with at most so many images in the bank, and a fifth as many queries; None keeps all.

    The same images for every seed and at every evaluation, so that figures compare.
    """
    if images is None or data.bank is None or data.queries is None:
        return data
    return replace(data, bank=_some(data.bank, images, 1), queries=_some(data.queries, max(1, images // 5), 2))


def _some(source: Source, count: int, number: int) -> Source:
    """Return a random part of a source, in its order. Number 0 is the cut of `eval.knn_split=validation`."""
    if count >= len(source):
        return source
    order = randomness.permutation(0, randomness.Stream.SPLIT, 0, number, len(source))
    return source.subset(np.sort(order[:count]))


@torch.no_grad()
def accuracies(
    config: Config,
    engine: Engine,
    encoder: Encoder,
    data: Data,
    augmentation: Augment,
    *,
    view_file: Path | None = None,
    step: int = 0,
) -> tuple[dict[str, float], list[Unreadable]]:
    """Compute the accuracy of kNN and of a linear probe on the data's queries, the same on all ranks.

    One extraction of features serves both. Leaves the encoder in training mode.

    Args:
        config: of the run.
        engine: that trains.
        encoder: of the queries.
        data: with labelled images to learn from and to be judged on.
        augmentation: of the run, for its pixel statistics.
        view_file: where a view of the features is left to be looked at; None: nowhere.
        step: steps done.

    Returns:
        `knn_top1`, `linear_top1`, and `linear_train_top1` on images that the probe has learnt, 0 to 1; and the images
        that could not be read and were replaced on any rank, the queries first.
    """
    assert data.bank is not None and data.queries is not None

    def encode(images: Tensor) -> Tensor:
        with engine.autocast():
            return encoder.features(images)

    encoder.eval()
    (bank, of_bank), (queries, of_queries) = (
        features.extract(encode, source, engine.world, config.data, augmentation, engine.image_dtype)
        for source in (data.bank, data.queries)
    )
    encoder.train()
    world, k, temperature = engine.world, config.eval.knn_k, config.eval.knn_temperature
    on_ranks = zip(*world.gather_objects((of_queries, of_bank)), strict=True)
    unreadable = [image for lists in on_ranks for image in sorted({image for images in lists for image in images})]
    stride = -(-len(data.bank) // len(data.queries))  # as many images of the bank as there are queries
    learnt = Features(*(share[bank.indices % stride == 0] for share in bank))
    linear, linear_train = ridge.accuracies([queries, learnt], bank, world=world)
    classified = knn.classify(queries, bank, k=k, temperature=temperature, world=world)
    if view_file is not None:
        images = view.Images(data.queries, data.bank, config.data.image_size, config.eval.knn_split)
        view.leave(view_file, classified, bank, images, world, step=step, may_fail=True)
    return {"knn_top1": classified.accuracy, "linear_top1": linear, "linear_train_top1": linear_train}, unreadable
