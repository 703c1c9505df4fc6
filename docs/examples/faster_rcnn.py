"""Fine-tune torchvision's Faster R-CNN, its backbone an encoder of moco-dist, on made images of a few shapes.

python docs/examples/faster_rcnn.py RUN_DIR|WEIGHTS [--steps 400] [--batch 4] [--lr 0.02] [--device cuda]

`detector` is what a detection of your own needs; `Shapes` stands for your data. It prints the loss, and how many of the
objects of held-out images are found. docs/detection.md says why the detector is built as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_iou

from moco_dist import load_encoder
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.errors import UserError
from moco_dist.networks.weights import backbone_of

Target = dict[str, Tensor]
"""`boxes` [n, 4], left, top, right, bottom in pixels, and `labels` [n] from 1 on; 0 is the background."""


def backbone(encoder: PretrainedEncoder, channels: int = 256) -> BackboneWithFPN:
    """Build torchvision's ResNet with a feature pyramid, and load the encoder into it.

    BatchNorm is trained, not frozen, also in the pyramid, as in He et al. 2020, section 4.2.

    Args:
        encoder: with the large stem, 64 channels behind it, and three channels of colour.
        channels: of the pyramid.

    Raises:
        UserError: torchvision has no such network.
    """
    model, colours = encoder.model, encoder.network.conv1.in_channels
    for name, value, needed in (("stem", model.stem, "imagenet"), ("width", model.width, 64), ("channels", colours, 3)):
        if value != needed:
            rule = f"torchvision's detectors need {needed}"
            raise UserError.of(f"the encoder's {name}", value, rule, "give an encoder that was trained with it")
    resnet = torchvision.models.get_model(model.arch, weights=None)
    missing, unexpected = resnet.load_state_dict(backbone_of(encoder.network), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected, (missing, unexpected)  # the head is not used
    stages = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    widths = [encoder.feature_dim // 2**halvings for halvings in (3, 2, 1, 0)]
    return BackboneWithFPN(resnet, stages, widths, out_channels=channels, norm_layer=nn.BatchNorm2d)


def detector(
    encoder: PretrainedEncoder, classes: int, image_size: int, pyramid_channels: int = 256, **settings: Any
) -> FasterRCNN:
    """Build a Faster R-CNN on an encoder.

    Args:
        encoder: what `backbone` takes.
        classes: kinds of objects, without the background.
        image_size: side in pixels that images are scaled to; anchors have an eighth of it, and its doubles.
        pyramid_channels: of the feature pyramid.
        settings: others of FasterRCNN.
    """
    anchors = AnchorGenerator(tuple((image_size // 8 * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5)
    preprocess = encoder.preprocess
    return FasterRCNN(
        backbone(encoder, pyramid_channels),
        num_classes=classes + 1,
        min_size=image_size,
        max_size=2 * image_size,
        image_mean=list(preprocess.mean),  # of RGB in 0 to 1, as the encoder was trained
        image_std=list(preprocess.std),
        rpn_anchor_generator=anchors,
        **settings,
    )


SMALL = {
    "pyramid_channels": 64,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 32,
}
"""Settings for small images of a few objects, with which a CPU takes a step in a fraction of a second."""


class Shapes(Dataset[tuple[Tensor, Target]]):
    """These are images of one to three rectangles, discs and triangles on noise, each a function of its number.

    Args:
        first: number of the first image.
        count: of images.
        size: side in pixels.
    """

    classes = ("rectangle", "disc", "triangle")

    def __init__(self, first: int, count: int, size: int) -> None:
        self.first, self.count, self.size = first, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        if not 0 <= number < self.count:
            raise IndexError(number)
        random = np.random.default_rng(self.first + number)
        image = random.uniform(0.0, 0.5, (3, self.size, self.size))
        taken, boxes, labels = np.zeros((self.size, self.size), dtype=bool), [], []
        for _ in range(random.integers(1, 4)):
            label, mask = self._shape(random)
            if not (mask & taken).any():
                rows, columns = np.nonzero(mask)
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(label)
                image[:, mask] = random.uniform(0.6, 1.0, (3, 1))
                taken |= mask
        target = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
        return torch.from_numpy(image.astype(np.float32)), target

    def _shape(self, random: np.random.Generator) -> tuple[int, np.ndarray]:
        """Draw the label of a shape and its mask [size, size]."""
        half = random.integers(self.size // 8, self.size // 5)
        y, x = random.integers(half, self.size - half, 2)
        down, right = (np.arange(self.size)[:, None] - y, np.arange(self.size)[None] - x)
        within = (abs(down) <= half) & (abs(right) <= half)
        label = int(random.integers(1, 4))
        return label, [within, down**2 + right**2 <= half**2, within & (2 * abs(right) <= down + half)][label - 1]


def train_(
    model: FasterRCNN, data: Shapes, steps: int, batch: int, lr: float, say: Callable[[str], None]
) -> list[float]:
    """Train a detector in place, by SGD with a warm-up and a drop at two thirds. Returns the loss of each step."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    sampler = [step * batch + place for step in range(steps) for place in range(batch)]
    batches = DataLoader(data, batch, sampler=[number % len(data) for number in sampler], collate_fn=lambda b: b)
    model.train()
    losses = []
    for step, images_and_targets in enumerate(batches):
        images = [image.to(device) for image, _ in images_and_targets]
        targets = [{name: of.to(device) for name, of in target.items()} for _, target in images_and_targets]
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(1.0, (step + 1) / (1 + min(20, steps // 4))) * (0.1 if step >= steps * 2 / 3 else 1.0)
            )
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 10 == 0:
            say(f"step {step + 1} of {steps}, loss {losses[-1]:.3f}")
    return losses


@torch.no_grad()
def recall(model: FasterRCNN, data: Shapes) -> float:
    """Return the recall: the fraction of objects that a box of their class covers with an IoU of at least 0.5."""
    device = next(model.parameters()).device
    model.eval()
    are_covered: list[bool] = []
    for image, target in data:
        [output] = model([image.to(device)])
        sure = output["scores"] > 0.5
        boxes, labels = output["boxes"][sure].cpu(), output["labels"][sure].cpu()
        hits = (box_iou(target["boxes"], boxes) >= 0.5) & (target["labels"][:, None] == labels[None])
        are_covered += hits.any(1).tolist()
    return float(np.mean(are_covered))


def main(arguments: Sequence[str]) -> int:
    """Run the program. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="RUN_DIR|WEIGHTS")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=50, metavar="IMAGES")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    try:
        encoder = load_encoder(options.path, device=options.device)
        model = detector(encoder, len(Shapes.classes), options.image_size, **SMALL).to(options.device)
    except UserError as mistake:
        print(f"faster_rcnn: {mistake}", file=sys.stderr)
        return 2
    train_(model, Shapes(0, 2000, options.image_size), options.steps, options.batch, options.lr, print)
    held_out = Shapes(1_000_000, options.held_out, options.image_size)
    print(f"found {100 * recall(model, held_out):.0f} % of the objects of {len(held_out)} held-out images")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
