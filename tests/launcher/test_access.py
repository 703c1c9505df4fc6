"""Files and folders that are closed to whoever asks: one plain line each. Root, who may all, asks as nobody."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit

from launcher.__main__ import main
from launcher.checks import dataset, estimate, preflight
from launcher.cluster import Profile
from launcher.commands import sweep
from moco_dist import config as configs
from tests.launcher.made import job_in
from tests.nobody import as_nobody

assert sweep and submitit  # imported ahead: nobody may be kept out of where they lie


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with `closed`, that nobody may enter, `blind`, that nobody may list, and `fixed`, to write in."""
    top = Path(tempfile.mkdtemp(prefix="access", dir="/tmp"))  # pytest's own is closed to nobody as a whole
    for name in ("closed/data/MNIST/raw", "closed/run", "blind/a", "fixed/data"):
        (top / name).mkdir(parents=True)
    for name in ("closed/weights.pt", "closed/data.tar", "closed/config.yaml", "weights.pt"):
        (top / name).touch()
    modes = {"": 0o755, "closed": 0o000, "blind": 0o311, "fixed": 0o555, "weights.pt": 0o200}
    for name, mode in modes.items():
        (top / name).chmod(mode)
    yield top
    for name in (*modes, "MNIST"):
        if (top / name).exists():
            (top / name).chmod(0o700)
    shutil.rmtree(top)


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    dataset.look.cache_clear()
    estimate.encoder_cost(configs.load(None, []))  # what it imports lies where nobody may be kept out


def errors(*overrides: str, run_dir: Path, stage: str | None = None) -> list[str]:
    """Return preflight's errors of a job of one rank on this machine."""
    config = configs.load(None, ["moco.bn_groups=1", *overrides])
    findings = preflight.check(*job_in(run_dir, config, Profile(gpus_per_node=1), stage=stage, executor="local"))
    return [one.text for one in findings if one.level == "error"]


@pytest.mark.parametrize(
    ("source", "root", "rule"),
    [
        ("imagefolder", "closed/data", "no such folder from here; give the folder of the data"),
        ("imagefolder", "closed", "cannot be read by you; ask for access, or copy it"),
        ("imagefolder", "blind", "cannot be read by you; ask for access, or copy it"),
        ("mnist", "closed/data", "no such folder from here; give the folder of the data"),
        ("mnist", "closed", "cannot be read by you; ask for access, or copy it"),
        ("cifar10", "blind", "cannot be read by you; ask for access, or copy it"),
    ],
)
def test_data(place: Path, source: str, root: str, rule: str) -> None:
    run_dir = Path(tempfile.gettempdir()) / "no-such-run"
    with as_nobody():
        findings = errors(f"data.source={source}", f"data.root={place / root}", run_dir=run_dir)
    assert findings == [f"data.root = {place / root}: {rule}"]


def test_a_folder_of_the_data_that_is_closed_within(place: Path) -> None:
    run_dir = Path(tempfile.gettempdir()) / "no-such-run"
    with as_nobody():
        [trees] = errors("data.source=imagefolder", f"data.root={place}", run_dir=run_dir)
    assert trees.startswith(f"data.root = {place}: {place}/") and "cannot be read: Permission denied; ask" in trees
    (place / "MNIST").mkdir()
    (place / "MNIST").chmod(0o000)
    with as_nobody():
        [files] = errors("data.source=mnist", f"data.root={place}", run_dir=run_dir)
    assert files.startswith(f"data.root = {place}: has no MNIST/raw/")


def test_weights_and_archives(place: Path) -> None:
    run_dir = Path(tempfile.gettempdir()) / "no-such-run"
    with as_nobody():
        absent = errors(f"run.init_from={place}/closed/weights.pt", run_dir=run_dir)
        unread = errors(f"run.init_from={place}/weights.pt", run_dir=run_dir)
        words = ("data.source=imagefolder", "data.root=.")
        archive = errors(*words, run_dir=run_dir, stage=f"{place}/closed/data.tar")
    assert absent == [
        f"run.init_from = {place}/closed/weights.pt: no such file; give a file of safetensors or of torch.save"
    ]
    assert unread == [f"run.init_from = {place}/weights.pt: cannot be read by you; ask for access, or copy it"]
    assert archive == [f"--stage = {place}/closed/data.tar: cannot be read: Permission denied; give a tar or zip"]


@pytest.mark.parametrize(
    ("run_dir", "rule"),
    [
        ("fixed/run", "fixed cannot be written to; choose another"),
        ("fixed/deeper/run", "fixed cannot be written to; choose another"),
        ("closed/run", "cannot be read: Permission denied; choose another"),
        ("closed/new/run", "cannot be read: Permission denied; choose another"),
    ],
)
def test_run_directories(place: Path, run_dir: str, rule: str) -> None:
    with as_nobody():
        [finding] = errors(run_dir=place / run_dir)
    assert finding.startswith(f"run.dir = {place / run_dir}: ")
    assert finding.endswith(rule)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["preflight"], "config {}: cannot be read: Permission denied; give a file that you may read"),
        (["preflight", "--cluster"], "{}: Permission denied"),
        (["sweep"], "{}: Permission denied"),
    ],
)
def test_files_that_are_named_on_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    file = f"{place}/closed/config.yaml"
    with as_nobody():
        assert main([*words, file]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"launcher: {line.format(file)}\n")
