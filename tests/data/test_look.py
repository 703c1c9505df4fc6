"""The look at a folder: what it tells, and whether the config that it proposes can be trained from."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from moco_dist import config as configs
from moco_dist.data import command, sources
from moco_dist.data.look import proposal, report
from moco_dist.data.look.measure import Measured, measure
from moco_dist.data.look.survey import Survey, survey
from moco_dist.errors import UserError
from moco_dist.train import command as trainer
from tests.data.made import MNIST, draw
from tests.nobody import as_nobody

CIFAR10 = MNIST.parent / "cifar10-jpeg-test.tar"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text is broken into lines."""
    monkeypatch.setenv("COLUMNS", "400")


def noise(side: int, seed: int = 0, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def tree_of(root: Path, train: int, held_out: int = 0, side: int = 16) -> Path:
    """A folder of noise, in two classes."""
    for split, images in (("train", train), ("val", held_out)):
        for number in range(images):
            path = root / split / "ab"[number % 2] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(side, 2 * number + (split == "val")).save(path)
    return root


def looked_at(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what the command prints on one line, so that the width of the table does not count."""
    assert command.run(["look", *map(str, arguments)]) == 0, capsys.readouterr().err
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def survey_of(images: int, side: int, channels: int = 3, held_out: int = 0, classes: int = 2) -> Survey:
    """A survey of images that are not there."""
    of_class = {str(number): images // classes for number in range(classes)} if images >= classes else {}
    measured = Measured(
        "a.png", (side, side), channels, 8, b"", None, None, side**2, (1.0,) * channels, (1.0,) * channels
    )
    return Survey(Path("/images"), {"train": images}, of_class, images, held_out, Counter(), (), (measured,), ())


@settings(max_examples=50, deadline=None)
@given(
    images=st.integers(2, 3_000_000),
    side=st.integers(4, 3000),
    channels=st.integers(1, 12),
    held_out=st.sampled_from((0, 500)),
    classes=st.sampled_from((0, 2, 100)),
    gpus=st.integers(1, 24),
)
def test_every_proposal_is_a_config_that_fits(
    images: int, side: int, channels: int, held_out: int, classes: int, gpus: int
) -> None:
    """The config is valid for any folder, the batch lies on the ranks, neither it nor the queue exceeds the data."""
    folder = survey_of(images, side, channels, held_out, classes or images + 1)
    if folder.trained_images < 2 * gpus:
        with pytest.raises(UserError, match=r"--gpus"):
            proposal.propose(folder, gpus)
        return
    proposed_settings = proposal.propose(folder, gpus)
    config = configs.parse(yaml.safe_load(proposal.as_yaml(proposed_settings, "A heading.")))
    assert configs.layout(config, gpus).group_size >= 2
    assert config.optim.global_batch <= folder.trained_images and config.data.image_size <= side
    assert config.moco.queue_size <= max(folder.trained_images, config.optim.global_batch)
    assert config.moco.queue_size % config.optim.global_batch == 0
    assert all(setting.reason for setting in proposed_settings)


def test_the_papers_settings_come_out_for_the_papers_data() -> None:
    """ImageNet on 8 GPUs is MoCo v2, CIFAR-10 on one is the authors' demo, but for the batch."""
    imagenet = configs.parse(proposal.tree(proposal.propose(survey_of(1_281_167, 375, held_out=50_000), 8)))
    theirs = configs.load(Path("imagenet_v2"), ["data.root=x"])
    for section, keys in {
        "data": ("image_size", "augmentation", "crop_scale", "blur_probability"),
        "model": ("arch", "stem", "mlp"),
        "moco": ("queue_size", "momentum", "temperature", "bn_groups", "symmetric"),
        "optim": ("global_batch", "lr", "epochs", "weight_decay"),
    }.items():
        for key in keys:
            assert getattr(getattr(imagenet, section), key) == getattr(getattr(theirs, section), key), key
    cifar10 = configs.parse(proposal.tree(proposal.propose(survey_of(50_000, 32, held_out=10_000, classes=10), 1)))
    theirs = configs.load(Path("cifar10"), ["data.root=x"])
    for section, keys in {
        "data": ("image_size", "augmentation", "blur_probability"),
        "model": ("arch", "stem"),
        "moco": ("queue_size", "momentum", "temperature", "bn_groups"),
        "optim": ("weight_decay",),
        "eval": ("knn_k",),
    }.items():
        for key in keys:
            assert getattr(getattr(cifar10, section), key) == getattr(getattr(theirs, section), key), key
    assert cifar10.optim.lr / cifar10.optim.global_batch == theirs.optim.lr / theirs.optim.global_batch


def test_the_proposed_config_is_trained_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The written file is accepted as it is: digits as files in class folders, without held-out images."""
    digits = load_digits()
    for number in range(200):
        path = tmp_path / "my digits" / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(path)
    written = tmp_path / "my.yaml"
    text = looked_at(capsys, tmp_path / "my digits", "--write", written)
    assert "200, all of them read" in text and "10, of 19 to 21 training images" in text
    assert configs.load(written).data.channels == 1 and "# " in written.read_text()
    run_dir = tmp_path / "run"
    assert trainer.run([str(written), f"run.dir={run_dir}", "optim.steps=2", "data.workers=0"]) == 0
    assert "knn_top1" in (run_dir / "summary.json").read_text()
    before = written.read_text()
    assert command.run(["look", str(tmp_path / "my digits"), "--write", str(written)]) == 2
    assert "is there already" in capsys.readouterr().err and written.read_text() == before


def test_a_folder_of_everything_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of trouble in one folder: it is counted, with its reason, and none of it ends the look."""
    root = tree_of(tmp_path, train=60, held_out=8)
    train = root / "train"
    (train / "a" / "broken.png").write_bytes(b"no image")
    (train / "a" / "empty.jpg").touch()
    whole = io.BytesIO()
    noise(16).save(whole, "PNG")
    (train / "b" / "half.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    for name in ("x.png", "y.png", "z.png"):
        (train / "a" / name).write_bytes(whole.getvalue())  # 0000.png is one more
    Image.new("RGB", (6000, 1)).save(train / "b" / "thin.png")
    Image.fromarray(np.full((16, 16), 4095, np.uint16)).save(train / "b" / "deep.png")
    noise(16).save(train / "beside.jfif", "JPEG")
    (train / "notes.txt").touch()
    (train / "a" / "loop").symlink_to("..")
    written = tmp_path / "of everything.yaml"
    text = looked_at(capsys, root, "--write", written)
    assert "as far as 74 of them were read" in written.read_text()  # of 77, three of which cannot be decoded
    assert f"-m moco_dist.train '{written}'" in text
    assert "train 69, val 8" in text
    assert "3 cannot be decoded" in text and "broken.png: cannot identify image file" in text and "half.png" in text
    assert "More than 1 % of a split: the trainer" in text
    assert "3 files repeat the content of another" in text
    assert "16 to 6000 pixels" in text and "1 to 16 pixels" in text
    assert "colour 72, gray 2" in text and "8 73, 16 1" in text and "4095 to 4095" in text
    assert ".png 75, .jpg 1, .jfif 1" in text
    for remark in (
        "1 image beside the class folders",
        "1 file with other suffixes",
        "(.txt 1)",
        "1 folder reached again",
    ):
        assert remark in text, remark


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        (np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16), [0.0, 4095.0]),  # a camera of 12 bits
        (np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16), None),
        (np.linspace(-3, 5, 256).reshape(16, 16).astype(np.float32), [-3.0, 5.0]),
        (np.linspace(0, 1, 256).reshape(16, 16).astype(np.float32), None),
        (np.linspace(0, 250, 256).reshape(16, 16).astype(np.float32), [0.0, 255.0]),
    ],
)
def test_deep_images_are_proposed_a_range(values: np.ndarray, value_range: list[float] | None, tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(path)
    proposed = proposal.tree(proposal.propose(survey(tmp_path, None), 1))["data"]
    assert proposed.get("value_range") == value_range
    assert proposed["channels"] == 1


@pytest.mark.parametrize(
    ("low", "high", "dtype", "value_range"),
    [
        (0, 1, np.float16, None),
        (0, 1, np.float64, None),
        (0, 255, np.int64, [0.0, 255.0]),
        (0, 4095, np.int32, [0.0, 4095.0]),
        (0, 60000, np.uint32, None),
        (-128, 127, np.int8, [-128.0, 127.0]),
        (0, 255, np.uint8, None),
        (2**40, 2**40, np.int64, [0.0, float(2**41 - 1)]),
    ],
)
def test_the_proposed_range_is_what_the_trainer_has_no_doubt_of(
    low: int, high: int, dtype: type, value_range: list[float] | None, tmp_path: Path
) -> None:
    """Arrays of any kind, whose bits do not tell how they are scaled."""
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.linspace(low, high, 256).reshape(16, 16).astype(dtype))
    config = proposal.parse(proposal.propose(survey(tmp_path, None), 1))
    assert config.data.value_range == (value_range and tuple(value_range))
    message = sources.open_splits(config).remarks
    assert low == high or not [line for line in message if "value_range" in line], message


