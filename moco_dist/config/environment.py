"""Read W&B's own variables, which count where track.wandb and track.project are unset, and nowhere else."""

import os
from typing import Any

from moco_dist.config.schema import TrackSection
from moco_dist.errors import UserError, shown

_MODES = {"offline": "offline", "online": "online", "disabled": "disabled", "dryrun": "offline", "run": "online"}
_SWITCH = dict.fromkeys(("true", "1", "yes", "on"), "disabled") | dict.fromkeys(("false", "0", "no", "off"), "")
_VARIABLES = (
    ("WANDB_DISABLED", _SWITCH, "must be true or false"),
    ("WANDB_MODE", _MODES, "must be offline, online or disabled"),
)


def complete_(track: dict[str, Any]) -> None:
    """Complete a section `track` by the environment, where it is silent. Raises UserError for an unknown word."""
    if "wandb" not in track:
        track["wandb"] = "offline"
        if wish := _wish():
            variable, text, mode, rule = wish
            if mode is None:
                raise UserError.of(variable, text, rule, "unset it, or set track.wandb")
            track["wandb"] = mode
    if "project" not in track and (project := os.environ.get("WANDB_PROJECT")):
        track["project"] = project


def overruled(track: TrackSection) -> list[str]:
    """Tell which variables do not count since the config says otherwise, each in a line."""
    wish, project = _wish(), os.environ.get("WANDB_PROJECT")
    lines = []
    if wish and wish[2] != track.wandb:
        lines.append(f"track.wandb = {track.wandb}: it is set, so {wish[0]}={shown(wish[1])} does not count")
    if project and project != track.project and track.wandb != "disabled":
        lines.append(f"track.project = {track.project}: it is set, so WANDB_PROJECT={shown(project)} does not count")
    return lines


def _wish() -> tuple[str, str, str | None, str] | None:
    """Return the variable that decides on track.wandb, its text, the mode that it means if any, and its rule."""
    for variable, words, rule in _VARIABLES:
        text = os.environ.get(variable, "")
        mode = words.get(text.strip().lower())
        if text.strip() and mode != "":
            return variable, text, mode, rule
    return None
