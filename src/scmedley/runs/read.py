"""Read a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from anndata.io import read_elem
from numpy.typing import NDArray

from scmedley import keys
from scmedley.data.gene_names import shown_in
from scmedley.data.reader import Reading
from scmedley.errors import ScmedleyError
from scmedley.interpret.check import CHECK_COLUMNS, decoder
from scmedley.models import MixedEffects, load
from scmedley.models.base import Model
from scmedley.models.catalogue import maps_of, rows
from scmedley.pp.stored import read_store
from scmedley.runs.folder import (
    CELLS,
    CHECK,
    CLUSTER_BATCHES,
    CLUSTER_EVIDENCE,
    CLUSTER_LABELS,
    CLUSTER_TREE,
    CLUSTERS,
    HISTORY,
    LABELS,
    MARKERS,
    MODEL,
    OF_CLUSTERS,
    RECORD,
    SCORES,
    SHIFTS,
)
from scmedley.runs.record import Record

TABLES = {  # text columns, number columns
    HISTORY: (["network", "part", "term"], ["epoch", "value"]),
    SCORES: (["embedding", "score", "of", "null_kind"], ["value", "null", "null_sd", "n_cells", "se"]),
    SHIFTS: (
        ["label", "batch", "gene", "observed_from", "seen"],
        [
            *("shift", "q05", "q95", "observed", "size", "observed_size"),
            *("null_size", "null_sd", "n_cells", "n_observed"),
        ],
    ),
    CHECK: (
        ["label", "batch", "seen"],
        [name for name in CHECK_COLUMNS if name not in ("label", "batch", "seen")],
    ),
    LABELS: (["embedding", "label"], ["accuracy", "n_right", "n_train", "n_test"]),
    CLUSTERS: (["cell", "cluster", "name"], ["membership"]),
    CLUSTER_EVIDENCE: (
        ["cluster", "name", "label", "nearest", "reason", "stands", "one batch", "one donor"],
        [
            *("cells", "dip", "least dip", "neighbour ratio", "label share", "batches", "donors"),
            *("lowest share", "highest share"),
        ],
    ),
    CLUSTER_TREE: (
        ["cluster first", "cluster second", "stands"],
        ["first", "second", "cells first", "cells second", "clusters left", "dip", "least dip"],
    ),
    CLUSTER_BATCHES: (["cluster", "batch"], ["cells", "share_of_cluster", "share_of_batch"]),
    CLUSTER_LABELS: (["cluster", "label"], ["cells", "share_of_cluster", "share_of_label"]),
    MARKERS: (
        ["cluster", "gene", "significant", "donor_significant", "donor_note"],
        [
            *("cells", "score", "log2_fold_change", "share_in", "share_out", "p", "q"),
            *("donors", "donors_same", "donor_difference", "donor_p", "donor_q"),
        ],
    ),
}
GIVEN = "Given fixed part"  # instead of "Fixed effects", which were not trained


@dataclass(frozen=True)
class Run:
    """The content of a run folder. A table is None if its file is missing."""

    folder: Path
    settings: dict[str, Any]
    obs: pd.DataFrame | None
    maps: dict[str, tuple[str, NDArray[np.float32]]]  # embedding -> (obsm key drawn, cells x 2)
    history: pd.DataFrame | None
    scores: pd.DataFrame | None
    shifts: pd.DataFrame | None
    check: pd.DataFrame | None
    labels: pd.DataFrame | None = None
    clusters: dict[str, pd.DataFrame] = field(default_factory=dict)  # tables of clusters by file

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run."""
        return dict(self.settings.get("config") or {})

    @property
    def given(self) -> str | None:
        """The obsm key of the embedding that replaces the fixed-effects network, if one was given."""
        return self.config.get("fixed") or None

    @property
    def shown(self) -> tuple[str, ...]:
        """The embeddings that the page draws."""
        return maps_of(self.config.get("model", "mixed"))

    def key(self, embedding: str) -> str:
        """Return the obsm key of an embedding as the user knows it: a given one keeps its own key."""
        return self.given if self.given and embedding == keys.FIXED else embedding

    def name(self, embedding: str) -> str:
        """Return the title of an embedding. Pictures show no key of a given one; the report does."""
        return GIVEN if self.key(embedding) != embedding else keys.title(embedding)

    def column(self, kind: str) -> pd.Series | None:
        """Return the ``"batch"`` or ``"label"`` column of the cells, or None."""
        key = self.config.get(kind)
        return None if self.obs is None or not key or key not in self.obs else self.obs[key]


