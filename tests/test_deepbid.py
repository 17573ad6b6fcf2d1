"""DeepBID by default: its loss by hand, clusters of fitted and of new cells, both presets, odd input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import DeepBID, DeepBIDSettings, FixedEffects, load
from scmedley.models.deepbid_network import DeepBIDNetwork
from scmedley.pp import prepare
from scmedley.train import loop
from scmedley.train.loop import Progress
from tiny import FIT, SIZES, differing, nested_design, prepared_design, weights

FEW = {**SIZES, "max_epochs": 6}


def unfitted(batch_key: str | None = "donor", n_clusters: int | None = None, **changes: Any) -> DeepBID:
    return DeepBID(batch_key, settings=DeepBIDSettings(**{**FEW, **changes}), n_clusters=n_clusters)


def published(n_clusters: int | None, **changes: Any) -> DeepBID:
    settings = DeepBID.preset("paper").replace(
        **{"hidden": (64,), "n_latent": 32, "max_epochs": 2, "batch_size": 32, **changes}
    )
    return DeepBID("donor", settings=settings, n_clusters=n_clusters)


def three_types(n: int = 240, seed: int = 0) -> AnnData:
    """Counts of three clearly different types of cells, of two donors."""
    rng = np.random.default_rng(seed)
    kind, donor = np.arange(n) % 3, np.arange(n) // 3 % 2
    mean = rng.gamma(2.0, 1.0, 60) * np.exp(1.5 * rng.normal(size=(3, 60)))[kind]
    mean = mean * np.exp(0.3 * rng.normal(size=(2, 60)))[donor]
    obs = {"donor": np.array(["d1", "d2"])[donor], "cell_type": np.array(["B", "NK", "T"])[kind]}
    names = [f"cell{i}" for i in range(n)]
    adata = AnnData(
        csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame(obs, index=names, dtype="category"),
        var=pd.DataFrame(index=[f"g{i}" for i in range(60)]),
    )
    prepare(adata, "donor", label_key="cell_type", min_genes=5, min_cells=1)
    return adata


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return prepared_design()


@pytest.fixture(scope="module")
def fitted(cells: AnnData) -> DeepBID:
    return unfitted().fit(cells, **FIT)


@pytest.fixture(scope="module")
def types() -> AnnData:
    return three_types()


@pytest.fixture(scope="module")
def of_types(types: AnnData) -> DeepBID:
    return unfitted(max_epochs=40).fit(types, **FIT)


def test_the_offset_term_is_the_kl_of_the_posterior_without_its_batch() -> None:
    rng = np.random.default_rng(0)
    network = DeepBIDNetwork(10, 3, DeepBIDSettings(hidden=(5,), n_latent=2)).eval()
    b_N = torch.tensor([0, 1, 2, 0, 2, 2, 1])
    x_NG = torch.as_tensor(rng.normal(size=(7, 10)), dtype=torch.float32)
    counts_NG = torch.as_tensor(rng.poisson(2.0, (7, 10)), dtype=torch.float32)
    network.latent_effects.update(torch.randn(60, 2), torch.arange(60) % 3)
    minibatch = Minibatch(x_NG, b_N, counts_NG=counts_NG, size_N=counts_NG.sum(1) * 2)
    ((_, terms),) = network.losses(minibatch, Progress("training", 1.0))
    mean_NP, log_variance_NP = (t.detach() for t in network.posterior(x_NG))
    delta_NP = network.latent_effects.offset(mean_NP, b_N)
    by_hand = 0.5 * (delta_NP.square() / log_variance_NP.exp()).sum(1).mean()
    assert float(by_hand) > 0
    assert_allclose(float(terms["offset"].value.detach()), float(by_hand), rtol=1e-5)
    assert terms["offset"].weight == 1.0


def test_the_offset_term_moves_the_encoder() -> None:
    network = DeepBIDNetwork(10, 3, DeepBIDSettings(hidden=(5,), n_latent=2))
    network.latent_effects.update(torch.randn(60, 2), torch.arange(60) % 3)
    mean_NP, log_variance_NP = network.posterior(torch.randn(6, 10))
    network.latent_effects.kl(mean_NP, log_variance_NP, torch.arange(6) % 3).backward()
    gradient = network.encoder.linears[0].weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_clear_types_are_found_and_kept_for_other_files(
    of_types: DeepBID, types: AnnData, tmp_path: Path
) -> None:
    adata = types.copy()
    of_types.embed(adata)
    of_types.cluster(adata)
    table = pd.crosstab(adata.obs["cell_type"], adata.obs[keys.CLUSTER])
    assert table.shape == (3, 3)
    assert (table.to_numpy() > 0).sum() == 3
    assert adata.obsm[keys.MEMBERSHIP].shape == (adata.n_obs, 3)
    assert_allclose(adata.obsm[keys.MEMBERSHIP].sum(1), 1, rtol=1e-6)
    assert adata.uns[keys.CLUSTERS]["evidence"]["stands"].all()
    of_types.save(tmp_path / "model")
    loaded, new = load(tmp_path / "model"), three_types(60)[:, ::-1].copy()
    assert isinstance(loaded, DeepBID)
    loaded.cluster(new)
    again = three_types(60)[:, ::-1].copy()
    of_types.cluster(again)
    assert_array_equal(new.obs[keys.CLUSTER], again.obs[keys.CLUSTER])
    pure = new.obs.groupby("cell_type", observed=True)[keys.CLUSTER].nunique()
    assert (pure == 1).all()


def test_damaged_clusters_do_not_load(of_types: DeepBID, tmp_path: Path) -> None:
    of_types.save(tmp_path / "model")
    path = tmp_path / "model" / "weights.safetensors"
    tensors = load_file(path)
    tensors["clusters/cluster_C"] += 1
    save_file(tensors, path)
    with pytest.raises(
        ScmedleyError, match=r"cannot be read \(The saved clusters are damaged: .*Fit and save it again"
    ):
        load(tmp_path / "model")


def test_coarser_and_finer_clusters(of_types: DeepBID, types: AnnData) -> None:
    adata = types.copy()
    for how, expected in (({"k": 2}, 2), ({"level": -2}, 1), ({"level": 1}, 4)):
        of_types.cluster(adata, **how)  # type: ignore[arg-type]
        assert adata.obsm[keys.MEMBERSHIP].shape[1] == expected
        assert len(adata.obs[keys.CLUSTER].cat.categories) == expected
    assert not adata.uns[keys.CLUSTERS]["evidence"]["stands"].all()
    with pytest.raises(ScmedleyError, match="k=0 clusters cannot be cut from this tree"):
        of_types.cluster(adata, 0)


def test_the_number_of_clusters_can_be_given(types: AnnData) -> None:
    for k in (1, 5):
        model = unfitted(n_clusters=k, max_epochs=2).fit(types, **FIT)
        assert model.clusters is not None
        assert model.clusters.k == k
    with pytest.raises(ScmedleyError, match="n_clusters=999 is more than the 240 cells"):
        unfitted(n_clusters=999).fit(types, **FIT)
    wrong: Any
    for wrong in (0, -1, 2.5, True, "3"):  # before any training
        with pytest.raises(ScmedleyError, match="must be a whole number, 1 or more"):
            unfitted(n_clusters=wrong)


def test_training_resumes_to_the_same_bits(
    cells: AnnData, fitted: DeepBID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    after_epoch = DeepBIDNetwork.after_epoch

    def stop_in_the_fifth(*given: Any) -> None:
        epochs.append(0)
        if len(epochs) == 5:
            raise KeyboardInterrupt
        after_epoch(*given)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(DeepBIDNetwork, "after_epoch", stop_in_the_fifth)
        assert unfitted().fit(cells, **FIT, checkpoint=path).fitted["stopped"] == "interrupted"
    resumed = unfitted().fit(cells, **FIT, checkpoint=path)
    assert not differing(weights(resumed.network), weights(fitted.network))
    assert resumed.clusters is not None
    assert fitted.clusters is not None
    assert_array_equal(resumed.clusters.code_N, fitted.clusters.code_N)


def test_renamed_batches_change_nothing(fitted: DeepBID, cells: AnnData) -> None:
    renamed = cells.copy()
    renamed.obs["donor"] = renamed.obs["donor"].cat.rename_categories({"d1": "x1", "d2": "x2", "d3": "x3"})
    model = unfitted().fit(renamed, **FIT)
    assert_array_equal(model.get_latent_representation(renamed), fitted.get_latent_representation(cells))
    assert_array_equal(
        model.counterfactual(renamed, "x2").X,  # type: ignore[union-attr]
        fitted.counterfactual(cells, "d2").X,  # type: ignore[union-attr]
    )


def test_cells_of_a_new_batch_are_adapted_to(fitted: DeepBID, cells: AnnData) -> None:
    new = cells[cells.obs["donor"] == "d1"].copy()
    new.obs["donor"] = "d4"
    model = fitted.adapt(new, steps=5)
    model.cluster(new)
    assert model.denoise(new, to="d4").X.shape == new.shape  # type: ignore[union-attr]
    network, z_NP = model.network, torch.tensor(model.get_latent_representation(new))
    with torch.no_grad():
        before_NG = network.decode(z_NP, torch.tensor([3]))
        network.size_B[2] *= 100  # the typical total of the last batch of the fit
        torch.testing.assert_close(network.decode(z_NP, torch.tensor([3])), before_NG)
    assert_array_equal(model.get_latent_representation(cells), fitted.get_latent_representation(cells))


def test_no_batch_column(cells: AnnData) -> None:
    model = unfitted(None).fit(cells, **FIT)
    model.cluster(cells.copy())
    assert "offset" not in set(model.history["term"])
    assert not model.has_effects


def test_log_normalised_values_alone_have_a_gaussian(tmp_path: Path) -> None:
    adata = prepared_design()
    del adata.layers[keys.COUNTS]
    adata.X = adata.layers[keys.LOGNORM].copy()
    model = unfitted()
    with pytest.warns(ScmedleyWarning, match="no counts"):
        model.fit(adata, **FIT)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_array_equal(loaded.get_latent_representation(adata), model.get_latent_representation(adata))
    assert np.isfinite(model.denoise(adata).X).all()  # type: ignore[union-attr]
    with pytest.raises(ScmedleyError, match="likelihood of counts"):
        model.differential_expression(adata, "cell_type", "B")


@pytest.mark.filterwarnings("error::scmedley.errors.ScmedleyWarning")  # that there are no counts is not true
def test_cells_that_are_not_prepared_are_named_first() -> None:
    with pytest.raises(ScmedleyError, match=r"not prepared .* Run sm\.pp\.prepare"):
        unfitted().fit(nested_design(), **FIT)


def test_a_batch_of_three_cells() -> None:
    adata = nested_design()
    small = adata.obs["donor"] == "d1"
    keep = ~small | (np.cumsum(small) <= 3)
    adata = adata[keep].copy()
    prepare(adata, "donor", min_genes=5, min_cells=1)
    part = np.where(np.arange(adata.n_obs) % 5 == 0, "validation", "train").astype(object)
    part[(adata.obs["donor"] == "d1").to_numpy()] = "train"
    adata.obs[keys.SPLIT] = pd.Categorical(part)
    model = unfitted().fit(adata, **FIT)
    model.cluster(adata)
    assert np.isfinite(model.get_latent_representation(adata)).all()


def test_a_large_denoised_matrix_is_written_in_chunks(
    fitted: DeepBID, cells: AnnData, tmp_path: Path
) -> None:
    import anndata

    path = fitted.denoise(cells, out=tmp_path / "denoised.zarr")
    stored = anndata.read_zarr(path)  # type: ignore[arg-type]
    assert_array_equal(stored.X, fitted.denoise(cells).X)  # type: ignore[union-attr]
    assert_array_equal(stored.obs_names, cells.obs_names)
    with pytest.raises(ScmedleyError, match=r"must end in \.zarr"):
        fitted.denoise(cells, out=tmp_path / "denoised.h5ad")
    with pytest.warns(ScmedleyWarning, match="replaced: it held an earlier Zarr store"):
        fitted.denoise(cells, out=path)  # type: ignore[arg-type]
    (path / "notes.txt").write_text("mine")  # type: ignore[operator]
    with pytest.raises(ScmedleyError, match=r"holds more than an AnnData \('notes.txt'\)"):
        fitted.denoise(cells, out=path)  # type: ignore[arg-type]
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ScmedleyError, match="is no Zarr store"):
        fitted.denoise(cells, out=other)
    assert [p.name for p in other.iterdir()] == ["notes.txt"]


# --- the publication ---------------------------------------------------------------------------------


def test_the_published_model_has_the_given_clusters(types: AnnData, tmp_path: Path) -> None:
    adata = types.copy()
    model = published(3).fit(adata, **FIT)
    model.embed(adata)
    model.cluster(adata)
    sizes = adata.obs[keys.CLUSTER].value_counts(sort=False)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert_allclose(adata.obsm[keys.MEMBERSHIP].sum(1), 1, rtol=1e-5)
    model.save(tmp_path / "model")
    loaded, again = load(tmp_path / "model"), types.copy()
    loaded.cluster(again)
    assert_array_equal(again.obs[keys.CLUSTER], adata.obs[keys.CLUSTER])
    assert np.isfinite(model.denoise(adata).X).all()  # type: ignore[union-attr]
    with pytest.raises(ScmedleyError, match="no tree of merges"):
        model.cluster(adata, level=-1)
    with pytest.raises(ScmedleyError, match="has no posterior"):
        model.log_likelihood(adata)
    with pytest.raises(ScmedleyError, match="no batch effects"):
        model.counterfactual(adata, "d1")


def test_the_published_model_needs_the_number_of_clusters(types: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="needs the number of clusters"):
        published(None).fit(types, **FIT)


def test_other_models_name_one_that_clusters(cells: AnnData) -> None:
    with pytest.raises(ScmedleyError, match=r"^FixedEffects finds no clusters\. Fit a DeepBID"):
        FixedEffects("donor").cluster(cells)


def test_a_fit_does_not_change_the_settings_for_good(types: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scmedley.models.deepbid_published.LARGE", 100)
    model = published(3, lambda1=2.0).fit(types, **FIT)
    assert (model.settings.lambda1, model.settings.lambda2) == (2.0, 0.01)
    assert (model.network.settings.lambda1, model.network.settings.lambda2) == (2.0, 1e-4)
    without = prepared_design()
    del without.layers[keys.COUNTS]
    without.X = without.layers[keys.LOGNORM].copy()
    model = unfitted(max_epochs=1)
    with pytest.warns(ScmedleyWarning, match="no counts"):
        model.fit(without, **FIT)
    assert model.fit(prepared_design(), **FIT).settings.counts


def test_cells_without_counts_are_warned_of_once() -> None:
    adata = prepared_design()
    del adata.layers[keys.COUNTS]
    adata.X = adata.layers[keys.LOGNORM].copy()
    model = unfitted(max_epochs=1)
    with pytest.warns(ScmedleyWarning, match="no counts"):
        model.fit_to_values(adata)  # as a run does before it reads the cells
    model.fit(adata, **FIT)  # a second warning would be an error here
    assert model.settings.likelihood == "gaussian"
