"""Read the command line: `python -m slurm.devcluster start|stop|status|kill-node|start-node|install`."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from slurm.devcluster import programs
from slurm.devcluster.cluster import Cluster
from slurm.devcluster.directory import Settings
from slurm.devcluster.errors import ClusterError, Misuse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message}; python -m slurm.devcluster --help tells more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0 done, 1 the cluster failed, 2 a mistake of the user's."""
    try:
        return _run(vars(_parser().parse_args(arguments)))
    except Misuse as error:
        print(error, file=sys.stderr)
        return 2
    except (ClusterError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    text = "A real SLURM in one private directory, for tests and demos."
    parser = _Parser(prog="python -m slurm.devcluster", description=text, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    start = commands.add_parser(
        "start",
        help="start a cluster, or what of it does not run",
        description="Start a cluster, or what of it does not run. Options that are left out stay as they were.",
        allow_abbrev=False,
    )
    start.add_argument("directory", metavar="DIR", help="a new or empty directory, or that of a cluster before")
    for name, text in (
        ("nodes", "number of nodes (2)"),
        ("cpus", "CPUs that each claims to have (4)"),
        ("gpus", "fake GPUs of each (4)"),
        ("port", "first of the ports; unset, free ones are looked for"),
    ):
        start.add_argument(f"--{name}", type=_integer(name), metavar="N", help=text)
    start.add_argument("--name", metavar="NAME", help="what SLURM calls the cluster (devcluster)")
    text = "the cluster whose accounting it shares, as sbatch -M needs it"
    start.add_argument("--beside", type=os.path.abspath, metavar="DIR", help=text)  # stop may run in another folder
    start.add_argument("--proctrack", metavar="HOW", help="linuxproc (default), or cgroup as most clusters have it")
    for name, text in (
        ("accounting", "sacct, slurmdbd and MariaDB (default)"),
        ("preempt-signal", "preempted jobs get USR2 (default), not TERM"),
        ("own-hostnames", "a job's hostname is its node's name"),
    ):
        start.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    for name, text in (("stop", "stop it, and leave the directory"), ("status", "what is up; 0 where all is")):
        commands.add_parser(name, help=text).add_argument("directory", metavar="DIR")
    for name, text in (("kill-node", "end a node as a power cut would"), ("start-node", "bring a node back")):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", metavar="DIR")
        command.add_argument("node", metavar="NODE")
    commands.add_parser("install", help="install the Debian packages (root)")
    return parser


def _integer(key: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise Misuse.of(key, text, "must be a whole number", f"for example --{key} 2") from None

    return parse


def _run(options: dict[str, object]) -> int:
    command, root, node = options.pop("command"), str(options.pop("directory", "")), str(options.pop("node", ""))
    if command == "install":
        print(programs.install())
    elif command == "start":
        _start(root, {key: value for key, value in options.items() if value is not None})
    elif command == "stop":
        Cluster(root).stop()
    elif command == "status":
        return _status(Cluster(root))
    elif command == "kill-node":
        Cluster(root).kill_node(node)
    elif command == "start-node":
        Cluster(root).start_node(node)
    return 0


def _start(root: str, changes: dict[str, object]) -> None:
    began = time.monotonic()
    cluster = Cluster(root)
    before = cluster.settings if cluster.exists else Settings()
    cluster = Cluster(root, dataclasses.replace(before, **changes))  # type: ignore[arg-type]
    started = cluster.start()
    seconds = f"{time.monotonic() - began:.1f} s"
    done = f"started {' '.join(started)} in {seconds}" if started else "runs already"
    print(f"{done}\nexport SLURM_CONF={cluster.environment['SLURM_CONF']}")


def _status(cluster: Cluster) -> int:
    status = cluster.status()
    for name, alive in status.daemons.items():
        print(f"{name:<20} {'up' if alive else 'dead'}")
    for node, state in status.nodes.items():
        print(f"{node:<20} {state}")
    return 0 if status.up else 1


if __name__ == "__main__":
    sys.exit(main())
