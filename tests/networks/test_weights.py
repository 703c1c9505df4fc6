"""Weights of other programs: what is found in their files, and what is refused in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from moco_dist.config.schema import ModelSection
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.networks import layouts, weights
from moco_dist.networks.resnet import Encoder, build_encoder

SMALL = ModelSection(arch="resnet18", stem="small", width=8)


def encoder(seed: int, channels: int = 3, **model: Any) -> Encoder:
    return build_encoder(SMALL.model_copy(update=model), channels, seed)


STATE = encoder(1).state_dict()
OTHER = encoder(2).state_dict()


def named(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def loaded(path: Path, into: Encoder | None = None) -> tuple[Encoder, list[str]]:
    into = into or encoder(0)
    return into, weights.load_backbone_(into, path)


OPTIONS = argparse.Namespace(lr=0.03, output=Path("/out"), inner=argparse.Namespace(epochs=200))
FILES: dict[str, tuple[Any, str]] = {
    "plain": (STATE, "whose names have no prefix"),
    "authors'": (
        {"epoch": 200, "state_dict": {**named("module.encoder_k.", OTHER), **named("module.encoder_q.")}},
        "state_dict.module.encoder_q.*",
    ),
    "DataParallel": (named("module."), "module.*"),
    "Lightning": (
        {"state_dict": {**named("momentum_backbone.", OTHER), **named("backbone.")}},
        "state_dict.backbone.*",
    ),
    "MoCo v3": (
        {"state_dict": {**named("module.momentum_encoder.", OTHER), **named("module.base_encoder.")}},
        "state_dict.module.base_encoder.*",
    ),
    "compiled": ({"model": named("_orig_mod.module.")}, "model._orig_mod.module.*"),
    "options": ({"model": STATE, "args": OPTIONS, "optimizer": {"state": {0: {"step": 1}}}}, "model.*"),
    "numpy's numbers": (
        {"net": STATE, "best": np.float64(0.5), "history": np.arange(3), "epoch": np.int64(3)},
        "net.*",
    ),
    "another head": ({"state_dict": {n: t for n, t in named("m.").items() if ".fc." not in n}}, "state_dict.m.*"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("archive", [True, False])
def test_the_prefix_is_found_and_told(name: str, archive: bool, tmp_path: Path) -> None:
    content, prefix = FILES[name]
    path = tmp_path / "weights.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    theirs, lines = loaded(path)
    assert lines[0] == f"run.init_from = {path}: took the encoder's 100 tensors, {prefix}"
    assert_equal(theirs, STATE)


def assert_equal(theirs: Encoder, state: dict[str, Tensor]) -> None:
    """All but the head is theirs, and the head is what it was."""
    for name, tensor in theirs.state_dict().items():
        expected = encoder(0).state_dict() if name.startswith("fc.") else state
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_of_ours_gives_its_query_encoder(tmp_path: Path) -> None:
    path = tmp_path / "step_000000007.pt"
    checkpoint.write(path, {"step": 7, "encoder_k": OTHER, "encoder_q": STATE, "queue": torch.randn(8, 16)})
    theirs, lines = loaded(path)
    assert lines == [
        f"run.init_from = {path}: took the encoder's 100 tensors, encoder_q.*",
        f"run.init_from = {path}: left out what is not of the encoder: encoder_q.fc (4), step, encoder_k (104), queue",
    ]
    assert_equal(theirs, STATE)

    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="its checksum does not match"):
        loaded(path)


def test_the_same_encoder_gives_the_same_bytes() -> None:
    """Safetensors writes the metadata in an order of its own in each process."""
    content = weights.as_safetensors(encoder(1), dict.fromkeys("gabcdeh", "ä"))
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and list(json.loads(content[8 : 8 + length])["__metadata__"]) == [*"abcde", "format", *"gh"]
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in load(content).items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_the_suffix_does_not_matter(suffix: str, tmp_path: Path) -> None:
    backbone = {name: tensor for name, tensor in named("encoder_q.").items() if ".fc." not in name}
    save_file(backbone, tmp_path / f"a.{suffix}")
    torch.save(backbone, tmp_path / f"b.{suffix}")
    for file in ("a", "b"):
        assert_equal(loaded(tmp_path / f"{file}.{suffix}")[0], STATE)


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    """Safetensors opens no such file by its name."""
    folder = tmp_path / os.fsdecode(b"a\xff")
    folder.mkdir()
    weights.save_backbone(encoder(1), folder / "encoder.safetensors")
    for path in (folder, folder / "encoder.safetensors"):
        assert_equal(loaded(path)[0], STATE)


class Trap:
    """A pickle of it runs code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def archive(path: Path) -> None:
    (path.parent / "a.txt").write_text("text")
    with tarfile.open(path, "w") as tar:
        tar.add(path.parent / "a.txt")


