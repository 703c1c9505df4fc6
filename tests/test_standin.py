"""The stand-in for a GPU refuses what CUDA refuses, and in strict mode every wait of the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests import standin
from tests.standin import Event, HostWaits, Race, Stream

pytestmark = pytest.mark.standin


def pair() -> tuple[Tensor, Tensor]:
    """Two tensors [3, 4] of equal numbers: on the device, and on the CPU."""
    host = torch.arange(12.0).view(3, 4) - 5
    return host.to(standin.DEVICE, non_blocking=True), host


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a sum": lambda there, here: there + here,
    "a product": lambda there, here: there @ here.T,
    "a list": lambda there, here: torch.cat([there, here]),
    "a condition": lambda there, here: torch.where(here > 0, there, 0.0),
    "an index of the device on the host": lambda there, here: here[there[:, 0].long().clamp(0, 2)],
    "an index of index_select": lambda there, here: there.index_select(0, torch.tensor([0])),
    "a parameter of index_copy_": lambda there, here: there.index_copy_(0, torch.tensor([0, 1, 2]), there),
    "a value that is put": lambda there, here: there.index_put_((torch.tensor([0, 1, 2]),), here),
    "a whole list": lambda there, here: torch._foreach_add_([there], [here]),
}


@pytest.mark.parametrize("what", MIXED)
def test_tensors_of_two_devices(what: str) -> None:
    with standin.present():
        there, here = pair()
        with pytest.raises(RuntimeError, match=r"device|indices should be"):
            MIXED[what](there, here)


WAITS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda there, here: there.sum().item(),
    "bool": lambda there, here: bool(there[0, 0] > 0),
    "tolist": lambda there, here: there.tolist(),
    "cpu": lambda there, here: there.cpu(),
    "to the host": lambda there, here: there.to("cpu"),
    "to the device": lambda there, here: here.to(there.device),
    "copied to the device": lambda there, here: there.copy_(here),
    "copied to the host": lambda there, here: here.copy_(there),
    "numbers of a list": lambda there, here: torch.tensor([1.0, 2.0], device=there.device),
    "a new tensor of a list": lambda there, here: there.new_tensor([1.0]),
    "nonzero": lambda there, here: there.nonzero(),
    "a mask": lambda there, here: there[there > 0],
    "a mask that is assigned to": lambda there, here: there.__setitem__(there > 0, 0.0),
    "an index on the host": lambda there, here: there[torch.tensor([0, 1])],
    "unique": lambda there, here: there.unique(),
    "equal": lambda there, here: torch.equal(there, there),
    "allclose": lambda there, here: torch.allclose(there, there),
    "bincount": lambda there, here: there[0].long().abs().bincount(),
    "cholesky": lambda there, here: torch.linalg.cholesky(torch.eye(3, device=there.device)),
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_of_the_host(what: str) -> None:
    with standin.present(strict=True):
        there, here = pair()
        with pytest.raises(HostWaits, match="the host waits for the device"):
            WAITS[what](there, here)
    with standin.present():
        WAITS[what](*pair())


def test_what_needs_no_wait() -> None:
    with standin.present(strict=True) as device:
        there, here = pair()
        for result, expected in (
            (there * 2 + 1, here * 2 + 1),
            (there[1:, ::2] / torch.tensor(3.0), here[1:, ::2] / 3),  # a number may come from the host
            (there[torch.zeros(2, dtype=torch.long, device=device)], here[[0, 0]]),
            (torch.arange(3, device=device) + there[:, 0], torch.arange(3) + here[:, 0]),
            (there.topk(2).values, here.topk(2).values),
        ):
            assert result.device == device
            assert torch.equal(standin.held(result), expected)


def test_a_copy_to_the_host_is_there_after_its_event() -> None:
    with standin.present(strict=True):
        there, here = pair()
        number, count = there.sum().to("cpu", non_blocking=True), there.long().to("cpu", non_blocking=True)
        copied = torch.zeros(3, 4).copy_(there, True)  # non_blocking by place
        assert number.isnan() and not torch.equal(count, here.long()) and copied.isnan().all()
        event = Event()
        event.synchronize()  # not recorded: it waits for nothing
        assert number.isnan()
        event.record()
        later = there.sum().to("cpu", non_blocking=True)
        event.synchronize()
        assert number == here.sum() and torch.equal(count, here.long()) and torch.equal(copied, here) and later.isnan()


def test_streams_do_not_know_of_each_other() -> None:
    with standin.present() as device:
        torch_standin = torch.get_device_module(device)
        beside, main = Stream(), torch_standin.current_stream()
        with torch_standin.stream(beside):
            made = torch.ones(3, device=device)
        with pytest.raises(Race, match="has not waited for"):
            made + 1
        main.wait_stream(beside)
        with pytest.raises(Race, match="without record_stream"):
            made + 1
        made.record_stream(main)
        made += 1
        with torch_standin.stream(beside), pytest.raises(Race, match="has not waited for"):
            made[:2] * 2


def test_gradients_are_the_cpus() -> None:
    def gradient(device: torch.device) -> Tensor:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).to(device)
        images = torch.randn(2, 3, 8, 8).to(device)
        layers(images).square().mean().backward()
        weight = layers[0].weight.grad
        assert weight is not None and weight.device == device
        return standin.held(weight)

    with standin.present() as device:
        there = gradient(device)
    assert torch.equal(there, gradient(torch.device("cpu")))


def test_autocast_computes_products_in_half_precision() -> None:
    with standin.present(strict=True) as device, torch.autocast(device.type, torch.bfloat16):
        there, _ = pair()
        assert (there @ there.T).dtype == torch.bfloat16
        assert (there + there).dtype == torch.float32
