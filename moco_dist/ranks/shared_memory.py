"""Memory that the ranks of one machine share: they average large tensors there, instead of through sockets."""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path("/dev/shm")
"""The folder whose files Linux keeps in memory; a container has one of its own."""


class SharedMemory:
    """Shared memory is a block of bytes that all ranks of a world on one machine read and write.

    Args:
        memory: mapped by every rank.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)

    @property
    def size(self) -> int:
        """Return how many bytes there are."""
        return len(self._bytes)

    def rows(self, count: int, length: int, dtype: torch.dtype) -> Tensor:
        """View the first bytes as numbers [count, length]."""
        return self._bytes[: count * length * dtype.itemsize].view(dtype).view(count, length)

    @classmethod
    def named(cls, name: str, size: int) -> SharedMemory | None:
        """Map what another rank has made under a name; None where this machine does not have it."""
        with suppress(OSError, ValueError):
            descriptor = os.open(_FOLDER / name, os.O_RDWR | os.O_NOFOLLOW)
            try:
                return cls(mmap.mmap(descriptor, size))
            finally:
                os.close(descriptor)
        return None


def make(size: int) -> str | None:
    """Make so many bytes in memory under a name that no other machine has; None where there is no room for them."""
    path = _FOLDER / f"moco-dist-{secrets.token_hex(16)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)  # else a full disk would kill the process that writes to the memory
        return path.name
    except OSError:
        path.unlink()
        return None
    finally:
        os.close(descriptor)


def forget(name: str) -> None:
    """Take a name away, so that nothing is left of the memory when the last rank has ended, however it ends."""
    (_FOLDER / name).unlink(missing_ok=True)
