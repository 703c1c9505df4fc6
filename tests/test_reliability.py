"""Jobs that are killed, stopped or restarted keep every promise: short forms of `tests.chaos`, and what it leaves out.

Starts of real jobs cost seconds, so that few are made and much is asked of each.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.engine import checkpoint
from moco_dist.errors import UserError
from moco_dist.run import status as run_status
from moco_dist.run.checkpoints import verify
from moco_dist.run.lease import Lease, Lost, held_by, process_start, this_process
from tests import chaos
from tests.jobs import (
    EPOCH_STEPS,
    FAST,
    ROOT,
    Job,
    Pair,
    checkpoints,
    compare,
    knn,
    last_step,
    losses,
    rows,
    send,
    state,
    status,
    train_here,
)

STEPS = 50
RUN = {"optim.steps": STEPS}
FLIPPED_BYTE = 1000


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that nothing interrupts; the first epochs' checkpoints stay."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    with Pair(run_dir, {**RUN, "checkpoint.milestone_epochs": 1}) as pair:
        assert pair.exits() == [0, 0], pair.log
    return run_dir


def test_killed_and_started_again_ends_bit_for_bit_as_if_never_killed(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Job(run, 2, RUN) as job:  # a rank dies: torchrun ends the job and says which and why
        job.until_step(9)
        send(job.ranks()[1], signal.SIGKILL)
        assert job.wait(45) != 0
        job.until_gone(15)
    assert re.search(r"Root Cause[\s\S]*rank +: 1 [\s\S]*Signal 9 \(SIGKILL\)", job.log[-3000:]), job.log
    assert status(run)["state"] == "crashed"
    verify(checkpoints(run)[-1])

    with Job(run, 2, RUN) as job:  # torchrun dies: its ranks see it
        job.until_step(EPOCH_STEPS + 1)
        send(job.process.pid, signal.SIGKILL)
        job.until_gone(15)
    newest, before = checkpoints(run)[-1], checkpoints(run)[-2]
    verify(newest)
    content = bytearray(newest.read_bytes())
    content[FLIPPED_BYTE] ^= 1
    newest.write_bytes(content)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line that a power cut tore

    with Pair(run, RUN) as pair:  # the lease of the dead is no hindrance
        assert pair.exits() == [0, 0], pair.log
    log = pair.log
    assert re.search(rf"{newest.name} passed over for the one before: its checksum does not match", log)
    assert f"from step {int(before.stem[5:])}" in log
    comparison = compare(run, reference, STEPS)
    assert comparison.exact, comparison
    assert set(knn(run)) == {22, 44, 50}
    assert [path.name for path in checkpoints(run)] == ["step_000000049.pt", "step_000000050.pt"]


def test_the_comparison_can_fail(reference: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reference, tmp_path / "run")
    first, *others = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    bent = json.loads(others[10])
    bent["loss"] += 1e-15 * abs(bent["loss"])
    (run / "metrics.jsonl").write_text("".join([*others[:10], json.dumps(bent) + "\n", *others[11:], others[-2]]))
    found = torch.load(checkpoints(run)[-1], weights_only=True)
    found["queue"][3, 2] += 1e-7
    torch.save(found, checkpoints(run)[-1])
    comparison = compare(run, reference, STEPS)
    assert comparison.lost == [json.loads(first)["step"]] and len(comparison.doubled) == 1
    assert 0 < comparison.difference < 1e-13 and comparison.unequal == ["queue"]


def test_every_request_to_stop_is_heeded_by_all_ranks(reference: Path, tmp_path: Path) -> None:
    """One run, stopped in each way, one after the other; a second job looks in while the first has it."""
    run = tmp_path / "run"
    with Pair(run, RUN) as pair:
        pair.until_step(2)
        pair.signal_all(signal.SIGSTOP)  # so that the second job finds it at work
        with Job(run, 0, RUN) as second:
            assert second.wait(60) == 2
        own_lines = [line for line in second.log.splitlines() if line.startswith("moco_dist.train:")]
        owner = pair.ranks[0].process.pid
        assert len(own_lines) == 1 and re.search(
            rf"run\.dir = .*: a job on \S+ \(process {owner}\) is writing", own_lines[0]
        )
        assert status(run)["state"] == "running"
        pair.signal_all(signal.SIGCONT)
        pair.until_step(4)
        send(pair.ranks[1].process.pid, signal.SIGTERM)
        assert pair.exits() == [75, 75], pair.log
    _stopped(run, 4)
    after = status(run)["step"]
    for number, rank in ((signal.SIGUSR1, 0), (signal.SIGUSR2, 1), (signal.SIGINT, 0)):
        with Pair(run, RUN) as pair:
            pair.until_step(after + 2)
            send(pair.ranks[rank].process.pid, number)
            assert pair.exits() == [75, 75], (number, pair.log)
        _stopped(run, after + 2)
        after = status(run)["step"]
    with Pair(run, {**RUN, "run.max_minutes": 0.005}) as pair:
        assert pair.exits() == [75, 75], pair.log
    _stopped(run, after + 1)
    after = status(run)["step"]
    with Job(run, 2, RUN) as job:
        job.until_step(after + 1)
        send(job.process.pid, signal.SIGTERM)
        assert job.wait(45) != 0
        job.until_gone(10)
    _stopped(run, after + 1)
    with Pair(run, RUN) as pair:
        assert pair.exits() == [0, 0], pair.log
    comparison = compare(run, reference, STEPS)
    assert comparison.exact, comparison


def test_a_lost_terminal_is_a_request_to_stop(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    with Job(tmp_path / "run", 2, RUN, terminal=terminal) as job:
        os.close(terminal)
        os.set_blocking(screen, False)

        def has_come_far() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.read(screen, 1 << 16)  # else the job would wait for room on the screen
            return last_step(job.run_dir) >= 4

        job.until(has_come_far, "step 4")
        os.close(screen)
        job.until_gone(60)
    _stopped(tmp_path / "run", 4)


def _stopped(run: Path, at_least: int) -> None:
    said = status(run)
    assert said["state"] == "stopped" and STEPS > said["step"] >= at_least
    assert state(run)["step"] == said["step"] == last_step(run)


def test_a_rank_that_dies_is_made_good_by_max_restarts(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"module": "tests.faulty", "torchrun": ["--max-restarts=3"]}
    with Job(run, 2, RUN, environment={"FAULT": "killed:1:15"}, **options) as job:
        assert job.wait() == 0, job.log
    assert "from step 14" in job.log
    comparison = compare(run, reference, STEPS)
    assert comparison.exact, comparison


def test_max_restarts_does_not_retry_a_mistake_or_a_diverged_run(tmp_path: Path) -> None:
    options = {"torchrun": ["--max-restarts=1"]}
    with Job(tmp_path / "mistake", 1, {**RUN, "run.init_from": "/nowhere.pt"}, **options) as job:
        assert job.wait(90) != 0
    assert job.log.count("run.init_from = /nowhere.pt") == 1, job.log
    run = tmp_path / "diverged"
    with Job(run, 1, {**RUN, "optim.lr": 1e30, "checkpoint.every_steps": 1}, **options) as job:
        assert job.wait(90) != 0
    assert job.log.count("last checkpoint") == 1, job.log
    assert status(run)["state"] == "diverged"
    assert checkpoints(run)
    for file in checkpoints(run):
        state = checkpoint.load(file)
        assert all(t.isfinite().all() for key in ("encoder_q", "encoder_k") for t in state[key].values())


def test_a_rank_that_hangs_ends_the_job_and_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {**RUN, "run.hang_timeout_seconds": 14}
    with Job(run, 2, settings, module="tests.faulty", environment={"FAULT": "sleep:1:10"}) as job:
        job.until_step(10)
        began = time.monotonic()
        assert job.wait(60) != 0
        assert time.monotonic() - began < 5 + 15
        job.until_gone(15)
    assert "rank 1 hangs by itself" in job.log and "in _break" in job.log  # the stack
    assert re.search(r"Root Cause[\s\S]*rank +: 1 ", job.log[-3000:])
    assert re.search("rank 1: Hang", status(run)["reason"])


def test_an_exception_in_a_data_worker_of_one_rank_ends_the_job(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = {"FAULT": "worker-exception:1:10"}
    with Job(run, 2, {**RUN, "data.workers": 1}, module="tests.faulty", environment=fault) as job:
        job.until_step(5)
        began = time.monotonic()
        assert job.wait(60) != 0
        assert time.monotonic() - began < 45
        job.until_gone(15)
    last_block = job.log[job.log.rindex("Root Cause") :]
    assert re.search(r"rank +: 1 ", last_block) and "an exception of the test's" in last_block, job.log
    ahead, _, _ = job.log.partition("Traceback")  # the cause comes first, on one line; its traceback once
    assert ahead.endswith("moco_dist.train: rank 1: RuntimeError: an exception of the test's\n[rank1]: "), job.log
    assert "rank 0: ends, since rank 1: RuntimeError: an exception of the test's\n" in job.log
    assert "[rank0]: Traceback" not in job.log
    assert status(run)["state"] == "crashed"


def test_a_disk_that_refuses_stops_no_training(tmp_path: Path, reference: Path) -> None:
    run = tmp_path / "run"
    with Job(run, 0, RUN) as job:
        job.until_step(8)
        # The kernel refuses to let a file grow beyond this, as on a full disk.
        resource.prlimit(job.process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        job.until_step(22)
        resource.prlimit(job.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        job.until_step(29)
        (run / "checkpoints").rename(run / "away")
        (run / "checkpoints").write_text("no folder")
        job.until_step(43)
        (run / "checkpoints").unlink()
        (run / "away").rename(run / "checkpoints")
        assert job.wait() == 0, job.log
    assert len(re.findall(r"checkpoint of step \d+ not saved, training goes on: OSError", job.log)) >= 1, job.log
    assert re.search(r"not saved, training goes on: (FileExists|NotADirectory)Error", job.log), job.log
    failures = [row.get("checkpoint_failures", 0) for row in rows(run) if "loss" in row]
    assert failures[0] == 0 and failures == sorted(failures) and failures[-1] >= 2
    assert [path.name for path in checkpoints(run)] == ["step_000000049.pt", "step_000000050.pt"]
    one, other = losses(run), losses(reference)
    assert max(abs(one[step] - other[step]) for step in range(1, 21)) < 1e-4  # one rank against two


def test_a_run_goes_on_with_fewer_ranks(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(reference, tmp_path / "run")
    for file in checkpoints(run):
        if file.name > "step_000000022.pt":
            file.unlink()
    (run / "status.json").unlink()
    assert train_here(run, {**RUN, "data.workers": 1}) == 0
    output = "".join(capsys.readouterr())
    assert "from step 22" in output
    comparison = compare(run, reference, STEPS)
    assert not comparison.lost and not comparison.doubled
    one, other = losses(run), losses(reference)
    assert max(abs(one[step] - other[step]) for step in range(23, 43)) < 1e-4
    assert "on 1 cpu rank of 64" in output  # it was really computed on another number


def test_what_changes_the_curve_is_refused_by_name(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(reference, tmp_path / "run")
    before = _contents(run)
    assert train_here(run, {**RUN, "optim.lr": 0.1, "moco.temperature": 0.3, "optim.global_batch": 128}) == 2
    log = "".join(capsys.readouterr())
    own_lines = [line for line in log.splitlines() if line.startswith("moco_dist.train:")]
    assert len(own_lines) == 1 and "Traceback" not in log
    for words in (
        "optim.lr = 0.1 (was 0.06)",
        "moco.temperature = 0.3 (was 0.2)",
        "optim.global_batch = 128 (was 64)",
        "run.name",
    ):
        assert words in own_lines[0], own_lines[0]
    assert _contents(run) == before


def test_a_finished_run_started_again_changes_no_file(reference: Path) -> None:
    before = _contents(reference)
    with Pair(reference, {**RUN, "checkpoint.milestone_epochs": 1}) as pair:
        assert pair.exits() == [0, 0], pair.log
    assert _contents(reference) == before


def _contents(run: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_leaves_the_curve_alone_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More epochs under a constant schedule, workers, tracking, evaluation, checkpoints."""
    run, settings = tmp_path / "run", {"optim.schedule": "constant", "eval.knn_every": 0}
    assert train_here(run, {**settings, "optim.epochs": 1}) == 0
    changed = {"optim.epochs": 2, "data.workers": 1, "track.log_every": 2, "checkpoint.every_steps": 5}
    assert train_here(run, {**settings, **changed}) == 0
    assert f"from step {EPOCH_STEPS}" in "".join(capsys.readouterr())
    assert sorted(losses(run)) == [*range(1, 23), *range(24, 45, 2)]
    assert status(run)["state"] == "done"


