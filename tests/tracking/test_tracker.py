"""The tracker records rows and prints lines, as the training loop asks it to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco_dist import tracking
from moco_dist.config import Config, parse
from moco_dist.errors import UserError
from moco_dist.tracking import Tracker


@pytest.fixture
def config() -> Config:
    return parse({"run": {"name": "digits"}, "track": {"wandb": "disabled", "log_every": 3}})


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def train(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log_step({"step": step, "loss": 1 / step, "lr": 0.03})


def test_rows_every_so_many_steps_and_at_the_last(config: Config, tmp_path: Path) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    train(tracker, 1, 10)
    assert tracker.sync()
    tracker.finish(0)
    assert rows(tmp_path) == [{"step": step, "loss": 1 / step, "lr": 0.03} for step in (3, 6, 9, 10)]


def test_a_killed_start_is_rewound(config: Config, tmp_path: Path) -> None:
    first = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    train(first, 1, 7)
    first.log_evaluation({"step": 4, "knn_top1": 0.5})
    first.log_evaluation({"step": 7, "knn_top1": 0.6})
    assert first.evaluated(4) and first.evaluated(7) and not first.evaluated(6)
    first.finish(1)
    second = Tracker.open(config, tmp_path, rank=0, start_step=4, total_steps=10)
    assert second.evaluated(4) and not second.evaluated(7)
    assert second.summary() == {"step": 4, "loss": 1 / 3, "lr": 0.03, "knn_top1": 0.5}
    train(second, 5, 10)
    assert second.summary()["loss"] == 0.1
    second.finish(0)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [3, 6, 9, 10]


def test_the_step_of_the_summary_is_that_of_the_later_row(config: Config, tmp_path: Path) -> None:
    """A run that goes on with eval.knn_every=0 ends without an evaluation."""
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=9)
    train(tracker, 1, 6)
    tracker.log_evaluation({"step": 6, "epoch": 2, "knn_top1": 0.5})
    assert tracker.summary() == {"step": 6, "epoch": 2, "loss": 1 / 6, "lr": 0.03, "knn_top1": 0.5}
    train(tracker, 7, 9)
    assert tracker.summary()["step"] == 9 and tracker.summary()["knn_top1"] == 0.5
    tracker.finish(0)


def test_other_ranks_are_silent(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker.open(config, tmp_path, rank=1, start_step=0, total_steps=10)
    train(tracker, 1, 10)
    tracker.log_evaluation({"step": 10, "knn_top1": 0.5})
    tracker.pairs(np.zeros((4, 4, 3), np.uint8))
    tracker.say("a line")
    tracker.warn("a line")
    assert tracker.sync() and not tracker.evaluated(10) and not tracker.stop_requested
    tracker.finish(0)
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_only_the_rank_that_speaks_needs_wandb_and_only_where_it_is_used(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracked = parse({"track": {"wandb": "offline"}})
    tracking.check(config, rank=0)
    tracking.check(tracked, rank=1)
    with pytest.raises(UserError, match=r"^track\.wandb = offline: wandb is not installed here; install it"):
        tracking.check(tracked, rank=0)


def test_unreadable_images_are_named_once(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    tracker.unreadable(["a", "b", "c", "d"])
    tracker.unreadable(["d", "e"])
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(": a, b, c and 1 more") and second.endswith(": e")
    tracker.finish(0)


def test_a_late_sync_harms_nothing(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    tracker.finish(0)
    assert tracker.sync() and not caplog.records


def test_lines_for_people(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    tracker.say("a line")
    tracker.warn("a fault")
    assert capsys.readouterr() == ("a line\n", "warning: a fault\n")
    tracker.finish(0)


def test_only_the_loss_may_not_be_nan(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    for step in (3, 6):
        tracker.log_step({"step": step, "loss": 1.0, "lr": 0.03, "grad_norm": float("inf")})
    with pytest.raises(ValueError):
        tracker.log_step({"step": 9, "loss": float("nan"), "lr": 0.03})
    tracker.finish(1)
    assert rows(tmp_path) == [{"step": step, "loss": 1.0, "lr": 0.03} for step in (3, 6)]
    assert capsys.readouterr().err.count("grad_norm is inf at step 3") == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_a_picture(config: Config, tmp_path: Path, channels: int) -> None:
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    images = np.arange(8 * 16 * channels, dtype=np.uint8).reshape(8, 16, channels)
    tracker.pairs(images)
    tracker.finish(0)
    read = np.asarray(Image.open(tmp_path / "augmented_pairs.png")).reshape(images.shape)
    assert np.array_equal(read, images)


def test_a_picture_that_cannot_be_written_stops_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "augmented_pairs.png").mkdir()
    tracker = Tracker.open(config, tmp_path, rank=0, start_step=0, total_steps=10)
    tracker.pairs(np.zeros((4, 4, 3), np.uint8))
    tracker.finish(0)
    assert "training goes on without the picture" in capsys.readouterr().err


def test_variables_that_do_not_count_are_told_by_rank_0(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.check(config, rank=0)
    assert not capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "online")
    tracking.check(config, rank=1)
    assert not capsys.readouterr().err
    tracking.check(config, rank=0)
    line = "moco_dist.train: track.wandb = disabled: it is set, so WANDB_MODE=online does not count\n"
    assert capsys.readouterr().err == line
