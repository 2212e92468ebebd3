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
# # Perturbation: what would these cells do if they were stimulated?
#
# scDiff, section 4.1.3, Table 2b.
#
# Blood cells answer interferon with a program of antiviral genes, every cell type in its own way. Suppose both states
# were sequenced for all types but one, of which only unstimulated cells are there. What would its stimulated cells
# look like? A model has to take what the stimulation does from the other types, and what the type is from its control
# cells.
#
# scDiff is trained on all cells with two labels, type and state. To predict, it is shown a control cell as context, is
# told "this type, stimulated", a pair it has never seen together, and draws a cell from noise. The paper reports that
# this beats vector arithmetic, a conditional autoencoder, scGen and CPA on three data sets.
#
# This page does the same with real cells, and asks two things more: is the change of the right *size*, and are the
# predicted *cells* cells?

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
# Everything that can be changed from outside. `screpro params scdiff/perturbation` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name, or path to an .h5ad of counts; without conditions an effect is put in
label_key: str = "cell_type"  # column of the cell types in a file of your own
batch_key: str | None = None  # column of the batches in a file of your own
condition_key: str = "condition"  # column of the two conditions in a file of your own
control: str | None = None  # the condition of the control cells; None finds its usual names
held_out: list[str] | None = None  # types whose stimulated cells are predicted, one at a time; None takes the largest
methods: list[str] | None = None  # which methods to run; None runs all {scdiff, scdiff_ddim50, scdiff_one_call, no_change, control_mean, stimulated_mean, vec_pooled, vec_per_type, pca_vec_pooled, pca_vec_per_type, cvae, scgen, cpa, oracle}
seeds: list[int] | None = None  # seeds of weights and noise; None takes the tier's [0..1000000]
n_genes: int | None = None  # variable genes, chosen on training cells; None takes the tier's [50..50000]
max_control: int | None = None  # control cells kept of each type; None takes the tier's [20..100000]
epochs: int | None = None  # passes over the training cells; None takes the tier's [1..10000]
learning_rate: float | None = None  # step size of AdamW; None takes the tier's [1e-7..1e-1]
width: int | None = None  # width of the network, a multiple of its 4 (tier paper: 8) heads; None takes the tier's [8..2048]

# %% [markdown]
# ## What the paper says
#
# (tbl-scdiff-2b)=
# **Table 2b** prints the squared correlation between predicted and true change of mean expression, over the 100 genes
# that change most clearly, mean and standard deviation of five runs:

# %% tags=["hide-input"]
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from screpro import data, records
from screpro.baselines import perturbation as baselines
from screpro.metrics.change import top_by_wilcoxon
from screpro.plots import PALETTE, score_figure, use_style
from screpro.records.compare import compare, heaviest
from screpro.records.tables import spread
from screpro.tasks import perturbation_experiment as experiment
from screpro.tasks.perturbation import (
    PRESETS,
    hold_out,
    largest_types,
    perturbed_cells,
    train_predictor,
    validation_type,
)
from screpro.tasks.perturbation_scores import score_cells
from screpro.tasks.perturbation_synthetic import known_truth, stimulate

use_style()
threads = int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1))
titles = {
    "scdiff": "scDiff",
    "scdiff_ddim50": "scDiff, 50 steps (DDIM)",
    "scdiff_one_call": "scDiff, one network call",
    "oracle": "half of the real cells",
    "truth": "the effect that was put in",
} | {name: baseline.title for name, baseline in baselines.BASELINES.items()}
records.paper_table("scdiff", "Table 2b")

# %% [markdown]
# Three things to know before comparing anything with these numbers:
#
# - **The score is blind to size and sign.** It is a squared correlation: a prediction of a tenth of the change scores 1
#   if the proportions are right. The 100 genes are those with the largest *signed* rank statistic, so genes that the
#   stimulation switches off are never looked at.
# - **Only means are compared.** A method that answers every cell with one mean profile can score 1 although it makes no
#   cells. All the methods of the table can be, and most are, predictors of conditional means.
# - **The genes are a subset.** The paper speaks of about 15 000 genes; the authors' code keeps the roughly 7 000 marked
#   as highly variable in scGen's files, a mark that was made with the held-out cells among the others.

