"""A stand-in for a GPU where there is none: tensors that say they are on a device, and compute on the CPU.

What it shows, with real numbers and gradients: an operation on tensors of two devices, as CUDA refuses it; with
`strict`, each place where the host would wait for the device; a tensor that one stream uses before another has made it
or after its memory may be gone; a copy to the host that is read before it has arrived.

What it cannot show: kernels, memory, speed, NCCL. These need a GPU.

It is a backend of torch's device type for others, PrivateUse1. Importing this module registers it, which must come
before the first backward pass of a process; nothing else changes until `present` is entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work, _create_work_from_future
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from moco_dist.ranks import devices

NAME = "standin"
_CPU = torch.device("cpu")
_aten: Any = torch.ops.aten


class HostWaits(RuntimeError):
    """The host would wait for the device, where it should queue work and go on."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the host waits for the device: {what}")


class Race(RuntimeError):
    """Two streams use a tensor in an order that nothing ensures."""


# ----------------------------------------------------------------------------- torch.standin, as torch.cuda is to CUDA


class Stream:
    """A queue of work. All of it is done at once here; what is kept is the order that a GPU would be bound to."""

    def __init__(self, device: object = None) -> None:
        self.clock = 0
        """Operations queued so far."""
        self.seen: dict[Stream, int] = {}
        """The operations of each other stream that are done before what is queued here next."""
        self.arriving: list[Callable[[], object]] = []
        """Copies to the host that are under way."""

    def wait_stream(self, other: Stream) -> None:
        """Let what is queued from now on come after what the other stream has been given."""
        for stream, clock in {**other.seen, other: other.clock}.items():
            self.seen[stream] = max(clock, self.seen.get(stream, 0))

    def synchronize(self) -> None:
        """Wait on the host until all is done."""
        while self.arriving:
            self.arriving.pop(0)()


class Event:
    """A mark in the work of a stream."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._arriving: list[Callable[[], object]] = []

    def record(self, stream: Stream | None = None) -> None:
        """Set the mark behind what the stream has been given so far."""
        self._arriving = list((stream or _backend.current).arriving)

    def synchronize(self) -> None:
        """Wait on the host until the marked work is done. CUDA does not count this as a wait in error either."""
        for arrive in self._arriving:
            arrive()
        self._arriving.clear()

    def query(self) -> bool:
        """Tell whether the marked work is done, without a wait."""
        return not self._arriving

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds between two marks, of which there are none here."""
        return 1.0


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """The module `torch.standin`, with the names of `torch.cuda`."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self.current = self.default = Stream()
        self.strict = False

    def current_stream(self, device: object = None) -> Stream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def device_count(self) -> int:
        """One for each rank of a test; torch knows of one, whose number all tensors have."""
        return 8

    def set_device(self, device: torch.device) -> None:
        assert device.type == NAME

    def synchronize(self, device: object = None) -> None:
        self.current.synchronize()
        self.default.synchronize()

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return 1 << 34, 1 << 34

    def max_memory_allocated(self, device: object = None) -> int:
        return 1 << 30

    def memory_reserved(self, device: object = None) -> int:
        return 0

    def memory_allocated(self, device: object = None) -> int:
        return 0

    def get_sync_debug_mode(self) -> int:
        return 2 if self.strict else 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.strict = mode in (2, "error")

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_backend = _Backend()
_setup_privateuseone_for_python_backend(NAME, backend_module=_backend)
DEVICE = torch.device(NAME, 0)
torch.distributed.Backend.default_device_backend_map[NAME] = "gloo"


# ---------------------------------------------------------------------------------------------------------- the tensors


class _Memory:
    """Memory of the device that tensors lie in: the stream that it belongs to, and what was written to it last."""

    def __init__(self, stream: Stream) -> None:
        self.users = {stream}
        """Streams that the allocator knows of: what others still read may be given away."""
        self.written = stream, stream.clock


class OnDevice(Tensor):
    """A tensor of the device; what it holds is on the CPU."""

    held: Tensor
    memory: _Memory

    @staticmethod
    def __new__(cls, held: Tensor, memory: _Memory) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        made.held, made.memory = held, memory
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):  # a mark on the tensor, not its class
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    def tolist(self) -> Any:
        """The numbers, on the host."""
        return self.cpu().tolist()

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        """Keep the memory until the stream is done with it."""
        self.memory.users.add(stream)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def held(tensor: Tensor) -> Tensor:
    """Return what a tensor of either side holds, on the CPU."""
    return tensor.held if isinstance(tensor, OnDevice) else tensor


class _Mode(TorchDispatchMode):
    """Lets tensors be made on the device and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_KNOWN_TO_THE_DEVICE_ALONE = {
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
    _aten._linalg_check_errors.default,
}
"""Operations whose size or success the host must read from the device; so it must where a result is no tensor."""
_METADATA = {_aten.is_pinned.default, _aten.is_same_size.default}


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    on_device = [t for t in tree_leaves((args, kwargs)) if isinstance(t, OnDevice)]
    device = kwargs.get("device")
    to_device = bool(on_device) if device is None else torch.device(device).type == NAME
    if func is _aten.copy_.default:
        to_device = isinstance(args[0], OnDevice)
    if not on_device and not to_device:
        return func(*args, **kwargs)
    if func.namespace == "c10d":
        return _collective(func, args, kwargs, on_device)
    _refuse_two_devices(func, args, kwargs, on_device)
    if _backend.strict:
        _refuse_waits(func, args, kwargs, on_device, to_device)
    for tensor in on_device:
        _refuse_races(func, tensor)
    plain_args, plain_kwargs = tree_map_only(OnDevice, held, (args, kwargs))
    if device is not None:
        plain_kwargs["device"] = _CPU
    plain_kwargs.pop("pin_memory", None)
    if func is _aten._to_copy.default and device is not None:
        out = _own_copy(*plain_args, **plain_kwargs)
    else:
        out = func(*plain_args, **plain_kwargs)
    if to_device:
        return _wrapped(func, args, kwargs, on_device, out)
    if func in _COPIES:
        return _on_the_way(out, non_blocking=_is_non_blocking(func, args, kwargs))
    return out


