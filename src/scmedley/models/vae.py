"""The variational autoencoder (VAE), with a likelihood of counts or of normalised values, with or without batches.

Shapes: N cells, G genes, P latent dimensions, D draws.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design import OWN
from scmedley.data.factors import Factors
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Cells, Reading
from scmedley.errors import warn
from scmedley.models import posterior
from scmedley.models.base import Model
from scmedley.models.differential import differential_expression
from scmedley.models.settings import Settings, named
from scmedley.models.vae_network import ACTIVE, VAENetwork
from scmedley.models.vae_settings import Likelihood, VAESettings

# Nats per cell: with less, the latent cannot tell two groups of cells apart.
LEAST_KL = math.log(2)
LEAST_HELD_OUT = 5  # cells: the variance over fewer says nothing about units
# The default learning rate is for 128 hidden units: with 1,024 and few cells it can collapse the latent (docs/vae.md).
WIDE, RATE_OF_WIDE = 256, 2e-3


class VAE(Model[VAESettings]):
    """A variational autoencoder of counts or of normalised values.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches, or a formula of several factors, whose effects are in the decoder. ``None``:
        there are no batches.
    label_key
        Must be ``None``, the argument is there for the order that all models share: a VAE learns no labels.
    settings
        ``"default"``, ``"paper"`` (the report's mean reduction, which collapses) or a :class:`VAESettings`.
    likelihood, beta, free_bits, warmup
        Changes to the settings (:class:`VAESettings`).
    nested_in, covariates, slopes, keep
        Several factors, as in :class:`MixedEffects`.
    """

    key: ClassVar[str] = keys.VAE
    has_label_head: ClassVar[bool] = False
    networks: ClassVar[Mapping[type[Settings], type]] = {VAESettings: VAENetwork}

    def __init__(
        self,
        batch_key: str | Factors | None = None,
        label_key: str | None = None,
        settings: str | VAESettings = "default",
        *,
        likelihood: Likelihood | None = None,
        beta: float | None = None,
        free_bits: float | None = None,
        warmup: float | None = None,
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        keep: Sequence[str] = (),
    ):
        factors = Factors.of(batch_key, nested_in, covariates, slopes, keep)
        super().__init__(factors, label_key, settings)
        given = {"likelihood": likelihood, "beta": beta, "free_bits": free_bits, "warmup": warmup}
        self.settings = self.settings.replace(**{k: v for k, v in given.items() if v is not None})
        self.reads = "counts" if self.settings.counts or self.settings.scale == "pearson" else "log1p"

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> VAESettings:
        """Return the ``"default"`` settings, or those of the report (``"paper"``)."""
        return named(name, default=VAESettings(), paper=VAESettings().as_published())

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has batch effects; it has with a batch column, and not in the ``paper`` preset."""
        return self.batch_key is not None and self.settings.batch_effects

    def fit(self, adata: Cells, **options: Any) -> Self:
        """Fit to prepared data, as ``Model.fit``; warn if the latent has collapsed.

        Raises
        ------
        ScmedleyError
            As ``Model.fit``; or the likelihood is of counts, and there are none.
        """
        super().fit(adata, **options)
        is_validation = adata.obs[keys.SPLIT] == "validation"  # the fit has stored it
        said = collapsed(self.history, self.settings) if is_validation.sum() >= LEAST_HELD_OUT else ""
        if said:
            warn(said)
        return self

    def get_latent_representation(
        self,
        adata: Cells,
        *,
        unknown: str = "error",
        mask_batch: bool = False,
        draws: int = 0,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the posterior mean of the latent, N x P; with ``draws``, draws of the posterior, D x N x P."""
        if draws:
            return posterior.draws(self, adata, draws, seed)
        return super().get_latent_representation(adata, unknown=unknown, mask_batch=mask_batch)

    def embed(
        self,
        adata: AnnData,
        *,
        unknown: str = "error",
        reading: Reading | None = None,
        draws: int = 0,
        seed: int = 0,
    ) -> None:
        """Store the posterior mean of every cell in ``obsm``, as ``Model.embed``.

        With ``draws``, ``obsm["X_scmedley_vae_draws"]`` (N x P x D) holds draws of the posterior too.
        """
        super().embed(adata, unknown=unknown, reading=reading)
        if draws:
            z_DNP = posterior.draws(self, reading or adata, draws, seed)
            ensure_not_view(adata)
            adata.obsm[f"{self.key}_draws"] = np.ascontiguousarray(z_DNP.transpose(1, 2, 0))

    def log_likelihood(self, adata: Cells, *, draws: int = 100, seed: int = 0) -> np.ndarray:
        """Return log p(x) of every cell in nats, by importance sampling (:func:`posterior.log_likelihood`)."""
        return posterior.log_likelihood(self, adata, draws, seed)

    def elbo(self, adata: Cells, *, seed: int = 0) -> pd.DataFrame:
        """Return the evidence lower bound of every cell with one draw: ``reconstruction``, ``kl``, ``elbo``."""
        return posterior.elbo(self, adata, seed)

    def denoise(
        self,
        adata: Cells,
        *,
        to: str = OWN,
        size: float | None = None,
        use_counts: bool = True,
        out: str | Path | None = None,
    ) -> AnnData | Path:
        """Return the expected expression of every cell without the noise of sampling.

        See :func:`scmedley.models.posterior.denoise`. Never use a denoised matrix as counts in a test: it
        shares information between cells, so tests find differences that are not there.

        Parameters
        ----------
        adata
            Cells with counts (or normalised values, for the Gaussian).
        to
            ``"own"``, a batch, or ``"mean"`` for the population mean.
        size
            Counts per cell over all genes, such as 10,000; ``None``: those of each cell.
        use_counts
            Whether to use a cell's own counts of a gene beside the decoder: the posterior mean
            (theta + x) mu / (theta + mu) of the negative binomial. Otherwise the decoder's mean mu.
        out
            Path ending in ``.zarr``, to which a large result is written in chunks; the path is returned.
        """
        return posterior.denoise(self, adata, to=to, size=size, use_counts=use_counts, out=out)

    differential_expression = differential_expression  # a method: its first argument is the model


def collapsed(history: pd.DataFrame, settings: VAESettings) -> str:
    """Return a warning with the remedy if the epoch that was kept has too few active units, else ""."""
    kept = history[(history["kept"]) & (history["part"] == "validation")]
    value = kept.set_index("term")["value"]
    if "active units" not in value:
        return ""
    active = float(value["active units"])
    if not is_collapsed(active, float(value["latent kl"]), settings.n_latent):
        return ""
    remedy = remedies(settings)
    return (
        f"The latent has collapsed: {active:.0f} of {settings.n_latent} units are active (variance of the posterior "
        f"mean over cells above {ACTIVE}), and the KL is {value['latent kl']:.2g} nats per cell. The decoder ignores "
        f"the latent. {remedy}"
    )


def is_collapsed(n_active: float, kl: float, n_latent: int) -> bool:
    """Return whether the KL is too small, or fewer than two units are active (one, if there is only one).

    Simple data need few units: that some of them are unused is no collapse.
    """
    return n_active < min(n_latent, 2) or kl < LEAST_KL


def remedies(settings: VAESettings) -> str:
    """Return what to change against posterior collapse."""
    if settings.reduction == "mean":
        return "Use reduction='sum' (preset 'default'): a mean over genes makes the KL far too heavy."
    found = []
    if settings.warmup < 0.5:
        found.append(f"a longer warm-up (warmup={max(0.5, settings.warmup):g})")
    if max(settings.hidden) > WIDE and settings.learning_rate > RATE_OF_WIDE:
        found.append(f"learning_rate={RATE_OF_WIDE:g}, as {max(settings.hidden)} hidden units are many")
    if settings.beta > 1:
        found.append("a smaller beta")
    if not settings.free_bits:
        found.append("free_bits=0.1")
    found.append("fewer latent dimensions")
    return f"Try {', or '.join(found)}."
