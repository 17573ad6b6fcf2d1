"""Preparation from disk to a store gives what preparation in memory gives, to the last bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from pandas.testing import assert_frame_equal
from scipy.sparse import csr_matrix

import scmedley as sm
from scmedley import keys
from scmedley.data.reader import Reader, Reading
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.io.lazy import opened
from scmedley.models import MixedEffects
from scmedley.pp import passes
from scmedley.pp.stored import prepare_store, read_store
from stores import write_store
from test_io import write_zarr
from tiny import FIT, SIZES, nested_design

SETTINGS = {"label_key": "cell_type", "min_genes": 5, "n_top_genes": 25}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of about 20 cells: files of the tests have many."""
    monkeypatch.setattr(passes, "BLOCK", 400)


def dense(x) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.toarray()


def check_same(reading: Reading, adata: AnnData, kind: str) -> None:
    """Raise unless a reading of a store is that of the cells that were prepared in memory."""
    wanted = Reader.learn(adata, kind)
    assert reading.reader.genes == wanted.reader.genes
    np.testing.assert_array_equal(dense(reading.log1p_NG[:]), dense(wanted.log1p_NG))
    if kind == "counts":
        np.testing.assert_array_equal(dense(reading.counts_NG[:]), dense(wanted.counts_NG))
        np.testing.assert_array_equal(reading.total_N, wanted.total_N)
    assert_frame_equal(reading.obs, adata.obs, check_categorical=False, check_dtype=False)
    assert reading.label_key == wanted.label_key


def with_few_genes(adata: AnnData) -> AnnData:
    """Add cells and genes that the filters remove, at the beginning, the middle and the end."""
    x = dense(adata.X)
    x[[0, 50, 51, 52, 179], 4:] = 0
    x[:, 7] = 0
    adata.X = csr_matrix(x) if not isinstance(adata.X, np.ndarray) else x
    return adata


