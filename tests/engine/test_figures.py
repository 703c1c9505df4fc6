"""The figures of a step say what they should, change nothing, and are the same on any number of ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moco_dist.data.views import Views
from moco_dist.engine import figures
from moco_dist.engine.engine import Details, Engine
from moco_dist.methods import losses, moco
from moco_dist.ranks.collectives import World
from tests.engine.test_engines import ALONE, BATCH, Plain, config_of, engine_of
from tests.ranks import Ranks

DIM, QUEUE = 8, 32


def features(count: int = 64, dim: int = DIM, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64))


def spread_of(x: Tensor) -> tuple[float, float | None]:
    return figures.spread(figures.moments(x))


def test_spread_is_that_of_the_features_themselves() -> None:
    x = features() * torch.tensor([1.0, 1, 1, 1, 0.5, 0.5, 0.1, 0.1])
    std, rank = spread_of(x)
    assert std == pytest.approx(x.std(dim=0, correction=0).mean().item() * math.sqrt(DIM))
    sigma = np.linalg.svd((x - x.mean(dim=0)).numpy(), compute_uv=False)
    shares = sigma / sigma.sum()
    assert rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_spread_of_features_that_are_even_alike_and_flat() -> None:
    axes = torch.cat([torch.eye(DIM), -torch.eye(DIM)]).double()
    assert spread_of(axes) == (pytest.approx(1.0), pytest.approx(DIM))
    alike = features(1).expand(64, DIM)
    assert spread_of(alike) == (pytest.approx(0.0, abs=1e-6), 1.0)
    assert spread_of(alike.float()) == (pytest.approx(0.0, abs=1e-2), 1.0)
    line = torch.linspace(-1, 1, 64)[:, None].double() * features(1)
    assert spread_of(line)[1] == pytest.approx(1.0)


def test_features_of_many_dimensions_have_no_rank() -> None:
    std, rank = spread_of(features(4, figures.MOST_DIMENSIONS + 1))
    assert rank is None and 0 < std < 1


def test_details_of_a_contrast() -> None:
    q, queue = features(16, seed=1), features(QUEUE, seed=3)
    k = torch.nn.functional.normalize(q + 0.1 * features(16, seed=2))  # nearer than any key of the queue
    logits = losses.contrast_logits(q, k, queue, temperature := 0.2)
    details = {name: value.item() for name, value in losses.contrast_details(logits, temperature).items()}
    p = torch.softmax(logits, dim=1)
    assert details == {
        "positive_similarity": pytest.approx((q * k).sum(dim=1).mean().item()),
        "hardest_similarity": pytest.approx((q @ queue.T).max(dim=1).values.mean().item()),
        "entropy": pytest.approx(torch.distributions.Categorical(p).entropy().mean().item()),
    }


def views_of(world: World, step: int) -> Views:
    generator = torch.Generator().manual_seed(step)
    one, two = torch.randn(2, BATCH, 3, 2, 2, generator=generator, dtype=torch.float64).unbind()
    mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    return Views.of(one[mine], two[mine])


def rows_of(world: World, engine: Engine, details: bool = True) -> list[dict[str, float]]:
    """Return the rows of four steps."""
    rows = []
    for step in range(4):
        of_step = engine.step(views_of(world, step), step, 0.1, {"one": 1.0}, Details() if details else None).to_host()
        rows.append(of_step.numbers() | of_step.spreads())
    return rows


@pytest.mark.parametrize("engine", ["exact", "overlapped"])
@pytest.mark.parametrize("more", [[], ["moco.symmetric=true"], ["optim.accumulate=2"]])
def test_details_change_nothing_else(engine: str, more: list[str]) -> None:
    with_details, without = (engine_of(config_of(engine, *more), Plain) for _ in range(2))
    full, short = rows_of(ALONE, with_details), rows_of(ALONE, without, details=False)
    assert [{name: row[name] for name in few} for row, few in zip(full, short, strict=True)] == short
    assert [*short[0]] == ["loss", "top1", "top5", "one", "lr"]
    state, state_without = with_details.method.state_dict(), without.method.state_dict()
    assert all(torch.equal(tensor, state_without[name]) for name, tensor in state.items())


def of_all(world: World) -> list[list[dict[str, float]]]:
    cases = [["exact"], ["exact", "moco.symmetric=true"], ["overlapped"]]
    return [rows_of(world, engine_of(config_of(*case), Plain, world)) for case in cases]


def test_the_number_of_ranks_does_not_show(ranks: Ranks) -> None:
    alone = of_all(ALONE)
    assert {"q_std", "k_rank", "gradient_norm", "encoder_distance"} <= alone[0][0].keys()
    for size in (2, 4):
        for exact, symmetric, overlapped in ranks.run(size, of_all):
            for row, row_alone in zip(exact + symmetric, alone[0] + alone[1], strict=True):
                assert row == {**row_alone, "one": size}
            for row, row_alone in zip(overlapped, alone[2], strict=True):
                assert row == pytest.approx({**row_alone, "one": size}, rel=1e-9)


def test_gradient_norm_and_distance_are_those_of_the_step() -> None:
    engine = engine_of(config_of("overlapped"), Plain)
    method = engine.method
    assert isinstance(method, moco.MoCo)
    for step in range(2):
        before = [p.detach().clone() for p in method.encoder_q.parameters()]
        of_step = engine.step(views_of(ALONE, step), step, 0.1, details=Details()).numbers()
        gradients = torch.cat([p.grad.flatten() for p in engine.parameters if p.grad is not None])
        assert of_step["gradient_norm"] == pytest.approx(gradients.norm().item())
        theta_q, theta_k = (torch.cat([p.flatten() for p in of]) for of in (before, method.encoder_k.parameters()))
        assert of_step["encoder_distance"] == pytest.approx(((theta_q - theta_k).norm() / theta_q.norm()).item())
    assert of_step["encoder_distance"] > 0


@pytest.mark.parametrize(("symmetric", "queue"), [(False, 40), (True, 40), (False, 10), (False, 16)])
def test_how_full_and_old_the_queue_is(symmetric: bool, queue: int) -> None:
    """Beside a queue that is followed key by key: which step each key came from, None for the random start."""
    config = config_of("exact", f"moco.symmetric={symmetric}".lower(), f"moco.queue_size={queue}")
    method = engine_of(config, Plain).method
    born: list[int | None] = [None] * queue
    for step in range(8):
        real = [step_of_key for step_of_key in born if step_of_key is not None]
        of_host = method.figures_on_host(step, BATCH)
        assert of_host["queue_filled"] == len(real) / queue
        assert of_host["queue_age_steps"] == (step - min(real) if real else 0)
        born = (born + [step] * BATCH * (1 + symmetric))[-queue:]
    assert of_host["loss_at_chance"] == (1 + symmetric) * math.log(1 + queue)
    assert of_host["momentum"] == config.moco.momentum


def test_skipped_steps_are_counted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(config_of("overlapped", "device.precision=fp16"), Plain)

    def step(number: int, scale: float) -> dict[str, float]:
        engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": scale})
        images: Any = torch.randn(2, BATCH, 3, 2, 2)
        return engine.step(Views(images), number, 0.1, details=Details()).numbers()

    overflowed = step(0, 2.0**127)
    assert overflowed["skipped_steps"] == 1 and "gradient_norm" not in overflowed
    norms = [step(number, scale) for number, scale in ((1, 1.0), (2, 1024.0))]
    assert [of_step["skipped_steps"] for of_step in norms] == [1, 1]
    assert all(0.01 < of_step["gradient_norm"] < 100 for of_step in norms)  # without the factor of the scaler
    other = engine_of(config_of("overlapped", "device.precision=fp16"), Plain)
    other.restore_(engine.state())
    assert other.skipped_steps == 1
