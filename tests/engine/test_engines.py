"""The two engines: alike but for rounding, and right where a parameter has no gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.data.views import Views
from moco_dist.engine import build as engines
from moco_dist.engine.build import ExactEngine, OverlappedEngine
from moco_dist.engine.engine import Engine
from moco_dist.methods import moco
from moco_dist.methods.method import Terms
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

ALONE = World(0, 1, 0, torch.device("cpu"))
BATCH = 16


class WithUnused(nn.Module):
    """An encoder in whose middle stand a parameter that the loss does not depend on, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.unused = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.frozen(self.first(x.flatten(1))).relu())
        return out


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8))


def config_of(engine: str, *overrides: str) -> Config:
    keys = [f"optim.global_batch={BATCH}", "moco.bn_groups=4", "model.dim=8", "moco.queue_size=32"]
    return configs.load(None, [*keys, "device.precision=fp64", f"device.engine={engine}", *overrides])


def engine_of(config: Config, encoder: type[nn.Module], world: World = ALONE) -> Engine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = moco.MoCo(config, world, encoder())
    return engines.build(method, config, configs.layout(config, world.size), world)


def curve(world: World, engine: Engine) -> list[float]:
    losses = []
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        one, two = torch.randn(2, BATCH, 3, 2, 2, generator=generator, dtype=torch.float64).unbind()
        mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        losses.append(engine.step(Views.of(one[mine], two[mine]), step, 0.1).numbers()["loss"])
    return losses


@pytest.mark.parametrize(
    ("engine", "overrides", "expected"),
    [
        ("auto", [], ExactEngine),
        ("exact", [], ExactEngine),
        ("overlapped", [], OverlappedEngine),
        ("overlapped", ["device.deterministic=true"], OverlappedEngine),
    ],
)
def test_the_config_chooses_the_engine(engine: str, overrides: list[str], expected: type[Engine]) -> None:
    assert type(engine_of(config_of(engine, *overrides), Plain)) is expected


def test_auto_is_overlapped_on_a_gpu_unless_deterministic() -> None:
    assert not config_of("auto").device.is_exact(on_cpu=False)
    assert config_of("auto", "device.deterministic=true").device.is_exact(on_cpu=False)
    assert config_of("exact").device.is_exact(on_cpu=False)
    assert not config_of("overlapped", "device.deterministic=true").device.is_exact(on_cpu=True)


@pytest.mark.parametrize("engine", ["exact", "overlapped"])
def test_a_parameter_without_gradient_shifts_no_other(engine: str) -> None:
    engine_ = engine_of(config_of(engine), WithUnused)
    encoder = engine_.method.trained
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    curve(ALONE, engine_)
    changed = {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"first.weight", "first.bias", "last.weight", "last.bias"}
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert gradients["unused.weight"] is None and gradients["frozen.weight"] is None
    assert gradients["first.weight"].shape == (8, 12) and gradients["last.weight"].shape == (8, 8)


@pytest.mark.parametrize("name", ["loss", "lr", "stop"])
def test_no_two_figures_have_one_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = moco.MoCo.loss

    def of_two_terms(self: moco.MoCo, *args: Any) -> Terms:
        [term] = loss(self, *args).loss.values()
        return Terms({name: term, "other": term * 0}, {})

    monkeypatch.setattr(moco.MoCo, "loss", of_two_terms)
    views = Views(torch.randn(2, BATCH, 12).double())
    with pytest.raises(AssertionError, match="two figures of one name"):
        engine_of(config_of("exact"), Plain).step(views, 0, 0.1, sums={"stop": 1})


def both(world: World) -> list[list[float]]:
    return [curve(world, engine_of(config_of(engine), Plain, world)) for engine in ("exact", "overlapped")]


def test_the_engines_agree_on_any_number_of_ranks(ranks: Ranks) -> None:
    exact, overlapped = both(ALONE)
    assert overlapped == pytest.approx(exact, abs=1e-12)
    assert len(set(exact)) == 4
    for size in (2, 4):
        for outcome in ranks.run(size, both):
            assert outcome == [pytest.approx(exact, abs=1e-12)] * 2


def test_what_a_step_used_is_what_it_tells() -> None:
    figures = engine_of(config_of("exact"), Plain).step(
        Views(torch.randn(2, BATCH, 12).double()), 0, 0.0625, sums={"stop": 1, "save": 0}
    )
    assert figures.names == ("loss", "top1", "top5", "stop", "save")
    numbers = figures.to_host().numbers()
    assert [*numbers] == ["loss", "top1", "top5", "stop", "save", "lr"]
    assert (numbers["stop"], numbers["save"], numbers["lr"]) == (1, 0, 0.0625)


class Convolved(nn.Module):
    """This encoder has a weight whose order in memory the memory format decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 2, bias=False), nn.Conv2d(4, 8, 2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x).relu()).mean((2, 3))
        return out


def test_the_momentum_goes_on_in_another_memory_format() -> None:
    """The optimizer's fused kernel goes through weights and momentum in the order of their memory."""
    first, same, other = (
        engine_of(config_of("exact", f"device.channels_last={how}"), Convolved) for how in (True, True, False)
    )
    curve(ALONE, first)
    curves = []
    for engine in (same, other):
        engine.restore_(copy.deepcopy(first.state()))
        assert [p.stride() for p in engine.parameters] == [
            engine.optimizer.state[p]["momentum_buffer"].stride() for p in engine.parameters
        ]
        curves.append(curve(ALONE, engine))
    assert same.parameters[1].stride() != other.parameters[1].stride()
    assert curves[0] == pytest.approx(curves[1], abs=1e-9)
    assert len({*curves[0]}) == 4


def test_how_the_optimizer_computes_is_this_starts_own() -> None:
    """A state of the CPU says that its optimizer is fused, which one with fp16's loss scaling is not."""
    engine, other = engine_of(config_of("exact"), Plain), engine_of(config_of("exact"), Plain)
    state = copy.deepcopy(engine.state())
    assert engine.optimizer.param_groups[0]["fused"]
    state["optimizer"]["param_groups"][0]["fused"] = None
    other.restore_(state)
    assert other.optimizer.param_groups[0]["fused"]
