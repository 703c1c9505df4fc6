"""One run at W&B for a run directory, however often the job starts: a fixed id, and each row is sent once.

All but `fixed_id`, which needs no wandb, and `kill` is called by one thread. Whatever goes wrong here may raise.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moco_dist import files
from moco_dist.config import Config
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row, is_finding, is_training
from moco_dist.tracking.guard import reason

_KINDS = ("train", "eval")

log = logging.getLogger(__name__)


@dataclass
class WandbRun:
    """The run at W&B that shows a run directory.

    After a resume from an older checkpoint the steps that W&B has already are not sent again, and rows of
    `metrics.jsonl` that never got there are.
    """

    run_dir: Path
    """The run directory; everything of W&B's lies in its `wandb/`."""
    config: Config
    """Its `track.wandb` beats the WANDB_MODE variable. Online falls back to offline where the server cannot be had."""
    rows: Sequence[Row] = ()
    """Rows of metrics.jsonl, up to the step this start begins at."""
    say: Callable[[str], None] = log.info
    """Takes the line that tells where the run lies."""
    warn: Callable[[str], None] = log.warning
    """Takes a line about a failure."""
    stop: Callable[[], None] = lambda: None
    """Called, from another thread, when someone presses W&B's stop button. W&B's own way, SIGINT to this rank alone,
    would leave the other ranks waiting."""
    probe_timeout: float = 3.0
    """Seconds for a TCP connection to the server before W&B tries."""
    init_timeout: float = 20.0
    """Seconds for W&B to start online."""
    finish_timeout: float = 30.0
    """Seconds for W&B to send the rest at the end."""
    name: str = "W&B"
    _run: Any = field(default=None, init=False)
    _arrived: dict[str, int] = field(default_factory=dict, init=False)
    """The last step of training and of evaluation that W&B has from earlier starts."""

    @property
    def start_seconds(self) -> float:
        """The time that its start takes at most: a try online and one offline."""
        return self.probe_timeout + self.init_timeout + 30

    @property
    def finish_seconds(self) -> float:
        """The time that its end takes at most."""
        return self.finish_timeout + 5

    def start(self) -> None:
        """Start W&B."""
        import wandb

        online = self.config.track.wandb == "online"
        folder = RunPaths(self.run_dir).wandb
        folder.mkdir(parents=True, exist_ok=True)
        run_id = fixed_id(folder)
        # Silent also means: no question for a key on a terminal.
        settings = wandb.setup(_settings(silent=True, quiet=True, login_timeout=self.init_timeout)).settings
        if online:
            try:
                _probe(settings, self.probe_timeout)
                self._run = self._init(run_id, "online")
            except (Exception, SystemExit) as error:
                teardown()  # else the id counts as in use
                online = False
                command = f"wandb sync {folder}/offline-run-*"
                self.warn(f"W&B is offline ({reason(error)}); send the run later with: {command}")
        if online:
            self._arrived = _last_steps(dict(self._run.summary))
            _retire(folder, run_id)
        else:
            try:  # before init opens a file of its own
                self._arrived = _arrived(folder, run_id)
            except Exception as error:  # another wandb, another format: rather a gap at W&B than rows twice
                self.warn(f"W&B's files of earlier starts cannot be read ({reason(error)}); rows may be missing there")
                self._arrived = dict.fromkeys(_KINDS, max((int(r["step"]) for r in self.rows), default=0))
            self._run = self._init(run_id, "offline")
        # Steps of our own on every x axis: wandb's count changes meaning after a resume.
        self._run.define_metric("train/step")
        self._run.define_metric("eval/step", hidden=True)
        self._run.define_metric("*", step_metric="train/step")
        place = self._run.url if online else f"offline, look with: wandb leet {folder}"
        self.say(f"W&B: {place}")

    def catch_up(self) -> None:
        """Send the rows that it lacks."""
        for row in self.rows:
            self.send(row)
        self.rows = ()

    def send(self, row: Row) -> None:
        """Send a row of figures of metrics.jsonl, unless W&B has it from before."""
        if is_finding(row):  # an alert tells it
            return
        kind = "train" if is_training(row) else "eval"
        if int(row["step"]) > self._arrived[kind]:
            self._run.log({"train/step": row["step"], **{f"{kind}/{key}": value for key, value in row.items()}})

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        """Send an image, [H, W] or [H, W, 3]."""
        import wandb

        self._run.log({key: wandb.Image(pixels, caption=caption)})

    def send_alert(self, title: str, text: str) -> None:
        """Send an alert."""
        self._run.alert(title, text, level="WARN")

    def end(self, exit_code: int, preempted: bool) -> None:
        """Send the rest and end the run."""
        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        teardown()

    def tear_down(self) -> None:
        """End W&B in this process."""
        teardown()

    def kill(self) -> None:
        """Kill W&B's process: its exit handler would wait for it for ever."""
        for process in core_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _init(self, run_id: str, mode: Literal["online", "offline"]) -> Any:
        import wandb

        settings = _settings(
            init_timeout=self.init_timeout,
            login_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            stop_fn=self.stop,
            silent=True,
            quiet=True,
            console="off",  # captured output can hang Python at its exit
            save_code=False,
            disable_job_creation=True,
            x_transaction_log_flush_interval=2.0,  # a kill loses so many seconds, until the next start
        )
        return wandb.init(
            project=self.config.track.project,
            group=self.config.track.group,
            name=self.config.run.name,
            id=run_id,
            resume="allow",
            dir=str(self.run_dir),
            mode=mode,
            config=self.config.model_dump(mode="json"),
            settings=settings,
        )


