"""Read a cluster profile, `slurm/clusters/*.yaml`: what a job asks of a site, checked like the trainer's config."""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

import slurm
from launcher import environment, passed_on
from moco_dist import config as configs
from moco_dist.config.paths import PathText
from moco_dist.config.section import Float, Int, Natural, Positive, Section
from moco_dist.errors import UserError, holds_password, shown

SHIPPED = Path(slurm.__file__).parent / "clusters"

_SECRET = "KEY|TOKEN|SECRET|PASSW"


def _one_word(text: str) -> str:
    if not re.fullmatch(r"[^\s'\"|]+", text) or not text.isprintable():
        raise ValueError("must be one word without quotes")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _cluster_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError("must be the name of one cluster")
    return text


Word = Annotated[str, AfterValidator(_one_word)]
Line = Annotated[str, AfterValidator(_one_line)]
PathLine = Annotated[PathText, AfterValidator(_one_line)]


class Container(Section):
    """The container that the job's Python runs in; it uses the copy of the code in the run directory."""

    image: PathLine
    """Image: a file, or what the runtime takes."""
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """apptainer exec --nv, or pyxis's srun --container-image."""
    mounts: tuple[PathLine, ...] = ()
    """Folders to mount, FROM[:TO]; the run directory must be among what the site mounts."""
    python: PathLine = "python3"
    """Python in the container."""


Event = Literal["end", "failure", "preemption", "first_step"]


class Notify(Section):
    """These are the people and programs that hear of a run's events. Nothing here can stop or fail a job."""

    events: tuple[Event, ...] = ("end", "failure")
    """end: the run is over, done or not; failure: a start failed; preemption: it is told to save before its time is up;
    first_step: its first figures are there."""
    command: tuple[PathLine, ...] = ()
    """Words of a command, which no shell reads; it gets the event as JSON on stdin, and in MOCO_DIST_EVENT_*."""
    webhook_variable: str | None = None
    """Variable of the shell that submits, with the URL that the event is posted to; the URL itself is a secret."""
    mail: Word | None = None
    """Address that SLURM writes to."""

    def mail_options(self) -> dict[str, str]:
        """Return the options by which sbatch has SLURM write a mail; it knows of no first step, but of a start."""
        types = {"end": "END", "failure": "FAIL", "preemption": "REQUEUE", "first_step": "BEGIN"}
        if self.mail is None:
            return {}
        return {"mail-user": self.mail, "mail-type": ",".join(types[event] for event in self.events)}


class Profile(Section):
    """The resources that a job asks a cluster for. Everything may be left out."""

    partition: Word | None = None
    """Partition; unset, the site's default."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features that the nodes must have."""
    exclude: tuple[Word, ...] = ()
    """Nodes that the job must not run on."""
    reservation: Word | None = None
    """Reservation to run in."""
    slurm_cluster: Annotated[str, AfterValidator(_cluster_name)] | None = None
    """The cluster, where SLURM knows several; unset, what SLURM_CLUSTERS says in the shell, or the local one."""
    gpus_per_node: Positive = 8
    """GPUs, and ranks, a node."""
    gpu_type: Word | None = None
    """SLURM's type of the GPUs, where a site has several."""
    cpus_per_gpu: Positive = 8
    """CPUs for each GPU."""
    memory_gib: Positive | None = None
    """Memory a node; unset, the site's default."""
    time_minutes: Annotated[Positive, Field(le=525_600)] = 1440
    """Time limit of one start; the job goes on after it by itself."""
    exclusive: bool = False
    """Whole nodes."""
    signal_seconds: Annotated[Int, Field(ge=15, le=3600)] = 120
    """The job is told to save this long before its time limit."""
    network_interface: Word | None = None
    """Network interface of NCCL and gloo."""
    min_nodes: Positive | None = None
    """Go on with as few nodes when one dies; unset, the job is requeued for as many as it asked for."""
    tasks: Literal["node", "rank"] = "node"
    """One task a node, which restarts workers by itself, or one task a rank, for debugging."""
    max_restarts: Natural = 2
    """Restarts of crashed workers within one start of the job."""
    check_nodes: bool = True
    """Check GPUs, memory, run directory and collectives ahead of each start; it takes a second."""
    environment: dict[str, str] = Field({})
    """Variables of the job, as they are written: nothing is expanded in them. The job's code stays first."""
    setup: tuple[Line, ...] = ()
    """Shell lines ahead of the job: module load ..."""
    container: Container | None = None
    """Container that the job runs in."""
    sbatch: Annotated[dict[str, str], BeforeValidator(functools.partial(passed_on.checked, "sbatch"))] = Field({})
    """Further options of sbatch, by their long names: gres, nodelist, mail-user ..."""
    srun: Annotated[dict[str, str], BeforeValidator(functools.partial(passed_on.checked, "srun"))] = Field({})
    """Further options of srun, which starts the tasks."""
    notify: Notify = Notify()
    """Who is told of the run's end, failures, preemptions and first step."""
    local_disk: Line = "/tmp"
    """Folder on a node's own disk that --stage unpacks the data into; ~ and $NAME are expanded there."""
    gpu_memory_gib: Annotated[Float, Field(gt=0)] | None = None
    """Memory of a GPU, for preflight."""
    gpu_tflops: Annotated[Float, Field(gt=0)] | None = None
    """Peak of a GPU in the run's precision, for preflight's estimate of the time."""


