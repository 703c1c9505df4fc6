"""The one visible loop of the trainer."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist import config as configs
from moco_dist import files
from moco_dist.config import Config, Layout
from moco_dist.data import sources, stream
from moco_dist.data.augment import Augment, Recipe
from moco_dist.data.loader import make_loader
from moco_dist.data.store import PixelStatistics
from moco_dist.engine import schedule
from moco_dist.engine.checkpoint import Checkpoints
from moco_dist.engine.learner import Learner, build_moco
from moco_dist.errors import UserError
from moco_dist.evaluate import online
from moco_dist.methods import shuffle
from moco_dist.networks import weights
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.ranks import devices, watchdog
from moco_dist.ranks.collectives import World
from moco_dist.run import status
from moco_dist.run.directory import RunDir
from moco_dist.tracking import Tracker
from moco_dist.train.advice import advice
from moco_dist.train.ends import Diverged, Ended, Stopped, StopRequest
from moco_dist.train.readout import Readout


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
        self.epoch_steps = stream.steps_per_epoch(len(data.train), config.optim.global_batch)
        self.total = schedule.total_steps(config.optim, self.epoch_steps)
        self.learner = Learner(build_moco(config, world, plan, encoder), config, plan)
        self.augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
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
                self.world.tell(f"moco_dist.train: {self.run_dir.path} is done: nothing left to do")
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
        views = stream.pretraining(self.data.train, config, self.world)
        loader = make_loader(views, range(start, self.total), config.data.workers, self.world.device)
        images = stream.on_device(loader, self.augmentation, self.world.device, self.learner.image_dtype)
        self.saved_at = self.recorded_at = time.monotonic()
        for step, (one, two, unreadable) in enumerate(images, start):
            watchdog.beat()
            if step == 0:
                with devices.may_wait(self.world.device):
                    tracker.pairs(pairs_picture(one, two, self.data.train.pixel_statistics))
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
        files.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
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


def pairs_picture(one: Tensor, two: Tensor, statistics: PixelStatistics, count: int = 8) -> NDArray[np.uint8]:
    """The first images' two views, one above the other: [2 S, count S, C]."""
    views = torch.stack([one[:count], two[:count]]).double().cpu()  # [2, n, C, S, S]
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in statistics)
    pixels = (views * std + mean).clamp(0, 1).permute(0, 3, 1, 4, 2)  # [2, S, n, S, C]
    rows, side, columns, _, channels = pixels.shape
    return (255 * pixels).round().reshape(rows * side, columns * side, channels).numpy().astype(np.uint8)


def first_encoder(config: Config, data: sources.Data) -> Encoder:
    """The query encoder as the run begins. Raises UserError."""
    encoder = build_encoder(config.model, data.train.channels, config.run.seed)
    if config.run.init_from:
        weights.load_backbone_(encoder, Path(config.run.init_from))
    return encoder
