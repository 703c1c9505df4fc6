"""The command line of the export refuses a mistake in one line, and then writes and replaces nothing."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_dist import packages
from moco_dist.encoders.load import load_encoder
from moco_dist.export.command import run
from moco_dist.export.options import FORMATS
from moco_dist.interruption import interruptible
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from tests.full_disk import full_disk
from tests.jobs import ROOT, environment_of


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run_dir: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the line of a refusal, which leaves the run as it was."""
    before = files_below(run_dir) if run_dir.is_dir() else {}
    assert run([str(run_dir), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("moco_dist.export: ") and not captured.out
    assert (files_below(run_dir) if run_dir.is_dir() else {}) == before
    return captured.err


@pytest.mark.parametrize("to", ["torchvision", "timm", "detectron2"])
def test_a_network_that_a_format_cannot_hold(to: str, narrow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(narrow, capsys, "--to", to)
    assert f"--to = {to}: its resnet18 has a 7x7 stem" in line
    assert "has model.stem=small, model.width=8, 1 channel; --to package" in line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--to", "torchvision", "--head"], "--head = true: --to torchvision holds the encoder without its head; use"),
        (["--to", "package", "--head"], "--to package holds the encoder without its head"),
        (["--to", "safetensors", "--head"], "use --to onnx or torchscript, or drop it"),
        (["--to", "reference", "--head"], "the authors' checkpoint holds both encoders with their heads; drop it"),
        (["--to", "reference", "--encoder", "key"], "--encoder = key: the authors' checkpoint holds both"),
        (["--to", "reference"], "--step = 4: is within an epoch of 44 steps"),
        (["--to", "onnx", "--step", "3"], "has no checkpoint of step 3, but of 2, 4; take one of these"),
        (["--to", "onnx", "--step", "-1"], "has no checkpoint of step -1"),
        (["--to", "caffe"], "argument --to: invalid choice: 'caffe'"),
        (["--to", "onnx", "--step", "last"], "argument --step: invalid int value"),
        ([], "the following arguments are required: --to"),
    ],
    ids=str,
)
def test_what_cannot_be_exported(
    options: list[str], line: str, narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(narrow, capsys, *options)


def test_a_place_that_is_taken(
    narrow: Path, standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for to, out, line in (
        ("onnx", tmp_path / "notes.txt", "is there already; name a new file"),
        ("onnx", tmp_path / "folder", "is a folder"),
        ("onnx", tmp_path / "link", "is not a regular file"),
        ("safetensors", narrow / "encoder.safetensors", "is a place that the run itself needs"),
        ("safetensors", narrow / "config.yaml", "is a place that the run itself needs"),
        ("torchscript", CheckpointIndex(RunPaths(narrow).checkpoints).path(4), "is a place that the run itself needs"),
        ("torchscript", CheckpointIndex(RunPaths(narrow).checkpoints).path(5), "is a place that the run itself needs"),
        ("package", narrow / "evaluation", "is a place that the run itself needs"),
        ("onnx", tmp_path / "nowhere" / "a.onnx", "cannot be written: No such file"),
        ("package", tmp_path / "nowhere" / "a", "cannot be written: No such file"),
        ("package", tmp_path / "folder", "is there already, and is no exported package"),
        ("package", tmp_path / "notes.txt", "is no folder, and a package is one"),
        ("package", narrow, "is the directory of a run"),
        ("package", tmp_path / "link", "is no folder"),
    ):
        assert line in refused(narrow, capsys, "--to", to, "--out", str(out)), (to, out)
    for to in ("detectron2", "timm"):
        assert run([str(standard), "--to", to, "--out", str(tmp_path / "a.pth")]) == 2
        assert f"by which {to} tells the format" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / "a.pth").exists()


def test_the_folder_of_exports_is_private_and_its_files_are_replaced(
    narrow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = narrow / "export" / "safetensors.safetensors"
    for step in ("2", "4"):
        assert run([str(narrow), "--to", "safetensors", "--step", step]) == 0
        assert load_encoder(out).origin.step == int(step)
    assert stat.S_IMODE((narrow / "export").stat().st_mode) == 0o700
    assert [path.name for path in (narrow / "export").iterdir()] == [out.name]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"moco_dist.export: {out}: the query encoder of step 4; moco_dist.load_encoder('{out}') loads it"
    )
    elsewhere = tmp_path / "a $HOME package"
    text = str(elsewhere).replace("$", "$$")
    assert run([str(narrow), "--to", "package", "--out", text]) == 0 and (elsewhere / "README.md").is_file()
    moved = narrow.rename(tmp_path / "a $HOME run")
    assert run([str(moved).replace("$", "$$"), "--to", "torchscript"]) == 0


def test_a_missing_package_is_told(
    narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: name != "onnxruntime")
    line = refused(narrow, capsys, "--to", "onnx")
    assert "--to = onnx: onnxruntime is not installed here; install it (pip install 'moco-dist[onnx]'), or" in line


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "options", "line"),
    [
        (lambda paths: edit(paths.config, "image_size: 8", "image_size: 16"), [], "has image_size=16, and the weights"),
        (
            lambda paths: edit(paths.config, "image_size: 8", "image_size: 16"),
            ["--encoder", "key"],
            "has image_size=16",
        ),
        (lambda paths: edit(paths.config, "width: 8", "width: 16"), [], "has model.width=16, and the weights were"),
        (lambda paths: edit(paths.config, "width: 8", "width: 16"), ["--step", "2"], "trained with 8; put the config"),
        (lambda paths: edit(paths.config, "width: 8", "width: 7"), [], "model.width = 7"),
        (lambda paths: paths.config.unlink(), [], "holds no config.yaml; give the directory of a run"),
        (lambda paths: paths.config.write_text("a: [1"), [], "config.yaml"),
        (lambda paths: truncate(paths.encoder), [], "cannot be read as weights"),
        (
            lambda paths: truncate(CheckpointIndex(paths.checkpoints).path(2)),
            ["--step", "2"],
            "cannot be read: cut short",
        ),
        (
            lambda paths: [path.unlink() for path in paths.checkpoints.iterdir()],
            ["--encoder", "key"],
            "has no checkpoint; train it first",
        ),
        (
            lambda paths: [path.unlink() for path in paths.checkpoints.iterdir()],
            ["--step", "4"],
            "has no checkpoint of step 4, and of no other one; leave the step out",
        ),
        (
            lambda paths: [path.unlink() for path in (paths.encoder, *paths.checkpoints.iterdir())],
            [],
            "holds neither encoder.safetensors nor a checkpoint",
        ),
    ],
)
def test_a_spoilt_run_is_told(
    spoil: Callable[[RunPaths], object],
    options: list[str],
    line: str,
    narrow: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(RunPaths(narrow))
    for to in ("safetensors", "torchscript", "package"):
        assert line in refused(narrow, capsys, "--to", to, *options)


def test_what_is_no_run_is_told(tmp_path: Path, narrow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such directory" in refused(tmp_path / "nothing", capsys, "--to", "onnx")
    assert run([str(narrow / "encoder.safetensors"), "--to", "onnx"]) == 2
    assert "is no directory; give the directory of a run" in capsys.readouterr().err
    assert run([str(narrow / "config.yaml"), "--to", "safetensors"]) == 0  # which means its run


def test_measured_pixel_statistics_are_those_of_the_config(narrow: Path) -> None:
    """The statistics are measured at the first start and written into the config; a checkpoint may lack them."""
    paths = RunPaths(narrow)
    edit(paths.config, "  mean: null\n  std: null", "  mean: [0.25]\n  std: [0.5]")
    assert run([str(narrow), "--to", "safetensors", "--step", "2"]) == 0
    assert load_encoder(paths.export / "safetensors.safetensors").preprocess.mean == (0.25,)


def test_the_commands_of_the_document_work(
    standard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    commands = [line.split()[3:] for line in text.splitlines() if line.startswith("    python -m moco_dist.export ")]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert run([str(standard) if word == "RUN_DIR" else word for word in command]) == 0
    assert len(commands) == 3 and capsys.readouterr().out.count("moco_dist.export: ") == 3
    assert (tmp_path / "encoder.onnx").is_file() and (tmp_path / "for_others" / "config.json").is_file()
    table = {line.split("`")[1] for line in text.partition("## Out")[2].splitlines() if line.startswith("| `")}
    assert set(FORMATS) <= table


def test_help_needs_no_torch() -> None:
    script = "import sys\nfrom moco_dist.export.command import run\ntry:\n    run(['--help'])\nexcept SystemExit:\n"
    script += "    print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("False\n") and "--to" in process.stdout
    assert json.dumps(process.stderr) == '""'


@pytest.mark.parametrize("to", ["safetensors", "onnx", "torchscript", "package"])
def test_a_full_disk_leaves_the_old_export(to: str, narrow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(narrow), "--to", to]) == 0
    capsys.readouterr()
    with full_disk(50_000):
        assert "cannot be written: File too large; choose another place" in refused(narrow, capsys, "--to", to)


@pytest.mark.parametrize("to", ["safetensors", "onnx", "torchscript", "package"])
def test_an_interruption_leaves_the_old_export(to: str, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([str(narrow), "--to", to, "--step", "2"]) == 0
    before, signals, change = files_below(narrow), list[int](), Path.rename

    def last_moment(path: Path, target: Path) -> Path:
        if path.name != "old":  # which puts the old package back
            signal.raise_signal(signal.SIGTERM)
        return change(path, target)

    def between(path: Path, target: Path) -> Path:
        moved = change(path, target)
        if target.name == "old":
            signal.raise_signal(signal.SIGTERM)
        return moved

    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    for moment in (last_moment, between) if to == "package" else (last_moment,):
        for name in ("replace", "rename"):
            monkeypatch.setattr(Path, name, moment)
        with pytest.raises(KeyboardInterrupt), interruptible():
            run([str(narrow), "--to", to])
        assert files_below(narrow) == before and signals.pop() == signal.SIGTERM


def test_as_a_user_types_it(narrow: Path) -> None:
    words = [sys.executable, "-m", "moco_dist.export", str(narrow), "--to", "timm"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment_of(ROOT))
    assert result.returncode == 2 and result.stderr.startswith("moco_dist.export: --to = timm: its resnet18 has")
