"""Define the options and arguments that several commands share: those that describe a job, and names of runs."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from launcher import cluster, passed_on
from launcher.record import Submission
from moco_dist import config as configs

_OVERRIDES = (
    ("slurm_cluster", "NAME"),
    ("partition", "PARTITION"),
    ("account", "ACCOUNT"),
    ("qos", "QOS"),
    ("constraint", "FEATURES"),
    ("reservation", "NAME"),
    ("gpus_per_node", "N"),
    ("cpus_per_gpu", "N"),
    ("memory_gib", "GIB"),
    ("time_minutes", "MINUTES"),
    ("signal_seconds", "SECONDS"),
    ("min_nodes", "N"),
    ("max_restarts", "N"),
    ("tasks", "node|rank"),
)


class _ProfileHelp(argparse.Action):
    """Print every key of a profile, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(cluster.usage())
        parser.exit()


def _positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.strip().isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _nodes(text: str) -> tuple[int | None, int]:
    """Read a number of nodes, or the fewest and the most of them, `1-4`. Returns the fewest, if any, and the most."""
    least, _, most = text.rpartition("-")
    numbers = [_positive(number) for number in ((least, most) if least else (text,))]
    if sorted(numbers) != numbers:
        raise argparse.ArgumentTypeError(f"must be the fewest and the most nodes, such as 1-4, not {text!r}")
    return (numbers[0] if numbers[0] < numbers[-1] else None), numbers[-1]


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a job to a command's parser."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="[CONFIG.yaml] [section.key=value ...]")
    add_resources(parser)
    parser.add_argument(
        "--stage",
        type=path_of("--stage"),
        metavar="ARCHIVE",
        help="tar, zip or shards, for each node's own disk",
    )
    parser.add_argument("--local", action="store_true", help="run it on this machine, without SLURM")


def add_waits(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a job waits for, and whether the command waits for the job."""
    text = "start after this run, sweep or job has succeeded; any:RUN, however it ended"
    parser.add_argument("--after", metavar="RUN", help=text)
    text = "follow what is sent to its end; exit 0, 75, 2 or 1 as it, or the worst member of a sweep, ended"
    parser.add_argument("--wait", action="store_true", help=text)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a job asks of the cluster."""
    parser.add_argument("--cluster", metavar="PROFILE", help="profile: a YAML file, or the name of a shipped one")
    parser.add_argument("--help-profile", action=_ProfileHelp, nargs=0, help="list every key of a profile, and end")
    text = "nodes; unset, 1 or as it was; 1-4: what is idle at each start, of the numbers that divide the batch"
    parser.add_argument("--nodes", type=_nodes, metavar="N", help=text)
    for key, metavar in _OVERRIDES:
        option = f"--{key.replace('_', '-')}"
        parser.add_argument(option, metavar=metavar, help=f"instead of the profile's {key}")
    parser.add_argument("--exclude", metavar="NODES", help="nodes to leave out, separated by commas")
    for command in get_args(passed_on.Command):
        text = f"any other option of {command}, as in --{command} nodelist=n7; may stand several times"
        parser.add_argument(f"--{command}", action="append", metavar="KEY[=VALUE]", help=text)


def add_fresh_code(parser: argparse.ArgumentParser) -> None:
    """Add the option that sends a run again with other code to a command's parser."""
    text = "run the checkout's code; unset, the copy that the run was sent with"
    parser.add_argument("--fresh-code", action="store_true", help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names one run to a command's parser."""
    text = "a run directory, the name of one in runs/, or a job's id"
    parser.add_argument("run_dir", type=path_of("RUN"), metavar="RUN", help=text)


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names runs to the parser of a command that changes them."""
    text = "run directories, names of runs in runs/, folders of sweeps, or ids of jobs and arrays"
    parser.add_argument("run_dirs", type=path_of("RUN"), nargs="+", metavar="RUN", help=text)


def path_of(name: str) -> Callable[[str], str]:
    """Return what expands `~` and `$NAME` in the argument of that name; it raises UserError."""
    return functools.partial(configs.expanded, name)


def submission_of(options: argparse.Namespace) -> Submission:
    """Describe the job that the options ask for, but for its name. Raises UserError."""
    least_nodes, nodes = options.nodes or (None, 1)
    return Submission(
        executor="local" if options.local else "slurm",
        nodes=nodes,
        least_nodes=least_nodes,
        profile=cluster.load(options.cluster, _overrides(options)),
        stage=_stage(options),
    )


def any_resources(options: argparse.Namespace) -> bool:
    """Return whether the options say what a job asks of the cluster."""
    return bool(options.cluster or options.nodes or _overrides(options))


def changed(submission: Submission, options: argparse.Namespace) -> Submission:
    """Return a submission that was sent before, with what the options ask for instead. Raises UserError."""
    overrides = _overrides(options)
    if options.cluster:
        profile = cluster.load(options.cluster, overrides)
    else:
        before = submission.profile.model_dump(mode="json", exclude_defaults=True)
        profile = configs.validate(cluster.Profile, cluster.merged(before, overrides))
    stage = _stage(options) or submission.stage
    least_nodes, nodes = options.nodes or (submission.least_nodes, submission.nodes)
    changes = {"nodes": nodes, "least_nodes": least_nodes, "profile": profile, "stage": stage}
    return submission.model_copy(update={**changes, "earlier_jobs": (), "left_out": ()})


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the profile's keys that the options give, with their values."""
    values = {key: getattr(options, key) for key, _ in _OVERRIDES}
    values["exclude"] = [options.exclude] if options.exclude else None  # n[1,3] is one word of SLURM's
    for command in get_args(passed_on.Command):
        pairs = [text.lstrip("-").partition("=") for text in getattr(options, command) or ()]
        values[command] = {key: value if equals else "true" for key, equals, value in pairs} or None
    return {key: value for key, value in values.items() if value is not None}


def _stage(options: argparse.Namespace) -> str | None:
    """Return the whole path of the archive of the data; None where no option names one."""
    stage = getattr(options, "stage", None)
    return None if stage is None else str(Path(stage).resolve())
