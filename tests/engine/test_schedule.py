from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_dist.config.schema import OptimSection
from moco_dist.engine.schedule import learning_rate, total_steps


def curve(optim: OptimSection, per_epoch: int) -> list[float]:
    return [learning_rate(optim, step, per_epoch) for step in range(total_steps(optim, per_epoch))]


def test_cosine_is_the_half_wave() -> None:
    optim = OptimSection(lr=0.03, epochs=10, schedule="cosine")
    rates = curve(optim, 7)
    assert rates == pytest.approx([0.5 * 0.03 * (1 + math.cos(math.pi * s / 70)) for s in range(70)], rel=1e-12)
    assert rates[0] == 0.03
    assert rates[35] == pytest.approx(0.015)
    assert 0 < rates[-1] < 1e-4


def test_steps_set_the_schedules_length() -> None:
    optim = OptimSection(lr=1.0, epochs=1000, steps=40, schedule="cosine")
    assert total_steps(optim, 7) == 40
    assert learning_rate(optim, 20, 7) == pytest.approx(0.5)
    assert total_steps(OptimSection(epochs=3), 7) == 21


def test_step_drops_at_the_milestones() -> None:
    optim = OptimSection(lr=1.0, epochs=10, schedule="step", milestones=(4, 8), decay=0.1)
    rates = curve(optim, 5)
    assert rates == pytest.approx([1.0] * 20 + [0.1] * 20 + [0.01] * 10)


def test_constant() -> None:
    assert set(curve(OptimSection(lr=0.2, epochs=3, schedule="constant"), 4)) == {0.2}


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_warm_up_rises_in_equal_steps_and_reaches_the_rate(schedule: str) -> None:
    optim = OptimSection(lr=0.8, epochs=10, warmup_epochs=1.5, schedule=schedule, milestones=(9,))
    rates = curve(optim, 6)
    assert rates[:10] == pytest.approx([0.8 * n / 10 for n in range(1, 11)])
    assert max(rates) == 0.8
    if schedule == "cosine":  # the rest of the run, not the whole, is the half wave
        assert rates[9 + 51 // 2] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi * 25 / 51)))


@given(
    schedule=st.sampled_from(["cosine", "step", "constant"]),
    epochs=st.integers(1, 8),
    per_epoch=st.integers(1, 9),
    warmup=st.floats(0, 12),
    steps=st.none() | st.integers(1, 30),
)
def test_rates_are_positive_and_never_above_the_peak(
    schedule: str, epochs: int, per_epoch: int, warmup: float, steps: int | None
) -> None:
    optim = OptimSection(lr=0.5, schedule=schedule, epochs=epochs, warmup_epochs=warmup, steps=steps)
    assert all(0 < rate <= 0.5 for rate in curve(optim, per_epoch))
