"""A method says what is computed, an engine how; the interface between them stands here.

A method knows nothing of parts, precision, optimizers and sums over ranks; the engine knows nothing of keys and queues.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from moco_dist.data.views import Views


@dataclass(frozen=True)
class Keys:
    """The queries of one direction of the loss are contrasted with these keys."""

    keys: Tensor
    """[size * n, C] keys of the global batch, in its order and without gradient."""
    statistics: list[Tensor]
    """BatchNorm statistics of this rank's groups, added up; the engine replaces them by their means over the ranks."""


class Terms(NamedTuple):
    """Terms are scalars by name that a method computes of some queries."""

    loss: dict[str, Tensor]
    """Terms of the loss, means over the queries; the gradient is that of their sum."""
    figures: dict[str, Tensor]
    """Further means over the queries that are shown and have no gradient."""
    details: Callable[[], dict[str, Tensor]] = dict
    """Computes more such means, for a step whose row is written: the engine calls it after the backward pass."""
    features: Tensor | None = None
    """[r, C] normalised queries, where their spread is to be shown."""


class Method(nn.Module, ABC):
    """A method learns from pairs of views. The engine moves its submodules and buffers to the device."""

    trained: nn.Module
    """The encoder that the optimizer changes; its `features` are what an evaluation uses."""
    own_places: Callable[[int, int], NDArray[np.int64]] | None = None
    """Given a step and the length of its global batch, returns where the images stand whose second view this rank
    augments, [n]; None where it augments its own. Data workers are sent it, so that it must hold no tensor."""

    @abstractmethod
    def queries(self, views: Views) -> list[Tensor]:
        """Return the images that go through `trained`, [n, ...] for each direction of the loss."""

    def before_step_(self) -> None:
        """Change what is to change ahead of a step. After a step that the optimizer has skipped, it is not called."""
        return

    @abstractmethod
    def keys(self, views: Views, step: int, parts: int) -> Callable[[], list[Keys]]:
        """Start what the keys need from other ranks, and return what computes those of each direction.

        The engine encodes queries in between, so that these do not wait for the exchange. There is no gradient.

        Args:
            views: of this rank's images.
            step: counted from 0.
            parts: in which to encode them, each of whole BatchNorm groups.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, keys: Keys, rows: slice) -> Terms:
        """Compute the loss of some queries of one direction.

        Args:
            outputs: [r, C] of `trained`.
            keys: of the direction.
            rows: where these queries stand in the global batch.
        """

    def after_step_(self, keys: Sequence[Keys], groups: int) -> None:
        """Change what is to change after the optimizer.

        Args:
            keys: of each direction, their statistics averaged over the ranks.
            groups: BatchNorm groups that a rank's statistics were added up over.
        """
        return

    def figures_on_host(self, step: int, images: int) -> dict[str, float]:
        """Return figures of a step that the host knows without the device, the same on all ranks.

        Args:
            step: counted from 0.
            images: of the global batch.
        """
        return {}

    def figures_of_state(self) -> dict[str, Tensor]:
        """Compute scalars from what is equal on all ranks, such as parameters, between the passes and the optimizer."""
        return {}

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that a later start needs, as tensors, numbers and dicts of them."""

    @abstractmethod
    def restore_(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