def _is_non_blocking(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether a copy does not wait for the device; `copy_` may be told so by place."""
    by_place = func is _aten.copy_.default and len(args) > 2 and args[2]
    return bool(by_place or kwargs.get("non_blocking"))


def _collective(func: Any, args: Any, kwargs: Any, on_device: list[OnDevice]) -> Any:
    """Gloo carries what the tensors hold. The work is done when this returns, and its result is on the device."""
    plain_args, plain_kwargs = tree_map_only(OnDevice, held, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    *results, work = out if isinstance(out, tuple) else (out,)
    Work.unbox(work).wait()
    future: torch.futures.Future[list[OnDevice]] = torch.futures.Future()
    future.set_result(on_device)
    done = _create_work_from_future(future).boxed()
    return (*_wrapped(func, args, kwargs, on_device, tuple(results)), done) if results else done


def _refuse_two_devices(func: Any, args: Any, kwargs: Any, on_device: list[OnDevice]) -> None:
    """Refuse what CUDA refuses. Numbers may come from either side, an index from the host, all else from one device."""
    if func in _COPIES:
        return
    operands: Any = (args, kwargs)
    if func in _INDEXING:
        indices = [i for i in args[1] if i is not None]
        if not isinstance(args[0], OnDevice) and any(isinstance(i, OnDevice) for i in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        operands = (args[0], args[2:])
    tensors = [t for t in tree_leaves(operands) if isinstance(t, Tensor)]
    hosts = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    if hosts and len(hosts) < len(tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in hosts)
        raise RuntimeError(f"{func}: expected all tensors on one device, but those of shape {shapes} are on the CPU")


def _refuse_waits(func: Any, args: Any, kwargs: Any, on_device: list[OnDevice], to_device: bool) -> None:
    is_number = any(str(r.type) in ("bool", "number", "int", "float") for r in func._schema.returns)
    if on_device and (func in _KNOWN_TO_THE_DEVICE_ALONE or (is_number and func not in _METADATA)):
        raise HostWaits(str(func))
    if func in _INDEXING:
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise HostWaits(f"{func} with a mask")
        if isinstance(args[0], OnDevice) and not all(isinstance(i, OnDevice) for i in indices):
            raise HostWaits(f"{func} with an index that is on the CPU")
    if func in _COPIES:
        source = args[1] if func is _aten.copy_.default else args[0]
        if isinstance(source, OnDevice) != to_device and not _is_non_blocking(func, args, kwargs):
            raise HostWaits(f"{func} {'to' if to_device else 'from'} the device without non_blocking")


def _refuse_races(func: Any, tensor: OnDevice) -> None:
    here = _backend.current
    stream, clock = tensor.memory.written
    if stream is not here and here.seen.get(stream, -1) < clock:
        raise Race(f"{func} uses a tensor {tuple(tensor.shape)} of a stream that its own has not waited for")
    if here not in tensor.memory.users:
        raise Race(f"{func} uses a tensor {tuple(tensor.shape)} of another stream without record_stream")


def _own_copy(tensor: Tensor, **kwargs: Any) -> Tensor:
    """The copy between devices always has memory of its own, though both are on the CPU here."""
    out: Tensor = _aten._to_copy.default(tensor, **kwargs)
    return out.clone() if out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() else out


def _wrapped(func: Any, args: Any, kwargs: Any, on_device: list[OnDevice], out: Any) -> Any:
    """The result as tensors of the device. What was changed in place is the tensor that it was."""
    stream = _backend.current
    stream.clock += 1
    by_identity = {id(t.held): t for t in on_device}
    memories = {t.held.untyped_storage().data_ptr(): t.memory for t in on_device}

    def wrap(tensor: Tensor) -> Tensor:
        if id(tensor) in by_identity:
            return by_identity[id(tensor)]
        memory = memories.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        return OnDevice(tensor, memory or _Memory(stream))

    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for tensor in tree_leaves(args[place] if place < len(args) else kwargs.get(argument.name)):
                if isinstance(tensor, OnDevice):
                    tensor.memory.written = stream, stream.clock
    return tree_map_only(Tensor, wrap, out)


def _on_the_way(out: Tensor, *, non_blocking: bool) -> Tensor:
    """The result of a copy to the host; with non_blocking it holds nonsense until an event after it was awaited."""
    if not non_blocking:
        _backend.current.synchronize()
        return out
    arrived = out.clone()
    out.fill_(torch.nan if out.dtype.is_floating_point else 1)
    _backend.current.arriving.append(lambda: out.copy_(arrived))
    return out


# ------------------------------------------------------------------------------ what torch calls past every Python mode

_kernels = torch.library.Library("aten", "IMPL")
_autocast_fallback = torch.library.Library("_", "IMPL")


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    made = torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype())
    return OnDevice(made, _Memory(_backend.current))


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:
    made = torch.empty(size, dtype=dtype or torch.get_default_dtype(), memory_format=memory_format)
    return OnDevice(made, _Memory(_backend.current))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if _backend.strict and isinstance(source, OnDevice) != isinstance(target, OnDevice) and not non_blocking:
        raise HostWaits("numbers of the host become a tensor of the device")
    held(target).copy_(held(source))
    return target


_kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
_kernels.impl("empty.memory_format", _empty, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")


def _in_half_precision(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Autocast of an operation that CUDA computes in half precision: matrix products and convolutions."""

    def compute(*args: Any, **kwargs: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)

        def cast(tensor: Tensor) -> Tensor:
            narrow = isinstance(tensor, OnDevice) and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
            return tensor.to(dtype) if narrow else tensor

        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs))

    return compute


_autocast_fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name in ("conv2d", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm"):
    _kernels.impl(_name, _in_half_precision(getattr(torch.ops.aten, _name)), "AutocastPrivateUse1")


# ------------------------------------------------------------------------------------------------------- how it is used


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Within it every wait of the host for the device raises HostWaits."""
    before, _backend.strict = _backend.strict, True
    try:
        yield
    finally:
        _backend.strict = before


@contextlib.contextmanager
def present(*, strict: bool = False) -> Iterator[torch.device]:
    """Within it there is the device, and `devices` picks it; strict: `strictly` too."""
    accelerator = devices.ACCELERATOR
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to makes new parameters
    devices.ACCELERATOR = NAME
    # Not by the mode: a loader with workers pins its batches in a thread, where no mode is.
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor.clone())
    try:
        with pinned, _Mode(), strictly() if strict else contextlib.nullcontext():
            yield DEVICE
    finally:
        _backend.current.arriving.clear()  # what nobody has waited for is not under way when the device comes again
        devices.ACCELERATOR = accelerator
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
