"""Change an AnnData in place, and list its layers, with functions that all versions of anndata have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.errors import ScmedleyError


def ensure_not_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, before something is stored in it."""
    if adata.is_view:
        become(adata, adata)


def check_is_adata(adata: Any) -> None:
    """Raise unless latents can be stored in ``adata``: a reading, of a store for example, has no ``obsm``."""
    if not isinstance(adata, AnnData):
        raise ScmedleyError(
            f"embed() stores latents in an AnnData, and this is a {type(adata).__name__}. Call "
            "get_latent_representation(cells), or embed(adata, reading=cells) with an AnnData of the same cells, such "
            "as anndata.read_h5ad('store/cells.h5ad') of a store."
        )


def subset(adata: AnnData, index: Any) -> None:
    """Subset ``adata`` in place."""
    become(adata, adata[index])


def become(adata: AnnData, other: AnnData) -> None:
    """Replace the contents of ``adata`` in place by a copy of ``other``."""
    AnnData.__init__(adata, other.copy())


def store_clusters(
    adata: AnnData, code_N: np.ndarray, membership_NK: np.ndarray, tables: Mapping[str, pd.DataFrame]
) -> None:
    """Store clusters in ``obs``, memberships in ``obsm`` (float32) and the tables about them in ``uns``."""
    ensure_not_view(adata)
    names = pd.Index([str(cluster) for cluster in range(membership_NK.shape[1])])
    adata.obs[keys.CLUSTER] = pd.Categorical.from_codes(code_N, names)
    adata.obsm[keys.MEMBERSHIP] = membership_NK.astype(np.float32)
    adata.uns[keys.CLUSTERS] = dict(tables)


def layers_of(adata: AnnData) -> dict[str, Any]:
    """Return the layers by name, without ``X``, which anndata 0.13 lists under None."""
    return {name: values for name, values in adata.layers.items() if name is not None}
