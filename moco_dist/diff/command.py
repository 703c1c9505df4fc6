"""Compare two runs: the first step at which their rows part, what differs between them, and the probable cause.

python -m moco_dist.diff RUN_DIR RUN_DIR [--json]

Rows are compared bit for bit at the steps that both runs have; figures of time and of memory do not count. Exits with 0
where all are equal, 1 where some differ, 2 after a mistake. It needs no torch, and changes no run.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from moco_dist.arguments import parser_of, path_of, refused
from moco_dist.diff import cause, side
from moco_dist.diff.differences import SECTIONS, Difference, differences
from moco_dist.errors import UserError, masked, printable, shown
from moco_dist.run import comparison, paths

EQUAL, DIFFERENT = 0, 1
"""The exit statuses of the command."""


def run(arguments: Sequence[str]) -> int:
    """Compare as the arguments of the command line say. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        one, other = (side.read(paths.run_of(folder) or folder) for folder in options.runs)
        result = compare(one, other)
    except UserError as error:
        return refused("moco_dist.diff", error)
    print(json.dumps(result, indent=1) if options.json else masked("\n".join(_lines(result))))
    return EQUAL if result["equal"] else DIFFERENT


def compare(one: side.Side, other: side.Side) -> dict[str, Any]:
    """Compare two runs. Returns what `--json` prints. Raises UserError where they have no step in common."""
    trained = comparison.compare(one.training, other.training)
    evaluated = comparison.compare(one.evaluations, other.evaluations)
    if not trained.steps:
        fix = "compare runs with a common multiple of track.log_every"
        raise UserError.of("RUN_DIR", other.folder, f"has a row of no step that {one.folder} has", fix)
    listed = differences(one, other)
    first = next((c for c in (trained, evaluated) if c.first is not None), None)
    drift = first.drifts[first.first] if first and first.first else None
    causes = (
        cause.probable_causes(listed, trained.drifts, drift, one, other, evaluation=trained.first is None)
        if drift
        else []
    )
    return {
        "equal": first is None,
        "verdict": _verdict(one, other, trained, evaluated, causes),
        "causes": causes,
        "runs": [str(one.folder), str(other.folder)],
        "last_steps": [one.last_step, other.last_step],
        "rows": {"training": _figures(trained), "evaluation": _figures(evaluated)},
        "differs": {s: [_entry(d) for d in listed if d.section == s and _matters(d)] for s in SECTIONS},
        "cannot_matter": [_entry(d) for d in listed if d.recorded and not _matters(d)],
        "not_recorded": [_entry(d) for d in listed if not d.recorded],
    }


def _matters(difference: Difference) -> bool:
    """Return whether a difference is told among those that may matter."""
    return difference.recorded and (difference.effect != "none" or difference.section in ("evaluation", "ranks"))


def _verdict(
    one: side.Side,
    other: side.Side,
    trained: comparison.Comparison,
    evaluated: comparison.Comparison,
    causes: list[str],
) -> str:
    """Say in one sentence whether the runs are equal, or where they part and why."""
    names = f"{printable(str(one.folder))} and {printable(str(other.folder))}"
    common = f"{len(trained.steps)} step{'s' * (len(trained.steps) > 1)}"
    if trained.first is None and evaluated.first is None:
        longer = max(one, other, key=lambda run: run.last_step)
        more = (
            f"; {printable(str(longer.folder))} goes on to step {longer.last_step}"
            if one.last_step != other.last_step
            else ""
        )
        return f"{names} are equal to the bit over {common}, to step {trained.steps[-1]}{more}"
    if trained.first is None:
        parted = f"have equal rows over {common}, but {evaluated.first} differs after step {evaluated.first_step}"
    elif trained.first != "loss" and "loss" not in trained.drifts:
        parted = f"have equal losses over {common}, but {trained.first} differs from step {trained.first_step}"
    else:
        before = f"after {trained.equal_before} equal" if trained.equal_before else "the first that both have"
        parted = f"part at step {trained.first_step}, {before}"
    why = f"most probably since {causes[0]}" if causes else "for no reason that both of them record"
    return f"{names} {parted}: {why}"


def _figures(compared: comparison.Comparison) -> dict[str, Any]:
    drifts = {
        name: {**drift.as_json(), "last": comparison.finite(drift.last)}
        for name, drift in sorted(compared.drifts.items(), key=lambda item: (item[0] != "loss", item[1].first_step))
    }
    return {
        "compared": len(compared.steps),
        "equal_before": compared.equal_before,
        "first_step": compared.first_step,
        "figures": sorted(compared.figures),
        "in_one_run_alone": sorted(compared.one_sided),
        "differ": drifts,
    }


def _entry(difference: Difference) -> dict[str, Any]:
    values = [difference.one, difference.other]
    return {"section": difference.section, "name": difference.name, "values": values, "effect": difference.effect}


def _lines(result: dict[str, Any]) -> list[str]:
    """Write the result for people: the verdict first, then a line for each thing that differs."""
    lines = [result["verdict"]]
    for kind, compared in result["rows"].items():
        if compared["compared"]:
            equal = f"{compared['equal_before']} of them equal before the first that is not"
            lines.append(
                f"rows of {kind}: {compared['compared']} compared, {equal if compared['differ'] else 'all equal'}"
            )
        for name, drift in compared["differ"].items():
            values = " and ".join("no number" if value is None else f"{value:.9g}" for value in drift["values"])
            lines.append(f"  {printable(name)} from step {drift['first_step']}: {values}{_apart(drift)}")
    for number, why in enumerate(result["causes"][1:]):
        lines += ["also possible:"] * (number == 0) + [f"  {why}"]
    for section, entries in result["differs"].items():
        lines += [f"{section}:"] * bool(entries) + [_line(entry) for entry in entries]
    lines += ["cannot move a number:"] * bool(result["cannot_matter"]) + [_line(e) for e in result["cannot_matter"]]
    lines += ["not recorded:"] * bool(result["not_recorded"]) + [_line(e) for e in result["not_recorded"]]
    same = [section for section in SECTIONS if not result["differs"][section] and section != "evaluation"]
    unknown = {entry["section"] for entry in result["not_recorded"]}
    return [*lines, f"equal: {', '.join(s for s in same if s not in unknown) or 'nothing else'}"]


def _apart(drift: dict[str, Any]) -> str:
    """Say how far the values of a figure are apart; nothing where one of them is no number."""
    if drift["largest"] is None or drift["last"] is None:
        return ""
    return f"; at most {drift['largest']:.3g} apart, at step {drift['largest_step']}; {drift['last']:.3g} at the end"


def _line(entry: dict[str, Any]) -> str:
    one, other = entry["values"]
    return f"  {entry['name']}: {shown(one)} | {shown(other)}"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.diff", __doc__)
    parser.add_argument("runs", nargs=2, metavar="RUN_DIR", type=path_of("RUN_DIR"), help="a run directory")
    parser.add_argument("--json", action="store_true", help="print all of it as an object")
    return parser
