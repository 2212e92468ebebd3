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
# # Perturbation: cells of a pair that was never seen together
#
# scLDM, section 4.2 and appendices K, L.3 to L.5: Tables 3, 14 and 15, Figures 3 and 13.
#
# Many cell types can be put under many perturbations, cytokines or knocked-out genes, but not all pairs are ever
# measured. Where CD4 T cells were not given IL-9, other cells were, and CD4 T cells were given other cytokines. Can the
# missing pair be put together from these?
#
# scLDM is told a type and a perturbation, two labels, and draws cells from noise. It is shown no control cell of the
# type when it does so; what the type looks like has to be in its weights. The methods it is compared with start from
# control cells and change them. The paper reports distances between generated and real cells that are far below those
# of four such methods on two large screens.
#
# This page holds out pairs of real cells, trains scLDM and everything it is compared with on the rest, and puts beside
# them what the paper's table lacks: control cells as they are, control cells moved by the mean effect, and one half of
# the real cells as the answer to the other.

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
# Everything that can be changed from outside. `screpro params scldm/perturbation` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name or path to an .h5ad; without perturbations effects are put in
type_key: str | None = None  # column of the cell types, lines or replicates; None takes the set's
perturbation_key: str | None = None  # column of the perturbations; None takes the set's
control: str | None = None  # the perturbation of the control cells; None finds its usual names
held_out: list[str] | None = None  # pairs that are generated, each as "type | perturbation"; None takes the set's
methods: list[str] | None = None  # which methods to run; None runs all but scgpt {scldm, scvi, cpa, state_like, mean_shift, control_of_type, perturbation_mean, context_mean, scgpt}
seeds: list[int] | None = None  # seeds of weights and noise; None takes the tier's [0..1000000]
genes: int | None = None  # variable genes in the panel, chosen on training cells; None takes the tier's [50..40000]
max_control: int | None = None  # control cells kept of each type; None takes the tier's [20..1000000]
max_cells: int | None = None  # cells kept of each pair; None takes the tier's [20..1000000]
epochs: int | None = None  # passes of scLDM's auto-encoder over the training cells; None takes the tier's [1..10000]
flow_steps: int | None = None  # training steps of its flow; None takes the tier's [1..10000000]
width: int | None = None  # width of auto-encoder and flow, a multiple of its heads; None takes the tier's [8..2048]

# %% [markdown]
# ## What the paper says
#
# (tbl-scldm-3)=
# **Table 3** compares generated with real cells of pairs held out in two screens: 27 cytokines in CD4 Naive cells
# (Parse 1M) and 372 knocked-down genes in HepG2 (Replogle). Lower is better in every column; ω is the guidance weight:

# %% tags=["hide-input"]
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from screpro import data, records
from screpro.baselines import perturbed_counts as baselines
from screpro.baselines import scgpt_adapter
from screpro.errors import ScreproError
from screpro.plots import PALETTE, score_figure, use_style
from screpro.records.compare import compare, heaviest
from screpro.records.tables import spread
from screpro.tasks import perturbed_cells_experiment as experiment
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings, decode_counts, sample_latents
from screpro.tasks.generation import narrow_kernels
from screpro.tasks.perturbed_cells import default_pairs, hold_out_pairs, normalised, pair_cells, put_in_effects
from screpro.tasks.perturbed_cells_scores import EFFECTS, PairScorer
from screpro.tasks.small_values import ZEROED

use_style()
threads = int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1))
short = {"w2_exact": "W2", "mmd2_rbf_sum5": "MMD²", "frechet_distance": "FD", "mmd2_rbf_median": "MMD², unbiased"}
titles = {"scldm": "scLDM", experiment.CEILING: "other half of the real cells"}
titles |= {experiment.BOUND: "scLDM's auto-encoder, real cells", "global_mean": "one profile for all cells"}
titles |= {name: baseline.title for name, baseline in baselines.BASELINES.items()}
records.paper_table("scldm", "Table 3")

# %% [markdown]
# (tbl-scldm-15)=
# **Table 15** compares the two ways to give a network two labels, at ω = 1:

# %% tags=["hide-input"]
records.paper_table("scldm", "Table 15")

# %% [markdown]
# **Table 14** compares how well the two auto-encoders reconstruct cells of these screens: reconstruction error
# (negative log-likelihood in nats), correlation across cells and squared error of one draw. The
# [page on reconstruction](reconstruction) is about it:

# %% tags=["hide-input"]
records.paper_table("scldm", "Table 14")

# %% [markdown]
# (fig-scldm-3)=
# **Figure 3** shows generated over real cells in two dimensions.
#
# (fig-scldm-13)=
# **Figure 13** shows four scores of the predicted *effects*, as bars without numbers; ours is
# [below](#figure-13-are-the-effects-right).
#
# ### What the printed numbers say by themselves
#
# Statements of the text against the tables; the right column is computed from the printed values. The best competitor
# is that of each screen and distance, named in brackets.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
WHICH = {"W2": "W2", "MMD2 RBF": "MMD²", "FD": "FD"}
SCREENS = ("Parse 1M", "Replogle")


def table_of(item, column="mean"):
    """Printed values: a row per screen and score, a column per method."""
    values = records.paper_values("scldm", item)
    return values.pivot_table(index=["dataset", "metric"], columns="method", values=column, sort=False)


