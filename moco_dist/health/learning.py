"""Rules about the loss: chance, temperature, learning rate, overflow, and the probe beside it."""

import math

from moco_dist.health.course import Course
from moco_dist.health.finding import GOOD, Judgement, Proposal, rounded
from moco_dist.health.representation import COLLAPSED, LEAST_TEMPERATURE, MOST_TEMPERATURE, NEAR_CHANCE, SOLVED, suspect

CHANCE = 0.97
"""Share of the loss at chance that a run must have fallen below some epochs after its start."""
CHANCE_EPOCHS = 3
"""Epochs after the warm-up of the learning rate that a run may take for that."""
FLAT = 0.98
"""Entropy of the softmax, as a share of ln(K+1), beyond which it hides all differences."""
SURE = 2.0
"""Loss of a direction as a multiple of the softmax's entropy; a calibrated softmax has 1 (Guo et al. 2017)."""
LOST = 0.5
"""Share of what the loss has come below chance, which a run may lose again."""
FAST, SLOW = 3e-3, 1e-4
"""Shares of its weights by which an encoder may change in a step, at most, and should change, at least."""
WORSE = 1.05
"""Share of the loss at chance beyond which an encoder is worse than one that sees nothing."""
STEADY = 0.9
"""Momentum below which the encoders' distance is the noise of a few steps, and says nothing about their pace."""
SKIPPED = 0.2
"""Share of steps that fp16 may leave out; its scale doubles every 2,000 steps and is halved by an overflow."""
GAP = 0.25
"""Accuracy that a probe may have on its training images beyond that on others."""


def at_chance(course: Course) -> Judgement | None:
    """Judge whether the loss has come below ln(K+1), which an encoder gets that sees nothing."""
    facts, window = course.facts, course.window
    if not course.is_settled or window.first["epoch"] < facts.config.optim.warmup_epochs + CHANCE_EPOCHS:
        return None
    share, loss, chance = course.chance_share(), window.mean("loss"), window.mean("loss_at_chance")
    if not share > CHANCE:
        return GOOD
    evidence = (
        f"the loss is {loss:.3f} over {window.steps}, {share:.1%} of the {chance:.3f} of an encoder that sees nothing"
    )
    return Judgement(True, evidence, suspect(facts))


def temperature_too_high(course: Course) -> Judgement | None:
    """Judge whether the softmax is flat although the features differ (Wang and Liu 2021, section 3).

    A temperature of up to 0.5 is left alone: with it, SimCLR's contrast still worked (Chen et al. 2020, table 5).
    """
    window, moco = course.window, course.facts.config.moco
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    share = window.mean("entropy") / math.log(moco.queue_size + 1)
    if not share > FLAT or moco.temperature <= MOST_TEMPERATURE:
        return GOOD
    floor = math.log1p(moco.queue_size * math.exp(-1 / moco.temperature))
    evidence = (
        f"the softmax over {moco.queue_size + 1} keys has {share:.1%} of the largest entropy over {window.steps}, "
        f"although the features are spread ({window.mean('q_std'):.2f}): with temperature {moco.temperature:g}, all "
        f"keys count nearly alike, and even with orthogonal negatives, a query's loss cannot fall below {floor:.2f}"
    )
    return Judgement(True, evidence, Proposal("moco.temperature", 0.2))


def temperature_too_low(course: Course) -> Judgement:
    """Judge whether the softmax is surer than it is right: its entropy is the loss where it is calibrated.

    This shows in the first steps already, after which such a run often collapses (Wang and Liu 2021, section 3.3).
    """
    window, facts = course.window, course.facts
    loss, entropy = window.mean("loss") / facts.directions, window.mean("entropy")
    temperature, top1 = facts.config.moco.temperature, window.mean("top1")
    if not (loss > SURE * entropy and top1 < SOLVED):
        return GOOD
    evidence = (
        f"the loss of a query is {loss:.2f}, {loss / max(entropy, 1e-9):.1f} times the softmax's entropy of "
        f"{entropy:.2f}, over {window.steps}, at an accuracy of {top1:.1%}: with temperature {temperature:g}, one key "
        "gets all of the weight, and it is often a wrong one"
    )
    proposal = Proposal("moco.temperature", rounded(max(0.07, 2 * temperature)))
    return Judgement(True, evidence, proposal)


