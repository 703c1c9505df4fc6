"""Rules about the queue, and about the two encoders that fill and use it."""

from moco_dist.health.course import Course, Facts
from moco_dist.health.finding import GOOD, Judgement, Proposal

STALE = 0.1
"""Share of its weights by which the key encoder may change over the age of the queue."""
APART = 0.5
"""Share of its weights by which the query encoder may be away from the key encoder."""
PAPER_MOMENTUM = 0.999
"""The momentum of He et al. 2020 (section 4.1), with which 65,536 keys stayed consistent on ImageNet."""
FOLLOWS = 0.2
"""Share of the query encoder's weights that the key encoder is to take over within the run, at least."""
LEAST_MOMENTUM = 0.9
"""The smallest momentum that worked for He et al. 2020 (section 4.1)."""
SMALL_MOMENTUM = 0.99
"""The momentum of the authors' CIFAR-10 demo, for data sets of some ten thousand images."""


def larger_than_data(course: Course) -> Judgement | None:
    """Judge whether the queue holds more keys than there are images, so that an image meets itself as a negative."""
    facts = course.facts
    if facts.images is None or course.rows > 1:  # what it is about does not change
        return None
    size = facts.config.moco.queue_size
    if size <= facts.images:
        return GOOD
    evidence = (
        f"moco.queue_size = {size}: more than the {facts.images} training images, so that the queue holds other views "
        f"of a query's own image as negatives; its oldest key is {facts.queue_steps} steps old"
    )
    return Judgement(True, evidence, Proposal("moco.queue_size", smaller_queue(facts)))


def smaller_queue(facts: Facts) -> int:
    """Return a queue of at most half of the images, a power of two, and of at most half of what it is."""
    most = min(facts.config.moco.queue_size, facts.images or facts.config.moco.queue_size) // 2
    return max(1, 1 << (max(1, most).bit_length() - 1))


def way_in_queue(course: Course) -> float:
    """Return by which share of its weights the key encoder has moved since it made the oldest key of the queue.

    An update moves it by `(1 - m) |theta_q - theta_k|` (He et al. 2020, equation 2); the queue's age times that is
    the way since its oldest key.
    """
    window, momentum = course.window, course.facts.config.moco.momentum
    return (1 - momentum) * window.mean("encoder_distance") * window.mean("queue_age_steps")


def stale(course: Course) -> Judgement | None:
    """Judge how far the key encoder has moved since it made the oldest keys of the queue."""
    if not course.is_settled:
        return None
    window, facts = course.window, course.facts
    way = way_in_queue(course)
    if not way > STALE:
        return GOOD
    distance, age, momentum = (
        window.mean("encoder_distance"),
        window.mean("queue_age_steps"),
        facts.config.moco.momentum,
    )
    evidence = (
        f"the key encoder has changed by about {way:.0%} of its weights since the oldest key of the queue, which is "
        f"{age:.0f} steps old (momentum {momentum:g}, encoders {distance:.2g} apart, over {window.steps}): such keys "
        "are not comparable"
    )
    return Judgement(True, evidence, steadier_keys(facts))


def steadier_keys(facts: Facts) -> Proposal:
    """Return a larger momentum, up to the paper's; beyond that, a smaller queue."""
    momentum = facts.config.moco.momentum
    if momentum < SMALL_MOMENTUM:
        return Proposal("moco.momentum", SMALL_MOMENTUM)
    if momentum < PAPER_MOMENTUM:
        return Proposal("moco.momentum", PAPER_MOMENTUM)
    return Proposal("moco.queue_size", smaller_queue(facts))


def encoders_apart(course: Course) -> Judgement | None:
    """Judge how far the key encoder is behind the query encoder, and whether it will follow within the run at all."""
    facts, window = course.facts, course.window
    if not course.is_settled:
        return None
    distance, momentum, steps = window.mean("encoder_distance"), facts.config.moco.momentum, facts.total_steps
    follows = 1.0 if steps is None else 1 - momentum**steps
    if not (distance > APART or follows < FOLLOWS):
        return GOOD
    evidence = (
        f"the encoders differ by {distance:.0%} of the query encoder's weights over {window.steps}, and with momentum "
        f"{momentum:g}, the key encoder takes over {follows:.0%} of them within {steps or 'all'} steps: the queries "
        "are compared with keys of an encoder that they have left behind"
    )
    if follows >= FOLLOWS and momentum <= SMALL_MOMENTUM:  # then it is the query encoder that is too fast
        return Judgement(True, evidence, Proposal("optim.lr", facts.lower_lr))
    return Judgement(True, evidence, closer_encoders(facts))


def closer_encoders(facts: Facts) -> Proposal:
    """Return a momentum by which the key encoder follows within a fifth of the run; beyond that, a lower rate."""
    steps = facts.total_steps or 1_000_000
    for momentum in (PAPER_MOMENTUM, SMALL_MOMENTUM, LEAST_MOMENTUM):
        if momentum < facts.config.moco.momentum and (1 - momentum) * steps >= 5:
            return Proposal("moco.momentum", momentum)
    return Proposal("optim.lr", facts.lower_lr)
