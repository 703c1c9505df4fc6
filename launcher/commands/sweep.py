"""Send a grid or a list of configs as one job array, look at it, send failed members again.

python -m launcher sweep SWEEP.yaml [section.key=value ...] --cluster PROFILE [--parallel N]
python -m launcher sweep status DIR
python -m launcher sweep again DIR [MEMBER ...] [--time-minutes MINUTES, or another option of the job]

A sweep file:

  name: temperatures              # unset, the file's name; the folder is runs/<name>, and the group at W&B
  config: configs/cifar10.yaml    # what the members share; unset, the default config
  grid:                           # every combination of the values
    moco.temperature: [0.1, 0.2]
    optim.lr: [0.03, 0.06]
  cases:                          # each of them, with every combination of the grid
    - {moco.symmetric: true, optim.epochs: 100}
    - {moco.symmetric: false, optim.epochs: 200}
"""

import argparse
import itertools
import math
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from launcher import sending
from launcher.checks.finding import Finding
from launcher.options import add_fresh_code, add_job_options, changed, submission_of
from launcher.record import Launch, Submission, refuse_others
from launcher.views import find, runs
from launcher.views.table import show
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.config.paths import PathText
from moco_dist.config.section import FileName, Section
from moco_dist.errors import UserError, shown

_MOST_MEMBERS = 1000
_OWN = ("run.name", "run.dir", "track.group")
"""What a sweep sets itself for each member."""

Values = dict[str, Any]


class Sweep(Section):
    """A sweep file."""

    name: FileName = "sweep"
    """Name of the sweep."""
    config: PathText | None = None
    """Config that the members share."""
    grid: dict[str, list[Any]] = Field({})
    """Values by key; every combination of them."""
    cases: tuple[Values, ...] = ()
    """Sets of values by key."""

    def members(self) -> list[Values]:
        """List the values of each member, in order."""
        keys = self.grid.keys()
        combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [{**case, **combination} for case in self.cases or ({},) for combination in combinations]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    add_fresh_code(parser)
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="members that run at once (8)")
    parser.add_argument("--dry-run", action="store_true", help="print the members, send nothing")
    parser.add_argument("--json", action="store_true", help="with status: a list of objects")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    match options.words:
        case ["status", folder]:
            return _status(Path(configs.expanded("DIR", folder)), as_json=options.json)
        case ["again", folder, *names]:
            _refuse_local(options)
            return _again(Path(configs.expanded("DIR", folder)), names, options)
        case [file, *overrides] if "=" not in file:
            return _send(Path(configs.expanded("SWEEP.yaml", file)), overrides, options)
    raise UserError("sweep: takes SWEEP.yaml, status DIR or again DIR [MEMBER ...]; see sweep --help")


def read(file: Path) -> Sweep:
    """Read a sweep file. Raises UserError."""
    if not file.is_file():
        raise UserError(f"sweep {file}: no such file; give a YAML file with `grid` or `cases`")
    tree = {"name": file.stem, **configs.read_tree(file)}
    sweep = configs.validate(Sweep, tree)
    if not sweep.grid and not sweep.cases:
        raise UserError(f"sweep {file}: has no members; add grid: {{optim.lr: [0.03, 0.06]}} or cases")
    for key, values in sweep.grid.items():
        if not values:
            raise UserError.of(f"grid.{key}", values, "must be a list of values", f"write {key}: [0.03, 0.06]")
    for key in (key for values in (sweep.grid, *sweep.cases) for key in values if key in _OWN):
        raise UserError(f"sweep {file}: sets {key}, which a sweep sets itself for each member; drop it")
    count = math.prod(map(len, sweep.grid.values())) * max(1, len(sweep.cases))
    if count > _MOST_MEMBERS:
        raise UserError(f"sweep {file}: has {count} members, {_MOST_MEMBERS} at most; make it smaller")
    return sweep


def member_name(number: int, values: Values) -> str:
    """Return the name of a member's folder, with its values: `03_temperature=0.1_lr=0.03`."""
    words = [f"{key.rpartition('.')[2]}={shown(value)}" for key, value in values.items()]
    return re.sub(r"[^\w.+=-]+", "-", "_".join([f"{number:02}", *words]))[:100]


