"""The methods of quality.py: what each is fitted on, how it embeds all cells, and the scores of an embedding.

Shapes: N cells, P latent dimensions.
"""

from __future__ import annotations

import hashlib
import importlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import scmedley as sm
from common import BATCH, LABEL, find
from scmedley import keys
from scmedley.evaluate import (
    ari,
    asw,
    batch_leaks,
    bras,
    knn_accuracy,
    lisi,
    nearest,
    nmi,
    scaled_clisi,
    scaled_ilisi,
)
from scmedley.evaluate.lisi import N_NEIGHBORS
from scmedley.interpret import counterfactual_check
from scmedley.peers import PEERS, Peer, embed_peer
from symphony import Way, harmony_mapped

if TYPE_CHECKING:
    from anndata import AnnData

    from scmedley.data.neighbors import Codes, Floats
    from scmedley.models.base import Model

N_COMPONENTS = 50  # of the PCA, and of the latent of rivals that start from it
OWN_LATENT = {"scVI": 10, "scANVI": 10}  # the default of rivals that have one
SCORING = "1"  # part of the names of stored scores: raise it when a score changes
RESOLUTIONS = (0.3, 0.6, 1.0)  # of Leiden; the best counts, for NMI and for ARI, for all methods alike

TRAINING, ALL, RANDOM = "fitted on the training cells", "fitted on all cells", "random effects"
GROUPS = (TRAINING, ALL, RANDOM)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    name
        As in the table.
    all_cells
        Whether it is fitted on the held-out cells too.
    model, preset
        Our class and its preset; empty for others.
    key
        Column of ``obs`` of the batches that it is fitted to and scored by.
    peer
        Name in ``PEERS``; empty for others.
    mapped
        How cells follow that Harmony was not fitted on (:mod:`symphony`); ``None`` for all other methods.
    components
        Principal components that Harmony corrects.
    default
        Whether it is run unless ``--methods`` says otherwise (rivals: with ``--peers``).
    """

    name: str
    all_cells: bool = False
    model: str = ""
    preset: str = "default"
    key: str = BATCH
    peer: str = ""
    mapped: Way | None = None
    components: int = N_COMPONENTS
    default: bool = True

    @property
    def group(self) -> str:
        """Return one of ``GROUPS``; only methods of one group are compared."""
        if self.model == "RandomEffects":
            return RANDOM
        return ALL if self.all_cells else TRAINING

    @property
    def rival(self) -> Peer | None:
        """Return the other package that it needs."""
        return PEERS.get(self.peer)

    @property
    def told_labels(self) -> bool:
        """Return whether it learns from the labels of the training cells."""
        return self.rival is not None and self.rival.labels

    @property
    def n_latent(self) -> int:
        """Return the number of latent dimensions of a rival."""
        return OWN_LATENT.get(self.peer, self.components)

    @property
    def is_null(self) -> bool:
        """Return whether it is fitted to permuted batches."""
        return self.key == keys.PERMUTED

    @property
    def settings(self) -> str | None:
        """Return all that names its results: settings, or the package's version; ``None`` if not installed."""
        what: Any = N_COMPONENTS
        if self.rival is not None:
            if not self.rival.installed:
                return None
            what = (version(self.rival.package), self.n_latent)
        elif self.model:
            what = getattr(sm, self.model).preset(self.preset)
        return short_hash(self.name, self.key, what)


