"""The trainer: one visible loop, and its command line.

torchrun --nproc_per_node=4 -m moco_dist.train [CONFIG.yaml] [section.key=value ...]
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler, record

from moco_dist import config as configs
from moco_dist import devices, schedule, shuffle, status, tracking, watchdog, weights
from moco_dist.checkpoint import Checkpoints
from moco_dist.collectives import World
from moco_dist.config import Config, Layout, UserError
from moco_dist.data import augment, batches, sources
from moco_dist.encoders import Encoder, build_encoder
from moco_dist.evaluate import online
from moco_dist.learner import Learner, build_moco
from moco_dist.rundir import RunDir
from moco_dist.tracking import Tracker


class Ended(Exception):
    """An end that all ranks come to at once, other than the last step."""

    state: status.State

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class Stopped(Ended):
    """Asked to stop, with the state saved."""

    state = "stopped"


class Diverged(Ended):
    """The loss is no number any more."""

    state = "diverged"


class StopRequest:
    """A signal's flag, and the clock of `run.max_minutes`. No handler does more than set the flag.

    The handlers stay until the process ends: torchrun ends all ranks when one is done, and a rank that still saves
    must not be torn down.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._signalled = False
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def raised(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._signalled or time.monotonic() > self._deadline


class Readout:
    """Figures of past steps on the host. On a GPU they are read one step later, so that it never runs out of work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[tuple[int, Tensor, list[str], torch.Event | None]] = []

    def push(self, step: int, figures: Tensor, unreadable: list[str]) -> None:
        ready = devices.of(self._device).Event() if devices.runs_ahead(self._device) else None
        self._waiting.append((step, figures.to("cpu", non_blocking=True), unreadable, ready))
        if ready:
            ready.record()

    def pop(self, *, everything: bool) -> Iterator[tuple[int, list[float], list[str]]]:
        """Step, figures and names of replaced images: of what is due to be read, or of everything."""
        while len(self._waiting) > (1 if devices.runs_ahead(self._device) and not everything else 0):
            step, figures, unreadable, ready = self._waiting.pop(0)
            if ready:
                ready.synchronize()
            yield step, figures.tolist(), unreadable


class Training:
    """One start of a run: from the last checkpoint, or from nothing, to its end or to a request to stop."""

    def __init__(
        self,
        config: Config,
        world: World,
        plan: Layout,
        data: sources.Data,
        encoder: Encoder,
        run_dir: RunDir,
        stop: StopRequest,
    ) -> None:
        self.config, self.world, self.plan, self.data = config, world, plan, data
        self.encoder, self.run_dir, self.stop = encoder, run_dir, stop
        self.epoch_steps = batches.steps_per_epoch(len(data.train), config.optim.global_batch)
        self.total = schedule.total_steps(config.optim, self.epoch_steps)
        self.learner = Learner(build_moco(config, world, plan, encoder), config, plan)
        self.augmentation = augment.Augment(augment.Recipe.of(config.data), *data.train.statistics)
        milestone = (config.checkpoint.milestone_epochs or 0) * self.epoch_steps
        self.checkpoints = Checkpoints(
            run_dir.path / "checkpoints",
            config.checkpoint.keep,
            milestone=lambda step: bool(milestone) and step % milestone == 0,
            writes=world.rank == 0,
        )
        self.readout = Readout(world.device)
        self.unreadable = {"epoch": 0, "images": 0}

    def run(self) -> None:
        """Train to the end. Raises Ended, UserError."""
        start = self.world.from_first(self._last_checkpoint)
        if start:
            state = self.checkpoints.load(start)
            configs.check_resumable(state["config"], state["group_size"], self.config, self.plan)
            if start >= self.total and self.world.from_first(lambda: status.read(self.run_dir.path)[0]) == "done":
                tell(self.world, f"{self.run_dir.path} is done: nothing left to do")
                return
            self.learner.restore(state)
            self.unreadable = state["unreadable"]
        self.run_dir.record(self.config)
        self.run_dir.status("running", start)
        tracker = self.tracker = Tracker.open(self.config, self.run_dir.path, self.world.rank, start, self.total)
        code = 1
        try:
            self._loop(start)
            self.world.from_first(self._conclude)
            code = 0
        except Ended as end:  # told before the sinks are closed, which may take longer than a cluster waits
            code = status.EXIT_CODES[end.state]
            self.run_dir.status(end.state, end.step, str(end))
            raise
        finally:
            tracker.finish(code, preempted=code == status.EXIT_CODES["stopped"])

    def _loop(self, start: int) -> None:
        config, tracker = self.config, self.tracker
        seed, batch = config.run.seed, config.optim.global_batch
        directions = range(2 if config.moco.symmetric else 1)
        self._announce(start)
        if self._knn_due(start) and not self.world.from_first(lambda: tracker.evaluated(start)):
            self._evaluate(start)  # the last start ended between this step's checkpoint and its evaluation
        loader = batches.loader(
            batches.Steps(self.data.train, config, self.world),
            start,
            self.total,
            pin=devices.runs_ahead(self.world.device),
        )
        images = batches.on_device(loader, self.augmentation, self.world.device, self.learner.image_dtype)
        self.saved_at = self.recorded_at = time.monotonic()
        for step, (one, two, unreadable) in enumerate(images, start):
            watchdog.beat()
            if step == 0:
                with devices.may_wait(self.world.device):
                    tracker.pairs(pairs_picture(one, two, self.data.train.statistics))
            orders = [shuffle.permutation(seed, step, d, batch) for d in directions]
            lr = schedule.learning_rate(config.optim, step, self.epoch_steps)
            wishes = (self.stop.raised() or tracker.stop_requested, self._save_overdue(), len(unreadable))
            figures = self.learner.step((one, two), orders, lr, sums=wishes)
            self.readout.push(step + 1, figures, unreadable)
            self._after(step + 1)
        self.checkpoints.wait()

    def _after(self, done: int) -> None:
        """What follows a step: its row; a stop, an evaluation, a checkpoint where due."""
        evaluate, save = self._knn_due(done), self._save_due(done)
        stop = False
        for step, figures, unreadable in self.readout.pop(everything=evaluate or save):
            wants_stop, wants_save = self._record(step, figures, unreadable)
            stop, save = stop or wants_stop, save or wants_save
        if stop or save:  # no checkpoint without the rows of its steps
            for step, figures, unreadable in self.readout.pop(everything=True):
                self._record(step, figures, unreadable)
        if evaluate and not stop:
            self._evaluate(done)
        if save or stop:
            self._save(done)
        if stop:
            self.checkpoints.wait()
            saved = "saved" if done in self.checkpoints.steps() else "NOT saved, its checkpoint failed"
            raise Stopped(done, f"stopped on request after step {done}, {saved}; the same command goes on from there")

    def _record(self, step: int, figures: list[float], unreadable: list[str]) -> tuple[bool, bool]:
        """Write a step's row. Returns whether a rank was asked to stop, and to save; the same on all ranks."""
        loss, top1, top5, stop, save, replaced = figures
        if not math.isfinite(loss):
            self.checkpoints.wait()
            kept = f"step {max(self.checkpoints.steps())}" if self.checkpoints.steps() else "none"
            raise Diverged(
                step,
                f"the loss is {loss} at step {step}; last checkpoint: {kept}; "
                "lower optim.lr or lengthen optim.warmup_epochs, with another run.name",
            )
        now = time.monotonic()
        row: dict[str, float | int] = {
            "step": step,
            "epoch": (step - 1) // self.epoch_steps,
            "loss": loss,
            "lr": schedule.learning_rate(self.config.optim, step - 1, self.epoch_steps),
            "top1": top1,
            "top5": top5,
            "images_per_second": round(self.config.optim.global_batch / (now - self.recorded_at), 2),
        }
        self.recorded_at = now
        if replaced:
            row["unreadable"] = int(replaced)
            self._count_unreadable((step - 1) // self.epoch_steps, int(replaced), unreadable)
        if self.checkpoints.failures:
            row["checkpoint_failures"] = self.checkpoints.failures
        self.tracker.log_step(row)
        return stop > 0, save > 0

    def _count_unreadable(self, epoch: int, images: int, names: list[str]) -> None:
        """Name replaced images; more than 1 % of an epoch's are a mistake in the data. Raises UserError."""
        before = self.unreadable["images"] if self.unreadable["epoch"] == epoch else 0
        self.unreadable = {"epoch": epoch, "images": before + images}
        everyone = sorted({name for names in self.world.gather_objects(names) for name in names})
        self.tracker.unreadable(everyone)
        sources.check_unreadable(before + images, everyone, self.data.train, self.config.data)

    def _knn_due(self, done: int) -> bool:
        every = self.config.eval.knn_every * self.epoch_steps
        return self.data.queries is not None and done > 0 and (done % every == 0 or done == self.total)

    def _save_due(self, done: int) -> bool:
        every = self.config.checkpoint.every_steps
        return done == self.total or self.checkpoints.milestone(done) or bool(every and done % every == 0)

    def _save_overdue(self) -> bool:
        """By the clock; a wish that the ranks share, since their clocks differ."""
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _save(self, done: int) -> None:
        self.saved_at = time.monotonic()
        self.run_dir.status("running", done)
        begun = self.config.model_dump(mode="json")
        with devices.may_wait(self.world.device):
            state = {"step": done, "config": begun, "unreadable": self.unreadable, **self.learner.state()}
            self.checkpoints.save(done, state, before=self._sync_books)

    def _sync_books(self) -> None:
        """Ahead of a checkpoint: a later start drops no row and writes none twice. Raises OSError."""
        if not self.tracker.sync():
            raise OSError("the rows of its steps could not be written")

    def _evaluate(self, done: int) -> None:
        images = None if done == self.total else self.config.eval.online_images
        data = online.part(self.data, images)
        with devices.may_wait(self.world.device):
            figures = online.accuracies(self.config, self.learner, self.encoder, data, self.augmentation)
        self.tracker.log_evaluation({"step": done, "epoch": done // self.epoch_steps, **figures})
        watchdog.beat()
        self.recorded_at = time.monotonic()

    def _last_checkpoint(self) -> int:
        """Step to go on from; 0 for a fresh run. Rank 0 alone. Raises UserError."""
        run = self.config.run
        if run.resume == "never" and self.checkpoints.steps():
            raise UserError.of("run.resume", run.resume, f"{self.run_dir.path} holds a run", "use another run.name")
        return self.checkpoints.latest() or 0

    def _announce(self, start: int) -> None:
        plan, world, config = self.plan, self.world, self.config
        self.tracker.say(
            f"{config.run.name}: {len(self.data.train)} images, {self.total} steps of {config.optim.global_batch} "
            f"({self.epoch_steps} an epoch) on {world.size} {world.device.type} rank{'s' * (world.size > 1)} of "
            f"{plan.batch_per_rank}, BatchNorm groups of {plan.group_size}" + (f", from step {start}" * bool(start))
        )
        for line in advice(config, plan, self.data, world.device):
            self.tracker.warn(line)

    def _conclude(self) -> None:
        """Leave the encoder and the final figures, then say where they are. Rank 0 alone."""
        folder = self.run_dir.path
        weights.save_backbone(self.encoder, folder / "encoder.safetensors")
        summary = {"name": self.config.run.name, "ranks": self.world.size, **self.tracker.summary()}
        status.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        self.run_dir.status("done", self.total)
        names = {"knn_top1": "kNN", "linear_top1": "linear probe"}
        told = [f"{name} {100 * summary[key]:.2f} %" for key, name in names.items() if key in summary]
        if told:
            self.tracker.say(f"accuracy on held-out images: {', '.join(told)}")
        self.tracker.say(f"results: {folder} (metrics.jsonl, summary.json, encoder.safetensors)")
        if self.config.data.source == "digits":
            command = (
                "torchrun --nproc_per_node=2 -m moco_dist.train configs/mnist.yaml data.root=data data.download=true"
            )
            self.tracker.say(f"next, MNIST: {command}")


def pairs_picture(one: Tensor, two: Tensor, statistics: sources.Statistics, count: int = 8) -> NDArray[np.uint8]:
    """The first images' two views, one above the other: [2 S, count S, C]."""
    views = torch.stack([one[:count], two[:count]]).double().cpu()  # [2, n, C, S, S]
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in statistics)
    pixels = (views * std + mean).clamp(0, 1).permute(0, 3, 1, 4, 2)  # [2, S, n, S, C]
    rows, side, columns, _, channels = pixels.shape
    return (255 * pixels).round().reshape(rows * side, columns * side, channels).numpy().astype(np.uint8)


def advice(config: Config, plan: Layout, data: sources.Data, device: torch.device) -> Iterator[str]:
    """Lines on what is allowed but seldom meant."""
    queue, images = config.moco.queue_size, len(data.train)
    if queue > images:
        yield (
            f"moco.queue_size = {queue}: more than the {images} training images, so that the queue holds other views "
            f"of a query's own image as negatives; a queue of at most {images} does not"
        )
    if plan.parts < config.optim.accumulate:
        yield (
            f"optim.accumulate = {config.optim.accumulate}: a rank has too few BatchNorm groups for so many parts, it "
            f"computes in {plan.parts}; raise moco.bn_groups to save memory"
        )
    if config.device.type == "auto" and device.type == "cpu" and (there := devices.count()):
        yield (
            f"device.type = auto: more ranks than the {there} CUDA devices here, so the CPU "
            "is used; start as many ranks as there are devices"
        )
    if data.train.labels is not None and data.queries is None and config.eval.knn_every:
        yield "data.root: no val/ with classes, so no kNN; eval.knn_split=validation evaluates on a part of train/"


def first_encoder(config: Config, data: sources.Data) -> Encoder:
    """The query encoder as the run begins. Raises UserError."""
    encoder = build_encoder(config.model, data.train.channels, config.run.seed)
    if config.run.init_from:
        weights.load_backbone_(encoder, Path(config.run.init_from))
    return encoder


def ended_already(run_dir: Path | None) -> int:
    """Exit status of a run that torchrun starts again by itself though that would not help, else 0.

    The note is this torchrun's own, and there before the run directory is known; status.json may tell of an earlier
    one, and is asked where there is no place for notes.
    """
    if note := _note():
        return int(note.read_text()) if note.exists() else 0
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    state = status.read(run_dir)[0] if run_dir else None
    return status.EXIT_CODES[state] if again and state in ("stopped", "user_error", "diverged") else 0


def end_for_good(world: World, code: int) -> int:
    """Leave a note for `ended_already`, once told: whoever reads it ends without a word. Returns the exit status."""
    if world.local_rank == 0 and (note := _note()):
        with contextlib.suppress(OSError):
            status.write_text(note, str(code))
    return code


def _note() -> Path | None:
    """A file in the folder that torchrun makes for itself on this node, and keeps over its restarts."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_<n>/<local rank>/error.json
    return Path(error_file).parents[2] / "moco_dist_exit_status" if error_file else None


@batches.no_workers_left()
def run(arguments: Sequence[str], *, supervised: bool = False) -> int:
    """Train as the arguments say.

    Args:
        arguments: of the command line.
        supervised: whether someone who reads status.json decides on restarts; else, under torchrun alone, a start
            after one that ended for good ends at once.

    Returns:
        The exit status; raises whatever else goes wrong.
    """
    world, run_dir = World.from_environment(), None
    try:
        if not supervised and (code := ended_already(None)):
            return code
        config = configs.load(*configs.parse_arguments(arguments))
        if not supervised and (code := ended_already(config.run_dir)):
            return code
        run_dir = RunDir(config.run_dir, writes=world.rank == 0)
        plan = configs.layout(config, world.size)
        world = World.from_environment(devices.pick(config, world.local_rank))
        tracking.check(config, world.rank)
        data = None if config.data.download else sources.load(config)
        encoder = None if data is None else first_encoder(config, data)
        watchdog.start(world.rank, config.run.hang_timeout_seconds, functools.partial(last_words, run_dir, world))
        with watchdog.waiting("their start"):
            world.join(config.run.hang_timeout_seconds + 60)  # the watchdog is first
        stop = StopRequest(config.run.max_minutes)  # not before: a start that is broken off must end at once
        data = data or world.first_then_others(lambda: sources.load(config))
        world.from_first(run_dir.open)
        run_dir.ours = True
        devices.prepare(config, world.device)
        Training(config, world, plan, data, encoder or first_encoder(config, data), run_dir, stop).run()
        world.barrier()  # rank 0 has closed its books: now torchrun may end the others
        return 0
    except UserError as error:
        if run_dir:
            run_dir.refused(str(error))
        tell(world, str(error))
        code = end_for_good(world, status.EXIT_CODES["user_error"])
        world.let_rank_0_end_first()
        return code
    except Ended as end:
        tell(world, str(end))
        code = end_for_good(world, status.EXIT_CODES[end.state])
        world.barrier()
        return code
    except BaseException as error:
        if run_dir:
            run_dir.crashed(world.rank, error)
        raise
    finally:
        if run_dir:
            run_dir.close()
        world.leave()


def tell(world: World, line: str) -> None:
    """Tell what all ranks know, once."""
    world.tell(f"moco_dist.train: {line}")


def last_words(run_dir: RunDir, world: World, hang: watchdog.Hang) -> None:
    """Leave the cause where scripts and torchrun look for it."""
    run_dir.crashed(world.rank, hang)
    try:
        raise hang
    except watchdog.Hang:  # the handler records what is being handled
        get_error_handler().record_exception(hang)


@record
def main() -> None:
    """Entry point of `python -m moco_dist.train`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        print(configs.usage())
        return
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
