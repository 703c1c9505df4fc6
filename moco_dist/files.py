"""Write files that a reader finds whole, and open those of a run directory without ever waiting.

A reader finds the old content or the new one, never half of it. A FIFO in place of a file would be waited for, and a
device read without end: what is not a regular file is an error at once.
"""

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

MOST_BYTES = 64 << 20
"""A file that is read as text has no more; a larger one is damaged, and would fill the memory."""

AWAY = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
)
"""Error numbers of a process that has no more files or memory, and of a shared disk that is away for a time: none of
them is the fault of the file that was to be read."""


def descriptor(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """Open a regular file as `os.open` does; a FIFO, a device, a folder or a socket is refused, not waited for.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    opened = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return opened
    os.close(opened)
    raise OSError(errno.EINVAL, f"{Path(path).name} is not a regular file; remove it", str(path))


def open_text(path: Path, mode: str = "r", errors: str = "strict") -> IO[str]:
    """Open a regular file of UTF-8 text. Raises OSError."""
    return open(path, mode, opener=descriptor, encoding="utf-8", errors=errors)


def open_bytes(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes. Raises OSError."""
    return open(path, "rb", opener=descriptor)


def read_text(path: Path, errors: str = "strict", most_bytes: int = MOST_BYTES) -> str:
    """Read the UTF-8 text of a regular file. Raises OSError, also for a larger file, and UnicodeDecodeError."""
    with open_text(path, errors=errors) as file:
        _refuse_larger(file, path, most_bytes)
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; {} where the file is missing or damaged."""
    try:
        return parse_object(read_text(path))
    except (OSError, UnicodeDecodeError):
        return {}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; {} for any other text, such as a damaged one."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_bytes(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a regular file. Raises OSError, also for a larger file than is to be read."""
    with open_bytes(path) as file:
        _refuse_larger(file, path, most_bytes)
        return file.read()


def _refuse_larger(file: IO[Any], path: Path, most_bytes: int | None) -> None:
    if most_bytes is not None and os.fstat(file.fileno()).st_size > most_bytes:
        raise OSError(errno.EFBIG, f"{path.name} is larger than {most_bytes} bytes; remove it", str(path))


def read_end(path: Path, most_bytes: int) -> bytes:
    """Read the end of a regular file, at most so many bytes. Raises OSError."""
    with open_bytes(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read()


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
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # process numbers repeat on other machines
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(descriptor(aside, flags, 0o600 if private else 0o666), "wb") as file:
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


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path, private to its user, which is removed when the block ends. Raises OSError."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())
