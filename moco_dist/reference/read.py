"""Read a checkpoint of the authors' code, and turn its content into the state of an engine.

Their main_moco.py saves `epoch` (how many are finished), `arch`, `state_dict` and `optimizer`; their CIFAR-10 demo the
same without `arch`, and numbers the layers of its encoders, `encoder_q.net.0`. Their queue has one key a column, ours
one a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moco_dist.errors import some_names
from moco_dist.networks import layouts
from moco_dist.networks.weights import fault_of

_ENCODER_Q = re.compile(r"((?:module\.|_orig_mod\.)*)encoder_q\.")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_TAKEN = ("epoch", "arch", "state_dict", "optimizer")
_MOST_EPOCHS = 10**9
_WITHOUT_OPTIMIZER = "save it without `optimizer`, and the momentum begins at 0"


class Unfit(Exception):
    """A file is no checkpoint of the authors', or does not fit the encoder."""

    def __init__(self, rule: str, fix: str) -> None:
        super().__init__(rule)
        self.rule, self.fix = rule, fix


@dataclass(frozen=True)
class Contents:
    """This object holds what was read from a checkpoint of the authors' code, in our names and with our queue."""

    encoder_q: dict[str, Tensor]
    encoder_k: dict[str, Tensor]
    queue: Tensor  # [K, C]
    """The keys, one a row: float32 [K, C]."""
    cursor: int
    """Row of the oldest key."""
    epoch: int | None
    """The number of finished epochs; None where the file does not say."""
    arch: str | None
    """Name of the architecture in torchvision; None where the file does not say."""
    optimizer: Mapping[str, Any] | None
    """The state of their optimizer, as the file has it; None where it has none."""
    names: str
    """The way in which the file names the layers of the trained encoder."""
    others: Sequence[str]
    """Names in the file that are none of these."""


def read(tree: Mapping[Any, Any]) -> Contents:
    """Read the content of a file; every tensor of the result is dense, finite and float32.

    Args:
        tree: the content of the file.

    Raises:
        Unfit: it is no whole checkpoint of the authors' MoCo v1 or v2.
    """
    state = tree["state_dict"] if isinstance(tree.get("state_dict"), Mapping) else tree
    prefix = _prefix(tree, state)
    theirs = {str(name).removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}
    for name, what in (("encoder_k.", "key encoder"), ("queue", "queue"), ("queue_ptr", "cursor of the queue")):
        if not any(own == name or (name.endswith(".") and own.startswith(name)) for own in theirs):
            rule = f"holds no {what} ({prefix}{name}), so that a run cannot go on from it"
            raise Unfit(rule, "begin a run with its encoder by run.init_from=CHECKPOINT")
    encoder_q, encoder_k = _encoder(theirs, prefix, "encoder_q."), _encoder(theirs, prefix, "encoder_k.")
    differing = [n for n in {**encoder_q, **encoder_k} if _shape(encoder_q.get(n)) != _shape(encoder_k.get(n))]
    if differing:
        raise Unfit(f"its two encoders have different layers: {some_names(differing)}", "give a whole checkpoint")
    queue = _queue(theirs["queue"], f"{prefix}queue")
    taken = {f"{prefix}{name}" for name in theirs if name.startswith(("encoder_q.", "encoder_k."))}
    taken |= {f"{prefix}queue", f"{prefix}queue_ptr"}
    others = [str(name) for name in state if name not in taken and (state is not tree or name not in _TAKEN)]
    if state is not tree:
        others += [str(name) for name in tree if name not in _TAKEN]
    if not isinstance(tree.get("optimizer"), Mapping | None):
        others.append("optimizer")
    return Contents(
        encoder_q,
        encoder_k,
        queue,
        _cursor(theirs["queue_ptr"], f"{prefix}queue_ptr", len(queue)),
        _epoch(tree.get("epoch")),
        str(tree["arch"]) if isinstance(tree.get("arch"), str) else None,
        tree["optimizer"] if isinstance(tree.get("optimizer"), Mapping) else None,
        f"{prefix}encoder_q.{'net.N.' if _is_numbered(theirs) else ''}*",
        others,
    )


