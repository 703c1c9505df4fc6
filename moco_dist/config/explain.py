"""Explain a mistake that pydantic has found, in one line of the user's words."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from moco_dist.config.schema import Config
from moco_dist.errors import shown


def keys(model: type[BaseModel]) -> list[str]:
    """Return every key of a model: `section.key`, or `key` where there are no sections."""
    sections = {name: field.annotation for name, field in model.model_fields.items()}
    return [
        f"{name}.{key}" if key else name
        for name, section in sections.items()
        for key in (section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else [""])
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


def explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Explain one of pydantic's errors in one line."""
    key = ".".join(str(part) for part in error["loc"])
    if not key:  # a rule across keys has worded itself
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if isinstance(error["input"], dict) and len(error["input"]) == 1:
            key += f".{next(iter(error['input']))}"
            return f"{key}: unknown key{nearest(key, model)}"
        return f"{key} = {shown(error['input'])}: unknown key{nearest(key, model)}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key} = {shown(error['input'])}: must be a section of keys; write {key}: {{key: value}}"
    rule = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("a valid tuple", "a list, such as [60, 80]")
        .replace("valid ", "")
        .replace("True or False", "true or false")
    )
    rule = rule.split(", unable to parse")[0].split(" after validation")[0]
    if error["type"] == "string_type" and error["input"] is None:
        rule = "must be text; where the word null is meant, put it in quotes"
    return f"{key} = {shown(error['input'])}: {rule[0].lower() + rule[1:]}; {_default(error['loc'], model)}"


def _default(place: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return the fix of a wrong value: `the default is optim.lr=0.03`, or `mend it or drop it` if there is none."""
    value: Any = model()
    path: list[str] = []
    for part in place:
        if not isinstance(value, BaseModel) or part not in type(value).model_fields:
            break
        value = getattr(value, str(part))
        path.append(str(part))
    if isinstance(value, BaseModel) or not path:
        return "mend it or drop it"
    dumped = model().model_dump(mode="json")
    for name in path:
        dumped = dumped[name]
    return f"the default is {'.'.join(path)}={shown(dumped)}"
