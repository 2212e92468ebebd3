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
# # Reconstruction: what does an auto-encoder keep of a cell?
#
# scLDM, section 4.1 and appendix L.3, Tables 1 and 14.
#
# An auto-encoder squeezes a cell into a few numbers, the latent, and has to give the cell back from them. Whatever is
# generated later in the space of latents passes through the same decoder, so a generator can hardly be better than the
# auto-encoder it stands on. The paper replaces the usual network over a fixed list of genes by one that reads a cell as
# the *set* of its expressed genes, and reports that it reconstructs the counts of unseen cells better than scVI and the
# auto-encoder of CFGen.
#
# This page trains all three on the same cells; at tier `laptop` each chooses its setting, and how often it sees the cells,
# on validation cells. And it asks what the three scores of the paper measure: how far does one get without learning
# anything, and can a score be too good?

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
# Everything that can be changed from outside. `screpro params scldm/reconstruction` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name, or path to an .h5ad of counts
label_key: str | None = "cell_type"  # column of the cell types in a file of your own, or None; one floor needs it
methods: list[str] | None = None  # which methods to run; None runs all {scldm, scvi, cfgen_like, global_mean, class_mean, neighbours, copy, one_half}
split: int = 0  # seed of the split into training, validation and test cells [0..1000000]
seeds: list[int] | None = None  # seeds of weights and draws; None takes the tier's [0..1000000]
n_genes: int | None = None  # most variable genes of the training cells; None takes the tier's [20..100000]
n_train: int | None = None  # training cells at most; None takes the tier's [50..10000000]
epochs: int | None = None  # passes of every network over the training cells, instead of chosen ones; None takes the tier's [1..10000]
width: int | None = None  # width of scLDM's network, a multiple of its heads; None takes the tier's [8..2048]
tokens: int | None = None  # latent tokens of scLDM's network; None takes the tier's [1..1024]

# %% [markdown]
# ## What the paper says
#
# (tbl-scldm-1)=
# **Table 1** prints three scores on held-out cells of three atlases, mean and spread over seeds (CFGen was not
# retrained: its published weights were used, without a spread):

# %% tags=["hide-input"]
import json
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from screpro import data, records
from screpro.metrics.reconstruction import pcc_nb_draw, pcc_nb_mean, re_nb_nll
from screpro.plots import PALETTE, score_figure, use_style
from screpro.records.compare import compare, heaviest
from screpro.records.tables import spread
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.imputation_ceiling import DISPERSION, synthetic_cells
from screpro.tasks.reconstruction import Parts, copy_law, global_law, prepare
from screpro.tasks.reconstruction_experiment import (
    GRIDS,
    HALVES,
    METHODS,
    NETWORKS,
    PASSES,
    TITLES,
    Protocol,
    compare_methods,
    train,
)

use_style()
threads = int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1))
records.paper_table("scldm", "Table 1")

# %% [markdown]
# (tbl-scldm-icml-1)=
# **The later version** (ICML, as a reader's note reports it) prints other numbers for its own model and the same for
# the two others:

# %% tags=["hide-input"]
records.paper_table("scldm-icml-notes", "Table 1")

# %% [markdown]
# (tbl-scldm-14)=
# **Table 14** repeats the comparison on two sets of perturbed cells, 2 000 variable genes, against scVI alone:

# %% tags=["hide-input"]
records.paper_table("scldm", "Table 14")

# %% [markdown]
# Five things to know before comparing anything with these numbers:
#
# - **RE** is the negative log-likelihood of the counts of a cell in nats, summed over genes. It grows with the number
#   of genes and molecules, and its best value is not 0. Only differences on the same cells and genes mean something.
# - **PCC and MSE compare with a random draw**, not with the reconstructed mean: the model's mean is computed, counts
#   are drawn from it, and those are correlated with the observed ones, gene by gene across the 128 cells of an
#   evaluation batch. That stands in the code only. Both sides then carry the noise of counting, which sets a ceiling
#   far below 1 where counts are sparse.
# - **Table and text disagree twice.** On Dentate Gyrus scVI has the lower RE in Table 1, where the text says that scLDM
#   is lowest everywhere. And appendix L.3 quotes other values for Parse 1M than Table 14 prints.
# - **The versions disagree.** From the first to the second version RE of scLDM falls on Dentate Gyrus and rises on the
#   other two sets; neither says what changed.
# - **The cell that is scored is the cell that was encoded.** A latent that is large enough can carry the noise of that
#   very cell through. The paper's is: 64 to 256 tokens of 8 to 32 numbers, against some 10 numbers of scVI and 50 of
#   CFGen. [Below](#can-a-score-be-too-good) the cell's own molecules are divided to see what that does.

