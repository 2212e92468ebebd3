"""What the benchmark of scLDM measures: the same numbers on both sides, and memory that follows the expressed genes."""

import re

import numpy as np
import pytest
import torch

from screpro import bench_measure, bench_scldm

SMALL = {"width": 16, "tokens": 4, "channels": 4, "layers": 1, "heads": 2, "cross_heads": 1}


def kept(cells: int, density: float) -> tuple[int, int, int]:
    """Tokens, different genes among them, and bytes that the encoder keeps for its backward pass."""
    model, packed, _ = bench_scldm._setup(cells, SMALL, density=density)
    bytes_kept = bench_scldm.saved_bytes(model, lambda: model.encode(packed))
    return len(packed.genes), len(packed.genes.unique()), bytes_kept


def test_saved_bytes_are_those_of_the_tensors_that_are_kept():
    layer = torch.nn.Linear(5, 3)
    x = torch.randn(7, 5)
    assert bench_scldm.saved_bytes(layer, lambda: layer(x).exp()) == 4 * (7 * 5 + 7 * 3)  # x, and the exponentials
    assert bench_scldm.saved_bytes(layer, lambda: (layer(x) + 1).sum()) == 4 * 7 * 5


def test_the_encoder_keeps_bytes_for_tokens_and_expressed_genes_not_for_the_panel(monkeypatch):
    found = np.array([kept(16, density) for density in (0.075, 0.15, 0.3)], dtype=float)
    assert (found[1:, 2] / found[:-1, 2] < found[1:, 0] / found[:-1, 0]).all()  # less than in proportion to tokens
    steps = np.diff(found, axis=0)
    a_token, a_gene = np.linalg.solve(steps[:, :2], steps[:, 2])
    assert a_token == pytest.approx(4 * (2 * SMALL["width"] + 1), rel=0.02)  # key, value and count
    rest = found[0, 2] - found[0, :2] @ [a_token, a_gene]
    monkeypatch.setattr(bench_scldm, "GENES", 8000)
    tokens, genes, on_four_panels = kept(16, 0.15 / 4)  # as many tokens, of four times as many genes
    assert on_four_panels == pytest.approx(tokens * a_token + genes * a_gene + rest, rel=0.02)


def test_rows_agree_with_the_padded_network_and_print_the_ratio(monkeypatch):
    monkeypatch.setattr(bench_scldm, "turns", lambda *calls: [bench_measure.once(call)[0] for call in calls])
    monkeypatch.setattr(bench_scldm, "SIZES", ((4, SMALL),))
    monkeypatch.setattr(bench_scldm, "DRAWN", 8)
    step, memory, drawn = bench_scldm.scldm()
    assert drawn["ours_ms"] > 0 and drawn["size"].startswith("8 cells") and not drawn["peer"]
    assert step["ratio"] > 0 and max(map(float, re.findall(r"\de-\d+", step["agreement"]))) < 1e-3
    assert list(step) == list(memory) and memory["ours_ms"] is None
    ratio, of_tokens, without = (float(part.split()[-1]) for part in memory["agreement"].split(" times")[:3])
    assert of_tokens == pytest.approx(2, rel=0.1)
    assert 1 < ratio < without < of_tokens
    at_panel, packed = (float(memory["agreement"].split(f"{word} ")[1].split()[0]) for word in ("padded", "7.5%,"))
    assert at_panel > 3 * packed
