"""Reading of prepared cells for a fit."""

import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design_checks import check_design
from scmedley.data.factors import Factors
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Cells, Reader, Reading
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError, warn
from scmedley.keys import Reads
from scmedley.pp.split import check_split, store_split


def read_prepared(
    adata: Cells, batch: str | Factors | None, label_key: str | None, seed: int, kind: Reads = "log1p"
) -> Reading:
    """Read prepared cells for a fit; store a split in ``obs`` if there is none, and learn genes and scale.

    A ``Reading`` of an earlier fit is returned unchanged. ``batch``: the column of the batches, or the factors of a
    design, the names of whose combinations are stored in ``obs["scmedley_batch"]``. ``kind``: what the model reads
    (:class:`Reader`).

    Raises
    ------
    ScmedleyError
        Cells that are not prepared or lack counts that the model needs, fewer than two batches, or a part of
        the split without cells.
    """
    factors = batch if isinstance(batch, Factors) else Factors(batch)
    batch_key = factors.batch_key
    if isinstance(adata, Reading):
        if kind == "counts" and adata.reader.kind != "counts":
            raise ScmedleyError("This model needs counts, and this reading has none. Pass the AnnData.")
        if keys.SPLIT not in adata.obs:
            raise ScmedleyError(
                f"obs of this reading has no {keys.SPLIT!r}. Pass prepared cells with a split."
            )
    else:
        check_prepared(adata, batch_key)
    if batch_key is not None and (design := factors.learn(adata.obs)).n_batches < 2:
        if design.terms is not None:
            raise ScmedleyError(f"All cells have the same levels of the design {factors.formula!r}.")
        raise ScmedleyError(
            f"obs[{batch_key!r}] has only one batch. Two or more are needed; choose another column."
        )
    if not isinstance(adata, Reading):
        ensure_not_view(adata)
        for note in check_factors(adata.obs, factors):
            warn(note)
        store_batches(adata, factors)
        store_split(adata, batch_key, label_key, seed)
    check_split(adata.obs)
    return adata if isinstance(adata, Reading) else Reader.learn(adata, kind)


def store_batches(adata: AnnData, factors: Factors) -> None:
    """Store the names of the combinations of a design in ``obs["scmedley_batch"]``; nothing for a column."""
    if factors.formula:
        design = factors.learn(adata.obs)
        codes = design.codes(adata.obs)
        adata.obs[keys.BATCH] = pd.Categorical.from_codes(codes, categories=pd.Index(design.batches))


def check_factors(obs: pd.DataFrame, factors: Factors) -> list[str]:
    """Return warnings of the weak spots of a design; raise if cells cannot tell its terms apart."""
    terms = Terms.of(factors.asked, obs) if factors.asked else None
    return check_design(terms, obs) if terms is not None and len(terms.terms) > 1 else []


def check_prepared(adata: Cells, batch_key: str | None) -> None:
    """Raise unless cells are prepared; a ``Reading`` always is."""
    if isinstance(adata, Reading):
        return
    if keys.HVG not in adata.var or not {keys.LOGNORM, keys.COUNTS} & set(adata.layers):
        raise ScmedleyError(
            f"adata is not prepared (no layers[{keys.LOGNORM!r}]). Run "
            f"sm.pp.prepare(adata, batch_key={batch_key!r}) first."
        )
