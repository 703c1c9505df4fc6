"""Lay the figures of runs out in panels: which share a pair of axes, in which section, under which title."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from moco_dist.run import figures

SECTIONS: dict[str, str] = dict(figures.SECTIONS.items(), other="Other figures")
"""The sections of the listed figures, and one of the figures that no list names."""

_TOGETHER = (
    ("Loss", ("loss", "loss_at_chance")),
    ("Pretext accuracy", ("top1", "top5")),
    ("Accuracy on held-out images", ("knn_top1", "linear_top1", "linear_train_top1")),
    ("Similarity", ("positive_similarity", "hardest_similarity")),
    ("Learning rate", ("lr",)),
    ("Spread of the features", ("q_std", "k_std")),
    ("Effective rank of the features", ("q_rank", "k_rank")),
)
"""Figures that are drawn on one pair of axes, and its title. All others have a pair of their own."""
FIRST = ("loss", "top1", "knn_top1")
"""Panels that are shown first, by their first figure."""

_LABELS = {
    "loss": "loss",
    "loss_at_chance": "at chance",
    "top1": "top-1",
    "top5": "top-5",
    "knn_top1": "kNN",
    "linear_top1": "linear probe",
    "linear_train_top1": "linear probe, training images",
    "positive_similarity": "positive",
    "hardest_similarity": "hardest negative",
    "q_std": "queries",
    "k_std": "keys",
    "q_rank": "queries",
    "k_rank": "keys",
}
_NODE = re.compile(r"node/(\d+)/(.+)")
_WORDS = {"gpu": "GPU", "gib": "", "knn": "kNN", "bn": "BatchNorm", "fp16": "fp16"}


@dataclass(frozen=True)
class Panel:
    """A panel is a pair of axes for some figures."""

    title: str
    unit: str
    section: str
    figures: tuple[str, ...]
    labels: tuple[str, ...]
    """The label of each figure beside the others."""
    meaning: str


def panels(names: Iterable[str]) -> list[Panel]:
    """Lay figures out, by their names in the rows.

    Returns:
        The panels in the order of the list of figures; those of unknown names come last.
    """
    waiting = dict.fromkeys(names)
    groups: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    for title, together in _TOGETHER:
        present = tuple(name for name in together if name in waiting)
        if present:
            groups.append((title, present, tuple(_LABELS.get(name, _words(name)) for name in present)))
    of_nodes: dict[str, list[str]] = {}
    for name in waiting:
        if match := _NODE.fullmatch(name):
            of_nodes.setdefault(match[2], []).append(name)
    for what, members in of_nodes.items():
        members.sort(key=lambda name: int(name.split("/")[1]))
        groups.append((_title(what), tuple(members), tuple(f"node {name.split('/')[1]}" for name in members)))
    grouped = {name for _, members, _ in groups for name in members}
    groups += [(_title(name), (name,), (_words(name),)) for name in waiting if name not in grouped]
    order = {figure.name: number for number, figure in enumerate(figures.FIGURES)}
    made = [_panel(*group) for group in groups]
    sections = list(SECTIONS)
    made.sort(key=lambda panel: (sections.index(panel.section), order.get(panel.figures[0], len(order))))
    return made


def _panel(title: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Panel:
    figure = figures.of(names[0])
    if figure is None:
        return Panel(title, "", "nodes" if _NODE.fullmatch(names[0]) else "other", names, labels, "")
    return Panel(title, figure.unit, figure.section, names, labels, figure.meaning)


def _title(name: str) -> str:
    words = _words(name)
    return words[:1].upper() + words[1:] if words[:3] not in ("GPU", "kNN") else words


def _words(name: str) -> str:
    return " ".join(filter(None, (_WORDS.get(word, word) for word in re.split(r"[_/]+", name)))) or name
