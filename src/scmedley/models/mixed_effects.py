"""Fixed and random effects: what is common to all batches, and what each batch adds."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.factors import Factors, names_of
from scmedley.data.inplace import check_is_adata, ensure_not_view
from scmedley.data.reader import Cells, Reading
from scmedley.data.targets import Target, named_targets
from scmedley.device import modes
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.keys import Reads, ValueKind
from scmedley.models.adversarial import AdversarialSettings
from scmedley.models.base import Model, described
from scmedley.models.fixed_effects import FixedEffects, FixedEffectsSettings
from scmedley.models.interval import Calibration
from scmedley.models.random_effects import RandomEffects, RandomEffectsSettings
from scmedley.models.reference import LEAST_PROBABILITY, MOST_NOVELTY, Reference
from scmedley.models.store import DESCRIPTION, replacing_model, write
from scmedley.pp.prepared import read_prepared

KEPT = (
    "{columns}: kept in the fixed latent, so this prediction comes from the random-effects network. Its latent holds "
    "most of what the column does, so the predicted change is far too small: do not use it. For this what-if, fit "
    "without keep, or use sm.LinearMixed."
)


class MixedEffects:
    """The two networks of scMEDAL, fitted to the same cells.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches, or a formula of several factors, as in lme4:
        ``"~ condition + age + (1 | study/donor) + (condition | donor)"``.
    label_key
        ``obs`` column of labels, for a label head on the fixed-effects network. ``None``: no label is used.
    preset
        ``"default"``, or ``"paper"`` for the published networks and losses.
    fixed
        An ``obsm`` key, such as ``"X_pca_harmony"``. This embedding replaces the fixed-effects network, and
        only the random-effects network is fitted.
    fixed_settings, random_settings
        Settings to use instead of the preset.
    nested_in
        Instead of a formula: column that the batches belong to, such as the study of a donor.
    covariates
        Instead of a formula: columns with effects of their own, such as condition or age.
    slopes
        Those of the covariates whose effect differs between batches.
    keep
        Columns of the design whose effects stay in the fixed latent. The random effects have them all the same.

    Attributes
    ----------
    fixed
        The :class:`FixedEffects`, or ``None`` with an embedding of your own.
    random
        The :class:`RandomEffects`.
    factors
        The whole design.
    removed
        The part of it that is removed from the fixed latent: without the columns of ``keep``.
    """

    reads: Reads = "log1p"

    def __init__(
        self,
        batch_key: str,
        label_key: str | None = None,
        *,
        preset: str = "default",
        fixed: str | None = None,
        fixed_settings: FixedEffectsSettings | AdversarialSettings | None = None,
        random_settings: RandomEffectsSettings | None = None,
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        keep: Sequence[str] = (),
    ):
        asked = (nested_in, covariates, slopes)
        self.factors, self.removed = Factors.of(batch_key, *asked), Factors.of(batch_key, *asked, keep)
        self.batch_key, self.keep = self.removed.batch_key, names_of(keep)
        self.label_key, self.preset, self.fixed_key = label_key, preset, fixed
        if preset == "paper":
            self.factors.refuse_paper()
        if fixed and label_key is not None:
            raise ScmedleyError(
                f"The embedding {fixed!r} replaces the network that would learn label_key={label_key!r}. Give either "
                "fixed or label_key."
            )
        self.fixed = None if fixed else FixedEffects(self.removed, label_key, fixed_settings or preset)
        self.random = RandomEffects(self.factors, settings=random_settings or preset)

    def __repr__(self) -> str:
        """Return one line: class, keys and the data of the fit."""
        return described(self, self.decoder)

    def fit(
        self,
        adata: Cells,
        *,
        seed: int = 0,
        threads: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Fit both networks to prepared data, as ``Model.fit``; ``checkpoint`` is a folder."""
        if self.fixed_key is not None and isinstance(adata, AnnData):
            self.given(adata)
        with modes(grad=False):
            reading = read_prepared(adata, self.removed, self.label_key, seed)
        for name, network in self.networks().items():
            network.fit(
                reading,
                seed=seed,
                threads=threads,
                precision=precision,
                device=device,
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"{name}.safetensors",
                progress=progress,
            )
        return self

    def train(self, adata: Cells, **options: Any) -> Self:
        """Fit the model: the name that scvi-tools uses for :meth:`fit`."""
        return self.fit(adata, **options)

    def networks(self) -> dict[str, Model[Any]]:
        """Return the networks: ``"fixed"`` (unless replaced by an embedding) and ``"random"``."""
        return {"random": self.random} if self.fixed is None else {"fixed": self.fixed, "random": self.random}

    @property
    def history(self) -> pd.DataFrame:
        """Table of both fits, with columns network, epoch, part, term, value, weight and kept."""
        tables = [model.history.assign(network=name) for name, model in self.networks().items()]
        history = pd.concat(tables, ignore_index=True)
        return history[["network", *history.columns.drop("network")]]

    def embed(self, adata: AnnData, *, unknown: str = "error", reading: Reading | None = None) -> None:
        """Store both latents: ``obsm["X_scmedley_fixed"]``, ``obsm["X_scmedley_random"]``.

        The fixed-effects network takes cells of any batch. For batches that the random-effects network does
        not know, ``unknown="mean"`` uses the population mean. ``reading``: the same cells, if they were
        already read.
        """
        check_is_adata(adata)
        if reading is not None:
            reading.check_same_cells(adata)
        elif not adata.isbacked:
            reading = self.read(adata)
        random = self.random.get_latent_representation(reading or adata, unknown=unknown)
        fixed = self.given(adata) if self.fixed is None else self.get_latent_representation(reading or adata)
        ensure_not_view(adata)
        adata.obsm[keys.FIXED], adata.obsm[keys.RANDOM] = fixed, random

    def read(self, adata: Cells, *, values: ValueKind = "auto") -> Reading:
        """Read cells for both networks, as ``Model.read`` does."""
        return self.decoder.read(adata, values=values)

    def get_latent_representation(
        self, adata: Cells, *, unknown: str = "error", mask_batch: bool = False
    ) -> np.ndarray:
        """Return the fixed-effects latent (N x P, float32) without storing it.

        The batch is not used, except for batches that ``adapt`` added. For all others ``unknown`` and
        ``mask_batch`` (see ``Model.get_latent_representation``) change nothing. For the other latent call
        ``model.random.get_latent_representation``.
        """
        if self.fixed is None:
            return self.given(adata)
        return self.fixed.get_latent_representation(adata, unknown=unknown, mask_batch=mask_batch)

    def predict(self, adata: Cells) -> pd.DataFrame:
        """Return the fixed-effects network's probability of every label for every cell, N x K.

        Raises
        ------
        ScmedleyError
            There is no label head, because the model was made without ``label_key``.
        """
        return (self.random if self.fixed is None else self.fixed).predict(adata)

    def transfer(
        self,
        adata: Cells,
        *,
        reference: AnnData | None = None,
        label_key: str | None = None,
        least_probability: float = LEAST_PROBABILITY,
        most_novelty: float = MOST_NOVELTY,
    ) -> pd.DataFrame:
        """Return labels, mapping confidence and novelty of new cells: ``Model.transfer`` of the fixed part.

        Raises
        ------
        ScmedleyError
            An embedding of your own replaces the fixed-effects network; or as ``Model.transfer``.
        """
        if self.fixed is None:
            raise ScmedleyError(
                f"obsm[{self.fixed_key!r}] replaces the fixed-effects network, which transfer() needs to read new "
                "cells. Fit MixedEffects without fixed=..."
            )
        how: Any = {"least_probability": least_probability, "most_novelty": most_novelty}
        return self.fixed.transfer(adata, reference=reference, label_key=label_key, **how)

    def reconstruct(self, adata: Cells, *, unknown: str = "error") -> AnnData:
        """Return the reconstruction of every cell with the effects of its own batch (log1p CP10k).

        ``X`` is from the fixed-effects network and ``layers["random"]`` from the random-effects network. With
        an embedding of your own, ``X`` is from the random-effects network.
        """
        reading = self.read(adata)
        random = self.random.reconstruct(reading, unknown=unknown)
        if self.fixed is None:
            return random
        fixed = self.fixed.reconstruct(reading)
        fixed.layers["random"] = random[:, fixed.var_names].X
        return fixed

    @property
    def decoder(self) -> Model[Any]:
        """The network that counterfactuals come from.

        By default this is the fixed-effects network: its latent is trained to be free of the batch, and the
        batch is modelled by random effects in the decoder. In the ``paper`` preset and with an embedding of
        your own it is the random-effects network, whose latent holds the batch.
        """
        return self.fixed if self.fixed is not None and self.fixed.has_effects else self.random

    def decoder_of(self, to: object) -> Model[Any]:
        """Return the network that predicts these targets: :attr:`decoder`, or the random effects for kept columns."""
        targets = named_targets(to)
        kept = any(isinstance(target, dict) and set(target) & set(self.keep) for target in targets)
        return self.random if kept else self.decoder

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the intervals of the decoder; ``None`` if it was not learnt."""
        return self.decoder.calibration

    @property
    def reference(self) -> Reference | None:
        """Training cells that :meth:`transfer` compares new cells with; ``None`` without a fixed-effects network."""
        return None if self.fixed is None else self.fixed.reference

    def counterfactual(
        self,
        adata: Cells,
        to: Target | Sequence[Target],
        *,
        draws: int = 0,
        seed: int = 0,
        unknown: str = "error",
        out: str | Path | None = None,
    ) -> AnnData | Path:
        """Predict cells as if from other batches: ``Model.counterfactual`` of :attr:`decoder`.

        A target that names a column of ``keep`` is of the random effects, with a warning: their latent holds most of
        what the column does, so the predicted change is far too small.
        """
        network = self.decoder_of(to)
        if self.keep and network is self.random:
            warn(KEPT.format(columns=listed(self.keep)))
        return network.counterfactual(adata, to, draws=draws, seed=seed, unknown=unknown, out=out)

    def adapt(self, adata: Cells, *, steps: int = 200, seed: int = 0, threads: int | None = None) -> Self:
        """Learn the effects of batches that the model does not know, in both networks. See ``Model.adapt``.

        Returns a new model; this one is not changed. A fixed part without batch effects (the ``paper`` preset
        or an embedding of your own) stays the same.
        """
        extended = copy.copy(self)
        how: Any = {"steps": steps, "seed": seed, "threads": threads}
        extended.random = self.random.adapt(adata, **how)
        if (
            self.fixed is not None
            and self.fixed.has_effects
            and (not self.keep or _is_new(self.fixed, adata))
        ):
            extended.fixed = self.fixed.adapt(adata, **how)
        return extended

    def save(self, folder: str | Path) -> None:
        """Write both networks to ``folder``; on an error nothing is written."""
        with replacing_model(folder) as temporary:
            for name, model in self.networks().items():
                (temporary / name).mkdir()
                write(model, temporary / name)
            names = ("batch_key", "label_key", "preset", "fixed_key")
            about = {"class": type(self).__name__} | {name: getattr(self, name) for name in names}
            if self.factors.formula:
                about |= {"formula": self.factors.formula, "keep": self.keep}
            (temporary / DESCRIPTION).write_text(json.dumps(about, indent=1))

    def given(self, adata: Cells) -> np.ndarray:
        """Return the embedding that replaces the fixed-effects network, or raise if it is missing."""
        if not isinstance(adata, AnnData):
            raise ScmedleyError(
                f"The fixed part is obsm[{self.fixed_key!r}]. Pass the AnnData that holds it."
            )
        if self.fixed_key not in adata.obsm:
            raise ScmedleyError(
                f"The fixed part, obsm[{self.fixed_key!r}], is missing. obsm has {list(adata.obsm)}. Store it there, "
                "or fit with another fixed=..."
            )
        z_NP = np.asarray(adata.obsm[self.fixed_key])
        if z_NP.ndim == 2 and z_NP.dtype.kind in "iuf":
            with np.errstate(over="ignore"):  # values beyond float32 become infinite and raise below
                z_NP = z_NP.astype(np.float32)
            if np.isfinite(z_NP).all():
                return z_NP
        raise ScmedleyError(
            f"The fixed part, obsm[{self.fixed_key!r}], is not a dense matrix of finite numbers. Correct it, or remove "
            "the cells with other values."
        )


def _is_new(model: Model[Any], adata: Cells) -> bool:
    """Return whether cells are of batches that a network does not know, which may lack a column that is kept."""
    return model.design.extended(adata.obs).n_batches > model.design.n_batches
