"""Show progress to people: a bar on a terminal, a plain line now and then in a log file."""

import contextlib
import sys
import time
from typing import TextIO

from tqdm import tqdm

PLAIN_SECONDS = 30.0

_GONE = (OSError, ValueError)
"""The errors of a stream that is gone or closed."""


class Progress:
    """The progress shows the steps on stderr. A stream that is gone (`| head`) silences it and stops nothing.

    Args:
        total: steps of the whole run.
        initial: steps done before this start.
        description: name of the run.
        plain_seconds: where stderr is no terminal, the least time between two lines.
        quiet: whether only what goes to a stream by name is shown, as warnings do.
        unit: what a step is called.
    """

    def __init__(
        self,
        total: int,
        initial: int,
        description: str,
        plain_seconds: float = PLAIN_SECONDS,
        *,
        quiet: bool = False,
        unit: str = "step",
    ) -> None:
        self.total, self.initial, self.description, self.unit = total, initial, description, unit
        self.plain_seconds, self.quiet = plain_seconds, quiet
        self._step, self._started, self._printed = initial, time.monotonic(), -plain_seconds
        self._printed_step = initial
        self._figures: dict[str, float] = {}
        self._others_interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # its thread would outlive a fork
        self._bar: tqdm | None = None
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, desc=description, unit=unit, dynamic_ncols=True)

    def update(self, step: int, **figures: float) -> None:
        """Show that `step` is done, with its figures."""
        advance, self._step, self._figures = step - self._step, step, figures
        with contextlib.suppress(*_GONE):
            if self._bar is not None:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
                self._bar.update(advance)
            elif not self.quiet and time.monotonic() - self._started - self._printed >= self.plain_seconds:
                self._print()

    def write(self, line: str, stream: TextIO | None = None) -> None:
        """Print a line without tearing the bar, on stdout unless another stream is named.

        What the stream's encoding cannot hold, such as a folder's name that is no Unicode, is written as escapes.
        """
        if self.quiet and stream is None:
            return
        stream = stream or sys.stdout
        if stream is None:  # as where a process was started with it closed
            return
        with contextlib.suppress(*_GONE):
            if getattr(stream, "errors", None) == "strict":  # else the stream has a way of its own
                line = line.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
            if self._bar is not None:
                tqdm.write(line, file=stream)
            else:
                stream.write(line + "\n")
            stream.flush()

    def close(self) -> None:
        """Show the last step, and end the bar."""
        tqdm.monitor_interval = self._others_interval
        with contextlib.suppress(*_GONE):
            if self._bar is not None:
                self._bar.close()
            elif not self.quiet and self._step > max(self.initial, self._printed_step):
                self._print()

    def _print(self) -> None:
        if sys.stderr is None:
            return
        self._printed = elapsed = time.monotonic() - self._started
        self._printed_step = self._step
        rate = (self._step - self.initial) / max(elapsed, 1e-9)
        left = tqdm.format_interval((self.total - self._step) / rate) if rate else "?"
        figures = "".join(f", {k} {v:.4g}" for k, v in self._figures.items())
        done = f"{self.description}: {self.unit} {self._step}/{self.total}{figures}"
        line = f"{done}, {rate:.3g} {self.unit}s/s, {left} left"
        print(line, file=sys.stderr, flush=True)
