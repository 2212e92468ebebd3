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
# # Settings: data, hyper-parameters and network sizes
#
# scLDM, appendices G and I, Tables 6 to 11.
#
# To run a paper again one needs to know what was run. Appendix I gives five tables of hyper-parameters, but most of
# their lines hold several values: they list what was *tried*. Which of them was used for a printed number is in files
# beside the authors' checkpoints, not in the paper and not in their repository. This page shows the tables with what
# the code says, counts how many networks they describe, counts the parameters of the networks whose size is known, and
# counts cells, genes and expressed genes of every data set that is at hand.

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
# Everything that can be changed from outside. `screpro params scldm/settings` prints the same sheet.

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
datasets: list[str] | None = None  # registry names to count; None takes every set that is here (tier ci: the embedded one)

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from screpro import data, records
from screpro.data import released
from screpro.models.scldm_velocity import VelocityConfig
from screpro.plots import PALETTE, use_style
from screpro.tasks import presets_scldm as presets
from screpro.tasks.exchangeability import expressed_genes
from screpro.tasks.set_statistics import reason_not_here, statistics_of

use_style()
run = records.start("scldm/settings", tier=tier)


def show(table):
    """A table of hyper-parameters as printed, with our name of each and what else is known."""
    values = [" or ".join("%g" % v if isinstance(v, float) else str(v) for v in own.values) for own in table]
    frame = {
        "part": [own.block for own in table],
        "setting": [own.name for own in table],
        "paper": values,
        "here": [own.ours or "-" for own in table],
        "note": [own.note for own in table],
    }
    return pd.DataFrame(frame).style.hide(axis="index")


# %% [markdown]
# ## Hyper-parameters
#
# "Here" is the field of {src}`screpro.tasks.autoencoder.AutoEncoderSettings`, of
# {src}`screpro.tasks.flow.FlowSettings` or of {src}`screpro.models.scldm.AutoEncoderConfig` that holds the value.
#
# (tbl-scldm-7)=
# **Table 7**, the encoder ({src}`screpro.tasks.presets_scldm.TABLE_7`):

# %% tags=["hide-input"]
show(presets.TABLE_7)

# %% [markdown]
# (tbl-scldm-8)=
# **Table 8**, the decoder. Its blocks have 1, 4 or 8 heads and its cross-attention 1; in Table 7 it is the other way
# round. One of the two tables probably has its lines swapped; both sides of the code's configuration are alike.

# %% tags=["hide-input"]
show(presets.TABLE_8)

# %% [markdown]
# (tbl-scldm-9)=
# **Table 9**, the latent flow. It has no number of steps, batch, rate, nor the probability of dropping a label. In the
# code: AdamW at 5e-4 with default betas, warm-up over a tenth and then a cosine down to a tenth, labels dropped with
# probability 0.8. Sampling is by dopri5 with tolerance 1e-5.

# %% tags=["hide-input"]
show(presets.TABLE_9)

# %% [markdown]
# (tbl-scldm-10)=
# **Table 10**, the auto-encoders trained on CELLxGENE Census:

# %% tags=["hide-input"]
show(presets.TABLE_10)

# %% [markdown]
# (tbl-scldm-11)=
# **Table 11**, training:

# %% tags=["hide-input"]
show(presets.TABLE_11)

# %% [markdown]
# Epochs are in none of the tables (100 in the code), nor is the norm at which gradients are clipped (10), nor the width
# of the gated MLP (8 D / 3, rounded up to a multiple of 4).
#
# ### How large is the sweep?
#
# Even with the two tables taken to agree on width, depth and heads, the number of settings is

# %% tags=["hide-input"]
lines = {own.ours: own for own in (*presets.TABLE_7, *presets.TABLE_8, *presets.TABLE_11) if len(own.values) > 1}
count = sum(1 for _ in presets.sweep())
product = " x ".join(f"{len(own.values)} ({name.replace('_', ' ')})" for name, own in sorted(lines.items()) if name)
Markdown(f"{product} = **{count:,}** for each data set.")