# %% [markdown]
# ## Method
#
# Training is that of {cite:p}`scdiff` equation 9, with the type and the state as conditions. The type is replaced by a
# null label for a tenth of the cells; the state, control or stimulated, has no null and is never dropped. As context
# the network sees the cell itself with a random share of its genes hidden, everything in a quarter of the cases.
#
# To predict, the context is a whole control cell $x^{\text{ctrl}}$ of the held-out type $k$, and a cell is drawn by
# ancestral sampling over all 1000 steps (equations 15 to 17), the predicted cell kept at or above zero at every step:
#
# $$x_{t-1} \sim q\big(x_{t-1} \mid x_t,\ \max(0, x_\theta(x_t, x^{\text{ctrl}}, k, \text{stimulated}, t))\big).$$
#
# The score compares changes of the mean, with $c$ the control, $s$ the real and $\hat s$ the predicted stimulated
# cells, over the top 100 genes $g$:
#
# $$R^2 = \mathrm{cor}\big(\bar{\hat s}_g - \bar c_g,\ \bar s_g - \bar c_g\big)^2.$$
#
# | equation | code | test |
# |---|---|---|
# | 9, training loss | {src}`screpro.losses.DenoisingLoss` | equals calling the network, values and gradients |
# | 15 to 17, sampling | {src}`screpro.samplers.ddpm.ancestral` | posterior in closed form |
# | what is held out | {src}`screpro.tasks.perturbation.hold_out` | results do not depend on the held-out cells |
# | R² of the change | {src}`screpro.metrics.change.r2_change_top100` | worked examples |
# | vector arithmetic | {src}`screpro.baselines.arithmetic` | exact where the effect is additive |
# | CVAE, scGen, CPA | {src}`screpro.baselines.cvae`, {src}`screpro.baselines.scgen`, {src}`screpro.baselines.cpa` | recover a known shift |
#
# ## Cells, and what is held out

