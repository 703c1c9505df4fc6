"""Read a sweep file, which `python -m launcher sweep --help` describes, and tell which members of it are new.

A member is known by its values: another number, or another order of the file, makes no new one.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from launcher import sending
from launcher.record import Launch
from launcher.views import find
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.paths import PathText
from moco_dist.config.section import FileName, Section
from moco_dist.errors import UserError, shown

_MOST_MEMBERS = 1000
_OWN = ("run.name", "run.dir", "track.group")
"""Keys that a sweep sets itself for each member."""
_FREE = ("track", "checkpoint")
"""Sections that say nothing about the curve: members that differ there alone are equal, unless the sweep varies it."""

Values = dict[str, Any]


class Sweep(Section):
    """A sweep file says what the members of a sweep share, and which values distinguish them."""

    name: FileName = "sweep"
    """Name of the sweep."""
    config: PathText | None = None
    """Config that the members share."""
    grid: dict[str, list[Any]] = Field({})
    """Values by key; every combination of them."""
    cases: tuple[Values, ...] = ()
    """Sets of values by key."""

    @property
    def folder(self) -> Path:
        """Return the folder of its members."""
        return (Path("runs") / self.name).absolute()

    @property
    def keys(self) -> list[str]:
        """List every key that it varies."""
        return list(dict.fromkeys(key for values in (*self.cases, self.grid) for key in values))

    def points(self) -> list[Values]:
        """List the values of each member, in order; equal ones may be among them."""
        keys = self.grid.keys()
        combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [{**case, **combination} for case in self.cases or ({},) for combination in combinations]


@dataclass(frozen=True)
class Member:
    """A member is one run of a sweep; this one has not been sent."""

    config: Config
    values: Values
    """The member's values of the keys that the sweep varies, which distinguish it from others."""


@dataclass
class Plan:
    """A plan says what sending a sweep file will do."""

    new: list[Member] = field(default_factory=list)
    existing: list[Launch] = field(default_factory=list)
    """Members that were sent before."""
    repeated: list[str] = field(default_factory=list)
    """Names of the members that the file gives more than once."""


def read(file: Path) -> Sweep:
    """Read a sweep file. Raises UserError."""
    if not file.is_file():
        raise UserError(f"sweep {file}: no such file; give a YAML file with `grid` or `cases`")
    tree = {"name": file.stem, **configs.read_tree(file)}
    sweep = configs.validate(Sweep, tree)
    if not sweep.grid and not sweep.cases:
        raise UserError(f"sweep {file}: has no members; add grid: {{optim.lr: [0.03, 0.06]}} or cases")
    for key, values in sweep.grid.items():
        if not values:
            raise UserError.of(f"grid.{key}", values, "must be a list of values", f"write {key}: [0.03, 0.06]")
    for key in (key for key in sweep.keys if key in _OWN):
        raise UserError(f"sweep {file}: sets {key}, which a sweep sets itself for each member; drop it")
    for number, case in enumerate(sweep.cases, 1):
        if repeated := [key for key in case if key in sweep.grid]:
            raise UserError(f"sweep {file}: {repeated[0]} stands in the grid and in case {number}; keep one of them")
    count = math.prod(map(len, sweep.grid.values())) * max(1, len(sweep.cases))
    if count > _MOST_MEMBERS:
        raise UserError(f"sweep {file}: has {count} members, {_MOST_MEMBERS} at most; make it smaller")
    return sweep


def plan(sweep: Sweep, overrides: Sequence[str], *, staged: bool) -> Plan:
    """Load the config of each member, and part those that were sent before from the new ones.

    Raises:
        UserError: a config is wrong, a key is given twice, or a member was sent with other settings beside its values.
    """
    _refuse_twice(sweep, overrides)
    before = _sent(sweep.folder)
    sent = {_identity(config, sweep.keys): launch for launch, config in before}
    result, planned = Plan(), dict[str, str]()
    number = 1 + max(map(_number, sweep.folder.iterdir() if sweep.folder.is_dir() else ()), default=-1)
    for values in sweep.points():
        config = _load(sweep, overrides, values, number + len(result.new), staged=staged)
        identity = _identity(config, sweep.keys)
        if identity in planned:
            result.repeated.append(planned[identity])
            continue
        if launch := sent.get(identity):
            planned[identity] = launch.run_dir.name
            result.existing.append(launch)
            continue
        planned[identity] = config.run.name
        result.new.append(Member(config, _values(config, sweep.keys)))
    _refuse_changed(result.new, before)
    return result


