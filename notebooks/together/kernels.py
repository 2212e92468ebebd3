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
# A metric is a definition; a kernel is how its sum is computed. Behind the three papers stand nine groups of sums that
# decide how long an evaluation or a training step takes. Each sum is shown as the definition says it (naive) and as the
# library computes it on a processor, with the operations and bytes it needs, what was measured against the best public
# implementations, and the check that the fast one gives the number of the naive one on real cells.
#
# Six of them have a Triton kernel for a GPU as well, because there a chain of library calls would write to memory what
# a kernel keeps on the chip: energy distance, MMD, rank-sum tests, the negative-binomial likelihood, attention over the
# expressed genes, Sinkhorn's iteration; and of the neighbours the nearest one. **The others have none.** Principal
# components, the Fréchet distance, neighbours beyond the first, cover by a radius, linear maps and the decoder of genes
# are plain torch on a GPU: their time goes into matrix products, factorisations and selections, which the libraries that torch
# calls already do near the limit of the device. Exact transport stays on the processor: its steps wait for each other.
# Every section says what runs on a GPU, and why.
#
# Operations are those of the formulas, an exponential, a logarithm or a gamma function counted as 20; bytes are those
# written to memory and read from it, without what stays in a cache. Both are estimates, not measurements.

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
from screpro.kernels import (
    energy,
    frechet,
    gene_decoder,
    gene_tokens,
    linear,
    mmd,
    nb,
    neighbours,
    pca,
    ranksum,
    set_attention,
    sinkhorn,
    transport,
)
from screpro.plots import PALETTE, use_style

use_style()
pd.set_option("display.max_colwidth", None)
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
    """Recorded timings of the operations whose names begin so."""
    return records.timings_table("kernels", *operations)


def counted(**entries):
    """A small table of operations and bytes; values are numbers."""
    units = {"operations": "operations", "bytes": "bytes"}
    rows = {name: {units[k]: f"{v:.2g}" for k, v in both.items()} for name, both in entries.items()}
    return pd.DataFrame(rows).T


def agree(name, size, fast, naive):
    """Keep the largest difference relative to the largest value as a row; time a second call of both."""
    ours, exact = (np.asarray(call(), dtype=np.float64) for call in (fast, naive))  # the first calls compile and import
    begun = time.perf_counter()
    fast()
    middle = time.perf_counter()
    naive()
    ended = time.perf_counter()
    error = float(np.nanmax(np.abs(ours - exact)) / np.nanmax(np.abs(exact)))
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
        f"{name[0].upper()}{name[1:]}, {size}: relative difference **{error:.1e}**; {1e3 * seconds[0]:.3g} ms, "
        f"naive {1e3 * seconds[1]:.3g} ms (one call each, after a first one that compiles)."
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
# sums are kept in double precision. On a GPU Triton kernels do both, evaluation and training.

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
    f"evaluation, {n} x {d}, naive": {"operations": 6 * d * n**2, "bytes": 2 * 3 * 4 * n**2},
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
# The same tiles with another function of the distance; all bandwidths are taken from one visit of a tile, and one that
# is too narrow for every pair of a row is left out (the count below has all of them). On a GPU: Triton.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/mmd.py", "reference")
show("Processor", "kernels/mmd.py", "rbf_mmd2", "_sum_kernels")
show("Triton", "kernels/gpu/mmd.py")

# %%
gammas = [1 / (2 * sigma**2) for sigma in (0.01, 0.1, 1, 10, 100)]
agree(
    "RBF MMD",
    f"two halves in {one.shape[1]} components, {len(gammas)} bandwidths",
    lambda: mmd.streamed(one, two, gammas=np.array(gammas)),
    lambda: mmd.reference(one, two, gammas=gammas),
)

