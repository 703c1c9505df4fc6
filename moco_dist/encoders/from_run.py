"""Read an encoder out of a run directory: the weights that the run has left, or one of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moco_dist.encoders.choices import Which
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.networks import weights
from moco_dist.networks.resnet import Encoder
from moco_dist.run import paths, status
from moco_dist.run.checkpoints import CheckpointIndex, Damaged


def choose_step(run_dir: Path, *, with_head: bool, which: Which = "query", step: int | None = None) -> int | None:
    """Choose the checkpoint to read an encoder from; None where the run's encoder.safetensors holds the encoder.

    Args:
        run_dir: run directory. A run that has gone on since it was done is as its last checkpoint.
        with_head: whether the head is wanted, which only checkpoints have.
        which: the encoder that is wanted; the key encoder is in checkpoints alone.
        step: of the checkpoint; None for the last one.

    Raises:
        UserError: the run has no such checkpoint, or nothing at all.
    """
    index = CheckpointIndex(paths.RunPaths(run_dir).checkpoints)
    if step is not None:
        if step not in (steps := index.steps()):
            rule, fix = f"has no checkpoint of step {step}, and of no other one", "leave the step out"
            if steps:
                rule = f"has no checkpoint of step {step}, but of {', '.join(map(str, steps[-5:]))}"
                fix = "take one of these; checkpoint.milestone_epochs keeps more"
            raise UserError.of("RUN_DIR", run_dir, rule, fix)
        return step
    written = paths.RunPaths(run_dir).encoder.is_file()
    needs_checkpoint = with_head or which == "key"
    if written and not needs_checkpoint and status.read(run_dir).state in ("done", None):
        return None
    try:
        last = index.latest()
    except OSError as error:
        rule = f"its checkpoints cannot be read: {error.strerror}"
        raise UserError.of("RUN_DIR", run_dir, rule, "run the command again when its disk is there") from None
    if last is None and needs_checkpoint:
        raise UserError.of("RUN_DIR", run_dir, "has no checkpoint", "train it first")
    if last is None and not written:
        rule = f"holds neither {paths.ENCODER} nor a checkpoint"
        raise UserError.of("RUN_DIR", run_dir, rule, "train it first, or give weights")
    return last


def weights_of(path: Path) -> Path:
    """Return the file with the weights of a path: for a run, its encoder.safetensors or else its last checkpoint.

    Args:
        path: a run directory, its config, or anything else, which is returned as it is.

    Raises:
        UserError: the run has no weights.
    """
    run_dir = paths.run_dir_of(path)
    if run_dir is None:
        return path
    of_run, step = paths.RunPaths(run_dir), choose_step(run_dir, with_head=False)
    return of_run.encoder if step is None else CheckpointIndex(of_run.checkpoints).path(step)


def load_(encoder: Encoder, run_dir: Path, step: int | None, which: Which = "query") -> None:
    """Load an encoder of a run in place, from what `choose_step` has chosen.

    Raises:
        UserError: it does not fit the config, or the checkpoint is damaged.
    """
    if step is None:
        weights.load_backbone_(encoder, paths.RunPaths(run_dir).encoder, key="RUN_DIR")
        return
    try:
        encoder.load_state_dict(state_of(run_dir, step)["encoder_q" if which == "query" else "encoder_k"])
    except RuntimeError as error:  # of overrides
        rule = f"does not fit the config: {' '.join(str(error).split())[:120]}"
        raise UserError.of("RUN_DIR", run_dir, rule, "drop the overrides of model.*") from None


def state_of(run_dir: Path, step: int) -> dict[str, Any]:
    """Read the state in a checkpoint of a run, onto the CPU. Raises UserError where it is damaged."""
    file = CheckpointIndex(paths.RunPaths(run_dir).checkpoints).path(step)
    try:
        return checkpoint.load(file)
    except (Damaged, OSError) as error:
        raise UserError.of("RUN_DIR", file, f"cannot be read: {error}", "take another step") from None