def test_no_range_is_proposed_for_what_has_no_use_of_it(tmp_path: Path) -> None:
    """PIL reads the upper 8 bits of colours of 16, whatever the range is."""
    rows = np.random.default_rng(0).integers(0, 4096, (16, 16 * 3)).astype(">u2")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    folder = survey(tmp_path, None)
    config = proposal.parse(proposal.propose(folder, 1))
    assert folder.extremes and folder.measured[0].bits == 16 and config.data.value_range is None
    assert len(sources.open_splits(config).train) == 4


@pytest.mark.parametrize(("channels", "first"), [(1, True), (3, True), (5, True), (12, True), (5, False)])
def test_arrays_with_the_channels_first_or_last(channels: int, first: bool, tmp_path: Path) -> None:
    shape = (channels, 20, 24) if first else (20, 24, channels)
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        np.save(tmp_path / f"{number}.npy", image)
    folder = survey(tmp_path, None)
    assert folder.measured[0].size == (24, 20) and folder.channels == channels
    train = sources.open_splits(proposal.parse(proposal.propose(folder, 1))).train
    assert train.centred(np.arange(4), 16)[1] == []


def test_images_that_the_proposed_channels_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The channels are those of most images, gray and colour taken together, and the others are told."""
    for number in range(7):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).integers(0, 256, (16, 16, 5), dtype=np.uint8))
    for number in range(4):
        noise(16, number).save(tmp_path / f"{number}.png")
        noise(16, number, channels=1).save(tmp_path / f"gray{number}.png")
    text = looked_at(capsys, tmp_path)
    assert "data.channels 3" in text.replace("┃", " ")
    assert "0; 7 of other channels cannot be read with data.channels=3. More than 1 % of a split: the trainer" in text


def test_held_out_images_of_other_classes_are_not_used(tmp_path: Path) -> None:
    """The trainer refuses them as they are, so that kNN is proposed on a part of the training images."""
    root = tree_of(tmp_path, train=40, held_out=8)
    (root / "val" / "c").mkdir()
    noise(16).save(root / "val" / "c" / "0.png")
    folder = survey(root, None)
    assert any("train/ lacks its class c" in remark for remark in folder.remarks)
    data = sources.open_splits(proposal.parse(proposal.propose(folder, 1)))
    assert data.queries is not None and len(data.queries) == 4


def test_no_image_is_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The root is trained on as a whole where it has no train/, its val/ too."""
    root = tree_of(tmp_path, train=0, held_out=8)
    text = looked_at(capsys, root)
    assert "images 8, all of them read" in text and "0 files repeat" in text and "as a whole, with what may be" in text


