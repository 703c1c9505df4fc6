"""Estimate what a run needs: memory of a GPU, room for a checkpoint, time of an epoch.

python -m launcher.checks.estimate MODEL CHANNELS IMAGE_SIZE

prints what the encoder itself takes, an EncoderCost as JSON. MODEL is the config's section as JSON. It is a process of
its own, so that a command of the launcher neither needs torch nor waits for its import.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import launcher
from launcher import environment
from moco_dist import packages
from moco_dist.config import Config, Layout
from moco_dist.config.data_section import DataSection
from moco_dist.config.schema import ModelSection

GIB = 2**30

_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
_BESIDE = 1.3
"""Memory over the tensors that are counted: workspaces of cuDNN, gradients of activations, fragments."""
_CONTEXT_BYTES = GIB // 2
"""Memory that CUDA and NCCL themselves take."""
_OF_PEAK = 0.4
"""A ResNet reaches this part of a GPU's peak: 8 V100 took 53 hours for MoCo's 200 epochs (its README), 35 %."""
_MEASURE_SECONDS = 120.0
_IMAGES = 2
"""Images that the encoder is measured on."""


class Unmeasured(Exception):
    """The encoder could not be measured; the message says why."""


@dataclass(frozen=True)
class EncoderCost:
    """The memory and the operations of one encoder with its head."""

    parameters: int
    operations: int
    """Operations of one image's forward pass; a multiply-add is two."""
    saved_numbers: int
    """Floating-point numbers that one image's forward pass keeps for the backward pass."""
    saved_index_bytes: int
    """Bytes that it keeps besides: the indices of the pool."""

    def saved_bytes(self, element: int) -> int:
        """Return what one image's forward pass keeps, with so many bytes a number."""
        return element * self.saved_numbers + self.saved_index_bytes


def encoder_cost(config: Config) -> EncoderCost:
    """Measure the encoder of a run, in a process that imports torch. Raises Unmeasured."""
    if not packages.installed("torch"):
        raise Unmeasured("torch is not installed here")
    return _measured(config.model.model_dump_json(), channels(config.data), config.data.image_size)


@functools.cache  # the members of a sweep often share it
def _measured(model: str, channels: int, image_size: int) -> EncoderCost:
    try:
        text = torch_process("launcher.checks.estimate", model, str(channels), str(image_size))
        return EncoderCost(**json.loads(text.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        raise Unmeasured((error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]) from None
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError, IndexError) as error:
        raise Unmeasured(f"{type(error).__name__}: {error}") from None


def torch_process(module: str, *words: str) -> str:
    """Run one of our modules, which needs torch, on the CPU in a process of its own. Returns what it prints.

    Raises:
        OSError, subprocess.SubprocessError: it failed, or took too long.
    """
    command = [sys.executable, "-m", module, *words]
    path = environment.python_path(Path(launcher.__path__[0]).parent)
    variables = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command, env=variables, capture_output=True, text=True, check=True, timeout=_MEASURE_SECONDS
    )
    return process.stdout


def measure(model: ModelSection, channels: int, image_size: int) -> EncoderCost:
    """Count what an encoder holds and does, on torch's meta device, where tensors have shapes and no content."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    from moco_dist.networks.resnet import build_encoder

    with torch.device("meta"):
        encoder = build_encoder(model, channels, seed=0)
        images = torch.empty(_IMAGES, channels, image_size, image_size)
    own = {tensor.untyped_storage()._cdata for tensor in (*encoder.parameters(), *encoder.buffers())}
    saved: dict[int, torch.Tensor] = {}  # one a storage; held, so that no storage's address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own and tensor.dim() > 1:  # neither weights nor BatchNorm's statistics: no image adds to them
            saved[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images)
    sizes = [(t.is_floating_point(), t.untyped_storage().nbytes(), t.element_size()) for t in saved.values()]
    return EncoderCost(
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        operations=counter.get_total_flops() // _IMAGES,
        saved_numbers=sum(size // element for floating, size, element in sizes if floating) // _IMAGES,
        saved_index_bytes=sum(size for floating, size, _ in sizes if not floating) // _IMAGES,
    )


def channels(data: DataSection) -> int:
    """Return the channels of an image."""
    return data.channel_count


def checkpoint_bytes(config: Config, cost: EncoderCost) -> int:
    """Estimate the size of one checkpoint: two encoders, SGD's momentum, the queue."""
    return _master_bytes(config) * (3 * cost.parameters + config.moco.queue_size * config.model.dim)


def memory_bytes(config: Config, layout: Layout, cost: EncoderCost) -> float:
    """Estimate the memory of a rank's GPU, at the peak of a step."""
    element, master = _BYTES[config.device.precision], _master_bytes(config)
    images = layout.group_size if config.device.is_exact(on_cpu=False) else layout.batch_per_rank // layout.parts
    # Both encoders, gradients, DDP's copy of them, momentum; the queue.
    states = master * (5 * cost.parameters + config.moco.queue_size * config.model.dim)
    activations = images * cost.saved_bytes(element)
    # Products, logits, scaled logits, their softmax and gradient.
    logits = 5 * master * images * (1 + config.moco.queue_size)
    # Two views of this step and of the next, which is prepared meanwhile in float32; the shuffle's copies.
    shuffled = config.optim.global_batch if config.moco.shuffle == "all_gather" else layout.batch_per_rank
    views = (4 * element + 2 * 4) * layout.batch_per_rank + element * shuffled
    pixels = channels(config.data) * config.data.image_size**2
    return _BESIDE * (states + activations + logits + views * pixels) + _CONTEXT_BYTES


def epoch_seconds(config: Config, cost: EncoderCost, images: int, ranks: int, tflops: float) -> float:
    """Estimate the time of an epoch by the arithmetic alone: data that come too slowly are not counted.

    Args:
        config: config of the run.
        cost: cost of its encoder.
        images: images of an epoch.
        ranks: number of GPUs.
        tflops: peak of one, in the run's precision.
    """
    directions = 2 if config.moco.symmetric else 1
    # A query's forward and backward pass are three forward passes, a key's is one.
    operations = 4 * directions * cost.operations * images
    return operations / (ranks * tflops * 1e12 * _OF_PEAK)


def _master_bytes(config: Config) -> int:
    """Return the bytes of a number that outlives a step."""
    return 8 if config.device.precision == "fp64" else 4


if __name__ == "__main__":
    section, number_of_channels, side = sys.argv[1:]
    cost = measure(ModelSection.model_validate_json(section), int(number_of_channels), int(side))
    print(json.dumps(asdict(cost)))
