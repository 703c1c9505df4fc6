"""Say what a replay has shown: in lines for people, and as JSON that can be cited."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moco_dist import config as configs
from moco_dist.errors import printable, shown
from moco_dist.files import read_bytes, read_text
from moco_dist.run import code, provenance
from moco_dist.run.comparison import Comparison, finite
from moco_dist.run.paths import RunPaths
from moco_dist.verify.plan import Plan
from moco_dist.verify.replay import Outcome, StateComparison
from moco_dist.verify.request import Request

SCHEMA = 1
"""Version of the JSON; a key that changes its meaning raises it."""

_COMPUTE = ("torch", "numpy", "pillow", "simplejpeg", "cuda", "cudnn")
"""Packages and libraries whose other versions may compute other last bits."""

EXIT_STATUS: dict[str, int] = {"equal": 0, "different": 1}

RULES = (
    "A step is equal if its loss and its learning rate are equal to the last bit, and so is every figure that both "
    "rows have, but for figures of time, of memory and of the machine.",
    "A checkpoint is equal if all tensors and numbers of its state are equal to the last bit: both encoders, queue, "
    "optimizer, scaler, counters and the identity of the images.",
    "The result is equal if every recorded row and every checkpoint of the replayed steps is equal, and no row is "
    "missing that the last start of the run has written.",
)


def of(
    request: Request, plan: Plan, checkpoint_sha256: str, outcome: Outcome, here: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the result, as it is written.

    Args:
        request: what was requested.
        plan: what was replayed.
        checkpoint_sha256: digest of the checkpoint that the replay began from; "" at step 0.
        outcome: what the replay has shown.
        here: what it ran on, as `provenance.describe` tells it.
    """
    starts = provenance.read(plan.folder)
    of_steps = [provenance.of_step(starts, step) for step in range(plan.start + 1, plan.end + 1)]
    recorded = of_steps[-1]
    result = "equal" if _equal(plan, outcome) else "different"
    different = result == "different"
    expected = _expected(request, of_steps, here) if different else []
    before = _anonymous(recorded) if recorded else _from_headline(plan)
    return {
        "schema": SCHEMA,
        "command": "python -m moco_dist.verify",
        "result": result,
        "verdict": _verdict(plan, outcome, here, expected),
        "expected_since": expected,
        "other_code": _other_code(before, here) if different else "",
        "run": {"name": request.recorded.run.name, "seed": request.recorded.run.seed},
        "replayed": {
            "first_step": plan.start + 1,
            "last_step": plan.end,
            "checkpoint": {"step": plan.start, "sha256": checkpoint_sha256} if plan.start else None,
            "overrides": _overrides(request),
        },
        "training": _comparison(outcome.training),
        "evaluations": _comparison(outcome.evaluations),
        "checkpoints": [_state(step, state) for step, state in sorted(outcome.states.items())],
        "missing": outcome.missing,
        "rules": list(RULES),
        "digests": _digests(plan, here),
        "here": _anonymous(here),
        "recorded": before,
    }


def _digests(plan: Plan, here: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "config_sha256": hashlib.sha256(read_bytes(RunPaths(plan.folder).config)).hexdigest(),
        "losses_sha256": _losses_digest(plan),
        "code_sha256": here["code"]["sha256"],
        "code_git": here["code"]["git"],
        "data": here["data"],
    }


