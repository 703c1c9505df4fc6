"""Data workers have their number from the config or the machine, start beside a device, and share large arrays."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moco_dist.data import sources, workers
from moco_dist.data.loader import no_workers_left
from moco_dist.data.store import FileSource
from moco_dist.data.stream import pretraining
from moco_dist.interruption import STOPPING
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from tests.data.made import config_of, draw, folder_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("milliseconds", "cores", "chosen"), [(2.2, 16, 9), (2.2, 4, 3), (2.2, 1, 0), (0.02, 16, 0), (0.03, 16, 1)]
)
def test_workers_are_chosen_by_cores_and_time(
    milliseconds: float, cores: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, steps = iter([100.0, 100.0 + 64 * milliseconds / 1000]), list[int]()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(devices, "cores", lambda: cores)

    class Steps(Dataset[None]):
        def __getitem__(self, step: int) -> None:
            steps.append(step)

    choice = workers.choose(Steps(), 5, images=64)
    assert choice.workers == chosen and steps == [5]
    assert choice.reason.startswith(f"{chosen} of each rank, for {cores} core") and " ms an image" in choice.reason


def test_where_nothing_is_measured_the_cores_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, count in ((1, 0), (4, 3), (64, 8)):
        monkeypatch.setattr(devices, "cores", lambda cores=cores: cores)
        assert workers.count("auto") == count
    assert [workers.count(number) for number in (0, 3)] == [0, 3]


def test_large_arrays_are_shared_and_nothing_else_changes(tmp_path: Path) -> None:
    for n in range(6):
        draw(tmp_path / f"{n}.png", 10 + 20 * n, side=12)
    run = folder_of(tmp_path)
    source = sources.open_source(run, "train")
    assert isinstance(source, FileSource)
    many = source.subset(np.arange(60_000) % 6)
    of_files = pretraining(many, run, World(0, 1, 0, CPU))
    in_memory = config_of(source="synthetic", samples=2000)
    of_arrays = pretraining(sources.open_source(in_memory, "train"), in_memory, World(0, 1, 0, CPU))
    for batches, size in ((of_files, many.names.nbytes), (of_arrays, 2000 * 3 * 64)):
        shared = workers.Shared(batches)
        assert len(ForkingPickler.dumps(shared)) < 20_000 < size
        assert all(array.is_shared() for array in shared._arrays)
        assert sum(array.nbytes for array in shared._arrays) >= size
        for ours, theirs in zip(shared[3][:3], batches[3][:3], strict=True):
            assert torch.equal(ours, theirs)


class Kept(Dataset[Tensor]):
    """Images in memory, in an order of their axes that is not that of the memory."""

    def __init__(self) -> None:
        self.images = torch.arange(100 * 30 * 40 * 3).to(torch.uint8).view(100, 30, 40, 3).permute(0, 3, 1, 2)

    def __getitem__(self, step: int) -> Tensor:
        return self.images[step:]


def test_images_with_their_channels_last_are_shared_with_any_release_of_numpy() -> None:
    """Before 2.3, it shares arrays without gaps alone, and would send a copy of all others to each worker."""
    kept = Kept()
    shared = workers.Shared(kept)
    assert torch.equal(shared[0], kept.images) and shared[0].stride() == kept.images.stride()
    assert sum(array.nbytes for array in shared._arrays) == kept.images.nbytes
    _, (array, _) = workers._Pickler(io.BytesIO()).reducer_override(kept.images)
    assert array.flags.c_contiguous


class Who(Dataset[Tensor]):
    """A batch says which process made it, and which one that was started by."""

    def __getitem__(self, step: int) -> Tensor:
        return torch.tensor([step, os.getpid(), os.getppid()])


def loading(batches: Dataset[Any], steps: range) -> Iterator[Any]:
    context = workers.context(GPU)
    how: dict[str, Any] = {"multiprocessing_context": context, "worker_init_fn": workers.prepare}
    return iter(DataLoader(workers.Shared(batches), batch_size=None, sampler=steps, num_workers=1, **how))


def test_beside_a_device_workers_come_from_a_server_that_outlives_signals() -> None:
    assert workers.context(CPU).get_start_method() == "fork"
    with no_workers_left():
        batches = loading(Who(), range(40))
        step, worker, server = next(batches).tolist()
        assert step == 0 and server == multiprocessing.forkserver._forkserver._forkserver_pid != os.getpid()
        for process in (server, worker):
            for number in STOPPING:  # as torchrun and SLURM send them to the process group
                os.kill(process, number)
        assert [batch.tolist() for batch in batches] == [[n, worker, server] for n in range(1, 40)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_killed_trainer_leaves_neither_workers_nor_server() -> None:
    command = [sys.executable, "-m", "tests.data.test_workers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as trainer:
        try:
            assert trainer.stdout
            _, *left = map(int, trainer.stdout.readline().split())
            assert len(left) == 2 and all(map(alive, left))
        finally:
            trainer.kill()
        deadline = time.monotonic() + 60  # the machine is slow
        while any(alive(process) for process in left):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    batches = loading(Who(), range(40))  # held, lest its worker ends
    print(*next(batches).tolist(), flush=True)
    time.sleep(1e6)
