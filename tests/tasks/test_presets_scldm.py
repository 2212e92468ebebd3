"""scLDM's hyper-parameters and sizes: as printed, consistent with the registry, counted on the networks."""

import json
from dataclasses import asdict, fields

import pytest

from screpro import paths, records
from screpro.data.registry import entries
from screpro.errors import ScreproError
from screpro.models.scldm import CENSUS, AutoEncoderConfig
from screpro.models.scldm_velocity import VelocityConfig
from screpro.tasks import presets_scldm as presets
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings


def values(table, block, name):
    return next(own.values for own in table if (own.block, own.name) == (block, name))


def test_table_6_agrees_with_the_registry():
    for own in presets.DATASETS:
        entry = entries()[own.registry]
        used = [use for use in entry.used_in if use.paper == "scldm" and "Table 6" in use.items]
        assert [use.dataset.lower() for use in used] == [own.name.lower()]
        assert (entry.cells, entry.genes) == (own.cells, own.genes or 0)
    assert entries()["scldm_census"].genes == presets.CENSUS_GENES


def test_conditions_agree_with_the_held_out_lists():
    lists = json.loads((paths.root() / "data" / "paper" / "heldout.json").read_text(encoding="utf-8"))
    classes = {own.name: dict(own.classes) for own in presets.DATASETS}
    trained = lists["scldm_parse1m_train_label_counts"], lists["scldm_replogle_train_label_counts"]
    assert classes["Parse1M"] == {"cell type": trained[0]["cell_type"], "cytokine": trained[0]["cytokine"]}
    assert classes["Replogle-Nadig"] == {"cell line": trained[1]["cell_line"], "target": trained[1]["gene"]}
    for own in presets.DATASETS:
        if own.context and own.genes:
            assert own.context <= own.genes


def test_every_table_is_in_the_inventory():
    inventory = records.inventory("scldm")
    listed = set(inventory.loc[inventory["kind"] == "table", "id"])
    assert {f"Table {number}" for number in range(6, 12)} <= listed


def test_tables_as_printed():
    blocks, cross = "Transformer Blocks", "Cross-Attention Block"
    assert [values(presets.TABLE_7, blocks, f"Number of {what}") for what in ("Blocks", "Heads")] == [(2, 4), (1,)]
    assert [values(presets.TABLE_8, blocks, f"Number of {what}") for what in ("Blocks", "Heads")] == [(2, 4), (1, 4, 8)]
    assert values(presets.TABLE_7, cross, "Number of Heads") == (1, 4, 8)
    assert values(presets.TABLE_8, cross, "Number of Heads") == (1,)
    for table in (presets.TABLE_7, presets.TABLE_8):
        assert values(table, cross, "No. pseudoinputs") == (64, 128, 256)
    assert values(presets.TABLE_7, "Gaussian Stochastic Layer", "Latents per token") == (8, 16, 32)
    assert values(presets.TABLE_11, "Training", "KL-weight") == (0, 1e-5)
    assert values(presets.TABLE_11, "Training", "Weight Decay") == (0, 1e-7, 1e-4)
    assert [len(table) for table in (presets.TABLE_7, presets.TABLE_8, presets.TABLE_9)] == [8, 9, 8]
    assert [len(table) for table in (presets.TABLE_10, presets.TABLE_11)] == [6, 7]


def test_ours_are_fields_of_our_settings():
    known = {field.name for kind in (AutoEncoderSettings, FlowSettings, AutoEncoderConfig) for field in fields(kind)}
    for table in (presets.TABLE_7, presets.TABLE_8, presets.TABLE_9, presets.TABLE_10, presets.TABLE_11):
        assert {own.ours for own in table if own.ours} <= known


def test_flow_settings_are_table_9():
    own = presets.flow_settings()
    assert (own.layers, own.heads, own.width) == (8, 8, 256)
    assert own.drop == 0.2 and presets.flow_settings(drop=0.8).drop == 0.8


def test_sweep_has_its_points_and_no_others():
    every = list(presets.sweep())
    assert len(every) == len(set(map(str, every))) == 2 * 3 * 3 * 2 * 3 * 3 * 2 * 3 * 2 * 3
    assert str(presets.sweep_settings(width=128, tokens=64)) not in map(str, every)  # these have a KL weight
    assert asdict(presets.sweep_settings(width=128, cross_heads=4))["width"] == 128
    with pytest.raises(ScreproError, match="width is one of 128, 256"):
        presets.sweep_settings(width=512)


def test_census_sizes_are_the_papers():
    for size, theirs in presets.CENSUS_PARAMETERS.items():
        config = presets.census_config(size)
        count = presets.autoencoder_parameters(config)
        assert count == presets.autoencoder_formula(config)
        assert count == pytest.approx(theirs, abs=0.05e6)
        assert config.tokens * config.channels == 4096  # section 4.3
        assert config.layers in values(presets.TABLE_10, "Encoder-Decoder", "Number of Blocks")
        assert config.width in values(presets.TABLE_10, "Encoder-Decoder", "Embedding size")
        assert config.tokens in values(presets.TABLE_10, "Encoder-Decoder", "Number of Latent Tokens")
    printed = records.paper_table("scldm", "Table 16")
    assert {f"scLDM-VAE ({size})" for size in CENSUS} == set(printed.index)
    with pytest.raises(ScreproError, match="20M"):
        presets.census_config("7B")


@pytest.mark.parametrize("genes, width, tokens, layers, channels", [(30, 16, 4, 2, 4), (11, 24, 3, 1, 5)])
def test_formulas_count_the_modules(genes, width, tokens, layers, channels):
    config = AutoEncoderConfig(genes, width, tokens, layers, channels, heads=4, cross_heads=2)
    assert presets.autoencoder_parameters(config) == presets.autoencoder_formula(config)
    flow = VelocityConfig(tokens, channels, width, layers, 4, {"cell_type": 3, "batch": 2})
    assert presets.velocity_parameters(flow) == presets.velocity_formula(flow)


def test_the_formula_refuses_other_networks():
    with pytest.raises(ScreproError, match="autoencoder_parameters"):
        presets.autoencoder_formula(AutoEncoderConfig(10, mixing="log1p"))


def test_velocity_of_the_paper_has_about_ten_million():
    own = presets.flow_settings()
    config = VelocityConfig(256, 16, own.width, own.layers, own.heads, {"cluster": 14})
    assert presets.velocity_parameters(config) == pytest.approx(9.7e6, abs=0.1e6)
