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
# # Exchangeability: a cell is a set of genes
#
# scLDM, section 3, appendices B, C and F, Figure 1.
#
# A count table has its genes in some order, usually that of the alphabet or of the genome. The cell knows nothing of
# it. A network that reads column 17 as "gene 17" works on one list of genes only; scLDM reads a cell as a *set*: the
# genes it expresses, each with its count. Whatever order they come in, the summary of the cell must be the same, and
# asked for any genes in any order, the network must answer each of them alike.
#
# This page shows on real cells that this holds, and to how many digits; what it saves; and what breaks it. Two findings
# stand out. Padding, as the authors' code uses it, *does* change a cell's summary. And one of the two ways in which
# their code lets counts into the network is followed by a layer that removes them again; whether that costs anything is
# [measured](#does-it-matter).

# %% tags=["setup", "remove-cell"]
# in a hosted notebook the package is not there yet; its pinned dependencies come with it
try:
    import screpro
except ModuleNotFoundError:
    # %pip install -q "screpro[baselines] @ git+https://github.com/screpro/screpro"
    import screpro

# %% [markdown]
# ## Parameters
#
# Everything that can be changed from outside. `screpro params scldm/exchangeability` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name, or path to an .h5ad of counts
label_key: str = "cell_type"  # column of the cell types in a file of your own
seeds: list[int] | None = None  # seeds of split, weights and permutations; None takes the tier's [0..1000000]
epochs: int | None = None  # passes over the training cells; None takes the tier's [1..10000]
width: int | None = None  # width of the network, a multiple of 4; None takes the tier's [8..2048]
genes: int | None = None  # variable genes, chosen on training cells; None takes the tier's [20..100000]

# %% [markdown]
# ## What the paper says
#
# Section 3 prints no numbers. It states four properties and builds on them; together they are claim **L4**.
#
# | property | what is permuted | what must happen |
# |---|---|---|
# | 1 | rows or columns of a row-wise softmax | the result is permuted alike |
# | 2 | queries, keys and values of an attention | the result is permuted alike: *equivariant* |
# | 3 | keys and values, while the queries are learned and stay | nothing changes: *invariant* |
# | 4 | the queries, which are embeddings of genes | the result is permuted alike |
#
# Property 3 makes the encoder invariant: a fixed number $m$ of learned queries, the *pseudo-inputs* $\mathbf S$, ask
# the genes of a cell. Property 4 makes the decoder equivariant: each gene $i$ asks the $m$ latent tokens with its own
# embedding $\mathbf E_i$. Both use the same block (MCAB), once to pool, once to unpool.
#
# (fig-scldm-1)=
# **Figure 1**, redrawn:

# %% tags=["hide-input"]
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from scipy.stats import nbinom

from screpro import data, records
from screpro.kernels.nb import nb_nll
from screpro.plots import PALETTE, score_figure, use_style
from screpro.processes.interpolant import expected_noise, interpolate
from screpro.records.tables import spread
from screpro.tasks import exchangeability as exch
from screpro.tasks.autoencoder import AutoEncoderSettings, batch_of, encode, reconstruct, train
from screpro.tasks.exchangeability_experiment import FEW, MIXINGS, SET, Protocol, changes, compare, split_counts
from screpro.tasks.flow import FlowSettings, train_flow
from screpro.tasks.presets_scldm import flow_settings, sweep_settings

use_style()
threads = int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Diagram. Left, downwards: a cell's expressed genes with counts become tokens through the gene table, an attention block pools them with learned pseudo-inputs, transformer blocks follow. Bottom: the latent Z of m tokens by q channels. Right, upwards: transformer blocks, an attention block in which any genes ask through the same gene table, softmax and library size, counts. Below: noise and labels enter a velocity network that makes new latents Z."}}
figure, axes = plt.subplots(figsize=(5.2, 6.0))
axes.set(xlim=(0, 10), ylim=(0, 12.4))
axes.axis("off")
light = {"blue": "#D6E8F5", "orange": "#FBE3D0", "green": "#D3EFE5", "grey": "#EEEEEE"}


def box(left, bottom, wide, high, text, colour):
    """A rounded box with black text on a light ground: readable whatever the page's mode."""
    style = {"fc": light[colour], "ec": "0.35", "lw": 0.8}
    axes.add_patch(FancyBboxPatch((left, bottom), wide, high, "round,pad=0,rounding_size=0.18", **style))
    axes.text(left + wide / 2, bottom + high / 2, text, ha="center", va="center", fontsize=8.5, color="black")


def arrow(start, end, **style):
    """From one point to another."""
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": "0.25", "lw": 1.1} | style
    axes.add_patch(FancyArrowPatch(start, end, **style))


steps = [(10.3, 1.2), (8.3, 1.2), (6.3, 1.2), (4.8, 0.8)]  # bottom and height of the four rows
left = [
    "a cell: its expressed genes\n(LYZ, 14) (CD74, 3) ...",
    "one token per gene\nembedding + count",
    "MCAB pools\nm pseudo-inputs ask",
    "L transformer blocks",
]
right = [
    "counts of these genes\none draw each",
    "softmax x library size\nnegative binomial",
    "MCAB unpools\nany genes ask",
    "L transformer blocks",
]
for (bottom, high), one, other in zip(steps, left, right, strict=True):
    box(0.1, bottom, 4.4, high, one, "blue")
    box(5.5, bottom, 4.4, high, other, "orange")