three, fifteen, fourteen = (table_of(item) for item in ("Table 3", "Table 15", "Table 14"))
at_1, at_5, at_10 = (three[f"scLDM (ω ={weight})"] for weight in (1, 5, 10))
rivals = three[["scVI", "CPA", "scGPT", "STATE"]]
best, by_whom = rivals.min(axis=1), rivals.idxmin(axis=1)
below = 1 - at_1 / best
joint, additive = fifteen["scLDM (joint)"], fifteen["scLDM (additive)"]
same_mean = (joint / at_1 - 1).abs()
spreads = table_of("Table 3", "spread")["scLDM (ω =1)"], table_of("Table 15", "spread")["scLDM (joint)"]
printed_spreads = "; ".join(
    f"{screen} {WHICH[m]} {spreads[0][screen, m]:g} and {spreads[1][screen, m]:g}" for screen, m in three.index
)


def gains(screen, scores):
    """By how much scLDM is below the best competitor, in words."""
    return ", ".join(f"{WHICH[m]} {below[screen, m]:.1%} ({by_whom[screen, m]})" for m in scores)


def behind(values):
    """Where `values` are above the best competitor."""
    found = [
        f"{screen} {WHICH[m]} ({value:g}, {by_whom[screen, m]} {best[screen, m]:g})"
        for (screen, m), value in values.items()
        if value > best[screen, m]
    ]
    return "; ".join(found) or "nowhere"


