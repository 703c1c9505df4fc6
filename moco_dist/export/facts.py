"""Gather the facts in a run directory about the exported weights; missing and damaged ones are left out."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moco_dist import files
from moco_dist.config import Config
from moco_dist.errors import UserError, masked
from moco_dist.export.options import Options
from moco_dist.health import reading
from moco_dist.run import code, provenance, rows, status
from moco_dist.run.paths import RunPaths


@dataclass(frozen=True)
class Measured:
    """A measured accuracy belongs to the exported weights."""

    name: str
    """The name of the method that classified."""
    labels: int | None
    """The number of labels that the method learned from; None: all."""
    draws: int
    accuracy: float
    """Share of the held-out images that are named right, a mean over the draws."""
    spread: float
    """Standard deviation over the draws."""
    images: str
    """The held-out images in words."""
    command: str
    """The command that measured it; RUN_DIR stands for the run directory."""


@dataclass(frozen=True)
class Facts:
    """The facts describe the exported weights and their training."""

    config: Config
    step: int
    total_steps: int | None = None
    epoch_steps: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """Number of the training images and of their classes, and a digest of names and labels."""
    revision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Sequence[str] = ()
    """The hardware of each start up to the step, in words; equal ones once."""
    hours: float | None = None
    """Time of the steps that were taken here, by the wall clock."""
    converted: tuple[int, str] | None = None
    """The steps that another program took first, and the sha256 of its checkpoint; None for no such steps."""
    measured: Sequence[Measured] = ()
    train_top1: float | None = None
    """Share of its own training images that the linear probe names right."""
    findings: Sequence[str] = ()
    """The faults that the run had at the end, in a sentence each."""

    @property
    def epochs(self) -> float | None:
        """Return the epochs that the weights were trained for."""
        return self.step / self.epoch_steps if self.epoch_steps else None

    @property
    def classes(self) -> int:
        """Return the number of classes, 0 where it is not known."""
        classes = self.data.get("classes")
        return classes if type(classes) is int and classes > 1 else 0


def gather(options: Options, step: int, digest: str) -> Facts:
    """Gather all facts about exported weights from the run directory.

    Args:
        options: of the export.
        step: of the weights.
        digest: of the weights, by which an evaluation names them.
    """
    paths, state, config = RunPaths(options.run_dir), status.read(options.run_dir), options.config
    starts = [start for start in provenance.read(options.run_dir) if start["step"] < step]
    last = starts[-1] if starts else {}
    versions, revision = _headline(paths)
    own_rows, converted, data = _rows(options, step), _converted(paths), last.get("data", {})
    of_step = [row for row in own_rows if rows.is_evaluation(row) and row["step"] == step]
    evaluation = of_step[-1] if of_step and options.encoder == "query" else {}
    is_last = step == last.get("total_steps", state.total_steps)  # of its start, after which the run may have gone on
    return Facts(
        config,
        step,
        total_steps=state.total_steps,
        epoch_steps=state.epoch_steps,
        data=data,
        revision=masked(last.get("code", {}).get("git", revision)),
        versions=last.get("versions", versions),
        hardware=list(dict.fromkeys(filter(None, map(_hardware, starts)))),
        hours=_hours(own_rows, config.optim.global_batch, converted[0] if converted else 0),
        converted=converted,
        measured=[
            *_in_training(evaluation, config, data.get("images"), is_last=is_last),
            *_evaluated(paths, digest),
        ],
        train_top1=_share(evaluation.get("linear_train_top1")),
        findings=_findings(options, step),
    )


def _headline(paths: RunPaths) -> tuple[dict[str, str], str]:
    """Read versions and revision above the resolved config; a run of an earlier revision has them there alone."""
    try:
        line = files.read_text(paths.config, errors="replace").partition("\n")[0]
    except OSError:
        return {}, ""
    return code.read_headline(line) if line.startswith("#") else ({}, "")


def _rows(options: Options, step: int) -> list[dict[str, Any]]:
    """Return the rows up to the step of the weights."""
    try:
        return [row for row in rows.read_rows(RunPaths(options.run_dir).metrics) if row["step"] <= step]
    except OSError:
        return []


def _converted(paths: RunPaths) -> tuple[int, str] | None:
    """Read the note about the checkpoint that the run was converted from."""
    origin = files.read_object(paths.converted)
    step, sha256 = origin.get("step"), origin.get("sha256")
    return (step, sha256) if type(step) is int and 0 < step < 2**53 and isinstance(sha256, str) else None


def _hours(own_rows: Sequence[Mapping[str, Any]], global_batch: int, begun: int) -> float | None:
    """Add up the time of the steps: a row tells the images a second of its step, which stands for those before it.

    Args:
        own_rows: of the run.
        global_batch: images of a step.
        begun: steps before the first one that was taken here.
    """
    seconds, before = 0.0, begun
    for row in filter(rows.is_training, own_rows):
        speed = row.get("images_per_second")
        if not isinstance(speed, int | float) or not 0 < speed < math.inf:
            return None
        seconds += (row["step"] - before) * global_batch / speed
        before = row["step"]
    return seconds / 3600 if before > begun else None


def _hardware(start: Mapping[str, Any]) -> str:
    """Describe the hardware of a start in words."""
    devices, cpus = start.get("devices"), start.get("cpus")
    machines = len(start.get("hosts", [])) or len(cpus or {})
    if not devices:
        return ""
    on_cpu = start.get("device") == "cpu"
    what = ", ".join(f"{'' if on_cpu else f'{count} x '}{name}" for name, count in devices.items())
    ranks = start.get("ranks", sum(devices.values()))
    return f"{what}: {ranks} rank{'s' * (ranks > 1)} on {machines} machine{'s' * (machines > 1)}"


def _share(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


def _in_training(row: Mapping[str, Any], config: Config, images: object, *, is_last: bool) -> Iterator[Measured]:
    """Yield the accuracies that the training itself measured after the step: on a part of the images, but at the end.

    Args:
        row: of the evaluation; it may be empty.
        config: of the run.
        images: number of the training images, if it is known.
        is_last: whether the step was to be the last one of the run.
    """
    part = None if is_last else config.eval.online_images
    labels = part if part and type(images) is int and part < images else None
    held_out = f"{f'at most {max(1, part // 5)} ' if part else ''}{config.eval.knn_split} images"
    command = "python -m moco_dist.train RUN_DIR/config.yaml"
    for name, method in (("knn_top1", "kNN, in training"), ("linear_top1", "linear probe, in training")):
        if (share := _share(row.get(name))) is not None:
            yield Measured(method, labels, 1, share, 0.0, held_out, command)


def _evaluated(paths: RunPaths, digest: str) -> Iterator[Measured]:
    """Yield the rows of the evaluation's table, if it is about these weights."""
    table = files.read_object(paths.evaluation_table)
    split, listed = table.get("split"), table.get("rows")
    if table.get("weights") != digest or not isinstance(split, str) or not isinstance(listed, list):
        return
    for row in listed:
        if not isinstance(row, dict) or not isinstance(method := row.get("method"), str):
            continue
        accuracy, spread = (_share(row.get(f"{split}_accuracy_{name}")) for name in ("mean", "std"))
        labels, draws, count = row.get("labels"), row.get("draws"), table.get("held_out")
        if accuracy is None or type(draws) is not int or type(labels) not in (int, type(None)):
            continue
        images = f"{count} {split} images" if type(count) is int else f"{split} images"
        command = f"python -m moco_dist.evaluate RUN_DIR{_flags(method, labels, draws)}"
        command += " --split validation" * (split == "validation") + _overrides(row.get("overrides"))
        yield Measured(method, labels, draws, accuracy, spread or 0.0, images, command)


