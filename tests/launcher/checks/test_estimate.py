"""The estimates, held against the real encoders and against what was measured elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launcher.checks import estimate
from launcher.checks.estimate import EncoderCost, Unmeasured, encoder_cost
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.engine.build import build
from moco_dist.methods import moco
from moco_dist.networks.resnet import Encoder, build_encoder
from moco_dist.ranks.collectives import World

SHIPPED = ("digits", "mnist", "cifar10", "imagenet_v1", "imagenet_v2")


def shipped(name: str, *overrides: str) -> Config:
    root = [] if name == "digits" else ["data.root=somewhere"]
    return configs.load(Path(name), [*root, *overrides])


def real(config: Config) -> Encoder:
    return build_encoder(config.model, estimate.channels(config.data), seed=0)


def image(config: Config, count: int = 1) -> Tensor:
    return torch.rand(count, estimate.channels(config.data), config.data.image_size, config.data.image_size)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize("more", ["model.stem=small", "model.width=24", "model.mlp=false", "data.source=mnist"])
def test_parameters_are_those_of_the_encoder(arch: str, more: str) -> None:
    config = shipped("imagenet_v2", f"model.arch={arch}", more)
    with torch.device("meta"):
        encoder = Encoder(config.model, estimate.channels(config.data))
    assert encoder_cost(config).parameters == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(("arch", "giga"), [("resnet18", 1.81), ("resnet50", 4.09), ("resnet101", 7.80)])
def test_multiply_adds_are_those_of_the_tables(arch: str, giga: float) -> None:
    """Torchvision's GFLOPS, which count a multiply-add once; its head is another one."""
    config = shipped("imagenet_v1", f"model.arch={arch}")
    assert encoder_cost(config).operations / 2e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", SHIPPED)
def test_multiply_adds_are_those_of_the_layers(name: str) -> None:
    config = shipped(name)
    encoder, multiply_adds = real(config), [0]

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        places, weights = 1, layer.weight.numel()
        if isinstance(layer, nn.Conv2d):
            places = output[0, 0].numel()
            if places == 1 and layer.weight[0, 0].numel() > 1:  # the taps that meet the image alone (`convolution`)
                weights = weights // layer.weight[0, 0].numel() * inputs[0][0, 0].numel()
        multiply_adds[0] += weights * places

    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    encoder(image(config, 2))
    assert encoder_cost(config).operations == 2 * multiply_adds[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_activations_are_what_autograd_keeps(name: str) -> None:
    config = shipped(name)
    encoder, images = real(config), image(config, 2)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images)
    expected = encoder_cost(config).saved_bytes(4)
    # The statistics of BatchNorm are left out, which tell in the small encoders alone.
    small = config.data.image_size < 32
    assert expected == pytest.approx(sum(kept.values()) / 2, rel=0.15 if small else 0.01)


def test_a_checkpoint_is_as_large_as_a_real_one() -> None:
    config = shipped("cifar10", "model.width=32", "moco.queue_size=65536", "device.type=cpu")
    layout = configs.layout(config, 1)
    world = World(0, 1, 0, torch.device("cpu"))
    engine = build(moco.MoCo(config, world, real(config)), config, layout, world)
    for parameter in engine.parameters:  # a step makes SGD's momentum
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    file = io.BytesIO()
    torch.save(engine.state(), file)
    assert estimate.checkpoint_bytes(config, encoder_cost(config)) == pytest.approx(file.tell(), rel=0.02)


def test_memory_and_time_of_the_authors_run() -> None:
    """MoCo on 8 V100: 5.0 GB a GPU and 53 hours (Chen et al. 2020, table 3), with 15.7 TFLOPS of float32 each."""
    config = shipped("imagenet_v1", "device.precision=fp32")
    memory = estimate.memory_bytes(config, configs.layout(config, 8), encoder_cost(config))
    assert memory / 1e9 == pytest.approx(5.0, rel=0.15)
    hours = 200 * estimate.epoch_seconds(config, encoder_cost(config), images=1_281_167, ranks=8, tflops=15.7) / 3600
    assert hours == pytest.approx(53, rel=0.2)


def test_what_saves_memory_and_what_costs_time() -> None:
    base = shipped("imagenet_v2", "device.precision=fp32", "optim.global_batch=2048")

    def memory(*overrides: str, ranks: int = 1) -> float:
        config = shipped("imagenet_v2", "device.precision=fp32", "optim.global_batch=2048", *overrides)
        return estimate.memory_bytes(config, configs.layout(config, ranks), encoder_cost(config))

    def seconds(config: Config, ranks: int = 8) -> float:
        return estimate.epoch_seconds(config, encoder_cost(config), 1_281_167, ranks, 100)

    assert memory("device.precision=bf16") < 0.6 * memory()
    assert memory("optim.accumulate=8") < 0.2 * memory()
    assert memory("device.deterministic=true") < 0.2 * memory()  # one BatchNorm group at a time
    assert memory(ranks=8) < 0.2 * memory()
    assert memory("moco.queue_size=1000000") > memory()
    assert seconds(base, ranks=4) == 2 * seconds(base, ranks=8)
    assert seconds(shipped("imagenet_v2", "moco.symmetric=true")) == 2 * seconds(base)


def test_a_process_of_its_own_measures_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It does so from any folder, and without a word of torch in the process that asks."""
    here = encoder_cost(shipped("digits"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert encoder_cost(shipped("digits")) == here
    assert isinstance(here, EncoderCost) and here.parameters == 724_656


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('no such device')", "no such device"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("print('a warning')", "JSONDecodeError: .*"),
        ("pass", "IndexError: .*"),
    ],
)
def test_what_cannot_be_measured_is_told(script: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = subprocess.run, shipped("digits")
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda _, **keys: run([sys.executable, "-c", script], **keys))
    estimate._measured.cache_clear()
    with pytest.raises(Unmeasured, match=f"^{reason}$"):
        encoder_cost(config)


def test_without_torch_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate.packages, "installed", lambda name: name != "torch")
    with pytest.raises(Unmeasured, match="torch is not installed here"):
        encoder_cost(shipped("digits"))
