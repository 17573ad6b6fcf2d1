"""Two dimensions for the eye."""

import numpy as np
from anndata import AnnData

from scmedley import keys


def umap(adata: AnnData, basis: str, *, max_cells: int = 30_000, seed: int = 0) -> None:
    """Store the UMAP of ``obsm[basis]`` under :func:`scmedley.keys.umap`, N x 2 float32.

    With more than ``max_cells`` cells it is made of a random draw of them, and the others are NaN. For
    looking only: distances and densities in it are not to be measured.
    """
    from umap import UMAP

    z_NP = np.asarray(adata.obsm[basis])
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(adata.n_obs, min(max_cells, adata.n_obs), replace=False))
    xy_N2 = np.full((adata.n_obs, 2), np.nan, dtype=np.float32)
    if len(rows) > 4:  # below that UMAP has no neighbourhoods to draw
        # n_jobs=1: with a seed UMAP runs on one thread, and says so unless it was asked to.
        mapper = UMAP(
            n_neighbors=min(15, len(rows) - 1), min_dist=0.3, init="pca", random_state=seed, n_jobs=1
        )
        xy_N2[rows] = mapper.fit_transform(z_NP[rows])
    adata.obsm[keys.umap(basis)] = xy_N2