# %% [markdown]
# The paper shows a small part of it: Figure 4 varies width, depth and number of tokens on two sets. How the rest was
# chosen, and on which cells, is not said. With as many settings the choice itself can gain something on the cells it is
# made on; the code keeps a tenth of the training cells for validation.

# %% [markdown]
# ## Sizes of the networks
#
# With $G$ genes, width $D$, $L$ blocks on each side, $m$ tokens, $q$ channels and $F = 8D/3$ (rounded up) the
# auto-encoder has
#
# $$2L\,(4D^2 + 3DF + 4D) + 2\,(4D^2 + 3DF + 6D) + (G+1)(D+1) + 2D^2 + D + mD + 2qD + D + 1$$
#
# parameters ({src}`screpro.tasks.presets_scldm.autoencoder_formula`): the blocks, the two cross-attentions, the gene
# table with one theta per gene, the mixing of count and gene, the pseudo-inputs, the bottleneck and the head. Counted
# on the module itself, without allocating it ({src}`screpro.tasks.presets_scldm.autoencoder_parameters`), for the three
# Census models:

# %% tags=["hide-input"]
rows = []
for size, theirs in presets.CENSUS_PARAMETERS.items():
    config = presets.census_config(size)
    ours = presets.autoencoder_parameters(config)
    table = (config.n_genes + 1) * config.width
    rows.append(
        {
            "model": f"scLDM-VAE ({size})",
            "width": config.width,
            "blocks a side": config.layers,
            "authors' code, million": theirs / 1e6,
            "here, million": ours / 1e6,
            "formula agrees": presets.autoencoder_formula(config) == ours,
            "in the gene table": f"{table / ours:.0%}",
            "without it, million": (ours - table) / 1e6,
            "embedding": f"{config.tokens} x {config.channels} = {config.tokens * config.channels:,}",
        }
    )
    own = {"item": "Table 10", "dataset": "none", "split": "-", "method": f"scldm_{size}", "direction": "lower"}
    run.add(**own, metric="parameters", value=ours, n_genes=config.n_genes)
sizes = pd.DataFrame(rows)
sizes.style.hide(axis="index").format(precision=2)

# %% [markdown]
# So "20M" is mostly blocks and a large table of genes: on a panel of 2 000 genes the same network is smaller. The flow
# of Table 9 ({src}`screpro.tasks.presets_scldm.velocity_formula`), with the tables of its conditions, and the
# auto-encoders of the data sets at the smallest and the largest point of the sweep:

# %% tags=["hide-input"]
flow = presets.flow_settings()
small = presets.sweep_settings(width=128, tokens=64, channels=8, layers=2)
large = presets.sweep_settings(width=256, tokens=256, channels=32, layers=4)


def sized(settings, n_genes):
    """Parameters, in millions, of the auto-encoder of some settings."""
    names = ("width", "tokens", "layers", "channels", "heads", "cross_heads")
    given = {name: getattr(settings, name) for name in names}
    return presets.autoencoder_parameters(presets.AutoEncoderConfig(n_genes=n_genes, **given)) / 1e6


rows = []
for own in presets.DATASETS:
    if own.genes and own.classes:
        classes = {name.replace(" ", "_"): n for name, n in own.classes}
        config = VelocityConfig(128, 16, flow.width, flow.layers, flow.heads, classes)
        rows.append(
            {
                "set": own.name,
                "genes": f"{own.genes:,}",
                "smallest auto-encoder, million": sized(small, own.genes),
                "largest": sized(large, own.genes),
                "flow, million": presets.velocity_parameters(config) / 1e6,
                "conditions": ", ".join(f"{n} {name}" for name, n in own.classes),
                "cells": f"{own.cells:,}",
            }
        )
pd.DataFrame(rows).style.hide(axis="index").format(precision=2)

