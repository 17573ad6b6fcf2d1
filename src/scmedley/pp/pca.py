"""Principal components: the baseline beside every embedding."""

import numpy as np
from anndata import AnnData
from scipy.sparse import issparse

from scmedley import keys


def pca(adata: AnnData, n_components: int = 50, seed: int = 0) -> None:
    """Store the principal components of the highly variable genes in ``obsm["X_scmedley_pca"]``.

    They are fitted on the training cells (``obs["scmedley_split"]``) alone, on log1p CP10k, centred, and
    applied to all cells: N x ``n_components`` (fewer with few cells or genes), float32.
    """
    from sklearn.decomposition import PCA

    x_NG = adata.layers[keys.LOGNORM][:, np.flatnonzero(adata.var[keys.HVG])]
    train = np.flatnonzero(adata.obs[keys.SPLIT] == "train")
    if x_NG.shape[1] == 1:  # a single gene is its own component
        x_N1 = np.asarray(x_NG.todense() if issparse(x_NG) else x_NG, dtype=np.float32)
        adata.obsm[keys.PCA] = x_N1 - x_N1[train].mean(axis=0)
        return
    n_components = min(n_components, len(train) - 1, x_NG.shape[1] - 1)
    # "covariance_eigh" would be exact, but dense in the genes twice over; arpack works on sparse input.
    fitted = PCA(max(n_components, 1), svd_solver="arpack", random_state=seed).fit(x_NG[train])
    adata.obsm[keys.PCA] = fitted.transform(x_NG).astype(np.float32)
