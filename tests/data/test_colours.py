"""The Triton kernel that changes colours, in its interpreter and as its compiler takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moco_dist.data import augment
from tests.data.made import colour_draws, pixels, recipe
from tests.jobs import ROOT


def test_the_kernel_in_its_interpreter() -> None:
    """Triton reads the switch when it is imported, so the cases run in a process of their own."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.data.colour_cases"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["checked", "12"]


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes more than the compiler does, which needs no GPU to make a GPU's code."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moco_dist.data import colour_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, types = colour_kernels._colour, {"images": "*u8", "parameters": "*fp32", "out": "*fp32", "pixels": "i32"}
    constants = {"GRAY_FIRST": False, "PIXELS": colour_kernels.PIXELS}
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in kernel.arg_names},
        {(place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants},
    )
    assert ".target sm_80" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]


def test_the_kernel_is_for_colour_in_single_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernels:
        @staticmethod
        def colour(images: torch.Tensor, *parameters: torch.Tensor, gray_first: bool) -> torch.Tensor:
            return images.float().fill_(0.25 if gray_first else 0.5)

    monkeypatch.setattr(augment, "_kernels", lambda: Kernels)
    monkeypatch.setattr(augment, "_is_on_gpu", lambda images: True)
    for channels, dtype, name, level in (
        (3, torch.float32, "v1", 0.25),
        (3, torch.float32, "v2", 0.5),
        (3, torch.float64, "v2", -1),
        (1, torch.float32, "v2", -1),
        (3, torch.float32, "crop_blur", -1),  # which has no colours
    ):
        coloured = augment._coloured(pixels(4, channels, 8), colour_draws(4), recipe(name), dtype)
        assert bool((coloured == level).all()) is (level > 0)
