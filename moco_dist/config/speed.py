"""Decide what `auto` means for the keys of `device` that change the speed and not the result.

What is on by itself was measured to pay (`docs/decisions.md`); true and false are taken as they stand.
"""

from dataclasses import dataclass
from typing import Literal

from moco_dist.config.schema import Config

COMPILED_ARCHITECTURES = ("resnet50", "resnet101", "resnet152")
COMPILED_FROM_PIXELS = 128
"""Between 32 pixels, at which Python is the limit and compiling made steps slower, and 224, at which it paid."""
COMPILED_FROM_STEPS = 2000
"""A step of 256 images is about 30 ms shorter, so that compiling for up to a minute is paid back by then."""


@dataclass(frozen=True)
class Speed:
    """Settings that change the speed of the networks, and not their results: compiling and the layout of memory."""

    compile: Literal["reduce-overhead"] | bool
    """The mode of torch.compile; true is its default one."""
    channels_last: bool


def chosen(config: Config, *, on_cpu: bool) -> Speed:
    """Return what `device.compile` and `device.channels_last` mean on the CPU or on a GPU."""
    device, model, steps = config.device, config.model, config.optim.steps
    half = device.precision in ("bf16", "fp16")
    pays = (
        half
        and not on_cpu
        and not device.is_exact(on_cpu=on_cpu)
        and not device.deterministic  # a compiler that times its choices may choose otherwise at the next start
        and model.arch in COMPILED_ARCHITECTURES
        and config.data.image_size >= COMPILED_FROM_PIXELS
        and (steps is None or steps >= COMPILED_FROM_STEPS)
    )
    return Speed(
        pays if device.compile == "auto" else device.compile,
        on_cpu or half if device.channels_last == "auto" else device.channels_last,
    )