def test_arrays_of_many_channels(tmp_path: Path) -> None:
    """Statistics are those of all pixels; the channels those of most images."""
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 5), dtype=np.uint8)
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    folder = survey(tmp_path, None)
    mean, std = folder.pixel_statistics
    pixels = images.reshape(-1, 5) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-6)
    assert folder.channels == 5 and not folder.labelled


def test_gray_is_told_from_colour_by_its_pixels(tmp_path: Path) -> None:
    """A colour file whose channels are equal is gray; one pixel of colour makes it coloured."""
    gray, coloured = draw(tmp_path / "gray.png", 90), draw(tmp_path / "coloured.png", 90)
    with Image.open(coloured) as image:
        image.putpixel((3, 3), (90, 91, 90))
        image.save(coloured)
    channels = []
    for path in (gray, coloured):
        measured = measure(path)
        assert isinstance(measured, Measured)
        channels.append(measured.channels)
    assert channels == [1, 3]


def test_a_sample_is_read_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree_of(tmp_path, train=40)
    assert "40, 5 of them read" in looked_at(capsys, root, "--sample", 5)
    assert "40, all of them read" in looked_at(capsys, root, "--sample", 5, "--all")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["look"], "the following arguments are required: FOLDER"),
        (["look", "nowhere"], "data.root = nowhere: no such folder"),
        (["look", ".", "--gpus", "0"], "argument --gpus: 0: must be a number above 0"),
        (["gaze", "."], "invalid choice: 'gaze'"),
        (["look", "empty"], "no image below it"),
        (["look", "broken"], "none of 2 images can be decoded"),
        (["look", "few", "--gpus", "4"], "--gpus = 4: BatchNorm needs 2 images a rank"),
        (["look", "few", "--write", "nowhere/my.yaml"], "--write = nowhere/my.yaml: cannot be written"),
        (["look", "few", "--write", "few/0.jpg/my.yaml"], "few/0.jpg is no folder that you may write to"),
        (["look", "few", "--write", "n" * 300], "must have names of at most 255 bytes"),
        (["look", "few", "--write", "link.yaml"], "is there already"),
        (["look", "few", "--write", "$NOT_SET/my.yaml"], "--write = $NOT_SET/my.yaml: the variable NOT_SET is not set"),
        (["look", "${NOT_SET}"], "FOLDER = ${NOT_SET}: the variable NOT_SET is not set"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "few"):
        Path(name).mkdir()
    Path("link.yaml").symlink_to("nothing")
    for number in range(2):
        Path("broken", f"{number}.jpg").touch()
        draw(Path("few", f"{number}.jpg"), 90 + number)
    assert command.run(arguments) == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("moco_dist.data: ") and line in message


