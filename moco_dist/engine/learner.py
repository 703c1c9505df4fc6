"""What a training step changes, and the step: as in algorithm 1 of the paper, on any number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from moco_dist.config import Config, Layout
from moco_dist.methods import losses, shuffle
from moco_dist.methods.moco import MoCo
from moco_dist.networks import batchnorm
from moco_dist.ranks import collectives, devices
from moco_dist.ranks.collectives import World
from moco_dist.summation import PairwiseSum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Learner:
    """What a step changes: MoCo, the optimizer, the scaler. `state` and `restore` carry it through a checkpoint."""

    def __init__(self, moco: MoCo, config: Config, plan: Layout) -> None:
        self.moco, self.config, self.plan, self.world = moco, config, plan, moco.world
        precision = config.device.precision
        self.image_dtype = DTYPES[precision]
        # Where bits count, one BatchNorm group is computed at a time, and gradients meet in an order that does not
        # depend on the number of ranks. Elsewhere DDP averages them while the backward pass is still under way.
        self.exact = self.world.device.type == "cpu" or config.device.deterministic
        self.parts = plan.batch_per_rank // plan.group_size if self.exact else plan.parts
        self.query = self.world.data_parallel(moco.encoder_q)  # this encoder alone
        self.parameters = list(moco.encoder_q.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=config.optim.lr,
            momentum=config.optim.sgd_momentum,
            weight_decay=config.optim.weight_decay,
        )
        self.optimizer.register_step_post_hook(lambda *_: self._descended())
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=precision == "fp16")
        self.skipped = False
        """Whether the last step left the weights alone, since its fp16 gradients overflowed."""

    def autocast(self) -> AbstractContextManager[Any]:
        return devices.autocast(self.world.device, self.image_dtype)

    def step(
        self, views: tuple[Tensor, Tensor], orders: Sequence[shuffle.Permutation], lr: float, sums: Sequence[float] = ()
    ) -> Tensor:
        """One training step (He et al. 2020, algorithm 1).

        Args:
            views: this rank's two views of its images, each [n, ...].
            orders: the shuffle of the global batch [size * n], one for each direction of the loss.
            lr: learning rate.
            sums: numbers of this rank to add up over the ranks, on the collective that the step makes anyway.

        Returns:
            Loss, top-1 and top-5 accuracy of the (1+K)-way task as means over the global batch, then the sums.
        """
        moco, groups = self.moco, len(views[0]) // self.plan.group_size
        directions = [views, views[::-1]][: len(orders)]  # symmetric: view 2 is a query too, view 1 its key
        if not self.skipped:
            moco.update_key_encoder_()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            encoded = [
                moco.encode_keys(im_k, order, self.parts) for (_, im_k), order in zip(directions, orders, strict=True)
            ]
        results, gradients, statistics = PairwiseSum(), PairwiseSum(), [PairwiseSum() for _ in directions]
        for part in range(self.parts):
            result = moco.queue.new_zeros(3)  # loss, top-1, top-5
            for direction, ((im_q, _), (keys, _)) in enumerate(zip(directions, encoded, strict=True)):
                last = part == self.parts - 1 and direction == len(directions) - 1
                with collectives.gradients(self.query, synchronise=last and not self.exact):
                    with self.autocast():
                        q = self.query(im_q.chunk(self.parts)[part])  # [n / parts, C]
                    logits = moco.logits(q, moco.own(keys).chunk(self.parts)[part])  # [n / parts, 1+K]
                    loss = losses.info_nce(logits) / self.parts
                    self.scaler.scale(loss).backward()
                statistics[direction].add(batchnorm.take_group_sums_(moco.encoder_q))
                with torch.no_grad():
                    accuracies = torch.stack(losses.top_k_accuracy(logits)) / (self.parts * len(orders))
                    result += torch.cat([loss.detach()[None], accuracies])
            results.add([result])
            if self.exact:
                gradients.add([p.grad for p in self.parameters if p.grad is not None])
                self.optimizer.zero_grad(set_to_none=True)
        own_sums = torch.tensor(sums, dtype=moco.queue.dtype).to(moco.queue.device, non_blocking=True)
        figures = torch.cat([*results.total(), own_sums])
        of_q, of_k = [s.total() for s in statistics], [s for _, s in encoded]
        averaged = gradients.total() if self.exact else []  # else DDP has averaged them by now
        self.world.mean_([figures, *averaged, *itertools.chain(*of_q, *of_k)])
        for parameter, gradient in zip(self.parameters, averaged, strict=False):
            parameter.grad = gradient
        self._descend(lr)
        moco.enqueue_(torch.cat([keys for keys, _ in encoded][::-1]))  # of view 1, then of view 2; after all logits
        for sums_q, sums_k in zip(of_q, of_k, strict=True):
            batchnorm.fold_statistics_(moco.encoder_q, sums_q, groups)
            batchnorm.fold_statistics_(moco.encoder_k, sums_k, groups)
        figures[3:] *= self.world.size
        return figures

    def _descend(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.skipped = True  # until the optimizer has taken its step
        if self.scaler.is_enabled():
            with devices.may_wait(self.world.device):  # whether the gradients overflowed decides what the host does
                self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _descended(self) -> None:
        self.skipped = False

    def state(self) -> dict[str, Any]:
        """All that a later start needs beside the config and the step."""
        return {
            "encoder_q": self.moco.encoder_q.state_dict(),
            "encoder_k": self.moco.encoder_k.state_dict(),
            "queue": self.moco.queue,
            "cursor": self.moco.cursor,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "group_size": self.plan.group_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.moco.encoder_q.load_state_dict(state["encoder_q"])
        self.moco.encoder_k.load_state_dict(state["encoder_k"])
        self.moco.queue.copy_(state["queue"])
        self.moco.cursor = state["cursor"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def build_moco(config: Config, world: World, plan: Layout, encoder: nn.Module) -> MoCo:
    """MoCo on this rank's device, from an encoder whose weights are already right."""
    batchnorm.set_group_size(encoder, plan.group_size)
    moco = MoCo(
        encoder,
        dim=config.model.dim,
        queue_size=config.moco.queue_size,
        momentum=config.moco.momentum,
        temperature=config.moco.temperature,
        shuffle_mode=config.moco.shuffle,
        world=world,
        seed=config.run.seed,
    )
    moco.to(world.device, torch.float64 if config.device.precision == "fp64" else torch.float32)
    if config.device.channels_last:
        moco.to(memory_format=torch.channels_last)
    if config.device.compile:
        moco.encoder_q.compile()
        moco.encoder_k.compile()
    return moco
