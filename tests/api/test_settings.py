"""A caller may give a config in any of several forms."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from moco_dist import config as configs
from moco_dist.api.settings import config_of
from moco_dist.config.from_python import as_path
from moco_dist.errors import UserError
from moco_dist.run import status

CHANGED = {"optim.lr": 0.06, "run.seed": 3}


def test_all_forms_mean_the_same(tmp_path: Path) -> None:
    expected = configs.load(None, ["optim.lr=0.06", "run.seed=3"])
    file = tmp_path / "digits.yaml"
    file.write_text(configs.DEFAULT_CONFIG.read_text())
    tree = configs.read_tree(file)
    for config in (None, "digits", "configs/digits.yaml", str(file), file, configs.load(None), {**tree}):
        named = {"run.name": "digits", **CHANGED} if isinstance(config, dict) else CHANGED
        assert config_of(config, named) == expected
    assert config_of(None, ["optim.lr=0.5", "optim.lr=0.06", "run.seed=3"]) == expected
    assert config_of(None, (text for text in ("optim.lr=0.06", "run.seed=3"))) == expected


def test_values_of_python_and_numpy_are_taken() -> None:
    config = config_of(
        OrderedDict(
            optim={"lr": np.float32(0.5), "epochs": np.int64(7), "milestones": np.array([1, 2]).tolist()},
            run={"name": 123, "max_minutes": None},
            model=OrderedDict(mlp=False),
            track={"tags": ("a", "b")},
        ),
        {"data.crop_scale": (0.5, np.float64(1.0)), "optim.steps": None},
    )
    assert (config.optim.lr, config.optim.epochs, config.optim.milestones) == (0.5, 7, (1, 2))
    assert (config.run.name, config.model.mlp, config.track.tags) == ("123", False, ("a", "b"))
    assert config.data.crop_scale == (0.5, 1.0)


def test_text_is_expanded_and_a_path_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "there")
    assert config_of(None, {"run.dir": "~/$PLACE"}).run.dir == "/home/me/there"
    for path in ("~/$PLACE/$$", "a$b", "/x/${y}", "~me"):
        assert config_of(None, {"run.dir": PurePosixPath(path)}).run_dir == Path(path)
        assert config_of({"run": {"dir": Path(path)}}).run_dir == Path(path)
        assert config_of(config_of(None, {"run.dir": Path(path)})).run_dir == Path(path)
        assert as_path("RUN", Path(path)) == Path(path)
    assert as_path("RUN", "~/a") == Path("/home/me/a")


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "one text": (
        None,
        "optim.lr=0.06",
        r'^overrides = optim\.lr=0\.06: must be a list .*write \["section\.key=value"\]',
    ),
    "no override": (None, ["optim.lr"], r"^overrides = optim\.lr: is no section\.key=value"),
    "a number in the list": (None, [3], r"^overrides = 3: is no section\.key=value"),
    "no key": (None, {"lr": 1}, r"^override lr=1: must be section\.key=value"),
    "a section in place of a key": (None, {"optim": {"lr": 1}}, r"^override optim={lr: 1}: must be section\.key=value"),
    "an odd key": (None, {3: 1}, r"^override 3=1"),
    "a type": (None, {"optim.lr": "fast"}, r"^optim\.lr = fast: must be a number"),
    "a truth": (None, {"optim.lr": True}, r"^optim\.lr = true: must be a number"),
    "a wrong section": ({"optimizer": {}}, {}, r"^optimizer"),
    "no section": ({"optim": 3}, {}, r"^optim = 3: must be a section|^optim"),
    "a key in no section": ({"optim.lr": 3}, {}, r"^optim\.lr"),
    "no such name": ("nothing", {}, r"^config nothing: no such file.*digits"),
    "no such file": (Path("nothing.yaml"), {}, r"^config nothing\.yaml: no such file"),
    "a variable that is not set": ("$NOTHING_LIKE_IT/a.yaml", {}, r"^config = \$NOTHING_LIKE_IT/a\.yaml: the variable"),
    "a folder that holds no run": (Path(__file__).parent, {}, r"^RUN_DIR = .*/api: holds no config\.yaml"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    config, overrides, line = MISTAKES[name]
    with pytest.raises(UserError, match=line) as raised:
        config_of(config, overrides)
    assert "\n" not in str(raised.value)


def test_what_a_caller_gives_is_left_as_it_is() -> None:
    sections, overrides = {"optim": {"lr": 0.5}}, {"optim.lr": 0.25}
    assert config_of(sections, overrides).optim.lr == 0.25
    assert sections == {"optim": {"lr": 0.5}} and overrides == {"optim.lr": 0.25}


def test_a_runs_config_with_another_name_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "config.yaml").write_text(configs.dump(configs.load(None, [f"run.dir={folder}", "optim.lr=0.5"])))
    status.write(folder, "done", 3)
    of_run = config_of(folder)
    assert of_run.run_dir == folder and of_run.optim.lr == 0.5
    for config in (folder, str(folder), folder / "config.yaml", of_run):
        assert config_of(config).run_dir == folder
        assert config_of(config, {"run.name": "b"}).run_dir == Path("runs/b")
        assert config_of(config, {"run.name": "b", "run.dir": "c"}).run_dir == Path("c")
