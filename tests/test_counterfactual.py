"""Counterfactuals: what must hold of any of them, whatever the network has learnt."""

import copy
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import keys
from scmedley.data.design import Design
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import MixedEffects
from scmedley.models import counterfactual as cf
from scmedley.models.counterfactual import counterfactual, mean_shifts
from scmedley.models.interval import Calibration
from scmedley.nn.bayesian import tables
from tiny import DONORS

MODELS = [("fixed", "default"), ("random", "default"), ("random", "paper")]


@pytest.fixture(params=MODELS, ids=" ".join)
def model(request: pytest.FixtureRequest, fitted):
    """A fitted network with effects that are large enough to be seen."""
    model = copy.deepcopy(fitted(*request.param))
    model.calibration = Calibration(1.0, 3, 30)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for table in tables(model.network):
            table.loc_BH.copy_(0.3 * torch.randn_like(table.loc_BH))
            table.rho_BH.fill_(-2)
    return model


def shift_to(model, adata: AnnData, target: str) -> np.ndarray:
    cells = model.read(adata).resident(model.design.codes(adata.obs), model.scale)
    with torch.no_grad():
        encoded = cf.Encoded.all_of(model, cells).take(np.arange(adata.n_obs))
    return mean_shifts(encoded, [model.design.code(target), 0])[0]


def of(cells: AnnData, batch: str) -> AnnData:
    return cells[cells.obs["donor"] == batch]


def test_the_own_batch_is_the_reconstruction(model, prepared: AnnData) -> None:
    for batch in DONORS:
        cells = of(prepared, batch)
        own = counterfactual(model, cells, batch)
        assert_array_equal(own.X, model.reconstruct(cells).X)
        assert not own.layers["difference"].any()


def test_the_own_batch_is_the_reconstruction_in_every_draw(model, prepared: AnnData) -> None:
    own = counterfactual(model, of(prepared, "d2"), "d2", draws=3)
    assert not own.layers["difference"].any()
    assert not own.layers["difference_q95"].any()
    assert (own.layers["X_q95"] > own.layers["X_q05"]).mean() > 0.9


def test_another_batch_differs_by_the_difference(model, prepared: AnnData) -> None:
    other = counterfactual(model, of(prepared, "d1"), "d3")
    assert np.abs(other.layers["difference"]).mean() > 0.01
    assert_allclose(other.X - other.layers["difference"], model.reconstruct(of(prepared, "d1")).X, atol=1e-5)


def test_permuting_the_batch_codes_permutes_the_outputs(model, prepared: AnnData) -> None:
    order = [2, 0, 1]
    permuted = copy.deepcopy(model)
    permuted.design = Design("donor", tuple(DONORS[i] for i in order))
    with torch.no_grad():
        for table in tables(permuted.network):
            table.loc_BH.copy_(table.loc_BH[order].clone())
    for batch in DONORS:
        one, other = (counterfactual(m, prepared, batch) for m in (model, permuted))
        assert_allclose(other.X, one.X, rtol=1e-5, atol=1e-6)
    assert not np.allclose(counterfactual(model, prepared, "d1").X, counterfactual(model, prepared, "d2").X)


def test_the_mean_is_all_effects_at_zero(model, prepared: AnnData) -> None:
    without = copy.deepcopy(model)
    encode_as_target = model.encodes_as_target
    with torch.no_grad():
        for name, table in without.network.named_modules():
            if table in tables(without.network) and (encode_as_target or not name.startswith("encoder")):
                table.loc_BH.zero_()
    mean = counterfactual(model, prepared, "mean")
    assert_allclose(mean.X, without.reconstruct(prepared).X, rtol=1e-5, atol=1e-6)
    assert np.abs(mean.layers["difference"]).mean() > 0.01
    certain = counterfactual(model, prepared, "mean", draws=3)
    if model.has_effects and (encode_as_target or not model.needs_batch):  # no effect is left to draw
        assert_allclose(certain.layers["X_q05"], mean.X, atol=1e-5)


def test_changes_have_one_base(model, prepared: AnnData) -> None:
    """All changes are from the reconstruction in the own batch, so that they add up around a cycle."""
    cells = of(prepared, "d1")
    shown = {to: counterfactual(model, cells, to) for to in DONORS}
    change = {to: shown[to].layers["difference"] for to in DONORS}
    assert_allclose(change["d2"] - change["d3"], shown["d2"].X - shown["d3"].X, atol=1e-5)
    assert np.abs(change["d2"]).max() > 0.01
    assert not change["d1"].any()


