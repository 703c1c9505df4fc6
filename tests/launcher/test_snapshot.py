"""The copy of the code that a job runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import moco_dist
from launcher import snapshot
from moco_dist.run import code
from tests.launcher.made import earlier


def package(root: Path) -> ModuleType:
    module = ModuleType(root.name)
    module.__path__ = [str(root)]
    return module


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one small package, which the snapshot is taken of."""
    root = tmp_path / "checkout" / "moco_dist"
    (root / "data").mkdir(parents=True)
    (root / "train.py").write_text("print('before')\n")
    (root / "data" / "order.py").write_text("")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("a: 1\n")
    (root / "configs").symlink_to(tmp_path / "configs")
    monkeypatch.setattr(snapshot, "_PACKAGES", (package(root),))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    return folder


def names(copy: Path) -> set[str]:
    return {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()}


FILES = {"moco_dist/train.py", "moco_dist/data/order.py", "moco_dist/configs/a.yaml", "REVISION"}


def test_an_edit_in_the_checkout_shows_in_the_next_copy_only(checkout: Path, folder: Path) -> None:
    before = snapshot.take(folder)
    assert names(before) == FILES
    (checkout / "train.py").write_text("print('after')\n")
    (checkout / "new.py").write_text("")
    after = snapshot.take(folder)
    assert (before / "moco_dist" / "train.py").read_text() == "print('before')\n"
    assert (after / "moco_dist" / "train.py").read_text() == "print('after')\n"
    assert names(before) == FILES
    assert names(after) == FILES | {"moco_dist/new.py"}
    assert {before, after} == set(folder.iterdir())


def test_the_links_of_a_checkout_are_followed(checkout: Path, folder: Path) -> None:
    copy = snapshot.take(folder)
    assert not (copy / "moco_dist" / "configs").is_symlink()
    (checkout / "configs" / "a.yaml").write_text("a: 2\n")
    assert (copy / "moco_dist" / "configs" / "a.yaml").read_text() == "a: 1\n"
    assert snapshot.digest() != copy.name


def test_the_name_tells_content_and_names_and_nothing_else(checkout: Path) -> None:
    before = snapshot.digest()
    earlier(checkout / "train.py", 100)
    (checkout / "train.py").chmod(0o600)
    assert snapshot.digest() == before
    (checkout / "train.py").rename(checkout / "other.py")
    assert snapshot.digest() != before


def test_a_copy_is_taken_once(checkout: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = snapshot.take(folder)
    (copy / "moco_dist" / "train.py").write_text("a job runs this\n")
    monkeypatch.setattr(snapshot.shutil, "copyfile", lambda *_: pytest.fail("it is taken again"))
    assert snapshot.take(folder) == copy
    assert (copy / "moco_dist" / "train.py").read_text() == "a job runs this\n"


def test_what_tools_and_editors_leave_is_no_code(checkout: Path, folder: Path) -> None:
    before = snapshot.digest()
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "train.pyc").write_bytes(b"1")
    (checkout / ".ipynb_checkpoints").mkdir()
    (checkout / ".ipynb_checkpoints" / "train.py").write_text("old")
    (checkout / ".train.py.swp").write_text("swap")
    (checkout / ".#train.py").symlink_to("me@here.1234")  # emacs, of a file that is not saved
    assert snapshot.digest() == before
    assert names(snapshot.take(folder)) == FILES


def test_half_a_copy_is_not_taken_for_one(checkout: Path, folder: Path) -> None:
    half = folder / f".{snapshot.digest()}.{os.getpid()}"
    (half / "moco_dist").mkdir(parents=True)
    (half / "moco_dist" / "stale.py").write_text("")
    copy = snapshot.take(folder)
    assert names(copy) == FILES
    assert list(folder.iterdir()) == [copy]


def test_two_submissions_at_once_share_a_copy(checkout: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> str:
        (folder / snapshot.digest()).mkdir()
        (folder / snapshot.digest() / "REVISION").write_text("the other's\n")
        return "mine"

    monkeypatch.setattr(snapshot, "git_revision", meanwhile)
    copy = snapshot.take(folder)
    assert (copy / "REVISION").read_text() == "the other's\n"
    assert list(folder.iterdir()) == [copy]


def test_a_job_runs_the_copy_alone(folder: Path, tmp_path: Path) -> None:
    """All packages with their data, started as the batch script does: in the copy, by these two variables."""
    copy = snapshot.take(folder)
    script = "import launcher.job.task, moco_dist, slurm; from moco_dist import config; config.load();"
    script += "from moco_dist.run import code;"
    script += "print(*(m.__path__[0] for m in (launcher, moco_dist, slurm)), code.git_revision(), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert printed[:3] == [str(copy / name) for name in ("launcher", "moco_dist", "slurm")]
    assert printed[3] == code.git_revision()


def test_what_the_code_and_its_packages_were(folder: Path) -> None:
    snapshot.describe([folder])
    assert (folder / "revision.txt").read_text() == code.git_revision() + "\n"
    packages = (folder / "packages.txt").read_text().splitlines()
    assert packages == sorted(packages, key=str.lower)
    assert {line.partition("==")[0] for line in packages} >= {"torch", "submitit", "pytest"}


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_patch_is_what_the_checkout_has_changed(
    checkout: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moco_dist, "__path__", [str(checkout)])
    snapshot.describe([folder])
    assert (folder / "diff.patch").read_text() == ""  # it is no repository
    git = ["git", "-C", str(checkout.parent), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "train.py").write_text("print('caf\xe9')\n", encoding="latin-1")  # no UTF-8
    snapshot.describe([folder])
    assert "-print('before')\n+print('caf\ufffd')\n" in (folder / "diff.patch").read_text()
    monkeypatch.setattr(snapshot, "_MOST_OF_A_DIFF", 50)
    snapshot.describe([folder])
    assert (folder / "diff.patch").read_text().endswith(" bytes, not kept\n")
    subprocess.run(
        [*git, "rm", "-rq", "--cached", "."], check=True
    )  # an installation within another project's checkout
    snapshot.describe([folder])
    assert (folder / "diff.patch").read_text() == ""
