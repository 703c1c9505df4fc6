"""Say in a sentence how loss and accuracies have gone since the run began."""

from collections.abc import Iterator

from moco_dist.health.course import Course


def learned(course: Course) -> str:
    """Return the sentence; empty where there are no rows."""
    return "; ".join(_parts(course)) + "." if course.row else ""


def _parts(course: Course) -> Iterator[str]:
    first, last = course.first_window, course.window
    if last is first or not last.rows:
        yield f"The loss is {course.row['loss']:.3f} at step {course.row['step']}"
    else:
        chance = f", where chance is {last.mean('loss_at_chance'):.3f}" if last.has("loss_at_chance") else ""
        yield (
            f"The loss went from {first.mean('loss'):.3f} ({first.steps}) to {last.mean('loss'):.3f} ({last.steps})"
            f"{chance}"
        )
        if first.has("top1") and last.has("top1"):
            yield f"the accuracy of the pretext task from {first.mean('top1'):.1%} to {last.mean('top1'):.1%}"
    begun, now, best = course.first_evaluation, course.evaluation, course.best_evaluation
    if now:
        went = "is " if now is begun else f"from {begun['knn_top1']:.1%} (step {begun['step']}) to "
        at_best = "" if best is now or best is begun else f", {best['knn_top1']:.1%} at best (step {best['step']})"
        yield f"kNN {went}{now['knn_top1']:.1%} (step {now['step']}){at_best}"
