"""Make the page: what it shows of each run, and the text of one self-contained file of HTML."""

import base64
import functools
import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moco_dist import __version__, files, health
from moco_dist.report import drawings, panels
from moco_dist.report.record import RunRecord
from moco_dist.report.run_view import RunView
from moco_dist.report.table import Table

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("uplot.min.js", "curves.js", "page.js")
_STYLES = ("uplot.min.css", "colours.css", "page.css", "figures.css")
WATCH_SECONDS = 4.0
"""A watched page looks for new rows each time that this has passed."""


@dataclass(frozen=True)
class Section:
    """A section holds the panels of figures that belong together."""

    name: str
    title: str
    panels: list[tuple[int, panels.Panel]]
    """The panels, each with its number."""
    facts: list[tuple[str, str]]
    """Names and values that stand above the panels."""
    open: bool


def page_of(records: Sequence[RunRecord], *, title: str = "", beside: Path | None = None, watched: bool = False) -> str:
    """Make the page that shows runs.

    Args:
        records: of the runs, at least one.
        title: of a page with several runs.
        beside: folder that the page lies in, from which runs are linked that have a page of their own.
        watched: whether the page is served, and looks for new rows.
    """
    runs = [RunView(record, number) for number, record in enumerate(records)]
    _tell_apart(runs)
    all_panels = panels.panels(name for record in records for name in record.curves)
    numbered = list(enumerate(all_panels))
    first = [(number, panel) for number, panel in numbered if panel.figures[0] in panels.FIRST]
    first.sort(key=lambda pair: panels.FIRST.index(pair[1].figures[0]))
    sections = _sections([pair for pair in numbered if pair not in first], runs)
    scripts = [_part(name) for name in _SCRIPTS]
    style = "\n".join(map(_part, _STYLES))
    context: dict[str, Any] = {
        "title": runs[0].name if len(runs) == 1 else title,
        "runs": runs,
        "sentence": sentence,
        "titles": defaultdict(str, health.TITLES),
        "sections": sections,
        "first": first,
        "data": _data(runs, all_panels),
        "scripts": [Markup(script) for script in scripts],
        "style": Markup(style),
        "policy": _policy(scripts, style, watched=watched),
        "watched": watched,
        "version": __version__,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "most_classes": drawings.MOST_CLASSES_SHOWN,
    }
    if len(runs) > 1:
        context |= vars(Table.of(runs, beside))
    text = _environment().get_template("page.html").render(context)
    return text.encode("utf-8", "replace").decode()  # a folder's name need not be Unicode


def write(records: Sequence[RunRecord], file: Path, *, title: str = "") -> None:
    """Write the page that shows runs. Raises OSError."""
    files.write_text(file, page_of(records, title=title, beside=file.parent))


def sentence(text: str) -> str:
    """Write words as a sentence: with a capital, but for symbols such as m, and a full stop."""
    begun = text if text.startswith("m ") else text[:1].upper() + text[1:]
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."


def _tell_apart(runs: Sequence[RunView]) -> None:
    """Add the folder to a name that several runs have, as those of one config in several directories."""
    names = Counter(run.name for run in runs)
    for run in runs:
        if names[run.name] > 1:
            run.name = f"{run.name} ({run.folder})"


def _sections(numbered: list[tuple[int, panels.Panel]], runs: Sequence[RunView]) -> list[Section]:
    made = []
    for name, title in panels.SECTIONS.items():
        members = [(number, panel) for number, panel in numbered if panel.section == name]
        facts = runs[0].speed_facts() if name == "speed" and len(runs) == 1 else []
        if members:
            made.append(Section(name, title, members, facts, open=name in ("learning", "representation")))
    return made


def _data(runs: Sequence[RunView], all_panels: Sequence[panels.Panel]) -> dict[str, Any]:
    """Return what the scripts draw from."""
    axes = [{name: getattr(panel, name) for name in ("title", "unit", "figures", "labels")} for panel in all_panels]
    return {"runs": [run.data() for run in runs], "panels": axes, "watchSeconds": WATCH_SECONDS}


def _policy(scripts: Sequence[str], style: str, *, watched: bool) -> str:
    """Return the policy by which a browser runs these scripts alone, and asks no server for anything."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    of_scripts, connect = " ".join(map(digest, scripts)), "connect-src 'self'; " if watched else ""
    rest = "base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; img-src data:; {connect}script-src {of_scripts}; style-src {digest(style)}; {rest}"


@functools.cache
def _part(name: str) -> str:
    return files.read_text(_FOLDER / name)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(os.fspath(_FOLDER))
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
