import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure

import run_folder
from scmedley import keys, pl
from scmedley.errors import ScmedleyError
from scmedley.pl._palette import DISTINCT, colours
from scmedley.pl.training import kept_epoch


def cells(n: int = 200, n_levels: int = 4, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    names = [f"level {i}" for i in range(n_levels)]
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(names, n), categories=[*names, "unused"]),
            "depth": rng.random(n),
            "doublet": rng.random(n) > 0.5,
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = AnnData(rng.random((n, 2), dtype=np.float32), obs, pd.DataFrame(index=["ACTB", "$x"]))
    adata.obsm[keys.FIXED] = rng.normal(size=(n, 5)).astype(np.float32)
    return adata


def drawn(figure: Figure) -> list[str]:
    figure._repr_png_()  # texts are laid out, mathematics parsed, glyphs looked up: warnings are errors
    legend = figure.axes[0].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_embedding_draws_levels_that_occur_in_a_shuffled_order():
    adata = cells()
    figure = pl.embedding(adata, keys.FIXED, "batch")
    assert drawn(figure) == [f"level {i}" for i in range(4)]
    points = figure.axes[0].collections[0]
    xy = np.asarray(points.get_offsets())
    z = adata.obsm[keys.FIXED][:, :2]
    assert not np.array_equal(xy, z)
    order = np.lexsort(z.T)
    np.testing.assert_array_equal(xy[np.lexsort(xy.T)], z[order])
    assert points.get_rasterized()
    # Each point keeps the colour of its own level.
    from matplotlib.colors import to_rgb

    expected = np.array([to_rgb(colours(4)[code]) for code in adata.obs["batch"].cat.codes])[order]
    np.testing.assert_allclose(points.get_facecolors()[np.lexsort(xy.T), :3], expected)
    first, second = (pl.embedding(adata, keys.FIXED, "batch")._repr_png_() for _ in range(2))
    assert first == second


def test_embedding_prefers_the_umap_and_takes_short_names():
    adata = cells()
    assert pl.embedding(adata, "scmedley_fixed", "batch").axes[0].get_xlabel() == "scmedley_fixed 1"
    adata.obsm[keys.umap(keys.FIXED)] = adata.obsm[keys.FIXED][:, :2] + 100
    figure = pl.embedding(adata, keys.FIXED, "batch")
    assert figure.axes[0].get_xlabel() == "umap_scmedley_fixed 1"
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).min() > 50


def test_embedding_leaves_out_cells_without_coordinates_and_says_so():
    adata = cells()
    xy = adata.obsm[keys.FIXED][:, :2].copy()
    xy[50:] = np.nan
    adata.obsm[keys.umap(keys.FIXED)] = xy
    for color in ("batch", "depth"):
        figure = pl.embedding(adata, keys.FIXED, color)
        drawn(figure)
        assert figure.axes[0].get_title("right") == "drawn: 50 of 200 cells"
        points = figure.axes[0].collections[0]
        shown = np.asarray(points.get_offsets())
        np.testing.assert_array_equal(shown[np.lexsort(shown.T)], xy[:50][np.lexsort(xy[:50].T)])
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(points.get_array(), adata.obs["depth"].to_numpy()[:50][order])
    assert pl.embedding(cells(), keys.FIXED, "batch").axes[0].get_title("right") == ""
    xy[:] = np.nan
    adata.obsm[keys.umap(keys.FIXED)] = xy
    with pytest.raises(ScmedleyError, match=r"X_umap_scmedley_fixed.* has no cell with coordinates"):
        pl.embedding(adata, keys.FIXED, "batch")


@pytest.mark.parametrize("color", ["depth", "ACTB", "$x"])
def test_embedding_draws_quantities_with_a_colour_bar(color):
    figure = pl.embedding(cells(), keys.FIXED, color)
    drawn(figure)
    assert figure.axes[1].get_title() == color


def test_embedding_takes_odd_names_and_missing_values():
    adata = cells()
    names = ["_hidden", "$\\frac$", "a\nb", "x" * 300, np.nan]
    adata.obs["odd"] = pd.Categorical([names[i % 5] for i in range(200)], categories=names[:4])
    assert drawn(pl.embedding(adata, keys.FIXED, "odd")) == ["_hidden", "$\\frac$", "a b", "x" * 21 + "…"]
    assert drawn(pl.embedding(adata, keys.FIXED, "doublet")) == ["False", "True"]