for (upper, _), (lower, high) in zip(steps[:-1], steps[1:], strict=True):
    arrow((2.3, upper), (2.3, lower + high))
    arrow((7.7, lower + high), (7.7, upper))
box(2.1, 2.9, 5.8, 1.0, "latent Z: m tokens x q channels\nno order of genes in it", "green")
arrow((2.3, 4.8), (3.2, 3.9))
arrow((6.8, 3.9), (7.7, 4.8))
arrow((4.5, 8.7), (5.5, 7.1), linestyle="--", color=PALETTE[0])
ground = {"fc": "white", "ec": "none", "pad": 0.6}
axes.text(5.0, 7.9, "same\ngene table", fontsize=7.5, ha="center", va="center", color="black", bbox=ground)
box(0.1, 0.4, 2.6, 1.2, "noise\nN(0, I)", "grey")
box(3.5, 0.4, 3.2, 1.2, "velocity network\n(DiT), ODE", "grey")
box(7.5, 0.4, 2.4, 1.2, "labels, or\nnone", "grey")
arrow((2.7, 1.0), (3.5, 1.0))
arrow((7.5, 1.0), (6.7, 1.0))
arrow((5.1, 1.6), (5.1, 2.9))
axes.text(0.1, 12.0, "A  auto-encoder", fontsize=9.5, weight="bold", color="black")
label = axes.text(0.1, 1.95, "B  latent flow", fontsize=9.5, weight="bold", color="black")

# %% [markdown]
# (tbl-scldm-equations)=
# ### Every equation, and the code that computes it
#
# "Definition" needs no code of its own. The last column says what the code does otherwise, or what is wrong in print;
# [below](#the-paper-against-itself-and-its-code) in full.
#
# | eq. | says | code | note |
# |---|---|---|---|
# | 1 | bound on the likelihood (ELBO) | {src}`screpro.models.scldm.AutoEncoder.nll` | deterministic encoder, so reconstruction alone; posterior and KL are an option |
# | 2 | MCAB: attention, then a gated MLP | {src}`screpro.models.scldm.CrossAttentionBlock.after` | the authors' outputs, to 1e-5 |
# | 3 | attention with a residual on the queries | {src}`screpro.models.scldm.CrossAttentionBlock` | the norm stands before the linear map of the queries, not after |
# | 4 | queries, keys and values | {src}`screpro.models.scldm.CrossAttentionBlock.keys_values` | residual on $\mathbf S$ itself, one norm for keys and values |
# | 5 | encoder | {src}`screpro.models.scldm.AutoEncoder.encode` | invariant |
# | 6 | embedding of gene and count | {src}`screpro.models.scldm.GeneTokens` | log1p(count), [and why](#what-the-input-layer-leaves-of-the-counts) |
# | 7 | decoder | {src}`screpro.models.scldm.AutoEncoder.logits` | equivariant; its entrance [normalises](#the-decoder-normalises-what-enters) |
# | 8 | guidance, joint | {src}`screpro.samplers.guidance.joint` | same as 39 |
# | 9 | MAB, Set Transformer | {src}`screpro.models.scldm_variants.AttentionBlock` | compared with, not used |
# | 10 | SAB = MAB(X, X) | {src}`screpro.models.scldm_variants.AttentionBlock` | definition |
# | 11 | ISAB | {src}`screpro.models.scldm_variants.SetTransformerPool` | compared with |
# | 12 | PMA | {src}`screpro.models.scldm_variants.SetTransformerPool` | compared with |
# | 13 | eq. 9 once more | {src}`screpro.models.scldm_variants.AttentionBlock` | |
# | 14 | eq. 12 once more | {src}`screpro.models.scldm_variants.SetTransformerPool` | |
# | 15 | the expressed genes of a cell | {src}`screpro.kernels.set_attention.PackedCells.from_scipy` | no context length is needed |
# | 16 | padding to length $d$ | {src}`screpro.tasks.exchangeability.padded_cells` | for comparison only; $\lvert\mathcal E\rvert > d$ is not defined |
# | 17 | softmax over genes | {src}`screpro.models.scldm.AutoEncoder.decode` | over the genes asked for |
# | 18 | mean = library size times share | {src}`screpro.models.scldm.AutoEncoder.decode` | |
# | 19 | a count is negative binomial | {src}`screpro.tasks.flow.nb_counts` | |
# | 20 | its probability | {src}`screpro.kernels.nb.nb_softmax_nll` | $\theta = 1/\alpha$; agrees with scipy, [below](#the-likelihood) |
# | 21, 22, 23 | control mean, effect per type, mean effect | {src}`screpro.baselines.perturbed_counts.mean_effect` | |
# | 24 | control mean plus mean effect | {src}`screpro.baselines.perturbed_counts.perturbation_mean` | |
# | 25, 26 | mean of all perturbed cells of a type | {src}`screpro.baselines.perturbed_counts.context_mean` | a control cell is "predicted" by itself |
# | 27, 28 | maximum mean discrepancy | | definition |
# | 29 | its unbiased estimate, one kernel | {src}`screpro.metrics.distances.mmd2_rbf_median` | the tables' values are {src}`screpro.metrics.distances.mmd2_rbf_sum5`: biased, five kernels summed |
# | 30 | Wasserstein-2 distance | | definition |
# | 31 | the same for two samples | {src}`screpro.metrics.transport.w2_exact` | its square root is reported |
# | 32 | the same for two normal laws | {src}`screpro.metrics.frechet.frechet_distance` | the *squared* distance, as eq. 36 |
# | 33 | principal components | {src}`screpro.metrics.suites.setup_of` | $\mathbf W$ is $k \times D$, so $\mathbf W\mathbf x$, not $\mathbf W^\top\mathbf x$; fitted on real cells |
# | 34, 35 | mean and covariance | {src}`screpro.metrics.frechet.frechet_distance` | |
# | 36 | Fréchet distance | {src}`screpro.metrics.frechet.frechet_distance` | |
# | 37 | Pearson correlation | | definition |
# | 38 | the same for a sample | {src}`screpro.metrics.reconstruction.pcc_nb_draw` | per gene across a batch of cells, of *drawn* counts |
# | 39 | guidance, joint | {src}`screpro.samplers.guidance.joint` | eq. 8 once more |
# | 40 | guidance, additive | {src}`screpro.samplers.guidance.additive` | CFGen's |
#
# The straight path, its velocity and the loss of the flow are described in words (section 3.2) and have no number:
# {src}`screpro.processes.interpolant.interpolate`, {src}`screpro.processes.interpolant.VelocityLoss`.