# %%
run = records.start("scdiff/perturbation", tier=tier)
adata = data.load(dataset, label_key=label_key, batch_key=batch_key)
name = Path(dataset).name if dataset.endswith(".h5ad") else dataset
run.use_data(name, adata.uns["data_hash"])
put_in = condition_key not in adata.obs
if put_in:  # real cells, a known effect: the molecules of half of them are thinned by it
    adata, name = stimulate(adata, rng=np.random.default_rng(0)), f"{name} (semi-synthetic)"

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
# types held out, seeds, genes, control cells of a type, whether methods are tuned, where chains are answered early
tiers = {
    "ci": (1, [0], 2000, 100, False, []),
    "laptop": (3, [0, 1, 2], 2000, 250, True, [500, 200, 100, 50, 20, 5]),
    "paper": (1, [0, 1, 2, 3, 4], 7000, None, False, [500, 200, 100, 50, 20, 5]),
}
papers_types = {
    "scdiff_pbmc_kang": ["CD4 T cells"],
    "scdiff_hpoly": ["TA.Early"],
    "scdiff_salmonella": ["TA.Early"],
}
# the published sizes take minutes a training on two cores; these are tried instead
small = {"width": 256, "latent": 32, "batch_size": 64}
# a few hundred steps take three times the published rate; the CVAE ignores the state unless its code is kept short
fast = small | {"learning_rate": 3e-3}
short, some = fast | {"epochs": 20}, fast | {"epochs": 30, "batch_size": 128}
grids = {
    "ci": {"cvae": [short | {"kl_weight": 1.0}], "scgen": [short], "cpa": [short]},
    "laptop": {
        "cvae": [some | {"kl_weight": 1.0}, some | {"kl_weight": 1.0, "epochs": 60}, some | {"kl_weight": 0.1}],
        "scgen": [some, some | {"epochs": 60}, some | {"learning_rate": 1e-3, "epochs": 60}],
        "cpa": [some, some | {"epochs": 60}, some | {"adversarial": 0.1}],
    },
}
n_types, tier_seeds, tier_genes, tier_control, tune, ends = tiers[tier]
perturbed = perturbed_cells(
    adata, condition_key=condition_key, control=control, max_control=max_control or tier_control
)
given = {"epochs": epochs, "learning_rate": learning_rate, "width": width}
given = {name: value for name, value in given.items() if value is not None}
protocol = experiment.Protocol(
    dataset=name,
    held_out=held_out or papers_types.get(name) or largest_types(perturbed, n_types),
    seeds=seeds or tier_seeds,
    base=replace(PRESETS[tier], **given),
    tune=tune,
    n_genes=n_genes or tier_genes,
    threads=threads,
    grids=grids.get(tier, {}),
    ends=ends,
)
held = hold_out(perturbed, protocol.held_out[0], n_genes=protocol.n_genes)
cells = perturbed.cells
sizes = [
    f"{kind} ({len(cells.rows(state=0, cell_type=k))}/{len(cells.rows(state=1, cell_type=k))})"
    for k, kind in enumerate(perturbed.types)
]
validation = validation_type(perturbed, list(protocol.held_out))
facts = {
    "data": adata.uns["source"],
    "cells x genes": f"{cells.x.shape[0]} x {len(held.train.genes)} (chosen without the held-out cells)",
    f"types ({perturbed.states[0]}/{perturbed.states[1]})": ", ".join(sizes),
    "held out, one at a time": ", ".join(protocol.held_out),
    "runs": f"seeds {list(protocol.seeds)}, "
    + (f"tuned on {validation}" if tune and validation else "not tuned"),
}
records.facts_table(facts)

# %% [markdown]
# ## One prediction, step by step

# %%
first_seed = protocol.seeds[0]
predictor = train_predictor(
    held,
    n_types=len(perturbed.types),
    n_batches=len(perturbed.batches),
    settings=protocol.base,
    seed=first_seed,
    threads=threads,
)
generated = predictor.predict(sampler="ddim quadratic", seed=first_seed)  # (control cells, genes)
scores = score_cells(generated, held.stimulated, held.control)
print(f"{held.name}: {len(generated)} control cells, R² of the change {scores['r2_change_top100']:.3f}")

# %% [markdown]
# The same with scGen, the strongest baseline of the paper. Each dot is one of the 100 genes; on the dashed line the
# predicted change would equal the true one.

# %% tags=["hide-input"]
scgen_options = experiment.options_of(protocol, "scgen")
by_scgen = baselines.run(
    "scgen", held.train, held_out=held.code, seed=first_seed, threads=threads, options=scgen_options
)
top = top_by_wilcoxon(held.stimulated, held.control)
before = np.asarray(held.control.mean(0)).ravel()
true_change = np.asarray(held.stimulated.mean(0)).ravel() - before
labelled = top[np.argsort(-true_change[top])[:6]]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Predicted against true change of mean expression of the 100 top genes in the held-out type, left for scDiff and right for scGen on the same axes, the six genes that change most labelled. The dashed diagonal marks a change of the right size; the title of each panel gives R squared and the size of the change."}}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), sharex=True, sharey=True, layout="constrained")
for axes, title, prediction in zip(panels, ("scDiff", "scGen"), (generated, by_scgen), strict=True):
    change = prediction.mean(0) - before
    own = score_cells(prediction, held.stimulated, held.control)
    axes.axline((0, 0), slope=1, color="0.6", ls="--", lw=1)
    axes.plot(true_change[top], change[top], "o", ms=3.5, color=PALETTE[0], alpha=0.7, mew=0)
    for g in labelled:
        axes.annotate(
            held.train.genes[g],
            (true_change[g], change[g]),
            xytext=(-4, 3),
            textcoords="offset points",
            fontsize=7,
            ha="right",
        )
    axes.set_title(f"{title}: R² {own['r2_change_top100']:.2f}, size {own['change_size_ratio']:.2f}")
    axes.set_xlabel("true change (log expression)")
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
label = panels[0].set_ylabel("predicted change")

