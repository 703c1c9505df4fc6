"""Weights & Biases, at arm's length: it may fail, hang or die, and training goes on.

The only file that imports wandb. Every call into it is made by one thread of ours, fed by a queue, so that training
waits for W&B at the start and at the end alone, and there no longer than the time limits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import struct
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moco_dist.run.rows import Row
from moco_dist.tracking.identity import fixed_id

Mode = Literal["offline", "online", "disabled"]

log = logging.getLogger(__name__)

_BACKLOG = 100_000  # rows that wait at most for a W&B that hangs; they stay in metrics.jsonl


class WandbSink:
    """One W&B run for a run directory, however often the job starts: a fixed id, each row sent once.

    After a resume from an older checkpoint the steps that W&B has already are not sent again, and rows of
    `metrics.jsonl` that never got there are. Nothing raises into training; what goes wrong is told once to `warn`.

    Args:
        run_dir: the run directory; everything of W&B's lies in its `wandb/`.
        mode: beats the WANDB_MODE variable. Online falls back to offline where the server cannot be had.
        project: at W&B.
        group: of runs at W&B, or None.
        name: of the run, as shown.
        config: of the run, as shown.
        rows: of metrics.jsonl, up to the step this start begins at.
        say: takes the line that tells where the run lies.
        warn: takes a line about a failure.
        stop: called, from another thread, when someone presses W&B's stop button. W&B's own way, SIGINT to this
            rank alone, would leave the other ranks waiting.
        probe_timeout: seconds for a TCP connection to the server before W&B tries.
        init_timeout: seconds for W&B to start online.
        finish_timeout: seconds for W&B to send the rest at the end.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mode: Mode,
        project: str,
        name: str,
        config: Mapping[str, Any],
        group: str | None = None,
        rows: Sequence[Row] = (),
        say: Callable[[str], None] = log.info,
        warn: Callable[[str], None] = log.warning,
        stop: Callable[[], None] = lambda: None,
        probe_timeout: float = 3.0,
        init_timeout: float = 20.0,
        finish_timeout: float = 30.0,
    ) -> None:
        self.mode: Mode = mode
        self._folder = run_dir / "wandb"
        self._project, self._group, self._name = project, group, name
        self._config, self._rows = dict(config), rows
        self._say, self._warn, self._stop = say, warn, stop
        self._probe_timeout, self._init_timeout, self._finish_timeout = probe_timeout, init_timeout, finish_timeout
        self._run: Any = None
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = threading.Event()
        self._lost = threading.Event()
        if mode == "disabled":
            self._lost.set()
            return
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self._thread.start()
        if not self._started.wait(probe_timeout + init_timeout + 30):  # W&B itself gives up before
            warn("W&B is slow to start; training goes on, its rows follow when it has")

    def log(self, row: Row) -> None:
        """Send a row of metrics.jsonl, unless W&B has it from before."""
        self._ask(lambda: self._send(row))

    def image(self, key: str, array: NDArray[np.uint8], caption: str) -> None:
        """Send an image, [H, W, C], C of 1 or 3."""
        pixels = array.squeeze(-1) if array.shape[-1] == 1 else array
        self._ask(lambda: self._send_image(key, pixels, caption))

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Send what is left and end the run; at most `finish_timeout` and ten seconds.

        Args:
            exit_code: of the training; not 0 shows the run as failed, or as preempted.
            preempted: whether the job was told to stop and will go on.
        """
        if self.mode == "disabled":
            return
        self._ask(lambda: self._end(exit_code, preempted))
        self._calls.put(None)
        self._thread.join(1 if self._lost.is_set() else self._finish_timeout + 5)
        if self._thread.is_alive():  # wandb's own exit handler would wait for its process for ever
            self._lose("it does not end")
            for process in core_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._thread.join(5)

    def _ask(self, call: Callable[[], None]) -> None:
        if self._lost.is_set():
            return
        self._calls.put(call)
        if self._calls.qsize() > _BACKLOG:
            self._lose("it hangs")

    def _lose(self, reason: str) -> None:
        """Give W&B up, once."""
        if not self._lost.is_set():
            self._lost.set()
            self._warn(f"W&B is lost ({reason}); training goes on, metrics.jsonl has every row")

    # What follows runs in the thread.

    def _serve(self) -> None:
        self._guarded(self._start)
        self._started.set()
        while (call := self._calls.get()) is not None:
            if not self._lost.is_set():
                self._guarded(call)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # anything: wandb even exits where its process has died
            self._lose(_reason(error))
            _teardown()

    def _start(self) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._id = fixed_id(self._folder)
        # Silent also means: no question for a key on a terminal.
        settings = wandb.setup(_settings(silent=True, quiet=True, login_timeout=self._init_timeout)).settings
        if self.mode == "online":
            try:
                _probe(settings, self._probe_timeout)
                self._run = self._init("online")
            except (Exception, SystemExit) as error:
                _teardown()  # else the id counts as in use
                self.mode = "offline"
                command = f"wandb sync {self._folder}/offline-run-*"
                self._warn(f"W&B is offline ({_reason(error)}); send the run later with: {command}")
        if self.mode == "online":
            self._arrived = _marks([dict(self._run.summary)])
            self._retire_offline()
        else:
            self._arrived = self._read_marks()  # before init opens a file of its own
            self._run = self._init("offline")
        # Steps of our own on every x axis: wandb's count changes meaning after a resume.
        self._run.define_metric("train/step")
        self._run.define_metric("eval/step", hidden=True)
        self._run.define_metric("*", step_metric="train/step")
        place = self._run.url if self.mode == "online" else f"offline, look with: wandb leet {self._folder}"
        self._say(f"W&B: {place}")
        for row in self._rows:
            self._send(row)
        self._rows = ()

    def _init(self, mode: Mode) -> Any:
        import wandb

        settings = _settings(
            init_timeout=self._init_timeout,
            login_timeout=self._init_timeout,
            finish_timeout=self._finish_timeout,
            stop_fn=self._stop,
            silent=True,
            quiet=True,
            console="off",  # captured output can hang Python at its exit
            save_code=False,
            disable_job_creation=True,
            x_history_value_encoding="json",  # what _history reads
            x_transaction_log_flush_interval=2.0,  # a kill loses so many seconds, until the next start
        )
        return wandb.init(
            project=self._project,
            group=self._group,
            name=self._name,
            id=self._id,
            resume="allow",
            dir=str(self._folder.parent),
            mode=mode,
            config=self._config,
            settings=settings,
        )

    def _send(self, row: Row) -> None:
        training = "loss" in row
        prefix = "train" if training else "eval"
        if int(row["step"]) <= self._arrived[prefix]:
            return
        figures: dict[str, Any] = {f"{prefix}/{key}": value for key, value in row.items()}
        self._run.log({"train/step": row["step"], **figures})

    def _send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        import wandb

        self._run.log({key: wandb.Image(pixels, caption=caption)})

    def _end(self, exit_code: int, preempted: bool) -> None:
        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        _teardown()

    def _read_marks(self) -> dict[str, int]:
        """What the files of earlier starts hold. An online start's count as arrived: they very nearly are."""
        try:
            marks = [_marks(_history(file)) for file in self._folder.glob(f"*run-*/run-{self._id}.wandb")]
        except Exception as error:  # another wandb, another format: rather a gap at W&B than rows twice
            self._warn(f"W&B's files of earlier starts cannot be read ({_reason(error)}); rows may be missing there")
            marks = [dict.fromkeys(("train", "eval"), max((int(row["step"]) for row in self._rows), default=0))]
        return {kind: max((mark[kind] for mark in marks), default=0) for kind in ("train", "eval")}

    def _retire_offline(self) -> None:
        """Put offline runs away from `wandb sync`: what the server lacked of them is sent again from metrics.jsonl."""
        for segment in self._folder.glob(f"offline-run-*-{self._id}"):
            (self._folder / "superseded").mkdir(exist_ok=True)
            segment.rename(self._folder / "superseded" / segment.name)


