"""Differential expression between groups that do not differ."""

import numpy as np
from scipy.sparse import csr_matrix

from scmedley.models import VAE, VAESettings
from scmedley.pp import prepare
from tiny import FIT, nested_design


def test_genes_that_vary_within_both_groups_have_not_changed() -> None:
    """Random halves of two cell types: two cells differ in the markers, the groups do not."""
    adata = nested_design()
    rng = np.random.default_rng(1)
    x = rng.poisson(3.0, adata.shape).astype(np.float32)
    x[:, :5] *= np.where(adata.obs["cell_type"] == "B", 8, 1)[:, None]
    adata.X = csr_matrix(x)
    prepare(adata, "donor", min_genes=5, min_cells=1)
    adata.obs["half"] = rng.permutation(np.where(np.arange(adata.n_obs) % 2, "x", "y"))
    settings = VAESettings(max_epochs=40, hidden=(16,), n_latent=2, learning_rate=0.01, shrinkage=0.1)
    model = VAE("donor", settings=settings).fit(adata, **FIT)
    table = model.differential_expression(adata, "half", "x", "y", draws=1000)
    assert table["probability"].max() < 0.55  # of either sign by symmetry; 0.85 for both signs together
    assert (table["lfc"].abs() < 0.5).all()
    assert not table["changed"].any()
    types = model.differential_expression(adata, "cell_type", "B", draws=1000)
    assert set(types.index[:5]) == {f"g{i}" for i in range(5)}
    assert types["changed"].iloc[:5].all()
