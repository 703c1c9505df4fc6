"""Write files of weights as other programs do, each with the features that its program computes."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

Features = Callable[[Tensor], Tensor]


@dataclass
class Saved:
    """A saved file has the weights of another program, and a function that computes as that program does."""

    features: Features
    """The program's own function from images, [N, 3, S, S], to features, [N, D]."""
    prefix: str
    """The text that the names of the encoder's layers begin with."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of our encoder that differ from torchvision's ResNet-18."""


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorms statistics and factors as after a training, and return the module in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            for tensor, least in ((layer.weight.data, 0.5), (layer.bias.data, -0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
            for tensor, least in ((layer.running_mean, -0.5), (layer.running_var, 0.5)):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
    return module.eval()


@functools.cache
def _resnet(arch: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return trained(torchvision.models.get_model(arch, weights=None, num_classes=16), seed)


def resnet(arch: str = "resnet18", seed: int = 0) -> Any:
    """Return a ResNet of torchvision's, with a head of 16."""
    return copy.deepcopy(_resnet(arch, seed))


def headless(network: Any) -> Features:
    """Return what a network with torchvision's layers computes ahead of its head."""
    bare = copy.deepcopy(network)
    bare.fc = nn.Identity()
    return lambda images: bare(images)


def moco(version: int) -> Any:
    """Return MoCo as the authors build it: two ResNets, of which the second follows, and a queue."""
    model: Any = nn.Module()
    model.encoder_q, model.encoder_k = resnet(), resnet(seed=1)
    if version == 2:
        for encoder in (model.encoder_q, model.encoder_k):
            encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
    model.register_buffer("queue", torch.randn(16, 64))
    model.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    return model


def authors_moco(version: int, path: Path) -> Saved:
    model = moco(version)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    state = nn.DataParallel(model).state_dict()  # names as DistributedDataParallel has them
    content = {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=version == 2)  # v1 is of an earlier torch
    return Saved(headless(model.encoder_q), "state_dict.module.encoder_q.")


def authors_moco_v3(path: Path) -> Saved:
    model: Any = nn.Module()
    model.base_encoder, model.momentum_encoder = resnet(), resnet(seed=1)
    for encoder in (model.base_encoder, model.momentum_encoder):
        layers = [nn.Linear(512, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8, bias=False)]
        encoder.fc = nn.Sequential(*layers, nn.BatchNorm1d(8, affine=False))
    model.predictor = nn.Sequential(nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
    state = nn.DataParallel(model).state_dict()
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state, "scaler": {"scale": 65536.0}}, path)
    return Saved(headless(model.base_encoder), "state_dict.module.base_encoder.")


def authors_cifar(path: Path) -> Saved:
    """The demo takes the children of a ResNet with another stem, without the pool, as one sequence."""

    def base(seed: int) -> nn.Module:
        layers: list[nn.Module] = []
        for name, module in resnet(seed=seed).named_children():
            if name == "conv1":
                module = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            if isinstance(module, nn.MaxPool2d):
                continue
            layers += [nn.Flatten(1), module] if isinstance(module, nn.Linear) else [module]
        encoder: Any = nn.Module()
        encoder.net = nn.Sequential(*layers)
        return encoder

    model: Any = nn.Module()
    model.encoder_q, model.encoder_k = base(0), base(1)
    model.register_buffer("queue", torch.randn(16, 64))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    return Saved(model.encoder_q.net[:-1], "state_dict.encoder_q.net.", {"stem": "small"})


def lightning(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """Return a checkpoint of PyTorch Lightning's."""
    callbacks = {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "best_model_score": torch.tensor(0.5)}}
    versions = {"pytorch-lightning_version": "2.1.0", "epoch": 1, "global_step": 10}
    return {**versions, "state_dict": state, "callbacks": callbacks, "loops": {"fit_loop": {}}, **more}


def lightly_moco(path: Path) -> Saved:
    model: Any = nn.Module()
    model.backbone = nn.Sequential(*list(resnet().children())[:-1])
    model.projection_head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    model.backbone_momentum = nn.Sequential(*list(resnet(seed=1).children())[:-1])
    model.projection_head_momentum = copy.deepcopy(model.projection_head)
    torch.save(lightning(model.state_dict()), path)
    return Saved(lambda images: model.backbone(images).flatten(1), "state_dict.backbone.")


def lightly_benchmark(path: Path) -> Saved:
    model: Any = nn.Module()
    model.backbone, model.key_backbone = resnet(), resnet(seed=1)
    model.backbone.fc = model.key_backbone.fc = nn.Identity()
    model.online_classifier = nn.Linear(512, 10)
    torch.save(lightning(model.state_dict()), path)
    return Saved(model.backbone, "state_dict.backbone.")


@contextmanager
def installed(*names: str) -> Iterator[list[Any]]:
    """Make classes that can be pickled by their names, of packages that are not there when the file is read."""
    classes, before = list[Any](), set(sys.modules)
    for name in names:
        module_name, _, class_name = name.rpartition(".")
        parents = module_name.split(".")
        for end in range(1, len(parents) + 1):
            parent = ".".join(parents[:end])
            module = sys.modules.setdefault(parent, types.ModuleType(parent))
        base = dict if class_name.endswith("Dict") else object
        made = type(class_name, (base,), {"__module__": module_name, "mean": lambda self: 0})
        setattr(module, class_name, made)
        made.mean.__qualname__, made.mean.__module__ = f"{class_name}.mean", module_name  # type: ignore[attr-defined]
        classes.append(made)
    try:
        yield classes
    finally:
        for name in {*sys.modules} - before:
            del sys.modules[name]


def solo_learn(stem: str, path: Path) -> Saved:
    model: Any = nn.Module()
    model.backbone, model.momentum_backbone = resnet(), resnet(seed=1)
    for backbone in (model.backbone, model.momentum_backbone):
        backbone.fc = nn.Identity()
        if stem == "small":
            backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
            backbone.maxpool = nn.Identity()
    model.classifier = nn.Linear(512, 10)
    model.projector = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 16))
    model.register_buffer("queue", torch.randn(2, 16, 64))
    with installed(
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.base.ContainerMetadata",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    ) as (config, metadata, attributes):
        options = config()
        options._content = defaultdict(int, lr=0.3)
        options._metadata = metadata()
        torch.save(lightning(model.state_dict(), hyper_parameters=attributes(cfg=options, name="moco")), path)
    return Saved(model.backbone, "state_dict.backbone.", {"stem": stem})


def mmselfsup(path: Path) -> Saved:
    """The earlier program has the query encoder under two names."""
    model: Any = nn.Module()
    neck = nn.Sequential(nn.Linear(512, 16))
    model.encoder_q, model.encoder_k = (nn.Sequential(resnet(seed=n), neck) for n in (0, 1))
    for encoder in (model.encoder_q, model.encoder_k):
        del encoder[0].fc
    model.backbone = model.encoder_q[0]
    state = OrderedDict((name, tensor) for name, tensor in model.state_dict().items())
    meta = {"mmselfsup_version": "0.9.0", "config": "model = dict(backbone=dict(type='ResNet', style='pytorch'))"}
    torch.save({"meta": meta, "state_dict": state}, path)
    model.backbone.fc = nn.Identity()
    return Saved(model.backbone, "state_dict.encoder_q.0.")


def mmpretrain(path: Path, style: str = "pytorch") -> Saved:
    model: Any = nn.Module()
    model.backbone = resnet()
    model.encoder_k = nn.Module()
    model.encoder_k.module = nn.Sequential(resnet(seed=1), nn.Linear(512, 16))
    del model.backbone.fc, model.encoder_k.module[0].fc
    model.register_buffer("queue", torch.randn(16, 64))
    with installed("mmengine.logging.history_buffer.HistoryBuffer") as (buffer,):
        history = buffer()
        history._log_history = np.linspace(0, 1, 5)
        history._statistics_methods = OrderedDict(mean=buffer.mean)  # type: ignore[attr-defined]
        hub = {"log_scalars": OrderedDict({"train/loss": history}), "runtime_info": OrderedDict(iter=np.int64(5))}
        meta = {"epoch": 1, "cfg": f"backbone = dict(\n    style='{style}',\n    type='ResNet')", "seed": 0}
        torch.save({"meta": meta, "state_dict": model.state_dict(), "message_hub": hub}, path)
    model.backbone.fc = nn.Identity()
    return Saved(model.backbone, "state_dict.backbone.")


def torchvisions(arch: str, path: Path) -> Saved:
    network = resnet(arch)
    torch.save(network.state_dict(), path)
    return Saved(headless(network), "", {"arch": arch})


def timms(arch: str, path: Path) -> Saved:
    """Write a checkpoint as timm's own training script does."""
    torch.manual_seed(0)
    network = trained(timm.create_model(arch))
    args = argparse.Namespace(model=arch, lr=0.1)
    torch.save({"epoch": 1, "arch": arch, "state_dict": network.state_dict(), "version": 2, "args": args}, path)
    return Saved(headless(network), "state_dict.", {"arch": arch})


def timm_folder(folder: Path, arch: str = "resnet18", **options: Any) -> Saved:
    torch.manual_seed(0)
    network: Any = trained(timm.create_model(arch, **options))
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return Saved(headless(network), "", {"arch": arch})


class Unit(nn.Module):
    """A unit is a convolution, BatchNorm and perhaps ReLU, as transformers has them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.normalization(self.convolution(x)))
        return out


class Block(nn.Module):
    """This is a basic block or a bottleneck of transformers, which strides in its 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = Unit(inputs, outputs, 1, stride, relu=False)
        inner = outputs // 4 if bottleneck else outputs
        units = [Unit(inputs, inner, 3, stride), Unit(inner, outputs, 3, relu=False)]
        if bottleneck:
            units = [Unit(inputs, inner, 1), Unit(inner, inner, 3, stride), Unit(inner, outputs, 1, relu=False)]
        self.layer = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + self.shortcut(x))


