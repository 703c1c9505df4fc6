"""Sums in an order that depends on the number of terms alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moco_dist.summation import PairwiseSum, pairwise_sum


@given(st.integers(1, 33))
def test_it_is_the_sum(count: int) -> None:
    terms = torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(pairwise_sum(terms.clone()), terms.sum(0))


def test_holders_of_equal_shares_get_the_same_bits() -> None:
    terms = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0)) * 1e3
    alone = pairwise_sum(terms.clone())
    for holders in (2, 4, 8, 16):
        shares = [pairwise_sum(share.clone()) for share in terms.chunk(holders)]
        assert torch.equal(pairwise_sum(torch.stack(shares)), alone)
    assert not torch.equal(terms.clone().cumsum(0)[-1], alone)  # one after the other gives others


def test_lists_are_added_item_by_item() -> None:
    total = PairwiseSum()
    for n in (1.0, 2.0, 4.0):
        total.add([torch.tensor([n]), torch.tensor([[10 * n]])])
    assert [t.tolist() for t in total.total()] == [[7.0], [[70.0]]]
