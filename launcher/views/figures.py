"""Read the latest figures of a run from the end of its rows, which may be many."""

import contextlib
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import yaml

from launcher.record import Launch
from moco_dist import files
from moco_dist.config.schema import OptimSection
from moco_dist.run.rows import is_training

_TAIL_BYTES = 2**16
_EVALUATION_BYTES = 2**21  # an epoch of 5000 rows fits
_SPEED_ROWS = 20
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast, where libyaml is there

Row = dict[str, Any]


@dataclass(frozen=True)
class Latest:
    """These figures come from the rows and the status of a run so far; None stands for one that they do not have."""

    step: int = 0
    """The step of the last training row."""
    epoch: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    """Median of the last rows: one step's time is chance."""
    knn_top1: float | None = None
    """Accuracy of kNN in the last evaluation, 0 to 1."""
    total_steps: int | None = None
    """Length of the run, by its status."""
    seconds_left: float | None = None
    """The time that the steps that remain will take at this speed."""
    checkpoint_failures: int = 0
    """Checkpoints that were not saved in the start that wrote the last row."""
    data_wait: float | None = None
    """Share of the time that was waited for data, as a mean of all ranks, by the last row that tells it."""
    node_data_waits: tuple[float, ...] = ()
    """Each node's share of time waited for data, in the order of their ranks, by the last row that tells it."""


NOTHING = Latest()


def read(launch: Launch) -> Latest:
    """Read the figures of a run; none where nothing can be read."""
    try:
        with files.open_bytes(launch.paths.metrics) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            lines = reversed(file.read(_TAIL_BYTES).splitlines())  # what is half a line at the ends is no row
            rows = map(files.parse_object, lines)
            trained = (row for row in rows if is_training(row) and _whole(row, "step") is not None)
            training = list(itertools.islice(trained, _SPEED_ROWS))  # the last one first
            evaluation = _last_evaluation(file, size)
    except OSError:
        training, evaluation = [], {}
    last = training[0] if training else {}
    optim = _optim(launch.config_file)
    step, total = _whole(last, "step") or 0, launch.status().total_steps or (optim.steps if optim else None)
    speeds = [s for row in training if (s := number(row, "images_per_second")) and s > 0]
    speed = median(speeds) if speeds else None
    left = max(0, total - step) * optim.global_batch / speed if optim and total and speed else None
    epoch, loss, knn_top1 = _whole(last, "epoch"), number(last, "loss"), number(evaluation, "knn_top1")
    unsaved = _whole(last, "checkpoint_failures") or 0
    wait = next((share for row in training if (share := number(row, "data_wait")) is not None), None)
    of_nodes = next(filter(None, map(_data_waits_of_nodes, training)), ())
    return Latest(step, epoch, loss, speed, knn_top1, total, left, unsaved, wait, of_nodes)


def _data_waits_of_nodes(row: Row) -> tuple[float, ...]:
    """Return each node's share of time waited for data, by their ranks; the row after a checkpoint has none."""
    shares: list[float] = []
    while (share := number(row, f"node/{len(shares)}/data_wait")) is not None:
        shares.append(share)
    return tuple(shares)


def number(row: Row, key: str) -> float | None:
    """Return a finite number of a row, else None."""
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):  # a whole number may have any number of digits
        return float(value) if math.isfinite(value) else None
    return None


def _whole(row: Row, key: str) -> int | None:
    value = number(row, key)
    return None if value is None else int(value)


def _last_evaluation(file: BinaryIO, size: int) -> Row:
    """Read the last evaluation row not too far from the end; empty for none."""
    for length in (_TAIL_BYTES, _EVALUATION_BYTES):
        file.seek(max(0, size - length))
        data = file.read(length)
        at = data.rfind(b'"knn_top1"')
        if at >= 0:
            return files.parse_object(data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)])
    return {}


def _optim(config: Path) -> OptimSection | None:
    """Read the section of the config that tells the run's length. Only it is checked: this is done for many runs."""
    try:
        tree = yaml.load(files.read_text(config), Loader=_SafeLoader)
        return OptimSection.model_validate(tree.get("optim") or {})
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None
