"""Checks of whole runs: the trainer and the evaluation in processes of their own, killed by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moco_dist import config as configs
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import collectives
from tests import jobs
from tests.gpu.result import Result, Setting
from tests.jobs import Job, compare, losses, send

FIRST, LAST = range(11, 21), range(51, 61)
"""Steps whose mean losses are compared: the queue is full before the first of them."""
LEAST_KNN = 0.95
LIMIT, FINE_TUNED_LIMIT = 0.01, 0.03
"""Accuracies on two devices may be this far apart: rounding moves a probe by an image or two, but 400 steps by more."""
SLOW_SECONDS = 400
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"device.precision": "bf16"},
    "fp16": {"device.precision": "fp16"},
    "compiled bf16 channels_last": {"device.precision": "bf16", "device.compile": True, "device.channels_last": True},
    "compiled bf16 with CUDA graphs": {"device.precision": "bf16", "device.compile": "reduce-overhead"},
}


def learning(setting: Setting) -> Result:
    """The default config learns in every precision, and a whole run of it sees the digits apart."""
    names = list(PRECISIONS) if setting.on_gpu else ["fp32"]
    drops: dict[str, tuple[float, float]] = {}
    with ExitStack() as stack:
        begun = {}
        for name in names:  # side by side: a small network leaves a GPU idle
            job = Job(setting.folder / name.replace(" ", "_"), 0, _settings(setting, **PRECISIONS[name]), config=None)
            begun[name] = stack.enter_context(job)
        for name, job in begun.items():
            job.until(lambda job=job: jobs.last_step(job.run_dir) >= LAST.stop - 1, "sixty steps", SLOW_SECONDS)
            of_step = losses(job.run_dir)
            assert LAST.stop - 1 in of_step, f"{name}: {job.log}"
            drops[name] = tuple(sum(of_step[step] for step in steps) / len(steps) for steps in (FIRST, LAST))
            if name != "fp32":
                job.kill_all()
        knn, whole = None, begun["fp32"]
        if setting.on_gpu:
            assert whole.wait(SLOW_SECONDS) == 0, whole.log
            knn = json.loads((whole.run_dir / "summary.json").read_text())["knn_top1"]
    shown = ", ".join(f"{name} {first:.3f} to {last:.3f}" for name, (first, last) in drops.items())
    accuracy = "no whole run on the CPU" if knn is None else f"kNN after the whole run {100 * knn:.2f} %"
    passed = all(last < first for first, last in drops.values()) and (knn is None or knn >= LEAST_KNN)
    return Result(passed, f"mean loss of steps 11-20 to that of 51-60: {shown}; {accuracy}")


def resume(setting: Setting) -> Result:
    """A deterministic run that is killed in mid-epoch, or told to stop, and goes on: the same bits in the end."""
    steps, kill_at = (60, 30) if setting.on_gpu else (24, 12)
    settings = _settings(setting, **{"optim.steps": steps, "device.deterministic": True})
    outcomes = {}
    with Job(setting.folder / "whole", 0, settings) as job:
        assert job.wait(SLOW_SECONDS) == 0, job.log
    for number in (signal.SIGKILL, signal.SIGTERM):
        run_dir = setting.folder / number.name
        with Job(run_dir, 0, settings) as job:
            assert job.until_step(kill_at), job.log
            send(job.process.pid, number)
            code = job.wait()
        at = jobs.last_step(run_dir)
        assert at < steps, "the run ended before the signal came"
        with Job(run_dir, 0, settings) as job:
            assert job.wait(SLOW_SECONDS) == 0, job.log
        comparison = compare(run_dir, setting.folder / "whole", steps)
        right = comparison.exact and code == (75 if number is signal.SIGTERM else -signal.SIGKILL)
        outcomes[number.name] = (
            right,
            f"{number.name} at step {at} of {steps}: exit status {code}, "
            + ("losses, weights, queue and optimizer equal bit for bit" if comparison.exact else str(comparison)),
        )
    return Result(all(right for right, _ in outcomes.values()), "; ".join(text for _, text in outcomes.values()))


def evaluation(setting: Setting) -> Result:
    """The evaluation finds on the device what it finds on the CPU."""
    run_dir, tables = setting.folder / "run", {}
    with Job(run_dir, 0, _settings(setting, **{"optim.steps": 44})) as job:
        assert job.wait(SLOW_SECONDS) == 0, job.log
    for kind in dict.fromkeys([setting.kind, "cpu"]):
        out = setting.folder / kind
        command = [sys.executable, "-m", "moco_dist.evaluate", str(run_dir), "--out", str(out), f"device.type={kind}"]
        command += ["--knn", "--linear", "--labels", "100", "--no-semi", "--finetune"]
        subprocess.run(command, cwd=jobs.ROOT, check=True, capture_output=True, text=True, timeout=SLOW_SECONDS)
        rows = json.loads((out / "evaluation.json").read_text())["rows"]
        tables[kind] = {f"{row['method']} {row['labels'] or 'all'} labels": row["test_accuracy_mean"] for row in rows}
    there, here = tables[setting.kind], tables["cpu"]
    shown = ", ".join(
        f"{name} {100 * there[name]:.2f} % (CPU {100 * accuracy:.2f} %)" for name, accuracy in here.items()
    )
    limits = {name: FINE_TUNED_LIMIT if "fine-tuned" in name else LIMIT for name in here}
    alike = all(abs(there[name] - accuracy) <= limits[name] for name, accuracy in here.items())
    return Result(alike, f"{shown}; limit: {100 * LIMIT:g} point, fine-tuned {100 * FINE_TUNED_LIMIT:g} points apart")


# ------------------------------------------------------------------------------------------------------ several devices


def nccl(setting: Setting) -> Result:
    """Two ranks where there are two GPUs, else the operations that a step uses in a process group of one."""
    if setting.on_gpu and torch.cuda.device_count() < 2:
        return _group_of_one(setting)
    return _two_ranks(setting)


def _two_ranks(setting: Setting) -> Result:
    """Both ways to shuffle, on two ranks and on one; a run of two ranks goes on with one."""
    steps, kill_at = 24, 12
    exact = {"optim.steps": steps, "device.deterministic": True}
    curves = {}
    for name, ranks, mode in (("one", 0, "all_gather"), ("gather", 2, "all_gather"), ("all_to_all", 2, "all_to_all")):
        with Job(setting.folder / name, ranks, _settings(setting, **exact, **{"moco.shuffle": mode})) as job:
            assert job.wait(SLOW_SECONDS) == 0, job.log
        curves[name] = jobs.state(setting.folder / name), losses(setting.folder / name)
    (_, alone), (gathered, first), (exchanged, second) = curves.values()
    keys_equal = jobs.equal(gathered["queue"], exchanged["queue"]) and first == second
    moved = setting.folder / "moved"
    with Job(moved, 2, _settings(setting, **exact)) as job:
        assert job.until_step(kill_at), job.log
        job.kill_all()
    with Job(moved, 0, _settings(setting, **exact)) as job:
        assert job.wait(SLOW_SECONDS) == 0, job.log
    apart = {
        "one rank's": max(abs(first[step] - alone[step]) for step in alone),
        "resumed on one": max(abs(losses(moved)[step] - alone[step]) for step in alone),
    }
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in apart.items())
    return Result(
        keys_equal and max(apart.values()) <= 1e-4,
        f"two ranks: keys and losses of all_gather and all_to_all {'equal' if keys_equal else 'DIFFER'}; "
        f"largest difference of the losses: {shown} (limit 1e-4)",
    )


def _group_of_one(setting: Setting) -> Result:
    """The collectives of the trainer, which a world of one passes over, called on NCCL with one member."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=setting.device)
    try:
        sent = torch.randn(8, 3, device=setting.device)
        gathered, exchanged = torch.empty_like(sent), torch.empty_like(sent)
        collectives._all_gather(collectives.as_bytes(gathered), collectives.as_bytes(sent))
        count = sent.numel() * sent.element_size()
        dist.all_to_all_single(collectives.as_bytes(exchanged), collectives.as_bytes(sent), [count], [count])
        moved = torch.equal(gathered, sent) and torch.equal(exchanged, sent)
        items: list[Any] = [None]
        dist.all_gather_object(items, {"step": 3})
        averaged = _gradients(setting, parallel=True)
        alike = all(map(torch.equal, averaged, _gradients(setting, parallel=False)))
    finally:
        dist.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return Result(
        moved and items == [{"step": 3}] and alike,
        f"NCCL {version}, a group of one: all_gather and all_to_all of bytes {'equal' if moved else 'DIFFER'}, objects "
        f"{items}, DDP's gradients {'equal' if alike else 'DIFFER'}. Two ranks were not run: one GPU",
    )


def _gradients(setting: Setting, *, parallel: bool) -> list[torch.Tensor]:
    """Gradients of an encoder, with DDP around it as the trainer puts it, or without."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    config = configs.load(None, ["model.width=8"])
    encoder = build_encoder(config.model, 1, seed=0).to(setting.device)
    arguments: dict[str, Any] = {collectives._SYNC_BUFFERS: False}
    query = DistributedDataParallel(encoder, gradient_as_bucket_view=True, **arguments) if parallel else encoder
    generator = torch.Generator().manual_seed(0)
    for part in range(2):
        x = torch.randn(16, 1, 8, 8, generator=generator).to(setting.device)
        with collectives.gradients(query, synchronise=part == 1):
            query(x).square().mean().backward()
    return [p.grad for p in encoder.parameters() if p.grad is not None]


def _settings(setting: Setting, **changes: Any) -> dict[str, Any]:
    return {"device.type": setting.kind, "track.wandb": "disabled", **changes}
