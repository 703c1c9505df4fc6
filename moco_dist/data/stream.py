"""A stream makes batches by step: what a step sees follows from its keys, so that a run can go on at any step."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data.augment import DRAWS, Augment
from moco_dist.data.boxes import Boxes, Crops, Indices
from moco_dist.data.crops import CROP_DRAWS
from moco_dist.data.decode import Unreadable
from moco_dist.data.store import Source
from moco_dist.data.views import Views
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World


class Batch(NamedTuple):
    """A batch is one rank's share of a step, with V views of each of its n images."""

    views: Crops
    """uint8 [V, n, C, S, S] crops, or where to cut them out of images on a device."""
    draws: Tensor
    """float32 [V, n, COLOUR_DRAWS] uniform numbers for the augmentation on the device. Of a pair whose second view
    travels, a third row is for the second views that come from other ranks (`views.Views`)."""
    samples: Tensor
    """int64 [n] places of the images among those that the stream is about."""
    unreadable: list[Unreadable]
    """The images that were replaced, sorted, each once."""

    def views_on(self, device: torch.device, source: Source) -> Tensor:
        """Return the crops on the device, uint8 [V, n, C, S, S], of the source that the batch is from."""
        if isinstance(self.views, Boxes):
            return source.cut(self.views)
        return self.views.to(device, non_blocking=True).contiguous()  # as collectives need them; of files, they are not


@dataclass(frozen=True)
class StreamKeys:
    """The keys tell what the random numbers of a stream are for, and in which run."""

    seed: int
    order: randomness.Stream
    """The keyed random numbers that the order of an epoch is drawn from."""
    view: randomness.Stream
    """The keyed random numbers that crops and augmentations are drawn from."""
    lesson: int | None = None
    """The number of the lesson, where several are learnt with one seed. Its views are then keyed by their place in the
    whole lesson, not by epoch and sample."""

    def permutation(self, epoch: int, samples: int) -> Indices:
        """Draw the order of an epoch, [samples]."""
        major, minor = (epoch, 0) if self.lesson is None else (self.lesson, epoch)
        return randomness.permutation(self.seed, self.order, major, minor, samples)

    def draws(self, epoch: int, samples: Indices, places: Indices, views: int) -> NDArray[np.float32]:
        """Draw the uniform numbers in [0, 1) of each view, [V, n, DRAWS].

        Args:
            epoch: counted from 0.
            samples: [n] which images.
            places: [n] their places in the stream, counted from its first step.
            views: number of views V of each image.
        """
        major, images = (epoch, samples) if self.lesson is None else (self.lesson, places)
        return randomness.uniform(self.seed, self.view, major, views * images + np.arange(views)[:, None], DRAWS)


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Return the number of whole batches of an epoch; the samples left over come in other epochs."""
    return samples // global_batch


@dataclass(eq=False)
class BatchStream(Dataset[Batch]):
    """A stream makes one rank's batches by step, counted from 0: order, crops and draws follow from the keys alone."""

    source: Source
    data: DataSection
    """Size of the crops, and limits of their area and ratio."""
    keys: StreamKeys
    global_batch: int
    """Images of a step over all ranks."""
    views: int = 1
    """Views of each image."""
    rank: int = 0
    ranks: int = 1
    """Number of ranks, each of which takes its slice of a batch."""
    among: Indices | None = None
    """[m] places in the source that the stream is about; None for all."""
    own_places: Callable[[int, int], Indices] | None = None
    """A function of a step and the length of its batch. It gives the places of the images whose second view this rank
    augments, [n]. None where each rank augments its own."""
    _order: tuple[int, Indices] = field(default=(-1, np.empty(0, dtype=np.int64)), init=False, repr=False)
    """The epoch of the last batch, and its order."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave images on a device out of what a worker is sent."""
        on_device = devices.runs_ahead(self.source.device)
        return self.__dict__ | ({"source": self.source.outline()} if on_device else {})

    def samples(self, step: int) -> tuple[int, Indices]:
        """Return the epoch of a step, and the [n] samples of this rank: a slice of the epoch's global order."""
        epoch, batch = self._batch(step)
        return epoch, batch[self._own()]

    def __getitem__(self, step: int) -> Batch:
        _, samples = self.samples(step)
        draws = self._draws(step, self._own())  # [V, n, DRAWS]
        indices = samples if self.among is None else self.among[samples]
        views, unreadable = self.source.crops(indices, draws[..., :CROP_DRAWS], self.data)
        if self.own_places:
            draws = np.concatenate([draws, self._draws(step, self.own_places(step, self.global_batch))[1:]])
        colour_draws = torch.from_numpy(draws[..., CROP_DRAWS:].copy())
        return Batch(views, colour_draws, torch.from_numpy(samples), sorted(set(unreadable)))

    def _batch(self, step: int) -> tuple[int, Indices]:
        """Return the epoch of a step, and the samples of its global batch."""
        count = len(self.source if self.among is None else self.among)
        epoch, within = divmod(step, steps_per_epoch(count, self.global_batch))
        if self._order[0] != epoch:
            self._order = epoch, self.keys.permutation(epoch, count)
        return epoch, self._order[1][within * self.global_batch :][: self.global_batch]

    def _own(self) -> Indices:
        """Return the places of this rank's images in the global batch, [n]."""
        return np.array_split(np.arange(self.global_batch), self.ranks)[self.rank]

    def _draws(self, step: int, places: Indices) -> NDArray[np.float32]:
        """Draw the numbers of the views of some images of a step, [V, n, DRAWS], by their places in its batch."""
        epoch, batch = self._batch(step)
        return self.keys.draws(epoch, batch[places], step * self.global_batch + places, self.views)


def pretraining(
    source: Source, config: Config, world: World, own_places: Callable[[int, int], Indices] | None = None
) -> BatchStream:
    """Make the stream of a pretraining: two views of each image, shared among the ranks.

    `own_places` is that of the method, where the second views travel between the ranks.
    """
    keys = StreamKeys(config.run.seed, randomness.Stream.ORDER, randomness.Stream.VIEW)
    batches = BatchStream(source, config.data, keys, config.optim.global_batch, views=2, own_places=own_places)
    return replace(batches, rank=world.rank, ranks=world.size)


def on_device(
    batches: Iterable[Batch], source: Source, augmentation: Augment, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Views, list[Unreadable]]]:
    """Yield the views of each batch of a source on the device, and the replaced images.

    On a GPU the next step's copy and augmentation run on a stream of their own while the current step computes.
    """
    wide = torch.promote_types(dtype, torch.float32)  # colours and blur are not for half precision

    def augment(crops: Tensor, draws: Tensor) -> Tensor:
        return augmentation(crops, draws, wide).to(dtype)

    def views_of(batch: Batch) -> Views:
        return Views(batch.views_on(device, source), batch.draws, augment)

    if not devices.runs_ahead(device):
        yield from ((views_of(batch), batch.unreadable) for batch in batches)
        return
    of_device = devices.of(device)
    stream = of_device.Stream(device)
    stream.wait_stream(of_device.current_stream(device))  # by which the images of a source on the device came
    ahead: list[tuple[Views, list[Unreadable]]] = []  # the batch that is prepared and not yet taken
    for batch in batches:
        with of_device.stream(stream):
            views = views_of(batch)
            prepared = views.prepare()
        yield from ahead
        of_device.current_stream(device).wait_stream(stream)
        for tensor in prepared:  # the allocator must not reuse them while the training stream reads
            tensor.record_stream(of_device.current_stream(device))
        ahead = [(views, batch.unreadable)]
    yield from ahead
