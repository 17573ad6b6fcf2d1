"""Layouts of genes: oracles for the correlations, and what holds for every picture and every layout."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, lil_matrix

from scmedley import datasets, genomap, keys, pp
from scmedley.errors import ScmedleyError
from scmedley.interpret.genomap import Layout


def values(n_cells: int = 80, n_genes: int = 30, constant: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Genes in correlated groups, about half zeros."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(n_cells, 4))
    x = groups[:, rng.integers(4, size=n_genes)] * rng.random(n_genes) + rng.normal(size=(n_cells, n_genes))
    x = np.maximum(x, 0).astype(np.float32)
    x[:, list(constant)] = 1.5
    return x


def names(n: int) -> list[str]:
    return [f"g{i}" for i in range(n)]


def centre_distance(layout: Layout) -> np.ndarray:
    """How far a gene is from the middle, by the picture's own sides."""
    height, width = layout.shape
    up = (layout.rows + 0.5) / height - 0.5
    right = (layout.columns + 0.5) / width - 0.5
    return np.hypot(up, right)


@pytest.fixture(scope="module")
def real() -> tuple[csr_matrix, list[str]]:
    """sc_mixology, log1p CP10k."""
    adata = datasets.sc_mixology()
    pp.prepare(adata, "batch", label_key="cell_type")
    return adata.layers["log1p_cp10k"], list(adata.var_names)


# --- correlations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("block", [7, 80, 4096])
def test_correlations_are_those_of_numpy(sparse: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genomap, "BLOCK", block)
    x = values(constant=(3, 11))
    found, constant = genomap.correlations(csr_matrix(x) if sparse else x)
    varying = np.setdiff1d(np.arange(30), [3, 11])
    expected = np.zeros((30, 30))
    expected[np.ix_(varying, varying)] = np.corrcoef(x[:, varying].T)
    np.fill_diagonal(expected, 0)
    assert_allclose(found, expected, atol=2e-6)
    assert_array_equal(np.flatnonzero(constant), [3, 11])


def test_correlations_of_more_rows_than_a_block() -> None:
    x = values(n_cells=2 * genomap.BLOCK + 17, n_genes=6)
    expected = np.corrcoef(x.T)
    np.fill_diagonal(expected, 0)
    assert_allclose(genomap.correlations(x)[0], expected, atol=1e-5)


def test_correlations_of_a_large_mean_and_a_small_spread() -> None:
    x = (1000 + values(n_genes=5)).astype(np.float64)
    expected = np.corrcoef(x.T)
    np.fill_diagonal(expected, 0)
    assert_allclose(genomap.correlations(x)[0], expected, atol=1e-5)


def test_of_many_cells_a_draw_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(n_cells=400)
    whole = genomap.correlations(x)[0]
    monkeypatch.setattr(genomap, "MAX_CELLS", 300)
    one, again, other = (genomap.correlations(x, seed=seed)[0] for seed in (1, 1, 2))
    assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 0 < np.abs(one - whole).max() < 0.3


# --- layouts ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n_genes=st.integers(1, 60), n_constant=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_pixel_holds_one_gene_at_most(n_genes: int, n_constant: int, seed: int) -> None:
    constant = tuple(range(min(n_constant, n_genes)))
    x = values(30, n_genes, constant, seed)
    made = genomap.layout(x, names(n_genes))
    pixels = set(zip(made.rows.tolist(), made.columns.tolist(), strict=True))
    assert len(pixels) == n_genes
    side = int(np.ceil(np.sqrt(n_genes)))
    assert made.shape == (side, side)
    assert made.rows.min() >= 0
    assert made.columns.min() >= 0
    assert max(made.rows.max(), made.columns.max()) < side
    drawn = genomap.images(x, made)
    assert_array_equal(genomap.expression(drawn, made), x)
    assert np.isnan(drawn[0]).sum() == side * side - n_genes
    # Pixels without a gene are farther from the middle than any with one, or as far.
    distance = centre_distance(made)
    empty = np.argwhere(np.isnan(drawn[0]))
    for row, column in empty:
        assert np.hypot((row + 0.5) / side - 0.5, (column + 0.5) / side - 0.5) >= distance.max() - 1e-9
    is_constant = made.constant
    if is_constant.any() and not is_constant.all():
        assert distance[is_constant].min() >= distance[~is_constant].max() - 1e-9