# %% [markdown]
# ## Data
#
# (tbl-scldm-6)=
# **Table 6**, with what the code adds: the length to which every cell is padded is the largest number of expressed
# genes in the set. The last column says whether the set itself is here.

# %% tags=["hide-input"]
def dash(value):
    """A whole number with separators; a dash for none."""
    return "-" if value is None or pd.isna(value) else f"{value:,.0f}"


reasons = {own.registry: reason_not_here(own.registry) for own in presets.DATASETS}
pd.DataFrame(
    {
        "experiment": own.experiment,
        "set": own.name,
        "cells": dash(own.cells),
        "genes": dash(own.genes) if own.genes else "~ 25k",
        "types or lines": own.types,
        "conditions in the code": ", ".join(f"{n} {name}" for name, n in own.classes) or "-",
        "most expressed genes": dash(own.context),
        "share of the genes": f"{own.context / own.genes:.0%}" if own.context and own.genes else "-",
        "here": "yes" if reasons[own.registry] is None else f"not loaded: {reasons[own.registry]}",
    }
    for own in presets.DATASETS
).style.hide(axis="index")

# %% [markdown]
# Two labels of the table do not say what was used: the condition of Tabula Muris is its 16 tissues, not 123 types, and
# the 2 024 "gene edits" of Replogle-Nadig are 2 023 and the non-targeting control. On the panels of 2 000 variable
# genes the length is 2 000: every cell is padded to as many tokens as there are genes, and nothing is saved.
#
# The same columns, recomputed from the cells, for every set of the registry that was here when this page ran, or when a
# recorded run of it did. None of them is one of the paper's unless the last column says so.

# %%
if datasets:
    wanted = list(datasets)
elif tier == "ci":
    wanted = ["pbmc68k_reduced"]
else:
    wanted = list(data.entries())
loaded, lengths, missing = [], {}, {}
for name in wanted:
    if name in data.entries() and (reason := reason_not_here(name)):
        missing[name] = reason
        continue
    adata = data.load(name)
    run.use_data(name, adata.uns["data_hash"])
    loaded.append(statistics_of(name, adata))
    number = expressed_genes(adata.X)
    lengths[name] = number[number > 0]
print(f"{len(loaded)} sets counted, {len(missing)} not here")

# %% tags=["hide-input"]
printed = {own.registry: own for own in presets.DATASETS}


def stands_in_for(name):
    """The paper's labels of the sets that a registry set is shown in place of."""
    if name in printed:
        return f"is {printed[name].name}"
    entry = data.entries().get(name)
    return ", ".join(printed[other].name for other in (entry.stands_in_for if entry else ()) if other in printed) or "-"


for own in loaded:
    number = lengths[own.name]
    shared = {"item": "Table 6", "dataset": own.name, "split": "-", "method": "counted", "direction": "higher"}
    shared |= {"n_real": own.cells, "n_genes": own.genes}
    for metric in ("cells", "genes", "types", "conditions", "median_counts"):
        if (value := getattr(own, metric)) is not None:
            run.add(**shared, metric=metric, value=value)
    run.add(**shared, metric="zeros", value=own.zeros, unit="fraction")
    for kind, value in {"median": np.median(number), "mean": number.mean(), "most": number.max()}.items():
        run.add(**shared, metric="expressed_genes", metric_variant=kind, value=value)
rows = run.with_recorded()
rows = rows[(rows["item"] == "Table 6") & ~rows.duplicated(["item", "dataset", "metric", "metric_variant"], keep="last")]
wide = rows.assign(number=rows["metric"].str.cat(rows["metric_variant"], " ").str.strip())
wide = wide.pivot_table(index="dataset", columns="number", values="value", sort=False)
whole = {"cells": "cells", "genes": "genes", "types": "types", "conditions": "conditions"}
whole |= {"median_counts": "counts per cell, median", "expressed_genes median": "expressed genes, median"}
whole |= {"expressed_genes most": "most"}
counted = wide.reindex(columns=list(whole)).rename(columns=whole)
counted["zeros"] = wide["zeros"]
counted["padding, share of all tokens"] = 1 - wide["expressed_genes mean"] / wide["expressed_genes most"]
counted["the paper's set"] = [stands_in_for(name) for name in counted.index]
counted = counted.rename_axis(index="set", columns=None).style.format(dash, subset=list(whole.values()))
counted.format("{:.1%}", subset=["zeros"]).format("{:.0%}", subset=["padding, share of all tokens"])

