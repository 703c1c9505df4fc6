"""Name figures in sinks, which group them by what stands ahead of a slash."""

from moco_dist.run import figures
from moco_dist.run.rows import Row

_OTHERS = "others"
"""The section of figures that the list of figures lacks, such as those of another method."""


def at_wandb(name: str) -> str:
    """Return the name that a figure of the list has at W&B."""
    figure = figures.of(name)
    kind = "eval" if figure and figure.section == "evaluation" else "train"
    return f"{kind}/{name}"


def by_section(row: Row) -> dict[str, float]:
    """Return the numbers of a row of figures under `section/name`, as `learning/loss`."""
    named = {}
    for name, value in row.items():
        if name != "step" and not isinstance(value, str):
            figure = figures.of(name)
            named[f"{figure.section if figure else _OTHERS}/{name}"] = float(value)
    return named
