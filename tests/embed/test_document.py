"""The commands of docs/features.md do what the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_dist.embed import command as embed
from moco_dist.run.paths import RunPaths
from moco_dist.search import command as search

DOCUMENT = Path(__file__).parents[2] / "docs" / "features.md"
COMMAND = re.compile(r"^    (?:python|torchrun --nproc_per_node=4) -m moco_dist\.(embed|search) (.*)$", re.MULTILINE)


def test_the_commands_run(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, "runs/digits")
    shutil.copy(RunPaths(run_dir).encoder, "weights.safetensors")
    Path("images/cats").mkdir(parents=True)
    for number, name in enumerate(("images/cats/a.png", "images/b.png", "b.png")):
        Image.new("RGB", (20, 16), (80 * number, 0, 90)).save(name)
    commands = COMMAND.findall(DOCUMENT.read_text())
    assert len(commands) == 7
    for name, arguments in commands:
        run = {"embed": embed, "search": search}[name].run
        assert run(shlex.split(arguments)) == 0, arguments
    assert {"features.npy", "features.parquet", "nearest.png", "near.png"} <= {path.name for path in Path().iterdir()}
    names = json.loads(Path("features.files.json").read_text())["files"]
    assert names == ["b.png", "cats/a.png"] and len(np.load("features.npy")) == 2


def test_every_option_is_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCUMENT.read_text()
    for command in (embed, search):
        with pytest.raises(SystemExit):
            command.run(["--help"])
        options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
        assert {"--out", "--batch", "--workers"} <= options
        assert [option for option in options if option not in text] == []