def load(name: str | None, overrides: Mapping[str, Any] = {}) -> Profile:
    """Read a profile and replace some of its keys.

    Args:
        name: a YAML file, or the name of a shipped profile; None: SLURM's defaults.
        overrides: values by key; those that are None do not count.

    Raises:
        UserError: whatever is wrong with it, in one line.
    """
    tree = merged(configs.read_tree(_find(name)) if name else {}, overrides)
    if not tree.get("slurm_cluster"):
        tree["slurm_cluster"] = environment.cluster_of_shell()
    if secret := next(_secrets(tree), None):  # its value is not to be shown either
        raise UserError(f"{secret}: a secret has no place in a file; export it in the shell that submits")
    variables = tree.get("environment")
    for variable in variables if isinstance(variables, dict) else ():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(variable)):
            raise UserError.of("environment", variable, "must be a name of a variable", "write NAME: value")
        if refusal := environment.refusal(str(variable)):
            raise UserError(f"environment = {variable}: {refusal}")
    _refuse_url(tree.get("notify"))
    return configs.validate(Profile, tree)


def _refuse_url(notify: object) -> None:
    """Refuse the URL of a webhook, and do not show it: who has it can write to it. Raises UserError."""
    for key, value in notify.items() if isinstance(notify, dict) else ():
        is_no_name = key == "webhook_variable" and not re.fullmatch(r"[A-Za-z_]\w*", str(value))
        if is_no_name or "://" in str(value):
            fix = "export it in the shell that submits, and write webhook_variable: NAME"
            raise UserError(f"notify.{key}: a webhook's URL is a secret, and has no place in a file; {fix}")


def merged(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a profile with overrides; options that are passed on come one by one. Raises UserError."""
    whole = {**tree, **{key: value for key, value in overrides.items() if value is not None}}
    for command in get_args(passed_on.Command):
        if overrides.get(command) and tree.get(command):
            before = passed_on.checked(command, tree[command])
            whole[command] = before | passed_on.checked(command, overrides[command])
    return whole


def _secrets(tree: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Find keys that are named like a secret, URLs with a password, and variables that a line of `setup` sets."""
    for key, value in tree.items():
        texts = value if isinstance(value, list) else [value]
        if re.search(_SECRET, str(key), re.IGNORECASE):
            yield f"{place}{key}"
        elif isinstance(value, dict):
            yield from _secrets(value, f"{place}{key}.")
        elif any(_has_password(str(text)) for text in texts):
            yield f"{place}{key}"
    lines = tree.get("setup")
    for line in lines if isinstance(lines, list) else [lines]:  # one line needs no list
        if secret := re.search(rf"(\w*(?:{_SECRET})\w*)=[\"']?[^$`\"'\s]", str(line), re.IGNORECASE):
            yield f"setup: {secret[1]}"


def _has_password(text: str) -> bool:
    """Return whether a text has a URL with a password, also without its scheme, as proxies are often written."""
    return holds_password(text) or bool(re.search(r"(^|=)[\"']?[^\s/@:$\"'=]+:[^\s/@$]+@(?!sha256:)[^\s/@]", text))


def usage() -> str:
    """Describe every key of a profile, with its default, its type and its meaning."""
    schema = Profile.model_json_schema()
    lines = ["A profile is a YAML file of these keys, each of which may be left out:", ""]
    parts = {"": schema, **{f"{key}.": schema["$defs"][key.capitalize()] for key in ("container", "notify")}}
    for prefix, section in parts.items():
        for key, values in section["properties"].items():
            default = f": {shown(values['default'])}" if "default" in values else ""
            meaning = values.get("description") or Profile.model_fields[key].description
            lines += [f"  {prefix}{key}{default}  ({_kind(values)})", f"      {meaning}"]
    return "\n".join(lines)


_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_LIMITS = {"gt": "above", "ge": "at least", "le": "at most"}


def _kind(values: Mapping[str, Any]) -> str:
    """Write in words which values a key takes, from its part of the JSON schema."""
    if "anyOf" in values:
        return " or ".join(map(_kind, values["anyOf"]))
    if "enum" in values:
        return " or ".join(values["enum"])
    match values.get("type"):
        case "array":
            return f"list of {_kind(values['items'])}"
        case "object":
            return f"NAME: {_kind(values['additionalProperties'])}"
        case None:
            return "keys of its own"
        case kind:
            limits = [f"{words} {values[limit]}" for limit, words in _LIMITS.items() if limit in values]
            return ", ".join([_KINDS[kind], *limits])


def _find(name: str) -> Path:
    path = Path(configs.expanded("--cluster", name))
    if path.is_file():
        return path
    shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path(), Path("slurm/clusters")) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
    raise UserError(f"--cluster {name}: no such file; give a YAML file or one of the shipped: {names}")
