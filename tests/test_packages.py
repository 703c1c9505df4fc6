"""A package is told to be missing, broken or fine, with the fix."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moco_dist import packages
from moco_dist.errors import UserError
from tests.jobs import ROOT
from tests.without import without


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from, and forgets afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("package_of_a_test", None)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("", None),
        ("import no_such_dependency", "(ModuleNotFoundError: No module named 'no_such_dependency')"),
        ("raise TypeError('Descriptors cannot\\n be created')", "(TypeError: Descriptors cannot be created)"),
        ("raise SystemExit(3)", "(SystemExit: 3)"),
        ("raise ValueError('x' * 1000)", f"(ValueError: {'x' * 188})"),
    ],
)
def test_a_package_is_fine_or_broken(folder: Path, code: str, fault: str | None) -> None:
    (folder / "package_of_a_test.py").write_text(code)
    assert packages.installed("package_of_a_test") and "package_of_a_test" not in sys.modules
    whole = fault and f"package_of_a_test cannot be imported here {fault}"
    assert packages.fault("package_of_a_test") == whole


def test_a_folder_without_code_is_no_package(folder: Path) -> None:
    """Such a folder is `wandb/`, which W&B makes in the folder that a run is started from."""
    (folder / "package_of_a_test" / "offline-run-1").mkdir(parents=True)
    assert not packages.installed("package_of_a_test")
    assert packages.fault("package_of_a_test") == "package_of_a_test is not installed here"


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: name != "onnxruntime")
    packages.need("--to", "onnx", "json")
    with pytest.raises(UserError) as raised:
        packages.need("--to", "onnx", "json", "onnxruntime", otherwise="use --to torchscript")
    fix = "install it (pip install 'moco-dist[onnx]'), or use --to torchscript"
    assert str(raised.value) == f"--to = onnx: onnxruntime is not installed here; {fix}"


def test_a_package_that_is_always_asked_for_is_installed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: False)
    with pytest.raises(UserError) as raised:
        packages.need("track.wandb", "online", "wandb")
    assert str(raised.value) == "track.wandb = online: wandb is not installed here; install it (pip install wandb)"


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra: set(map(name_of, requirements)) for extra, requirements in project["optional-dependencies"].items()
    }
    ours = {extra: {name for name in packages.EXTRAS if packages.EXTRAS[name] == extra} for extra in extras}
    tools = extras.pop("dev")
    assert ours.pop("dev") == set() and ours == extras
    # The tests need all of them; Trackio is installed apart, as the Makefile says.
    assert set().union(*extras.values()) - tools == {"trackio"}
    # What every installation has needs no extra.
    assert not set(map(name_of, project["dependencies"])) & packages.EXTRAS.keys()


def test_what_is_imported_is_asked_for() -> None:
    """A package that another one brings comes in any version, and may be gone with that one's next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = project["dependencies"], *project["optional-dependencies"].values()
    asked_for = {name_of(requirement) for requirements in lists for requirement in requirements}
    nodes = (
        node
        for package in ("moco_dist", "launcher", "slurm")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
    )
    imported = {
        name.partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    others = imported - sys.stdlib_module_names - {"moco_dist", "launcher", "slurm"}
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn"}
    parts = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "triton": "torch"}  # a part of the other's interface
    assert {parts.get(name, names.get(name, name)) for name in others} <= asked_for


def name_of(requirement: str) -> str:
    """Return the name under which a required package is imported, as far as both differ by dashes alone."""
    return re.split(r"[^\w-]", requirement)[0].replace("-", "_")


def test_only_versions_that_are_known_are_told() -> None:
    names = [version.split()[0] for version in packages.versions("numpy", "package_of_a_test", "torch")]
    assert names == ["numpy", "torch"]


def test_a_process_can_be_without_a_package(tmp_path: Path) -> None:
    """The tests of missing packages rest on this: nothing that `without` hides can be imported, and all else can."""
    script = (
        "import importlib.util, tqdm\n"
        "from importlib import metadata\n"
        "for name in ('wandb', 'wandb.sdk', 'submitit'):\n"
        "    for look in (__import__, importlib.util.find_spec, metadata.version):\n"
        "        try:\n"
        "            look(name)\n"
        "            print(name, look, 'there')\n"
        "        except ImportError as error:\n"
        "            assert error.name in (name, 'wandb'), error.name\n"
        "print(metadata.version('tqdm') == tqdm.__version__)\n"
        "print({one.metadata['Name'] for one in metadata.distributions()} & {'wandb', 'submitit'})\n"
    )
    environment = {**os.environ, **without(tmp_path / "bare", "wandb", "submitit")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\nset()\n", "")
