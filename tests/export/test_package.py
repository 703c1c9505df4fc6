"""The lines of a package run in an environment with torchvision alone, and its card has the facts of the run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist import config as configs
from moco_dist.config.schema import ModelSection
from moco_dist.encoders.load import load_encoder
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.export import card, facts, manifest, options, state_dicts, usage
from moco_dist.export.card import escaped
from moco_dist.export.command import run
from moco_dist.export.package import crop_part
from moco_dist.networks.resnet import build_encoder
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from tests.export.test_formats import images_of
from tests.nobody import as_nobody, let_in

TORCHVISION_ALONE = [
    *("torch", "torchgen", "torchvision", "numpy", "PIL", "typing_extensions", "sympy", "mpmath"),
    *("networkx", "jinja2", "markupsafe", "filelock", "fsspec", "nvidia", "triton"),
]
"""The packages that torchvision and torch need, and both themselves."""
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)

USE = """
import os, sys
sys.path.append(sys.argv[1])
for name in ("moco_dist", "timm", "safetensors"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is here")
import torch
from PIL import Image
for folder in sys.argv[2:]:
    os.chdir(folder)
    scope = {}
    for block in ("load.txt", "prepare.txt"):
        exec(open(block).read(), scope)
    prepared = scope["prepare"](Image.open("image.png"))
    with torch.no_grad():
        features = scope["model"](torch.load("images.pt"))
        scope["model"](prepared[None])
    torch.save({"features": features, "prepared": prepared}, "computed.pt")
"""
"""This program runs the lines of packages with nothing but torchvision, and keeps the features that they compute."""


def package_of(run_dir: Path, *options: str) -> Path:
    assert run([str(run_dir), "--to", "package", *options]) == 0
    return RunPaths(run_dir).export / "package"


def environment(folder: Path) -> Path:
    """Link torchvision and what it needs into a folder that has nothing else."""
    folder.mkdir()
    for name in TORCHVISION_ALONE:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        places = spec.submodule_search_locations
        place = Path(next(iter(places)) if places else str(spec.origin))
        (folder / place.name).symlink_to(place)
        for libraries in place.parent.glob("*.libs"):
            if not (folder / libraries.name).is_symlink():
                (folder / libraries.name).symlink_to(libraries)
    return folder


def test_the_lines_run_with_torchvision_alone(narrow: Path, standard: Path, tmp_path: Path) -> None:
    folders = []
    for run_dir, channels in ((narrow, 1), (standard, 3)):
        folder = Path(shutil.copytree(package_of(run_dir), tmp_path / f"package of {channels}"))
        load, prepare, *of_timm = CODE.findall((folder / "README.md").read_text())
        assert len([line for line in load.splitlines() if line]) <= 10 and len(of_timm) == (channels == 3)
        (folder / "load.txt").write_text(load)
        (folder / "prepare.txt").write_text(prepare)
        size = load_encoder(run_dir).preprocess.image_size
        torch.save(images_of(3, channels, size), folder / "images.pt")
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image.png")
        folders.append(folder)
    borrowed = environment(tmp_path / "borrowed")
    command = [sys.executable, "-I", "-S", "-c", USE, str(borrowed), *map(str, folders)]
    process = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert process.returncode == 0, process.stderr
    for run_dir, folder in zip((narrow, standard), folders, strict=True):
        encoder, computed = load_encoder(run_dir), torch.load(folder / "computed.pt")
        with torch.no_grad():
            expected = encoder.features(torch.load(folder / "images.pt"))
        assert torch.allclose(computed["features"], expected, atol=1e-5)
        assert torch.allclose(computed["prepared"], encoder.preprocess(folder / "image.png"), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "stem", "width", "channels"),
    [
        ("resnet18", "small", 64, 3),
        ("resnet18", "imagenet", 64, 1),
        ("resnet34", "imagenet", 24, 3),
        ("resnet50", "small", 16, 5),
        ("resnet50", "imagenet", 64, 3),
    ],
)
def test_torchvisions_own_classes_build_every_network(
    arch: str, stem: str, width: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSection.model_validate({"arch": arch, "stem": stem, "width": width})
    network = build_encoder(model, channels, seed=1).eval()
    (tmp_path / usage.WEIGHTS).write_bytes(state_dicts.as_torchvision(network))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, torch.nn.Module] = {}
    exec(usage.in_torchvision(model, channels), scope)
    images = images_of(2, channels, 36)
    assert torch.allclose(scope["model"](images), network.features(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timm_and_ours_take_the_folder(standard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    folder, encoder = package_of(standard), load_encoder(standard)
    monkeypatch.chdir(folder)
    scope: dict[str, torch.nn.Module] = {}
    exec(CODE.findall((folder / "README.md").read_text())[-1], scope)
    images = images_of(2, 3, 32)
    assert torch.allclose(scope["model"](images), encoder.features(images), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.allclose(scope["prepare"](Image.fromarray(pixels)), encoder.preprocess(pixels), atol=1e-5)
    ours = load_encoder(folder)
    assert ours.digest == encoder.digest and ours.preprocess == encoder.preprocess


def test_a_folder_of_a_narrow_encoder_is_read_back(narrow: Path) -> None:
    folder = package_of(narrow, "--encoder", "key")
    ours, key = load_encoder(folder), load_encoder(narrow, encoder="key")
    assert ours.digest == key.digest and ours.preprocess == key.preprocess and ours.model == key.model
    assert json.loads((folder / "preprocessing.json").read_text())["channels"] == 1
    assert not (folder / "config.json").exists()


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (32, 37), (8, 8), (97, 111), (56, 64)])
def test_timm_resizes_to_the_same_pixels(size: int, resize: int) -> None:
    prepare = Preprocessing(size, resize, (0.5,) * 3, (0.5,) * 3)
    assert int(size / crop_part(prepare)) == resize
    transforms = pytest.importorskip("timm.data").create_transform((3, size, size), crop_pct=crop_part(prepare))
    assert transforms.transforms[0].size == resize


@pytest.mark.parametrize(("size", "channels"), [(224, 3), (32, 3), (28, 1)])
def test_a_photograph_is_prepared_alike_elsewhere(size: int, channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    photograph = Image.fromarray(pixels).resize((640, 427), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "a.jpg")
    prepare, scope = Preprocessing.general(size, channels), dict[str, Callable[[Image.Image], torch.Tensor]]()
    exec(usage.preprocessing_in_torchvision(prepare), scope)
    prepared = scope["prepare"](Image.open(tmp_path / "a.jpg"))
    assert torch.allclose(prepared, prepare(tmp_path / "a.jpg"), atol=1e-5)


OVERRIDES = ["eval.knn_k=5", "data.crop_scale=[0.3, 1.0]", "a=`x`", "eval.knn_k=`x`", 3]


def test_the_card_tells_what_the_run_tells(narrow: Path, tmp_path: Path) -> None:
    encoder = load_encoder(narrow)
    rows = [
        {"method": "linear by SGD", "labels": None, "draws": 1, "test_accuracy_mean": 0.5, "test_accuracy_std": 0.0},
        {"method": "fine-tuned", "labels": 100, "draws": 3, "test_accuracy_mean": 0.625, "test_accuracy_std": 0.01},
        {"method": "fine-tuned (SimCLR, 5 epochs)", "labels": None, "draws": 1, "test_accuracy_mean": 0.75},
        {"method": "supervised resnet18 (torchvision)", "labels": None, "draws": 1, "test_accuracy_mean": 0.75},
        {"method": "supervised small net", "labels": 100, "draws": 3, "test_accuracy_mean": 0.99},
        {"method": "kNN", "labels": None, "draws": 1, "test_accuracy_mean": 0.6, "overrides": OVERRIDES},
    ]
    table = {"weights": encoder.digest, "split": "test", "held_out": 359, "rows": rows}
    RunPaths(narrow).evaluation_table.write_text(json.dumps(table))
    start = json.loads(RunPaths(narrow).provenance.read_text())
    card = (package_of(narrow) / "README.md").read_text()
    for text in (
        "MoCo v2",
        "scikit-learn's digits: 1438 images of 10 classes",
        f"sha256 {start['data']['digest']}",
        "| steps | 4 of 4 |",
        "| epochs | 0.09091 |",
        start["code"]["git"],
        "| kNN, in training | all | 75.00 % | test images |",
        "| linear probe, in training | all | 50.00 % | test images |",
        "| linear by SGD | all | 50.00 % | 359 test images | "
        "`python -m moco_dist.evaluate RUN_DIR --linear --solver sgd` |",
        "| 100 | 62.50 ± 1.00 % | 359 test images | "
        "`python -m moco_dist.evaluate RUN_DIR --labels 100 --draws 3 --finetune --no-semi` |",
        "`python -m moco_dist.evaluate RUN_DIR --labels all --finetune --epochs 5` |",
        "`python -m moco_dist.evaluate RUN_DIR --labels all --supervised` |",
        "`python -m moco_dist.evaluate RUN_DIR --knn eval.knn_k=5 'data.crop_scale=[0.3, 1.0]'` |",
        "At best (kNN, in training), 25.00 % of the held-out images are named wrong; a guess among 10 classes is right",
        "- The linear probe names 12.50 percentage points more of its own training images right.",
        "license: unknown",
        "1 rank on 1 machine",
        "queue\\_size=64",
    ):
        assert text in card, text
    assert re.search(r"\| hours \| \d\S*, by", card)
    assert str(tmp_path) not in card and "None" not in card and "nan" not in card.replace("finance", "")


def test_the_hours_of_a_run_begun_elsewhere_are_those_spent_here(narrow: Path) -> None:
    paths = RunPaths(narrow)
    rows = "".join(f'{{"step": {step}, "loss": 1, "images_per_second": 0.16}}\n' for step in (2, 3, 4))
    paths.metrics.write_text(rows)
    assert "| hours | 0.22," in (package_of(narrow) / "README.md").read_text()  # 4 steps of 200 s
    paths.converted.write_text(json.dumps({"step": 1, "sha256": "0" * 64, "checkpoint": "/home/me/a.pth.tar"}))
    card = (package_of(narrow) / "README.md").read_text()
    assert "| hours | 0.17," in card and "/home" not in card  # 3 of them
    assert f"steps 1 to 1 were taken by another program, whose checkpoint has the sha256 {'0' * 64} |" in card


def test_figures_of_other_weights_are_not_told(narrow: Path) -> None:
    """An evaluation belongs to the weights that it names, and the training measured the query encoder alone."""
    key = (package_of(narrow, "--encoder", "key") / "README.md").read_text()
    assert "None was measured with these weights." in key and "Its quality is unknown" in key and "kNN" not in key
    table = {"weights": load_encoder(narrow).digest, "split": "test", "held_out": 359}
    table["rows"] = [{"method": "kNN", "labels": None, "draws": 1, "test_accuracy_mean": 0.5, "test_accuracy_std": 0.0}]
    RunPaths(narrow).evaluation_table.write_text(json.dumps(table))
    before = (package_of(narrow, "--step", "2") / "README.md").read_text()
    assert "evaluate" not in before and "step 2 of 4" in before and "| epochs | 0.04545 |" in before
    assert "evaluate RUN_DIR --knn" in (package_of(narrow) / "README.md").read_text()


def test_figures_before_the_end_are_those_of_a_part_of_the_images(narrow: Path) -> None:
    paths = RunPaths(narrow)
    paths.metrics.write_text('{"step": 2, "epoch": 1, "knn_top1": 0.5}\n{"step": 4, "epoch": 1, "knn_top1": 0.5}\n')
    text = paths.config.read_text()
    for images, labels in ((10_000, "all"), (100, "100")):
        paths.config.write_text(text.replace("online_images: 10000", f"online_images: {images}"))
        card = (package_of(narrow, "--step", "2") / "README.md").read_text()
        assert f"| kNN, in training | {labels} | 50.00 % | at most {images // 5} test images |" in card
        assert "| kNN, in training | all | 50.00 % | test images |" in (package_of(narrow) / "README.md").read_text()
    start = json.loads(paths.provenance.read_text())
    starts = ({**start, "total_steps": 2}, {**start, "step": 2})  # its end, until it went on
    paths.provenance.write_text("".join(json.dumps(start) + "\n" for start in starts))
    card = (package_of(narrow, "--step", "2") / "README.md").read_text()
    assert "| kNN, in training | all | 50.00 % | test images |" in card


def test_nothing_of_the_machine_leaves_with_it(narrow: Path, tmp_path: Path) -> None:
    file, provenance = RunPaths(narrow).config, RunPaths(narrow).provenance
    text = file.read_text().replace("root: null", f"root: {tmp_path}/of_joe")
    text = text.replace("init_from: null", f'init_from: "{tmp_path}/w|`x`.pt"')
    file.write_text(text.replace("notes: null", "notes: a secret").replace("group: null", "group: a secret group"))
    start = json.loads(provenance.read_text())
    provenance.write_text(json.dumps({**start, "devices": {"CPU | <b>": 2}, "hosts": ["a-host", "b-host"]}) + "\n")
    folder = package_of(narrow)
    for written in folder.iterdir():
        content = written.read_bytes()
        assert not any(text in content for text in (str(tmp_path).encode(), b"a secret", b"a-host")), written.name
    card = (folder / "README.md").read_text()
    assert "| began from the weights | w\\|\\`x\\`.pt |" in card
    assert "| hardware | CPU \\| \\<b\\>: 1 rank on 2 machines |" in card
    training = configs.load(folder / "training.yaml", [])
    own = configs.load(file, [])
    assert training.optim == own.optim and training.moco == own.moco and training.model == own.model
    assert training.run.dir is None and training.data.root == "of_joe"


def test_text_of_a_run_is_text() -> None:
    assert escaped("a\n# b <script> [x](http://me:secret@host) `c` | d") == (
        "a \\# b \\<script\\> \\[x\\](http://\\*\\*\\*@host) \\`c\\` \\| d"
    )
    assert escaped("\x1b[31m") == "?\\[31m"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD: list[Any] = [None, "`x`", True, [1], {}, {"`x`": 1}, float("nan"), float("inf"), 10**400, -1, "\ud800"]
BAD_ROWS = (
    '{"step": 1, "loss": 1, "images_per_second": null}\n{"step": 4, "knn_top1": "x"}\n{"step": 4, "knn_top1": 7}\n'
)
BAD_START = '{"step": 0, "data": {"digest": "`x`", "classes": "a"}, "devices": {}, "hosts": [], "code": {}}\nx\n'
BAD_TABLES = ["[]", "{", '{"weights": 1, "rows": 3}', '{"split": "test", "rows": [1, {"method": 2}, {"method": "a"}]}']


def every_bad_figure(paths: RunPaths) -> None:
    """Give rows, table, starts and status figures of every kind that they cannot have."""
    names = ("loss", "images_per_second", "knn_top1", "linear_top1", "linear_train_top1", "evidence", "finding", "lr")
    rows = [
        {"step": 4, "epoch": 1, **dict.fromkeys(some, bad)} for bad in BAD for some in (names, names[2:], names[5:])
    ]
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = load_encoder(paths.folder).digest
    of_table = [{"method": "kNN", "labels": bad, "draws": bad, "test_accuracy_mean": bad} for bad in BAD]
    of_table += [{"method": bad, "labels": None, "draws": 1, "test_accuracy_mean": 0.5} for bad in BAD]
    of_table += [
        {**of_table[0], "labels": None, "draws": 1, "test_accuracy_mean": 0.5, "overrides": bad} for bad in BAD
    ]
    table = {"weights": digest, "split": "test", "held_out": "x", "rows": of_table}
    paths.evaluation_table.write_text(json.dumps(table))
    names = ("time", "ranks", "hosts", "device", "devices", "cpus", "data", "code", "versions")
    starts = [{"step": 0, **dict.fromkeys(names, bad)} for bad in BAD]
    paths.provenance.write_text("".join(json.dumps(start) + "\n" for start in starts))
    paths.converted.write_text(json.dumps({"step": 10**400, "sha256": "`x`"}))


@pytest.mark.parametrize(
    "spoil",
    [
        every_bad_figure,
        lambda paths: paths.metrics.unlink(),
        lambda paths: truncate(paths.metrics),
        lambda paths: (paths.metrics.unlink(), paths.metrics.mkdir()),
        lambda paths: paths.metrics.write_text(BAD_ROWS),
        lambda paths: paths.provenance.unlink(),
        lambda paths: paths.provenance.write_text(BAD_START),
        lambda paths: paths.provenance.write_bytes(b"\xff\xfe" * 99),
        lambda paths: paths.status.unlink(),
        lambda paths: paths.status.write_text("{"),
        lambda paths: paths.summary.unlink(),
        lambda paths: [paths.evaluation_table.write_text(text) for text in BAD_TABLES],
        lambda paths: [path.unlink() for path in paths.checkpoints.iterdir()],
        lambda paths: [path.unlink() for path in (paths.metrics, paths.provenance, paths.status, paths.summary)],
        lambda paths: paths.config.write_text("\n".join(paths.config.read_text().splitlines()[2:])),
    ],
)
def test_what_is_missing_is_left_out(spoil: Callable[[RunPaths], object], narrow: Path) -> None:
    spoil(RunPaths(narrow))
    folder = package_of(narrow)
    card = (folder / "README.md").read_text()
    assert not re.search(r"\bNone\b(?! was)|\bnan\b|\binf\b|`x`", card)
    assert load_encoder(folder).digest == load_encoder(narrow).digest


def test_a_package_that_cannot_be_replaced_stays(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, true_rename = package_of(narrow), Path.rename
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return true_rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    assert run([str(narrow), "--to", "package", "--step", "2"]) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["package"]


def test_a_changed_package_is_not_replaced(narrow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = package_of(narrow)
    before = (folder / "README.md").stat().st_ino
    package_of(narrow)
    assert (folder / "README.md").stat().st_ino != before  # as it was exported, it is
    for change in (
        lambda: (folder / "more.txt").write_text("mine"),
        lambda: (folder / "README.md").write_text("license: mit"),
        lambda: (folder / "manifest.json").unlink(),
        lambda: (folder / "link").symlink_to("README.md"),
    ):
        kept = {path.name: path.read_bytes() for path in folder.iterdir()}
        change()
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert run([str(narrow), "--to", "package"]) == 2
        error = capsys.readouterr().err
        assert "has changed since" in error or "is no exported package" in error
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
        for path in folder.iterdir():
            path.unlink()
        for name, bytes_before in kept.items():
            (folder / name).write_bytes(bytes_before)
    assert [path.name for path in folder.parent.iterdir()] == ["package"]


def test_an_empty_folder_takes_a_package_and_a_closed_one_is_told(narrow: Path, tmp_path: Path) -> None:
    for name in ("empty", "closed"):
        (tmp_path / name).mkdir()
    assert (package_of(narrow, "--out", str(tmp_path / "empty")), (tmp_path / "empty" / "README.md").is_file())[1]
    (tmp_path / "closed").chmod(0)
    let_in(tmp_path)
    with as_nobody(), pytest.raises(UserError, match=r"--out = .*closed: cannot be read: Permission denied; name a"):
        manifest.check_replaceable(tmp_path / "closed")


def test_a_config_that_vanishes_meanwhile_tells_no_revision(narrow: Path) -> None:
    chosen = options.parse([str(narrow), "--to", "package"])
    RunPaths(narrow).config.unlink()
    RunPaths(narrow).provenance.unlink()
    gathered = facts.gather(chosen, 4, "")
    assert (gathered.revision, gathered.versions, gathered.findings) == ("", {}, [])


def test_a_checkpoint_of_another_revision_is_exported(narrow: Path) -> None:
    file = CheckpointIndex(RunPaths(narrow).checkpoints).path(2)
    state = checkpoint.load(file)
    state["config"] = {"model": {"arch": "a key of another revision"}}
    checkpoint.write(file, state)
    assert "of step 2 of 4" in (package_of(narrow, "--step", "2") / "README.md").read_text()


def test_the_scaling_of_deep_images_is_told(narrow: Path) -> None:
    encoder = load_encoder(narrow)
    assert "Values of more than 8 bits" not in card._of_images(encoder)
    assert "from upright PIL images, which become gray:" in card._of_images(encoder)  # torchvision turns none
    encoder.preprocess = replace(encoder.preprocess, value_range=(0, 4095))
    assert "are first scaled to 8, so that 0 is black and 4095 white." in card._of_images(encoder)


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "[a](b) **c**", "a|b`c`", "&lt;b&gt; $x$"])
def test_the_name_of_a_folder_of_images_is_text(name: str, narrow: Path, tmp_path: Path) -> None:
    config = configs.load(RunPaths(narrow).config, [])
    data = config.data.model_copy(update={"source": "imagefolder", "root": str(tmp_path / name)})
    config = config.model_copy(update={"data": data, "run": config.run.model_copy(update={"init_from": f"/a/{name}"})})
    about = facts.Facts(config, 4, data={"images": 8, "classes": 2}, hardware=[name], revision=name, findings=[name])
    text = card.write(about, load_encoder(narrow), "query")
    assert text.count(escaped(name)) == 5 and name not in text and str(tmp_path) not in text
