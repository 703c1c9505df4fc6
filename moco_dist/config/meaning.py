"""Say what a text means to the key that takes it: text stays as it was typed, numbers are plain decimal numbers."""

import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

_TRUTH = TypeAdapter(bool)
_MOST_DIGITS = 40
_INTEGER = r"(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)"
_WHOLE = re.compile(rf"[-+]?{_INTEGER}")
_NUMBER = re.compile(rf"[-+]?(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def number(value: object) -> object:
    """Read a number out of a text: 12, 65_536, 0.5, 1e-4. No other base is guessed, of 0123, 1:30 or 0x10.

    Raises:
        ValueError: the text has digits, and is no such number; or the value is true or false.
    """
    if isinstance(value, bool) or value in ("true", "false"):
        raise ValueError("must be a number, not true or false")
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _WHOLE.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            raise ValueError(f"must have at most {_MOST_DIGITS} digits")
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(nan|inf)", text.lower()):
        return float(text.replace(".", ""))
    if re.search(r"\d", text):
        raise ValueError("must be a plain decimal number, such as 12, 0.5 or 1e-4, without leading zeros, colons or 0x")
    return text


def truth(value: object) -> object:
    """Read true or false, for a key that takes other words too, in all the spellings that a key of these two takes."""
    try:
        return _TRUTH.validate_python(value)
    except ValidationError:
        return value


def as_meant(value: object, annotation: Any) -> object:
    """Return what a text means to a key of that type; what is no text stays as it is.

    A list may be written without brackets, `60,80`; a list of texts then has one member, which may hold commas.
    """
    types = kinds(annotation)
    if not isinstance(value, str) or str in types:
        return value
    text = value.strip()
    for word in (word for kind in types if get_origin(kind) is Literal for word in get_args(kind)):
        if str(word) == text:
            return word
    for kind in types:
        if get_origin(kind) in (tuple, list):
            return [value] if str in kinds(get_args(kind)[0]) else _members(text)
    return text


def kinds(annotation: Any) -> list[Any]:
    """List the types that a value of an annotated type or a union may have."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in kinds(member)]
    return [annotation]


def _members(text: str) -> list[str]:
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    members = [member.strip() for member in text.split(",")]
    return members if members[-1] else members[:-1]