def test_a_run_does_not_end_at_a_step_that_it_has_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A length may change under a constant schedule; the weights would be called those of an earlier step."""
    run, settings = tmp_path / "run", {"optim.schedule": "constant", "eval.knn_every": 0}
    assert train_here(run, {**settings, "optim.steps": 9}) == 0
    run_status.write(run, "stopped", 9)
    (run / "encoder.safetensors").unlink()
    capsys.readouterr()
    assert train_here(run, {**settings, "optim.steps": 5}) == 2
    rule = f"optim.steps = 5: ends at step 5, and the run in {run} has taken 9; raise it, or begin another with"
    assert rule in capsys.readouterr().err and not (run / "encoder.safetensors").exists()
    assert train_here(run, {**settings, "optim.steps": 10}) == 0


def test_the_minutes_of_a_start_are_counted_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to load the images is part of the time that a cluster gives."""
    load = sources.load

    def slowly(config: Config) -> sources.Data:
        time.sleep(0.4)
        return load(config)

    monkeypatch.setattr(sources, "load", slowly)
    assert train_here(tmp_path / "run", {"run.max_minutes": 0.3 / 60}) == 75
    assert status(tmp_path / "run")["step"] == 1


# The lease, without jobs.


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    lease = Lease(tmp_path, seconds=1)
    yield lease
    lease.release()


