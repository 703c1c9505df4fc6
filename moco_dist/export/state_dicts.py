"""Write the layers of an encoder as other programs read them: torchvision and detectron2."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from moco_dist.networks import layouts, weights
from moco_dist.networks.resnet import Encoder


def as_torchvision(network: Encoder) -> bytes:
    """Return an encoder as the state_dict of torchvision's ResNet of that name, without its `fc`."""
    return saved(OrderedDict(weights.backbone_of(network)))


def as_detectron2(network: Encoder) -> bytes:
    """Return an encoder as detectron2's checkpointer reads it, and the authors' converter writes it.

    That is a pickle of arrays of float32 in detectron2's names. Counts of batches are left out, since detectron2's
    frozen BatchNorms have none.
    """
    layers = {name: tensor for name, tensor in weights.backbone_of(network).items() if tensor.is_floating_point()}
    model = {layouts.to_detectron2(name): tensor.numpy() for name, tensor in layers.items()}
    content = {"model": model, "__author__": "moco-dist", "matching_heuristics": True}
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(content)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Pickle arrays by names that numpy 1 and 2 both have; numpy's own way names its private `numpy._core`."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


def saved(content: Any) -> bytes:
    """Return the bytes that torch.save writes for an object."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
