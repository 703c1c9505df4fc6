"""Convert a checkpoint of the authors' code: from a valid request to a run directory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from moco_dist import config as configs
from moco_dist.convert import agreement
from moco_dist.convert.request import COMMAND, Request
from moco_dist.data import sources
from moco_dist.data.identity import Identity
from moco_dist.engine import build, checkpoint
from moco_dist.engine.engine import Engine
from moco_dist.errors import UserError, some_names
from moco_dist.files import folder_aside, read_bytes, write_text
from moco_dist.methods.moco import MoCo
from moco_dist.networks import resnet, weight_files
from moco_dist.ranks.collectives import World
from moco_dist.reference.read import Contents, Unfit, engine_state, read
from moco_dist.run import code
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.directory import RunDirectory


@dataclass(frozen=True)
class _Whole:
    """A run directory is made of these parts."""

    config: configs.Config
    engine: Engine
    """The engine has the state that the file holds."""
    identity: Identity
    """The number of the training images and of their classes, and a digest of names and labels."""
    progress: agreement.Progress


def run(request: Request) -> None:
    """Convert a checkpoint, and print what was taken, computed and left out; a mistake leaves nothing behind.

    Raises:
        UserError: the file is no such checkpoint, does not agree with the config, or the run cannot be written.
    """
    world = World(0, 1, 0, torch.device("cpu"))
    with _as_mistakes(request):
        contents = read(weight_files.read(request.checkpoint, "CHECKPOINT").tree)
        agreement.check_model(contents, request.config, request.config.data.channel_count)
        agreement.check_sgd(contents, request.config)
        agreement.check_cursor(contents, request.config)
        data = sources.load(request.config)
        now = agreement.progress(contents, request.config, request.epoch, len(data.train))
        config = configs.with_decoder(sources.with_statistics(request.config, data.train), None)
        engine = _engine(config, request.layout, data.train.channels, world)
        names = [name for name, _ in engine.method.trained.named_parameters()]
        state = engine_state(contents, engine.state(), names)
        engine.restore_(state)
    momentum = f"SGD's momentum of {len(state['optimizer']['state'])} of {len(names)} parameters"
    lines = list(_lines(request, contents, now, momentum, len(data.train)))
    _write(request, _Whole(config, engine, data.identity, now), lines)
    for line in lines:
        print(f"{COMMAND}: {line}")
    print(f"{COMMAND}: {_goes_on(request)}", flush=True)


@contextmanager
def _as_mistakes(request: Request) -> Iterator[None]:
    """Turn errors about what does not fit into the user's mistake in the file. Raises UserError."""
    try:
        yield
    except Unfit as unfit:
        raise UserError.of("CHECKPOINT", request.checkpoint, unfit.rule, unfit.fix) from None


def _engine(config: configs.Config, layout: configs.Layout, channels: int, world: World) -> Engine:
    """Build the encoder and the engine as the trainer does, on the CPU and not compiled."""
    device = config.device.model_copy(update={"type": "cpu", "compile": False})
    on_cpu = config.model_copy(update={"device": device})
    encoder = resnet.build_encoder(config.model, channels, config.run.seed)
    return build.build(MoCo(on_cpu, world, encoder), on_cpu, layout, world)


def _lines(request: Request, contents: Contents, now: agreement.Progress, momentum: str, images: int) -> Iterator[str]:
    """Yield the lines that say what was taken, computed and left out, and what deserves a look."""
    config, size = request.config, len(contents.queue)
    yield (
        f"{request.checkpoint}: took {contents.names} and the key encoder, {len(contents.encoder_q)} tensors each, "
        f"{size} keys of the queue, its cursor {contents.cursor}, and {momentum}"
    )
    yield (
        f"{now.epoch} epochs of {now.epoch_steps} steps ({images} images in batches of {config.optim.global_batch}) "
        f"are done: the run goes on from step {now.step} of {now.total}"
    )
    if contents.others:
        yield f"left out: {some_names(list(contents.others), 6)}"
    yield agreement.unknown(config)
    yield from (f"look at this: {doubt}" for doubt in agreement.doubts(contents, config, now))


def _goes_on(request: Request) -> str:
    file = configs.literal(request.run_dir / "config.yaml")
    return f"python -m moco_dist.train {quote(file)} goes on, under torchrun too"


def _write(request: Request, whole: _Whole, lines: list[str]) -> None:
    """Write the run aside, and give it its name when it is whole. Raises UserError."""
    run_dir = request.run_dir
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(run_dir) as aside:
            _fill(aside, request, whole, lines)
            aside.rename(run_dir)  # which fails where the directory has got a content meanwhile
    except (OSError, RuntimeError, UserError) as error:
        cause = error.__context__ if isinstance(error, UserError) else checkpoint.cause_of(error)  # of the lease
        rule = f"cannot be written: {getattr(cause, 'strerror', None) or cause}"
        raise UserError.of("RUN_DIR", run_dir, rule, "name another directory") from None


def _fill(folder: Path, request: Request, whole: _Whole, lines: list[str]) -> None:
    """Write all that a run directory of a run that has stopped holds. Raises OSError, RuntimeError."""
    now, directory = whole.progress, RunDirectory(folder)
    directory.open()
    try:
        index = CheckpointIndex(directory.paths.checkpoints)
        index.folder.mkdir(mode=0o700)
        state = checkpoint.of_run(now.step, whole.config, whole.identity, whole.engine)
        checkpoint.write(index.path(now.step), state)
        directory.record(whole.config)
        origin = {**_origin(request.checkpoint), "epoch": now.epoch, "step": now.step, "lines": lines}
        write_text(directory.paths.converted, json.dumps(origin, indent=1) + "\n")
        reason = f"converted from {request.checkpoint} after {now.epoch} epochs; {_goes_on(request)}"
        directory.status("stopped", now.step, reason, total_steps=now.total, epoch_steps=now.epoch_steps)
    finally:
        directory.close()


def _origin(file: Path) -> dict[str, Any]:
    """Describe the file that a run begins from. Raises OSError."""
    sha256 = hashlib.sha256(read_bytes(file)).hexdigest()
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"checkpoint": str(file.absolute()), "sha256": sha256, "time": when, "versions": code.versions()}
