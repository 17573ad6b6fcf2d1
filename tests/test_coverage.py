"""Intervals hold what they promise: 90 % of the shifts, on held-out cells and where the truth is known."""

import copy

import numpy as np
import pytest
import torch
from anndata import AnnData

from scmedley import datasets, keys
from scmedley.interpret import interval_coverage
from scmedley.models import FixedEffects, FixedEffectsSettings, calibrate, load
from scmedley.models.counterfactual import drawn_means
from scmedley.models.interval import LARGEST, LEAST_FACTOR, Deviations, half_width
from scmedley.nn.bayesian import inverse_softplus, tables
from scmedley.pp import prepare
from simulated import simulated

SETTINGS = FixedEffectsSettings(hidden=(64, 32), n_latent=10, max_epochs=20)


def fitted(adata: AnnData, n_genes: int) -> FixedEffects:
    prepare(adata, "batch", label_key="cell_type", n_top_genes=n_genes)
    options = {"seed": 0, "threads": 1, "precision": "float32", "device": "cpu", "progress": False}
    return FixedEffects("batch", settings=SETTINGS).fit(adata, **options)


def learnt_anew(
    model: FixedEffects, adata: AnnData, label: str | None = "cell_type"
) -> calibrate.Calibration:
    return calibrate.learn(model, model.read(adata), adata.obs[label] if label else None, 0)


@pytest.fixture(scope="module")
def known() -> tuple[AnnData, np.ndarray, FixedEffects]:
    """Simulated cells, their true means, and a model of the cells."""
    adata, truth_KBG = simulated(n_cells=1200, n_genes=150)
    return adata, truth_KBG, fitted(adata, 150)


def of_truth(model: FixedEffects, adata: AnnData, truth_KBG: np.ndarray) -> float:
    """Return the share of true shifts, which have no sampling noise, that are in their interval."""
    resident = model.read(adata).resident(model.design.codes(adata.obs), model.scale)
    genes = [int(gene[1:]) for gene in model.genes]
    inside = []
    for k, name in enumerate(adata.obs["cell_type"].cat.categories):
        rows = np.flatnonzero(adata.obs["cell_type"] == name)[:100]
        cells = resident.take(torch.as_tensor(rows))
        shift_TDG = drawn_means(model, cells, 30, 0, range(model.design.n_batches))
        shift_TDG -= shift_TDG.mean(axis=0)
        true_TG = truth_KBG[k][:, genes] - truth_KBG[k][:, genes].mean(axis=0)
        inside.append(np.abs(true_TG - shift_TDG.mean(1)) <= half_width(shift_TDG, model.calibration, axis=1))
    return float(np.mean(inside))


def test_intervals_cover_the_shifts_of_held_out_cells() -> None:
    adata = datasets.sc_mixology()
    model = fitted(adata, 300)
    whole, largest = interval_coverage(model, adata, "cell_type")
    assert 0.85 <= largest <= 0.97  # 0.76 with the factor of all genes
    assert largest <= whole <= 0.99
    assert model.calibration.label_key == "cell_type"
    assert model.calibration.cells == (adata.obs[keys.SPLIT] == "validation").sum()


def test_intervals_cover_the_true_shifts(known) -> None:
    adata, truth_KBG, model = known
    whole, largest = interval_coverage(model, adata, "cell_type")
    assert 0.85 <= whole <= 0.97
    assert 0.85 <= largest <= 0.97
    assert 0.85 <= of_truth(model, adata, truth_KBG) <= 0.99


@pytest.mark.parametrize(
    ("width", "before", "factor"), [(0.01, (0.0, 0.7), (3.0, 30.0)), (0.3, (0.96, 1.0), (0.25, 0.8))]
)
def test_a_posterior_of_any_width_is_calibrated(
    known, width: float, before: tuple[float, float], factor: tuple[float, float]
) -> None:
    """A posterior that is far too sure, or not sure enough, fails without its factor and holds with it."""
    adata, truth_KBG, model = known[0], known[1], copy.deepcopy(known[2])
    with torch.no_grad():
        for table in tables(model.network):
            table.rho_BH.fill_(inverse_softplus(width))
    model.calibration = None
    assert before[0] <= of_truth(model, adata, truth_KBG) <= before[1]
    assert np.isnan(interval_coverage(model, adata, "cell_type")).all()
    model.calibration = learnt_anew(model, adata)
    assert factor[0] <= model.calibration.factor <= factor[1]
    # One width for all effects, whatever they are: the largest shifts need more than others do, which then hold more.
    whole, largest = interval_coverage(model, adata, "cell_type")
    assert 0.85 <= largest <= 0.97
    assert of_truth(model, adata, truth_KBG) >= 0.85
    assert whole >= 0.85


def test_a_factor_is_learnt_from_validation_cells_alone(known) -> None:
    adata, _, model = known
    other = adata.copy()
    x_NG = other.layers[keys.LOGNORM]
    x_NG[(other.obs[keys.SPLIT] == "test").to_numpy()] *= 3
    other.layers[keys.LOGNORM] = x_NG
    assert learnt_anew(model, other).factor == pytest.approx(model.calibration.factor, rel=1e-3)
    assert learnt_anew(model, adata, None).label_key is None


def test_without_validation_cells_there_is_no_factor(known) -> None:
    adata, _, model = known
    few = adata[adata.obs[keys.SPLIT] != "validation"].copy()
    assert learnt_anew(model, few) is None
    one = adata[(adata.obs[keys.SPLIT] != "validation") | (adata.obs["batch"] == "b0")].copy()
    assert learnt_anew(model, one) is None


def test_a_factor_is_kept_with_the_model(known, tmp_path) -> None:
    model = known[2]
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").calibration == model.calibration


def test_a_known_factor_is_found() -> None:
    rng = np.random.default_rng(0)
    sd_PG, se_PG = rng.uniform(0.05, 0.5, (30, 500)), rng.uniform(0.01, 0.05, (30, 500))
    shift_PG, n_P = rng.normal(size=sd_PG.shape), np.ones(30, int)
    for factor in (0.4, 2.0):
        miss_PG = rng.normal(0, np.hypot(factor * sd_PG, se_PG))
        found = Deviations(shift_PG, miss_PG, sd_PG, se_PG, n_P)
        assert found.factor() == pytest.approx(factor, rel=0.1)
        assert found.coverage(found.factor()) == pytest.approx(0.9, abs=0.03)
    noise = Deviations(shift_PG, np.zeros_like(sd_PG), sd_PG, se_PG, n_P)
    assert noise.factor() == LEAST_FACTOR
    certain = Deviations(shift_PG, rng.normal(0, 0.1, (30, 500)), np.zeros_like(sd_PG), se_PG, n_P)
    assert np.isfinite(certain.factor())  # genes that no batch moves


def test_the_largest_shifts_are_covered_too() -> None:
    """Where large shifts are predicted at half their size, the factor of all genes misses them."""
    rng = np.random.default_rng(0)
    shift_PG, sd_PG = rng.standard_t(3, size=(30, 500)), np.full((30, 500), 0.5)
    miss_PG = shift_PG + rng.normal(0, 0.2, shift_PG.shape)
    found = Deviations(shift_PG, miss_PG, sd_PG, np.full_like(sd_PG, 0.1), np.ones(30, int))
    assert found.coverage(found.factor(), LARGEST) == pytest.approx(0.9, abs=0.02)
    assert found.coverage(found.factor()) > 0.97
