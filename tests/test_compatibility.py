"""The cells of a run in other programs: scanpy, R (anndataR), CELLxGENE. And: what a missing extra says."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
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


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matplotlib, about what scanpy calls
def test_scanpy_draws_the_colours_of_the_report(run):
    from matplotlib.colors import to_hex

    from scmedley.pl._palette import colours

    cells = sc.read_h5ad(run / "integrated.h5ad")
    axes = sc.pl.embedding(cells, keys.umap(keys.FIXED), color="cell_type", show=False)
    drawn = {to_hex(colour) for colour in axes.collections[0].get_facecolors()}
    assert drawn == set(colours(3))


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
    coloured = {key.removesuffix("_colors") for key in cells.uns if key.endswith("_colors")}
    assert coloured == {"batch", "cell_type"}
    for column in coloured:
        assert isinstance(cells.obs[column].dtype, pd.CategoricalDtype)
        colours = list(cells.uns[f"{column}_colors"])
        assert len(colours) >= len(cells.obs[column].cat.categories)
        assert all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in colours)
    assert list(cells.uns["batch_colors"]) == ["#112233", "#445566", "#778899"]  # of the input
    for name in cells.obs:  # groups are categories, never plain text
        assert cells.obs[name].dtype != object


BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # import raises ModuleNotFoundError
import importlib, importlib.util, pkgutil
from pathlib import Path
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names!r} else found(name, *rest)
import scmedley
from scmedley.errors import ScmedleyError
def line(call):
    try:
        call()
    except ScmedleyError as error:
        return str(error).replace("\\n", " ")
"""


def blocked(code: str, names: Iterable[str] = EXTRAS) -> str:
    """What a process without these packages prints."""
    before = BLOCKED.format(names=tuple(names))
    done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=False)
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


CALLS = """
import tempfile, anndata, pandas as pd
from scmedley.experiment import grid
from scmedley.experiment.config import Experiment
from scmedley.experiment.tune import tune
from scmedley.pipeline import effects, explore, export, stages
run, new = Path({run!r}), Path({new!r})
cells = run / "integrated.h5ad"
def tasks(**scheduler):
    what = Experiment(name="some", data=str(cells), batch_key="batch", label_key="cell_type")
    grid.run(what, new, say=len, **scheduler)
def peer(name):
    scmedley.peers.embed_peer(name, anndata.read_h5ad(cells), "batch", "cell_type", seed=0, threads=1)
calls = {{
    "report run": lambda: stages.run([cells], new, stages.RunConfig(batch="batch")),
    "report write_report": lambda: scmedley.write_report(run),
    "report report": lambda: stages.report(run, say=len),
    "report explore": lambda: explore.write([cells], new),
    "report effects": lambda: effects.effects(cells, new, condition="batch", donor="technology"),
    "report experiment": tasks,
    "report pl.scores": lambda: scmedley.pl.scores(pd.read_csv(run / "scores.csv")),
    "export export": lambda: export.export(run, "parquet", new),
    "tune tune": lambda: tune(cells, new, batch_key="batch", label_key="cell_type"),
    "dask experiment": lambda: tasks(scheduler="tcp://localhost:1"),
    **{{f"peers {{name}}": lambda name=name: peer(name) for name in scmedley.peers.PEERS}},
}}
for call in calls:
    if call.split()[0] in {extras!r}:
        print(call, "|", line(calls[call]))
"""
REPORT = ("jinja2", "matplotlib", "umap")


@pytest.mark.parametrize(
    ("extras", "names"),
    [(("report",), REPORT), (("export", "tune", "dask", "peers"), sorted(set(EXTRAS) - set(REPORT)))],
)
def test_what_needs_an_extra_says_how_to_install_it(run, tmp_path, extras, names):
    lines = blocked(CALLS.format(run=str(run), new=str(tmp_path / "new"), extras=extras), names).splitlines()
    assert len(lines) >= 7
    for one in lines:
        call, _, said = one.partition(" | ")
        assert f"'scmedley[{call.split()[0]}]'" in said, one
        assert "pip install " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cellbrowser", "vitess", "multiqc"])
def test_exports_other_than_parquet_need_no_extra(run, tmp_path, name):
    call = f"export.export(Path({str(run)!r}), {name!r}, Path({str(tmp_path)!r}) / 'out')"
    blocked(f"from scmedley.pipeline import export\n{call}")
    assert list((tmp_path / "out").iterdir())
