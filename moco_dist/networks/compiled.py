"""Compile the parts of networks that are used many times, once for all parts that are alike.

A ResNet-50 is a stem and sixteen residual blocks of eight shapes, and MoCo has two of them: one is trained, the other
one runs without gradient. To compile them as a whole takes minutes; to compile a block takes seconds, and its code
serves all blocks of its shape. The tensors of a block are inputs of the code, so they and their names stay as they are.
"""

from __future__ import annotations

import functools
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Compute = Callable[[Any, Tensor], Tensor]
"""Computes a part of a network from its module and its input."""


def parts(networks: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules that can be compiled, each with the name of its method that is."""
    for module in networks.modules():
        if name := getattr(type(module), "compiled_method", None):
            yield module, name


def compile_(networks: nn.Module, mode: Literal["reduce-overhead", True]) -> None:
    """Let the parts of networks be computed by compiled code in training, and in evaluation as they are written.

    Nothing is compiled before the first pass. An evaluation has batches of many sizes, each of which would need code of
    its own.

    Args:
        networks: whose modules say by `compiled_method` what can be compiled.
        mode: of torch.compile; true is its default one.
    """
    codes: dict[tuple[Compute, str], Compute] = {}
    for module, name in parts(networks):
        written = getattr(type(module), name)
        kind = written, repr(module)  # which tells the layers and their sizes
        if kind not in codes:
            codes[kind] = _compiled(written, f"{name}_{zlib.crc32(kind[1].encode()):08x}", mode)
        setattr(module, name, functools.partial(_compute, module, written, codes[kind]))


def undo_(networks: nn.Module) -> None:
    """Let the parts of networks be computed as they are written again."""
    for module, name in parts(networks):
        vars(module).pop(name, None)


def _compute(module: nn.Module, written: Compute, code: Compute, x: Tensor) -> Tensor:
    return (code if module.training else written)(module, x)


def _compiled(written: types.FunctionType, name: str, mode: Literal["reduce-overhead", True]) -> Compute:
    """Return a function that is compiled for itself.

    It is a copy of the written one: torch remembers what it has compiled by code object. Of a single one for all kinds
    of blocks, each call would look through the code of all of them, and torch would give up after the eighth.
    """
    code = written.__code__.replace(co_name=name)
    copied = types.FunctionType(code, written.__globals__, name, written.__defaults__, written.__closure__)
    compiled: Compute = torch.compile(copied, fullgraph=True, dynamic=False, mode=None if mode is True else mode)
    return compiled
