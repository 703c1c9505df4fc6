"""Build distributions of this checkout, and environments that have one of them and borrow all else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.jobs import ROOT

PACKAGES = ("moco_dist", "launcher", "slurm")


def tracked() -> list[str]:
    """Return the files that git tracks in this checkout; none where it is no checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in names if name and os.path.lexists(ROOT / name)]


def copy_tracked(folder: Path) -> Path:
    """Copy the files that git tracks into a new folder, since a build leaves files beside the code. Returns it."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree, as `pip install .` does, but without network. Returns its path."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}"]
    call(sys.executable, "-m", "pip", "wheel", "--quiet", *options, ".", folder=source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_sdist(source: Path, folder: Path) -> Path:
    """Build the source distribution of a source tree. Returns its path."""
    call(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
        folder=source,
    )
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


@dataclass(frozen=True)
class Environment:
    """This environment of Python's has what is installed into it, and borrows all else from the one that runs here.

    A line in a `.pth` file is the way to this one's packages. Python follows no further such line there, so that
    nothing leads to the checkout that is installed here.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        """Create the environment in a new folder."""
        venv.create(folder, with_pip=False, symlinks=True)
        environment = cls(folder)
        borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (environment.packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
        return environment

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def packages(self) -> Path:
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return packages

    def install(self, wheel: Path) -> None:
        """Install a wheel alone."""
        options = ["--quiet", "--no-deps", "--no-index", "--no-warn-script-location", str(wheel)]
        call(sys.executable, "-m", "pip", "--python", self.python, "install", *options, folder=wheel.parent)

    def run(self, *arguments: str, folder: Path) -> str:
        """Run the environment's Python to its end, which must be a success. Returns what it prints."""
        return call(self.python, *arguments, folder=folder)


def call(*command: str, folder: Path) -> str:
    """Run a command in a folder, by an environment that says nothing of this checkout. Returns what it prints."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
