"""Read what a user has typed as YAML without guessing: every scalar stays the text that it is, and only null is null.

What a text means is decided by the key that takes it (`schema.Section`): `0123` is a name, and no number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from moco_dist.errors import UserError

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _Repeated(Exception):
    """A key stands twice in a mapping."""


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
                raise _Repeated(f"{key.value} stands twice, in line {lines[key.value]} and in line {line}")
            lines[key.value] = line
        return node


_TextSafeLoader.yaml_implicit_resolvers = {  # what is not among them is text
    first: [resolver for resolver in resolvers if resolver[0] in (_NULL, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TextSafeLoader.add_constructor(_MERGE, lambda _, node: str(node.value))  # << as a value


def read_tree(file: Path) -> dict[str, Any]:
    """Read the tree of keys in a YAML file, unchecked: its scalars are text or None.

    Top-level keys that begin with `x-` are a place for anchors, and left out.

    Raises:
        UserError: it is no such file, or a key stands twice.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextSafeLoader)
    except _Repeated as error:
        raise UserError(f"config {file}: {error}, and one would hide the other; keep one of them") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError) as error:
        raise UserError(f"config {file}: cannot be read as YAML: {' '.join(str(error).split())}; mend it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = "text" if isinstance(tree, str) else f"a {type(tree).__name__}"
        raise UserError(f"config {file}: must be keys with values (optim: {{lr: 0.03}}); it is {kind}")
    return {key: value for key, value in tree.items() if key != "$schema" and not str(key).startswith("x-")}


def read_value(text: str) -> str | None:
    """Read the value of an override: the text as typed, or in its quotes; None for null, ~ and nothing."""
    if re.fullmatch(r"\s*(?:~|null|Null|NULL)?\s*", text):
        return None
    if re.fullmatch(r"\s*(['\"]).*\1\s*", text, re.DOTALL):
        try:
            value = yaml.load(text, Loader=_TextSafeLoader)
        except yaml.YAMLError:  # two quoted words
            return text
        return value if isinstance(value, str) else text
    return text
