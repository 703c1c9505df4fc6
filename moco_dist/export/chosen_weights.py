"""Choose the weights of a run, and refuse a config that has been changed since: it would describe them wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_dist.config import Config
from moco_dist.encoders import description, from_run
from moco_dist.encoders.description import Description
from moco_dist.errors import UserError, shown
from moco_dist.export.options import Options
from moco_dist.networks import weight_files
from moco_dist.run import status
from moco_dist.run.paths import RunPaths


@dataclass(frozen=True)
class Weights:
    """This object names the weights to export; they are chosen once, since a run may go on meanwhile."""

    checkpoint: int | None
    """The step of the checkpoint that holds the weights; None: the run's encoder.safetensors holds them."""
    step: int
    """The number of steps that made the weights; 0 where a damaged directory of an earlier revision hides it."""
    state: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The content of the checkpoint that holds the weights; empty where there is none."""


def choose(options: Options) -> Weights:
    """Choose the weights that the options mean, whose network and images are those of the config.

    Raises:
        UserError: names what has changed, or the run has no such weights.
    """
    with_head = options.head or options.to == "reference"
    step = from_run.choose_step(options.run_dir, with_head=with_head, which=options.encoder, step=options.step)
    if step is None:
        state: dict[str, Any] = {}
        before = description.read(weight_files.read(RunPaths(options.run_dir).encoder, "RUN_DIR"))
    else:
        state = from_run.state_of(options.run_dir, step)
        before = _of_checkpoint(state, options, step)
    if before is not None:  # an earlier revision wrote nothing down
        _compare(before, options)
    described_step = before.run.get("step") if before and step is None else step
    its_step = described_step if isinstance(described_step, int) else status.read(options.run_dir).step
    return Weights(step, its_step, state)


def _compare(before: Description, options: Options) -> None:
    """Compare the description of the weights with the config. Raises UserError."""
    now = Description.of(options.config, 0)
    of_model = (before.model.model_dump(), now.model.model_dump())
    of_images = (before.preprocessing.fields(), now.preprocessing.fields())
    for section, (was, has) in (("model.", of_model), ("", of_images)):
        if changed := [name for name in has if was[name] != has[name]]:
            name = changed[0]
            rule = f"has {section}{name}={shown(has[name])}, and the weights were trained with {shown(was[name])}"
            raise UserError.of("RUN_DIR", RunPaths(options.run_dir).config, rule, "put the config of the run back")


def _of_checkpoint(state: Mapping[str, Any], options: Options, step: int) -> Description | None:
    """Describe the encoder of a checkpoint by the config that it holds; None for a config of another revision."""
    try:
        began = Config.model_validate(state["config"])
    except (KeyError, ValueError):
        return None
    data = options.config.data
    if began.data.mean is None:  # which is measured at the first start, and then stands in the config alone
        began = began.model_copy(update={"data": began.data.model_copy(update={"mean": data.mean, "std": data.std})})
    return Description.of(began, step)
