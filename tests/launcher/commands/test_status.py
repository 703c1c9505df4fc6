"""`status`: the table, the JSON, the repeated table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import slurm
from launcher.commands import status as status_command
from launcher.views import table
from moco_dist.errors import UserError
from tests.launcher.made import MadeUp, knn_row, make_run, replace_sleep, train_row


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeUp:
    monkeypatch.chdir(tmp_path)
    return MadeUp(monkeypatch)


def status(*words: str) -> int:
    parser = argparse.ArgumentParser()
    status_command.arguments(parser)
    return status_command.run(parser.parse_intermixed_args(words))


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert status("--json", *words) == 0
    listed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert isinstance(listed, list)
    return listed


def fields(line: str) -> list[str]:
    """The columns of a line, which two spaces or more divide."""
    return [part.strip() for part in line.split("  ") if part.strip()]


def test_a_line_a_run(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [train_row(step, loss=4.56789) for step in range(110, 210, 10)]
    optim = "{global_batch: 640, epochs: 10}"
    launch = make_run(Path("runs/one"), starts=2, state="running", rows=[*rows, knn_row(200, 0.4321)], optim=optim)
    make_run(Path("runs/two"), job="13")
    made_up.queues("12", "RUNNING", launch.run_dir.resolve(), left="10:00")
    made_up.queues("13", "PENDING", Path("runs/two").resolve(), "Priority")
    assert status() == 0
    said = capsys.readouterr()
    heads, one, two = said.out.splitlines()
    columns = [
        "run",
        "job",
        "state",
        "step",
        "epoch",
        "images/s",
        "loss",
        "kNN",
        "restarts",
        "time left",
        "nodes",
        "reason",
    ]
    assert fields(heads) == columns
    assert fields(one) == ["one", "12", "running", "200/1000", "1", "640", "4.568", "43.21 %", "1", "13m", "n[1-2]"]
    assert fields(two) == ["two", "13", "pending", "Priority"]
    assert one.index("43.21") > heads.index("loss") and two.index("Priority") == heads.index("reason")
    assert not said.err


def test_the_same_as_json(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    launch = make_run(Path("runs/one"), starts=2, state="running", step=100, rows=[train_row(150), knn_row(100, 0.25)])
    made_up.queues("12", "RUNNING", launch.run_dir.resolve(), left="1-02:03:04")
    [row] = as_json(capsys)
    assert row == {
        "run": "one",
        "run_dir": str(launch.run_dir.resolve()),
        "job": "12",
        "executor": "slurm",
        "state": "running",
        "reason": "",
        "confirmed": True,
        "live": True,
        "ended": False,
        "step": 150,
        "total_steps": 1000,
        "saved_step": 100,
        "epoch": 1,
        "images_per_second": 640.0,
        "loss": 5.0,
        "knn_top1": 0.25,
        "starts": 2,
        "restarts": 1,
        "seconds_left": 85.0,
        "allocation_seconds_left": 86400 + 2 * 3600 + 3 * 60 + 4,
        "slurm_state": "RUNNING",
        "slurm_reason": "None",
        "nodes": "n[1-2]",
        "sweep": None,
    }
    assert status_command.__doc__ is not None
    documented = set(status_command.__doc__.replace(",", " ").split())
    assert row.keys() <= documented


def test_where_it_runs_or_has_run(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("waits", "12"), ("runs", "13"), ("ended", "14")):
        make_run(Path("runs") / name, job=job, starts=1, state="crashed")
    made_up.queues("12", "PENDING", Path("runs/waits").resolve())
    made_up.queues("13", "RUNNING", Path("runs/runs").resolve())
    nodes = {row["run"]: row["nodes"] for row in as_json(capsys)}
    assert nodes == {"waits": None, "runs": "n[1-2]", "ended": "n1"}


def test_json_of_a_run_that_nothing_is_known_of(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    launch = make_run(Path("runs/one"))
    (launch.run_dir / "metrics.jsonl").write_text('{"step": 3, "loss": NaN, "images_per_second": -Infinity}\n')
    made_up.queues("12", "PENDING", left="1:00")
    [row] = as_json(capsys)
    assert (row["step"], row["loss"], row["images_per_second"], row["seconds_left"]) == (3, None, None, None)
    assert row["allocation_seconds_left"] is None
    launch.job_file.write_text("{")
    [row] = as_json(capsys)
    assert (row["state"], row["job"], row["executor"]) == ("unreadable", None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("1:00", 60), ("01:00:00", 3600), ("2-00:00:01", 172801), ("UNLIMITED", None), ("INVALID", None)],
)
def test_slurms_times(text: str, seconds: int | None) -> None:
    assert slurm.seconds(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3660, "1h01m"), (90000, "1d01h")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert table._duration(seconds) == text


def test_nothing_is_cut_in_a_pipe(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    reason = "because " * 60
    make_run(Path("runs") / ("n" * 120), starts=1, state="crashed", reason=reason)
    assert status() == 0
    _, line = capsys.readouterr().out.splitlines()
    assert fields(line) == ["n" * 120, "12", "crashed", "n1", reason.strip()]


def test_what_runs_are_called_and_say_is_data(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("runs/[red]x[\x1b[31m"), starts=1, state="crashed", reason="a\x1b]0;b\x07 [bold]c[/bold]\nd\u202ee")
    assert status() == 0
    _, line = capsys.readouterr().out.splitlines()
    assert fields(line) == ["[red]x[?[31m", "12", "crashed", "n1", "a?]0;b? [bold]c[/bold] d?e"]


def test_a_silent_slurm_is_told_once_on_stderr(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("a", "12"), ("b", "13")):
        make_run(Path("runs") / name, job=job, starts=1, state="running", step=7)
    make_run(Path("runs/c"), job="14", starts=1, state="done", step=100)
    made_up.broken["squeue"] = slurm.Unavailable("squeue: no answer in 1 s")
    assert status() == 0
    said = capsys.readouterr()
    assert [fields(line)[2] for line in said.out.splitlines()[1:]] == ["running?", "running?", "done"]
    assert all(line.endswith("SLURM does not answer") for line in said.out.splitlines()[1:3])
    assert said.err == "launcher: squeue: no answer in 1 s; this is what the run directories know\n"
    assert len(made_up.asked) == 1


def test_without_slurm_local_runs_are_told_in_peace(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "which", lambda name: None)
    make_run(Path("runs/a"), executor="local", job="1", starts=1, state="done", step=3)
    assert status() == 0
    said = capsys.readouterr()
    assert fields(said.out.splitlines()[1])[:3] == ["a", "1", "done"]
    assert not said.err
    assert not made_up.asked


def test_no_runs_at_all(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    assert status() == 0
    assert capsys.readouterr().out == "no runs in runs/, and none of your jobs in the queue is one\n"
    assert as_json(capsys) == []
    with pytest.raises(UserError, match="RUN = nowhere"):
        status("nowhere")


def test_places(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("runs/a", "1"), ("runs/b", "2"), ("elsewhere/c", "3")):
        make_run(Path(name), job=job)
    assert [row["run"] for row in as_json(capsys)] == ["a", "b"]
    assert [row["run"] for row in as_json(capsys, "elsewhere", "a", "2", "runs/a")] == ["elsewhere/c", "a", "b"]


@pytest.fixture
def two_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Ctrl-C while the second pause lasts."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    replace_sleep(monkeypatch, status_command, sleep)
    yield pauses


@pytest.mark.parametrize(
    ("words", "seconds"), [("--watch", 5.0), ("--watch 0.5", 0.5), ("--watch runs/a", 5.0), ("runs/a --watch", 5.0)]
)
def test_watching_a_pipe_repeats_the_table(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], two_looks: list[float], words: str, seconds: float
) -> None:
    make_run(Path("runs/a"), starts=1, state="done", step=3)
    assert status(*words.split()) == 0
    assert two_looks == [seconds, seconds]
    assert [fields(line)[0] for line in capsys.readouterr().out.splitlines()] == ["run", "a"] * 2


def test_watching_on_a_terminal_draws_in_place(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], two_looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(Path("runs/a"), starts=1, state="running", step=3)
    made_up.broken["squeue"] = slurm.Unavailable("squeue: no answer in 5 s")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert status("--watch") == 0
    out = capsys.readouterr().out
    assert out.count("running?") >= 2
    assert "\x1b[1A" in out  # the cursor goes up again
    assert "squeue: no answer in 5 s" in out
