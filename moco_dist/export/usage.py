"""Write the lines of Python that load a package without this project: in torchvision, and where it can, in timm."""

from __future__ import annotations

from moco_dist.config.schema import ModelSection
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.export.options import differences
from moco_dist.networks.resnet import DEPTHS, BasicBlock

WEIGHTS = "model.pth"


def fits_timm(model: ModelSection, channels: int) -> bool:
    """Return whether timm builds the network by its name."""
    return not differences(model, channels)


def in_torchvision(model: ModelSection, channels: int) -> str:
    """Return the lines that load the encoder in torchvision, within the folder of the package.

    Args:
        model: the section of the config that describes the network.
        channels: of an image.
    """
    stem = "3, padding=1" if model.stem == "small" else "7, stride=2, padding=3"
    convolution = f"torch.nn.Conv2d({channels}, {model.width}, {stem}, bias=False)"
    if model.width != 64:
        lines = _of_another_width(model)
        lines.append(f"model.conv1, model.bn1 = {convolution}, torch.nn.BatchNorm2d({model.width})")
    else:
        lines = ["import torch", "import torchvision", "", f"model = torchvision.models.{model.arch}()"]
        lines += [f"model.conv1 = {convolution}"] if differences(model, channels) else []
    without = ["fc", "maxpool"] if model.stem == "small" else ["fc"]
    lines.append("".join(f"model.{name} = " for name in without) + "torch.nn.Identity()")
    lines.append(f'model.eval().load_state_dict(torch.load("{WEIGHTS}", weights_only=True))')
    return "\n".join(lines)


def _of_another_width(model: ModelSection) -> list[str]:
    """Return the lines that build torchvision's ResNet with another number of channels in its stages."""
    block, depths = DEPTHS[model.arch]
    kind = "BasicBlock" if block is BasicBlock else "Bottleneck"
    return [
        "import torch",
        f"from torchvision.models.resnet import {kind}, ResNet",
        "",
        "class ScaledResNet(ResNet):",
        "    def _make_layer(self, block, planes, *arguments, **options):",
        f"        self.inplanes = {model.width} if planes == 64 else self.inplanes",
        f"        return super()._make_layer(block, planes * {model.width} // 64, *arguments, **options)",
        "",
        f"model = ScaledResNet({kind}, {depths})",
    ]


def preprocessing_in_torchvision(preprocessing: Preprocessing) -> str:
    """Return the lines that prepare an image by torchvision; of images that PIL does not hold, of a tensor."""
    size, resize, channels = preprocessing.image_size, preprocessing.resize, preprocessing.channels
    steps = ["transforms.Grayscale()"] if channels == 1 else []
    steps += [f"transforms.Resize({resize})", f"transforms.CenterCrop({size})"]
    steps += ["transforms.ToTensor()"] if channels in (1, 3) else []
    mean, std = (
        ", ".join(f"{number:.6g}" for number in numbers) for numbers in (preprocessing.mean, preprocessing.std)
    )
    steps.append(f"transforms.Normalize([{mean}], [{std}])")
    lines = "".join(f"    {step},\n" for step in steps)
    return f"from torchvision import transforms\n\nprepare = transforms.Compose([\n{lines}])"


def in_timm() -> str:
    """Return the lines that load the encoder in timm, with its preprocessing, within the folder of the package."""
    return "\n".join(
        (
            "import timm",
            "",
            'model = timm.create_model("local-dir:.", pretrained=True).eval()',
            "prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        )
    )
