# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,slideshow,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernel gallery: the same number, computed fast
#
# A metric is a definition; a kernel is how its sum is computed. Behind the three papers stand eight sums that decide
# how long an evaluation or a training step takes. Each is shown here three times: as the definition says it (naive),
# as the library computes it on a processor, and as a Triton kernel for a GPU. Beside them stand the operations and
# bytes it needs, what was measured against the best public implementations, and the check that the fast one gives the
# number of the naive one on real cells.

# %% tags=["setup", "remove-cell"]
# in a hosted notebook the package is not there yet; its pinned dependencies come with it
try:
    import screpro
except ModuleNotFoundError:
    # %pip install -q "screpro @ git+https://github.com/screpro/screpro"
    import screpro

# %% [markdown]
# ## Parameters
#
# Everything that can be changed from outside. `screpro params together/kernels` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name, or path to an .h5ad of counts
label_key: str = "cell_type"  # column of the groups in a file of your own
seed: int = 0  # of the halves the cells are split into [0..1000000]

# %% tags=["remove-cell"]
import ast
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from screpro import data, paths, records
from screpro.data.preprocess import log_normalise
from screpro.kernels import energy, frechet, mmd, nb, neighbours, pca, ranksum, set_attention, transport
from screpro.plots import PALETTE, use_style

use_style()
timings = records.load_timings("kernels")