def test_interaction_rises_from_the_middle(real) -> None:
    x, genes = real
    made = genomap.layout(x, genes)
    correlation, constant = genomap.correlations(x)
    assert not constant.any()
    interaction = np.abs(correlation).sum(1)
    assert stats.spearmanr(interaction, centre_distance(made)).statistic >= 0.99


def test_neighbours_correlate_more_than_in_other_layouts(real) -> None:
    """On cells that had no part in the layout: it looks for correlations, and finds chance ones too."""
    x, genes = real
    made = genomap.layout(x[::2], genes)
    own, _ = genomap.correlations(x[::2])
    other, _ = genomap.correlations(x[1::2])
    order = np.random.default_rng(0).permutation(len(genes))
    at_random = Layout(made.genes, made.rows[order], made.columns[order], made.shape, made.constant)
    ours, *others = (
        genomap.neighbour_correlation(other, one) for one in (made, radius_only(own, made), at_random)
    )
    assert ours > 2 * max(others)
    assert ours > 0.2


def radius_only(correlation: np.ndarray, like: Layout) -> Layout:
    """Interaction ranks the distance from the middle, and the angle is the order of the pixels in a ring."""
    order = np.argsort(np.abs(correlation).sum(1), kind="stable")
    pixels = np.lexsort((like.columns, like.rows, centre_distance(like).round(9)))
    rows, columns = np.empty_like(like.rows), np.empty_like(like.columns)
    rows[order], columns[order] = like.rows[pixels], like.columns[pixels]
    return Layout(like.genes, rows, columns, like.shape, like.constant)


def test_neighbour_correlation_by_hand() -> None:
    correlation = np.array([[0, 0.5, -0.2], [0.5, 0, 0.8], [-0.2, 0.8, 0]], np.float32)
    made = Layout(("a", "b", "c"), np.array([0, 0, 1]), np.array([0, 1, 0]), (2, 2), np.zeros(3, bool))
    assert genomap.neighbour_correlation(correlation, made) == pytest.approx((0.5 - 0.2) / 2)
    alone = Layout(("a",), np.array([0]), np.array([0]), (1, 1), np.zeros(1, bool))
    assert np.isnan(genomap.neighbour_correlation(np.zeros((1, 1), np.float32), alone))


