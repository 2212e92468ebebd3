"""The generic classifier and imputer against their definitions and against the fast ones of the default network."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.data.masks import hide, mar_mask
from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiffConfig
from screpro.models.scdiff_variants import NOISED, VARIANTS, make
from screpro.processes.gaussian import scaled_linear
from screpro.tasks.ablations import Ablation, annotate_variants, impute_variants
from screpro.tasks.annotation import Labelled, ScDiffSettings
from screpro.tasks.cells import Cells
from screpro.tasks.diffusion_classifier import ClassifierErrors, classifier_errors
from screpro.tasks.imputation import one_step
from screpro.tasks.variant_answers import candidate_gap, impute_once, variant_errors

SCHEDULE = scaled_linear()
CANDIDATES = np.array([[1, 1], [1, 2], [2, 2], [2, 3]])
CONFIG = ScDiffConfig(n_genes=31, width=8, depth=2, heads=2, classes={"cell_type": 4}, n_batches=3)


def network(name, config=CONFIG):
    model = make(name, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def loop(model, x, noise, *, visible):
    """The definition: one call of the network per candidate, time step and draw."""
    x = torch.as_tensor(x.toarray())
    noised = model.reads == NOISED
    times = SCHEDULE.bins(5) if noised else torch.zeros(1, dtype=torch.int64)
    errors = np.zeros((len(x), len(CANDIDATES), len(times)))
    context = x if visible else torch.zeros_like(x)
    inverse = torch.linalg.pinv(model.embedder.table.detach().double())
    draws = noise.shape[2] if noised else 1
    for c, (batch, label) in enumerate(CANDIDATES):
        for k, time in enumerate(times):
            for draw in range(draws):
                epsilon = noise[:, k, draw, c if noise.shape[3] > 1 else 0].double() @ inverse
                t = torch.full((len(x),), int(time))
                with torch.no_grad():
                    predicted = model(
                        SCHEDULE.diffuse(x, t, epsilon.float()) if noised else x,
                        t,
                        context=context,
                        conditions={"cell_type": torch.full((len(x),), int(label))},
                        batch=torch.full((len(x),), int(batch)),
                    )
                errors[:, c, k] += ((predicted - x) ** 2).mean(1).numpy() / draws
    return errors


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_classifier_equals_the_loop(name, shared, visible, sparse_cells):
    model = network(name)
    noise = torch.randn(23, 5, 2, 1 if shared else 4, 8, generator=torch.Generator().manual_seed(2))
    found = variant_errors(
        model,
        sparse_cells,
        CANDIDATES,
        schedule=SCHEDULE,
        generator=torch.Generator(),
        draws=2,
        shared_noise=shared,
        visible=visible,
        noise=noise,
        memory_mib=0.005,  # several chunks
    )
    np.testing.assert_allclose(found.error, loop(model, sparse_cells, noise, visible=visible), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["scdiff", "embedder_3"])
def test_classifier_equals_the_fast_one(name, shared, sparse_cells):
    """With the same noise; the fast one needs plain blocks and a plain head."""
    model = network(name)
    noise = torch.randn(23, 5, 3, 1 if shared else 4, 8, generator=torch.Generator().manual_seed(3))
    given = {"schedule": SCHEDULE, "generator": torch.Generator(), "draws": 3, "shared_noise": shared, "noise": noise}
    plain = variant_errors(model, sparse_cells, CANDIDATES, **given)
    fast = classifier_errors(model, sparse_cells, CANDIDATES, **given)
    np.testing.assert_allclose(plain.error, fast.error, rtol=1e-4, atol=1e-4)
    assert plain.times.tolist() == fast.times.tolist()


def test_classifier_draws_noise_of_the_right_law(sparse_cells):
    """Averages over many draws agree with those of noise in gene space."""
    model = network("decoder_2")
    x = sp.vstack([sparse_cells[:1]] * 400, format="csr")
    given = {"schedule": SCHEDULE, "draws": 5}
    found = variant_errors(model, x, CANDIDATES, generator=torch.Generator().manual_seed(0), **given).error
    epsilon = torch.randn(400, 5, 5, 1, 31, generator=torch.Generator().manual_seed(1))
    noise = (epsilon @ model.embedder.table).detach()
    other = variant_errors(model, x, CANDIDATES, generator=torch.Generator(), noise=noise, **given).error
    np.testing.assert_allclose(found.mean(axis=0), other.mean(axis=0), rtol=0.05)


def test_other_genes_are_refused(sparse_cells):
    with pytest.raises(ScreproError, match="genes of the network"):
        variant_errors(
            network("scdiff"), sparse_cells[:, :30], CANDIDATES, schedule=SCHEDULE, generator=torch.Generator()
        )


def test_candidate_gap_is_between_labels_not_batches():
    error = np.array([[[2.0], [1.0], [1.5], [4.0]]])  # best 1.0 (label 2, batch 1), second label 1 at 2.0
    assert candidate_gap(ClassifierErrors(error, CANDIDATES, np.zeros(1))) == 1.0


def counts_of(rng, n=40, genes=30):
    return sp.csr_matrix(rng.poisson(1.5, size=(n, genes)).astype(np.float32))


def test_imputer_is_the_one_step_of_the_default(rng):
    counts = counts_of(rng)
    mask = hide(counts, mar_mask(counts, rng=rng))
    model = network("scdiff", ScDiffConfig(n_genes=30, width=8, depth=2, heads=2))
    np.testing.assert_allclose(
        impute_once(model, mask, seed=4), one_step(model, mask.x, mask.hidden, seed=4), rtol=1e-5, atol=1e-5
    )


def labelled_of(rng) -> Labelled:
    """Two types that differ in half of the genes."""
    kind = np.arange(120) % 2
    rate = np.where((np.arange(30) < 15)[None] == (kind == 0)[:, None], 4.0, 0.5)
    counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    cells = Cells(counts, counts.log1p(), kind.astype(np.int64), np.zeros(120, dtype=np.int64), list("g" * 30))
    return Labelled(cells, ["a", "b"], ["all"])


def test_experiment(rng, tmp_path, monkeypatch):
    """Easy cells: the default classifies them, and a network that sees the clean cell does not need the label."""
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    labelled = labelled_of(rng)
    run = records.start("scdiff/ablations", tier="ci")
    settings = ScDiffSettings(width=16, depth=2, heads=2, epochs=20, batch_size=32, draws=2)
    protocol = Ablation("toy", [0], [0], settings, test_fraction=0.25)
    names = ["scdiff", "no_diffusion"]
    annotate_variants(run, labelled, protocol, names)
    impute_variants(run, labelled.cells.counts, protocol, names)
    rows = run.frame()
    score = rows[(rows["metric"] == "macro_f1") & (rows["metric_variant"] == "")].set_index("method")["value"]
    assert score["scdiff"] > 0.9 and score["no_diffusion"] > 0.9
    assert set(rows.loc[rows["method"] == "scdiff", "metric_variant"]) == {"", "averaged weights"}
    assert set(rows.loc[rows["method"] == "no_diffusion", "metric_variant"]) == {"", "whole cell as context"}
    pearson = rows[(rows["metric"] == "imputation_pearson_pooled") & (rows["metric_variant"] == "")]
    assert sorted(pearson["method"]) == sorted(names) and pearson["value"].between(-1, 1).all()
    annotate_variants(run, labelled, protocol._replace(variant="again"), ["no_diffusion"])
    side = run.frame().query("metric_variant == 'again'")
    assert set(side["item"]) == {"X-17"} and len(side) == 4
    before = len(run.frame())
    annotate_variants(run, labelled, protocol, names)  # nothing is measured twice
    assert len(run.frame()) == before