def _flags(method: str, labels: int | None, draws: int) -> str:
    """Return the options of the evaluation that make a row of its table."""
    trained = {"fine-tuned": " --finetune", "supervised": " --supervised"}
    training = next((flag for name, flag in trained.items() if method.startswith(name)), "")
    if labels is not None:
        semi = " --no-semi" * (not method.startswith("semi"))
        return f" --labels {labels}{f' --draws {draws}' * (draws > 1)}{training}{semi}"
    of_layer = " --features head" * method.endswith("(head)")
    if method.startswith("kNN"):
        return f" --knn{of_layer}"
    if method.startswith("linear"):
        return f" --linear{' --solver sgd' * ('SGD' in method)}{of_layer}"
    epochs = re.search(r", (\d+) epochs?\)$", method)  # others than the recipe's
    return f" --labels all{training}{f' --epochs {epochs[1]}' if epochs else ''}" * bool(training)


def _overrides(listed: object) -> str:
    """Return the overrides that an evaluation had, behind a blank each, as a shell takes them."""
    texts = listed if isinstance(listed, list) else []
    own = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z_]+\.[a-z_]+=[^`|\n]+", text)]
    return "".join(f" {shlex.quote(text)}" for text in own)


def _findings(options: Options, step: int) -> list[str]:
    """Return the faults of the run that had not ended by the step."""
    try:
        diagnosis = reading.read(options.run_dir).diagnosis
    except UserError:
        return []
    findings = diagnosis.findings if diagnosis else []
    return [f.evidence for f in findings if f.first_step <= step and not (f.ended and f.last_step <= step)]
