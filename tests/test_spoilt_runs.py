"""The commands that read runs, on damaged ones: an answer or one line, never a traceback, a hang or a changed run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moco_dist import arguments, rows, why
from moco_dist.diff import command as diff
from moco_dist.errors import UserError
from moco_dist.report import command as report
from moco_dist.report import serve
from moco_dist.run import features_view, provenance, status
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import read_rows
from tests.health.made import config_of, write_run
from tests.health.made import rows as made_rows
from tests.report.conftest import a_view

BAD: list[Any] = [None, "x", True, [1, 2], [], {"a": 1}, float("nan"), float("inf"), 10**400, 1e308, 0, -1, "\ud800"]
DONE = {"state": "done", "step": 320, "total_steps": 320, "epoch_steps": 32}


def a_run(folder: Path, change: Callable[[int, dict[str, Any]], object] = lambda number, row: None) -> Path:
    """Write a healthy run whose rows have been changed."""
    content = [dict(row) for row in made_rows(320)]
    for number, row in enumerate(content):
        change(number, row)
    return write_run(folder, content, DONE, config_of())


def files_of(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}


def strict(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def ask_all(run: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ask all commands about a run: each answers or refuses in a line, and none changes the run."""
    before = files_of(run)
    out = other.parent / "out"
    for command, *options in (
        (why.run, run),
        (why.run, run, "--json"),
        (diff.run, run, other),
        (diff.run, other, run, "--json"),
        (rows.run, run, "--to", "csv", "--out", out),
        (report.run, run, "--out", out),
    ):
        exit_status = command([str(option) for option in options])  # type: ignore[operator]
        text, errors = capsys.readouterr()
        assert (exit_status in (0, 1) and not errors) or (exit_status == 2 and errors.count("\n") == 1 and not text)
        if exit_status < 2 and "--json" in options:
            json.loads(text, parse_constant=strict)
    assert files_of(run) == before


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:9])
def test_figures_of_any_kind(bad: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = a_run(tmp_path / "other")
    more = dict.fromkeys(("skipped_steps", "slowest_rank", "slowest_lag", "ranks_apart", "linear_train_top1"), bad)

    def half(number: int, row: dict[str, Any]) -> None:
        if number % 2:
            row.update(dict.fromkeys(row.keys() - {"step", "epoch"}, bad) | more)

    def all_of_them(number: int, row: dict[str, Any]) -> None:
        row.update(dict.fromkeys(row.keys() - {"step", "loss"}, bad) | more)

    def a_finding(number: int, row: dict[str, Any]) -> None:
        if number == 100:
            row.clear()
            row.update({"step": 100, "finding": bad, "state": "begins", "key": bad, "value": bad, "evidence": bad})

    def a_key(number: int, row: dict[str, Any]) -> None:
        a_finding(number, row)
        if number == 100:
            row["key"] = "optim.lr"

    for name, change in (("half", half), ("all", all_of_them), ("finding", a_finding), ("key", a_key)):
        ask_all(a_run(tmp_path / name, change), other, capsys)


def test_a_loss_that_is_a_whole_number_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", lambda number, row: row.update(loss=4) if "loss" in row else None)
    assert why.run([str(run)]) == 0
    assert "The loss went from 4.000" in capsys.readouterr().out


def test_a_value_that_is_no_number_is_told_as_a_difference(tmp_path: Path, capsys: Any) -> None:
    one = a_run(tmp_path / "one")
    other = a_run(tmp_path / "other", lambda number, row: row.update(loss=None) if row["step"] == 7 else None)
    assert diff.run([str(one), str(other), "--json"]) == 1
    drift = json.loads(capsys.readouterr().out, parse_constant=strict)["rows"]["training"]["differ"]["loss"]
    assert drift["first_step"] == 7 and drift["values"][1] is None and drift["largest"] is None
    assert diff.run([str(one), str(other)]) == 1
    text = capsys.readouterr().out
    assert "and no number" in text and "at most 0 apart" not in text


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    bad = [b"[1]", b"[" * 100_000, b'{"step": true}', b'{"step": -3}', b'{"step": 1e3}', b'{"step": %d}' % 10**18]
    bad += [b"9" * 5000, b"\0" * (3 << 20), b'{"step": 5, "x": "' + b"y" * (2 << 20) + b'"}', b'{"step": NaN}']
    file = tmp_path / "rows"
    file.write_bytes(b'{"step": 1}\n' + b"\n".join(bad) + b'\n{"step": 2}\n{"step": 3')
    assert [row["step"] for row in read_rows(file)] == [1, 2]


@pytest.mark.parametrize(
    "name", ["config", "metrics", "status", "provenance", "features_view", "pairs_picture", "lease"]
)
def test_files_of_any_kind(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, run = a_run(tmp_path / "other"), a_run(tmp_path / "run")
    file: Path = getattr(RunPaths(run), name)
    content = file.read_bytes() if file.exists() else b'{"step": 0}'
    for bad in (b"", content[:-1], b"\0" * 100, b"\xff\xfe" + content, b"[" * 5000, b"[1]\n", b"null\n", b"{}\n", b"3"):
        file.write_bytes(bad)
        ask_all(run, other, capsys)
    file.unlink(missing_ok=True)
    ask_all(run, other, capsys)
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)):
        make(file)
        ask_all(run, other, capsys)
        file.rmdir() if file.is_dir() else file.unlink()
    with file.open("wb") as large:
        large.truncate(200 << 20)
    ask_all_but_its_bytes(run, other, capsys)


