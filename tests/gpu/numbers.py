"""Checks of numbers, waits and memory: they compute in their own process, on one GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from moco_dist import config as configs
from moco_dist import train
from moco_dist.config import Config
from moco_dist.data import sources, stream
from moco_dist.data.augment import COLOUR_DRAWS, Augment, Recipe
from moco_dist.data.loader import make_loader
from moco_dist.data.views import Views
from moco_dist.engine import schedule
from moco_dist.engine.build import build
from moco_dist.methods import moco
from moco_dist.networks import batchnorm
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.train import loop
from tests import oracle, replay
from tests.gpu.result import Result, Setting
from tests.networks import group_cases
from tests.views import OPERATIONS, RECIPES, images

PEAK_LIMIT = 1.05
"""Peak memory that a step may take, as a multiple of the same step's in plain torchvision modules."""
GREY_LEVEL = 1 / 255


def traces(setting: Setting) -> Result:
    """The recorded traces, in float32: each recorded rank is a BatchNorm group of this one rank."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    files = sorted(setting.traces.glob("*.npz"))
    source = "recorded by the reference"
    if not files:
        files, source = sorted(oracle.record_all(setting.folder).values()), "recorded by the suite"
    errors = [replay.play(setting.alone, replay.read(path), "all_gather") for path in files]
    worst = {key: max(of_trace[key] for of_trace in errors) for key in ("loss", "queue", "parameters")}
    figures = ", ".join(f"{key} {error:.1e}" for key, error in worst.items())
    passed = all(error <= replay.TOLERANCE for error in worst.values())
    return Result(passed, f"{len(files)} traces {source}, largest error: {figures} (tolerance {replay.TOLERANCE:g})")


def augmentation(setting: Setting) -> Result:
    """Each operation and each recipe of the augmentation, on the CPU and on the device."""
    generator = torch.Generator().manual_seed(1)
    differences: dict[str, float] = {}
    for channels in (1, 3):
        pixels = images(64, channels, 32)
        draws = torch.rand(64, COLOUR_DRAWS, generator=generator)
        there = pixels.to(setting.device)
        for name, operation in OPERATIONS.items():
            here = operation(pixels / 255, draws[:, 0])
            on_device = operation(there / 255, draws[:, 0].to(setting.device))
            differences[f"{name} {channels}"] = (on_device.cpu() - here).abs().max().item()
        for name, recipe in RECIPES.items():
            whole = Augment(recipe, (0.0,) * channels, (1.0,) * channels)
            differences[f"recipe {name} {channels}"] = (
                (whole(there, draws).cpu() - whole(pixels, draws)).abs().max().item()
            )
    worst = max(differences, key=lambda name: differences[name])
    levels = 255 * differences[worst]
    return Result(
        differences[worst] <= GREY_LEVEL,
        f"{len(OPERATIONS)} operations and {len(RECIPES)} recipes, gray and colour: at most {levels:.2g} grey levels "
        f"apart ({worst} channels)",
    )


def groups(setting: Setting) -> Result:
    """All BatchNorm groups at once, by Triton's kernels on a GPU, against torch's BatchNorm of each group."""
    for case in group_cases.CASES:
        group_cases.check(case, setting.kind)
    way = "Triton's kernels" if setting.on_gpu and batchnorm._kernels() else "plain torch"
    figures = f"{len(group_cases.CASES)} batches by {way}: float64 to 1e-12, else as near to it as torch's BatchNorm"
    return Result(not setting.on_gpu or way != "plain torch", figures)


def waits(setting: Setting) -> Result:
    """Ten steps of the trainer's loop, in which every wait of the host for the GPU is an error."""
    steps_of_the_loop = loop.Training._loop

    def strict_loop(self: loop.Training, start: int) -> None:
        with _waiting_is_an_error(setting):
            steps_of_the_loop(self, start)

    overrides = [f"device.type={setting.kind}", "track.log_every=100", "optim.steps=10", "track.wandb=disabled"]
    precisions = ("fp32", "bf16", "fp16") if setting.on_gpu else ("fp32",)
    for precision in precisions:
        run_dir = setting.folder / precision
        with mock.patch.object(loop.Training, "_loop", strict_loop):
            code = train.run([*overrides, f"device.precision={precision}", f"run.dir={run_dir}"])
        if code:
            return Result(False, f"{precision}: exit status {code}")
    return Result(True, f"ten steps in {', '.join(precisions)}: no wait but the marked ones")


