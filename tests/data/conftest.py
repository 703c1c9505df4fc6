"""Fixtures of the tests of the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.made import draw


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ with cats (10, 20, 30) and dogs (100, 110), val/ with one of each."""
    for value in (10, 20, 30):
        draw(tmp_path / "train" / "cat" / f"{value}.jpg", value)
    for value in (100, 110):
        draw(tmp_path / "train" / "dog" / "deeper" / f"{value}.JPEG", value)
    draw(tmp_path / "val" / "cat" / "a.png", 40)
    draw(tmp_path / "val" / "dog" / "b.jpg", 120)
    return tmp_path
