"""Cells are read once, whoever looks at them; blocks of a file give what memory gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_array_equal

from running import SMALL, Shell, some_cells, without_drawing
from scmedley import keys
from scmedley.data import conversion, matrix, reader
from scmedley.data.arrays import totals_of_cp10k
from scmedley.data.gene_names import GeneNames
from scmedley.data.reader import Reader
from scmedley.data.resident import Minibatch
from scmedley.data.scale import Scale
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import store
from scmedley.pp import prepare
from scmedley.train.loop import Losses, Progress
from tiny import FIT, SIZES, nested_design, prepared_design, unfitted
from toy_model import LinearAutoencoder, LinearNetwork, LinearSettings


def scans_of_a_run(monkeypatch: pytest.MonkeyPatch, shell: Shell, cells: AnnData, folder: Path) -> int:
    """Count how often a whole matrix is looked through, or read for a network, in ``scmedley run``."""
    found: list[str] = []

    def counting(owner, name: str):
        before = getattr(owner, name)

        def call(*args, **kwargs):
            found.append(name)
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    with monkeypatch.context() as monkeypatch:
        without_drawing(monkeypatch)
        for owner in (matrix, conversion):
            counting(owner, "examine")
        counting(conversion.Conversion, "read")
        counting(reader.Reading, "take")
        folder.mkdir()
        cells.write_h5ad(folder / "cells.h5ad")
        options = ("--batch", "batch", "--label", "cell_type", "--out", folder / "run", "--quiet", *SMALL)
        shell.well("run", folder / "cells.h5ad", *options)
    return len(found)


def test_scans_of_a_run_do_not_grow_with_batches_and_labels(monkeypatch, capsys, tmp_path: Path) -> None:
    many, shell = some_cells(), Shell(capsys)
    few = many[many.obs["batch"].isin(many.obs["batch"].unique()[:2])].copy()
    few.obs["cell_type"] = "one"
    numbers = [
        scans_of_a_run(monkeypatch, shell, cells, tmp_path / name)
        for name, cells in (("few", few), ("many", many))
    ]
    assert numbers[0] == numbers[1] < 10


def test_two_networks_share_a_reading(fitted, prepared: AnnData) -> None:
    mixed = fitted("mixed")
    reading = mixed.fixed.read(prepared)
    assert mixed.random.read(reading) is reading
    for model in (mixed.fixed, mixed.random):
        assert_array_equal(
            model.get_latent_representation(reading), model.get_latent_representation(prepared)
        )
    unscaled = Scale.fit(reading.log1p_NG, "none")
    rows = reading.resident(np.zeros(reading.n_cells), unscaled).rows
    assert reading.resident(np.ones(reading.n_cells), unscaled).rows is rows  # on the device once
    part = reading.take(np.array([3, 1]))
    assert_array_equal(part.log1p_NG.toarray(), reading.log1p_NG[[3, 1]].toarray())
    assert part.obs.index.tolist() == prepared.obs_names[[3, 1]].tolist()


def test_a_reading_of_other_genes_is_refused(fitted, prepared: AnnData) -> None:
    reading = fitted("fixed").read(prepared)
    with pytest.raises(ScmedleyError, match="other genes"):
        Reader(GeneNames(reading.reader.genes.names[1:])).read(reading)


def test_models_of_any_scale_share_a_reading(prepared: AnnData) -> None:
    scales = ("pareto", "standard", "min-max", "none")
    models = [unfitted("autoencoder", scale=scale, max_epochs=1) for scale in scales]
    reading = models[0].fit(prepared, **FIT).read(prepared)
    for model in models[1:]:
        model.fit(reading, **FIT)
    b_N, rows = np.zeros(reading.n_cells), torch.arange(5)
    x_NG = reading.log1p_NG[:5].toarray()
    for model in models:
        seen = reading.resident(b_N, model.scale).take(rows).x_NG.numpy()
        np.testing.assert_allclose(seen, model.scale.transform(x_NG), rtol=1e-6)
    assert len({id(reading.resident(b_N, model.scale).rows) for model in models}) == 1


def test_a_fit_to_a_reading_is_a_fit_to_its_cells(prepared: AnnData, fitted) -> None:
    reading = Reader.learn(prepared)
    again = unfitted("random").fit(reading, **FIT)
    before = unfitted("random").fit(prepared, **FIT).network.state_dict()
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("layer", [True, False])
def test_a_file_in_blocks_gives_what_memory_gives(
    fitted, sparse: bool, layer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = prepared_design(sparse) if layer else nested_design(sparse)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(conversion, "BLOCK", 3000)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    model = fitted("fixed")
    blocks = list(model.reader.blocks(backed))
    assert len(blocks) > 1
    assert [len(block.obs) for block in blocks] == [block.n_cells for block in blocks]
    whole = model.read(cells)
    joined = model.read(backed)
    assert_array_equal(
        *(x if isinstance(x, np.ndarray) else x.toarray() for x in (whole.log1p_NG, joined.log1p_NG))
    )
    assert joined.obs.index.equals(cells.obs_names)
    z_NP = model.get_latent_representation(backed)
    np.testing.assert_allclose(z_NP, model.get_latent_representation(cells), rtol=1e-5, atol=1e-6)
    made, wanted = (model.counterfactual(these, ["d1", "mean"], draws=2) for these in (backed, cells))
    np.testing.assert_allclose(made.X, wanted.X, rtol=1e-5, atol=1e-5)
    assert made.obs_names.equals(wanted.obs_names)
    backed.file.close()


def test_a_sparse_file_is_cut_by_its_stored_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse matrix of many genes is not read in blocks for a dense one."""
    cells = nested_design()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    monkeypatch.setattr(conversion, "BLOCK", int(cells.X.nnz))
    model = Reader(GeneNames(tuple(cells.var_names)))
    assert len(list(model.blocks(backed))) == 1
    backed.file.close()


