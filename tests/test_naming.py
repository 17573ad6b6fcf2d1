"""``scmedley name``: names that a person chose for clusters become labels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from corpus import cells
from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.naming import name
from scmedley.pipeline.preparing import prepared_cells
from scmedley.pipeline.work import Work
from scmedley.pp import checks
from scmedley.runs.folder import CLUSTERED, RECORD
from scmedley.runs.record import Record

NAMES = "cluster,name,cells\n0,T cell,1\n1,T cell,1\n2,,1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adata = cells()
    adata.obs[keys.CLUSTER] = pd.Categorical((np.arange(adata.n_obs) % 3).astype(str))
    (tmp_path / "clusters").mkdir()
    adata.write_h5ad(tmp_path / "clusters" / CLUSTERED)
    return tmp_path / "clusters"


def named(folder: Path, text: str, column: str = "type", encoding: str = "utf-8") -> Path:
    table, out = folder.parent / "names.csv", folder.parent / "named.h5ad"
    table.write_text(text, encoding=encoding)
    said = name(folder, table, out, column=column)
    assert f"--label {column}" in said[-1]
    return out


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (NAMES, "utf-8"),
        (NAMES.replace(",", ";"), "utf-8-sig"),
        (NAMES.replace(",", "\t"), "utf-8"),
        (NAMES.replace(",", "|").replace("T cell", '"T\n cell"'), "utf-8"),
    ],
)
def test_clusters_of_one_name_are_one_label(folder: Path, text: str, encoding: str) -> None:
    adata = read_h5ad(named(folder, text, encoding=encoding))
    cluster, label = adata.obs[keys.CLUSTER], adata.obs["type"]
    assert list(label.cat.categories) == ["T cell"]
    assert label.isna().equals(cluster == "2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster,name\n0,T\n1,B\n", "has no row for cluster '2'"),
        (NAMES + "7,NK,1\n", "has cluster '7'"),
        (NAMES + "0,NK,1\n", "more than one row for cluster '0'"),
        ("cluster,name,name\n0,T,B\n1,T,B\n2,T,B\n", "more than one column 'name'"),
        ("cluster,name\n0,T, naive\n1,B, naive\n2,NK, x\n", "line 2: 3 values for 2 columns.*quotes"),
        ("\n\n\tcluster\tname\nx\t0\t\t\ny\t1\nz\t2\t\n", "gives no cluster a name"),
        ('cluster,name\n0,"T\n1,B\n2,NK\n', "cannot be read as a table"),
        ("", "no column 'cluster', 'name'"),
        (NAMES.replace("name", "type"), "has no column 'name'"),
    ],
)
def test_a_table_of_other_clusters_is_an_error(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        named(folder, text)
    assert not (folder.parent / "named.h5ad").exists()


def test_a_column_is_not_replaced_and_clusters_are_needed(folder: Path) -> None:
    with pytest.raises(ScmedleyError, match="column 'batch' already"):
        named(folder, NAMES, column="batch")
    for column in ("", "_index"):
        with pytest.raises(ScmedleyError, match="cannot hold"):
            named(folder, NAMES, column=column)
    cells().write_h5ad(folder / CLUSTERED)
    with pytest.raises(ScmedleyError, match="have no clusters"):
        named(folder, NAMES)
    (folder / CLUSTERED).unlink()
    with pytest.raises(ScmedleyError, match=r"no integrated\.h5ad"):
        named(folder, NAMES)


def test_labels_that_are_names_of_clusters_are_no_independent_check(folder: Path) -> None:
    out = named(folder, NAMES.replace("2,,1", "2,B cell,1"))
    adata = read_h5ad(out)
    assert warned(adata)
    assert prepared(out)["labels_of_clusters"]
    adata.obs.loc[adata.obs_names[0], keys.CLUSTER] = (
        np.nan
    )  # a cell without a cluster has a label all the same
    assert warned(adata)
    other = np.where(np.arange(adata.n_obs) % 4 < 2, "T cell", "B cell")
    assert not warned(AnnData(adata.X, adata.obs.assign(type=other), adata.var))
    adata.obs["type"] = other
    adata.write_h5ad(out)
    assert not prepared(out)["labels_of_clusters"]
    assert not warned(AnnData(adata.X, adata.obs.drop(columns=keys.CLUSTER), adata.var))


def warned(adata: AnnData) -> bool:
    return any("names of these clusters" in line for line in checks.check(adata, "batch", "type").warnings)


def prepared(path: Path) -> Record:
    """Return the record of a run after its first stage."""
    config = RunConfig(batch="batch", label="type", min_genes=1, min_cells=1)
    this = Work(path.parent, config, Record(path.parent / RECORD, {"input": {"name": ""}}), lambda _: None)
    prepared_cells(this, [path], "file", None, held_out=False)
    return this.record
