"""A crash is told on one line, the cause first, and its traceback once."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_dist.ranks import transfers
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.transfers import PeerLost
from moco_dist.run import status
from moco_dist.run.directory import RunDirectory
from moco_dist.train import process


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDirectory:
    """Make the directory of a run that has begun to train."""
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.open()
    run_dir.ours = True
    run_dir.status("running", 7)
    return run_dir


def is_hidden(run_dir: RunDirectory, rank: int, error: Exception) -> bool:
    return process._hides_traceback(run_dir, Rank(rank, 4, rank), error)


def test_the_rank_at_fault_is_named_by_all_and_has_the_traceback(
    run_dir: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(transfers, "let_the_cause_show", lambda: waits.append(1))
    from_rank_0 = KeyError("x")
    from_rank_0.__cause__ = PeerLost("it failed on rank 0")
    assert not is_hidden(run_dir, 1, ValueError("two\nlines of https://user:hush@here"))
    assert is_hidden(run_dir, 0, PeerLost("another rank was lost in all_gather: closed"))
    assert is_hidden(run_dir, 2, ValueError("two\nlines of https://user:hush@here"))
    assert not is_hidden(run_dir, 3, from_rank_0)
    cause = "ValueError: two lines of https://***@here"
    assert capsys.readouterr().err.splitlines() == [
        f"moco_dist.train: rank 1: {cause}",
        f"moco_dist.train: rank 0: ends, since rank 1: {cause}",
        f"moco_dist.train: rank 2: fails as rank 1: {cause}",
        "moco_dist.train: rank 3: KeyError: 'x'",
    ]
    assert waits == [1, 1]
    assert status.read(run_dir.folder).reason == f"rank 1: {cause}"
    run_dir.close()


def test_a_rank_that_was_killed_leaves_the_loss_as_the_cause(
    run_dir: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_hidden(run_dir, 0, PeerLost("another rank was lost in all_gather: closed"))
    assert (
        capsys.readouterr().err == "moco_dist.train: rank 0: ends, since another rank was lost in all_gather: closed\n"
    )
    run_dir.close()


def test_the_crash_of_an_earlier_start_is_not_taken_for_this_ones(
    run_dir: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    is_hidden(run_dir, 1, ValueError("earlier"))
    run_dir.close()
    again = RunDirectory(run_dir.folder)
    again.open()
    again.ours = True
    assert status.read(again.folder) == status.Status("running", 7)
    capsys.readouterr()
    assert is_hidden(again, 0, PeerLost("another rank was lost"))
    assert "earlier" not in capsys.readouterr().err
    again.close()


def test_the_last_line_of_a_data_workers_error_is_its_cause(run_dir: RunDirectory) -> None:
    text = "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\nOSError: gone"
    run_dir.crashed(1, RuntimeError(text))
    assert status.read(run_dir.folder).reason == "rank 1: OSError: gone"
    run_dir.close()