def member_configs(sweep: Sweep, overrides: list[str], *, staged: bool) -> list[Config]:
    """Load the whole config of each member. Raises UserError, which names the member."""
    folder = Path("runs") / sweep.name
    members = []
    for number, values in enumerate(sweep.members()):
        name = member_name(number, values)
        where = {"run.name": name, "run.dir": str(folder / name), "track.group": sweep.name}
        try:
            config = configs.load(Path(sweep.config) if sweep.config else None, overrides, {**values, **where})
            members.append(sending.absolute(config, staged=staged))
        except UserError as error:
            raise UserError(f"member {name}: {error}") from None
    return members


def _send(file: Path, overrides: list[str], options: argparse.Namespace) -> int:
    """Send all members as one array."""
    if options.parallel < 1:
        raise UserError.of("--parallel", options.parallel, "must be 1 or more", "use --parallel=8")
    _refuse_local(options)
    if not options.dry_run:
        sending.need_submitit()
    sweep = read(file)
    members = member_configs(sweep, overrides, staged=options.stage is not None)
    folder = (Path("runs") / sweep.name).absolute()
    submission = submission_of(options).model_copy(update={"name": sweep.name, "sweep": str(folder)})
    if submission.least_nodes:
        nodes = f"{submission.least_nodes}-{submission.nodes}"
        raise UserError.of("--nodes", nodes, "members of an array have one number of nodes", "give one number")
    printed: set[Finding] = set()
    for config in members:
        if not sending.checked(config, submission, printed):
            raise UserError(f"member {config.run.name}: cannot be sent; mend the errors above")
    if options.dry_run:
        print("\n".join(config.run.name for config in members))
        return 0
    job = _send_array(folder, members, submission, options.parallel)
    print(f"job array: {job}, {len(members)} members, {min(options.parallel, len(members))} at once")
    print(f"folder: {folder} (python -m launcher sweep status {shlex.quote(str(folder))})")
    return 0


def _refuse_local(options: argparse.Namespace) -> None:
    """Refuse to run a sweep on this machine. Raises UserError."""
    if options.local:
        raise UserError("--local: a sweep is a job array, which needs SLURM; send its members by submit --local")


def _send_array(folder: Path, members: list[Config], submission: Submission, parallel: int) -> str:
    """Prepare every member's run directory, and hand them to sbatch. Returns the array's id."""
    shared = Launch(folder)
    try:
        for place in (folder, shared.folder, shared.submitit):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            refuse_others(place)
    except OSError as error:
        rule = f"{folder} cannot be written: {error.strerror}"
        raise UserError.of("name", folder.name, rule, "choose another") from None
    sent = sending.send_all(shared, members, submission, parallel=parallel)
    return sent[0].job.partition("_")[0]


def _status(folder: Path, *, as_json: bool) -> int:
    """Print a table of the members, the best kNN first."""
    members = runs.look(_members(folder))
    members.sort(key=lambda run: run.figures.knn_top1 or 0.0, reverse=True)
    show(members, as_json=as_json, keep=["kNN"])
    return 0


def _again(folder: Path, names: list[str], options: argparse.Namespace) -> int:
    """Send members again, each as a job of its own: those named, or all that ended without being done."""
    if not options.dry_run:
        sending.need_submitit()
    members = {run.launch.run_dir.name: run for run in runs.look_surely(_members(folder))}
    for name in names:
        if name not in members:
            raise UserError.of("MEMBER", name, f"is none of {folder}", f"there are {', '.join(members)}")
    chosen = names or [name for name, run in members.items() if run.ended and run.state != "done"]
    if not chosen:
        print("no member has failed", file=sys.stderr)
    if options.dry_run:
        print("\n".join(chosen))
        return 0
    codes, code_words = dict[str, int](), set[str]()
    for name in chosen:
        member, change = members[name], partial(changed, options=options)
        sent, codes[name] = sending.try_again(name, member.launch, change, fresh_code=options.fresh_code)
        if sent:
            print(f"{name}: job {sent.job}", flush=True)
            code_words.add(sending.code_in_words(member.submission, sent))
    for words in sorted(code_words):
        print(f"note: sent {words}", file=sys.stderr)
    if refused := [name for name, code in codes.items() if code]:
        print(f"launcher: {len(refused)} of {len(chosen)} were refused: {', '.join(refused)}", file=sys.stderr)
    return max(codes.values(), default=0)


def _members(folder: Path) -> list[Launch]:
    """List the members of a sweep. Raises UserError."""
    members = [launch for launch in find.list_runs([folder]) if launch.run_dir != folder.resolve()]
    if not members:
        raise UserError.of("DIR", folder, "holds no members of a sweep", "give the folder that sweep has printed")
    return members
