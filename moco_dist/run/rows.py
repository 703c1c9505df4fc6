"""`metrics.jsonl`: one JSON object a line, the books of a run. What W&B shows is made from these rows."""

import functools
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from moco_dist.errors import UserError
from moco_dist.files import descriptor, open_bytes, parse_object, replacing

Row = Mapping[str, float | int | str]
"""One line of the file: figures by name. `step` is in every row, counted from 1."""

_STEPS = range(2**53)
"""Steps that a row can have: whole numbers that a float holds too."""
_LONGEST_LINE = 1 << 20
"""Bytes of a line, at most: what is longer is damage, such as blocks of zeros."""

log = logging.getLogger(__name__)


def training_row(
    step: int, epoch: int, loss: float, lr: float, images_per_second: float, figures: Mapping[str, float], **counts: int
) -> Row:
    """Make the row of a training step.

    Args:
        step: counted from 1.
        epoch: counted from 0.
        loss: mean over the global batch; symmetric: the sum of both directions.
        lr: learning rate that the step used.
        images_per_second: of all ranks.
        figures: of the method, by name.
        counts: of what went wrong, by name, where something did: images replaced, checkpoints not written.
    """
    own = {"step": step, "epoch": epoch, "loss": loss, "lr": lr}
    row = {**own, **figures, "images_per_second": images_per_second, **counts}
    assert len(row) == len(own) + len(figures) + 1 + len(counts), f"a figure has the name of another: {sorted(figures)}"
    return row


def evaluation_row(step: int, epoch: int, figures: Mapping[str, float]) -> Row:
    """Make the row of an evaluation during training: its figures, `knn_top1` among them, after so many steps."""
    return {"step": step, "epoch": epoch, **figures}


def finding_row(
    step: int,
    epoch: int,
    name: str,
    state: Literal["begins", "ends"],
    key: str | None,
    value: float | int | str | None,
    evidence: str,
) -> Row:
    """Make the row that says that a finding about the run's health begins or ends.

    Args:
        step: the last one that was looked at, counted from 1.
        epoch: counted from 0.
        name: of the finding.
        state: what happens to it.
        key: of the config, to be changed.
        value: that the key is to have.
        evidence: a sentence with the numbers that it begins by.
    """
    proposal = {"key": key, "value": value} if key is not None and value is not None else {}
    of_finding = {"finding": name, "state": state, "kind": "finding", **proposal, "evidence": evidence}
    return {"step": step, "epoch": epoch, **of_finding}


def row_is_due(step: int, log_every: int, total_steps: int) -> bool:
    """Tell whether the row of a training step, counted from 1, is written: each `log_every`-th, and the last one."""
    return step % log_every == 0 or step == total_steps


def is_training(row: Row) -> bool:
    """Tell whether a row is of a training step: only those have a loss."""
    return "loss" in row


def is_evaluation(row: Row) -> bool:
    """Tell whether a row is of an evaluation during training."""
    return "knn_top1" in row and "loss" not in row


def is_finding(row: Row) -> bool:
    """Tell whether a row says that a finding about the run's health begins or ends."""
    return "finding" in row


class MetricsFile:
    """Rows in order of their `step`, each on disk whole or not at all; safe to call from several threads.

    A row reaches the kernel in one unbuffered write, so a killed process loses none; `sync` makes them outlast the
    machine. Where a write fails (a full disk), the rows wait in memory for the next `append` or `sync`: `failures`
    counts such writes, and the first one is logged.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures = 0
        self._unsent = bytearray()
        self._lock = threading.Lock()
        self._fd = self._open()

    def append(self, row: Row) -> None:
        """Write a row.

        Raises:
            ValueError: a number of it is NaN or infinite, which JSON cannot hold.
        """
        line = json.dumps(row, allow_nan=False) + "\n"  # floats as repr: they read back bit for bit
        with self._lock:
            self._unsent += line.encode()
            self._write()

    def sync(self) -> bool:
        """Wait until the rows are on the disk; False where that failed."""
        with self._lock:
            if self._fd < 0:  # closed: a checkpoint's thread may outlive the run
                return not self._unsent
            if not self._write():
                return False
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._failed(error)
                return False
            return True

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps than `step`, and what a power cut left: a torn last line, blocks of zeros.

        What the run does again after a checkpoint is written again, so each step stands here once. 0 empties the
        file.

        Raises:
            OSError: the file cannot be read or written.
        """
        with self._lock, open_bytes(self.path) as file:
            self._unsent.clear()
            kept = [line for line in _lines(file) if (row := _parse(line)) is not None and row["step"] <= step]
            length = sum(map(len, kept))
            file.seek(0)
            if file.read(length) == b"".join(kept):  # what goes is a suffix, but for damage amid good rows
                os.ftruncate(self._fd, length)
                os.fsync(self._fd)
            else:
                with replacing(self.path, durable=True) as repaired:
                    repaired.write(b"".join(kept))
                os.close(self._fd)
                self._fd = self._open()

    def close(self) -> None:
        """Write what still waits in memory, as far as that goes, and close the file."""
        self.sync()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        return descriptor(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def _write(self) -> bool:
        try:
            while self._unsent:  # a full disk may take half a line: the next try goes on behind it
                del self._unsent[: os.write(self._fd, self._unsent)]
        except OSError as error:
            self._failed(error)
        return not self._unsent

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("%s: %s; training goes on, its rows wait in memory", self.path, error.strerror)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics.jsonl without damaged lines. Raises OSError."""
    with open_bytes(path) as file:
        yield from filter(None, map(_parse, _lines(file)))


def rows_so_far(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics.jsonl as `read_rows`, none where a run has not begun one. Raises UserError."""
    try:
        yield from read_rows(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError.of("RUN_DIR", path, error.strerror or str(error), "mend it") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; one that is too long to be a row is cut, and so is none."""
    for line in iter(functools.partial(file.readline, _LONGEST_LINE), b""):
        yield line
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while block := file.read(_LONGEST_LINE):  # many times faster than by lines
                if (end := block.find(b"\n")) >= 0:
                    file.seek(end + 1 - len(block), os.SEEK_CUR)
                    break


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, or None where it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    row = parse_object(line)
    return row if type(row.get("step")) is int and row["step"] in _STEPS else None
