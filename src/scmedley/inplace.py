"""Change an AnnData where it is, by anndata's public calls alone."""

from typing import Any

from anndata import AnnData


def settle(adata: AnnData) -> None:
    """Make a view of another AnnData an AnnData of its own, before something is stored in it."""
    if adata.is_view:
        become(adata, adata)


def subset(adata: AnnData, index: Any) -> None:
    """Do ``adata = adata[index]`` for everyone who holds ``adata``."""
    become(adata, adata[index])


def become(adata: AnnData, other: AnnData) -> None:
    """Make ``adata`` a copy of ``other`` for everyone who holds it."""
    AnnData.__init__(adata, other.copy())
