"""Measure a run before it waits in the queue: twenty real steps of it, in a short job on each of some numbers of nodes.

python -m launcher.measure CONFIG.yaml

prints the CPU seconds that a core takes for the views of an image; a process of its own, since it needs torch.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from launcher import elastic, sending, slurm, slurm_jobs
from launcher.checks import dataset
from launcher.checks.estimate import GIB, torch_process
from launcher.cluster import Notify
from launcher.record import Launch, Submission
from launcher.views import runs
from launcher.views.ends import Ends
from moco_dist import config as configs
from moco_dist import files
from moco_dist.config import Config
from moco_dist.run import checkpoints
from moco_dist.run.rows import is_training, read_rows

NODES = (1, 2, 4)
"""Numbers of nodes that are measured, where batch and groups divide by their ranks."""
STEPS, _WARM_UP_STEPS = 20, 5
_JOB_MINUTES = 10
_LOOK_SECONDS = 2.0
_IMAGES_OF_DATA = 64


@dataclass(frozen=True)
class Measured:
    """These figures were measured on one number of nodes; None is what could not be."""

    nodes: int
    gpus: int
    """Number of GPUs on all of the nodes."""
    images_per_second: float | None = None
    hours: float | None = None
    """Time that the whole run takes at this speed."""
    data_wait: float | None = None
    """Share of the time that was waited for data."""
    checkpoint_gib: float | None = None
    cores_for_data: int | None = None
    """Cores of a node that keep up with this speed."""
    start: str = ""
    """When SLURM expects a job of this size to start, as it says; empty where it does not tell."""
    trouble: str = ""
    """Why it was not measured."""

    @property
    def gpu_hours(self) -> float | None:
        """Return the GPU hours of the whole run."""
        return None if self.hours is None else self.hours * self.gpus


def measure(config: Config, submission: Submission, patience_minutes: float) -> list[Measured]:
    """Measure on each number of nodes. Returns what was measured, the cheapest first.

    Args:
        config: of the run, with whole paths.
        submission: what would be sent.
        patience_minutes: how long the short jobs may wait and run, all together.

    Raises:
        UserError: a job cannot be sent.
        Refused, Unavailable: SLURM takes no job, or does not answer.
    """
    scratch = config.run_dir.parent / f".measure-{config.run_dir.name}"
    starts, measured = dict[int, str](), list[Measured]()
    for nodes in _sizes(config, submission):
        sized = submission.model_copy(update={"nodes": nodes, "least_nodes": None})
        try:
            starts[nodes] = _expected_start(config, sized)
        except slurm.Refused as error:  # its short job would wait for nodes that there are not
            measured.append(Measured(nodes, sized.ranks, trouble=f"SLURM refuses such a job ({error})"))
    try:
        with _jobs(config, submission, scratch, [*starts]) as sent:
            _wait([launch for launch, _ in sent], patience_minutes)
            seconds = _data_seconds(config, scratch) if sent else None
            measured += [_read(config, *one, seconds, starts[one[1].nodes]) for one in sent]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(measured, key=lambda one: (one.gpu_hours is None, one.gpu_hours or 0.0, one.nodes))


def _sizes(config: Config, submission: Submission) -> list[int]:
    """Return the numbers of nodes to measure: those that the batch divides into, or else that of the submission."""
    if submission.executor == "local":
        return [1]
    widest = submission.model_copy(update={"least_nodes": 1, "nodes": max(NODES)})
    return [nodes for nodes in NODES if nodes in elastic.sizes(config, widest)] or [submission.nodes]


@contextlib.contextmanager
def _jobs(
    config: Config, submission: Submission, scratch: Path, sizes: Sequence[int]
) -> Iterator[list[tuple[Launch, Submission]]]:
    """Send a short job of each size; at the end cancel those that are left."""
    sent = list[tuple[Launch, Submission]]()
    try:
        for nodes in sizes:
            short = _short(config, scratch / f"{nodes}_nodes")
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            profile = submission.profile
            minutes = min(profile.time_minutes, _JOB_MINUTES)
            signal_seconds = min(profile.signal_seconds, 30 * minutes)
            limits = {"time_minutes": minutes, "signal_seconds": signal_seconds}
            profile = profile.model_copy(update={**limits, "notify": Notify()})
            changes = {"nodes": nodes, "least_nodes": None, "profile": profile, "name": "measure", "after": None}
            one = sending.send(short, submission.model_copy(update=changes))
            print(f"{nodes} node{'s' * (nodes > 1)}: job {one.job}, {STEPS} steps", file=sys.stderr, flush=True)
            sent.append((Launch(short.run_dir), one))
        yield sent
    finally:
        _cancel([launch for launch, _ in sent])


def _short(config: Config, run_dir: Path) -> Config:
    """Return the config of the twenty steps."""
    tree = config.model_dump(mode="json")
    tree["run"].update(dir=str(run_dir), name=config.run.name, resume="never")
    tree["optim"].update(steps=STEPS, warmup_epochs=0)
    tree["track"].update(wandb="disabled", log_every=1)
    tree["eval"].update(knn_every=0)
    return configs.parse(tree)


def _wait(launches: Sequence[Launch], minutes: float) -> None:
    """Wait until all have ended, or the time is up, or Ctrl-C."""
    deadline, ends = time.monotonic() + 60 * minutes, Ends()
    try:
        while time.monotonic() < deadline:
            are_over = [ends.is_sure(run) for run in runs.look(launches)]
            if all(are_over):
                return
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        print("interrupted; this is what was measured so far", file=sys.stderr)


def _cancel(launches: Sequence[Launch]) -> None:
    """End the jobs that have not ended."""
    for run in runs.look(launches):
        if run.live and run.job:
            with contextlib.suppress(slurm.Refused, slurm.Unavailable):
                slurm_jobs.cancel(run.job.id)


def _read(config: Config, launch: Launch, submission: Submission, data_seconds: float | None, start: str) -> Measured:
    """Read what the twenty steps have shown."""
    rows = _training_rows(launch)[_WARM_UP_STEPS:]
    if not rows:
        [run] = runs.look([launch])
        why = f": {run.reason}" if run.reason else ""
        return Measured(submission.nodes, submission.ranks, start=start, trouble=f"its job is {run.state}{why}")
    speed = median(row["images_per_second"] for row in rows)
    images = _images(config)
    index = checkpoints.CheckpointIndex(launch.paths.checkpoints)
    gib = index.path(index.last()).stat().st_size / GIB if index.last() else None
    waits = [row["data_wait"] for row in rows if "data_wait" in row]
    cores = None if data_seconds is None else math.ceil(data_seconds * speed / submission.nodes)
    return Measured(
        submission.nodes,
        submission.ranks,
        speed,
        images / speed / 3600 if images else None,
        median(waits) if waits else None,
        gib,
        cores,
        start,
    )


def _training_rows(launch: Launch) -> list[dict[str, float]]:
    try:
        rows = list(read_rows(launch.paths.metrics))
    except OSError:
        return []
    return [row for row in rows if is_training(row) and "images_per_second" in row]


def _images(config: Config) -> int | None:
    """Count the images that the run will see; None where nobody knows."""
    if config.optim.steps:
        return config.optim.steps * config.optim.global_batch
    images = dataset.count(config, staged=False)
    if images is None:
        return None
    return config.optim.epochs * (images.count // config.optim.global_batch) * config.optim.global_batch


def _expected_start(config: Config, submission: Submission) -> str:
    """Ask SLURM when the run itself would start; empty where it does not tell. Raises slurm.Refused."""
    from launcher.executors import Sbatch

    if submission.executor == "local":
        return ""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(Sbatch(Launch(config.run_dir), submission).text())
        script.flush()
        with contextlib.suppress(slurm.Unavailable):
            return slurm.expected_start(Path(script.name))
    return ""


def _data_seconds(config: Config, scratch: Path) -> float | None:
    """Measure on this machine the CPU seconds of the views of an image; None where that cannot be done."""
    file = scratch / "data.yaml"
    files.write_text(file, configs.dump(config))
    try:
        return float(torch_process("launcher.measure", str(file)).splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def view_seconds(config: Config) -> float:
    """Measure the CPU seconds that a core takes to read, decode and crop the views of an image."""
    import torch

    from moco_dist.data import sources, stream
    from moco_dist.ranks.collectives import World

    torch.set_num_threads(1)
    config = configs.with_decoder(config, None)
    source = sources.load(config).train
    batch = min(_IMAGES_OF_DATA, len(source))
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"global_batch": batch})})
    batches = stream.pretraining(source, config, World(0, 1, 0, torch.device("cpu")))
    batches[0]  # what is set up once does not count
    began = time.process_time()
    batches[1]
    return (time.process_time() - began) / batch


if __name__ == "__main__":
    print(view_seconds(configs.load(Path(sys.argv[1]))))