# %% [markdown]
# ## Method
#
# A cell has counts $x_g$ and library size $l = \sum_g x_g$. All three networks encode it to a latent $Z$ and decode it
# to a share $\rho_g(Z)$ of every gene; counts are negative binomial with one inverse dispersion $\theta_g$ per gene
# (equations 17 to 20 of {cite:p}`scldm`, appendix F.2):
#
# $$x_g \sim \mathrm{NB}\big(\mu_g = l\,\rho_g(Z),\ \theta_g\big), \qquad
# \rho(Z) = \mathrm{softmax}(\mathrm{logits}(Z)), \qquad \mathrm{var}(x_g) = \mu_g + \mu_g^2 / \theta_g .$$
#
# They differ in how $Z$ is made:
#
# | | input | latent | training |
# |---|---|---|---|
# | scLDM | set of expressed genes with their counts, pooled by cross-attention | m tokens of q channels, normalised | likelihood alone (the code has no KL term) |
# | scVI {cite:p}`lopez2018scvi` | log1p of all genes, one hidden layer | 10 numbers with a Gaussian posterior; its mean is decoded | likelihood and KL term |
# | CFGen-like {cite:p}`palma2025cfgen` | log1p of all genes, hidden layers of 512 and 256 | 50 numbers | likelihood alone |
#
# | equation | code | test |
# |---|---|---|
# | 2 to 7, auto-encoder | {src}`screpro.models.scldm.AutoEncoder` | the authors' own outputs, to 1e-5 |
# | 17 to 20, likelihood | {src}`screpro.kernels.nb.nb_softmax_nll` | equals the textbook formula, values and gradients |
# | RE | {src}`screpro.metrics.reconstruction.re_nb_nll` | closed form for theta = 1 |
# | PCC, MSE | {src}`screpro.metrics.reconstruction.pcc_nb_draw` | closed forms for large counts |
# | CFGen's first stage | {src}`screpro.baselines.count_autoencoder` | beats one profile, reaches known shares |
# | scVI | {src}`screpro.baselines.scvi_counts` | likelihood equals the package's own |

# %% [markdown]
# ## Cells and panel

# %%
run = records.start("scldm/reconstruction", tier=tier)
adata = data.load(dataset, label_key=label_key)
name = Path(dataset).name if dataset.endswith(".h5ad") else dataset
run.use_data(name, adata.uns["data_hash"])

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
tiers = {  # genes, training cells, seeds, starting point, settings are chosen
    "ci": (
        200,
        300,
        [0],
        AutoEncoderSettings(width=32, tokens=8, layers=1, epochs=12, batch_size=16, learning_rate=3e-3),
        False,
    ),
    "laptop": (
        1000,
        1500,
        [0, 1, 2],
        AutoEncoderSettings(epochs=30, batch_size=16, learning_rate=2e-3),  # small batches: more steps for the same cells
        True,
    ),
    "paper": (
        None,
        None,
        [0, 1, 2],
        AutoEncoderSettings(
            width=256, tokens=128, channels=16, layers=4, heads=8, cross_heads=1, batch_size=128, epochs=100
        ),
        False,
    ),
}
tier_genes, tier_train, tier_seeds, base, tune = tiers[tier]
given = {key: value for key, value in {"epochs": epochs, "width": width, "tokens": tokens}.items() if value is not None}
base = replace(base, **given)
grids = GRIDS
if epochs:  # what is asked for is not chosen
    grids = {method: [setting for setting in grid if "epochs" not in setting] for method, grid in GRIDS.items()}
