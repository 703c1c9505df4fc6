"""The wheel and the source distribution have what a user needs, who has no checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from moco_dist import __version__, packages
from tests.jobs import ROOT
from tests.package.building import PACKAGES, Environment, build_sdist, build_wheel, copy_tracked, tracked

pytestmark = pytest.mark.skipif(not tracked(), reason="this is no checkout of git's, which says what belongs to it")

TRUE_PATHS = """
import json, sys
import moco_dist, launcher.__main__, slurm.devcluster.directory
from importlib import metadata
from moco_dist import config, report, train
print(json.dumps({
    "version": [moco_dist.__version__, metadata.version("moco-dist")],
    "files": [module.__file__ for name, module in sys.modules.items()
              if name.partition(".")[0] in ("moco_dist", "launcher", "slurm") and getattr(module, "__file__", None)],
    "path": sys.path,
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tracked(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def place(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder in which the default config has been trained for three steps."""
    place = tmp_path_factory.mktemp("place")
    environment.run("-m", "moco_dist.train", "optim.steps=3", folder=place)
    return place


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def files_of(source: Path) -> dict[str, bytes]:
    """Return the files of the packages, also those behind the link to the shipped configs."""
    return {
        Path(folder, name).relative_to(source).as_posix(): Path(folder, name).read_bytes()
        for package in PACKAGES
        for folder, _, names in os.walk(source / package, followlinks=True)
        for name in names
    }


def test_the_wheel_has_every_file_of_the_packages_and_no_other(source: Path, wheel: Path) -> None:
    ours = files_of(source)
    held = {name: content for name, content in members(wheel).items() if ".dist-info/" not in name}
    assert {name: name in held for name in ours.keys() ^ held.keys()} == {}
    assert held == ours
    assert {"moco_dist/configs/digits.yaml", "slurm/train.sbatch", "moco_dist/report/page/page.html"} <= held.keys()


def test_the_wheel_of_the_source_distribution_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build_sdist(source, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in unpacked.iterdir()} >= {"CHANGELOG.md", "LICENSE", "README.md", "constraints.txt"}
    assert not {"tests", "benchmarks"} & {path.name for path in unpacked.iterdir()}
    (tmp_path / "wheel").mkdir()
    assert members(build_wheel(unpacked, tmp_path / "wheel")) == members(wheel)


def test_the_metadata_tell_version_licence_readme_and_extras(wheel: Path) -> None:
    folder = zipfile.Path(wheel) / f"moco_dist-{__version__}.dist-info/"
    distribution = metadata.PathDistribution(folder)  # type: ignore[arg-type]
    facts = distribution.metadata
    assert facts["Name"] == "moco-dist" and facts["Version"] == __version__
    assert facts["License-Expression"] == "MIT" and len(facts.get_all("License-File") or ()) == 2
    assert facts["Description-Content-Type"] == "text/markdown"
    assert str(facts.get_payload()).strip() == (ROOT / "README.md").read_text().strip()  # type: ignore[attr-defined]
    assert {*(facts.get_all("Provides-Extra") or ())} == {*packages.EXTRAS.values(), "dev"}
    always = {re.split(r"[^\w-]", line)[0] for line in distribution.requires or () if "extra ==" not in line}
    assert always >= {"torch", "wandb", "submitit"}


def test_there_is_one_version() -> None:
    written = {
        name
        for name in tracked()
        if name.endswith(".py") and name.startswith(PACKAGES)
        for node in ast.parse((ROOT / name).read_text()).body
        if isinstance(node, ast.Assign) and "__version__" in map(ast.unparse, node.targets)
    }
    assert written == {"moco_dist/__init__.py"}
    releases = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[:2] == ["Unreleased", __version__]


def test_what_is_imported_is_what_was_installed(environment: Environment, tmp_path: Path) -> None:
    facts = json.loads(environment.run("-c", TRUE_PATHS, folder=tmp_path))
    assert facts["version"] == [__version__] * 2
    assert len(facts["files"]) > 30
    assert [file for file in facts["files"] if not Path(file).is_relative_to(environment.packages)] == []
    assert str(ROOT) not in facts["path"]


def test_the_default_trains(place: Path) -> None:
    run = place / "runs" / "digits"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert json.loads((run / "summary.json").read_text())["knn_top1"] > 0.3
    assert "git unknown" in (run / "config.yaml").read_text().split("\n")[0]
    assert "<script" in (run / "report.html").read_text()


def test_a_run_is_evaluated_and_looked_at(environment: Environment, place: Path) -> None:
    assert "kNN" in environment.run("-m", "moco_dist.evaluate", "runs/digits", "--knn", folder=place)
    assert "4 rows" in environment.run("-m", "moco_dist.rows", "runs/digits", "--to", "csv", folder=place)
    (place / "runs" / "digits" / "report.html").unlink()
    environment.run("-m", "moco_dist.report", "runs/digits", folder=place)
    assert (place / "runs" / "digits" / "report.html").is_file()


def test_the_launcher_starts_a_job(environment: Environment, place: Path) -> None:
    assert "COMMAND" in environment.run("-m", "launcher", "--help", folder=place)
    digits = ("digits", "optim.steps=2", "run.name=local", "track.wandb=disabled")
    environment.run("-m", "launcher", "submit", *digits, "--local", "--wait", "--gpus-per-node=1", folder=place)
    assert "done" in environment.run("-m", "launcher", "status", "local", folder=place)
    (code,) = (place / "runs" / "local" / "launch" / "code").iterdir()
    assert (code / "slurm" / "train.sbatch").is_file() and (code / "moco_dist" / "configs" / "digits.yaml").is_file()


def test_the_launcher_knows_the_shipped_profiles(environment: Environment, tmp_path: Path) -> None:
    script = "from launcher import cluster; print(*(cluster.load(name).gpu_type for name in ('a100', 'h100')))"
    assert environment.run("-c", script, folder=tmp_path) == "a100 h100\n"