def read(folder: Path) -> Run:
    """Read the results of a run."""
    settings = Record.read(folder / RECORD)
    obs, maps = _obs_and_maps(folder)
    tables = {name: read_table(folder / name) for name in TABLES}
    history, scores, shifts, check, labels = (
        tables[name] for name in (HISTORY, SCORES, SHIFTS, CHECK, LABELS)
    )
    shifts = None if shifts is None else shown_in(shifts)
    clusters = {name: table for name in OF_CLUSTERS if (table := tables[name]) is not None}
    return Run(folder, settings, obs, maps, history, scores, shifts, check, labels, clusters)


@contextmanager
def cells_file(folder: Path) -> Iterator[h5py.File]:
    """Open the cells of a run. Any error while reading them becomes an error that names the file."""
    path = folder / CELLS
    if not path.exists():
        finished = Record.read(folder / RECORD).is_fitted
        raise ScmedleyError(
            f"{path} is missing. "
            + ("Run again with --overwrite." if finished else "The run is not finished: repeat its command.")
        )
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ScmedleyError:
        raise
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise ScmedleyError(f"{path} cannot be read ({error}). Run again with --overwrite.") from error


def read_cells(folder: Path) -> AnnData:
    """Read the cells of a run."""
    with cells_file(folder) as file:
        return read_h5ad(file.filename)


def store_of(folder: Path) -> Path | None:
    """Return the store of a run that prepared its cells on disk; ``None`` for a run in memory."""
    found = Record.read(folder / RECORD).get("store")
    return None if found is None else folder / found["folder"]


def read_reading(folder: Path, model: MixedEffects | Model[Any], adata: AnnData | None = None) -> Reading:
    """Return the cells of a run as its model reads them; those of a store stay on disk.

    Parameters
    ----------
    folder
        Run folder.
    model
        The model of the run.
    adata
        The cells of the run, if they were already read.

    Raises
    ------
    ScmedleyError
        The store is missing or damaged, or was prepared again with other cells or genes.
    """
    store = store_of(folder)
    if store is None:
        return model.read(read_cells(folder) if adata is None else adata)
    of_model = decoder(model)
    try:
        reading = read_store(store, reads=of_model.reader.kind)
    except ScmedleyError as error:
        raise ScmedleyError(
            f"{error} The run in {folder} trained on that store: its embeddings and tables are still there, and this "
            "step needs the values. Repeat the command of the run with --overwrite, or bring the store back."
        ) from error
    obs = read_obs(folder) if adata is None else adata.obs
    if not reading.obs.index.equals(obs.index) or reading.reader.genes.names != of_model.reader.genes.names:
        raise ScmedleyError(
            f"{store} holds other cells or genes than the run in {folder}: it was prepared again. Run again with "
            "--overwrite."
        )
    return replace(reading, obs=obs)


def read_obs(folder: Path) -> pd.DataFrame:
    """Read only ``obs`` of the cells of a run."""
    with cells_file(folder) as file:
        obs: pd.DataFrame = read_elem(file["obs"])
        return obs


def judged(folder: Path) -> str:
    """Return the obsm key of the embedding that a run is about: fixed effects, or that of the one model."""
    config = Record.read(folder / RECORD).get("config") or {}
    return maps_of(config.get("model", "mixed"))[0]


