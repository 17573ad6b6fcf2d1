"""Change an AnnData in place, and list its layers, with functions that all versions of anndata have."""

from typing import Any

from anndata import AnnData


def ensure_not_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, before something is stored in it."""
    if adata.is_view:
        become(adata, adata)


def subset(adata: AnnData, index: Any) -> None:
    """Subset ``adata`` in place."""
    become(adata, adata[index])


def become(adata: AnnData, other: AnnData) -> None:
    """Replace the contents of ``adata`` in place by a copy of ``other``."""
    AnnData.__init__(adata, other.copy())


def layers_of(adata: AnnData) -> dict[str, Any]:
    """Return the layers by name, without ``X``, which anndata 0.13 lists under None."""
    return {name: values for name, values in adata.layers.items() if name is not None}