def test_a_closed_folder_to_write_to_is_told_before_the_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o700)
    with as_nobody():
        assert command.run(["look", "nowhere", "--write", str(tmp_path / "my.yaml")]) == 2
    assert "is no folder that you may write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a$HOME", "a${x}", "$$", "~", "~nobody", "new\nline", "[red] #1: 'x'", os.fsdecode(b"\xff")]
)
def test_any_name_of_a_folder_is_read_back_from_the_proposal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tree_of(tmp_path / name, train=4)
    proposed = proposal.propose(survey(Path(name), None), 1)
    Path("my.yaml").write_text(proposal.as_yaml(proposed, "heading"))
    assert configs.load(Path("my.yaml")).data.root == str(root)
    schema = Path("my.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert Path(schema).read_text() == configs.schema()  # which an editor finds from any folder


def look_process(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "moco_dist.data", "look", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | environment,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -9)]
)
def test_it_ends_at_once_with_all_its_processes(signal_number: int, status: int, tmp_path: Path) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the processes that read images too; SIGKILL the command alone."""
    noise(2000).save(tmp_path / "0.png", compress_level=1)
    for number in range(1, 500):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "0.png")
    process = look_process(tmp_path)
    assert process.stderr is not None
    assert any(process.stderr.read(1) == "r" for _ in range(10))  # the bar that says "reading"
    if signal_number != signal.SIGKILL:
        os.killpg(process.pid, signal_number)
    else:
        process.send_signal(signal_number)
    _, errors = process.communicate(timeout=30)  # which ends when no process has stderr open
    assert process.returncode == status and "Traceback" not in errors, errors


def test_a_terminal_that_cannot_write_the_names(tmp_path: Path) -> None:
    root = tree_of(tmp_path / "caf\u00e9", train=4)
    Path(root, "train", "a", os.fsdecode(b"\xff.png")).touch()
    process = look_process(root, PYTHONIOENCODING="ascii:strict")
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and r"caf\xe9" in shown and "?.png: cannot identify" in shown, errors


def test_a_reader_that_goes_does_not_cost_the_config(tmp_path: Path) -> None:
    """`look FOLDER --write my.yaml | head -1`."""
    process = look_process(tree_of(tmp_path / "images", train=4), "--write", tmp_path / "my.yaml")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(60) == 1 and "data:" in (tmp_path / "my.yaml").read_text()
    process.stderr.close()


def test_it_runs_as_a_command_without_torch(tmp_path: Path) -> None:
    tree_of(tmp_path, train=4)
    script = (
        "import sys; from moco_dist.data import command; "
        f"code = command.run(['look', {str(tmp_path)!r}]); sys.exit(code or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    helped = subprocess.run(
        [sys.executable, "-m", "moco_dist.data", "--help"], capture_output=True, text=True, timeout=60
    )
    assert helped.returncode == 0 and "--write" in helped.stdout


def test_report_names_only_what_is_there() -> None:
    """A folder without classes says that there will be no kNN; one without deep images says nothing of values."""
    rows = dict(report._facts(survey_of(100, 32, classes=1000)))
    assert "no kNN" in rows["classes"] and "values" not in rows and "passed over" not in rows


@pytest.mark.parametrize(("train", "held_out", "too_many"), [(1, 0, False), (0, 1, True), (2, 0, True), (0, 0, False)])
def test_damaged_files_are_weighed_by_split(train: int, held_out: int, too_many: bool, tmp_path: Path) -> None:
    """One of a hundred training images may be damaged, and none of eight held-out ones."""
    root = tree_of(tmp_path, train=100, held_out=8, side=8)
    for split, number in (("train", train), ("val", held_out)):
        for path in sorted((root / split).rglob("*.png"))[:number]:
            path.write_bytes(b"no image")
    assert survey(root, None).too_many_damaged == too_many
