"""Tell which code runs here: the versions of packages, the git revision, and a digest of the trainer's own files."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from moco_dist import __version__, packages
from moco_dist.files import read_bytes

_PACKAGE = Path(__file__).parents[1]
_COUNTED = ("torch", "torchvision", "numpy", "pillow", "simplejpeg", "wandb")
"""Packages whose versions are kept with a run."""


def versions() -> dict[str, str]:
    """Return the versions of moco-dist, Python, and those of the counted packages that are installed, by name."""
    of_packages = (line.partition(" ")[::2] for line in packages.versions(*_COUNTED))
    return {"moco-dist": __version__, "python": platform.python_version(), **dict(of_packages)}


def headline() -> str:
    """Write the versions and the git revision on one line, the comment above a resolved config."""
    texts = [f"{name} {version}" for name, version in versions().items()]
    return f"{texts[0]}, git {git_revision()}; {', '.join(texts[1:])}"


def read_headline(line: str) -> tuple[dict[str, str], str]:
    """Read what `headline` wrote: the versions by name, and the git revision; what is missing is left out, or ""."""
    own, _, others = line.removeprefix("#").strip().partition("; ")
    first, _, revision = own.partition(", git ")
    pairs = (text.partition(" ")[::2] for text in [first, *others.split(", ")] if " " in text.strip())
    return dict(pairs), revision


def git_revision() -> str:
    """Return the revision of the checkout; for a copy, the revision in its file REVISION.

    An installation has the revision that pip has installed it from; from a wheel or a folder, it is unknown.
    """
    copied_from = _PACKAGE.parent / "REVISION"
    if copied_from.is_file():
        return copied_from.read_text(encoding="utf-8").strip()
    if not is_checkout(_PACKAGE):
        return _installed_revision() or "unknown"
    return _git(_PACKAGE, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def is_checkout(package: Path) -> bool:
    """Return whether git tracks the code in a folder; an installation may lie within another project's checkout."""
    return _git(package, "ls-files", "--error-unmatch", ".") is not None


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer in a folder, or None where it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed_revision() -> str | None:
    """Return the commit of `pip install git+URL`, which pip notes beside the files that it has installed (PEP 610)."""
    try:
        installation = metadata.distribution("moco-dist")
        if Path(str(installation.locate_file("moco_dist"))) != _PACKAGE:
            return None
        return str(json.loads(installation.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None


def digest() -> str:
    """Return the sha256 of the trainer's Python files: of each in the order of names, its path and its content.

    Raises:
        OSError: one cannot be read.
    """
    sha256 = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        content = read_bytes(file)
        sha256.update(f"{file.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return sha256.hexdigest()