def read_map(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Read the latents that a run is about and the UMAP of the training cells; ``None`` if it has no map."""
    if not (folder / CELLS).is_file():
        return None
    basis = judged(folder)
    with cells_file(folder) as file:
        obsm = file.get("obsm", {})
        if not {basis, keys.umap(basis)} <= set(obsm):
            return None
        obs = read_elem(file["obs"])
        z_NP, xy_N2 = (np.asarray(obsm[key], dtype=np.float32) for key in (basis, keys.umap(basis)))
    drawn = (obs[keys.SPLIT] == "train").to_numpy() & np.isfinite(xy_N2).all(axis=1)
    if keys.ON_MAP in obs:  # of many cells the UMAP is that of a sample, between which the others were placed
        drawn &= obs[keys.ON_MAP].to_numpy(dtype=bool)
    return (z_NP[drawn], xy_N2[drawn]) if drawn.any() else None


def read_model(folder: Path) -> MixedEffects | Model[Any]:
    """Load the model of a run."""
    Record.read(folder / RECORD)
    path = folder / MODEL
    if not path.exists():
        raise ScmedleyError(
            f"{path} is missing. Repeat the command of the run, with --overwrite if the run is finished."
        )
    model = load(path)
    if not isinstance(model, MixedEffects | Model):
        raise ScmedleyError(f"{path} is a {type(model).__name__}, not the model of a run. Run again.")
    return model


def read_table(path: Path) -> pd.DataFrame | None:
    """Read a table of a run; ``None`` if it is missing."""
    if not path.is_file():
        return None
    texts, numbers = TABLES[path.name]
    again = (
        "Run again with --overwrite"
        if path.name == HISTORY
        else f"scmedley evaluate {path.parent} writes it again"
    )
    try:
        content = path.read_bytes()
        # A gene or a label may be called "NA": only the number columns have missing values.
        table = pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise ScmedleyError(f"{path} cannot be read: {error}. {again}.") from error
    if not content.endswith(b"\n"):
        raise ScmedleyError(f"{path} is cut off in its last line. {again}.")
    missing = [column for column in texts + numbers if column not in table]
    if missing:
        raise ScmedleyError(
            f"{path} lacks the column(s) {', '.join(missing)}. An older version wrote it. {again}."
        )
    for column in numbers + ["weight"] * ("weight" in table):  # not in older histories
        values = pd.to_numeric(table[column].replace("", "nan"), errors="coerce")
        wrong = values.isna() & ~table[column].str.lower().isin(["", "nan", "none", "na"])
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise ScmedleyError(
                f"{path}: column {column}, line {row + 2}: {table[column].iloc[row]!r} is not a number. {again}."
            )
        table[column] = values
    for column in {"seen", "kept", "stands", "significant", "donor_significant"} & set(table):
        table[column] = table[column].str.lower().isin(["true", "1"])
    return table


def _obs_and_maps(folder: Path) -> tuple[pd.DataFrame | None, dict[str, tuple[str, NDArray[np.float32]]]]:
    """Read obs and the two columns of each map; None and no maps if the cells are missing."""
    maps: dict[str, tuple[str, NDArray[np.float32]]] = {}
    if not (folder / CELLS).is_file():
        return None, maps
    with cells_file(folder) as file:
        obs = read_elem(file["obs"])
        obsm = file.get("obsm", {})
        for key in dict.fromkeys([*keys.MAPS, *(row.embeddings[0].key for row in rows() if row.command)]):
            found = next((name for name in (keys.umap(key), key) if name in obsm), None)
            if found is not None and isinstance(obsm[found], h5py.Dataset) and obsm[found].ndim == 2:
                xy = np.asarray(obsm[found][:, :2], dtype=np.float32)
                if xy.shape[1] == 2:
                    maps[key] = (found, xy)
                if len(xy) != len(obs):
                    raise ValueError(f"obsm {found} has {len(xy):,} rows for {len(obs):,} cells")
    return obs, maps