def transformers_resnet(bottleneck: bool) -> Any:
    """Return ResNetForImageClassification, of one block in each stage but two, in transformers' names."""
    torch.manual_seed(0)
    depths, wide = ([3, 4, 6, 3], 256) if bottleneck else ([2, 2, 2, 2], 64)
    model: Any = nn.Module()
    model.resnet, inputs, stages = nn.Module(), 64, []
    model.resnet.embedder = nn.Module()
    model.resnet.embedder.embedder = Unit(3, 64, 7, stride=2)
    for number, depth in enumerate(depths):
        stage: Any = nn.Module()
        outputs, blocks = wide * 2**number, []
        for place in range(depth):
            blocks.append(Block(inputs, outputs, 2 if number and not place else 1, bottleneck))
            inputs = outputs
        stage.layers = nn.Sequential(*blocks)
        stages.append(stage)
    model.resnet.encoder = nn.Module()
    model.resnet.encoder.stages = nn.ModuleList(stages)
    model.classifier = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))
    return trained(model)


def transformers(bottleneck: bool, folder: Path, parts: int = 1) -> Saved:
    """Write a folder as transformers does, in one file or in several with an index."""
    model = transformers_resnet(bottleneck)
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": false}'
    )
    state = model.state_dict()
    if parts == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        index = {
            name: f"model-0000{number % parts + 1}-of-0000{parts}.safetensors" for number, name in enumerate(state)
        }
        for file in {*index.values()}:
            save_file({name: state[name] for name in state if index[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    def features(images: Tensor) -> Tensor:
        out = F.max_pool2d(model.resnet.embedder.embedder(images), 3, 2, 1)
        for stage in model.resnet.encoder.stages:
            out = stage.layers(out)
        return out.mean((2, 3))

    return Saved(features, "resnet.", {"arch": "resnet50" if bottleneck else "resnet18"})


class ShortcutBlock(nn.Module):
    """This basic block calls the layer beside it shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def with_shortcuts(path: Path) -> Saved:
    """Write the weights of the ResNet-18 for CIFAR-10 that many repositories have."""
    torch.manual_seed(0)
    model: Any = nn.Module()
    model.conv1, model.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
    inputs = 64
    for number in range(4):
        planes, stride = 64 * 2**number, 2 if number else 1
        blocks = [ShortcutBlock(inputs, planes, stride), ShortcutBlock(planes, planes, 1)]
        setattr(model, f"layer{number + 1}", nn.Sequential(*blocks))
        inputs = planes
    model.linear = nn.Linear(512, 10)
    trained(model)
    torch.save({"net": nn.DataParallel(model).state_dict(), "acc": 95.1, "epoch": 199}, path)

    def features(images: Tensor) -> Tensor:
        out = F.relu(model.bn1(model.conv1(images)))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            out = stage(out)
        return F.avg_pool2d(out, 4).flatten(1)

    return Saved(features, "net.module.", {"stem": "small"})


def compiled(path: Path, stages: bool) -> Saved:
    """Write weights with names as torch.compile leaves them, of the whole network or of two of its stages."""
    network = resnet()
    features = headless(network)
    if stages:
        wrapped: Any = nn.Module()
        wrapped._orig_mod = network.layer1
        network.layer1, network.layer3 = wrapped, nn.DataParallel(network.layer3)
    whole: Any = nn.Module()
    whole._orig_mod = network  # as torch.compile does, which takes seconds
    torch.save({"model": (network if stages else whole).state_dict()}, path)
    return Saved(features, "model." if stages else "model._orig_mod.")
