"""The parts of `benchmarks.gpu`: each yields its figures as it measures them."""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks import steps, throughput
from benchmarks.baselines.program import Step
from moco_dist import config as configs
from moco_dist.data.augment import COLOUR_DRAWS, Augment, Recipe
from moco_dist.data.views import Views
from moco_dist.engine.checkpoint import Checkpoints

SHIPPED = ("data.source=synthetic", "data.root=null")
BARE = ("device.channels_last=true", "device.compile=true")
GROUPS = 8
ROUNDS, BLOCK_STEPS = 6, 5
SMALL = ("model.arch=resnet18", "data.image_size=16", "optim.global_batch=16", "moco.queue_size=64")
SMALL += ("device.precision=fp32", "device.compile=false")


@dataclass(frozen=True)
class Setting:
    """The device and the folder that the parts use."""

    device: torch.device
    scratch: Path
    """This folder is for files, and is removed at the end."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type != "cpu"

    @property
    def rounds(self) -> int:
        """Return how many turns each of several steps takes."""
        return ROUNDS if self.on_gpu else 1

    @property
    def block_steps(self) -> int:
        """Return how many steps a turn has."""
        return BLOCK_STEPS if self.on_gpu else 1

    def seconds(self, contestants: Mapping[str, Step]) -> dict[str, float]:
        """Return the seconds of a step of each, taken in turns."""
        return steps.in_turns(contestants, self.rounds, self.block_steps)

    def config(self, name: str, *overrides: str) -> configs.Config:
        """Read a shipped config with its overrides; on the CPU in small."""
        return configs.load(Path(name), [*SHIPPED, *overrides, *(() if self.on_gpu else SMALL)])


class Figure(NamedTuple):
    """A figure is what a row says."""

    what: str
    value: float
    unit: str = ""
    """Empty for a ratio."""
    target: str = ""
    """`>= NUMBER` or `<= NUMBER`; empty where there is none."""

    @property
    def met(self) -> bool | None:
        """Tell whether the figure meets its target; None without one."""
        if not self.target:
            return None
        sign, number = self.target.split()
        return self.value >= float(number) if sign == ">=" else self.value <= float(number)

    @property
    def shown(self) -> str:
        """Return the figure for people."""
        value = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.3g}"
        return f"{value} {self.unit}".strip() + ("" if self.met is None else ", met" if self.met else ", NOT met")


FIRST = "seconds from nothing to the end of the first step, compile cache empty"
OF_BARE = "ResNet-50, 224², batch 256, as shipped: speed over the bare compiled step"
GROUPS_COMPILED = f"{GROUPS} BatchNorm groups, as shipped: speed over that of 1 group"
MEMORY_COMPILED = f"{GROUPS} BatchNorm groups, as shipped: memory over that of 1 group"
OF_BARE_32 = "ResNet-50, 224², batch 32: speed over the bare compiled step"
GROUPS_EAGER = f"{GROUPS} BatchNorm groups, not compiled: speed over that of 1 group"
MEMORY_EAGER = f"{GROUPS} BatchNorm groups, not compiled: memory over that of 1 group"
PAIR = "augmentation of a pair of 224² views"
CIFAR10 = "CIFAR-10 from JPEG files, end to end: speed over the fastest bare step"
STALL = "checkpoint of a ResNet-50: share of the training time"
TARGETS = {
    OF_BARE: ">= 0.95",
    FIRST: "<= 30",
    GROUPS_COMPILED: ">= 0.95",
    MEMORY_COMPILED: "<= 1.05",
    PAIR: "<= 0.1",
    GROUPS_EAGER: ">= 0.95",
    MEMORY_EAGER: "<= 1.05",
    OF_BARE_32: ">= 0.9",
    CIFAR10: ">= 0.9",
    STALL: "<= 2",
}
"""The figures that have a target, and the target."""


def _aimed(what: str, value: float, unit: str = "") -> Figure:
    """Make a figure that has a target."""
    return Figure(what, value, unit, TARGETS[what])


def shipped(setting: Setting) -> Iterator[Figure]:
    """Time configs/imagenet_v2.yaml, with 8 BatchNorm groups and with 1, and the bare compiled step in turns."""
    eight = _started(setting, steps.ours, setting.config("imagenet_v2", f"moco.bn_groups={GROUPS}"))
    yield _aimed(FIRST, eight.first_seconds, "s")
    one = _started(setting, steps.ours, setting.config("imagenet_v2", "moco.bn_groups=1"))
    seconds = _turns(setting, {"eight": eight, "one": one})
    yield _aimed(GROUPS_COMPILED, seconds["one"] / seconds["eight"])
    if setting.on_gpu:
        yield _aimed(MEMORY_COMPILED, eight.peak_bytes / one.peak_bytes)
    del one
    config = setting.config("imagenet_v2", *BARE)
    started = {"as shipped": eight, "the bare compiled step": _started(setting, steps.bare, config)}
    seconds = _turns(setting, started)
    yield _aimed(OF_BARE, seconds["the bare compiled step"] / seconds["as shipped"])
    for name, each in started.items():
        yield Figure(f"ResNet-50, 224², batch 256, {name}", config.optim.global_batch / seconds[name], "images/s")
        if setting.on_gpu:
            yield Figure(f"the same, {name}: peak memory", each.peak_bytes / 2**30, "GiB")


def augmentation(setting: Setting) -> Iterator[Figure]:
    """Time the operations on the device on a batch of pairs of views."""
    config = setting.config("imagenet_v2")
    batch, size = config.optim.global_batch, config.data.image_size
    augment = Augment(Recipe.of(config.data), (0.5,) * 3, (0.25,) * 3)
    views = torch.randint(0, 256, (2, batch, 3, size, size), dtype=torch.uint8, device=setting.device)
    draws = torch.rand(2, batch, COLOUR_DRAWS, generator=torch.Generator().manual_seed(0))

    def pair() -> torch.Tensor:
        return torch.stack([augment(views[v], draws[v])[0, 0, 0, 0] for v in range(2)]).sum()

    pair()
    yield _aimed(PAIR, 1e3 * setting.seconds({"pair": pair})["pair"] / batch, "ms")


def groups(setting: Setting) -> Iterator[Figure]:
    """Time 8 BatchNorm groups and 1 in turns, not compiled."""
    one, eight = (
        _started(setting, steps.ours, setting.config("imagenet_v2", f"moco.bn_groups={count}", "device.compile=false"))
        for count in (1, GROUPS)
    )
    seconds = _turns(setting, {"one": one, "eight": eight})
    yield _aimed(GROUPS_EAGER, seconds["one"] / seconds["eight"])
    if setting.on_gpu:
        yield _aimed(MEMORY_EAGER, eight.peak_bytes / one.peak_bytes)


def batch32(setting: Setting) -> Iterator[Figure]:
    """Time a batch of 32, as a GPU has it among eight, also with CUDA graphs, and the bare compiled step in turns."""
    batch = "optim.global_batch=32", "moco.bn_groups=1"
    ours = _started(setting, steps.ours, setting.config("imagenet_v2", *batch))
    bare = _started(setting, steps.bare, setting.config("imagenet_v2", *batch, *BARE))
    seconds = _turns(setting, {"ours": ours, "bare": bare})
    yield _aimed(OF_BARE_32, seconds["bare"] / seconds["ours"])
    del ours
    graphs = _started(setting, steps.ours, setting.config("imagenet_v2", *batch, "device.compile=reduce-overhead"))
    seconds = _turns(setting, {"graphs": graphs, "bare": bare})
    yield Figure(f"{OF_BARE_32}, with device.compile=reduce-overhead", seconds["bare"] / seconds["graphs"])


def cifar10(setting: Setting) -> Iterator[Figure]:
    """Train configs/cifar10.yaml in bf16 from JPEG files as a real run, and time the bare steps."""
    root = throughput.made_images(setting.scratch / "images", 10_000 if setting.on_gpu else 32, 32)
    precision = ("device.precision=bf16",) if setting.on_gpu else SMALL
    words = ["configs/cifar10.yaml", "data.source=imagefolder", f"data.root={root}", *precision]
    words.append(f"device.type={setting.device.type}")
    counts = argparse.Namespace(ranks=1, warm_up=40 if setting.on_gpu else 1, steps=100 if setting.on_gpu else 2)
    program = throughput.Program("moco_dist.train", throughput.OURS)
    speed = throughput.measure(program, setting.scratch / "run", words, counts).images_per_second
    yield Figure("CIFAR-10 from JPEG files, end to end", speed, "images/s")
    bare = {}
    for compiled in ("false", "true") if setting.on_gpu else ("false",):
        config = setting.config("cifar10", *precision, "device.channels_last=true", f"device.compile={compiled}")
        bare[compiled] = _started(setting, steps.bare, config)
    fastest = min(_turns(setting, bare).values())
    yield _aimed(CIFAR10, speed * fastest / config.optim.global_batch)


def checkpoint(setting: Setting) -> Iterator[Figure]:
    """Save the state of a ResNet-50's training several times, and relate the stall to the steps between two saves."""
    config = setting.config("imagenet_v2", "device.compile=false")
    engine = steps.engine(config, setting.device)
    size = config.data.image_size
    noise = torch.randn(2, config.optim.global_batch, 3, size, size, device=setting.device)
    views = Views(noise.to(engine.image_dtype))

    def step() -> torch.Tensor:
        return engine.step(views, 0, config.optim.lr).values[0]

    stalls, checkpoints = [], Checkpoints(setting.scratch / "checkpoints", config.checkpoint.keep)
    for number in range(1, 1 + setting.rounds):
        steps.seconds(step, 1)
        began = time.perf_counter()
        checkpoints.save(number, {"step": number, "config": config.model_dump(mode="json"), **engine.state()})
        stalls.append(time.perf_counter() - began)
        checkpoints.wait()
    assert not checkpoints.failures
    of_step = setting.seconds({"step": step})["step"]
    interval = (config.checkpoint.every_steps or 1000) * of_step
    yield _aimed(STALL, 100 * statistics.median(stalls) / interval, "%")


