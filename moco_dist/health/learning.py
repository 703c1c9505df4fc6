"""Rules about the loss: chance, temperature, learning rate, overflow, and the probe beside it."""

import math

from moco_dist.health.course import Course
from moco_dist.health.finding import Judgement, Proposal, rounded
from moco_dist.health.representation import COLLAPSED, suspect

CHANCE = 0.97
"""Share of the loss at chance that a run must have fallen below some epochs after its start."""
CHANCE_EPOCHS = 3
"""Epochs after the first ones that a run may take for that."""
FLAT = 0.95
"""Entropy of the softmax, as a share of ln(K+1), beyond which the temperature hides all differences."""
SURE = 2.0
"""Loss of a direction as a multiple of the softmax's entropy; a calibrated softmax has 1 (Guo et al. 2017)."""
LOST = 0.5
"""Share of what the loss has come below chance, which a run may lose again."""
SLOW = 1e-5
"""Share of its weights by which an encoder should change in a step."""
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
    evidence = (
        f"the loss is {loss:.3f} over {window.steps}, {share:.1%} of the {chance:.3f} of an encoder that sees nothing"
    )
    return Judgement(share > CHANCE, evidence, suspect(facts))


def temperature_too_high(course: Course) -> Judgement | None:
    """Judge whether the softmax is flat although the features differ."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    keys, temperature = course.facts.config.moco.queue_size + 1, course.facts.config.moco.temperature
    share = window.mean("entropy") / math.log(keys)
    evidence = (
        f"the softmax over {keys} keys has {share:.1%} of the largest entropy over {window.steps}, although the "
        f"features are spread ({window.mean('q_std'):.2f}): with temperature {temperature:g}, similar and dissimilar "
        "keys count nearly alike"
    )
    return Judgement(
        share > FLAT, evidence, Proposal("moco.temperature", rounded(max(min(0.2, temperature / 2), 0.01)))
    )


def temperature_too_low(course: Course) -> Judgement | None:
    """Judge whether the softmax is surer than it is right: its entropy is the loss where it is calibrated."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    facts = course.facts
    loss, entropy = window.mean("loss") / facts.directions, window.mean("entropy")
    temperature, top1 = facts.config.moco.temperature, window.mean("top1")
    evidence = (
        f"the loss of a query is {loss:.2f}, {loss / max(entropy, 1e-9):.1f} times the softmax's entropy of "
        f"{entropy:.2f}, over {window.steps}, at an accuracy of {top1:.1%}: with temperature {temperature:g}, one key "
        "gets all of the weight, and it is often a wrong one"
    )
    proposal = Proposal("moco.temperature", rounded(max(0.07, 2 * temperature)))
    return Judgement(loss > SURE * entropy and top1 < 0.9, evidence, proposal)


def lr_too_high(course: Course) -> Judgement | None:
    """Judge whether the loss is above chance, or has lost much of what had been learned."""
    if not course.is_settled:
        return None
    window, share, best = course.window, course.chance_share(), course.best_share
    worse = share > 1.02
    lost = share > best + LOST * (1 - best) and best < CHANCE
    past = f"after {best:.1%} at best" if math.isfinite(best) else "which none was below so far"
    evidence = (
        f"the loss is {window.mean('loss'):.3f} over {window.steps}, {share:.1%} of what an encoder gets that sees "
        f"nothing, {past}: steps with a learning rate of {window.mean('lr'):.3g} undo what was learned"
    )
    return Judgement(worse or lost, evidence, Proposal("optim.lr", course.facts.lower_lr))


def lr_too_low(course: Course) -> Judgement | None:
    """Judge by how much of its weights the encoder changes in a step, while its learning rate is near the config's.

    The key encoder follows at the same pace, by `(1 - m) |theta_q - theta_k|` a step (He et al. 2020, equation 2).
    """
    window, config = course.window, course.facts.config
    if not course.is_settled or course.lr_share < 0.5:
        return None
    pace, share = (1 - config.moco.momentum) * window.mean("encoder_distance"), course.chance_share()
    evidence = (
        f"the encoder changes by {pace:.1e} of its weights in a step over {window.steps}, with a learning rate of "
        f"{window.mean('lr'):.2g}, and the loss is {share:.1%} of what an encoder gets that sees nothing"
    )
    lr = rounded(max(course.facts.paper_lr, 3 * config.optim.lr))
    return Judgement(pace < SLOW and share > 0.9, evidence, Proposal("optim.lr", lr))


def overflow(course: Course) -> Judgement | None:
    """Judge how many steps were left out, since their fp16 gradients overflowed."""
    first, last = course.window.first, course.window.last
    steps = last["step"] - first["step"]
    if "skipped_steps" not in first or not steps or first["step"] <= 2 * steps:  # the scale is found in the first steps
        return None
    share = (last["skipped_steps"] - first["skipped_steps"]) / steps
    evidence = (
        f"{share:.0%} of {course.window.steps} were left out, since their fp16 gradients overflowed; "
        f"{last['skipped_steps']:.0f} so far"
    )
    return Judgement(share > SKIPPED, evidence, Proposal("device.precision", "bf16"))


def probe_overfits(course: Course) -> Judgement:
    """Judge how much better the linear probe is on the images that it was fitted to."""
    row = course.evaluation
    fitted, others = row["linear_train_top1"], row["linear_top1"]
    evidence = (
        f"the linear probe has {fitted:.1%} on the images that it was fitted to and {others:.1%} on others at step "
        f"{row['step']}: its figure says little; more images make it reliable"
    )
    images = 2 * (course.facts.config.eval.online_images or 10_000)
    return Judgement(fitted - others > GAP, evidence, Proposal("eval.online_images", images))