def test_mean_shift_is_the_mean_of_the_difference(model, prepared: AnnData) -> None:
    difference = counterfactual(model, prepared, "d2").layers["difference"]
    assert_allclose(shift_to(model, prepared, "d2"), difference.mean(0), atol=1e-5)


def test_draws_follow_the_seed(model, prepared: AnnData) -> None:
    one, same, other = (counterfactual(model, prepared[:20], "d2", draws=4, seed=s) for s in (1, 1, 2))
    for name in ("X_q05", "X_q95", "difference", "difference_q05", "difference_q95"):
        assert_array_equal(one.layers[name], same.layers[name])
        assert not np.isclose(one.layers[name], other.layers[name]).all()
    assert_array_equal(one.X, same.X)
    assert not np.isclose(one.X, other.X).all()


def test_intervals_are_calibrated_in_one_way(model, prepared: AnnData) -> None:
    """Half the factor, half the width, about the same middle; without a factor it is said that there is none."""
    widths = []
    for factor in (1.0, 0.5):
        model.calibration = Calibration(factor, 3, 30)
        drawn = counterfactual(model, prepared[:20], "d2", draws=10)
        for middle, name in ((drawn.X, "X"), (drawn.layers["difference"], "difference")):
            low, high = drawn.layers[f"{name}_q05"], drawn.layers[f"{name}_q95"]
            assert_allclose((low + high) / 2, middle, atol=1e-5)
        widths.append(high - low)
    assert_allclose(widths[0], 2 * widths[1], atol=1e-5)
    model.calibration = None
    with pytest.warns(ScmedleyWarning, match="not calibrated"):
        drawn = counterfactual(model, prepared[:20], "d2", draws=10)
    assert_allclose(drawn.layers["difference_q95"] - drawn.layers["difference_q05"], widths[0], atol=1e-5)


def test_quantiles_bracket(model, prepared: AnnData) -> None:
    certain = counterfactual(model, prepared[:20], "d2")
    drawn = counterfactual(model, prepared[:20], "d2", draws=60)
    for name, middle in (("X", drawn.X), ("difference", drawn.layers["difference"])):
        low, high = drawn.layers[f"{name}_q05"], drawn.layers[f"{name}_q95"]
        assert (low <= high).all()
        assert ((low <= middle) & (middle <= high)).mean() > 0.99
    between = (drawn.layers["X_q05"] <= certain.X) & (drawn.layers["X_q95"] >= certain.X)
    assert between.mean() > 0.8
    with torch.no_grad():
        for table in tables(model.network):
            table.rho_BH.fill_(-30)  # the posterior closes
    closed = counterfactual(model, prepared[:20], "d2", draws=3)
    assert_allclose(closed.layers["X_q05"], certain.X, atol=1e-4)
    assert_allclose(closed.layers["X_q95"], certain.X, atol=1e-4)