# %% tags=["hide-input"]
n, d, widths = 5000, 30, len(gammas)
display(counted(**{
    f"{n} x {d}, {widths} bandwidths, naive": {
        "operations": 3 * n**2 * (2 * d + 20 * widths), "bytes": 2 * 3 * 4 * n**2 * (1 + widths),
    },
    f"{n} x {d}, {widths} bandwidths, streamed": {
        "operations": 2 * n**2 * (2 * (d + 2) + 20 * widths), "bytes": 2 * 4 * n * d,
    },
}))
measured("RBF MMD")

# %% [markdown]
# ## 3. Rank-sum tests for many groups
#
# $$U_p = \sum_{i \in p} \#\{\text{controls below } x_i\} + \tfrac12\,\#\{\text{controls equal to } x_i\}$$
#
# Differential expression of a hundred perturbations against the same controls is usually a hundred rankings of each
# gene. One is enough: the non-zeros of a gene are sorted once for all groups, and one sweep that counts the controls
# it has passed gives every U and every tie term. Zeros are one run in closed form. On a GPU torch sorts, and Triton
# kernels find every entry's place among the controls.

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
n, genes, tests, share, controls = 20_000, 2000, 100, 0.15, 0.1  # share of non-zeros, and of cells that are controls
nonzero = share * n * genes
ranked = nonzero * (controls + (1 - controls) / tests)  # of one group and the controls: what its ranking sorts
display(counted(**{
    f"{n} cells x {genes} genes x {tests} groups, each ranked with the controls": {
        "operations": tests * ranked * np.log2(ranked / genes), "bytes": 2 * 8 * tests * ranked,
    },
    "the same, one sort for all": {"operations": nonzero * np.log2(nonzero / genes), "bytes": 3 * 8 * nonzero},
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
# small counts; loss and gradients then need one exp and one log per entry and one visit of each cell. On a GPU: Triton.

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
display(counted(**{  # of the eager passes eight are exponentials, logarithms and gamma functions
    "2 048 x 2 000, eager": {"operations": (47 + 8 * 20) * entries, "bytes": 55 * 8 * entries},
    "2 048 x 2 000, fused": {"operations": (20 + 2 * 20) * entries, "bytes": 12 * entries},
}))
measured("NB loss")

# %% [markdown]
# ## 5. Attention over the expressed genes, and back to all of them
#
# $$o_l = \sum_{t} \mathrm{softmax}_t\big(q_l \cdot k_t / \sqrt{D}\big)\, v_t$$
#
# scLDM's encoder lets a few latent tokens $l$ attend to the genes $t$ of a cell. Nine genes in ten are zero and carry
# nothing, but a padded batch projects and attends to all of them, and a mask does not make that cheaper. Packing keeps
# one row per expressed gene of the batch, taken straight from the sparse counts. On a GPU attention in half precision
# is torch's own for packed sequences; Triton kernels serve float32, and head widths which that one does not take.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/set_attention.py", "reference")
show("Processor", "kernels/set_attention.py", "packed_cross_attention")
show("Triton", "kernels/gpu/set_attention.py")

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    """Weights (out, in) that keep the size of what they are applied to."""
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5


few_cells, width, latents, heads, hidden = min(32, x.shape[0]), 64, 16, 4, 172
packed = set_attention.PackedCells.from_scipy(counts[:few_cells])
embedding = random(x.shape[1], width) * width**0.5
tokens = embedding[packed.genes] + packed.counts.log1p()[:, None]
query, key, value = random(latents, width), tokens @ random(width, width).T, tokens @ random(width, width).T
agree(
    "set attention",
    f"the expressed genes of {few_cells} cells, random weights",
    lambda: set_attention.packed_cross_attention(query, key, value, packed.offsets, heads),
    lambda: set_attention.reference(query.double(), key.double(), value.double(), packed.offsets, heads),
)

# %% tags=["hide-input"]
n, genes, d, m, share = 8, 2000, 256, 64, 0.15
display(counted(**{
    f"keys, values and attention, {n} x {genes} genes, {m} latents of width {d}, {of}": {
        "operations": 4 * rows * d**2 + 4 * rows * m * d, "bytes": 2 * 3 * 4 * rows * d,
    }
    for of, rows in (("all genes", n * genes), (f"the {share:.0%} expressed", share * n * genes))
}))
measured("encoder block")

# %% [markdown]
# What is packed can be shared as well. The token of gene $g$ with count $c$ is a row of a table plus the count along one
# direction, $x = a_g + \log(1 + c)\,u$ (scLDM, equation 6). It passes a LayerNorm and the map $W$ to keys and values.
# Centring is linear and the division by $\sigma$ commutes with $W$, so the products are made once for each gene that
# the batch expresses, and a token pays for one pass over its keys and values:
#
# $$W\,\mathrm{LayerNorm}(x) = \frac{W\gamma(a_g - \bar a_g) + \log(1 + c)\, W\gamma(u - \bar u)}{\sigma} + W\beta$$

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/gene_tokens.py", "reference")
show("Any device", "kernels/gene_tokens.py", "keys_values")
show("Processor: the sweep", "kernels/gene_tokens_loops.py", "by_gene", "forward", "_token")

# %% tags=["hide-input"]
names = ("of_gene", "of_count", "to_kv")
mixed = {name: random(2 * width if name == "to_kv" else width, width) for name in names}
of_token = gene_tokens.TokenWeights(
    **mixed, bias=torch.zeros(width), gamma=torch.ones(width), beta=torch.zeros(width), epsilon=1e-8
)
in_double = gene_tokens.TokenWeights(*(part.double() if torch.is_tensor(part) else part for part in of_token))
agree(
    "keys and values",
    f"the expressed genes of {few_cells} cells, random weights",
    lambda: torch.cat(gene_tokens.keys_values(embedding, packed, of_token), 1),
    lambda: torch.cat(gene_tokens.reference(embedding.double(), packed, in_double), 1),
)

# %% tags=["hide-input"]
tokens, different = share * n * genes, 1200  # of them at least one of the measured cells expresses about 1 200 genes
display(counted(**{
    f"tokens, keys and values of the {share:.0%} expressed, products per {what}": {
        "operations": 6 * products * d**2 + 8 * tokens * d, "bytes": 4 * d * (2 * 2 * tokens + 4 * products),
    }
    for what, products in (("token", tokens), ("gene", different))
}))

# %% [markdown]
# In the other direction every gene $g$ of the panel asks the $m$ latent tokens of a cell, and a gated MLP of width $F$
# turns the answer into one logit. As it is written, each of the cells times genes pays for the width $D$ in the output
# projection and in the MLP. But what a gene receives is a combination $P_{bg}$ of few vectors, centring is linear and
# the division by $\sigma$ commutes with a matrix product, so the maps can be applied to the tokens and to the table of
# genes instead, once per batch:
#
# $$W\,\mathrm{LayerNorm}(E_g + P_{bg} V_b) = \frac{T_g + P_{bg} U_b}{\sigma_{bg}} + W\beta$$
#
# Genes go through in chunks, which are computed again for the gradient, so that (cells, genes, $F$) is never held. The
# logits (cells, genes) are held: they are what the likelihood of section 4 takes, and softmax over genes needs all of
# them. There is no Triton kernel: on a GPU the products are cuBLAS, and the gate, which a compiled loop sweeps once on
# a processor, is a few passes of plain torch over a chunk. A kernel would save these passes, but no operations.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/gene_decoder.py", "reference")
show("Any device", "kernels/gene_decoder.py", "decode_genes", "_chunk")
show("Processor: the sweep", "kernels/gene_decoder_loops.py", "forward")

# %% tags=["hide-input"]
cell_tokens = set_attention.packed_cross_attention(query, key, value, packed.offsets, heads)  # (cells, latents, width)
weights = gene_decoder.GeneDecoder(
    project=random(width, width),
    gamma=torch.ones(width),
    beta=torch.zeros(width),
    epsilon=1e-8,
    gate=random(hidden, width),
    value=random(hidden, width),
    contract=random(width, hidden),
    head=random(1, width),
    bias=torch.zeros(1),
    heads=1,
)
asked = embedding, embedding @ random(width, width).T, cell_tokens, cell_tokens @ random(width, width).T
exact = gene_decoder.GeneDecoder(*(part.double() if torch.is_tensor(part) else part for part in weights))
agree(
    "gene decoder",
    f"all genes of {few_cells} cells, random weights",
    lambda: gene_decoder.decode_genes(*asked, weights),
    lambda: gene_decoder.reference(*(part.double() for part in asked), exact),
)

# %% tags=["hide-input"]
n, genes, d, m, f = 128, 2000, 64, 16, 172  # one head
functions = 20 * (m + f)  # exponentials of the softmax and of the gate
display(counted(**{
    f"{n} cells x {genes} genes, {m} tokens of width {d}, MLP of {f}, naive": {
        "operations": n * genes * (2 * (2 * m * d + d**2 + 3 * d * f) + functions),
        "bytes": n * genes * 2 * 4 * (m + 3 * d + 4 * f),
    },
    "the same, at the cost of its tokens": {
        "operations": n * genes * (2 * (2 * m * d + m**2 + 2 * m * f + f) + functions),
        "bytes": n * genes * 2 * 4 * (m + 2 * f),
    },
}))

# %% [markdown]
# ## 6. Nearest neighbours
#
# The 1-NN two-sample test asks for the nearest other cell in the pooled sample, precision and recall for the k-th.
# Distances are symmetric: a tile updates the minima of its rows and of its columns, which halves the products, and
# nothing but the current best is kept. On a GPU the nearest neighbour is found in Triton, where a row's best stays in a
# register. There is no Triton kernel for the k nearest, nor for who lies within a radius: a list of k per row would not
# stay there, so chunks of products by cuBLAS pass through memory and torch selects from them.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/neighbours.py", "reference")
show("Processor", "kernels/neighbours.py", "nearest")
show("Triton: the nearest", "kernels/gpu/neighbours.py")
show("GPU: the k nearest", "kernels/gpu/neighbours.py", "_candidates")
show("GPU: who lies within a radius", "kernels/gpu/cover.py", "cover_cuda")

# %% tags=["hide-input"]
agree(
    "nearest neighbours",
    f"5 of every cell of the first half in {one.shape[1]} components",
    lambda: neighbours.nearest(one, 5)[0],
    lambda: neighbours.reference(one, 5)[0],
)

# %% tags=["hide-input"]
n, d = 40_000, 30
display(counted(**{
    f"{n} x {d} among themselves, naive": {"operations": n**2 * (2 * d + np.log2(n)), "bytes": 2 * 4 * n**2},
    f"{n} x {d} among themselves, streamed": {"operations": n**2 / 2 * (2 * (d + 2) + 2), "bytes": 4 * n * d},
}))
measured("1-NN")

# %% [markdown]
# ## 7. Optimal transport
#
# $$W_2^2 = \min_{\pi} \frac1n \sum_i \lvert x_i - y_{\pi(i)}\rvert^2$$
#
# Between equally many cells of equal weight optimal transport is an assignment, for which there are faster solvers
# than for general transport. Whichever solver found the plan, its optimality is certified: dual potentials give a lower
# bound of the cost, and the gap between the two is printed beside the value. How many steps a solver takes depends on
# the points: the counts below are for the hundred scans of its matrix of costs that the naive one took on simulated
# clouds of this size, and for the 10 000 comparisons of one point with all others that the auction took.
#
# There is no Triton kernel: a bid of the auction changes the prices that the next one looks at, so there is little to
# do side by side. Points that lie on a GPU are brought to the processor.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/transport.py", "reference")
show("Processor", "kernels/transport.py", "exact_w2", "lower_bound")

# %%
same = min(len(one), len(two))
plan = transport.exact_w2(one[:same], two[:same])
agree(
    "exact W2",
    f"{same} cells of each half in {one.shape[1]} components",
    lambda: transport.exact_w2(one[:same], two[:same]).value,
    lambda: transport.reference(one[:same], two[:same]),
)
print(f"W2 {plan.value:.6f}; cost {plan.cost:.9f}, lower bound {plan.lower_bound:.9f}, gap {plan.gap:.1e}")

# %% tags=["hide-input"]
n, d, scans, comparisons = 5000, 30, 100, 10_000
display(counted(**{
    f"{n} x {d}, naive": {"operations": n**2 * (2 * d + 2 * scans), "bytes": 8 * n**2 * (1 + scans)},
    f"{n} x {d}, auction and certificate": {
        "operations": 2 * (d + 2) * n * (2 * n + comparisons), "bytes": 2 * 8 * n * d,
    },
}))
measured("exact W2")

# %% [markdown]
# For many small sets at once the plan is blurred by an entropy. Sinkhorn's iteration then alternates two sums of
# exponentials, naively over a stored matrix of costs. On a processor one sweep over blocks serves both halves of an
# iteration; in Triton each half streams over the points and keeps a maximum and a sum per row, in float32 as long as
# its rounding stays well below the tolerance, in float64 below that. The value has no gradient here: it is a score.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/sinkhorn.py", "reference")
show("Processor", "kernels/sinkhorn.py", "sinkhorn", "_sweep")
show("Triton: a half-step of Sinkhorn", "kernels/gpu/sinkhorn.py")

# %% tags=["hide-input"]
points = [torch.as_tensor(half[:same]) for half in (one, two)]
blur = plan.value / 2  # wide enough for the naive iterations to converge
agree(
    "Sinkhorn",
    f"{same} cells of each half in {one.shape[1]} components, blur {blur:.2g}",
    lambda: sinkhorn.sinkhorn(*(half[None] for half in points), blur=blur).cost[0],
    lambda: sinkhorn.reference(*points, blur=blur, iterations=100)[0],
)

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
#
# There is no Triton kernel for either. On a GPU the cells are made dense chunk by chunk for one product by cuBLAS,
# which has more operations than a sparse one but adds in a fixed order and none atomically; eigenvalues and Cholesky
# factors are those of torch. Nothing is left between these calls that a kernel could save.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/pca.py", "reference")
show("Processor", "kernels/pca.py", "pca", "_gram_of_genes", "_certified", "_are_largest")
show("GPU: principal components", "kernels/gpu/pca.py", "pca_torch")

# %% tags=["hide-input"]
agree(
    "principal components",
    f"scores of all cells on {components.scores.shape[1]} components",
    lambda: pca.pca(x, components.scores.shape[1]).scores,
    lambda: pca.reference(x, components.scores.shape[1]).scores,
)

# %% tags=["hide-input"]
n, genes, share, k = 100_000, 2000, 0.05, 50
nonzero, products = share * n * genes, 200  # products of the Gram matrix with a vector: some four per component
display(counted(**{
    f"{n} x {genes}, {share:.0%} non-zero, {k} components, singular values of all of it": {
        "operations": 6 * n * genes**2 + 20 * genes**3,
        "bytes": 2 * 8 * n * genes * genes / 32 / 2,  # 32 columns are reduced at a time, and half of the rest changed
    },
    "the same, Gram matrix of the non-zeros": {
        "operations": n * (share * genes) ** 2 + 2 * products * genes**2 + genes**3 / 3 + 2 * nonzero * k,
        "bytes": 2 * 8 * nonzero + 4 * products * genes**2,
    },
}))
measured("PCA, 50 components")

# %% [markdown]
# This row is close to its aim, so it is the median of five rounds and not one call of the peer. Each side rests a fifth
# of a second before every call, longer than threads of BLAS go on spinning after their last one: what is called next
# would be charged for them. Nine more such measurements on the same two cores (AMD EPYC) gave 5.2 to 6.2 times scanpy.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/frechet.py", "reference")
show("Any device", "kernels/frechet.py", "frechet", "_factor", "_trace_of_root")

# %% tags=["hide-input"]
agree(
    "Fréchet distance",
    f"two halves in {one.shape[1]} components",
    lambda: frechet.frechet_of_points(one, two),
    lambda: frechet.reference(one.mean(0), np.cov(one.T), two.mean(0), np.cov(two.T)),
)

# %% tags=["hide-input"]
d = 2048
display(counted(**{
    f"{d} dimensions, general matrix root": {
        # 25 d^3 complex operations of the Schur form and the root, four real ones each
        "operations": (2 + 4 * 25) * d**3, "bytes": (3 * 8 + 2 * 2 * 16) * d**2,
    },
    f"{d} dimensions, eigenvalues of a symmetric matrix": {
        "operations": (1 / 3 + 4 + 4 / 3) * d**3, "bytes": (2 * 8 + 2 * 2 * 8) * d**2,
    },
}))
measured("Fréchet distance")

# %% [markdown]
# ## 9. Linear maps
#
# $$y = x W^\top + b, \qquad \mathrm dx = \mathrm dy\, W, \qquad \mathrm dW = \mathrm dy^\top x$$
#
# Most of the time of training PerturbDiff goes into these three products, and a good part of that of the others. torch
# gives them to MKL, which keeps its best code for Intel's processors; oneDNN, which torch brings as well and uses for
# other types of numbers, does not. (On a processor of Intel's, or of another kind, the two were not compared here.)
# Nothing else changes: the products and their number are the same, sums are added in
# another order. Products of fewer than four million multiply-adds, and those of tokens whose number changes from batch
# to batch, stay torch's own: for each new shape oneDNN compiles code, which takes about a millisecond.
#
# There is no Triton kernel: on a GPU it is cuBLAS either way.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
show("Naive", "kernels/linear.py", "reference")
show("Processor", "kernels/linear.py", "linear", "_suits", "_product", "_Linear", "_transposed_product")

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(seed)
dense = torch.from_numpy(x[:512].toarray().astype(np.float32))
weight = torch.randn(256, dense.shape[1], generator=generator) / dense.shape[1] ** 0.5
agree(
    "linear map",
    f"{dense.shape[0]} cells x {dense.shape[1]} genes to {len(weight)} values",
    lambda: linear.linear(dense, weight),
    lambda: linear.reference(dense, weight),
)

# %% tags=["hide-input"]
n, genes, width = 2048, 2000, 128
display(counted(**{
    f"{n} x {genes} to {width}, forward and backward": {
        "operations": 3 * 2 * n * genes * width,
        "bytes": 4 * 3 * (n * genes + n * width + genes * width),
    },
}))
measured("linear map")

# %% [markdown]
# ## All together
#
# Ours and the peer were measured in turns, in one process where both fit into one environment. On another machine only
# the ratio means anything, and only roughly: libraries suit one maker's processors better than the other's.
#
# On a processor loops share the machine with torch. Its threads do not sleep between two operations, they spin for some
# milliseconds and wait for the next one; a kernel with threads of its own, called in a training step, finds every core
# taken. Ours run on torch's threads (`screpro.kernels.threads`). The price is paid where more processes than cores are
# busy: threads that wait for each other then wait for the scheduler, and each process is better off with one thread.

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

# %% tags=["hide-input"]
if not timings.empty and timings["peer_version"].isna().all():
    display(Markdown("These timings were recorded without the versions of the peers."))

# %% [markdown]
# ### On a GPU
#
# The Triton kernels are held to the naive definitions by the tests, through Triton's interpreter, on every machine;
# what is plain torch on a GPU is tested on a processor. Times on a GPU: **not measured yet.** None is shown until one
# has been.

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