@contextmanager
def _waiting_is_an_error(setting: Setting) -> Iterator[None]:
    if not setting.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Steps:
    """Training steps of the default config in fp16, one at a time."""

    def __init__(self, setting: Setting, overrides: list[str]) -> None:
        world, self.config = setting.alone, configs.load(None, ["device.precision=fp16", *overrides])
        data, plan = sources.load(self.config), configs.layout(self.config, 1)
        encoder = build_encoder(self.config.model, data.train.channels, seed=0)
        self.engine = build(moco.MoCo(self.config, world, encoder), self.config, plan, world)
        self.epoch_steps = stream.steps_per_epoch(len(data.train), self.config.optim.global_batch)
        pairs = stream.pretraining(data.train, self.config, world, self.engine.method.own_places)
        loader = make_loader(pairs, range(10_000), 0, world.device)
        whole = Augment(Recipe.of(self.config.data), *data.train.pixel_statistics)
        self.views = stream.on_device(loader, whole, world.device, self.engine.image_dtype)
        self.done = 0

    def loss(self) -> float:
        """Take a step; its loss."""
        views, _ = next(self.views)
        rate = schedule.learning_rate(self.config.optim, self.done, self.epoch_steps)
        self.done += 1
        return self.engine.step(views, self.done - 1, rate).values[0].item()

    def weights(self, encoder: str) -> list[Tensor]:
        return [p.detach().clone() for p in getattr(self.engine.method, encoder).parameters()]


def overflow(setting: Setting) -> Result:
    """An overflow of fp16 gradients: that step and the next momentum update are skipped, and the curve goes on."""
    small = [] if setting.on_gpu else ["model.width=8", "optim.global_batch=32"]
    steps = 40 if setting.on_gpu else 12
    undisturbed = _Steps(setting, small)
    expected = [undisturbed.loss() for _ in range(steps)]
    run = _Steps(setting, small)
    losses = [run.loss() for _ in range(4)]
    scaler, before = run.engine.scaler, run.weights("encoder_q")
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**100})
    losses.append(run.loss())
    skipped = run.engine.skipped and _equal(run.weights("encoder_q"), before)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})
    keys = run.weights("encoder_k")
    losses.append(run.loss())
    update_skipped = _equal(run.weights("encoder_k"), keys)
    goes_on = not run.engine.skipped and not _equal(run.weights("encoder_q"), before)
    losses += [run.loss() for _ in range(steps - len(losses))]
    apart = abs(sum(losses[-5:]) - sum(expected[-5:])) / 5
    return Result(
        skipped and update_skipped and goes_on and apart < 0.25,
        f"step skipped: {_yes(skipped)}; next momentum update skipped: {_yes(update_skipped)}; next step taken: "
        f"{_yes(goes_on)}; mean loss of the last 5 of {steps} steps {sum(losses[-5:]) / 5:.3f}, without the overflow "
        f"{sum(expected[-5:]) / 5:.3f}",
    )


def _equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(map(torch.equal, ones, others))


def _yes(fact: bool) -> str:
    return "yes" if fact else "NO"


# --------------------------------------------------------------------------------------------------------------- memory


