"""Show how the traffic between ranks grows with them: counted on small shapes, evaluated at 224 pixels, modelled.

python -m benchmarks.communication [--json PATH] [--figure PATH] [--ranks R ...] [bandwidths]

Real steps run on 1, 2, 4 and 8 ranks of this machine (gloo), in each mode of `moco.shuffle`, with the loss of one
direction and of two, and beside them the MoCo authors' scheme. Wrappers around the functions of torch.distributed count
the bytes that a rank receives and sends and the collectives that it calls; TCP's own counters say what came in. The
formula of each count must equal it: the exit status is 1 where one does not. Bytes are counted so:

    all_gather, all_to_all   the result without the part that the rank had: (R-1)/R of an all_gather's result
    all_reduce               2(R-1)/R of the result, as a ring moves them
    broadcast                the result, on each rank but the first

Then the formula is evaluated for configs/imagenet_v2.yaml with float32 images, and a model with stated bandwidths gives
seconds a step up to 1,024 ranks. Written: the json, and the picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.communication import formula, model
from benchmarks.communication.formula import Shapes
from benchmarks.runs import DOCS, HERE, RESULTS
from moco_dist import config as configs
from moco_dist import files

BATCHES = (256, 512, 1024, 2048, 4096)
RANKS = (1, 2, 4, 8)


def main(arguments: Sequence[str]) -> int:
    """Count, evaluate, model, write. Returns 1 where a count is not what the formula says."""
    options = _parser().parse_args(arguments)
    for path in (options.json, options.figure):  # a folder that cannot be made is told before the counting
        path.parent.mkdir(parents=True, exist_ok=True)
    cluster = model.Cluster(options.gpus_per_node, options.inside, options.between)
    shapes = Shapes.of(configs.load(Path("configs/imagenet_v2.yaml"), ["data.root=none"]))
    counted = [row for ranks in options.ranks for row in _count(ranks)]
    modelled = model.rows(shapes, cluster, options.batch_per_rank)
    results = {
        "command": "python -m benchmarks.communication",
        "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "backend": "gloo"},
        "counted": counted,
        "at_224": [_evaluated(shapes, *row) for row in itertools.product(RANKS, BATCHES, formula.SCHEMES)],
        "cluster": dataclasses.asdict(cluster),
        "batch_per_rank": options.batch_per_rank,
        "model": modelled,
    }
    files.write_text(options.json, json.dumps(results, indent=1) + "\n")
    model.draw(modelled, options.batch_per_rank, options.figure)
    different = [row for row in counted if not row["formula_is_exact"]]
    for row in different:
        print(f"the formula is not what was counted: {row}")
    print(f"{len(counted)} counts, {len(counted) - len(different)} equal to the formula; written: {options.json}")
    return 1 if different else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = model.Cluster()
    parser.add_argument("--json", type=Path, default=RESULTS / "communication.json", metavar="PATH")
    parser.add_argument("--figure", type=Path, default=DOCS / "communication.png", metavar="PATH")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="R", help="worlds to count on")
    parser.add_argument(
        "--batch-per-rank", type=int, default=32, metavar="N", help="images of a rank in the model (32)"
    )
    parser.add_argument("--gpus-per-node", type=int, default=default.gpus_per_node, metavar="N")
    parser.add_argument(
        "--inside",
        type=float,
        default=default.inside_gbytes,
        metavar="GB/s",
        help="into a GPU from its node (300: NVLink of an A100, half of the 600 of both directions)",
    )
    parser.add_argument(
        "--between",
        type=float,
        default=default.between_gbytes,
        metavar="GB/s",
        help="into a node from the others (25: one InfiniBand HDR adapter, 200 Gbit/s)",
    )
    return parser


def _count(ranks: int) -> list[dict[str, Any]]:
    """Count on so many ranks of this machine. Raises SystemExit where they fail."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "counts.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [sys.executable, *launch, "-m", "benchmarks.communication.count", str(result)]
        done = subprocess.run(command, cwd=HERE.parent, stderr=subprocess.PIPE, text=True)  # the profiler chats there
        if done.returncode:
            raise SystemExit(f"{done.stderr}\ncounting on {ranks} ranks has failed")
        print(f"counted on {ranks} ranks", flush=True)
        return [_of_all_ranks(row) for row in json.loads(result.read_text())]


def _of_all_ranks(row: dict[str, Any]) -> dict[str, Any]:
    """Return a case's figures of the rank that receives most, and whether those of all are as the formula says."""
    of_ranks = row.pop("of_ranks")
    most = max(of_ranks, key=lambda figures: sum(received for received, _, _ in figures["counted"].values()))
    names = ("received", "sent", "calls")
    by_name = {name: {p: t[place] for p, t in most["counted"].items()} for place, name in enumerate(names)}
    exact = all(figures["counted"] == figures["formula"] for figures in of_ranks)
    peaks = {name: max(figures[name] for figures in of_ranks) for name in ("peak", "shuffle_peak")}
    return {**row, **by_name, "wire": most["wire"], **peaks, "formula_is_exact": exact}


def _evaluated(shapes: Shapes, ranks: int, batch: int, scheme: str) -> dict[str, Any]:
    """Return the formula's figures of one step at full size; with two directions, images and keys are twice as many."""
    traffic = formula.add_up(formula.messages(scheme, shapes, batch, ranks), min(1, ranks - 1), ranks)
    return {
        **{"ranks": ranks, "global_batch": batch, "scheme": scheme},
        "received": {purpose: of_purpose.received for purpose, of_purpose in traffic.items()},
        "calls": sum(of_purpose.calls for of_purpose in traffic.values()),
        "shuffle_peak": formula.shuffle_peak(scheme, shapes, batch, ranks),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
