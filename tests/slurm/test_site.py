"""Preflight against a real SLURM, which says itself whether it would take the job."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import cluster as profiles
from launcher import slurm
from launcher.checks import dataset, preflight, site
from launcher.checks.finding import Finding
from launcher.cluster import Profile
from launcher.executors import Sbatch
from launcher.nodes import hostnames
from launcher.record import Launch, Submission
from moco_dist import config as configs
from slurm.devcluster import Cluster
from tests.launcher.made import job_in, make_run
from tests.slurm.jobs import launcher

CONFIG = configs.load(Path("digits"), ["moco.bn_groups=null"])


@pytest.fixture(autouse=True)
def _here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SLURM's commands ask the devcluster, and nothing is remembered of it."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    site.read.cache_clear()
    dataset.look.cache_clear()
    yield
    site.read.cache_clear()


@pytest.fixture
def change(cluster: Cluster) -> Iterator[Any]:
    """Has scontrol update something, and puts it back."""
    before: list[tuple[str, ...]] = []

    def update(*words: str, back: tuple[str, ...]) -> None:
        before.append(back)
        cluster.call("scontrol", "update", *words)

    yield update
    for words in reversed(before):
        cluster.call("scontrol", *words)
    cluster.wait_idle()


def profile_of(**keys: Any) -> Profile:
    return profiles.load("devcluster", keys)


def check(run_dir: Path, nodes: int = 2, **keys: Any) -> list[Finding]:
    site.read.cache_clear()
    return preflight.check(*job_in(run_dir, CONFIG, profile_of(**keys), nodes))


def lines(findings: list[Finding], level: str = "error") -> list[str]:
    return [one.text for one in findings if one.level == level]


def slurm_takes(tmp_path: Path, nodes: int, **keys: Any) -> bool:
    """Tell whether SLURM would ever start such a job, by sbatch's own test of the text that submit sends."""
    sent = Sbatch(Launch(tmp_path), Submission(nodes=nodes, profile=profile_of(**keys)))
    text = sent.text()
    done = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True, timeout=30)
    assert "to start at" in done.stderr or done.returncode, done.stderr
    return done.returncode == 0


def test_the_site(cluster: Cluster) -> None:
    answers = site.read()
    assert set(answers.partitions) == {"main", "high"}
    main = answers.partitions["main"]
    assert main.default and not answers.partitions["high"].default
    assert (main.state, main.max_minutes, main.max_nodes, main.accounts, main.denied_qos) == (
        "UP",
        None,
        None,
        None,
        (),
    )
    assert (main.preempt_mode, main.grace_seconds, main.tier) == ("REQUEUE", 15, 1)
    assert [node.name for node in answers.nodes["main"]] == cluster.nodes
    for node in answers.nodes["high"]:
        assert (node.gpus, node.cpus, node.memory_mib, node.features) == ({"": 4}, 4, 65536, frozenset())
        assert node.usable
    assert not answers.reservations
    assert answers.settings["JobRequeue"] == "1" and answers.preempts
    assert hostnames(["127.0.0.[11-12]", "n3"]) == ["127.0.0.11", "127.0.0.12", "n3"]


def test_a_job_that_fits(tmp_path: Path) -> None:
    assert {one.level for one in check(tmp_path / "run")} == {"note"}
    assert {one.level for one in check(tmp_path / "run", gpus_per_node=4, memory_gib=64, partition="high")} == {"note"}
    assert slurm_takes(tmp_path, 2, gpus_per_node=4, memory_gib=64, partition="high")


@pytest.mark.parametrize(
    ("nodes", "keys", "line"),
    [
        (2, {"partition": "mian"}, "partition = mian: the cluster has no such partition; choose high, main"),
        (4, {"gpus_per_node": 1}, "--nodes = 4: partition main has 2 nodes; use --nodes 2"),
        (2, {"gpus_per_node": 8}, "gpus_per_node = 8: 0 of 2 nodes of main fit, the job needs 2; use --gpus-per-node"),
        (2, {"gpu_type": "a100"}, "gpu_type = a100: 0 of 2 nodes of main fit, the job needs 2; drop it"),
        (2, {"cpus_per_gpu": 3}, "cpus_per_gpu = 3: 0 of 2 nodes of main fit, the job needs 2; use --cpus-per-gpu 2"),
        (2, {"memory_gib": 65}, "memory_gib = 65: 0 of 2 nodes of main fit, the job needs 2; use --memory-gib 64"),
        (
            1,
            {"constraint": "ib"},
            "constraint = ib: no node of the cluster has ib; drop it, its nodes have no features",
        ),
        (1, {"reservation": "mine"}, "reservation = mine: there is no such reservation; drop it"),
        (2, {"exclude": ["127.0.0.[12]"]}, "exclude = 127.0.0.[12]: 1 of 2 nodes of main fit, the job needs 2"),
        (
            1,
            {"exclude": ["127.0.0.13"]},
            "exclude = 127.0.0.13: the cluster has no node 127.0.0.13, and sbatch refuses",
        ),
    ],
)
def test_a_job_that_slurm_would_refuse(tmp_path: Path, nodes: int, keys: dict[str, Any], line: str) -> None:
    [answers] = lines(check(tmp_path / "run", nodes, **keys))
    assert answers.startswith(line)
    assert not slurm_takes(tmp_path, nodes, **keys)


