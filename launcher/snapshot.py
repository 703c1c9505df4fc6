"""Copy the code that a job runs into its run directory, so that an edit in the checkout changes no waiting job."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import launcher
import moco_dist
import slurm
from moco_dist import files
from moco_dist.errors import masked
from moco_dist.run.code import git_revision, is_checkout

_PACKAGES = (moco_dist, launcher, slurm)
_MOST_OF_A_DIFF = 4_000_000  # bytes: a checkout with data in it must not fill the run directory


def digest() -> str:
    """Return the name of the code as it is now: a hash of every file's name and content."""
    content = hashlib.sha256()
    for name, file in sorted(_files().items()):
        content.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()[:12]


def take(folder: Path) -> Path:
    """Copy the code to `folder/<digest>`, unless it is there. Returns that folder. Raises OSError."""
    copy = folder / digest()
    if copy.is_dir():
        return copy
    aside = folder / f".{copy.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    for name, file in _files().items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, aside / name)
    (aside / "REVISION").write_text(git_revision() + "\n", encoding="utf-8")
    try:
        aside.rename(copy)
    except OSError:
        shutil.rmtree(aside)
        if not copy.is_dir():  # else another submission was first
            raise
    return copy


def describe(folders: Sequence[Path], *, with_code: bool = True) -> None:
    """Write into each folder which code and packages its job has: revision, changes, packages. Raises OSError.

    Args:
        folders: where to.
        with_code: whether the jobs have the checkout's code; else the first two stay as they are.
    """
    packages = {f"{package.metadata['Name']}=={package.version}" for package in metadata.distributions()}
    texts = (git_revision() + "\n", _diff(), "\n".join(sorted(packages, key=str.lower)) + "\n")
    for folder in folders:
        for file, text in list(zip(described(folder), texts, strict=True))[0 if with_code else -1 :]:
            files.write_text(file, text)


def described(folder: Path) -> list[Path]:
    """Return the files that `describe` writes into a folder."""
    return [folder / name for name in ("revision.txt", "diff.patch", "packages.txt")]


def _files() -> dict[str, Path]:
    """Find every file of our packages, by its name in the copy, but for what editors and tools hide beside them."""
    paths = {}
    for package in _PACKAGES:
        root = Path(package.__path__[0])
        for folder, folders, names in os.walk(root, followlinks=True):  # moco_dist/configs is a link in a checkout
            folders[:] = [name for name in folders if name != "__pycache__" and name[0] != "."]
            for name in (name for name in names if name[0] != "."):
                paths[str(root.name / Path(folder, name).relative_to(root))] = Path(folder, name)
    return paths


def _diff() -> str:
    """Return what the checkout has changed since its revision; empty where there is no checkout."""
    package = Path(moco_dist.__path__[0])
    if not is_checkout(package):
        return ""
    command = ["git", "-C", str(package.parent), "diff", "--no-color", "--no-ext-diff", "HEAD"]
    try:
        diff = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    if len(diff) > _MOST_OF_A_DIFF:
        return f"# {len(diff)} bytes, not kept\n"
    return masked(diff.decode(errors="replace"))
