"""What every model does: fit, embed, reconstruct, save. One level of inheritance, and this is it.

Shapes: N cells, G genes of the model, P latent dimensions, B batches.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from scmedley import keys
from scmedley.data.design import POPULATION_MEAN, Design, Labels, check_unknown
from scmedley.data.differences import difference_of_prepared, differences, trained_on
from scmedley.data.gene_names import GeneNames, why_missing
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import log_normalised, read_log_normalised
from scmedley.data.resident import Resident
from scmedley.data.scale import MinMax
from scmedley.device import engine, modes, resolve_device, resolve_precision
from scmedley.errors import ScmedleyError, ScmedleyWarning, check_seed
from scmedley.models import calibrate
from scmedley.models.adapt import adapted
from scmedley.models.interval import Calibration
from scmedley.models.settings import Settings
from scmedley.pp.split import store_split
from scmedley.train import loop

S = TypeVar("S", bound=Settings)

CHUNK = 4096  # cells that go through a fitted network at one time
MAX_MISSING = 0.2  # share of the model's genes that new data may lack


class Model(Generic[S]):
    """A network together with what it needs to read AnnData: genes, scaling, batches.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches.
    label_key
        ``obs`` column of labels to learn (:class:`Autoencoder`, :class:`FixedEffects`): a label head on the
        latent is trained with those of the training cells. Cells without a label train the rest. ``None``:
        the network sees no label.
    settings
        A preset's name, ``"default"`` or ``"paper"``, or settings
        (``FixedEffects.preset("default").replace(n_latent=10)``).

    Attributes
    ----------
    history
        Tidy table of the fit: epoch, part, term, value, weight (in the total; 0 if the term is recorded only).
    fitted
        Epochs, best epoch and why training stopped.
    calibration
        How wide its intervals are (:mod:`scmedley.models.interval`); ``None`` without batch effects or with too few
        validation cells to learn it from.
    """

    key: ClassVar[str]
    needs_batch: ClassVar[bool] = False
    has_label_head: ClassVar[bool] = True  # can have
    settings_type: ClassVar[type[Settings]]
    network_type: ClassVar[type]

    network: Any
    design: Design
    labels: Labels | None
    genes: list[str]
    gene_names: GeneNames  # the same genes, with ids and symbols
    scale: MinMax
    history: pd.DataFrame
    fitted: dict[str, Any]
    trained_on: dict[str, Any] | None = None  # what the training cells' values were; None in old models
    calibration: Calibration | None = None

    def __init__(self, batch_key: str, label_key: str | None = None, settings: str | S = "default"):
        self.batch_key = batch_key
        self.label_key = label_key
        if label_key is not None and not self.has_label_head:
            raise ScmedleyError(
                f"{type(self).__name__} learns no labels, so it takes no label_key. Give it to FixedEffects, "
                "MixedEffects or Autoencoder; a split by label is made by sm.pp.prepare(adata, label_key=...)."
            )
        labelled = label_key is not None
        self.settings: S = self.preset(settings, labelled) if isinstance(settings, str) else settings
        if not isinstance(self.settings, self.settings_type):
            raise ScmedleyError(
                f"{type(self).__name__} takes {self.settings_type.__name__}, not {type(settings).__name__}."
            )
        self.network = None

    def __repr__(self) -> str:
        """Say what it is and what it was fitted to."""
        return described(self, self)

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> S:
        """Give the settings of a preset; ``labelled`` for a network with a label head."""
        raise NotImplementedError

    def fit(
        self,
        adata: AnnData,
        *,
        seed: int = 0,
        threads: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Fit to prepared data (:func:`scmedley.pp.prepare`).

        Training cells are those with ``obs["scmedley_split"] == "train"``; without that column one is
        made (70 % train, 10 % validation, 20 % test) and stored.

        Parameters
        ----------
        adata
            Cells x genes; the genes flagged highly variable are used.
        seed
            The same seed, threads and CPU give the same bits.
        threads
            CPU threads; ``None`` leaves torch's setting.
        precision
            ``"auto"``, ``"float32"`` or ``"bfloat16"`` (mixed: weights and losses stay float32).
        device
            ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        checkpoint
            File to which training is saved every few seconds and from which it goes on if it is there.
        progress
            Whether to show a progress bar.

        Raises
        ------
        ScmedleyError
            Data that are not prepared, a batch column that is missing, too few cells, a loss that is
            not finite, a device that is not there.
        """
        self.network = None
        check_seed(seed)
        on = resolve_device(device)
        precision = resolve_precision(precision, on)
        with engine(threads, on):
            torch.manual_seed(seed)
            x_NG = self._learn_reading(adata, seed)
            part = adata.obs[keys.SPLIT].to_numpy()
            y_N = self._label_codes(adata.obs)
            cells = Resident(x_NG, self.design.codes(adata.obs), on, y_N)
            train, validation = (
                torch.as_tensor(np.flatnonzero(part == p), device=on) for p in ("train", "validation")
            )
            self._build(on)
            plan = loop.Plan(
                **self.settings.sizes(len(train))._asdict(),
                settling_steps=self.settings.settling_steps,
                precision=precision,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                fingerprint=self._fingerprint(x_NG, cells.b_N.cpu().numpy(), y_N, part, seed, precision),
                label=f"{type(self).__name__} by {self.batch_key}",
                progress=progress,
            )
            try:
                done = loop.fit(self.network, cells, train, validation, plan)
            except BaseException:
                self.network = None  # half trained is not fitted
                raise
            self.network.to("cpu")
            self.calibration = self._calibrated(adata, x_NG, seed)
        self.history = done.history()
        self.fitted = {
            "epochs": done.epoch,
            "best_epoch": done.best_epoch,
            "stopped": done.stopped,
            "seed": seed,
            "precision": precision,
            "device": on.type,
        }
        return self

    def train(self, adata: AnnData, **options: Any) -> Self:
        """Fit: scvi-tools' name for :meth:`fit`, with the same options."""
        return self.fit(adata, **options)

    def embed(self, adata: AnnData, *, unknown: str = "error") -> None:
        """Store the latent of every cell in ``obsm`` (N x P, float32).

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        unknown
            What to do with cells of a batch that a random-effects network does not know: ``"error"``, or
            ``"mean"`` for the population mean.
        """
        z_NP = self.get_latent_representation(adata, unknown=unknown)
        ensure_not_view(adata)
        adata.obsm[self.key] = z_NP

    def get_latent_representation(
        self, adata: AnnData, *, unknown: str = "error", mask_batch: bool = False
    ) -> np.ndarray:
        """Return the latent of every cell, N x P float32, and store nothing.

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        unknown
            As in :meth:`embed`.
        mask_batch
            Encode every cell without its batch, as a random-effects network does with ``masked_share`` of its training
            cells: what such a latent holds of the batch was found in the expression, not told. An encoder that never
            sees the batch gives the same latent either way.
        """
        return self._through(adata, unknown, lambda x, b: self.network.encode(x, b), mask_batch)

    def predict(self, adata: AnnData) -> pd.DataFrame:
        """Give the probability of every label for every cell, N x K: rows are cells, columns labels.

        Raises
        ------
        ScmedleyError
            The model has no label head, as it was made without ``label_key``.
        """
        self.check_fitted()
        if self.labels is None:
            can = "was made without label_key" if self.has_label_head else "learns no labels"
            raise ScmedleyError(
                f"This {type(self).__name__} {can}, so it predicts none. Fit FixedEffects, MixedEffects or "
                "Autoencoder with label_key=..."
            )

        def predict(x: Tensor, b: Tensor) -> Tensor:
            logits: Tensor = self.network.label_head(self.network.encode(x, b))
            return logits.softmax(dim=1)

        p_NK = self._through(adata, POPULATION_MEAN, predict)
        return pd.DataFrame(p_NK, index=adata.obs_names, columns=list(self.labels.names))

    def reconstruct(self, adata: AnnData, *, unknown: str = "error") -> AnnData:
        """Give the reconstruction of every cell with its own batch's effects, as a new AnnData.

        ``X`` is N x G in log1p CP10k. Cells of unknown batches are decoded with the population mean
        where the encoder does not need the batch.
        """

        def decode(x: Tensor, b: Tensor) -> Tensor:
            xhat: Tensor = self.network.decode(self.network.encode(x, b), b)
            return xhat

        values = self.scale.inverse(self._through(adata, unknown, decode))
        return AnnData(values, obs=adata.obs.copy(), var=self.var())

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``weights.safetensors`` to ``folder``, all or nothing."""
        from scmedley.models.store import save

        save(self, folder)

    def counterfactual(
        self,
        adata: AnnData,
        to: str | Sequence[str],
        *,
        draws: int = 0,
        seed: int = 0,
        unknown: str = "error",
        out: str | Path | None = None,
    ) -> AnnData | Path:
        """Show cells as if they had come from other batches.

        Parameters
        ----------
        adata
            N cells, with their batch.
        to
            A batch, several, or ``"mean"`` for the population mean (all batch effects zero).
        draws
            Posterior draws of the effects, for intervals from 5 % to 95 %; 0 for the posterior mean alone.
        seed
            Seed of the draws: equal seeds give equal draws.
        unknown
            What to do with cells of batches that the model does not know: ``"error"`` or ``"mean"``.
        out
            A path ending in ``.zarr``, to write a large result to disk chunk by chunk.

        Returns
        -------
        AnnData or Path
            N x targets rows, target after target, by G genes. ``X``: expression in the target batch,
            log1p CP10k. ``layers["difference"]``: that minus the reconstruction in the own batch. With
            draws also ``X_q05``, ``X_q95``, ``difference_q05``, ``difference_q95``. ``obs`` gains
            ``counterfactual_batch``. Or the path, with ``out``.

        Raises
        ------
        ScmedleyError
            The decoder has no batch effects; an unknown target or batch; a result over 2 GB without ``out``.
        """
        from scmedley.models.counterfactual import counterfactual

        return counterfactual(self, adata, to, draws=draws, seed=seed, unknown=unknown, out=out)

    def adapt(self, adata: AnnData, *, steps: int = 200, seed: int = 0, threads: int | None = None) -> Self:
        """Learn the effects of batches that the model does not know, and nothing else.

        Every effect table gets a row for each new batch, which starts at the prior, around no effect: the
        population mean. ``steps`` minibatches move these rows alone, towards less lambda_MSE * MSE + lambda_KL *
        KL(q(U) || p(U)), weighed as if the new cells had been among the training cells. Weights, BatchNorm, priors
        and the rows of known batches stay as they are, bit for bit. Only expression and batch of the new cells are
        read, never a label.

        The batch head and the adversary are not extended: they act in training only.

        Parameters
        ----------
        adata
            Cells of new batches; cells of known batches may be among them and are left out.
        steps
            Minibatches to learn from.
        seed
            Of minibatches and posterior draws: the same seed, threads and CPU give the same bits.
        threads
            CPU threads; ``None`` leaves torch's setting.

        Returns
        -------
        Model
            A new fitted model of the same class that knows the old and the new batches. This one is not changed.

        Raises
        ------
        ScmedleyError
            The decoder has no batch effects, the model is not fitted, ``obs`` lacks the batch, or there is no new
            batch.

        See Also
        --------
        get_latent_representation : ``unknown="mean"`` embeds such cells with the population mean instead.
        """
        return adapted(self, adata, steps=steps, seed=seed, threads=threads)

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has effects of the batch: what counterfactuals and ``adapt`` need."""
        return self.needs_batch or bool(getattr(self.settings, "decoder_effects", False))

    def check_effects(self, verb: str) -> None:
        """Raise if the decoder has no batch effects, which ``verb`` needs."""
        if not self.has_effects:
            raise ScmedleyError(
                f"This {type(self).__name__} has no batch effects in its decoder, which {verb}() needs. Fit "
                "MixedEffects or RandomEffects, or FixedEffects with decoder_effects=True in its settings (so it is in "
                "the default preset)."
            )

    @modes(grad=False)
    def read(self, adata: AnnData) -> sparse.csr_matrix | np.ndarray:
        """Give the scaled input x_NG of any cells, genes aligned by name.

        Raises
        ------
        ScmedleyError
            The model is not fitted, or more than a fifth of its genes are missing.
        """
        self.check_fitted()
        if adata.n_obs == 0:
            raise ScmedleyError("There are no cells here. Look at the step that chose them.")
        expected = None if self.trained_on is None else self.trained_on.get("kind")
        x_NG, place_G, found, n_counted = read_log_normalised(adata, self.gene_names, expected=expected)
        missing = np.flatnonzero(place_G < 0)
        n_missing = len(missing)
        if n_missing > MAX_MISSING * len(self.genes):
            absent = [self.genes[i] for i in missing[:3]]
            hint = why_missing(self.gene_names, GeneNames.of(adata.var), adata.obs_names)
            raise ScmedleyError(
                f"{n_missing} of the model's {len(self.genes)} genes are missing (for example "
                f"{', '.join(absent)}); at most {MAX_MISSING:.0%} may be. Genes here are called like "
                f"{', '.join(map(str, adata.var_names[:2]))}. {hint}"
            )
        if n_missing:
            message = f"{n_missing} of the model's {len(self.genes)} genes are missing here and taken as 0."
            warnings.warn(message, ScmedleyWarning, stacklevel=2)
        said = difference_of_prepared(self.trained_on, adata)
        if found is not None:
            said = differences(self.trained_on, found, x_NG, n_counted)
        for message in said:
            warnings.warn(message, ScmedleyWarning, stacklevel=2)
        n_empty = adata.n_obs - len(np.unique(x_NG.nonzero()[0]))
        if n_empty:
            message = f"{n_empty} cells have no value above 0 in any of the model's genes."
            warnings.warn(message, ScmedleyWarning, stacklevel=2)
        return self.scale.transform(x_NG)

    def var(self) -> pd.DataFrame:
        """Give a table of the model's genes for a new AnnData, with symbols where names are ids."""
        symbols = self.gene_names.symbols_beside
        columns = {} if symbols is None else {"gene_symbols": list(symbols)}
        return pd.DataFrame(columns, index=self.genes)

    def check_fitted(self) -> None:
        """Say so if there is nothing to use yet."""
        if self.network is None:
            raise ScmedleyError(f"This {type(self).__name__} is not fitted. Call fit(adata) or load one.")

    def _learn_reading(self, adata: AnnData, seed: int) -> sparse.csr_matrix | np.ndarray:
        """Learn genes, batches and scaling from prepared data; give the scaled input."""
        if keys.LOGNORM not in adata.layers or keys.HVG not in adata.var:
            raise ScmedleyError(
                f"adata is not prepared (no layers[{keys.LOGNORM!r}]). Run "
                f"sm.pp.prepare(adata, batch_key={self.batch_key!r}) first."
            )
        self.design = Design.of(adata.obs, self.batch_key)
        if self.design.n_batches < 2:
            raise ScmedleyError(f"obs[{self.batch_key!r}] has one batch; there is nothing to tell apart.")
        ensure_not_view(adata)
        store_split(adata, self.batch_key, self.label_key, seed)
        check_split(adata)
        trained = set(self.design.codes(adata.obs)[(adata.obs[keys.SPLIT] == "train").to_numpy()])
        for code, name in enumerate(self.design.batches):
            if code not in trained:
                raise ScmedleyError(
                    f"Batch {name!r} has no training cell in obs[{keys.SPLIT!r}]. Give it one, or remove the batch."
                )
        if self.label_key is None:
            self.labels = None
        else:
            self.labels = Labels.of(adata.obs[adata.obs[keys.SPLIT] == "train"], self.label_key)
        chosen = np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool))
        self.gene_names = GeneNames.of(adata.var).take(chosen)
        self.genes = list(self.gene_names.names)
        if not self.genes:
            raise ScmedleyError(f"No gene is flagged in var[{keys.HVG!r}]. Run sm.pp.prepare again.")
        x_NG, _ = log_normalised(adata, self.genes)
        self.trained_on = trained_on(adata, x_NG)
        self.scale = MinMax.fit(x_NG[np.flatnonzero(adata.obs[keys.SPLIT] == "train")])
        return self.scale.transform(x_NG)

    def _calibrated(
        self, adata: AnnData, x_NG: sparse.csr_matrix | np.ndarray, seed: int
    ) -> Calibration | None:
        """Learn the width of intervals, within the labels that the model or ``prepare`` was told of."""
        if not self.has_effects:
            return None
        prepared = adata.uns.get(keys.UNS)
        named = self.label_key or (prepared.get("label_key") if isinstance(prepared, dict) else None)
        label = adata.obs.get(named)
        codes, part_N = self.design.codes(adata.obs), adata.obs[keys.SPLIT].to_numpy()
        return calibrate.learn(self, x_NG, codes, label, part_N, seed)

    def _label_codes(self, obs: pd.DataFrame) -> np.ndarray | None:
        """Give the codes of the labels that training and validation may see, -1 for all others."""
        if self.labels is None:
            return None
        seen = obs[keys.SPLIT].isin(["train", "validation"])
        return np.where(seen, self.labels.codes(obs), -1)

    def _fingerprint(
        self,
        x_NG: sparse.csr_matrix | np.ndarray,
        b_N: np.ndarray,
        y_N: np.ndarray | None,
        part: np.ndarray,
        seed: int,
        precision: str,
    ) -> str:
        """Say in short what is fitted to what; two fits that differ in it give different results."""
        what = (
            type(self).__name__,
            self.settings,
            self.genes,
            self.design,
            self.labels,
            list(part),
            seed,
            precision,
        )
        digest = hashlib.sha256(repr(what).encode())
        x_arrays = (x_NG,) if isinstance(x_NG, np.ndarray) else (x_NG.data, x_NG.indices, x_NG.indptr)
        y_arrays = () if y_N is None else (y_N,)
        for array in (b_N, *y_arrays, *x_arrays, self.scale.minimum_G, self.scale.span_G):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _build(self, device: torch.device | str = "cpu") -> None:
        n_trained = self.design.n_batches - self.design.n_adapted
        sizes = {"n_labels": len(self.labels.names)} if self.labels else {}
        network = self.network_type(len(self.genes), n_trained, self.settings, **sizes)
        self.network = network.to(device)

    @modes(grad=False)
    def _through(self, adata: AnnData, unknown: str, step: Any, mask_batch: bool = False) -> np.ndarray:
        """Send all cells through ``step(x_NG, b_N)`` in chunks, in float32, and join what comes out."""
        check_unknown(unknown)
        x_NG = self.read(adata)
        if mask_batch:
            codes = np.full(adata.n_obs, -1, dtype=np.int64)
        else:
            codes = self.design.known_codes(adata.obs, unknown if self.needs_batch else POPULATION_MEAN)
        cells = Resident(x_NG, codes, torch.device("cpu"))
        parts = cells.minibatches(torch.arange(cells.n_cells), CHUNK)
        return np.concatenate([step(m.x_NG, m.b_N).numpy() for m in parts])


def described(model: Any, network: Model[Any]) -> str:
    """Give one line on ``model``, which is, or holds, ``network``: class, keys, whether fitted, and to what."""
    label = "" if model.label_key is None else f", label_key={model.label_key!r}"
    to = "not fitted"
    if network.network is not None:
        to = f"fitted to {network.design.n_batches} batches, {len(network.genes)} genes"
    return f"{type(model).__name__}(batch_key={model.batch_key!r}{label}): {to}"


def check_split(adata: AnnData) -> None:
    """Say so if a part that training needs has no cells."""
    counts = adata.obs[keys.SPLIT].value_counts()
    for part, least in (("train", 2), ("validation", 1)):
        if counts.get(part, 0) < least:
            raise ScmedleyError(
                f"obs[{keys.SPLIT!r}] has {counts.get(part, 0)} {part!r} cells of {adata.n_obs}; at least "
                f"{least} are needed. Give more cells or batches of more cells (each batch trains on its first), or a "
                "split of your own in that column."
            )