def test_chunks_make_no_difference(model, prepared: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = counterfactual(model, prepared, ["d1", "d3"], draws=2, seed=5)
    shift = shift_to(model, prepared, "d1")
    monkeypatch.setattr(cf, "CHUNK", 50)
    assert_allclose(counterfactual(model, prepared, ["d1", "d3"], draws=2, seed=5).X, whole.X, atol=1e-5)
    assert_allclose(shift_to(model, prepared, "d1"), shift, atol=1e-6)


def test_several_targets_stand_below_each_other(model, prepared: AnnData) -> None:
    cells = prepared[:7].copy()
    before = cells.copy()
    both = counterfactual(model, cells, ["d3", "mean"])
    assert both.shape == (14, prepared.n_vars)
    assert both.obs[keys.TARGET].tolist() == ["d3"] * 7 + ["mean"] * 7
    assert both.obs_names[7] == f"{cells.obs_names[0]} as mean"
    assert both.obs_names.is_unique
    assert both.obs["donor"].tolist() == cells.obs["donor"].tolist() * 2
    assert list(both.var_names) == model.genes
    assert_array_equal(both.X[:7], counterfactual(model, cells, "d3").X)
    assert_array_equal(both.X[7:], counterfactual(model, cells, "mean").X)
    assert_array_equal(cells.X.toarray(), before.X.toarray())
    assert cells.obs.equals(before.obs)


@pytest.mark.parametrize("draws", [0, 2])
def test_zarr_holds_what_memory_holds(
    model, draws: int, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cf, "CHUNK", 50)
    in_memory = counterfactual(model, prepared, ["d1", "mean"], draws=draws)
    monkeypatch.setattr(cf, "LARGEST", 1)  # of no matter on disk
    path = counterfactual(model, prepared, ["d1", "mean"], draws=draws, out=tmp_path / "c.zarr")
    assert path == tmp_path / "c.zarr"
    read = anndata.read_zarr(path)
    assert_array_equal(read.X, in_memory.X)
    assert read.layers.keys() == in_memory.layers.keys()
    for name in read.layers:
        assert_array_equal(read.layers[name], in_memory.layers[name])
    assert read.obs.equals(in_memory.obs)
    assert list(read.var_names) == model.genes
    assert [p.name for p in tmp_path.iterdir()] == ["c.zarr"]


def test_a_failure_leaves_no_zarr(
    model, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cf.Encoded, "decoded", broken)
    with pytest.raises(KeyboardInterrupt):
        counterfactual(model, prepared, "d1", out=tmp_path / "c.zarr")
    assert not list(tmp_path.iterdir())


def test_out_must_be_a_zarr(model, prepared: AnnData, tmp_path: Path) -> None:
    with pytest.raises(ScmedleyError, match=r"must end in \.zarr"):
        counterfactual(model, prepared, "d1", out=tmp_path / "c.h5ad")


def test_too_large_a_result_is_said_before_it_is_made(
    model, prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * 180 * 3 * len(model.genes) * 2
    monkeypatch.setattr(cf, "LARGEST", size)
    counterfactual(model, prepared, DONORS)
    monkeypatch.setattr(cf, "LARGEST", size - 1)
    monkeypatch.setattr(cf, "_chunks", lambda *_: pytest.fail("not reached"))
    with pytest.raises(ScmedleyError, match=r"180 cells x 3 targets x \d+ genes.*\.zarr"):
        counterfactual(model, prepared, DONORS)


def test_unknown_targets_name_the_batches(model, prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match=r"no batch 'd4'.*'mean'.*'d1', 'd2', 'd3'"):
        counterfactual(model, prepared, "d4")


@pytest.mark.parametrize(
    ("to", "options", "words"),
    [
        ([], {}, "at least one target"),
        ("d1", {"draws": 1}, "draws is 1"),
        ("d1", {"draws": -2}, "draws is -2"),
        (["d1", "d2", "d1"], {}, "'d1' is given more than once"),
    ],
)
def test_settings_are_checked(model, prepared: AnnData, to, options: dict, words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        counterfactual(model, prepared, to, **options)


def test_cells_of_unknown_batches(model, prepared: AnnData) -> None:
    cells = prepared[:6].copy()
    cells.obs["donor"] = "d9"
    with pytest.raises(ScmedleyError, match=r"6 cells are of batches \['d9'\]"):
        counterfactual(model, cells, "d1")
    shown = counterfactual(model, cells, "mean", unknown="mean")
    assert not shown.layers["difference"].any()  # their own batch is the population mean
    assert counterfactual(model, cells, "d1", unknown="mean").layers["difference"].any()


def test_no_effects_no_counterfactuals(prepared: AnnData, fitted) -> None:
    for name, preset in (("autoencoder", "default"), ("fixed", "paper")):
        with pytest.raises(ScmedleyError, match="no batch effects in its decoder"):
            counterfactual(fitted(name, preset), prepared, "d1")


def test_mixed_effects_takes_the_network_that_has_effects(prepared: AnnData, fitted) -> None:
    for preset, part in (("default", "fixed"), ("paper", "random")):
        mixed: MixedEffects = fitted("mixed", preset)
        ours = mixed.counterfactual(prepared, to="d1")
        assert_array_equal(ours.X, counterfactual(getattr(mixed, part), prepared, "d1").X)


def test_views_are_read_and_stay_views(prepared: AnnData, fitted) -> None:
    mixed = fitted("mixed")
    view = prepared[10:20]
    shown = mixed.counterfactual(view, to="d1")
    assert view.is_view
    assert_allclose(shown.X, mixed.counterfactual(prepared, to="d1").X[10:20], atol=1e-5)
