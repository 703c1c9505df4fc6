"""TensorBoard's event files in the run directory: each step once, however often the job starts."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moco_dist import files, health
from moco_dist.run.rows import Row, is_finding
from moco_dist.tracking.names import by_section

_MARK_SECONDS = 2.0
"""The mark is moved this often; the next start writes again what lies behind it."""


@dataclass
class TensorBoard:
    """The sink writes event files, a new one for each start.

    A file begins with the step from which on TensorBoard is to forget what earlier files say (`purge_step` elsewhere).
    That is the step after the one that this start begins at, or, where the last start was killed ahead of writing all
    its rows, the step from which on they may be missing; such rows are written again. Events are written by
    TensorBoard's own record writer without its thread and queue, for there is a thread already.
    """

    folder: Path
    """The folder of the event files."""
    rows: Sequence[Row]
    """Rows of metrics.jsonl, up to the step this start begins at."""
    start_step: int
    """Steps done."""
    say: Callable[[str], None]
    """Takes the line that tells where the files lie."""
    name: str = "TensorBoard"
    start_seconds: float = 10.0
    finish_seconds: float = 10.0
    _writer: Any = field(default=None, init=False)
    _first: int = field(default=1, init=False)
    """The step whose rows this start is the first to write for good."""
    _last: int = field(default=1, init=False)
    """The step of the last row that is written."""
    _marked_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Open a file of events."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        self._first = min(self._mark(), self.start_step + 1)
        self._move_mark(self._first)
        self._last = self._first
        self._writer = RecordWriter(self._new_file().open("xb"))
        self._write(Event(file_version="brain.Event:2"), self._first)
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), self._first)
        self.say(f"TensorBoard: look with: tensorboard --logdir {shlex.quote(str(self.folder))}")

    def catch_up(self) -> None:
        """Write the rows that earlier files lack, or whose step TensorBoard has been told to forget."""
        for row in self.rows:
            if int(row["step"]) >= self._first:
                self.send(row)
        self.rows = ()

    def send(self, row: Row) -> None:
        """Write the figures of a row in one event; a finding is a text."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        step = int(row["step"])
        if is_finding(row):
            title, text = health.told(row)
            values = [_text("health/findings", f"{title}: {text}")]
        else:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in by_section(row).items()]
        self._write(Event(summary=Summary(value=values)), step)
        self._last = step
        if time.monotonic() - self._marked_at > _MARK_SECONDS:
            self._move_mark(step)

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        """Write an image."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="png")
        height, width = pixels.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        self._write(Event(summary=Summary(value=[Summary.Value(tag=key, image=image)])), self.start_step)

    def send_alert(self, title: str, text: str) -> None:
        """Do nothing: TensorBoard sends no alerts, and shows findings by their rows."""

    def send_encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Do nothing: TensorBoard has no artifacts."""

    def end(self, exit_code: int, preempted: bool) -> None:
        """Close the file."""
        self._writer.close()
        self._move_mark(self._last)

    def tear_down(self) -> None:
        """Close the file as far as that goes."""
        with contextlib.suppress(Exception):  # a full disk shows again where a buffer is written
            self._writer.close()

    def kill(self) -> None:
        """Do nothing: a disk that hangs holds the thread, which ends with the process."""

    def _new_file(self) -> Path:
        """Return a path that TensorBoard, which reads files by their names, reads behind those of earlier starts."""
        seconds = [file.name.split(".")[3] for file in self.folder.glob("events.out.tfevents.*")]
        after = max([int(time.time()), *(int(second) + 1 for second in seconds if second.isdecimal())])
        return self.folder / f"events.out.tfevents.{after:010}.{socket.gethostname()}.{os.getpid()}"

    def _mark(self) -> int:
        """Return the step that all rows ahead of are in files; 1 for none."""
        try:
            return int(files.read_text(self.folder / "mark"))
        except (OSError, ValueError):
            return 1

    def _move_mark(self, step: int) -> None:
        files.write_text(self.folder / "mark", f"{step}\n")
        self._marked_at = time.monotonic()

    def _write(self, event: Any, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._writer.write(event.SerializeToString())
        self._writer.flush()  # to the kernel: a killed process loses nothing


def _text(tag: str, text: str) -> Any:
    """Make the value of a text, which TensorBoard shows as Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
