"""The recipe of the VAE's grid: held-out donors, resuming, and figures that were lost."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scmedley import keys
from scmedley.errors import ScmedleyError
from tiny import nested_design

RECIPE = Path(__file__).parents[1] / "recipes" / "vae_report.py"
if not RECIPE.exists():  # in a source distribution
    pytest.skip("no recipes here", allow_module_level=True)


@pytest.fixture(scope="module")
def recipe() -> dict:
    return runpy.run_path(str(RECIPE))


def test_cells_without_a_donor_are_never_held_out_with_a_donor(recipe: dict) -> None:
    for seed in range(8):
        adata = nested_design()
        donor = adata.obs["donor"].astype(object)
        donor[::4] = np.nan
        adata.obs["donor"] = donor.astype("category")
        held_out = recipe["hold_out"](adata, "condition", "cell_type", "donor", seed=seed)
        assert adata.obs["donor"][held_out].nunique() == 1
        assert not donor.isna()[held_out].any()
        assert set(adata.obs[keys.SPLIT][~held_out]) == {"train", "validation", "test"}
    adata.obs["donor"] = "d1"
    with pytest.raises(ScmedleyError, match="has 1 donors"):
        recipe["hold_out"](adata, "condition", "cell_type", "donor")


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_grid_resumes_and_draws_figures_that_are_missing(recipe: dict, tmp_path: Path, monkeypatch) -> None:
    adata = nested_design()
    adata.obs["hospital"] = np.where(adata.obs["donor"] == "d1", "x", "y")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "grid"
    options = ["--batch", "donor", "--site", "hospital", "--out", str(out), "--genes", "40", "--epochs", "2"]
    options += ["--latent", "2", "--hidden", "8", "--seeds", "0", "--inputs", "counts", "report"]
    monkeypatch.setattr(sys, "argv", ["vae_report.py", str(tmp_path / "cells.h5ad"), *options])
    recipe["main"]()
    figures = {"latent_cell_type.png", "latent_donor.png", "latent_hospital.png"}
    assert {path.name for path in out.glob("*.png")} == figures
    row = json.loads((out / "counts_2_8_0.json").read_text())
    assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()
    table = pd.read_csv(out / "grid.csv", header=[0, 1], index_col=[0, 1, 2])
    assert table.index.to_list() == [("counts", 2, 8), ("report", 2, 8)]
    assert "| report | best and largest: 2 × 8 |" in (out / "summary.md").read_text()
    (out / "latent_hospital.png").unlink()
    monkeypatch.setitem(recipe["main"].__globals__, "measure", lambda *_: pytest.fail("was not resumed"))
    recipe["main"]()
    assert {path.name for path in out.glob("*.png")} == figures
