"""Hand jobs to submitit: to sbatch with the parameters of a profile, or to this machine."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from submitit import Job
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

from launcher import environment, job_ids, passed_on, slurm
from launcher.cluster import Profile
from launcher.job.task import Task
from launcher.record import Launch, Submission
from moco_dist.run.lease import process_start


class Sbatch(SlurmExecutor):
    """Send jobs by sbatch, with a profile's parameters.

    Args:
        launch: what `status` knows the job by: the record of its run, or of the sweep that it is a member of.
        submission: what is sent.
        dependency: other jobs to wait for, in sbatch's words.
        parallel: members of an array that run at once.
    """

    def __init__(
        self, launch: Launch, submission: Submission, dependency: str | None = None, parallel: int = 256
    ) -> None:
        super().__init__(folder=launch.submitit, python=_python(submission.profile))
        comment, parameters = str(launch.run_dir), _sbatch(submission, str(launch.code(submission)), dependency)
        # A container has no SLURM commands, so this is Python on the node itself.
        after = f"{shlex.quote(sys.executable)} -m launcher.after {shlex.quote(comment)}"
        if submission.least_nodes:
            parameters["setup"] += _sizing(comment)
            parameters["srun_args"].append(f"--ntasks-per-node={parameters.pop('ntasks_per_node')}")  # else one node
        lines = ["code=$?", f'[ "$code" = 0 ] || [ "$code" = 2 ] || {after} "$code"', 'exit "$code"']
        self.update_parameters(**parameters, comment=comment, array_parallelism=parallel, teardown=lines)

    @classmethod
    def affinity(cls) -> int:
        """Tell submitit that SLURM is here: a dry run needs none, and preflight says so where it is missing."""
        return 2

    def _num_tasks(self) -> int:
        return 1 if isinstance(self.parameters["nodes"], str) else super()._num_tasks()

    def text(self) -> str:
        """Return the script that sbatch is given."""
        return self._make_submission_file_text(self._submitit_command_str, "")

    def send(self, tasks: Sequence[Callable[[], Any]]) -> list[str]:
        """Hand jobs to sbatch, more than one as an array; if it refuses, no file of theirs is left.

        Returns:
            Their numbers.

        Raises:
            slurm.Refused: sbatch has failed.
        """
        before = set(self.folder.iterdir()) if self.folder.is_dir() else set()
        try:
            return self._send(tasks)
        except BaseException:
            for file in set(self.folder.iterdir()) - before if self.folder.is_dir() else ():
                if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_\w+\.sh", file.name):
                    file.unlink(missing_ok=True)
            raise

    def _send(self, tasks: Sequence[Callable[[], Any]]) -> list[str]:
        """Hand jobs to sbatch, as `send` does, but leave submitit's files behind where it refuses them."""
        named = self.parameters["additional_parameters"].get("clusters")
        variables = {name: named for name in ("SBATCH_CLUSTERS", "SLURM_CLUSTERS") if named and name in os.environ}
        try:
            with (  # submitit prints what it raises; a variable would beat the script
                contextlib.redirect_stderr(io.StringIO()),
                environment.only_for_slurm(**variables),
                self.batch(),
            ):
                jobs: list[Job[Any]] = [self.submit(task) for task in tasks]
            return [job.job_id for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            if slurm.is_unconfigured(str(error)):
                raise slurm.Refused(f"sbatch: {slurm.UNCONFIGURED}") from None
            lines = [line for line in str(error).splitlines() if line.strip()] or ["sbatch failed"]
            raise slurm.Refused(next((line for line in lines if "error:" in line), lines[0]).strip()) from None


class EvaluationSbatch(Sbatch):
    """Send the job that evaluates a run; its comment is not the run directory, by which `status` knows the run's own.

    Args:
        launch: the run's record.
        submission: what is sent.
        dependency: the run's job, in sbatch's words; None where the run is done.
    """

    def __init__(self, launch: Launch, submission: Submission, dependency: str | None) -> None:
        SlurmExecutor.__init__(self, folder=launch.evaluation, python=_python(submission.profile))
        parameters = _sbatch(submission, str(launch.code(submission)), dependency)
        self.update_parameters(**parameters, comment=f"evaluate {launch.run_dir}")


def _sbatch(submission: Submission, code: str, dependency: str | None) -> dict[str, Any]:
    """Return the parameters of sbatch and srun, under submitit's names."""
    profile = submission.profile
    by_rank = profile.tasks == "rank"
    cpus = profile.cpus_per_gpu * (1 if by_rank else profile.gpus_per_node)
    gpus = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else str(profile.gpus_per_node)
    srun = [f"--cpus-per-task={cpus}", f"--kill-on-bad-exit={int(by_rank)}"]  # since 22.05 srun inherits no CPUs
    srun.append("--export=ALL")
    extra: dict[str, Any] = {"requeue": True, "export": "ALL", "chdir": code}
    if job_ids.on_cluster(profile.slurm_cluster):
        extra["clusters"] = profile.slurm_cluster
    if dependency:
        extra["kill-on-invalid-dep"] = "yes"  # else it would wait for ever
    if profile.min_nodes:
        extra["no-kill"] = True
        srun.append("--no-kill")
    if profile.reservation:
        extra["reservation"] = profile.reservation
    if profile.container and profile.container.runtime == "pyxis":
        srun.append(f"--container-image={profile.container.image}")
        srun += [f"--container-mounts={','.join(profile.container.mounts)}"] if profile.container.mounts else []
    extra.update(profile.notify.mail_options() | passed_on.words(profile.sbatch))
    srun += [f"--{name}" + f"={value}" * (value is not True) for name, value in passed_on.words(profile.srun).items()]
    # By this the job's Python finds its own copy of the code, and no other.
    path = f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}"
    parameters = {
        "job_name": submission.name,
        **profile.model_dump(include={"partition", "account", "qos", "constraint"}),
        "exclude": ",".join((*profile.exclude, *submission.left_out)) or None,
        "time": profile.time_minutes,
        "nodes": f"{submission.least_nodes}-{submission.nodes}" if submission.least_nodes else submission.nodes,
        "ntasks_per_node": profile.gpus_per_node if by_rank else 1,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus if passed_on.gpus(profile.sbatch) is None else None,
        "mem": f"{profile.memory_gib}G" if profile.memory_gib else None,
        "exclusive": profile.exclusive or None,
        "signal_delay_s": profile.signal_seconds,
        "dependency": dependency,
        "stderr_to_stdout": True,
        "setup": [*profile.setup, path, "export PYTHONSAFEPATH=1"],
        "srun_args": srun,
        "additional_parameters": extra,
    }
    return {name: value for name, value in parameters.items() if value is not None} | {"wckey": None}


