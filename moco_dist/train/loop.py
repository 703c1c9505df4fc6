"""The one visible loop of the trainer."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from moco_dist import config as configs
from moco_dist import health
from moco_dist.data import augment, loader, sources, stream
from moco_dist.data import workers as of_workers
from moco_dist.data.identity import check_begun
from moco_dist.encoders.description import Description
from moco_dist.engine import build, checkpoint, schedule
from moco_dist.engine.engine import Details
from moco_dist.errors import UserError
from moco_dist.evaluate import online
from moco_dist.files import write_text
from moco_dist.methods.method import Method
from moco_dist.networks import resnet, weights
from moco_dist.ranks import collectives, devices, watchdog
from moco_dist.run import directory, rows, status
from moco_dist.tracking import Tracker
from moco_dist.train import books, ends, meters, page, readout, start_note

T = TypeVar("T")

MakeMethod = Callable[[configs.Config, collectives.World, torch.nn.Module], Method]
"""Makes a method on the CPU from the config, the ranks and an encoder whose weights are already right."""


class Training:
    """One start of a run: from the last checkpoint, or from nothing, to its end or to a request to stop."""

    def __init__(
        self,
        config: configs.Config,
        world: collectives.World,
        plan: configs.Layout,
        data: sources.Data,
        encoder: resnet.Encoder,
        make_method: MakeMethod,
        run_dir: directory.RunDirectory,
        stop: ends.StopRequest,
    ) -> None:
        self.config, self.world, self.plan, self.data = config, world, plan, data
        self.encoder, self.run_dir, self.stop = encoder, run_dir, stop
        self.epoch_steps = stream.steps_per_epoch(len(data.train), config.optim.global_batch)
        self.total = schedule.total_steps(config.optim, self.epoch_steps)
        self.due = ends.Due(config, self.epoch_steps, self.total, evaluates=data.queries is not None)
        self.engine = build.build(make_method(config, world, encoder), config, plan, world)
        self.augmentation = augment.Augment(augment.Recipe.of(config.data), *data.train.pixel_statistics)
        self.checkpoints = checkpoint.Checkpoints(
            run_dir.paths.checkpoints, config.checkpoint.keep, milestone=self.due.milestone, writes=world.rank == 0
        )
        self.readout = readout.Readout(world.device)
        self.meters = meters.Meters(world)
        self.open_tracker: Callable[..., Tracker] = Tracker.open
        """Opens what takes the figures; `moco_dist.verify` compares them instead of writing them."""
        self.replay_to: int | None = None
        """A replay ends after this step, and leaves no results; None: the run goes on to its end."""
        self.done = 0
        """Steps done."""

    def run(self) -> None:
        """Train to the end. Raises Ended, UserError."""
        start = self.world.from_first(self._last_checkpoint)
        unreadable = {"epoch": 0, "images": 0}
        state = self.checkpoints.load(start) if start else {}
        self.config = configs.with_decoder(self.config, state.get("config"))
        if start:
            configs.check_resumable(state["config"], state["group_size"], self.config, self.plan)
            earlier = self.world.from_first(lambda: status.read(self.run_dir.folder))
            check_begun(state.get("data"), earlier.epoch_steps, self.data.identity, self.epoch_steps, self.config)
            if start >= self.total and earlier.state == "done":
                self.world.tell(f"moco_dist.train: {self.run_dir.folder} is done: nothing left to do")
                return
            ends.check_length(self.config, start, self.total)
            self.engine.restore_(state)
            self.due.keep_earlier(self.checkpoints.index.steps(), state["config"]["checkpoint"])
            self.done, unreadable = start, state["unreadable"]
        self.run_dir.record(self.config)
        start_note.note_start(self.run_dir, self.config, self.world, self.data, start, self.total)
        self.run_dir.status("running", start, total_steps=self.total, epoch_steps=self.epoch_steps)
        groups = self.config.optim.global_batch // self.plan.group_size
        self.facts = health.Facts(self.config, len(self.data.train), cores=devices.cores(), bn_groups=groups)
        self.tracker = self.world.agreed(
            lambda: self.open_tracker(self.config, self.run_dir.folder, self.world.rank, start, self.total, self.facts)
        )
        self.books = books.Books(
            self.config, self.world, self.data, self.tracker, self.checkpoints, self.meters, self.epoch_steps
        )
        self.books.unreadable = unreadable
        self._take_steps(start)

    def _take_steps(self, start: int) -> None:
        """Train from a step to the end, conclude, and close the sinks of the figures however it ends."""
        code = 1
        try:
            with self._stopping_alone():
                self._loop(start)
            if self.replay_to is None:
                self.world.from_first(self._conclude)
            code = 0
        except ends.Ended as end:  # told before the sinks are closed, which may take longer than a cluster waits
            code = status.EXIT_CODES[end.state]
            self.run_dir.status(end.state, end.step, str(end))
            if end.state == "diverged" and self.world.rank == 0:
                page.leave(self.run_dir.folder, self.tracker.warn)
            raise
        finally:
            self.tracker.finish(code, preempted=code == status.EXIT_CODES["stopped"])

    def _loop(self, start: int) -> None:
        config, tracker = self.config, self.tracker
        self._announce(start)
        if self.due.evaluation(start) and not self.world.from_first(lambda: tracker.evaluated(start)):
            self._evaluate(start)  # the last start ended between this step's checkpoint and its evaluation
        own_places = self.engine.method.own_places
        pairs = stream.pretraining(self.data.train, config, self.world, own_places)
        workers = self.facts.workers = self._workers(pairs, start)
        steps = range(start, self.replay_to or self.total)
        batches = loader.make_loader(pairs, steps, workers, self.world.device)
        on_device = stream.on_device(
            batches, self.data.train, self.augmentation, self.world.device, self.engine.image_dtype
        )
        self.due.saved_at = self.books.recorded_at = time.monotonic()
        for step, (views, unreadable) in enumerate(self._own(on_device), start):
            watchdog.beat()
            if step == 0:
                with devices.may_wait(self.world.device):
                    tracker.pairs(readout.pairs_picture(views, self.data.train.pixel_statistics))
            lr = schedule.learning_rate(config.optim, step, self.epoch_steps)
            waited = batches.take_waited_seconds()
            wishes = {
                books.STOP: self.stop.raised() or tracker.stop_requested,
                books.SAVE: self.due.save_by_the_clock(),
                books.UNREADABLE: len(unreadable),
                books.WAITED: waited,
            }
            self.meters.begin_step(waited)
            figures = self.engine.step(views, step, lr, wishes, self._details(step + 1))
            self.readout.push(step + 1, figures, unreadable)
            self.done = step + 1
            self._after(self.done)
        self.checkpoints.wait()

    def _details(self, done: int) -> Details | None:
        """Return what to tell of the step that makes so many, if its row is written."""
        if not self.due.row(done):
            return None
        return Details(self.meters.take(), compare_ranks=self.world.size > 1 and self.due.comparison(done))

    def _workers(self, pairs: stream.BatchStream, start: int) -> int:
        """Return the number of data workers; where the config leaves it open, choose it and say so."""
        workers = self.config.data.workers
        if workers != "auto":
            return workers
        choice = of_workers.choose(pairs, start, self.plan.batch_per_rank)
        self.tracker.say(f"data.workers = auto: {choice.reason}")
        return choice.workers

    def _own(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield this rank's batches, of which the others do not know what is wrong."""
        with self.world.own_mistakes():
            yield from batches

    def _after(self, done: int) -> None:
        """Write what is due to be read; then save, evaluate, stop where that is due."""
        self.run_dir.check()
        evaluate, save = self.due.evaluation(done), self.due.save(done)
        stop = False
        for reading in self.readout.pop(everything=evaluate or save):
            wants_stop, wants_save = self.books.record(reading)
            stop, save = stop or wants_stop, save or wants_save
        if stop or save:  # no checkpoint without the rows of its steps
            for reading in self.readout.pop(everything=True):
                self.books.record(reading)
        if evaluate or save or stop:
            self.meters.pause()
        if save or stop:
            self._save(done)
        if evaluate and not stop:  # behind the save: an evaluation of many images that is cut short costs no steps
            self._evaluate(done)
        if stop:
            self.checkpoints.wait()
            is_saved = self.world.from_first(lambda: done in self.checkpoints.index.steps())
            saved = "saved" if is_saved else "NOT saved, its checkpoint failed"
            reason = f"stopped on request after step {done}, {saved}"
            raise ends.Stopped(done, f"{reason}; {self.run_dir.goes_on_by} goes on from there")

    @contextmanager
    def _stopping_alone(self) -> Iterator[None]:
        """Turn the end of a wait for a batch into StoppedAlone; save first, where that needs no other rank."""
        begun_at, world = self.done, self.world
        try:
            yield
        except loader.Withheld as reason:
            if self.done > begun_at and (world.size == 1 or not devices.runs_ahead(world.device)):
                for reading in self.readout.pop(everything=True):
                    self.books.record(reading)
                self._save(self.done)
                self.checkpoints.wait()
            last = self.checkpoints.index.last()
            line = f"stopped on request, {reason}; the last checkpoint is of step {last}"
            raise ends.StoppedAlone(last, f"{line}, from which {self.run_dir.goes_on_by} goes on") from None

    def _save(self, done: int) -> None:
        self.due.saved_at = time.monotonic()
        self.run_dir.status("running", done)
        with devices.may_wait(self.world.device):
            state = checkpoint.of_run(done, self.config, self.data.identity, self.engine, self.books.unreadable)
            self.checkpoints.save(done, state, before=self._sync_rows)
        self.books.stalled_seconds += time.monotonic() - self.due.saved_at

    def _sync_rows(self) -> None:
        """Ahead of a checkpoint: a later start drops no row and writes none twice. Raises OSError."""
        if not self.tracker.sync():
            raise OSError("the rows of its steps could not be written")

    def _evaluate(self, done: int) -> None:
        is_last = self.due.is_last(done)
        data = online.part(self.data, None if is_last else self.config.eval.online_images)
        with devices.may_wait(self.world.device):
            figures, unreadable = online.accuracies(
                self.config,
                self.engine,
                self.encoder,
                data,
                self.augmentation,
                view_file=self.run_dir.paths.features_view if is_last and self.replay_to is None else None,
                step=done,
            )
        self.tracker.unreadable([str(image) for image in unreadable])
        self.tracker.log_evaluation(rows.evaluation_row(done, done // self.epoch_steps, figures))
        watchdog.beat()
        self.books.recorded_at = time.monotonic()

    def _last_checkpoint(self) -> int:
        """Step to go on from; 0 for a fresh run. Rank 0 alone. Raises UserError."""
        run = self.config.run
        if run.resume == "never" and self.checkpoints.index.steps():
            raise UserError.of("run.resume", run.resume, f"{self.run_dir.folder} holds a run", "use another run.name")
        return self.checkpoints.index.latest() or 0

    def _announce(self, start: int) -> None:
        plan, world, config = self.plan, self.world, self.config
        how = ", ".join([f"BatchNorm groups of {plan.group_size}", *self.engine.remarks])
        self.tracker.say(
            f"{config.run.name}: {len(self.data.train)} images, {self.total} steps of {config.optim.global_batch} "
            f"({self.epoch_steps} an epoch) on {world.size} {world.device.type} rank{'s' * (world.size > 1)} of "
            f"{plan.batch_per_rank}, {how}" + (f", from step {start}" * bool(start))
        )
        for line in self.data.notes:
            self.tracker.say(line)
        for line in advice(config, plan, self.data, world.device):
            self.tracker.warn(line)

    def _conclude(self) -> None:
        """Leave the encoder and the final figures, then say where they are. Rank 0 alone."""
        paths = self.run_dir.paths
        described = Description.of(self.config, self.total)
        weights.save_backbone(self.encoder, paths.encoder, described.metadata())
        self.tracker.encoder(paths.encoder, self.data.identity._asdict())
        summary = {"name": self.config.run.name, "ranks": self.world.size, **self.tracker.summary()}
        write_text(paths.summary, json.dumps(summary, indent=1) + "\n")
        self.run_dir.status("done", self.total)
        names = {"knn_top1": "kNN", "linear_top1": "linear probe"}
        accuracies = [f"{name} {100 * summary[key]:.2f} %" for key, name in names.items() if key in summary]
        if accuracies:
            self.tracker.say(f"accuracy on held-out images: {', '.join(accuracies)}")
        results = [paths.metrics.name, paths.summary.name, paths.encoder.name]
        if page.leave(paths.folder, self.tracker.warn):
            results.append(paths.report.name)
        self.tracker.say(f"results: {paths.folder} ({', '.join(results)})")
        if self.config.data.source == "digits":
            mnist = "configs/mnist.yaml data.root=data data.download=true"
            self.tracker.say(f"next, MNIST: torchrun --nproc_per_node=2 -m moco_dist.train {mnist}")


def advice(config: configs.Config, plan: configs.Layout, data: sources.Data, device: torch.device) -> Iterator[str]:
    """Yield a line for each setting that is allowed but seldom meant."""
    if plan.parts < config.optim.accumulate:
        rule = f"a rank has too few BatchNorm groups for so many parts, it computes in {plan.parts}"
        yield f"optim.accumulate = {config.optim.accumulate}: {rule}; raise moco.bn_groups to save memory"
    if config.device.type == "auto" and device.type == "cpu" and (available := devices.count()):
        rule = f"more ranks than the {available} CUDA devices here, so the CPU is used"
        yield f"device.type = auto: {rule}; start as many ranks as there are devices"
    optim, default = config.optim, configs.Config().optim
    if optim.schedule != "step" and (optim.milestones, optim.decay) != (default.milestones, default.decay):
        rule = f"optim.schedule={optim.schedule} has no drops, so that they do not count"
        yield f"optim.milestones and optim.decay: {rule}; for drops at milestones, set optim.schedule=step"
    yield from data.remarks
    if config.eval.knn_every and data.train.labels is None:
        yield "data.root: no class folders, so no kNN"
    elif config.eval.knn_every and data.queries is None:
        yield "data.root: no val/ with classes, so no kNN; eval.knn_split=validation evaluates on a part of the images"