def _leave(folder: Path, **owner: Any) -> None:
    (folder / "lease.json").write_text(json.dumps({**this_process(), "token": "theirs", "renewed": 0.0, **owner}))


def test_a_lease_is_for_one(lease: Lease, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"run\.dir = .*process {os.getpid()}"):
        Lease(tmp_path, seconds=1)
    lease.check()
    lease.release()
    assert list(tmp_path.iterdir()) == []
    Lease(tmp_path, seconds=1).release()


def test_the_lease_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = process_start(child.pid)
    child.wait()
    for owner in (
        {"pid": child.pid, "started": started},
        {"started": process_start(os.getpid()) + "0"},
    ):  # a pid reused
        _leave(tmp_path, **owner)
        began = time.monotonic()
        Lease(tmp_path, seconds=20).release()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "another"}, {"started": "another-boot 123"}, {"namespace": "pid:[another container]"}],
)
def test_the_lease_of_another_host_is_free_when_it_has_run_out(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    _leave(tmp_path, **elsewhere)
    began = time.monotonic()
    lease = Lease(tmp_path, seconds=1)
    assert 0.9 < time.monotonic() - began < 10
    lease.release()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"namespace": "pid:[another container]", "pid": 10**9}])
def test_the_lease_of_another_host_that_renews_is_respected(tmp_path: Path, elsewhere: dict[str, Any]) -> None:
    renew = (
        "import json, sys, time\n"
        "for n in range(200):\n"
        "    time.sleep(0.2)\n"
        "    text = json.loads(open(sys.argv[1]).read()) | {'renewed': n}\n"
        "    open(sys.argv[1] + '.new', 'w').write(json.dumps(text))\n"
        "    __import__('os').replace(sys.argv[1] + '.new', sys.argv[1])\n"
    )
    _leave(tmp_path, **elsewhere)
    renewer = subprocess.Popen([sys.executable, "-c", renew, str(tmp_path / "lease.json")])
    try:
        with pytest.raises(UserError, match=r"a job on .* is writing to it"):
            Lease(tmp_path, seconds=5)
    finally:
        renewer.kill()
        renewer.wait()


