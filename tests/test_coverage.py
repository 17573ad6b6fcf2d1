"""Intervals hold what they promise: 90 % of the shifts, on held-out cells and where the truth is known."""

import numpy as np
import pytest
import torch
from anndata import AnnData

from scmedley import datasets
from scmedley.data.resident import Resident
from scmedley.evaluate import interval_coverage
from scmedley.models import FixedEffects, FixedEffectsSettings
from scmedley.models.counterfactual import drawn_means
from scmedley.models.interval import WITHIN_90
from scmedley.pp import log_normalised, prepare
from simulated import simulated

SMALL = FixedEffectsSettings(hidden=(64, 32), n_latent=10, adversary_hidden=(32, 16), max_epochs=40)


def fitted(adata: AnnData, n_genes: int) -> FixedEffects:
    prepare(adata, "batch", label_key="cell_type", n_top_genes=n_genes)
    options = {"seed": 0, "threads": 1, "precision": "float32", "device": "cpu", "progress": False}
    return FixedEffects("batch", settings=SMALL).fit(adata, **options)


@pytest.fixture(scope="module")
def known() -> tuple[AnnData, np.ndarray, FixedEffects]:
    """Simulated cells, the true means, and a model of the cells."""
    adata, truth_KBG = simulated(n_cells=1200, n_genes=150)
    return adata, truth_KBG, fitted(adata, 150)


def test_intervals_cover_the_shifts_of_held_out_cells() -> None:
    adata = datasets.sc_mixology()
    model = fitted(adata, 300)
    held = interval_coverage(model, adata, "cell_type")
    assert 0.85 <= held <= 0.95
    uncalibrated = of_test_cells(model, adata)
    assert not 0.85 <= uncalibrated.coverage(1.0) <= 0.95, uncalibrated.coverage(1.0)


def test_intervals_cover_the_truth(known) -> None:
    adata, truth_KBG, model = known
    assert 0.85 <= interval_coverage(model, adata, "cell_type") <= 0.95
    x_NG = model.scale.transform(log_normalised(adata, model.genes)[0])
    genes = [int(gene[1:]) for gene in model.genes]
    batch_N, inside = model.design.codes(adata.obs), []
    for k, name in enumerate(adata.obs["cell_type"].cat.categories):
        rows = np.flatnonzero(adata.obs["cell_type"] == name)[:100]
        cells = Resident(x_NG[rows], batch_N[rows], torch.device("cpu"))
        shift_TDG = drawn_means(model, cells, 30, 0, range(5))
        shift_TDG -= shift_TDG.mean(0)
        true_TG = truth_KBG[k][:, genes] - truth_KBG[k][:, genes].mean(0)
        half_TG = WITHIN_90 * model.calibration.factor * shift_TDG.std(1, ddof=1)
        inside.append(np.abs(true_TG - shift_TDG.mean(1)) <= half_TG)
    assert 0.85 <= np.mean(inside) <= 0.95