def written(adata: AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        write_zarr(adata, path)
    else:
        adata.write_h5ad(path)
    return path


def logarithms(adata: AnnData, base: float = np.e) -> AnnData:
    x = dense(adata.X)
    adata.X = csr_matrix(np.log1p(1e4 * x / x.sum(1, keepdims=True)) / np.log(base)).astype(np.float32)
    return adata


def counts_in_raw(adata: AnnData) -> AnnData:
    adata.raw = adata.copy()
    return logarithms(adata)[:, :30].copy()


def corrected(adata: AnnData) -> AnnData:
    adata.X = csr_matrix(dense(adata.X) * np.float32(0.93))
    return adata


def in_a_layer(adata: AnnData) -> AnnData:
    adata.layers["counts"] = adata.X.copy()
    return logarithms(adata)


KINDS = {
    "counts": lambda adata: adata,
    "dense": lambda adata: nested_design(sparse=False),
    "log1p": logarithms,
    "log2": lambda adata: logarithms(adata, 2),
    "raw": counts_in_raw,
    "corrected": corrected,
    "layer": in_a_layer,
}


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
@pytest.mark.parametrize("name", KINDS)
def test_store_is_as_in_memory(name, ending, tmp_path):
    adata = KINDS[name](with_few_genes(nested_design()))
    path = written(adata, tmp_path / f"cells.{ending}")
    adata = sm.read(path)
    in_memory = sm.pp.prepare(adata, "donor", **SETTINGS)
    checked = prepare_store(path, tmp_path / "store", "donor", progress=False, **SETTINGS)
    assert (checked, checked.reason, checked.rank) == (in_memory, in_memory.reason, in_memory.rank)
    reading = read_store(tmp_path / "store")
    kind = "counts" if checked.values == "counts" else "log1p"
    check_same(reading, adata, kind)
    reading.store.check()


@pytest.mark.parametrize("method", ["deepbid", "counts"])
def test_store_is_as_in_memory_by_method(method, tmp_path):
    path = written(with_few_genes(nested_design()), tmp_path / "cells.h5ad")
    adata = sm.read(path)
    settings = SETTINGS | {"n_top_genes": 12, "method": method}
    in_memory = sm.pp.prepare(adata, "donor", **settings)
    assert prepare_store(path, tmp_path / "store", "donor", progress=False, **settings) == in_memory
    check_same(read_store(tmp_path / "store"), adata, "counts")


def test_tables_and_uns_are_as_in_memory(tmp_path):
    path = written(with_few_genes(nested_design()), tmp_path / "cells.h5ad")
    adata = sm.read(path)
    sm.pp.prepare(adata, "donor", **SETTINGS)
    with opened(path) as lazy:
        prepare_store(lazy, tmp_path / "store", "donor", progress=False, **SETTINGS)
    sm.io.write_h5ad(adata, tmp_path / "prepared.h5ad")
    wanted, cells = (read_h5ad(tmp_path / name) for name in ("prepared.h5ad", "store/cells.h5ad"))
    chosen = wanted.var[keys.HVG].to_numpy()
    assert_frame_equal(cells.obs, wanted.obs)
    assert_frame_equal(cells.var, wanted.var[chosen])
    assert json.dumps(cells.uns[keys.UNS], default=str, sort_keys=True) == json.dumps(
        wanted.uns[keys.UNS], default=str, sort_keys=True
    )


def test_fits_have_the_same_bits(tmp_path):
    path = written(nested_design(), tmp_path / "cells.h5ad")
    adata = sm.read(path)
    sm.pp.prepare(adata, "donor", **SETTINGS)
    prepare_store(path, tmp_path / "store", "donor", progress=False, **SETTINGS)
    reading = read_store(tmp_path / "store").take(np.arange(adata.n_obs))
    for make in (
        lambda: MixedEffects(
            "donor", fixed_settings=_of(sm.FixedEffects), random_settings=_of(sm.RandomEffects)
        ),
        lambda: sm.VAE("donor", settings=_of(sm.VAE)),
    ):
        one, other = (make().fit(cells, **FIT) for cells in (adata, reading))
        for name, history in _losses(one).items():
            assert_frame_equal(history, _losses(other)[name])


def _of(model):
    sizes = SIZES | {"max_epochs": 2}
    known = model.preset("default")
    return known.replace(**{name: value for name, value in sizes.items() if hasattr(known, name)})


def _losses(model) -> dict:
    parts = {"fixed": model.fixed, "random": model.random} if hasattr(model, "fixed") else {"": model}
    return {name: part.history for name, part in parts.items()}


def test_store_of_a_prepared_adata_is_the_same(tmp_path):
    path = written(nested_design(), tmp_path / "cells.h5ad")
    adata = sm.read(path)
    sm.pp.prepare(adata, "donor", **SETTINGS)
    prepare_store(path, tmp_path / "store", "donor", progress=False, **SETTINGS)
    write_store(adata, tmp_path / "other")
    one, other = (Store.open(tmp_path / name) for name in ("store", "other"))
    for name in ("rows.bin", "genes.bin", "values.bin", "totals.bin", "sizes.bin"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert one.about["value_type"] == "uint8"


def test_counts_take_the_bytes_that_the_largest_needs(tmp_path):
    for largest, wanted in ((255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")):
        adata = nested_design()
        adata.X[3, 5] = largest
        path = written(adata, tmp_path / f"{largest}.h5ad")
        prepare_store(
            path, tmp_path / f"{largest}", "donor", progress=False, **SETTINGS | {"n_top_genes": 40}
        )
        store = Store.open(tmp_path / f"{largest}")
        assert store.about["value_type"] == wanted
        assert store.matrix("counts")[:].max() == largest


def test_same_errors_as_in_memory(tmp_path):
    same = nested_design()
    same.X = csr_matrix(np.tile(dense(same.X[:1]), (same.n_obs, 1)))
    full = nested_design()
    full.X = csr_matrix(np.full(full.shape, 3, np.float32))
    for number, (adata, settings) in enumerate(
        [
            (same, {"min_cells": 1}),
            (full, {}),
            (nested_design(), {"min_genes": 50}),
            (nested_design(), {"min_cells": 500}),
            (nested_design(), {"n_top_genes": 0}),
            (nested_design(), {"seed": -1}),
        ]
    ):
        path = written(adata, tmp_path / f"{number}.h5ad")
        with pytest.raises(ScmedleyError) as in_memory:
            sm.pp.prepare(sm.read(path), "donor", **{"min_genes": 5, **settings})
        with pytest.raises(ScmedleyError) as from_disk:
            prepare_store(
                path, tmp_path / f"{number}", "donor", progress=False, **{"min_genes": 5, **settings}
            )
        assert str(from_disk.value) == str(in_memory.value)
        assert not (tmp_path / f"{number}").exists()


def test_matrices_by_column_are_read_whole_and_it_is_said(tmp_path):
    adata = nested_design()
    adata.X = adata.X.tocsc()
    path = written(adata, tmp_path / "cells.h5ad")
    with pytest.warns(ScmedleyWarning, match=r"'X' is stored by column .*tocsr"):
        prepare_store(path, tmp_path / "store", "donor", progress=False, **SETTINGS)
    adata = sm.read(path)
    sm.pp.prepare(adata, "donor", **SETTINGS)
    check_same(read_store(tmp_path / "store"), adata, "counts")


def test_pearson_and_backed_files_name_the_other_way(tmp_path):
    path = written(nested_design(), tmp_path / "cells.h5ad")
    with pytest.raises(ScmedleyError, match=r"Use sm\.pp\.prepare"):
        prepare_store(path, tmp_path / "store", "donor", method="pearson")
    with pytest.raises(ScmedleyError, match="prepare_store"):
        sm.pp.prepare(read_h5ad(path, backed="r"), "donor")


def test_latents_and_components_of_a_store_are_put_into_its_table_of_cells(tmp_path):
    adata = nested_design()
    path = written(adata, tmp_path / "cells.h5ad")
    prepare_store(path, tmp_path / "store", "donor", progress=False, **SETTINGS)
    cells = read_store(tmp_path / "store")
    fixed, random = _of(sm.FixedEffects), _of(sm.RandomEffects)
    model = MixedEffects("donor", fixed_settings=fixed, random_settings=random).fit(cells, **FIT)
    with pytest.raises(ScmedleyError, match="embed\\(adata, reading=cells\\)"):
        model.embed(cells)
    with pytest.raises(ScmedleyError, match="this is a Reading"):
        model.random.embed(cells)
    table = read_h5ad(tmp_path / "store" / "cells.h5ad")
    model.embed(table, reading=cells)
    sm.pp.pca(table, 5, reading=cells)
    sm.pp.prepare(adata, "donor", **SETTINGS)
    sm.pp.pca(adata, 5)
    np.testing.assert_array_equal(table.obsm[keys.PCA], adata.obsm[keys.PCA])
    np.testing.assert_array_equal(table.obsm[keys.RANDOM], model.random.get_latent_representation(cells))
