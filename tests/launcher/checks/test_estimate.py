"""The estimates, held against the real encoders and against what was measured elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launcher.checks import estimate
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.engine.learner import Learner, build_moco
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
    assert estimate.encoder(config).parameters == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(("arch", "giga"), [("resnet18", 1.81), ("resnet50", 4.09), ("resnet101", 7.80)])
def test_multiply_adds_are_those_of_the_tables(arch: str, giga: float) -> None:
    """Torchvision's GFLOPS, which count a multiply-add once; its head is another one."""
    config = shipped("imagenet_v1", f"model.arch={arch}")
    assert estimate.encoder(config).macs / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", SHIPPED)
def test_multiply_adds_are_those_of_the_layers(name: str) -> None:
    config = shipped(name)
    encoder, found = real(config), [0]

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        places = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        found[0] += layer.weight.numel() * places

    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    encoder(image(config, 2))
    assert estimate.encoder(config).macs == found[0]


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
    expected = estimate.encoder(config).kept_bytes(4)
    # The statistics of BatchNorm and the head are left out, which tell in the small encoders alone.
    small = config.data.image_size < 32
    assert expected == pytest.approx(sum(kept.values()) / 2, rel=0.15 if small else 0.01)


def test_a_checkpoint_is_as_large_as_a_real_one() -> None:
    config = shipped("cifar10", "model.width=32", "moco.queue_size=65536", "device.type=cpu")
    plan = configs.layout(config, 1)
    learner = Learner(build_moco(config, World(0, 1, 0, torch.device("cpu")), plan, real(config)), config, plan)
    for parameter in learner.parameters:  # a step makes SGD's momentum
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    file = io.BytesIO()
    torch.save(learner.state(), file)
    assert estimate.checkpoint_bytes(config) == pytest.approx(file.tell(), rel=0.02)


def test_memory_and_time_of_the_authors_run() -> None:
    """MoCo on 8 V100: 5.0 GB a GPU and 53 hours (Chen et al. 2020, table 3), with 15.7 TFLOPS of float32 each."""
    config = shipped("imagenet_v1", "device.precision=fp32")
    memory = estimate.memory_bytes(config, configs.layout(config, 8))
    assert memory / 1e9 == pytest.approx(5.0, rel=0.15)
    hours = 200 * estimate.epoch_seconds(config, images=1_281_167, ranks=8, tflops=15.7) / 3600
    assert hours == pytest.approx(53, rel=0.2)


def test_what_saves_memory_and_what_costs_time() -> None:
    base = shipped("imagenet_v2", "device.precision=fp32", "optim.global_batch=2048")

    def memory(*overrides: str, ranks: int = 1) -> float:
        config = shipped("imagenet_v2", "device.precision=fp32", "optim.global_batch=2048", *overrides)
        return estimate.memory_bytes(config, configs.layout(config, ranks))

    def seconds(config: Config, ranks: int = 8) -> float:
        return estimate.epoch_seconds(config, 1_281_167, ranks, 100)

    assert memory("device.precision=bf16") < 0.6 * memory()
    assert memory("optim.accumulate=8") < 0.2 * memory()
    assert memory("device.deterministic=true") < 0.2 * memory()  # one BatchNorm group at a time
    assert memory(ranks=8) < 0.2 * memory()
    assert memory("moco.queue_size=1000000") > memory()
    assert seconds(base, ranks=4) == 2 * seconds(base, ranks=8)
    assert seconds(shipped("imagenet_v2", "moco.symmetric=true")) == 2 * seconds(base)
