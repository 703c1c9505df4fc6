"""Show runs as plain data, for programs."""

from typing import Any

from launcher import slurm
from launcher.views import moments
from launcher.views.runs import Run


def of(run: Run) -> dict[str, Any]:
    """Return a run as plain data; `status --help` explains the keys."""
    sent, job, figures, evidence = run.submission, run.job, run.figures, run.evidence
    return {
        "run": run.name,
        "run_dir": str(run.launch.run_dir),
        "job": run.job_id or None,
        "executor": sent.executor if sent else None,
        "state": run.state,
        "reason": run.reason,
        "starting": bool(run.waits_for),
        "waits_for": run.waits_for or None,
        "confirmed": run.confirmed,
        "live": run.live,
        "ended": run.ended,
        "step": run.step,
        "total_steps": figures.total_steps,
        "saved_step": evidence.saved,
        "checkpoint_failures": figures.checkpoint_failures,
        "epoch": figures.epoch,
        "images_per_second": figures.images_per_second,
        "loss": figures.loss,
        "knn_top1": figures.knn_top1,
        "starts": evidence.starts,
        "restarts": max(0, evidence.starts - 1),
        "submitted": moments.iso(moments.of_text(sent.submitted)) if sent else None,
        "since": moments.iso(run.since),
        "seconds": run.seconds,
        "seconds_left": figures.seconds_left if run.state == "running" else None,
        "allocation_seconds_left": slurm.seconds(job.time_left) if job and run.state == "running" else None,
        "slurm_state": job.state if job else None,
        "slurm_reason": job.reason if job else None,
        "nodes": run.nodes or None,
        "sweep": sent.sweep if sent else None,
    }
