"""The monitor folds rows one by one: rebuilt from the books after a kill, it tells each finding once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from moco_dist import health
from moco_dist.health.course import ROWS
from moco_dist.run.rows import Row, finding_row, is_evaluation, is_finding, is_training
from moco_dist.tracking import Tracker
from moco_dist.tracking.guard import Guard
from tests.health.made import IMAGES, config_of, events_of, monitor_of, rows

STEPS = 640


def broken(step: int) -> dict[str, Any]:
    """Change the figures of a run that is collapsed for a while, and whose ranks part twice."""
    collapsed = {"q_std": 0.01} if 200 <= step < 400 else {}
    apart = {"ranks_apart": 1.0} if step in (100, 101, 250) else {}
    return {**collapsed, **apart}


def books(made: list[Row]) -> list[Row]:
    """Return the rows as training writes them: each with the findings that begin or end behind it."""
    monitor, written = monitor_of(), []
    for row in made:
        written += [row, *events_of(monitor, [row])]
    return written


def test_a_finding_begins_and_ends_once_however_the_run_was_broken_off() -> None:
    whole = books(rows(STEPS, broken))
    events = [(row["finding"], row["state"], row["step"]) for row in whole if is_finding(row)]
    apart = [("ranks_apart", "begins", 100), ("ranks_apart", "ends", 102)]
    assert events[:2] == apart and len(events) == len({*events}) == 6
    for cut in range(0, len(whole), 7):  # killed behind any row, and begun again with what the books have
        monitor = monitor_of()
        for row in whole[:cut]:
            monitor.push(row)
        again = list(whole[:cut])
        for row in whole[cut:]:
            if not is_finding(row):
                again += [row, *events_of(monitor, [row])]
        # A finding whose row was not written is told behind the next row; all else is as if nothing had happened.
        moved = [(row["finding"], row["state"]) for row in again if is_finding(row)]
        assert moved == [(name, state) for name, state, _ in events], cut
        if is_finding(whole[cut]):
            continue
        assert again == whole, cut


def test_diagnosis_of_the_books_is_that_of_the_rows() -> None:
    made = rows(STEPS, broken)
    tree = config_of().model_dump(mode="json")
    without, with_findings = (health.diagnose(some, tree, images=IMAGES) for some in (made, books(made)))
    assert with_findings.findings == without.findings and len(without.findings) == 3
    assert with_findings.checked == without.checked and with_findings.notes == without.notes


def test_what_was_told_in_training_counts() -> None:
    """Training knew the machine, and may have been of another version."""
    made = books(rows(STEPS, lambda step: {"data_wait": 0.5}))
    [begins] = [row for row in made if is_finding(row)]
    assert (begins["key"], begins["value"]) == ("data.workers", 7)  # of eight cores a rank
    foreign = finding_row(30, 0, "of_another_version", "begins", "moco.queue_size", 64, "7 of 8")
    ended = finding_row(60, 1, "of_another_version", "ends", "moco.queue_size", 64, "7 of 8")
    diagnosis = health.diagnose([*made, foreign, ended], config_of().model_dump(mode="json"))
    by_name = {finding.name: finding for finding in diagnosis.findings}
    assert by_name["data_bound"].override == "data.workers=7" and not by_name["data_bound"].ended
    other = by_name["of_another_version"]
    assert (other.first_step, other.last_step, other.ended) == (30, 60, True)


def test_only_the_books_end_what_they_have() -> None:
    """Training knew of the groups that a run with unset groups has; who reads its rows does not."""
    config = config_of(moco__shuffle="none", moco__bn_groups=None)
    made, training = rows(STEPS), monitor_of(config, bn_groups=4)
    whole = [row for some in made for row in (some, *events_of(training, [some]))]
    tree = config.model_dump(mode="json")
    [finding] = health.diagnose(whole, tree, images=IMAGES).findings
    assert finding.name == "batchnorm_leak" and not finding.ended
    assert health.diagnose(made, tree, images=IMAGES).healthy


def test_notes_are_no_findings() -> None:
    config = config_of(optim__warmup_epochs=2)
    monitor = monitor_of(config)
    assert events_of(monitor, rows(10)) == []
    diagnosis = monitor.diagnosis()
    assert diagnosis.healthy and diagnosis.checked == ["queue_larger_than_data", "ranks_apart"]
    notes = {note.name: note for note in diagnosis.notes}
    assert list(notes) == ["queue_filling", "first_epoch", "warm_up"]
    assert all(note.kind == "note" and note.override == "" and note.last_step <= 10 for note in notes.values())
    assert "falls (top1 0.2 at step 1, 0.05 at step 9)" in notes["queue_filling"].evidence
    events_of(monitor, rows(STEPS)[10:])
    assert [note.last_step for note in monitor.diagnosis().notes] == [9, 32, 64]


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_rows_may_be_far_between(log_every: int) -> None:
    made = [row for row in rows(4000, broken_for_long) if int(row["step"]) % log_every == 0]
    assert [row["finding"] for row in events_of(monitor_of(), made)] == ["collapsed", "collapsed"]


def broken_for_long(step: int) -> dict[str, Any]:
    return {"q_std": 0.01} if 1000 <= step < 2600 else {}


def test_a_long_run_takes_no_more_memory() -> None:
    monitor, sizes = monitor_of(), set()
    for row in rows(2000):
        monitor.push(row)
        if int(row["step"]) % ROWS == 1 and int(row["step"]) > 200:
            sizes.add(len(json.dumps(monitor.course.window.__dict__, default=str)) // 1000)
    assert len(sizes) <= 2


def test_damaged_rows_are_no_crash() -> None:
    odd: list[Row] = [
        {"step": 1},
        {"step": 2, "loss": 3.0},
        {"step": 2, "epoch": None, "loss": "text", "top1": None},  # type: ignore[dict-item]
        {"step": 3, "knn_top1": 0.5},
        {"step": 3, "finding": "at_chance", "state": "ends"},
        {"step": 4, "finding": "at_chance", "state": "begins"},
        {"step": 5, "loss": 1e308, "images_per_second": 0.0, "q_std": True},
        {"step": 1, "loss": 2.0, "images_per_second": -1.0},
        *rows(100),
    ]
    tree = config_of().model_dump(mode="json")
    assert health.diagnose(odd, tree).findings[0].name == "at_chance"


def test_kinds_of_rows_are_apart() -> None:
    row = finding_row(3, 0, "at_chance", "begins", "optim.lr", 0.1, "a sentence")
    assert is_finding(row) and not is_training(row) and not is_evaluation(row)
    assert row["kind"] == "finding" and json.loads(json.dumps(row)) == row


class TestInTraining:
    """The tracker judges what it writes."""

    def test_findings_are_printed_written_and_alerted_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink = Mock(spec=Guard)
        tracker = self.tracker(tmp_path)
        tracker._sinks = [sink]
        self.write(tracker, rows(STEPS, broken))
        tracker.finish(0)
        out, err = capsys.readouterr()
        assert err.count("warning: health: ranks_apart begins at step 100: the ranks do not have the same") == 1
        assert err.count("health: ") == 3 and "; change device.engine=exact" in err
        assert out.count("health: ranks_apart ends at step 102\n") == 1 and out.count("health: ") == 3
        assert [call.args[0] for call in sink.alert.call_args_list] == [
            "health: ranks_apart begins at step 100",
            "health: collapsed begins at step 240",
            "health: ranks_apart begins at step 250",
        ]
        written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert written == [dict(row) for row in books(rows(STEPS, broken))]
        assert [call.args[0] for call in sink.log.call_args_list] == written

    def test_a_start_goes_on_with_what_the_books_have(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        made = rows(STEPS, broken)
        for start, end in ((0, 270), (230, 300), (300, 430), (395, STEPS)):  # killed behind a checkpoint each time
            tracker = self.tracker(tmp_path, start)
            self.write(tracker, [row for row in made if start < int(row["step"]) <= end])
            tracker.finish(1)
        written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert written == [dict(row) for row in books(made)]
        assert tracker.summary()["loss"] == made[-2]["loss"]  # a finding is neither a step nor an evaluation
        tracker = self.tracker(tmp_path, 240)  # the last row that is kept is that of a finding
        assert "loss" in tracker.summary() and "finding" not in tracker.summary()
        tracker.finish(1)
        capsys.readouterr()

    def test_no_fault_of_health_stops_training(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(monitor: health.Monitor, row: Row) -> None:
            raise ZeroDivisionError("a fault of the test's")

        monkeypatch.setattr(health.Monitor, "push", breaks)
        tracker = self.tracker(tmp_path)
        self.write(tracker, rows(5))
        tracker.finish(0)
        errors = capsys.readouterr().err
        assert errors.count("the run is not judged any more (ZeroDivisionError: a fault of the test's)") == 1
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5

    @staticmethod
    def tracker(run_dir: Path, start: int = 0) -> Tracker:
        config = config_of(track__log_every=1)
        facts = health.Facts(config, IMAGES, workers=2, cores=8)
        return Tracker.open(config, run_dir, rank=0, start_step=start, total_steps=STEPS, facts=facts)

    @staticmethod
    def write(tracker: Tracker, some_rows: list[Row]) -> None:
        for row in some_rows:
            tracker.log_step(row) if is_training(row) else tracker.log_evaluation(row)
