"""The files, modules to run, keys of the config and tests that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moco_dist.config import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SECTIONS = {section: set(values) for section, values in Config().model_dump().items()}

ROOMS = [
    "configs",
    "containers",
    "docs",
    *(path.parent.name for folder in (ROOT, ROOT / "moco_dist") for path in folder.glob("*/__init__.py")),
]
"""Folders of the repository and of the trainer, by one of which a path in a document begins."""
PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(ROOMS)})/[\w./-]*")
MODULE = re.compile(r"python -m ([\w.]+)")
KEY = re.compile(rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z]\w*)")
TEST = re.compile(r"\btest_\w+")
NO_KEYS = {"data.tar", "model.pth", "model.safetensors"}
"""Names of files that look like keys."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document: Path) -> None:
    assert missing(document.read_text(encoding="utf-8")) == []


def test_names_of_nothing_are_missed() -> None:
    text = "`launcher/job/first.py` `data/trees.py` python -m moco_dist.nothing data.image=3 test_that_is_none, and"
    there = (
        "`launcher/job/task.py` `data/tree.py` python -m launcher data.image_size=3 `test_what_a_document_names_exists`"
    )
    missed = ["data.image", "data/trees.py", "launcher/job/first.py", "moco_dist.nothing", "test_that_is_none"]
    assert missing(f"{text} {there}") == missed


def missing(text: str) -> list[str]:
    """Return the names in a document of what does not exist, sorted."""
    paths = {path.rstrip(".") for path in PATH.findall(text)}
    names = {path for path in paths if not any((base / path).exists() for base in (ROOT, ROOT / "moco_dist"))}
    modules = {module: ROOT / module.rstrip(".").replace(".", "/") for module in MODULE.findall(text)}
    names |= {
        module
        for module, path in modules.items()
        if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file())
    }
    names |= {f"{section}.{key}" for section, key in KEY.findall(text) if key not in SECTIONS[section]} - NO_KEYS
    tests = "\n".join(f"{path.name} {path.read_text(encoding='utf-8')}" for path in (ROOT / "tests").rglob("*.py"))
    return sorted(names | {name for name in TEST.findall(text) if not re.search(rf"(def |^){name}\b", tests, re.M)})