def test_limits_of_a_partition(tmp_path: Path, change: Any) -> None:
    limits = ("MaxTime=5", "MaxNodes=1", "AllowAccounts=vision", "AllowQos=long", "PreemptMode=CANCEL")
    back = ("MaxTime=UNLIMITED", "MaxNodes=UNLIMITED", "AllowAccounts=ALL", "AllowQos=ALL", "PreemptMode=REQUEUE")
    change("PartitionName=main", *limits, back=("update", "PartitionName=main", *back))
    findings = check(tmp_path / "run", account="speech", qos="short")
    assert lines(findings) == [
        "time_minutes = 10: partition main allows 5; use --time-minutes 5; the job goes on after it by itself",
        "account = speech: partition main does not allow it; choose vision",
        "qos = short: partition main does not allow it; choose long",
        "--nodes = 2: partition main allows 1; use --nodes 1",
    ]
    assert any(
        "main: cancels preempted jobs" in line.replace("partition = ", "") for line in lines(findings, "warning")
    )
    assert not lines(check(tmp_path / "run", 1, account="vision", qos="long", time_minutes=5))


@pytest.mark.parametrize("state", ["DOWN", "DRAIN", "INACTIVE"])
def test_a_partition_out_of_service(tmp_path: Path, change: Any, state: str) -> None:
    change("PartitionName=main", f"State={state}", back=("update", "PartitionName=main", "State=UP"))
    assert lines(check(tmp_path / "run")) == [f"partition = main: is {state.lower()}; choose another, or wait"]


def test_a_node_out_of_service(tmp_path: Path, change: Any) -> None:
    node = "NodeName=127.0.0.12"
    change(node, "State=DRAIN", "Reason=test", back=("update", node, "State=RESUME"))
    findings = check(tmp_path / "run")
    assert not lines(findings)
    [line] = lines(findings, "warning")
    assert line == "--nodes = 2: 1 of 2 nodes that fit are in service, 127.0.0.12 not; the job waits for them"
    assert not lines(check(tmp_path / "run", 1), "warning")


def test_features_and_reservations(tmp_path: Path, change: Any) -> None:
    node = "NodeName=127.0.0.11"
    back = ("update", node, "AvailableFeatures=", "ActiveFeatures=")
    change(node, "AvailableFeatures=ib,big", "ActiveFeatures=ib,big", back=back)
    cases = (("ib&big", 1, True), ("ib", 2, False), ("ib|big", 1, True), ("ib|eth", 1, False), ("eth", 1, False))
    for constraint, nodes, fits in cases:
        answers = lines(check(tmp_path / "run", nodes, constraint=constraint))
        assert not answers if fits else answers[0].startswith(f"constraint = {constraint}: "), constraint
        assert slurm_takes(tmp_path, nodes, constraint=constraint) == fits
    words = ("ReservationName=school", "StartTime=now", "Duration=10", "Users=root", "Nodes=127.0.0.11")
    subprocess.run(["scontrol", "create", "reservation", *words[1:], words[0]], check=True, capture_output=True)
    try:
        assert not lines(check(tmp_path / "run", 1, reservation="school"))
        [line] = lines(check(tmp_path / "run", 1, reservation="holidays"))
        assert line == "reservation = holidays: there is no such reservation; choose school"
    finally:
        subprocess.run(["scontrol", "delete", words[0]], check=True)


def test_a_job_in_the_queue(tmp_path: Path, cluster: Cluster) -> None:
    run_dir = tmp_path / "run"
    job = cluster.call("sbatch", "--parsable", "--hold", f"--comment={run_dir}", "--wrap", "true").strip()
    try:
        make_run(run_dir, job=job)
        run_dir.chmod(0o700)
        [line] = lines(check(run_dir))
        assert line.startswith(f"run.dir = {run_dir}: its job {job} is pending, a second one cannot join; wait for it")
    finally:
        cluster.call("scancel", job)
    cluster.wait_idle()
    assert not lines(check(run_dir))


def test_no_controller(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, whether nobody listens at the controller's port, or somebody who does not answer."""
    shutil.copytree(Path(cluster.environment["SLURM_CONF"]).parent, tmp_path / "etc")
    conf = tmp_path / "etc" / "slurm.conf"
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv(slurm.PATIENCE, "1")
    make_run(tmp_path / "run")
    (tmp_path / "run").chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        conf.write_text(re.sub(r"(?m)^SlurmctldPort=.*$", f"SlurmctldPort={port}", conf.read_text()))
        mute = check(tmp_path / "run")
    for findings in (mute, check(tmp_path / "run")):
        assert not lines(findings)
        site_line, run_line = sorted(lines(findings, "warning"))
        questions = "not checked: partitions, nodes, reservations, settings of the site (scontrol: no answer in 1 s;"
        assert site_line.startswith(questions)
        assert run_line.startswith(f"run.dir = {tmp_path / 'run'}: SLURM does not tell whether its job 12 lives (")


def test_the_command(tmp_path: Path, cluster: Cluster) -> None:
    words = ("preflight", "digits", "--cluster", "devcluster", "--nodes", "2", f"run.dir={tmp_path / 'run'}")
    done = launcher(cluster, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ok: it can be sent\n")
    done = launcher(cluster, *words, "--partition", "mian", "--gpus-per-node", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert [line[:20] for line in done.stdout.splitlines() if line.startswith("error: ")] == [
        "error: moco.bn_group",
        "error: partition = m",
    ]
    assert not list(tmp_path.iterdir())