# %% [markdown]
# ## Cells, and one small network

# %%
run = records.start("scldm/exchangeability", tier=tier)
adata = data.load(dataset, label_key=label_key)
name = Path(dataset).name if dataset.endswith(".h5ad") else dataset
run.use_data(name, adata.uns["data_hash"])

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
tiers = {  # seeds, panel, cells, settings
    "ci": ([0], None, None, AutoEncoderSettings(width=32, tokens=8, layers=1, epochs=3)),
    "laptop": ([0, 1, 2], 1000, 2000, AutoEncoderSettings(width=64, tokens=16, layers=2, epochs=6)),
    "paper": ([0, 1, 2], None, None, sweep_settings()),
}
tier_seeds, panel, most_cells, settings = tiers[tier]
settings = replace(settings, epochs=epochs or settings.epochs, width=width or settings.width)
protocol = Protocol(
    dataset=name,
    seeds=seeds or tier_seeds,
    base=settings,
    panel=genes or panel,
    cells=most_cells,
    trials=2 if tier == "ci" else 5,
    threads=threads,
)
seed = protocol.seeds[0]
parts = split_counts(adata.X, protocol, seed=seed)
trained = {
    (method, seed): train(parts.train, replace(settings, mixing=mixing), seed=seed, threads=threads, title=method)
    for method, mixing in MIXINGS.items()
}
trained = {key: own.model.eval() for key, own in trained.items()}
model = trained["scldm", seed]
cells, _ = batch_of(parts.test[:SET], "expressed", "cpu")
library = torch.from_numpy(np.asarray(parts.test[:SET].sum(1), dtype=np.float32).ravel())
with torch.no_grad():
    z = model.encode(cells)
facts = {
    "data": adata.uns["source"],
    "training, test cells x genes": f"{parts.train.shape[0]}, {parts.test.shape[0]} x {parts.train.shape[1]}",
    "network": f"width {settings.width}, {settings.tokens} latent tokens x {settings.channels} channels, "
    f"{settings.layers} + {settings.layers} blocks, {settings.epochs} epochs",
    "runs": f"seeds {list(protocol.seeds)}, each with its own split, weights and permutations",
}
records.facts_table(facts)

# %% [markdown]
# None of the sets here is one of the paper's: all are **stand-ins**. The properties do not depend on the data; how much
# is saved, and what a latent still says of the counts, does.

# %% [markdown]
# ## The four properties
#
# One test cell first. Its genes in the order of the table, and shuffled; then the first latent token of both:

# %%
one = batch_of(parts.test[:1], "expressed", "cpu")[0]
shuffled = exch.permute_genes(one, generator=torch.Generator().manual_seed(seed))
with torch.no_grad():
    tokens = {"as in the table": model.encode(one)[0, 0], "shuffled": model.encode(shuffled)[0, 0]}
    places = {"as in the table": exch.encode_with_positions(model, one)[0, 0]}
    places["shuffled"] = exch.encode_with_positions(model, shuffled)[0, 0]
for title, pair in (("scLDM", tokens), ("a network that counts places", places)):
    for order, token in pair.items():
        print(f"{title:29s}{order:16s}", *(f"{value:9.5f}" for value in token[:6].tolist()))

# %% [markdown]
# The second pair is the control: the same weights, with the place of a gene in the list added to its token, as a
# language model does with words.
#
# Now in numbers. A deviation is the largest difference in any entry, relative to the largest value; *digits* are
# $-\log_{10}$ of it. Rounding leaves 6 to 7 digits in single precision and 15 to 16 in double; 0 is a change as large
# as the values. The last digits are lost to the order of summation, which is why double precision stands beside it.