def memory(setting: Setting) -> Result:
    """Peak memory of a ResNet-50 step against the same step in plain torchvision modules."""
    batch, size, queue = (256, 224, 65536) if setting.on_gpu else (4, 32, 64)
    arch = "resnet50" if setting.on_gpu else "resnet18"
    overrides = [f"optim.global_batch={batch}", f"data.image_size={size}", f"moco.queue_size={queue}"]
    overrides += [f"model.arch={arch}", "data.source=synthetic", "data.root=null", "device.compile=false"]
    peaks = {}
    for groups in (1, 8) if setting.on_gpu else (1, 2):
        config = configs.load(Path("imagenet_v2"), [*overrides, f"moco.bn_groups={groups}"])
        peaks[f"{groups} BatchNorm group{'s' * (groups > 1)}"] = _peak_of_ours(setting, config)
    plain = _peak_of_plain(setting, config)
    if not setting.on_gpu:
        return Result(True, f"{arch}, {size}², batch {batch}: the steps ran; the CPU has no peak to compare")
    ratios = {name: peak / plain for name, peak in peaks.items()}
    shown = ", ".join(f"{name} {peaks[name] / 2**30:.2f} GiB ({ratio:.3f})" for name, ratio in ratios.items())
    return Result(
        max(ratios.values()) <= PEAK_LIMIT,
        f"{arch}, {size}², batch {batch}, queue {queue}, bf16: plain {plain / 2**30:.2f} GiB; ours with {shown}; "
        f"limit {PEAK_LIMIT}",
    )


def _peak_of_ours(setting: Setting, config: Config) -> int:
    plan = configs.layout(config, 1)
    encoder = build_encoder(config.model, 3, seed=0)
    engine = build(moco.MoCo(config, setting.alone, encoder), config, plan, setting.alone)
    views = Views.of(*_views(setting, config))
    with _peak(setting) as peak:
        for step in range(3):
            engine.step(views, step, 0.03)
    return peak[0]


def _peak_of_plain(setting: Setting, config: Config) -> int:
    """The step of algorithm 1 with torchvision's ResNet and its BatchNorm over the whole batch."""
    batch, temperature = config.optim.global_batch, config.moco.temperature
    encoder_q: nn.Module = getattr(torchvision.models, config.model.arch)(num_classes=config.model.dim)
    width = encoder_q.fc.in_features
    encoder_q.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder_q.fc)
    encoder_q = encoder_q.to(setting.device, memory_format=torch.channels_last)
    encoder_k = copy.deepcopy(encoder_q).requires_grad_(False)
    queue = F.normalize(torch.randn(config.model.dim, config.moco.queue_size, device=setting.device), dim=0)
    optimizer = torch.optim.SGD(encoder_q.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    im_q, im_k = _views(setting, config)
    with _peak(setting) as peak:
        for step in range(3):
            with torch.no_grad(), devices.autocast(setting.device, torch.bfloat16):
                for key_weight, query_weight in zip(encoder_k.parameters(), encoder_q.parameters(), strict=True):
                    key_weight.mul_(0.999).add_(query_weight, alpha=0.001)
                order = torch.randperm(batch, device=setting.device)
                keys = F.normalize(encoder_k(im_k[order]).float(), dim=1)[order.argsort()]  # [N, C]
            with devices.autocast(setting.device, torch.bfloat16):
                queries = F.normalize(encoder_q(im_q).float(), dim=1)  # [N, C]
                positive = (queries * keys).sum(dim=1, keepdim=True)
                logits = torch.cat([positive, queries @ queue], dim=1).float() / temperature  # [N, 1+K]
                loss = F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long, device=setting.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            begin = step * batch % config.moco.queue_size
            queue[:, begin : begin + batch] = keys.T
    return peak[0]


def _views(setting: Setting, config: Config) -> tuple[Tensor, Tensor]:
    """Two views in the format in which the trainer's batches come."""
    size = config.data.image_size
    views = torch.randn(2, config.optim.global_batch, 3, size, size, device=setting.device).bfloat16()
    return views[0], views[1]


@contextmanager
def _peak(setting: Setting) -> Iterator[list[int]]:
    """Yield a list that holds, at the end, the most bytes of the device that were taken within."""
    peak = [0]
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield peak
    if setting.on_gpu:
        peak[0] = torch.cuda.max_memory_allocated()
