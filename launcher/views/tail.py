"""Read growing log files line by line, from their last lines on, as text that can do a terminal no harm."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 2**16
_LONGEST_LINE = 2**20
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
"""Escape sequences of terminals: CSI; OSC and other strings; the short ones."""


class Tail:
    """One growing file, read line by line from its last lines on.

    Args:
        path: path of the file.
        prefix: text that goes before each line.
        lines: how many of its lines to begin with; None: all of them.
    """

    def __init__(self, path: Path, prefix: str = "", lines: int | None = None) -> None:
        self._file, self._prefix, self._unfinished = path.open("rb"), prefix, b""
        if lines is not None:
            self._file.seek(_start_of_last(self._file, lines))

    def new(self) -> Iterator[str]:
        """Read the whole lines that have come since the last call."""
        while block := self._file.read(_BLOCK):
            *whole, self._unfinished = (self._unfinished + block).split(b"\n")
            yield from (self._prefix + readable(line) for line in whole)
            if len(self._unfinished) > _LONGEST_LINE:
                yield from self.rest()

    def rest(self) -> Iterator[str]:
        """Return the last line, though it has no end."""
        if self._unfinished:
            yield self._prefix + readable(self._unfinished)
        self._unfinished = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def readable(line: bytes) -> str:
    """Return a line as harmless text: the last state of a progress bar, without escape sequences."""
    text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
    if text.isprintable():
        return text
    text = _ESCAPE.sub("", text)
    return "".join(c if c.isprintable() or c == "\t" else " " if c.isspace() else "" for c in text)


def _start_of_last(file: io.BufferedReader, lines: int) -> int:
    """Return where the last so many lines begin; a last line without an end counts."""
    end = at = file.seek(0, io.SEEK_END)
    newlines = lines + 1  # with the one ahead of the first line
    while at > 0:
        start = max(0, at - _BLOCK)
        file.seek(start)
        block = file.read(at - start)
        if at == end and not block.endswith(b"\n"):
            newlines -= 1
        if block.count(b"\n") >= newlines:
            place = len(block)
            for _ in range(newlines):
                place = block.rfind(b"\n", 0, place)
            return min(start + place + 1, end)
        newlines -= block.count(b"\n")
        at = start
    return 0