# %% tags=["hide-output"]
compare(run, adata.X, protocol, trained=trained)

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
rows = run.with_recorded()
digits = rows[rows["metric"] == "digits_of_agreement"]
titles = {
    "": "**L4: worst of encoder and decoder**",
    "property 1": "property 1: softmax, rows and columns",
    "property 2": "property 2: attention of genes to genes",
    "property 3": "property 3: pseudo-inputs ask genes",
    "property 4": "property 4: genes ask",
    "encoder": "whole encoder, genes permuted",
    "decoder": "whole decoder, genes permuted",
    "half of the genes, logits": "half of the genes asked: logits",
    "half of the genes, shares": "half of the genes asked: shares among them",
    "half of the genes, means": "half of the genes asked: means",
    "length doubled, masked": "padded to twice the length, masked",
    "length doubled, not masked": "padded to twice the length, not masked (authors)",
    "decoder, 1.5 z + 0.3": "decoder given 1.5 z + 0.3",
}


def in_digits(variant, own):
    """Mean and spread over seeds of the digits of one variant."""
    values = own.loc[own["metric_variant"] == variant, "value"]
    return spread(values.mean(), values.std()) if len(values) else ""


lines = []
for (own_set, own_tier), group in digits.groupby(["dataset", "tier"], sort=False):
    own, control = (group[group["method"] == method] for method in ("scldm", "scldm_positions"))
    table = {title: (in_digits(v, own), in_digits(f"{v}, float64", own)) for v, title in titles.items()}
    table["control: place added to the token"] = (in_digits("", control), "")
    lines += [f"| {own_set}, {own_tier} | {title} | {single} | {double} |" for title, (single, double) in table.items()]
Markdown("| set, tier | what is done | digits, single | digits, double |\n|---|---|---|---|\n" + "\n".join(lines))

# %% [markdown]
# Per seed each number is the worst of several random permutations and of all test cells, tokens and channels looked at.
# It is relative to the largest value, as the rule of L4 has it; relative to the differences between cells, digits are
# fewer by as much as those are smaller.
#
# Three rows are *not* equal, and should be read twice:
#
# - **means of half of the genes**: the softmax of equation 17 runs over the genes that are asked for, so fewer genes
#   share the same library size. The logits and the ratios between genes do not change. Exchangeable means any *order*;
#   for any *subset* the library size has to be that of the subset.
# - **not masked** and the **control**: the first is the subject of the next but one section, the second has to fail.

# %% [markdown]
# ## What reading only expressed genes saves
#
# Appendix F.1 leaves unexpressed genes out: "typically 70 % or more". In these cells:

# %%
number = exch.expressed_genes(parts.test)
context = int(max(number.max(), exch.expressed_genes(parts.train).max()))
n_genes = parts.test.shape[1]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Histogram of the number of expressed genes per test cell, with vertical lines at the median, at the largest number, which is the padded length, and at the size of the panel, which lies far to the right of all cells."}}
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.hist(number, bins=25, color=PALETTE[0])
for place, title, style in (
    (np.median(number), f"median {np.median(number):.0f}", "-"),
    (context, f"longest cell = context d: {context}", "--"),
    (n_genes, f"all genes: {n_genes}", ":"),
):
    axes.axvline(place, color=PALETTE[1], ls=style, label=title)
axes.set(xlabel="expressed genes of a cell = its tokens", ylabel="test cells", xlim=(0, 1.03 * n_genes))
legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

# %% [markdown]
# Padding to the longest cell gives part of the saving away again. Packing the tokens of all cells one after another,
# with a note of where each cell begins, needs no padding ({src}`screpro.kernels.set_attention.packed_cross_attention`).
# The three ways, same weights, encoding the same cells:

# %% tags=["hide-input"]
ways = {
    "expressed_tokens": "expressed genes, packed (here)",
    "padded_tokens": "padded to the longest (authors)",
    "all_tokens": "all genes, zeros too",
}
own = rows[rows["metric"].isin(["input_tokens", "encode_seconds"])]
keys = ["dataset", "tier", "method"]
average, scatter = (own.groupby([*keys, "metric"], sort=False)["value"].agg(how).unstack() for how in ("mean", "std"))
lines = []
for (own_set, own_tier, method), line in average.iterrows():
    packed = average.loc[own_set, own_tier, "expressed_tokens"]
    lines.append(
        {
            "set, tier": f"{own_set}, {own_tier}",
            "input": ways[method],
            "tokens": f"{line['input_tokens']:,.0f}",
            "x tokens": line["input_tokens"] / packed["input_tokens"],
            "seconds": spread(line["encode_seconds"], scatter.loc[(own_set, own_tier, method), "encode_seconds"]),
            "x seconds": line["encode_seconds"] / packed["encode_seconds"],
        }
    )
pd.DataFrame(lines).style.hide(axis="index").format({"x tokens": "{:.2f}", "x seconds": "{:.2f}"})

# %% [markdown]
# Fewer tokens are not always less time. Packing costs one call of the attention per cell, which a small network on a
# processor can feel more than the tokens; with more blocks behind the input layer the differences shrink.
# Whether leaving zeros out also makes the reconstruction *better*, as Table 12 says, is tested among the
# [ablations](ablations).

# %% [markdown]
# ## Padding that is not masked
#
# The paper says that padding tokens "serve purely as placeholders" and "do not introduce spurious biological
# information". In the authors' code they take part in the attention: nothing masks them. Every padding token has the
# same key, so a head that likes it gives part of its weight to padding, the more of it there is. The same cell gets
# another amount of padding in another data set, and so another latent:

