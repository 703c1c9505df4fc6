"""`status`: the table, the JSON, the repeated table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import slurm
from launcher.commands import status as status_command
from launcher.record import Launch
from launcher.views import moments, runs, table
from moco_dist.errors import UserError
from tests.launcher.made import MadeUp, earlier, knn_row, make_run, replace_sleep, train_row


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


def ago(seconds: float) -> str:
    """A moment, as the launcher and SLURM write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - seconds))


def test_a_line_a_run(made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [train_row(step, loss=4.56789) for step in range(110, 210, 10)]
    optim = "{global_batch: 640, epochs: 10}"
    rows.append(knn_row(200, 0.4321))
    sent = {"submitted": ago(7200), "saved": [150]}
    launch = make_run(Path("runs/one"), starts=2, state="running", rows=rows, optim=optim, **sent)
    make_run(Path("runs/two"), job="13", submitted=ago(7260))
    began = ago(3700)
    made_up.queues("12", "RUNNING", launch.run_dir.resolve(), left="10:00", started=began)
    made_up.queues("13", "PENDING", Path("runs/two").resolve(), "Priority")
    monkeypatch.setenv("COLUMNS", "200")
    assert status() == 0
    said = capsys.readouterr()
    heads, one, two = said.out.splitlines()
    columns = [
        "run",
        "job",
        "state",
        *("step", "saved", "epoch", "images/s", "loss", "kNN", "restarts"),
        *("since", "time", "left", "nodes", "reason"),
    ]
    assert fields(heads) == columns
    figures = ["200/1000", "150", "1", "640", "4.568", "43.21 %", "1"]
    since = moments.clock(moments.of_text(began))
    assert fields(one) == ["one", "12", "running", *figures, since, "1h01m", "13m", "n[1-2]"]
    assert fields(two) == ["two", "13", "pending", moments.clock(moments.of_text(ago(7260))), "2h01m", "Priority"]
    assert one.index("43.21") > heads.index("loss") and two.index("Priority") == heads.index("reason")
    assert not said.err


def test_the_same_as_json(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [train_row(150, checkpoint_failures=2), knn_row(100, 0.25)]
    sent, began = ago(7200), ago(60)
    launch = make_run(Path("runs/one"), starts=2, state="running", step=100, rows=rows, saved=[50, 100], submitted=sent)
    made_up.queues("12", "RUNNING", launch.run_dir.resolve(), left="1-02:03:04", started=began)
    [row] = as_json(capsys)
    assert 60 <= row.pop("seconds") < 120
    assert row == {
        "run": "one",
        "run_dir": str(launch.run_dir.resolve()),
        "job": "12",
        "executor": "slurm",
        "state": "running",
        "reason": "",
        "starting": False,
        "waits_for": None,
        "confirmed": True,
        "live": True,
        "ended": False,
        "step": 150,
        "total_steps": 1000,
        "saved_step": 100,
        "checkpoint_failures": 2,
        "epoch": 1,
        "images_per_second": 640.0,
        "loss": 5.0,
        "knn_top1": 0.25,
        "starts": 2,
        "restarts": 1,
        "submitted": moments.iso(moments.of_text(sent)),
        "since": moments.iso(moments.of_text(began)),
        "seconds_left": 85.0,
        "allocation_seconds_left": 86400 + 2 * 3600 + 3 * 60 + 4,
        "slurm_state": "RUNNING",
        "slurm_reason": "None",
        "nodes": "n[1-2]",
        "sweep": None,
    }
    assert status_command.__doc__ is not None
    documented = set(status_command.__doc__.replace(",", " ").split())
    assert {*row, "seconds"} <= documented


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
    assert moments.duration(seconds) == text


def test_a_table_is_100_columns_wide_at_most(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are left out, names lose their middle, and reasons their end, which follow whole where they are few."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    reason = "because " * 60
    rows = [train_row(step) for step in range(110, 210, 10)] + [knn_row(200, 0.5)]
    name = "imagenet_" + "n" * 110 + "_7"
    make_run(Path("runs") / name, starts=3, state="crashed", reason=reason, rows=rows, saved=[200], submitted=ago(0))
    make_run(Path("runs/\u6f22\u5b57"), job="13", starts=1, state="done", rows=rows, submitted=ago(9))
    assert status() == 0
    heads, long, wide, *whole = capsys.readouterr().out.splitlines()
    assert fields(heads) == ["run", "job", "state", "step", "saved", "since", "time", "nodes", "reason"]
    assert all(len(line) <= 100 for line in (heads, long, *whole)) and len(long) > 90
    assert len(wide) + 2 <= 100 and wide.index("13") + 2 == long.index("12"), "each sign takes two columns"
    assert fields(long)[0].startswith("imagenet_nn") and "nn..." in long and fields(long)[0].endswith("n_7")
    assert long.endswith("...") and "".join(whole).count("because") == 60 and whole[0].startswith("imagenet_")
    table.show(runs.look([Launch(Path("runs") / name)]), as_json=False, keep=["kNN"])
    assert {"kNN", "reason"} < set(fields(capsys.readouterr().out.splitlines()[0])), "a sweep is judged by it"
    monkeypatch.setenv("COLUMNS", "1000")
    assert status() == 0
    heads, long, *_ = capsys.readouterr().out.splitlines()
    assert {"epoch", "images/s", "loss", "kNN", "restarts"} < set(fields(heads)) and name in long


def test_many_reasons_are_cut_and_no_more_is_said(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        make_run(Path(f"runs/{number}"), job=str(number), starts=1, state="crashed", reason="because " * 20)
    assert status() == 0
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_what_runs_are_called_and_say_is_data(
    made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    make_run(Path("runs/[red]x[\x1b[31m"), starts=1, state="crashed", reason="a\x1b]0;b\x07 [bold]c[/bold]\nd\u202ee")
    assert status() == 0
    _, line = capsys.readouterr().out.splitlines()
    assert fields(line)[:3] == ["[red]x[?[31m", "12", "crashed"]
    assert fields(line)[-2:] == ["n1", "a?]0;b? [bold]c[/bold] d?e"]


def test_the_newest_come_first(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seconds in (("b", 300), ("a", 200), ("d", 100), ("c", 100)):
        make_run(Path("runs") / name, job=name, submitted=ago(seconds))
    made_up.queues("77", "RUNNING", "/no/such/run", started=ago(150))
    assert [row["run"] for row in as_json(capsys)] == ["c", "d", "/no/such/run", "a", "b"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--state running", "starts trains"),
        ("--state starting", "starts"),
        ("--state done,crashed", "crashed done"),
        ("--since 2d", "crashed starts trains"),
        ("--since 2d --state crashed,done", "crashed"),
        ("--since 2001-02-03", "crashed done starts trains"),
        ("--filter RA", "crashed trains"),
        ("--filter ra --state running", "trains"),
        ("--filter nothing", ""),
    ],
)
def test_runs_are_chosen(made_up: MadeUp, capsys: pytest.CaptureFixture[str], words: str, names: str) -> None:
    make_run(Path("runs/crashed"), job="1", starts=1, state="crashed")
    done = make_run(Path("runs/done"), job="2", starts=1, state="done")
    for file in (done.paths.status, done.starts_file, done.job_file):
        earlier(file, 3 * 86400)
    for name, job, rows in (("starts", "3", []), ("trains", "4", [train_row(5)])):
        launch = make_run(Path("runs") / name, job=job, starts=1, state="running", rows=rows)
        made_up.queues(job, "RUNNING", launch.run_dir.resolve(), started=ago(9 * 86400))
    assert sorted(row["run"] for row in as_json(capsys, *words.split())) == names.split()
    if not names:
        assert status(*words.split()) == 0
        assert capsys.readouterr().out == "none of the 4 runs is like that\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_only_my_own(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("runs/mine"))
    os.chown(make_run(Path("runs/theirs"), job="13").run_dir, 12345, -1)
    made_up.queues("14", "PENDING", "/no/such/run")
    assert {row["run"] for row in as_json(capsys)} == {"mine", "theirs", "/no/such/run"}
    assert {row["run"] for row in as_json(capsys, "--mine")} == {"mine", "/no/such/run"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--state", "runing"], "--state = runing: is no state of a run; there are starting, pending, running,"),
        (["--since", "yesterday"], "--since = yesterday: must be a time; use --since 2d, 12h or 2026-11-20"),
        (["--hours", "--watch"], "--watch: the GPU hours of --hours are shown once; leave out one of the two"),
    ],
)
def test_mistakes(made_up: MadeUp, words: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        status(*words)
    assert str(error.value).startswith(line)


def test_gpu_hours_by_the_run_directory(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    """A start ends when its job says so, else before the next one begins; the last one with the last sign of life."""
    now = time.time()
    launch = make_run(Path("runs/a"), state="crashed", profile={"gpus_per_node": 4}, nodes=2)
    for restart, begin in enumerate((10 * 3600, 8 * 3600, 2 * 3600)):
        place = {"nodes": ["n1", "n2"]} | ({"gpus": 2} if restart == 2 else {})
        launch.add_start(job="12", restart=restart, step=0, time=now - begin, **place)
    row = {"job": "12", "restart": 0, "step": 0, "time": now - 9 * 3600}
    launch.ends_file.write_text(json.dumps(row) + "\n")
    make_run(Path("runs/never"), job="13")
    assert status("--hours") == 0
    heads, never_or_a, total = capsys.readouterr().out.splitlines()
    assert fields(heads) == ["run", "state", "begun", "starts", "GPUs", "hours", "GPU hours", "by"]
    assert fields(never_or_a)[3:] == ["3", "2-8", "9.0", "60.0", "run directory, at most"]
    assert fields(total) == ["sum of 1 runs", "60.0"]
    assert status("--hours", "--json", "--since", "7h") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["gpu_hours"] == pytest.approx(5 * 8 + 2 * 2, abs=0.1)
    [a] = [run for run in printed["runs"] if run["run"] == "a"]
    assert [(start["gpus"], start["by"]) for start in a["starts"]] == [
        (8, "run directory, at most"),
        (2, "run directory"),
    ]


def test_gpu_hours_by_slurm(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    """Each start of a job is in the accounting; an older job of the same number is another cluster's."""
    launch = make_run(Path("runs/a"), state="crashed", profile={"gpus_per_node": 4})
    launch.add_start(job="12", restart=0, step=0, time=time.time() - 7200, nodes=["n1"])
    make_run(Path("runs/b"), job="13", starts=1, state="done", executor="local")
    made_up.tells(
        "sacct",
        f"12|{ago(7200)}|{ago(5400)}|1|billing=4,gres/gpu=3,node=1\n"
        f"12|{ago(3600)}|Unknown|2|\n"
        f"12|{ago(9 * 86400)}|{ago(8 * 86400)}|2|gres/gpu=8\n12|Unknown|Unknown|0|\n",
    )
    assert status("--hours", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    [a] = [run for run in printed["runs"] if run["run"] == "a"]
    assert [(start["gpus"], start["by"]) for start in a["starts"]] == [(3, "SLURM"), (8, "SLURM")]
    assert a["gpu_hours"] == pytest.approx(0.5 * 3 + 1 * 8, abs=0.02)
    assert "--jobs=12 " in next(line for line in made_up.asked if "AllocTRES" in line) + " "
    made_up.broken["sacct"] = slurm.Unavailable("sacct: no answer")
    assert status("--hours") == 0
    said = capsys.readouterr()
    assert "run directory" in said.out and "sacct: no answer; this is what the run directories know" in said.err


def test_a_silent_slurm_is_told_once_on_stderr(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("a", "12"), ("b", "13")):
        make_run(Path("runs") / name, job=job, starts=1, state="running", step=7)
    make_run(Path("runs/c"), job="14", starts=1, state="done", step=100)
    made_up.broken["squeue"] = slurm.Unavailable("squeue: no answer in 1 s")
    assert status() == 0
    said = capsys.readouterr()
    lines = {fields(line)[0]: line for line in said.out.splitlines()}
    assert [fields(lines[name])[2] for name in "abc"] == ["running?", "running?", "done"]
    assert all("SLURM does not answer" in line for line in said.out.splitlines() if line.startswith(("a:", "b:")))
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
    said = capsys.readouterr().out
    assert said == "no runs that were submitted in runs/, and none of your jobs in the queue is one\n"
    assert as_json(capsys) == []
    with pytest.raises(UserError, match="RUN = nowhere"):
        status("nowhere")


def test_places(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("runs/a", "1"), ("runs/b", "2"), ("elsewhere/c", "3")):
        make_run(Path(name), job=job)
    assert {row["run"] for row in as_json(capsys)} == {"a", "b"}
    seen = [row["run"] for row in as_json(capsys, "elsewhere", "a", "2", "runs/a")]
    assert sorted(seen) == ["a", "b", "elsewhere/c"]


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
