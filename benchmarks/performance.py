"""Write docs/performance.md, the page of all that was measured, from the json files in benchmarks/results/.

python -m benchmarks.performance [--results DIR] [--page PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.communication.formula import PURPOSES, SCHEMES
from benchmarks.communication.model import LABELS
from benchmarks.gpu_parts import TARGETS
from benchmarks.runs import DOCS, RESULTS
from moco_dist import files

Results = dict[str, Any]
_BATCH, _RANKS = 256, 8
"""The global batch and the ranks of most tables."""

HEAD = """# Performance

What was measured or counted, with the command of each table. `python -m benchmarks.performance` writes this page from
the json files in `benchmarks/results/`.
"""

NOT_RUN = """## Not run

| what | result | why |
|---|---|---|
| images per second on 2, 4 and 8 GPUs | not run | needs several GPUs |
| seconds of each collective with NCCL, inside a node and between nodes | not run | needs several GPUs |
| share of the gradients' all_reduce that overlaps with the backward pass | not run | needs several GPUs |
| GPU time of the augmentation of a pair of views of 224 pixels | not run | needs a GPU |
| JPEGs decoded by a GPU's engine (`torchvision.io.decode_jpeg`) | not run | needs a GPU that has one |
"""

LOADER = """## A pair of views

    {command}

{processor}; {packages}. Milliseconds of a core for a pair of 224 x 224 views of a JPEG of 500 x 375 and 78 kB, medians
of {rounds} rounds in which all take turns. The authors' pipeline takes **{median:.1f} times** as long as our loader,
{least:.1f} to {most:.1f} in the rounds. With us, colours, blur, flip and normalisation are the device's part, for which
a core stands in here.
"""

DISTANCES = """Distance from Pillow's pixels in gray levels of 255, on average and at most:
"""

FULL_NOT_RUN = """| 200 epochs of CIFAR-10, `python -m benchmarks.cifar10 --full` | not run | needs a GPU |
"""

THROUGHPUT = """## Images a second on the CPU

    {command}

{machine}; {ranks} ranks of one thread, {rounds} rounds in turns. ResNet-18 with the stem for ImageNet on 32 x 32
pixels, CIFAR-10 as JPEG folders, MoCo v2, a queue of 4096, a global batch of 256, float32
(`benchmarks/throughput.yaml`). The trainer runs end to end with the exact engine and four BatchNorm groups, so that 1,
2 and 4 ranks give the same bits. The bare step is MoCo's algorithm 1 on torchvision's ResNet without data,
augmentation, DDP, shuffle and groups, in {ranks} processes that communicate nothing, each with its share of the batch.
CPU time is that of all processes of a program; it tells more than the clock where others use the machine. Ratios are
medians of those within a round.
"""

EXACTNESS = """## Where exactness costs

    {command}

{machine}; CPU milliseconds of rank 0 for each image of its share, {ranks} ranks side by side.

- **One BatchNorm group at a time.** Each group is a forward and a backward pass of its own, and its gradients are added
  to those of the others. The work on images is the same, but that on weights is done once a group: they are laid out
  anew for the convolutions, and a gradient as large as the network is written, copied and added.
- **Sums in a fixed order.** Gradients are added up in pairs, each rank its share of them. Ranks of one machine do so in
  memory that they share, which takes less than gloo's ring; those of several exchange them through sockets, which moves
  as many bytes as the ring, but copies them more often.
- **One thread.** A rank uses one core, since the order of a sum within an operation may depend on the threads.
- The step is faster than the bare one nevertheless, where the last stage's maps are a single pixel: such a convolution
  is a matrix product of the one tap that meets it (`moco_dist/networks/convolution.py`). Elsewhere, freed memory is
  kept, SGD is one pass over the weights, and gradients are averaged in the order in which they lie in memory.
"""

GPU = """## On a GPU

    python -m benchmarks.gpu

{state}

"""

COMMUNICATION = """## Traffic between ranks

    {command}

{cores} CPU cores, torch {torch}, {backend}. Ours is the overlapped engine; the authors' scheme is that of
facebookresearch/moco: an all_gather of the images, a broadcast of the permutation, an all_gather to restore the keys'
order and one for the queue, and DDP around the whole model, which sends rank 0's buffers, the queue among them, ahead
of each forward pass.

