"""Rules about what the features are like: collapse, a leak through BatchNorm, views too alike or too different."""

from moco_dist.health.course import Course, Facts
from moco_dist.health.finding import GOOD, Judgement, Proposal, rounded

COLLAPSED = 0.15
"""Standard deviation of the features' dimensions, times the root of their number: 1 on the sphere, 0 for one point."""
FEW_DIMENSIONS = 3.0
"""Effective rank of the features of a batch."""
LEAK_TOP1 = 0.5
"""Accuracy of the pretext task beyond which kNN should have risen, in a run whose BatchNorm groups may leak."""
KNN_RISE = 0.02
"""Accuracy of kNN that counts as a rise since the first evaluation: twice the error of 360 digits at 96 %."""
ALIKE = 0.97
"""Mean cosine of a query and its key beyond which the task is trivial, where the pretext task is solved too."""
SOLVED = 0.95
"""Accuracy of the pretext task that counts as solved."""
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.03, 0.5
"""Temperatures beyond which learning fails: SimCLR's contrast worked from 0.05 to 0.5 (Chen et al. 2020, table 5)."""
UNLIKE = 0.1
"""Mean cosine of a query and its key below which two views have too little in common."""
SMALL_CROPS, NEAR_CHANCE = 0.3, 0.95
"""Area of the largest crop, as a share of the image, below which two crops seldom meet; and a loss near chance."""


def collapsed(course: Course) -> Judgement | None:
    """Judge whether all images have nearly one feature (Chen and He 2021, section 4.1 and figure 2)."""
    if not course.is_settled:
        return None
    window = course.window
    std = window.mean("q_std")
    if not std < COLLAPSED:
        return GOOD
    evidence = (
        f"the features' standard deviation is {std:.2g} over {window.steps}, where 1 is spread over the sphere and 0 a "
        f"single point: all images look the same to the encoder"
    )
    return Judgement(True, evidence, suspect(course.facts))


def dimensions_collapsed(course: Course) -> Judgement | None:
    """Judge in how many dimensions the features lie (Jing et al. 2022, section 4), unless they are one point."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    rank, dim = window.mean("q_rank"), course.facts.config.model.dim
    if not rank < min(FEW_DIMENSIONS, dim / 2):
        return GOOD
    evidence = f"the effective rank of the features is {rank:.2g} of {dim} dimensions over {window.steps}"
    return Judgement(True, evidence, suspect(course.facts))


def suspect(facts: Facts) -> Proposal:
    """Return the setting that most likely keeps the run from learning, with the papers' value."""
    config = facts.config
    if has_small_crops(facts):
        return weaker_augmentation(facts)
    if config.moco.momentum < 0.9:  # He et al. 2020, section 4.1: momentum 0 fails, 0.9 works
        return Proposal("moco.momentum", 0.99)
    if config.moco.temperature > MOST_TEMPERATURE:
        return Proposal("moco.temperature", 0.2)
    if config.moco.temperature < LEAST_TEMPERATURE:
        return Proposal("moco.temperature", 0.07)
    return Proposal("optim.lr", facts.lower_lr)


def batchnorm_leak(course: Course) -> Judgement | None:
    """Judge whether the statistics of BatchNorm's groups give the positive away (He et al. 2020, section 3.3).

    Without the shuffle, a query and its positive key share their group, and no negative does. Where the number of
    groups is not known, the figures decide: the pretext task is solved while kNN does not get better.
    """
    facts, window = course.facts, course.window
    if facts.config.moco.shuffle != "none" or facts.bn_groups == 1:
        return GOOD
    if not course.is_settled:
        return None
    first, now, top1 = course.first_evaluation, course.evaluation, window.mean("top1")
    risen = bool(now) and now["knn_top1"] > first["knn_top1"] + KNN_RISE
    if not facts.bn_groups and not (top1 > LEAK_TOP1 and not risen):
        return GOOD
    groups = f"{facts.bn_groups} BatchNorm groups" if facts.bn_groups else "a BatchNorm group for each rank"
    knn = "kNN has not been measured"
    if now:
        went = "is" if now is first else f"has gone from {first['knn_top1']:.1%} (step {first['step']}) to"
        knn = f"kNN {went} {now['knn_top1']:.1%} (step {now['step']})"
    evidence = (
        f"with moco.shuffle=none and {groups}, a query and its positive key share the statistics of their group, and "
        f"the negatives have others; the accuracy of the pretext task is {top1:.1%} over {window.steps}, and {knn}"
    )
    return Judgement(True, evidence, Proposal("moco.shuffle", "all_gather"))


def augmentation_too_weak(course: Course) -> Judgement | None:
    """Judge whether the two views of an image are nearly the same, so that there is nothing to learn from them."""
    window = course.window
    if not course.is_settled or window.mean("q_std") < COLLAPSED:
        return None
    positive, hardest, top1 = (window.mean(name) for name in ("positive_similarity", "hardest_similarity", "top1"))
    trivial = positive > ALIKE and top1 > SOLVED
    unchanged = positive > hardest and leaves_views_alike(course.facts)
    if not (trivial or unchanged):
        return GOOD
    evidence = (
        f"a query and its key have a mean cosine of {positive:.3f} over {window.steps}, the nearest key of another "
        f"image {hardest:.3f}, and the key is told from {course.facts.config.moco.queue_size} others in {top1:.1%} of "
        "the cases: the views are nearly the same image"
    )
    return Judgement(True, evidence, stronger_augmentation(course.facts))


def leaves_views_alike(facts: Facts) -> bool:
    """Return whether the config hardly changes a view: no smaller crops, no colours, no warps."""
    data = facts.config.data
    warped = data.rotation_degrees or data.shear_degrees or data.elastic_pixels
    return data.augmentation == "crop_blur" and data.crop_scale[0] > 0.9 and not warped


def stronger_augmentation(facts: Facts) -> Proposal:
    """Return smaller crops, down to those of the papers; beyond that, more operations; beyond that, smaller crops."""
    data = facts.config.data
    if data.crop_scale[0] > 0.2:
        return Proposal("data.crop_scale", "0.2,1.0")
    if data.augmentation != "v2":
        return Proposal("data.augmentation", "v2")
    return Proposal("data.crop_scale", f"{min(0.08, rounded(data.crop_scale[0] / 2))},1.0")


def augmentation_too_strong(course: Course) -> Judgement | None:
    """Judge whether the two views of an image are hardly more alike than those of two images.

    With small crops alone, features become alike instead: the loss stays near chance, and the crops are to blame.
    """
    window, facts = course.window, course.facts
    if not course.is_settled:
        return None
    positive, hardest = window.mean("positive_similarity"), window.mean("hardest_similarity")
    share, is_spread = course.chance_share(), window.mean("q_std") > COLLAPSED
    unlike = is_spread and positive < UNLIKE
    apart = has_small_crops(facts) and share > NEAR_CHANCE
    if not (unlike or apart):
        return GOOD
    evidence = (
        f"a query and its key have a mean cosine of {positive:.2f} over {window.steps}, the nearest key of another "
        f"image {hardest:.2f}, and the loss is {share:.1%} of what an encoder gets that sees nothing: the two views of "
        "an image have too little in common"
    )
    return Judgement(True, evidence, weaker_augmentation(facts))


def has_small_crops(facts: Facts) -> bool:
    """Return whether two crops seldom meet; SwAV compares small ones with large ones alone (Caron et al. 2020)."""
    return facts.config.data.crop_scale[1] < SMALL_CROPS


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
    if data.augmentation != "crop_blur":
        return Proposal("data.augmentation", "crop_blur")
    return Proposal("data.blur_probability", 0.0)