def _sizing(folder: str) -> list[str]:
    """Return lines of the batch script that keep as many nodes as the run can use, and tell srun and the tasks."""
    python = shlex.quote(sys.executable)
    names = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_NPROCS")
    return [
        f"nodes=$({python} -m launcher.resize {shlex.quote(folder)}) || exit $?",
        "export " + " ".join(f'{name}="${{nodes%% *}}"' for name in names),
        'export SLURM_JOB_NODELIST="${nodes#* }" SLURM_NODELIST="${nodes#* }"',
    ]


def _python(profile: Profile) -> str:
    """Return the command that starts Python, for the shell of the batch script."""
    container = profile.container
    if container is None:
        return shlex.quote(sys.executable)
    if container.runtime == "pyxis":
        return shlex.quote(container.python)
    mounts = [f"--bind={mount}" for mount in container.mounts]
    return shlex.join(["apptainer", "exec", "--nv", *mounts, container.image, container.python])


class _Local(LocalExecutor):
    """Run jobs by submitit's local executor, with a controller that outlives this process and its terminal."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        variables = {
            **environment.for_slurm(),
            "SUBMITIT_LOCAL_NTASKS": str(self.parameters["tasks_per_node"]),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * self.parameters["timeout_min"])),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        controller, no = [sys.executable, "-m", "submitit.local._local", str(self.folder)], subprocess.DEVNULL
        process = subprocess.Popen(controller, env=variables, stdin=no, stdout=no, stderr=no, start_new_session=True)
        tasks = list(range(self.parameters["tasks_per_node"]))
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=tasks)


def send_locally(launch: Launch, task: Task) -> Submission:
    """Start a job on this machine. Returns its submission with the process that runs it."""
    submission, profile = task.submission, task.submission.profile
    tasks = profile.gpus_per_node if profile.tasks == "rank" else 1
    executor = _Local(folder=launch.submitit)
    minutes = float(profile.time_minutes)
    executor.update_parameters(timeout_min=minutes, tasks_per_node=tasks, signal_delay_s=profile.signal_seconds)
    path = environment.python_path(launch.code(submission))
    with environment_variables(PYTHONPATH=path, PYTHONSAFEPATH="1"):
        job = executor.submit(task)
    return submission.model_copy(update={"job": job.job_id, "started": process_start(int(job.job_id))})
