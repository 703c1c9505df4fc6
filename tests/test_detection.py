"""An encoder arrives whole in torchvision's Faster R-CNN, and detectron2's keys are as documented."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from torch import Tensor

from moco_dist import config as configs
from moco_dist import load_encoder
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.networks import weights
from moco_dist.networks.resnet import build_encoder

DOCS = Path(__file__).parent.parent / "docs"
SIZE = 64
OWN = PIXEL_STATISTICS["cifar10"]
"""Pixel statistics of the encoder's images that are not ImageNet's."""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Load the program of the documents as a module."""
    spec = importlib.util.spec_from_file_location("faster_rcnn", DOCS / "examples/faster_rcnn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faster_rcnn"] = module
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, *overrides: str) -> Path:
    """Write what a run leaves, with an encoder that has seen images: its BatchNorms have statistics of their own."""
    folder.mkdir()
    network = ["model.stem=imagenet", "model.width=64"]
    images = ["data.source=imagefolder", f"data.root={folder}", "data.channels=3", f"data.image_size={SIZE}"]
    pixels = [f"data.mean={list(OWN.mean)}", f"data.std={list(OWN.std)}"]
    config = configs.load(None, [*network, *images, *pixels, *overrides])
    (folder / "config.yaml").write_text(configs.dump(config))
    encoder = build_encoder(config.model, config.data.channel_count, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in encoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5 * name.endswith("var"))
    weights.save_backbone(encoder, folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    return load_encoder(write_run(tmp_path_factory.mktemp("detection") / "run"))


def stages(encoder: PretrainedEncoder, images: Tensor) -> list[Tensor]:
    """Return the outputs of the four stages of an encoder."""
    network, outputs = encoder.network, list[Tensor]()
    hooks = [
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4)
    ]
    encoder.features(images)
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def test_the_detector_sees_what_the_encoder_sees(example: ModuleType, encoder: PretrainedEncoder) -> None:
    """The body of the detector makes the same maps of an image as the encoder, of pixels that are normalised alike."""
    model = example.detector(encoder, 3, SIZE, **example.SMALL).eval()
    image = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    as_detector, _ = model.transform([image / 255])
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in OWN)
    as_encoder = ((image / 255 - mean) / std)[None]  # what the run has trained on
    torch.testing.assert_close(as_detector.tensors, as_encoder, rtol=1e-5, atol=1e-5)
    maps = model.backbone.body(as_encoder)
    for one, other in zip(maps.values(), stages(encoder, as_encoder), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [tuple(one.shape[1:]) for one in maps.values()] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


def test_the_files_of_a_run_fit_torchvisions_own_detector(tmp_path: Path) -> None:
    """The two lines of docs/detection.md load the files; no BatchNorm is frozen."""
    run_dir = write_run(tmp_path / "run", "model.arch=resnet50")
    lines = re.findall(r"^    (detector.*)$", (DOCS / "detection.md").read_text(), re.M)
    assert len(lines) == 2
    names: dict[str, object] = {"torchvision": torchvision, "safetensors": safetensors}
    exec("\n".join(lines).replace("RUN_DIR", str(run_dir)), names)
    body = names["detector"].backbone.body  # type: ignore[attr-defined]
    taken = load_encoder(run_dir).network.state_dict()
    assert all(torch.equal(taken[name], tensor) for name, tensor in body.state_dict().items())
    assert isinstance(body.bn1, torch.nn.BatchNorm2d) and all(p.requires_grad for p in body.parameters())


def test_it_learns(example: ModuleType, encoder: PretrainedEncoder) -> None:
    torch.manual_seed(0)
    model, said = example.detector(encoder, 3, SIZE, **example.SMALL), list[str]()
    begun = model.backbone.body.conv1.weight.detach().clone()
    losses = example.train_(model, example.Shapes(0, 2, SIZE), 10, 2, 0.02, said.append)
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    assert len(losses) == 10 and re.fullmatch(r"step 10 of 10, loss \d\.\d+", said[-1])
    assert not torch.equal(model.backbone.body.conv1.weight, begun)


def test_the_shapes_are_where_their_boxes_are(example: ModuleType) -> None:
    data, labels = example.Shapes(0, 40, SIZE), set[int]()
    for image, target in data:
        assert image.shape == (3, SIZE, SIZE) and image.min() >= 0 and image.max() <= 1
        light = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for left, top, right, bottom in target["boxes"].int().tolist():
            within = image[0, top:bottom, left:right] >= 0.6
            assert within.any(0).all() and within.any(1).all()  # the box is tight
            light[top:bottom, left:right] = True
        assert not (image[0] >= 0.6)[~light].any()
        labels |= set(target["labels"].tolist())
    assert labels == {1, 2, 3}
    again = example.Shapes(3, 1, SIZE)[0]
    assert torch.equal(again[0], data[3][0]) and torch.equal(again[1]["boxes"], data[3][1]["boxes"])


def test_recall_counts_right_boxes_of_the_right_class_alone(example: ModuleType) -> None:
    data = example.Shapes(0, 10, SIZE)

    class Oracle(torch.nn.Linear):
        """The oracle knows the answers, and returns them changed."""

        def __init__(self, shift: int = 0, label: int = 0, score: float = 0.9) -> None:
            super().__init__(1, 1)
            self.shift, self.label, self.score = shift, label, score
            self.targets = iter([target for _, target in data])

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            target = next(self.targets)
            scores = torch.full((len(target["labels"]),), self.score)
            labels = target["labels"] % 3 + 1 if self.label else target["labels"]
            return [{"boxes": target["boxes"] + self.shift, "labels": labels, "scores": scores}]

    assert example.recall(Oracle(), data) == 1
    assert example.recall(Oracle(shift=1), data) == 1
    for wrong in (Oracle(shift=30), Oracle(label=1), Oracle(score=0.4)):
        assert example.recall(wrong, data) == 0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.stem=small", "the encoder's stem = small: torchvision's detectors need imagenet; give an encoder"),
        ("model.width=16", "the encoder's width = 16: torchvision's detectors need 64; give an encoder"),
        ("data.channels=1", "the encoder's channels = 1: torchvision's detectors need 3; give an encoder"),
    ],
)
def test_encoders_that_torchvision_lacks_are_refused(
    example: ModuleType, override: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ["data.mean=[0.5]", "data.std=[0.5]"] if "channels" in override else []
    assert example.main([str(write_run(tmp_path / "run", override, *others))]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"faster_rcnn: {line}") and printed.count("\n") == 1


def test_the_program_runs(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path / "run")
    assert example.main([str(run_dir), "--steps", "1", "--batch", "1", "--held-out", "2"]) == 0
    assert re.search(r"found \d+ % of the objects of 2 held-out images\n", capsys.readouterr().out)
    assert example.main([str(tmp_path / "nothing")]) == 2
    assert example.main([str(run_dir), "--device", "cuda:99"]) == 2


def test_detectron2_is_told_imagenets_pixels_in_its_scale() -> None:
    text = (DOCS / "detection.md").read_text()
    [block] = re.findall(r"^    MODEL:\n(?:^    .*\n|^\n)+", text, re.M)
    keys = yaml.safe_load(re.sub(r"^    ", "", block, flags=re.M))
    statistics = PIXEL_STATISTICS["colour"]
    assert keys["INPUT"]["FORMAT"] == "RGB"
    assert keys["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * mean for mean in statistics.mean], abs=1e-3)
    assert keys["MODEL"]["PIXEL_STD"] == pytest.approx([255 * std for std in statistics.std], abs=1e-3)
    assert keys["MODEL"]["RESNETS"] == {"DEPTH": 50, "NORM": "SyncBN", "STRIDE_IN_1X1": False}
    assert keys["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
