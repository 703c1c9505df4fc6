"""List the files of a package with their digests, so that a later export can tell what people have changed in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from moco_dist import files
from moco_dist.errors import UserError, printable
from moco_dist.run.paths import RunPaths

NAME = "manifest.json"
_FIX = "name a new folder by --out, or remove it"


def write(folder: Path, version: str) -> None:
    """Write the list of all that lies in a folder. Raises OSError."""
    content = {"moco_dist": version, "files": digests(folder)}
    files.write_text(folder / NAME, json.dumps(content, indent=1) + "\n")


def digests(folder: Path) -> Mapping[str, str]:
    """Return the sha256 of each file in a folder by its name; "" for a folder or a link. Raises OSError."""
    names = sorted(path.name for path in folder.iterdir() if path.name != NAME)
    return {name: _digest(folder / name) for name in names}


def _digest(file: Path) -> str:
    if not file.is_file() or file.is_symlink():
        return ""
    return hashlib.sha256(files.read_bytes(file)).hexdigest()


def check_replaceable(folder: Path) -> None:
    """Refuse a place for a package that holds something else than a package as it was exported.

    Raises:
        UserError: names the place, and a file that has changed.
    """
    try:
        if RunPaths.is_own(Path(os.path.realpath(folder.parent), folder.name)):
            raise UserError.of("--out", folder, "is a place that the run itself needs", _FIX)
        if not os.path.lexists(folder):
            return
        if folder.is_symlink() or not folder.is_dir():
            raise UserError.of("--out", folder, "is no folder, and a package is one", _FIX)
        names = [path.name for path in folder.iterdir()]
        if not names:
            return
        if RunPaths.holds_run(names):
            raise UserError.of("--out", folder, "is the directory of a run", _FIX)
        listed = files.read_object(folder / NAME).get("files")
        if not isinstance(listed, dict):
            raise UserError.of("--out", folder, "is there already, and is no exported package", _FIX)
        now = digests(folder)
    except OSError as error:
        raise UserError.of("--out", folder, f"cannot be read: {error.strerror or error}", _FIX) from None
    if changed := sorted(name for name in {*now, *listed} if now.get(name) != listed.get(name)):
        rule = f"{printable(changed[0])} in it has changed since it was exported"
        raise UserError.of("--out", folder, rule, _FIX)