def member_name(number: int, values: Values) -> str:
    """Return the name of a member's folder, with its values: `03_temperature=0.1_lr=0.03`."""
    words = [f"{key.rpartition('.')[2]}={shown(value)}" for key, value in values.items()]
    return re.sub(r"[^\w.+=-]+", "-", "_".join([f"{number:02}", *words]))[:100]


def _load(sweep: Sweep, overrides: Sequence[str], values: Values, number: int, *, staged: bool) -> Config:
    """Load the whole config of a member. Raises UserError, which names the member."""
    name = member_name(number, values)
    place = {"run.name": name, "run.dir": str(sweep.folder / name), "track.group": sweep.name}
    try:
        config = configs.load(Path(sweep.config) if sweep.config else None, overrides, {**values, **place})
        return sending.absolute(config, staged=staged)
    except UserError as error:
        raise UserError(f"member {name}: {error}") from None


def _refuse_twice(sweep: Sweep, overrides: Iterable[str]) -> None:
    """Refuse an override of what the sweep sets. Raises UserError."""
    for key, _, value in (override.partition("=") for override in overrides):
        if key in _OWN:
            raise UserError.of(key, value, "a sweep sets it itself for each member", "drop it")
        if key in sweep.keys:
            raise UserError.of(key, value, "the sweep file varies it", "drop it here, or there")


def _sent(folder: Path) -> list[tuple[Launch, Config]]:
    """List the members of a sweep that were sent, with their configs; one whose config is damaged is left out."""
    members = []
    for launch in find.list_runs([folder]):
        try:
            members.append((launch, launch.config()))
        except UserError:
            continue
    return members


def _identity(config: Config, keys: Sequence[str]) -> str:
    """Return what is equal for equal members: the values of the keys that vary, and all that makes the curve."""
    tree = config.model_dump(mode="json", exclude=set(_FREE))
    for key in ("name", "dir"):
        del tree["run"][key]
    return json.dumps([tree, _values(config, keys)], sort_keys=True)


def _values(config: Config, keys: Sequence[str]) -> Values:
    """Return the values of some keys."""
    tree = config.model_dump(mode="json")
    return {key: tree[section][name] for key in keys for section, _, name in [key.partition(".")]}


def _refuse_changed(new: Sequence[Member], sent: Sequence[tuple[Launch, Config]]) -> None:
    """Refuse new members that were sent with the same values, but with something else that they share.

    Raises:
        UserError: there is one.
    """
    for launch, config in sent if new else ():
        submission = launch.submission()
        for member in new:
            if submission and submission.values == member.values:
                key, before, now = _first_change(config, member.config)
                rule = f"{launch.run_dir.name} was sent with {key}={shown(before)}"
                raise UserError.of(key, now, rule, "give the sweep another name, or keep that value")


def _first_change(before: Config, after: Config) -> tuple[str, Any, Any]:
    """Return the first key, but for a member's own place, whose values differ, and both values."""
    old, new = before.model_dump(mode="json", exclude=set(_FREE)), after.model_dump(mode="json", exclude=set(_FREE))
    changes = [
        (f"{section}.{key}", old[section].get(key), value)
        for section, keys in new.items()
        for key, value in keys.items()
        if old[section].get(key) != value and f"{section}.{key}" not in _OWN
    ]
    return changes[0]


def _number(folder: Path) -> int:
    """Return the number that a member's folder begins with; -1 for another file."""
    digits = re.match(r"(\d+)(_|$)", folder.name)
    return int(digits[1]) if digits else -1
