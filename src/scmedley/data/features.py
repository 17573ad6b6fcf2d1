"""What 10x measures beside genes: antibodies, guides, peaks."""

import pandas as pd
from anndata import AnnData

from scmedley.errors import ScmedleyError

GENES = "Gene Expression"
_OTHERS = (
    *("antibody capture", "crispr guide capture", "multiplexing capture", "antigen capture"),
    *("custom", "peaks", "vdj", "vdj-t", "vdj-b"),
)
_COLUMNS = ("feature_types", "feature_type")  # scanpy's name, Cell Ranger's


def genes_alone(adata: AnnData) -> tuple[AnnData, str]:
    """Return the cells with their genes alone, in X, layers and raw, and what was left out as a sentence.

    Features are told apart by ``var["feature_types"]`` as 10x fills it. The very same object and "" where there is
    nothing to leave out.

    Raises
    ------
    ScmedleyError
        There are other features only.
    """
    keep, said = _genes(adata.var)
    raw, said_raw = (keep, "") if adata.raw is None else _genes(adata.raw.var)
    if not said and not said_raw:
        return adata, ""
    view = adata[:, keep.to_numpy()] if said else adata
    alone = view.to_memory() if adata.isbacked else view.copy()
    if said_raw:
        alone.raw = adata.raw[:, raw.to_numpy()].to_adata()
    return alone, said or f"raw: {said_raw}"


def _genes(var: pd.DataFrame) -> "tuple[pd.Series[bool], str]":
    key = next((column for column in _COLUMNS if column in var), None)
    types = pd.Series("", var.index) if key is None else var[key].astype(str)
    keep = types == GENES
    if not keep.any() and types.str.lower().isin(_OTHERS).all() and len(types):
        raise ScmedleyError(
            f"No feature is of type {GENES!r}; the types are {sorted(set(types))}. Give the file of gene expression."
        )
    # Elsewhere such a column says what kind of gene it is: protein coding, lncRNA ...
    if keep.all() or not keep.any():
        return keep | True, ""
    counts = ", ".join(f"{n:,} {kind or 'without type'}" for kind, n in types[~keep].value_counts().items())
    return keep, (
        f"Of {len(types):,} features the {int(keep.sum()):,} of type {GENES} are used; left out: {counts}."
    )


def genomes(var: pd.DataFrame) -> str:
    """Return a warning where the genes are of several genomes, "" where not."""
    if "genome" not in var:
        return ""
    counts = var["genome"].astype(str).value_counts()
    counts = counts[counts.index != ""]
    if len(counts) < 2:
        return ""
    said = ", ".join(f"{genome} ({n:,})" for genome, n in counts.items())
    return (
        f"The genes are of several genomes, {said}: cells of two species differ more than any two batches. Keep the "
        "genes and cells of one."
    )
