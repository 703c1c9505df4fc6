"""The tests of the report share made runs and a real Chromium."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from moco_dist.run import features_view
from moco_dist.run.features_view import FeaturesView, Neighbours, Thumbnail
from moco_dist.run.paths import RunPaths
from tests import browser
from tests.health import made

STEPS = 640
EVIL = '<script>document.title="broken"</script><img src=x onerror=alert(1)>&"\''


def picture(side: int = 8, value: int = 90) -> str:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), value, dtype=np.uint8)).save(content, format="png")
    return base64.b64encode(content.getvalue()).decode()


def a_view(classes: int = 4, images: int = 60, name: str = "class {}") -> FeaturesView:
    labels = [number % classes for number in range(images)]
    thumb = Thumbnail(1, picture(), "png")
    wrong, errors = classes - 1, min(3, images // classes)
    return FeaturesView(
        step=STEPS,
        split="test",
        images=images,
        classes=[name.format(number) for number in range(classes)],
        projection="t-SNE",
        points=[((7 * n % images) / images, (3 * n % images) / images) for n in range(images)],
        labels=labels,
        right=[int(n > 2) for n in range(images)],
        confusions=[(c, c, images // classes - (errors if c == 0 else 0)) for c in range(classes)]
        + [(0, wrong, errors)],
        neighbours=[Neighbours(thumb, 0, [thumb] * 6, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])] * 3,
        digest="",
    )


def a_run(
    folder: Path, *, bad_from: int = 0, state: str = "done", edits: Mapping[str, str] = {}, **changes: object
) -> Path:
    """Write a run with a view of its features.

    Args:
        folder: of the run, which is called after it.
        bad_from: step from which on all its queries are alike; 0: never.
        state: of the run.
        edits: values by `section.key` that no valid config has, as of a file that was edited by hand.
        changes: of the config.
    """

    def collapse(step: int) -> dict[str, float]:
        noise = 0.01 * ((step * 7919) % 101)
        bad = {"q_std": 0.001, "k_std": 0.001, "q_rank": 1.0, "k_rank": 1.0} if bad_from and step >= bad_from else {}
        return {"loss": made.healthy_row(step)["loss"] + noise, "images_per_second": 30 + noise, **bad}

    config = made.config_of(run__name=folder.name, **changes)
    status = {"state": state, "step": STEPS, "total_steps": STEPS, "epoch_steps": made.EPOCH_STEPS}
    made.write_run(folder, made.rows(STEPS, collapse), status, config)
    paths = RunPaths(folder)
    tree = yaml.safe_load(paths.config.read_text())
    for key, value in edits.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    paths.config.write_text(f"# moco-dist 0.1.0\n{yaml.safe_dump(tree)}")
    paths.pairs_picture.write_bytes(base64.b64decode(picture(16)))
    features_view.write(paths.features_view, a_view())
    starts = [
        {"step": 0, "ranks": 4, "hosts": ["node-1", "node-2"], "device": "cuda"},
        {"step": 300, "ranks": 2, "hosts": ["node-1"], "device": "cuda"},
    ]
    paths.provenance.write_text("".join(json.dumps(start) + "\n" for start in starts))
    return folder


def with_classes(folder: Path, classes: int, name: str = "class {}") -> None:
    """Replace the view of a run's features by one of so many classes."""
    features_view.write(RunPaths(folder).features_view, a_view(classes, 2 * classes, name))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium; where it is not installed, tests are skipped, and in CI they fail."""
    if browser.missing():
        reason = "Chromium is not installed; run as root: python -m tests.browser install"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # root in a container
        started = playwright.chromium.launch(executable_path=browser.executable(), args=options)
        yield started
        started.close()