Bytes are counted so: of an all_gather and an all_to_all, a rank receives and sends the result without its own part,
(R-1)/R of an all_gather's; of an all_reduce 2(R-1)/R of the tensor, as a ring does; of a broadcast, all of it. A rank
sends as much as it receives, but for a broadcast.

### Counted

A ResNet-18 of width 8, images of 3 x 8 x 8 pixels, 128 numbers a key, a queue of {queue} keys, a global batch of
{batch}. With the loss of one direction our images travel as uint8 crops and are augmented where they arrive; with two
directions, as float32 images, since both views are augmented for the queries anyway. Kilobytes (1,000 bytes) of one
step, of the rank that receives most. The formula in
`benchmarks/communication/formula.py` gives {equal} of these {count} counts exactly, on each of their ranks. With
all_to_all, a rank receives no more than its own share of the images, whatever the number of ranks
(`test_the_images_of_all_to_all_do_not_grow_with_the_ranks`).

*TCP* is what Linux says has come in on the rank's connections; beside what is counted, that is gloo's headers and a
barrier. *Memory* is the most that tensors took during the step beside what was there before; *of the shuffle*, that of
moving the images of one direction, for which gloo's all_gather has a copy that NCCL's has not.
"""

AT_224 = """### At full size

The formula for `configs/imagenet_v2.yaml` (ResNet-50, 224 pixels, a queue of 65,536 keys): our images are uint8 crops,
the authors' are float32; of all_to_all the mean over all permutations. Megabytes that a rank receives in one step on
{ranks} ranks, with the loss of one direction. With `moco.symmetric=true`, images and keys are twice as many, and our
images are in the precision of the encoders. *Shuffle* is the memory that moving the images takes, with NCCL.
"""

MODEL = """### On large clusters

A model with bandwidths alone: {inside_gbytes:g} GB/s into each GPU inside a node of {gpus_per_node}, and
{between_gbytes:g} GB/s into each node from the others. The defaults are 300 GB/s, half of the 600 GB/s that NVIDIA's
data sheet of the A100 states for NVLink in both directions together, and 25 GB/s, one InfiniBand HDR adapter of
200 Gbit/s; `--inside`, `--between` and `--gpus-per-node` change them. The model has no latency and no congestion, and
nothing overlaps with computing, so that it compares schemes and predicts no job. Each rank has {batch} images, so that
the global batch grows with the ranks. Milliseconds a step.

![traffic and seconds over the number of ranks](communication.png)
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md", metavar="PATH")
    options = parser.parse_args(arguments)
    files.write_text(options.page, page(options.results))
    return 0


def page(results: Path) -> str:
    """Return the page of all results in a folder. Raises SystemExit for a file that no section fits."""
    sections = [HEAD]
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text())
        sections.append(SECTIONS[path.stem](content) if path.stem in SECTIONS else any_rows(path, content))
    if not (results / "gpu.json").exists():
        sections.append(gpu({"rows": []}))
    full = "" if (results / "cifar10_full.json").exists() else FULL_NOT_RUN
    return "\n".join([*sections, NOT_RUN + full])


def any_rows(path: Path, results: Results) -> str:
    """Return a section of results that have `command`, `machine` and `rows`, and none of their own here."""
    if not results.keys() >= {"command", "machine", "rows"}:
        raise SystemExit(f"{path}: has no command, machine and rows; add a section for it to benchmarks/performance.py")
    columns = list(dict.fromkeys(name for row in results["rows"] for name in row))
    lines = [[row.get(name, "") for name in columns] for row in results["rows"]]
    title = path.stem.replace("_", " ").capitalize()
    of = f"{_machine(results)}."
    return "\n".join([f"## {title}\n", f"    {results['command']}\n", f"{of}\n", table(columns, lines)])


def _machine(results: Results) -> str:
    return ", ".join(f"{name} {value}" for name, value in results["machine"].items())


