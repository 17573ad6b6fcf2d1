"""Features that are not genes (antibodies, guides, peaks), by the names of their types in files of 10x and of muon."""

import pandas as pd
from anndata import AnnData

from scmedley.errors import ScmedleyError

GENES = ("gene expression", "gex")  # 10x; the NeurIPS 2021 data, muon
_OTHERS = (
    *("antibody capture", "crispr guide capture", "multiplexing capture", "antigen capture"),
    *("custom", "peaks", "vdj", "vdj-t", "vdj-b"),
    *("adt", "hto", "atac"),
)
_COLUMNS = ("feature_types", "feature_type")  # scanpy's name, Cell Ranger's


def genes_alone(adata: AnnData) -> tuple[AnnData, str]:
    """Return the cells with genes only (X, layers, raw), and a sentence on what was left out.

    ``var["feature_types"]`` tells the features apart. Without other features, return the same object and "".

    Raises
    ------
    ScmedleyError
        There are no genes among the features.
    """
    keep, note = _genes(adata.var)
    raw, note_raw = (keep, "") if adata.raw is None else _genes(adata.raw.var)
    if not note and not note_raw:
        return adata, ""
    view = adata[:, keep.to_numpy()] if note else adata
    alone = view.to_memory() if adata.isbacked else view.copy()
    if note_raw:
        alone.raw = adata.raw[:, raw.to_numpy()].to_adata()
    return alone, note or f"raw: {note_raw}"


def _genes(var: pd.DataFrame) -> "tuple[pd.Series[bool], str]":
    key = next((column for column in _COLUMNS if column in var), None)
    types = pd.Series("", var.index) if key is None else var[key].astype(str)
    keep = types.str.lower().isin(GENES)
    if not keep.any() and types.str.lower().isin(_OTHERS).all() and len(types):
        raise ScmedleyError(
            f"No feature is of type 'Gene Expression' or 'GEX'; the types are {sorted(set(types))}. Give the file of "
            "gene expression."
        )
    # In other files such a column holds the kind of gene (protein coding, lncRNA ...).
    if keep.all() or not keep.any():
        return keep | True, ""
    counts = ", ".join(f"{n:,} {kind or 'without type'}" for kind, n in types[~keep].value_counts().items())
    genes = " or ".join(types[keep].unique())
    return keep, (
        f"Of {len(types):,} features the {int(keep.sum()):,} of type {genes} are used; left out: {counts}."
    )


def genomes(var: pd.DataFrame) -> str:
    """Return a warning if the genes are from several genomes, else ""."""
    if "genome" not in var:
        return ""
    counts = var["genome"].astype(str).value_counts()
    counts = counts[counts.index != ""]
    if len(counts) < 2:
        return ""
    found = ", ".join(f"{genome} ({n:,})" for genome, n in counts.items())
    return (
        f"The genes are from several genomes, {found}. Cells of two species differ more than any two batches: keep the "
        "genes and cells of one."
    )
