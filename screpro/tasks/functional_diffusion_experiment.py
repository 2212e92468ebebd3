"""The rows behind the page on diffusion over cell populations.

Statements of appendix B on cells (`measure`), the spread of donors (`measure_donors`), and the perturbation
discrimination score of a constant prediction, claim P20 (`measure_constant`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

from screpro.errors import ScreproError
from screpro.metrics.perturbation import Comparison, Side, pds_cosine, pds_l1, pds_l1_printed, pds_l2
from screpro.processes.gaussian import linear
from screpro.records import Run
from screpro.tasks import functional_diffusion as fd
from screpro.tasks import functional_diffusion_donors as donors
from screpro.tasks import functional_diffusion_noise as noise
from screpro.tasks import functional_diffusion_score as score

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "STEPS",
    "Protocol",
    "constant_prediction",
    "measure",
    "measure_constant",
    "measure_donors",
    "schedule",
    "two_sets",
]

STEPS = (1, 10, 100, 500, 1000)
"""Steps of the schedule, from 1 as in the paper, at which noise is looked at."""


class Protocol(NamedTuple):
    """How much is measured."""

    seeds: Sequence[int]
    m: int = 64  # cells of a set
    chains: int = 500  # of the forward process
    trials: int = 500  # sets drawn for Proposition B.2
    permutations: int = 200  # random deals of cells to donors
    least: int = 10  # cells that a donor has at least
    genes: int | None = 2000  # panel of the donor sets


def schedule() -> fd.Schedule:
    """The paper's: 1 000 steps, variances linear from 1e-4 to 0.02."""
    return fd.schedule_of(linear().beta.double().numpy())