def test_who_slept_and_lost_the_lease_writes_no_more(lease: Lease, tmp_path: Path) -> None:
    _leave(tmp_path, host="another")
    time.sleep(1)
    with pytest.raises(Lost):
        lease.check()
    lease.release()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "theirs"


def test_a_lease_that_cannot_be_read_for_a_while_is_kept(lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("")
    time.sleep(1)
    lease.check()
    assert json.loads((tmp_path / "lease.json").read_text())["host"] == socket.gethostname()


def test_a_disk_that_does_not_answer_for_a_while_takes_no_lease(
    lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this release of Python makes of an error where a file is looked for, it is no sign of another job."""

    def silent(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no answer")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", silent)
        patch.setattr(Path, "exists", lambda path, **_: False)  # as Python 3.14 answers
        time.sleep(1)
    lease.check()


def test_the_process_of_another_container_is_not_looked_for_here(tmp_path: Path) -> None:
    """Containers may share the name of their host, and number processes by themselves."""
    _leave(tmp_path)
    assert held_by(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    elsewhere = {"namespace": "pid:[another container]", "pid": 10**9}
    _leave(tmp_path, **elsewhere)
    assert held_by(tmp_path) == f"process {10**9} on {socket.gethostname()}"  # it has just renewed
    os.utime(tmp_path / "lease.json", (0, 0))
    assert held_by(tmp_path) == ""


# The command itself.


def test_chaos_has_a_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        chaos.main([])
    assert end.value.code == 2 and "give --kills, --elastic or --fault" in capsys.readouterr().err
    assert FAST.is_file() and (ROOT / "docs" / "reliability.md").is_file()