def cut(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:5000])


def flipped(path: Path) -> None:
    save_file({"conv1.weight": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes()[:9] + b"\xff" * 40)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/b.npy", "numbers")


def saving(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return saving({**STATE, name: change(STATE[name])})


NUMPY = {name: np.asarray(tensor) for name, tensor in STATE.items()}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor": (saving(torch.ones(3)), "cannot be read as weights: it holds a Tensor, no layers by name"),
    "a list": (saving([STATE]), "it holds a list, no layers by name"),
    "a number": (saving(3), "it holds a int, no layers by name"),
    "another network": (saving({"a": {"b": torch.ones(1)}, "c": 1}), r"holds no ResNet's layers, but a\.b;"),
    "nothing": (saving({}), "holds no ResNet's layers, but nothing;"),
    "a list as a layer": (
        saving({"model": {**STATE, "bn1.weight": [1.0]}}),
        r"model\.bn1\.weight is of type list, not a tensor of floats",
    ),
    "numpy's arrays": (saving(NUMPY), r"conv1\.weight is an array of numpy, not a tensor"),
    "whole numbers": (saving({**STATE, "bn1.bias": torch.ones(8).long()}), "bn1.bias is a tensor of torch.int64, not"),
    "two depths": (
        saving({"student": STATE, "teacher": encoder(2, arch="resnet34").state_dict()}),
        r"holds several encoders: student\., teacher\.; keep the one",
    ),
    "two networks": (
        saving({"student": STATE, "teacher": OTHER}),
        r"holds several encoders: student\., teacher\.; keep the one",
    ),
    "code": (
        saving({**STATE, "x": Trap()}),
        r"is a pickle that would run code, \w+\.mkdir, when it is read",
    ),
    "code, old": (
        lambda path: torch.save({"x": Trap()}, path, _use_new_zipfile_serialization=False),
        r"is a pickle that would run code, \w+\.mkdir",
    ),
    "a module": (
        saving({"model": nn.Linear(2, 2)}),
        r"would run code, torch\.nn\.\S+Linear, .*torch\.save",
    ),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(3)), "neither safetensors nor a file of torch.save"),
    "a pickle, old": (lambda path: path.write_bytes(pickle.dumps(3, 2)), "cannot be read as weights: damaged"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "neither safetensors nor"),
    "tar": (archive, "neither safetensors nor"),
    "zip": (zipped, "it is a zip, but not one of torch.save"),
    "cut short": (cut, "cannot be read as weights: damaged"),
    "damaged safetensors": (flipped, "cannot be read as weights: damaged"),
    "empty": (lambda path: path.touch(), "cannot be read as weights: the file is empty"),
    "a pipe": (os.mkfifo, "neither a file nor a link to one"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "neither a file nor a link to one"),
    "NaN": (
        changed("conv1.weight", lambda t: t * float("nan")),
        r"conv1\.weight holds NaN, infinity or a variance below",
    ),
    "too large": (
        changed("bn1.bias", lambda t: t.double() + 1e300),
        r"bn1\.bias holds NaN, infinity or a variance below",
    ),
    "variance": (changed("bn1.running_var", lambda t: -t), r"bn1\.running_var holds NaN, infinity or a variance below"),
    "sparse": (changed("conv1.weight", lambda t: t.to_sparse()), r"conv1\.weight is a tensor in a sparse layout"),
    "meta": (changed("conv1.weight", lambda t: t.to("meta")), r"conv1\.weight is a tensor without values"),
    "meta, twice": (
        saving({key: {name: tensor.to("meta") for name, tensor in STATE.items()} for key in "ab"}),
        r"holds several encoders: a\., b\.",
    ),
    "nested": (
        lambda path: changed("conv1.weight", lambda t: torch.nested.nested_tensor([t[0], t[1, :2]]))(path),
        r"conv1\.weight is a tensor in a nested layout",
    ),
    "two numbers in a byte": (
        changed("conv1.weight", lambda t: torch.zeros(t.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)),
        r"conv1\.weight is a tensor of torch\.float4_e2m1fn_x2, not a tensor of floats",
    ),
    "a long name": (
        saving({**STATE, "layer1." + "a" * 1_000_000: torch.ones(1)}),
        r"1 layers do not fit: layer1\.a+\.\.\. and its like are not in the model",
    ),
    "a folder": (lambda path: path.mkdir(), "the folder has neither model.safetensors nor pytorch_model.bin"),
    "no file": (lambda path: None, "cannot be read as weights: No such file or directory"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_weights_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, line = REFUSED[name]
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(UserError, match=rf"^run\.init_from = .*: .*{line}") as error:
        loaded(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        ({"arch": "resnet34"}, "set model.arch=resnet34"),
        ({"arch": "resnet50", "stem": "imagenet"}, "set model.arch=resnet50 model.stem=imagenet"),
        ({"width": 16}, "set model.width=16"),
        ({"channels": 1}, "give images of 1 channel (data.channels=1 for a folder)"),  # digits have no other channels
        (
            {"arch": "resnet50", "width": 16, "channels": 4},
            "set model.arch=resnet50 model.width=16, and give images of 4 channels (data.channels=4 for a folder)",
        ),
    ],
)
def test_the_settings_that_fit_are_told(model: dict[str, Any], fix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": named("module.", encoder(1, **model).state_dict())}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=rf"layers do not fit: .*; {re.escape(fix)}$"):
        loaded(tmp_path / "weights.pt")
    fitting = encoder(0, **model)
    loaded(tmp_path / "weights.pt", fitting)
    assert torch.equal(fitting.conv1.weight, encoder(1, **model).conv1.weight)


@pytest.mark.parametrize("inner", [(16, 16, 3, 3), (8, 2, 3, 3)], ids=["wide", "in groups"])
def test_no_setting_is_told_where_none_fits(inner: tuple[int, ...], tmp_path: Path) -> None:
    state = {**encoder(1, arch="resnet50").state_dict(), "layer1.0.conv2.weight": torch.ones(inner)}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"layers do not fit: .*; no model\.arch, stem and width has these layers$"):
        loaded(tmp_path / "weights.pt", encoder(0, arch="resnet50"))


def test_a_deeper_network_is_not_cut_down_in_silence(tmp_path: Path) -> None:
    torch.save(encoder(1, arch="resnet34").state_dict(), tmp_path / "weights.pt")
    first = {name: tensor for name, tensor in encoder(1, arch="resnet34").state_dict().items() if name in STATE}
    assert all(tensor.shape == STATE[name].shape for name, tensor in first.items())  # every layer wanted is there
    with pytest.raises(UserError, match=r"layers do not fit: layer1\.2\.conv1\.weight .*; set model\.arch=resnet34"):
        loaded(tmp_path / "weights.pt")


def test_a_layer_that_transformers_resnets_have_not_is_a_stray() -> None:
    names = ["resnet.embedder.embedder.convolution.weight", "resnet.encoder.stages.0.gate.weight", "classifier.1.bias"]
    (encoder,) = layouts.find(names)
    assert encoder.theirs == {"conv1.weight": names[0]}
    assert (encoder.others, encoder.strays) == (names[1:], [names[1]])
