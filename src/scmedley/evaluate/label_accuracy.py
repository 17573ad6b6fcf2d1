"""Accuracy of each label: a rare label that is lost does not show in the accuracy of all cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.evaluate.probes import knn_probe

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = ["embedding", "label", "accuracy", "n_right", "n_train", "n_test"]


def label_accuracy(adata: AnnData, embeddings: Sequence[str], label_key: str) -> pd.DataFrame:
    """Return for each label how many of its held-out cells get it from their nearest training cells.

    Over all cells together, it is the "kNN accuracy" of :func:`scmedley.evaluate.scores`.

    Parameters
    ----------
    adata
        Cells with the embeddings in ``obsm`` and ``obs["scmedley_split"]``.
    embeddings
        Keys of ``obsm``.
    label_key
        Column of ``obs``; cells without a label are left out.

    Returns
    -------
    pandas.DataFrame
        A row for each embedding and label: ``accuracy`` (``n_right`` / ``n_test``; nan without held-out cells)
        and the numbers of training and held-out cells.
    """
    label, part = as_categories(adata.obs[label_key]), adata.obs[keys.SPLIT].to_numpy()
    code_N = np.asarray(label.codes, np.int64)
    train, test = (np.flatnonzero((part == name) & (code_N >= 0)) for name in ("train", "test"))
    if not (len(train) and len(test)):
        return pd.DataFrame(columns=COLUMNS)
    tables = []
    for key in embeddings:
        z_NP = np.asarray(adata.obsm[key])
        right = knn_probe(z_NP[train], code_N[train], z_NP[test], by_size=False) == code_N[test]
        n_right, n_train, n_test = (
            np.bincount(codes, minlength=len(label.categories))
            for codes in (code_N[test][right], code_N[train], code_N[test])
        )
        with np.errstate(invalid="ignore"):
            accuracy = n_right / n_test
        columns = (key, label.categories.astype(str), accuracy, n_right, n_train, n_test)
        tables.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    return pd.concat(tables, ignore_index=True)
