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

A member is known by its values. Sent again with one more value, a file sends what is new alone.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher import job_ids, sending, sweeps
from launcher.checks import after, preflight
from launcher.checks.finding import Finding
from launcher.options import add_fresh_code, add_job_options, add_waits, changed, submission_of
from launcher.progress import counted
from launcher.record import Launch, Submission
from launcher.views import find, runs
from launcher.views.follow import follow
from launcher.views.table import show
from moco_dist import config as configs
from moco_dist.errors import UserError, some_names

_PARALLEL = 8
"""Members that run at once, where no option says otherwise."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    add_waits(parser)
    add_fresh_code(parser)
    parser.add_argument("--parallel", type=int, metavar="N", help=f"members that run at once ({_PARALLEL})")
    parser.add_argument("--dry-run", action="store_true", help="print the members, send nothing")
    parser.add_argument("--json", action="store_true", help="with status: a list of objects")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    match options.words:
        case ["status", folder]:
            return _status(Path(configs.expanded("DIR", folder)), as_json=options.json)
        case ["again", folder, *names]:
            _refuse_local(options)
            for option in ("after", "parallel"):
                if (value := getattr(options, option)) is not None:
                    raise UserError.of(f"--{option}", value, "goes with SWEEP.yaml alone", "drop it")
            return _again(Path(configs.expanded("DIR", folder)), names, options)
        case [file, *overrides] if "=" not in file:
            return _send(Path(configs.expanded("SWEEP.yaml", file)), overrides, options)
    raise UserError("sweep: takes SWEEP.yaml, status DIR or again DIR [MEMBER ...]; see sweep --help")


def _send(file: Path, overrides: list[str], options: argparse.Namespace) -> int:
    """Send the members that are new as one array."""
    parallel = _PARALLEL if options.parallel is None else options.parallel
    if parallel < 1:
        raise UserError.of("--parallel", parallel, "must be 1 or more", "use --parallel=8")
    _refuse_local(options)
    if not options.dry_run:
        sending.need_submitit()
    sweep = sweeps.read(file)
    plan = sweeps.plan(sweep, overrides, staged=options.stage is not None)
    if plan.repeated:
        print(f"note: given more than once, and sent once: {some_names(plan.repeated, 8)}", file=sys.stderr)
    submission = submission_of(options)
    dependency = after.dependency(options.after, submission.profile.slurm_cluster) if options.after else None
    changes = {"name": sweep.name, "sweep": str(sweep.folder), "after": dependency}
    submission = submission.model_copy(update=changes)
    if submission.least_nodes:
        nodes = f"{submission.least_nodes}-{submission.nodes}"
        raise UserError.of("--nodes", nodes, "members of an array have one number of nodes", "give one number")
    _check(plan.new, submission)
    if options.dry_run:
        print("\n".join(member.config.run.name for member in plan.new))
    _print_existing(sweep.folder, plan.existing)
    if options.dry_run:
        return 0
    if plan.new:
        _send_array(sweep.folder, plan.new, submission, parallel)
    launches = [*plan.existing, *(Launch(member.config.run_dir) for member in plan.new)]
    return follow(launches) if options.wait else 0


def _check(new: Sequence[sweeps.Member], submission: Submission) -> None:
    """Check new members before anything is written. Raises UserError, which names the first that cannot be sent."""
    run_dirs = [member.config.run_dir for member in new]
    runners = preflight.check_free(run_dirs, submission.profile.slurm_cluster)
    printed: set[Finding] = set()
    for member in counted(new, "members are checked"):
        config = member.config
        if not sending.checked(config, submission, printed, runners[config.run_dir]):
            raise UserError(f"member {config.run.name}: cannot be sent; mend the errors above")


def _print_existing(folder: Path, existing: Sequence[Launch]) -> None:
    """List the members that were sent before, and stay as they are."""
    members = runs.look(existing) if existing else []
    for run in members:
        print(f"{run.launch.run_dir.name}: sent before, {run.state}")
    if any(run.ended and run.state != "done" for run in members):
        print(f"failed ones are sent again by: python -m launcher sweep again {shlex.quote(str(folder))}")


def _refuse_local(options: argparse.Namespace) -> None:
    """Refuse to run a sweep on this machine. Raises UserError."""
    if options.local:
        raise UserError("--local: a sweep is a job array, which needs SLURM; send its members by submit --local")


def _send_array(folder: Path, members: Sequence[sweeps.Member], submission: Submission, parallel: int) -> None:
    """Send members as one array, and say where they are."""
    values = [member.values for member in members]
    submissions = sending.send_all(Launch(folder), [member.config for member in members], submission, parallel, values)
    array = job_ids.array(submissions[0].job)
    print(f"job array: {array}, {len(members)} members, {min(parallel, len(members))} at once")
    print(f"folder: {folder} (python -m launcher sweep status {shlex.quote(str(folder))})")


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
    if options.wait and not refused:
        return follow([members[name].launch for name in chosen])
    return max(codes.values(), default=0)


def _members(folder: Path) -> list[Launch]:
    """List the members of a sweep. Raises UserError."""
    members = find.right_inside(folder)
    if not members:
        raise UserError.of("DIR", folder, "holds no members of a sweep", "give the folder that sweep has printed")
    return members
