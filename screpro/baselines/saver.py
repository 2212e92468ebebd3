r"""SAVER (Huang et al., Nature Methods 2018, 10.1038/s41592-018-0033-z): regression and gamma-Poisson shrinkage.

With size factors $s_i$ (size over mean size), counts are Poisson around $s_i \lambda_{ig}$, and $\lambda_{ig}$ has a
gamma prior:

1. its mean $\mu_{ig}$ is a Poisson lasso of the gene's normalised counts on log((y + 1) / s) of all other genes whose
   mean normalised count is at least 0.1;
2. its variance is that of one of three models, $a \mu^2$, $b \mu$ or k: each parameter maximises the marginal
   likelihood of the gene's counts (a negative binomial), and the likeliest model is taken. Where the likelihood says
   little (less than half a nat above the smallest value), the parameter is its mean over a grid, by likelihood;
3. the answer is the posterior mean $(\alpha + y) / (\beta + s)$.

The lasso penalty takes cross-validation, too slow for every gene. As the package does by default, some
genes are cross-validated (5 folds); from these follow how the penalty depends on a gene's largest absolute correlation
with a predictor, and below which correlation regression gains nothing. Genes below it get their mean as prior mean, and
the Fano model.

Reductions against the package. The genes to cross-validate are 60 spread evenly over that correlation (theirs: a first
100 at random, and another batch of those worth it). Penalties fall by factors exp(-0.3), at most 14 of them, until
three in a row do not help (glmnet: 100). At
most the `max_predictors` genes of highest mean are predictors (theirs: all above 0.1); with 2000 that only matters
for data of ten thousand genes and deep counts. The grid of step 2 has 25 points instead of 100, and its mean is taken
exactly instead of by resampling. Estimates are not rounded up to 3 digits.

Time grows with cells x predictors x genes worth a regression. Most of the 14 000 genes of a droplet data set are below
the cut-off, and cost only step 2.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from screpro.baselines import poisson_lasso
from screpro.errors import ScreproError

__all__ = ["Shrinkage", "impute", "prior_mean", "shrink"]

TARGET_SUM = 1e4
CHUNK = 512
"""Genes that are dense at a time."""

N_SAMPLE = 60
"""Genes whose penalty is cross-validated."""

CV, FANO, VARIANCE = 0, 1, 2


class Shrinkage(NamedTuple):
    """Posterior of T genes."""

    mean: np.ndarray  # (T, n) posterior means at size factor 1
    model: np.ndarray  # (T,) 0: constant CV^2, 1: constant Fano factor, 2: constant variance
    parameter: np.ndarray  # (T,) a, b or k


def impute(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    min_mean: float = 0.1,
    max_predictors: int = 2000,
    posterior: bool = True,
) -> np.ndarray:
    """log1p of the posterior means per 10 000.

    Parameters
    ----------
    min_mean
        Mean normalised count from which a gene is a predictor.
    max_predictors
        At most so many predictors, those of highest mean.
    posterior
        False answers with the prior means: the regression alone, which does not look at the entry itself.
    """
    if not min_mean >= 0 or max_predictors < 2:
        raise ScreproError(
            "SAVER takes min_mean >= 0 and at least two predictors.",
            got=f"{min_mean=}, {max_predictors=}",
            fix="use 0.1 and 2000",
        )
    factor = size / size.mean()
    genes = sparse.csc_matrix(counts, dtype=np.float64)
    prior = prior_mean(genes, factor, seed=seed, min_mean=min_mean, max_predictors=max_predictors)  # (G, n)
    if posterior:
        for start in range(0, len(prior), CHUNK):
            part = slice(start, start + CHUNK)
            y = np.ascontiguousarray(genes[:, part].toarray().T)
            prior[part] = shrink(y, prior[part], factor).mean
    return np.log1p(prior.T * (TARGET_SUM / size.mean())).astype(np.float32)


# --- prior mean -------------------------------------------------------------------------------------------------


def prior_mean(
    genes: sparse.csc_matrix, factor: np.ndarray, *, seed: int, min_mean: float = 0.1, max_predictors: int = 2000
) -> np.ndarray:
    """Regression of every gene on the others, or its mean where regression gains nothing.

    Parameters
    ----------
    genes
        (n, G) CSC of counts, every gene with a count.
    factor
        (n,) size factors.
    seed
        Divides the cells into five folds.

    Returns
    -------
    ndarray
        (G, n) expected counts at size factor 1.
    """
    n, n_genes = genes.shape
    normalised = sparse.csc_matrix(sparse.diags_array(1 / factor) @ genes)
    mean = np.asarray(normalised.mean(axis=0)).ravel()
    out = np.repeat(mean[:, None], n, axis=1)
    chosen = np.argsort(-mean, kind="stable")[: min(max_predictors, int((mean >= min_mean).sum()))]
    x = np.log(genes[:, chosen].toarray().T + 1) - np.log(factor)  # (P, n)
    x -= x.mean(axis=1, keepdims=True)
    deviation = x.std(axis=1)
    chosen, x, deviation = (part[deviation > 1e-12] for part in (chosen, x, deviation))
    if len(chosen) < 2 or n < 10:
        return out
    x = np.ascontiguousarray(x / deviation[:, None])
    own = np.full(n_genes, -1)
    own[chosen] = np.arange(len(chosen))

    def target(which: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(normalised[:, which].toarray().T)

    covariance = np.zeros(n_genes)  # largest with any predictor: the penalty that leaves none in
    spread = np.zeros(n_genes)
    for start in range(0, n_genes, CHUNK):
        which = np.arange(start, min(start + CHUNK, n_genes))
        y = target(which)
        products = np.abs((y - y.mean(axis=1, keepdims=True)) @ x.T) / n
        inside = own[which] >= 0
        products[inside, own[which[inside]]] = 0.0
        covariance[which], spread[which] = products.max(axis=1), y.std(axis=1)
    usable = spread > 0
    correlation = np.where(usable, covariance / np.where(usable, spread, 1.0), 0.0)

    ranked = np.flatnonzero(usable & (covariance > 0))
    ranked = ranked[np.argsort(correlation[ranked], kind="stable")]
    if not len(ranked):
        return out
    sample = ranked[np.unique(np.linspace(0, len(ranked) - 1, N_SAMPLE).round().astype(int))]
    fold = np.random.default_rng(seed).permutation(np.arange(n) % 5)
    ratio, gain = _cross_validated(x, target(sample), covariance[sample], own[sample], fold)
    cut, coefficients = _rules(correlation[sample], ratio, gain)
    shrunk = np.exp(-np.sqrt(np.maximum(coefficients[0] + coefficients[1] * correlation, 0.0)))
    shrunk[sample] = ratio
    worth = usable & (correlation > cut) & (shrunk < 1)
    worth[sample] = ratio < 1  # the cross-validated genes keep what was found for them
    worth = np.flatnonzero(worth)
    for start in range(0, len(worth), CHUNK):
        which = worth[start : start + CHUNK]
        found = poisson_lasso.fit(x, target(which), covariance[which] * shrunk[which], own=own[which])
        out[which] = poisson_lasso.predict(found, x)
    return np.maximum(out, 1e-10)


def _cross_validated(
    x: np.ndarray, y: np.ndarray, covariance: np.ndarray, own: np.ndarray, fold: np.ndarray, n_penalties: int = 14
) -> tuple[np.ndarray, np.ndarray]:
    """Best penalty of each target (T,) as a share of the one that leaves no predictor in, and what it gains.

    The gain is the fall in held-out deviance in units of its standard error over folds.
    """
    shares = np.exp(-0.3 * np.arange(n_penalties))
    n_targets, each = len(y), np.arange(len(y))
    mean = np.full((n_penalties, n_targets), np.inf)
    error = np.ones((n_penalties, n_targets))
    weight = np.bincount(fold, minlength=5) / len(fold)
    # per fold: predictors of training and test cells, targets of both, solution so far
    parts = [(*(np.ascontiguousarray(part) for part in (x[:, fold != f], x[:, fold == f])), None) for f in range(5)]
    going = np.flatnonzero(np.all([y[:, fold != f].any(axis=1) for f in range(5)], axis=0))
    for p, share in enumerate(shares):
        deviance = np.empty((5, len(going)))
        for f, (train, test, start) in enumerate(parts):
            seen, unseen = y[going][:, fold != f], y[going][:, fold == f]
            found = poisson_lasso.fit(train, seen, share * covariance[going], own=own[going], start=start, rounds=2)
            mu = np.maximum(poisson_lasso.predict(found, test), 1e-10)
            logs = np.where(unseen > 0, unseen * np.log(np.where(unseen > 0, unseen, 1.0) / mu), 0.0)
            deviance[f] = 2 * (logs - unseen + mu).mean(axis=1)
            parts[f] = train, test, found
        mean[p, going] = weight @ deviance
        error[p, going] = np.sqrt(weight @ np.square(deviance - mean[p, going]) / 4)
        # three penalties in a row that did not help: further down it only gets worse, and slow
        stay = mean[: p + 1, going].argmin(axis=0) > p - 3
        going = going[stay]
        if not len(going):
            break
        parts = [(train, test, poisson_lasso.Lasso(*(part[stay] for part in found))) for train, test, found in parts]
    known = np.isfinite(mean[0])  # a gene with all its counts in one fold is not
    best = np.where(known, mean.argmin(axis=0), 0)
    first = np.where(known, mean[0], 0.0)
    gain = (first - np.where(known, mean[best, each], 0.0)) / np.maximum(error[best, each], 1e-12)
    return shares[best], gain


def _rules(correlation: np.ndarray, ratio: np.ndarray, gain: np.ndarray) -> tuple[float, np.ndarray]:
    """Correlation below which regression gains less than a quarter of an error, and log(ratio)^2 as a line of it."""
    slope, level = np.polyfit(correlation, np.sqrt(gain), 1) if np.ptp(correlation) > 0 else (0.0, 1.0)
    cut = (0.5 - level) / slope if slope > 0 else 0.0
    above = correlation > cut
    if above.sum() < 3 or np.ptp(correlation[above]) == 0:
        return cut, np.array([np.square(np.log(ratio)).mean(), 0.0])
    line = np.polyfit(correlation[above], np.square(np.log(ratio[above])), 1)[::-1]
    if line[1] > 0:
        cut = max(cut, -line[0] / line[1])
    return cut, line


# --- variance and posterior -------------------------------------------------------------------------------------


def shrink(y: np.ndarray, mu: np.ndarray, factor: np.ndarray) -> Shrinkage:
    """Posterior means under the likeliest of the three variance models, gene by gene.

    Parameters
    ----------
    y
        (T, n) counts, every gene with one.
    mu
        (T, n) prior means above 0, at size factor 1. Where they are the same for all cells, the Fano model is taken.
    factor
        (n,) size factors.
    """
    y, mu, factor = (np.ascontiguousarray(part, dtype=np.float64) for part in (y, mu, factor))
    model, parameter = np.empty(len(y), dtype=np.int64), np.empty(len(y))
    _likeliest(y, mu, factor, model, parameter)
    p, kind = parameter[:, None], model[:, None]
    alpha = np.where(kind == CV, 1 / p, np.where(kind == FANO, mu / p, np.square(mu) / p))
    return Shrinkage((alpha + y) / (alpha / mu + factor), model, parameter)


@njit(cache=True)
def _likeliest(y, mu, factor, model, parameter):
    for t in range(len(y)):
        normalised = y[t] / factor
        mean = normalised.mean()
        variance = np.square(normalised - mean).sum() / (len(normalised) - 1)
        same = mu[t].max() == mu[t].min()
        best = -np.inf
        for kind in range(3):
            if same and kind != FANO:
                continue
            upper = variance / mean**2 if kind == CV else (variance / mean if kind == FANO else variance)
            value, likelihood = _maximum(kind, max(upper, 2e-5), y[t], mu[t], factor)
            if likelihood > best:
                best, model[t], parameter[t] = likelihood, kind, value


@njit(cache=True)
def _maximum(kind, upper, y, mu, factor):
    """Parameter within (0, upper] by golden section, or its mean by likelihood if that says little; and likelihood."""
    low, high = 0.0, upper
    golden = 0.6180339887498949
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left = log_likelihood(kind, left, y, mu, factor)
    at_right = log_likelihood(kind, right, y, mu, factor)
    for _ in range(20):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = log_likelihood(kind, left, y, mu, factor)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = log_likelihood(kind, right, y, mu, factor)
    value, best = (left, at_left) if at_left >= at_right else (right, at_right)
    if best - log_likelihood(kind, 1e-5, y, mu, factor) >= 0.5:
        return value, best
    last = upper
    if best - log_likelihood(kind, upper, y, mu, factor) > 10.0:  # where the likelihood has fallen by 10 nats
        low, high = value, upper
        for _ in range(20):
            last = (low + high) / 2
            if best - log_likelihood(kind, last, y, mu, factor) > 10.0:
                high = last
            else:
                low = last
    weight, total = 0.0, 0.0
    for point in range(25):  # denser near 0
        quantile = (point + 0.5) / 25
        candidate = (math.exp((math.exp(quantile) - 1) / 2) - 1) * last
        share = math.exp(min(log_likelihood(kind, candidate, y, mu, factor) - best, 50.0))
        weight += share
        total += share * candidate
    value = max(total / weight, 1e-5)
    return value, log_likelihood(kind, value, y, mu, factor)


@njit(cache=True)
def log_likelihood(kind, parameter, y, mu, factor):
    """Marginal log-likelihood (n,) -> scalar of counts under a gamma prior, without the terms of the counts alone."""
    total = 0.0
    for i in range(len(y)):
        if kind == CV:
            alpha = 1.0 / parameter
        elif kind == FANO:
            alpha = mu[i] / parameter
        else:
            alpha = mu[i] * mu[i] / parameter
        beta = alpha / mu[i]
        total -= alpha * math.log1p(factor[i] / beta)
        if y[i] > 0:
            total += math.lgamma(y[i] + alpha) - math.lgamma(alpha) + y[i] * math.log(factor[i] / (beta + factor[i]))
    return total
