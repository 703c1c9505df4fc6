"""Modes of torch that a caller has switched on change no number of a run, and are on again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import moco_dist
from moco_dist.ranks.torch_modes import plain_modes
from tests.api.made import fit, losses


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default_dtype": lambda: default_dtype(torch.float64),
    "default_device": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def state() -> tuple[object, ...]:
    """Return the settings of torch that the modes change."""
    in_autocast, grad = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
    default = (torch.get_default_dtype(), torch.get_default_device().type)
    return (*default, torch.is_inference_mode_enabled(), grad, in_autocast)


@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_off_within_the_block_and_on_after_it(name: str) -> None:
    begun = state()
    with MODES[name]():
        switched = state()
        with plain_modes():
            assert state() == begun
        assert state() == switched != begun


def test_a_run_and_its_encoder_are_the_same_in_every_mode(tmp_path: Path) -> None:
    image = np.full((8, 8), 90, np.uint8)
    with ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode())
        run = fit(tmp_path / "run", optim__steps=1)
        encoder = moco_dist.load_encoder(run)
        prepared = encoder.preprocess(image)
    plainly = fit(tmp_path / "reference", optim__steps=1)
    reference = moco_dist.load_encoder(plainly)
    assert losses(run) == losses(plainly)
    assert encoder.digest == reference.digest
    assert all(weights.requires_grad and not weights.is_inference() for weights in encoder.parameters())
    assert torch.equal(prepared, reference.preprocess(image))