# %% [markdown]
# ### Are these cells?
#
# Four of these genes, cell by cell. A real cell either has a molecule of a gene or has none, so most genes have many
# exact zeros and a wide spread. A conditional mean has neither.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Expression of four response genes, cell by cell, one panel per gene on a common axis: dots for control cells, real stimulated cells, cells drawn by scDiff and cells predicted by scGen, a bar at each mean. Real cells spread from zero to high values; predicted cells lie close to their mean."}}
groups = {
    "control": held.control[:, labelled[:4]].toarray(),
    "real": held.stimulated[:, labelled[:4]].toarray(),
    "scDiff": generated[:, labelled[:4]],
    "scGen": by_scgen[:, labelled[:4]],
}
jitter = np.random.default_rng(0)
figure, panels = plt.subplots(2, 2, figsize=(7, 4.4), sharex=True, sharey=True, layout="constrained")
for column, axes in enumerate(panels.flat):
    for place, (kind, values) in enumerate(groups.items()):
        shown = values[:150, column]
        colour = [PALETTE[7], PALETTE[6], PALETTE[1], PALETTE[0]][place]
        axes.plot(place + jitter.uniform(-0.3, 0.3, len(shown)), shown, "o", ms=2.5, color=colour, alpha=0.5, mew=0)
        axes.plot([place - 0.35, place + 0.35], [values[:, column].mean()] * 2, color=colour, lw=2)
    axes.set_title(held.train.genes[labelled[column]])
    axes.set_xticks(range(len(groups)), list(groups))
for axes in panels[:, 0]:
    axes.set_ylabel("log expression")

# %% tags=["hide-input"]
def of_a_gene(x) -> list[str]:
    """Median over the response genes' cells: standard deviation, and share of zeros (below 0 counts as 0)."""
    x = np.maximum(x.toarray() if hasattr(x, "toarray") else x, 0)[:, top]
    return [f"{np.median(x.std(0)):.2f}", f"{np.mean(x <= 0):.0%}"]


everything = {"real, stimulated": held.stimulated, "control": held.control, "scDiff": generated, "scGen": by_scgen}
pd.DataFrame(
    {kind: of_a_gene(x) for kind, x in everything.items()},
    index=["standard deviation between cells, median gene", "zeros"],
).T.rename_axis("the 100 genes in")

# %% [markdown]
# ## All methods
#
# Two readings of "vector arithmetic" are run. *Pooled* subtracts the mean of all control cells from that of all
# stimulated cells, as the papers' code does; where the two states hold types in different shares, a difference between
# types passes for a change. *Averaged over types* takes every type's own change and averages them.
#
# Three rows learn nothing of the type's response: its control cells unchanged, their mean, and the mean stimulated cell
# of the other types. The ceiling predicts one half of the real stimulated cells with the other half. Where the effect
# was put in, the truth is known and is a second ceiling: the control cells' own molecules, thinned as stimulation thins
# them. Nothing separates it from the real stimulated cells but which cells they are.

# %%
trained = {(held.name, first_seed): predictor}
experiment.compare_methods(run, perturbed, protocol, methods or experiment.METHODS, trained=trained)
experiment.study_batch(run, perturbed, protocol) if tier != "ci" else None
alone = experiment.study_throughput(run, predictor, protocol, name=held.name)  # cells per second, one by one
for kind in protocol.held_out if put_in else ():
    own = hold_out(perturbed, kind, n_genes=protocol.n_genes)
    answers = known_truth(adata, kind, own.train.genes)
    sizes = {"n_real": own.stimulated.shape[0], "n_generated": answers.shape[0], "n_genes": len(own.train.genes)}
    scores = score_cells(answers, own.stimulated, own.control)
    experiment.add_scores(run, scores, dataset=name, split=kind, seed=None, method="truth", **sizes)

