"""What eight BatchNorm groups cost over one: images a second and peak memory of MoCo's training step.

python -m benchmarks.gpu [--device cuda|cpu] [--steps N]

One process takes the steps of the overlapped engine on random images that are on the device already: ResNet-50 (224²,
batch 256) and the small ResNet-18 (32², batch 512), in bf16 and channels_last, as written and compiled. Each row is
printed when it is measured; `ratio` is its speed over that of one group. Compiling takes about a minute for each row.
`--device cpu` runs a small variant that compiles nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import torch

from moco_dist import config as configs
from moco_dist.data.views import Views
from moco_dist.engine.build import build
from moco_dist.engine.engine import Engine
from moco_dist.methods import moco
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

COMMON = ["data.source=synthetic", "data.root=null", "device.engine=overlapped", "device.precision=bf16"]
COMMON += ["device.channels_last=true"]
SMALL = ["model.arch=resnet18", "model.width=8", "data.image_size=32", "optim.global_batch=64", "moco.queue_size=256"]
"""What the variant for the CPU has beside. It shows that the command works, and nothing of a GPU's speed."""
CONFIGS = ("imagenet_v2", "cifar10")
WARM_UP_STEPS, BLOCK_STEPS = 5, 5


def main(arguments: list[str]) -> int:
    """Measure every row and print it. Returns the exit status: 2 where there is no GPU."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small variant")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="measured steps of each row; default: 30")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device here; --device cpu runs a small variant", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if on_gpu else 'CPU, small variant'}\n")
    print("| model | compiled | groups | images/s | ratio | peak GiB |\n|---|---|---:|---:|---:|---:|")
    for name in CONFIGS:
        for compiled in (False, True) if on_gpu else (False,):
            alone = 0.0
            for groups in (1, 8 if on_gpu else 2):
                overrides = [*COMMON, *(() if on_gpu else SMALL), f"moco.bn_groups={groups}"]
                config = configs.load(Path(name), [*overrides, f"device.compile={str(compiled).lower()}"])
                speed, peak = measured(config, device, options.steps)
                alone = alone or speed
                memory = f"{peak / 2**30:.2f}" if on_gpu else "-"
                title = f"{config.model.arch}, {config.data.image_size}²"
                row = (title, "yes" if compiled else "no", groups, f"{speed:,.0f}", f"{speed / alone:.2f}", memory)
                print("|", " | ".join(map(str, row)), "|", flush=True)
    return 0


def measured(config: configs.Config, device: torch.device, steps: int) -> tuple[float, int]:
    """Return the images a second, the median over blocks of steps, and the peak bytes of the device (CPU: 0)."""
    torch.compiler.reset()
    gc.collect()
    world = World(0, 1, 0, device)
    devices.prepare(config, device)
    engine = build(
        moco.MoCo(config, world, build_encoder(config.model, 3, seed=0)), config, configs.layout(config, 1), world
    )
    batch, size = config.optim.global_batch, config.data.image_size
    views = torch.randn(2, batch, 3, size, size, device=device).to(engine.image_dtype)
    _seconds(engine, views, WARM_UP_STEPS)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = [_seconds(engine, views, BLOCK_STEPS) for _ in range(max(1, steps // BLOCK_STEPS))]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return batch * BLOCK_STEPS / statistics.median(seconds), peak


def _seconds(engine: Engine, views: torch.Tensor, steps: int) -> float:
    """Return how long so many steps take, until the device has done them."""
    began = time.perf_counter()
    for step in range(steps):
        figures = engine.step(Views(views), step, 0.03)
    figures.values.tolist()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
