"""Ask sbatch and srun themselves whether they know the options that are passed on to them. No job is sent for it."""

from collections.abc import Iterator

from launcher import passed_on, slurm
from launcher.checks import finding
from launcher.checks.finding import Finding
from launcher.cluster import Profile


def check(profile: Profile) -> Iterator[Finding]:
    """Check the options of a profile that sbatch and srun get as they are."""
    options: dict[passed_on.Command, dict[str, str]] = {"sbatch": profile.sbatch, "srun": profile.srun}
    for command, texts in options.items():
        for name, value in passed_on.words(texts).items():
            if cause := _refusal(command, name, value):
                yield finding.error(f"{command}.{name}", texts[name], cause, f"see {command} --help")
    number = passed_on.gpus(profile.sbatch)
    if number is not None and number != profile.gpus_per_node:
        rule = f"asks for {number} GPUs a node, gpus_per_node for {profile.gpus_per_node}"
        yield finding.error("sbatch.gres", profile.sbatch["gres"], rule, f"use --gpus-per-node {number}")


def _refusal(command: passed_on.Command, name: str, value: str | bool) -> str | None:
    """Return why a command does not take an option; None where it does, or nobody can tell here."""
    word = f"--{name}" if value is True else f"--{name}={value}"
    try:
        slurm.call(command, word, "--help")  # options are read in order, and --help ends the command before it acts
    except slurm.Refused as error:
        return str(error).removeprefix(f"{command}: ").removeprefix(f"{command}: ")
    except slurm.Unavailable:
        return None
    return None