# %%
few, _ = batch_of(parts.test[:FEW], "expressed", "cpu")
padded = []
for share in (0, 0.25, 0.5, 1, 2, 4):
    extra = round(share * int(few.offsets.diff().max()))
    with torch.no_grad():
        for mask in (False, True):
            ids, counts = exch.padded_cells(few, extra=extra)
            moved = model.encode_padded(ids, counts, mask_padding=mask)
            base = model.encode_padded(*exch.padded_cells(few), mask_padding=mask)
            change = ((moved - base).square().mean() / (base - base.mean(0)).square().mean()).sqrt()
            padded.append({"extra padding": extra, "mask": mask, "change": float(change)})
padded = pd.DataFrame(padded)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Change of the latents against the amount of extra padding: without a mask it rises with padding, with the mask it stays at zero."}}
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
looks = (False, PALETTE[1], "s-", "not masked (authors)"), (True, PALETTE[0], "o--", "masked")
for mask, colour, line, title in looks:
    own = padded[padded["mask"] == mask]
    axes.plot(own["extra padding"], own["change"], line, ms=4, color=colour, label=title)
axes.set(xlabel="extra padding tokens per cell", ylabel="change of z / difference\nbetween cells")
axes.grid(color="0.9")
legend = axes.legend()

# %% [markdown]
# The unit of the vertical axis is the typical difference between cells: at 1 a cell moves as far as another cell is
# away. This network was trained on packed cells and has never met padding. One that is trained with padding of one
# length can learn to live with that length; nothing makes it indifferent to another. Everything else on these pages
# packs cells, which equals masking.

# %% [markdown]
# ## What the input layer leaves of the counts
#
# Two ways to make a token of gene $i$ with count $x_i$ are in the authors' code:
#
# $$\text{projconcat:}\quad \mathbf A\,\mathbf E_i + \mathbf b + \log(1 + x_i)\,\mathbf a, \qquad
# \text{log1p:}\quad \log(1 + x_i)\,\mathbf E_i .$$
#
# The first is equation 6 with log counts ($\mathbf a$: what becomes of a count repeated $D$ times), the second is in
# the configuration they ship. The very next operation is a LayerNorm: subtract the mean over the $D$ channels, divide
# by their standard deviation. For the second form
#
# $$\mathrm{LN}(c\,\mathbf E_i) = \mathrm{LN}(\mathbf E_i) \quad\text{for every } c > 0 ,$$
#
# and the count is gone. What is left is *which* genes are expressed. How much of a token tells the gene, how much the
# count, against the count:

# %%
grid = np.array([1, 2, 5, 10, 30, 100, 300, 1000])
likeness = {
    "eq. 6 as printed, raw count": ("scldm", False),
    "projconcat, log1p(count)": ("scldm", True),
    "log1p(count) x embedding": ("scldm_log1p", True),
}
for title, (method, log) in likeness.items():
    draw = torch.Generator().manual_seed(seed)
    own = exch.token_similarity(trained[method, seed], grid, n_genes=min(200, n_genes), logarithm=log, generator=draw)
    likeness[title] = own

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels against the count on a logarithmic axis. Left, likeness of tokens of different genes with the same count: the raw count of equation 6 rises to one, log1p inside projconcat rises slower, the product stays low and flat. Right, likeness of a gene's token to its token at count one: the product stays at exactly one."}}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained", sharex=True)
for (title, own), colour, line in zip(likeness.items(), PALETTE, ("^:", "o-", "s--"), strict=False):
    panels[0].plot(grid, own["genes"], line, ms=4, color=colour, label=title)
    panels[1].plot(grid, own["counts"], line, ms=4, color=colour)
panels[0].set(xscale="log", xlabel="count", ylabel="mean cosine")
panels[0].set_title("different genes, same count\n(1: gene forgotten)")
panels[1].set(xlabel="count", title="same gene, count 1\n(1: count forgotten)")
for axes in panels:
    axes.grid(color="0.9")
    axes.set_ylim(-0.1, 1.05)
legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)

# %% [markdown]
# Raw counts drown the gene, the product drops the count, and the logarithm inside projconcat lets a token say both.
# Every page here uses it because it is equation 6, not because it was found to be better.
#
# The same on whole cells. Counts are changed, expressed genes stay; the change of the latent in units of the difference
# between cells:

# %% tags=["hide-input"]
names_of = {"scldm": "projconcat", "scldm_log1p": "log1p x embedding"}
live = pd.DataFrame({method: changes(trained[method, seed], cells, seed=seed) for method in MIXINGS})
display(live.rename(columns=names_of).style.format("{:.2g}").set_caption(f"this run, {SET} test cells at most, seed {seed}"))
kept = rows[(rows["metric"] == "latent_change") & rows["method"].isin(names_of) & (rows["tier"] != "ci")]
for (of_set, of_tier), own in kept.groupby(["dataset", "tier"], sort=False):
    of_seeds = own.pivot_table(
        index="metric_variant", columns="method", values="value", aggfunc=lambda v: spread(v.mean(), v.std(), 2), sort=False
    )
    display(of_seeds.rename(columns=names_of).rename_axis(index=None, columns=None).style.set_caption(f"{of_set}, {of_tier}, mean ± sd over {own['seed'].nunique()} seeds"))

# %% [markdown]
# A cell whose counts are shuffled between its genes is another cell, and the second network cannot see it.
#
# ### Does it matter?
#
# Partly the counts come back by another door: a deeper sequenced cell shows more genes, so the *number* of tokens tells
# the total, and which genes show tells the type. How strongly a shown gene is expressed can only be guessed from the
# others that show. A ridge regression reads three things from the latents of test cells
# ({src}`screpro.tasks.exchangeability_experiment.read_out`): the log total, the log number of expressed genes, and
# graded expression: among cells that show a gene, the log of its share. References with as many numbers: principal
# components of "expressed or not", and of log counts.

