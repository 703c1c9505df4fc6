"""One run at W&B for a run directory, however often the job starts: a fixed id, and each row is sent once.

One thread calls all but `kill`. Whatever goes wrong here may raise.
"""

import contextlib
import logging
import os
import shlex
import signal
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moco_dist.config import Config
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row, is_evaluation, is_finding, is_training
from moco_dist.tracking import wandb_files
from moco_dist.tracking.guard import reason

_MOST_TITLE = 63
"""Characters of an alert's title at most."""
_JOB = {"slurm_job": "SLURM_JOB_ID", "nodes": "SLURM_JOB_NODELIST", "ranks": "WORLD_SIZE"}
"""The facts on the job of each start that W&B is told, and the variables that hold them."""

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
    """The config of the run. `track.wandb` beats WANDB_MODE; online falls back to offline without an answer."""
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
    finish_timeout: float = 20.0
    """Seconds for W&B to send the rest at the end."""
    start_step: int = 0
    """Steps done; at 0 the run begins, maybe anew."""
    name: str = "W&B"
    _last: int = field(default=0, init=False)
    """The step of the last row."""
    _run: Any = field(default=None, init=False)
    _is_guest: bool = field(default=False, init=False)
    """This says whether the caller's own run at W&B is open in this process; ours must not disturb it."""
    _evaluations: dict[int, Row] = field(default_factory=dict, init=False)
    """Rows of evaluations by their steps."""
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
        # Its process would send reports about itself, and print where the server refuses them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._is_guest = wandb.run is not None
        online = self.config.track.wandb == "online"
        folder = RunPaths(self.run_dir).wandb
        folder.mkdir(parents=True, exist_ok=True)
        run_id = wandb_files.id_of_start(folder, self.config.model_dump(mode="json"), self.start_step)
        typed = shlex.quote(str(folder))
        # Silent also means: no question for a key on a terminal.
        settings = wandb.setup(_settings(silent=True, quiet=True, login_timeout=self.init_timeout)).settings
        if online:
            try:
                _probe(settings, self.probe_timeout)
                self._run = self._init(run_id, "online")
            except (Exception, SystemExit) as error:
                self.tear_down()  # else the id counts as in use
                online = False
                command = f"wandb sync {typed}/offline-run-*"
                self.warn(f"W&B is offline ({reason(error)}); send the run later with: {command}")
        if online:
            self._arrived = wandb_files.last_steps(dict(self._run.summary))
            wandb_files.retire(folder, run_id)
        else:
            try:  # before init opens a file of its own
                self._arrived = wandb_files.arrived(folder, run_id)
            except Exception as error:  # another wandb, another format: rather a gap at W&B than rows twice
                self.warn(f"W&B's files of earlier starts cannot be read ({reason(error)}); rows may be missing there")
                self._arrived = dict.fromkeys(wandb_files.KINDS, max((int(r["step"]) for r in self.rows), default=0))
            self._run = self._init(run_id, "offline")
        # Steps of our own on every x axis: wandb's count changes meaning after a resume.
        self._run.define_metric("train/step")
        self._run.define_metric("eval/step", hidden=True)
        self._run.define_metric("*", step_metric="train/step")
        self._tell_job()
        place = self._run.url if online else f"offline, look with: wandb leet {typed}"
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
        self._last = int(row["step"])
        if is_evaluation(row):
            self._evaluations[int(row["step"])] = row
        if int(row["step"]) > self._arrived[kind]:
            self._run.log({"train/step": row["step"], **{f"{kind}/{key}": value for key, value in row.items()}})

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        """Send an image, [H, W] or [H, W, 3]."""
        import wandb

        self._run.log({key: wandb.Image(pixels, caption=caption)})

    def send_alert(self, title: str, text: str) -> None:
        """Send an alert."""
        self._alert(title, text, "WARN")

    def send_encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Show the encoder as an artifact that refers to its file, with its training images as input; no file is sent.

        Offline, W&B keeps no inputs, so that the images are told by the artifact's metadata alone.
        """
        if self.config.track.artifact:
            try:
                self._send_encoder(file, {"source": self.config.data.source, **data})
            except Exception as error:  # anything of W&B's: the run itself may well arrive
                self.warn(f"W&B does not show the encoder as an artifact ({reason(error)})")

    def _send_encoder(self, file: Path, about: Mapping[str, Any]) -> None:
        import wandb

        if not self._run.offline:
            name = f"{about['source']}-{str(about['digest'])[:12]}"
            self._run.use_artifact(wandb.Artifact(name, type="dataset", metadata=dict(about)))
        encoder = wandb.Artifact(f"encoder-{self._run.id}", type="model", metadata={"data": dict(about)})
        encoder.add_reference(file.resolve().as_uri(), name=file.name)
        self._run.log_artifact(encoder)

    def end(self, exit_code: int, preempted: bool) -> None:
        """Send the rest and an alert, and end the run."""
        name, last = self.config.run.name, f"step {self._last}" if self._last else "its first step"
        if preempted:
            self._alert(f"{name}: stopped", f"told to stop at {last}; the run goes on from there", "INFO")
            self._run.mark_preempting()
        elif exit_code:
            self._alert(f"{name}: failed", f"exit status {exit_code} at {last}", "ERROR")
        else:
            self._show_evaluations()
            self._alert(f"{name}: done", f"done at {last}{self._accuracies()}", "INFO")
        self._run.finish(exit_code=exit_code)
        self.tear_down()

    def tear_down(self) -> None:
        """End W&B in this process, unless the caller uses it."""
        if not self._is_guest:
            teardown()

    def kill(self) -> None:
        """Kill W&B's process, unless the caller uses it: W&B's exit handler would wait for that process for ever."""
        for process in () if self._is_guest else core_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _tell_job(self) -> None:
        if of_job := job_of(os.environ):
            self._run.config.update({"job": of_job}, allow_val_change=True)

    def _alert(self, title: str, text: str, level: str) -> None:
        self._run.alert(title[:_MOST_TITLE], text, level=level)

    def _show_evaluations(self) -> None:
        """Show the evaluations during training as a table."""
        if self._evaluations:
            import wandb

            columns: list[str | int] = list(dict.fromkeys(name for row in self._evaluations.values() for name in row))
            rows = [[row.get(str(name)) for name in columns] for _, row in sorted(self._evaluations.items())]
            self._run.log({"evaluations": wandb.Table(columns=columns, data=rows)})

    def _accuracies(self) -> str:
        """Word the figures of the last evaluation."""
        last = self._evaluations[max(self._evaluations)] if self._evaluations else {}
        return "".join(f", {name} {value:.4g}" for name, value in last.items() if name not in ("step", "epoch"))

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
            **({"reinit": "create_new"} if self._is_guest else {}),
        )
        return wandb.init(
            project=self.config.track.project,
            group=self.config.track.group,
            job_type="pretrain",
            tags=list(self.config.track.tags),
            notes=self.config.track.notes,
            name=self.config.run.name,
            id=run_id,
            resume="allow",
            dir=str(self.run_dir),
            mode=mode,
            config=self.config.model_dump(mode="json"),
            settings=settings,
        )


def job_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the environment tells of the job that this start belongs to, by names that W&B's config shows."""
    return {name: environment[variable] for name, variable in _JOB.items() if environment.get(variable)}


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


def _settings(**values: Any) -> Any:
    """Make settings of those values that this version of wandb knows: they come and go."""
    import wandb

    return wandb.Settings(**{k: v for k, v in values.items() if k in wandb.Settings.model_fields})


def _probe(settings: Any, timeout: float) -> None:
    """Connect to W&B's host, or to the proxy on the way there: wandb takes minutes to find that it cannot.

    Raises OSError where it cannot be reached.
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
