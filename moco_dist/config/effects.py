"""Say what a key of the config can change: nothing, evaluations, the last bits of numbers, or the curve."""

from typing import Any, Literal

Effect = Literal["none", "evaluation", "bits", "curve"]
"""The most that two values of a key can change. `bits`: the order of additions, so that last bits may differ."""

_OF_SECTION: dict[str, Effect] = {
    "run": "none",
    "device": "bits",
    "checkpoint": "none",
    "eval": "evaluation",
    "track": "none",
}
_OF_KEY: dict[str, Effect] = {
    "run.seed": "curve",
    "run.init_from": "curve",
    "data.root": "none",
    "data.download": "none",
    "data.workers": "none",
    "data.cache": "none",
    "data.enlarge": "none",
    "optim.accumulate": "bits",
    "device.precision": "curve",
    "eval.knn_split": "curve",
    "eval.validation_fraction": "curve",
}


def effect_of(key: str, one: Any, other: Any) -> Effect:
    """Return what the two values of a key, `section.name`, can make different between two runs that are else alike.

    A key that nothing is known of can change the curve.
    """
    if one == other or (key == "moco.shuffle" and "none" not in (one, other)):  # the two ways give equal keys
        return "none"
    return _OF_KEY.get(key) or _OF_SECTION.get(key.partition(".")[0]) or "curve"
