"""A crash is told on one line, the cause first, and its traceback once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist import arguments
from moco_dist import config as configs
from moco_dist.data import store
from moco_dist.errors import OwnMistake, UserError
from moco_dist.ranks import collectives, transfers
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.transfers import PeerLost
from moco_dist.run import status
from moco_dist.run.directory import RunDirectory
from moco_dist.train import ends, process, restarts
from tests.jobs import train_here


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDirectory:
    """Make the directory of a run that has begun to train."""
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.claim = run_dir.open()
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
    again.claim = again.open()
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


@pytest.mark.parametrize("state", [None, "stopped", "user_error", "diverged"])
def test_a_start_that_fails_before_it_has_told_anything_has_crashed(tmp_path: Path, state: status.State | None) -> None:
    """The status of an earlier start, such as a stop, would say that this one ended as it should."""
    if state:
        status.write(tmp_path, state, 7, "earlier")
    run_dir = RunDirectory(tmp_path)
    run_dir.claim = run_dir.open()
    assert run_dir.crashed(1, ValueError("no GPU")) == ""
    assert status.read(tmp_path) == status.Status("crashed", 7 if state else 0, "rank 1: ValueError: no GPU")
    assert run_dir.crashed(0, ValueError("later")) == "rank 1: ValueError: no GPU"
    run_dir.close()


def test_how_this_start_has_ended_is_no_crash_any_more(run_dir: RunDirectory) -> None:
    run_dir.status("stopped", 9, "on request")
    run_dir.crashed(0, ValueError("while it closed"))
    assert status.read(run_dir.folder).state == "stopped"
    run_dir.status("done", 9)
    run_dir.close()
    again = RunDirectory(run_dir.folder)
    again.claim = again.open()
    again.crashed(0, ValueError("nothing was to be done"))
    assert status.read(run_dir.folder).state == "done"
    again.close()


@pytest.mark.parametrize(
    "note",
    [
        lambda run_dir: run_dir.crashed(0, ValueError("late")),
        lambda run_dir: run_dir.refused("late"),
        lambda run_dir: run_dir.stopped_alone(9, "late"),
    ],
)
def test_who_has_lost_the_directory_notes_nothing(
    run_dir: RunDirectory, note: Callable[[RunDirectory], object]
) -> None:
    """Another job has taken the lease, and the run goes on there; that holds on every rank, whoever has the lease."""
    other = RunDirectory(run_dir.folder)
    other.claim = run_dir.claim
    lease = json.loads(run_dir.paths.lease.read_text())
    run_dir.paths.lease.write_text(json.dumps({**lease, "token": "theirs"}))
    for rank in (run_dir, other):
        note(rank)
        assert status.read(run_dir.folder) == status.Status("running", 7)
    run_dir.paths.lease.write_text(json.dumps(lease))
    note(other)
    assert status.read(run_dir.folder).state != "running"
    run_dir.close()


ENDS: list[tuple[BaseException, bool]] = [
    (ValueError("of this rank"), True),
    (transfers.PeerLost("another rank was lost"), True),
    (KeyboardInterrupt(), True),
    (ends.StoppedAlone(3, "no batch came"), True),
    (OwnMistake("data.root = x: none of its images can be decoded"), True),
    (UserError("optim.lr = 1: a mistake that all ranks share"), False),
    (ends.Stopped(3, "on request"), False),
]


@pytest.mark.parametrize(("end", "alone"), ENDS, ids=str)
@pytest.mark.parametrize("entry", [process.run, process.call], ids=["command", "call"])
def test_a_rank_that_ends_alone_does_not_wait_for_the_others(
    run_dir: RunDirectory, monkeypatch: pytest.MonkeyPatch, entry: Callable[..., Any], end: BaseException, alone: bool
) -> None:
    """NCCL's groups are left together, or not at all: to destroy one would wait for what the others do not send."""
    left: list[bool] = []
    config = configs.load(None)

    def train(self: process.Start, *_: object) -> None:
        self.world = World(0, 1, 0, torch.device("cpu"))
        raise end

    monkeypatch.setattr(process.Start, "train", train)
    monkeypatch.setattr(World, "leave", lambda world, *, alone=False: left.append(alone))
    monkeypatch.setattr(transfers, "let_the_cause_show", lambda: None)
    try:
        entry(process.Start(config, configs.layout(config, 1), Rank(0, 1, 0), run_dir), lambda *_: pytest.fail())
    except BaseException as error:
        assert error is end
    assert left == [alone]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_group_on_a_device_is_not_destroyed_by_a_rank_alone(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    destroyed: list[int] = []
    monkeypatch.setattr(collectives.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(collectives.dist, "destroy_process_group", lambda: destroyed.append(1))
    world = World(0, 2, 0, torch.device(kind))
    world.leave(alone=True)
    assert len(destroyed) == (kind == "cpu")  # gloo's threads would abort a process that ends with its group
    world.leave()
    assert len(destroyed) == (2 if kind == "cpu" else 1)


@pytest.mark.parametrize("way", ["crops", "centred"])  # in a step, and in an evaluation
def test_a_mistake_in_the_images_is_a_ranks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def unusable(*_: object) -> None:
        raise UserError("data.root = x: none of its 9 images can be decoded; mend the files")

    mistakes: list[UserError] = []
    monkeypatch.setattr(store.ArraySource, way, unusable)
    monkeypatch.setattr(restarts, "refuse", lambda rank, run_dir, error, met: mistakes.append(error) or 2)
    assert train_here(tmp_path / "run", {"optim.steps": 1}) == 2
    assert [type(error) for error in mistakes] == [OwnMistake] and str(mistakes[0]).startswith("data.root = x: none of")


@pytest.mark.parametrize(
    ("mistake", "told_by_rank_0", "speaks"),
    [
        (OwnMistake("data.root = x: the disk of this node is gone"), False, True),
        (OwnMistake("data.root = x: the disk of this node is gone"), True, False),
        (UserError("optim.lr = 1: a mistake that all ranks share"), False, False),
    ],
)
def test_a_mistake_that_one_rank_alone_has_met_is_told_by_it(
    run_dir: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: UserError,
    told_by_rank_0: bool,
    speaks: bool,
) -> None:
    """Rank 0 waits for this one, and would only tell that it is lost."""
    monkeypatch.setattr("moco_dist.ranks.rank._LET_RANK_0_SPEAK_SECONDS", 0.0)
    if told_by_rank_0:
        run_dir.refused("data.root = x: rank 0 has none either")
    assert restarts.refuse(Rank(1, 2, 1), run_dir, mistake, met=True) == 2
    assert capsys.readouterr().err == (f"moco_dist.train: {mistake}\n" if speaks else "")
    assert (status.read(run_dir.folder).reason == str(mistake)) == speaks
    run_dir.close()
    own = isinstance(mistake, OwnMistake)
    assert restarts.refuse(Rank(1, 2, 1), None, mistake) == 2  # before they have met
    assert capsys.readouterr().err == (f"moco_dist.train: {mistake}\n" if own else "")
    assert arguments.refused_once("moco_dist.evaluate", mistake, Rank(1, 2, 1), met=True) == 2
    assert capsys.readouterr().err == (f"moco_dist.evaluate: {mistake}\n" if own else "")
