"""List the figures of a run's rows: their names, units and meanings. Documents, panels and checks are made from it."""

import re
from dataclasses import dataclass
from typing import Literal

SCHEMA = 1
"""Version of the rows' schema: raised when a figure changes its meaning or goes, not when one is added."""

Section = Literal["learning", "representation", "health", "speed", "nodes", "evaluation"]

_NODE = re.compile(r"node/\d+/")


@dataclass(frozen=True)
class Figure:
    """A figure is a number that rows tell under a name."""

    name: str
    """The figure's name in the rows; `<i>` stands for the number of a node, counted from 0 in the order of ranks."""
    unit: str
    """Empty for a number without one."""
    section: Section
    meaning: str


FIGURES = (
    Figure("loss", "nats", "learning", "the loss, a mean over the global batch; symmetric: the sum of both directions"),
    Figure("loss_at_chance", "nats", "learning", "ln(K+1) for each direction of the loss: what a blind encoder gets"),
    Figure("top1", "share", "learning", "queries whose positive key is nearer than all keys of the queue"),
    Figure("top5", "share", "learning", "queries whose positive key is among the five nearest keys"),
    Figure("positive_similarity", "cosine", "learning", "similarity of a query and its positive key, a mean"),
    Figure("hardest_similarity", "cosine", "learning", "largest similarity of a query with a key of the queue, a mean"),
    Figure("entropy", "nats", "learning", "entropy of the softmax over the 1+K keys, a mean over the queries"),
    Figure("gradient_norm", "", "learning", "L2 norm of the gradient of the trained encoder, ahead of the update"),
    Figure("lr", "", "learning", "learning rate that the step used"),
    Figure("momentum", "", "learning", "m of the key encoder's update ahead of the step"),
    Figure("q_std", "", "representation", "spread of the queries: 1 over the whole sphere, 0 where all are alike"),
    Figure("k_std", "", "representation", "spread of the keys of the global batch, as q_std"),
    Figure("q_rank", "dimensions", "representation", "effective rank of the centred queries, 1 to their dimension"),
    Figure("k_rank", "dimensions", "representation", "effective rank of the centred keys, as q_rank"),
    Figure("encoder_distance", "", "representation", "|theta_q - theta_k| / |theta_q| over all parameters"),
    Figure("queue_filled", "share", "representation", "queue that the step used: keys in it that are encoded images"),
    Figure("queue_age_steps", "steps", "representation", "age of the oldest encoded key in the queue of the step"),
    Figure("queue_age_epochs", "epochs", "representation", "the same age in epochs"),
    Figure("skipped_steps", "steps", "health", "fp16 steps so far that left the weights alone, since they overflowed"),
    Figure("unreadable", "images", "health", "images of the step that could not be decoded and were replaced"),
    Figure("checkpoint_failures", "", "health", "checkpoints of this start that could not be written"),
    Figure(
        "ranks_apart", "", "health", "1 if weights or queue differ between ranks, else 0 (track.compare_ranks_every)"
    ),
    Figure("images_per_second", "images/s", "speed", "images of all ranks by the wall clock, of this step"),
    Figure("data_wait", "share", "speed", "time since the last row that ranks waited for batches, a mean over them"),
    Figure("checkpoint_stall", "s", "speed", "time that training stood still for checkpoints since the last row"),
    Figure("gpu_memory_gib", "GiB", "speed", "most memory that tensors took at once so far, on the fullest GPU"),
    Figure("slowest_rank", "", "nodes", "rank that computes longest in a step, on average since the last row"),
    Figure("slowest_lag", "s", "nodes", "by how much longer that rank computes in a step than the median of the ranks"),
    Figure("node/<i>/step_seconds", "s", "nodes", "time of a step, on average since the last row"),
    Figure("node/<i>/data_wait", "share", "nodes", "time that its ranks waited for batches since the last row"),
    Figure("node/<i>/memory_gib", "GiB", "nodes", "the machine's memory that is in use, by anyone"),
    Figure("node/<i>/gpu_memory_gib", "GiB", "nodes", "as gpu_memory_gib, on the fullest GPU of the node"),
    Figure("node/<i>/gpu_use", "share", "nodes", "time that its GPUs were at work lately, a mean, as the driver tells"),
    Figure("knn_top1", "share", "evaluation", "held-out images that their nearest training images name right"),
    Figure("linear_top1", "share", "evaluation", "held-out images that a linear probe names right"),
    Figure("linear_train_top1", "share", "evaluation", "training images that the same probe names right"),
)

_BY_NAME = {figure.name: figure for figure in FIGURES}

SECTIONS: dict[Section, str] = {
    "learning": "Learning",
    "representation": "Representation",
    "health": "Health",
    "speed": "Speed",
    "nodes": "Nodes",
    "evaluation": "Evaluation",
}
"""The sections in the order in which they are shown, with their headings."""


def of(name: str) -> Figure | None:
    """Return the figure that a row tells under a name; None for one that is not in the list, of a new method say."""
    return _BY_NAME.get(_NODE.sub("node/<i>/", name))


def is_measured(name: str) -> bool:
    """Tell whether a figure is read from clocks and meters, so that two equal runs tell it differently."""
    figure = of(name)
    return figure is not None and figure.section in ("speed", "nodes")


def tables() -> str:
    """Write a table in Markdown for each section, as `docs/metrics.md` has them: `python -m moco_dist.run.figures`."""
    lines = []
    for section, heading in SECTIONS.items():
        lines += [f"### {heading}", "", "| figure | unit | meaning |", "|---|---|---|"]
        of_section = [figure for figure in FIGURES if figure.section == section]
        lines += [f"| `{figure.name}` | {figure.unit} | {_cell(figure.meaning)} |" for figure in of_section]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(tables(), end="")