# %% tags=["hide-input"]
method_titles = {
    "scldm": "projconcat",
    "scldm_log1p": "log1p x embedding",
    "binary_pca": "PCA of expressed or not",
    "log_counts_pca": "PCA of log counts",
}
probes = rows[rows["metric"] == "read_out_r2"].copy()
probes["method"] = probes["method"].map(method_titles)
shown = probes.pivot_table(
    index=["dataset", "tier", "metric_variant"],
    columns="method",
    values="value",
    aggfunc=lambda values: spread(values.mean(), values.std()),
    sort=False,
)
shown = shown[[title for title in method_titles.values() if title in shown]]
shown.style.set_caption("R² on test cells (higher is better)")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Dot plot of the R squared of graded expression, one row per network or reference, one panel per data set; a dot per seed and a bar at the mean. The same numbers stand in the table above."}}
graded = rows[(rows["metric"] == "read_out_r2") & (rows["metric_variant"] == "graded expression")]
figure = score_figure(
    graded, label="R² of graded expression", order=list(method_titles), titles=method_titles, highlight="scldm"
)

# %% [markdown]
# And the reconstruction error, which is what the paper reports. The decoder is told the library size, so the total need
# not pass through the latent. The same comparison with other panels and more steps of training is ablation A11, on the
# page of [ablations](ablations):

# %% tags=["hide-input"]
errors = rows[rows["metric"] == "re_nb_nll"].copy()
errors["method"] = errors["method"].map(method_titles)
wide = errors.pivot_table(index=["dataset", "tier", "seed"], columns="method", values="value", sort=False)
wide["erased - kept"] = wide["log1p x embedding"] - wide["projconcat"]
table = wide.groupby(level=["dataset", "tier"], sort=False).agg(lambda values: spread(values.mean(), values.std()))
table.style.set_caption("Negative log-likelihood of a test cell, nats (lower is better); difference paired by seed")

# %% [markdown]
# A positive difference means that losing the counts costs likelihood. Which way it goes at the tiers `laptop` and
# `paper`, A11 included:

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
a11 = records.load_results("scldm", "ablations")
a11 = a11[(a11["metric"] == "re_nb_nll") & (a11["metric_variant"] == "mixing")]
a11 = a11.pivot_table(index=["dataset", "tier", "split", "seed"], columns="method", values="value", sort=False)
gaps = {"this page": wide["erased - kept"]} | ({"A11": a11["log1p"] - a11["scldm"]} if len(a11) else {})
lines = []
for where, own_gaps in gaps.items():
    for (own_set, own_tier), gap in own_gaps.dropna().groupby(level=["dataset", "tier"], sort=False):
        if own_tier != "ci":
            agree = (np.sign(gap) == np.sign(gap.mean())).sum()
            lines.append(
                f"- {own_set}, {own_tier} ({where}): {spread(gap.mean(), gap.std(), 1)} nats. The network that cannot "
                f"see counts has the **{'lower' if gap.mean() < 0 else 'higher'}** error, in {agree} of {len(gap)} "
                "seeds."
            )
Markdown("\n".join(lines or ["- none is recorded"]))

# %% [markdown]
# These are short trainings of small networks. They show what losing the counts cost there, not what it would cost a
# network trained to its end, and they do not say why.

# %% [markdown]
# ## The decoder normalises what enters
#
# The latent ends in a LayerNorm without weights over the $q$ channels of each token, and the decoder begins with one.
# On the encoder's output the second changes nothing. On a latent that a flow has drawn it does: shift and scale of a
# token are ignored. `decode(1.5 z + 0.3)` is `decode(z)`, to the digits in the table above.
#
# So every token of a real latent has mean 0 and length $\sqrt q$: the data lie on a product of spheres, while noise
# fills the space. The lengths of single tokens:

# %% tags=["hide-input"]
train_z = encode(model, parts.train)
test_z = encode(model, parts.test)
noise = torch.randn(test_z.shape, generator=torch.Generator().manual_seed(seed))
lengths = {}
for title, latent in {"latents of cells": test_z, "noise N(0, I)": noise}.items():
    length = latent.norm(dim=-1)
    lengths[title] = {
        "length of a token, least": float(length.min()),
        "mean": float(length.mean()),
        "largest": float(length.max()),
        "mean over channels, largest": float(latent.mean(-1).abs().max()),
    }
caption = f"square root of q = {settings.channels}: {settings.channels**0.5:.3f}"
pd.DataFrame(lengths).T.style.format("{:.3f}").set_caption(caption)

# %% [markdown]
# ## The straight path on real latents
#
# The flow goes from noise $\mathbf Z_0$ to a latent $\mathbf Z_1$ on a straight line and learns its direction:
#
# $$\mathbf Z_t = t\,\mathbf Z_1 + (1-t)\,\mathbf Z_0, \qquad \mathbf v = \mathbf Z_1 - \mathbf Z_0, \qquad
# \mathbf Z_t - t\,\mathbf v = \mathbf Z_0, \qquad \mathbf Z_t + (1-t)\,\mathbf v = \mathbf Z_1 .$$
#
# The last two hold for each pair, and, with the expected velocity, for the expected noise and the expected latent given
# $\mathbf Z_t$. That is what turns a velocity into a denoiser.

