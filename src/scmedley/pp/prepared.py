"""Reading of prepared cells for a fit."""

from scmedley import keys
from scmedley.data.design import Design
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Cells, Reader, Reading
from scmedley.errors import ScmedleyError
from scmedley.keys import Reads
from scmedley.pp.split import check_split, store_split


def read_prepared(
    adata: Cells, batch_key: str | None, label_key: str | None, seed: int, kind: Reads = "log1p"
) -> Reading:
    """Read prepared cells for a fit; store a split in ``obs`` if there is none, and learn genes and scale.

    A ``Reading`` of an earlier fit is returned unchanged. ``kind``: what the model reads (:class:`Reader`).

    Raises
    ------
    ScmedleyError
        Cells that are not prepared or lack counts that the model needs, fewer than two batches, or a part of
        the split without cells.
    """
    if isinstance(adata, Reading):
        if kind == "counts" and adata.reader.kind != "counts":
            raise ScmedleyError("This model needs counts, and this reading has none. Pass the AnnData.")
        if keys.SPLIT not in adata.obs:
            raise ScmedleyError(
                f"obs of this reading has no {keys.SPLIT!r}. Pass prepared cells with a split."
            )
    else:
        check_prepared(adata, batch_key)
    if batch_key is not None and Design.of(adata.obs, batch_key).n_batches < 2:
        raise ScmedleyError(
            f"obs[{batch_key!r}] has only one batch. Two or more are needed; choose another column."
        )
    if not isinstance(adata, Reading):
        ensure_not_view(adata)
        store_split(adata, batch_key, label_key, seed)
    check_split(adata.obs)
    return adata if isinstance(adata, Reading) else Reader.learn(adata, kind)


def check_prepared(adata: Cells, batch_key: str | None) -> None:
    """Raise unless cells are prepared; a ``Reading`` always is."""
    if isinstance(adata, Reading):
        return
    if keys.HVG not in adata.var or not {keys.LOGNORM, keys.COUNTS} & set(adata.layers):
        raise ScmedleyError(
            f"adata is not prepared (no layers[{keys.LOGNORM!r}]). Run "
            f"sm.pp.prepare(adata, batch_key={batch_key!r}) first."
        )