# %% tags=["hide-input"]
rows = run.with_recorded()
main = rows[(rows["metric_variant"] == "") & ~rows["split"].str.contains("validation")]

# %% [markdown]
# None of the sets at hand is one of the paper's, so every column of ours is a **stand-in**: it says of how many held-out
# types (splits) and seeds it is the mean, and is never a reproduction of a printed number. `kang_9k` and `kang_1k` are
# sub-samples of the experiment behind the paper's PBMC set; "semi-synthetic" means real cells with an effect put in.
# Recorded runs that were not made with the default parameters of this page:

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
from screpro.records import manifest, parameters, sources
from screpro.records.results import results_dir

defaults = parameters.read(sources.names()["scdiff/perturbation"]).defaults
changed_runs = []
for file in sorted((results_dir() / "scdiff" / "perturbation").glob("*/manifest.json")):
    own = manifest.read(file)["parameters"]
    other = [f"`{k}` {v}" for k, v in own.items() if k not in ("tier", "dataset") and v != defaults.get(k)]
    if other:
        changed_runs.append(f"- **{own['dataset']}** ({own['tier']}): {', '.join(other)}")
Markdown("\n".join(changed_runs) or "None.")

# %% [markdown]
# The tables:

# %% tags=["hide-input"]
same = {"scdiff_pbmc_kang": "PBMC", "scdiff_hpoly": "H.poly", "scdiff_salmonella": "Salmonella"}
kinds = {"oracle": "ceiling", "truth": "ceiling", "scdiff_ddim50": "model", "scdiff_one_call": "model"} | {
    name: baseline.kind for name, baseline in baselines.BASELINES.items()
}


def table(item, metric, caption, digits=3):
    return records.side_by_side(
        "scdiff",
        item,
        main,
        metric=metric,
        subject="scdiff",
        same=same,
        methods={"vec_pooled": "Vec", "pca_vec_pooled": "PCA-Vec"},
        kinds=kinds,
        titles=titles,
        caption=caption,
        digits=digits,
    )


table("Table 2b", "r2_change_top100", "R² of the change over the top 100 genes (the paper's Table 2b)")

# %% tags=["hide-input"] mystnb={"image": {"alt": "R squared of the change of every method, one panel per data set: a dot per held-out type and seed, a bar at the mean. The same numbers stand in the table above."}}
scores = main[main["metric"] == "r2_change_top100"]
figure = score_figure(
    scores, label="R² of the change, top 100 genes", order=[*experiment.METHODS, "truth"], titles=titles, highlight="scdiff"
)

# %% [markdown]
# By held-out type:

# %% tags=["hide-input"]
by_type = scores.pivot_table(
    index="method", columns=["dataset", "tier", "split"], values="value", aggfunc="mean", sort=False
)
by_type.loc[[m for m in (*experiment.METHODS, "truth") if m in by_type.index]].rename(index=titles).round(3).fillna("not run")

# %% [markdown]
# ### What the score does not see
#
# The size of the change on the same genes (1 is right):

# %% tags=["hide-input"]
display(table(None, "change_size_ratio", "Size of the predicted change, as a share of the true one", 2))

# %% [markdown]
# And the cells. The first table asks by how many doublings the variance of a typical gene is off, the second by how much
# the share of zeros, the third how far the predicted cells as a whole are from the real ones. Methods that answer every
# cell alike have no variance and are left out of the first. Values below zero count as zero here, for every method.

# %% tags=["hide-input"]
display(table(None, "gene_variance_log2_ratio", "Variance of a gene, doublings off", 2))
display(table(None, "gene_zero_fraction_gap", "Share of zeros of a gene, mean gap"))
display(table(None, "energy_distance_u", "Energy distance to the real stimulated cells", 2))

# %% [markdown]
# Unchanged control cells are real cells in the wrong state. Where they are closer to the real stimulated cells than a
# method's predictions are, the method has moved the mean the right way and lost the cells.