def test_embedding_shows_150_levels_without_overlap():
    figure = pl.embedding(cells(3000, 150), keys.FIXED, "batch")
    assert len(drawn(figure)) == 150
    boxes = [text.get_window_extent() for text in figure.axes[0].get_legend().get_texts()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= 0


def test_embedding_draws_into_a_given_axis_and_leaves_pyplot_alone():
    before = "matplotlib.pyplot" in sys.modules
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert pl.embedding(cells(), keys.FIXED, "batch", ax=right) is figure
    assert not left.collections
    assert right.collections
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_embedding_says_what_is_wrong():
    adata = cells()
    with pytest.raises(ScmedleyError, match=r"obsm has no 'X_umap'\. It has: X_scmedley_fixed"):
        pl.embedding(adata, "X_umap", "batch")
    with pytest.raises(ScmedleyError, match=r"neither a column of obs nor a gene\. Did you mean 'batch'"):
        pl.embedding(adata, keys.FIXED, "bacth")
    adata.obsm["X_one"] = np.zeros((200, 1), dtype=np.float32)
    with pytest.raises(ScmedleyError, match=r"shape \(200, 1\)"):
        pl.embedding(adata, "one", "batch")


@pytest.mark.parametrize(
    ("basis", "color", "message"),
    [
        (keys.FIXED, None, "None is neither a column of obs nor a gene"),
        (keys.FIXED, 7, "7 is neither a column of obs nor a gene"),
        (keys.FIXED, ["batch"], r"\['batch'\] is neither a column of obs nor a gene"),
        (keys.FIXED, "lists", "column 'lists' cannot be coloured by"),
        (keys.FIXED, "ACTB", "2 genes are called 'ACTB'"),
        ([keys.FIXED], "batch", "obsm has no "),
        ("text", "batch", r"obsm\['X_text'\] does not hold numbers"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_embedding_says_what_cannot_be_drawn(basis, color, message):
    adata = cells()
    adata.obs[3] = 1.0  # a column whose name is a number
    adata.obs["lists"] = [[1]] * 200
    adata.var_names = ["ACTB", "ACTB"]
    adata.obsm["X_text"] = pd.DataFrame({"x": ["a"] * 200, "y": ["b"] * 200}, index=adata.obs_names)
    with pytest.raises(ScmedleyError, match=message):
        pl.embedding(adata, basis, color)
    if isinstance(basis, str) and not isinstance(color, list):
        with pytest.raises(ScmedleyError, match=message):
            pl.embeddings(adata, [basis], color)


def test_colours_differ_until_they_repeat():
    assert len(set(DISTINCT)) == len(DISTINCT) == 24
    assert colours(30)[24:] == DISTINCT[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_folder.write(tmp_path_factory.mktemp("run"))


def test_training_marks_the_best_epoch(folder):
    history = pd.read_csv(folder / "history.csv")
    history["kept"] = history["epoch"] == 7  # not the lowest total: the figure shows what the fit kept
    figure = pl.training(history)
    drawn(figure)
    assert len(figure.axes) == 3 * 5
    assert figure.axes[0].get_title() == "fixed: total"
    assert figure.axes[1].get_lines()[2].get_xdata()[0] == 7
    older = pl.training(history.drop(columns="kept"))
    assert len(older.axes[1].get_lines()) == 2  # train and validation: which epoch was kept is not known
    one = history.query("network == 'fixed' and term == 'total'")
    own = Figure()
    assert pl.training(one, ax=own.add_subplot()) is own


def test_training_takes_a_single_epoch_and_no_validation():
    history = pd.DataFrame({"network": "$n$", "epoch": [1], "part": "train", "term": "total", "value": [1.0]})
    drawn(pl.training(history))
    with pytest.raises(ScmedleyError, match="empty"):
        pl.training(history[:0])
    with pytest.raises(ScmedleyError, match=r"column\(s\) part"):
        pl.training(history.drop(columns="part"))
    with pytest.raises(ScmedleyError, match="row 0, column 'epoch': 'one' is not a finite number"):
        pl.training(history.assign(epoch="one"))
    with pytest.raises(ScmedleyError, match="the history is a dict"):
        pl.training({})
    with pytest.raises(ScmedleyError, match="One axis shows one network"):
        pl.training(pd.concat([history, history.assign(term="kl")]), ax=Figure().add_subplot())


def test_scores_draw_value_and_null(folder):
    table = pd.read_csv(folder / "scores.csv")
    figure = pl.scores(table)
    drawn(figure)
    first = figure.axes[0]
    assert first.get_title() == "ASW by batch"
    shown = [line.get_xdata()[0] for line in first.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(shown, table.query("of == 'batch' and score == 'ASW'")["value"])
    assert [text.get_text() for text in first.get_yticklabels()][:2] == ["Fixed effects", "Random effects"]
    with pytest.raises(ScmedleyError, match="null_sd"):
        pl.scores(table.drop(columns="null_sd"))
    with pytest.raises(ScmedleyError, match="empty"):
        pl.scores(table[:0])


def test_scores_draw_the_interval_where_there_is_one(folder):
    table = pd.read_csv(folder / "scores.csv")
    leak = table.query("of == 'batch' and score == 'kNN leak'")
    axes = {ax.get_title(): ax for ax in pl.scores(table).axes}
    drawn_as = {
        title: sorted(tuple(line.get_xdata()) for line in ax.get_lines() if line.get_linewidth() == 2)
        for title, ax in axes.items()
    }
    expected = sorted((v - 1.96 * se, v + 1.96 * se) for v, se in zip(leak["value"], leak["se"], strict=True))
    np.testing.assert_allclose(drawn_as["kNN leak by batch"], expected)
    assert drawn_as["ASW by batch"] == []
    drawn(pl.scores(table.drop(columns="se")))


def test_scores_leave_no_hole_for_a_score_of_the_other_kind(folder):
    table = pd.read_csv(folder / "scores.csv")
    only = {"batch": "kNN leak", "label": "kNN accuracy"}
    table = table[table["score"].isin(["ASW"]) | (table["score"] == table["of"].map(only))]
    titles = [ax.get_title() for ax in pl.scores(table).axes]
    assert titles == ["ASW by batch", "kNN leak by batch", "ASW by label", "kNN accuracy by label"]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_training_weighted_terms_add_up_to_the_total(fitted, preset):
    model = fitted("mixed", preset)
    figure = pl.training(model.history, weighted=True)
    drawn(figure)
    curves = {ax.get_title(): ax.get_lines()[:2] for ax in figure.axes if ax.get_title()}
    assert "fixed: adversary, weighted" not in curves
    for network in ("fixed", "random"):
        for part in (0, 1):  # train, validation
            terms = [
                c[part].get_ydata() for t, c in curves.items() if t.startswith(network) and "weighted" in t
            ]
            total = curves[f"{network}: total"][part].get_ydata()
            # Weights that rise within an epoch are the mean over its minibatches.
            rising = network == "fixed" and preset == "default" and part == 0
            np.testing.assert_allclose(np.sum(terms, axis=0), total, rtol=5e-3 if rising else 1e-5)
    names = {"reconstruction": "mse_weight", "adversarial": "adversary_weight"} if preset == "paper" else {}
    weights = {("fixed", term): getattr(model.fixed.settings, name) for term, name in names.items()} | {
        ("random", "reconstruction"): model.random.settings.mse_weight,
        ("random", "batch"): model.random.settings.batch_weight,
    }
    for (network, term), weight in weights.items():
        history = model.history.query("network == @network and term == @term and part == 'validation'")
        drawn_at = curves[f"{network}: {term}, weighted"][1].get_ydata()
        np.testing.assert_allclose(drawn_at, weight * history["value"])
    if preset == "paper":  # a KL of all tables / N in the history; the mean of a table's counts
        kl = model.history.query("network == 'random' and term == 'kl' and part == 'validation'")["value"]
        counts = model.random.settings.kl_per_table_weight * kl * model.random.network.n_cells.item() / 10
        np.testing.assert_allclose(curves["random: kl, weighted"][1].get_ydata(), counts, atol=1e-5)


def test_training_weighted_needs_the_weights(folder):
    """Histories of earlier versions have none."""
    old = pd.read_csv(folder / "history.csv").drop(columns="weight", errors="ignore")
    with pytest.raises(ScmedleyError, match="lacks the column\\(s\\) weight"):
        pl.training(old, weighted=True)


def test_training_marks_the_epoch_that_was_kept(fitted, tmp_path):
    for name in ("autoencoder", "fixed", "random"):
        model = fitted(name)
        model.history.to_csv(tmp_path / "history.csv", index=False)
        for history in (model.history, pd.read_csv(tmp_path / "history.csv")):
            assert kept_epoch(history) == model.fitted["best_epoch"]
