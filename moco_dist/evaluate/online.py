"""The evaluation during training: kNN on the features of the query encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from moco_dist.config import Config
from moco_dist.data.augment import Augment
from moco_dist.data.sources import Data
from moco_dist.encoders import Encoder
from moco_dist.evaluate import features, knn
from moco_dist.learner import Learner


@torch.no_grad()
def knn_top1(config: Config, learner: Learner, encoder: Encoder, data: Data, augmentation: Augment) -> float:
    """KNN accuracy on the data's queries, the same on all ranks. Leaves the encoder in training mode."""
    encoder.eval()

    def encode(images: Tensor) -> Tensor:
        with learner.autocast():
            return encoder.features(images)

    shares = []
    for source in (data.bank, data.queries):
        assert source is not None and source.labels is not None
        found, indices = features.extract(
            encode,
            source,
            learner.world,
            size=config.data.image_size,
            augmentation=augmentation,
            dtype=learner.image_dtype,
            workers=config.data.workers,
        )
        shares.append((found, torch.from_numpy(source.labels)[indices], indices))
    encoder.train()
    bank, (queries, labels, _) = shares
    k, temperature = config.eval.knn_k, config.eval.knn_temperature
    return knn.accuracy((queries, labels), bank, k=k, temperature=temperature, world=learner.world)
