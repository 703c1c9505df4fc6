"""The maths against loops written from the paper's formulas."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moco_dist.methods.losses import contrast_logits, enqueue_, info_nce, momentum_update_, top_k_accuracy


def unit_rows(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def test_logits_against_a_loop() -> None:
    q, k, queue = (unit_rows(n, 6, seed, torch.float64) for seed, n in enumerate((5, 5, 11)))
    logits = contrast_logits(q, k, queue, 0.07)
    assert logits.shape == (5, 12)
    assert logits.dtype == torch.float64
    for i in range(5):
        keys = [k[i], *queue]
        for j, key in enumerate(keys):
            expected = sum(a * b for a, b in zip(q[i].tolist(), key.tolist(), strict=True)) / 0.07
            assert logits[i, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_stay_float32_under_autocast(dtype: torch.dtype) -> None:
    q, k, queue = (unit_rows(n, 128, seed) for seed, n in enumerate((8, 8, 64)))
    plain = contrast_logits(q.to(dtype), k.to(dtype), queue, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        logits = contrast_logits(q.to(dtype), k.to(dtype), queue, 0.07)
        assert (q @ queue.T).dtype == torch.bfloat16  # so autocast was on
    assert logits.dtype == torch.float32
    assert torch.equal(logits, plain)


def test_info_nce_against_the_formula() -> None:
    logits = torch.randn(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    rows = [-math.log(math.exp(row[0]) / sum(map(math.exp, row))) for row in logits.tolist()]
    assert info_nce(logits).item() == pytest.approx(sum(rows) / 7, abs=1e-12)


def test_info_nce_of_a_collapsed_encoder_is_log_of_the_classes() -> None:
    assert info_nce(torch.ones(4, 129)).item() == pytest.approx(math.log(129))


def test_top_k_against_torch() -> None:
    logits = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    for k, accuracy in zip((1, 2, 5, 9), top_k_accuracy(logits, (1, 2, 5, 9)), strict=True):
        expected = (logits.topk(k, dim=1).indices == 0).any(dim=1).float().mean()
        assert accuracy.item() == expected.item()


def test_a_collapsed_encoder_scores_nothing() -> None:
    assert [x.item() for x in top_k_accuracy(torch.ones(4, 9))] == [0, 0]
    # At five keys behind the positive the sixth place is certain, at one tie the first is lost.
    assert [x.item() for x in top_k_accuracy(torch.tensor([[1.0, 1.0, 0.0]]))] == [0, 1]


def test_momentum_update() -> None:
    key = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0]])]
    query = [torch.tensor([3.0, 0.0]), torch.tensor([[8.0]], requires_grad=True)]
    places = [t.data_ptr() for t in key]
    momentum_update_(key, query, 0.75)
    assert [t.tolist() for t in key] == [[1.5, 1.5], [[5.0]]]
    assert [t.tolist() for t in query] == [[3.0, 0.0], [[8.0]]]
    assert [t.data_ptr() for t in key] == places
    assert not any(t.requires_grad for t in key)


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 1.0), (0.0, 3.0)])
def test_momentum_at_its_ends(momentum: float, expected: float) -> None:
    key = [torch.ones(3)]
    momentum_update_(key, [torch.full((3,), 3.0)], momentum)
    assert key[0].tolist() == [expected] * 3


@given(size=st.integers(1, 13), batches=st.lists(st.integers(1, 40), max_size=12), first=st.integers(0, 12))
def test_enqueue_against_a_list(size: int, batches: list[int], first: int) -> None:
    """Whatever the sizes, the queue holds the last K keys, the oldest of them at the cursor."""
    cursor = first % size
    queue = -torch.arange(1.0, size + 1).repeat(2, 1).T.contiguous()  # [K, 2]
    oldest_first = deque([queue[(cursor + i) % size, 0].item() for i in range(size)], maxlen=size)
    slow, at, written = queue[:, 0].tolist(), cursor, 0
    for count in batches:
        keys = torch.arange(written, written + count, dtype=torch.float64).repeat(2, 1).T
        cursor = enqueue_(queue, keys, cursor)
        for key in keys[:, 0].tolist():  # one at a time over the oldest
            slow[at] = key
            at = (at + 1) % size
            oldest_first.append(key)
        written += count
        assert cursor == at
        assert queue[:, 0].tolist() == queue[:, 1].tolist() == slow
        assert [queue[(cursor + i) % size, 0].item() for i in range(size)] == list(oldest_first)


def test_enqueue_keeps_the_queues_type_and_place() -> None:
    queue = torch.zeros(5, 3)
    place = queue.data_ptr()
    enqueue_(queue, torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), 4)
    assert queue.data_ptr() == place
    assert queue.dtype == torch.float32
    assert not queue.requires_grad
    assert queue[:, 0].tolist() == [1, 0, 0, 0, 1]
