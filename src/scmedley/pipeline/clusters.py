"""Clusters of a run or of a file: the tables about them, and the folder of ``scmedley cluster``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from scmedley import io, keys
from scmedley.clusters import Clusters, find
from scmedley.data.arrays import dense, numeric
from scmedley.data.design import as_categories, column
from scmedley.data.gene_names import shown_in
from scmedley.data.inplace import store_clusters
from scmedley.errors import ScmedleyError, ScmedleyWarning, check_seed, listed
from scmedley.interpret.clusters import cluster_table, describe_clusters, tree_table
from scmedley.interpret.markers import markers
from scmedley.keys import ValueKind
from scmedley.pipeline.cells import Say
from scmedley.runs.folder import (
    CLUSTER_BATCHES,
    CLUSTER_EVIDENCE,
    CLUSTER_LABELS,
    CLUSTER_TREE,
    CLUSTERED,
    CLUSTERING,
    CLUSTERS,
    MARKERS,
    OF_CLUSTERS,
    VERSIONS,
    check_replaceable,
    versions,
)

MOST_LABELS = 200  # different rows of an embedding that may be labels,
CELLS_PER_LABEL = 10  # if each is that of so many cells or more
NAMING = 3  # marker genes in the name of a cluster without a label


def write_clusters(
    adata: AnnData,
    clusters: Clusters | None,
    folder: Path,
    *,
    batch: str | None = None,
    label: str | None = None,
    donor: str | None = None,
    values: ValueKind = "auto",
    measured: AnnData | None = None,
) -> list[str]:
    """Write the tables of clusters; return sentences about what was found.

    Parameters
    ----------
    adata
        Cells with their clusters and memberships.
    clusters
        The same clusters; ``None``: their number was given and they were not tested, as in the ``paper`` preset.
    folder
        Gets clusters.csv, cluster_evidence.csv, cluster_tree.csv (not without ``clusters``), markers.csv and, with
        ``batch`` and ``label``, cluster_by_batch.csv and cluster_by_label.csv.
    batch, label, donor
        ``obs`` columns.
    values
        What the matrix holds, as in :func:`scmedley.pp.prepare`. If it cannot be used, there are no markers, with a
        warning.
    measured
        Cells with expression and clusters for the marker genes; by default ``adata``.
    """
    of_cell = adata.obs[keys.CLUSTER]
    roles = {"batch": batch, "label": label, "donor": donor}
    groups = {role: column(adata, key, role) for role, key in roles.items() if key is not None}
    found = _untested(of_cell) if clusters is None else clusters.evidence
    evidence = describe_clusters(found, of_cell, groups)
    try:
        if measured is None and adata.X is None:
            raise ScmedleyError("the file holds no matrix.")
        genes = markers(adata if measured is None else measured, donor_key=donor, values=values)
    except ScmedleyError as error:
        warnings.warn(f"No marker genes: {error}", ScmedleyWarning, stacklevel=2)
    else:  # an error in writing, such as a full disk, is raised
        io.write_csv(genes, folder / MARKERS)
        evidence = _named_by_genes(evidence, genes)
    name_of = dict(evidence[["cluster", "name"]].to_numpy())
    membership_N = np.asarray(adata.obsm[keys.MEMBERSHIP])[np.arange(adata.n_obs), of_cell.cat.codes]
    cells = {"cell": adata.obs_names, "cluster": of_cell.astype(str).to_numpy()}
    table = pd.DataFrame(cells).assign(membership=membership_N)
    table.insert(2, "name", table["cluster"].map(name_of))
    io.write_csv(table, folder / CLUSTERS)
    io.write_csv(evidence, folder / CLUSTER_EVIDENCE)
    if clusters is not None:
        io.write_csv(tree_table(clusters), folder / CLUSTER_TREE)
    for role, name in (("batch", CLUSTER_BATCHES), ("label", CLUSTER_LABELS)):
        if role in groups:
            io.write_csv(cluster_table(of_cell, groups[role], role), folder / name)
    return findings(evidence, None if clusters is None else clusters.found)


def _named_by_genes(evidence: pd.DataFrame, genes: pd.DataFrame) -> pd.DataFrame:
    """Return the evidence; to the names of clusters without a label their first marker genes are added."""
    higher = shown_in(genes[genes["significant"] & (genes["log2_fold_change"] > 0)])
    first = higher.groupby("cluster", sort=False)["gene"].agg(lambda own: ", ".join(own[:NAMING]))
    added = (
        "" if label else first.get(cluster, "")
        for cluster, label in evidence[["cluster", "label"]].to_numpy()
    )
    names = [f"{name} ({some})" if some else name for name, some in zip(evidence["name"], added, strict=True)]
    return evidence.assign(name=names)


def _untested(of_cell: pd.Series[Any]) -> pd.DataFrame:
    """Return a table of evidence without evidence."""
    table = pd.DataFrame({"cluster": list(of_cell.cat.categories), "cells": 0, "nearest": "", "dip": np.nan})
    table = table.assign(**{"least dip": np.nan, "neighbour ratio": np.nan, "stands": np.nan})
    return table.assign(reason="not tested: the number of clusters was given")


def findings(evidence: pd.DataFrame, found: int | None) -> list[str]:
    """Return sentences about clusters.

    Parameters
    ----------
    evidence
        Table of :func:`scmedley.interpret.describe_clusters`.
    found
        Number of clusters that the evidence supports, if that was tested.
    """
    k, sizes = len(evidence), evidence["cells"]
    if k == 1:
        said = [f"One cluster of {sizes.iloc[0]:,} cells."]
    else:
        said = [f"{k} clusters, of {sizes.min():,} to {sizes.max():,} cells."]
    if found is not None and k != found:
        said[0] += f" This number was chosen; the evidence supports {found}."
    said += [
        f"Cluster {row['cluster']}{_called(row)}: {row['cells']:,} cells; {row['reason']}."
        for row in evidence.to_dict("records")
    ]
    for what in ("batch", "donor"):
        of_one = evidence[evidence[f"one {what}"] != ""]
        if len(of_one):
            pairs = ", ".join(f"{row['cluster']} ({row[f'one {what}']})" for row in of_one.to_dict("records"))
            said.append(
                f"99 % or more of the cells are from one {what}, so that the cluster may be the {what} and not a type "
                f"of cell: {pairs}."
            )
    return said


def _called(row: dict[Any, Any]) -> str:
    """Return the name of a cluster as it follows "Cluster 0"."""
    return f", {row['name']}" if row["label"] else row["name"].removeprefix(f"cluster {row['cluster']}")


def cluster(
    input: Path,
    out: Path,
    *,
    use: str,
    batch: str | None = None,
    label: str | None = None,
    donor: str | None = None,
    k: int | None = None,
    level: int | None = None,
    values: ValueKind = "auto",
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Find the clusters of an embedding and write the folder, all of it or nothing; return its record.

    Parameters
    ----------
    input
        File of cells with an embedding.
    out
        The new folder. With ``overwrite`` it may be the folder of an earlier call, which is replaced.
    use
        ``obsm`` key of the embedding.
    batch, label, donor, values
        See :func:`write_clusters`.
    k, level
        Number of clusters, or clusters more or fewer than the evidence supports; at most one of them.
    seed
        Random seed.
    threads
        CPU threads; all by default.

    Raises
    ------
    ScmedleyError
        An embedding that is missing, not finite, or holds labels; a missing column; a number of clusters that
        cannot be; a folder that holds anything else.
    """
    if k is not None and level is not None:
        raise ScmedleyError(
            "--k (a number of clusters) and --level (more or fewer) are both given. Leave one out."
        )
    check_seed(seed)
    ours = (*OF_CLUSTERS, CLUSTERED, CLUSTERING, VERSIONS)
    check_replaceable(out, CLUSTERING, ours, "clustering", overwrite=overwrite)
    io.check_place(out)
    roles: dict[str, Any] = {"batch": batch, "label": label, "donor": donor}
    with threadpool_limits(limits=threads):
        say(f"Reading {input.name}")
        adata = io.read(input, needs_values=False)
        check_roles(adata, roles)
        z_NP = embedding(adata, use)
        say(f"Clustering {adata.n_obs:,} cells by {use}, {z_NP.shape[1]} dimensions")
        batch_N = None if batch is None else as_categories(column(adata, batch, "batch"))
        clusters = find(z_NP, k, seed=seed, batch_N=batch_N)
        if level is not None:
            clusters = clusters.cut(level=level)
        store_clusters(adata, clusters.code_N, clusters.membership_NK, clusters.tables)
        record = {
            "input": {"name": input.name, "sha256": io.sha256(input), "cells": adata.n_obs},
            "config": {"use": use, **roles, "k": k, "level": level, "values": values, "seed": seed},
            "clusters": clusters.k,
            "supported": clusters.found,
        }
        with io.replacing(out) as folder:
            folder.mkdir()
            record["findings"] = write_clusters(adata, clusters, folder, **roles, values=values)
            for line in io.write_h5ad(adata, folder / CLUSTERED):
                warnings.warn(f"{CLUSTERED}: {line}", ScmedleyWarning, stacklevel=2)
            io.write_json(versions(), folder / VERSIONS)
            io.write_json(record, folder / CLUSTERING)
    return record


