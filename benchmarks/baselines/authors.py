"""The authors' trainer end to end: their pipeline of PIL transforms, their collectives, DDP around the whole model.

The structure is that of facebookresearch/moco (v1 and v2), in code of our own: an ImageFolder whose loader makes two
views of each image by PIL, and `AuthorsMoCo`, which the traffic between ranks is counted with too.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision import datasets, transforms

from benchmarks.baselines import program
from benchmarks.communication.authors import AuthorsMoCo
from moco_dist.config import Config
from moco_dist.data import workers
from moco_dist.ranks import devices

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TwoCrops:
    """This transform makes a query and a key of an image, each by draws of its own."""

    def __init__(self, transform: transforms.Compose) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.transform(image) for _ in range(2)]


class Blur:
    """This transform blurs with a Gaussian of a random strength (SimCLR, appendix A)."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


def augmentation(config: Config) -> transforms.Compose:
    """Compose the transforms of the config's recipe, v1 or v2, in the authors' order."""
    data = config.data
    crop = transforms.RandomResizedCrop(data.image_size, scale=data.crop_scale)
    gray = transforms.RandomGrayscale(p=0.2)
    if data.augmentation == "v1":
        colours = [gray, transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)]
    else:
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        blur = 0.5 if data.blur_probability is None else data.blur_probability
        colours = [jitter, gray, transforms.RandomApply([Blur(data.blur_sigma)], p=blur)]
    last = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([crop, *colours, *last])


def folder(root: str | None) -> Path:
    """Return the folder of the training images."""
    assert root is not None, "give data.root=FOLDER"
    return Path(root) / "train" if (Path(root) / "train").is_dir() else Path(root)


def batches(config: Config, transform: object, ranks: int) -> Iterator[list[Tensor]]:
    """Yield both views of each batch of this rank, epoch after epoch."""
    images = datasets.ImageFolder(str(folder(config.data.root)), transform)  # type: ignore[arg-type]
    sampler: DistributedSampler[object] = DistributedSampler(images)
    count = workers.count(config.data.workers)
    loader = DataLoader(
        images,
        batch_size=config.optim.global_batch // ranks,
        sampler=sampler,
        num_workers=count,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        persistent_workers=bool(count),
    )
    assert len(loader), "there are fewer images than a batch has"
    for epoch in range(sys.maxsize):
        sampler.set_epoch(epoch)
        for views, _ in loader:
            yield views


def join(config: Config) -> torch.device:
    """Meet the other ranks, and return this one's device."""
    device = devices.pick(config, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def built(config: Config, device: torch.device) -> AuthorsMoCo:
    """Build the model, alike on all ranks."""
    torch.manual_seed(config.run.seed)
    return AuthorsMoCo(config, program.encoder(config)).to(device)


def trainer(model: AuthorsMoCo, config: Config, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Make what takes a step on two views [n, ...] of this rank's images, and returns its loss."""
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = program.sgd(model.encoder_q, config)

    def step(im_q: Tensor, im_k: Tensor) -> Tensor:
        logits = parallel(im_q, im_k)  # [n, 1+K]
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=device))
        top5 = logits.detach().topk(5, dim=1).indices.eq(0).any(dim=1).float().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        top5.item()  # they read it at each step
        return loss.detach()

    return step


def start(config: Config, rank: int, ranks: int) -> program.Step:
    """Make the step of this rank, which takes its images from files."""
    device = join(config)
    step, images = (
        trainer(built(config, device), config, device),
        batches(config, TwoCrops(augmentation(config)), ranks),
    )
    return lambda: step(*(view.to(device, non_blocking=True) for view in next(images)))


def main(arguments: list[str]) -> int:
    """Take the steps. Returns the exit status."""
    try:
        return program.run(arguments, "benchmarks.baselines.authors", __doc__, start)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
