"""Say whether a run learns, and if not, why, and what to change.

python -m moco_dist.why RUN_DIR [--json]

The run may be running, done, stopped, crashed or diverged. docs/health.md describes the rules.
"""

import argparse
import json
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from moco_dist import health
from moco_dist.arguments import parser_of, path_of, refused, run_command
from moco_dist.errors import UserError, printable
from moco_dist.health import reading
from moco_dist.run import paths

MOST_COLUMNS = 120


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        run_read = reading.read(options.run)
    except UserError as error:
        return refused("moco_dist.why", error)
    print(json.dumps(as_json(run_read), indent=1) if options.json else "\n".join(screen(run_read)))
    return 0


def as_json(run_read: reading.Reading) -> dict[str, Any]:
    """Return what the command tells for programs; `healthy` is null where nothing could be judged."""
    diagnosis = run_read.diagnosis
    return {
        "healthy": diagnosis.healthy if diagnosis and diagnosis.checked else None,
        "findings": [_finding(finding) for finding in diagnosis.findings] if diagnosis else [],
        "notes": [_finding(note) for note in diagnosis.notes] if diagnosis else [],
        "fine": diagnosis.fine if diagnosis else [],
        "unchecked": diagnosis.unchecked if diagnosis else {},
        "run": str(run_read.folder),
        "state": run_read.status.state,
        "step": run_read.status.step,
        "reason": run_read.status.reason,
    }


def screen(run_read: reading.Reading) -> Iterator[str]:
    """Yield the lines that the command tells for people: the verdict, its evidence, what to change, what is fine."""
    diagnosis, folder = run_read.diagnosis, printable(str(run_read.folder))
    yield from _wrapped(f"{folder}: {_state(run_read)}")
    if diagnosis is None:
        yield "It has no config and no rows: there is nothing to judge."
        return
    if diagnosis.learned:
        yield from _wrapped(diagnosis.learned)
    yield from _wrapped(_verdict(diagnosis))
    for finding in diagnosis.findings:
        yield ""
        when = (
            f"steps {finding.first_step} to {finding.last_step}"
            if finding.ended
            else f"since step {finding.first_step}"
        )
        yield from _wrapped(f"{finding.name}, {when}: {health.TITLES.get(finding.name, finding.kind)}")
        yield from _wrapped(finding.evidence, "  ")
        if finding.key:
            yield from _wrapped(f"change: {finding.override}", "  ")
    if any(finding.key for finding in diagnosis.findings):
        yield ""
        yield f"Another run with all changes: {_command(run_read)}"
    for note in diagnosis.notes:
        yield ""
        yield from _wrapped(f"Note on {note.name}, steps {note.first_step} to {note.last_step}: {note.evidence}.")
    yield ""
    yield from _wrapped(f"Fine: {', '.join(diagnosis.fine) or 'nothing'}.")
    for reason in dict.fromkeys(diagnosis.unchecked.values()):
        names = [name for name, of_rule in diagnosis.unchecked.items() if of_rule == reason]
        yield from _wrapped(f"Not checked, {reason}: {', '.join(names)}.")


def _verdict(diagnosis: health.Diagnosis) -> str:
    unended = [finding for finding in diagnosis.findings if not finding.ended]
    ended = len(diagnosis.findings) - len(unended)
    if not diagnosis.checked:
        return "Nothing to judge yet: too few rows."
    if not diagnosis.findings:
        rules, length = len(diagnosis.checked), len(diagnosis.checked) + len(diagnosis.unchecked)
        if diagnosis.is_by_few:
            return (
                f"Nothing was wrong up to step {diagnosis.last_step}, but only {rules} of {length} rules could judge."
            )
        return f"HEALTHY: nothing was wrong up to step {diagnosis.last_step}, by {rules} of {length} rules."
    past = f"; {ended} earlier finding{'s' * (ended > 1)} ended" if ended else ""
    if not unended:
        return f"HEALTHY NOW{past}."
    return f"NOT HEALTHY: {', '.join(finding.name for finding in unended)}{past}."


def _state(run_read: reading.Reading) -> str:
    """Tell how the run stands, in one line."""
    status = run_read.status
    length = f" of {status.total_steps}" if status.total_steps else ""
    steps = f"step {status.step}{length}"
    match status.state:
        case None:
            return "no status, so that it has hardly begun"
        case "running" if run_read.writer:
            return f"running ({run_read.writer}), saved at {steps}"
        case "running":
            return f"broken off, and no process goes on with it; saved at {steps}"
        case "done":
            return f"done, {steps}"
        case _:
            return f"{status.state} at {steps}: {printable(status.reason)}"


def _command(run_read: reading.Reading) -> str:
    """Return a command that begins another run with all the changes; of two of one key, the first finding's counts."""
    assert run_read.diagnosis is not None and run_read.config is not None
    overrides = {finding.key: finding.override for finding in reversed(run_read.diagnosis.findings) if finding.key}
    config = paths.RunPaths(run_read.folder).config
    name = f"run.name={run_read.config.run.name}_2"
    return shlex.join(["python", "-m", "moco_dist.train", str(config), name, *reversed(overrides.values())])


def _finding(finding: health.Finding) -> dict[str, Any]:
    names = ("name", "key", "value", "first_step", "last_step", "evidence", "ended")
    return {name: getattr(finding, name) for name in names}


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Break a text into lines that fit the terminal; the second and later ones are set in."""
    columns = min(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, MOST_COLUMNS)
    return textwrap.wrap(
        text,
        max(columns, 40),
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.why", __doc__)
    parser.add_argument("run", type=path_of("RUN_DIR"), metavar="RUN_DIR", help="a run directory")
    parser.add_argument("--json", action="store_true", help="tell it as JSON, for programs")
    return parser


if __name__ == "__main__":
    run_command(run)
