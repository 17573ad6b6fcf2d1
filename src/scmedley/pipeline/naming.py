"""Labels from names of clusters: ``scmedley name``."""

from __future__ import annotations

import csv
import shlex
from io import StringIO
from pathlib import Path

import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.runs.folder import CELLS, CLUSTERED
from scmedley.runs.read import judged

COLUMNS = ["cluster", "name"]
SEPARATORS = ",;\t|"


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
            f"{names.name} has no row for cluster {listed(missing)}; it has {listed(list(name_of)) or 'none'}. Add it; "
            "an empty name leaves its cells unnamed."
        )
    if unknown := [cluster for cluster in name_of if cluster not in there]:
        raise ScmedleyError(
            f"{names.name} has cluster {listed(unknown)}, which is not in {folder}. Remove the row."
        )
    named = cluster_N.map(name_of)
    adata.obs[column] = pd.Categorical(named.where(named != ""))
    io.check_columns(adata, [column])
    for line in io.write_h5ad(adata, out):
        warn(f"{out.name}: {line}")
    sizes = adata.obs[column].value_counts()
    said = [f"{label}: {cells:,} cells" for label, cells in sizes.items()]
    if unnamed := int(adata.obs[column].isna().sum()):
        said.append(f"without a name: {unnamed:,} cells")
    return [*said, f"Cells: {out}. {_next(adata, out, column)}"]


def _next(adata: AnnData, out: Path, column: str) -> str:
    """Return what to do with the cells in ``out``."""
    if adata.X is None and not adata.layers:
        return f"It has no matrix, as the run prepared its cells on disk: copy obs[{column!r}] to a file with counts."
    batch = adata.uns.get(keys.UNS, {}).get("batch_key") or "BATCH"
    command = shlex.join(
        ["scmedley", "run", str(out), "--batch", batch, "--label", column, "--out", f"{out.stem}-run"]
    )
    return f"Next, how the batches differ in each label: {command}"


def _read_names(path: Path) -> dict[str, str]:
    """Return the name of each cluster; spreadsheets in some languages write semicolons, and a byte-order mark."""
    if not path.is_file():
        raise ScmedleyError(f"{path} is not a file. Give a csv file with the columns cluster and name.")
    try:
        text = path.read_text(encoding="utf-8-sig").lstrip("\n")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
        columns = [value.strip() for value in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise ScmedleyError(f"{path} cannot be read as a table: {error}. Save it as csv (UTF-8).") from error
    if wrong := [key for key in COLUMNS if columns.count(key) != 1]:
        several = "more than one" if wrong[0] in columns else "no"
        raise ScmedleyError(
            f"{path} has {several} column {listed(wrong)}; it has {listed(columns) or 'none'}. The first row must be "
            "cluster,name; each other row is one cluster."
        )
    names: dict[str, str] = {}
    for line, row in rows:
        if any(row[len(columns) :]):
            raise ScmedleyError(
                f"{path}, line {line}: {len(row)} values for {len(columns)} columns. Put a name that holds "
                f'{separator!r} into quotes: "B cell{separator} naive".'
            )
        values = dict(zip(columns, [*row, *[""] * len(columns)], strict=False))
        cluster, own = (" ".join(values[key].split()) for key in COLUMNS)  # in one line
        if cluster in names:
            raise ScmedleyError(f"{path} has more than one row for cluster {cluster!r}. Leave one.")
        names |= {cluster: own} if cluster else {}
    if rows and not any(names.values()):
        raise ScmedleyError(f"{path} gives no cluster a name. Fill in the column name.")
    return names


def _clustered(folder: Path) -> AnnData:
    """Return the cells of a folder that has clusters."""
    path = next((folder / name for name in (CELLS, CLUSTERED) if (folder / name).is_file()), None)
    if path is None:
        raise ScmedleyError(
            f"{folder} holds no {CELLS} and no {CLUSTERED}. Give a folder that scmedley wrote."
        )
    adata = io.read(path, needs_values=False)
    if keys.CLUSTER not in adata.obs:
        use = judged(folder) if path.name == CELLS else keys.FIXED
        raise ScmedleyError(
            f"The cells of {folder} have no clusters. Find them first: scmedley run --model deepbid, or "
            f"scmedley cluster {path} --use {use}."
        )
    return adata