# %% [markdown]
# ### How many steps?
#
# The paper draws with all 1000 steps. Fifty can do as well where they are spent well: closer together where there is little
# noise (time steps that grow as squares), and with the noise of ancestral sampling in each, DDIM with
# $\eta = 1$ ({src}`screpro.samplers.ddim`). The difference to these 50 steps and to a single network call, in R² of the same
# trained networks:

# %% tags=["hide-input"]
pivot = scores.pivot_table(index=["dataset", "tier", "split", "seed"], columns="method", values="value", sort=False)
if {"scdiff", "scdiff_ddim50", "scdiff_one_call"} <= set(pivot):
    gaps = pivot[["scdiff_ddim50", "scdiff_one_call"]].sub(pivot["scdiff"], axis=0).dropna()
    steps = gaps.groupby(["dataset", "tier"], sort=False).agg(lambda v: spread(v.mean(), v.std()))
    largest = gaps["scdiff_ddim50"].groupby(["dataset", "tier"], sort=False).agg(lambda v: v.abs().mean())
    steps["mean size of 50 steps - all"] = largest.map(lambda v: f"{v:.3f}, within .01: {'yes' if v <= 0.01 else 'no'}")
    steps = steps.rename(columns={"scdiff_ddim50": "50 steps - all", "scdiff_one_call": "one call - all"})
    display(steps.set_axis([f"{data_set}, {at}" for data_set, at in steps.index]).rename_axis(columns=None))
    for key in largest.index[largest > 0.01]:
        own = gaps["scdiff_ddim50"].loc[key].abs()
        without = own.drop(own.idxmax())
        display(Markdown(
            f"On `{key[0]}` ({key[1]}) the 50 steps are further from all steps than the .01 that was aimed at; furthest, "
            f"with {own.max():.3f}, for {own.idxmax()[0]} with seed {int(own.idxmax()[1])}"
            + (f"; the other {len(without)} runs are {without.mean():.3f} ± {without.std():.3f} apart." if len(without) > 1 else ".")
        ))

# %% [markdown]
# Why spend them there? The chain of all steps can be answered early: at time step $t$ the network says what the cell
# will be, and the remaining steps are left out. R² of the answer on the way down, first held-out type (ablation X-21,
# not in the paper), and of 50 steps that are spread evenly and add no noise, the usual DDIM:

# %% tags=["hide-input"]
early = rows[(rows["item"] == "X-21") & (rows["metric"] == "r2_change_top100")]
if len(early):
    # even steps stand last; recorded runs may be of before they were measured
    way = early.assign(t=early["metric_variant"].str.extract(r"answer at t = (\d+)")[0].fillna(-2).astype(int))
    whole = [
        main.loc[(main["method"] == method) & (main["metric"] == "r2_change_top100")].assign(t=t)
        for method, t in (("scdiff_one_call", 999), ("scdiff", 0), ("scdiff_ddim50", -1))
    ]
    keys = ["dataset", "tier", "split", "seed"]
    way = pd.concat([way, *whole]).merge(way[keys].drop_duplicates(), on=keys)
    way = way.pivot_table(index="t", columns=keys, values="value").sort_index(ascending=False)
    known = {999: "one call, t = 999", 0: "all steps, t = 0", -1: "50 steps, late and noisy", -2: "50 steps, even and without noise"}
    way.index = way.index.map(lambda t: known.get(t, f"t = {t}"))
    for (data_set, at, kind), own in way.T.groupby(keys[:3], sort=False):
        own = own.droplevel(keys[:3]).T.rename_axis(index="answer at", columns="seed")
        display(own.style.format("{:.3f}").set_caption(f"{data_set} ({at}), {kind} held out"))
else:
    display(Markdown("Not measured at this tier, and no run of a heavier tier is recorded."))

