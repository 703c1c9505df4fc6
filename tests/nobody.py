"""The tests of what is closed to a user: root, who may all, asks as nobody."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


def let_in(folder: Path) -> None:
    """Let all users into a folder of a test, and into those above it that are the test's own."""
    for place in (folder, *folder.parents):
        mode = place.stat().st_mode
        if Path(tempfile.gettempdir()) in place.parents and mode & 0o055 != 0o055:
            place.chmod(mode | 0o055)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Act without root's rights, which pass every mode; others keep their own."""
    if os.getuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
