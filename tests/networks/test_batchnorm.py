"""Group BatchNorm against torch's own, run on each group by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from moco_dist.networks.batchnorm import (
    GroupBatchNorm2d,
    fold_statistics_,
    norms,
    running_statistics,
    set_group_size,
    take_group_sums_,
)

CHANNELS = 5


def images(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, CHANNELS, 3, 4, generator=generator, dtype=torch.float64)
    return (
        x * torch.rand(batch, 1, 1, 1, generator=generator, dtype=torch.float64) * 3
        + torch.arange(CHANNELS)[:, None, None]
    )


def pair() -> tuple[GroupBatchNorm2d, nn.BatchNorm2d]:
    ours = GroupBatchNorm2d(CHANNELS).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in (ours.weight, ours.bias, ours.running_mean, ours.running_var):
            tensor.copy_(torch.rand(CHANNELS, generator=generator, dtype=torch.float64) + 0.5)
    theirs = nn.BatchNorm2d(CHANNELS).double()
    assert theirs.state_dict().keys() == ours.state_dict().keys()  # an official checkpoint fits
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def slow(theirs: nn.BatchNorm2d, x: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the mean over the groups of the running statistics that each group alone leads to."""
    outputs, means, variances = [], [], []
    for group in x.split(group_size):
        alone = copy.deepcopy(theirs)
        alone.weight, alone.bias = theirs.weight, theirs.bias  # gradients gather in one place
        outputs.append(alone(group))
        means.append(alone.running_mean)
        variances.append(alone.running_var)
    return torch.cat(outputs), torch.stack(means).mean(0), torch.stack(variances).mean(0)


@pytest.mark.parametrize(("batch", "group_size"), [(12, 12), (12, 4), (12, 2), (6, 3)])
def test_outputs_gradients_and_statistics(batch: int, group_size: int) -> None:
    ours, theirs = pair()
    ours.group_size = group_size
    x = images(batch).requires_grad_()
    y = x.detach().clone().requires_grad_()
    expected, mean, variance = slow(theirs, y, group_size)
    before = ours.running_mean.clone()
    out = ours(x)
    assert torch.equal(ours.running_mean, before)  # nothing until the fold
    fold_statistics_(ours, take_group_sums_(ours), batch // group_size)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.running_mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.running_var, variance, rtol=0, atol=1e-12)
    assert ours.num_batches_tracked.item() == 1
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in ((x, y), (ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)
    if group_size < batch:  # the test could tell: one group over all gives other numbers
        assert not torch.allclose(theirs(y), expected, atol=1e-3)


def test_none_means_one_group() -> None:
    ours, theirs = pair()
    torch.testing.assert_close(ours(images(6)), theirs(images(6)), rtol=0, atol=1e-12)
    fold_statistics_(ours, take_group_sums_(ours), 1)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_gives_the_same(parts: int) -> None:
    whole, _ = pair()
    pieces = copy.deepcopy(whole)
    for module in (whole, pieces):
        set_group_size(module, 2)
    x = images(12)
    for step in range(2):
        y = whole(x + step)
        z = torch.cat([pieces(part) for part in (x + step).chunk(parts)])
        for module in (whole, pieces):
            fold_statistics_(module, take_group_sums_(module), 6)
        assert torch.equal(y, z)
        for one, other in zip(running_statistics(whole), running_statistics(pieces), strict=True):
            assert torch.equal(one, other)
    assert pieces.num_batches_tracked.item() == 2


def test_evaluation_uses_the_running_statistics() -> None:
    ours, theirs = pair()
    ours.group_size = 4
    ours.eval(), theirs.eval()
    x = images(7)  # any number of images
    assert torch.equal(ours(x), theirs(x))
    assert not ours.group_sums.any()


def test_groups_must_be_whole() -> None:
    ours, _ = pair()
    ours.group_size = 4
    with pytest.raises(AssertionError, match="whole groups"):
        ours(images(7))


@pytest.mark.parametrize("group_size", [8, 2])
def test_channels_last_is_kept(group_size: int) -> None:
    ours, _ = pair()
    ours.group_size = group_size
    x = images(8).to(memory_format=torch.channels_last)
    out = ours(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, ours(x.contiguous()), rtol=0, atol=1e-12)


def test_it_reaches_every_layer() -> None:
    model = nn.Sequential(GroupBatchNorm2d(3), nn.Sequential(nn.ReLU(), GroupBatchNorm2d(3)))
    set_group_size(model, 2)
    assert [n.group_size for n in norms(model)] == [2, 2]
    assert len(running_statistics(model)) == 4
    before = [t.clone() for t in running_statistics(model)]
    model(torch.rand(4, 3, 2, 2))
    fold_statistics_(model, take_group_sums_(model), 2)
    assert not any(torch.equal(t, b) for t, b in zip(running_statistics(model), before, strict=True))
    assert not any(n.group_sums.any() for n in norms(model))
    fold_statistics_(
        nn.Linear(2, 2), take_group_sums_(nn.Linear(2, 2)), 3
    )  # without BatchNorms there is nothing to fold
