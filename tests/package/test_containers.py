"""The container files install what the tests pass with; their commands run here in a new environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT
from tests.package.building import Environment, tracked

FOLDER = ROOT / "containers"
REQUIREMENTS = FOLDER / "requirements.py"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions: the word and the rest, on one line."""
    text = "\n".join(line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def copies() -> list[tuple[str, str]]:
    """Return the paths that the Dockerfile copies: in the checkout, and below the folder that it builds in."""
    pairs = []
    for words in (shlex.split(rest) for word, rest in instructions() if word == "COPY"):
        *sources, target = words
        pairs += [(source, Path(source).name if target == "./" else target) for source in sources]
    return pairs


def commands() -> list[str]:
    """Return the shell commands of the Dockerfile's RUN lines, without their mounts."""
    return [re.sub(r"^(--mount=\S+\s+)+", "", rest) for word, rest in instructions() if word == "RUN"]


def sections() -> dict[str, list[str]]:
    """Return the lines of each section of Apptainer's definition, without comments; the header has the name ''."""
    parts: dict[str, list[str]] = {}
    name = ""
    for line in map(str.strip, (FOLDER / "apptainer.def").read_text().splitlines()):
        if line.startswith("%"):
            name = line[1:]
        elif line and not line.startswith("#"):
            parts.setdefault(name, []).append(line)
    return parts


def let_in() -> set[str]:
    """Return the files that .dockerignore lets into the build."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    sources = [source for source, _ in copies()]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert len(sources) == len(set(sources)) and set(sources) == let_in()


def test_apptainer_has_the_same_image() -> None:
    parts = sections()
    arguments = dict(line.split("=", 1) for line in parts["arguments"])
    assert all(arguments.values())  # Apptainer passes over an argument without a value
    assert f"BASE={arguments['BASE']}" == next(rest for word, rest in instructions() if word == "ARG")
    files = [tuple(line.split()) for line in parts["files"]]
    assert files == [(source, f"/opt/moco-dist/{name}") for source, name in copies()]
    ours = [part.strip() for command in commands() for part in command.split("&&")]
    post = [line.replace("{{ EXTRAS }}", "${EXTRAS}") for line in parts["post"]]
    assert [line for line in post if line not in ("set -e", "cd /opt/moco-dist")] == [
        line for line in ours if not line.startswith(("useradd", "install "))
    ]


@pytest.mark.skipif(not tracked(), reason="a folder that is no checkout of git's may hold anything")
def test_the_commands_install_moco_dist_where_only_it_is_missing(tmp_path: Path) -> None:
    """Pip without an index can only take what is here, and fails where that is not what constraints.txt says."""
    place = tmp_path / "place"
    for source, name in copies():
        path = ROOT / source
        if path.is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, place / name, symlinks=True, ignore=hidden)
        else:
            place.mkdir(exist_ok=True)
            shutil.copy2(path, place / name)
    environment = Environment.create(tmp_path / "environment")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    variables |= {
        "PATH": f"{environment.folder / 'bin'}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "EXTRAS": "onnx timm",
    }
    for command in (command for command in commands() if "python" in command):
        assert "constraint constraints.txt" in command or "--no-deps" in command
        done = subprocess.run(["sh", "-c", command], cwd=place, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    start = next(rest for word, rest in instructions() if word == "CMD")
    words = [environment.python, *json.loads(start)[1:], "--help"]
    assert subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True).returncode == 0
    assert (environment.packages / "moco_dist" / "configs" / "digits.yaml").is_file()


def test_the_image_names_no_host_and_runs_as_no_root() -> None:
    for file in FOLDER.iterdir():
        if file.is_file():
            assert not re.search(r"://|\b[\w-]+\.(com|org|io|net)\b", file.read_text()), file
    words = [word for word, _ in instructions()]
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users == ["moco"] and words.index("USER") < words.index("CMD") and "ENTRYPOINT" not in words
    assert any("useradd" in command and command.split("&&")[0].split()[-1] == "moco" for command in commands())


@pytest.mark.parametrize("extras", [["onnx", "timm"], ["onnx timm"], ["onnx,timm", ""]])
def test_requirements_are_those_of_the_project(extras: list[str]) -> None:
    always = requirements()
    assert {"torch", "wandb", "submitit"} <= set(always) and "timm" not in always
    assert requirements(*extras)[len(always) :] == ["onnx", "onnxruntime", "timm"]
    assert requirements("") == always


def test_an_unknown_extra_is_told_in_one_line() -> None:
    done = subprocess.run([sys.executable, REQUIREMENTS, "onxx"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("requirements.py: onxx: is no extra; choose from dev, onnx, ")


def requirements(*extras: str) -> list[str]:
    """Run the script, and return the names of the packages that it prints."""
    done = subprocess.run([sys.executable, REQUIREMENTS, *extras], capture_output=True, text=True, check=True)
    return [re.split(r"[^\w-]", line)[0] for line in done.stdout.splitlines()]