# %% [markdown]
# In the last steps hardly any noise is left: the network is shown a cell that is nearly finished and asked what it is
# without the noise. All steps ask that twenty times after $t = 20$, even steps once, quadratic ones seven times, and
# every answer is the next question: what the network gets wrong of a stimulated cell of a type it has never seen
# stimulated adds up. Where R² falls from $t = 20$ to 0, even steps score *better* than the sampler of the paper, and are
# still the wrong way to say what it scores.

# %% [markdown]
# All cells take each step together. Calling the sampler cell by cell gives the same distribution and wastes most of
# the processor; measured here, with all 1000 steps:

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
speed = run.frame()
speed = speed[(speed["metric"] == "cells_per_second") & (speed["method"] == "scdiff")]
at_once = speed.loc[speed["metric_variant"] == "all cells at once", "value"].mean()
Markdown(
    f"{at_once:.1f} cells per second all at once, {alone:.2f} one after the other: {at_once / alone:.0f} times as fast."
    if np.isfinite(at_once)
    else f"{alone:.2f} cells per second one after the other; sampling all at once was not among the methods."
)

# %% [markdown]
# ### Does the donor help?
#
# The authors give the network the batch of the cell. In Kang's experiment that is the donor, and in the sub-samples at
# hand five of eight donors have control cells alone: knowing such a donor is knowing that the cell was not stimulated.
# The same network with and without it, 50 steps (ablation X-7, not in the paper):

# %% tags=["hide-input"]
study = rows[(rows["item"] == "X-7") & rows["metric"].isin(["r2_change_top100", "change_size_ratio"])]
study.pivot_table(
    index="metric_variant",
    columns=["dataset", "tier", "metric"],
    values="value",
    aggfunc=lambda v: spread(v.mean(), v.std()),
    sort=False,
) if len(study) else Markdown("Cells of one batch in this run, and no recorded run.")

# %% [markdown]
# ### What tuning chose
#
# At tier `laptop` every method with settings chooses among them by R² of the change on a further held-out type, which is
# never scored. The published sizes of the networks (800 units, 100 epochs in batches of 32 for scGen and CVAE) are the
# defaults of the code and of tier `paper`; here they would take minutes for each training.

# %% tags=["hide-input"]
def changed(options: str) -> str:
    """The options that differ from scDiff's starting point, or from the size of all the baselines' networks."""
    start = asdict(PRESETS["laptop"])
    start = start if "empty_context" in options else {"width": small["width"], "latent": small["latent"]}
    own = {name: v for name, v in json.loads(options).items() if start.get(name) != v}
    return ", ".join(f"{name} = {v}" for name, v in own.items()) or "default"


tried = rows[rows["item"] == "tuning"].copy()
tried["setting"] = tried["metric_variant"].map(changed)
tried["method"] = tried["method"].map(titles)
tried.pivot_table(
    index=["method", "setting"], columns="dataset", values="value", sort=False
).round(3) if len(tried) else Markdown("No method was tuned in this run, and no tuned run is recorded.")

# %% [markdown]
# ### What was aimed at
#
# This page set out to reach at least scGen's R² in CD4 T cells and in CD14 monocytes of the Kang sets. scDiff by the full
# chain of steps against scGen as tuned here, pairs of one seed each:

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
def aim(frame, types=("CD4 T cells", "CD14+ Monocytes")):
    """scDiff less scGen in each of the types, on every Kang set at its heaviest tier."""
    own = frame[(frame["metric"] == "r2_change_top100") & (frame["tier"] != "ci") & frame["dataset"].str.contains("kang")]
    found = [(split, each) for split in types for each in compare(heaviest(own[own["split"] == split]), "scdiff", "scgen")]
    if not found:
        return Markdown("No Kang set has both methods at tier laptop or paper.")
    lines = [
        f"- **{each.dataset}** ({each.tier}), {split}: scDiff - scGen {each.difference:+.3f} ± {each.standard_error:.3f}, "
        f"{each.n_pairs} pairs"
        for split, each in found
    ]
    reached = sum(each.difference >= 0 for _, each in found)
    word = "met" if reached == len(found) else "missed"
    return Markdown(f"The aim is **{word}**: reached in {reached} of {len(found)}.\n\n" + "\n".join(lines))