if tier == "ci":  # few cells: the published batch of 128 would leave too few steps
    grids = {method: [{"batch_size": 16, "learning_rate": 3e-3}] for method in ("scvi", "cfgen_like")}
protocol = Protocol(
    dataset=name,
    split=split,
    seeds=seeds or tier_seeds,
    base=base,
    tune=tune,
    threads=threads,
    grids=grids,
)
shipped = tier == "paper" and "split" in adata.obs  # the authors' test cells, where a set has them
parts = prepare(adata, split=split, n_genes=n_genes or tier_genes, n_train=n_train or tier_train, shipped=shipped)
median = np.median(np.diff(parts.test.indptr))
facts = {
    "data": adata.uns["source"],
    "cells": f"{parts.train.shape[0]} for training, {parts.validation.shape[0]} for choosing settings, "
    f"{parts.test.shape[0]} for the scores (complete evaluation batches of 128: {parts.test.shape[0] // 128})",
    "genes": f"{parts.test.shape[1]} most variable of the training cells; the median test cell expresses {median:.0f}",
    "molecules": f"{np.median(np.asarray(parts.test.sum(1))):.0f} of the panel in the median test cell",
    "scLDM's latent": f"{base.tokens} tokens x {base.channels} channels = {base.tokens * base.channels} numbers",
    "training": f"{base.epochs} epochs for every network, "
    + ("or more where the validation cells prefer it, " if tune and not epochs else "")
    + ("settings chosen on the validation cells" if tune else "not tuned")
    + f"; seeds {list(protocol.seeds)}",
}
records.facts_table(facts)

# %% [markdown]
# ## One auto-encoder, step by step

# %%
first = protocol.seeds[0]
scldm = train("scldm", parts.train, {}, base=base, epochs=base.epochs, seed=first, threads=threads)
mean, theta = scldm.law(parts.test)  # (test cells, genes), (genes,)
rng = np.random.default_rng(first)
print(f"RE {re_nb_nll(parts.test, mean, theta):.1f} nats per cell")
of_draw, of_mean = pcc_nb_draw(parts.test, mean, theta, rng=rng), pcc_nb_mean(parts.test, mean)
print(f"PCC of a draw {of_draw:.3f}, of the mean {of_mean:.3f}")