def show(title, file, *names):
    """Functions of a source file, folded away; without names those that Triton compiles."""
    path = Path(paths.root().parent if paths.root().name == "_bundle" else paths.root() / "screpro") / file
    text = path.read_text(encoding="utf-8")
    found = {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    compiled = [name for name, node in found.items() if any("jit" in ast.unparse(d) for d in node.decorator_list)]
    parts = []
    for name in names or compiled:
        node = found[name]
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        parts.append("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    code = "\n\n\n".join(parts)
    display(Markdown(f":::{{dropdown}} {title}\n```python\n{code}\n```\n:::"))


def measured(*operations):
    """Recorded timings of the operations whose names begin so; the ratio is peer / ours."""
    own = timings if timings.empty else timings[timings["operation"].str.startswith(operations)]
    if own.empty:
        return Markdown("*No timing recorded: `screpro bench kernels --json FILE` measures what has a named peer.*")
    rows = [
        {
            "size": row["size"],
            "ours, ms": f"{row['ours_ms']:.4g}",
            "peer": row["peer"],
            "peer, ms": "not measured" if pd.isna(row["peer_ms"]) else f"{row['peer_ms']:.4g}",
            "times faster": "" if pd.isna(row["ratio"]) else f"{row['ratio']:.3g}",
            "aim": row["target"],
            "agreement": row["agreement"],
            "machine": row["machine"],
        }
        for row in own.to_dict("records")
    ]
    return pd.DataFrame(rows).set_index("size")


def counted(**entries):
    """A small table of operations and bytes; values are numbers."""
    units = {"operations": "operations", "bytes": "bytes"}
    rows = {name: {units[k]: f"{v:.2g}" for k, v in both.items()} for name, both in entries.items()}
    return pd.DataFrame(rows).T


def agree(name, size, fast, naive, scale=None):
    """Time both once, keep the largest difference relative to the largest value as a row."""
    begun = time.perf_counter()
    ours = np.asarray(fast(), dtype=np.float64)
    middle = time.perf_counter()
    exact = np.asarray(naive(), dtype=np.float64)
    ended = time.perf_counter()
    error = float(np.nanmax(np.abs(ours - exact)) / (scale or np.nanmax(np.abs(exact))))
    run.add(
        item="kernels",
        dataset=shown,
        split=str(seed),
        method=name,
        metric="relative_error",
        n_real=x.shape[0],
        n_genes=x.shape[1],
        seed=seed,
        value=error,
        unit="largest difference / largest value",
        direction="lower",
    )
    seconds = middle - begun, ended - middle
    display(Markdown(
        f"On {size} of this page's cells: relative difference **{error:.1e}**; {1e3 * seconds[0]:.3g} ms, "
        f"naive {1e3 * seconds[1]:.3g} ms (one call each, the first of this process)."
    ))


# %% [markdown]
# ## Cells
#
# The checks below run on real cells: two random halves of one data set, as log-expression, as counts, and as the
# coordinates on 30 principal components. So few cells are over in milliseconds either way: the checks are about the
# numbers, the tables with the peers about time. (Below a few million operations the library itself takes the naive
# form; the checks ask for the fast one.)

# %%
run = records.start("together/kernels", tier=tier)
adata = data.load(dataset, label_key=label_key)
shown = Path(dataset).name if dataset.endswith(".h5ad") else dataset
run.use_data(shown, adata.uns["data_hash"])
cells = log_normalise(adata)
x, counts = cells.X, cells.layers["counts"]  # (cells, genes) CSR
groups, codes = np.unique(cells.obs["cell_type"].astype(str), return_inverse=True)
components = pca.pca(x, min(30, min(x.shape) - 1))
order = np.random.default_rng(seed).permutation(x.shape[0])
one, two = (components.scores[half] for half in np.array_split(order, 2))
print(f"{x.shape[0]} cells x {x.shape[1]} genes, {len(groups)} groups; halves of {len(one)} and {len(two)}")

# %% [markdown]
# ## 1. Energy distance
#
# $$E(x, y) = \mathbb{E}\lvert x - y\rvert - \tfrac12\,\mathbb{E}\lvert x - x'\rvert - \tfrac12\,\mathbb{E}\lvert y - y'\rvert$$
#
# PerturbDiff trains with it (sets of 64 cells) and it scores whole data sets. The naive form holds three n x m
# matrices, and automatic differentiation keeps several more. Two facts remove them: the distances follow from one
# matrix product, tile by tile, and the gradient of a set is one more product, so one set can stay in the cache from
# its centring to its gradient. The energy distance is a small difference of large means: points are centred first and
# sums are kept in double precision.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/energy.py", "reference", "reference_loss")
show("Processor: evaluation", "kernels/energy.py", "mean_distance", "streamed", "_sum_roots")
show("Processor: training", "kernels/energy_sets.py", "EnergyLoss")
show("Triton", "kernels/gpu/energy.py")

# %% tags=["hide-input"]
agree(
    "energy distance",
    f"two halves in {one.shape[1]} components",
    lambda: energy.streamed(one, two) - energy.streamed(one) / 2 - energy.streamed(two) / 2,
    lambda: energy.reference(one, two) - energy.reference(one, one) / 2 - energy.reference(two, two) / 2,
)

# %% tags=["hide-input"]
n, d, sets, cells_in_set, genes = 20_000, 30, 16, 64, 2000
display(counted(**{
    f"evaluation, {n} x {d}, naive": {"operations": 6 * d * n**2, "bytes": 3 * 4 * n**2},
    f"evaluation, {n} x {d}, streamed": {"operations": 4 * d * n**2, "bytes": 2 * 4 * n * d},
    f"training, {sets} x {cells_in_set} x {genes}": {
        "operations": sets * (2 * genes * 2 * cells_in_set**2 + 2 * genes * 2 * cells_in_set**2),
        "bytes": 3 * 4 * sets * cells_in_set * genes,
    },
}))
measured("energy loss", "energy distance")

# %% [markdown]
# ## 2. Maximum mean discrepancy
#
# $$\mathrm{MMD}^2 = \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y), \qquad
# k(x, y) = e^{-\gamma \lvert x - y\rvert^2}$$
#
# The same tiles with another function of the distance; all bandwidths are taken from one visit of a tile.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/mmd.py", "reference")
show("Processor", "kernels/mmd.py", "rbf_mmd2", "_sum_kernels")
show("Triton", "kernels/gpu/mmd.py")

# %%
gammas = [1 / (2 * sigma**2) for sigma in (0.01, 0.1, 1, 10, 100)]
agree(
    "RBF MMD",
    "two halves, five bandwidths,",
    lambda: mmd.streamed(one, two, gammas=np.array(gammas)),
    lambda: mmd.reference(one, two, gammas=gammas),
)
measured("RBF MMD")

# %% [markdown]
# ## 3. Rank-sum tests for many groups
#
# $$U_p = \sum_{i \in p} \#\{\text{controls below } x_i\} + \tfrac12\,\#\{\text{controls equal to } x_i\}$$
#
# Differential expression of a hundred perturbations against the same controls is usually a hundred rankings of each
# gene. One is enough: the non-zeros of a gene are sorted once for all groups, and one sweep that counts the controls
# it has passed gives every U and every tie term. Zeros are one run in closed form.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/ranksum.py", "rank_sum_reference")
show("Processor: the sweep", "kernels/ranksum_sweep.py", "sweep")
show("Triton", "kernels/gpu/ranksum.py")

# %%
few = slice(0, min(x.shape[1], 40))  # the naive form takes minutes on all genes
agree(
    "rank-sum tests",
    f"{len(groups)} groups against the rest, {few.stop} genes",
    lambda: ranksum.rank_sum(x[:, few], codes, n_groups=len(groups)).u,
    lambda: ranksum.rank_sum_reference(x[:, few].toarray(), codes, n_groups=len(groups)).u,
)

# %% tags=["hide-input"]
nonzero, tests = 0.15 * 20_000 * 2000, 100
display(counted(**{
    "20 000 cells x 2 000 genes x 100 groups, one ranking per group": {
        "operations": tests * 2 * nonzero / tests * np.log2(3000) + tests * nonzero * 0.1, "bytes": 8 * tests * nonzero * 0.1,
    },
    "the same, one sort for all": {"operations": nonzero * np.log2(3000), "bytes": 24 * nonzero},
}))
measured("rank-sum")

# %% [markdown]
# ## 4. Negative-binomial likelihood, fused with softmax and library size
#
# $$-\log p = \sum_g (\theta_g + x_g)\log\Big(1 + \frac{\mu_g}{\theta_g}\Big) - x_g\log\mu_g
# - \log\frac{\Gamma(x_g + \theta_g)}{\Gamma(\theta_g)\,\Gamma(x_g + 1)\,\theta_g^{x_g}}, \qquad
# \mu_g = l\,\mathrm{softmax}(z)_g$$
#
# The loss of scLDM's auto-encoder and of scVI. As tensor operations it makes about 55 passes over (cells, genes), with
# three log-gammas and two digammas per entry. The gamma terms vanish for counts of 0 and 1 and are short products for
# small counts; loss and gradients then need one exp and one log per entry and one visit of each cell.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/nb.py", "nb_nll", "reference")
show("Processor: one cell", "kernels/nb_loops.py", "_cell")
show("Triton", "kernels/gpu/nb.py")

# %%
dense = torch.as_tensor(counts.toarray())
library, log_theta = dense.sum(1), torch.zeros(dense.shape[1])
logits = torch.log(dense.mean(0) + 1e-3).expand_as(dense).contiguous()
agree(
    "NB likelihood",
    "all counts",
    lambda: nb.nb_softmax_nll(dense, logits, library, log_theta),
    lambda: nb.reference(dense, logits, library, log_theta),
)

# %% tags=["hide-input"]
entries = 2048 * 2000
display(counted(**{
    "2 048 x 2 000, eager": {"operations": 55 * entries, "bytes": 55 * 8 * entries},
    "2 048 x 2 000, fused": {"operations": 25 * entries, "bytes": 12 * entries},
}))
measured("NB loss")

# %% [markdown]
# ## 5. Attention over the expressed genes
#
# scLDM's encoder lets a few latent tokens attend to the genes of a cell. Nine genes in ten are zero and carry nothing,
# but a padded batch projects and attends to all of them, and a mask does not make that cheaper. Packing keeps one row
# per expressed gene of the batch, taken straight from the sparse counts. In the other direction the decoder asks for
# every gene; its queries go through in chunks, fused with the likelihood, so that (cells, genes, width) is never held.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/set_attention.py", "reference")
show("Processor", "kernels/set_attention.py", "packed_cross_attention")
show("Triton", "kernels/gpu/set_attention.py")

# %% tags=["hide-input"]
measured("encoder block")

# %% [markdown]
# ## 6. Nearest neighbours
#
# The 1-NN two-sample test asks for the nearest other cell in the pooled sample, precision and recall for the k-th.
# Distances are symmetric: a tile updates the minima of its rows and of its columns, which halves the products, and
# nothing but the current best is kept.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/neighbours.py", "reference")
show("Processor", "kernels/neighbours.py", "nearest")
show("Triton", "kernels/gpu/neighbours.py")
show("GPU: who lies within a radius", "kernels/gpu/cover.py", "cover_cuda")

# %% tags=["hide-input"]
agree(
    "nearest neighbours",
    "the first half",
    lambda: neighbours.nearest(one, 5)[0],
    lambda: neighbours.reference(one, 5)[0],
)
measured("1-NN")

# %% [markdown]
# ## 7. Optimal transport
#
# $$W_2^2 = \min_{\pi} \frac1n \sum_i \lvert x_i - y_{\pi(i)}\rvert^2$$
#
# Between equally many cells of equal weight optimal transport is an assignment, for which there are faster solvers
# than for general transport. Whichever solver found the plan, its optimality is certified: dual potentials give a lower
# bound of the cost, and the gap between the two is printed beside the value.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/transport.py", "reference")
show("Processor", "kernels/transport.py", "exact_w2", "lower_bound")

# %%
same = min(len(one), len(two))
plan = transport.exact_w2(one[:same], two[:same])
print(f"W2 {plan.value:.6f}; cost {plan.cost:.9f}, lower bound {plan.lower_bound:.9f}, gap {plan.gap:.1e}")
measured("exact W2")

# %% [markdown]
# Where a gradient is wanted, or many small sets at once, the plan is blurred by an entropy. Sinkhorn's iteration then
# alternates two sums of exponentials, naively over a stored matrix of costs. On a processor one sweep over blocks serves
# both halves of an iteration; in Triton each half streams over the points and keeps a maximum and a sum per row, in
# float32 as long as its rounding stays well below the tolerance, in float64 below that.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/sinkhorn.py", "reference")
show("Processor", "kernels/sinkhorn.py", "sinkhorn", "_sweep")
show("Triton: a half-step of Sinkhorn", "kernels/gpu/sinkhorn.py")

# %% tags=["hide-input"]
n, d = 2000, 30
display(counted(**{
    f"one iteration, {n} x {d}, naive": {"operations": 2 * n**2 * 20, "bytes": 3 * 8 * 2 * n**2},
    f"one iteration, {n} x {d}, one sweep": {"operations": n**2 * (2 * (d + 1) + 20), "bytes": 2 * 8 * n * (d + 2)},
}))

# %% [markdown]
# ## 8. Principal components and the Fréchet distance
#
# $$\mathrm{FD} = \lvert\mu_1 - \mu_2\rvert^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2 - 2(\Sigma_1\Sigma_2)^{1/2}\big)$$
#
# A sparse matrix with few entries per cell has a Gram matrix that is cheaper entry by entry than as a product of dense
# matrices; above a tenth of non-zeros the dense one wins. The trace of the matrix root is the sum of the roots of the
# eigenvalues of a symmetric matrix, so the general root is not needed.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/frechet.py", "reference")
show("Processor", "kernels/frechet.py", "frechet")
show("Principal components", "kernels/pca.py", "pca")

# %% tags=["hide-input"]
agree(
    "Fréchet distance",
    "the two halves",
    lambda: frechet.frechet_of_points(one, two),
    lambda: frechet.reference(one.mean(0), np.cov(one.T), two.mean(0), np.cov(two.T)),
)
measured("PCA, 50 components", "Fréchet distance")

# %% [markdown]
# ## All together
#
# Every row was measured in one process, ours and the peer in turns; only the ratio means anything on another machine.

# %% tags=["hide-input"] mystnb={"image": {"alt": "How many times faster each kernel is than each public implementation, on a logarithmic axis: one dot per comparison, a tick where the aim lies, a line at 1. The same numbers stand in the tables above."}}
import re

import matplotlib.pyplot as plt

if timings.empty:
    print("Nothing is recorded yet.")
else:
    known = timings.dropna(subset=["ratio"]).reset_index(drop=True)
    labels = [f"{row.operation}, {row.size}\nagainst {row.peer}" for row in known.itertuples()]
    aims = [float((re.search(r"[\d.]+", str(aim)) or ["nan"])[0]) for aim in known["target"]]
    figure, axes = plt.subplots(figsize=(6.4, 0.52 * len(known) + 0.8), layout="constrained")
    place = np.arange(len(known))[::-1]
    axes.axvline(1, color="0.6", lw=1)
    axes.hlines(place, 1, known["ratio"], color="0.8")
    axes.plot(known["ratio"], place, "o", color=PALETTE[0], label="measured")
    axes.plot(aims, place, "|", color=PALETTE[1], ms=13, mew=2, label="aim")
    axes.set_yticks(place, labels, fontsize=8)
    axes.set(xscale="log", xlabel="times faster than the peer", ylim=(-0.6, len(known) - 0.4))
    legend = axes.legend(loc="lower right")

# %% [markdown]
# ### On a GPU
#
# The Triton kernels are held to the naive definitions by the tests, through Triton's interpreter, on every machine.
# Times on a GPU: **not measured yet.** None is shown until one has been.

# %% [markdown]
# ## Where we differ
#
# | | public implementations | here |
# |---|---|---|
# | energy distance of a cloud with itself | geomloss clamps squared distances at 1e-8, so equal points are 1e-4 apart | self-pairs are left out by index, equal points are at distance 0 |
# | gradient at equal points | undefined, or that of the clamp | 0 |
# | rank-sum p-values | scanpy: no tie correction unless asked, no continuity correction | both, as scipy and Cell-Eval |
# | exact W2 | a solver's word | a lower bound beside it |
# | W2 of more than 5 000 cells | | both sides cut to 5 000, and said so |
# | Fréchet distance | real part of a general matrix root | eigenvalues of a symmetric matrix, rank-deficient covariances allowed |
# | cells on this page | | a stand-in: the timings are of simulated inputs of the sizes named, the checks of this data set |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-kernels-bytes
# Two samples of 20 000 cells on 30 components. How many bytes do the three distance matrices of the naive energy
# distance take in single precision, and how long does it take to write and read them once at 30 GB/s? What is the
# size of the input?
# :::
#
# :::{solution} ex-kernels-bytes
# :class: dropdown
# 3 x 20 000² x 4 bytes = 4.8 GB; written and read once at 30 GB/s that is 0.32 s before anything is computed. The
# input has 2 x 20 000 x 30 x 4 bytes = 4.8 MB, a thousandth, and stays in the cache.
# :::
#
# :::{exercise}
# :label: ex-kernels-centre
# Why are points centred before $\lvert x - y\rvert^2 = \lvert x\rvert^2 + \lvert y\rvert^2 - 2 x \cdot y$ is used in
# single precision? Take two points at distance 1 around a mean of norm 1 000.
# :::
#
# :::{solution} ex-kernels-centre
# :class: dropdown
# Both squared norms are about $10^6$, and single precision resolves $10^6$ to about 0.06: the squared distance of 1 is
# the difference of numbers rounded to 0.06, an error of several per cent. After centring the norms are of the order of
# the distances and the error is $10^{-7}$ of them.
# :::
#
# :::{exercise}
# :label: ex-kernels-ties
# A gene is zero in all 500 control cells and in 90 of 100 cells of a perturbation. Which U does the perturbation have,
# and which share of its maximum is that?
# :::
#
# :::{solution} ex-kernels-ties
# :class: dropdown
# The 10 expressing cells are above all controls: $10 \times 500$. The 90 others tie with all: $90 \times 500 / 2$. U is
# 27 500 of 50 000, or .55: a rank test sees little of a gene that only a tenth of the cells turn on.
# :::