@pytest.mark.parametrize("ready", [True, False])
def test_counts_come_with_their_totals(ready: bool) -> None:
    cells = prepared_design() if ready else nested_design()
    places = np.arange(cells.n_vars)[::-2]
    genes = GeneNames(tuple(cells.var_names[places]))
    reading = Reader(genes, "counts").read(cells)
    counts = cells.layers[keys.COUNTS] if ready else cells.X
    assert_array_equal(reading.counts_NG.toarray(), counts[:, places].toarray())
    np.testing.assert_allclose(reading.total_N, np.asarray(counts.sum(1)).ravel(), rtol=1e-5)
    unscaled = Scale.fit(reading.log1p_NG, "none")
    minibatch = reading.resident(np.zeros(cells.n_obs), unscaled).take(torch.tensor([5, 0]))
    assert_array_equal(minibatch.counts_NG.numpy(), counts[[5, 0]][:, places].toarray())
    assert_array_equal(minibatch.size_N.numpy(), reading.total_N[[5, 0]].astype(np.float32))
    assert minibatch.rows_N.tolist() == [5, 0]
    scaled = np.log1p(1e4 * reading.counts_NG.toarray() / reading.total_N[:, None])
    np.testing.assert_allclose(minibatch.x_NG.numpy(), scaled[[5, 0]], rtol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_totals_of_prepared_cells_are_over_genes_that_were_filtered_too(sparse: bool) -> None:
    cells = nested_design(sparse)
    before = np.asarray(cells.X.sum(1)).ravel()
    prepare(cells, "donor", min_genes=5, min_cells=90)
    assert 5 < cells.n_vars < 35
    genes = GeneNames(tuple(cells.var_names[::2]))
    reading = Reader(genes, "counts").read(cells)
    np.testing.assert_allclose(reading.total_N, before, rtol=1e-5)
    assert (before > np.asarray(cells.layers[keys.COUNTS].sum(1)).ravel()).all()
    assert totals_of_cp10k(*np.zeros((2, 1, 3), np.float32)).tolist() == [0.0]  # a cell without counts


class CountNetwork(LinearNetwork):
    """The toy network, which records what its losses get."""

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        self.seen = cells
        yield from super().losses(cells, progress)


class CountModel(LinearAutoencoder):
    """A toy model that needs counts."""

    reads = "counts"
    networks: ClassVar = {LinearSettings: CountNetwork}


def test_a_model_of_counts_gets_them_with_their_totals(prepared: AnnData, tmp_path: Path) -> None:
    model = CountModel("donor", settings=CountModel.preset("default").replace(**SIZES)).fit(prepared, **FIT)
    seen = model.network.seen
    counts = prepared.layers[keys.COUNTS][seen.rows_N.numpy()]
    assert_array_equal(seen.counts_NG.numpy(), counts[:, prepared.var[keys.HVG].to_numpy()].toarray())
    np.testing.assert_allclose(seen.size_N.numpy(), np.asarray(counts.sum(1)).ravel(), rtol=1e-5)
    model.save(tmp_path)
    loaded = store.read(tmp_path, CountModel)
    reading = loaded.read(prepared)
    assert reading.counts_NG is not None
    with pytest.raises(ScmedleyError, match="This model needs counts, and this reading has none"):
        model.fit(Reader.learn(prepared), **FIT)
    with pytest.raises(ScmedleyError, match="or no counts"):
        loaded.read(replace(reading, reader=replace(reading.reader, kind="log1p")))
    fixed = unfitted("autoencoder").fit(reading, **FIT)  # takes the same reading, and needs no counts later
    assert (fixed.reader.kind, fixed.read(reading) is reading) == ("log1p", True)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["reads"]  # as in a model of an earlier version
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert store.read(tmp_path, CountModel).reader.kind == "log1p"


def test_counts_that_are_not_there_are_said() -> None:
    cells = prepared_design()
    del cells.layers[keys.COUNTS]
    with pytest.raises(ScmedleyError, match="needs counts, and these cells have none"):
        Reader(GeneNames(("g7", "g2")), "counts").read(cells)


def test_learning_needs_a_gene(prepared: AnnData) -> None:
    cells = prepared.copy()
    cells.var[keys.HVG] = False
    with pytest.raises(ScmedleyError, match="No gene is flagged"):
        Reader.learn(cells)


def test_a_reading_of_other_cells_is_not_embedded(fitted, prepared: AnnData) -> None:
    mixed = fitted("mixed")
    reading, cells = mixed.read(prepared), prepared[::-1].copy()
    for model in (mixed, mixed.fixed):
        with pytest.raises(ScmedleyError, match="other cells than the AnnData, or in another order"):
            model.embed(cells, reading=reading)
    with pytest.raises(ScmedleyError, match="already made"):
        mixed.read(reading, values="counts")
    with pytest.raises(ScmedleyError, match="There are no cells"):
        mixed.get_latent_representation(reading.take(np.array([], int)))


def test_a_fit_to_a_reading_is_checked_as_a_fit_to_cells(prepared: AnnData) -> None:
    reading = Reader.learn(prepared)
    one = reading.take(np.flatnonzero(prepared.obs["donor"] == "d1"))
    with pytest.raises(ScmedleyError, match="only one batch"):
        unfitted("fixed").fit(one, **FIT)
    without = replace(reading, obs=reading.obs.drop(columns=keys.SPLIT))
    with pytest.raises(ScmedleyError, match="Pass prepared cells with a split"):
        unfitted("fixed").fit(without, **FIT)


@pytest.mark.parametrize("scale", ["standard", "min-max"])
def test_missing_genes_are_left_out(scale: str, prepared: AnnData) -> None:
    """As if each had the value that is scaled to 0, and not as if it had not been expressed."""
    model = unfitted("autoencoder", scale=scale, max_epochs=1).fit(prepared, **FIT)
    gene = model.genes[3]
    average = prepared.copy()
    x = average.layers[keys.LOGNORM].toarray()
    x[:, average.var_names.get_loc(gene)] = model.scale.centre_G[3]
    average.layers[keys.LOGNORM] = x
    without = prepared[:, prepared.var_names != gene].copy()
    with pytest.warns(ScmedleyWarning, match="1 of the model's 39 genes are missing here and left out"):
        found_NP = model.get_latent_representation(without)
    np.testing.assert_allclose(found_NP, model.get_latent_representation(average), rtol=1e-4, atol=1e-5)
    if scale == "standard":
        x[:, average.var_names.get_loc(gene)] = 0
        average.layers[keys.LOGNORM] = x
        assert np.abs(found_NP - model.get_latent_representation(average)).max() > 1e-3
