"""Note in the run directory what a start runs on, so that two runs can be compared and a run be verified later."""

from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.ranks import devices, machine
from moco_dist.ranks.collectives import World
from moco_dist.run import provenance
from moco_dist.run.directory import RunDirectory


def note_start(
    run_dir: RunDirectory, config: Config, world: World, data: sources.Data, step: int, total_steps: int
) -> None:
    """Note machines, versions, code and data of this start; all ranks call it together, and rank 0 writes.

    Args:
        run_dir: opened by this job.
        config: of this start.
        world: the ranks.
        data: what they train on.
        step: steps done before this start.
        total_steps: length of the run by this start's config.
    """
    machines = world.gather_objects(machine.here(world.device))
    more = {
        "step": step,
        "total_steps": total_steps,
        "device": world.device.type,
        "exact": config.device.is_exact(on_cpu=not devices.runs_ahead(world.device)),
        "deterministic": config.device.deterministic,
        "data": data.identity._asdict(),
    }
    run_dir.note_start(lambda: provenance.describe(machines, machine.libraries(world.device), **more))
