"""Labels from names of clusters: ``scmedley name``."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.runs.folder import CELLS, CLUSTERED

COLUMNS = ["cluster", "name"]


def name(folder: Path, names: Path, out: Path, *, column: str = "cell_type") -> list[str]:
    """Write the cells of a folder with the names of their clusters as a column of obs; return lines to print.

    Parameters
    ----------
    folder
        Run folder with clusters, or the folder of ``scmedley cluster``.
    names
        Table (csv or tsv, also with semicolons) with the columns ``cluster`` and ``name``; other columns are ignored.
        Clusters of one name become one label; clusters with an empty name have none.
    out
        New h5ad file.
    column
        New column of ``obs``.

    Raises
    ------
    ScmedleyError
        A folder without clusters; a table without these columns, or of other clusters; a column that is there.
    """
    name_of = _read_names(names)
    adata = _clustered(folder)
    if column in adata.obs:
        raise ScmedleyError(f"The cells have a column {column!r} already. Choose another --column.")
    cluster_N = adata.obs[keys.CLUSTER].astype(str)
    there = list(dict.fromkeys(cluster_N[cluster_N != "nan"]))
    if missing := [cluster for cluster in sorted(there) if cluster not in name_of]:
        raise ScmedleyError(
            f"{names.name} has no row for cluster {listed(missing)}. Add it; an empty name leaves its cells unnamed."
        )
    if unknown := [cluster for cluster in name_of if cluster not in there]:
        raise ScmedleyError(
            f"{names.name} has cluster {listed(unknown)}, which is not in {folder}. Remove the row."
        )
    named = cluster_N.map(name_of)
    adata.obs[column] = pd.Categorical(named.where(named != ""))
    for line in io.write_h5ad(adata, out):
        warn(f"{out.name}: {line}")
    sizes = adata.obs[column].value_counts()
    said = [f"{label}: {cells:,} cells" for label, cells in sizes.items()]
    if unnamed := int(adata.obs[column].isna().sum()):
        said.append(f"without a name: {unnamed:,} cells")
    return [*said, f"Cells: {out}. Next, how the batches differ in each label: {_next(adata, out, column)}"]


def _next(adata: AnnData, out: Path, column: str) -> str:
    batch = adata.uns.get(keys.UNS, {}).get("batch_key") or "BATCH"
    return f"scmedley run {out} --batch {batch} --label {column} --out {out.stem}-run"


def _read_names(path: Path) -> dict[str, str]:
    """Return the name of each cluster; spreadsheets in some languages write semicolons, and a byte-order mark."""
    if not path.is_file():
        raise ScmedleyError(f"{path} does not exist. Give a csv file with the columns cluster and name.")
    try:
        table = pd.read_csv(
            path, sep=None, engine="python", dtype=str, encoding="utf-8-sig", keep_default_na=False
        )
    except (ValueError, csv.Error) as error:
        raise ScmedleyError(f"{path} cannot be read as a table: {error}. Save it as csv (UTF-8).") from error
    table.columns = table.columns.str.strip()
    if lacking := [key for key in COLUMNS if key not in table]:
        raise ScmedleyError(
            f"{path} has no column {listed(lacking)}; it has {listed(list(table.columns))}. The first row must be "
            "cluster,name; each other row is one cluster."
        )
    table = table[COLUMNS].apply(lambda text: text.str.strip())
    table = table[table["cluster"] != ""]
    if (twice := table["cluster"][table["cluster"].duplicated()]).size:
        raise ScmedleyError(f"{path} has more than one row for cluster {listed(list(twice))}. Leave one.")
    return dict(table.itertuples(index=False, name=None))


def _clustered(folder: Path) -> AnnData:
    """Return the cells of a folder that has clusters."""
    path = next((folder / name for name in (CELLS, CLUSTERED) if (folder / name).is_file()), None)
    if path is None:
        raise ScmedleyError(
            f"{folder} holds no {CELLS} and no {CLUSTERED}. Give a folder that scmedley wrote."
        )
    adata = io.read(path, needs_values=False)
    if keys.CLUSTER not in adata.obs:
        raise ScmedleyError(
            f"The cells of {folder} have no clusters. Find them first: scmedley run --model deepbid, or "
            f"scmedley cluster {path} --use {keys.FIXED}."
        )
    return adata
