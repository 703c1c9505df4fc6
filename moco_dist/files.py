"""Write files that a reader finds whole: the old content or the new one, never half of it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(
    path: Path, *, durable: bool = False, private: bool = False, before: Callable[[], object] | None = None
) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of the path when the block ends, and vanishes when the block raises.

    Args:
        path: what is replaced; its folder exists.
        durable: whether the content and the change of names shall outlast a power cut.
        private: whether only the user may read it.
        before: called when the content is written, ahead of the change of names.

    Raises:
        OSError: the file cannot be written; the old one is still there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(os.open(aside, flags, 0o600 if private else 0o666), "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if before:
            before()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the change of names itself
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())
