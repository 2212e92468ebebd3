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
# # Settings: hyper-parameters, network sizes and data
#
# scDiff, appendix E.1 to E.4, Tables 3, 4 and 6.
#
# Before a number can be compared with a printed one, everything that made it has to be known: how long a network was
# trained and how fast, how large it is, how many cells and genes it saw. The paper's appendix gives three tables of
# this. Here they stand beside what the authors' code does, beside what the network counts to, and beside the same
# statistics of every data set that is at hand.

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
# Everything that can be changed from outside. `screpro params scdiff/settings` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
datasets: list[str] | None = None  # registry names to count; None takes every set that is here (tier ci: the embedded one)

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from screpro import data, records
from screpro.plots import PALETTE, use_style
from screpro.tasks.annotation import PRESETS
from screpro.tasks.presets import DATASETS, FEW_SHOT, TABLE_3, parameter_count, parameter_formula
from screpro.tasks.set_statistics import few_shot_table, reason_not_here, statistics_of

use_style()
run = records.start("scdiff/settings", tier=tier)

# %% [markdown]
# ## Hyper-parameters
#
# (tbl-scdiff-3)=
# **Table 3** gives, for each task and data set, the number of epochs, a *base* learning rate and the conditions that are
# switched on. The rate that is used is the base rate times the batch size, 2 048 in every run. In code:
# {src}`screpro.tasks.presets.TABLE_3`; `preset("Annotation", "Brain").settings()` is ready to train.

# %% tags=["hide-input"]
def ticks(row):
    """Conditions of a row of Table 3; a dagger where the text can replace the cell type."""
    shown = ", ".join(row.conditions)
    return shown.replace("cell type", "cell type or its text (†)") if row.text_optional else shown


table_3 = pd.DataFrame(
    {
        "task": row.task,
        "set": row.dataset,
        "epochs": row.epochs,
        "base rate": f"{row.base_rate:.2e}",
        "rate used": f"{row.learning_rate:.3e}",
        "conditions": ticks(row),
        "labels dropped": f"{row.drop:.0%}",
        "authors' code": "; ".join(
            part for part in (f"{row.code_epochs} epochs by default" if row.code_epochs else "", row.note) if part
        )
        or "agrees",
    }
    for row in TABLE_3
)
table_3.style.hide(axis="index")

# %% [markdown]
# "Labels dropped" is not in the table: the code replaces the cell type, and independently the batch, by a null label
# with that probability, except for gene perturbations. The batch is an input wherever a set has one; the table does
# not list it. Few-shot runs pre-train for 1 000 epochs at a base rate of 1e-8 and fine-tune for 50, in the code at 5e-9.
#
# The same table once more, as what does not depend on task or set, beside the starting point of this book's runs:

# %% tags=["hide-input"]
paper, ours = PRESETS["paper"], PRESETS["laptop"]
names = {
    "width": "width",
    "depth": "attention blocks",
    "heads": "heads",
    "epochs": "epochs (annotation)",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "schedule": "rate over time",
    "drop": "labels dropped",
    "empty_context": "cells trained without context",
    "n_times": "time steps of the classifier",
    "draws": "noise draws of the classifier",
    "shared_noise": "noise shared between candidates",
}
pd.DataFrame(
    {"paper (tier paper)": [str(getattr(paper, k)) for k in names], "tier laptop": [str(getattr(ours, k)) for k in names]},
    index=list(names.values()),
)

# %% [markdown]
# Two thousand epochs at a rate of 2e-5 are not affordable on a laptop; a rate of 1e-3 that falls along a cosine, at a
# batch of 128, needs far fewer. The sum of the rates over all steps is about as far as a weight can move. By that measure
# the short training at a high rate is of the same order as most of the paper's (steps as if every cell was trained on):