# %% [markdown]
# "Padding": the share of tokens that are padding if every cell is padded to the longest. It is computed on all genes; a
# panel of variable genes shortens the longest cell as well.

# %% tags=["hide-input"]
if missing:
    shown = pd.DataFrame({"not loaded": list(missing), "why": list(missing.values())}).style.hide(axis="index")
else:
    where = "at tier ci only the embedded set is counted; tier laptop takes every set found under SCREPRO_DATA"
    shown = Markdown(f"Every set that was asked for is here ({where}).")
shown

# %% [markdown]
# Where a set *is* one of the paper's, the counts should be the same:

# %% tags=["hide-input"]
same = []
for own in loaded:
    theirs = printed.get(own.name)
    if theirs is None:
        continue
    pairs = {"cells": (theirs.cells, own.cells), "genes": (theirs.genes, own.genes), "types": (theirs.types, own.types)}
    pairs["most expressed genes"] = (theirs.context, int(lengths[own.name].max()))
    for number, (paper, here) in pairs.items():
        line = {"set": theirs.name, "number": number, "paper": dash(paper), "counted": dash(here)}
        same.append(line | {"agrees": paper in (None, here)})
pd.DataFrame(same) if same else Markdown("None of the paper's own sets was counted in this run: nothing to compare.")

# %% [markdown]
# How many genes a cell expresses decides what reading only expressed genes saves, and what padding costs:

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal box per counted set of the number of expressed genes per cell, logarithmic axis, with a diamond at the longest cell and a cross at the number of genes; boxes lie far below the crosses."}}
figure, axes = plt.subplots(figsize=(6, 1.3 + 0.3 * len(loaded)), layout="constrained")
names = [own.name for own in loaded]
style = {"color": PALETTE[0]}
axes.boxplot(
    [lengths[name] for name in names], orientation="horizontal", showfliers=False, widths=0.55,
    boxprops=style, whiskerprops=style, capprops=style, medianprops={"color": "black"},
)  # fmt: skip
places = np.arange(1, len(names) + 1)
axes.plot([lengths[name].max() for name in names], places, "D", color=PALETTE[1], ms=5, label="longest cell")
axes.plot([own.genes for own in loaded], places, "x", color="black", ms=6, label="all genes")
axes.set(xscale="log", xlabel="expressed genes of a cell", yticks=places, yticklabels=names)
marks = [mark for mark in (30, 100, 300, 1000, 3000, 10_000, 30_000) if mark < 2 * max(own.genes for own in loaded)]
axes.set_xlim(0.7 * min(np.quantile(lengths[name], 0.01) for name in names), 1.3 * max(own.genes for own in loaded))
axes.set_xticks([mark for mark in marks if mark > axes.get_xlim()[0]])
axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
axes.minorticks_off()
axes.set_ylim(len(names) + 0.6, 0.4)
axes.grid(axis="x", color="0.9")
legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)

# %% [markdown]
# ## Released weights
#
# The authors' checkpoints are in a public bucket. `screpro data get NAME` brings one with its configuration, and
# {src}`screpro.models.scldm_authors.read_checkpoint` reads it: tensors only, nothing in it is executed. There it is
# also said what else is needed: numbers of heads, the order of genes and labels, statistics of the library size. Sizes
# and hashes of these files are not on record; what arrives first is locked, and must be the same afterwards. No number
# of this book comes from them. "Earlier" files belong to the first version of the paper.