# %% [markdown]
# One test cell: what was counted, the mean that was reconstructed, and a draw from it, for the genes with the largest
# mean. The score of the paper compares the first with the third.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Counts of one test cell for its forty genes with the largest reconstructed mean, in three panels on the same axes: observed counts, reconstructed mean as a smooth decline, and one random draw from the mean, as ragged as the observed counts."}}
cell = int(np.argsort(np.asarray(parts.test.sum(1)).ravel())[parts.test.shape[0] // 2])
top = np.argsort(-mean[cell])[:40]
drawn = rng.poisson(rng.gamma(theta[top], mean[cell, top] / theta[top]))
observed = parts.test[cell].toarray().ravel()[top]
figure, panels = plt.subplots(3, 1, figsize=(6.5, 3.8), sharex=True, sharey=True, layout="constrained")
panels[1].set_ylabel("counts")
panels[-1].set(xlabel="genes, by reconstructed mean", xticks=[])
for number, (axes, label, values) in enumerate(
    zip(panels, ("observed", "mean", "draw"), (observed, mean[cell, top], drawn), strict=True)
):
    axes.bar(np.arange(len(top)), values, color=PALETTE[[6, 0, 1][number]], width=0.8)
    axes.set_title(label, loc="left")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)

# %% [markdown]
# ## All methods
#
# Besides the three networks, four laws that nobody has to train: one profile for all cells, one per cell type (told the
# true type), the pooled profile of the nearest training cells, and, as the limit of what a latent could carry, the cell
# itself as its own mean.

# %%
compare_methods(run, parts, protocol, methods or METHODS, trained={("scldm", first): scldm})

# %% tags=["hide-input"]
rows = run.with_recorded()
rows = rows[rows["dataset"] != "synthetic"]  # simulated cells have a section of their own
main = rows[(rows["metric_variant"] == "") & (rows["item"] == "Table 1")]

# %% [markdown]
# No set at hand is one of the paper's, so every column of ours is a **stand-in** and never a reproduction of a printed
# number. Verdicts compare scLDM with the method of the row.

# %% tags=["hide-input"]
same = {"scldm_dentate_gyrus": "Dentate Gyrus", "scldm_tabula_muris": "Tabula Muris", "scldm_hlca": "HLCA"}
same_14 = {"scldm_parse1m": "Parse 1M", "scldm_replogle": "Replogle"}
kinds = {"global_mean": "trivial", "class_mean": "trivial", "neighbours": "trivial", "copy": "ceiling", "one_half": "ceiling"}
scored = {"RE": ("re_nb_nll", 1), "PCC": ("pcc_nb_draw", 3), "MSE": ("mse_nb_draw", 3)}


def table(paper, item, score, methods, results=main):
    metric, digits = scored[score]
    return records.side_by_side(
        paper,
        item,
        results,
        metric=metric,
        subject="scldm",
        paper_metric=score,
        same=same_14 if item == "Table 14" else same,
        methods=methods,
        kinds=kinds,
        titles=TITLES,
        caption=f"{score} ({item}{', later version' if paper != 'scldm' else ''})",
        digits=digits,
    )


for score in scored:
    display(table("scldm", "Table 1", score, {"cfgen_like": "CFGen"}))

# %% [markdown]
# The networks beside the later version and beside Table 14:

# %% tags=["hide-input"]
trained_rows = main[main["method"].isin(NETWORKS)]
for score in scored:
    theirs = {"cfgen_like": "CFGen", "scldm": "Ours (NB)"}
    display(table("scldm-icml-notes", "Table 1", score, theirs, trained_rows))
for score in scored:
    display(table("scldm", "Table 14", score, {}, trained_rows))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Reconstruction error of every method, one panel per data set: a dot per seed, a bar at the mean. The same numbers stand in the first table above."}}
figure = score_figure(
    main[main["metric"] == "re_nb_nll"], label="RE, nats per cell", order=METHODS, titles=TITLES, highlight="scldm"
)

# %% [markdown]
# ### Draws and means
#
# The same reconstructions scored on their means, without the draw. A mean carries no noise of its own; what is left is
# that of the observed counts.

# %% tags=["hide-input"]
def wide(study, order):
    """Mean and spread by method and score; one group of columns per data set and tier."""
    short = {"re_nb_nll": "RE", "pcc_nb_draw": "PCC", "mse_nb_draw": "MSE", "pcc_nb_mean": "PCC, mean"}
    short |= {"mse_nb_mean": "MSE, mean"}
    shown = study[study["metric"].isin(short) & study["method"].isin(order)]
    shown = shown.assign(score=shown["metric"].map(short), method=shown["method"].map(TITLES))
    cells = shown.pivot_table(
        index="method",
        columns=["dataset", "tier", "score"],
        values="value",
        aggfunc=lambda values: spread(values.mean(), values.std(), 3 if abs(values.mean()) < 20 else 1),
        sort=False,
    )
    return cells.reindex([TITLES[m] for m in order if TITLES[m] in cells.index]).fillna("")


wide(main[main["metric"] != "re_nb_nll"], METHODS)

# %% [markdown]
# ### How many passes?
#
# A comparison at equal passes is one of speed as much as of what a network can learn: where more passes still lower the
# error, training was not at its end, and a setting that learns fast can be the one that overfits first. So at tier
# `laptop` the validation cells choose the number of passes together with the other settings. scVI and the CFGen-like
# auto-encoder, which train in seconds, try every setting at 30, 60 and 150 passes; scLDM, which takes minutes, five
# combinations. scLDM on `kang_1k` was recorded before its theta started at most at 1. The error on test cells by number of
# passes, first seed, of the chosen setting, which has a star at the number that was chosen. scLDM's row for
# `kang_1k` has none: it is in batches of 16, and 100 passes in batches of 8 were chosen, recorded afterwards.

# %% tags=["hide-input"]
by_passes = rows[(rows["item"] == PASSES) & (rows["metric"] == "re_nb_nll")]
by_passes = by_passes.assign(passes=pd.to_numeric(by_passes["metric_variant"]))
tuned = rows[rows["item"] == "tuning"].assign(chosen=lambda own: [json.loads(v) for v in own["metric_variant"]])
whose = ["dataset", "tier", "split", "method", "run_id"]
tuned["split"] = tuned["split"].str.removesuffix(", validation")
errors = {}
for key, own in by_passes.groupby(whose, sort=False):
    settings = tuned[(tuned[whose] == key).all(axis=1)]
    best = settings.nsmallest(1, "value")["chosen"]
    chosen = [options.get("epochs", own["passes"].min()) for options in best]
    line = {n: f"{error:.1f}" + "*" * int(n in chosen) for n, error in zip(own["passes"], own["value"], strict=True)}
    errors.setdefault(key[:3], {})[TITLES[key[3]]] = line
for (of_set, at, of_split), lines in errors.items():
    own = pd.DataFrame.from_dict(lines, orient="index").sort_index(axis=1).fillna("")
    display(own.rename(columns="{} passes".format).style.set_caption(f"{of_set}, {at}, split {of_split}"))
None if errors else Markdown("Not run at this tier, and no run of a heavier tier is recorded.")

# %% [markdown]
# The recorded runs that the tables of this page draw on, with what was set otherwise than the page's defaults:

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
records.runs_table("scldm/reconstruction", rows, titles=TITLES)

# %% [markdown]
# What the training of a network took, seconds, mean over seeds:

# %% tags=["hide-input"]
cost = rows[(rows["metric"] == "fit") & rows["method"].isin(NETWORKS)]
cost = cost.assign(method=cost["method"].map(TITLES))
cost.pivot_table(index="method", columns=["dataset", "tier"], values="value", sort=False).round(1)

# %% [markdown]
# ### Was the aim met?
#
# The aim of this page was an RE of scLDM below that of scVI, on three data sets. At thirty passes each it was missed or level
# on all three. What L1 compares was changed twice since, after its results were known ([ledger of claims](../../book/ledger.md)):
# passes are chosen, and then every network's theta got a learning rate of its own and settings were chosen together with the
# passes. All three are recorded with both. *Met* or *missed*: by more than the
# standard error of the difference between seeds; *level*: within it. One seed has no error and decides nothing. The
# heaviest tier of each data set, and the CFGen-like network, which was no aim, beside it:

# %% tags=["hide-input"]
AIM_SETS = ("pbmc_facs_zheng", "mca_gut", "kang_1k")
WORDS = {"win": ("met", "ahead"), "tie": ("level", "level"), "loss": ("missed", "behind")}
errors = heaviest(main[main["metric"] == "re_nb_nll"])


def against(own, method, of_aim):
    """How scLDM's RE compares with a method's: a word, and the difference in nats, positive where scLDM's is lower."""
    found = compare(own, "scldm", method)
    if not found:
        return "not run"
    (c,) = found
    if c.n_pairs == 1:
        return f"one seed ({c.difference:+.1f})"
    return f"{WORDS[c.outcome][0 if of_aim else 1]} ({c.difference:+.1f} ± {c.standard_error:.1f})"


aims = {}
for data_set in dict.fromkeys([*AIM_SETS, *errors["dataset"]]):
    own = errors[errors["dataset"] == data_set]
    values = {method: own.loc[own["method"] == method, "value"] for method in ("scldm", "scvi")}
    aims[data_set] = {
        "tier": ", ".join(own["tier"].unique()) or "not run",
        **{f"RE of {TITLES[m]}": spread(v.mean(), v.std(), 1) if len(v) else "not run" for m, v in values.items()},
        "below scVI (nats)": against(own, "scvi", True),
        "beside the CFGen-like (nats)": against(own, "cfgen_like", False),
    }
pd.DataFrame(aims).T.rename_axis("data")

# %% [markdown]
# **What is lost on `mca_gut`** is lost to learning by heart: the chosen setting has an error of 183 nats on validation cells
# of the first seed and 205 on test cells, and trials that are not recorded had one far lower still on training cells. Another
# theta, set on validation cells, did not bring it back. What is too sure is the means.

# %% [markdown]
# ## Can a score be too good?
#
# The last row of the tables, the cell as its own mean, has learned nothing and is hard to beat. A latent of thousands
# of numbers could store the expressed genes of a cell outright, and the three scores of the paper would reward it: they
# cannot tell a network that knows the state of the cell from one that passes its noise on.
#
# Dividing the molecules can. Every molecule of a test cell goes into one of two halves by a coin; one half is encoded,
# and the scores ask for the other. Both halves have the same true shares, and a negative binomial thinned in this
# way keeps its theta. The noise of counting is independent between them, so passing it on does not help
# ({src}`screpro.tasks.reconstruction.halves`; what the two halves share is the factor by which a gene of a cell differs
# from its mean, the part of the noise that $\theta$ stands for).

# %% tags=["hide-input"]
divided = rows[rows["metric_variant"] == HALVES]
wide(divided, METHODS)

# %% [markdown]
# **The last row is the ceiling on real cells.** Given the state of a cell, its two halves are two draws of one law, so one
# half answers for the other as well as a draw from the true state does; the correlation of the true mean is at most the
# root of that, its squared error half of it ({src}`screpro.tasks.reconstruction.half_bounds`). The state includes what
# $\theta$ stands for, which no network can know, so the bounds are generous. RE has no such bound. A draw from a network
# may have a smaller squared error than the bound where its draws vary too little.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Reconstruction error when one half of a cell's molecules is encoded and the other half scored, one panel per data set: a dot per seed and method, a bar at the mean. The same numbers stand in the table above."}}
shown = divided[(divided["metric"] == "re_nb_nll") & (divided["method"] != "copy")]
figure = score_figure(
    shown,
    label="RE of the other half, nats per cell",
    order=[m for m in METHODS if m != "copy"],
    titles=TITLES,
    highlight="scldm",
)

# %% [markdown]
# (The cell itself is left out of this figure: its error is in the table, and would squeeze the others together.) A half
# cell is a cell of half the depth, which no network was trained on; laws that do not look at the cell are not disturbed
# by that, and networks all are.

# %% [markdown]
# ## The ceiling, where the truth is known
#
# On **synthetic** cells the mean of every entry is known. Two numbers follow for every gene: a draw from the truth
# correlates with the observed cells by
#
# $$r_g = \frac{\mathrm{var}\big(\mathbb{E}[s \mid \mu]\big)}{\mathrm{var}(s)},$$
#
# the share of the variance of its normalised expression $s$ that is not noise. The best prediction of $s$ from $\mu$,
# its mean $\mathbb{E}[s \mid \mu]$, reaches $\sqrt{r_g}$, and the normalised $\mu$ itself, taken below, no more than
# that. The fewer molecules per cell, the lower both.

# %%
true_theta = np.full(200, 1 / DISPERSION)
depths = [100, 300, 1000, 3000, 10000]
ladder = {"draw from the truth": [], "mean of the truth": [], "draw from the cell itself": []}
for depth in depths:
    made = synthetic_cells(n_cells=256, n_genes=200, n_types=4, seed=1, depth=depth)
    known = true_theta[: made.counts.shape[1]]
    draws = np.random.default_rng(0)
    ladder["draw from the truth"].append(pcc_nb_draw(made.counts, made.rate, known, rng=draws))
    ladder["mean of the truth"].append(pcc_nb_mean(made.counts, made.rate))
    ladder["draw from the cell itself"].append(pcc_nb_draw(made.counts, *copy_law(made.counts)(made.counts), rng=draws))
pd.DataFrame(ladder, index=pd.Index(depths, name="molecules per cell")).round(3)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Correlation per gene against the molecules per synthetic cell, three lines: a draw from the truth and the true mean, which is above it, both rise with depth; a draw from the cell itself is above both. The same numbers stand in the table above."}}
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for number, (label, values) in enumerate(ladder.items()):
    axes.plot(depths, values, "os^"[number] + "-", color=PALETTE[[0, 2, 1][number]], label=label)
axes.set(xscale="log", xlabel="molecules per cell", ylabel="correlation per gene", ylim=(0, 1))
axes.legend(loc="center left", bbox_to_anchor=(0.02, 0.63))
axes.grid(color="0.9")

# %% [markdown]
# A correlation above the first line cannot come from knowing the state of the cell, however well; it takes knowledge of
# the very molecules that were counted. Methods against the truth, on cells with the mean depth of 300 molecules:

# %%
made = synthetic_cells(n_cells=1000, n_genes=200, n_types=4, seed=0)
fit_on, ask = np.arange(600), np.arange(700, 956)
synthetic = Parts(
    train=made.counts[fit_on],
    validation=made.counts[600:700],
    test=made.counts[ask],
    train_types=made.types[fit_on].astype(np.int64),
    test_types=made.types[ask].astype(np.int64),
    genes=[str(g) for g in range(made.counts.shape[1])],
)
simulated = protocol._replace(
    dataset="synthetic",
    base=replace(base, epochs=30),
    tune=False,
    seeds=protocol.seeds[:1],
    grids={method: [{"batch_size": 64}] for method in ("scvi", "cfgen_like")},
)
compare_methods(
    run,
    synthetic,
    simulated,
    [*NETWORKS[tier == "ci" :], "global_mean", "class_mean", "neighbours", "copy"],  # scLDM takes a minute
    truth=(made.rate[ask], true_theta[: made.counts.shape[1]]),
)

# %% tags=["hide-input"]
live = run.frame()
own = live[(live["dataset"] == "synthetic") & (live["metric"].isin(["re_nb_nll", "pcc_nb_draw"]))]
own = own.assign(
    method=own["method"].map(TITLES),
    scored=own["metric_variant"].map({"": "whole cell", HALVES: "other half"}),
    score=own["metric"].map({"re_nb_nll": "RE", "pcc_nb_draw": "PCC"}),
)
own.pivot_table(index="method", columns=["scored", "score"], values="value", sort=False).round(3)

# %% [markdown]
# On whole cells the truth can be beaten by the cell itself, and by whatever copies part of it. On the other half of the
# molecules the truth is the row to compare with. RE is the stricter of the two there: a correlation can still profit
# from the factor that both halves share, and it does not charge for zeros that turn out not to be zeros.

# %% [markdown]
# ### What tuning chose
#
# At tier `laptop` every network chooses among settings and numbers of passes (`epochs`; 30 where none is named) by RE on
# the validation cells; "default" is the published setting (scLDM: the starting point). With `warmup_epochs` = 100 000 scVI
# is trained practically without its KL term.

# %% tags=["hide-input"]
tried = rows[rows["item"] == "tuning"].copy()
tried["method"] = tried["method"].map(TITLES)
tried["setting"] = tried["metric_variant"].map(
    lambda text: ", ".join(f"{k} = {v}" for k, v in json.loads(text).items()) or "default"
)
tried.pivot_table(index=["method", "setting"], columns="dataset", values="value", sort=False).style.format(
    "{:.1f}", na_rep=""
) if len(tried) else Markdown("No method was tuned in this run, and no tuned run is recorded.")

# %% [markdown]
# ### What a training step costs
#
# Cells enter as the genes they express, without padding, and the decoder's loss never holds an activation per cell and
# gene. The peer is the same network, with the same weights, as the formulas read. Memory of a step grows with the tokens
# of expressed genes and, more slowly, with the distinct genes among them, so twice the tokens take less than twice the
# memory. `screpro bench scldm` measures both:

# %% tags=["hide-input"]
records.timings_table("scldm")

# %% [markdown]
# ## Verdict
#
# Decision rules were written down before any of these runs ([ledger of claims](../../book/ledger.md)); that networks
# choose their passes was not.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
records.verdicts("scldm", ["L1", "L2"], rows)

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | data | Dentate Gyrus, Tabula Muris, HLCA (all genes); Parse 1M, Replogle (2 000 genes) | the same | stand-ins of 700 to 20 000 cells, up to 1 000 variable genes, chosen on training cells (tier `paper` takes the originals through the registry) |
# | latent | a variational posterior, KL weight 0 or 1e-5 | deterministic, normalised per token | the code |
# | input | counts beside the gene's embedding (eq. 6) | base configuration multiplies and normalises the count away | eq. 6, with log1p of the count |
# | dispersion | one for all genes, or per cell and gene | per gene, or per cell and gene | per gene, for all methods, started from moments (scLDM: at most 1, but on `kang_1k`), at ten times the rate of the weights |
# | size | width 128 or 256, 64 to 256 tokens, 2 or 4 layers | the same | width 64, 16 tokens of 8, 2 layers |
# | training | 100 epochs | the same, rate held and dropped at the end | cosine; at tier `laptop` 30 to 100 epochs, chosen on validation cells; scVI and the CFGen-like network on schedules of their own, 30 to 150 |
# | baselines | own scVI with CFGen's defaults, 120 000 steps on the perturbation sets; CFGen's published weights | not in the repository | scvi-tools and our own CFGen-like network, published defaults and tuned settings |
# | prediction of scVI | not said | not in the repository | mean of the posterior, decoded |
# | PCC, MSE | "Pearson correlation", "mean squared error" | one random draw, per gene within an evaluation batch | the same with 128 cells a batch, the incomplete last batch left out; scores of the mean beside them |
# | library size | observed | observed | observed; total over the panel |
# | own noise | whole cell encoded, whole cell scored | the same | the same, and halves of the molecules |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-reconstruction-copy
# A law answers with the cell's own counts as means and is Poisson. What does it pay, in nats, for a gene with count 0,
# 1, 2 and 10? What is its RE on cells with 90 expressed genes, all with count 1?
# :::
#
# :::{solution} ex-reconstruction-copy
# :class: dropdown
# A Poisson law with mean $x$ gives the count $x$ the probability $e^{-x} x^x / x!$. For 0 that is 1: nothing to pay.
# For 1 it is $e^{-1}$, one nat; for 2, $2 - \log 2 = 1.307$ nats; for 10, 2.079, close to $\frac12 \log(2 \pi x)$.
# Ninety genes with count 1 cost 90 nats, whatever the size of the panel.
# :::
#
# :::{exercise}
# :label: ex-reconstruction-ceiling
# The normalised expression of a gene has variance 1 over cells, of which .3 is differences between cell states and the
# rest is noise. What do the true mean, a draw from the truth, and the average of $K$ independent draws correlate with
# the observed expression?
# :::
#
# :::{solution} ex-reconstruction-ceiling
# :class: dropdown
# The mean has covariance .3 with the observed value and variance .3: $.3 / \sqrt{.3} = .548$. A draw has covariance .3
# and variance 1: .3. The average of $K$ draws has variance $.3 + .7 / K$: $.3 / \sqrt{.3 + .7 / K}$, which is .372 for
# two, .452 for five and .548 in the limit.
# :::

# %% [markdown]
# :::{exercise-start}
# :label: ex-reconstruction-gene
# :::
# Which genes does a network reconstruct beyond their overall level? For each gene of the panel, subtract the RE of
# scLDM's reconstruction (`mean`, `theta`) from that of one profile for all cells, and name the ten largest gains.
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-reconstruction-gene
# :class: dropdown
# :::

# %% tags=["solution"]
def by_gene(found: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of every gene (G,), mean over the test cells: its own profile, its own sum."""
    from scipy.stats import nbinom

    totals = np.asarray(parts.test.sum(1)).ravel()
    mu = found * (totals / found.sum(1))[:, None]
    return -nbinom.logpmf(parts.test.toarray(), dispersion, dispersion / (dispersion + mu)).mean(0)


gain = by_gene(*global_law(parts.train)(parts.test)) - by_gene(mean, theta)
best = np.argsort(-gain)[:10]
pd.Series(gain[best], index=[parts.genes[g] for g in best], name="nats gained").round(2)

# %% [markdown]
# Where a network has learned something, genes that tell the types apart come first: that is where knowing the cell
# pays.
# :::{solution-end}
# :::
