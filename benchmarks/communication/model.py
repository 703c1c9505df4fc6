"""A model of the seconds that a step's messages take, from the bytes of the formula and stated bandwidths.

It has bandwidths alone: no latency, no congestion, nothing that overlaps with computing. Ranks fill one node after the
other. In a ring, all that a rank receives also comes in over its node's network once; in an all_to_all, each rank of a
node receives its own images from the other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.communication import formula
from benchmarks.communication.formula import Message, Shapes
from moco_dist.evaluate.plots import COLOURS

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LABELS = {
    "authors": "the authors' scheme",
    "all_gather": "moco.shuffle=all_gather",
    "all_to_all": "moco.shuffle=all_to_all",
    "none": "moco.shuffle=none",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster of equal nodes. The defaults are those of A100 nodes with one HDR InfiniBand adapter."""

    gpus_per_node: int = 8
    inside_gbytes: float = 300.0
    """Gigabytes a second that a GPU receives inside its node: half of NVLink's 600 GB/s, both directions together, in
    NVIDIA's data sheet of the A100."""
    between_gbytes: float = 25.0
    """Gigabytes a second that a node receives from others: one adapter of 200 Gbit/s."""

    def seconds(self, message: Message, ranks: int) -> float:
        """Return how long a message takes on so many ranks, which fill nodes or are a part of one."""
        received = formula.moved(message, 1, ranks)[0] if ranks > 1 else 0.0
        inside, between, node = 1e9 * self.inside_gbytes, 1e9 * self.between_gbytes, self.gpus_per_node
        if ranks <= node:
            return received / inside
        assert ranks % node == 0, f"{ranks} ranks do not fill nodes of {node}"
        if message.collective != "all_to_all":
            return max(received / inside, received / between)
        of_own_node = (node - 1) / (ranks - 1)
        return max(of_own_node * received / inside, (1 - of_own_node) * node * received / between)


def rows(shapes: Shapes, cluster: Cluster, batch_per_rank: int) -> list[dict[str, Any]]:
    """Return bytes received and seconds by purpose, for each scheme and number of ranks, with one view as query."""
    result = []
    for ranks in RANKS:
        if ranks > cluster.gpus_per_node and ranks % cluster.gpus_per_node:
            continue
        for scheme in LABELS:
            messages = formula.messages(scheme, shapes, batch_per_rank * ranks, ranks)
            traffic = formula.add_up(messages, min(1, ranks - 1), ranks)
            seconds = dict.fromkeys(formula.PURPOSES, 0.0)
            for message in messages:
                seconds[message.purpose] += cluster.seconds(message, ranks)
            received = {purpose: of_purpose.received for purpose, of_purpose in traffic.items()}
            result.append({"ranks": ranks, "scheme": scheme, "received": received, "seconds": seconds})
    return result


def draw(model_rows: list[dict[str, Any]], batch_per_rank: int, path: Path) -> None:
    """Draw bytes of images and seconds over the number of ranks, and write a PNG file."""
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    panels = {"received": "gigabytes received by a rank in a step", "seconds": "seconds a step, from bandwidths alone"}
    for axes, (figures, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        scale = 1e-9 if figures == "received" else 1.0

        def line(
            scheme: str, purpose: str, figures: str = figures, scale: float = scale
        ) -> tuple[list[int], list[float]]:
            chosen = [row for row in model_rows if row["scheme"] == scheme and row["ranks"] > 1]
            return [row["ranks"] for row in chosen], [scale * row[figures][purpose] for row in chosen]

        styles = {"all_gather": ("-", 4.0), "authors": (":", 2.0), "all_to_all": ("-", 2.5)}  # the first two coincide
        for colour, (scheme, (style, width)) in zip(("#E69F00", "#000000", "#009E73"), styles.items(), strict=True):
            axes.plot(*line(scheme, "images"), style, color=colour, lw=width, label=f"images, {LABELS[scheme]}")
        for colour, purpose in zip(COLOURS[:2], ("keys", "gradients"), strict=True):
            axes.plot(*line("all_to_all", purpose), "--", color=colour, label=purpose)
        axes.plot(*line("authors", "buffers"), "-.", color=COLOURS[5], label="buffers, the authors' scheme")
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 8, 32, 128, 512], labels=["2", "8", "32", "128", "512"])
        axes.set_yscale("log")
        axes.set_xlabel(f"ranks, {batch_per_rank} images each")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
