"""DeepBID (deep batch integration and denoise): a latent, clusters and a denoised matrix from one model.

Qin et al. 2024, Advanced Science. The ``paper`` preset is the publication; the default has the same outputs and came
out better in all of them (docs/deepbid.md).

Shapes: N cells, P latent dimensions, K clusters.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.clusters import Clusters, find
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Cells, Reading
from scmedley.errors import ScmedleyError, warn
from scmedley.models.base import Model
from scmedley.models.deepbid_network import DeepBIDNetwork, DeepBIDSettings
from scmedley.models.settings import Settings, named
from scmedley.models.vae import VAE
from scmedley.pp.prepared import read_prepared

NO_COUNTS = (
    "These cells have no counts, so log-normalised values are modelled with a Gaussian. Embedding and clusters work as "
    "with counts; denoise() returns the decoder's mean alone, and differential_expression is not available."
)


class DeepBID(VAE):
    """A variational autoencoder of counts whose latent batches do not move, with clusters of the latent.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches. ``None``: there are no batches.
    label_key
        Must be ``None``: this model learns no labels.
    settings
        ``"default"``, ``"paper"`` (the publication, which needs ``n_clusters``) or a settings object.
    n_clusters
        K. ``None``: the number of clusters that the evidence supports (:func:`scmedley.clusters.find`).

    Attributes
    ----------
    clusters
        Clusters of the cells of the fit with evidence and the tree of merges; ``None`` in the ``paper`` preset,
        whose clusters are its memberships.
    """

    key: ClassVar[str] = keys.DEEPBID
    networks: ClassVar[Mapping[type[Settings], type]] = {DeepBIDSettings: DeepBIDNetwork}

    clusters: Clusters | None = None

    def __init__(
        self,
        batch_key: str | None = None,
        label_key: str | None = None,
        settings: str | DeepBIDSettings = "default",
        *,
        n_clusters: int | None = None,
    ):
        Model.__init__(self, batch_key, label_key, settings)
        if n_clusters is not None:
            self.settings = self.settings.replace(n_clusters=n_clusters)
        self.reads = "counts" if self.settings.counts else "log1p"

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> DeepBIDSettings:
        """Return the ``"default"`` settings, or those of the publication (``"paper"``)."""
        return named(name, default=DeepBIDSettings(), paper=DeepBIDSettings())

    def fit(self, adata: Cells, *, seed: int = 0, **options: Any) -> Self:
        """Fit to prepared data, as ``Model.fit``, then find the clusters of these cells.

        The network is trained on the training cells; clusters are found among all cells, which needs no label.
        Without counts the likelihood is a Gaussian of the log-normalised values.

        Raises
        ------
        ScmedleyError
            As ``Model.fit``; or there are fewer cells than ``n_clusters``.
        """
        self.fit_to_values(adata)
        reading = read_prepared(adata, self.batch_key, None, seed, self.reads)
        n_clusters = self.settings.n_clusters
        if n_clusters is not None and n_clusters > reading.n_cells:
            raise ScmedleyError(f"n_clusters={n_clusters} is more than the {reading.n_cells} cells.")
        super().fit(reading, seed=seed, **options)
        z_NP = self.get_latent_representation(reading)
        self.clusters = find(z_NP, n_clusters, seed=seed, batch_N=self.design.codes(reading.obs))
        return self

    def fit_to_values(self, adata: Cells) -> None:
        """Change the likelihood to a Gaussian, with a warning, if prepared cells hold no counts."""
        if self.settings.counts and not has_counts(adata):
            warn(NO_COUNTS)
            self.settings = self.settings.replace(likelihood="gaussian")
            self.reads = "log1p"

    def cluster(
        self,
        adata: AnnData,
        k: int | None = None,
        *,
        level: int = 0,
        unknown: str = "error",
        reading: Reading | None = None,
    ) -> None:
        """Store the cluster of every cell in ``obs`` and its membership in all clusters in ``obsm``.

        Cells that were not in the fit get theirs from their neighbours in the latent.

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes.
        k
            Number of clusters, cut from the tree of merges. ``None``: that of the fit.
        level
            Steps in the tree from there: -1 is one cluster fewer, 1 is one more.
        unknown, reading
            As in :meth:`embed`.

        Notes
        -----
        ``obs["scmedley_cluster"]``: numbers from 0, in order of size. ``obsm["X_scmedley_membership"]``: N x K, rows
        sum to 1. ``uns["scmedley_clusters"]``: the tables ``evidence`` and ``tree``.

        Raises
        ------
        ScmedleyError
            The model is not fitted, or the tree has no such cut.
        """
        code_N, membership_NK, tables = self.clusters_of(reading or adata, k, level=level, unknown=unknown)
        ensure_not_view(adata)
        names = [str(number) for number in range(membership_NK.shape[1])]
        adata.obs[keys.CLUSTER] = pd.Categorical.from_codes(code_N, names)
        adata.obsm[keys.MEMBERSHIP] = membership_NK
        adata.uns[keys.CLUSTERS] = tables

    def clusters_of(
        self, adata: Cells, k: int | None = None, *, level: int = 0, unknown: str = "error"
    ) -> tuple[np.ndarray, np.ndarray, dict[str, pd.DataFrame]]:
        """Return the cluster and the memberships of every cell, and the tables of the clusters; see :meth:`cluster`."""
        self.check_fitted()
        z_NP = self.get_latent_representation(adata, unknown=unknown)
        assert self.clusters is not None
        cut = self.clusters if k is None and level == 0 else self.clusters.cut(k, level=level)
        code_N, membership_NK = cut.predict(z_NP)
        return code_N, membership_NK, {"evidence": cut.evidence, "tree": cut.tree}


def has_counts(adata: Cells) -> bool:
    """Return whether prepared cells hold counts."""
    if isinstance(adata, Reading):
        return adata.counts_NG is not None
    return keys.COUNTS in adata.layers