def table(head: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """Return a table whose first columns are text, and the others numbers."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    rule = "|---" * text_columns + "|---:" * (len(head) - text_columns) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def communication(results: Results) -> str:
    """Return the section on traffic between ranks."""
    counted, machine = results["counted"], results["machine"]
    equal = sum(row["formula_is_exact"] for row in counted)
    first = counted[0]
    sizes = {"queue": f"{first['queue_size']:,}", "batch": first["global_batch"]}
    intro = COMMUNICATION.format(command=results["command"], **machine, **sizes, equal=equal, count=len(counted))
    at_224 = AT_224.format(ranks=_RANKS)
    model = MODEL.format(**results["cluster"], batch=results["batch_per_rank"])
    tables = (_counted(counted), _at_224(results["at_224"]), _model(results["model"]))
    return "\n".join(part for pair in zip((intro, at_224, model), tables, strict=True) for part in pair)


def _counted(rows: list[Results]) -> str:
    columns = ["scheme", "loss", "ranks", *PURPOSES, "sum", "TCP", "calls", "memory", "of the shuffle"]
    order = sorted(rows, key=lambda row: (SCHEMES.index(row["scheme"]), row["symmetric"], row["ranks"]))
    lines = [
        [
            LABELS[row["scheme"]],
            "two directions" if row["symmetric"] else "one",
            row["ranks"],
            *(_number(row["received"][purpose], 1e3) for purpose in PURPOSES),
            _number(sum(row["received"].values()), 1e3),
            _number(row["wire"], 1e3),
            sum(row["calls"].values()),
            _number(row["peak"], 1e3),
            _number(row["shuffle_peak"], 1e3),
        ]
        for row in order
    ]
    return table(columns, lines, text_columns=2)


def _at_224(rows: list[Results]) -> str:
    columns = ["scheme", "global batch", *PURPOSES, "sum", "calls", "shuffle"]
    lines = [
        [
            LABELS[row["scheme"]],
            row["global_batch"],
            *(_number(row["received"][purpose], 1e6) for purpose in PURPOSES),
            _number(sum(row["received"].values()), 1e6),
            row["calls"],
            _number(row["shuffle_peak"], 1e6),
        ]
        for scheme in SCHEMES
        for row in rows
        if row["scheme"] == scheme and row["ranks"] == _RANKS
    ]
    by_ranks = [
        [
            LABELS[scheme],
            *(
                _number(row["received"]["images"], 1e6)
                for row in rows
                if row["scheme"] == scheme and row["global_batch"] == _BATCH
            ),
        ]
        for scheme in SCHEMES
    ]
    ranks = [row["ranks"] for row in rows if row["scheme"] == SCHEMES[0] and row["global_batch"] == _BATCH]
    images = f"Megabytes of images that a rank receives in one step of a global batch of {_BATCH}, by ranks:\n"
    return "\n".join([table(columns, lines), images, table(["scheme", *map(str, ranks)], by_ranks)])


def _model(rows: list[Results]) -> str:
    columns = ["scheme", "ranks", *PURPOSES, "sum"]
    lines = [
        [
            LABELS[row["scheme"]],
            row["ranks"],
            *(_number(row["seconds"][purpose], 1e-3) for purpose in PURPOSES),
            _number(sum(row["seconds"].values()), 1e-3),
        ]
        for scheme in SCHEMES
        for row in rows
        if row["scheme"] == scheme and row["ranks"] in (8, 16, 64, 256, 1024)
    ]
    return table(columns, lines)


def throughput(results: Results) -> str:
    """Return the section on images a second, with the ratios that count."""
    rows, ratios = results["rows"], results["ratios"]
    rounds = len(rows[0]["rounds"])
    intro = THROUGHPUT.format(**{**results, "machine": _machine(results)}, rounds=rounds)
    speeds = [[row["program"], row["images_per_second"], row["cpu_ms_per_image"]] for row in rows]
    lines = [
        [TO[name], ratio, results["cpu_ratios"].get(name, ""), CPU_TARGETS.get(name, "")]
        for name, ratio in ratios.items()
    ]
    head = ["ours over", "by the clock", "in CPU time", "target"]
    return "\n".join([intro, table(["program", "images/s", "CPU ms an image"], speeds), table(head, lines)])


def exactness(results: Results) -> str:
    """Return what the parts of an exact step take."""
    rows = [list(row.values()) for row in results["rows"]]
    intro = EXACTNESS.format(**{**results, "machine": _machine(results)})
    return "\n".join([intro, table(list(results["rows"][0]), rows)])


def gpu(results: Results) -> str:
    """Return the figures of a GPU; a target without a figure is not run."""
    state = f"Run on: {_machine(results)}." if results["rows"] else "**Not run**: no GPU was at hand for this revision."
    measured = {row["what"]: row for row in results["rows"]}
    lines = []
    for what in dict.fromkeys([*TARGETS, *measured]):
        row = measured.get(what)
        figure = "not run" if row is None else f"{_number(row['value'], 1)} {row['unit']}".strip()
        lines.append([what, figure, TARGETS.get(what, ""), "" if row is None or row["met"] is None else row["met"]])
    return GPU.format(state=state) + table(["what", "figure", "target", "met"], lines)


def cifar10(results: Results) -> str:
    """Return the time of the CIFAR-10 run."""
    lines = [[row["encoder"], row["steps"], round(row["wall"] / 60)] for row in results["rows"] if row["steps"]]
    command = "    python -m benchmarks.cifar10 --root FOLDER\n"
    intro = "Two ranks on two CPU cores; the accuracies are in [docs/cifar10.md](cifar10.md).\n"
    return "\n".join(["## CIFAR-10\n", command, intro, table(["run", "steps", "minutes"], lines)])


def cifar10_full(results: Results) -> str:
    """Return the times of the full CIFAR-10 runs."""
    lines = [[row["loss"], row["ranks"], row["steps"], f"{row['wall'] / 60:.1f}"] for row in results["rows"]]
    command = "    python -m benchmarks.cifar10 --root FOLDER --full\n"
    intro = "Minutes with all starts and evaluations; the accuracies are in [docs/cifar10.md](cifar10.md).\n"
    return "\n".join(["## CIFAR-10, 200 epochs\n", command, intro, table(["loss", "ranks", "steps", "minutes"], lines)])


def mnist(results: Results) -> str:
    """Return the times of the pretrainings on MNIST."""
    runs = {row["pretraining"]: row for row in results["rows"] if row.get("pretraining_seconds")}
    lines = [[n, r["pretraining_steps"], _number(r["pretraining_seconds"], 60)] for n, r in runs.items()]
    command = "    python -m benchmarks.mnist_100_labels --root FOLDER\n"
    intro = "Two ranks on two CPU cores; the accuracies are in [docs/mnist.md](mnist.md).\n"
    return "\n".join(["## MNIST\n", command, intro, table(["pretraining", "steps", "minutes"], lines)])


def loader(results: Results) -> str:
    """Return the cost of a pair of views, its parts, and how far the pixels are from Pillow's."""
    machine = {
        name: value if isinstance(value, str) else ", ".join(value) for name, value in results["machine"].items()
    }
    intro = LOADER.format(command=results["command"], rounds=results["rounds"], **machine, **results["ratio"])
    lines = [
        [group, part, f"{milliseconds:.2f}"]
        for group, parts in results["milliseconds"].items()
        for part, milliseconds in [*parts.items(), *([("all", sum(parts.values()))] if group == "authors" else [])]
    ]
    distances = [[f"{v:.2g}" if isinstance(v, float) else v for v in row.values()] for row in results["gray_levels"]]
    columns = ["pixels", *list(results["gray_levels"][0])[1:]]
    tables = table(["of", "part", "ms"], lines, 2), DISTANCES, table(columns, distances)
    return "\n".join([intro, *tables])


def _number(value: float, unit: float) -> str:
    """Return a value in a unit with three digits that count, and zero as 0."""
    scaled = value / unit
    if scaled == 0:
        return "0"
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


TO = {
    "to_authors": "the authors' structure",
    "to_bare": "the fastest bare step",
    "to_lightly": "lightly",
}
CPU_TARGETS = {"to_authors": "> 1.25", "to_bare": ">= 0.9"}

SECTIONS: dict[str, Callable[[Results], str]] = {
    "cifar10": cifar10,
    "cifar10_full": cifar10_full,
    "communication": communication,
    "exactness": exactness,
    "gpu": gpu,
    "loader": loader,
    "mnist_100_labels": mnist,
    "throughput": throughput,
}
"""The section of each file of results."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
