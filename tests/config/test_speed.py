"""`device.compile` and `device.channels_last` have a documented meaning where they are auto."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_dist.config import load, speed
from moco_dist.config.speed import COMPILED_FROM_PIXELS, COMPILED_FROM_STEPS, Speed

LARGE = "imagenet_v2"


@pytest.mark.parametrize(
    ("name", "overrides", "on_cpu", "compiles", "channels_last"),
    [
        (LARGE, [], False, True, True),
        (LARGE, [], True, False, True),
        (LARGE, ["device.precision=fp16"], False, True, True),
        (LARGE, ["device.precision=fp32"], False, False, False),
        (LARGE, ["device.precision=fp32"], True, False, True),
        (LARGE, ["device.engine=exact"], False, False, True),
        (LARGE, ["device.deterministic=true"], False, False, True),
        (LARGE, ["device.deterministic=true", "device.engine=overlapped"], False, False, True),
        (LARGE, ["model.arch=resnet18"], False, False, True),
        (LARGE, [f"data.image_size={COMPILED_FROM_PIXELS}"], False, True, True),
        (LARGE, [f"data.image_size={COMPILED_FROM_PIXELS - 1}"], False, False, True),
        (LARGE, [f"optim.steps={COMPILED_FROM_STEPS}"], False, True, True),
        (LARGE, [f"optim.steps={COMPILED_FROM_STEPS - 1}"], False, False, True),
        (LARGE, ["device.compile=false", "device.channels_last=false"], False, False, False),
        (LARGE, ["device.compile=reduce-overhead"], False, "reduce-overhead", True),
        ("cifar10", ["device.precision=bf16"], False, False, True),
        ("digits", [], False, False, False),
        ("digits", [], True, False, True),
        ("digits", ["device.compile=true", "device.channels_last=true"], False, True, True),
        ("digits", ["device.compile=yes", "device.channels_last=False"], True, True, False),
    ],
)
def test_what_is_on(name: str, overrides: list[str], on_cpu: bool, compiles: bool | str, channels_last: bool) -> None:
    config = load(Path(name), ["data.root=/data", *overrides] if name != "digits" else overrides)
    assert speed.chosen(config, on_cpu=on_cpu) == Speed(compiles, channels_last)  # type: ignore[arg-type]
