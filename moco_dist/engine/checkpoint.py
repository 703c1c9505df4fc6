"""Keep the state of a run in checkpoints, written in the background, whole or not at all, with a checksum."""

import hashlib
import io
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from moco_dist.config import Config
from moco_dist.data.identity import Identity
from moco_dist.engine.engine import Engine
from moco_dist.files import replacing
from moco_dist.run.checkpoints import MARK, CheckpointIndex, verify

log = logging.getLogger(__name__)


class Checkpoints:
    """Rank 0 writes the checkpoints of a run; every rank may read them.

    Saving copies the state and returns; a thread writes it. Nothing that goes wrong there reaches training: it is
    logged and counted in `failures`, and the files of before stay.

    Args:
        folder: of the checkpoints.
        keep: how many of the last ones stay.
        milestone: whether the checkpoint of a step stays for good.
        writes: whether this rank does; on the others a save is nothing.
    """

    def __init__(
        self, folder: Path, keep: int, milestone: Callable[[int], bool] = lambda step: False, writes: bool = True
    ) -> None:
        self.index = CheckpointIndex(folder)
        self.keep, self.milestone, self.writes = keep, milestone, writes
        self.failures = 0
        self._writer: threading.Thread | None = None

    def save(self, step: int, state: dict[str, Any], before: Callable[[], object] = lambda: None) -> None:
        """Copy the state now and write it in the background; a save still under way is waited for.

        Args:
            step: steps done.
            state: tensors, numbers, strings, in dicts and lists.
            before: called by the writer ahead of the rename: what must be on disk when the checkpoint is.
        """
        if not self.writes:
            return
        self.wait()
        copy = _copy(state)
        # Not a daemon: a process that ends in order finishes its last checkpoint first.
        self._writer = threading.Thread(target=self._write, args=(step, copy, before), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Wait until the last save is on disk, or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def load(self, step: int) -> dict[str, Any]:
        """Read the state after so many steps onto the CPU. Raises Damaged, OSError."""
        return load(self.index.path(step))

    def _write(self, step: int, state: dict[str, Any], before: Callable[[], object]) -> None:
        try:
            if not _finite(state):
                raise ValueError("its weights are not finite")
            self.index.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.index.remove_unfinished()
            write(self.index.path(step), state, before)
            last = [s for s in self.index.steps() if not self.milestone(s)]
            for old in last[: -self.keep]:
                self.index.path(old).unlink()
        except Exception as error:  # training must go on whatever the disk does
            cause = cause_of(error)
            self.failures += 1
            log.warning("checkpoint of step %d not saved, training goes on: %s: %s", step, type(cause).__name__, cause)


def of_run(
    step: int,
    config: Config,
    data: Identity,
    engine: Engine,
    unreadable: Mapping[str, int] = {"epoch": 0, "images": 0},
) -> dict[str, Any]:
    """Return the state of a run, which a checkpoint keeps.

    Args:
        step: steps done.
        config: of the run.
        data: identity of the training images.
        engine: after that step.
        unreadable: how many images of which epoch could not be decoded.
    """
    begun = {"step": step, "config": config.model_dump(mode="json"), "data": data._asdict()}
    return {**begun, "unreadable": dict(unreadable), **engine.state()}


def write(path: Path, state: dict[str, Any], before: Callable[[], object] = lambda: None) -> None:
    """Write a state so that the path holds the old file or the whole new one, whenever the power fails."""
    with replacing(path, durable=True, private=True, before=before) as file:
        hashing = _HashingFile(file)
        torch.save(state, cast(IO[bytes], hashing))
        file.write(MARK + hashing.sha256.hexdigest().encode())


def load(path: Path) -> dict[str, Any]:
    """Read the state in a checkpoint onto the CPU, after its checksum is verified. Raises Damaged, OSError."""
    state: dict[str, Any] = torch.load(io.BytesIO(verify(path)), map_location="cpu", weights_only=True)
    return state


class _HashingFile(io.RawIOBase):
    """Hash all that is written, and pass it on to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _copy(state: Any) -> Any:
    """Return the state with its tensors copied to the CPU; containers are copied too."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list | tuple) else state


def cause_of(error: BaseException) -> BaseException:
    """Return the first cause of an error: torch's writer covers a full disk with a RuntimeError of its own."""
    while isinstance(error, RuntimeError) and error.__context__ is not None:
        error = error.__context__
    return error


def _finite(state: Any) -> bool:
    """Tell whether all numbers of a copied state's tensors are finite."""
    if isinstance(state, dict | list):
        return all(map(_finite, state.values() if isinstance(state, dict) else state))
    return not isinstance(state, Tensor) or bool(state.isfinite().all())
