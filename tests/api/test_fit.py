"""`fit` trains the same run as the command line, and leaves the process as it was."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

import moco_dist
from moco_dist import train
from moco_dist.engine import engine
from moco_dist.interruption import STOPPING
from moco_dist.ranks import collectives, process_state
from moco_dist.run import status
from moco_dist.train import ends, loop
from tests import jobs, wandb_file
from tests.api.made import STEPS, TINY, fit, losses

ARGUMENTS = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in TINY.items()]


def test_two_calls_give_the_curves_of_two_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = fit(tmp_path / "other", run__seed=7, device__deterministic=True, device__threads=2, data__workers=1)
    run = fit(tmp_path / "run", data__workers=1)
    assert capfd.readouterr() == ("", "")
    command = [sys.executable, "-m", "moco_dist.train", *ARGUMENTS, f"run.dir={tmp_path}/command", "data.workers=1"]
    subprocess.run(command, env=jobs.environment_of(jobs.ROOT), check=True, capture_output=True)
    assert losses(run) == losses(moco_dist.Run(tmp_path / "command")) and len(losses(run)) == STEPS
    assert jobs.compare(tmp_path / "run", tmp_path / "command", STEPS).exact
    assert losses(other) != losses(run)
    assert run.status.state == "done" and run == moco_dist.Run(tmp_path / "run")


def test_a_run_that_is_done_is_returned_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert fit(tmp_path / "run") == run and capfd.readouterr() == ("", "")
    assert moco_dist.fit(run) == moco_dist.fit(run.config) == run  # loud ones
    assert capfd.readouterr().err.count("is done: nothing left to do") == 2
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_command_line_goes_on_with_a_run_and_a_call_with_the_command_lines(tmp_path: Path) -> None:
    reference = fit(tmp_path / "reference", checkpoint__every_steps=1)
    with pytest.raises(moco_dist.Stopped, match=r"after step 1, saved; the same call goes on from there") as stop:
        fit(tmp_path / "run", run__max_minutes=1e-4, checkpoint__every_steps=1)
    assert (stop.value.step, stop.value.run_dir) == (1, tmp_path / "run")
    assert moco_dist.Run(tmp_path / "run").status.state == "stopped"
    command = [*ARGUMENTS, f"run.dir={tmp_path}/run", "checkpoint.every_steps=1"]
    assert train.run([*command, "run.max_minutes=0.0001"]) == 75
    run = fit(tmp_path / "run", checkpoint__every_steps=1)
    assert losses(run) == losses(reference)
    assert jobs.compare(run.path, reference.path, STEPS).exact


def state_of_this_process() -> dict[str, Any]:
    return {
        "handlers": [signal.getsignal(number) for number in STOPPING],
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "benchmark": torch.backends.cudnn.benchmark,
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "torch's random state": torch.get_rng_state().tolist(),
        "Python's random state": random.getstate(),
        "hooks": (sys.excepthook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr),
        "folder": Path.cwd(),
        "tqdm": tqdm.monitor_interval,
        "group": collectives.dist.is_initialized(),
    }


def threads_left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that still run half a second later; the watchdog needs a moment to see that it is over."""
    deadline = time.monotonic() + 5
    while (left := [t for t in threading.enumerate() if t not in before]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def crash(*_: object) -> None:
    raise RuntimeError("a step fails")


ENDS: dict[str, tuple[dict[str, Any], type[BaseException] | None]] = {
    "done": ({}, None),
    "stopped": ({"run__max_minutes": 1e-4}, moco_dist.Stopped),
    "diverged": ({"optim__lr": 1e25, "optim__warmup_epochs": 0, "optim__steps": 20}, moco_dist.Diverged),
    "user_error": ({"optim__global_batch": 2000}, moco_dist.UserError),
    "crashed": ({}, RuntimeError),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_process_is_given_back_however_a_run_ends(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, raised = ENDS[end]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("MINE", "1")
    if end == "crashed":
        monkeypatch.setattr(engine.Engine, "step", crash)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    try:
        before, threads = state_of_this_process(), set(threading.enumerate())
        if raised is None:
            fit(tmp_path / "run", device__deterministic=True, data__workers=1, **changes)
        else:
            with pytest.raises(raised) as error:
                fit(tmp_path / "run", device__deterministic=True, data__workers=1, **changes)
            assert end != "crashed" or error.traceback[-1].name == "crash"
            if end == "crashed":
                traceback.clear_frames(error.tb)  # a debugger may want them, and they hold the loader
        assert state_of_this_process() == before
        assert threads_left(threads) == []
    finally:
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = False
    assert capfd.readouterr().out == ""
    if end != "user_error":  # it is found before there is a directory
        run = moco_dist.Run(tmp_path / "run")
        assert run.status.state == end and run.writer == ""


def test_a_run_goes_on_after_a_crash_in_the_same_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a step fails"):
        patch.setattr(engine.Engine, "step", crash)
        fit(tmp_path / "run")
    assert status.read(tmp_path / "run").reason == "rank 0: RuntimeError: a step fails"
    assert losses(fit(tmp_path / "run")) == losses(fit(tmp_path / "reference"))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a type": ({"optim__lr": "fast"}, r"^optim\.lr = fast: must be a number"),
    "a layout": ({"moco__bn_groups": 64}, r"^moco\.bn_groups = 64"),
    "few images": ({"optim__global_batch": 2000}, r"^optim\.global_batch = 2000"),
    "weights": ({"run__init_from": "/nowhere.pt"}, r"^run\.init_from = /nowhere\.pt"),
    "a place": ({"run__dir": "/dev/null/run"}, r"^run\.dir = /dev/null/run: cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_raised_and_not_printed(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes, line = MISTAKES[name]
    with pytest.raises(moco_dist.UserError, match=line):
        fit(tmp_path / "run", **changes)
    assert capfd.readouterr() == ("", "")


def test_a_mistake_is_noted_in_a_run_that_has_begun(tmp_path: Path) -> None:
    with pytest.raises(moco_dist.Stopped):
        fit(tmp_path / "run", run__max_minutes=1e-4)
    with pytest.raises(moco_dist.UserError, match=r"^optim\.lr = 0\.5 \(was 0\.03\)") as mistake:
        fit(tmp_path / "run", optim__lr=0.5)
    assert moco_dist.Run(tmp_path / "run").status == status.Status("user_error", 1, str(mistake.value), STEPS, 22)


def when_a_row_is_there(folder: Path, action: Callable[[], object]) -> threading.Thread:
    """Do something from another thread as soon as the run has a row."""

    def wait() -> None:
        while not jobs.last_step(folder):
            time.sleep(0.005)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_not_the_process(number: signal.Signals, tmp_path: Path) -> None:
    waiting = when_a_row_is_there(tmp_path / "run", lambda: os.kill(os.getpid(), number))
    with pytest.raises(moco_dist.Stopped) as stop:
        fit(tmp_path / "run", optim__steps=3000)
    waiting.join()
    assert 0 < stop.value.step < 3000
    run = moco_dist.Run(tmp_path / "run")
    assert run.status.state == "stopped" and max(run.checkpoints) == run.status.step == stop.value.step


def test_a_signal_that_comes_too_late_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received_signals.append(number))
    leave = collectives.World.leave

    def late(world: collectives.World, *, alone: bool) -> None:
        signal.raise_signal(signal.SIGTERM)
        assert received_signals == []
        leave(world, alone=alone)

    monkeypatch.setattr(collectives.World, "leave", late)
    assert fit(tmp_path / "run").status.state == "done"
    assert received_signals == [signal.SIGTERM]


def test_another_thread_can_train(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    folder = tmp_path / "run"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fit, folder, optim__steps=40, data__workers=1)
        while not jobs.last_step(folder) and not future.done():
            time.sleep(0.005)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        with pytest.raises(moco_dist.UserError, match=r"^moco_dist\.fit: another call .*; wait for its end"):
            fit(tmp_path / "second")
        with pytest.raises(moco_dist.UserError, match=r"^moco_dist\.assess: another call"):
            moco_dist.assess(folder)
        run = future.result(120)
    assert losses(run) == losses(fit(tmp_path / "reference", optim__steps=40))
    assert not process_state._one_call.locked()


def test_what_is_told_goes_where_a_notebook_shows_it(tmp_path: Path) -> None:
    """The streams of a notebook are neither files nor terminals."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        run = moco_dist.fit("digits", {**TINY, "run.dir": tmp_path / "run"})
        moco_dist.assess(run, labels=20, semi=False, verbose=True)
    assert out.getvalue().count(f"results: {run.path}") == 2 and "test accuracy" in out.getvalue()
    assert "step 4/4" in errors.getvalue()


def test_a_process_group_of_the_callers_is_left_alone(tmp_path: Path) -> None:
    place = f"file://{tmp_path}/store"
    collectives.dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        with pytest.raises(moco_dist.UserError, match=r"^torch\.distributed: this process has met other ranks already"):
            fit(tmp_path / "run")
        assert collectives.dist.is_initialized()
    finally:
        collectives.dist.destroy_process_group()


def test_exceptions_can_be_sent_to_another_process() -> None:
    import pickle

    stop = moco_dist.Stopped(3, "told to")
    stop.run_dir = Path("runs/a")
    again = pickle.loads(pickle.dumps(stop))
    assert (type(again), again.step, str(again), again.run_dir) == (moco_dist.Stopped, 3, "told to", Path("runs/a"))


BARE = """
import sys, torch
from moco_dist.data import workers
from tests.api.made import fit
context = workers.context
workers.context = lambda device: context(torch.device("meta"))  # as beside a GPU, where they are not forked
print("begins", flush=True)
print(fit(sys.argv[1], data__workers=1).status.state)
"""


def test_a_script_need_not_ask_whether_it_is_the_main_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BARE)
    command = [sys.executable, script, tmp_path / "run"]
    environment = jobs.environment_of(jobs.ROOT)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout) == (0, "begins\ndone\n"), result.stderr


GUEST = """
import sys, wandb
from tests.api.made import fit
settings = wandb.Settings(silent=True, console="off")
mine = wandb.init(mode="offline", project="mine", dir=sys.argv[1], settings=settings)
mine.log({"mine": 1})
fit(f"{sys.argv[1]}/run", track__wandb="offline")
assert wandb.run is mine
mine.log({"mine": 2})
mine.finish()
"""


def test_a_run_at_wandb_of_the_callers_own_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GUEST, tmp_path]
    environment = jobs.environment_of(jobs.ROOT)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    (ours,), (theirs,) = ((tmp_path / name).glob("wandb/offline-run-*") for name in ("run", "."))
    assert wandb_file.read(ours).steps() == [1, 2, 3, 4]
    history = wandb_file.read(theirs).history
    assert [row["mine"] for row in history] == [1, 2] and not any("train/loss" in row for row in history)


RANKS = '''
"""Train, fail and evaluate as every rank of torchrun, and note the results."""
import json, os, sys
import moco_dist
from tests.api.made import fit, losses
place, results = sys.argv[1], {}
for seed in (0, 1):
    results[f"seed {seed}"] = losses(fit(f"{place}/{seed}", run__seed=seed))
mistakes = {"optim__lr": "fast"}, {"optim__global_batch": 2000}, {"run__init_from": "/nowhere.pt"}
mistakes += ({"track__tensorboard": True},)  # which rank 0 alone finds
for changes in mistakes:
    try:
        fit(f"{place}/mistake", **changes)
    except moco_dist.UserError as error:
        results[str(changes)] = str(error)
for end in ({"run__max_minutes": 1e-4}, {"optim__lr": 1e25, "optim__warmup_epochs": 0, "optim__steps": 9}):
    try:
        fit(f"{place}/{len(results)}", **end)
    except (moco_dist.Stopped, moco_dist.Diverged) as error:
        results[str(end)] = [type(error).__name__, error.step, str(error)]
rows = moco_dist.assess(f"{place}/0", knn=True)
results["kNN"] = rows[0]["accuracies"]
results["hook"] = sys.excepthook is sys.__excepthook__
with open(f"{place}/rank{os.environ['RANK']}.json", "w") as file:
    json.dump(results, file)
'''


def test_under_torchrun_every_rank_gets_the_same(tmp_path: Path) -> None:
    import json

    script = tmp_path / "script.py"
    script.write_text(RANKS)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text(
        "import os\nif os.environ.get('RANK') == '0': raise OSError\n"
    )
    environment = jobs.environment_of(jobs.ROOT)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0 and "moco_dist" not in result.stdout + result.stderr, result.stdout + result.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["seed 0"] == losses(fit(tmp_path / "alone")) != first["seed 1"]
    assert first["seed 1"] == losses(fit(tmp_path / "alone 1", run__seed=1))
    assert first["hook"]
    ends = [value for value in first.values() if isinstance(value, list) and isinstance(value[0], str)]
    assert [(name, step > 0) for name, step, _ in ends] == [("Stopped", True), ("Diverged", True)]
    mistakes = [value for value in first.values() if isinstance(value, str)]
    assert [line.partition(" ")[0] for line in mistakes] == [
        *("optim.lr", "optim.global_batch", "run.init_from", "track.tensorboard")
    ]


def test_a_batch_that_does_not_divide_is_noted_in_the_run(tmp_path: Path) -> None:
    with pytest.raises(moco_dist.UserError, match=r"^optim\.global_batch = 64: must be divisible by ") as mistake:
        fit(tmp_path / "run", moco__bn_groups=None, optim__accumulate=7)
    (tmp_path / "old").mkdir()
    with pytest.raises(moco_dist.UserError, match=r"^optim\.global_batch = 64: must be divisible by "):
        fit(tmp_path / "old", moco__bn_groups=None, optim__accumulate=7)
    noted = status.read(tmp_path / "old")
    assert (noted.state, noted.reason) == ("user_error", str(mistake.value))
    assert not (tmp_path / "run").exists()


def test_a_stop_while_this_rank_waited_alone_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: loop.Training) -> None:
        raise ends.StoppedAlone(3, "asked to stop, and the next batch did not come")

    monkeypatch.setattr(loop.Training, "run", stopped)
    with pytest.raises(moco_dist.Stopped, match="the next batch did not come") as stop:
        fit(tmp_path / "run")
    assert stop.value.run_dir == tmp_path / "run" and stop.value.step == 3
