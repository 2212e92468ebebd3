"""Both sides of PerturbDiff's appendix B on cells drawn here, against laws that are known."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from screpro.errors import ScreproError
from screpro.metrics.distances import energy_distance_half, energy_distance_v
from screpro.processes.gaussian import linear
from screpro.tasks import functional_diffusion as fd
from screpro.tasks import functional_diffusion_score as score


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def clouds(rng):
    return rng.standard_normal((20, 6)), 0.5 + rng.standard_normal((30, 6))


@pytest.fixture(params=["gaussian", "energy"])
def kernel(request):
    return fd.gaussian(2.0) if request.param == "gaussian" else fd.energy(np.full(6, 0.3))


def test_embeddings_are_linear_and_their_products_are_mean_kernels(clouds, kernel, rng):
    x, y = clouds
    assert fd.mixing(kernel, x, y, x).digits > 13
    assert fd.inner_product(kernel, x, y).digits > 12
    found = fd.mmd(kernel, x, y, rng=rng)
    assert found.digits > 12 and found.right <= found.left * (1 + 1e-12)
    at = fd.features(kernel, x)
    assert at @ at.T == pytest.approx(kernel(x, x), abs=1e-10)


def test_the_energy_kernel_gives_half_the_energy_distance_from_any_base(clouds, rng):
    x, y = clouds
    for base in (x[0], np.zeros(6), 100 * np.ones(6)):
        kernel = fd.energy(base)
        squared = kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()
        assert squared == pytest.approx(energy_distance_half(x, y), rel=1e-9)
        assert squared == pytest.approx(energy_distance_v(x, y) / 2, rel=1e-9)
        assert fd.mmd(kernel, x, y, rng=rng).left ** 2 == pytest.approx(squared, rel=1e-6)
    # lengths do depend on the base point, so "the" energy kernel is not one kernel
    lengths = [fd.energy(base)(x, x).mean() for base in (x[0], 100 * np.ones(6))]
    assert lengths[1] > 10 * lengths[0]


def test_the_energy_kernel_is_positive_definite_and_minus_distance_is_not(clouds):
    x, _ = clouds
    assert np.linalg.eigvalsh(fd.energy(x[0])(x, x)).min() > -1e-12
    assert np.linalg.eigvalsh(-cdist(x, x)).min() < -1


def test_a_check_can_fail():
    assert fd.Check(np.array([1.0, 2.0]), np.array([1.0, 2.2])).gap == pytest.approx(0.1)
    assert fd.Check(0.0, 0.0).digits == 16
    assert fd.Bound(np.array([1.0, 2.0]), np.array([1.5, 1.9])).slack == pytest.approx(-0.1)
    with pytest.raises(ScreproError, match="width"):
        fd.gaussian(0)


def test_distribution_functions_of_sets_stay_within_the_bound(rng):
    population = rng.integers(0, 8, size=(500, 2))
    for m in (5, 50):
        bound = fd.cdf_bound(population, m, np.array([0.02, 0.1, 0.3]), trials=400, rng=rng)
        assert bound.slack > 0 and (np.diff(bound.left) <= 0).all()
    one = rng.permutation(np.repeat(np.arange(10), 30))[:, None]  # against the exact law of a binomial, G = 1, m = 1
    exact = fd.cdf_bound(one, 1, np.array([0.45, 0.55, 0.85]), trials=5000, rng=rng).left
    # one cell at level v is max(v, 9 - v) / 10 away
    assert exact == pytest.approx([1.0, 0.8, 0.2], abs=0.03)
    # two independent genes exceed it where t is near 1 / sqrt(m), and not with m + 1 in place of 2
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(-1, 2)
    bound = fd.cdf_bound(grid, 64, np.array([1.4 / 8]), trials=6000, rng=rng)
    assert 1.15 < bound.left[0] / bound.right[0] < 65 / 2
    with pytest.raises(ScreproError, match="grid"):
        fd.cdf_bound(rng.integers(0, 100, size=(50, 4)), 5, [0.1], trials=10, rng=rng)


def test_embeddings_of_sets_scatter_as_one_over_m(kernel, rng):
    cells = rng.standard_normal((200, 6))
    few, many = (fd.embedding_variance(kernel, cells, m, trials=2000, rng=rng) for m in (4, 40))
    assert few.gap < 0.05 and many.gap < 0.05
    assert few.right / many.right == pytest.approx(10)


def test_forward_process_has_the_printed_marginal(rng):
    schedule = fd.schedule_of(linear().beta.double().numpy())
    assert schedule.alpha[1000] == pytest.approx(float(linear().alpha_bar[-1]), rel=1e-4)
    assert fd.forward_moments(schedule).digits > 12
    short = fd.schedule_of(np.full(20, 0.1))
    means, variances = fd.forward_chain(
        np.array([2.0, -1.0, 0.0]), np.array([1.0, 0.5, 0.1]), short, [1, 20], chains=20_000, rng=rng
    )
    assert np.abs(means.left - means.right).max() < 0.03
    assert variances.left == pytest.approx(variances.right, rel=0.03)


def test_reverse_conditional_needs_the_factor_that_is_not_printed():
    ours = linear()
    schedule = fd.schedule_of(ours.beta.double().numpy())
    for t in (2, 300, 1000):
        found = fd.reverse_conditional(schedule, t)
        assert found.digits > 10
        # the library's tables of the same, which are numbered from 0
        table = [float(part[t - 1]) for part in (ours.from_x0, ours.from_xt, ours.posterior_variance)]
        assert found.right == pytest.approx(table, rel=1e-4)
        printed = fd.reverse_conditional(schedule, t, as_printed=True)
        assert printed.right[2] / printed.left[2] == pytest.approx(1 / schedule.beta[t])
    with pytest.raises(ScreproError, match="about t = 2"):
        fd.reverse_conditional(schedule, 1)


def test_kl_of_shared_covariance(rng):
    assert fd.kl_shared(rng.standard_normal(8), 1 / np.arange(1, 9) ** 2, rng=rng).digits > 9


def test_variational_bound_holds_and_both_sides_are_right(rng):
    schedule = fd.schedule_of(np.linspace(0.05, 0.6, 6))
    variance, spectrum = np.array([0.5]), np.array([1.0])
    for _ in range(20):
        assert fd.variational_bound(variance, spectrum, schedule, rng.normal(size=(7, 1))).slack > 0
    best = fd.variational_bound(variance, spectrum, schedule)
    assert best.right <= fd.variational_bound(variance, spectrum, schedule, np.full((7, 1), 0.4)).right
    # by simulation: the reverse process drawn, the bound as an expected log ratio of densities along paths
    gains = np.full((7, 1), 0.6)
    bound = fd.variational_bound(variance, spectrum, schedule, gains)
    beta, alpha, n = schedule.beta, schedule.alpha, 100_000
    law = [None, (0.6, 0.0, beta[1])]
    for t in range(2, 7):
        low, high = alpha[t - 1], alpha[t]
        to_data, to_state = np.sqrt(low) * beta[t] / (1 - high), np.sqrt(1 - beta[t]) * (1 - low) / (1 - high)
        law.append((to_data * 0.6 + to_state, None, (1 - low) / (1 - high) * beta[t]))
    state = rng.standard_normal(n)
    for t in range(6, 0, -1):
        state = law[t][0] * state + np.sqrt(law[t][2]) * rng.standard_normal(n)
    cross_entropy = 0.5 * (np.log(2 * np.pi * state.var()) + 0.5 / state.var())
    assert bound.left == pytest.approx(cross_entropy, abs=0.02)
    path = [np.sqrt(0.5) * rng.standard_normal(n)]
    log_ratio = np.zeros(n)
    for t in range(1, 7):
        mean = np.sqrt(1 - beta[t]) * path[-1]
        path.append(mean + np.sqrt(beta[t]) * rng.standard_normal(n))
        log_ratio += stats.norm.logpdf(path[-1], mean, np.sqrt(beta[t]))
        log_ratio -= stats.norm.logpdf(path[-2], law[t][0] * path[-1], np.sqrt(law[t][2]))
    log_ratio -= stats.norm.logpdf(path[-1])
    assert bound.right == pytest.approx(log_ratio.mean(), abs=0.03)


def test_score_matching_in_another_norm(rng):
    root = rng.standard_normal((4, 4))
    norm, maps = root @ root.T + np.eye(4), rng.standard_normal((6, 4, 4))
    covariance = np.cov(rng.standard_normal((4, 30)))
    assert score.score_matching(covariance, 0.8, 0.6, norm, maps).digits > 12
    # against draws
    x, e = rng.multivariate_normal(np.zeros(4), covariance, 200_000), rng.standard_normal((200_000, 4))
    noised = 0.8 * x + 0.6 * e
    first, second = (-e / 0.6 - noised @ a.T for a in maps[:2])
    drawn = (np.einsum("ni,ij,nj->n", second, norm, second) - np.einsum("ni,ij,nj->n", first, norm, first)).mean() / 2
    assert score.score_matching(covariance, 0.8, 0.6, norm, maps).right[0] == pytest.approx(drawn, rel=0.05)


def test_the_norm_has_to_be_the_same_for_all_cells(rng):
    cells = rng.standard_normal((60, 3))
    noised = 0.8 * cells + 0.6 * rng.standard_normal(cells.shape)
    root = rng.standard_normal((3, 3))
    same = np.tile(root @ root.T + np.eye(3), (60, 1, 1))
    assert score.minimisers(cells, noised, 0.8, 0.6, same).gap < 1e-10
    own = (1 + 4 * cells**2)[:, :, None] * np.eye(3)
    assert score.minimisers(cells, noised, 0.8, 0.6, own).gap > 0.05
    # the score is that of a mixture of normal laws
    found = score.minimisers(cells, noised[:1], 0.8, 0.6, same).score[0]

    def density(at):
        return stats.multivariate_normal(np.zeros(3), 0.36 * np.eye(3)).pdf(at - 0.8 * cells).mean()

    steps = 1e-5 * np.eye(3)
    slope = [(np.log(density(noised[0] + h)) - np.log(density(noised[0] - h))) / 2e-5 for h in steps]
    assert found == pytest.approx(slope, rel=1e-4)


def test_squared_mmd_is_not_a_squared_norm_with_the_energy_kernel(rng):
    cells, steps = rng.standard_normal((15, 5)), np.array([1e-3, 1e-2])
    smooth, rough = (
        score.local_growth(kernel, cells, steps, rng=np.random.default_rng(1))
        for kernel in (fd.gaussian(2.0), fd.energy(np.zeros(5)))
    )
    assert smooth[1] / smooth[0] == pytest.approx(100, rel=0.01)
    assert rough[1] / rough[0] == pytest.approx(10, rel=0.05)
    assert rough[0] == pytest.approx(steps[0] / 15, rel=0.02)  # the distance of each cell to itself alone
