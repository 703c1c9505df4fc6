"""Rows of two runs are compared step by step and bit for bit; what no run repeats does not count."""

from __future__ import annotations

from typing import Any

import pytest

from moco_dist.run import comparison


def compared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> comparison.Comparison:
    return comparison.compare(*(comparison.training_rows(rows) for rows in (one, other)))


def row(step: int, loss: float, **figures: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "loss": loss, **figures}


def test_where_and_how_far_rows_part() -> None:
    one = [row(step, float(step), top1=0.5) for step in range(1, 6)]
    other = [row(1, 1.0), row(2, 2.0, top1=0.25), row(3, 3.5, top1=0.5), row(4, 1.0, top1=0.5), row(5, 5.25, top1=0.5)]
    result = compared(one, other)
    assert result.first == "loss"  # though top1 differs a step before it
    assert (result.first_step, result.equal_before, result.steps) == (3, 2, [1, 2, 3, 4, 5])
    assert result.drifts["loss"] == comparison.Drift(3, (3.0, 3.5), 3.0, 4, 0.25)
    assert result.drifts["top1"] == comparison.Drift(2, (0.5, 0.25), 0.25, 2, 0.0)
    assert result.one_sided == {"top1"}  # at step 1, which is no difference


def test_only_common_steps_count() -> None:
    result = compared([row(step, 1.0) for step in (3, 6, 9)], [row(step, 1.0 + (step == 4)) for step in range(4, 8)])
    assert result.steps == [6] and result.first is None and result.equal_before == 1


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("loss", True),
        ("lr", True),
        ("gradient_norm", True),
        ("unreadable", True),
        ("term_of_a_new_method", True),
        ("epoch", False),
        ("images_per_second", False),
        ("data_wait", False),
        ("checkpoint_failures", False),
    ],
)
def test_what_counts(name: str, counts: bool) -> None:
    one, other = ({**row(1, 1.0), name: value} for value in (1, 2))
    assert bool(comparison.compare({1: one}, {1: other}).drifts) == counts


def test_bits_count() -> None:
    assert not comparison.equal_bits(0.0, -0.0) and not comparison.equal_bits(1.0, 1.0 + 2**-52)
    assert comparison.equal_bits(0.1 + 0.2, 0.30000000000000004) and comparison.equal_bits(2, 2)


def test_evaluations_are_compared_by_themselves() -> None:
    rows = [row(22, 1.0), {"step": 22, "epoch": 1, "knn_top1": 0.5}, {"step": 22, "finding": "collapsed"}]
    assert [list(kind(rows)) for kind in (comparison.training_rows, comparison.evaluation_rows)] == [[22], [22]]
    assert comparison.evaluation_rows(rows)[22]["knn_top1"] == 0.5
