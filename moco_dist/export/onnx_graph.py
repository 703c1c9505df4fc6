"""Write an encoder as a graph of ONNX, operation by operation.

torch has two exporters: the older one is deprecated, the newer one has changed its arguments from release to release.
A ResNet has eight kinds of operations, so it is written here, and what it computes is compared with torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from torch import Tensor, nn

from moco_dist import __version__
from moco_dist.networks.resnet import BasicBlock, Bottleneck, Encoder

INPUT = "images"
OPSET, _IR_VERSION = 17, 8
"""The versions of ONNX 1.12 of 2022, which older runtimes read too: later ones bring nothing that a ResNet needs."""


def output_name(*, head: bool) -> str:
    """Return the name of the graph's output."""
    return "projection" if head else "features"


def model(network: Encoder, image_size: int, notes: Mapping[str, str], *, head: bool) -> ModelProto:
    """Return a model of ONNX: `images` [batch, C, S, S] to `features` [batch, D] or `projection` [batch, dim].

    Args:
        network: the encoder, on the CPU; its running statistics count.
        image_size: S.
        notes: text that goes with the model, as its metadata.
        head: whether to compute the head's output, of length 1, and not the features.
    """
    graph = _Graph()
    features = graph.features(network)
    name = output_name(head=head)
    graph.node("Identity", [graph.projection(network, features) if head else features], output=name)
    channels, dim = network.conv1.in_channels, _dim(network) if head else network.feature_dim
    taken = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", channels, image_size, image_size])
    returned = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dim])
    made = helper.make_graph(graph.nodes, "encoder", [taken], [returned], graph.weights)
    opsets = [helper.make_opsetid("", OPSET)]
    whole = helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="moco-dist")
    whole.producer_version = __version__
    helper.set_model_props(whole, dict(notes))
    checker.check_model(whole, full_check=True)
    return whole


def _dim(network: Encoder) -> int:
    last = network.fc[-1] if isinstance(network.fc, nn.Sequential) else network.fc
    assert isinstance(last, nn.Linear)
    return last.out_features


class _Graph:
    """A graph has nodes and weights; each method adds nodes, and returns the name of their output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add an operation."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def weight(self, name: str, tensor: Tensor) -> str:
        """Add a tensor under torchvision's name of it."""
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def features(self, network: Encoder) -> str:
        """Add the encoder without its head: [batch, D]."""
        x = self._convolved(INPUT, network.conv1, network.bn1, "conv1", "bn1")
        x = self.node("Relu", [x])
        if isinstance(pool := network.maxpool, nn.MaxPool2d):
            side, stride, padding = (int(value) for value in (pool.kernel_size, pool.stride, pool.padding))  # type: ignore[arg-type]
            x = self.node("MaxPool", [x], kernel_shape=[side] * 2, strides=[stride] * 2, pads=[padding] * 4)
        for stage in (1, 2, 3, 4):
            for number, block in enumerate(getattr(network, f"layer{stage}")):
                x = self._block(x, block, f"layer{stage}.{number}")
        return self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)

    def projection(self, network: Encoder, features: str) -> str:
        """Add the head, and divide its output by its length: [batch, dim]."""
        x, head = features, network.fc
        layers = {f"fc.{name}": layer for name, layer in head.named_children()} or {"fc": head}
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                inputs = [x, self.weight(f"{name}.weight", layer.weight), self.weight(f"{name}.bias", layer.bias)]
                x = self.node("Gemm", inputs, transB=1)
            else:
                assert isinstance(layer, nn.ReLU)
                x = self.node("Relu", [x])
        least = self.weight("least_length", torch.tensor(1e-12))  # as torch's normalize has it
        length = self.node("Max", [self.node("ReduceL2", [x], axes=[1], keepdims=1), least])
        return self.node("Div", [x, length])

    def _block(self, x: str, block: BasicBlock | Bottleneck, name: str) -> str:
        """Add a residual block."""
        shortcut, count = x, 3 if isinstance(block, Bottleneck) else 2
        if isinstance(block.downsample, nn.Sequential):
            of_shortcut = f"{name}.downsample"
            convolution, norm = block.downsample
            shortcut = self._convolved(x, convolution, norm, f"{of_shortcut}.0", f"{of_shortcut}.1")
        for number in range(1, count + 1):
            convolution, norm = (getattr(block, f"{kind}{number}") for kind in ("conv", "bn"))
            x = self._convolved(x, convolution, norm, f"{name}.conv{number}", f"{name}.bn{number}")
            x = self.node("Relu", [x]) if number < count else self.node("Add", [x, shortcut])
        return self.node("Relu", [x])

    def _convolved(self, x: str, convolution: nn.Module, norm: nn.Module, of_convolution: str, of_norm: str) -> str:
        """Add a convolution and the BatchNorm behind it."""
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        padding = [int(side) for side in convolution.padding]
        x = self.node(
            "Conv",
            [x, self.weight(f"{of_convolution}.weight", convolution.weight)],
            kernel_shape=list(convolution.kernel_size),
            strides=list(convolution.stride),
            pads=padding + padding,
        )
        names = ("weight", "bias", "running_mean", "running_var")
        layers = [self.weight(f"{of_norm}.{name}", getattr(norm, name)) for name in names]
        return self.node("BatchNormalization", [x, *layers], epsilon=norm.eps)
