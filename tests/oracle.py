"""A slow MoCo, written from the paper (He et al. 2020, algorithm 1) with torch.nn alone and nothing of moco_dist.

One process walks through the ranks: each has encoders of its own, whose BatchNorms see that rank's images only; their
parameters are equal, and their gradients are averaged by hand. `record` writes what happens as a trace in the format of
the reference's recordings (`shared/goldens/README.md`), for `tests.replay` to play.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=3).mean(dim=2)


def encoder(dim: int, mlp: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    layers["bn1"] = nn.BatchNorm2d(8)
    layers["relu1"] = nn.ReLU()
    layers["conv2"] = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
    layers["bn2"] = nn.BatchNorm2d(16)
    layers["relu2"] = nn.ReLU()
    layers["mean"] = Mean()
    layers["fc"] = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, dim)) if mlp else nn.Linear(16, dim)
    return nn.Sequential(layers).double()


def normalised(rows: Tensor) -> Tensor:
    return rows / (rows * rows).sum(dim=1, keepdim=True).sqrt()


class Slow:
    """MoCo on some groups: ranks that hold a run of neighbours each, or splits that hold every G-th image."""

    def __init__(self, numbers: dict[str, float], groups: int, mlp: bool, symmetric: bool) -> None:
        self.numbers, self.groups, self.symmetric = numbers, groups, symmetric
        dim, queue_size = int(numbers["dim"]), int(numbers["queue_size"])
        first = encoder(dim, mlp)
        with torch.no_grad():
            for p in first.parameters():
                p.copy_(p.float())  # the trace is float32: begin where its reader begins
        self.q = [copy.deepcopy(first) for _ in range(groups)]
        self.k = [copy.deepcopy(first) for _ in range(groups)]
        self.queue = normalised(torch.randn(queue_size, dim).double()).float().double().T  # [C, K]
        self.queue = self.queue.contiguous()
        self.ptr = 0
        self.velocity = [torch.zeros_like(p) for p in first.parameters()]

    def members(self, batch: int) -> list[Tensor]:
        where = torch.arange(batch)
        return (
            [where[g :: self.groups] for g in range(self.groups)] if self.symmetric else list(where.chunk(self.groups))
        )

    def encode(self, replicas: list[nn.Sequential], images: Tensor) -> Tensor:
        out: list[Tensor | None] = [None] * len(images)
        for replica, rows in zip(replicas, self.members(len(images)), strict=True):
            for row, feature in zip(rows.tolist(), normalised(replica(images[rows])), strict=True):
                out[row] = feature
        return torch.stack([f for f in out if f is not None])

    def direction(self, im_q: Tensor, im_k: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 1+K] and keys [B, C]."""
        q = self.encode(self.q, im_q)
        with torch.no_grad():
            shuffled = self.encode(self.k, im_k[perm])
            keys = torch.empty_like(shuffled)
            for place, sample in enumerate(perm.tolist()):
                keys[sample] = shuffled[place]
        rows = []
        for one, key in zip(q, keys, strict=True):
            rows.append(torch.stack([one.dot(key), *(one.dot(column) for column in self.queue.T)]))
        return torch.stack(rows) / self.numbers["temperature"], keys

    def step(self, one: Tensor, two: Tensor, perms: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each image summed over the directions [B], logits of the first direction."""
        m = self.numbers["momentum"]
        with torch.no_grad():
            for q, k in zip(self.q, self.k, strict=True):
                for pq, pk in zip(q.parameters(), k.parameters(), strict=True):
                    pk.copy_(m * pk + (1 - m) * pq)
        logits, keys = self.direction(one, two, perms[0])
        losses = torch.logsumexp(logits, dim=1) - logits[:, 0]
        if self.symmetric:
            others, first_keys = self.direction(two, one, perms[1])
            losses = losses + torch.logsumexp(others, dim=1) - others[:, 0]
            keys = torch.cat([first_keys, keys])
        losses.mean().backward()
        self.descend()
        for key in keys:  # one at a time over the oldest
            self.queue[:, self.ptr] = key
            self.ptr = (self.ptr + 1) % self.queue.shape[1]
        return losses.detach(), logits.detach()

    @torch.no_grad()
    def descend(self) -> None:
        """SGD with momentum and weight decay; the loss is a mean over all images, so gradients add up."""
        parameters = [list(q.parameters()) for q in self.q]
        for i, velocity in enumerate(self.velocity):
            gradient = sum(p[i].grad for p in parameters) + self.numbers["weight_decay"] * parameters[0][i]
            velocity.mul_(self.numbers["sgd_momentum"]).add_(gradient)
            for p in parameters:
                p[i] -= self.numbers["lr"] * velocity
                p[i].grad = None

    def arrays(self, group: int | None) -> dict[str, np.ndarray]:
        """State of one group, or with BatchNorm's statistics as means over the groups."""
        out = {}
        for name, replicas in (("encoder_q", self.q), ("encoder_k", self.k)):
            states = [r.state_dict() for r in replicas]
            for key, value in states[group or 0].items():
                if group is None and "running" in key:
                    value = torch.stack([s[key] for s in states]).mean(0)
                out[f"{name}.{key}"] = (value.float() if value.is_floating_point() else value).numpy().copy()
        out["queue"] = self.queue.float().numpy().copy()
        out["queue_ptr"] = np.array([self.ptr])
        return out


DEFAULTS = {"lr": 0.1, "sgd_momentum": 0.9, "weight_decay": 1e-3, "momentum": 0.9, "temperature": 0.2}


def record(
    path: Path,
    *,
    groups: int,
    per_group: int,
    queue_size: int,
    mlp: bool = False,
    symmetric: bool = False,
    steps: int = 6,
    dim: int = 6,
    seed: int = 0,
) -> Path:
    """Run some steps on random images and write the trace. The caller's global RNG is left as it was."""
    numbers = {**DEFAULTS, "dim": dim, "queue_size": queue_size}
    batch = groups * per_group
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        slow = Slow(numbers, groups, mlp, symmetric)
        # Neighbours differ in brightness and contrast, so that it matters who shares a BatchNorm group with whom.
        one = torch.randn(steps, batch, 3, 16, 16) * torch.linspace(0.3, 2, batch)[:, None, None, None]
        one = one + torch.linspace(-1, 1, batch)[:, None, None, None]
        two = one + 0.5 * torch.randn(one.shape)
        perms = torch.stack([torch.randperm(batch) for _ in range(2 * steps)]).view(steps, 2, batch)
    ranks = 1 if symmetric else groups
    hparams = [steps, ranks, batch // ranks, dim, queue_size]
    hparams += [numbers[n] for n in ("momentum", "temperature", "lr", "sgd_momentum", "weight_decay")]
    trace: dict[str, np.ndarray] = {f"init.{n}": a for n, a in slow.arrays(0).items()}
    losses, logits, queues, cursors = [], [], [], []
    for step in range(steps):
        loss, of_step = slow.step(one[step].double(), two[step].double(), perms[step])
        losses.append(loss)
        logits.append(of_step)
        queues.append(slow.queue.float().clone())
        cursors.append(slow.ptr)
    trace["queue"] = torch.stack(queues).numpy()
    per_image, ahead = torch.stack(losses), (torch.stack(logits).argmax(dim=2) == 0).double()
    if symmetric:
        trace |= {"hparams": np.array([*hparams, groups], dtype=np.float64)}
        trace |= {"x_1": one.numpy(), "x_2": two.numpy(), "perm": perms.numpy(), "loss": per_image.mean(1).numpy()}
        trace |= {f"final.{n}": a for n, a in slow.arrays(None).items()}
    else:
        by_rank = (steps, ranks, per_group)
        trace |= {"hparams": np.array(hparams, dtype=np.float64), "queue_ptr": np.array(cursors)}
        trace |= {"x_q": one.view(*by_rank, 3, 16, 16).numpy(), "x_k": two.view(*by_rank, 3, 16, 16).numpy()}
        trace |= {"perm": perms[:, 0].numpy(), "loss": per_image.view(by_rank).mean(2).numpy()}
        trace |= {"top1": ahead.view(by_rank).mean(2).numpy()}
        trace |= {"logits_step0": logits[0].view(ranks, per_group, -1).float().numpy()}
        trace |= {f"final.rank0.{n}": a for n, a in slow.arrays(0).items()}
        for rank in range(1, ranks):
            trace |= {f"final.rank{rank}.{n}": a for n, a in slow.arrays(rank).items() if ".bn" in n}
    assert all(math.isfinite(loss) for loss in trace["loss"].flat)
    np.savez_compressed(path, **trace)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "v1 four ranks, odd queue": {"groups": 4, "per_group": 4, "queue_size": 13},
    "v2 two ranks, batch larger than queue": {"groups": 2, "per_group": 4, "queue_size": 5, "mlp": True},
    "v2 four ranks of three": {"groups": 4, "per_group": 3, "queue_size": 48, "mlp": True},
    "v1 one rank, odd queue": {"groups": 1, "per_group": 8, "queue_size": 13},
    "symmetric, four splits": {"groups": 4, "per_group": 4, "queue_size": 48, "symmetric": True, "mlp": True},
    "symmetric, one split, odd queue": {"groups": 1, "per_group": 8, "queue_size": 13, "symmetric": True},
}


def record_all(folder: Path) -> dict[str, Path]:
    """Record a trace of each of KINDS in a folder; its file by the kind's name."""
    return {name: record(folder / f"{number}.npz", **kind) for number, (name, kind) in enumerate(KINDS.items())}
