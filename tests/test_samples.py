"""Distances of samples: their nulls, their map, and tests of the columns that go with them."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from scmedley import interpret, pl
from scmedley.errors import ScmedleyError, ScmedleyWarning
from test_pl import drawn


def cells_of(spread: float, n_samples: int = 6, n_cells: int = 40, seed: int = 0) -> AnnData:
    """Cells of two labels in five dimensions; the means of samples spread in the label "a" only."""
    rng = np.random.default_rng(seed)
    code_N = np.repeat(np.arange(n_samples), 2 * n_cells)
    label_N = np.tile(np.repeat(["a", "b"], n_cells), n_samples)
    mean_DP = spread * rng.normal(size=(n_samples, 5))
    z_NP = rng.normal(size=(len(code_N), 5)) + mean_DP[code_N] * (label_N == "a")[:, None]
    obs = pd.DataFrame({"donor": [f"d{d}" for d in code_N], "kind": label_N, "age": 30.0 + code_N})
    obs["sex"] = np.where(code_N % 2, "f", "m")
    obs["quality"] = rng.normal(size=len(obs))
    cells = AnnData(obs=obs.set_axis([f"c{i}" for i in range(len(obs))]), obsm={"X_pca": z_NP})
    cells.uns["mean"] = mean_DP
    return cells


def pairs_of(table: pd.DataFrame, label: str) -> pd.DataFrame:
    return table[table["label"] == label]


def test_distances_are_those_of_the_means_without_their_noise() -> None:
    cells = cells_of(1.0)
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=99)
    assert len(table) == 2 * 15
    far, none = pairs_of(table, "a"), pairs_of(table, "b")
    expected = pdist(cells.uns["mean"]) / np.sqrt(5)
    assert np.abs(far["distance"] - expected).mean() < 0.2 * expected.mean()
    mean = cells.obs.assign(**{str(i): z for i, z in enumerate(cells.obsm["X_pca"].T)})
    mean = mean[mean["kind"] == "a"].groupby("donor")[list("01234")].mean()
    assert_allclose(far["observed"], pdist(mean) / np.sqrt(5))
    assert (far["p"] == 0.01).all()
    assert far["label_p"].iloc[0] == 0.01
    assert none["label_p"].iloc[0] > 0.05
    assert none["distance"].mean() < 0.6 * none["observed"].mean()
    # Of means of 40 cells whose five dimensions have variance 1.
    assert_allclose(none["null"].mean(), np.sqrt(2 / 40) * stats.chi(5).mean() / np.sqrt(5), rtol=0.03)


def test_p_values_are_uniform_without_differences() -> None:
    p = [
        interpret.sample_distances(
            cells_of(0.0, 4, 12, seed), "donor", use="X_pca", permutations=39, seed=seed
        )["label_p"].iloc[0]
        for seed in range(60)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_order_of_cells_and_the_scale_of_genes_do_not_matter() -> None:
    cells = cells_of(0.5)
    shuffled = cells[np.random.default_rng(1).permutation(cells.n_obs)].copy()
    shuffled.obsm["X_pca"] = 2 * shuffled.obsm["X_pca"] + 7
    one, other = (interpret.sample_distances(c, "donor", use="X_pca") for c in (cells, shuffled))
    assert_allclose(other["distance"], 2 * one["distance"])
    assert list(other["sample_1"]) == list(one["sample_1"])


def test_distances_of_a_model_are_posterior_means(fitted, prepared) -> None:
    model = fitted("random")
    options = {"model": model, "permutations": 19, "draws": 8, "max_cells": 20}
    table = interpret.sample_distances(prepared, "donor", "cell_type", **options)
    assert set(table["label"]) == set(prepared.obs["cell_type"])
    assert (table["sd"] > 0).all()
    assert (table["distance"] > 0).all()
    again = interpret.sample_distances(prepared, "donor", "cell_type", **options)
    pd.testing.assert_frame_equal(table, again)
    plain = interpret.sample_distances(prepared, "donor", "cell_type", permutations=19)
    assert_allclose(table["observed"], plain["observed"], rtol=1e-4)  # of the same genes
    with pytest.raises(ScmedleyError, match="The samples are not those whose effects the model has"):
        interpret.sample_distances(prepared, "condition", model=model)


def test_a_map_keeps_the_distances() -> None:
    cells = cells_of(3.0, n_samples=4)
    cells.obsm["X_pca"] = cells.obsm["X_pca"][:, :2]
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    places = interpret.sample_map(table, cells.obs, "donor", label="a")
    matrix = interpret.sample_matrix(table, "a")
    assert_allclose(squareform(pdist(places[["x", "y"]])), matrix, atol=0.02 * matrix.to_numpy().max())
    assert places["share_x"].iloc[0] + places["share_y"].iloc[0] > 0.98
    assert list(places.columns[-2:]) == ["age", "sex"]  # not quality, which varies within donors
    both = interpret.sample_matrix(table)
    mean = (pairs_of(table, "a")["distance"] ** 2 + pairs_of(table, "b")["distance"].to_numpy() ** 2) / 2
    assert_allclose(squareform(both), np.sqrt(mean))


def test_samples_that_share_no_label_are_left_out() -> None:
    cells = cells_of(1.0)
    cells = cells[~((cells.obs["donor"] == "d0") & (cells.obs["kind"] == "a"))]
    cells = cells[~((cells.obs["donor"] == "d1") & (cells.obs["kind"] == "b"))]
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    with pytest.warns(ScmedleyWarning, match="'d0' share no label"):
        assert list(interpret.sample_matrix(table).index) == [f"d{i}" for i in range(1, 6)]


def test_association_is_the_analysis_of_variance_in_one_dimension() -> None:
    cells = cells_of(1.0, n_samples=9)
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    mean_D = cells.uns["mean"][:, 0]
    one, other = np.triu_indices(9, 1)
    table = pairs_of(table, "a").assign(distance=np.abs(mean_D[one] - mean_D[other]))
    found = interpret.sample_association(table, cells.obs, "donor").set_index("column")
    f, p = stats.f_oneway(mean_D[::2], mean_D[1::2])
    assert found.loc["sex", "pseudo_f"] == pytest.approx(f)
    assert found.loc["sex", "p"] == pytest.approx(p, abs=0.05)
    line = stats.linregress(np.arange(9), mean_D)
    assert found.loc["age", "r2"] == pytest.approx(line.rvalue**2)
    assert found.loc["age", "p"] == pytest.approx(line.pvalue, abs=0.05)
    assert np.isnan(found.loc["age", "groups"])
    assert found.loc["sex", "groups"] == 2
    assert found.loc["sex", "least_p"] == pytest.approx(1 / 126)  # 5 of 9


def test_few_samples_cannot_give_a_small_p() -> None:
    cells = cells_of(0.01, n_samples=4)
    cells.obsm["X_pca"][(cells.obs["sex"] == "f").to_numpy()] += 5.0
    table = interpret.sample_distances(cells, "donor", use="X_pca", permutations=9)
    found = interpret.sample_association(table, cells.obs, "donor", ["sex"])
    assert found["least_p"].item() == pytest.approx(1 / 3)  # two pairs of four
    assert found["p"].item() == pytest.approx(1 / 3, abs=0.05)
    assert found["r2"].item() > 0.99
    for seed in range(5):  # drawn permutations meet the three arrangements more or less often
        one = interpret.sample_association(table, cells.obs, "donor", ["sex"], permutations=99, seed=seed)
        assert one["p"].item() >= one["least_p"].item()


def test_values_that_are_missing_have_no_distances() -> None:
    cells = cells_of(1.0)
    table = interpret.sample_distances(cells, "donor", use="X_pca", permutations=1)
    with pytest.raises(ScmedleyError, match="'none' is not a column of obs"):
        interpret.sample_association(table, cells.obs, "none")
    cells.obsm["X_pca"][0] = np.nan
    with pytest.raises(ScmedleyError, match="not a dense matrix of finite numbers"):
        interpret.sample_distances(cells, "donor", use="X_pca")


def samples_of_donors(
    n_donors: int, seed: int, each: int = 2, moved: float = 0.0
) -> tuple[pd.DataFrame, ...]:
    """Distances and annotation of ``each`` samples of each donor; donors differ, and so may their conditions."""
    rng = np.random.default_rng(seed)
    donor_D = np.repeat(np.arange(n_donors), each)
    condition_D = np.tile(["ctrl", "stim"], n_donors * each // 2)
    z_D = rng.normal(size=n_donors)[donor_D] + 0.2 * rng.normal(size=len(donor_D))
    z_D += moved * (condition_D == "stim")
    names = np.array([f"s{i}" for i in range(len(donor_D))], dtype=object)
    obs = pd.DataFrame({"sample": names, "condition": condition_D})
    obs["donor"], obs["sex"] = donor_D.astype(str), np.where(donor_D % 2, "f", "m")
    one, other = np.triu_indices(len(donor_D), 1)
    pairs = {"sample_1": names[one], "sample_2": names[other], "distance": np.abs(z_D[one] - z_D[other])}
    return pd.DataFrame({"label": "a"} | pairs), obs


def test_association_permutes_donors_and_not_their_samples() -> None:
    p: dict[str | None, list[float]] = {None: [], "donor": []}
    for seed in range(40):
        table, obs = samples_of_donors(8, seed, each=4)
        for key, found in p.items():
            how = {"donor_key": key, "permutations": 59, "seed": seed}
            found.append(interpret.sample_association(table, obs, "sample", ["sex"], **how)["p"].item())
    assert stats.kstest(p["donor"], "uniform").pvalue > 0.05
    assert np.mean(np.array(p[None]) < 0.1) > 0.25  # which should be 0.1: samples are not independent


def test_association_of_a_condition_compares_samples_within_donors() -> None:
    table, obs = samples_of_donors(8, 0, moved=0.8)
    within, among = (
        interpret.sample_association(table, obs, "sample", donor_key=key).set_index("column")
        for key in ("donor", None)
    )
    assert list(within.index) == ["condition", "sex"]
    assert within.loc["condition", "least_p"] == pytest.approx(1 / 2**7)
    assert within.loc["condition", "p"] < 0.02 < among.loc["condition", "p"]
    assert within.loc["sex", "least_p"] == pytest.approx(1 / 35)  # four of eight donors
    obs.loc[0, "donor"] = "7"
    obs = pd.concat([obs, obs.assign(donor="9")])
    with pytest.raises(ScmedleyError, match=r"'s0' has several values of obs\['donor'\], or none"):
        interpret.sample_association(table, obs, "sample", ["sex"], donor_key="donor")
    with pytest.raises(ScmedleyError, match="no column 'person'"):
        interpret.sample_association(table, obs, "sample", donor_key="person")


def test_many_samples_have_a_p_value() -> None:
    samples = [f"s{i}" for i in range(1100)]
    one, other = np.triu_indices(len(samples), 1)
    place = np.random.default_rng(0).normal(size=len(samples))
    table = pd.DataFrame(
        {"label": "all", "sample_1": np.array(samples)[one], "sample_2": np.array(samples)[other]}
    )
    table["distance"] = np.abs(place[one] - place[other])
    obs = pd.DataFrame({"sample": samples * 2, "age": [*place, *place], "sex": ["f", "m"] * 1100})
    found = interpret.sample_association(table, obs, "sample", permutations=9)
    assert found["least_p"].tolist() == [0.1, 0.1]
    assert found.set_index("column").loc["age", "r2"] > 0.99


def test_association_finds_what_moves_samples() -> None:
    cells = cells_of(0.1, n_samples=10)
    moved = ((cells.obs["sex"] == "f") & (cells.obs["kind"] == "a")).to_numpy()
    cells.obsm["X_pca"][moved] += 1.0
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    found = interpret.sample_association(table, cells.obs, "donor", ["sex", "age"]).set_index(
        ["label", "column"]
    )
    assert found.loc[("a", "sex"), "q"] < 0.05
    assert found.loc[("a", "sex"), "r2"] > 0.8
    assert found.loc[("b", "sex"), "p"] > 0.05
    with pytest.raises(ScmedleyError, match=r"'quality': not a column with one value.*'age', 'sex'"):
        interpret.sample_association(table, cells.obs, "donor", ["quality"])


def test_what_is_missing_is_named() -> None:
    cells = cells_of(1.0)
    with pytest.raises(ScmedleyError, match="obsm has no 'X_none'; it has 'X_pca'"):
        interpret.sample_distances(cells, "donor", use="X_none")
    with pytest.raises(ScmedleyError, match="No label has two samples"):
        interpret.sample_distances(cells, "donor", use="X_pca", min_cells=1000)
    cells.obs.loc[cells.obs["donor"] != "d0", "kind"] = "b"
    with pytest.warns(ScmedleyWarning, match="'a': fewer than two samples"):
        interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    with pytest.raises(ScmedleyError, match="no label 'c'"):
        interpret.sample_matrix(interpret.sample_distances(cells, "donor", use="X_pca", permutations=9), "c")


def test_figures_of_samples() -> None:
    cells = cells_of(1.0)
    table = interpret.sample_distances(cells, "donor", "kind", use="X_pca", permutations=9)
    places = interpret.sample_map(table, cells.obs, "donor")
    figure = pl.sample_distances(table, "a", columns=places, color="sex")
    drawn(figure)
    (image,) = [ax.images[0] for ax in figure.axes if ax.images and ax.images[0].get_array().ndim == 2]
    order = [text.get_text() for text in image.axes.get_yticklabels()]
    matrix = interpret.sample_matrix(table, "a")
    assert_allclose(image.get_array(), matrix.loc[order, order])
    figure = pl.sample_map(places, "sex")
    drawn(figure)
    assert {text.get_text() for text in figure.axes[0].texts} == set(places["sample"])
    drawn(pl.sample_map(places))
    drawn(pl.sample_distances(table))
    with pytest.raises(ScmedleyError, match="The samples have no column 'size'"):
        pl.sample_map(places, "size")
    with pytest.raises(ScmedleyError, match="without the table of columns"):
        pl.sample_distances(table, color="sex")
