"""A folder for the UCSC Cell Browser: ``cellbrowser.conf`` with the tables that it names.

``cbBuild`` turns it into a web page. The matrix is in the format of 10x (Matrix Market, genes x cells), which can be
written a block of cells at a time.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.export.source import (
    Matrix,
    groups,
    is_grouping,
    level_colours,
    levels,
    matrix,
    name_of,
    obs_of,
    shown_maps,
    with_names,
)
from scmedley.runs.folder import MARKERS
from scmedley.runs.read import Run

CONF, META, EXPRESSION = "cellbrowser.conf", "meta.tsv", "matrix.mtx.gz"
QUICK_GENES, SHOWN_GENES = "quickGenes.csv", 20
WIDTH = 20  # of a number in the header of the matrix, which is filled in last


def write(run: Run, folder: Path) -> list[str]:
    """Write the files; return notes about what is not in them."""
    obs = obs_of(run)
    shown = _in_one_line(obs)
    obs = obs.rename(columns=shown)
    _write_table(with_names(obs, "cellId"), folder / META)
    notes = _write_maps(run, obs.index, folder)
    with matrix(run) as found:
        _write_matrix(found, obs.index, folder)
        conf = _settings(run, obs, found.unit)
        notes += [found.note] * bool(found.note)
    for i, column in enumerate(groups(run)):
        pairs = pd.Series(level_colours(run, column), name="color").rename_axis("value").reset_index()
        conf["colors"][shown[column]] = f"colors_{i}.tsv"
        _write_table(pairs, folder / f"colors_{i}.tsv")
    if (markers := _markers(run)) is not None:
        _write_table(markers, folder / "markers.tsv")
        conf["markers"] = [{"file": "markers.tsv", "shortLabel": "Marker genes of the clusters"}]
    if (genes := _quick_genes(run)) is not None:
        genes.to_csv(folder / QUICK_GENES, index=False, header=False)
        conf["quickGenesFile"] = QUICK_GENES
    lines = [f"{name} = {json.dumps(value, ensure_ascii=True)}\n" for name, value in conf.items()]
    (folder / CONF).write_text("".join(lines), encoding="utf-8")
    return notes


def _settings(run: Run, obs: pd.DataFrame, unit: str) -> dict[str, Any]:
    """Return the settings: text, numbers and lists alone, which JSON and Python write in the same way."""
    grouping = [str(name) for name in obs if is_grouping(obs[name])]
    first = keys.CLUSTER if _markers(run) is not None else grouping[0] if grouping else None
    return {
        "name": "".join(c if c.isalnum() and c.isascii() else "-" for c in name_of(run)) or "scmedley",
        "shortLabel": f"scMedley: {name_of(run)}",
        "exprMatrix": EXPRESSION,
        "geneIdType": "raw",  # the names are shown as they are; "auto" would fetch tables from the internet
        "meta": META,
        "enumFields": grouping,
        "coords": [
            {"file": _file_of_map(i), "shortLabel": title} for i, (title, _, _) in enumerate(shown_maps(run))
        ],
        **({"clusterField": first, "labelField": first} if first else {}),
        "unit": unit,
        "colors": {},
    }


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table with its header. No text is quoted: tabs and line ends, which would break it, become blanks."""
    plain = pd.DataFrame(index=table.index)
    for name in table:
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column):
            column = pd.Series([None if pd.isna(v) else _text(v) for v in column], index=table.index)
        plain[name] = column
    unquoted: Any = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    plain.to_csv(path, sep="\t", index=False, float_format="%.6g", **unquoted)


def _write_maps(run: Run, cells: pd.Index, folder: Path) -> list[str]:
    """Write the coordinates of each map; cells that it does not show are not in its file."""
    notes = []
    for i, (title, _, xy_N2) in enumerate(shown_maps(run)):
        drawn_N = np.isfinite(xy_N2).all(axis=1)
        table = pd.DataFrame({"cellId": cells[drawn_N], "x": xy_N2[drawn_N, 0], "y": xy_N2[drawn_N, 1]})
        _write_table(table, folder / _file_of_map(i))
        if not drawn_N.all():
            notes.append(f"{title}: {drawn_N.sum():,} of {len(drawn_N):,} cells have a place on this map.")
    return notes


def _file_of_map(i: int) -> str:
    return f"coords_{i}.tsv"


def _write_matrix(found: Matrix, cells: pd.Index, folder: Path) -> None:
    """Write the matrix genes x cells, a block of cells at a time; the number of values is filled in last."""
    n_values, body = 0, folder / ".values"
    with gzip.open(body, "wt", compresslevel=1, encoding="ascii") as file:
        for rows, x_MG in found.blocks():
            n_values += _write_values(x_MG, rows.start, file)
    header = "%%MatrixMarket matrix coordinate real general\n"
    header += f"{len(found.genes)} {len(cells)} {n_values}\n"
    with (folder / EXPRESSION).open("wb") as file, body.open("rb") as values:
        file.write(gzip.compress(header.encode("ascii"), mtime=0))  # a gzip file may have several parts
        while part := values.read(1 << 20):
            file.write(part)
    body.unlink()
    _write_names(found.genes, folder / "features.tsv.gz", columns=2)
    _write_names(cells.map(_text), folder / "barcodes.tsv.gz")


def _write_values(x_MG: csr_matrix, start: int, file: Any) -> int:
    x_MG.eliminate_zeros()
    cell = np.repeat(np.arange(x_MG.shape[0]), np.diff(x_MG.indptr)) + start + 1
    table = pd.DataFrame({"gene": x_MG.indices + 1, "cell": cell, "value": x_MG.data})
    table.to_csv(file, sep=" ", header=False, index=False, float_format="%.5g")
    return len(table)


def _write_names(names: Any, path: Path, columns: int = 1) -> None:
    """Write one name a line, ``columns`` times (identifier and symbol of a gene)."""
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines("\t".join([str(name)] * columns) + "\n" for name in names)


def _markers(run: Run) -> pd.DataFrame | None:
    """Return the markers as the Cell Browser reads them: cluster, gene, p, then what else to show."""
    table = run.clusters.get(MARKERS)
    if table is None or run.obs is None or keys.CLUSTER not in run.obs:
        return None
    shown = table[["cluster", "gene", "q", "log2_fold_change", "share_in", "share_out"]]
    shown = shown[shown["cluster"].isin(levels(run.obs[keys.CLUSTER]))]
    return None if shown.empty else shown  # cbBuild takes no empty table


def _quick_genes(run: Run) -> pd.DataFrame | None:
    """Return the genes that batches shift most, with the batch, to click on."""
    if run.shifts is None or run.shifts.empty:
        return None
    order = run.shifts["shift"].abs().sort_values(ascending=False, kind="stable").index
    table = run.shifts.loc[order].drop_duplicates("gene").head(SHOWN_GENES)
    words = [f"shifts in {_text(batch)}" for batch in table["batch"]]
    return pd.DataFrame({"gene": table["gene"], "why": words})


def _in_one_line(names: Iterable[Hashable]) -> dict[Hashable, str]:
    """Return a name without tabs and line ends for each column; different columns have different names."""
    found: dict[Hashable, str] = {}
    for name in names:
        text = _text(name)
        while text in found.values():
            text += "_"
        found[name] = text
    return found


def _text(value: object) -> str:
    """Return a value in one line without tabs."""
    return " ".join(str(value).split())
