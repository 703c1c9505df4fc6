"""Memory that the ranks of one machine share: they average large tensors there, instead of through sockets."""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moco_dist.ranks.collectives import World

_FOLDER = Path("/dev/shm")
"""Where Linux keeps files in memory; a container has one of its own."""


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
    def share(cls, world: World, size: int) -> SharedMemory | None:
        """Share so many bytes among all ranks; None where they are on several machines, or where memory is short.

        The file that the ranks meet at loses its name before this returns, so that nothing is left of it after a crash.
        """
        name = world.from_first(lambda: _made(size))
        memory = None if name is None else _mapped(name, size)
        together = all(world.gather_objects(memory is not None))
        if name is not None and world.rank == 0:
            (_FOLDER / name).unlink(missing_ok=True)
        return cls(memory) if together and memory is not None else None


def _made(size: int) -> str | None:
    """Make a file in memory, whose name no other machine has, and return the name; None where there is no room."""
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


def _mapped(name: str, size: int) -> mmap.mmap | None:
    """Map a file that rank 0 has made; None where this machine does not have it."""
    with suppress(OSError, ValueError):
        descriptor = os.open(_FOLDER / name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    return None
