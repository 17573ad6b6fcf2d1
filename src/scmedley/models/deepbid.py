"""DeepBID (deep batch integration and denoise): a latent, clusters and a denoised matrix from one model.

Qin et al. 2024, Advanced Science. The ``paper`` preset is the publication; the default has the same outputs and came
out better in all of them (docs/deepbid.md).

Shapes: N cells, P latent dimensions, K clusters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley import keys
from scmedley.clusters import find
from scmedley.data.factors import Factors
from scmedley.data.inplace import store_clusters
from scmedley.data.reader import Cells, Reading
from scmedley.errors import ScmedleyError, warn
from scmedley.models.base import Model
from scmedley.models.deepbid_network import DeepBIDNetwork, DeepBIDSettings
from scmedley.models.deepbid_published import PublishedDeepBIDNetwork, PublishedDeepBIDSettings
from scmedley.models.settings import Settings, named
from scmedley.models.vae import VAE
from scmedley.models.vae_settings import Likelihood
from scmedley.pp.prepared import check_prepared, read_prepared

NO_COUNTS = (
    "These cells have no counts, so log-normalised values are modelled with a Gaussian. Embedding and clusters work as "
    "with counts; denoise() returns the decoder's mean alone, and differential_expression is not available."
)

AnySettings = DeepBIDSettings | PublishedDeepBIDSettings


class DeepBID(VAE):
    """A variational autoencoder of counts whose latent batches do not move, with clusters of the latent.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches, or a formula of several factors. ``None``: there are no batches.
    label_key
        Must be ``None``: this model learns no labels.
    settings
        ``"default"``, ``"paper"`` (the publication, which needs ``n_clusters``) or a settings object.
    n_clusters
        K. ``None``: the number of clusters that the evidence supports (:func:`scmedley.clusters.find`).
    nested_in, covariates, slopes, keep
        Several factors, as in :class:`MixedEffects`.

    Attributes
    ----------
    clusters
        Clusters of the cells of the fit with evidence and the tree of merges; ``None`` in the ``paper`` preset,
        whose clusters are its memberships.
    """

    key: ClassVar[str] = keys.DEEPBID
    networks: ClassVar[Mapping[type[Settings], type]] = {
        DeepBIDSettings: DeepBIDNetwork,
        PublishedDeepBIDSettings: PublishedDeepBIDNetwork,
    }

    settings: Any  # DeepBIDSettings or PublishedDeepBIDSettings
    _without_counts: Likelihood | None = None  # what a Gaussian took the place of, for cells without counts

    def __init__(
        self,
        batch_key: str | Factors | None = None,
        label_key: str | None = None,
        settings: str | AnySettings = "default",
        *,
        n_clusters: int | None = None,
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        keep: Sequence[str] = (),
    ):
        factors = Factors.of(batch_key, nested_in, covariates, slopes, keep)
        Model.__init__(self, factors, label_key, settings)  # type: ignore[misc]  # S is that of VAE
        if n_clusters is not None:
            self.settings = self.settings.replace(n_clusters=n_clusters)
        self.reads = "log1p" if self.is_published or not self.settings.counts else "counts"

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> Any:
        """Return the ``"default"`` settings, or those of the publication (``"paper"``)."""
        default: AnySettings = DeepBIDSettings()
        return named(name, default, PublishedDeepBIDSettings())

    @property
    def is_published(self) -> bool:
        """Whether this is the network of the publication, which has no posterior and no batch effects."""
        return isinstance(self.settings, PublishedDeepBIDSettings)

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has batch effects; it has with a batch column, and not in the ``paper`` preset."""
        return not self.is_published and super().has_effects

    def fit(self, adata: Cells, *, seed: int = 0, **options: Any) -> Self:
        """Fit to prepared data, as ``Model.fit``, then find the clusters of these cells.

        The network is trained on the training cells; clusters are found among all cells, which needs no label.
        Without counts the likelihood is a Gaussian of the log-normalised values.

        Raises
        ------
        ScmedleyError
            As ``Model.fit``; or there are fewer cells than ``n_clusters``.
        """
        self.clusters = None  # of an earlier fit
        self.fit_to_values(adata)
        reading = read_prepared(adata, self.factors, None, seed, self.reads)
        n_clusters = self.settings.n_clusters
        if n_clusters is not None and n_clusters > reading.n_cells:
            raise ScmedleyError(f"n_clusters={n_clusters} is more than the {reading.n_cells} cells.")
        given = self.settings
        if isinstance(given, PublishedDeepBIDSettings):
            self.settings = given.for_cells(reading.n_cells)
        try:
            super().fit(reading, seed=seed, **options)
        finally:
            self.settings = given
        z_NP = self.get_latent_representation(reading)
        if self.is_published:
            self._order_by_size(z_NP)
        else:
            batch_N = None
            if self.batch_key is not None:
                names = (
                    self.design.names(reading.obs) if self.factors.formula else reading.obs[self.batch_key]
                )
                batch_N = names.astype(str).to_numpy()
            self.clusters = find(z_NP, n_clusters, seed=seed, batch_N=batch_N)
        return self

    def fit_to_values(self, adata: Cells) -> None:
        """Change the likelihood to a Gaussian, with a warning, if prepared cells hold no counts; back if they do."""
        check_prepared(adata, self.batch_key)  # otherwise counts in X would be taken for none
        if not isinstance(self.settings, DeepBIDSettings):
            return
        counted = has_counts(adata)
        if counted and self._without_counts is not None:  # of an earlier fit
            self.settings, self.reads = self.settings.replace(likelihood=self._without_counts), "counts"
            self._without_counts = None
        if self.settings.counts and not counted:
            warn(NO_COUNTS)
            self._without_counts = self.settings.likelihood
            self.settings, self.reads = self.settings.replace(likelihood="gaussian"), "log1p"

    def _memberships(self, z_NP: np.ndarray) -> np.ndarray:
        """Return the memberships of the publication (eq. 14)."""
        with torch.no_grad():
            found: Tensor = self.network.memberships(torch.as_tensor(z_NP, device=self.device))
        return found.cpu().numpy()

    def _order_by_size(self, z_NP: np.ndarray) -> None:
        """Sort the clusters of the publication by size, as those of the default are."""
        n_K = np.bincount(self._memberships(z_NP).argmax(axis=1), minlength=len(self.network.centre_KP))
        order_K = torch.as_tensor(np.argsort(-n_K, kind="stable"), device=self.device)
        self.network.centre_KP.copy_(self.network.centre_KP[order_K])

    def cluster(
        self,
        adata: AnnData,
        k: int | None = None,
        *,
        level: int | None = None,
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
            Instead of ``k``: clusters more (1, 2, ...) or fewer (-1, -2, ...) than those of the fit.
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
        if reading is not None:
            reading.check_same_cells(adata)
        store_clusters(adata, *self.clusters_of(reading or adata, k, level=level, unknown=unknown))

    def clusters_of(
        self, adata: Cells, k: int | None = None, *, level: int | None = None, unknown: str = "error"
    ) -> tuple[np.ndarray, np.ndarray, dict[str, pd.DataFrame]]:
        """Return the cluster and the memberships of every cell, and the tables of the clusters; see :meth:`cluster`."""
        self.check_fitted()
        z_NP = self.get_latent_representation(adata, unknown=unknown)
        if self.clusters is None:
            if level is not None or k not in (None, self.settings.n_clusters):
                raise ScmedleyError(
                    f"The published DeepBID has the {self.settings.n_clusters} clusters of its fit and no tree of "
                    "merges. Fit it with another n_clusters, or use preset='default'."
                )
            membership_NK = self._memberships(z_NP)
            return membership_NK.argmax(axis=1), membership_NK, {}
        cut = self.clusters if k is None and level is None else self.clusters.cut(k, level)
        code_N, membership_NK = cut.predict(z_NP)
        return code_N, membership_NK, cut.tables


def has_counts(adata: Cells) -> bool:
    """Return whether prepared cells hold counts."""
    if isinstance(adata, Reading):
        return adata.counts_NG is not None
    return keys.COUNTS in adata.layers
