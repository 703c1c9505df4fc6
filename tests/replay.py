"""Plays recorded traces of the reference implementation through the project's own step.

python -m tests.replay TRACE.npz [TRACE.npz ...] [--shuffle all_gather|all_to_all]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moco_dist import config
from moco_dist.data.views import Views
from moco_dist.engine.build import build
from moco_dist.methods.moco import MoCo
from moco_dist.networks.batchnorm import GroupBatchNorm2d
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

TOLERANCE = 1e-4


class TraceEncoder(nn.Module):
    """The encoder of the traces: two convolutions and a head."""

    def __init__(self, dim: int, mlp: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = GroupBatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = GroupBatchNorm2d(16)
        self.fc = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, dim)) if mlp else nn.Linear(16, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out


@dataclass(frozen=True)
class Trace:
    """One recording, in the project's terms: batches in the order of its BatchNorm groups."""

    config: config.Config
    ranks: int
    views: NDArray[np.float32]
    """[2, S, B, 3, 16, 16]"""
    orders: NDArray[np.int64]
    """[S, directions, B]"""
    order: NDArray[np.int64]
    """[B] where each image of the project's batch stands in the recorded one."""
    arrays: dict[str, NDArray[Any]]


class Unreadable(Exception):
    """No trace of the format."""


def read(path: Path) -> Trace:
    """Read a trace. Raises Unreadable."""
    try:
        with path.open("rb") as content, np.load(content) as file:  # numpy leaves a broken file open
            arrays = {name: file[name] for name in file.files}
        missing = {"loss", "queue", "init.queue", "init.queue_ptr"} - arrays.keys()
        if missing:
            raise ValueError(f"no array {min(missing)}")
        return _interpret(arrays)
    except Exception as error:  # a zip, a header, an array, a shape: whatever is wrong with it
        raise Unreadable(f"{path}: cannot be read as a trace: {type(error).__name__}: {error}") from None


def _interpret(arrays: dict[str, NDArray[Any]]) -> Trace:
    numbers = arrays["hparams"].tolist()
    steps, ranks, per_rank, dim, queue_size = map(int, numbers[:5])
    momentum, temperature, lr, sgd_momentum, weight_decay = numbers[5:10]
    symmetric = "x_1" in arrays
    groups = int(numbers[10]) if symmetric else ranks
    batch = ranks * per_rank
    names = ("x_1", "x_2") if symmetric else ("x_q", "x_k")
    views = np.stack([arrays[name].reshape(steps, batch, 3, *arrays[name].shape[-2:]) for name in names])
    orders = arrays["perm"].reshape(steps, -1, batch)
    # The symmetric reference puts sample i into group i mod G; here a group is a run of neighbours.
    order = np.arange(batch).reshape(-1, groups).T.reshape(-1) if symmetric else np.arange(batch)
    run = config.parse(
        {
            "data": {"source": "synthetic"},
            "model": {"dim": dim, "mlp": "init.encoder_q.fc.2.weight" in arrays},
            "moco": {
                "queue_size": queue_size,
                "momentum": momentum,
                "temperature": temperature,
                "symmetric": symmetric,
                "bn_groups": groups,
            },
            "optim": {
                "global_batch": batch,
                "lr": lr,
                "sgd_momentum": sgd_momentum,
                "weight_decay": weight_decay,
                "schedule": "constant",
            },
        }
    )
    place = np.argsort(order)
    return Trace(run, ranks, views[:, :, order], place[orders[:, :, order]], order, arrays)


