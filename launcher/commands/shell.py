"""Open a shell on a node of a running job, or run a command there: shell RUN [-- COMMAND ...]."""

import argparse
import os
import subprocess
import sys

from launcher import environment
from launcher.options import add_run
from launcher.views import inside, runs
from moco_dist.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_run(parser)
    parser.add_argument("--node", metavar="NODE", help="which of its nodes; unset, the first")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="behind --: a command, instead of a shell")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status of the shell, or of the command in it."""
    now = inside.running(options.run_dir)
    words = _words(now, options.node, options.command)
    sys.stdout.flush()
    try:
        return subprocess.run(words, env=environment.for_slurm(), cwd=now.launch.run_dir).returncode
    except OSError as error:
        raise UserError.of("COMMAND", words[0], f"cannot be run: {error.strerror}", "name another") from None


def _words(now: runs.Run, node: str | None, command: list[str]) -> list[str]:
    """Return the command that opens the shell, or runs the command. Raises UserError."""
    own = command or [os.environ.get("SHELL") or "/bin/sh"]
    if now.local:
        return own
    nodes = now.evidence.nodes
    if node and node not in nodes:
        raise UserError.of("--node", node, f"the job runs on {', '.join(nodes) or 'no node yet'}", "name one of them")
    if not nodes:
        raise UserError.of("RUN", now.name, "its job has not begun on a node yet", "wait for its first line in the log")
    terminal = ["--pty"] if not command and sys.stdin.isatty() else []
    return [*inside.step(now, [node or nodes[0]]), *terminal, *own]
