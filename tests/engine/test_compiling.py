"""A step of compiled networks is the step as it was written, and where no compiler works, it is taken all the same."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from moco_dist import config as configs
from moco_dist.data.views import Views
from moco_dist.engine import build as engines
from moco_dist.engine.engine import Engine
from moco_dist.methods import moco
from moco_dist.networks import batchnorm
from moco_dist.networks.resnet import BasicBlock
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World
from tests.jobs import FAST, ROOT
from tests.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch itself hides

ALONE = World(0, 1, 0, torch.device("cpu"))
BATCH, SIZE = 8, 6
KEYS = ["data.source=synthetic", f"data.image_size={SIZE}", f"optim.global_batch={BATCH}", "moco.bn_groups=4"]
KEYS += ["model.dim=8", "moco.queue_size=32", "device.precision=fp64"]


class Tiny(nn.Module):
    """Two residual blocks that are alike, between layers that are not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(BasicBlock(4, 4, 1, None) for _ in range(2)))
        self.last = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.blocks(self.first(x)).mean((2, 3)))
        return out


def engine_of(*overrides: str, world: World = ALONE) -> Engine:
    config = configs.load(None, [*KEYS, *overrides])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = moco.MoCo(config, world, Tiny())
    return engines.build(method, config, configs.layout(config, world.size), world)


def curve(engine: Engine, steps: range = range(3)) -> list[float]:
    world, losses = engine.world, []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        views = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        one, two = views[:, world.rank * BATCH // world.size : (world.rank + 1) * BATCH // world.size]
        losses.append(engine.step(Views.of(one, two), step, 0.1).numbers()["loss"])
    return losses


def compiling_with(compiler: Any) -> Any:
    return mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=compiler))


@pytest.mark.parametrize(
    ("compiler", "overrides"),
    [
        ("aot_eager", ["device.engine=exact", "device.compile=true"]),
        ("aot_eager", ["device.engine=exact", "device.compile=true", "moco.symmetric=true"]),
        ("aot_eager", ["device.engine=overlapped", "device.compile=true", "optim.accumulate=2"]),
        ("inductor", ["device.engine=overlapped", "device.compile=reduce-overhead", "moco.bn_groups=2"]),
    ],
)
def test_a_compiled_step_is_the_step(compiler: str, overrides: list[str]) -> None:
    with compiling_with(compiler):
        compiled = engine_of(*overrides)
    written = engine_of(*overrides, "device.compile=false")
    assert compiled.remarks[-1].startswith("compiled in") and written.remarks[-1] == "not compiled"
    assert curve(compiled) == pytest.approx(curve(written), abs=1e-9)
    ours, theirs = compiled.state(), written.state()
    assert [*ours["encoder_q"]] == [*theirs["encoder_q"]]
    for encoder in ("encoder_q", "encoder_k"):
        torch.testing.assert_close(ours[encoder], theirs[encoder], rtol=0, atol=1e-9)
    written.restore_(copy.deepcopy(ours))  # a checkpoint of either is one of the other
    assert curve(written, range(3, 5)) == pytest.approx(curve(compiled, range(3, 5)), abs=1e-9)


def fails(graph: torch.fx.GraphModule, _: Any) -> Any:
    raise OSError("there is no compiler,\nand no disk")


def fails_backward() -> Any:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=fails)


@pytest.mark.parametrize("compiler", [lambda: fails, fails_backward], ids=["forward", "backward"])
def test_without_a_compiler_it_goes_on_with_one_line(compiler: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with compiling_with(compiler()):
        engine = engine_of("device.compile=true")
    [_, warning] = capfd.readouterr().err.splitlines()
    assert warning.startswith("moco_dist.train: warning: the networks cannot be compiled") and "no compiler" in warning
    assert engine.remarks == ["channels_last", "not compiled"]
    assert not any(sums.any() for sums in batchnorm.take_group_sums_(engine.method))
    assert curve(engine) == curve(engine_of("device.compile=false"))


def test_a_compiler_that_takes_its_time_is_no_hang() -> None:
    untimed = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        untimed.append(watchdog._Progress.untimed)
        return graph.forward

    with compiling_with(compiler):
        engine_of("device.compile=true")
    assert untimed and all(untimed) and not watchdog._Progress.untimed


def on_two_ranks(world: World) -> tuple[list[float], list[int], list[str]]:
    """Train with DDP; then let the compiler of the second rank fail."""
    graphs = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    overlapped = "device.engine=overlapped", "device.compile=true"
    with compiling_with(compiler):
        engine = engine_of(*overlapped, world=world)
    counts = [len(graphs)]
    losses = curve(engine)
    counts.append(len(graphs))
    with compiling_with(fails if world.rank == 1 else compiler):
        other = engine_of(*overlapped, world=world)
    return losses, counts, other.remarks


def test_all_ranks_compile_or_none(ranks: Ranks) -> None:
    expected = curve(engine_of("device.engine=overlapped"))
    for losses, counts, remarks in ranks.run(2, on_two_ranks):
        assert losses == pytest.approx(expected, abs=1e-9)
        assert counts == [2, 2]  # one kind of block, with and without gradient, all ahead of the first step
        assert remarks[-1] == "not compiled"


def test_a_run_without_a_compiler(tmp_path: Path) -> None:
    """The command itself, where inductor finds no C++ compiler: a warning, and the run is made."""
    run = tmp_path / "run"
    arguments = [str(FAST), "device.compile=true", "optim.steps=1", "eval.knn_every=0", f"run.dir={run}"]
    environment = {**os.environ, "CXX": "/nowhere/g++", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-m", "moco_dist.train", *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    [warning] = [line for line in process.stderr.splitlines() if "cannot be compiled" in line]
    assert "No working C++ compiler" in warning and "Traceback" not in process.stderr
    assert ", channels_last, not compiled" in process.stdout
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (tmp_path / "cache" / "moco-dist" / "torch-compile").is_dir()
