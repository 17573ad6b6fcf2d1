"""Change an AnnData where it is, and list its layers, by what all versions of anndata offer in public."""

from typing import Any

from anndata import AnnData


def ensure_not_view(adata: AnnData) -> None:
    """Make a view of another AnnData an AnnData of its own, before something is stored in it."""
    if adata.is_view:
        become(adata, adata)


def subset(adata: AnnData, index: Any) -> None:
    """Do ``adata = adata[index]`` for everyone who holds ``adata``."""
    become(adata, adata[index])


def become(adata: AnnData, other: AnnData) -> None:
    """Make ``adata`` a copy of ``other`` for everyone who holds it."""
    AnnData.__init__(adata, other.copy())


def layers_of(adata: AnnData) -> dict[str, Any]:
    """Return the layers by name, without ``X``: anndata 0.13 lists it among them, under None."""
    return {name: values for name, values in adata.layers.items() if name is not None}