def lines(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines for people."""
    yield content["verdict"]
    for name in ("training", "evaluations"):
        for figure, drift in content[name]["differ"].items():
            values = " recorded, ".join("no number" if value is None else f"{value:.9g}" for value in drift["values"])
            largest = "" if drift["largest"] is None else f"; at most {drift['largest']:.3g} apart"
            at = f", at step {drift['largest_step']}" if largest else ""
            yield f"  {printable(figure)} at step {drift['first_step']}: {values} replayed{largest}{at}"
    for state in content["checkpoints"]:
        if state["problem"] or state["unequal"]:
            names = list(state["unequal"])
            what = state["problem"] or f"{len(names)} of {state['compared']} parts differ, such as {names[0]}"
            yield f"  checkpoint of step {state['step']}: {what}"
    for reason in content["expected_since"]:
        yield f"  a difference is expected: {reason}"
    if content["other_code"]:
        yield f"  a difference is possible: {content['other_code']}"


def _equal(plan: Plan, outcome: Outcome) -> bool:
    rows = sum(map(len, plan.rows.values()))
    evaluations = sum(map(len, plan.evaluations.values()))
    all_compared = (len(outcome.training.steps), len(outcome.evaluations.steps)) == (rows, evaluations)
    parted = outcome.training.first or outcome.evaluations.first or outcome.diverged
    rows_are_whole = not _doubled(plan) and not outcome.missing
    return all_compared and not parted and rows_are_whole and all(s.equal for s in outcome.states.values())


def _doubled(plan: Plan) -> list[int]:
    """Return the steps that have more than one row of a kind, which no run writes."""
    return sorted(step for rows in (plan.rows, plan.evaluations) for step, of_step in rows.items() if len(of_step) > 1)


def _verdict(plan: Plan, outcome: Outcome, here: Mapping[str, Any], expected: list[str]) -> str:
    """Say in one sentence what the replay has shown."""
    where = f"on {here['ranks']} rank{'s' * (here['ranks'] > 1)} here"
    if _equal(plan, outcome):
        states = sum(not state.gone for state in outcome.states.values())
        more = f", and the state of {states} checkpoint{'s' * (states > 1)}" if states else ""
        evaluations = f", {len(outcome.evaluations.steps)} of evaluations" * bool(outcome.evaluations.steps)
        rows = len(outcome.training.steps)
        return f"equal to the bit: {rows} row{'s' * (rows > 1)} of {plan.steps}{evaluations}{more}, replayed {where}"
    how = "different, as is to be expected" if expected else "different"
    return f"{how}: {_first_difference(plan, outcome)}; {plan.steps} {where}"


def _first_difference(plan: Plan, outcome: Outcome) -> str:
    """Name what differs, a loss first."""
    for comparison in (outcome.training, outcome.evaluations):
        if name := comparison.first:
            drift, equal = comparison.drifts[name], comparison.equal_before
            apart = "" if finite(drift.largest) is None else f"; at most {drift.largest:.3g} apart"
            return f"{printable(name)} from step {drift.first_step}, after {equal} equal rows{apart}"
    if outcome.diverged:
        return outcome.diverged
    if doubled := _doubled(plan):
        return f"step {doubled[0]} has more than one row"
    if outcome.missing:
        return f"a row of step {outcome.missing[0]} is missing, which the run has written"
    unequal = [step for step, state in sorted(outcome.states.items()) if not state.equal]
    return f"the checkpoint of step {unequal[0]}" if unequal else "some recorded rows were not reached"


def _expected(request: Request, of_steps: Sequence[provenance.Start | None], here: Mapping[str, Any]) -> list[str]:
    """Return why a difference is to be expected, where something recorded of the starts that took the steps says so."""
    reasons = [f"the replay had {key}={shown(value)}" for key, value in _overrides(request).items()]
    starts = {start["step"]: start for start in of_steps if start is not None}
    return list(dict.fromkeys([*reasons, *(reason for start in starts.values() for reason in _other(start, here))]))


def _other(recorded: provenance.Start, here: Mapping[str, Any]) -> list[str]:
    """Return how a start was otherwise than the replay, where that may change last bits."""
    reasons = []
    if recorded.get("devices") != here["devices"] and _names(recorded) != _names(here):
        reasons.append(f"the run was on {_names(recorded)}, the replay on {_names(here)}")
    on_gpu = "cpu" not in (recorded.get("device"), here["device"])
    if on_gpu and not (recorded.get("deterministic") and here["deterministic"]):
        reasons.append("without device.deterministic, a GPU does not repeat its last bits")
    if not (recorded.get("exact") and here["exact"]) and recorded.get("ranks") != here["ranks"]:
        ranks = f"{recorded.get('ranks')} and {here['ranks']} ranks"
        reasons.append(f"{ranks} add in another order, without the exact engine")
    for name, version in here["versions"].items():
        before = recorded.get("versions", {}).get(name, version)
        if before != version and name in _COMPUTE:
            reasons.append(f"{name} {before} became {version}")
    return reasons


def _other_code(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return how the code of the replay differs from the run's, in words; "" where it does not, or nothing tells."""
    before, now = recorded.get("code", {}), here["code"]
    if "sha256" in before:
        return "the trainer's files have changed" if before["sha256"] != now["sha256"] else ""
    git = before.get("git", "")
    return f"the run was by git revision {git}, the replay by {now['git']}" if git not in ("", now["git"]) else ""


def _names(start: Mapping[str, Any]) -> str:
    """Return the models of a start's devices, in words."""
    return ", ".join(sorted(start.get("devices", ()))) or "an unknown device"


def _overrides(request: Request) -> dict[str, Any]:
    """Return the keys that the replay has otherwise than the run, with the values of the replay."""
    before, now = (configs.flat(config.model_dump(mode="json")) for config in (request.recorded, request.config))
    changed = {key: value for key, value in now.items() if before[key] != value}
    return {key: value for key, value in changed.items() if configs.effect_of(key, None, value) == "bits"}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "rows": len(comparison.steps),
        "equal_before": comparison.equal_before,
        "figures": sorted(comparison.figures),
        "in_one_row_alone": sorted(comparison.one_sided),
        "differ": {
            name: drift.as_json()
            for name, drift in sorted(comparison.drifts.items(), key=lambda item: (item[0] != "loss", item[0]))
        },
    }


def _state(step: int, state: StateComparison) -> dict[str, Any]:
    word = "gone" if state.gone else "equal" if state.equal else "different"
    return {
        "step": step,
        "result": word,
        "sha256": state.sha256,
        "compared": state.compared,
        "unequal": {name: None if by is None else finite(by) for name, by in sorted(state.unequal.items())},
        "problem": shown(state.problem) if state.problem else "",
    }


def _losses_digest(plan: Plan) -> str:
    """Return the sha256 of the recorded losses that were compared, each on a line `step loss`, as JSON writes them."""
    text = "".join(f"{step} {json.dumps(row['loss'])}\n" for step, rows in sorted(plan.rows.items()) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def _anonymous(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a start ran on, without the names of hosts, which are nobody's business in a paper."""
    return {key: value for key, value in start.items() if key != "hosts"} | {"nodes": len(start.get("hosts", ()))}


def _from_headline(plan: Plan) -> dict[str, Any]:
    """Return what a run of an earlier revision records: versions and git revision."""
    versions, git = code.read_headline(read_text(RunPaths(plan.folder).config).partition("\n")[0])
    return {"versions": versions, "code": {"git": git}}
