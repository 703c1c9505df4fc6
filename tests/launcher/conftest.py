"""The launcher's tests share these fixtures."""

from __future__ import annotations

import functools

import pytest

from launcher.checks import estimate
from moco_dist.config.schema import ModelSection


@functools.cache
def _measured_here(model: str, channels: int, image_size: int) -> estimate.EncoderCost:
    return estimate.measure(ModelSection.model_validate_json(model), channels, image_size)


@pytest.fixture(autouse=True)
def _no_process_for_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders are measured in this process, which has torch, instead of in one that has to import it."""
    monkeypatch.setattr(estimate, "_measured", _measured_here)
