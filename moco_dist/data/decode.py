"""Decode an image file into pixels, or tell why that cannot be done."""

from __future__ import annotations

from typing import NamedTuple


class Unreadable(NamedTuple):
    """An unreadable image was replaced by another one; it is told as `PATH: REASON`."""

    name: str
    """Path of the file."""
    reason: str
    """Why it could not be read, in one line."""

    @classmethod
    def of(cls, path: object, error: Exception) -> Unreadable:
        """Word the error that opening or decoding a file has raised, without the path, in one line."""
        reason = " ".join(str(error).replace(repr(str(path)), "").split()).strip(" :")
        return cls(str(path), reason[:200] or type(error).__name__)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
