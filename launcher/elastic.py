"""Tell how many nodes a job can use that takes from some to so many of them, whatever is idle when it starts."""

from launcher.record import Submission
from moco_dist import config as configs
from moco_dist.config import Config, Layout
from moco_dist.errors import UserError


def sizes(config: Config, submission: Submission) -> list[int]:
    """List the numbers of nodes, of those that the job may take, whose ranks divide batch and BatchNorm groups."""
    counts = range(submission.fewest_nodes, submission.nodes + 1)
    return [nodes for nodes in counts if divides(config, nodes * submission.profile.gpus_per_node)]


def narrowed(config: Config, submission: Submission) -> Submission:
    """Return a submission whose fewest and most nodes are such that the run can be laid on them.

    Raises:
        UserError: the curve would depend on the number of nodes, or no number of them can be used.
    """
    if submission.least_nodes is None:
        return submission
    nodes = f"{submission.least_nodes}-{submission.nodes}"
    if config.moco.bn_groups is None:
        groups = submission.ranks * config.optim.accumulate
        rule = f"with --nodes {nodes} the groups would change with the nodes, and with them the curve"
        raise UserError.of("moco.bn_groups", None, rule, f"set it, for example moco.bn_groups={groups}")
    if submission.profile.tasks == "rank":
        raise UserError.of("--nodes", nodes, "with tasks=rank a job has one number of nodes", "use tasks=node")
    if not (fitting := sizes(config, submission)):
        rule = f"no such number of nodes divides optim.global_batch={config.optim.global_batch} and its groups"
        raise UserError.of("--nodes", nodes, rule, "choose another moco.bn_groups, or other nodes")
    least = fitting[0] if len(fitting) > 1 else None
    return submission.model_copy(update={"least_nodes": least, "nodes": fitting[-1]})


def laid(config: Config, ranks: int) -> Layout | None:
    """Lay batch and BatchNorm groups on so many ranks; None where that cannot be done."""
    try:
        return configs.layout(config, ranks)
    except UserError:
        return None


def divides(config: Config, ranks: int) -> bool:
    """Return whether batch and BatchNorm groups can be laid on so many ranks."""
    return laid(config, ranks) is not None