METHODS = {
    method.name: method
    for method in (
        Method("PCA"),
        Method("AE", model="Autoencoder"),
        Method("FE", model="FixedEffects"),
        Method("FE, permuted batches", model="FixedEffects", key=keys.PERMUTED),
        Method("FE, paper", model="FixedEffects", preset="paper"),
        Method("Harmony, applied", peer="Harmony", mapped="applied"),
        # BRAS rises with the number of dimensions: these are as many as ours.
        Method("Harmony, applied, 20 components", peer="Harmony", mapped="applied", components=20),
        Method("Harmony, Symphony", peer="Harmony", mapped="symphony"),
        Method("scVI", peer="scVI"),
        Method("scANVI", peer="scANVI"),
        Method("FE, all cells", True, model="FixedEffects"),
        Method("Harmony, all cells", True, peer="Harmony"),
        Method("Scanorama, all cells", True, peer="Scanorama"),
        Method("scVI, all cells", True, peer="scVI", default=False),
        Method("LIGER, all cells", True, peer="LIGER", default=False),
        Method("BBKNN, all cells", True, peer="BBKNN (diffusion map)", default=False),
        Method("RE", model="RandomEffects"),
        Method("RE, permuted batches", model="RandomEffects", key=keys.PERMUTED),
        Method("RE, all cells", True, model="RandomEffects"),
        Method("RE, paper", model="RandomEffects", preset="paper", default=False),
        Method(
            "RE, paper, permuted batches",
            model="RandomEffects",
            preset="paper",
            key=keys.PERMUTED,
            default=False,
        ),
    )
}


def short_hash(*what: object) -> str:
    """Return eight digits that name settings in the name of a file."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def prepared(name: str, folder: Path | None, seed: int) -> AnnData:
    """Read and prepare a set, with genes and components of the training cells and the null's batches."""
    adata = find(name, folder)
    assert adata is not None  # the caller has looked for the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sets with few genes or cells; `scmedley run` prints them
        sm.pp.prepare(adata, BATCH, label_key=LABEL, seed=seed)
        sm.pp.pca(adata, N_COMPONENTS, seed)
        sm.pp.permute_batches(adata, BATCH, LABEL, seed=seed)
    return adata


