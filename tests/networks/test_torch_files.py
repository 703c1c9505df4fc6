"""A file that was made to do harm is refused in one line, soon, without running or importing anything."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moco_dist.encoders.load import load_encoder
from moco_dist.errors import UserError
from moco_dist.evaluate import command
from moco_dist.networks import torch_files, weight_files
from tests.networks.test_weights import SMALL, STATE, encoder, loaded
from tests.nobody import as_nobody


def program(text: bytes) -> bytes:
    """Return a pickle of {"a": what the text computes}."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + text + b"s."


def call(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def archive(pickled: bytes, path: Path, compression: int = zipfile.ZIP_STORED, **records: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", "little")
        for name, content in records.items():
            file.writestr(f"a/data/{name.strip('_')}", content)
        file.writestr("a/version", "3\n")


def two_records(pickled: bytes, harmless: bytes, path: Path) -> None:
    """Write an archive in which torch finds one pickle, and Python another one."""
    archive(pickled, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/DATA.PKL", harmless)
        file.filelist[-1].filename = "a/data.pkl"


def legacy(pickled: bytes, path: Path) -> None:
    """Write a pickle as torch.save did before torch 1.6."""
    magic, version, system = (pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(magic + version + system + pickled + pickle.dumps([], 2))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SYSTEM = call("posix", "system", text("touch trapped") + b"\x85")
CODE = {
    "os.system": SYSTEM,
    "inside a harmless object": call("numpy", "array", SYSTEM + b"\x85"),
    "as a state": call("argparse", "Namespace", b")") + b"}" + text("b") + SYSTEM + b"sb",
    "eval": call("builtins", "eval", text("open('trapped', 'w')") + b"\x85"),
    "eval of Python 2": call("__builtin__", "eval", text("open('trapped', 'w')") + b"\x85"),
    "import": call("builtins", "__import__", text("antigravity") + b"\x85"),
    "getattr of a module": call("builtins", "getattr", b"cos\npath\n" + text("os") + b"\x86"),
    "a name with dots": b"ctorch\nserialization.os.system\n" + text("touch trapped") + b"\x85R",
    "a module of ours": call("moco_dist.files", "write_text", text("trapped") + text("a") + b"\x86"),
    "load_from_bytes": call("torch.storage", "_load_from_bytes", text("a") + b"\x85"),
}


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("name", CODE)
def test_code_is_refused(
    name: str, write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(program(CODE[name]), tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=r"is a pickle that would run code, \S+, when it is read, and is refused"
    ) as error:
        loaded(tmp_path / "weights.pt")
    assert "\n" not in str(error.value) and not (tmp_path / "trapped").exists() and "antigravity" not in sys.modules


HARMLESS = {
    "numpy": call("numpy", "fromfile", text("a") + b"\x85"),
    "a package that is not there": call("mmengine.runner", "Runner", text("a") + b"\x85") + b"}b",
    "a test's": call("numpy.testing", "rundocs", text("trapped.py") + b"\x85"),
    "getattr": call("builtins", "getattr", b"cmmengine\nRunner\n" + text("mean") + b"\x86"),
    "pathlib": call("pathlib", "Path.unlink", text("weights.pt") + b"\x85"),
    "a dict of its own": call("mmengine", "ConfigDict", b")") + text("a") + b"K\x01s",
    "a deque": call("collections", "deque", b")") + b"K\x01a",
}


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_replaced_and_not_imported(name: str, write: Callable[..., None], tmp_path: Path) -> None:
    write(program(HARMLESS[name]), tmp_path / "weights.pt")
    before = set(sys.modules)
    with pytest.raises(UserError, match="holds no ResNet's layers, but"):
        loaded(tmp_path / "weights.pt")
    assert {*sys.modules} - before <= {"pickletools"} and (tmp_path / "weights.pt").exists()


def tensor(size: int, stride: int, stored: int) -> bytes:
    """Return a pickle of a state_dict whose stem has a size and a stride that its storage may not have."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", stored) + b"tQ"
    shape = b"".join(b"J" + struct.pack("<i", number) for number in (size, stride))
    rebuilt = (
        b"("
        + storage
        + b"K\x00"
        + b"J"
        + shape[1:5]
        + b"\x85"
        + b"J"
        + shape[6:]
        + b"\x85\x89ccollections\nOrderedDict\n)Rt"
    )
    return b"\x80\x02}" + text("layer1.0.conv1.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n" + rebuilt + b"Rs."


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def deep(depth: int) -> bytes:
    return b"\x80\x02" + (b"}" + text("a")) * depth + b"}" + b"s" * depth + b"."


def branching(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a" * 10_000] = value
    return value


def flipped(path: Path) -> None:
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    place = content.find(STATE["layer4.1.conv2.weight"].numpy().tobytes()) + 8
    content[place] ^= 1
    path.write_bytes(content)


def header(path: Path, *tensors: tuple[str, str, list[int], tuple[int, int]], length: int | None = None) -> None:
    """Write a safetensors file of 64 bytes and whatever its header says of them."""
    content = {name: {"dtype": kind, "shape": shape, "data_offsets": offsets} for name, kind, shape, offsets in tensors}
    written = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(written) if length is None else length) + written + bytes(64))


def folder(index: object, path: Path, **files: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    for name, content in files.items():
        save_file(content, path / f"{name}.safetensors")
    written = index if isinstance(index, str) else json.dumps(index)
    (path / "model.safetensors.index.json").write_text(written)


ONE = torch.ones(1)
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bytearray": (
        lambda p: archive(program(call("builtins", "bytearray", b"J\x00\x00\x00\x7f\x85")), p),
        "a bytearray",
    ),
    "a bytearray, old": (
        lambda p: legacy(program(call("__builtin__", "bytearray", b"J\x00\x00\x00\x7f\x85")), p),
        "it holds a bytearray",
    ),
    "larger than its storage": (lambda p: archive(tensor(2**30, 1, 4), p, _0=bytes(16)), "damaged or cut short: "),
    "a storage cut short": (lambda p: archive(tensor(4, 1, 4), p, _0=bytes(8)), "damaged or cut short: "),
    "a storage of nothing": (lambda p: archive(tensor(2**30, 1, 2**30), p), "damaged or cut short: "),
    "one value as many": (lambda p: archive(tensor(2**30, 0, 4), p, _0=bytes(16)), "layers do not fit"),
    "compressed": (
        lambda p: archive(tensor(2**26, 1, 2**26), p, zipfile.ZIP_DEFLATED, _0=bytes(2**28)),
        "its zip is compressed",
    ),
    "a bit": (flipped, "damaged or cut short: Bad CRC-32 for file '.*/data/"),
    "two records of a name": (
        lambda p: two_records(program(call("builtins", "bytearray", b"J\x00\x00\x00\x7f\x85")), b"\x80\x02}.", p),
        "two records of its zip have one name",
    ),
    "an old file of 5 GiB": (
        lambda p: (p.write_bytes(b"\x80\x02"), os.truncate(p, 5 << 30)),
        "a file as before torch 1.6 of more than 4 GiB; save it anew",
    ),
    "protocol 4": (lambda p: torch.save(STATE, p, pickle_protocol=4), "its pickle is of protocol 4 or above"),
    "a million dicts": (lambda p: archive(deep(1_000_000), p), "cannot be read as weights"),
    "too many operations": (
        lambda p: archive(b"\x80\x02" + b"N0" * 2_000_000 + b"}.", p),
        "more than 3000000 operations",
    ),
    "nested": (lambda p: torch.save(nested(100), p), "or dicts nested 32 deep"),
    "branching": (lambda p: torch.save(branching(30), p), "more than 200000 values"),
    "circular": (lambda p: torch.save(circular(), p), "or dicts nested 32 deep"),
    "two of a name": (lambda p: torch.save({"a.b": ONE, "a": {"b": ONE}}, p), r"two of its tensors are named a\.b"),
    "a tensor without values": (
        lambda p: archive(program(call("torch", "FloatTensor", b"J\xff\xff\xff\x7f\x85")), p),
        "holds no ResNet's layers, but a;|damaged or cut short: ",
    ),
    "odd keys": (
        lambda p: torch.save({1: ONE, None: 2, b"a": 3, ("a", 1): {"\n": 4}}, p),
        "no ResNet's layers, but 1;",
    ),
    "long names": (lambda p: torch.save({"a\n" * 1_000_000: ONE}, p), "no ResNet's layers, but a a a"),
    "TorchScript": (
        lambda p: torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), ONE), str(p)),
        "it is a program of TorchScript",
    ),
    "a complex stem": (
        lambda p: torch.save({**STATE, "conv1.weight": STATE["conv1.weight"] + 0j}, p),
        "torch.complex64",
    ),
    "safetensors, cut": (
        lambda p: header(p, ("a", "F32", [4], (0, 16)), ("b", "F32", [20], (16, 96))),
        "damaged or cut short: ",
    ),
    "safetensors, two in one place": (
        lambda p: header(p, ("a", "F32", [16], (0, 64)), ("b", "F32", [16], (0, 64))),
        "damaged or cut short: ",
    ),
    "safetensors of another shape": (lambda p: header(p, ("a", "F32", [1000], (0, 64))), "damaged or cut short: "),
    "safetensors of another kind": (lambda p: header(p, ("a", "X32", [16], (0, 64))), "damaged or cut short: "),
    "safetensors with a long header": (
        lambda p: header(p, ("a", "F32", [16], (0, 64)), length=2**62),
        "damaged or cut short: ",
    ),
    "no index": (lambda p: folder("{", p), r"its model\.safetensors\.index\.json has no weight_map"),
    "an index of a list": (lambda p: folder({"weight_map": ["a"]}, p), "has no weight_map from names to files"),
    "an index of numbers": (lambda p: folder({"weight_map": {"a": 1}}, p), "has no weight_map from names to files"),
    "an index of other places": (
        lambda p: folder({"weight_map": {"a": "../a.safetensors"}}, p),
        r"names a file outside the folder, \.\./a\.safetensors",
    ),
    "an index of the folder above": (
        lambda p: folder({"weight_map": {"a": ".."}}, p),
        "neither a file nor a link to one",
    ),
    "an index of no file": (lambda p: folder({"weight_map": {"a": "b.safetensors"}}, p), "No such file"),
    "an index of a missing tensor": (
        lambda p: folder({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}, p, x={"a": ONE}),
        "b is not in the file that its model.safetensors.index.json names",
    ),
    "two files": (
        lambda p: (folder("{", p, x={"a": ONE}, y={"a": ONE}), (p / "model.safetensors.index.json").unlink()),
        "2 files",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*protocol")
@pytest.mark.parametrize("name", DAMAGED)
def test_files_made_to_do_harm_end_in_one_line(name: str, tmp_path: Path) -> None:
    make, line = DAMAGED[name]
    make(tmp_path / "weights.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=line) as error:
        loaded(tmp_path / "weights.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10  # MiB
    assert grown < 400


def test_each_tensor_of_a_model_in_parts_is_that_of_the_index(tmp_path: Path) -> None:
    names = sorted(STATE)
    index = {name: f"{'xy'[number % 2]}.safetensors" for number, name in enumerate(names)}
    parts = {part: {n: STATE[n] if index[n][0] == part else STATE[n] + 1 for n in names} for part in "xy"}
    folder({"weight_map": index}, tmp_path / "a", **parts)
    for name, tensor in loaded(tmp_path / "a")[0].state_dict().items():
        assert name.startswith("fc.") or "num_batches" in name or torch.equal(tensor, STATE[name]), name


def in_a_bin(path: Path) -> None:
    torch.save(STATE, path / "pytorch_model.bin")


def in_bins(path: Path) -> None:
    index = {name: f"{'xy'[number % 2]}.bin" for number, name in enumerate(STATE)}
    for part in ("x.bin", "y.bin"):
        torch.save({name: STATE[name] for name in STATE if index[name] == part}, path / part)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def behind_a_link(path: Path) -> None:
    """Save a file behind a link, as Hugging Face's cache does."""
    (path / "blobs").mkdir()
    save_file(STATE, path / "blobs" / "0123")
    (path / "model.safetensors").symlink_to("blobs/0123")


def beside_an_index(path: Path) -> None:
    save_file(STATE, path / "model.safetensors")
    (path / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("save", [in_a_bin, in_bins, behind_a_link, beside_an_index])
def test_folders_of_other_programs_are_read(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    for name, tensor in loaded(tmp_path)[0].state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, STATE[name])


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": lambda t: t.bfloat16(),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
    "not contiguous": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.ndim else t,
}


@pytest.mark.parametrize("name", KINDS)
def test_floats_of_any_kind_are_taken(name: str, tmp_path: Path) -> None:
    state = {n: KINDS[name](t) if t.is_floating_point() else t for n, t in STATE.items() if "num_batches" not in n}
    torch.save(state, tmp_path / "weights.pt")
    for n, tensor in loaded(tmp_path / "weights.pt")[0].state_dict().items():
        if n in state and not n.startswith("fc."):
            assert tensor.dtype == torch.float32 and torch.equal(tensor, state[n].float()), n


def test_checksums_may_be_absent(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(loaded(tmp_path / "weights.pt")[0].conv1.weight, STATE["conv1.weight"])


def test_a_stem_of_any_width_takes_no_memory_before_it_is_refused(tmp_path: Path) -> None:
    wide = {"conv1.weight": torch.zeros(()).expand(2**15, 3, 3, 3), "layer1.0.conv1.weight": ONE}
    wide["layer1.0.conv2.weight"] = torch.zeros(()).expand(2**15, 2**15, 3, 3)
    wide |= {f"layer{stage}.{block}.bn1.bias": ONE for stage in (1, 2, 3, 4) for block in (0, 1)}
    torch.save(wide, tmp_path / "weights.pt")
    assert weight_files.read(tmp_path / "weights.pt", "PATH").values
    with pytest.warns(UserWarning), pytest.raises(UserError, match="layers do not fit"):
        load_encoder(tmp_path / "weights.pt")


@pytest.mark.parametrize("width", [7, 12])
def test_a_width_that_ours_has_not_is_refused(width: int, tmp_path: Path) -> None:
    state = encoder(1).state_dict()
    assert SMALL.width == 8
    state["conv1.weight"], state["layer1.0.conv2.weight"] = torch.ones(width, 3, 3, 3), torch.ones(width, width, 3, 3)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"has layers that no model\.arch, stem and width of ours has"):
        load_encoder(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["closed/weights.pt", "closed"])
def test_what_is_closed_to_the_user_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o700)
    torch.save(STATE, tmp_path / "closed" / "weights.pt")
    network = encoder(0)
    if os.getuid():
        (tmp_path / "closed").chmod(0)
    try:
        with as_nobody():
            with pytest.raises(UserError, match=r"Permission denied|the folder has neither"):
                loaded(tmp_path / name, network)
            with pytest.raises(UserError, match=r"Permission denied|the folder has neither"):
                load_encoder(tmp_path / name)
            assert command.run([str(tmp_path / name), "digits"]) == 2
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_threads_that_read_at_once_keep_their_stand_ins_apart(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    others = [argparse.Namespace(lr=0.1), PurePosixPath("a"), np.float64(0.5), np.dtype("float32")]
    for number, other in enumerate(others):
        torch.save({"other": other, "weight": torch.zeros(1)}, tmp_path / f"{number}.pth")
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda turn: torch_files.load(tmp_path / f"{turn % 4}.pth"), range(80)))
    assert all(isinstance(content["other"], torch_files.Inert) for content in read)
    assert set(torch.serialization.get_safe_globals()) == before
