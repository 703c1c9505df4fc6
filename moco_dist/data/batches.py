"""The order of batches as a function of (seed, epoch), and the loader that can begin at any step."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moco_dist import randomness
from moco_dist.config import Config
from moco_dist.data import augment
from moco_dist.data.sources import Source
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World


class Batch(NamedTuple):
    """One rank's share of a step."""

    views: Tensor
    """uint8 [2, n, C, S, S] two crops of each image."""
    draws: Tensor
    """[2, n, augment.COLOUR_DRAWS] uniform numbers for the augmentation on the device."""
    unreadable: list[str]
    """Images that were replaced."""


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole batches of an epoch; the samples left over come in other epochs."""
    return samples // global_batch


class Steps(Dataset[Batch]):
    """The batches of a run by step (counted from 0): sample order, crops and draws follow from the seed alone."""

    def __init__(self, source: Source, config: Config, world: World) -> None:
        self.source, self.config = source, config
        self.first = world.rank * (config.optim.global_batch // world.size)
        self.count = config.optim.global_batch // world.size
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch of the step, and the indices of this rank's samples: a slice of the epoch's global order."""
        batch = self.config.optim.global_batch
        epoch, within = divmod(step, steps_per_epoch(len(self.source), batch))
        if self._order[0] != epoch:
            seed = self.config.run.seed
            self._order = epoch, randomness.permutation(seed, randomness.Stream.ORDER, epoch, 0, len(self.source))
        begin = within * batch + self.first
        return epoch, self._order[1][begin : begin + self.count]

    def __getitem__(self, step: int) -> Batch:
        epoch, samples = self.samples(step)
        views, draws, unreadable = [], [], []
        for view in range(2):
            numbers = torch.from_numpy(
                randomness.uniform(
                    self.config.run.seed, randomness.Stream.VIEW, epoch, 2 * samples + view, augment.DRAWS
                )
            )
            crops, bad = self.source.crops(samples, numbers[:, : augment.CROP_DRAWS], self.config.data)
            views.append(crops)
            draws.append(numbers[:, augment.CROP_DRAWS :])
            unreadable += bad
        return Batch(torch.stack(views), torch.stack(draws), sorted(set(unreadable)))


def loader(steps: Steps, start: int, stop: int, *, pin: bool) -> DataLoader[Batch]:
    """Batches of the steps from start to stop, made ahead of time by `data.workers` processes."""
    workers = steps.config.data.workers
    return DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        worker_init_fn=in_worker,
    )


def in_worker(worker: int) -> None:
    """Signals in a forked worker: it inherits the trainer's handlers, and must not outlive or outrun it.

    torchrun signals the whole process group. A worker that died of that would turn a stop into a crash; so the first
    SIGTERM is passed over, and the trainer's own, when it ends, is heeded.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def no_workers_left() -> Iterator[None]:
    """Kill workers that a failure within left behind: Python would wait for them, and they pass over its SIGTERM."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        gc.collect()  # a loader that nobody holds ends its workers itself
        with _deaf_to(signal.SIGCHLD):  # torch's handler raises where a worker is killed
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
                worker.join()


@contextmanager
def _deaf_to(number: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)


def on_device(
    batches: DataLoader[Batch], augmentation: augment.Augment, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Augmented views (each [n, C, S, S]) and the names of replaced images.

    On a GPU the next step's copy and augmentation run on a stream of their own while the current step computes.
    """

    def prepare(batch: Batch) -> tuple[Tensor, Tensor, list[str]]:
        images = batch.views.to(device, non_blocking=True)
        wide = torch.promote_types(dtype, torch.float32)  # colours and blur are not for half precision
        one, two = (augmentation(images[v], batch.draws[v], wide).to(dtype) for v in range(2))
        return one, two, batch.unreadable

    if not devices.runs_ahead(device):
        yield from map(prepare, batches)
        return
    of_device = devices.of(device)
    stream = of_device.Stream(device)
    ahead: tuple[Tensor, Tensor, list[str]] | None = None
    for batch in batches:
        with of_device.stream(stream):
            following = prepare(batch)
        if ahead is not None:
            yield ahead
        of_device.current_stream(device).wait_stream(stream)
        for view in following[:2]:  # the allocator must not reuse them while the training stream reads
            view.record_stream(of_device.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead
