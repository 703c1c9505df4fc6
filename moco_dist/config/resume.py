"""A run that goes on may change where and how fast it runs and what it tells, but not its curve."""

import functools
from collections.abc import Mapping
from typing import Any

from moco_dist.config.effects import effect_of
from moco_dist.config.layout import Layout
from moco_dist.config.read import flat
from moco_dist.config.schema import Config
from moco_dist.errors import UserError, shown

_FREE = frozenset({"run.init_from", "moco.bn_groups"})
"""Keys that may change although they can change a curve: the first has had its effect, the second is compared below."""

_EARLIER = {"data.decode": "pillow"}
"""Values that hold for runs begun before the key existed, where they are not the key's default."""


@functools.cache
def earlier_values() -> Mapping[str, Any]:
    """Return by `section.key` what each key meant in a run that was begun before the key existed."""
    return {**flat(Config().model_dump(mode="json")), **_EARLIER}


def with_decoder(config: Config, begun: Mapping[str, Any] | None) -> Config:
    """Return the config with the decoder that `data.decode=auto` means: the one that the run was begun with, or cpu.

    Args:
        config: the one to go on with, or to begin with.
        begun: the config that the run was begun with, as `model_dump`; None: it begins now.
    """
    if config.data.decode != "auto":
        return config
    decode = "cpu" if begun is None else begun["data"].get("decode", _EARLIER["data.decode"])
    return config.model_copy(update={"data": config.data.model_copy(update={"decode": decode})})


def check_resumable(begun: Mapping[str, Any], group_size: int, config: Config, plan: Layout) -> None:
    """Refuse to go on with a run under a config that would change its curve.

    Args:
        begun: the config that the run was begun with, as `model_dump`.
        group_size: of the run until now.
        config: the one to go on with.
        plan: its layout.

    Raises:
        UserError: names each such key with both values.
    """
    free = set(_FREE)
    if config.optim.schedule != "cosine":
        free |= {"optim.epochs", "optim.steps"}  # the learning rate of a step does not depend on the length
    elif config.optim.steps is not None:
        free.add("optim.epochs")  # it does not count
    now, default = config.model_dump(mode="json"), Config().model_dump(mode="json")
    watches = [section["eval"]["knn_every"] > 0 for section in (begun, now)]
    # Only a run that evaluates cuts its validation images off.
    counted = {"eval.knn_every"} if config.eval.knn_split == "validation" and watches[0] != watches[1] else set()
    changed = [
        f"{key} = {shown(new)} (was {shown(old)})"
        for section, keys in now.items()
        for name, new in keys.items()
        if (key := f"{section}.{name}") not in free
        if (old := begun[section].get(name, _EARLIER.get(key, default[section][name]))) != new  # a key that came later
        if key in counted or effect_of(key, old, new) == "curve"
    ]
    as_before = ""
    if groups := _other_groups(begun, group_size, config, plan):
        if not changed and groups % plan.ranks == 0:  # else it would not be enough
            as_before = f"set moco.bn_groups={groups}, or "
        if config.moco.bn_groups is None and begun["optim"].get("accumulate", 1) != config.optim.accumulate:
            changed.append(f"optim.accumulate = {config.optim.accumulate} (was {begun['optim'].get('accumulate', 1)})")
        ranks = f"{plan.ranks} rank{'s' * (plan.ranks > 1)}"
        changed.append(f"moco.bn_groups = {shown(config.moco.bn_groups)} on {ranks} (was {groups})")
    if changed:
        raise UserError(
            f"{', '.join(changed)}: would change the curve of the run in {config.run_dir}; "
            f"{as_before}put it back, or begin another with run.name=NAME"
        )


def _other_groups(begun: Mapping[str, Any], group_size: int, config: Config, plan: Layout) -> int:
    """Return the number of BatchNorm groups of a run until now, if the layout has another one; else 0."""
    groups: int = begun["optim"]["global_batch"] // group_size  # another batch is a change by itself
    return 0 if groups == config.optim.global_batch // plan.group_size else groups