def fixed_id(folder: Path) -> str:
    """Return the run's id, in `folder/id`, made once for all its starts; the launcher makes it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "id"
    with contextlib.suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(4))
    run_id = files.read_text(file).strip()
    if not re.fullmatch(r"[\w-]+", run_id):  # killed between making the file and writing it
        run_id = secrets.token_hex(4)
        files.write_text(file, run_id)
    return run_id


def core_processes() -> list[int]:
    """Return the ids of the wandb-core processes that this process has started (Linux; elsewhere none)."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                processes.append(int(stat.parent.name))
    return processes


def teardown() -> None:
    """End W&B in this process, and log what goes wrong in that."""
    try:
        import wandb

        wandb.teardown()
    except (Exception, SystemExit) as error:  # its process is dead already, or it could not even be imported
        log.debug("wandb.teardown: %s", reason(error))


def _last_steps(summary: Mapping[str, Any]) -> dict[str, int]:
    """Return the last step of training and of evaluation by a run's summary at W&B; 0 for none."""
    return {kind: int(summary.get(f"{kind}/step", 0)) for kind in _KINDS}


def _arrived(folder: Path, run_id: str) -> dict[str, int]:
    """Return the last step of training and of evaluation in the files of earlier starts; 0 for none.

    Files of online starts count as arrived: they very nearly are.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: W&B's reader is missing, or cannot read a file.
    """
    steps = [_last_steps(_summary(file)) for file in folder.glob(f"*run-*/run-{run_id}.wandb")]
    return {kind: max((of_file[kind] for of_file in steps), default=0) for kind in _KINDS}


def _retire(folder: Path, run_id: str) -> None:
    """Put offline runs away from `wandb sync`: what the server lacked of them is sent again from metrics.jsonl."""
    for segment in folder.glob(f"offline-run-*-{run_id}"):
        (folder / "superseded").mkdir(exist_ok=True)
        segment.rename(folder / "superseded" / segment.name)


def _summary(file: Path) -> dict[str, Any]:
    """Read the last figures in a `.wandb` file, up to where a kill has cut it, by `wandb leet inspect --summary`."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--summary", "--json", "--no-observability", "--run-file", str(file)]
    done = subprocess.run(
        [*command, str(file.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal: an older wandb would open a view on it
        env={**os.environ, "HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull},  # it would leave its settings there
    )
    if done.returncode:
        raise OSError(f"{file.name}: {done.stderr}")
    return dict(json.loads(done.stdout)["summary"])


def _settings(**values: Any) -> Any:
    """Make settings of those values that this version of wandb knows: they come and go."""
    import wandb

    return wandb.Settings(**{k: v for k, v in values.items() if k in wandb.Settings.model_fields})


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