def play(world: World, trace: Trace, shuffle_mode: str) -> dict[str, float]:
    """Play a trace on this rank's device, on as many ranks as it was recorded on or on fewer.

    A recorded rank that has no rank of its own is a BatchNorm group of one.

    Returns:
        Largest absolute error of the losses, the queue and the final parameters on this rank; on one rank, of
        BatchNorm's running statistics too, which compare where the recording is of one rank.
    """
    shuffled = trace.config.moco.model_copy(update={"shuffle": shuffle_mode})
    run, arrays = trace.config.model_copy(update={"moco": shuffled}), trace.arrays
    plan = config.layout(run, world.size)
    encoder = TraceEncoder(run.model.dim, run.model.mlp)
    moco = MoCo(run, world, encoder)
    moco.load_state_dict(_module_state(moco, arrays))
    moco.cursor = int(arrays["init.queue_ptr"][0])
    moco.order = lambda step, direction, length: trace.orders[step, direction]
    engine = build(moco, run, plan, world)
    mine = slice(world.rank * plan.batch_per_rank, (world.rank + 1) * plan.batch_per_rank)
    rows = _QueueRows(run.moco.queue_size, trace.order)
    errors = {"loss": 0.0, "queue": 0.0, "parameters": 0.0, "statistics": 0.0}
    for step in range(trace.views.shape[1]):
        one, two = (torch.from_numpy(view[step, mine]).to(world.device) for view in trace.views)
        figures = engine.step(Views.of(one, two), step, run.optim.lr)
        recorded = arrays["loss"][step].mean()
        errors["loss"] = _worst(errors["loss"], figures.values[0].item() - recorded)
        ours = moco.queue.cpu().numpy()[rows.after(trace.orders.shape[1])]
        errors["queue"] = _worst(errors["queue"], ours.T - arrays["queue"][step])
        cursors = arrays.get("queue_ptr")  # not recorded at every step of the symmetric traces
        if cursors is not None and moco.cursor != int(cursors[step]):
            errors["queue"] = float("inf")
    prefix = "final." if trace.config.moco.symmetric else "final.rank0."
    final = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if moco.cursor != int(final["queue_ptr"][0]):
        errors["queue"] = float("inf")
    for name, tensor in moco.state_dict().items():
        if name.startswith("encoder_") and "num_batches" not in name:
            kind = "statistics" if "running" in name else "parameters"
            errors[kind] = _worst(errors[kind], tensor.cpu().numpy() - final[name])
    if world.size > 1:  # the reference's ranks keep running statistics of their own
        del errors["statistics"]
    return errors


def _module_state(moco: MoCo, arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    state = moco.state_dict()
    for name in state:
        if name.startswith("encoder_") and f"init.{name}" in arrays:
            state[name] = torch.from_numpy(arrays[f"init.{name}"])
    state["queue"] = torch.from_numpy(arrays["init.queue"]).T.contiguous()  # recorded one key a column
    return state


class _QueueRows:
    """The rows of our queue that hold the keys which the recording has in its columns.

    Both enqueue the same keys, but within a batch in the order of their own batches.
    """

    def __init__(self, size: int, order: NDArray[np.int64]) -> None:
        self.order, self.cursor, self.count = order, 0, 0
        self.ours, self.theirs = -1 - np.arange(size), -1 - np.arange(size)  # which key stands where

    def after(self, directions: int) -> NDArray[np.int64]:
        for _ in range(directions):
            places = (self.cursor + np.arange(len(self.order))) % len(self.ours)
            self.ours[places] = self.count + self.order
            self.theirs[places] = self.count + np.arange(len(self.order))
            self.cursor = (self.cursor + len(self.order)) % len(self.ours)
            self.count += len(self.order)
        where = {key: row for row, key in enumerate(self.ours.tolist())}
        return np.array([where[key] for key in self.theirs.tolist()])


def _worst(before: float, difference: Any) -> float:
    largest = float(np.abs(difference).max())
    return max(before, largest) if np.isfinite(largest) else float("inf")


def main(arguments: list[str] | None = None) -> int:
    """Play the traces. Returns 0 when all agree, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.npz")
    parser.add_argument("--shuffle", choices=("all_gather", "all_to_all"), action="append", help="default: both")
    options = parser.parse_args(arguments)
    traces, bad = {}, 0
    for path in options.traces:
        try:
            traces[path] = read(path)
        except Unreadable as error:
            print(error, file=sys.stderr)
            bad += 1
    ranks = Ranks(max((trace.ranks for trace in traces.values()), default=0))
    try:
        for path, trace in traces.items():
            for mode in options.shuffle or ("all_gather", "all_to_all"):
                try:
                    errors_of_ranks = ranks.run(trace.ranks, play, trace, mode)
                except AssertionError as error:
                    print(f"{path.name} {mode}: {error}", file=sys.stderr)
                    bad += 1
                    continue
                errors = {key: max(of_rank[key] for of_rank in errors_of_ranks) for key in errors_of_ranks[0]}
                right = all(error <= TOLERANCE for error in errors.values())
                bad += not right
                shown = "  ".join(f"{key} {error:.1e}" for key, error in errors.items())
                print(f"{'ok  ' if right else 'FAIL'} {path.name:34} {mode:10} {trace.ranks} ranks  {shown}")
    finally:
        ranks.close()
    print(f"{'all agree' if not bad else f'{bad} failed'} (tolerance {TOLERANCE:g})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