# %%
t = torch.rand(len(test_z), generator=torch.Generator().manual_seed(seed))
z_t, velocity = interpolate(noise, test_z, t)
by_cell = t[:, None, None]
print(f"noise recovered to {exch.digits_of_agreement(noise, expected_noise(z_t, velocity, by_cell)):.1f} digits")
print(f"latent recovered to {exch.digits_of_agreement(test_z, z_t + (1 - by_cell) * velocity):.1f} digits")

# %%
flow_tiers = {
    "ci": FlowSettings(width=32, layers=2, steps=120, learning_rate=2e-3),
    "laptop": FlowSettings(width=64, layers=4, steps=1500, learning_rate=2e-3),
    "paper": replace(flow_settings(), steps=20_000),
}
flow = train_flow(train_z, {}, flow_tiers[tier], classes={}, seed=seed)
times = np.linspace(0, 0.95, 20)
errors_of_path = exch.path_errors(
    flow.network.eval(), train_z, test_z, times, generator=torch.Generator().manual_seed(seed)
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels against time from noise to data. Left: root mean square of the path points, dipping below the level of both ends in the middle. Right: squared error of the velocity for the mean latent, the best linear answer and the trained network; linear and network lie below the mean and rise towards t = 1."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
between = np.linspace(0, 1, 21)
rms = [float(interpolate(noise, test_z, torch.full((len(test_z),), s))[0].square().mean().sqrt()) for s in between]
left.plot(between, rms, "o", ms=4, color=PALETTE[0], label="cells")
left.plot(between, np.sqrt(between**2 + (1 - between) ** 2), color="0.5", lw=1, label="independent ends")
left.set(xlabel="t (0 noise, 1 data)", ylabel="root mean square of $Z_t$", ylim=(0, 1.1))
left.legend()
looks = {"network": "o-", "best linear map": ":", "mean latent": "--"}
for own, colour, (title, line) in zip(errors_of_path.values(), PALETTE, looks.items(), strict=False):
    right.plot(times, own, line, ms=3, color=colour, label=title)
right.set(xlabel="t", ylabel="squared error of the velocity", ylim=(0, None))
right.legend(fontsize=8)
for axes in (left, right):
    axes.grid(color="0.9")

# %% [markdown]
# The best linear map knows mean and covariance of the training latents; a network has to come below it to know more
# about cells than that. Errors of the expected noise are $t^2$ times those of the velocity, errors of the expected
# latent $(1-t)^2$ times.

# %% tags=["hide-input"]
network, linear = errors_of_path["network"], errors_of_path["linear"]
better = network < linear
between = float((test_z - test_z.mean(0)).square().mean())
Markdown(
    f"In this run the network's error, averaged over time, is {network.mean():.3f}, that of the linear map "
    f"{linear.mean():.3f}, that of the mean latent {errors_of_path['mean'].mean():.3f}. The network is below the "
    f"linear map at {better.sum()} of {len(times)} times.\n\nOf the unit variance of a latent's channels "
    f"{between:.2%} lies between test cells; the rest is the same in every cell, and known to whoever knows the mean."
)

# %% [markdown]
# ## The likelihood
#
# Equation 20 is the negative binomial with mean $\eta$ and dispersion $\alpha$, variance $\eta + \alpha\,\eta^2$. The
# code has its inverse, $\theta = 1/\alpha$. On the reconstruction of the test cells, against scipy's:

# %%
mean, theta = reconstruct(model, parts.test[:SET])
counts = parts.test[:SET].toarray()
ours = nb_nll(torch.from_numpy(counts).double(), torch.from_numpy(mean).double(), torch.from_numpy(theta).double())
theirs = -nbinom.logpmf(counts, theta.astype(float), theta / (theta + mean.astype(float))).sum(1)
print(f"agrees with scipy to {exch.digits_of_agreement(torch.from_numpy(theirs), ours):.1f} digits")
sums = mean.sum(1) / counts.sum(1)
print(f"sum of means / library size: {sums.min():.6f} to {sums.max():.6f}")
draws = np.random.default_rng(seed).negative_binomial(theta, theta / (theta + mean))
ratio = draws.sum(1) / counts.sum(1)
print(f"total of one draw / library size: {ratio.min():.2f} to {ratio.max():.2f}")

# %% [markdown]
# The paper says that this "ensures that the predicted expression values respect the constraint that total counts sum to
# the observed library size". Their *means* do; a drawn cell, which is what is scored, does not.
#
# Equation 1 adds to this the distance of a posterior from the prior, weighted by $\beta$ (section 3.3). With
# $\beta = 0$ and means only, which is what the code does, nothing is left of it: RE in the tables is not a bound on the
# likelihood of a cell, but its reconstruction alone, with the library size given.

# %% [markdown]
# ## The paper against itself and its code
#
# | # | paper | what is wrong, or what the code does | here |
# |---|---|---|---|
# | 1 | Gaussian posterior, KL weight 0 or 1e-5 (eq. 1, Table 11) | deterministic; each token normalised without weights | code; posterior is an option |
# | 2 | eq. 6: Linear on count and embedding | log1p(count); the shipped configuration multiplies, and the LayerNorm erases the count | eq. 6 with log1p |
# | 3 | padding introduces nothing (F.1) | unmasked padding changes the latent | packed, no padding |
# | 4 | eqs. 3, 4: residual on Linear(S), norm after it | residual on S, norm before the linear map; one norm for keys and values | code |
# | 5 | "shared dispersion": one value for all genes (F.2); Table 8: not shared | shared: one per gene; not shared: one per cell and gene | one per gene |
# | 6 | Tabula Muris: 123 cell types (Table 6) | 16 tissues are the condition | tissues |
# | 7 | 2 024 knockouts | one of the labels is non-targeting | 2 023 |
# | 8 | learning rate: cosine (Table 11) | warm-up, constant, decay | warm-up and cosine |
# | 9 | labels used with probability rho, no value | dropped with probability 0.8 | dropped with 0.2 |
# | 10 | one token per *combination* of attributes (K) | embeddings are added; a combination never seen has no token | added |
#
# And in the formulas:
#
# - Section 3.1 asks for $\mathbf P\,\eta(\mathbf Z, \pi(\mathcal I)) = \mathrm{NN}(\mathbf Z, \pi(\mathcal I))$, which
#   permutes one side only; meant is $\mathbf P\,\eta(\mathbf Z, \mathcal I) = \eta(\mathbf Z, \pi(\mathcal I))$.
#   Section 3.2 has $\mathbf E_{\pi(\mathcal I)} = \mathbf E_{\mathcal I}$ without the $\mathbf P$ that appendix C has.
# - The latent is $m \times D$ in section 3.1; Table 7 and the code have $m \times q$ with $q$ of 8 to 32.
# - $D$ is the width in section 3 and the number of genes in appendix F.
# - Equation 16 does not say what happens to a cell with more than $d$ expressed genes. The code's $d$ is the longest
#   cell of a set, so it does not arise there.
# - The proof of Property 4 uses $\mathbf K(\mathbf P\mathbf Z)$, but the latents are not permuted; without that line it
#   holds.
# - Equation 33: $\mathbf W$ is $k \times D$, so the projection is $\mathbf W\mathbf x$. Components are fitted on real
#   and generated cells there, on real ones in J.5.
# - Equations 8 and 39 are one; so are 9 and 13, 12 and 14.
# - The text calls the model exchangeable for "subsets"; the means of a subset depend on it, as shown above.

# %% [markdown]
# ## Verdict
#
# The decision rule was written down before any of these runs ([ledger of claims](../../book/ledger.md)).

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
records.verdicts("scldm", ["L4"], rows)

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | L4 | proof on a bare attention layer | | the whole encoder and decoder, trained, single and double precision, and a control that fails |
# | unexpressed genes | left out, padded to $d$ | padded to the longest cell of the set, not masked | left out, packed |
# | counts | raw (eq. 6) | log1p, added (`projconcat`) or multiplied (`log1p`) | log1p, added |
# | latent | Gaussian | LayerNorm per token | LayerNorm per token |
# | networks | 100 epochs | | few epochs, small, stand-in cells (tier `paper`: 100 epochs, one size of the sweep) |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-exchangeability-mean
# Replace attention pooling by the mean of all tokens. Which of the four properties survive? What does the decoder lose?
# :::
#
# :::{solution} ex-exchangeability-mean
# :class: dropdown
# A mean does not depend on the order, so the encoder stays invariant, and the decoder, whose queries are genes, stays
# equivariant. But every token then counts the same, whatever the others are, and there is one summary token instead of
# $m$: all that differs between cells has to fit in $D$ numbers that are a sum over genes. That is DeepSets.
# :::

# %% [markdown]
# :::{exercise-start}
# :label: ex-exchangeability-bias
# :::
# The product $\log(1+x_i)\,\mathbf E_i$ loses the count in the LayerNorm. Would adding a constant vector to every token
# before the LayerNorm be enough to keep it? Try a random vector and measure how far doubling all counts moves the
# normalised tokens.
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-exchangeability-bias
# :class: dropdown
# :::

# %% tags=["solution"]
generator = torch.Generator().manual_seed(seed)
erased = trained["scldm_log1p", seed]
constant = torch.randn(settings.width, generator=generator)
with torch.no_grad():
    for title, added in (("as shipped", 0 * constant), ("with a constant", constant)):
        normed = [
            torch.nn.functional.layer_norm(erased.genes(cells.genes + 1, factor * cells.counts) + added, constant.shape)
            for factor in (1, 2)
        ]
        print(f"{title:16s} relative change of a token: {((normed[1] - normed[0]).norm() / normed[0].norm()):.4f}")

# %% [markdown]
# Yes: the direction of the sum now depends on the ratio of the two parts. A bias is all that projconcat adds in this
# respect.
# :::{solution-end}
# :::
#
# :::{exercise}
# :label: ex-exchangeability-padding
# A pseudo-input gives every gene and every padding token the same weight. A cell has 300 expressed genes. What share of
# its attention goes to padding with $d$ = 400, and with $d$ = 2 000? Why does training with one $d$ not help?
# :::
#
# :::{solution} ex-exchangeability-padding
# :class: dropdown
# 100 of 400 is a quarter, 1 700 of 2 000 is 85 %. Training can teach the query to avoid the padding key, or use the
# amount of padding as a measure of how many genes are *not* expressed. Either fits the $d$ it was trained with.
# :::