# %% tags=["hide-input"]
networks = [own for own in released.entries().values() if own.paper == "scldm"]
shown = {
    "name": [own.name for own in networks],
    "what": [own.title for own in networks],
    "files": [", ".join(file.name for file in own.files) for own in networks],
    "earlier": [", ".join(own.earlier) or "-" for own in networks],
}
pd.DataFrame(shown).style.hide(axis="index")

# %% [markdown]
# ## Where we differ
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | values of Tables 7, 8, 11 | sets of values | one base configuration, smaller than the tables (width 32, 16 tokens, 8 blocks) | one width, depth and number of heads for both sides |
# | heads, blocks | 1 in the encoder, 1, 4 or 8 in the decoder (Tables 7, 8) | 8 | 4 in small networks |
# | heads, cross-attention | 1, 4 or 8 in the encoder, 1 in the decoder (Tables 7, 8) | 4 | 1 |
# | betas of AdamW | 0.9, 0.95 | 0.9, 0.95; flow 0.9, 0.999 | as the code |
# | learning rate | cosine | warm-up, constant, decay to a tenth | warm-up, cosine to 0 |
# | labels dropped | not given | 0.8 | 0.2; 0.8 as a check of sensitivity |
# | theta | "shared: False" | one per gene, or per cell and gene | one per gene |
# | sigma, nu of Table 9 | 1e-4, 0 | read by nothing | not there |
# | epochs | not given | 100 | 100 at tier `paper`; below it fewer, and for reconstruction chosen |
# | condition of Tabula Muris | 123 types | 16 tissues | 16 tissues |
# | Replogle-Nadig | 2 024 edits | 2 024 labels with the control | 2 023 |
# | parameters, Census | 20M, 70M, 270M | counted | equal, gene table included |
# | data | seven sets, and Census | downloads | stand-ins; the paper's through the registry where they can be had |

# %% [markdown]
# ## Exercises
#
# :::{exercise}
# :label: ex-settings-scldm-compression
# The latent of a Census model has 256 x 16 numbers, the vocabulary 36 130 genes, and at most 8 000 are read of a cell.
# By how much does the latent compress a cell with 2 000 expressed genes, counting one number for the gene and one for
# its count?
# :::
#
# :::{solution} ex-settings-scldm-compression
# :class: dropdown
# 4 000 numbers against 4 096: not at all. A cell of so few genes is *expanded*. What makes it a summary is not its size
# but that it is continuous and has no order of genes; and each token has lost two numbers, its mean and its length.
# :::

# %% [markdown]
# :::{exercise-start}
# :label: ex-settings-scldm-table
# :::
# From how many genes on does the gene table hold more than half of the parameters of the "20M" network? Solve it with
# the formula, and check by counting.
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-settings-scldm-table
# :class: dropdown
# :::

# %% tags=["solution"]
from dataclasses import replace

base = replace(presets.census_config("20M"), n_genes=0)
rest = presets.autoencoder_formula(base) - (base.width + 1)  # without table and theta
# table (G + 1) D against everything else, rest + (G + 1)
genes = rest // (base.width - 1)
for number in (genes - 1, genes):
    config = replace(base, n_genes=number)
    share = (number + 1) * base.width / presets.autoencoder_parameters(config)
    print(f"{number:,} genes: {share:.6f} of the parameters")

# %% [markdown]
# More than the Census has; most of the "20M" is in the blocks.
# :::{solution-end}
# :::
#
# :::{exercise}
# :label: ex-settings-scldm-sweep
# Ten thousand settings are scored on the same validation cells, where the score of each has a standard error of 0.5
# nats. If all are equally good, how much better than the truth will the best one look?
# :::
#
# :::{solution} ex-settings-scldm-sweep
# :class: dropdown
# The largest of $n$ independent normal errors is about $\sqrt{2\ln n}$ standard errors out, here at most 4.3; with the
# usual correction 3.85, so about 1.9 nats. The settings are scored on the same cells, so their errors are not
# independent and the true number is smaller. It is small against differences of tens of nats, not against those of one.
# :::
