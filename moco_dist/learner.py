"""What a training step changes, and the step: as in algorithm 1 of the paper, on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from moco_dist import batchnorm, contrast, shuffle
from moco_dist.collectives import World, gradients
from moco_dist.config import Config, Layout
from moco_dist.moco import MoCo

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Learner:
    """What a step changes: MoCo, the optimizer, the scaler. `state` and `restore` carry it through a checkpoint."""

    def __init__(self, moco: MoCo, config: Config, plan: Layout) -> None:
        self.moco, self.config, self.plan, self.world = moco, config, plan, moco.world
        precision = config.device.precision
        self.image_dtype = DTYPES[precision]
        self.query = self.world.data_parallel(moco.encoder_q)  # DDP averages the gradients of this encoder alone
        self.optimizer = torch.optim.SGD(
            moco.encoder_q.parameters(),
            lr=config.optim.lr,
            momentum=config.optim.sgd_momentum,
            weight_decay=config.optim.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=precision == "fp16")
        self._settled = False
        self.skipped = False
        """Whether the last step left the weights alone, since its fp16 gradients overflowed."""

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.world.device.type, self.image_dtype, enabled=self.image_dtype in (torch.bfloat16, torch.float16)
        )

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
        moco, plan = self.moco, self.plan
        if not self._settled:
            self._settle(views[0][: plan.group_size])
        directions = [views, views[::-1]][: len(orders)]  # symmetric: view 2 is a query too, view 1 its key
        if not self.skipped:
            moco.update_key_encoder_()
        self.optimizer.zero_grad(set_to_none=True)
        figures = moco.queue.new_zeros(3 + len(sums))  # loss, top-1, top-5
        all_keys = []
        for direction, ((im_q, im_k), order) in enumerate(zip(directions, orders, strict=True)):
            with self.autocast():
                keys = moco.encode_keys(im_k, order)  # [size * n, C]
            batchnorm.fold_statistics_(moco.encoder_k, len(im_k) // plan.group_size)
            all_keys.append(keys)
            parts = list(zip(im_q.chunk(plan.parts), moco.own(keys).chunk(plan.parts), strict=True))
            for part, (images, k) in enumerate(parts):
                last = direction == len(orders) - 1 and part == plan.parts - 1
                with gradients(self.query, synchronise=last):
                    with self.autocast():
                        q = self.query(images)  # [n / parts, C]
                    logits = moco.logits(q, k)  # [n / parts, 1+K]
                    loss = contrast.info_nce(logits) / plan.parts
                    self.scaler.scale(loss).backward()
                with torch.no_grad():
                    accuracies = torch.stack(contrast.top_k_accuracy(logits)) / (plan.parts * len(orders))
                    figures[:3] += torch.cat([loss.detach()[None], accuracies])
            batchnorm.fold_statistics_(moco.encoder_q, len(im_q) // plan.group_size)
        self._descend(lr)
        moco.enqueue_(torch.cat(all_keys[::-1]))  # keys of view 1 before those of view 2, after all logits
        figures[3:] = torch.tensor(sums, dtype=figures.dtype).to(figures.device, non_blocking=True)
        self.world.mean_([figures, *moco.running_statistics()])
        figures[3:] *= self.world.size
        return figures

    def _settle(self, images: Tensor) -> None:
        """Let DDP lay out its buckets before the first step of this start.

        DDP orders its buckets anew after the first backward pass, and a sum over three or more ranks depends on where
        in its bucket a number lies: without this, a resumed run's first step would add up in another order than the
        same step of a run that was never stopped.
        """
        if self.query is not self.moco.encoder_q:  # it is wrapped by DDP
            with self.autocast():
                self.query(images).sum().backward()
            batchnorm.forget_statistics_(self.moco.encoder_q)
            self.optimizer.zero_grad(set_to_none=True)
        self._settled = True

    def _descend(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped = self.scaler.get_scale() < before

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