worst = rivals.xs("MMD2 RBF", level="metric").stack()
checks = {
    "substantially better across all metrics (4.2)": "; ".join(f"{each}: {gains(each, ['W2'])}" for each in SCREENS),
    "up to ~90 % better in MMD² and FD on Parse 1M (4.2)": gains("Parse 1M", ["MMD2 RBF", "FD"]),
    "up to ~60 % better in MMD² and FD on Replogle (4.2)": gains("Replogle", ["MMD2 RBF", "FD"]),
    "three guidance weights, ω = 1, 5 and 10 (Table 3)": f"from 1 to 5 worse in {(at_5 > at_1).sum()} of {len(at_1)} "
    f"entries, from 5 to 10 in {(at_10 > at_5).sum()}; at ω = 10 behind the best competitor: {behind(at_10)}",
    "joint conditioning (Table 15) is scLDM of Table 3 at ω = 1": f"means differ by {same_mean.max():.1%} at most; "
    f"± in Table 3 and in Table 15: {printed_spreads}",
    "additive conditioning (Table 15), as in CFGen": f"behind the best competitor of Table 3: {behind(additive)}",
    "MMD² with one kernel (J.1), which cannot exceed 2": f"{worst.max():g} ({worst.idxmax()[1]}, {worst.idxmax()[0]})",
    "reconstruction: RE about 310 nats, PCC .887, MSE .188, with scVI at 432, .351 and .701 (L.3)": "Parse 1M in "
    + "Table 14: " + ", ".join(f"{m} {fourteen.loc[('Parse 1M', m), 'scLDM']:g}" for m in ("RE", "PCC", "MSE")),
}  # fmt: skip
Markdown("| statement | the printed values |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in checks.items()))

# %% [markdown]
# Three more things to know before comparing anything with these numbers:
#
# - **MMD² is a sum of five kernels.** No other reading reaches the printed values.
# - **There is no row for control cells.** How far the unperturbed cells of the type are from the perturbed ones is not
#   said, so it is not known how much of each distance is about the perturbation at all.
# - **The ± columns mean different things.** scLDM was trained once and sampled three times, the others were trained
#   three times. Here everything is trained once per seed.

# %% [markdown]
# ## Method
#
# The auto-encoder is trained on counts alone. A velocity network then learns to carry noise to latents, given type
# $y^{(1)}$ and perturbation $y^{(2)}$ (section 3.2 of {cite:p}`scldm`, without a number). *Joint*: the embeddings of
# both labels are added and dropped together, and with the guidance weight $\omega$ cells follow (equation 39)
#
# $$\tilde v = v_\varnothing + \omega\,\big(v_{y^{(1)} y^{(2)}} - v_\varnothing\big).$$
#
# *Additive*, as in CFGen: one label at a time is given in training, and their effects are added (equation 40):
#
# $$\tilde v = v_\varnothing + \omega\,\big(v_{y^{(1)}} - v_\varnothing\big) +
# \omega\,\big(v_{y^{(2)}} - v_\varnothing\big).$$
#
# A pair never seen together is thus a sum of two embeddings each of which has been seen. The appendix gives every
# *combination* a token of its own, which a held-out combination could not have been trained with; the authors' code
# adds embeddings.
#
# **Library size.** The flow does not know how many molecules a cell has; that number is drawn from the log-normal law
# of training cells with the same labels, and a held-out pair has none. In the authors' code its log size falls to 0,
# one molecule per cell, unless a file they ship covers it. Here it is the main-effects model: the overall mean of the
# log totals plus what the type and what the perturbation add to it on average. Both are compared
# [below](#what-if-a-pair-has-no-library-size).
#
# | equation | code | test |
# |---|---|---|
# | path and loss (no number; section 3.2) | {src}`screpro.processes.interpolant.VelocityLoss` | equals the expectation in closed form |
# | 39, 40, guidance | {src}`screpro.samplers.guidance` | one attribute: both forms are the same |
# | what is held out | {src}`screpro.tasks.perturbed_cells.hold_out_pairs` | results do not depend on the held-out cells |
# | library size of unseen pairs | {src}`screpro.tasks.library_size.LibrarySizes` | exact where effects are additive |
# | scores of a pair | {src}`screpro.tasks.perturbed_cells_scores.PairScorer` | the real cells as an answer score 0 |
# | 21 to 26, references | {src}`screpro.baselines.perturbed_counts` | exact where effects are additive |
# | STATE's set transformer | {src}`screpro.baselines.state_like.StateLike` | order of the cells does not matter; recovers a known effect |
#
# ## Cells, and what is held out

# %%
run = records.start("scldm/perturbation", tier=tier)
own = dataset.endswith(".h5ad")
adata = data.load(dataset, label_key=(type_key if own else None) or "cell_type")
name = Path(dataset).name if own else dataset
run.use_data(name, adata.uns["data_hash"])
where = {  # columns of types and perturbations
    "kang_9k": ("cell_type", "condition"),
    "kang_1k": ("cell_type", "condition"),
    "papalexi_thp1": ("batch", "perturbation"),
}
kind_column, given_column = where.get(name, ("cell_type", "perturbation"))
kind_column, given_column = (None if own else type_key) or kind_column, perturbation_key or given_column
source = adata.uns["source"]
if given_column not in adata.obs:  # real cells, known effects: molecules are taken out to make them
    adata = put_in_effects(adata, rng=np.random.default_rng(0))
    name, source = f"{name} (semi-synthetic)", adata.uns["source"]
    kind_column, given_column = "cell_type", "perturbation"

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
# seeds, genes, control cells of a type, cells of a pair
tiers = {"ci": ([0], 300, 100, 100), "laptop": ([0, 1, 2], 500, 150, 300), "paper": ([0, 1, 2], 2000, None, None)}
small = {"papalexi_thp1": (250, 60)}  # three replicates of 26 conditions each: fewer cells of each do
least_passes = 36  # of the auto-encoder, at tier laptop: cells of one line are told apart late (see Table 14 below)
sizes_of_model = {
    "ci": (
        AutoEncoderSettings(width=32, tokens=8, layers=1, epochs=4, batch_size=8),
        FlowSettings(width=32, layers=2, steps=150, learning_rate=2e-3),
    ),
    "laptop": (
        AutoEncoderSettings(batch_size=8, learning_rate=2e-3),  # small batches: a few thousand cells make few steps
        FlowSettings(width=96, layers=3, steps=6000, batch_size=64, learning_rate=2e-3),
    ),
    "paper": (
        AutoEncoderSettings(
            width=256, tokens=256, channels=16, layers=4, heads=8, cross_heads=1, epochs=100, batch_size=128
        ),
        FlowSettings(width=256, layers=8, heads=8, steps=120_000),
    ),
}
baseline_options = {
    "ci": {
        "scvi": {"epochs": 10, "warmup_epochs": None},
        "cpa": {"epochs": 8, "learning_rate": 3e-3},
        "state_like": {"steps": 60, "set_size": 32},
    },
    "laptop": {
        "scvi": {"epochs": 240, "warmup_epochs": None},
        "cpa": {"epochs": 30},
        "state_like": {"steps": 600},
    },
}
papers_pairs = {
    "papalexi_thp1": [
        f"rep_2 | {gene}" for gene in ("IFNGR1", "JAK2", "STAT2", "IRF1", "CUL3", "SMAD4", "CD86", "UBE2L6")
    ],
}
for registered, columns in (("scldm_parse1m", ("cell_type", "cytokine")), ("scldm_replogle", ("cell_line", "gene"))):
    if name == registered:
        labels = records.heldout()[f"{registered}_test_labels"]
        papers_pairs[name] = [f"{k} | {p}" for k in labels[columns[0]] for p in labels[columns[1]]]
tier_seeds, tier_genes, tier_control, tier_cells = tiers[tier]
if tier != "paper":
    tier_control, tier_cells = small.get(name, (tier_control, tier_cells))
cells = pair_cells(
    adata,
    type_key=kind_column,
    perturbation_key=given_column,
    control=control,
    max_control=max_control or tier_control,
    max_cells=max_cells or tier_cells,
)
asked = held_out or papers_pairs.get(name)
pairs = [tuple(part.strip() for part in pair.split("|")) for pair in asked] if asked else default_pairs(cells)
held = hold_out_pairs(cells, pairs, n_genes=genes or tier_genes)
base, flow = sizes_of_model[tier]
n_train, n_panel = held.train.counts.shape
options = baseline_options.get(tier, {})
if tier == "laptop":  # about as many entries, and for the baselines cells, read on every set
    base = replace(base, epochs=max(least_passes, round(2e7 / (n_train * n_panel))))
    for method, visits in (("scvi", 640_000), ("cpa", 80_000)):
        options[method]["epochs"] = max(options[method]["epochs"], round(visits / n_train))
both = {"width": width} if width else {}
protocol = experiment.Protocol(
    dataset=name,
    seeds=seeds or tier_seeds,
    autoencoder=replace(base, **both, **({"epochs": epochs} if epochs else {})),
    flow=replace(flow, **both, **({"steps": flow_steps} if flow_steps else {})),
    options=options,
    sampler_steps=10 if tier == "ci" else 20,
    threads=threads,
    tune=tier != "ci",
)
scorer = PairScorer(held)
facts = {
    "data": source,
    "training cells x genes": f"{n_train} x {n_panel} (chosen without the held-out cells)",
    "types": ", ".join(held.train.types),
    "perturbations": f"{len(held.train.perturbations) - 1} and {held.train.perturbations[0]}",
    "held out, all at once": "; ".join(f"{held.name(pair)} ({len(held.test.rows(*pair))})" for pair in held.pairs),
    "scLDM": f"{protocol.autoencoder.epochs} passes of the auto-encoder, {protocol.flow.steps} steps of the flow",
    "runs": f"seeds {list(protocol.seeds)}, no method tuned for the comparison",
}
records.facts_table(facts)

# %% [markdown]
# ## One model, step by step

# %%
first_seed = protocol.seeds[0]
models = experiment.train_models(held, protocol, seed=first_seed)
counts = models.joint.draw(held.test.labels, steps=protocol.sampler_steps, seed=first_seed)
generated = normalised(counts)  # one cell for each held-out real cell, with its labels
print(f"{counts.shape[0]} cells drawn, {np.median(np.asarray(counts.sum(1))):.0f} molecules in the median cell")
print(f"{np.median(np.asarray(held.test.counts.sum(1))):.0f} in the median real cell of these pairs")

# %% [markdown]
# ### Each pair by itself
#
# Left, all real against as many generated cells, the numbers a table like the paper's averages. They cannot be
# compared between pairs of different size: with few cells every distance is larger, and the narrow kernels of MMD² see
# no two cells alike, which adds about $2/n$ each whatever the model. Right, half of the real cells against as many
# generated ones, and against the other half of the real ones: what a perfect model gets.

# %% tags=["hide-input"]
table = {"real cells": [len(rows) for rows in scorer.rows]}
for title, found in (
    ("all", scorer.distances(generated)),
    ("half", scorer.distances(generated, halves=True)),
    ("real half", scorer.ceiling()),
):
    for metric, named in short.items():
        table[f"{named}, {title}"] = found[metric]
pd.DataFrame(table, index=[held.name(pair) for pair in held.pairs]).round(2).head(12)

# %% [markdown]
# ## All methods
#
# scVI, CPA and the STATE-like transformer each take control cells of the type and change them: scVI encodes a control
# cell and decodes it as perturbed, one draw from its likelihood; CPA exchanges a vector in its code and adds what that
# changes to the cell; the transformer maps a *set* of control cells to a set. scGPT needs a package and weights that
# cannot be had from a package registry; {src}`screpro.baselines.scgpt_adapter` runs it where they are there and
# `methods` names it. The line below says what of it is here.

# %% tags=["hide-input"]
def scgpt_missing():
    """What scGPT lacks here, None where nothing."""
    try:
        scgpt_adapter.files()
    except ScreproError as error:
        return error.got
    return None if find_spec("scgpt") else "no package scgpt"


# %%
wanted = list(methods or experiment.METHODS)
missing = scgpt_missing()
print(f"scGPT cannot be run here: {missing}" if missing else f"scGPT can be run here{'' if 'scgpt' in wanted else '; name it in `methods`'}")
if "scgpt" in wanted and missing:
    wanted.remove("scgpt")
experiment.compare_methods(run, held, protocol, wanted, models={first_seed: models})

# %% tags=["hide-input"]
rows = run.with_recorded()
in_order = [*experiment.METHODS, *(["scgpt"] if "scgpt" in set(rows["method"]) else [])]
main = rows[rows["metric_variant"] == "guidance 1"]
guided = rows[(rows["metric_variant"] == "guidance") & (rows["method"] != "guidance_1")]

# %% [markdown]
# None of the sets at hand is one of the paper's, so every column of ours is a **stand-in**: it says of how many seeds
# it is the mean, and is never a reproduction of a printed number. "Semi-synthetic" means real cells with known effects
# put in. In `papalexi_thp1` the type is a replicate of one cell line, which makes the types far more alike than the
# paper's. Values are means over the held-out pairs with equal weight. At tier `ci` networks are trained for seconds on
# a few hundred cells: its columns show that the page works, not what the methods can do.

# %% tags=["hide-input"]
same = {"scldm_parse1m": "Parse 1M", "scldm_replogle": "Replogle"}
in_paper = {"scldm": "scLDM (ω =1)", "state_like": "STATE"}
in_paper |= {f"guidance_{weight}": f"scLDM (ω ={weight})" for weight in (5, 10)}
kinds = {experiment.CEILING: "ceiling", "additive": "model", "global_mean": "trivial"}
kinds |= {f"guidance_{weight}": "model" for weight in (5, 10)}
kinds |= {name: baseline.kind for name, baseline in baselines.BASELINES.items()}


def beside(item, metric, results, caption, digits=3, paper_metric=None, subject="scldm", methods=None, titles=titles):
    return records.side_by_side(
        "scldm",
        item,
        results,
        metric=metric,
        subject=subject,
        paper_metric=paper_metric,
        same=same,
        methods=in_paper if methods is None else methods,
        kinds=kinds,
        titles=titles,
        caption=caption,
        digits=digits,
    )


printed = {"w2_exact": "W2", "mmd2_rbf_sum5": "MMD2 RBF", "frechet_distance": "FD"}
table_3 = pd.concat([main, guided.assign(metric_variant="guidance 1")], ignore_index=True)
for metric, of_paper in printed.items():
    display(beside("Table 3", metric, table_3, f"{of_paper} of held-out pairs (the paper's Table 3)", 2, of_paper))

# %% [markdown]
# What each column is to be read with: cells of a pair, on which every distance depends, what the three narrow kernels
# alone add to MMD² at these numbers whatever the method, and whether scLDM's cells are nearer to the real ones than
# control cells of the type are, that is, than the answer "nothing happens":

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
WORDS = {"win": "nearer", "loss": "further", "tie": "level"}
cells_of = rows[rows["metric"] == "cells_of_pair"].drop_duplicates(["dataset", "tier", "metric_variant"], keep="last")
lines = []
for (of_set, at), own in main.groupby(["dataset", "tier"], sort=False):
    n = cells_of.loc[(cells_of["dataset"] == of_set) & (cells_of["tier"] == at), "value"]
    said = [f"{len(n)} of {n.min():.0f} to {n.max():.0f}", f"{n.map(narrow_kernels).mean():.3f}"] if len(n) else ["–"] * 2
    for metric in printed:
        if not (found := compare(own[own["metric"] == metric], "scldm", "control_of_type")):
            said.append("–")
        elif found[0].n_pairs == 1:
            said.append(f"one seed ({found[0].difference:+.2f})")
        else:
            said.append(f"{WORDS[found[0].outcome]} ({found[0].difference:+.2f} ± {found[0].standard_error:.2f})")
    lines.append(f"| {of_set}, {at} | {' | '.join(said)} |")
head = "| data | pairs, cells | narrow kernels in MMD² | W2 | MMD² | FD |\n|---|---|---|---|---|---|\n"
Markdown(head + "\n".join(lines))

# %% [markdown]
# ### Against the ceiling
#
# The same distances between halves: cells of each method, and the other half of the real cells, against one half of the
# real cells. The second row is no method: the held-out cells themselves, encoded and decoded by scLDM's auto-encoder,
# one draw each. A flow that knew the law of their latents would get about that, so where it is far from the ceiling, the
# auto-encoder is what has to become better. A dash: not run, or the score was not recorded. *Context mean* takes a second
# perturbation of the type, which `kang_9k` has not.
#
# The other half is as noisy as an answer with so few cells must be. Where a score asks for means or for the order of small
# effects, an answer that is made from more cells, or from none, can be ahead of it: the ceiling is one of distances between
# crowds.

# %% tags=["hide-input"] mystnb={"image": {"alt": "MMD squared between one half of the real cells and as many cells of each method, one panel per data set: a dot per seed, a bar at the mean; the other half of the real cells stands last and marks what a perfect model gets. The same numbers stand in the table below."}}
halves = heaviest(rows[rows["metric_variant"] == "halves"])
order = [in_order[0], experiment.BOUND, *in_order[1:], experiment.CEILING]
cells_only = [m for m in order if m not in ("perturbation_mean", "context_mean")]  # one cell repeated: far off the axis
figure = score_figure(
    halves[halves["metric"] == "mmd2_rbf_sum5"],
    label="MMD² to half of the real cells",
    order=cells_only,
    titles=titles,
    highlight="scldm",
)


# %% tags=["hide-input"]
def grid(results, order, names, columns, digits=2):
    """Mean and spread over seeds: methods by data set and score."""
    results = results[results["metric"].isin(columns)].assign(score=results["metric"].map(columns))
    values = results.pivot_table(
        index="method",
        columns=["dataset", "tier", "score"],
        values="value",
        aggfunc=lambda v: spread(v.mean(), v.std(), digits),
        sort=False,
    )
    return values.loc[[m for m in order if m in values.index]].rename(index=names).fillna("–")


grid(halves, order, titles, short)

# %% [markdown]
# Seconds of fitting and generating (scLDM: auto-encoder and one flow). Recorded runs share their cores with others, so
# these are orders of magnitude; [benchmarks](../together/kernels) are measured alone:

# %% tags=["hide-input"]
grid(rows[rows["metric"] == "fit_predict"], in_order, titles, {"fit_predict": "seconds"}, 1)

# %% [markdown]
# *Perturb mean* and *Context mean* repeat one cell: perhaps the right centre, but no spread. Where control cells as
# they are come as near to the ceiling as the methods that were trained, the distance is about being cells of that
# type, and hardly about the perturbation. In the semi-synthetic set a perturbation multiplies the same genes by the
# same factors in every type, so the mean effect of other types is close to the best that can be known; real effects
# differ.

# %% [markdown]
# ### Figure 3: generated over real cells
#
# The first two principal components of the real held-out cells, of the first two held-out pairs, at most 200 cells each,
# generated by the first seed; one line of panels for every data set whose run, recorded or this one, has kept them.
# Control cells of the type show where the cells would be if nothing had happened.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels a data set, one held-out pair each, on the same two principal components of the real held-out cells: control cells of the type as grey dots, real perturbed cells as blue circles, cells generated by scLDM as orange triangles. Where generated cells lie among the blue ones the pair is put together well."}}
on_map = records.drawn_points(run, "pairs", beside="real_cells")
looks = {
    "control_cells": ("control", {"color": "0.75", "marker": "o", "ms": 3}),
    "real_cells": ("real", {"color": PALETTE[0], "marker": "o", "ms": 3.5}),
    "scldm": ("generated", {"color": PALETTE[1], "marker": "^", "ms": 3.5}),
}
sets_shown = list(on_map.groupby(["dataset", "tier"], sort=False))
shape = {"squeeze": False, "layout": "constrained"}
figure, panels = plt.subplots(len(sets_shown), 2, figsize=(7, 3.0 * len(sets_shown) + 0.5), **shape)
for line, ((of_set, of_tier), own) in zip(panels, sets_shown, strict=True):
    limits = {axis: (own[axis].min(), own[axis].max()) for axis in ("x", "y")}
    pads = {axis: 0.05 * (high - low) for axis, (low, high) in limits.items()}
    for axes, (pair, of_pair) in zip(line, own.groupby("pair", sort=False), strict=False):
        for method, (label, style) in looks.items():
            points = of_pair[of_pair["method"] == method]
            if len(points):
                axes.plot(points["x"], points["y"], ls="", alpha=0.6, mew=0, label=label, **style)
        axes.set_title(pair, fontsize=9)
        axes.set(**{f"{axis}lim": (low - pads[axis], high + pads[axis]) for axis, (low, high) in limits.items()})
    line[0].set_ylabel(f"{of_set}\n{of_tier}\ncomponent 2", fontsize=9)
    for axes in line[own["pair"].nunique() :]:
        axes.remove()
for axes in panels[-1]:
    axes.set_xlabel("component 1", fontsize=9)
legend = figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# ### The effect, gene by gene
#
# Change of the mean log expression against control cells of the type, in the first held-out pair. Beside scLDM stands
# the simplest way to use the other types: control cells of this type, moved by the mean change of the others.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels a data set: generated against true change of mean log expression, a dot per gene of the first held-out pair, left for scLDM and right for control cells plus the mean effect of other types, on the same axes. The dashed diagonal marks a change of the right size; the title of each panel gives the correlation."}}
changes = records.drawn_points(run, "changes")
sets_shown = list(changes.groupby(["dataset", "tier"], sort=False))
if sets_shown:
    figure, panels = plt.subplots(len(sets_shown), 2, figsize=(7, 3.0 * len(sets_shown) + 0.3), **shape)
    for line, ((of_set, of_tier), own) in zip(panels, sets_shown, strict=True):
        ends = own["generated"].min(), own["generated"].max()
        for axes, (method, title) in zip(line, {"scldm": "scLDM", "mean_shift": "control + mean effect"}.items(), strict=True):
            points = own[own["method"] == method]
            axes.axline((0, 0), slope=1, color="0.6", ls="--", lw=1)
            axes.plot(points["true"], points["generated"], "o", ms=3, color=PALETTE[0], alpha=0.6, mew=0)
            found = f"r {points['true'].corr(points['generated']):.2f}" if len(points) else "not run"
            axes.set_title(f"{title}: {found}", fontsize=9)
            axes.set_ylim(ends[0] - 0.1, ends[1] + 0.1)
            axes.grid(color="0.93")
            axes.set_axisbelow(True)
        line[0].set_ylabel(f"{of_set}\n{of_tier}, {own['pair'].iloc[0]}\ngenerated change", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("true change (log expression)", fontsize=9)
else:
    print("Neither scLDM nor the mean effect was run, and no run that kept them is recorded.")

# %% [markdown]
# ### Guidance
#
# The same trained flow, sampled with three weights; each distance as a multiple of its value at ω = 1. The paper's own
# values, dashed, rise in every panel.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels, W2, MMD squared and Frechet distance, each as a multiple of its value at guidance weight 1, against the weight 1, 5 and 10: a solid line per data set of ours, a dashed line per screen of the paper. A line at 1 means that guidance changes nothing."}}
guidance = rows[rows["metric_variant"] == "guidance"]
paper = records.paper_values("scldm", "Table 3")
figure, panels = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained")
for axes, (metric, of_paper) in zip(panels, printed.items(), strict=True):
    lines = {}
    for (set_name, set_tier), own in guidance[guidance["metric"] == metric].groupby(["dataset", "tier"], sort=False):
        mean = own.groupby("method")["value"].mean()
        lines[f"{set_name}, {set_tier}"] = [mean.get(f"guidance_{w}", np.nan) for w in (1, 5, 10)], "-"
    for set_name in ("Parse 1M", "Replogle"):
        values = paper[(paper["dataset"] == set_name) & (paper["metric"] == of_paper)].set_index("method")["mean"]
        lines[f"paper, {set_name}"] = [values[f"scLDM (ω ={w})"] for w in (1, 5, 10)], "--"
    for number, (label, (values, line)) in enumerate(lines.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "osD^vPX"[number % 7], "ms": 4}
        axes.plot((1, 5, 10), np.array(values) / values[0], line, label=label, **style)
    axes.set(title=short[metric], xlabel="guidance weight ω", xticks=(1, 5, 10))
    axes.grid(color="0.9")
panels[0].set_ylabel("relative to ω = 1")
legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %% tags=["hide-input"]
grid(guidance, [f"guidance_{w}" for w in (1, 5, 10)], {f"guidance_{w}": f"ω = {w}" for w in (1, 5, 10)}, short)

# %% [markdown]
# ### Joint or additive
#
# Two flows on the same auto-encoder, with the same seed and number of steps. In the additive one each label is given in
# half of the batches only.

# %% tags=["hide-input"]
conditioning = rows[rows["metric_variant"] == "conditioning"]
two = {"joint": "scLDM (joint)", "additive": "scLDM (additive)"}
for metric, of_paper in printed.items():
    display(beside("Table 15", metric, conditioning, f"{of_paper} (the paper's Table 15)", 2, of_paper, "joint", two))

# %% [markdown]
# ### What if a pair has no library size?
#
# The same latents, decoded at library sizes from main effects or at one molecule per cell:

# %% tags=["hide-input"]
library = rows[rows["metric_variant"] == "library"]
sizes = {"main_effects": "main effects of both labels", "one_count": "one molecule"}
grid(library, list(sizes), sizes, short)

# %% [markdown]
# ### Figure 13: are the effects right?
#
# Four scores of Cell-Eval, which the [metric atlas](../../book/metric_atlas.md) explains: overlap of the genes called
# changed, order of the fold changes of the truly changed ones, whether the generated effect is nearer to the true one
# than to those of other perturbations (chance level .5, or a little above with few perturbations), and mean absolute
# error of the mean profile. The first three look at effects only, and a predictor of means can do well in them.
# Discrimination takes several perturbations of one type; a set with one has none.
#
# The paper's figure has a row of panels per screen. Here each score is a panel and each data set a colour: the runs of
# tier `laptop` or `paper`, or this one where there are none. scLDM's cells are drawn at ω = 1.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four panels, overlap of changed genes, order of fold changes, discrimination and mean absolute error; one row per method, scLDM first on grey, the other half of the real cells last. For each data set, in its own colour and marker, a dot per seed and a bar at the mean; a dotted line at the chance level .5 of discrimination. The same numbers stand in the tables below."}}
names = {"de_overlap": "overlap of changed genes", "de_lfc_spearman": "order of fold changes"}
names |= {"discrimination_l1": "discrimination, L1", "mae": "mean absolute error"}
effects = main[main["metric"].isin(names)]
effects = effects[effects["tier"] != "ci"] if (effects["tier"] != "ci").any() else effects
listed = [m for m in (*in_order, experiment.CEILING) if m in set(effects["method"])]
sets = list(effects["dataset"].unique())
figure, panels = plt.subplots(2, 2, figsize=(6.6, 1.6 + 0.5 * len(listed)), sharey=True, layout="constrained")
for axes, (metric, caption) in zip(panels.flat, names.items(), strict=True):
    if "scldm" in listed:
        axes.axhspan(listed.index("scldm") - 0.5, listed.index("scldm") + 0.5, color="0.93")
    for number, data_set in enumerate(sets):
        own = effects[(effects["dataset"] == data_set) & (effects["metric"] == metric)]
        style = {"color": PALETTE[number % len(PALETTE)], "label": data_set}
        for height, method in enumerate(listed):
            values = own.loc[own["method"] == method, "value"]
            at = height + 0.6 * ((number + 0.5) / len(sets) - 0.5)
            axes.plot(values, [at] * len(values), "oD^sv"[number % 5], ms=4, alpha=0.6, mew=0, **style)
            if len(values):
                axes.plot([values.mean()] * 2, [at - 0.2, at + 0.2], color=style["color"], lw=2)
    if metric == "discrimination_l1":
        axes.axvline(0.5, color="0.4", ls=":", lw=1)
    axes.set_title(f"{caption}\n({EFFECTS[metric].direction} is better)")
    axes.margins(x=0.08)
    axes.set_yticks(range(len(listed)), [titles.get(m, m) for m in listed])
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
panels[0, 0].invert_yaxis()
handles = dict(zip(*panels[0, 0].get_legend_handles_labels()[::-1], strict=True))
legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)

# %% tags=["hide-input"]
for metric, caption in names.items():
    if (main["metric"] == metric).any():
        arrow = "higher" if EFFECTS[metric].direction == "higher" else "lower"
        display(beside(None, metric, main, f"{caption[0].upper()}{caption[1:]}, {arrow} is better", 3, methods={}))

# %% [markdown]
# **Small values.** scLDM and scVI draw counts. The others answer in log expression, also with values above 0 that are
# smaller than a single count gives. A mean changes little by them; the rank test behind the first score puts every one
# above the zeros of control cells, and calls the gene ({doc}`more on that <../perturbdiff/main_results>`). The overlap as
# answered, mean over seeds, and, after the arrow, with values at 0 that are smaller than any training cell's of that gene (without an arrow it was not scored so). It can take overlap away as well, where such values stand in the right genes.

# %% tags=["hide-input"]
keys = ["dataset", "tier", "method"]
overlaps = [own[own["metric"] == "de_overlap"] for own in (main, rows[rows["metric_variant"] == ZEROED])]
both = pd.concat([own.groupby(keys, sort=False)["value"].mean() for own in overlaps], axis=1, keys=["as", "cut"])
both["text"] = [f"{a:.3f}" + (f" → {b:.3f}" if b == b else "") for a, b in both.to_numpy()]
both = both["text"].unstack(["dataset", "tier"]).fillna("–")
both.loc[[m for m in listed if m in both.index]].rename(index=titles).rename_axis(index=None)

# %% [markdown]
# ### Table 14: reconstruction
#
# Cells of the held-out pairs, encoded and decoded at their own library size; neither auto-encoder is told a label. For
# scVI passes, and whether it has its KL term, are chosen by the error on a tenth of the training cells, below the table;
# the scVI of the comparison above trains for longer, which is better for drawing cells and worse for this. scLDM's
# auto-encoder is the one of the comparison.
#
# One profile for all cells, with the likeliest dispersions, is what a decoder can say without looking at the cell.

# %% tags=["hide-input"]
rebuilt = rows[rows["metric_variant"] == "held-out pairs"]
for metric, of_paper in {"re_nb_nll": "RE", "pcc_nb_draw": "PCC", "mse_nb_draw": "MSE"}.items():
    display(beside("Table 14", metric, rebuilt, f"{of_paper} (the paper's Table 14)", 3, of_paper, methods={}))

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
tried = rows[(rows["item"] == "tuning") & (rows["method"] == "scvi")]
if len(tried):
    settings = pd.DataFrame([json.loads(setting) for setting in tried["metric_variant"]], index=tried.index)
    of_kl = settings["warmup_epochs"].isna().map({True: "with its KL term", False: "without"})
    found = tried.assign(passes=settings["epochs"], scVI=of_kl).pivot_table(
        index=["dataset", "tier", "passes"], columns="scVI", values="value"
    )
    display(Markdown("scVI's error on the cells held back, nats; the lowest of a data set was taken:"), found.round(1))

# %% [markdown]
# A flow can only draw what the latents hold. Do they hold the perturbation? A linear classifier that is to tell the
# cells of a held-out pair from control cells of its type, by their counts and by their latents (area under the ROC
# curve, five-fold cross-validation, mean over the pairs; .5 by chance). Where latents do no better than a coin and
# counts do, the auto-encoder is unfinished and nothing above is about latent diffusion. Two things may tell cells apart
# that are not the perturbation: the number of molecules, which counts scaled to a common total do not have and latents
# may, and that control cells have trained the auto-encoder and those of the pair have not.

# %% tags=["hide-input"]
told = {"library": "number of molecules", "counts": "counts, scaled", "latents": "latents of scLDM"}
grid(rows[rows["metric_variant"] == "told from control"], list(told), told, {"roc_auc": "AUROC"})

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
lines = []
for found in compare(rebuilt[(rebuilt["metric"] == "re_nb_nll") & (rebuilt["tier"] != "ci")], "scldm", "global_mean"):
    if found.outcome != "win" and found.n_pairs > 1:
        lines.append(
            f"On {found.dataset}, {found.tier}, it **is** unfinished: its error is not below that of one profile for all "
            f"cells by more than the standard error ({found.difference:+.1f} ± {found.standard_error:.1f} nats). What that set contributes to the verdicts "
            "below is about its auto-encoder."
        )
Markdown("\n\n".join(lines))

# %% [markdown]
# **How long tier `laptop` trains** was set after trials of the first seed, one of each and none of them recorded. On
# `papalexi_thp1`, whose cells are all of one line, the latents did hardly better than a coin after 14 passes, so the
# auto-encoder has at least 36; and with 1 500 steps of the flow scLDM's cells were further from the held-out ones than
# control cells were, so it has 6 000. There they still are, by less. The comparison was tried with four times its
# training on `kang_9k` and `papalexi_thp1`: scVI was better for it and has it; the STATE-like transformer and CPA were
# not and keep theirs.

# %% [markdown]
# ## Verdict
#
# Decision rules were written down before any of these runs ([ledger of claims](../../book/ledger.md)). Claims are
# decided on recorded runs of tier `laptop` or `paper`, never on tier `ci`.

# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
records.verdicts("scldm", ["L9", "L10", "L11", "L17"], rows)

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | data | Parse 1M, 1.27 million cells; Replogle, 624 158 | the same | stand-ins of up to a few thousand cells (tier `paper` takes the originals through the registry) |
# | held out | 27 cytokines in one type; 372 genes in one line | the same | by the split's file: one perturbation in some types (`kang_9k`), some perturbations of one type; the list stands above |
# | panel | 2 000 variable genes "following STATE", chosen on all cells | the same list | variable genes of the training cells |
# | combination of labels | one token each | sum of embeddings | sum of embeddings |
# | label dropped with probability | not said | .8 | .2 |
# | library size of a held-out pair | not said | one molecule, unless covered by a file | main effects of both labels; one molecule beside it |
# | sampler | not said | adaptive, tolerance 1e-5 | Heun, 20 steps (`ci`: 10) |
# | number of generated cells | not said | that of the test cells | that of the test cells |
# | components | on combined data (J.3.1) or true data (J.5) | not in the repository | 30, on the real held-out cells |
# | scVI, CPA, STATE | STATE's reproduction code, 80 000 to 120 000 steps | the same | scvi-tools; compact versions of the other two, a few hundred to a few thousand steps |
# | training of scLDM | 100 passes (auto-encoder) over 0.6 to 1.3 million cells | the same | 5 000 steps of 8 cells or more and 6 000 of the flow at tier `laptop` |
# | scGPT | fine-tuned on 80 000 steps | the same | adapter, run where `methods` names it and its weights are there; not recorded |
# | Figure 3 | UMAP (as the text says of Figures 2 and 8; its own caption names no method) | | principal components of the real held-out cells |
# | references | two mean predictors, in Figure 13 only | not in the repository | these and control cells, plain and shifted, in every table; halves of real cells |
# | spread | samples of one training (scLDM), trainings (others) | | trainings, for all |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-scldm-perturbation-floor
# A pair has $n$ = 50 real cells and 50 generated ones, all at distances above 5 from each other on the 30 components.
# How much do the kernels of width .01, .1 and 1 alone contribute to MMD², whatever the model? How many cells per pair
# would bring that below the .027 that the paper reports for Parse 1M?
# :::
#
# :::{solution} ex-scldm-perturbation-floor
# :class: dropdown
# A kernel that sees no two cells alike leaves $1/n + 1/n - 0 = 2/n$: a cell with itself. Three of them give
# $6/n$ = .12 at $n$ = 50. Below .027 takes $n > 6 / .027$ = 222 cells.
# :::
#
# :::{exercise}
# :label: ex-scldm-perturbation-additive
# Suppose types and perturbations act independently on the latents: cells of type $k$ under $p$ have mean $a_k + b_p$,
# both labels are spread evenly over the cells, and all $a_k$, and all $b_p$, average 0. What is the mean of the latents
# given the type alone, the perturbation alone, and nothing? At $t = 0$ a velocity is the mean of the data minus the
# noise: towards which mean does the additive rule with ω = 1 send the cells at first? And if the effect of $p$ depends
# on the type, $c_{kp}$ with $\sum_k c_{kp} = 0$ for every $p$?
# :::
#
# :::{solution} ex-scldm-perturbation-additive
# :class: dropdown
# $a_k$, $b_p$ and 0. The rule adds differences: $0 + (a_k - 0) + (b_p - 0) = a_k + b_p$, the right mean. With an effect
# that depends on the type the perturbation alone has mean 0, and the rule sends cells of every $p$ towards $a_k$: it
# cannot express an interaction. The joint rule can, for pairs it was shown.
# :::
#
# :::{exercise-start}
# :label: ex-scldm-perturbation-library
# :::
# How much of the distance is a matter of library sizes? Decode the same latents of the first model at the library sizes
# of the real held-out cells, which no method may know, and compare the three distances.
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-scldm-perturbation-library
# :class: dropdown
# :::

# %% tags=["solution"]
network, autoencoder = models.joint.generator.network, models.joint.generator.autoencoder
latents = sample_latents(
    network,
    held.test.labels,
    n=len(held.test.cell_type),
    shape=(autoencoder.config.tokens, autoencoder.config.channels),
    steps=protocol.sampler_steps,
    seed=first_seed,
)
totals = np.asarray(held.test.counts.sum(1)).ravel()
device = autoencoder.head.weight.device
informed = decode_counts(
    lambda z, size: autoencoder.decode(z.to(device), size.to(device)),
    latents,
    totals,
    rng=np.random.default_rng(first_seed),
)
answers = {"main effects": generated, "the real cells' own": normalised(informed)}
scored = {key: scorer.distances(x) for key, x in answers.items()}
pd.DataFrame({key: {short[m]: v.mean() for m, v in each.items()} for key, each in scored.items()}).T.round(3)

# %% [markdown]
# Scaling to a common total takes the mean effect of the library size out again; what stays is that cells with few
# molecules are noisier.
# :::{solution-end}
# :::