def ask_all_but_its_bytes(run: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, *options in (
        (why.run, run),
        (diff.run, run, other),
        (report.run, run, "--out", other.parent / "out"),
    ):
        assert command([str(option) for option in options]) in (0, 1, 2)  # type: ignore[operator]
        assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize("loop", ["a: &a [*a]", "a: &a {b: *a}", "\n  ".join(
    ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)])  # fmt: skip
def test_a_config_within_itself(loop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write(f"future:\n  {loop}\n")
    ask_all(run, a_run(tmp_path / "other"), capsys)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:9])
def test_a_start_keeps_what_is_of_its_kind(bad: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = a_run(tmp_path / "run"), a_run(tmp_path / "other")
    start: dict[str, Any] = {
        "step": 0,
        "device": "cpu",
        "ranks": 1,
        "hosts": ["a"],
        "devices": {"b": 1},
        "cpus": {"b": 1},
    }
    start |= {"code": {"git": "c", "sha256": "d"}, "versions": {"e": "f"}, "data": {"images": 1, "digest": "g"}}
    lines = [{**start, name: wrong} for name in start for wrong in (bad, [bad], {"git": bad})]
    RunPaths(run).provenance.write_text("".join(json.dumps(line) + "\n" for line in (*lines, start)))
    ask_all(run, other, capsys)
    RunPaths(run).provenance.write_text(json.dumps({**start, "hosts": 3, "versions": [1]}) + "\n")
    assert provenance.read(run) == [{key: value for key, value in start.items() if key not in ("hosts", "versions")}]


def test_a_status_of_no_length(tmp_path: Path) -> None:
    for bad in (True, -1, 10**400, "3", 1.5, None):
        (tmp_path / "status.json").write_text(json.dumps({**DONE, "step": bad, "reason": "", "total_steps": bad}))
        assert status.read(tmp_path) == status.Status("done", 0, "", None, 32)


def test_a_features_view_is_whole_or_not_read(tmp_path: Path) -> None:
    file = tmp_path / "view.json"
    features_view.write(file, a_view())
    assert features_view.read(file) == a_view()
    content = {"version": features_view.VERSION, **asdict(a_view())}
    near = content["neighbours"][0]
    for name, bad in [(name, bad) for name in content for bad in (None, "x", [1], [[1]], {"a": 1}, -1)]:
        if isinstance(bad, str) and isinstance(content[name], str):
            continue
        file.write_text(json.dumps({**content, name: bad}))
        assert features_view.read(file) is None, (name, bad)
    for wrong in (
        {"points": [(float("nan"), 0.5), *content["points"][1:]]},
        {"confusions": [(0, 0, -1)]},
        {"right": [2, *content["right"][1:]]},
        {"neighbours": [{**near, "similarities": []}]},
        {"neighbours": [{**near, "query": {**near["query"], "label": 0.0}}]},
    ):
        file.write_text(json.dumps({**content, **wrong}))
        assert features_view.read(file) is None, wrong


@pytest.mark.parametrize("command", [[rows.run, "--to", "csv"], [report.run]])
def test_a_result_takes_the_place_of_nothing_that_matters(command: list[Any], tmp_path: Path, capsys: Any) -> None:
    run = a_run(tmp_path / "run")
    before = files_of(run)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "rows").symlink_to(run / "metrics.jsonl")
    os.mkfifo(tmp_path / "fifo")
    places = [
        "run/metrics.jsonl",
        "link/config.yaml",
        "run/../run/status.json",
        "run/lease.json",
        "rows",
        "fifo",
        "run",
    ]
    for place in [*places, "."]:
        assert command[0]([str(run), *command[1:], "--out", str(tmp_path / place)]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and "--out = " in errors
    assert files_of(run) == before and (tmp_path / "rows").is_symlink()
    arguments.check_out(tmp_path / "metrics.jsonl")  # no run is here
    arguments.check_out(run / "report.html")


def test_a_run_may_be_named_by_its_config(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert rows.run([str(run / "config.yaml"), "--to", "csv"]) == 0 and (run / "metrics.csv").is_file()


def in_a_process(code: str, *options: object, **more: Any) -> subprocess.CompletedProcess[bytes]:
    script = f"from moco_dist.arguments import run_command\n{code}"
    return subprocess.run([sys.executable, "-c", script, *map(str, options)], stderr=subprocess.PIPE, **more)


def test_output_that_goes_nowhere(tmp_path: Path) -> None:
    """A reader that has gone is no difference between two runs, which exit status 1 would say."""
    run = a_run(tmp_path / "run")
    code = "from moco_dist.diff.command import run\nrun_command(run)"
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = in_a_process(code, run, run, stdout=write_end)
    assert (process.returncode, process.stderr) == (141, b"")
    command = [sys.executable, "-m", "moco_dist.train", "--help"]
    process = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert (process.returncode, process.stderr) == (141, b"")
    with Path("/dev/full").open("wb") as full:
        process = in_a_process(code, run, run, stdout=full)
    assert process.returncode == 2 and process.stderr.count(b"\n") == 1 and b"No space" in process.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_show(encoding: str, tmp_path: Path) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \n<b>\xc3\xa9"))
    a_run(run)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for module, *options in (("why", run), ("diff", run, run), ("rows", run, "--to", "csv"), ("report", run)):
        place = module if module in ("why", "rows") else f"{module}.command"
        code = f"from moco_dist.{place} import run\nrun_command(run)"
        process = in_a_process(code, *options, env=environment, stdout=subprocess.PIPE)
        assert process.returncode == 0 and process.stderr == b"" and process.stdout.count(b"\n<b>") == 0
    sweep = (
        report.run(["--sweep", str(tmp_path)]),
        report.run([str(run), str(a_run(tmp_path / "b")), "--out", str(tmp_path / "o")]),
    )
    assert sweep == (0, 0)  # the page of the first links that of the run


def test_errors_and_ends_of_a_command(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for error, exit_status in (
        (PermissionError(errno.EACCES, "Permission denied", "/x\n"), 2),
        (KeyboardInterrupt(), 130),
    ):

        def run(_: object, error: BaseException = error) -> int:
            raise error

        with pytest.raises(SystemExit) as end:
            arguments.run_command(run)
        assert end.value.code == exit_status
    assert capsys.readouterr().err == "/x?: Permission denied; use what you may read\n"


def test_a_browser_that_goes_says_nothing(capsys: Any) -> None:
    with serve.Server(serve.Pages(list, ""), 0) as server:
        for error in (BrokenPipeError(), ConnectionResetError(), TimeoutError()):
            try:
                raise error
            except OSError:
                server.handle_error(None, None)
        assert capsys.readouterr().err == ""
        try:
            raise ValueError("a\nb")
        except ValueError:
            server.handle_error(None, None)
        assert capsys.readouterr().err == "moco_dist.report: ValueError: a b\n"


def test_a_closed_folder_is_no_fault_of_the_page(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run = a_run(tmp_path / "run")

    def closed(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert report.run([str(run), "--out", str(tmp_path / "o")]) == 2
    assert "RUN_DIR = " in capsys.readouterr().err


def test_the_mistake_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--out = .*symbolic link"):
        (tmp_path / "link").symlink_to("file")
        (tmp_path / "file").touch()
        arguments.check_out(tmp_path / "link")
