"""The base class of all models: fit, embed, reconstruct, save.

Shapes: N cells, G genes of the model, P latent dimensions, B batches.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley.clusters import Clusters
from scmedley.data.design import POPULATION_MEAN, Design, Labels, check_unknown
from scmedley.data.factors import Factors
from scmedley.data.gene_names import GeneNames
from scmedley.data.inplace import check_is_adata, ensure_not_view
from scmedley.data.reader import LARGEST, Cells, Reader, Reading
from scmedley.data.scale import Scale
from scmedley.device import modes
from scmedley.errors import ScmedleyError
from scmedley.keys import Reads, ValueKind
from scmedley.models import fitting
from scmedley.models.adapt import adapted, seeing
from scmedley.models.counterfactual import counterfactual
from scmedley.models.interval import Calibration
from scmedley.models.network import built, check_class, network_type
from scmedley.models.reference import Reference
from scmedley.models.settings import Settings
from scmedley.models.transfer import transfer

S = TypeVar("S", bound=Settings)
Step = Callable[[Any, Tensor, Tensor], Tensor]


class Model(Generic[S]):
    """A network together with its reader (genes), its scale and its design (batches).

    Methods take cells as an AnnData or as its :class:`~scmedley.data.reader.Reading` (:meth:`read`). Several
    calls, and several models with the same genes, can share one reading.

    Parameters
    ----------
    batch_key
        ``obs`` column of the batches; ``None`` (:class:`VAE` alone): the batch is not used. Or a formula of several
        factors, as in lme4: ``"~ condition + (1 | study/donor)"`` (docs/designs.md).
    label_key
        ``obs`` column of labels to learn (:class:`Autoencoder`, :class:`FixedEffects`). A label head on the
        latent is trained on the labelled training cells; cells without a label train all other parts.
        ``None``: no label is used.
    settings
        Name of a preset, ``"default"`` or ``"paper"``, or a settings object
        (``FixedEffects.preset("default").replace(n_latent=10)``).
    nested_in
        Instead of a formula: column that the batches belong to, such as the study of a donor.
    covariates
        Instead of a formula: columns with effects of their own, such as condition or age.
    slopes
        Those of the covariates whose effect differs between batches.
    keep
        Columns of the design whose effects stay in the latent.

    Attributes
    ----------
    history
        Table of the fit: epoch, part, term, value, weight (in the total; 0 if the term is only recorded),
        kept (whether the network has the weights of this epoch).
    fitted
        Number of epochs, the epoch that was kept (``best_epoch``), whether that is the ``"best"`` one or always
        the ``"last"`` one (``keep``), the reason why training stopped, and options of the fit.
    calibration
        Factor of the intervals; ``None`` without batch effects, or with too few validation cells.
    clusters
        Clusters of the cells of the fit, of a model that finds them (:class:`DeepBID`).
    reference
        Training cells that :meth:`transfer` compares new cells with.
    """

    key: ClassVar[str]
    needs_batch: ClassVar[bool] = False
    has_label_head: ClassVar[bool] = True  # with label_key
    reads: Reads = "log1p"  # "counts": minibatches hold counts and totals too
    networks: ClassVar[Mapping[type[Settings], type]]  # the network of each type of settings

    network: Any
    reader: Reader
    scale: Scale  # learnt on the training cells
    design: Design
    labels: Labels | None
    history: pd.DataFrame
    fitted: dict[str, Any]
    device: torch.device = torch.device("cpu")  # of the fit
    calibration: Calibration | None = None
    reference: Reference | None = None
    clusters: Clusters | None = None

    def __init__(
        self,
        batch_key: str | Factors | None,
        label_key: str | None = None,
        settings: str | S = "default",
        *,
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        keep: Sequence[str] = (),
    ):
        self.factors = Factors.of(batch_key, nested_in, covariates, slopes, keep)
        if settings == "paper":
            self.factors.refuse_paper()
        self.batch_key = self.factors.batch_key
        self.label_key = label_key
        if label_key is not None and not self.has_label_head:
            raise ScmedleyError(
                f"{type(self).__name__} learns no labels, so it takes no label_key. Use FixedEffects, MixedEffects or "
                "Autoencoder to learn labels. To split cells by label, use sm.pp.prepare(adata, label_key=...)."
            )
        check_class(self)
        labelled = label_key is not None
        self.settings: S = self.preset(settings, labelled) if isinstance(settings, str) else settings
        network_type(self)  # raises for settings of another model
        self.network = None

    def __repr__(self) -> str:
        """Return one line: class, keys and the data of the fit."""
        return described(self, self)

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> S:
        """Return the settings of a preset; ``labelled``: for a network with a label head."""
        raise ScmedleyError(
            f"The class {cls.__name__} has no presets. Add the class method preset(name, labelled), or give settings."
        )

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

        Training cells have ``obs["scmedley_split"] == "train"``. If the column is missing, cells are split
        into 70 % train, 10 % validation and 20 % test, and the column is stored.

        Parameters
        ----------
        adata
            Cells x genes; the highly variable genes are used.
        seed
            Random seed. The same seed, threads and CPU give identical results, bit for bit.
        threads
            CPU threads. ``None``: as many as the process started with (OMP_NUM_THREADS, or PyTorch's choice).
        precision
            ``"auto"``, ``"float32"`` or ``"bfloat16"`` (mixed: weights and losses stay float32).
        device
            ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        checkpoint
            File in which training is saved every few seconds. If it exists, training resumes from it.
        progress
            Whether to show a progress bar.

        Raises
        ------
        ScmedleyError
            The data are not prepared, the batch column is missing, there are too few cells, a loss is not
            finite, or the device is not available.
        """
        fitting.fit(self, adata, seed, threads, precision, device, checkpoint, progress)
        return self

    def train(self, adata: Cells, **options: Any) -> Self:
        """Fit the model: the name that scvi-tools uses for :meth:`fit`."""
        return self.fit(adata, **options)

    def embed(self, adata: AnnData, *, unknown: str = "error", reading: Reading | None = None) -> None:
        """Store the latent of every cell in ``obsm`` (N x P, float32).

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        unknown
            How a random-effects network treats cells of a batch that it does not know: ``"error"``, or
            ``"mean"`` for the population mean.
        reading
            The same cells, if :meth:`read` has already read them.
        """
        check_is_adata(adata)
        if reading is not None:
            reading.check_same_cells(adata)
        z_NP = self.get_latent_representation(reading or adata, unknown=unknown)
        ensure_not_view(adata)
        adata.obsm[self.key] = z_NP

    def get_latent_representation(
        self, adata: Cells, *, unknown: str = "error", mask_batch: bool = False
    ) -> np.ndarray:
        """Return the latent of every cell (N x P, float32) without storing it.

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        unknown
            As in :meth:`embed`.
        mask_batch
            Encode every cell without its batch, as a random-effects network does with ``masked_share`` of its
            training cells. Batch information in this latent comes from the expression alone. An encoder that
            never uses the batch returns the same latent either way, except for batches that :meth:`adapt` added.
        """
        return self._apply(adata, unknown, lambda network, x, b: network.encode(x, b), mask_batch)

    def predict(self, adata: Cells) -> pd.DataFrame:
        """Return the probability of every label (column) for every cell (row), N x K.

        Raises
        ------
        ScmedleyError
            The model has no label head, because it was made without ``label_key``.
        """
        self.check_fitted()
        if self.labels is None:
            reason = "was made without label_key" if self.has_label_head else "learns no labels"
            raise ScmedleyError(
                f"This {type(self).__name__} {reason}, so it cannot predict labels. Fit FixedEffects, MixedEffects or "
                "Autoencoder with label_key=..."
            )

        def predict(network: Any, x: Tensor, b: Tensor) -> Tensor:
            logits: Tensor = network.label_head(network.encode(x, b))
            return logits.softmax(dim=1)

        p_NK = self._apply(adata, POPULATION_MEAN, predict)
        return pd.DataFrame(p_NK, index=adata.obs.index, columns=list(self.labels.names))

    def reconstruct(self, adata: Cells, *, unknown: str = "error") -> AnnData:
        """Return the reconstruction of every cell with the effects of its own batch, as a new AnnData.

        ``X`` is N x G in log1p CP10k. If the encoder does not need the batch, cells of unknown batches are
        decoded with the population mean.

        Raises
        ------
        ScmedleyError
            The cells are in a store, and the reconstruction of all of them exceeds 2 GB.
        """
        check_size(adata, len(self.genes))
        xhat_NG = self._apply(adata, unknown, lambda network, x, b: network.decode(network.encode(x, b), b))
        return AnnData(self.scale.inverse(xhat_NG), obs=adata.obs.copy(), var=self.var())

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``weights.safetensors`` to ``folder``; on an error nothing is written."""
        from scmedley.models.store import save

        save(self, folder)

    # Methods: their first argument is the model.
    counterfactual = counterfactual
    adapt = adapted
    transfer = transfer

    def denoise(self, *args: Any, **options: Any) -> Any:
        """Raise: only :class:`VAE` has a likelihood of counts."""
        raise self._cannot("denoise", "Use reconstruct(), or fit a VAE")

    def cluster(self, *args: Any, **options: Any) -> Any:
        """Raise: only :class:`DeepBID` has clusters."""
        raise ScmedleyError(
            f"{type(self).__name__} finds no clusters. Fit a DeepBID, or cluster the latent with "
            "sm.evaluate.clusters(adata.obsm[...])."
        )

    def log_likelihood(self, *args: Any, **options: Any) -> Any:
        """Raise: only :class:`VAE` has a likelihood."""
        raise self._cannot("log_likelihood", "Fit a VAE")

    def differential_expression(self, *args: Any, **options: Any) -> Any:
        """Raise: only :class:`VAE` has a likelihood of counts."""
        raise self._cannot("differential_expression", "Fit a VAE")

    def _cannot(self, verb: str, instead: str) -> ScmedleyError:
        return ScmedleyError(f"{type(self).__name__} has no likelihood, which {verb}() needs. {instead}.")

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has batch effects, which counterfactuals and ``adapt`` need."""
        return self.needs_batch

    @property
    def encodes_as_target(self) -> bool:
        """Whether a counterfactual is encoded with the effects of its target, not of the cell's own batch."""
        return False

    def check_effects(self, verb: str) -> None:
        """Raise if the decoder has no batch effects, which ``verb`` needs."""
        if not self.has_effects:
            raise ScmedleyError(
                f"This {type(self).__name__} has no batch effects in its decoder, which {verb}() needs. Fit "
                "MixedEffects or RandomEffects, or FixedEffects or VAE with a batch column and the default preset."
            )

    @property
    def gene_names(self) -> GeneNames:
        """The genes of the model, with identifiers and symbols where they are known."""
        return self.reader.genes

    @property
    def genes(self) -> list[str]:
        """Names of the genes of the model."""
        return list(self.reader.genes.names)

    @modes(grad=False)
    def read(self, adata: Cells, *, values: ValueKind = "auto") -> Reading:
        """Read cells for this model: align genes by name, check the values and normalise them.

        Other methods take the result in place of the AnnData, so that the cells are read once. A model with
        the same genes, such as the other network of :class:`MixedEffects`, takes it too.

        Parameters
        ----------
        adata
            Any cells with (most of) the model's genes, prepared or with counts.
        values
            What the values are, as in :func:`scmedley.pp.prepare`.

        Raises
        ------
        ScmedleyError
            The model is not fitted, more than a fifth of its genes are missing, or the values cannot be used.
        """
        self.check_fitted()
        return self.reader.read(adata, values)

    def var(self) -> pd.DataFrame:
        """Return the ``var`` of a new AnnData: the genes, with symbols where the names are identifiers."""
        return self.gene_names.var()

    def check_fitted(self) -> None:
        """Raise if the model is not fitted."""
        if self.network is None:
            raise ScmedleyError(
                f"This {type(self).__name__} is not fitted. Call fit(adata), or load a fitted model."
            )

    def _build(self, device: torch.device | str = "cpu") -> None:
        self.network = built(self).to(device)

    @modes(grad=False)
    def _apply(self, adata: Cells, unknown: str, step: Step, mask_batch: bool = False) -> np.ndarray:
        """Return ``step(network, x_NG, b_N)`` of all cells, in chunks of float32; read a backed file in blocks.

        Cells with a combination of levels that was never seen have the sum of the effects of these levels.
        """
        check_unknown(unknown)
        self.check_fitted()
        known = unknown if self.needs_batch else POPULATION_MEAN
        parts = []
        for reading in self.reader.blocks(adata):
            codes, network = np.full(reading.n_cells, -1, dtype=np.int64), self.network
            if not mask_batch:
                self.design.known_codes(reading.obs, known)  # raises for those that are not
                model = seeing(self, reading.obs)
                codes, network = model.design.codes(reading.obs), model.network
            cells = reading.resident(codes, self.scale, self.device, counts=False)
            for minibatch in cells.in_order():
                parts.append(step(network, minibatch.x_NG, minibatch.b_N).cpu().numpy())
        return np.concatenate(parts)


def check_size(adata: Cells, n_genes: int) -> None:
    """Raise if dense values of all cells of a store do not fit in memory."""
    size = 4 * len(adata.obs) * n_genes
    if isinstance(adata, Reading) and adata.store is not None and size > LARGEST:
        raise ScmedleyError(
            f"The reconstruction of {len(adata.obs):,} cells x {n_genes:,} genes needs {size / 1e9:.3g} GB. "
            "Reconstruct some of them, reading.take(rows), or write counterfactuals to disk with out=...zarr."
        )


def described(model: Any, network: Model[Any]) -> str:
    """Return one line about ``model``, which is or contains ``network``: class, keys, data of the fit."""
    label = "" if model.label_key is None else f", label_key={model.label_key!r}"
    to = "not fitted"
    if network.network is not None:
        to = f"fitted to {network.design.n_batches} batches, {len(network.genes)} genes"
    factors = model.factors.formula or model.batch_key
    return f"{type(model).__name__}(batch_key={factors!r}{label}): {to}"
