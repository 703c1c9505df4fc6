"""Explain mistakes that pydantic has found, in one line of the user's words."""

import difflib
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from moco_dist.config.meaning import kinds
from moco_dist.config.schema import Config
from moco_dist.errors import shown


def keys(model: type[BaseModel]) -> list[str]:
    """Return every key of a model: `section.key`, or `key` where there are no sections."""
    sections: dict[str, Any] = {name: field.annotation for name, field in model.model_fields.items()}
    return [
        f"{name}.{key}" if key else name
        for name, section in sections.items()
        for key in (section.model_fields if _is_section([section]) else [""])
    ]


def nearest(key: str, model: type[BaseModel] = Config) -> str:
    """Return a hint for an unknown key: the key of that name in another section, else the most similar, else a list."""
    every_key = keys(model)
    same_name = [k for k in every_key if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, [*every_key, *model.model_fields], n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    section = key.split(".")[0] + "."
    names = [k.removeprefix(section) for k in every_key if k.startswith(section)]
    if names:
        return f"; {section[:-1]} has {', '.join(names)}"
    return f"; {'sections' if model is Config else 'keys'} are {', '.join(model.model_fields)}"


def explain(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    """Explain the first of the mistakes that pydantic has found, in one line, and count the others.

    Where a key takes values of several types, pydantic has found a mistake of each: they are one.
    """
    mistakes: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        mistakes.setdefault(_key(error, model), []).append(error)
    (key, of_key), *others = mistakes.items()
    return _explain(key, of_key, model) + (f" (and {len(others)} more)" if others else "")


def _explain(key: str, errors: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    error, value = errors[0], shown(errors[0]["input"])
    if not key:  # a rule across keys has worded itself
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if isinstance(error["input"], dict) and len(error["input"]) == 1:
            key += f".{next(iter(error['input']))}"
            return f"{key}: unknown key{nearest(key, model)}"
        return f"{key} = {value}: unknown key{nearest(key, model)}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key} = {value}: must be a section of keys; write {key}: {{key: value}}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{key}: is missing in {value}; add it"
    first, *others = dict.fromkeys(_rule(error, model) for error in errors)
    rule = ", or ".join([first, *(other.removeprefix("must be ") for other in others)])
    return f"{key} = {value}: {rule}; {_default(error['loc'], model)}"


def _rule(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what a value must be, in the user's words."""
    if error["type"] in ("missing", "too_long"):  # of a list whose length is fixed
        return f"must have {len(get_args(_named(error['loc'], model)[1][0]))} members"
    if error["type"] in ("bool_type", "bool_parsing"):
        return "must be true or false"
    if error["type"] == "string_type" and error["input"] is None:
        return "must be text; where the word null is meant, put it in quotes"
    rule = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("a valid tuple", "a list, such as [60, 80]")
        .replace("valid ", "")
        .replace("True or False", "true or false")
    )
    rule = rule.split(", unable to parse")[0]
    return rule[0].lower() + rule[1:]


def _key(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what is wrong by its name: `section.key`, and of a member of a list its number."""
    names, types = _named(error["loc"], model)
    rest = error["loc"][len(names) :]
    if len(types) > 1:
        rest = rest[1:]  # which of the types pydantic has tried
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):
        rest = rest[:-1]  # it is the list that is too short
    return ".".join(map(str, [*names, *rest]))


def _named(place: Sequence[int | str], model: type[BaseModel]) -> tuple[list[str], list[Any]]:
    """Return the parts of a place that name a key of a model, and the types that the key's value may have."""
    names, types = list[str](), list[Any]([model])
    for part in place:
        if not _is_section(types) or part not in types[0].model_fields:
            break
        names.append(str(part))
        types = [kind for kind in kinds(types[0].model_fields[part].annotation) if kind is not NoneType]
    return names, types


def _default(place: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return the fix of a wrong value: `the default is optim.lr=0.03`, or `mend it or drop it` if there is none."""
    names, types = _named(place, model)
    value: Any = model().model_dump(mode="json")
    path: list[str] = []
    while len(path) < len(names) and isinstance(value, dict):
        path.append(names[len(path)])
        value = value[path[-1]]
    if not path or (path == names and _is_section(types)):
        return "mend it or drop it"
    return f"the default is {'.'.join(path)}={shown(value)}"


def _is_section(types: Sequence[Any]) -> bool:
    return len(types) == 1 and isinstance(types[0], type) and issubclass(types[0], BaseModel)
