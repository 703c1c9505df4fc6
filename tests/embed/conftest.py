"""Make a run and images once for all tests of features."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embed.made import images_of, run_of


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("embed") / "small")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    images_of(folder)
    return folder
