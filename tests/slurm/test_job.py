"""Whole jobs on a real SLURM: disturbed in every way, and still one run, each step once, bit for bit.

`python -m tests.slurm_matrix` does each event by itself, on every kind of cluster; here several happen to one run.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.devcluster import Cluster
from tests import jobs
from tests.fake_wandb import KEY, FakeWandb
from tests.slurm.jobs import FAST, STEPS, Sent, launcher, submit, submit_arguments

MANY_STEPS = 330
"""Steps of the run to which much happens."""
_MINUTE = ("--time-minutes", "1", "--signal-seconds", "15")


@pytest.fixture(autouse=True)
def _idle(cluster: Cluster) -> Iterator[None]:
    """Leave the cluster idle, also where a test has failed."""
    yield
    cluster.call("scancel", "--quiet", f"--user={os.getuid()}")
    cluster.wait_idle()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Runs of so many steps that are left alone: on one rank, in this process, since it gives the bits of four."""

    @functools.cache
    def run(steps: int) -> Path:
        run_dir = tmp_path_factory.mktemp("reference") / "run"
        assert jobs.train_here(run_dir, {"optim.steps": steps}) == 0
        return run_dir

    return run


def test_a_job_that_is_left_alone(cluster: Cluster, reference: Callable[[int], Path], tmp_path: Path) -> None:
    """It is sent with --wait, under a name that a shell would run."""
    run_dir = tmp_path / "run"
    name = f"x; touch {tmp_path}/pwned 'it' \"is\" $(id)"
    done = launcher(cluster, *submit_arguments(run_dir, {"optim.steps": 44}, "--wait", "--job-name", name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run directory: {run_dir}" in done.stdout
    assert "done, step 44/44" in done.stderr
    assert json.loads((run_dir / "summary.json").read_text())["knn_top1"] > 0.5
    assert not (tmp_path / "pwned").exists()
    job_names = cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%j").splitlines()
    assert any(line.startswith("x; touch") for line in job_names), job_names
    assert jobs.compare(run_dir, reference(44), 44).exact


def test_one_run_through_a_killed_worker_a_time_limit_a_preemption_and_a_lost_node(
    cluster: Cluster, reference: Callable[[int], Path], tmp_path: Path
) -> None:
    """The run ends as one that was left alone, and W&B has each step once, in one run."""
    run_dir = tmp_path / "run"
    with FakeWandb() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        run = Sent(cluster, run_dir, {"optim.steps": MANY_STEPS, "track.wandb": "online"}, *_MINUTE)
        run.until_step(20)
        run.kill_worker()
        refused = launcher(cluster, *submit_arguments(run_dir, {"optim.steps": MANY_STEPS}))
        assert refused.returncode == 2
        assert f"its job {run.job} is running" in refused.stderr
        run.until(lambda: run.starts() >= 2, "start after the time limit")
        run.has_time()
        run.until_step(jobs.last_step(run_dir) + 20)
        run.preempt()
        run.until(lambda: run.starts() >= 3, "start after the preemption")
        run.until_step(jobs.last_step(run_dir) + 20)
        node = cluster.nodes[1]
        cluster.kill_node(node)
        time.sleep(1)
        cluster.start_node(node)
        assert run.wait() == "COMPLETED", run.log()
        comparison = jobs.compare(run_dir, reference(MANY_STEPS), MANY_STEPS)
        assert comparison.exact, comparison
        [sent] = server.runs.values()
        steps = [row["train/step"] for row in sent.history if "train/loss" in row]
        assert sorted(steps) == list(range(1, MANY_STEPS + 1))
        assert sent.name == (run_dir / "wandb" / "id").read_text()
        assert sent.preempting
    assert KEY not in _texts(run_dir)


def _texts(run_dir: Path) -> str:
    """Everything that is written below a run directory."""
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    return "\n".join(file.read_bytes().decode("latin-1") for file in files)


def test_with_min_nodes_a_lost_node_shrinks_the_world(
    cluster: Cluster, reference: Callable[[int], Path], tmp_path: Path
) -> None:
    run = Sent(cluster, tmp_path / "run", {}, "--min-nodes", "1")
    run.until_step(20)
    node = cluster.nodes[1]
    cluster.kill_node(node)
    try:
        assert run.wait() == "COMPLETED", run.log()
    finally:
        cluster.start_node(node)
    assert run.starts() == 1
    assert json.loads((run.run_dir / "summary.json").read_text())["ranks"] == 2
    assert jobs.compare(run.run_dir, reference(STEPS), STEPS).exact


def test_plain_sbatch_with_torchrun_does_the_same(
    cluster: Cluster, reference: Callable[[int], Path], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    script = jobs.ROOT / "slurm" / "train.sbatch"
    options = ["--parsable", "-N2", "--gpus-per-node=2", "--time=5", f"--output={tmp_path}/log", f"--chdir={jobs.ROOT}"]
    words = [str(FAST), f"run.dir={run_dir}", f"optim.steps={STEPS}"]
    done = subprocess.run(
        ["sbatch", *options, str(script), *words],
        env={**cluster.environment, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    run = Sent(cluster, run_dir, job=done.stdout.strip())
    run.until_step(20)
    run.preempt()
    assert run.wait() == "COMPLETED", (tmp_path / "log").read_text()
    assert jobs.compare(run_dir, reference(STEPS), STEPS).exact
    assert len((run_dir / f".starts-{run.job}").read_text().split()) == 2


def test_one_task_a_rank(cluster: Cluster, reference: Callable[[int], Path], tmp_path: Path) -> None:
    run = Sent(cluster, tmp_path / "run", {}, "--tasks", "rank")
    run.until_step(20)
    run.signal("USR2")
    assert run.wait() == "COMPLETED", run.log()
    assert run.starts() == 2
    assert jobs.compare(run.run_dir, reference(STEPS), STEPS).exact


def small(run_dir: Path, *words: str) -> list[str]:
    """A submission of one rank."""
    overrides = [f"run.dir={run_dir}", "optim.steps=22", *words]
    return ["submit", str(FAST), *overrides, "--cluster", "devcluster", "--gpus-per-node", "1"]


def test_what_will_not_help_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """A mistake that only the trainer finds, a loss that is no number, and no progress in three starts, all at once.

    --wait tells by its exit status.
    """
    weights = tmp_path / "weights.pt"
    weights.write_text("no weights")
    words = {"mistaken": [f"run.init_from={weights}"], "diverged": ["optim.lr=1e30", "optim.warmup_epochs=0"]}
    standing = submit(cluster, *small(tmp_path / "standing"), "--max-restarts", "0")
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(launcher, cluster, *small(tmp_path / name, *words[name]), "--wait") for name in words]
        _prevent_progress(Sent(cluster, tmp_path / "standing", job=standing))
    mistaken, diverged = (end.result() for end in ends)
    assert mistaken.returncode == 2, mistaken.stderr
    assert "run.init_from" in mistaken.stderr
    assert diverged.returncode == 1, diverged.stderr
    assert jobs.status(tmp_path / "diverged")["state"] == "diverged"
    for name in words:
        assert len((tmp_path / name / "launch" / "starts.jsonl").read_text().splitlines()) == 1
    weights.unlink()
    again = launcher(cluster, *small(tmp_path / "mistaken"), "--wait")  # an old verdict does not end a new job
    assert again.returncode == 0, again.stderr


def _prevent_progress(run: Sent) -> None:
    """Kill each rank of a job as it appears, and see the job stopped after three starts."""
    deadline = time.monotonic() + 240
    while run.state() not in ("FAILED", "COMPLETED"):
        assert time.monotonic() < deadline, run.log()
        for pid in run.workers():
            jobs.send(pid, signal.SIGKILL)
        time.sleep(0.3)
    assert run.starts() == 3
    status = jobs.status(run.run_dir)
    assert status["state"] == "crashed"
    assert status["reason"].startswith("no progress in 3 starts from step 0")


def test_a_job_runs_the_code_that_it_was_sent_with_and_stages_its_data(cluster: Cluster, tmp_path: Path) -> None:
    """Held until its copy of the code is marked; its data are an archive that the node unpacks, once."""
    from sklearn.datasets import load_digits

    tree = tmp_path / "tree"
    for split in ("train", "val"):
        for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
            folder = tree / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            if number < 200:
                header = b"P5 8 8 16\n"
                (folder / f"{number}.pgm").write_bytes(header + bytes(int(p) for p in image))
    with tarfile.open(tmp_path / "data.tar", "w") as packed:
        packed.add(tree, "digits")
    shutil.rmtree(tree)
    first = cluster.call("sbatch", "--parsable", "--wrap", "sleep 60", "-o", "/dev/null").strip()
    profile = tmp_path / "cluster.yaml"
    profile.write_text(f"partition: main\ngpus_per_node: 1\ncpus_per_gpu: 1\nlocal_disk: {tmp_path}/disk\n")
    words = ["submit", str(FAST), f"run.dir={tmp_path / 'run'}", "optim.steps=3", "data.source=imagefolder"]
    words += ["data.root=digits", "data.channels=1", "--stage", str(tmp_path / "data.tar")]
    done = launcher(cluster, *words, "--cluster", str(profile), "--after", f"any:{first}")
    assert done.returncode == 0, done.stderr
    [code] = (tmp_path / "run" / "launch" / "code").iterdir()
    copied = code / "moco_dist" / "engine" / "engine.py"
    assert copied.is_file()
    with copied.open("a") as copy:
        copy.write('print("a marked copy")\n')
    cluster.call("scancel", first)
    followed = launcher(cluster, "logs", "-f", str(tmp_path / "run"))
    assert "a marked copy" in followed.stdout, followed.stdout + followed.stderr
    assert jobs.status(tmp_path / "run")["state"] == "done"
    [unpacked] = (tmp_path / "disk").glob("moco-dist-*/*")
    assert (unpacked / "digits" / "train" / "0").is_dir()


def test_a_job_on_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    """--local needs no SLURM: it ends with its kNN, is told to save by cancel, and goes on."""
    run_dir = tmp_path / "run"
    words = ["submit", str(FAST), f"run.dir={run_dir}", "optim.steps=440", "eval.knn_every=20"]
    words += ["--local", "--gpus-per-node", "2"]
    assert launcher(cluster, *words).returncode == 0
    deadline = time.monotonic() + 60
    while jobs.last_step(run_dir) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert launcher(cluster, *words).returncode == 2, "a second job into a live run"
    cancelled = launcher(cluster, "cancel", str(run_dir))
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert jobs.status(run_dir)["state"] == "stopped"
    again = launcher(cluster, *words, "--wait")
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in jobs.rows(run_dir) if "loss" in row] == list(range(1, 441))
    assert set(jobs.knn(run_dir)) == {440}


def test_a_sweep_is_one_array_of_runs(cluster: Cluster, tmp_path: Path) -> None:
    sweep = tmp_path / "lr.yaml"
    sweep.write_text(f"config: {FAST}\ngrid: {{optim.lr: [0.05, 1.0e+30]}}\n")
    words = ["sweep", str(sweep), "optim.steps=22", "optim.warmup_epochs=0", "--cluster", "devcluster"]
    done = launcher(cluster, *words, "--gpus-per-node", "1", "--parallel", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    array = next(line.split()[2].rstrip(",") for line in done.stdout.splitlines() if line.startswith("job array:"))
    folder = tmp_path / "runs" / "lr"
    good, bad = folder / "00_lr=0.05", folder / "01_lr=1.0e+30"
    waiting = cluster.call("squeue", "-h", "-r", "-o", "%i %k").splitlines()
    assert sorted(waiting) == [f"{array}_0 {folder}", f"{array}_1 {folder}"]
    deadline = time.monotonic() + 120
    while {jobs.status(d)["state"] for d in (good, bad) if (d / "status.json").exists()} != {"done", "diverged"}:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cluster.wait_idle()
    shown = json.loads(launcher(cluster, "sweep", "status", str(folder), "--json").stdout)
    assert [(row["run_dir"], row["state"]) for row in shown] == [(str(good), "done"), (str(bad), "diverged")]
    assert shown[0]["knn_top1"] > 0.3
    table = launcher(cluster, "sweep", "status", str(folder), cwd=tmp_path).stdout.splitlines()
    assert "00_lr=0.05" in table[1] and "01_lr=1.0e+30" in table[2]
    named = json.loads(launcher(cluster, "status", array, "--json", cwd=tmp_path).stdout)
    assert [row["job"] for row in named] == [f"{array}_0", f"{array}_1"]
    more = launcher(cluster, *words, "--gpus-per-node", "1", "--wait", cwd=tmp_path)  # all were sent before
    assert more.returncode == 1, more.stderr  # as the one that diverged
    assert more.stdout.splitlines()[:2] == ["00_lr=0.05: sent before, done", "01_lr=1.0e+30: sent before, diverged"]
    again = launcher(cluster, "sweep", "again", str(folder), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("01_lr=1.0e+30: job ") and len(again.stdout.splitlines()) == 1
    assert "_" not in again.stdout.split()[-1], "a job of its own"