def core_processes() -> list[int]:
    """Process ids of the wandb-core processes that this process has started (Linux; elsewhere none)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _settings(**wanted: Any) -> Any:
    """Settings, of those wanted, that this version of wandb knows: they come and go."""
    import wandb

    return wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})


def _teardown() -> None:
    try:
        import wandb

        wandb.teardown()
    except (Exception, SystemExit) as error:  # its process is dead already, or it could not even be imported
        log.debug("wandb.teardown: %s", _reason(error))


def _probe(settings: Any, timeout: float) -> None:
    """Connect to W&B's host, or to the proxy on the way there: wandb takes minutes to find that it cannot.

    Raises:
        OSError: it cannot be reached.
    """
    url = urllib.parse.urlsplit(settings.base_url)
    proxy = getattr(settings, f"{url.scheme}_proxy", None) or urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout).close()
    except OSError as error:
        raise OSError(f"{url.hostname}:{port}: {error.strerror or error}") from None


def _reason(error: BaseException) -> str:
    """An error on one line, without the key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:200]


def _marks(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The last step of training and of evaluation in rows as W&B has them; 0 for none."""
    marks = {"train": 0, "eval": 0}
    for row in rows:
        for kind in marks:
            marks[kind] = max(marks[kind], int(row.get(f"{kind}/step", 0)))
    return marks


def _history(file: Path) -> Iterator[dict[str, Any]]:
    """The steps of the rows in a `.wandb` file, up to where a kill has cut it.

    LevelDB's log format: after a header of 7 bytes, blocks of 32 KiB with chunks of (CRC-32, length, type), type 1 a
    whole record, 2 its first part, 3 a middle, 4 the last. Only the file knows what a killed W&B had written.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its names are made at import, where no type checker sees them
    data, position, record = file.read_bytes(), 7, b""
    while True:
        if 32768 - position % 32768 < 7:  # no room for a chunk in this block
            position += 32768 - position % 32768
        if position + 7 > len(data):
            return
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        if len(chunk) < length or kind not in (1, 2, 3, 4) or zlib.crc32(bytes([kind]) + chunk) != checksum:
            return
        position += 7 + length
        record = record + chunk if kind in (3, 4) else chunk
        if kind in (1, 4):
            parsed = messages.Record.FromString(record)
            items = ((item.nested_key[0] if item.nested_key else item.key, item) for item in parsed.history.item)
            yield {key: int(item.value_json) for key, item in items if key in ("train/step", "eval/step")}
