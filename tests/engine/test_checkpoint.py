"""Checkpoints that were cut short, bent, interrupted or refused by the disk."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist.encoders import from_run
from moco_dist.engine import checkpoint
from moco_dist.engine.checkpoint import Checkpoints
from moco_dist.errors import UserError
from moco_dist.run.checkpoints import Damaged

STATE: dict[str, Any] = {
    "encoder_q": {"w": torch.randn(64, 33, generator=torch.Generator().manual_seed(0)), "n": torch.tensor(3)},
    "half": torch.ones(5, dtype=torch.bfloat16),
    "optimizer": {"state": {0: {"momentum_buffer": torch.arange(4.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "scaler": {},
    "cursor": 7,
    "skipped": False,
    "name": "run",
}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def state(number: int) -> dict[str, Any]:
    return {**STATE, "cursor": number}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.index.steps() == [10, 20]
    return checkpoints


def test_round_trip(kept: Checkpoints) -> None:
    assert kept.index.latest() == 20
    assert kept.failures == 0
    assert equal(kept.load(20), state(20))
    assert equal(kept.load(10), state(10))


def test_it_loads_with_torch_alone(kept: Checkpoints) -> None:
    assert equal(torch.load(kept.index.path(20), weights_only=True), state(20))


def test_nobody_else_may_read(kept: Checkpoints) -> None:
    assert {f.stat().st_mode & 0o777 for f in kept.index.folder.iterdir()} == {0o600}
    assert kept.index.folder.stat().st_mode & 0o777 == 0o700


def test_the_state_is_copied_when_saved(tmp_path: Path) -> None:
    """Training goes on while the writer is held back: what is written is the state of the call."""
    checkpoints, weights = Checkpoints(tmp_path, keep=2), torch.zeros(1000)
    settings = {"params": [0]}
    checkpoints.save(1, {"w": weights, "group": settings}, before=lambda: time.sleep(0.05))
    weights.add_(1)
    settings["params"].append(1)
    assert checkpoints.index.latest() is None  # it is still being written
    checkpoints.wait()
    loaded = checkpoints.load(1)
    assert not loaded["w"].any()
    assert loaded["group"] == {"params": [0]}


def test_before_is_called_ahead_of_the_rename(tmp_path: Path) -> None:
    checkpoints, seen = Checkpoints(tmp_path, keep=2), []
    checkpoints.save(1, STATE, before=lambda: seen.append(checkpoints.index.path(1).exists()))
    checkpoints.wait()
    assert seen == [False]
    assert checkpoints.index.path(1).exists()


def cut(path: Path, rest: int) -> None:
    os.truncate(path, rest)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "empty": (lambda p: cut(p, 0), "cut short"),
    "one byte short": (lambda p: cut(p, p.stat().st_size - 1), "cut short"),
    "the checksum short": (lambda p: cut(p, p.stat().st_size - 81), "cut short"),
    "half": (lambda p: cut(p, p.stat().st_size // 2), "cut short"),
    "a bit of the weights": (lambda p: flip(p, 2000), "checksum"),
    "the first bit": (lambda p: flip(p, 0), "checksum"),
    "a bit of the checksum": (lambda p: flip(p, -1), "checksum"),
    "another file": (lambda p: p.write_text("hello\n" * 100), "cut short"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_passed_over_and_named(kept: Checkpoints, caplog: pytest.LogCaptureFixture, how: str) -> None:
    damage, why = DAMAGES[how]
    damage(kept.index.path(20))
    with pytest.raises(Damaged, match=why):
        kept.load(20)
    with caplog.at_level(logging.WARNING):
        assert kept.index.latest() == 10
    assert len(caplog.records) == 1
    assert str(kept.index.path(20)) in caplog.text
    assert why in caplog.text
    assert equal(kept.load(10), state(10))
    # Set aside, it does not count among the kept ones: the next save must not push out the whole one for it.
    kept.save(20, state(21))
    kept.wait()
    assert kept.index.steps() == [10, 20]
    assert kept.load(20)["cursor"] == 21


def test_where_all_are_damaged_there_is_none(kept: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        cut(kept.index.path(step), 50)
    assert kept.index.latest() is None
    assert [str(kept.index.path(s)) in r.getMessage() for s, r in zip((20, 10), caplog.records, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_a_disk_that_is_away_for_a_time_costs_no_checkpoint(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """All would be set aside, one after the other, and the run would begin anew."""

    def away(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("moco_dist.run.checkpoints.read_bytes", away)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            kept.index.latest()
        with pytest.raises(
            UserError, match=r"^RUN_DIR = .*: its checkpoints cannot be read: .*; run the command again"
        ):
            from_run.choose_step(kept.index.folder.parent, with_head=True)
    assert kept.index.steps() == [10, 20] and kept.index.latest() == 20


def test_files_of_other_names_are_left_alone(kept: Checkpoints) -> None:
    stranger = kept.index.folder / "step_000000020 (copy).pt"
    stranger.write_bytes(b"mine")
    assert kept.index.latest() == 20
    kept.save(30, state(30))
    kept.wait()
    assert kept.failures == 0
    assert stranger.exists()


def test_where_there_is_no_folder_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere", keep=2).index.latest() is None


def test_the_last_ones_and_the_milestones_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, milestone=lambda step: step % 30 == 0)
    for step in range(10, 101, 10):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.index.steps() == [30, 60, 80, 90, 100]
    assert checkpoints.index.latest() == 100


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, writes=False)
    checkpoints.save(1, STATE)
    checkpoints.wait()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    bad = {**STATE, "optimizer": {"state": {0: {"momentum_buffer": torch.tensor([1.0, value])}}, "param_groups": []}}
    kept.save(30, bad)
    kept.wait()
    assert kept.failures == 1
    assert "step 30 not saved" in caplog.text
    assert "not finite" in caplog.text
    assert kept.index.steps() == [10, 20]


# ------------------------------------------------------------ the disk fails


def fails(*arguments: object, **keywords: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "os.open", "torch.save", "pathlib.Path.replace", "pathlib.Path.mkdir"])
def test_a_full_disk_is_told_and_counted_and_the_old_files_stay(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call, fails)
        for step in (30, 40):
            kept.save(step, state(step))
            kept.wait()
    assert kept.failures == 2
    assert "checkpoint of step 40 not saved, training goes on: OSError: [Errno 28]" in caplog.text
    assert sorted(f.name for f in kept.index.folder.iterdir()) == ["step_000000010.pt", "step_000000020.pt"]
    assert kept.index.latest() == 20
    kept.save(50, state(50))  # there is room again
    kept.wait()
    assert kept.index.latest() == 50
    assert kept.failures == 2


def test_a_failing_sync_of_the_metrics_stops_the_checkpoint_alone(kept: Checkpoints) -> None:
    kept.save(30, state(30), before=fails)
    kept.wait()
    assert (kept.failures, kept.index.steps()) == (1, [10, 20])


def test_a_file_where_the_folder_should_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, STATE)
    checkpoints.wait()
    assert checkpoints.failures == 1
    assert "step 1 not saved" in caplog.text
    assert checkpoints.index.latest() is None


def test_what_a_killed_writer_left_is_cleared(kept: Checkpoints) -> None:
    stale = kept.index.folder / ".step_000000030.pt.12345"
    stale.write_bytes(b"half")
    assert kept.index.latest() == 20
    kept.save(40, state(40))
    kept.wait()
    assert not stale.exists()


WRITER = """
import sys, torch
from pathlib import Path
from moco_dist.engine.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
step = checkpoints.index.latest() or 0
while True:
    step += 1
    checkpoints.save(step, {"step": step, "w": torch.full((300_000,), float(step))})
    if step % 7 == 0:
        print(step, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_one(tmp_path: Path) -> None:
    reached = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as process:
            assert process.stdout
            for _ in range(3):
                reached = int(process.stdout.readline())
            time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
        checkpoints = Checkpoints(tmp_path, keep=2)
        latest = checkpoints.index.latest()
        assert latest
        assert latest >= reached - 1  # the one before is on disk when the next is begun
        loaded = checkpoints.load(latest)
        assert loaded["step"] == latest
        assert (loaded["w"] == latest).all()
    assert reached > 21  # the second writer went on from the first one's


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.pt"
    checkpoint.write(path, state(1))
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(path, state(2), before=fails)
    assert checkpoint.load(path)["cursor"] == 1
    assert [f.name for f in tmp_path.iterdir()] == [path.name]
    checkpoint.write(path, state(3))
    assert checkpoint.load(path)["cursor"] == 3


def test_what_cannot_be_read_pushes_out_no_later_one(kept: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    """Two files of later steps would make each checkpoint of the steps that are taken again the first to go."""
    for step in (30, 40):
        kept.index.path(step).mkdir()
    assert kept.index.latest() == 20 and caplog.text.count("is not a regular file") == 2
    for step in (21, 22):
        kept.save(step, state(step))
    kept.wait()
    assert kept.index.steps() == [21, 22] and kept.index.latest() == 22