@pytest.mark.parametrize("seed", range(4))
def test_moves_never_lose_and_never_beat_the_best(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid of 2 x 3, in one band, all 720 layouts can be tried."""
    monkeypatch.setattr(genomap, "BANDS", 1)
    x = values(60, 6, seed=seed)
    correlation, constant = genomap.correlations(x)
    found = []
    for rounds in (0, 1, genomap.ROUNDS):
        monkeypatch.setattr(genomap, "ROUNDS", rounds)
        made = genomap.layout(x, names(6), shape=(2, 3))
        found.append(genomap.neighbour_correlation(correlation, made))
    assert found[0] <= found[1] + 1e-6
    assert found[1] <= found[2] + 1e-6
    rows, columns = np.indices((2, 3)).reshape(2, -1)
    every = [
        genomap.neighbour_correlation(
            correlation, Layout(made.genes, rows[list(p)], columns[list(p)], (2, 3), constant)
        )
        for p in itertools.permutations(range(6))
    ]
    assert found[2] <= max(every) + 1e-6
    assert found[2] > np.mean(every)


def test_the_swaps_gain_on_real_data(real, monkeypatch: pytest.MonkeyPatch) -> None:
    x, genes = real
    correlation, _ = genomap.correlations(x)
    found = []
    for rounds in (0, 1, 3):
        monkeypatch.setattr(genomap, "ROUNDS", rounds)
        made = genomap.layout(x, genes)
        found.append(genomap.neighbour_correlation(correlation, made))
    assert found[0] < found[1] <= found[2]
    # The order they start in, by the angle of the spectral embedding, is a gain by itself.
    assert found[0] > 1.5 * genomap.neighbour_correlation(correlation, radius_only(correlation, made))


def test_the_same_input_gives_the_same_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genomap, "MAX_CELLS", 50)
    x = values()
    one, again, other = (genomap.layout(x, names(30), seed=seed) for seed in (0, 0, 1))
    assert_same(one, again)
    assert not (np.array_equal(one.rows, other.rows) and np.array_equal(one.columns, other.columns))


def test_sparse_and_dense_give_the_same_layout() -> None:
    x = values(constant=(2,))
    assert_same(genomap.layout(x, names(30)), genomap.layout(csr_matrix(x), names(30)))


def test_a_shape_of_ones_own() -> None:
    x = values()
    made = genomap.layout(x, names(30), shape=(3, 12))
    assert genomap.images(x, made).shape == (80, 3, 12)
    assert_array_equal(genomap.expression(genomap.images(x, made), made), x)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_values_does_not_matter(scale: float) -> None:
    x = values().astype(np.float64)
    wanted, found = (genomap.correlations(given)[0] for given in (x, x * scale))
    assert_allclose(found, wanted, atol=1e-5)
    assert len(genomap.layout(x * scale, names(30)).genes) == 30


def test_many_genes_none_of_which_varies() -> None:
    made = genomap.layout(np.ones((20, 30)), names(30))
    assert made.constant.all()
    assert len(set(zip(made.rows, made.columns, strict=True))) == 30


def test_all_genes_constant() -> None:
    made = genomap.layout(np.ones((5, 4), np.float32), names(4))
    assert made.constant.all()
    assert len(set(zip(made.rows, made.columns, strict=True))) == 4


@pytest.mark.parametrize(
    ("x", "n_names", "shape", "message"),
    [
        (values(), 29, None, "29 gene names. Give one name per column"),
        (values()[:1], 30, None, "1 cells have no correlations"),
        (values(), 30, (5, 5), "5 x 5 pixels does not hold 30 genes"),
        (values(), 30, (0, 50), "does not hold"),
        (np.zeros((5, 0)), 0, None, "one name per column"),
        (values()[0], 30, None, "A table of numbers"),
    ],
)
def test_what_no_layout_can_be_made_of(x, n_names, shape, message) -> None:
    with pytest.raises(ScmedleyError, match=message):
        genomap.layout(x, names(n_names), shape=shape)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(sparse: bool, bad: float) -> None:
    x = values()
    x[4, 7] = bad
    with pytest.raises(ScmedleyError, match="Gene 'g7' has values that are not finite"):
        genomap.layout(csr_matrix(x) if sparse else x, names(30))


def test_pictures_that_do_not_fit() -> None:
    x = values()
    made = genomap.layout(x, names(30))
    with pytest.raises(ScmedleyError, match=r"\(80, 29\) do not fit a layout of 30 genes"):
        genomap.images(x[:, 1:], made)
    with pytest.raises(ScmedleyError, match=r"\(1, 5, 6\) do not fit"):
        genomap.expression(np.zeros((1, 5, 6), np.float32), made)


def test_tables_of_any_kind_give_one_layout() -> None:
    x = values()
    made = genomap.layout(x, names(30), shape=[6, 5])
    table = pd.DataFrame(x, columns=names(30))
    for other in (coo_matrix(x), lil_matrix(x), csc_matrix(x), x.tolist(), table):
        assert_same(genomap.layout(other, names(30), shape=np.array([6, 5])), made)
        assert_array_equal(genomap.images(other, made), genomap.images(x, made))
    for wrong in (table[table.columns[::-1]], table.rename(columns={"g0": "other"})):
        with pytest.raises(ScmedleyError, match="are not the genes"):
            genomap.images(wrong, made)
        with pytest.raises(ScmedleyError, match="are not the genes"):
            genomap.layout(wrong, names(30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genes": ["g0"] * 30}, "1 gene names occur more than once: 'g0'"),
        ({"seed": -1}, "seed -1 must be between"),
        ({"shape": (6.0, 5)}, "must be a height and a width"),
        ({"shape": (30,)}, "must be a height and a width"),
        ({"x_NG": [["a"] * 30] * 3}, "A table of numbers, cells x genes, is needed"),
        ({"x_NG": [[1], [1, 2]]}, "A table of numbers, cells x genes, is needed"),
        ({"x_NG": np.zeros(30)}, "A table of numbers, cells x genes, is needed"),
    ],
    ids=str,
)
def test_odd_tables_names_seeds_and_shapes_are_said(change, message) -> None:
    with pytest.raises(ScmedleyError, match=message):
        genomap.layout(**{"x_NG": values(), "genes": names(30)} | change)


def test_pictures_of_sparse_cells() -> None:
    x = values()
    made = genomap.layout(x, names(30))
    assert_array_equal(genomap.images(csr_matrix(x), made), genomap.images(x, made))


# --- on disk ------------------------------------------------------------------------------------------------


def assert_same(one: Layout, other: Layout) -> None:
    assert one.genes == other.genes
    assert one.shape == other.shape
    for name in ("rows", "columns", "constant"):
        assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_layout_comes_back(tmp_path: Path) -> None:
    made = genomap.layout(values(constant=(1,)), ["$x", "_y", "<z>", *names(27)])
    made.save(tmp_path / "layout.json")
    assert_same(Layout.load(tmp_path / "layout.json"), made)
    assert [p.name for p in tmp_path.iterdir()] == ["layout.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None},
        {"rows": [0]},
        {"rows": [99] * 30},
        {"rows": [-1] * 30},
        {"rows": [0] * 30, "columns": [0] * 30},
        {"columns": ["a"] * 30},
        {"shape": [6]},
        {"shape": [-1, 6]},
        {"constant": []},
        {"genes": names(3)},
    ],
    ids=str,
)
def test_a_broken_layout_is_said(change, tmp_path: Path) -> None:
    path = tmp_path / "layout.json"
    genomap.layout(values(), names(30)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ScmedleyError, match="holds no layout of genes"):
        Layout.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", "\x00"])
def test_what_is_no_layout_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text(text)
    for path in (tmp_path / "layout.json", tmp_path / "nowhere.json"):
        with pytest.raises(ScmedleyError, match="holds no layout of genes"):
            Layout.load(path)


def test_a_model_is_laid_out_by_its_training_cells(fitted, prepared) -> None:
    mixed = fitted("mixed")
    training = prepared[(prepared.obs[keys.SPLIT] == "train").to_numpy()]
    x_NG, _ = pp.log_normalised(training, mixed.decoder.genes)
    made = genomap.genomap_of(mixed, prepared, seed=3)
    assert_same(made, genomap.layout(x_NG, mixed.decoder.genes, seed=3))
    without = training.copy()
    del without.obs[keys.SPLIT]
    assert_same(genomap.genomap_of(mixed, without, seed=3), made)
    assert_same(genomap.genomap_of(mixed.decoder, prepared, seed=3), made)


def test_a_model_of_very_many_genes_has_no_layout(fitted, prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genomap, "MOST_GENES", 3)
    with pytest.raises(ScmedleyError, match="an image holds at most 3"):
        genomap.genomap_of(fitted("mixed"), prepared)