def _prefix(tree: Mapping[Any, Any], state: Mapping[Any, Any]) -> str:
    """Return the text before `encoder_q.` in the names of the layers."""
    if isinstance(tree.get("encoder_q"), Mapping):
        rule = "is a checkpoint of this trainer's own"
        raise Unfit(rule, "go on with its run by python -m moco_dist.train RUN_DIR/config.yaml")
    prefixes = {match[1] for name in state if (match := _ENCODER_Q.match(str(name)))}
    if not prefixes:
        first = " ".join(some_names([str(name) for name in state], 5).split())[:200] or "nothing"
        rule = f"is no checkpoint of the authors' MoCo, which has encoder_q.*; it holds {first}"
        raise Unfit(rule, "give a .pth.tar of main_moco.py, or begin with its encoder by run.init_from=CHECKPOINT")
    if len(prefixes) > 1:
        raise Unfit(f"holds several models: {', '.join(f'{p}encoder_q' for p in sorted(prefixes))}", "give one alone")
    return prefixes.pop()


def _is_numbered(theirs: Mapping[str, object]) -> bool:
    """Return whether the layers are named as the CIFAR-10 demo names them."""
    return all(name.startswith("encoder_q.net.") for name in theirs if name.startswith("encoder_q."))


def _encoder(theirs: Mapping[str, object], prefix: str, begin: str) -> dict[str, Tensor]:
    """Return the layers of one encoder by our names, and in the order of the file."""
    layers, is_numbered = dict[str, Tensor](), _is_numbered(theirs)
    for name, value in theirs.items():
        if not name.startswith(begin):
            continue
        inner: str | None = name.removeprefix(begin)
        if is_numbered:
            inner = layouts.NUMBERED_WITHOUT_POOL.ours(name.removeprefix(f"{begin}net."))
        if inner is None:
            raise Unfit(f"{prefix}{name} is no layer of the authors' encoder", "give a checkpoint of their code")
        counts = inner.endswith("num_batches_tracked")
        layers[inner] = _whole(value, f"{prefix}{name}") if counts else _floats(value, f"{prefix}{name}")
    return layers


def _floats(value: object, name: str) -> Tensor:
    """Return a tensor of the file's, whose numbers must be finite and float32."""
    if fault := fault_of(name, value):
        raise Unfit(f"{name} {fault[0]}", fault[1])
    assert isinstance(value, Tensor)
    if value.dtype != torch.float32:
        rule = f"{name} is a tensor of {value.dtype}, and the state of a run is of torch.float32"
        raise Unfit(rule, "save it with all tensors .float()")
    return value.detach()


