"""The split of GEARS: categories, sizes, and no held-out gene in training for any set of perturbations."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from screpro.data.perturbation_splits import CATEGORIES, genes_of, perturbation_split
from screpro.errors import ScreproError

GENES = [f"g{i}" for i in range(12)]
PAIRS = [f"{a}+{b}" for i, a in enumerate(GENES) for b in GENES[:i]]


def test_genes_of():
    assert genes_of("control") == () and genes_of("A") == ("A",) and genes_of("A+B") == ("A", "B")


@settings(max_examples=60, deadline=None)
@given(
    singles=st.sets(st.sampled_from(GENES), min_size=2),
    pairs=st.sets(st.sampled_from(PAIRS)),
    seed=st.integers(0, 50),
)
def test_nothing_leaks(singles, pairs, seed):
    names = ["control", *singles, *pairs]
    try:
        split = perturbation_split(names, seed=seed)
    except ScreproError:
        assume(False)
    assert set(split.train) | set(split.test) == singles | pairs
    assert not set(split.train) & set(split.test)
    assert set(split.category) == set(split.test) and set(split.category.values()) <= set(CATEGORIES)
    trained = {gene for name in split.train for gene in genes_of(name)}
    for name, kind in split.category.items():
        hidden = [gene for gene in genes_of(name) if gene not in trained]
        if kind in ("unseen_single", "combo_seen0"):
            assert len(hidden) == len(genes_of(name))
        elif kind == "combo_seen1":
            assert len(hidden) >= 1
    assert split == perturbation_split(names[::-1], seed=seed)  # the order of the names does not matter


def test_shares_are_those_of_gears():
    split = perturbation_split([*GENES, *PAIRS], seed=3)
    kinds = [list(split.category.values()).count(kind) for kind in CATEGORIES]
    # 9 of 12 genes: 36 pairs of two seen, of which 27 are trained on; 27 with one unseen, 3 with two
    assert kinds == [3, 3, 27, 9]
    assert len(split.train) == 9 + 27


def test_without_pairs_it_holds_out_genes():
    split = perturbation_split(GENES, seed=0)
    assert len(split.train) == 9 and set(split.category.values()) == {"unseen_single"}
    assert perturbation_split(GENES, seed=1).test != split.test


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["A"], {}, "training and for testing"),
        (["A", "B"], {"train_genes": 1.0}, "training and for testing"),
        (["A", "B"], {"train_genes": 1.5}, "within 0..1"),
        (["A", "B+C+D"], {}, "joined by"),
    ],
)
def test_bad_requests_are_refused(names, changes, message):
    with pytest.raises(ScreproError, match=message):
        perturbation_split(names, seed=0, **changes)