def pace_of(course: Course) -> float:
    """Return by which share of its weights the query encoder moves away from where it was in a step.

    The key encoder lags 1 / (1 - m) steps behind, or all steps so far (He et al. 2020, equation 2), so that the
    distance of the encoders is the way of so many steps.
    """
    lag = min(1 / max(1 - course.facts.config.moco.momentum, 1e-12), course.window.last_step)
    return course.window.mean("encoder_distance") / lag


def lr_too_high(course: Course) -> Judgement | None:
    """Judge whether an encoder changes too fast, or has lost what it had learned, or is worse than chance.

    LARS sets steps to a thousandth of the weights (You et al. 2017, section 4 and its trust coefficient).
    """
    facts, window = course.facts, course.window
    moco = facts.config.moco
    if not course.is_settled or moco.temperature < LEAST_TEMPERATURE or moco.momentum < STEADY:
        return None
    pace, share, best = pace_of(course), course.chance_share(), course.best_share
    lost = best < NEAR_CHANCE and share > best + LOST * (1 - best)
    if not (pace > FAST or share > WORSE or lost):
        return GOOD
    evidence = (
        f"the encoder changes by {pace:.2%} of its weights in a step over {window.steps}, with a learning rate of "
        f"{window.mean('lr'):.3g}, and the loss is {share:.1%} of what an encoder gets that sees nothing"
    )
    if lost:
        evidence += f", after {best:.1%} at best"
    return Judgement(True, evidence, Proposal("optim.lr", facts.lower_lr))


def lr_too_low(course: Course) -> Judgement | None:
    """Judge whether an encoder hardly changes, while its learning rate is near the config's."""
    window, config = course.window, course.facts.config
    if not course.is_settled or course.lr_share < 0.5:
        return None
    pace, share = pace_of(course), course.chance_share()
    if not (pace < SLOW and share > NEAR_CHANCE):
        return GOOD
    evidence = (
        f"the encoder changes by {pace:.2g} of its weights in a step over {window.steps}, with a learning rate of "
        f"{window.mean('lr'):.2g}, and the loss is {share:.1%} of what an encoder gets that sees nothing"
    )
    lr = rounded(max(course.facts.paper_lr, 3 * config.optim.lr))
    return Judgement(True, evidence, Proposal("optim.lr", lr))


def overflow(course: Course) -> Judgement | None:
    """Judge how many steps were left out, since their fp16 gradients overflowed."""
    first, last = course.window.first, course.window.last
    steps = last["step"] - first["step"]
    if steps <= 0 or any("skipped_steps" not in row for row in (first, last)):
        return None
    if first["step"] <= 2 * steps:  # the scale is found in the first steps
        return None
    share = (last["skipped_steps"] - first["skipped_steps"]) / steps
    if not share > SKIPPED:
        return GOOD
    evidence = (
        f"{share:.0%} of {course.window.steps} were left out, since their fp16 gradients overflowed; "
        f"{last['skipped_steps']:.0f} so far"
    )
    return Judgement(True, evidence, Proposal("device.precision", "bf16"))


def probe_overfits(course: Course) -> Judgement | None:
    """Judge how much better the linear probe is on the images that it was fitted to, where there are more images.

    Few images are known by heart by any probe that is fitted to all of them.
    """
    row, facts = course.evaluation, course.facts
    most = facts.config.eval.online_images
    fitted, others = row["linear_train_top1"], row["linear_top1"]
    if not (fitted - others > GAP):
        return GOOD
    if facts.images is not None and (most is None or facts.images <= most):
        return None
    evidence = (
        f"the linear probe has {fitted:.1%} on the images that it was fitted to and {others:.1%} on others at step "
        f"{row['step']}: its figure says little; more images make it reliable"
    )
    return Judgement(True, evidence, Proposal("eval.online_images", 2 * (most or 10_000)))
