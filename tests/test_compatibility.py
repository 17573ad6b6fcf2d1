"""The cells of a run in other programs: scanpy, R (anndataR), CELLxGENE. And: what a missing extra says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from running import SMALL, Shell, some_cells, without_drawing
from scmedley import keys
from scmedley.__main__ import main

# What anndataR's reader of HDF5 knows; of other encodings it leaves the element out, with a warning.
ENCODINGS = {
    ("anndata", "0.1.0"),
    ("array", "0.2.0"),
    ("string-array", "0.2.0"),
    ("categorical", "0.2.0"),
    ("nullable-integer", "0.1.0"),
    ("nullable-boolean", "0.1.0"),
    ("csr_matrix", "0.1.0"),
    ("csc_matrix", "0.1.0"),
    ("dataframe", "0.2.0"),
    ("dict", "0.1.0"),
    ("raw", "0.1.0"),
    ("numeric-scalar", "0.2.0"),
    ("string", "0.2.0"),
}
SUFFIX = re.compile(r"X_[a-zA-Z][a-zA-Z0-9_.-]*")  # keys of embeddings in CELLxGENE's schema
EXTRAS = (
    "jinja2",
    "matplotlib",
    "umap",
    "pyarrow",
    "optuna",
    "distributed",
    "dask_jobqueue",
    "bbknn",
    "harmonypy",
)
EXTRAS += ("scanorama", "scvi", "pyliger")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on cells with columns of all kinds, and colours of the batches."""
    folder = tmp_path_factory.mktemp("compatible")
    cells = some_cells(180, 60)
    n = cells.n_obs
    cells.obs["text"] = pd.array(np.where(np.arange(n) % 3, "a", "b"), dtype="string")
    cells.obs["whole"] = pd.array([None, *range(1, n)], dtype="Int64")
    cells.obs["true"] = pd.array([None] + [True, False] * (n // 2 - 1) + [True], dtype="boolean")
    cells.obs["number"] = np.linspace(0, 1, n)
    cells.obs["batch"] = cells.obs["batch"].astype("category")
    cells.uns["batch_colors"] = ["#112233", "#445566", "#778899"]
    cells.write_h5ad(folder / "cells.h5ad")
    where = ["--batch", "batch", "--label", "cell_type", "--out", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        without_drawing(patch)
        main(["run", str(folder / "cells.h5ad"), *where, *SMALL, "--no-null", "--quiet", "--no-explorer"])
    return folder / "run"


def elements(group: h5py.Group) -> Iterator[h5py.Group | h5py.Dataset]:
    """All elements of an h5ad; not the arrays that make up a table column or a sparse matrix."""
    yield group
    if isinstance(group, h5py.Group) and group.attrs["encoding-type"] in (
        "anndata",
        "dict",
        "dataframe",
        "raw",
    ):
        for part in group.values():
            yield from elements(part)


def test_encodings_are_those_that_anndatar_reads(run):
    with h5py.File(run / "integrated.h5ad") as file:
        found = {(one.attrs["encoding-type"], one.attrs["encoding-version"]) for one in elements(file)}
        assert found <= ENCODINGS, found - ENCODINGS
        for axis in (
            "obs",
            "var",
        ):  # names are text, and no table is written in the way of anndata before 0.7
            assert file[axis].attrs["_index"] in file[axis]
            assert set(file[axis].attrs["column-order"]) <= set(file[axis])


def test_scanpy_reads_uses_and_writes_it(run, tmp_path, capsys):
    cells = sc.read_h5ad(run / "integrated.h5ad")
    sc.pp.neighbors(cells, use_rep=keys.FIXED, n_neighbors=5)
    sc.tl.diffmap(cells, n_comps=3)
    sc.tl.rank_genes_groups(cells, "cell_type", layer=keys.LOGNORM, n_genes=3)
    cells.write_h5ad(tmp_path / "again.h5ad")
    before, again = ad.read_h5ad(run / "integrated.h5ad"), ad.read_h5ad(tmp_path / "again.h5ad")
    pd.testing.assert_frame_equal(again.obs, before.obs)
    pd.testing.assert_frame_equal(again.var, before.var)
    for key in before.obsm:
        np.testing.assert_array_equal(again.obsm[key], before.obsm[key])
    for key in before.layers:
        assert (again.layers[key] != before.layers[key]).nnz == 0
    assert repr(again.uns[keys.UNS]) == repr(before.uns[keys.UNS])
    # And the model of the run reads what scanpy wrote.
    shell = Shell(capsys)
    assert shell("embed", run, "--cells", tmp_path / "again.h5ad", "--out", tmp_path / "z.h5ad").code == 0
    z = ad.read_h5ad(tmp_path / "z.h5ad").obsm[keys.FIXED]
    np.testing.assert_allclose(z, before.obsm[keys.FIXED], rtol=1e-4, atol=1e-5)


def test_embeddings_keep_the_rules_of_cellxgene(run):
    """Schema 5, embeddings: key, numbers, one row for each cell, two columns or more, none infinite or all NaN."""
    cells = ad.read_h5ad(run / "integrated.h5ad")
    ours = [key for key in cells.obsm if "scmedley" in key]
    assert {keys.FIXED, keys.RANDOM, keys.PCA, keys.umap(keys.FIXED)} <= set(ours)
    for key in ours:
        values = cells.obsm[key]
        assert SUFFIX.fullmatch(key)
        assert isinstance(values, np.ndarray)
        assert values.dtype.kind in "fiu"
        assert values.shape[0] == cells.n_obs
        assert values.shape[1] >= 2
        assert np.isfinite(values).all()


def test_colours_keep_the_rules_of_cellxgene(run):
    """Colours are of a categorical column, as many as it has categories or more, and hexadecimal all of them."""
    cells = ad.read_h5ad(run / "integrated.h5ad")
    coloured = [key.removesuffix("_colors") for key in cells.uns if key.endswith("_colors")]
    assert coloured == ["batch"]
    for column in coloured:
        assert isinstance(cells.obs[column].dtype, pd.CategoricalDtype)
        colours = list(cells.uns[f"{column}_colors"])
        assert len(colours) >= len(cells.obs[column].cat.categories)
        assert all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in colours)
    assert colours == ["#112233", "#445566", "#778899"]
    for name in cells.obs:  # groups are categories, never plain text
        assert cells.obs[name].dtype != object


BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib, importlib.util, pkgutil
from pathlib import Path
import scmedley
from scmedley.errors import ScmedleyError
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {EXTRAS!r} else found(name, *rest)
def line(call):
    try:
        call()
    except ScmedleyError as error:
        return str(error)
"""


def blocked(code: str) -> str:
    """What a process without any extra prints."""
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_public_names_and_modules_import_without_the_extras():
    said = blocked("""
for name in scmedley.__all__:
    getattr(scmedley, name)
for module in pkgutil.walk_packages(scmedley.__path__, "scmedley."):
    try:
        importlib.import_module(module.name)
    except ScmedleyError as error:
        assert "pip install 'scmedley[" in str(error), error
        print(module.name)
    except ModuleNotFoundError:
        print(module.name)
""")
    # These draw. What imports them checks for the extra first: see below.
    drawing = {"pl._figure", "report.figures", "report.explore_figures", "report.query"}
    assert set(said.split()) <= {f"scmedley.{name}" for name in drawing}


def test_what_needs_an_extra_says_how_to_install_it(run, tmp_path):
    said = blocked(f"""
import anndata, pandas as pd
from scmedley.pipeline import effects, explore, export, stages
from scmedley.experiment.tune import tune
run, new = Path({str(run)!r}), Path({str(tmp_path)!r}) / "new"
cells = run / "integrated.h5ad"
table = pd.read_csv(run / "scores.csv")
for call in (
    lambda: stages.run([cells], new, stages.RunConfig(batch="batch")),
    lambda: scmedley.write_report(run),
    lambda: explore.write([cells], new),
    lambda: effects.effects(cells, new, condition="batch", donor="technology"),
    lambda: export.export(run, "parquet", new),
    lambda: tune(cells, new, batch_key="batch", label_key="cell_type"),
    lambda: scmedley.pl.scores(table),
    lambda: scmedley.peers.embed_peer("Harmony", anndata.read_h5ad(cells), "batch", None, seed=0, threads=1),
):
    print(line(call))
""")
    lines = said.splitlines()
    assert [bool(re.search(r"pip install .*'scmedley\[\w+\]'", one)) for one in lines] == [True] * 8, said
    assert list(tmp_path.iterdir()) == []
