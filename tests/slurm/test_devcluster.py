"""The cluster in a directory: a real SLURM, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.devcluster import (
    Cluster,
    ClusterError,
    Misuse,
    Settings,
    directory,
    processes,
    programs,
)
from slurm.devcluster.__main__ import _parser, main
from slurm.devcluster.daemons import marks, taken_port
from slurm.devcluster.directory import Record, configuration

ROOT = Path(__file__).parents[2]
DIRTY = {"SLURM_JOB_ID": "1", "SLURM_CONF": "/x", "SBATCH_PARTITION": "x", "SUBMITIT_X": "1", "MOCO_X": "1"}


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's; pytest's own does not."""
    with tempfile.TemporaryDirectory(prefix="dc", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def folder(slurm_programs: None, short_path: Path) -> Iterator[Path]:
    """Give a folder in which a test may start a cluster of its own; it is stopped at the end."""
    path = short_path / "dc"
    yield path
    if (path / "cluster.json").exists():
        Cluster(path).stop()


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, with its output captured: a daemon that held the pipe would let this time out."""
    return subprocess.run(
        [sys.executable, "-m", "slurm.devcluster", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def submit(cluster: Cluster, script: str, *options: str) -> str:
    """Submit a bash script; its job id."""
    file = cluster.directory / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    return cluster.call("sbatch", "--parsable", "--output=/dev/null", *options, str(file)).strip()


@contextlib.contextmanager
def waiting_client(cluster: Cluster) -> Iterator[None]:
    """An srun outside of any job, which waits for its task."""
    command = ["srun", "--chdir=/", "sleep", "1000"]
    client = subprocess.Popen(command, env=cluster.environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        client.kill()
        client.wait()


def accounted(cluster: Cluster, job: str, field: str = "State") -> str:
    return cluster.call("sacct", "-X", "-n", "-P", f"--jobs={job}", f"--format={field}").strip()


def soon(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    processes.wait_for(what, condition, seconds)


def of(path: Path) -> set[int]:
    """Every process that has anything to do with a directory, but for this one."""
    matching = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(path).encode() in text:
            matching.add(int(process.name))
    return matching - {os.getpid()}


def sleepers(pids: set[int]) -> set[int]:
    """Those that run `sleep`; of a zombie there is no command line."""
    matching = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"sleep\x001000" in Path(f"/proc/{pid}/cmdline").read_bytes():
                matching.add(pid)
    return matching


def sockets(path: Path) -> list[str]:
    return [line for line in Path("/proc/net/unix").read_text().splitlines() if str(path) in line]


def test_job_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES' > {out}"
    job = submit(cluster, script, "--nodes=2", "--gpus-per-node=2", "--wait")
    assert sorted(out.read_text().splitlines()) == [f"{node} 0,1" for node in cluster.nodes]
    soon("accounting", lambda: accounted(cluster, job) == "COMPLETED")
    assert "gres/gpu=4" in accounted(cluster, job, "AllocTRES")


def test_preemption(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""
        trap 'echo USR2 >> {log}' USR2
        echo restart $SLURM_RESTART_COUNT >> {log}
        while [ -z "$SLURM_RESTART_COUNT" ]; do sleep 0.1; done"""
    job = submit(cluster, script, "--nodes=2", "--exclusive", "--signal=B:USR2")
    soon("first start", log.exists)
    submit(cluster, "exit", "--nodes=2", "--exclusive", "--partition=high")
    soon("accounting", lambda: accounted(cluster, job) == "COMPLETED")
    assert log.read_text().splitlines() == ["restart", "USR2", "restart 1"]
    cluster.wait_idle()


def test_node_dies_and_returns(cluster: Cluster) -> None:
    first, second = cluster.nodes
    hiding = "setsid sleep 1000 & setsid env -i /bin/sleep 1000 & wait"
    job = submit(cluster, f"srun bash -c '{hiding}'", "--nodes=2", "--no-requeue")

    def tasks(node: str) -> set[int]:
        return sleepers(processes.with_descendants(processes.find(marks(cluster.directory, node))))

    soon("tasks", lambda: len(tasks(first)) == len(tasks(second)) == 2)
    dying, living = tasks(second), tasks(first)
    cluster.kill_node(second)
    assert not sleepers(dying)
    assert sleepers(living) == living
    assert not cluster.status().up and not cluster.status().daemons[f"slurmd.{second}"]
    soon("node down", lambda: cluster.node_states()[second].startswith("down"))
    soon("end of the job", lambda: accounted(cluster, job) == "NODE_FAIL")
    assert run("start-node", cluster.directory, second).returncode == 0
    cluster.wait_idle()
    assert cluster.status().up
    assert cluster.call("srun", "--nodelist", second, "printenv", "SLURMD_NODENAME") == f"{second}\n"


def test_daemons_hold_nothing_open_of_the_callers(cluster: Cluster) -> None:
    pids = processes.find(marks(cluster.directory), "munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
    assert len(pids) == 6
    for standard in (Path(f"/proc/{pid}/fd/{number}") for pid in pids for number in range(3)):
        assert str(standard.readlink()).startswith(("/dev/null", f"{cluster.directory}/log/"))


def test_environment_is_the_callers_without_a_jobs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in DIRTY.items():
        monkeypatch.setenv(key, value)
    assert cluster.environment["SLURM_CONF"] == str(cluster.directory / "etc" / "slurm.conf")
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & set(cluster.environment)
    assert cluster.environment["PATH"] == os.environ["PATH"]
    with pytest.raises(ClusterError, match=r"scontrol show job 99999: exit status 1: .*Invalid job id"):
        cluster.call("scontrol", "show", "job", "99999")


def test_start_and_stop_leave_nothing(folder: Path) -> None:
    started = run("start", folder, "--no-accounting", "--nodes=1", "--gpus=0", **DIRTY)
    assert started.returncode == 0, started.stderr
    assert f"export SLURM_CONF={folder}/etc/slurm.conf" in started.stdout
    assert folder.stat().st_mode & 0o777 == 0o700
    for pid in of(folder):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert not [key for key in DIRTY if f"{key}={DIRTY[key]}" in environment.split("\0")]
    assert "runs already" in run("start", folder).stdout
    assert "other settings" in run("start", folder, "--nodes=2").stderr
    assert run("status", folder).returncode == 0

    cluster = Cluster(folder)
    job = submit(cluster, "trap '' TERM; setsid sleep 1000 & srun sleep 1000")
    with waiting_client(cluster):
        soon("tasks", lambda: len(processes.find(marks(folder, "127.0.0.11"), "sleep")) == 3)
        assert run("stop", folder).returncode == 0
        check_nothing_left(folder)
    assert run("status", folder).returncode == 1
    assert run("stop", folder).returncode == 0

    assert run("start", folder).returncode == 0
    assert cluster.call("squeue", "--noheader", "--format=%i %T") == ""
    assert int(submit(cluster, "sleep 1000")) == int(job) + 2


def test_crashed_daemons(folder: Path) -> None:
    cluster = Cluster(folder, Settings(accounting=False, nodes=1))
    cluster.start()
    crash(cluster, "munged")
    assert run("start", folder).stdout.startswith("started munged in")
    job = submit(cluster, "sleep 1000")
    with waiting_client(cluster):
        soon("tasks", lambda: len(processes.find(marks(folder, "127.0.0.11"), "sleep")) == 2)
        crash(cluster, "slurmctld")
        cluster.stop()
        check_nothing_left(folder)
    cluster.start()
    assert job in cluster.call("squeue", "--noheader", "--states=all", "--format=%i").split()


def crash(cluster: Cluster, daemon: str) -> None:
    processes.signal_all(processes.find(marks(cluster.directory), daemon), signal.SIGKILL)
    soon("death", lambda: not cluster.status().daemons[daemon])
    assert run("status", cluster.directory).returncode == 1


def check_nothing_left(folder: Path) -> None:
    record = directory.read(folder)
    assert record is not None
    assert of(folder) == set()
    assert sockets(folder) == []
    assert taken_port(record.port, record.settings.port_count) is None


@pytest.mark.skipif(os.geteuid() != 0 or processes.freezer() is None, reason="needs root and cgroup v1")
def test_cgroups_and_hostnames(folder: Path) -> None:
    cluster = Cluster(folder, Settings(accounting=False, nodes=1, proctrack="cgroup", own_hostnames=True))
    cluster.start()
    node = cluster.nodes[0]
    assert cluster.call("srun", "hostname") == f"{node}\n" != f"{socket.gethostname()}\n"
    submit(cluster, "(setsid env -i /bin/sleep 1000 &); sleep 1000")  # the first has no parent, and no environment
    soon("tasks", lambda: len(sleepers(processes.cgroup_pids(node))) == 2)
    tasks = processes.cgroup_pids(node)
    cluster.stop()
    check_nothing_left(folder)
    assert not sleepers(tasks)
    assert not processes.cgroup_exists(node)


def test_failed_start_is_undone(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "slurmd"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    failed = run("start", folder, "--no-accounting", PATH=f"{tmp_path}:{os.environ['PATH']}")
    log = folder / "log" / "slurmd.127.0.0.11.log"
    assert failed.returncode == 1
    assert failed.stderr == f"slurmd.127.0.0.11 did not start (exit status 1): {log}: no such luck\n"
    check_nothing_left(folder)


def test_port_in_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["start", str(folder), f"--port={port - 1}", "--no-accounting"]) == 2
    assert f"port = {port - 1}: needs 4 free ports from there on, and {port} is in use;" in capsys.readouterr().err


def test_the_cluster_beside_is_known_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert _parser().parse_args(["start", "b", "--beside", "a"]).beside == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "required: DIR"),
        (["start", "DIR", "--frob"], "--frob"),
        (["restart", "DIR"], "restart"),
        (["start", "DIR", "--nodes=0"], "nodes = 0: must be from 1 to 64; "),
        (["start", "DIR", "--nodes=two"], "nodes = two: must be a whole number; "),
        (["start", "DIR", "--port=80"], "port = 80: "),
        (["start", "DIR", "--proctrack=pgid"], "proctrack = pgid: is not known; choose linuxproc or cgroup"),
        (["start", "DIR" + 60 * "x"], "must have at most 59 bytes, for its sockets; choose a shorter path"),
        (["start", "DIR,x"], "; choose another name"),
        (["start", "/dev/null"], "DIR = /dev/null: is no directory; "),
        (["start", "/etc"], "DIR = /etc: "),
        (["stop", "DIR"], "DIR: holds no cluster; "),
        (["status", "DIR"], "DIR: holds no cluster; "),
        (["kill-node", "DIR", "127.0.0.11"], "DIR: holds no cluster; "),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(short_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(short_path.iterdir())


def test_unknown_node(cluster: Cluster) -> None:
    with pytest.raises(Misuse, match=r"NODE = n1: is no node of this cluster; choose 127.0.0.11 or 127.0.0.12"):
        cluster.kill_node("n1")


def test_missing_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SYSTEM_FOLDERS", ())
    assert main(["start", str(tmp_path / "dc")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "slurm-wlm munge slurmdbd mariadb-server; run as root: python -m slurm.devcluster install" in error


def test_preempt_signal_is_a_setting() -> None:
    for wanted in (True, False):
        text = configuration(Path("/x"), Record(Settings(preempt_signal=wanted), 20000))["slurm.conf"]
        assert ("SlurmctldParameters=preempt_send_user_signal" in text.splitlines()) == wanted
