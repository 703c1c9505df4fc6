"""Our encoders against torchvision's of equal weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet

from moco_dist.config.schema import ModelSection
from moco_dist.networks.batchnorm import GroupBatchNorm2d, norms
from moco_dist.networks.resnet import Encoder, build_encoder


def images(batch: int, channels: int, side: int) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def with_statistics(encoder: Encoder) -> Encoder:
    """Running statistics that a run could have left, so that evaluation depends on them."""
    generator = torch.Generator().manual_seed(5)
    for norm in norms(encoder):
        norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.2)
        norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
    return encoder


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@torch.no_grad()
def test_features_are_torchvisions(arch: str) -> None:
    encoder = with_statistics(build_encoder(ModelSection(arch=arch), channels=3, seed=1)).eval()
    theirs = getattr(torchvision.models, arch)()
    backbone = {n: t for n, t in encoder.state_dict().items() if not n.startswith("fc.")}
    missing, unexpected = theirs.load_state_dict(backbone, strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert not unexpected
    theirs.fc = nn.Identity()
    x = images(2, 3, 64)
    assert torch.equal(encoder.features(x), theirs.eval()(x))
    assert encoder.features(x).shape == (2, encoder.feature_dim)


def torchvisions(model: ModelSection, channels: int, seed: int) -> resnet.ResNet:
    """The encoder as a change to torchvision's ResNet: of it are the layers, their names, and the order of draws."""

    class Narrow(resnet.ResNet):
        def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> Any:
            if planes == 64:
                self.inplanes = model.width
            return super()._make_layer(block, planes * model.width // 64, blocks, stride, dilate)

    block, depths = {
        "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
        "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
        "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
        "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
        "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
    }[model.arch]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Narrow(block, depths, num_classes=model.dim, norm_layer=GroupBatchNorm2d)
        small = model.stem == "small"
        net.conv1 = nn.Conv2d(
            channels, model.width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False
        )
        net.maxpool = nn.Identity() if small else net.maxpool
        net.bn1 = GroupBatchNorm2d(model.width)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        width = 8 * model.width * block.expansion
        head = [nn.Linear(width, model.dim)]
        net.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), *head) if model.mlp else head[0]
    return net


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize(("stem", "width", "channels", "mlp"), [("imagenet", 64, 3, False), ("small", 8, 1, True)])
def test_weights_outputs_and_gradients_are_torchvisions(
    arch: str, stem: str, width: int, channels: int, mlp: bool
) -> None:
    model = ModelSection(arch=arch, stem=stem, width=width, dim=16, mlp=mlp)
    ours, theirs = build_encoder(model, channels, seed=3), torchvisions(model, channels, seed=3)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    x = images(2, channels, 48)  # of 32 pixels the last maps are one pixel, and computed otherwise: test_convolution
    outputs = [net(x) for net in (ours, theirs)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@torch.no_grad()
def test_what_and_where_tells_both(stem: str) -> None:
    encoder = with_statistics(build_encoder(ModelSection(width=16, stem=stem), channels=1, seed=0)).eval()
    x = images(3, 1, 32)
    both = encoder.what_and_where(x)
    assert both.shape == (3, encoder.what_and_where_dim)
    what, where = both.split([128, 4 * 4 * 32], dim=1)
    torch.testing.assert_close(what, nn.functional.normalize(encoder.features(x), dim=1))
    torch.testing.assert_close(where.norm(dim=1), torch.ones(3))
    maps: list[Tensor] = []
    hook = encoder.layer2.register_forward_hook(lambda _, __, out: maps.append(out))
    encoder(x)
    hook.remove()
    side = maps[0].shape[2] // 4
    cells = maps[0].unfold(2, side, side).unfold(3, side, side).mean((4, 5))  # [3, 32, 4, 4]
    torch.testing.assert_close(where, nn.functional.normalize(cells.flatten(1), dim=1))


def test_threads_that_build_at_once_leave_the_weights_and_the_global_rng_alone() -> None:
    model = ModelSection(width=8, stem="small")
    expected = [build_encoder(model, 1, seed).fc[0].weight for seed in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(lambda turn: build_encoder(model, 1, turn % 4), range(24)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(encoder.fc[0].weight, expected[turn % 4]) for turn, encoder in enumerate(built))


@torch.no_grad()
def test_heads() -> None:
    v1 = build_encoder(ModelSection(mlp=False, width=16, dim=24, stem="small"), channels=3, seed=0)
    assert isinstance(v1.fc, nn.Linear)
    v2 = build_encoder(ModelSection(mlp=True, width=16, dim=24, stem="small"), channels=3, seed=0)
    assert [type(m) for m in v2.fc] == [nn.Linear, nn.ReLU, nn.Linear]
    assert v2.fc[0].weight.shape == (128, 128)
    for encoder in (v1.eval(), v2.eval()):
        x = images(3, 3, 16)
        assert encoder(x).shape == (3, 24)
        assert torch.equal(encoder(x), encoder.fc(encoder.features(x)))


@pytest.mark.parametrize(("arch", "expansion"), [("resnet18", 1), ("resnet50", 4)])
@torch.no_grad()
def test_width_and_channels(arch: str, expansion: int) -> None:
    encoder = build_encoder(ModelSection(arch=arch, width=8, dim=6, stem="small"), channels=1, seed=0).eval()
    assert encoder.feature_dim == 64 * expansion
    assert encoder.features(images(2, 1, 8)).shape == (2, 64 * expansion)
    assert [stage[0].conv1.weight.shape[0] for stage in (encoder.layer1, encoder.layer2)] == [8, 16]


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("imagenet", 8)])
@torch.no_grad()
def test_small_stem_keeps_the_resolution(stem: str, side: int) -> None:
    encoder = build_encoder(ModelSection(stem=stem, width=8), channels=3, seed=0)
    x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images(2, 3, 32)))))
    assert x.shape == (2, 8, side, side)


def test_all_norms_are_grouped() -> None:
    encoder = build_encoder(ModelSection(width=8), channels=3, seed=0)
    batch_norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(batch_norms) == 20
    assert all(isinstance(m, GroupBatchNorm2d) for m in batch_norms)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    model = ModelSection(width=8, stem="small")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = build_encoder(model, channels=3, seed=1)
    assert torch.equal(torch.rand(3), expected)  # the global generator is where it was
    again, other = (build_encoder(model, channels=3, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    assert not torch.equal(one.layer4[1].conv2.weight, other.layer4[1].conv2.weight)
