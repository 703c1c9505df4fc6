"""Environments of processes in which packages are missing that are installed here."""

from __future__ import annotations

import os
from pathlib import Path

from tests.jobs import ROOT

_SITECUSTOMIZE = """
import importlib.metadata, sys

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

class WithoutMissing(importlib.metadata.MetadataPathFinder):
    @classmethod
    def find_distributions(cls, *context):
        return (one for one in super().find_distributions(*context) if one.metadata["Name"] not in {names!r})

importlib.metadata.MetadataPathFinder = WithoutMissing
sys.meta_path.insert(0, Missing)
"""


def without(folder: Path, *names: str) -> dict[str, str]:
    """Variables for Python processes that can neither import the packages nor learn their versions.

    Args:
        folder: a new one, for the `sitecustomize.py` that hides them.
        names: of the packages.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(names=set(names)))
    path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}
