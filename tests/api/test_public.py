"""`import moco_dist` offers its names with their types, and imports nothing large."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moco_dist

ROOT = Path(__file__).parents[2]


def printed_by(script: str) -> str:
    """Run a script in a new process, and return what it prints."""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return process.stdout


def test_importing_takes_nothing_large() -> None:
    imported = set(printed_by("import sys, moco_dist; print(*sys.modules)").split())
    assert not {"torch", "numpy", "pydantic", "yaml", "moco_dist.config"} & imported


def test_looking_at_a_run_takes_no_torch() -> None:
    script = "import sys, moco_dist; moco_dist.Run, moco_dist.fit, moco_dist.assess, moco_dist.UserError\n"
    script += "moco_dist.Stopped, moco_dist.Diverged; print(*sys.modules)"
    assert not {"torch", "torchvision", "sklearn", "scipy", "matplotlib"} & set(printed_by(script).split())


EVERY_SUBMODULE_FIRST = """
import importlib, json, pkgutil, moco_dist
kernels = ("moco_dist.data.colour_kernels", "moco_dist.networks.batchnorm_kernels")  # they need Triton
names = [module.name for module in pkgutil.walk_packages(moco_dist.__path__, "moco_dist.")]
for name in names:
    if not name.endswith("__main__") and name not in kernels:
        importlib.import_module(name)
public = {name: getattr(moco_dist, name) for name in moco_dist.__all__}
print(json.dumps([names, {name: [type(value).__name__, getattr(value, "__module__", "")]
                          for name, value in public.items()}]))
"""


def test_no_submodule_takes_the_place_of_a_public_name() -> None:
    names, public = json.loads(printed_by(EVERY_SUBMODULE_FIRST).splitlines()[-1])
    assert {"moco_dist.run", "moco_dist.config.load", "moco_dist.train.loop"} <= set(names)
    assert not {name.split(".")[1] for name in names} & set(moco_dist.__all__)
    assert public.keys() == set(moco_dist.__all__)
    for name, (kind, module) in public.items():
        assert kind == type(getattr(moco_dist, name)).__name__ != "module", name
        assert module == moco_dist._MODULES.get(name, ""), name


def test_all_names_are_there_and_no_others() -> None:
    assert set(moco_dist._MODULES) == set(moco_dist.__all__) - {"__version__"}
    assert set(moco_dist.__all__) <= set(dir(moco_dist)) and moco_dist.__all__ == sorted(moco_dist.__all__)
    with pytest.raises(AttributeError, match="'moco_dist' has no attribute 'fits'"):
        _ = moco_dist.fits  # type: ignore[attr-defined]
    for name, module in moco_dist._MODULES.items():
        assert getattr(moco_dist, name) is getattr(importlib.import_module(module), name)


def test_every_public_name_has_its_section_in_the_document() -> None:
    headings = re.findall(r"^## `moco_dist\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(headings) == moco_dist.__all__


def test_every_attribute_of_a_run_is_in_the_document() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    public = [name for name in vars(moco_dist.Run) if not name.startswith("_")]
    assert {"rows", "figures"} <= set(public)
    assert [name for name in public if f"| `{name}`" not in text and name != "at"] == []


SCRIPT = """
from pathlib import Path

import moco_dist

run: moco_dist.Run = moco_dist.fit("digits", {"optim.lr": 0.06, "run.name": "b"}, verbose=False)
run = moco_dist.fit({"optim": {"lr": 0.06}}, ["run.name=b"])
run = moco_dist.fit(run.config)
run = moco_dist.fit(run)
folder: Path = run.path / "checkpoints"
losses: list[float] = [row["loss"] for row in run.training_rows]
saved: dict[int, Path] = run.checkpoints
state: str | None = run.status.state
changes: list[str] = [finding.override for finding in run.findings]
rows = moco_dist.assess(moco_dist.Run(Path("runs/digits")), linear=True, solver="sgd")
accuracy: float = rows[0]["test_accuracy_mean"]
version: str = moco_dist.__version__
try:
    moco_dist.fit(Path("mine.yaml"))
except moco_dist.Stopped as stop:
    step: int = stop.step
except (moco_dist.Diverged, moco_dist.UserError) as error:
    print(error)
"""
MISTAKES = """
moco_dist.nothing
moco_dist.fit(3)
moco_dist.assess(run, solver="newton")
run.row
"""


def test_a_users_script_is_typed(tmp_path: Path) -> None:
    """The script is checked by the project's settings, so that mypy's cache of `make check` serves here."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + MISTAKES)
    result = subprocess.run([sys.executable, "-m", "mypy", script], cwd=ROOT, capture_output=True, text=True)
    lines = re.findall(r"script\.py:(\d+): error", result.stdout)
    first = len(SCRIPT.splitlines()) + 2
    assert sorted(set(map(int, lines))) == list(range(first, first + 4)), result.stdout + result.stderr


def test_docstrings_name_all_arguments() -> None:
    for name in moco_dist.__all__:
        if inspect.isfunction(value := getattr(moco_dist, name)):
            section = (value.__doc__ or "").partition("Args:")[2].partition("Returns:")[0]
            named = re.findall(r"^ {8}(\w+): ", section, re.MULTILINE)
            assert named == list(inspect.signature(value).parameters), name
