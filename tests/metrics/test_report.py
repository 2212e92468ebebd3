import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from screpro.errors import ScreproError
from screpro.metrics import report
from screpro.metrics.report import COLUMNS, compare, energy_distance


def cells(n=120, g=40, seed=0, sparse_form=True):
    """Counts with two groups of correlated genes."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    rate = rng.gamma(2.0, 1.0, g)
    rate = rate * np.where((np.arange(g) < g // 2)[None, :] == (group == 0)[:, None], 3.0, 0.3)
    counts = rng.poisson(rate).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(counts) if sparse_form else counts)
    adata.var_names = [f"g{i}" for i in range(g)]
    adata.obs["cell_type"] = np.array(["A", "B"])[group]
    return adata


def score(table, metric, variant=None, by="all"):
    rows = table[(table["metric"] == metric) & (table["by"] == by)]
    rows = rows[rows["variant"].str.startswith(variant)] if variant else rows
    assert len(rows) == 1
    return rows.iloc[0]


def slow_energy(a, b):
    def mean(p, q):
        return np.mean([[np.linalg.norm(u - v) for v in q] for u in p])

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def test_energy_distance_in_closed_form():
    # one point each: twice their distance; two points against their midpoint on a line
    assert energy_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == pytest.approx(10)
    assert energy_distance(np.array([[-1.0], [1.0]]), np.array([[0.0]])) == pytest.approx(2 - 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_energy_distance_is_the_double_mean(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    assert energy_distance(a, b) == pytest.approx(slow_energy(a, b), abs=1e-12)
    assert energy_distance(a, b) == pytest.approx(energy_distance(b, a), abs=1e-12)
    assert energy_distance(a, a[rng.permutation(n)]) == pytest.approx(0, abs=1e-12)
    same = np.concatenate([a, a])  # twice the points: the V-statistic does not notice
    assert energy_distance(same, b) == pytest.approx(energy_distance(a, b), abs=1e-12)
    assert energy_distance(3 * a, 3 * b) == pytest.approx(3 * energy_distance(a, b), abs=1e-11)


def test_without_self_pairs_it_is_zero_on_average():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(12, 3)), rng.normal(size=(9, 3))) for _ in range(400)]
    u = np.array([energy_distance(a, b, unbiased=True) for a, b in draws])
    v = np.array([energy_distance(a, b) for a, b in draws])
    error = 4 * u.std() / np.sqrt(len(u))
    assert abs(u.mean()) < error
    # bias of the V-statistic: (1/n + 1/m) times the mean distance of two normal points, here 4 / sqrt(pi)
    assert v.mean() == pytest.approx((1 / 12 + 1 / 9) * 4 / np.sqrt(np.pi), abs=error)


def test_blocks_do_not_change_anything(monkeypatch):
    real, made = cells(), cells(seed=1)
    whole = compare(real, made, by="cell_type")
    monkeypatch.setattr(report, "BLOCK", 500)
    blocks = compare(real, made, by="cell_type")
    same = ["value", "ceiling"]
    np.testing.assert_allclose(whole[same], blocks[same], rtol=1e-9, atol=1e-12)
    # the floor shuffles block by block, so it draws other permutations of the same law
    np.testing.assert_allclose(whole["floor"], blocks["floor"], rtol=0.5, atol=1e-12)


def test_a_copy_is_perfect_and_shuffled_genes_are_found_out():
    real = cells()
    table = compare(real, real.copy())
    assert list(table.columns) == COLUMNS
    assert score(table, "energy_distance", "v")["value"] == pytest.approx(0, abs=1e-9)
    assert score(table, "gene_mean", "pearson")["value"] == pytest.approx(1)
    assert score(table, "gene_variance", "median_abs_log2_ratio")["value"] == pytest.approx(0, abs=1e-12)

    energy = score(table, "energy_distance", "u")
    assert abs(energy["ceiling"]) < energy["floor"] / 5
    shuffled = real.copy()
    shuffled.X = sparse.csr_matrix(np.random.default_rng(3).permuted(real.X.toarray(), axis=0))
    shuffled = compare(real, shuffled)
    assert score(shuffled, "energy_distance", "u")["value"] == pytest.approx(energy["floor"], rel=0.3)


def test_marginals_of_values_that_are_not_counts():
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(50, 8))
    x[:, 3] *= rng.random(50) < 0.5
    real, made = AnnData(x), AnnData(4 * x)
    table = compare(real, made)
    assert score(table, "gene_mean", "median_abs_log2_ratio")["value"] == pytest.approx(2)
    assert score(table, "gene_variance", "median_abs_log2_ratio")["value"] == pytest.approx(4)
    assert score(table, "gene_zero_fraction", "mean_abs_difference")["value"] == pytest.approx(0)
    assert score(table, "gene_mean", "pearson")["value"] == pytest.approx(1)
    assert (table["floor"][table["variant"] == "median_abs_log2_ratio"] == 0).all()


def test_statistics_are_those_of_numpy():
    x = cells(sparse_form=False).X
    found = report._gene_statistics(sparse.csr_matrix(x))
    np.testing.assert_allclose(found["gene_mean"], x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["gene_variance"], x.astype(float).var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["gene_zero_fraction"], (x == 0).mean(axis=0))


def test_order_of_genes_and_form_of_the_matrix_do_not_matter():
    real, made = cells(), cells(seed=1)
    reversed_genes = made[:, ::-1].copy()
    dense = cells(sparse_form=False)
    for a, b in ((real, reversed_genes), (dense, made)):
        np.testing.assert_allclose(
            compare(real, made)[["value", "ceiling", "floor"]], compare(a, b)[["value", "ceiling", "floor"]], rtol=1e-6
        )


def test_groups():
    real, made = cells(), cells(n=90, seed=1)
    table = compare(real, made, by="cell_type")
    assert table["by"].unique().tolist() == ["all", "cell_type=A", "cell_type=B"]
    n_real = real.obs["cell_type"].value_counts()
    for group in "AB":
        row = score(table, "energy_distance", "v", by=f"cell_type={group}")
        assert row["n_real"] == n_real[group]
        assert row["n_generated"] == made.obs["cell_type"].value_counts()[group]
        assert row["n_genes"] == 40


def with_nan():
    bad = cells()
    bad.X.data[3] = np.nan
    return bad


def doubled():
    bad = cells()
    bad.var_names = ["g0", *bad.var_names[:-1]]
    return bad


@pytest.mark.parametrize(
    ("made", "by", "said"),
    [
        (lambda: cells()[:, :-2].copy(), None, "2 genes missing from the generated cells: g38, g39"),
        (with_nan, None, "finite"),
        (doubled, None, "unique"),
        (lambda: cells()[:2].copy(), None, "at least four"),
        (lambda: AnnData(cells().X * 0.5, var=cells().var), None, "integer counts in the real cells only"),
        (cells, "donor", "lack it"),
        (lambda: cells()[cells().obs["cell_type"] == "A"].copy(), "cell_type", "only in one of them: B"),
    ],
)
def test_bad_input_is_named(made, by, said):
    with pytest.raises(ScreproError, match=said):
        compare(cells(), made(), by=by)
