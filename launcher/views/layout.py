"""Lay out a table of texts so that no line is longer than a width: columns are shortened, and then left out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes a while to import: only where something is shown
    from rich.table import Table
    from rich.text import Text

_WIDTH_OF_PIPES = 100
_LEAST_WIDTH = 60
_GAP = 2
_LEAST = {"run": 24, "nodes": 8, "reason": 20}
"""Columns that may be shortened, and to how much."""
_LONGEST = {"nodes": 24}
_LEFT_OUT_FIRST = ("epoch", "loss", "restarts", "images/s", "kNN", "since", "nodes", "left", "job", "time", "reason")

Cells = Mapping[str, str]


def width() -> int:
    """Return the width of the terminal; elsewhere that of the variable COLUMNS, or 100."""
    columns = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty():
        return max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    return max(_LEAST_WIDTH, int(columns)) if columns.isdecimal() else _WIDTH_OF_PIPES


def fit(rows: Sequence[Cells], columns: Sequence[str], most: int, keep: Sequence[str] = ()) -> dict[str, int]:
    """Choose the columns that are shown, and how wide they are.

    Args:
        rows: the texts by column.
        columns: names of the columns, in order.
        most: width that the table may have.
        keep: columns that are not left out.

    Returns:
        The widths by column.
    """
    natural = {name: max([_length(name), *(_length(cells[name]) for cells in rows)]) for name in columns}
    natural |= {name: min(natural[name], longest) for name, longest in _LONGEST.items() if name in natural}
    widths = {name: min(natural[name], _LEAST.get(name, natural[name])) for name in columns}
    for name in _LEFT_OUT_FIRST:
        if _total(widths) > most and name not in keep:
            widths.pop(name, None)
    for name, wish in (("run", 40), ("nodes", most), ("reason", most), ("run", most)):
        if name in widths:
            spare = max(0, most - _total(widths))
            widths[name] += max(0, min(spare, min(natural[name], wish) - widths[name]))
    return widths


def table(rows: Sequence[Cells], widths: Mapping[str, int], right: Sequence[str], caption: str = "") -> Table:
    """Return a table of rich's, whose texts are cut to the widths. A row may name a style, as `style of COLUMN`."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", caption=plain(caption) if caption else None)
    for name in widths:
        justify = "right" if name in right else "left"
        made.add_column(name, justify=justify, no_wrap=True, overflow="crop")  # type: ignore[arg-type]
    for cells in rows:
        texts = {name: cut(cells[name], most, middle=name == "run") for name, most in widths.items()}
        made.add_row(*(plain(text, cells.get(f"style of {name}", "")) for name, text in texts.items()))
    return made


def show(made: Table) -> None:
    """Print a table: to a terminal with its colours, else as plain text."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(made)
        return
    wide = Console(width=10_000, no_color=True, force_terminal=False, legacy_windows=False)
    with wide.capture() as text:
        wide.print(made)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), flush=True)


def cut(text: str, most: int, *, middle: bool = False) -> str:
    """Return a text that is no wider than so many columns: its end, or its middle, is left out."""
    if _length(text) <= most:
        return text
    head, tail = (text, "") if not middle else (text[: len(text) // 2], text[len(text) // 2 :])
    while _length(head) + 3 + _length(tail) > most and (head or tail):
        if len(tail) > len(head):
            tail = tail[1:]
        else:
            head = head[:-1]
    return f"{head}...{tail}"


def plain(text: str, style: str = "") -> Text:
    """Return rich's text of a text that is data: nothing in it is markup, and control characters are gone."""
    from rich.text import Text

    return Text(printable(text), style=style)


def printable(text: str) -> str:
    """Return text with a question mark for each control character: names and reasons are data."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _length(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)
