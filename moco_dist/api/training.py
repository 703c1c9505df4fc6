"""Train from Python, in this process or in all ranks of torchrun."""

from __future__ import annotations

from moco_dist import config as configs
from moco_dist.api.runs import Run
from moco_dist.api.settings import ConfigLike, config_of
from moco_dist.config.from_python import Overrides
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank
from moco_dist.run.directory import RunDirectory


def fit(config: ConfigLike | None = None, overrides: Overrides = (), *, verbose: bool = True) -> Run:
    """Train a run to its end, as `python -m moco_dist.train` does, and return it.

    Under torchrun every rank calls it, and the ranks share the work; elsewhere this process is the only rank. A run
    that has begun goes on from its last checkpoint, whoever began it, and one that is done is returned as it is. This
    process is given back as it was: signal handlers, torch's switches and random state, environment, process group.

    Args:
        config: a YAML file; the name of a shipped config (`digits`, `mnist` ...); the directory of a run that is to go
            on; a mapping of sections (`{"optim": {"lr": 0.03}}`); or a config. None is the embedded default, `digits`.
        overrides: as on the command line, `["optim.lr=0.06"]`, or values by key, `{"optim.lr": 0.06}`. An override of
            `run.name` alone begins another run in `runs/<name>`.
        verbose: whether progress and results are printed, by rank 0; warnings always are, on stderr.

    Returns:
        The run, whose status is `done`; on every rank.

    Raises:
        UserError: a mistake of the user's, in one line with key, value, rule and fix; on all ranks that have met.
        Stopped: the run was asked to stop, by SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2 to any rank, or by
            `run.max_minutes`. Its state is saved, and the same call goes on. In another thread than the main one,
            signals are not heeded.
        Diverged: the loss is no number any more.
        Exception: whatever else goes wrong, as it was raised.

    Example:
        >>> import moco_dist
        >>> tiny = {"run.dir": "runs/digits", "optim.steps": 4, "optim.global_batch": 64, "model.width": 8}
        >>> digits = moco_dist.fit("digits", tiny, verbose=False)
        >>> digits.status.state
        'done'
    """
    rank = Rank.from_environment(quiet=not verbose)
    loaded = config_of(config, overrides)
    run_dir = RunDirectory(loaded.run_dir, "the same call")
    try:
        plan = configs.layout(loaded, rank.size)
    except UserError as error:
        if rank.speaks(met=False):
            run_dir.refused(str(error))
        raise
    from moco_dist.methods.moco import MoCo
    from moco_dist.ranks.process_state import preserved
    from moco_dist.train import process

    with preserved("moco_dist.fit"):
        process.call(process.Start(loaded, plan, rank, run_dir), MoCo)
    return Run.at(run_dir.folder)
