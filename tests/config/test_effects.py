"""Each key of the config can change what its declared effect says, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from moco_dist import config


@pytest.mark.parametrize(
    ("key", "one", "other", "effect"),
    [
        ("run.name", "a", "b", "none"),
        ("run.seed", "0", "1", "curve"),
        ("track.log_every", "1", "2", "none"),
        ("checkpoint.keep", "2", "3", "none"),
        ("data.workers", "0", "4", "none"),
        ("data.root", "/a", "/b", "none"),
        ("data.crop_scale", ["0.2"], ["0.3"], "curve"),
        ("device.type", "cpu", "cuda", "bits"),
        ("device.precision", "fp32", "bf16", "curve"),
        ("moco.shuffle", "all_gather", "all_to_all", "none"),
        ("moco.shuffle", "all_gather", "none", "curve"),
        ("eval.knn_k", "20", "5", "evaluation"),
        ("eval.knn_split", "test", "validation", "curve"),
        ("optim.lr", "1", "1", "none"),
        ("a.key", "of", "later", "curve"),
    ],
)
def test_what_a_key_can_change(key: str, one: Any, other: Any, effect: str) -> None:
    assert config.effect_of(key, one, other) == effect


def test_every_key_with_an_effect_of_its_own_exists() -> None:
    from moco_dist.config.effects import _OF_KEY, _OF_SECTION

    tree = config.Config().model_dump()
    assert {key for key in _OF_KEY if key.split(".")[1] not in tree[key.split(".")[0]]} == set()
    assert set(_OF_SECTION) <= set(tree)
