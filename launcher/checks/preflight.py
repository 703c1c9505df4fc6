"""Check a job before it is sent, by all that can be known on a login node."""

import contextlib
import functools
import netrc
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from launcher import elastic, environment, slurm, slurm_jobs
from launcher.checks import batch, dataset, estimate, finding, fit, notices, passed_on, site
from launcher.checks.dataset import Images
from launcher.checks.estimate import GIB, EncoderCost
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from launcher.record import Launch, Submission, refuse_others
from launcher.views import runs
from moco_dist import config as configs
from moco_dist import packages
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError, some_names
from moco_dist.run import checkpoints, lease

_OWN_DISKS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each node has for itself."""


def check(config: Config, submission: Submission, runners: Sequence[Finding] | None = None) -> list[Finding]:
    """Find what is wrong, doubtful or worth knowing about a job. Returns the errors first.

    Args:
        config: config of the run.
        submission: what is to be sent.
        runners: who is in the run directory, as `check_free` finds it; None: it is looked up.
    """
    findings, layout, cost = list[Finding](), None, None
    with ThreadPoolExecutor() as pool:  # SLURM and torch take their time while the disks are looked at
        cluster = submission.profile.slurm_cluster
        site_read = pool.submit(site.read, cluster) if submission.executor == "slurm" else None
        run_dir = config.run_dir.absolute()
        runner_check = pool.submit(check_free, [run_dir], cluster) if runners is None else None
        measured = pool.submit(estimate.encoder_cost, config)
        try:
            layout = configs.layout(config, submission.ranks)
        except UserError as error:
            findings.append(Finding("error", str(error)))
        images = dataset.count(config, staged=submission.stage is not None)
        findings += batch.check_nodes(config, submission, layout)
        findings += batch.check_data(config, images)
        findings += dataset.check(config, submission.stage)
        try:
            cost = measured.result()
        except estimate.Unmeasured as error:
            findings.append(finding.note(f"memory, time and size of a checkpoint are not estimated: {error}"))
        findings += _check_directory(config, images, cost)
        findings += _check_resumed(config, layout)
        findings += batch.check_resources(config, submission.profile, layout, images, cost)
        findings += _check_tracking(config, submission.profile)
        findings += _check_sender()
        findings += _check_shell()
        findings += _check_variables(submission.profile)
        findings += notices.check(submission.profile)
        findings += runner_check.result()[run_dir] if runner_check else runners or ()
        try:
            findings += _check_site(site_read.result(), config, submission) if site_read else _check_local(submission)
        except slurm.NotInstalled as error:
            findings.append(Finding("error", str(error)))
        except (slurm.Unavailable, slurm.Refused) as error:
            findings.append(Finding("warning", f"the job is not checked against all of the site ({error})"))
    return sorted(findings, key=lambda one: ("error", "warning", "note").index(one.level))


def _check_site(there: site.Site, config: Config, submission: Submission) -> Iterator[Finding]:
    """Check the job against the cluster."""
    works = functools.partial(elastic.divides, config)
    yield from fit.check(there, submission.profile, submission.fewest_nodes, works, submission.nodes)
    yield from passed_on.check(submission.profile)
    names = {node.name for nodes in there.nodes.values() for node in nodes}
    if not all(name.startswith("127.") or name == socket.gethostname() for name in names):
        yield from _check_shared(config, submission)


def _check_local(submission: Submission) -> Iterator[Finding]:
    if submission.nodes > 1:
        yield finding.error("--nodes", submission.nodes, "--local runs on this machine alone", "use --nodes 1")
    profile = submission.profile
    for key, value in (("setup", profile.setup), ("container", profile.container and profile.container.image)):
        if value:
            rule = "is of no use to --local, which runs this Python in the environment of this shell"
            yield finding.warning(key, value, rule, "see to it in this shell, or send the run to SLURM")


def _check_shared(config: Config, submission: Submission) -> Iterator[Finding]:
    """Check whether the nodes see what the job needs."""
    profile, stage = submission.profile, submission.stage
    reads = config.data.root if config.data.source in ("mnist", "cifar10", "imagefolder") else None
    for key, place in (
        ("Python", None if profile.container else sys.prefix),
        ("run.dir", config.run_dir),
        ("--stage", stage),
        ("data.root", None if stage else reads),
        ("run.init_from", config.run.init_from),
    ):
        path = Path(place).resolve() if place else None
        own = [disk for disk in (*_OWN_DISKS, profile.local_disk) if path and path.is_relative_to(disk)]
        if path and own:
            rule = f"lies in {own[0]}, which each node has for itself"
            yield finding.warning(key, path, rule, "put it on a disk that the nodes share")


def _check_sender() -> Iterator[Finding]:
    """Check whether this machine can send the job. Only a warning, since slurm/train.sbatch needs no submitit."""
    if not packages.installed("submitit"):
        text = f"submitit is not installed here, and submit and sweep need it; {packages.fix('submitit')}"
        yield Finding("warning", text)


def _check_shell() -> Iterator[Finding]:
    """Name the variables of this shell that would have changed the job."""
    if names := environment.settings_left_out():
        rule = "set in this shell, and reach neither sbatch nor the job"
        fix = "use the profile or options, or export them in a line of setup"
        yield finding.warning("environment", some_names(names, 8), rule, fix)
    if job := environment.job_of_shell():
        yield finding.note(f"this shell is in job {job}, whose SLURM variables do not reach the new job")


def _check_variables(profile: Profile) -> Iterator[Finding]:
    """Name variables of the profile that look as if a shell were to read them, such as `LD_LIBRARY_PATH: /x:$HOME`."""
    for name, value in profile.environment.items():
        if re.search(r"\$[A-Za-z_{(]|^~|:~/", value):
            rule = "reaches the job as it is written, nothing is expanded in it"
            fix = f"write it as a line of setup: export {name}=..."
            yield finding.warning(f"environment.{name}", value, rule, fix)


def _check_tracking(config: Config, profile: Profile) -> Iterator[Finding]:
    """Check whether the job will have the packages of sinks, and W&B will know who we are."""
    yield from map(finding.note, configs.overruled(config.track))
    for package in ("tensorboard", "trackio"):
        if getattr(config.track, package) and profile.container is None and not packages.installed(package):
            rule = f"{package} is not installed here, and the job runs this Python"
            fix = packages.fix(package, f"use track.{package}=false")
            yield finding.error(f"track.{package}", True, rule, fix)
    mode = config.track.wandb
    if mode != "disabled" and profile.container is None and not packages.installed("wandb"):
        rule = "wandb is not installed here, and the job runs this Python"
        fix = packages.fix("wandb", "use track.wandb=disabled")
        yield finding.error("track.wandb", mode, rule, fix)
        return
    if mode != "online" or any(os.environ.get(f"WANDB_{v}") for v in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    if not any(_in_netrc(Path(file), host) for file in files if file):
        rule = f"there is no key for {host}, so the run will be offline"
        yield finding.warning("track.wandb", "online", rule, "run wandb login, or export WANDB_API_KEY")


def _in_netrc(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _check_directory(config: Config, images: Images | None, cost: EncoderCost | None) -> Iterator[Finding]:
    """Check whether the run directory can be made and written, by this user alone, and has room."""
    run_dir = config.run_dir.absolute()
    if set(str(run_dir)) & set("%\\:") or not str(run_dir).isprintable():
        signs = r"SLURM and submitit read % in the names of logs, SLURM drops \, PYTHONPATH parts at :"
        rule = f"{signs}, and control characters do harm"
        yield finding.error("run.dir", repr(str(run_dir))[1:-1], rule, "choose another name")
    try:
        existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
        if existing == run_dir:
            refuse_others(run_dir)
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if not writable or os.statvfs(existing).f_flag & os.ST_RDONLY:
            yield finding.error("run.dir", run_dir, f"{existing} cannot be written to", "choose another")
        elif cost:
            yield from _check_room(config, existing, images, estimate.checkpoint_bytes(config, cost))
    except UserError as error:
        yield Finding("error", str(error))
    except OSError as error:
        yield finding.error("run.dir", run_dir, f"cannot be read: {error.strerror}", "choose another")


def check_free(run_dirs: Sequence[Path], cluster: str | None = None) -> dict[Path, list[Finding]]:
    """Find who runs in directories: an error where somebody does, a warning where nobody can tell, else nothing."""
    launches = [launch for launch in map(Launch, run_dirs) if _is_sent(launch)]
    run_by_dir = dict(zip((launch.run_dir for launch in launches), runs.look(launches), strict=True))
    queued = runs.queued_for(run_dirs, cluster)
    return {run_dir: _check_free(run_dir, run_by_dir.get(run_dir), queued.get(run_dir)) for run_dir in run_dirs}


def _is_sent(launch: Launch) -> bool:
    with contextlib.suppress(OSError):  # told by the check of the directory
        return launch.job_file.is_file()
    return False


def _check_free(run_dir: Path, now: runs.Run | None, job: slurm_jobs.Job | None) -> list[Finding]:
    """Find who runs in a directory, of which SLURM has told how its run stands, and which job is for it."""
    key = "run.dir"
    if now and now.live and now.submission:
        name = f"process {now.submission.job}" if now.local else f"job {now.submission.job}"
        fix = f"wait for it, or python -m launcher cancel {now.name}"
        return [finding.error(key, run_dir, f"its {name} is {now.state}, a second one cannot join", fix)]
    if now and not now.confirmed and now.submission:
        rule = f"SLURM does not tell whether its job {now.submission.job} lives ({now.slurm_error})"
        return [finding.warning(key, run_dir, rule, "if it does, the new one cannot start")]
    if job:
        fix = f"wait for it, or python -m launcher cancel {job.id}"
        return [finding.error(key, run_dir, f"job {job.id} in the queue is for it, a second one cannot join", fix)]
    if writer := lease.held_by(run_dir):
        return [finding.error(key, run_dir, f"{writer} is writing to it", "wait for it, or stop it")]
    return []


def _check_resumed(config: Config, layout: Layout | None) -> Iterator[Finding]:
    """Check whether a run that was begun may go on under this config."""
    launch = Launch(config.run_dir.absolute())
    try:
        step, last = launch.checkpoint_step(), launch.submission()
    except (UserError, OSError):
        return  # the directory is another's, which was said
    if not step:
        return
    if config.run.resume == "never":
        yield finding.error("run.resume", "never", f"{launch.run_dir} holds a run", "use another run.name")
    elif layout and launch.paths.config.is_file():
        yield from _check_curve(config, layout, launch, last)
        end = ", and was done; it goes on only if it is longer now" if launch.status().state == "done" else ""
        yield finding.note(f"the run in {launch.run_dir} goes on from step {step}{end}")


def _check_room(config: Config, existing: Path, images: Images | None, checkpoint_bytes: int) -> Iterator[Finding]:
    """Check whether the checkpoints find room on the disk of an existing folder. Raises OSError."""
    run_dir, free = config.run_dir.absolute(), shutil.disk_usage(existing).free
    held = checkpoints.CheckpointIndex(Launch(run_dir).paths.checkpoints).size()
    count = config.checkpoint.keep + 1 + _milestones(config, images)  # one more while it is written
    need, size = checkpoint_bytes * count - held, checkpoint_bytes / GIB
    rule = f"checkpoints of {size:.2g} GiB need {need / GIB:.2g} GiB more, its disk has {free / GIB:.2g}"
    if need > free:
        yield finding.error("run.dir", run_dir, rule, "make room, or lower checkpoint.keep")
    elif need > free / 2:
        yield finding.warning("run.dir", run_dir, rule, "make room")


def _milestones(config: Config, images: Images | None) -> int:
    """Count the checkpoints that stay for good."""
    optim, every = config.optim, config.checkpoint.milestone_epochs
    if every is None:
        return 0
    if optim.steps is None:
        return optim.epochs // every
    return optim.steps // max(1, images.count // optim.global_batch) // every if images else 0


def _check_curve(config: Config, layout: Layout, launch: Launch, last: Submission | None) -> Iterator[Finding]:
    """Check that the config does not change the curve of the run that goes on."""
    try:
        begun = configs.load(launch.paths.config)
        before = last.ranks if last else layout.ranks
        groups = begun.moco.bn_groups or before * begun.optim.accumulate
        of_begun = begun.model_dump(mode="json")
        config = configs.with_decoder(config, of_begun)
        configs.check_resumable(of_begun, begun.optim.global_batch // groups, config, layout)
    except UserError as error:
        yield Finding("error", str(error))
