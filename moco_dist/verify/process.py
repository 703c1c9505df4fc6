"""Run one process that verifies: from a valid request to its exit status."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from moco_dist import joint_work
from moco_dist.arguments import writing
from moco_dist.data import identity, sources
from moco_dist.engine import schedule
from moco_dist.errors import UserError, tell
from moco_dist.files import write_text
from moco_dist.methods.moco import MoCo
from moco_dist.ranks import collectives, devices, machine
from moco_dist.ranks.rank import Rank
from moco_dist.run import provenance, status
from moco_dist.run.directory import RunDirectory
from moco_dist.train import ends, initial_encoder, loop
from moco_dist.verify import replay, result
from moco_dist.verify.plan import Plan
from moco_dist.verify.request import Request


def run(request: Request, rank: Rank) -> int:
    """Replay what is requested, and write the result.

    Args:
        request: what is replayed.
        rank: this process.

    Returns:
        The exit status, the same on all ranks; raises whatever else goes wrong.
    """

    def work(world: collectives.World) -> int:
        try:
            return _verify(request, world)
        except ends.Stopped:
            rank.tell("moco_dist.verify: stopped on request; nothing is written")
            return status.EXIT_CODES["stopped"]

    return joint_work.run("moco_dist.verify", work, request.config, rank, request.config.run.hang_timeout_seconds)


def _verify(request: Request, world: collectives.World) -> int:
    """Replay, compare and tell. Raises UserError, on all ranks, and Stopped."""
    plan = world.from_first(lambda: request.plan)  # a running run may have gone on between two ranks' looks
    state, digest = world.agreed(lambda: replay.read_start(plan))
    data = sources.on_all_ranks(request.config, world, sources.load)
    world.agreed(lambda: _check_data(request, plan, state, data))
    begun = f"from {f'the checkpoint of step {plan.start}' if plan.start else 'the start'}"
    ranks = f"{world.size} {world.device.type} rank{'s' * (world.size > 1)}"
    world.tell(f"moco_dist.verify: replays {plan.steps} of {plan.folder} {begun}, on {ranks}")
    outcome = _replay(request, plan, world, data, state)
    machines = world.gather_objects(machine.here(world.device))
    exact = request.config.device.is_exact(on_cpu=not devices.runs_ahead(world.device))
    more = {"device": world.device.type, "exact": exact, "deterministic": request.config.device.deterministic}
    here = provenance.describe(machines, machine.libraries(world.device), **more, data=data.identity._asdict())
    return world.from_first(lambda: _tell(request, plan, digest, outcome, here))


def _replay(
    request: Request, plan: Plan, world: collectives.World, data: sources.Data, state: dict[str, Any]
) -> replay.Outcome:
    """Take the steps by the trainer's loop, in a folder of this process's own. Raises UserError, Stopped."""
    config, outcome = sources.with_statistics(request.config, data.train), replay.Outcome()
    if plan.start:  # the weights that it began from are in the checkpoint
        config = config.model_copy(update={"run": config.run.model_copy(update={"init_from": None})})
    start = world.from_first(lambda: initial_encoder.first_weights(config))
    encoder = world.agreed(lambda: initial_encoder.first_encoder(config, data, world, start))
    with tempfile.TemporaryDirectory(prefix="moco-dist-verify-") as name:
        folder, stop = Path(name), ends.StopRequest(None)
        run_dir = RunDirectory(folder)
        training = loop.Training(config.at(folder), world, request.layout, data, encoder, MoCo, run_dir, stop)
        training.checkpoints = replay.ReplayedCheckpoints(plan, folder, state, outcome, compares=world.rank == 0)
        length = schedule.total_steps(request.recorded.optim, training.epoch_steps)
        written = ends.Due(request.recorded, training.epoch_steps, length, evaluates=data.queries is not None)
        outcome.missing = replay.missing(plan, written)
        training.due = replay.ReplayDue(plan, config, training.epoch_steps, training.total)
        training.replay_to = plan.end
        training.open_tracker = lambda *_: replay.Recorder(plan, outcome)
        try:
            training.run()
        except ends.Diverged as end:
            outcome.diverged = str(end)
    return outcome


def _check_data(request: Request, plan: Plan, state: dict[str, Any], data: sources.Data) -> None:
    """Refuse other training images than the run's, as far as it records them, and no others. Raises UserError."""
    start = provenance.of_step(provenance.read(plan.folder), plan.start + 1) or {}
    begun = state.get("data") or start.get("data") or {}
    fields = identity.Identity._fields
    recorded = begun.keys() >= set(fields)  # else it is not, or damaged
    before = identity.Identity(*(begun[name] for name in fields)) if recorded else data.identity
    section = request.config.data
    key, value = ("data.root", section.root) if section.root else ("data.source", section.source)
    if before != data.identity:
        rule = f"has {data.identity}, and the run learned from {before}"
        raise UserError.of(key, value, rule, "name the folder of those images by data.root=FOLDER")
    if plan.evaluations and data.queries is None:
        rule = f"has no held-out images, and the run has evaluated on some after step {min(plan.evaluations)}"
        raise UserError.of(key, value, rule, "name a folder with both by data.root=FOLDER, or replay fewer steps")


def _tell(request: Request, plan: Plan, digest: str, outcome: replay.Outcome, here: dict[str, Any]) -> int:
    """Print the verdict, and write the result. Returns the exit status. Raises UserError."""
    content = result.of(request, plan, digest, outcome, here)
    for line in result.lines(content):
        print(line, flush=True)
    with writing(request.out):
        write_text(request.out, json.dumps(content, indent=1) + "\n")
    tell(f"moco_dist.verify: written to {request.out}")
    return result.EXIT_STATUS[content["result"]]
