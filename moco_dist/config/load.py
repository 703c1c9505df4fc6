"""Turn a YAML file and overrides into a validated config, and a config back into YAML."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from moco_dist.config import environment
from moco_dist.config.explain import explain, nearest
from moco_dist.config.paths import expanded
from moco_dist.config.read import read_tree, read_value
from moco_dist.config.schema import Config
from moco_dist.config.section import Section
from moco_dist.errors import UserError, shown

SHIPPED_CONFIGS = Path(__file__).parents[1] / "configs"
DEFAULT_CONFIG = SHIPPED_CONFIGS / "digits.yaml"

S = TypeVar("S", bound=Section)


def load(path: Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] = {}) -> Config:
    """Read a config file and apply `section.key=value` overrides; in its paths `~` and `$NAME` are expanded.

    Args:
        path: YAML file; None means the embedded default, `configs/digits.yaml`. A name that is no file but
            a shipped config's (`configs/mnist.yaml`, `mnist`) is that config.
        overrides: each `section.key=value`; where one key stands twice, the last one counts.
        values: further ones by key, as `read_tree` has read them.

    Unset, `run.name` is the name of the file, and `track.wandb` and `track.project` are what W&B's variables say.

    Raises:
        UserError: whatever is wrong with it, in one line.
    """
    file = _find(path) if path else DEFAULT_CONFIG
    return resolve(read_tree(file), {**read_overrides(overrides), **values}, name=file.stem)


def resolve(sections: Mapping[str, Any], values: Mapping[str, Any] = {}, *, name: str = "run") -> Config:
    """Make a config of a tree of sections as `load` does, by the rules for text that a user has typed.

    Args:
        sections: keys by section; they stay as they are.
        values: values by `section.key`, which override those of the sections.
        name: of the run, where the sections do not name it.

    Raises:
        UserError: whatever is wrong with it, in one line.
    """
    tree = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in sections.items()}
    for key, value in values.items():
        _set(tree, key, value)
    run = tree.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", name)
    track = tree.setdefault("track", {})
    if isinstance(track, dict):
        environment.complete_(track)
    return validate(Config, tree)


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Read overrides `section.key=value`; of two of one key, the last one counts."""
    return {key: read_value(text) for key, _, text in (override.partition("=") for override in overrides)}


def parse(tree: Mapping[str, Any]) -> Config:
    """Validate a tree of sections, whose paths stay as they are. Raises UserError, as `validate`."""
    return validate(Config, tree, expand=False)


def validate(model: type[S], tree: Mapping[str, Any], *, expand: bool = True) -> S:
    """Make a model of a tree of keys. Raises UserError for the first mistake, and counts the others.

    Args:
        model: what the keys are of.
        tree: the keys.
        expand: whether `~` and `$NAME` are expanded in paths, as they are where a user has typed them.
    """
    try:
        return model.model_validate(tree, context=expand)
    except ValidationError as error:
        raise UserError(explain(error.errors(), model)) from None


def dump(config: Config) -> str:
    """Return the resolved config as YAML that `load` reads back."""
    tree = config.model_dump(mode="json", context=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return yaml.safe_dump(tree, sort_keys=False)  # escaped: YAML takes some other characters for ends of lines


def parse_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split `[CONFIG.yaml] [section.key=value ...]`, in any order. Raises UserError for anything else."""
    words = [a for a in arguments if not a.startswith("-")]
    overrides = [a for a in words if "=" in a and "/" not in a.partition("=")[0]]  # a folder's name may hold a =
    files = [a for a in words if a not in overrides]
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(f"argument {argument}: options are not known here; write section.key=value")
    if len(files) > 1:
        raise UserError(f"argument {files[1]}: one config file at most, {files[0]} came first; drop one of them")
    return (Path(expanded("CONFIG", files[0])) if files else None), overrides


def _find(path: Path) -> Path:
    try:
        if path.is_file():
            return path
    except OSError as error:  # of a closed folder
        raise UserError(f"config {path}: cannot be read: {error.strerror}; give a file that you may read") from None
    shipped = SHIPPED_CONFIGS / f"{path.name.removesuffix('.yaml')}.yaml"  # of `mnist.mine`, the stem would be mnist
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SHIPPED_CONFIGS.glob("*.yaml")))
    fix = f"give a YAML file or one of the shipped: {names}"
    if not path.is_dir():
        raise UserError(f"config {path}: no such file; {fix}")
    inside = path / "config.yaml"  # as in the directory of a run
    raise UserError(f"config {path}: is a folder; {f'give {inside}' if inside.is_file() else fix}")


def _set(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a key of a tree of sections. Raises UserError where it is no `section.key`."""
    section, dot, name = key.partition(".")
    if not (section and dot and name):
        raise UserError(f"override {key}={shown(value)}: must be section.key=value{nearest(key)}")
    keys = tree.setdefault(section, {})
    if not isinstance(keys, dict):
        raise UserError(f"{section} = {shown(keys)}: must be a section of keys; write {section}: {{{name}: ...}}")
    keys[name] = value


def usage() -> str:
    """Describe every key in a line of its own, with its default and meaning."""
    lines = []
    for section, field in Config.model_fields.items():
        for name, key in field.annotation.model_fields.items():  # type: ignore[union-attr]
            untold = [word for word in _words(key.annotation) if word not in (key.description or "")]
            choices = f" One of: {', '.join(_words(key.annotation))}." if untold else ""
            lines.append(f"  {section}.{name}={shown(key.default)}".ljust(44) + f" {key.description}{choices}")
    return "\n".join(lines)


def _words(annotation: Any) -> list[str]:
    """Return the words that a key of this type may have as its value."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in _words(part)]


def schema() -> str:
    """Return the JSON schema of a config file, for editors."""
    return json.dumps(Config.model_json_schema() | {"patternProperties": {"^x-": {}}}, indent=1) + "\n"