def check_roles(adata: AnnData, roles: dict[str, str | None]) -> None:
    """Raise for a missing or empty column, and for the column that the clusters will be written to."""
    for role, key in roles.items():
        if key == keys.CLUSTER:
            raise ScmedleyError(
                f"--{role} {key} is the column of clusters, which this command writes. Give the column of the {role}, "
                "or leave it out."
            )
        if key is not None and column(adata, key, role).isna().all():
            raise ScmedleyError(
                f"No cell has a value in obs[{key!r}]. Leave --{role} out, or give another column."
            )


def embedding(adata: AnnData, use: str) -> np.ndarray:
    """Return ``obsm[use]`` as a dense table, or raise with what is there instead."""
    known = sorted(str(key) for key in adata.obsm)
    if use not in adata.obsm:
        there = (
            f"It has: {', '.join(known)}."
            if known
            else "It has none: write the cells with their embedding as h5ad."
        )
        if use in adata.obs:
            raise ScmedleyError(
                f"{use!r} is a column of obs, which holds one value a cell, such as a label. Clusters are found in an "
                f"embedding in obsm. {there}"
            )
        raise ScmedleyError(f"obsm has no embedding {use!r}. {there}")
    stored = adata.obsm[use]
    z_NP = dense(numeric(stored.to_numpy() if isinstance(stored, pd.DataFrame) else stored))
    wrong = np.flatnonzero(~np.isfinite(z_NP).all(axis=1))
    if len(wrong):
        column_of = int(np.flatnonzero(~np.isfinite(z_NP[wrong[0]]))[0])
        raise ScmedleyError(
            f"obsm[{use!r}] has values that are not finite in {len(wrong):,} of {len(z_NP):,} cells; the first is cell "
            f"{adata.obs_names[wrong[0]]!r}, dimension {column_of + 1}. Remove these cells, or embed them again."
        )
    n_rows = len(np.unique(z_NP, axis=0))
    if 1 < n_rows <= min(MOST_LABELS, len(z_NP) // CELLS_PER_LABEL):
        raise ScmedleyError(
            f"obsm[{use!r}] has only {n_rows} different rows for {len(z_NP):,} cells: these are labels or clusters, "
            f"not an embedding. Choose another: {listed([key for key in known if key != use] or ['none is there'])}."
        )
    return z_NP
