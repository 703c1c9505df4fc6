"""Choose the runs that a person wants to see, and put the newest first."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from launcher.views import moments, verdict
from launcher.views.runs import Run
from moco_dist.errors import UserError

_STATES = ("starting", *get_args(verdict.Live), *get_args(verdict.Ended), "unknown", "unreadable")


@dataclass(frozen=True)
class Choice:
    """A choice says what the runs must be like that are shown."""

    states: tuple[str, ...] = ()
    """The states that they may be in; empty for any."""
    since: float | None = None
    """They live, or have ended since then, in seconds since the epoch."""
    mine: bool = False
    """True where they must be this user's own."""
    text: str = ""
    """Text that their name contains; capital letters count as small ones."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose runs to a command's parser."""
    parser.add_argument("--state", metavar="STATE[,STATE]", help="only runs in these states")
    text = "only runs that live, or have ended since: 2d, 12h, 2026-11-20"
    parser.add_argument("--since", metavar="TIME", help=text)
    parser.add_argument("--mine", action="store_true", help="only runs and jobs of your own")
    parser.add_argument("--filter", metavar="TEXT", default="", help="only runs whose name contains the text")


def of_options(options: argparse.Namespace) -> Choice:
    """Read the options. Raises UserError."""
    states = tuple(options.state.split(",")) if options.state is not None else ()
    for state in states:
        if state not in _STATES:
            raise UserError.of("--state", state, "is no state of a run", f"there are {', '.join(_STATES)}")
    since = moments.of_option("--since", options.since) if options.since is not None else None
    return Choice(states, since, options.mine, options.filter)


def chosen(runs: Sequence[Run], choice: Choice) -> list[Run]:
    """Return the runs that are like the choice: those that were sent last come first, then by name."""
    return sorted((run for run in runs if _is_chosen(run, choice)), key=_sent_at, reverse=True)


def _is_chosen(run: Run, choice: Choice) -> bool:
    if choice.states and not {run.state, run.shown_state} & set(choice.states):
        return False
    if choice.since is not None and not run.live and (run.since or 0.0) < choice.since:
        return False
    if choice.mine and not _is_own(run):
        return False
    return choice.text.casefold() in run.name.casefold()


def _is_own(run: Run) -> bool:
    """Return whether a run is this user's; the queue was asked for no other's jobs."""
    try:
        return run.launch.run_dir.stat().st_uid == os.getuid()
    except OSError:
        return run.job is not None


def _sent_at(run: Run) -> float:
    """Return when a run was sent last; for one without a record, when its directory changed or its job began."""
    sent = moments.of_text(run.submission.submitted) if run.submission else None
    if sent is None and run.job:
        sent = moments.of_text(run.job.started)
    if sent is None:
        try:
            sent = run.launch.run_dir.stat().st_mtime
        except OSError:
            sent = 0.0
    return sent
