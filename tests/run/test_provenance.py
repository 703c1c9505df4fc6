"""The machine and software of each start are kept, and can never stop training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from moco_dist.run import code, provenance
from moco_dist.run.directory import RunDirectory
from moco_dist.run.paths import RunPaths

MACHINES = [{"host": f"n{rank // 2}", "cpu": "A", "device": "B"} for rank in range(4)]


def test_the_line_of_a_start() -> None:
    start = provenance.describe(MACHINES, {"cuda": "13"}, step=7)
    assert start["step"] == 7 and start["ranks"] == 4 and start["hosts"] == ["n0", "n1"]
    assert start["devices"] == {"B": 4} and start["cpus"] == {"A": 2}
    assert start["versions"]["cuda"] == "13" and start["versions"]["torch"]
    assert start["code"] == {"git": code.git_revision(), "sha256": code.digest()}


def test_starts_are_added_and_damaged_lines_passed_over(tmp_path: Path) -> None:
    file = RunPaths(tmp_path).provenance
    assert provenance.read(tmp_path) == []
    provenance.add(tmp_path, {"step": 0, "ranks": 2})
    with file.open("a") as lines:
        lines.write('[]\n{"step": "x"}\n{"step": 9, "ra')  # no start, and half a line
    provenance.add(tmp_path, {"step": 40, "ranks": 4})
    provenance.add(tmp_path, {"step": 20, "ranks": 1})  # from an earlier checkpoint: it takes later steps again
    starts = provenance.read(tmp_path)
    assert [start["step"] for start in starts] == [0, 40, 20]
    took = {step: provenance.of_step(starts, step) for step in (1, 20, 21, 50)}
    assert [start and start["ranks"] for start in took.values()] == [2, 2, 1, 1]
    assert provenance.of_step([], 1) is None


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.note_start(lambda: pytest.fail("there is no lease, so nobody may write"))
    run_dir.open()
    run_dir.paths.provenance.mkdir()
    run_dir.note_start(lambda: {"step": 0})
    run_dir.close()
    assert "training goes on without it" in caplog.text


def test_the_headline_reads_back() -> None:
    assert code.read_headline(f"# {code.headline()}") == (code.versions(), code.git_revision())
    old = "# moco-dist 0.1.0, git 47b4f43; python 3.11.7, torch 2.14.1"
    assert code.read_headline(old) == ({"moco-dist": "0.1.0", "python": "3.11.7", "torch": "2.14.1"}, "47b4f43")
    assert code.read_headline("run:") == ({}, "")


def test_the_digest_of_the_code_is_of_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("no code")
    digests = [code.digest()]
    (tmp_path / "notes.txt").unlink()
    assert code.digest() == digests[0]
    (tmp_path / "a.py").write_text("x = 2\n")
    digests.append(code.digest())
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.append(code.digest())
    assert len(set(digests)) == 3


def test_earlier_lines_stay_whole_json(tmp_path: Path) -> None:
    for step in range(3):
        provenance.add(tmp_path, {"step": step})
    lines = RunPaths(tmp_path).provenance.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that holds an installation, within the checkout of another project."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "theirs.py").write_text("")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "--quiet", "--message=theirs")
    site = tmp_path / ".venv" / "site-packages"
    (site / "moco_dist").mkdir(parents=True)
    (site / "moco_dist" / "__init__.py").write_text("")
    (site / "moco_dist-0.1.0.dist-info").mkdir()
    (site / "moco_dist-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.4\nName: moco-dist\n")
    monkeypatch.setattr(code, "_PACKAGE", site / "moco_dist")
    monkeypatch.syspath_prepend(site)
    return site


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_an_installation_does_not_take_the_revision_of_the_checkout_that_it_lies_in(installed: Path) -> None:
    assert not code.is_checkout(installed / "moco_dist") and code.git_revision() == "unknown"
    git(installed, "add", "--force", "moco_dist")  # whose code it is now, in a folder of a larger checkout
    git(installed, "commit", "--quiet", "--message=ours")
    assert code.is_checkout(installed / "moco_dist") and code.git_revision() == git(installed, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("origin", "revision"),
    [
        ('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "47b4f43"}}', "47b4f43"),
        ('{"url": "x", "archive_info": {}}', "unknown"),
        ('{"url": "x", "vcs_in', "unknown"),
        ("[]", "unknown"),
    ],
)
def test_an_installation_has_the_revision_that_pip_installed_it_from(
    installed: Path, monkeypatch: pytest.MonkeyPatch, origin: str, revision: str
) -> None:
    (installed / "moco_dist-0.1.0.dist-info" / "direct_url.json").write_text(origin)
    assert code.git_revision() == revision
    monkeypatch.setattr(code, "_PACKAGE", installed.parent / "copy" / "moco_dist")  # of other code, that is no answer
    assert code.git_revision() == "unknown"