def fit(method: Method, adata: AnnData, seed: int, threads: int) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Fit a method, and return its embeddings of all cells and the facts of the fit.

    Returns
    -------
    dict, dict
        ``"z"`` and, of a random-effects network, ``"masked"``: cells encoded without their batch. The facts
        have a ``status``, "done", "failed" or "skipped", and a ``reason`` for the last two.
    """
    if method.all_cells:
        adata = adata.copy()
        part = adata.obs[keys.SPLIT]
        adata.obs[keys.SPLIT] = part.where(part != "test", "train")
    if method.rival is not None:
        if method.rival.counts and keys.COUNTS not in adata.layers:
            return {}, {"status": "skipped", "reason": "models counts, and this set has none"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(method.rival.module)  # its seconds are not part of the fit's
    package = {} if method.rival is None else {"version": version(method.rival.package)}
    started = time.perf_counter(), time.process_time()
    try:
        embeddings, model = _embed(method, adata, seed, threads)
    except sm.ScmedleyError as error:
        reason = str(error).removeprefix(f"{method.peer} failed: ")
        return {}, {"status": "failed", "reason": reason} | package | _seconds(started)
    facts: dict[str, Any] = {"status": "done"} | package | _seconds(started)
    if model is not None:
        facts |= {k: model.fitted[k] for k in ("epochs", "best_epoch", "stopped")}
        if model.has_effects and method.key == BATCH and not method.all_cells:
            facts |= shift_agreement(model, adata, seed)
    return embeddings, facts


def _embed(
    method: Method, adata: AnnData, seed: int, threads: int
) -> tuple[dict[str, Floats], Model[Any] | None]:
    if method.mapped is not None:
        reference_N = (adata.obs[keys.SPLIT] == "train").to_numpy()
        batch_N = adata.obs[BATCH].cat.codes.to_numpy()
        pca_NP = adata.obsm[keys.PCA][:, : method.components]
        return {"z": harmony_mapped(pca_NP, batch_N, reference_N, method.mapped, seed, threads)}, None
    if method.peer:
        options: dict[str, int] = {"n_latent": method.n_latent, "seed": seed, "threads": threads}
        return {"z": embed_peer(method.peer, adata, BATCH, LABEL, **options)}, None
    if not method.model:
        sm.pp.pca(adata, N_COMPONENTS, seed)  # again, for its seconds
        return {"z": np.asarray(adata.obsm[keys.PCA])}, None
    model: Model[Any] = getattr(sm, method.model)(method.key, settings=method.preset)
    model.fit(adata, seed=seed, threads=threads, progress=False)
    embeddings = {"z": model.get_latent_representation(adata)}
    if method.group == RANDOM:
        embeddings["masked"] = model.get_latent_representation(adata, mask_batch=True)
    return embeddings, model


def _seconds(started: tuple[float, float]) -> dict[str, float]:
    wall, cpu = started
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def shift_agreement(model: Model[Any], adata: AnnData, seed: int) -> dict[str, float]:
    """Return the medians over label × batch of predicted against observed shifts of held-out cells."""
    check = counterfactual_check(model, adata, LABEL, seed=seed)
    columns = {
        **{"shift": "pearson", "shift_ceiling": "ceiling_pearson", "shift_baseline": "additive_pearson"},
        **{"shift_r2": "r2_delta", "shift_r2_baseline": "additive_r2_delta", "shift_slope": "slope"},
    }
    return {ours: float(check[theirs].median()) for ours, theirs in columns.items()}


def score(embeddings: dict[str, Floats], adata: AnnData, key: str, seed: int) -> dict[str, float]:
    """Score an embedding on the held-out cells; the training cells are neighbours and train the probes.

    Returns
    -------
    dict
        ``leak`` is the worst of the probes; 0 is chance. ``leak_null_sd`` is its spread by chance. NMI and ARI
        are of Leiden's clusters of the held-out cells, each at the best of ``RESOLUTIONS``.
    """
    z_NP = np.ascontiguousarray(embeddings["z"], dtype=np.float32)
    part = adata.obs[keys.SPLIT].to_numpy()
    train, test = part == "train", part == "test"
    batch_N, label_N = (adata.obs[k].cat.codes.to_numpy() for k in (key, LABEL))
    z_test, batch, label = z_NP[test], batch_N[test], label_N[test]
    near = nearest(z_test, z_test, N_NEIGHBORS, exclude_self=True)
    by_batch, by_label = lisi(near, np.stack([batch, label]))
    with _quiet():
        clusters = leiden(z_test, seed)
    scores = {
        **_leaks(z_NP, batch_N, label_N, train, test, seed),
        "accuracy": knn_accuracy(z_NP[train], label_N[train], z_test, label),
        "bras": bras(z_test, batch, label),
        "ilisi": scaled_ilisi(by_batch, len(np.unique(batch))),
        "clisi": scaled_clisi(by_label, len(np.unique(label))),
        "nmi": max(nmi(found, label) for found in clusters),
        "ari": max(ari(found, label) for found in clusters),
        "asw_batch": asw(z_test, batch, seed),
        "asw_label": asw(z_test, label, seed),
        "n_test": int(test.sum()),
    }
    if "masked" in embeddings:
        leaks = _leaks(embeddings["masked"], batch_N, label_N, train, test, seed)
        scores["masked_leak"] = leaks["leak"]
    return scores


def _leaks(
    z_NP: Floats, batch_N: Codes, label_N: Codes, train: np.ndarray, test: np.ndarray, seed: int
) -> dict[str, float]:
    """Return the batch leakage within labels of each probe, and of the worst."""
    leaks = batch_leaks(
        z_NP[train], batch_N[train], label_N[train], z_NP[test], batch_N[test], label_N[test], seed=seed
    )
    worst = max(leaks.values(), key=lambda one: one.value)
    each = {f"leak_{probe.lower()}": one.value for probe, one in leaks.items()}
    return {"leak": worst.value, **each, "leak_null_sd": worst.null_sd}


def leiden(z_NP: Floats, seed: int) -> list[Codes]:
    """Return Leiden's clusters of cells (scanpy, igraph) at each of ``RESOLUTIONS``."""
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obsm={"z": z_NP})
    sc.pp.neighbors(cells, n_neighbors=min(15, len(z_NP) - 1), use_rep="z", random_state=seed)
    found = []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(cells, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        found.append(cells.obs["leiden"].cat.codes.to_numpy())
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of scanpy and its imports, which say nothing about the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
