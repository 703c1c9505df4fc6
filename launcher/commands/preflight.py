"""Check a job before it is sent: shapes, site, data, disk, memory, time. Takes seconds, needs no torch.

With --measure it also sends twenty steps of the run as a short job on 1, on 2 and on 4 nodes, as far as the batch
divides, and shows of each: images a second, hours and GPU hours of the whole run, the share of time waited for data,
the cores a node that keep up with it, the size of a checkpoint, and when SLURM expects such a job to start.
"""

import argparse

from launcher import elastic, measure, sending
from launcher.checks import preflight
from launcher.measure import Measured
from launcher.options import add_job_options, submission_of
from launcher.views.table import show_rows
from moco_dist import config as configs
from moco_dist.run.directory import load_config

_COLUMNS = ("nodes", "GPUs", "images/s", "hours", "GPU hours", "data wait", "cores a node", "checkpoint", "starts")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    parser.add_argument("--measure", action="store_true", help="take twenty real steps, in short jobs or with --local")
    text = "how long the short jobs may wait and run (30)"
    parser.add_argument("--measure-minutes", type=float, default=30.0, metavar="MINUTES", help=text)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns 2 where there is an error, 1 where nothing could be measured, else 0."""
    submission = submission_of(options).model_copy(update={"stage": options.stage})  # shown as it was typed
    config = load_config(*configs.parse_arguments(options.words))
    submission = elastic.narrowed(config, submission)
    findings = preflight.check(config, submission)
    for finding in findings:
        print(f"{finding.level}: {finding.text}")
    errors = sum(finding.level == "error" for finding in findings)
    print(f"{errors} error{'s' * (errors != 1)}: it would not be sent" if errors else "ok: it can be sent", flush=True)
    if errors or not options.measure:
        return 2 if errors else 0
    sending.need_submitit()
    whole = sending.absolute(config, staged=submission.stage is not None)
    sizes = measure.measure(whole, submission_of(options), options.measure_minutes)
    _print(sizes)
    return 0 if any(size.images_per_second for size in sizes) else 1


def _print(sizes: list[Measured]) -> None:
    """Print what was measured, the cheapest first, and why some was not."""
    show_rows(_COLUMNS, [_cells(size) for size in sizes if not size.trouble])
    for size in sizes:
        if size.trouble:
            start = f"; SLURM expects such a job to start at {size.start}" if size.start else ""
            print(f"{size.nodes} node{'s' * (size.nodes != 1)}: not measured, {size.trouble}{start}")


def _cells(size: Measured) -> list[str]:
    def figure(value: float | None, form: str = ".3g") -> str:
        return "?" if value is None else f"{value:{form}}"

    wait = "?" if size.data_wait is None else f"{100 * size.data_wait:.0f} %"
    checkpoint = "?" if size.checkpoint_gib is None else f"{size.checkpoint_gib:.2g} GiB"
    cores = "?" if size.cores_for_data is None else str(size.cores_for_data)
    speed = figure(size.images_per_second)
    counts = [str(size.nodes), str(size.gpus)]
    return [*counts, speed, figure(size.hours), figure(size.gpu_hours), wait, cores, checkpoint, size.start or "?"]
