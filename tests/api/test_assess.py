"""`assess` has the options, figures and files of the command line, and prints nothing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moco_dist
from moco_dist.evaluate import command, options, plots, process
from tests.api.made import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> moco_dist.Run:
    return fit(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: the pictures, and the places of images in the report, take longer than all else here."""
    monkeypatch.setattr(plots, "save", lambda path, figure: path.touch())
    monkeypatch.setattr(process, "leave_view", lambda *_: None)


def test_the_arguments_are_the_options_of_the_command_line() -> None:
    """Every option of the command line must be an argument of `assess`, with the same default."""
    parameters = inspect.signature(moco_dist.assess).parameters
    by_default = vars(options._parser("").parse_intermixed_args(["RUN"]))
    assert list(by_default) != [] and {*by_default} == {field.name for field in dataclasses.fields(options.Options)}
    for name in by_default.keys() - {"path", "config"}:
        assert parameters[name].default == by_default[name], name
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters.keys() - by_default.keys() == {"run", "overrides", "verbose"}


def test_it_gives_the_rows_that_it_writes_and_is_silent(
    run: moco_dist.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = moco_dist.assess(run, knn=True, out=tmp_path / "a", labels=np.int64(20), draws=2, semi=False)
    assert [(row["method"], row["labels"], row["draws"]) for row in rows] == [("kNN", None, 1), ("linear", 20, 2)]
    assert capfd.readouterr() == ("", "")
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text())["rows"] == rows
    assert (tmp_path / "a" / "evaluation" / "accuracies.png").is_file() and run.evaluation == []
    arguments = [str(run.path), "--labels", "20", "--draws", "2", "--no-semi", "--out", f"{tmp_path}/b"]
    assert command.run(arguments) == 0
    assert "test accuracy" in capfd.readouterr().out
    others = json.loads((tmp_path / "b" / "evaluation.json").read_text())["rows"]
    assert [row["accuracies"] for row in rows[1:]] == [row["accuracies"] for row in others]
    again = moco_dist.assess(str(run.path), knn=True, out=tmp_path / "a", verbose=True)
    assert again == rows[:1] and "kNN" in capfd.readouterr().out


def test_the_results_of_a_run_are_found_again(run: moco_dist.Run) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    state = torch.get_rng_state()
    few: dict[str, Any] = {"labels": 20, "semi": False, "split": "validation"}
    rows = moco_dist.assess(run, overrides={"run.seed": 3}, **few)
    assert run.evaluation == rows and "validation_accuracy_mean" in rows[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.equal(torch.get_rng_state(), state)
    others = moco_dist.assess(run, overrides=["run.seed=4"], **few)
    assert [row["accuracies"] for row in rows] != [row["accuracies"] for row in others]


def test_weights_take_their_config_in_any_form(run: moco_dist.Run, tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes((run.path / "encoder.safetensors").read_bytes())
    own = moco_dist.assess(run, out=tmp_path / "own", labels=20, semi=False)
    model = {"model.width": 8, "device.type": "cpu"}
    tree = run.config.model_dump(mode="json")
    for config, overrides in (("digits", model), (tree, {})):  # test_settings has the other forms
        rows = moco_dist.assess(weights, labels=20, semi=False, config=config, overrides=overrides)
        assert rows[0]["accuracies"] == own[0]["accuracies"]
    assert (tmp_path / "evaluation.json").is_file()  # beside the weights


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "both kinds of few": ({"labels": 20, "label_fraction": 0.1}, r"^--labels = 20: not allowed with --label-fraction"),
    "draws of nothing": ({"draws": 2}, r"^--draws = 2: is about few labels"),
    "half a label": ({"labels": 20.5}, r"^--labels = 20\.5: must be a whole number"),
    "text": ({"draws": "2", "labels": 20}, r"^--draws = 2: must be a whole number"),
    "no draws": ({"labels": 20, "draws": 0}, r"^--draws = 0: must be 1 or more"),
    "a fraction": ({"label_fraction": 2}, r"^--label-fraction = 2: must be above 0"),
    "a solver": ({"solver": "newton"}, r"^--solver = newton: is not known; use auto or lbfgs or sgd"),
    "a layer": ({"features": "queue"}, r"^--features = queue: is not known; use backbone or head"),
    "a split": ({"split": "train"}, r"^--split = train: is not known; use test or validation"),
    "a config for a run": ({"config": "digits"}, r"^argument = digits: a run directory has its config"),
    "a key": ({"overrides": {"eval.knn": 3}}, r"^eval\.knn "),
    "the split as a key": ({"overrides": {"eval.knn_split": "test"}}, r"^eval\.knn_split = test: is what the trainer"),
    "more labels than images": ({"labels": 5000}, r"^--labels = 5000"),
    "W&B of a run that has none": ({"wandb": True, "knn": True}, r"^--wandb = .*track\.wandb=disabled"),
    "a place": ({"knn": True, "out": "/dev/null/out"}, r"^--out = /dev/null/out.* cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_raised_in_one_line_and_not_printed(
    name: str, run: moco_dist.Run, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, line = MISTAKES[name]
    with pytest.raises(moco_dist.UserError, match=line) as raised:
        moco_dist.assess(run, **changes)
    assert "\n" not in str(raised.value) and capfd.readouterr() == ("", "")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(moco_dist.UserError, match=r"^RUN_DIR\|WEIGHTS = .*no such file or folder"):
        moco_dist.assess(tmp_path / "nothing")
    with pytest.raises(moco_dist.UserError, match=r"^RUN_DIR = .*holds no config\.yaml"):
        moco_dist.assess(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("label_fraction", "0.1"), ("label_fraction", True), ("labels", True), ("split", np.zeros(2))]
)
def test_an_argument_of_another_type_is_told_in_a_line(name: str, value: object, run: moco_dist.Run) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(moco_dist.UserError, match=f"--{name.replace('_', '-')} = "):
        moco_dist.assess(run, **arguments)
