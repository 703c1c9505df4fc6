"""The table of a run's rows: nothing is lost, numbers keep their bits, and mistakes are one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moco_dist import packages, rows
from moco_dist.run.figures import SCHEMA
from moco_dist.run.rows import MetricsFile

KINDS: list[dict[str, Any]] = [
    {"step": 1, "epoch": 0, "loss": 0.1 + 0.2, "lr": 1e-300, "images_per_second": 9.0, "checkpoint_stall": 0},
    {"step": 2, "epoch": 0, "loss": -0.0, "lr": 5e-324, "images_per_second": 1.7976931348623157e308, "unreadable": 3},
    {"step": 2, "epoch": 0, "knn_top1": 0.75, "linear_top1": 1.0},
    {"step": 2, "epoch": 0, "finding": "drift", "kind": "finding", "value": 0.03, "evidence": 'a, "b"\nä'},
    {"step": 3, "epoch": 0, "finding": "leak", "kind": "finding", "value": "all_gather"},
]


def run_of(folder: Path, content: list[dict[str, Any]]) -> Path:
    file = MetricsFile(folder / "metrics.jsonl")
    for row in content:
        file.append(row)
    file.close()
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_row_and_every_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.run([str(run_of(tmp_path, KINDS)), "--to", "csv"]) == 0
    table = tmp_path / "metrics.csv"
    assert capsys.readouterr().out == f"5 rows: {table}\n"
    cells = read_csv(table)
    assert [*cells[0]] == list(dict.fromkeys(name for row in KINDS for name in row))
    for cell, row in zip(cells, KINDS, strict=True):
        assert {name: text for name, text in cell.items() if text} == {
            name: value if isinstance(value, str) else repr(value) for name, value in row.items()
        }


def test_parquet_has_every_row_and_every_bit(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "table"
    assert rows.run([str(run_of(tmp_path, KINDS)), "--to", "parquet", "--out", str(out)]) == 0
    table = parquet.read_table(out)
    assert table.schema.metadata[b"moco_dist.schema"] == str(SCHEMA).encode()
    types = {field.name: str(field.type) for field in table.schema}
    assert types["step"] == types["unreadable"] == "int64" and types["loss"] == "double" and types["value"] == "string"
    for row, expected in zip(table.to_pylist(), KINDS, strict=True):
        told = {name: value for name, value in row.items() if value is not None}
        assert told == {**expected, **({"value": str(expected["value"])} if "value" in expected else {})}
        assert all(str(told[name]) == str(value) for name, value in expected.items())  # -0.0, too


@settings(deadline=None, max_examples=30)
@example([2**53 + 1, 0.5])
@example([2**70, 0.5])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(), min_size=1, max_size=9))
def test_numbers_keep_their_bits(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = run_of(tmp_path_factory.mktemp("run"), [{"step": i, "x": x} for i, x in enumerate(numbers)])
    for to in ("csv", "parquet"):
        assert rows.run([str(folder), "--to", to]) == 0
    assert [json.loads(cell["x"]) for cell in read_csv(folder / "metrics.csv")] == numbers
    column = parquet.read_table(folder / "metrics.parquet")["x"].to_pylist()
    assert [json.loads(value) if isinstance(value, str) else value for value in column] == numbers


@pytest.mark.parametrize("arguments", [["--to", "excel"], [], ["--to", "csv", "--what"], ["--to", "csv", "more"]])
def test_mistakes_in_the_options_are_one_line(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert rows.run([str(run_of(tmp_path, KINDS)), *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("moco_dist.rows: ") and told.count("\n") == 1


def test_a_run_without_rows_and_no_run_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.run([str(tmp_path / "none"), "--to", "csv"]) == 2
    assert "metrics.jsonl cannot be read: No such file or directory; name a run directory" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert rows.run([str(tmp_path), "--to", "csv"]) == 2
    assert "has no row yet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_cannot_be_written_leaves_the_old_table(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder = run_of(tmp_path, KINDS)
    assert rows.run([str(folder), "--to", "csv", "--out", str(tmp_path / "no" / "table.csv")]) == 2
    assert "cannot be written: No such file or directory; choose another place by --out" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "as_csv", full)
    assert rows.run([str(folder), "--to", "csv"]) == 2
    assert (tmp_path / "metrics.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_a_missing_pyarrow_is_one_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: name != "pyarrow")
    assert rows.run([str(run_of(tmp_path, KINDS)), "--to", "parquet"]) == 2
    fix = "install it (pip install 'moco-dist[parquet]'), or use --to csv"
    assert capsys.readouterr().err == f"moco_dist.rows: --to = parquet: pyarrow is not installed here; {fix}\n"
    assert rows.run([str(tmp_path), "--to", "csv"]) == 0


def test_torn_lines_of_a_running_run_are_left_out(tmp_path: Path) -> None:
    run_of(tmp_path, KINDS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert rows.run([str(tmp_path), "--to", "csv"]) == 0
    assert len(read_csv(tmp_path / "metrics.csv")) == len(KINDS)


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    run_of(tmp_path, KINDS)
    script = "import sys\nfrom moco_dist import rows\nstatus = rows.run(sys.argv[1:])\n"
    script += "assert not {'torch', 'pyarrow'} & set(sys.modules)\nsys.exit(status)"
    command = [sys.executable, "-c", script, str(tmp_path), "--to", "csv"]
    subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, "-m", "moco_dist.rows", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--to {parquet,csv}" in done.stdout
