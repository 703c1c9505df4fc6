"""Compute as torch does when a process begins, whatever modes a caller in Python has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_TYPES = ("cpu", "cuda")
"""Types of devices that have an autocast of their own."""


@contextmanager
def plain_modes() -> Iterator[None]:
    """Switch off, within the block, torch's modes that would change the numbers or the kind of tensors made in it.

    That is another default dtype or default device, the inference mode, no_grad, and autocast. Each stays untouched
    where it is as torch begins with it.
    """
    with ExitStack() as put_back:
        if (dtype := torch.get_default_dtype()) != torch.float32:
            put_back.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            put_back.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            put_back.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            put_back.enter_context(torch.enable_grad())
        for kind in _TYPES:
            if torch.is_autocast_enabled(kind):
                put_back.enter_context(torch.autocast(kind, enabled=False))
        yield
