"""The workspace for W&B is made from the list of figures, and saved by the real client at a server of ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moco_dist.run.figures import FIGURES, SECTIONS
from tests.fake_wandb import FakeWandb

SNAPSHOT = Path(__file__).parent / "workspace.json"
COMMAND = "python -m launcher workspace --print > tests/launcher/workspace.json"


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-m", "launcher", "workspace", *words]
    return subprocess.run(command, env={**clean, "HOME": "/nonexistent", **environment}, capture_output=True, text=True)


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


def shown(spec: dict[str, Any], name: str) -> bool:
    """Tell whether a panel shows what W&B has under a name."""
    configs = [panel["config"] for panels in sections(spec).values() for panel in panels]
    return any(
        name in config.get("metrics", ()) or ("metricRegex" in config and re.search(config["metricRegex"], name))
        for config in configs
    )


def test_what_is_printed_is_the_snapshot() -> None:
    done = launch("--print")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == SNAPSHOT.read_text(), f"run: {COMMAND}"


def test_every_figure_has_a_panel_in_its_section() -> None:
    spec = json.loads(SNAPSHOT.read_text())
    assert list(sections(spec)) == [*SECTIONS.values(), "Sweeps"]
    for figure in FIGURES:
        kind = "eval" if figure.section == "evaluation" else "train"
        assert shown(spec, f"{kind}/{figure.name.replace('<i>', '17')}"), figure.name
    panels = [panel for panels in sections(spec).values() for panel in panels]
    assert {panel["config"].get("xAxis", "train/step") for panel in panels} == {"train/step"}


def test_the_panel_of_a_sweep_has_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("grid: {moco.temperature: [0.1, 0.2], optim.epochs: [1, 2]}")
    [panel] = sections(json.loads(launch("--print", "--sweep", str(file)).stdout))["Sweeps"]
    keys = ["config:moco.value.temperature", "config:optim.value.epochs"]
    accessors = [column["accessor"] for column in panel["config"]["columns"]]
    assert accessors == [*keys, "summary:eval/linear_top1", "summary:eval/knn_top1"]


def test_it_is_saved_as_a_view_of_the_project() -> None:
    with FakeWandb() as server:
        done = launch("--project", "mine", **server.env())
    assert done.returncode == 0, done.stderr
    [view] = server.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("lab", "mine", "project-view")
    assert list(sections(json.loads(view["spec"]))) == [*SECTIONS.values(), "Sweeps"]
    assert re.fullmatch(rf"{server.url}/lab/mine\?nw=\w+\n", done.stdout)


@pytest.mark.parametrize("fault", ["403", "no key"])
def test_what_wandb_refuses_is_told_on_one_line(fault: str) -> None:
    with FakeWandb() as server:
        server.fail["UpsertView2"] = 403
        environment = server.env()
        if fault == "no key":
            del environment["WANDB_API_KEY"]
        done = launch(**environment)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("launcher: workspace = ") and "run wandb login" in line