# %% tags=["hide-input"]
def steps_and_path(row_epochs, batch, rate, n, schedule):
    """Number of AdamW steps, and the sum of their rates: how far a weight can move at most."""
    steps = row_epochs * -(-n // batch)
    return steps, steps * rate * (0.5 if schedule == "cosine" else 1.0)


rows = []
for own in DATASETS:
    for row in TABLE_3:
        if (own.name, own.task[:9]) == (row.dataset, row.task[:9]):
            steps, path = steps_and_path(row.epochs, 2048, row.learning_rate, own.cells, "constant")
            rows.append({"set": own.name, "cells": own.cells, "steps": steps, "sum of rates": round(path, 3)})
steps, path = steps_and_path(ours.epochs, ours.batch_size, ours.learning_rate, 1200, "cosine")
rows.append({"set": "tier laptop, 1 200 training cells", "cells": 1200, "steps": steps, "sum of rates": round(path, 3)})
pd.DataFrame(rows).style.hide(axis="index").format({"sum of rates": "{:.3f}"})

# %% [markdown]
# ## Size of the network
#
# With width $d$, $L$ blocks, $m$ genes, $K$ class rows and $B$ batch rows (null rows included) the network has
#
# $$(3d + 1)\,m + L\,(17 d^2 + 20 d + K d) + 6 d + B d$$
#
# parameters: two embedding tables and the head grow with the genes, everything else does not
# ({src}`screpro.tasks.presets.parameter_formula`). Counted on the module itself, without allocating it
# ({src}`screpro.tasks.presets.parameter_count`):

# %% tags=["hide-input"]
rows = []
for own in DATASETS:
    classes = own.types + 1 if own.types else 0
    batches = own.batches + 1 if own.batches else 0
    counted = parameter_count(own.genes, classes={"cell_type": classes} if classes else {}, n_batches=batches)
    formula = parameter_formula(own.genes, class_rows=classes, n_batches=batches)
    rows.append(
        {
            "set": own.name,
            "genes": own.genes,
            "parameters, millions": counted / 1e6,
            "in tables over genes": 1537 * own.genes / counted,
            "per cell of the set": counted / own.cells,
            "formula agrees": counted == formula,
        }
    )
sizes = pd.DataFrame(rows)
sizes.style.hide(axis="index").format(
    {"parameters, millions": "{:.2f}", "in tables over genes": "{:.0%}", "per cell of the set": "{:,.0f}"}
)

# %% [markdown]
# The authors' checkpoint has 6 144 more: a third LayerNorm in each of six blocks that no computation uses. Perturbation
# states, text and gene-graph conditioners come on top where a run has them. All sets have far fewer cells than the
# network has parameters.

# %% [markdown]
# ## Data
#
# (tbl-scdiff-4)=
# **Table 4** gives the size of each set after preprocessing: cells and genes without a count removed, counts scaled to
# 10 000 per cell, logarithm. The last column says whether the set itself is here.

# %% tags=["hide-input"]
def dash(value):
    return "-" if value is None or pd.isna(value) else f"{value:,.0f}"


reasons = {own.registry: reason_not_here(own.registry) for own in DATASETS}
pd.DataFrame(
    {
        "task": own.task,
        "set": own.name,
        "cells": dash(own.cells),
        "genes": dash(own.genes),
        "batches": dash(own.batches),
        "types": dash(own.types),
        "conditions": dash(own.conditions),
        "here": "yes" if reasons[own.registry] is None else f"not loaded: {reasons[own.registry]}",
    }
    for own in DATASETS
).style.hide(axis="index")

# %% [markdown]
# The same columns, recomputed from the cells, for every set of the registry that was here when this page ran, or when a
# recorded run of it did. A set that stands in for one of the paper's is not that set; what it stands in for is said.

# %%
if datasets:
    wanted = list(datasets)
elif tier == "ci":
    wanted = ["pbmc68k_reduced"]
else:
    wanted = list(data.entries())
loaded, missing = [], {}
for name in wanted:
    if name in data.entries() and (reason := reason_not_here(name)):
        missing[name] = reason
        continue
    adata = data.load(name)
    run.use_data(name, adata.uns["data_hash"])
    loaded.append(statistics_of(name, adata))
print(f"{len(loaded)} set{'s' * (len(loaded) != 1)} counted, {len(missing)} not here")

# %% tags=["hide-input"]
def stands_in_for(name):
    """The paper's labels of the sets that a registry set is shown in place of."""
    labels = {own.registry: own.name for own in DATASETS}
    entry = data.entries().get(name)
    return ", ".join(labels[other] for other in (entry.stands_in_for if entry else ()) if other in labels) or "-"


printed = {own.registry: own for own in DATASETS}
numbers = ("cells", "genes", "batches", "types", "conditions", "zeros", "median_counts")
for own in loaded:
    shared = {"dataset": own.name, "split": "-", "method": "counted", "direction": "higher"}
    shared |= {"n_real": own.cells, "n_genes": own.genes}
    for number in numbers:
        if (value := getattr(own, number)) is not None:
            unit = {"unit": "fraction"} if number == "zeros" else {}
            run.add(**shared, **unit, item="Table 4", metric=number, value=value)
rows = run.with_recorded()
chosen = rows[(rows["item"] == "Table 4") & ~rows.duplicated(["item", "dataset", "metric"], keep="last")]
wide = chosen.pivot_table(index="dataset", columns="metric", values="value", sort=False)
wide = wide.reindex(columns=list(numbers)).reset_index()
names = {"dataset": "set", "median_counts": "counts per cell, median"}
wide["stands in for"] = [f"is {printed[name].name}" if name in printed else stands_in_for(name) for name in wide["dataset"]]
counted = wide.rename(columns=names).style.hide(axis="index").format(dash, subset=[names.get(n, n) for n in numbers])
counted.format("{:.1%}", subset=["zeros"])

# %% tags=["hide-input"]
if missing:
    shown = pd.DataFrame({"not loaded": list(missing), "why": list(missing.values())}).style.hide(axis="index")
else:
    where = "at tier ci only the embedded set is counted; tier laptop takes every set found under SCREPRO_DATA"
    shown = Markdown(f"Every set that was asked for is here ({where}).")
shown

# %% [markdown]
# Where a set *is* one of the paper's, both counts should be the same:

# %% tags=["hide-input"]
same = [
    {
        "set": printed[own.name].name,
        "number": number,
        "Table 4": dash(getattr(printed[own.name], number)),
        "counted": dash(getattr(own, number)),
        "agrees": getattr(printed[own.name], number) in (None, getattr(own, number)),
    }
    for own in loaded
    if own.name in printed
    for number in ("cells", "genes", "batches", "types", "conditions")
]
pd.DataFrame(same) if same else Markdown("None of the paper's own sets was counted in this run: nothing to compare.")

# %% [markdown]
# The paper's sets against those counted here, by cells and genes. Both decide how long an epoch takes, and genes how
# large the network is:

# %% tags=["hide-input"] mystnb={"image": {"alt": "Scatter plot on logarithmic axes of genes against cells: the fifteen sets of the paper's Table 4 as circles and the sets counted here as diamonds; those counted here have fewer cells than most of the paper's."}}
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot([own.cells for own in DATASETS], [own.genes for own in DATASETS], "o", color=PALETTE[0], ms=5, label="Table 4")
axes.plot(wide["cells"], wide["genes"], "D", color=PALETTE[1], ms=5, label="counted here")
axes.set(xscale="log", yscale="log", xlabel="cells", ylabel="genes")
axes.grid(color="0.9")
for own in wide.itertuples():
    label = {"textcoords": "offset points", "fontsize": 7}
    axes.annotate(own.dataset, (own.cells, own.genes), xytext=(5, 3), **label)
axes.margins(x=0.2, y=0.1)
legend = axes.legend(loc="upper left")

# %% [markdown]
# ## Few shots
#
# (tbl-scdiff-6)=
# **Table 6** divides the types of four sets at a threshold of cells: those above train the network, those below are
# learnt from one to ten cells each.

# %% tags=["hide-input"]
whole = {own.name: own for own in DATASETS}
pd.DataFrame(
    {
        "set": few.name,
        "threshold": few.threshold,
        "majority types": few.majority_types,
        "majority cells": dash(few.majority_cells),
        "minority types": whole[few.dataset].types - few.majority_types,
        "minority cells": dash(whole[few.dataset].cells - few.majority_cells),
        "threshold as share of the cells": f"{few.threshold / whole[few.dataset].cells:.1%}",
    }
    for few in FEW_SHOT
).style.hide(axis="index")

# %% [markdown]
# Minority types and cells are not printed; they follow from Table 4. The thresholds differ between sets, and so does the
# share of the cells they are. Sets that stand in here are smaller, so each threshold is scaled to the same
# share ({src}`screpro.tasks.set_statistics.scaled_threshold`):

# %% tags=["hide-input"]
columns = ["scaled to", "majority types", "majority cells", "minority types", "minority cells"]
for line in few_shot_table(loaded).to_dict("records"):
    shared = {"item": "Table 6", "dataset": line["set"], "split": "-", "method": "counted", "direction": "higher"}
    for number in columns:
        metric = "threshold" if number == "scaled to" else number.replace(" ", "_")
        run.add(**shared, metric=metric, metric_variant=line["threshold of"], value=line[number])
rows = run.with_recorded()
unit = ["dataset", "metric_variant", "metric"]
divided = rows[(rows["item"] == "Table 6") & ~rows.duplicated(["item", *unit], keep="last")]
divided = divided.pivot_table(index=unit[:2], columns="metric", values="value", sort=False)
divided = divided.rename(columns=lambda metric: metric.replace("threshold", "scaled to").replace("_", " "))
divided = divided.reindex(columns=columns).rename_axis(index=["set", "threshold of"], columns=None)
divided.style.format(dash) if len(divided) else Markdown("No set with cell types was counted.")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Cells of each type, sorted, one line per counted set on a logarithmic axis; dotted horizontal lines mark the thresholds of Table 6 as shares of the cells."}}
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
labelled = [own for own in loaded if (own.types or 0) > 1]
for number, own in enumerate(labelled):
    style = {"color": PALETTE[number % len(PALETTE)], "marker": "osD^vP"[number % 6], "ms": 3}
    axes.plot(np.arange(1, own.types + 1), own.type_sizes.to_numpy() / own.type_sizes.sum(), label=own.name, **style)
for few in FEW_SHOT:
    share = few.threshold / whole[few.dataset].cells
    axes.axhline(share, color="0.6", lw=0.8, ls=":")
    side = {"va": "top" if few.name == "Brain" else "bottom", "ha": "right"}  # Brain and Liver nearly coincide
    axes.annotate(few.name, (1, share), xycoords=("axes fraction", "data"), fontsize=7, color="0.4", **side)
axes.set(yscale="log", xlabel="types, largest first", ylabel="share of the cells")
legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | learning rate | base rate, Table 3 | base rate x 2 048 | the same at tier `paper`; 1e-3 and cosine below |
# | epochs, gene perturbation | 50, 100, 150 | 300 by default; 100 for Norman in its run script | Table 3 |
# | denoising conditions | context and cell type | context only | context only |
# | batch condition | not in Table 3 | wherever the set has batches | as the code |
# | threshold of Table 6 | "more than" | at least | at least |
# | 15 000 genes in the perturbation sets | Table 4 | about 7 000 variable ones are scored | as the code |
# | conditioners | six MLPs each (E.1) | six lookup tables each | as the code |
# | parameters | not printed | 26.81 million + 1 537 per gene + tables | 6 144 fewer: an unused LayerNorm per block |
# | data | fifteen sets | downloads, or a bundle of their own | stand-ins; the fifteen through the registry where they can be had |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-settings-rate
# With AdamW a weight moves by at most about the learning rate in a step. PBMC1K has 1 087 cells, batches of 2 048 and
# 3 000 epochs at base rate 1e-8. How far can a weight move in the whole training? Compare with the initial spread of the
# gene table, 0.005.
# :::
#
# :::{solution} ex-settings-rate
# :class: dropdown
# An epoch is one step of 1 087 cells, so 3 000 steps of 2.05e-5: 0.061 at most, twelve times the initial spread. The
# rate is scaled with the nominal batch of 2 048, though no batch can have more than 1 087 cells.
# :::

# %% [markdown]
# :::{exercise-start}
# :label: ex-settings-genes
# :::
# From how many genes on do the gene-sized tables hold more than half of the parameters, at the paper's width without
# labels? Solve it with the formula, and check with `parameter_count`.
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-settings-genes
# :class: dropdown
# :::

# %% tags=["solution"]
rest = parameter_formula(0)  # what does not depend on the genes
genes = rest // 1537 + 1
for number in (genes - 1, genes):
    print(f"{number} genes: {1537 * number / parameter_count(number):.6f} of the parameters")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise}
# :label: ex-settings-threshold
# Brain and Liver have a threshold of about 7 % of their cells, HLCA of under 2 %. What does a high threshold do to a
# one-shot experiment?
# :::
#
# :::{solution} ex-settings-threshold
# :class: dropdown
# It moves larger types into the minority: fewer types are left to learn from before the shots, more cells are left to
# test on, and the types to be learnt are less rare than "one cell" suggests.
# :::
