"""The command line: where pages go, and mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moco_dist.report import command
from tests.report.conftest import a_run


def test_a_page_goes_into_its_run_and_that_of_a_sweep_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep").mkdir()
    one, two = a_run(tmp_path / "sweep" / "a"), a_run(tmp_path / "sweep" / "b")
    monkeypatch.chdir(tmp_path)
    assert command.run([str(one)]) == 0
    assert command.run([str(one / "config.yaml"), "--out", "own.html"]) == 0
    assert command.run([str(one), str(two)]) == 0
    assert command.run(["--sweep", "sweep"]) == 0
    pages = [one / "report.html", Path("own.html"), Path("report.html"), Path("sweep/report.html")]
    assert capsys.readouterr().out.splitlines() == [f"report: {page}" for page in pages]
    titles = [page.read_text().partition("<title>")[2].partition("<")[0] for page in pages]
    assert titles == ["a", "a", "Runs side by side", "Runs in sweep"]
    assert not list(tmp_path.rglob(".report*"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "RUN_DIR: no run is named; give a run directory, or --sweep DIR"),
        (["none"], "RUN_DIR = none: no such folder; give the directory of a run"),
        (["."], "RUN_DIR = .: holds no run; give the directory of a run, or --sweep for a folder of them"),
        (["--sweep", "empty"], "--sweep = empty: holds no run; give the folder of a sweep's runs"),
        (["--sweep", "none"], "--sweep = none: no such folder; give the folder of a sweep's runs"),
        (["a", "--port", "80"], "--port = 80: is about --watch; add --watch, or drop it"),
        (["a", "--watch", "--port", "70000"], "--port = 70000: must be 0 to 65535; drop it for a free port"),
        (["a", "--watch", "--out", "x"], "--out = x: --watch writes no file; drop one of them"),
        (["a", "--out", "empty"], "--out = empty: is a folder; name a new file by --out"),
        (["a", "--out", "no/x"], "--out = no/x: cannot be written: No such file or directory; give another --out PATH"),
        (["a", "--wat"], "unrecognized arguments: --wat; see python -m moco_dist.report --help"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    a_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert command.run(arguments) == 2
    assert capsys.readouterr().err == f"moco_dist.report: {line}\n"


def test_a_page_is_made_without_torch(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    script = (
        f"import sys; from moco_dist.report.command import run; run([{str(tmp_path / 'a')!r}]); print(*sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "matplotlib", "sklearn", "scipy", "wandb"} & set(process.stdout.split())
    script = "import sys; from moco_dist.report.command import _parser; _parser().format_help(); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "jinja2", "moco_dist.report.page"} & set(process.stdout.split())
