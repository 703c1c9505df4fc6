"""All BatchNorm groups at once, in plain torch and by Triton's kernels, against torch's BatchNorm of each group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_dist import networks
from moco_dist.networks import batchnorm
from moco_dist.networks.batchnorm import GroupBatchNorm2d, normalise
from tests import standin
from tests.jobs import ROOT
from tests.networks.group_cases import CASES, EPS, Case, check, computed, one_after_the_other, operands


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_torch(case: Case) -> None:
    check(case)


def test_gradients_by_differences() -> None:
    x, weight, bias, _ = operands(Case((4, 3, 2, 3), 2))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *tensors: normalise(*tensors, 2, EPS)[0], inputs)


def test_a_second_derivative_is_refused() -> None:
    """Mean and deviation are kept as numbers, so it would be wrong."""
    x, weight, bias, dy = operands(Case((4, 3, 2, 3), 2))
    output, _ = normalise(x.requires_grad_(), weight, bias, 2, EPS)
    (gradient,) = torch.autograd.grad(output, x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_group_of_one_value_is_refused() -> None:
    x, weight, bias, _ = operands(Case((4, 3, 1, 1), 2))
    for how in (normalise, one_after_the_other):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            how(x, weight, bias, 4, EPS)


@contextmanager
def kept_for_backward() -> Iterator[dict[int, int]]:
    """Yield the bytes of each piece of memory, by its address, that forward passes within keep for the backward one."""
    memories: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        memories[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield memories


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_more_is_kept_than_by_one_batchnorm(dtype: torch.dtype, channels_last: bool) -> None:
    x, weight, bias, _ = operands(Case((32, 8, 16, 16), 8, channels_last, dtype))
    kept = []
    for how, groups in ((one_after_the_other, 1), (normalise, 8)):
        with kept_for_backward() as memories:
            output, _ = how(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), groups, EPS)
        kept.append(sum(memories.values()))
        del output
    assert x.nbytes < kept[0] and x.nbytes < kept[1] <= 1.05 * kept[0]


class Block(nn.Module):
    """A convolution and a BatchNorm of all groups at once, on the CPU too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 6, 3), GroupBatchNorm2d(6)
        self.norm.group_size = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        output, sums = normalise(x, self.norm.weight, self.norm.bias, 3, self.norm.eps)
        self.norm.group_sums.add_(sums)
        return torch.relu(output)


@pytest.mark.parametrize("half", [False, True])
def test_it_compiles_without_a_break_of_the_graph(half: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 9, 9).to(memory_format=torch.channels_last)
    blocks = [Block(), Block()]
    blocks[1].load_state_dict(blocks[0].state_dict())
    blocks[1].compile(fullgraph=True, backend="aot_eager_decomp_partition")  # inductor's graphs, without its code
    kept = []
    for block in blocks:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), kept_for_backward() as memories:
            output = block(x)
        kept.append(sum(memories.values()))
        assert output.dtype == (torch.bfloat16 if half else torch.float32)
        output.float().square().sum().backward()
    close = {"rtol": 0.05, "atol": 0.1} if half else {"rtol": 1e-4, "atol": 1e-4}
    for (name, one), two in zip(blocks[0].named_parameters(), blocks[1].parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        torch.testing.assert_close(one.grad, two.grad, msg=name, **close)
    torch.testing.assert_close(blocks[0].norm.group_sums, blocks[1].norm.group_sums)
    assert kept[1] <= 1.05 * kept[0]


@pytest.mark.standin
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_on_a_device_the_module_computes_all_groups_at_once(
    dtype: torch.dtype, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((6, 5, 3, 4), 3, channels_last, dtype)
    module = GroupBatchNorm2d(5, eps=EPS).to(torch.promote_types(dtype, torch.float32))
    module.group_size = 2
    batch_norms = []
    batch_norm = F.batch_norm
    monkeypatch.setattr(F, "batch_norm", lambda *args: batch_norms.append(args) or batch_norm(*args))
    x, weight, bias, dy = operands(case)
    with standin.present() as device:
        module.to(device)
        with standin.strictly():
            x, weight, bias, dy = (t.to(device, non_blocking=True) for t in (x, weight, bias, dy))

            def of_module(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
                output = torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))
                return output, module.group_sums

            ours = computed(of_module, x, weight, bias, dy, 3)
    assert not batch_norms
    expected = computed(normalise, *operands(case), 3)
    for number, other in zip(ours, expected, strict=True):
        assert torch.equal(standin.held(number), other)
    with standin.present() as device:  # one group is torch's own kernel, wherever it is
        module.group_size = None
        module(torch.rand(2, 5, 2, 2, dtype=module.weight.dtype).to(device))
    assert len(batch_norms) == 1


def test_without_triton_it_is_plain_torch_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delattr(networks, "batchnorm_kernels", raising=False)
    monkeypatch.delitem(sys.modules, "moco_dist.networks.batchnorm_kernels", raising=False)
    batchnorm._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"without Triton, which is slower \(ModuleNotFoundError: .*triton"):
            assert batchnorm._kernels() is None
    finally:
        batchnorm._kernels.cache_clear()


def test_tritons_kernels_in_its_interpreter() -> None:
    """Triton reads the switch when it is imported, so the cases run in a process of their own."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.networks.group_cases"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["checked", str(len(CASES))]


@pytest.mark.parametrize("channels_last", [False, True])
def test_tritons_kernels_compile_for_a_gpu(
    channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does, which needs no GPU to make a GPU's code."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moco_dist.networks import batchnorm_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("x", "dy", "out"), "*bf16") | dict.fromkeys(("rows", "pixels", "channels"), "i32")
    types |= dict.fromkeys(("kept", "sums", "weight", "bias", "results"), "*fp32")
    constants = {"EPS": EPS, "PIECES": 4, "CHANNELS_LAST": channels_last, "ROWS": 16, "CHANNELS": 16}
    for kernel in (batchnorm_kernels._add_up, batchnorm_kernels._normalise):
        for backward in (False, True):
            numbers = constants | {"BACKWARD": backward}
            source = ASTSource(
                kernel,
                {name: types.get(name, "constexpr") for name in kernel.arg_names},
                {(place,): numbers[name] for place, name in enumerate(kernel.arg_names) if name in numbers},
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
            assert ".target sm_80" in compiled.asm["ptx"]
