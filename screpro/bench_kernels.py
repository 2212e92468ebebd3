"""Every kernel beside the implementations people use now: same input, same process, in turns; only ratios travel.

`OPERATIONS` holds one function for every row group of the table; each returns rows with the agreement of the results
beside the ratio. Peers come with ``pip install "screpro[bench]"``; those that need an environment of their own are
called there (`screpro.bench_peers`). On a GPU the same functions measure torch and Triton there; peers that know only
the CPU stay on it and say so.

``python -m screpro.bench_kernels NAME`` prints the peak memory of a streamed operation (`bench_measure.peak_memory`).
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from screpro import bench_networks as networks
from screpro.bench_data import clouds, counts, log_normalised, perturbed_cells, rates
from screpro.bench_measure import (
    ELSEWHERE,
    MISSING,
    Rows,
    apart,
    around,
    around_elsewhere,
    can_measure_memory,
    cuda,
    limit_threads,
    machine,
    peak_memory,
    report_peak,
    row,
    threads,
    turns,
)
from screpro.bench_mmd import mmd_case, rbf_mmd

__all__ = ["OPERATIONS", "kernels"]


def kernels(name: str | None = None) -> Rows:
    """Rows of one of `OPERATIONS`, or of all of them, with the machine beside each."""
    limit_threads()
    rows = [row for operation in ([name] if name else OPERATIONS) for row in OPERATIONS[operation]()]
    return [row | {"machine": machine()} for row in rows]


# --- distances -------------------------------------------------------------------------------------------------


def energy_distance() -> Rows:
    """Energy distance of two clouds: 20 000 points in 30 dimensions; on a GPU also 200 000 in 30, 512 and 2000."""
    sizes = [(20_000, 30)]
    if cuda():
        sizes += [(20_000, 512), (20_000, 2000), (200_000, 30), (200_000, 512), (200_000, 2000)]
    return [row for n, d in sizes for row in _energy_distance(n, d)]


def _energy_case(n: int = 20_000, d: int = 30):
    import torch

    from screpro.kernels.energy import mean_distance

    x, y = clouds(n, d)
    given = [torch.from_numpy(a).cuda() for a in (x, y)] if cuda() else [x, y]

    def distance(a, b) -> float:
        return 2 * mean_distance(a, b) - mean_distance(a) - mean_distance(b)

    return partial(distance, *given), partial(distance, *(a[:3000] for a in given)), (x, y)


def _energy_distance(n: int, d: int) -> Rows:
    import torch

    ours, _, (x, y) = _energy_case(n, d)
    line = partial(row, "energy distance", f"{n} x {d}", memory=_memory("energy-distance", n == 20_000 and d == 30))
    value = ours()
    if n > 50_000:
        text = "not measured: holds n x m numbers"
        return [line(peer="torch.cdist", ours_ms=turns(ours, seconds=1, least=3)[0], agreement=text)]
    a, b = (torch.from_numpy(v).cuda() if cuda() else torch.from_numpy(v) for v in (x, y))

    def dense() -> float:
        between, one, two = (float(torch.cdist(*pair).double().mean()) for pair in ((a, b), (a, a), (b, b)))
        return 2 * between - one - two

    ours_ms, peer_ms = turns(ours, dense, least=3)
    rows = [line(peer="torch.cdist", ours_ms=ours_ms, peer_ms=peer_ms, agreement=apart(value, dense()))]
    rows[0]["target"] = "at least 4 times" if d == 30 else ""
    if d > 30:
        return rows
    return [*rows, _keops(ours, value, line, a, b), _pertpy(ours, value, line, x, y)]


def _keops(ours: Callable, value: float, line: Callable, a, b) -> dict[str, Any]:
    line = partial(line, peer="pykeops", target="at least 12 times")
    if not find_spec("pykeops"):
        return line(agreement=MISSING)
    from pykeops.torch import LazyTensor

    def total(u, v) -> float:
        squares = ((LazyTensor(u[:, None]) - LazyTensor(v[None])) ** 2).sum(-1)
        return float(squares.sqrt().sum(1).double().mean()) / len(v)

    def theirs() -> float:
        return 2 * total(a, b) - total(a, a) - total(b, b)

    total(a[:500], b[:500])  # compiles
    ours_ms, peer_ms, other = around(ours, theirs)
    return line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=apart(value, other))


def _pertpy(ours: Callable, value: float, line: Callable, x, y) -> dict[str, Any]:
    line = partial(line, peer="pertpy (CPU)", target="at least 12 times")
    found = around_elsewhere(ours, "pertpy", {"x": x, "y": y})
    if found is None:
        return line(agreement=ELSEWHERE)
    ours_ms, peer_ms, made = found
    return line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=apart(value, float(made["value"])))


def nearest_neighbour() -> Rows:
    """The nearest other point of each of 40 000 points: half of them real, half generated."""
    ours, _, points = _neighbour_case()
    line = partial(row, "1-NN", "40000 x 30", peer="faiss-cpu", target="at least 1.5 times")
    line = partial(line, memory=_memory("nearest-neighbour"))
    if not find_spec("faiss"):
        return [line(ours_ms=turns(ours, least=3)[0], agreement=MISSING)]
    import faiss

    faiss.omp_set_num_threads(threads())

    def theirs() -> np.ndarray:
        return faiss.knn(points, points, 2)[1]

    mine, other = ours()[1][:, 0], theirs()
    # the point itself is among their two, at distance 0 or, by rounding, a little more
    other = np.where(other[:, 0] == np.arange(len(points)), other[:, 1], other[:, 0])
    ours_ms, peer_ms = turns(ours, theirs, least=3)
    return [line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=f"{np.mean(mine == other):.3%} of neighbours equal")]


def _neighbour_case():
    import torch

    from screpro.kernels.neighbours import nearest

    points = np.concatenate(clouds(20_000, 30))
    given = torch.from_numpy(points).cuda() if cuda() else points
    return partial(nearest, given, 1), partial(nearest, given[:3000], 1), points


def exact_w2() -> Rows:
    """Exact optimal transport between two clouds of 5000 points in 30 dimensions."""
    ours, _, (x, y) = _w2_case()
    line = partial(row, "exact W2", "5000 x 30", peer="POT emd2", target="at least 8 times, same optimum")
    line = partial(line, memory=_memory("exact-w2"))
    import ot

    def theirs() -> float:
        costs = ot.dist(x.astype(np.float64), y.astype(np.float64))
        return ot.emd2(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), costs, numItermax=10**8)

    plan = ours()
    ours_ms, peer_ms, other = around(ours, theirs)
    agreement = f"{apart(plan.cost, float(other))}, certified to {plan.gap:.0e}"
    return [line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement)]


def _w2_case():
    from screpro.kernels.transport import exact_w2 as solve

    x, y = clouds(5000, 30)
    return partial(solve, x, y), partial(solve, x[:300], y[:300]), (x, y)


# --- differential expression -----------------------------------------------------------------------------------


def rank_sum() -> Rows:
    """Rank-sum tests of 100 perturbations against controls: 20 000 cells, 2000 genes, 15 % non-zero."""
    ours, _, (x, codes) = _rank_sum_case()
    size = "20000 x 2000 x 100 perturbations"
    memory = _memory("rank-sum")
    rows = _illico(ours, x, codes, size=size, target="at least 4 times", memory=memory)
    line, mine = partial(row, "rank-sum", size, memory=memory), ours().p[1:]
    given = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape), "codes": codes}
    found = around_elsewhere(ours, "pdex", given)
    line_pdex = partial(line, peer="pdex 0.3", target="at least 35 times")
    if found is None:
        rows.append(line_pdex(agreement=ELSEWHERE))
    else:
        ours_ms, peer_ms, made = found
        rows.append(line_pdex(ours_ms=ours_ms, peer_ms=peer_ms, agreement=_p_apart(mine, made["p"])))
    import scanpy as sc

    adata = _annotated(x, codes)

    def theirs() -> Any:
        with warnings.catch_warnings(action="ignore"):  # of a fragmented table, once per group
            sc.tl.rank_genes_groups(adata, "group", reference="g000", method="wilcoxon", tie_correct=True)
        return adata.uns["rank_genes_groups"]

    ours_ms, peer_ms, found = around(ours, theirs)
    groups = [f"g{g:03d}" for g in range(1, codes.max() + 1)]
    p = np.stack([_by_gene(found["names"][group], found["pvals"][group], x) for group in groups])
    agreement = f"{_p_apart(mine, p)}: scanpy has no continuity correction"
    line_scanpy = partial(line, peer="scanpy, tie_correct=True", target="at least 200 times", agreement=agreement)
    return [*rows, line_scanpy(ours_ms=ours_ms, peer_ms=peer_ms)]


def rank_sum_large() -> Rows:
    """Rank-sum tests of 200 perturbations: 50 000 cells, 8000 genes, 15 % non-zero."""
    ours, _, (x, codes) = _rank_sum_case(50_000, 8000, 200)
    return _illico(ours, x, codes, size="50000 x 8000 x 200 perturbations", target="at least 5 times")


def _rank_sum_case(n: int = 20_000, genes: int = 2000, perturbations: int = 100):
    from screpro.kernels.ranksum import rank_sum as test

    x, codes = perturbed_cells(n, genes, perturbations, density=0.15)
    test = partial(test, n_groups=perturbations + 1, reference=0)
    return partial(test, x, codes), partial(test, x[:1000], codes[:1000]), (x, codes)


def _illico(ours: Callable, x, codes, *, size: str, target: str, memory=None) -> Rows:
    line = partial(row, "rank-sum", size, peer="illico", target=target, memory=memory)
    if not find_spec("illico"):
        return [line(ours_ms=turns(ours, least=3)[0], agreement=MISSING)]
    from illico import asymptotic_wilcoxon

    adata = _annotated(x, codes)

    def theirs() -> Any:
        return asymptotic_wilcoxon(adata, is_log1p=True, group_keys="group", reference="g000", n_threads=threads())

    found = theirs()["p_value"].unstack().reindex(columns=adata.var_names)
    found = found.loc[[name for name in adata.obs["group"].cat.categories if name != "g000"]]
    agreement = _p_apart(ours().p[1:], found.to_numpy())
    ours_ms, peer_ms = turns(ours, theirs, least=3)
    return [line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement)]


def _annotated(x, codes):
    import anndata
    import pandas as pd

    groups = pd.Categorical([f"g{code:03d}" for code in codes])
    return anndata.AnnData(x, obs=pd.DataFrame({"group": groups}, index=np.arange(len(codes)).astype(str)))


def _by_gene(names, values, x) -> np.ndarray:
    """Values sorted by gene; names are positions as text."""
    out = np.empty(x.shape[1])
    out[np.asarray(names).astype(int)] = values
    return out


def _p_apart(mine: np.ndarray, other: np.ndarray) -> str:
    return f"p-values at most {np.nanmax(np.abs(mine - other)):.0e} apart"


# --- components ------------------------------------------------------------------------------------------------


def principal_components() -> Rows:
    """50 components of 100 000 cells x 2000 genes, 5 % non-zero, of 51 types of cells."""
    import scanpy as sc

    ours, _, x = _pca_case()
    mine = ours()

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        _, axes, _, variance = sc.pp.pca(x, n_comps=50, return_info=True)
        return axes.T.astype(np.float64), variance

    ours_ms, peer_ms, (axes, variance) = around(ours, theirs, rounds=5, rest=0.2)
    axes = np.linalg.qr(axes)[0]
    angle = np.linalg.norm(axes - mine.axes @ (mine.axes.T @ axes), 2)
    return [
        row(
            "PCA, 50 components",
            "100000 x 2000, 5 % non-zero",
            ours_ms=ours_ms,
            peer="scanpy, default" + (" (CPU)" if cuda() else ""),
            peer_ms=peer_ms,
            target="at least 5 times, subspace angle below 1e-3",
            agreement=f"subspace angle {angle:.0e}, variances {np.abs(mine.variance / variance - 1).max():.0e} apart",
            memory=_memory("pca"),
        )
    ]


def _pca_case(n: int = 100_000):
    import torch

    from screpro.kernels.pca import pca

    group = np.random.default_rng(0).integers(0, 51, n)
    x = log_normalised(counts(group, rates(51, 2000, share=0.1), density=0.05))
    given = x
    if cuda():
        parts = (torch.from_numpy(a).cuda() for a in (x.indptr, x.indices, x.data))
        given = torch.sparse_csr_tensor(*parts, x.shape, check_invariants=False)
    return partial(pca, given, 50), partial(pca, x[:600], 50), x


def frechet() -> Rows:
    """Fréchet distance of two normal distributions in 2048 dimensions."""
    import torch

    from screpro.kernels.frechet import frechet as ours_on
    from screpro.kernels.frechet import reference

    rng = np.random.default_rng(0)
    d = 2048
    clouds = (rng.normal(size=(3 * d, d)) * np.linspace(2, 0.5, d), rng.normal(size=(3 * d, d)) + 0.1)
    moments = [part for cloud in clouds for part in (cloud.mean(0), np.cov(cloud.T))]
    given = [torch.from_numpy(part).cuda() for part in moments] if cuda() else moments
    ours_ms, peer_ms, other = around(partial(ours_on, *given), partial(reference, *moments))
    return [
        row(
            "Fréchet distance",
            "2048 dimensions",
            ours_ms=ours_ms,
            peer="scipy sqrtm" + (" (CPU)" if cuda() else ""),
            peer_ms=peer_ms,
            target="at least 10 times",
            agreement=apart(ours_on(*given), other),
        )
    ]


# --- small pieces ----------------------------------------------------------------------------------------------


def _memory(name: str, wanted: bool = True) -> tuple[float, float] | None:
    """Peak and input in MiB; None where it cannot be measured."""
    return peak_memory(__name__, name) if wanted and can_measure_memory() else None


def _bytes(given) -> int:
    if isinstance(given, tuple):
        return sum(map(_bytes, given))
    return (
        sum(part.nbytes for part in (given.data, given.indices, given.indptr))
        if hasattr(given, "indptr")
        else given.nbytes
    )


OPERATIONS: dict[str, Callable[[], Rows]] = {
    "energy-loss": networks.energy_loss,
    "energy-distance": energy_distance,
    "rbf-mmd": lambda: rbf_mmd(memory=_memory("rbf-mmd")),
    "rank-sum": rank_sum,
    "rank-sum-large": rank_sum_large,
    "nb-loss": networks.nb_loss,
    "encoder-block": networks.encoder_block,
    "linear-map": networks.linear_map,
    "nearest-neighbour": nearest_neighbour,
    "exact-w2": exact_w2,
    "pca": principal_components,
    "frechet": frechet,
}
"""Name on the command line, after ``kernels-``."""

STREAMED: dict[str, Callable[[], tuple[Callable, Callable, Any]]] = {
    "energy-distance": _energy_case,
    "rbf-mmd": mmd_case,
    "rank-sum": _rank_sum_case,
    "nearest-neighbour": _neighbour_case,
    "exact-w2": _w2_case,
    "pca": _pca_case,
}
"""Operations whose peak memory is measured: a call, the same on something small, and the input."""

if __name__ == "__main__":
    limit_threads()
    call, warm_up, given = STREAMED[sys.argv[1]]()
    report_peak(call, warm_up, _bytes(given))