def _whole(value: Any, name: str) -> Tensor:
    """Return a tensor of the file's that must hold one whole number."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if is_dense and value.numel() == 1 and value.dtype in (torch.int64, torch.int32):
        number: Tensor = value.reshape(()).long()
        return number
    raise Unfit(f"{name} holds no whole number", "give a checkpoint of the authors' code")


def _queue(value: object, name: str) -> Tensor:
    """Return the queue [K, C], whose keys must be of length 1."""
    queue = _floats(value, name)  # [C, K]
    if queue.ndim != 2 or not queue.numel():
        raise Unfit(f"{name} has the shape {list(queue.shape)}, not [dim, K]", "give a checkpoint of the authors' code")
    lengths = queue.norm(dim=0)
    if not ((lengths - 1).abs() < 0.01).all():
        worst = float(lengths[(lengths - 1).abs().argmax()])
        raise Unfit(f"{name} has a column of length {worst:.3g}, and keys are of length 1", "give one key a column")
    return queue.T.contiguous()


def _cursor(value: object, name: str, size: int) -> int:
    cursor = int(_whole(value, name))
    if not 0 <= cursor < size:
        raise Unfit(f"{name} is {cursor}, outside of the queue of {size} keys", "give a checkpoint that is whole")
    return cursor


def _epoch(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value < _MOST_EPOCHS:
        rule = f"its epoch is {value!r:.40}, not a number of finished epochs"
        raise Unfit(rule, "begin a run with its encoder by run.init_from=CHECKPOINT")
    return value


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def engine_state(contents: Contents, own: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """Return the state that an engine takes back by `restore_`.

    BatchNorm's `num_batches_tracked`, which changes nothing here, is 0 where the file lacks it.

    Args:
        contents: of the file.
        own: the state of the engine before its first step.
        parameters: our names of the encoder's parameters, in the order of the module.

    Raises:
        Unfit: layers, queue or the optimizer's state do not fit.
    """
    encoders = {name: _layers(getattr(contents, name), own[name], name) for name in ("encoder_q", "encoder_k")}
    if contents.queue.shape != own["queue"].shape:
        differ = f"{list(contents.queue.T.shape)} for {list(own['queue'].T.shape)}"
        raise Unfit(f"its queue [dim, K] does not fit: {differ}", "set model.dim and moco.queue_size")
    shapes = {name: own["encoder_q"][name].shape for name in parameters}
    optimizer = {**own["optimizer"], "state": momentum_buffers(contents, shapes)}
    return {**own, **encoders, "queue": contents.queue, "cursor": contents.cursor, "optimizer": optimizer}


def _layers(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """Return the layers that an encoder needs, after their names and shapes are compared."""
    counts = {n: torch.zeros_like(t) for n, t in own.items() if n.endswith("num_batches_tracked") and n not in theirs}
    layers = {**theirs, **counts}
    wrong = [n for n in {**own, **layers} if _shape(layers.get(n)) != _shape(own.get(n))]
    if wrong:
        differ = [
            f"{n} {_shape(layers.get(n)) or 'missing'} for {_shape(own.get(n)) or 'no such layer'}" for n in wrong
        ]
        rule = f"{len(wrong)} layers of its {encoder} do not fit the model: {some_names(differ)}"
        raise Unfit(rule, "set the keys of model as the run had them")
    return layers


def momentum_buffers(contents: Contents, shapes: Mapping[str, Sequence[int]]) -> dict[int, dict[str, Tensor]]:
    """Return the momentum of each parameter that has some, by its number.

    Their SGD lists the parameters of the trained encoder and then those of the key encoder, which have no gradient and
    so no momentum. An entry is named by what the list has for its parameter: before torch 1.6 that is no number in
    order.

    Args:
        contents: of the file.
        shapes: of the trained encoder's parameters, in the order of the module.

    Raises:
        Unfit: it is not the state of SGD over these parameters.
    """
    if contents.optimizer is None:
        return {}
    entries, fix = contents.optimizer.get("state"), _WITHOUT_OPTIMIZER
    listed = sgd_group(contents.optimizer).get("params")
    in_file = [name for name in contents.encoder_q if not name.endswith(_BUFFERS)]
    if in_file != list(shapes):
        raise Unfit("lists the parameters in another order than the authors' code, so has its momentum", fix)
    if not isinstance(listed, list) or not isinstance(entries, Mapping):
        raise Unfit("its optimizer's state is not torch's", fix)
    if any(type(number) is not int for number in listed) or len(listed) != len({*listed}):
        raise Unfit("the parameters of its optimizer are not numbered as torch's", fix)
    if len(listed) not in (len(shapes), 2 * len(shapes)):
        rule = f"its optimizer has {len(listed)} parameters, and the two encoders {len(shapes)} each"
        raise Unfit(rule, fix)
    buffers: dict[int, dict[str, Tensor]] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        entry = entries.get(listed[number], {})
        if not isinstance(entry, Mapping) or not entry.keys() <= {"momentum_buffer"}:
            keys = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            raise Unfit(f"its optimizer keeps {keys:.80} for {name}, which SGD does not", fix)
        if (buffer := entry.get("momentum_buffer")) is None:
            continue
        buffer = _floats(buffer, f"the momentum of {name}")
        if buffer.shape != torch.Size(shape):
            raise Unfit(f"the momentum of {name} has the shape {list(buffer.shape)}, not {list(shape)}", fix)
        buffers[number] = {"momentum_buffer": buffer}
    return buffers


def sgd_group(optimizer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of their SGD, whose parameters form one group. Raises Unfit for other optimizers."""
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], Mapping):
        raise Unfit("its optimizer has not one group of parameters, as the authors' SGD has", _WITHOUT_OPTIMIZER)
    group: Mapping[str, Any] = groups[0]
    return group