aim(main)

# %% [markdown]
# ## Verdict
#
# The decision rule was written down before any of these runs ([ledger of claims](../../book/ledger.md)). It counts real
# perturbations only, not the semi-synthetic one.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
records.verdicts("scdiff", ["S4"], rows)

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | data | PBMC, H.poly, Salmonella; 5 010 to 17 082 cells | the same, cells and types from scGen's files | stand-ins: two sub-samples of the PBMC experiment, and real cells with an effect put in (tier `paper` takes the originals through the registry) |
# | held out | stimulated cells of one type | CD4 T; TA.Early | the three types with most stimulated cells, one at a time |
# | genes | about 15 000 | about 7 000, marked variable with the held-out cells among the others | 2 000, chosen on training cells alone |
# | batch | given | multiplet class (PBMC) | not given; study above |
# | context in training | masked at random | a random subset of a random share of the genes | every gene hidden with that share as its probability |
# | training | 1 000 epochs at 1e-5, batch 2 048, width 512, six blocks | the same | 100 epochs (`ci`: 60) at 1e-3 with cosine decay, batch 128, width 128, three blocks, then tuned; tier `paper` as the authors |
# | vector arithmetic | not defined | not in the repository | pooled over cells, and averaged over types |
# | CVAE | not defined | not in the repository | told type and state |
# | scGen, CPA | published defaults | not in the repository | smaller networks, tuned; CPA's classifiers through a reversed gradient, without penalty |
# | score | R² of the change | squared correlation, top 100 by signed score | the same, and the size of the change, variance, zeros and a distance between cells |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-perturbation-size
# A method predicts, for every gene, 30 % of the true change. What are its R² of the change and the size of its change?
# And one that predicts minus the true change?
# :::
#
# :::{solution} ex-perturbation-size
# :class: dropdown
# $\hat\delta = 0.3\,\delta$ has correlation 1 with $\delta$, so R² is 1 and the size 0.3. For $\hat\delta = -\delta$ the
# correlation is -1, R² again 1, the size -1. The score of Table 2b cannot tell the three apart.
# :::
#
# :::{exercise}
# :label: ex-perturbation-pooled
# A stimulation does nothing at all. Among the control cells 80 % are monocytes, among the stimulated ones 50 %; the
# other cells are T cells. A gene has mean 2 in monocytes and 0 in T cells. What change does pooled vector arithmetic
# predict for it, and what the average over types?
# :::
#
# :::{solution} ex-perturbation-pooled
# :class: dropdown
# Pooled: 0.5 x 2 - 0.8 x 2 = -0.6, a difference of composition that passes for a change. Averaged over types: 0 for
# monocytes and 0 for T cells, so 0.
# :::

# %% [markdown]
# :::{exercise-start}
# :label: ex-perturbation-noise
# :::
# Draw a second cell for each of the first 100 control cells with another seed. How much of the variance between the
# generated cells of a gene comes from the noise, and how much from the control cell that was the context?
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-perturbation-noise
# :class: dropdown
# :::

# %% tags=["solution"]
hundred = np.arange(min(100, len(generated)))
draws = np.stack([predictor.predict(sampler="ddim quadratic", seed=s, rows=hundred)[:, top] for s in (11, 12)])
from_noise = draws.var(axis=0, ddof=1).mean(axis=0)  # between draws with the same context, per gene
total = draws.reshape(-1, len(top)).var(axis=0)
print(f"share of the noise, median gene: {np.median(from_noise / np.maximum(total, 1e-12)):.1%}")

# %% [markdown]
# Noise comes in at the start and in every step, and the smaller its share in the end, the more the network acts as a
# function of its context: given a whole cell to look at, there is little left to be uncertain about that it was trained
# to draw.
# :::{solution-end}
# :::
