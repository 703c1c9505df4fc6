"""Check the options that a profile or a command line passes on to sbatch and srun, and write them as words.

What the launcher itself decides is refused, with its own key or option for it.
"""

import re
from collections.abc import Mapping
from typing import Literal

from moco_dist.errors import UserError

Command = Literal["sbatch", "srun"]

_TASKS = "use gpus_per_node, and tasks: node or rank"
_GPUS = "use gpus_per_node and gpu_type, or gres"
_OUTPUT = "drop it: what a job writes is in launch/ of its run directory"
_REQUEUE = "drop it: a job goes on with its run, also where a site forbids requeues"
_ENVIRONMENT = "use environment, or export the variable in the shell that submits"
_PRINTS = "drop it: it changes what the command prints, or whether it sends anything"
_USER = "drop it: a job runs as the user who sends it"

_OWN = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude", "reservation"), "use the key {name}"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu", "tasks-per-node"), _TASKS),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "use cpus_per_gpu"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), _GPUS),
    **dict.fromkeys(("output", "error", "input", "open-mode"), _OUTPUT),
    **dict.fromkeys(("export", "export-file", "get-user-env"), _ENVIRONMENT),
    **dict.fromkeys(("dependency", "kill-on-invalid-dep"), "use --after"),
    **dict.fromkeys(("requeue", "no-requeue"), _REQUEUE),
    **dict.fromkeys(("help", "usage", "version", "quiet", "verbose", "parsable", "test-only"), _PRINTS),
    **dict.fromkeys(("uid", "gid"), _USER),
    "job-name": "use --job-name",
    "nodes": "use --nodes",
    "mem": "use memory_gib",
    "time": "use time_minutes",
    "signal": "use signal_seconds",
    "chdir": "drop it: a job runs in its copy of the code",
    "comment": "drop it: by the comment, status knows whose job it is",
    "no-kill": "use min_nodes",
    "clusters": "use slurm_cluster",
}
_OWN_OF: dict[Command, dict[str, str]] = {
    "sbatch": {
        **_OWN,
        "array": "use python -m launcher sweep",
        "wait": "use submit --wait",
        "wrap": "drop it: the launcher writes the batch script",
    },
    "srun": {
        **_OWN,
        **dict.fromkeys(("container-image", "container-mounts"), "use container, with runtime: pyxis"),
        **dict.fromkeys(("jobid", "pty", "multi-prog", "no-allocate", "het-group"), "drop it: the step is the job's"),
        "kill-on-bad-exit": "use max_restarts, and tasks: node or rank",
        "unbuffered": "drop it: it is set already",
        "immediate": "drop it: the job has its nodes already",
    },
}


def checked(command: Command, options: object) -> dict[str, str]:
    """Check options by name, as a profile has them. An option without a value is `true`; `false` takes one back.

    Args:
        command: which of SLURM's commands they are for.
        options: their values; a list is joined by commas.

    Returns:
        Their values as text, under SLURM's long names without dashes.

    Raises:
        UserError: one is the launcher's own, or its name or value cannot be passed on.
    """
    if not isinstance(options, Mapping):
        raise UserError.of(command, options, "must be options with values", f"write {command}: {{gres: 'nvme:1'}}")
    texts = {}
    for key, value in options.items():
        name = str(key).strip().lstrip("-").replace("_", "-")
        place = f"{command}.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) == 1:
            raise UserError.of(command, str(key), "must be the long name of an option", "write it as in nodelist: n7")
        if fix := _fix(command, name):
            raise UserError.of(place, value, "is the launcher's own to set", fix)
        texts[name] = _text(place, value)
    return texts


def words(options: Mapping[str, str]) -> dict[str, str | bool]:
    """Return the options that are given, with their values: True for one that takes none."""
    return {name: value == "true" or value for name, value in options.items() if value != "false"}


def gpus(options: Mapping[str, str]) -> int | None:
    """Return how many GPUs of a node the option `gres` asks for; None where it names no GPUs."""
    resources = [re.split(r"[:=/]", part.partition("(")[0]) for part in options.get("gres", "").split(",")]
    resources = [parts[1:] if parts[0] == "gres" else parts for parts in resources]
    numbers = [int(parts[-1]) if parts[-1].isdecimal() else 1 for parts in resources if parts[:1] == ["gpu"]]
    return sum(numbers) if numbers else None


def _fix(command: Command, name: str) -> str | None:
    """Say what to use instead of an option of the launcher's own; None for another one. SLURM takes short forms too."""
    own = _OWN_OF[command]
    if name in own:
        return own[name].format(name=name)
    whole = next((one for one in own if one.startswith(name) and name != "container"), None)
    return None if whole is None else f"it is short for {whole}: {own[whole].format(name=whole)}"


def _text(place: str, value: object) -> str:
    """Return a value as text of one line. Raises UserError."""
    if isinstance(value, list | tuple) and value and not any(isinstance(one, list | dict) for one in value):
        return ",".join(_text(place, one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    if not text or not text.isprintable():
        fix = "write true for an option that takes no value"
        raise UserError.of(place, value, "must be one line of printable characters, or a list", fix)
    return text
