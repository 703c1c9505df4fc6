"""The loader's wait for a batch: where its sockets lie, and how it ends on request."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.util
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist.data import loader, workers
from moco_dist.data.loader import Withheld, heeding, make_loader, no_workers_left
from moco_dist.errors import UserError
from moco_dist.ranks import devices

CPU = torch.device("cpu")


class Numbers(Dataset[Tensor]):
    """A batch is its number; one takes long."""

    def __init__(self, slow: int = -1, seconds: float = 0.0) -> None:
        self.slow, self.seconds = slow, seconds

    def __getitem__(self, step: int) -> Tensor:
        if step == self.slow:
            time.sleep(self.seconds)
        return torch.full((1000,), step)


@pytest.fixture
def no_sockets_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("name", ["a" * 118, "ä" * 50, f"{'b' * 70}/{'c' * 70}", "short"])
def test_sockets_lie_where_their_paths_are_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets_yet: None
) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    batches = make_loader(Numbers(), range(3), 1, CPU)
    folder = Path(multiprocessing.util.get_temp_dir())
    assert len(os.fsencode(folder / "listener-12345678")) <= 107
    assert [int(batch[0]) for batch in batches] == [0, 1, 2]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert tempfile.gettempdir() == str(tmp_path / name)  # other files lie where the user wants them


def test_no_place_for_sockets_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets_yet: None) -> None:
    (tmp_path / ("a" * 118)).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 118)))
    monkeypatch.setattr(loader, "_SHORT_PLACE", "/nowhere")
    with pytest.raises(UserError, match=r"TMPDIR = .*: too long .*, and /nowhere cannot be .*; set it to .* 75 bytes"):
        make_loader(Numbers(), range(3), 1, CPU)
    make_loader(Numbers(), range(3), 0, CPU)  # which needs none


def test_a_process_of_a_pool_may_start_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    monkeypatch.setattr(devices, "cores", lambda: 2)
    assert [int(batch[0]) for batch in make_loader(Numbers(), range(3), "auto", CPU)] == [0, 1, 2]
    assert workers.choose(Numbers(slow=0, seconds=0.01), 0, images=1).workers == 0
    with pytest.raises(
        UserError, match=r"data\.workers = 2: this process is one of a .*Pool.*; set data\.workers=0, or"
    ):
        make_loader(Numbers(), range(3), 2, CPU)


@pytest.mark.parametrize("slow", [0, 2])
def test_a_stop_ends_the_wait_for_a_batch(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(loader, "_STOP_SECONDS", 0.3)
    before = multiprocessing.active_children()
    with no_workers_left(), heeding(lambda: True):  # which ends no loader that gives batches
        batches = iter(make_loader(Numbers(slow, 1e6), range(4), 1, CPU))
        assert [int(next(batches)[0]) for _ in range(slow)] == list(range(slow))
        with pytest.raises(Withheld, match="a batch of the data loader does not come"):
            next(batches)
        del batches
    assert multiprocessing.active_children() == before


class OfThisProcess:
    """Garbage that only the process that made it may collect, like a decoder with threads."""

    def __init__(self) -> None:
        self.itself, self.process = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            time.sleep(1e6)


class Collecting(Numbers):
    """Making a batch collects garbage."""

    def __getitem__(self, step: int) -> Tensor:
        gc.collect()
        return super().__getitem__(step)


@pytest.mark.parametrize("alive", [False, True])
def test_workers_collect_no_garbage_of_this_process(alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(loader, "_STOP_SECONDS", 5.0)
    gc.disable()
    try:
        garbage = [OfThisProcess()]
        if not alive:
            garbage.clear()
        with no_workers_left(), heeding(lambda: True):
            assert [int(batch[0]) for batch in make_loader(Collecting(), range(3), 1, CPU)] == [0, 1, 2]
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


def test_a_slow_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_LOOK_SECONDS", 0.1)
    assert [int(batch[0]) for batch in make_loader(Numbers(1, 1.0), range(3), 1, CPU)] == [0, 1, 2]