def two_sets(cells: np.ndarray, labels: np.ndarray, m: int, *, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Two sets of at most m cells (m, G) each, drawn from the two largest groups of cells (n, G), labels (n,).

    Both are equally large: equations 31 and 32 compare sets of one size.
    """
    names, sizes = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise ScreproError(
            "Two groups of cells are compared.", got=f"labels {names.tolist()}", fix="give labelled cells"
        )
    largest = names[np.argsort(-sizes, kind="stable")[:2]]
    size = min(m, int(np.sort(sizes)[-2]))
    return tuple(cells[rng.choice(np.flatnonzero(labels == name), size, replace=False)] for name in largest)


# ---- the statements


def measure(run: Run, name: str, cells: np.ndarray, labels: np.ndarray, protocol: Protocol) -> None:
    """Rows of every statement on cells (n, G) on the network's scale, labels (n,)."""
    for seed in protocol.seeds:
        unit = {"dataset": name, "split": str(seed), "method": "cells", "seed": seed}
        if run.done(**unit, metric="first_order_error"):
            continue
        rng = np.random.default_rng(seed)
        x, y = two_sets(cells, labels, protocol.m, rng=rng)
        width = float(np.median(pdist(np.concatenate([x, y]))))
        size = unit | {"n_real": len(x), "n_genes": cells.shape[1]}
        _exact(run, size, x, y, width, rng)
        _sampled(run, size, cells, x, width, protocol, rng)
        _noised(run, size, x, width, rng)


def _exact(run: Run, unit: dict, x: np.ndarray, y: np.ndarray, width: float, rng: np.random.Generator) -> None:
    """Identities: digits of agreement of the two sides."""

    def add(item: str, variant: str, check: fd.Check | float) -> None:
        digits = check.digits if isinstance(check, fd.Check) else min(16.0, -np.log10(max(check, 1e-16)))
        run.add(**unit, item=item, metric="digits_of_agreement", metric_variant=variant, value=digits, unit="digits",
                direction="higher")  # fmt: skip

    for title, kernel in {"Gaussian": fd.gaussian(width), "energy": fd.energy(x.mean(0))}.items():
        add("Lemma B.1", f"(1) mixing, {title}", fd.mixing(kernel, x, y, np.concatenate([x[:10], y[:10]])))
        add("Lemma B.1", f"(2) product, {title}", fd.inner_product(kernel, x, y))
        add("Lemma B.1", f"(3) distance, {title}", fd.mmd(kernel, x, y, rng=rng))
    ours = schedule()
    add("eq. 4", "factors of the mean and of C", fd.forward_moments(ours))
    for title, printed in (("", False), ("as printed", True)):
        add(
            "Prop. B.10",
            title,
            max(fd.reverse_conditional(ours, t, as_printed=printed).gap for t in (2, 10, 500, 1000)),
        )
    # the spectrum that noise on real cells has in this function space: the covariance of the set, in coordinates
    at = fd.features(fd.gaussian(width), np.concatenate([x, y]))
    centred = at - at.mean(0)
    spectrum = np.linalg.svd(centred, compute_uv=False)[:20] ** 2 / len(at)
    difference = at[: len(x)].mean(0) - at[len(x) :].mean(0)
    add("Lemma B.11", "", fd.kl_shared(difference[: len(spectrum)], spectrum, rng=rng))
    few = _components(x, y, 6)
    root = rng.standard_normal((6, 6))
    norm = root @ root.T + np.eye(6)
    maps = rng.standard_normal((5, 6, 6))
    add("Prop. B.15", "closed form", score.score_matching(np.cov(few.T), 0.8, 0.6, norm, maps))
    noised = 0.8 * few + 0.6 * rng.standard_normal(few.shape)
    add(
        "Prop. B.15",
        "one H for all cells",
        score.minimisers(few, noised, 0.8, 0.6, np.tile(norm, (len(few), 1, 1))).gap,
    )
    add("Prop. B.15", "H of each cell", score.minimisers(few, noised, 0.8, 0.6, _norms_by_cell(few)).gap)


def _components(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Coordinates (n, k) of both sets on their first components, scaled to variance 1 together."""
    both = np.concatenate([x, y])
    left, strength, _ = np.linalg.svd(both - both.mean(0), full_matrices=False)
    few = left[:, :k] * strength[:k]
    return few / few.std()


def _norms_by_cell(few: np.ndarray) -> np.ndarray:
    """(n, k, k) diagonal norms that grow with the distance of a cell from the centre, coordinate by coordinate."""
    return (1 + few**2)[:, :, None] * np.eye(few.shape[1])


def _sampled(
    run: Run, unit: dict, cells: np.ndarray, x: np.ndarray, width: float, protocol: Protocol, rng: np.random.Generator
) -> None:
    """Statements about draws: relative gap of the two sides; bounds: how far they are from being broken."""

    def add(item: str, variant: str, metric: str, value: float, direction: str) -> None:
        run.add(**unit, item=item, metric=metric, metric_variant=variant, value=value, direction=direction)

    kept = cells[rng.choice(len(cells), min(len(cells), 600), replace=False)]
    for title, kernel in {"Gaussian": fd.gaussian(width), "energy": fd.energy(x.mean(0))}.items():
        check = fd.embedding_variance(kernel, kept, len(x), trials=protocol.trials, rng=rng)
        add("Prop. B.2", f"variance of an embedding, {title}", "relative_gap", check.gap, "lower")
    common = np.argsort(-(cells > 0).mean(0), kind="stable")[:2]
    levels = [np.unique(np.digitize(column, np.quantile(column, np.linspace(0, 1, 12))), return_inverse=True)[1]
              for column in cells[:, common].T]  # fmt: skip
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(40)), axis=-1).reshape(-1, 2)
    m = len(x)
    reach = np.array([1.0, 1.4, 1.7]) / np.sqrt(m)
    for title, population in {"two genes of the set": np.column_stack(levels), "two independent genes": grid}.items():
        bound = fd.cdf_bound(population, m, reach, trials=4 * protocol.trials, rng=rng)
        ratio = float((bound.left / bound.right).max())
        add("Prop. B.2", title, "bound_ratio", ratio, "lower")
        add("Prop. B.2", f"{title}, with m + 1 for 2", "bound_ratio", 2 * ratio / (m + 1), "lower")
    at = fd.features(fd.gaussian(width), x)
    spectrum = np.linalg.svd(at - at.mean(0), compute_uv=False)[:20] ** 2 / len(at)
    means, variances = fd.forward_chain(np.sqrt(spectrum), spectrum, schedule(), STEPS, chains=protocol.chains, rng=rng)
    alpha = schedule().alpha[list(STEPS)]
    errors = np.sqrt((1 - alpha)[:, None] * spectrum / protocol.chains)
    worst = float((np.abs(means.left - means.right) / errors).max())
    add("eq. 4", f"mean, worst of {errors.size}", "standard_errors", worst, "lower")
    worst = float(np.abs(variances.left / variances.right - 1).max())
    add("eq. 4", "variance", "relative_gap", worst, "lower")
    bound = fd.variational_bound(spectrum[:5], spectrum[:5], schedule())
    add("Prop. B.12", "best prediction", "bound_slack", bound.slack, "higher")
    gains = rng.random((1001, 1)) * np.ones(5)
    add("Prop. B.12", "random predictions", "bound_slack",
        fd.variational_bound(spectrum[:5], spectrum[:5], schedule(), gains).slack, "higher")  # fmt: skip


def _noised(run: Run, unit: dict, x: np.ndarray, width: float, rng: np.random.Generator) -> None:
    """Proposition B.14: how large what is left out is along the schedule, and how it grows."""

    def add(metric: str, variant: str, value: float, direction: str) -> None:
        run.add(**unit, item="Prop. B.14", metric=metric, metric_variant=variant, value=value, direction=direction)

    levels = np.sqrt(1 - schedule().alpha[list(STEPS)])
    small = np.geomspace(1e-5, 1e-3, 5)
    add("log_slope", "noise, error, Gaussian", noise.log_slope(small, noise.moved(x, small, width=width).error),
        "closer to 1")  # fmt: skip
    add("log_slope", "noise, squared length, energy",
        noise.log_slope(small, noise.moved_energy(x, small, draws=3, rng=rng)), "closer to 1")  # fmt: skip
    moves = np.geomspace(1e-3, 1e-2, 4)
    for title, kernel in {"Gaussian": fd.gaussian(width), "energy": fd.energy(x.mean(0))}.items():
        grown = score.local_growth(kernel, x, moves, rng=rng)
        add("log_slope", f"squared MMD near its minimum, {title}", noise.log_slope(moves, grown), "higher")
    sizes = np.unique(np.geomspace(8, len(x), 4).astype(int))
    by_size = [noise.moved(x[:m], levels[:1], width=width).error[0] for m in sizes]
    add("log_slope", "set size, error at t = 1, Gaussian", noise.log_slope(sizes, by_size), "lower")
    for t, error in zip(STEPS, noise.moved(x, levels, width=width).error, strict=True):
        add("first_order_error", f"t = {t}", float(error), "lower")


# ---- donors


def measure_donors(run: Run, name: str, adata: "AnnData", protocol: Protocol) -> None:
    """Rows of the spread of donors, one unit per type and condition; pairs with fewer than two donors are left out."""
    seed = protocol.seeds[0]
    for method, thinned in (("donors", None), ("donors, equal depth", np.random.default_rng(seed))):
        populations = donors.donor_populations(adata, least=protocol.least, n_genes=protocol.genes, thinned=thinned)
        for (kind, condition), (cells, donor) in populations.items():
            unit = {"dataset": name, "split": f"{kind}, {condition}", "method": method, "seed": seed}
            if run.done(**unit, metric="donor_p"):
                continue
            rng = np.random.default_rng(seed)
            found = donors.donor_spread(cells, donor, permutations=protocol.permutations, rng=rng)
            sizes = {"item": "eq. 2", "n_real": found.cells, "n_generated": found.donors, "n_genes": cells.shape[1]}
            values = {
                "donor_spread_ratio": found.ratio,
                "donor_between": found.between,
                "donor_within": found.within,
                "donor_share": found.share,
                "donor_p": found.p,
            }
            for metric, value in values.items():
                run.add(**unit, **sizes, metric=metric, value=value, direction="higher")


# ---- claim P20


def constant_prediction(
    n_effects: int, *, ties: bool = False, targets: bool = False, genes: int = 100, rng: np.random.Generator
) -> Comparison:
    """Simulated real effects, and the mean of them predicted for every perturbation.

    With `ties` every second real effect equals the one before it. With `targets` perturbations bear names of measured
    genes, whose expression they lower strongly; `genes` is then raised to their number.
    """
    genes = max(genes, n_effects) if targets else genes
    real = rng.standard_normal((n_effects, genes))
    if ties:
        real[1::2] = real[: 2 * (n_effects // 2) : 2]
    width = len(str(n_effects))
    names = [f"perturbation {i:0{width}d}" for i in range(n_effects)]
    measured = [f"gene {g}" for g in range(genes)]
    if targets:
        measured[:n_effects] = names
        real[np.arange(n_effects), np.arange(n_effects)] -= 10
    predicted = np.tile(real.mean(0), (n_effects, 1))
    return Comparison(
        real=Side(mean=real), generated=Side(mean=predicted), control=np.zeros(genes), perturbations=tuple(names),
        genes=tuple(measured),
    )  # fmt: skip


def measure_constant(run: Run, protocol: Protocol, *, numbers: Sequence[int] = (3, 10, 62, 90, 735)) -> None:
    """Claim P20: the score of a constant prediction and (M + 1) / (2 M), one data set of rows per M.

    Variant "" is the claim: no ties, no perturbed gene measured. The others are where it could fail.
    """
    scores = {"pds_l1": pds_l1, "pds_l2": pds_l2, "pds_cosine": pds_cosine, "pds_l1_printed": pds_l1_printed}
    cases = {"": {}, "ties": {"ties": True}, "targets measured": {"targets": True}}
    for number in numbers:
        for seed in protocol.seeds:
            unit = {"dataset": f"{number} simulated effects", "split": str(seed), "seed": seed}
            if run.done(**unit, method="closed form", metric="pds_l1_printed"):
                continue
            pairs = {
                case: constant_prediction(number, **options, rng=np.random.default_rng(seed))
                for case, options in cases.items()
            }
            for metric, function in scores.items():
                own = {"item": "P20", "metric": metric, "direction": "higher"}
                for case, pair in pairs.items():
                    value = float(function(pair).mean())
                    run.add(**unit, **own, method="constant prediction", metric_variant=case, value=value)
            for metric in scores:
                own = {"item": "P20", "metric": metric, "direction": "higher"}
                for case in pairs:
                    value = (number + 1) / (2 * number)
                    run.add(**unit, **own, method="closed form", metric_variant=case, value=value)
