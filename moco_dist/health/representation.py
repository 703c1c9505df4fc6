"""Rules about what the features are like: collapse, a leak through BatchNorm, views too alike or too different."""

from moco_dist.health.course import Course, Facts
from moco_dist.health.finding import Judgement, Proposal

COLLAPSED = 0.15
"""Standard deviation of the features' dimensions, times the root of their number: 1 on the sphere, 0 for one point."""
FEW_DIMENSIONS = 3.0
"""Effective rank of the features of a batch."""
LEAK_TOP1 = 0.5
"""Accuracy of the pretext task beyond which kNN should have risen, in a run whose BatchNorm groups can leak."""
ALIKE = 0.97
"""Mean cosine of a query and its key beyond which the task is trivial, where the pretext task is solved too."""
SOLVED = 0.95
"""Accuracy of the pretext task that counts as solved."""
UNLIKE = 0.3
"""Mean cosine of a query and its key below which two views have too little in common."""


def collapsed(course: Course) -> Judgement | None:
    """Judge whether all images have nearly one feature (Chen and He 2021, section 4.1 and figure 2)."""
    if not course.is_settled:
        return None
    window = course.window
    std = window.mean("q_std")
    evidence = (
        f"the features' standard deviation is {std:.2g} over {window.steps}, where 1 is spread over the sphere and 0 a "
        f"single point: all images look the same to the encoder"
    )
    return Judgement(std < COLLAPSED, evidence, suspect(course.facts))


def dimensions_collapsed(course: Course) -> Judgement | None:
    """Judge in how many dimensions the features lie (Jing et al. 2022, section 4), unless they are one point."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    rank, dim = window.mean("q_rank"), course.facts.config.model.dim
    evidence = f"the effective rank of the features is {rank:.2g} of {dim} dimensions over {window.steps}"
    return Judgement(rank < min(FEW_DIMENSIONS, dim / 2), evidence, suspect(course.facts))


def suspect(facts: Facts) -> Proposal:
    """Return the setting that most likely keeps the run from learning, with the papers' value."""
    config = facts.config
    if config.moco.momentum < 0.9:  # He et al. 2020, section 4.1: momentum 0 fails, 0.9 works
        return Proposal("moco.momentum", 0.99)
    if config.moco.temperature > 0.5:
        return Proposal("moco.temperature", 0.2)
    return Proposal("optim.lr", facts.lower_lr)


def batchnorm_leak(course: Course) -> Judgement | None:
    """Judge whether the pretext task is solved while kNN does not get better (He et al. 2020, section 3.3, figure A.1).

    Without the shuffle, a query and its positive key share their BatchNorm group, and no negative does: the groups'
    statistics give the positive away.
    """
    moco, window = course.facts.config.moco, course.window
    if moco.shuffle != "none" or moco.bn_groups == 1 or not window.has("top1"):
        return None
    first, best, now = course.first_evaluation, course.best_evaluation, course.evaluation
    if now is first:
        return None
    top1, knn = window.mean("top1"), now["knn_top1"]
    groups = f"{moco.bn_groups} BatchNorm groups" if moco.bn_groups else "a BatchNorm group for each rank"
    evidence = (
        f"the accuracy of the pretext task is {top1:.1%} over {window.steps}, but kNN has gone from "
        f"{first['knn_top1']:.1%} (step {first['step']}) to {knn:.1%} (step {now['step']}), at best "
        f"{best['knn_top1']:.1%} (step {best['step']}): with moco.shuffle=none and {groups}, the statistics of a group "
        "give the positive away"
    )
    risen = knn > first["knn_top1"] + 0.02
    return Judgement(top1 > LEAK_TOP1 and not risen, evidence, Proposal("moco.shuffle", "all_gather"))


def augmentation_too_weak(course: Course) -> Judgement | None:
    """Judge whether the two views of an image are nearly the same, so that there is nothing to learn from them."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    positive, top1 = window.mean("positive_similarity"), window.mean("top1")
    evidence = (
        f"a query and its key have a mean cosine of {positive:.3f} over {window.steps}, and are told from "
        f"{course.facts.config.moco.queue_size} others in {top1:.1%} of the cases: the views are nearly the same image"
    )
    return Judgement(positive > ALIKE and top1 > SOLVED, evidence, stronger_augmentation(course.facts))


def stronger_augmentation(facts: Facts) -> Proposal:
    """Return smaller crops, as far as those of the papers; beyond that, more operations."""
    data = facts.config.data
    if data.crop_scale[0] > 0.2:
        return Proposal("data.crop_scale", "0.2,1.0")
    if data.augmentation != "v2":
        return Proposal("data.augmentation", "v2")
    return Proposal("data.crop_scale", "0.08,1.0")


def augmentation_too_strong(course: Course) -> Judgement | None:
    """Judge whether the two views of an image are hardly more alike than those of two images."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    positive, hardest = window.mean("positive_similarity"), window.mean("hardest_similarity")
    evidence = (
        f"a query and its key have a mean cosine of {positive:.2f} over {window.steps}, and the nearest key of another "
        f"image {hardest:.2f}: the two views of an image have too little in common"
    )
    return Judgement(positive < UNLIKE, evidence, weaker_augmentation(course.facts))


def weaker_augmentation(facts: Facts) -> Proposal:
    """Return larger crops, or less of what else bends a view."""
    data = facts.config.data
    if data.crop_scale[0] < 0.2 or data.crop_scale[1] < 1:
        return Proposal("data.crop_scale", "0.2,1.0")
    for key in ("elastic_pixels", "rotation_degrees", "shear_degrees"):
        if value := getattr(data, key):
            return Proposal(f"data.{key}", value / 2)
    if data.crop_scale[0] < 0.6:
        return Proposal("data.crop_scale", "0.6,1.0")
    return Proposal("data.augmentation", "crop_blur")
