"""Rules about speed and about the ranks: waits for batches, a slow rank, ranks whose states differ."""

from moco_dist.health.course import Course, Facts
from moco_dist.health.finding import GOOD, Judgement, Proposal

DATA_BOUND = 0.2
"""A run whose ranks wait for batches for so much of the time is data-bound."""
SLOW_RANK = 0.2
"""A rank that lies behind the median of the ranks by so much of a step holds the others up."""
SAME_RANK = 0.7
"""Share of the rows in which it must be one and the same rank; among equal ones, the slowest changes."""


def data_bound(course: Course) -> Judgement:
    """Judge how long the ranks wait for batches, over a minute: the start of workers takes seconds."""
    minute = course.minute
    share = minute.mean("data_wait")
    if not share > DATA_BOUND:
        return GOOD
    evidence = (
        f"the ranks wait for batches {share:.0%} of the time over {minute.steps}; {data_bound_advice(course.facts)}"
    )
    return Judgement(True, evidence, data_bound_proposal(course.facts))


def data_bound_proposal(facts: Facts) -> Proposal:
    """Return what makes batches come sooner: a faster decoder, more workers, or images that are kept decoded."""
    data = facts.config.data
    if data.source == "imagefolder" and data.decode == "pillow":
        return Proposal("data.decode", "cpu")
    if facts.workers is None or facts.cores is None:
        return Proposal("data.workers", "auto")
    if facts.workers < facts.cores - 1:
        return Proposal("data.workers", facts.cores - 1)
    return Proposal("data.cache", "memory")


def data_bound_advice(facts: Facts) -> str:
    """Say in words what makes batches come sooner."""
    proposal = data_bound_proposal(facts)
    match proposal.key:
        case "data.decode":
            return "another run with data.decode=cpu decodes several times faster"
        case "data.workers" if facts.workers is not None:
            return f"raise data.workers from {facts.workers} to {proposal.value}"
        case "data.workers":
            return "raise data.workers; auto chooses it by the cores of a rank"
        case _:
            more = f"give each rank more than its {facts.cores} cores, or store smaller images"
            return f"{more}; small files are best packed in shards, and images of one size kept in memory"


def ranks_apart(course: Course) -> Judgement:
    """Judge whether the hashes of parameters and queue were equal on all ranks, which they must be."""
    row = course.row
    if not row["ranks_apart"] > 0:
        return GOOD
    evidence = (
        f"hashes of parameters and queue differ between the ranks at step {row['step']}; a start from the last "
        "checkpoint gives all ranks one state again, and the exact engine keeps it so: if they part again, a GPU or "
        "its memory is at fault"
    )
    return Judgement(True, evidence, Proposal("device.engine", "exact"))


def slow_rank(course: Course) -> Judgement | None:
    """Judge by how much of a step the slowest rank lies behind the median of the ranks, over a minute.

    A rank that waits for batches is slow by that, and `data_bound` tells it.
    """
    minute, facts = course.minute, course.facts
    if minute.mean("data_wait") > DATA_BOUND:
        return None
    if not minute.slowest:
        return None
    [(rank, rows)] = minute.slowest.most_common(1)
    seconds, lag = minute.seconds / minute.steps_taken, minute.mean("slowest_lag")
    if not (rows > SAME_RANK * minute.rows and lag > SLOW_RANK * seconds):
        return GOOD
    evidence = (
        f"rank {rank:g} lies {lag:.3g} s behind the median of the ranks in steps of "
        f"{seconds:.3g} s over {minute.steps}; look at its node, or leave it out; workers take its CPU's work off it"
    )
    more = (facts.cores or 1) - 1
    workers = "auto" if facts.workers is None or more <= facts.workers else more
    return Judgement(True, evidence, Proposal("data.workers", workers))
