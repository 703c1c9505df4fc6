"""Twenty steps of a run, taken in short jobs before it is sent: what is sent for them, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import measure, sending, slurm_jobs
from launcher.__main__ import main
from launcher.cluster import Notify
from launcher.record import Launch, Submission
from launcher.views import runs, verdict
from moco_dist import config as configs
from moco_dist.run import status
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

WORDS = ["digits", "run.name=mine", "optim.global_batch=64", "moco.bn_groups=8", "optim.epochs=10"]
SPEEDS = {1: 100.0, 2: 190.0, 4: 300.0}


class Cluster:
    """A cluster of short jobs that nobody runs: each has its rows as soon as it is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, never: int | None = None) -> None:
        self.sent: list[tuple[configs.Config, Submission]] = []
        self.cancelled: list[str] = []
        self._never = never
        """The number of nodes whose job never starts."""
        monkeypatch.setattr(sending, "send", self._send)
        monkeypatch.setattr(slurm_jobs, "cancel", self.cancelled.append)
        monkeypatch.setattr(runs, "look", lambda launches: [self._stands(launch) for launch in launches])
        monkeypatch.setattr(measure, "_data_seconds", lambda config, scratch: 0.02)

    def _send(self, config: configs.Config, submission: Submission) -> Submission:
        self.sent.append((config, submission))
        job = str(100 + submission.nodes)
        speed = SPEEDS[submission.nodes]
        # The first steps are slow everywhere, and do not count.
        rows = [
            {"step": step, "loss": 1.0, "lr": 0.1, "images_per_second": speed if step > 5 else 1.0, "data_wait": 0.1}
            for step in range(1, 21)
        ]
        starts = 0 if submission.nodes == self._never else 1
        launch = make_run(config.run_dir, job=job, starts=starts, rows=rows if starts else ())
        if starts:
            status.write(config.run_dir, "done", 20, "")
            launch.paths.checkpoints.mkdir()
            (launch.paths.checkpoints / "step_000000020.pt").write_bytes(bytes(2**20))
        return submission.model_copy(update={"job": job})

    def _stands(self, launch: Launch) -> runs.Run:
        sent = launch.submission()
        assert sent is not None
        state: verdict.State = "done" if launch.starts() else "pending"
        job = slurm_jobs.Job(sent.job, "COMPLETED" if launch.starts() else "PENDING")
        return runs.Run(launch, state, "" if launch.starts() else "Resources", sent, job)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "_LOOK_SECONDS", 0.0)
    programs = Programs(tmp_path / "programs", monkeypatch)
    programs.runs("sbatch", 'echo "sbatch: Job 13 to start at 2026-11-28T07:00:00 using 8 processors on n1" >&2')
    return programs


def test_each_size_is_measured_and_the_cheapest_is_told_first(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster = Cluster(monkeypatch)
    (tmp_path / "mine.yaml").write_text("notify: {events: [end, first_step], mail: me@example.org}\n")
    place = ["--cluster", "mine.yaml", "--gpus-per-node", "2", "--cpus-per-gpu", "1", "--time-minutes", "600"]
    assert main(["preflight", *WORDS, "--measure", *place]) == 0
    out = capfd.readouterr().out.splitlines()
    table = [line.split() for line in out[out.index("ok: it can be sent") + 2 :]]
    # 10 epochs of 22 steps of 64 images, in hours; two GPUs a node.
    hours = {nodes: 10 * 22 * 64 / speed / 3600 for nodes, speed in SPEEDS.items()}
    start, wait, size = "2026-11-28T07:00:00", ["10", "%"], ["0.00098", "GiB"]
    assert table == [
        [
            str(n),
            str(2 * n),
            f"{SPEEDS[n]:.3g}",
            f"{hours[n]:.3g}",
            f"{2 * n * hours[n]:.3g}",
            *wait,
            cores,
            *size,
            start,
        ]
        for n, cores in ((1, "2"), (2, "2"), (4, "2"))
    ]
    for config, submission in cluster.sent:
        assert submission.profile.time_minutes == 10 and config.optim.steps == 20
        assert submission.profile.notify == Notify(), "nobody is told of short jobs"
        assert (config.track.wandb, config.track.log_every, config.eval.knn_every) == ("disabled", 1, 0)
        assert config.run_dir == tmp_path / "runs" / ".measure-mine" / f"{submission.nodes}_nodes"
    assert not list((tmp_path / "runs").iterdir()), "nothing is left of the short jobs"
    assert not cluster.cancelled


def test_a_size_whose_job_does_not_start_is_named_and_its_job_cancelled(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, never=4)
    place = ["--gpus-per-node", "2", "--cpus-per-gpu", "1", "--measure-minutes", "0.001"]
    assert main(["preflight", *WORDS, "--measure", *place]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == (
        "4 nodes: not measured, its job is pending: Resources; SLURM expects such a job to start at 2026-11-28T07:00:00"
    )
    assert cluster.cancelled == ["104"]


def test_a_size_that_slurm_refuses_is_not_sent(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A job of that size would wait for nodes that the partition does not have."""
    lines = [
        'case "$(cat "$2")" in *nodes=4*) echo "sbatch: error: Node count specification invalid" >&2; exit 1 ;; esac'
    ]
    programs.runs("sbatch", "\n".join([*lines, 'echo "sbatch: Job 13 to start at 2026-11-28T07:00:00" >&2']))
    cluster = Cluster(monkeypatch)
    assert main(["preflight", *WORDS, "--measure", "--gpus-per-node", "2", "--cpus-per-gpu", "1"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    refusal = "sbatch: sbatch: error: Node count specification invalid"
    assert last == f"4 nodes: not measured, SLURM refuses such a job ({refusal})"
    assert [submission.nodes for _, submission in cluster.sent] == [1, 2]


def test_sizes_that_the_batch_does_not_divide_into_are_not_measured(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch)
    place = ["--gpus-per-node", "4", "--cpus-per-gpu", "1"]
    assert main(["preflight", *WORDS, "--measure", *place]) == 0
    assert [submission.nodes for _, submission in cluster.sent] == [1, 2]


def test_what_would_not_be_sent_is_not_measured(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch)
    assert main(["preflight", *WORDS, "--measure", "--partition", "none"]) == 2
    assert not cluster.sent


def test_the_cost_of_an_images_views_is_measured() -> None:
    seconds = measure.view_seconds(configs.load(None, ["data.source=synthetic", "data.samples=128"]))
    assert 0 < seconds < 1


def test_rows_of_a_run_that_has_not_begun_are_none(tmp_path: Path) -> None:
    assert measure._training_rows(make_run(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "knn_top1": 0.5}) + "\n")
    assert measure._training_rows(Launch(tmp_path)) == []