def jpeg(setting: Setting) -> Iterator[Figure]:
    """Decode JPEG files of 500x375 pixels on the device and on one core, by torchvision."""
    from torchvision.io import decode_jpeg

    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    file = io.BytesIO()
    smooth.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    files = [content] * (256 if setting.on_gpu else 4)

    def decoded() -> torch.Tensor:
        return torch.stack(decode_jpeg(files, device=setting.device))[0, 0, 0, 0]

    decoded()
    seconds = setting.seconds({"device": decoded, "core": lambda: decode_jpeg(content)[0, 0, 0]})
    yield Figure("JPEG files decoded on the device, 500x375", len(files) / seconds["device"], "images/s")
    yield Figure("JPEG files decoded on one core, 500x375", 1 / seconds["core"], "images/s")


class Started(NamedTuple):
    """This step is ready to be timed."""

    step: Step
    first_seconds: float
    """The time from nothing to the end of the first step."""
    peak_bytes: int
    """The most bytes of the GPU that it takes; on the CPU 0."""


def _started(setting: Setting, make: Callable[[configs.Config, torch.device], Step], config: configs.Config) -> Started:
    """Make a step, and take it until it is as fast as it will be."""
    gc.collect()
    before = torch.cuda.memory_allocated() if setting.on_gpu else 0
    began = time.perf_counter()
    step = make(config, setting.device)
    steps.seconds(step, 1)
    first_seconds = time.perf_counter() - began
    if not setting.on_gpu:
        return Started(step, first_seconds, 0)
    steps.seconds(step, steps.WARM_UP_STEPS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps.seconds(step, 1)
    return Started(step, first_seconds, torch.cuda.max_memory_allocated() - before)


def _turns(setting: Setting, started: Mapping[str, Started]) -> dict[str, float]:
    return setting.seconds({name: each.step for name, each in started.items()})
