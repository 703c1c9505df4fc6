"""Read what a user has typed as YAML without guessing: every scalar stays the text that it is, and only null is null.

What a text means is decided by the key that takes it (`section.Section`): `0123` is a name, and no number.
"""

import copy
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from moco_dist import files
from moco_dist.errors import UserError

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_PLAIN = (_NULL, *(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str")))
_NO_CHARACTER = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Zero, and halves of characters but those by which Python names a file whose name is no UTF-8."""
_MOST_VALUES, _MOST_LEVELS = 100_000, 20
MOST_BYTES = 1 << 20
"""Bytes of a config, at most: YAML is read slowly."""


class _Refused(Exception):
    """A file is YAML, and holds what no config may hold; the text names it and the fix."""


class _TextSafeLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, in which no key may stand twice; `<<` is followed later, and repeats no key."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in lines:
                place = f"in line {lines[key.value]} and in line {line}"
                raise _Refused(f"{key.value} stands twice, {place}, and one would hide the other; keep one of them")
            lines[key.value] = line
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return a text, which must be one that a file's name or a variable can hold."""
        text = super().construct_scalar(node)
        if _NO_CHARACTER.search(text):
            raise _Refused(f"{text} in line {node.start_mark.line + 1} holds what is no character; drop it")
        return text

    def construct_tagged(self, node: yaml.Node) -> None:
        """Refuse a tag, such as !!int, by which YAML would guess what the text means."""
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _Refused(f"{tag} in line {node.start_mark.line + 1} is a tag; drop it, and write the value alone")


_TextSafeLoader.yaml_implicit_resolvers = {  # what is not among them is text
    first: [resolver for resolver in resolvers if resolver[0] in (_NULL, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TextSafeLoader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN}
_TextSafeLoader.add_constructor(None, _TextSafeLoader.construct_tagged)
_TextSafeLoader.add_constructor(_MERGE, lambda _, node: str(node.value))  # << as a value


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a tree of sections by `section.key`; what is no section is left out."""
    sections = [(name, section) for name, section in tree.items() if isinstance(section, dict)]
    return {f"{name}.{key}": value for name, section in sections for key, value in section.items()}


def read_tree(file: Path) -> dict[str, Any]:
    """Read the tree of keys in a YAML file, unchecked: its scalars are text or None.

    Top-level keys that begin with `x-` are a place for anchors, and left out.

    Raises:
        UserError: it is no such file, a key stands twice, or aliases make it grow without end.
    """
    try:
        tree = copy.deepcopy(_load(files.read_text(file, most_bytes=MOST_BYTES)))
    except _Refused as error:
        raise UserError(f"config {file}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError) as error:
        raise UserError(f"config {file}: cannot be read as YAML: {' '.join(str(error).split())}; mend it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = "text" if isinstance(tree, str) else f"a {type(tree).__name__}"
        raise UserError(f"config {file}: must be keys with values (optim: {{lr: 0.03}}); it is {kind}")
    return {key: value for key, value in tree.items() if key != "$schema" and not str(key).startswith("x-")}


@functools.lru_cache(maxsize=8)  # the members of a sweep share one
def _load(text: str) -> Any:
    """Load one document, which its callers must not change. Raises yaml.YAMLError, _Refused."""
    loader = _TextSafeLoader(text)
    try:
        node = loader.get_single_node()
        for count, level in enumerate(_levels(node) if node else ()):
            if count > _MOST_VALUES or level > _MOST_LEVELS:
                raise RecursionError
        return loader.construct_document(node) if node else None
    except RecursionError:
        rule = f"nests deeper than {_MOST_LEVELS} levels, or is over {_MOST_VALUES} values with its aliases written out"
        raise _Refused(f"{rule}; make it smaller") from None
    finally:
        loader.dispose()


def _levels(node: yaml.Node, level: int = 0) -> Iterator[int]:
    """Yield the level of each node, as if aliases were written out; that of a node within itself has no end."""
    yield level
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    for part in itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts:
        yield from _levels(part, level + 1)


def read_value(text: str) -> str | None:
    """Read the value of an override: the text as typed, or in its quotes; None for null, ~ and nothing."""
    if re.fullmatch(r"\s*(?:~|null|Null|NULL)?\s*", text):
        return None
    if re.fullmatch(r"\s*(['\"]).*\1\s*", text, re.DOTALL):
        try:
            value = _load(text)
        except (yaml.YAMLError, _Refused):  # two quoted words
            return text
        return value if isinstance(value, str) else text
    return text
