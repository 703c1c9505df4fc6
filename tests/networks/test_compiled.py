"""The parts of a network are compiled once for each kind, in training alone, and nothing else of it changes."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco_dist.config.schema import ModelSection
from moco_dist.networks import batchnorm, compiled
from moco_dist.networks.resnet import Encoder, build_encoder

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch itself hides


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """All graphs that a compiler is given; this one leaves them as they are."""
    seen: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    return seen


def encoders(arch: str) -> nn.ModuleList:
    """A query encoder and a key encoder."""
    query = build_encoder(ModelSection(arch=arch, width=8, dim=8), channels=3, seed=0)
    both = nn.ModuleList([query, copy.deepcopy(query).requires_grad_(False)])
    batchnorm.set_group_size(both, 4)
    return both.double()


def step(both: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """The outputs of both encoders, the gradients, and the statistics of BatchNorm."""
    query, key = both
    with torch.no_grad():
        keys = key(images)
    queries = query(images)
    gradients = torch.autograd.grad(queries.square().sum(), [*query.parameters()])
    return [keys, queries.detach(), *gradients, *batchnorm.take_group_sums_(both)]


def test_a_resnet_50_is_nine_kinds_of_parts_with_and_without_gradient(graphs: list[torch.fx.GraphModule]) -> None:
    both, images = encoders("resnet50"), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    names, expected = [*both.state_dict()], step(both, images)
    compiled.compile_(both, True)
    for _ in range(2):
        torch.testing.assert_close(step(both, images), expected, rtol=1e-9, atol=1e-9)
    assert len(graphs) == 2 * 9  # a stem, and of each of four stages the first block and the others
    assert [*both.state_dict()] == names


def test_an_evaluation_compiles_nothing(graphs: list[torch.fx.GraphModule]) -> None:
    encoder: Encoder = encoders("resnet18")[0]  # type: ignore[assignment]
    compiled.compile_(encoder, True)
    encoder.eval()
    with torch.no_grad():
        for count in (1, 2, 3):
            encoder.features(torch.randn(count, 3, 32, 32, dtype=torch.float64))
            encoder.what_and_where(torch.randn(count, 3, 32, 32, dtype=torch.float64))
    assert not graphs


def test_a_copy_computes_with_weights_of_its_own(graphs: list[torch.fx.GraphModule]) -> None:
    block = encoders("resnet18")[0].layer1  # type: ignore[union-attr]
    x = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    compiled.compile_(block, True)
    other = copy.deepcopy(block)
    with torch.no_grad():
        before = block(x)
        for parameter in other.parameters():
            parameter.zero_()
        assert not torch.equal(other(x), before)
        assert torch.equal(block(x), before)
    assert len(graphs) == 1


def test_what_is_undone_is_as_it_was_written(graphs: list[torch.fx.GraphModule]) -> None:
    encoder = encoders("resnet18")[0]
    attributes = [set(vars(module)) for module in encoder.modules()]
    compiled.compile_(encoder, True)
    assert [set(vars(module)) for module in encoder.modules()] != attributes
    compiled.undo_(encoder)
    assert [set(vars(module)) for module in encoder.modules()] == attributes
    encoder(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    assert not graphs
