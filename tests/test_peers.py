"""Rivals: run where installed; clear errors; held-out labels never reach them; embeddings from files."""

# ruff: noqa: NPY002 - the peers draw from the old global state, and must give it back

import functools
import gzip
import importlib
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_array_equal

from scmedley import ScmedleyError, datasets, keys, peers, pp
from scmedley.io import read_embedding
from scmedley.peers import PEERS, Peer, embed_peer

BBKNN = "BBKNN (diffusion map)"


@pytest.fixture(scope="module")
def mixology() -> AnnData:
    adata = datasets.sc_mixology()
    rows = np.random.default_rng(0).choice(adata.n_obs, 240, replace=False)
    adata = adata[rows].copy()
    pp.prepare(adata, "batch", label_key="cell_type", n_top_genes=100)
    pp.pca(adata, 10)
    return adata


def embed(name: str, adata: AnnData, label_key: str | None = "cell_type", n_latent: int = 5) -> np.ndarray:
    return embed_peer(name, adata, "batch", label_key, n_latent=n_latent, seed=3, threads=1)


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs instead of hundreds."""
    from scvi.model import SCANVI, SCVI

    for model in (SCVI, SCANVI):
        monkeypatch.setattr(model, "train", functools.partialmethod(model.train, max_epochs=2))


def each(*names: str) -> list[Any]:
    """Mark the rivals that only `make test-peers` installs."""
    heavy = {name for name in names if PEERS[name].module in ("scvi", "pyliger")}
    return [pytest.param(name, marks=[pytest.mark.heavy] * (name in heavy)) for name in names]


@pytest.mark.parametrize("name", each(*PEERS))
def test_runs(
    name: str, mixology: AnnData, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(action="ignore"):  # of imports
        importlib.import_module(PEERS[name].module)
        if PEERS[name].module == "scvi":
            short(monkeypatch)
    before = mixology.copy()
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    capfd.readouterr()
    z_NP = embed(name, mixology)
    assert z_NP.shape == (mixology.n_obs, 5)
    assert z_NP.dtype == np.float32
    assert z_NP.std(axis=0).min() > 0
    assert_array_equal(z_NP, embed(name, mixology))
    # The caller's data, random states and terminal are as they were.
    assert capfd.readouterr() == ("", "")
    assert_array_equal(np.random.get_state()[1], states[0])
    assert random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert list(mixology.obs) == list(before.obs)
    assert set(mixology.obsm) == set(before.obsm)
    assert_array_equal(mixology.layers[keys.COUNTS].toarray(), before.layers[keys.COUNTS].toarray())
    # Rows are in the data's order: cells next to each other in the latent are of one line.
    distance_NN = ((z_NP[:, None] - z_NP) ** 2).sum(-1)
    np.fill_diagonal(distance_NN, np.inf)
    line = mixology.obs["cell_type"].to_numpy()
    same = (line[distance_NN.argmin(1)] == line).mean()
    assert same > 0.45 + 0.35 * (PEERS[name].module != "scvi")  # two epochs of scVI are few; chance is 0.33


@pytest.mark.parametrize("name", each("Harmony", "Scanorama", "LIGER", BBKNN))
def test_transductive_peers_read_no_labels(name: str, mixology: AnnData) -> None:
    blind = mixology.copy()
    del blind.obs["cell_type"]
    assert_array_equal(embed(name, blind, None), embed(name, mixology))


class FakeScvi:
    """Stands for both models; keeps what it was shown."""

    def __init__(self, seen: dict[str, AnnData]) -> None:
        seen_by = seen

        class Model:
            @classmethod
            def setup_anndata(cls, adata: AnnData, batch_key: str) -> None:
                seen_by["setup"] = adata.copy()

            def __init__(self, adata: AnnData, n_latent: int) -> None:
                seen_by["fit"] = adata.copy()

            @classmethod
            def from_scvi_model(
                cls, model: "Model", unlabeled_category: str, labels_key: str, adata: AnnData
            ) -> "Model":
                seen_by["labelled"] = adata.copy()
                seen_by["unlabelled"] = unlabeled_category
                return cls(adata, 0)

            def train(self, accelerator: str, enable_progress_bar: bool) -> None:
                pass

            def get_latent_representation(self, adata: AnnData) -> np.ndarray:
                seen_by["embedded"] = adata.copy()
                return np.arange(adata.n_obs * 2.0).reshape(-1, 2)

        self.model = Model


@pytest.fixture
def fake_scvi(monkeypatch: pytest.MonkeyPatch) -> dict[str, AnnData]:
    seen: dict[str, AnnData] = {}
    package, models = ModuleType("scvi"), ModuleType("scvi.model")
    package.settings, package.model = SimpleNamespace(seed=0), models
    package.__spec__ = SimpleNamespace(name="scvi")
    models.SCVI = models.SCANVI = FakeScvi(seen).model
    monkeypatch.setitem(sys.modules, "scvi", package)
    monkeypatch.setitem(sys.modules, "scvi.model", models)
    return seen


def test_scanvi_never_sees_a_held_out_label(mixology: AnnData, fake_scvi: dict[str, AnnData]) -> None:
    adata = mixology.copy()
    first = adata.obs_names[(adata.obs[keys.SPLIT] == "train").to_numpy()][0]
    adata.obs.loc[first, "cell_type"] = np.nan
    embed("scANVI", adata)
    part = adata.obs[keys.SPLIT].astype(str)
    hidden = fake_scvi["unlabelled"]
    for shown in ("setup", "fit", "labelled", "embedded"):
        cells = fake_scvi[shown]
        assert set(cells.obs) == {"batch", "label"}
        assert not [
            *filter(None, cells.layers),
            *cells.obsm,
            *cells.uns,
        ]  # anndata 0.13 counts X as layer None
        label = cells.obs["label"].astype(str)
        train = (part[cells.obs_names] == "train") & (cells.obs_names != first)
        assert set(label[~train]) == {hidden}
        assert_array_equal(label[train], adata.obs["cell_type"][cells.obs_names][train].astype(str))
        if shown != "embedded":
            assert set(part[cells.obs_names]) == {"train", "validation"}
    assert_array_equal(fake_scvi["embedded"].obs_names, adata.obs_names)
    assert_array_equal(
        fake_scvi["fit"].X.toarray(),
        adata[fake_scvi["fit"].obs_names, adata.var[keys.HVG]].layers[keys.COUNTS].toarray(),
    )


def test_scvi_sees_no_label_and_no_test_cell(mixology: AnnData, fake_scvi: dict[str, AnnData]) -> None:
    z_NP = embed("scVI", mixology)
    assert_array_equal(z_NP, np.arange(mixology.n_obs * 2.0).reshape(-1, 2))
    assert list(fake_scvi["fit"].obs) == list(fake_scvi["embedded"].obs) == ["batch"]
    assert "test" not in set(mixology.obs.loc[fake_scvi["fit"].obs_names, keys.SPLIT])
    with pytest.raises(ScmedleyError, match="scANVI learns from labels"):
        embed("scANVI", mixology, None)


@pytest.mark.parametrize("name", PEERS)
def test_missing_package(name: str, mixology: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ScmedleyError, match="is not installed: pip install") as caught:
        embed(name, mixology)
    assert PEERS[name].package in str(caught.value)


def fake(result: Callable[[peers.Task], np.ndarray]) -> Peer:
    return Peer("fake", "scmedley", "none", False, True, False, result)


def test_failing_peer(mixology: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: peers.Task) -> np.ndarray:
        print("noise")
        np.random.seed(99)
        raise RuntimeError("the matrix\nis singular")

    state = np.random.get_state()[1].copy()
    monkeypatch.setitem(PEERS, "Fake", fake(fails))
    with pytest.raises(ScmedleyError, match=r"^Fake failed: the matrix is singular$") as caught:
        embed("Fake", mixology)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("wrong", [np.zeros((3, 2)), np.full((240, 2), np.nan), np.zeros(240)])
def test_no_embedding(wrong: np.ndarray, mixology: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "Fake", fake(lambda task: wrong))
    with pytest.raises(ScmedleyError, match="Fake failed: it returned an embedding of shape"):
        embed("Fake", mixology)


def test_a_stop_by_the_user_is_no_failure(mixology: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    for stop in (KeyboardInterrupt, SystemExit):

        def stopped(task: peers.Task, stop: type[BaseException] = stop) -> np.ndarray:
            raise stop

        monkeypatch.setitem(PEERS, "Fake", fake(stopped))
        with pytest.raises(stop):
            embed("Fake", mixology)


def test_bad_input(mixology: AnnData, fake_scvi: dict[str, AnnData]) -> None:
    with pytest.raises(ScmedleyError, match="no peer 'Seurat'; there are Harmony, scVI"):
        embed("Seurat", mixology)
    bare = mixology.copy()
    del bare.layers[keys.COUNTS]
    with pytest.raises(ScmedleyError, match="scVI failed: it models counts"):
        embed("scVI", bare)
    del bare.obsm[keys.PCA]
    with pytest.raises(ScmedleyError, match=r"run sm\.pp\.prepare and sm\.pp\.pca"):
        embed("scVI", bare)


def test_scanorama_and_liger_keep_the_order(mixology: AnnData) -> None:
    task = peers.Task(mixology, "batch", None, 5, 0, 1)
    rows = peers._rows_by_batch(task)
    assert_array_equal(np.concatenate(peers._in_order([r[:, None] for r in rows], rows)), range(240))


CELLS = ["c1", "c2", "007"]
VALUES = pd.DataFrame(np.arange(6.0).reshape(3, 2), index=["007", "c2", "c1"], columns=["x", "y"])
EXPECTED = np.array([[4, 5], [2, 3], [0, 1]], dtype=np.float32)


def written(path: Path, table: pd.DataFrame, header: str | None) -> Path:
    separator = "," if ".csv" in path.name else "\t"
    text = table.to_csv(sep=separator, header=False)
    text = text if header is None else header.replace(",", separator) + "\n" + text
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["z.csv", "z.tsv", "z.csv.gz", "z.tsv.gz"])
@pytest.mark.parametrize("header", [None, ",0,1", "x,y", '"cell",x,y'])
def test_embedding_from_a_file(name: str, header: str | None, tmp_path: Path) -> None:
    more = pd.concat([VALUES, VALUES.iloc[:1].rename({"007": "elsewhere"})])
    z_NP = read_embedding(written(tmp_path / name, more, header), CELLS)
    assert z_NP.dtype == np.float32
    assert_array_equal(z_NP, EXPECTED)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (VALUES.iloc[:2], "lacks 1 of 3 cells: 'c1'. Its cells have names like '007', 'c2'"),
        (pd.concat([VALUES, VALUES.iloc[:1]]), "1 cell names occur more than once: '007'. Keep one row"),
        (VALUES.replace(5.0, np.nan), "cell 'c1', dimension 2 holds '', which is not a finite number"),
        (VALUES.replace(5.0, np.inf), "cell 'c1', dimension 2 holds 'inf', which is not a finite number"),
        (VALUES.astype(str).replace("5.0", "B"), "cell 'c1', dimension 2 holds 'B'"),
        (VALUES[[]], "has no cells or no dimensions"),
    ],
)
def test_bad_embedding_file(table: pd.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScmedleyError) as caught:
        read_embedding(written(tmp_path / "z.csv", table, "cell,x,y"), CELLS)
    assert message in str(caught.value)


def test_unreadable_embedding_file(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"c1,1\n" * 100)[:-20])
    for name in ("empty.csv", "cut.csv.gz", "absent.csv"):
        with pytest.raises(ScmedleyError, match="cannot be read as a table"):
            read_embedding(tmp_path / name, CELLS)
