"""Trackio in the run directory: a process of its own writes, which can be killed, and has no network."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moco_dist import files, health
from moco_dist.config import Config
from moco_dist.run.rows import Row, is_finding
from moco_dist.tracking.names import by_section

READY = "ready"
"""The line by which the process tells that it takes rows."""


@dataclass
class Trackio:
    """The sink sends rows to a process that calls Trackio (`trackio_process`), over a pipe.

    Trackio prints, keeps settings of the environment from its import on, asks the Hugging Face Hub who the user is, and
    waits up to half a minute at Python's exit: so it does not run within the trainer.
    """

    folder: Path
    """The folder of Trackio's database."""
    config: Config
    rows: Sequence[Row]
    """Rows of metrics.jsonl, up to the step this start begins at."""
    start_step: int
    """Steps done; at 0 the run begins, maybe anew."""
    say: Callable[[str], None]
    """Takes the line that tells how to look at the run."""
    name: str = "Trackio"
    start_seconds: float = 20.0
    finish_seconds: float = 20.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process, and wait until it takes rows. Raises OSError where it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._messages.open("wb") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moco_dist.tracking.trackio_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=_environment(self.folder),
                start_new_session=True,  # a signal to the ranks is not for it: it ends when the pipe does
            )
        about = {"project": self.config.track.project, "name": self.config.run.name, "group": self.config.track.group}
        self._tell({**about, "config": self.config.model_dump(mode="json"), "begins": self.start_step == 0})
        assert self._process.stdout is not None
        if self._process.stdout.readline().decode().strip() != READY:
            raise OSError(self._last_message())
        self.say(f"Trackio: look with: TRACKIO_DIR={shlex.quote(str(self.folder))} trackio show")

    def catch_up(self) -> None:
        """Send the rows of earlier starts; the process knows which of them are there."""
        for row in self.rows:
            self.send(row)
        self.rows = ()

    def send(self, row: Row) -> None:
        """Send the figures of a row, or a finding that begins or ends."""
        if is_finding(row):
            title, text = health.told(row)
            self._tell({"step": row["step"], "title": title, "text": text})
        else:
            self._tell({"step": row["step"], "figures": by_section(row)})

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        """Do nothing: the picture lies in the run directory."""

    def send_alert(self, title: str, text: str) -> None:
        """Do nothing: findings are sent with their rows, so that each is there once."""

    def send_encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Do nothing: the encoder lies in the run directory."""

    def end(self, exit_code: int, preempted: bool) -> None:
        """Close the pipe, and wait until all is written. Raises OSError where something is not."""
        assert self._process is not None
        self._process.communicate()
        if self._process.returncode:
            raise OSError(self._last_message())

    def tear_down(self) -> None:
        """End the process."""
        if self._process is not None:
            self.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # what it has not read is lost with it
                    assert pipe is not None
                    pipe.close()

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()

    @property
    def _messages(self) -> Path:
        return self.folder / "messages.txt"

    def _last_message(self) -> str:
        lines = files.read_text(self._messages, errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process has ended"

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def _environment(folder: Path) -> dict[str, str]:
    """Make the environment of the process: everything lies in the folder, and no server is asked."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    own = {key: value for key, value in os.environ.items() if not key.startswith("TRACKIO_")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder / "hub")}
    return {**own, **offline, "TRACKIO_DIR": str(folder), "PYTHONPATH": path}
