"""What every model does: fit, embed, reconstruct, save. One level of inheritance, and this is it.

Shapes: N cells, G genes of the model, P latent dimensions, B batches.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley import keys
from scmedley.data.design import POPULATION_MEAN, Design, Labels, check_unknown
from scmedley.data.gene_names import GeneNames
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Cells, Reader, Reading
from scmedley.data.scale import MinMax
from scmedley.device import engine, modes, resolve_device, resolve_precision
from scmedley.errors import ScmedleyError, check_seed
from scmedley.keys import ValueKind
from scmedley.models import calibrate
from scmedley.models.adapt import adapted
from scmedley.models.interval import Calibration
from scmedley.models.settings import Settings
from scmedley.pp.prepared import read_prepared
from scmedley.pp.split import check_split
from scmedley.train import loop

S = TypeVar("S", bound=Settings)

CHUNK = 4096  # cells that go through a fitted network at one time


class Model(Generic[S]):
    """A network together with its reader (genes, scale) and its design (batches).

    Cells are an AnnData, or a :class:`~scmedley.data.reader.Reading` of it (:meth:`read`), which several calls and
    several models with the same genes share.

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
    reader: Reader
    design: Design
    labels: Labels | None
    history: pd.DataFrame
    fitted: dict[str, Any]
    device: torch.device = torch.device("cpu")  # where a fitted network is, that of the fit
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
        adata: Cells,
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
            reading = read_prepared(adata, self.batch_key, self.label_key, seed)
            self._learn(reading)
            part = reading.obs[keys.SPLIT].to_numpy()
            y_N = self._label_codes(reading.obs)
            cells = reading.resident(self.design.codes(reading.obs), on, y_N)
            train, validation = (
                torch.as_tensor(np.flatnonzero(part == p), device=on) for p in ("train", "validation")
            )
            self._build(on)
            plan = loop.Plan(
                **self.settings.sizes(len(train))._asdict(),
                settling_steps=self.settings.settling_steps,
                precision=precision,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                fingerprint=self._fingerprint(reading, y_N, part, seed, precision),
                label=f"{type(self).__name__} by {self.batch_key}",
                progress=progress,
            )
            try:
                done = loop.fit(self.network, cells, train, validation, plan)
            except BaseException:
                self.network = None  # half trained is not fitted
                raise
            self.device = on
            self.calibration = self._calibrated(reading, seed)
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

    def train(self, adata: Cells, **options: Any) -> Self:
        """Fit: scvi-tools' name for :meth:`fit`, with the same options."""
        return self.fit(adata, **options)

    def embed(self, adata: AnnData, *, unknown: str = "error", reading: Reading | None = None) -> None:
        """Store the latent of every cell in ``obsm`` (N x P, float32).

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        unknown
            What to do with cells of a batch that a random-effects network does not know: ``"error"``, or
            ``"mean"`` for the population mean.
        reading
            The same cells, if they were read already.
        """
        z_NP = self.get_latent_representation(reading or adata, unknown=unknown)
        ensure_not_view(adata)
        adata.obsm[self.key] = z_NP

    def get_latent_representation(
        self, adata: Cells, *, unknown: str = "error", mask_batch: bool = False
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

    def predict(self, adata: Cells) -> pd.DataFrame:
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
        obs = adata.obs
        return pd.DataFrame(p_NK, index=obs.index, columns=list(self.labels.names))

    def reconstruct(self, adata: Cells, *, unknown: str = "error") -> AnnData:
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
        adata: Cells,
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

    @property
    def gene_names(self) -> GeneNames:
        """The model's genes, with ids and symbols where they are known."""
        return self.reader.genes

    @property
    def genes(self) -> list[str]:
        """Names of the model's genes."""
        return list(self.reader.genes.names)

    @property
    def scale(self) -> MinMax:
        """How values are scaled for the network."""
        return self.reader.scale

    @modes(grad=False)
    def read(self, adata: Cells, *, values: ValueKind = "auto") -> Reading:
        """Read any cells as this model does: genes aligned by name, values checked and scaled.

        Every verb takes the result in place of the AnnData, so that the same cells are read once. A model with the
        same genes and scale, such as the other network of :class:`MixedEffects`, takes it too.

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        values
            What the values are, where the evidence should not decide, as in :func:`scmedley.pp.prepare`.

        Raises
        ------
        ScmedleyError
            The model is not fitted, more than a fifth of its genes are missing, or values cannot be used.
        """
        self.check_fitted()
        return self.reader.read(adata, values)

    def var(self) -> pd.DataFrame:
        """Give a table of the model's genes for a new AnnData, with symbols where names are ids."""
        symbols = self.gene_names.symbols_beside
        columns = {} if symbols is None else {"gene_symbols": list(symbols)}
        return pd.DataFrame(columns, index=self.genes)

    def check_fitted(self) -> None:
        """Say so if there is nothing to use yet."""
        if self.network is None:
            raise ScmedleyError(f"This {type(self).__name__} is not fitted. Call fit(adata) or load one.")

    def _learn(self, reading: Reading) -> None:
        """Learn batches and labels from the cells of the fit."""
        obs = reading.obs
        self.reader, self.design = reading.reader, Design.of(obs, self.batch_key)
        check_split(obs)
        in_training = (obs[keys.SPLIT] == "train").to_numpy()
        trained = set(self.design.codes(obs)[in_training])
        for code, name in enumerate(self.design.batches):
            if code not in trained:
                raise ScmedleyError(
                    f"Batch {name!r} has no training cell in obs[{keys.SPLIT!r}]. Give it one, or remove the batch."
                )
        self.labels = None if self.label_key is None else Labels.of(obs[in_training], self.label_key)

    def _calibrated(self, reading: Reading, seed: int) -> Calibration | None:
        """Learn the width of intervals, within the labels that the model or ``prepare`` knows."""
        if not self.has_effects:
            return None
        named = self.label_key or reading.label_key
        return calibrate.learn(self, reading, reading.obs.get(named), seed)

    def _label_codes(self, obs: pd.DataFrame) -> np.ndarray | None:
        """Give the codes of the labels that training and validation may see, -1 for all others."""
        if self.labels is None:
            return None
        seen = obs[keys.SPLIT].isin(["train", "validation"])
        return np.where(seen, self.labels.codes(obs), -1)

    def _fingerprint(
        self, reading: Reading, y_N: np.ndarray | None, part: np.ndarray, seed: int, precision: str
    ) -> str:
        """Return in short what is fitted to what; two fits that differ in it give different results."""
        labels = None if y_N is None else y_N.tolist()
        codes = self.design.codes(reading.obs).tolist()
        what = (
            *(
                type(self).__name__,
                self.settings,
                self.genes,
                self.design,
                self.labels,
                list(part),
                seed,
                precision,
            ),
            *(reading.digest, codes, labels),
        )
        digest = hashlib.sha256(repr(what).encode())
        for array in (self.scale.minimum_G, self.scale.span_G):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _build(self, device: torch.device | str = "cpu") -> None:
        n_trained = self.design.n_batches - self.design.n_adapted
        sizes = {"n_labels": len(self.labels.names)} if self.labels else {}
        network = self.network_type(len(self.genes), n_trained, self.settings, **sizes)
        self.network = network.to(device)

    @modes(grad=False)
    def _through(
        self,
        adata: Cells,
        unknown: str,
        step: Callable[[Tensor, Tensor], Tensor],
        mask_batch: bool = False,
    ) -> np.ndarray:
        """Send all cells through ``step(x_NG, b_N)`` in chunks, in float32, and join what comes out.

        A backed file is never whole in memory.
        """
        check_unknown(unknown)
        self.check_fitted()
        known = unknown if self.needs_batch else POPULATION_MEAN
        parts = []
        for reading in [self.read(adata)] if isinstance(adata, Reading) else self.reader.blocks(adata):
            if mask_batch:
                codes = np.full(reading.n_cells, -1, dtype=np.int64)
            else:
                codes = self.design.known_codes(reading.obs, known)
            cells = reading.resident(codes, self.device)
            for minibatch in cells.minibatches(torch.arange(cells.n_cells, device=self.device), CHUNK):
                parts.append(step(minibatch.x_NG, minibatch.b_N).cpu().numpy())
        return np.concatenate(parts)


def described(model: Any, network: Model[Any]) -> str:
    """Give one line on ``model``, which is, or holds, ``network``: class, keys, whether fitted, and to what."""
    label = "" if model.label_key is None else f", label_key={model.label_key!r}"
    to = "not fitted"
    if network.network is not None:
        to = f"fitted to {network.design.n_batches} batches, {len(network.genes)} genes"
    return f"{type(model).__name__}(batch_key={model.batch_key!r}{label}): {to}"
