from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dgpo_core.flow.sizes import runs
from dgpo_core.training.microbatches import bundles


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 40), st.integers(0, 5))
def test_packing(sizes: list[int], micro_batch: int, first: int) -> None:
    """Every member once, no batch too large, every group complete within one bundle, whole groups never split."""
    active = [list(range(n)) for n in sizes]
    packed = list(bundles(active, micro_batch, first))
    everything = [member for bundle in packed for batch in bundle for member in batch]
    assert everything == [(first + g, m) for g, members in enumerate(active) for m in members]
    for bundle in packed:
        assert all(0 < len(batch) <= micro_batch for batch in bundle)
        if len(bundle) > 1:
            assert len({g for batch in bundle for g, _ in batch}) == 1
            assert len(bundle) == -(-sum(map(len, bundle)) // micro_batch)
    owners = [{g for batch in bundle for g, _ in batch} for bundle in packed]
    assert all(not (a & b) for i, a in enumerate(owners) for b in owners[:i])


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab")), max_size=8), st.integers(1, 40))
def test_a_micro_batch_is_of_one_bucket(groups: list[tuple[int, str]], micro_batch: int) -> None:
    """And otherwise packed as ever: each stretch of groups of one bucket as if there were no others."""
    active, buckets = [list(range(n)) for n, _ in groups], [bucket for _, bucket in groups]
    packed = list(bundles(active, micro_batch, 3, buckets))
    assert all(len({buckets[g - 3] for g, _ in batch}) == 1 for bundle in packed for batch in bundle)
    present = [i for i, members in enumerate(active) if members]
    stretches = [[present[i] for i in range(len(present))[run]] for run in runs([buckets[i] for i in present])]
    alone = [
        bundle for some in stretches for bundle in bundles(active[some[0] : some[-1] + 1], micro_batch, 3 + some[0])
    ]
    assert packed == alone


def test_whole_groups_share_a_micro_batch() -> None:
    assert [len(b[0]) for b in bundles([[0, 1]] * 5, 4)] == [4, 4, 2]
