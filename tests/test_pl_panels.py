"""Figures of counterfactuals, shifts and donors: what is drawn is what was given, and it can be read."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import evaluate, genomap, keys, pl
from scmedley.errors import ScmedleyError
from scmedley.pl._figure import save
from scmedley.pl.genomap import NO_GENE, OWN
from test_pl import cells, drawn

GENES = [f"g{i}" for i in range(9)]


def a_layout(names=GENES) -> genomap.Layout:
    rng = np.random.default_rng(0)
    return genomap.layout(rng.random((20, len(names))).astype(np.float32), names, shape=(4, 4))


def pictures(x_rcg: np.ndarray, layout: genomap.Layout) -> np.ndarray:
    flat = genomap.images(x_rcg.reshape(-1, x_rcg.shape[2]).astype(np.float32), layout)
    return flat.reshape(*x_rcg.shape[:2], *layout.shape)


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images]


def is_framed(ax) -> bool:
    return to_hex(ax.spines["left"].get_edgecolor()) == OWN


def apart(texts) -> bool:
    """Whether no two texts overlap."""
    boxes = [extent(text) for text in texts]
    return not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[i + 1 :])


def extent(text):
    """The box of a text alone: an annotation's own takes its line in."""
    text.get_window_extent()  # finds where the text is
    return Text.get_window_extent(text)


def names_of(ax) -> list:
    return [text for text in ax.texts if text.get_text() != "no change"]


# --- cells as pictures --------------------------------------------------------------------------------------


def test_genomap_draws_the_pictures_on_one_scale():
    layout = a_layout()
    x = np.random.default_rng(1).random((2, 3, 9)) * 5
    x[..., 4] = 0  # a constant gene
    framed = np.zeros((2, 3), bool)
    framed[0, 1] = True
    figure = pl.genomap(
        pictures(x, layout), layout, rows=["c$1", "_c2"], columns=["a", "<b>", "c"], framed=framed
    )
    drawn(figure)
    shown = panels(figure)
    for ax, given in zip(shown, pictures(x, layout).reshape(-1, 4, 4), strict=True):
        image = ax.images[0].get_array()
        assert_array_equal(np.ma.getmaskarray(image), np.isnan(given))
        assert_allclose(image.compressed(), given[np.isfinite(given)])
        assert to_hex(ax.get_facecolor()) == NO_GENE
    assert len({ax.images[0].get_clim() for ax in shown}) == 1
    assert shown[0].images[0].get_clim() == (0, pytest.approx(np.quantile(x, 0.995)))
    assert [is_framed(ax) for ax in shown] == [False, True, False, False, False, False]
    assert [ax.get_title() for ax in shown[:3]] == ["a", "<b>", "c"]
    assert [shown[0].get_ylabel(), shown[3].get_ylabel()] == ["c$1", "_c2"]
    assert figure.axes[-1].get_ylabel() == "log1p CP10k"


def test_genomap_takes_cells_without_expression():
    layout = a_layout()
    figure = pl.genomap(pictures(np.zeros((1, 1, 9)), layout), layout, rows=["c"], columns=["a"])
    drawn(figure)
    low, high = panels(figure)[0].images[0].get_clim()
    assert low == 0 < high


def test_differences_are_centred_on_0_and_the_largest_are_named():
    names = ["$\\frac$", "_hidden", "<b>", "a" * 40, *GENES[4:]]
    layout = a_layout(names)
    x = np.zeros((2, 2, 9))
    x[0, 0] = [0, -3, 1, 2, 0.5, 0, 0, 0, 0]
    x[0, 1] = [2, 0, 0, 0, 0, 0, 0, 0, 0]
    x[1, 0] = np.arange(9) - 4.5
    figure = pl.genomap_difference(
        pictures(x, layout), layout, rows=["1", "2"], columns=["a", "b"], n_genes=3
    )
    drawn(figure)
    shown = panels(figure)
    low, high = shown[0].images[0].get_clim()
    assert -low == high > 0
    named = [{text.get_text() for text in names_of(ax)} for ax in shown]
    assert named[:2] == [{"_hidden", "<b>", "a" * 23 + "…"}, {"$\\frac$"}]
    assert named[2] == {"$\\frac$", "_hidden", "g8"}
    assert [text.get_text() for text in shown[3].texts] == ["no change"]
    for ax in shown[:3]:
        for text in names_of(ax):
            gene = [n[:23] for n in names].index(text.get_text()[:23])
            assert tuple(text.xy) == (layout.columns[gene], layout.rows[gene])


@pytest.mark.parametrize("seed", range(3))
def test_names_of_genes_overlap_nothing(seed):
    rng = np.random.default_rng(seed)
    names = [f"ENSG0000012345{i:02d}" for i in range(64)]
    layout = genomap.layout(rng.random((20, 64)).astype(np.float32), names)
    x = rng.normal(size=(2, 2, 64)) * (layout.rows > 6)  # all changes in the last rows
    figure = pl.genomap_difference(
        pictures(x, layout), layout, rows=["1", "2"], columns=["a", "b"], n_genes=8
    )
    drawn(figure)
    texts = [text for ax in panels(figure) for text in names_of(ax)]
    assert len(texts) == 32
    assert apart(texts)
    for ax in panels(figure):
        box = ax.get_window_extent()
        for text in names_of(ax):
            place = extent(text)
            assert place.x0 > box.x1  # beside the picture
            assert place.y0 >= box.y0 - 3
            assert place.y1 <= box.y1 + 3
            others = [other.get_window_extent() for other in panels(figure) if other is not ax]
            assert not any(place.overlaps(other) for other in others)


def test_what_cannot_be_drawn_as_pictures():
    layout = a_layout()
    good = pictures(np.ones((1, 2, 9)), layout)
    for images, more, message in [
        (good[0], {}, "do not fit 1 rows, 2 columns"),
        (good[:, :1], {}, "do not fit 1 rows, 2 columns"),
        (good[..., :3], {}, "do not fit 1 rows, 2 columns"),
        (good * np.nan, {}, "not finite"),
        (good, {"framed": np.zeros(2, bool)}, "framed has shape"),
    ]:
        for draw in (pl.genomap, pl.genomap_difference):
            with pytest.raises(ScmedleyError, match=message):
                draw(images, layout, rows=["1"], columns=["a", "b"], **more)
    with pytest.raises(ScmedleyError, match="room for 0 to 8 names"):
        pl.genomap_difference(good, layout, rows=["1"], columns=["a", "b"], n_genes=9)


# --- counterfactuals ----------------------------------------------------------------------------------------


def test_panel_holds_what_the_model_gives(fitted, prepared):
    model, some = fitted("mixed"), prepared[[0, 5, 9]].copy()
    panel = evaluate.panel(model, some, ["d1", "d3"])
    assert panel.targets == ("fixed effects", "d1", "d3")
    assert panel.own == tuple(some.obs["donor"])
    assert panel.cells == tuple(some.obs_names)
    one = model.counterfactual(some, ["mean", "d1", "d3"])
    assert_array_equal(panel.shown_RTG[:, 2], one.X[6:])
    assert_array_equal(panel.difference_RTG[:, 0], one.layers["difference"][:3])
    assert_array_equal(panel.input_RG, some[:, model.decoder.genes].layers["log1p_cp10k"].toarray())
    assert_allclose(panel.shown_RTG - panel.own_RG[:, None], panel.difference_RTG, atol=1e-4)
    assert evaluate.panel(model, some, ["mean", "d1"]).targets == ("fixed effects", "d1")


def test_panel_of_an_unknown_batch(fitted, prepared):
    some = prepared[:2].copy()
    some.obs["donor"] = ["elsewhere", "d1"]
    with pytest.raises(ScmedleyError, match="'elsewhere'"):
        evaluate.panel(fitted("mixed"), some, "d1")
    panel = evaluate.panel(fitted("mixed"), some, "d1", unknown="mean")
    assert panel.own == ("", "d1")
    drawn(pl.counterfactuals(panel))


def test_panel_needs_a_layout(fitted, prepared, monkeypatch):
    model = fitted("mixed")
    monkeypatch.setattr(model, "genomap", None)
    with pytest.raises(ScmedleyError, match=r"no layout of genes.*Fit it again"):
        evaluate.panel(model, prepared[:2], "d1")


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_counterfactuals_frame_own_batches(fitted, prepared, preset):
    own = [list(prepared.obs["donor"]).index(name) for name in ("d1", "d2")]
    panel = evaluate.panel(fitted("mixed", preset), prepared[own].copy(), ["d1", "d3"])
    figure = pl.counterfactuals(panel, n_genes=2, note="2 of 180 cells, at $5 & <up>")
    drawn(figure)
    shown = panels(figure)
    assert len(shown) == 2 * 5 + 2 * 3
    assert [is_framed(ax) for ax in shown[:10]] == [
        False,
        False,
        True,
        True,
        False,
        *[False] * 2,
        True,
        *[False] * 2,
    ]
    assert [is_framed(ax) for ax in shown[10:]] == [False, True, False, False, False, False]
    titles = ["input", "fixed effects\n(no batch effect)", "own batch", "as if from\nd1", "as if from\nd3"]
    assert [ax.get_title() for ax in shown[:5]] == titles
    assert [ax.get_title() for ax in shown[10:13]] == [titles[1], *titles[3:]]
    layout = panel.layout
    for ax, x in (
        (shown[0], panel.input_RG[0]),
        (shown[2], panel.own_RG[0]),
        (shown[4], panel.shown_RTG[0, 2]),
    ):
        assert_allclose(ax.images[0].get_array()[layout.rows, layout.columns], x)
    change = panel.difference_RTG[1, 2]
    assert_allclose(shown[15].images[0].get_array()[layout.rows, layout.columns], change)
    top = {layout.genes[i] for i in np.argsort(-np.abs(change))[:2]}
    assert {text.get_text() for text in names_of(shown[15])} == top
    assert names_of(shown[11]) == []  # the own batch: no change
    assert figure.texts[0].get_text() == "2 of 180 cells, at $5 & <up>"


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_figures_are_saved_the_same_each_time(tmp_path, suffix):
    layout = a_layout()
    contents = []
    for name in ("a", "b"):
        figure = pl.genomap(pictures(np.ones((1, 1, 9)), layout), layout, rows=["<c> & $1"], columns=["x"])
        save(figure, tmp_path / f"{name}{suffix}")
        contents.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0][:5] in (b"<?xml", b"%PDF-", b"\x89PNG\r")
    if suffix == ".svg":
        assert b"&lt;c&gt; &amp; $1" in contents[0]
    assert len(list(tmp_path.iterdir())) == 2


# --- shifts -------------------------------------------------------------------------------------------------


def shifts(labels=("B",), batches=("b1", "b2", "b3"), genes=GENES, n_top=4) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for label in labels:
        for batch in batches:
            shift = rng.normal(size=len(genes))
            for i in np.argsort(-np.abs(shift))[:n_top]:
                half = 0.1 if i % 2 else 9.0
                rows.append(
                    (label, batch, genes[i], shift[i], shift[i] - half, shift[i] + half, batch != "b3")
                )
    return pd.DataFrame(rows, columns=["label", "batch", "gene", "shift", "q05", "q95", "seen"])


def test_batch_shifts_draws_the_table():
    table = shifts()
    figure = pl.batch_shifts(table)
    drawn(figure)
    ax = figure.axes[0]
    genes = [text.get_text() for text in ax.get_yticklabels()]
    assert sorted(genes) == sorted(set(table["gene"]))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["b1", "b2", "b3, never observed"]
    image = ax.images[0].get_array()
    for i, gene in enumerate(genes):
        for j, batch in enumerate(["b1", "b2", "b3"]):
            value = table.loc[(table["gene"] == gene) & (table["batch"] == batch), "shift"]
            assert np.ma.getmaskarray(image)[i, j] == value.empty  # unknown is blank, not 0
            if len(value):
                assert image[i, j] == pytest.approx(value.iloc[0])
    low, high = ax.images[0].get_clim()
    assert -low == high == pytest.approx(table["shift"].abs().max())
    dots = {(genes[int(y)], int(x)) for x, y in zip(*ax.lines[0].get_data(), strict=True)}
    unsure = table[(table["q05"] <= 0) & (table["q95"] >= 0)]
    assert dots == {(row["gene"], int(row["batch"][1]) - 1) for _, row in unsure.iterrows()}
    assert [patch.get_x() for patch in ax.patches] == [1.5]
    assert ax.patches[0].get_hatch()
    assert ax.get_xlabel() == "dot: the 5–95 % interval holds 0; blank: not known"
    assert figure.axes[1].get_ylabel() == "shift, log1p CP10k"


def test_batch_shifts_takes_the_top_of_each_batch():
    table = shifts(genes=[f"g{i}" for i in range(200)], n_top=50)
    for n in (1, 3):
        size = table["shift"].abs().groupby(table["batch"])
        best = [i for _, one in size for i in one.nlargest(n).index]
        shown = [text.get_text() for text in pl.batch_shifts(table, n_top=n).axes[0].get_yticklabels()]
        assert set(shown) == set(table.loc[best, "gene"])
    many = shifts(batches=[f"b{i}" for i in range(40)], genes=[f"g{i}" for i in range(900)], n_top=20)
    assert len(pl.batch_shifts(many).axes[0].get_yticklabels()) <= 60


def test_batch_shifts_puts_like_genes_together():
    base = np.array([3.0, -3.0, 2.5])
    genes = {"a1": base, "z": -base, "a2": base * 0.9, "y": -base * 1.1}
    rows = [("B", f"b{j}", g, v[j], v[j] - 0.1, v[j] + 0.1, True) for j in range(3) for g, v in genes.items()]
    table = pd.DataFrame(rows, columns=["label", "batch", "gene", "shift", "q05", "q95", "seen"])
    figure = pl.batch_shifts(table)
    order = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({"a1", "a2"}), frozenset({"y", "z"})}
    assert figure.axes[0].get_xlabel() == ""  # nothing unsure, nothing blank


def test_batch_shifts_reads_numbers_as_names_and_odd_names(tmp_path):
    table = shifts(labels=("$B$",), batches=(1, 2), genes=["$\\frac$", "_g", "<b>", "x" * 60])
    table.to_csv(tmp_path / "s.csv", index=False)
    figure = pl.batch_shifts(pd.read_csv(tmp_path / "s.csv"))
    drawn(figure)
    assert figure.axes[0].get_title() == "$B$"
    assert {"$\\frac$", "_g", "<b>"} < {text.get_text() for text in figure.axes[0].get_yticklabels()}
    own = Figure()
    assert pl.batch_shifts(table, ax=own.add_subplot()) is own


def test_batch_shifts_says_what_is_wrong():
    table = shifts(labels=("B", "T"))
    with pytest.raises(ScmedleyError, match="name one label; the table has: B, T"):
        pl.batch_shifts(table)
    with pytest.raises(ScmedleyError, match="no label 'NK'; it has: B, T"):
        pl.batch_shifts(table, "NK")
    with pytest.raises(ScmedleyError, match=r"lacks the column\(s\) q05"):
        pl.batch_shifts(table.drop(columns="q05"))
    with pytest.raises(ScmedleyError, match="empty"):
        pl.batch_shifts(table[:0])
    with pytest.raises(ScmedleyError, match="n_top is 0"):
        pl.batch_shifts(table, "B", n_top=0)


# --- donors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"), [("mixed", "default"), ("mixed", "paper"), ("random", "default")]
)
def test_batch_effects_are_the_components_of_the_decoders_tables(fitted, name, preset):
    model = fitted(name, preset)
    network = evaluate.counterfactual.decoder(model).network
    layers = network.decoder_effects if hasattr(network, "decoder_effects") else network.decoder.effects
    tables = [table for layer in layers for table in (layer.gamma, layer.beta)]
    mean = np.hstack([(t.loc_BH / t.prior_scale).detach().numpy() for t in tables]).astype(float)
    sd = np.hstack([(t.scale_BH() / t.prior_scale).detach().numpy() for t in tables]).astype(float)
    found = evaluate.batch_effects(model)
    assert list(found["batch"]) == ["d1", "d2", "d3"]
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(mean)
    xy = pca.transform(mean)
    assert_allclose(np.abs(found[["x", "y"]]), np.abs(xy), rtol=1e-4, atol=1e-6)
    assert_allclose(found[["share_x", "share_y"]].iloc[0], pca.explained_variance_ratio_, rtol=1e-5)
    # The posterior's covariance on the axes is that of draws.
    draws = mean[1] + sd[1] * np.random.default_rng(0).normal(size=(20_000, mean.shape[1]))
    covariance = np.cov((draws @ pca.components_.T).T)
    row = found.iloc[1]
    assert_allclose([row["var_x"], row["var_y"]], np.diag(covariance), rtol=0.05)
    assert abs(abs(row["cov_xy"]) - abs(covariance[0, 1])) < 0.05 * np.diag(covariance).mean()


def test_batch_effects_of_two_batches_lie_on_a_line(prepared):
    from scmedley.models import FixedEffects
    from tiny import FIT, small

    two = prepared[prepared.obs["donor"] != "d3"].copy()
    model = FixedEffects("donor", settings=small("fixed")).fit(two, **FIT)
    found = evaluate.batch_effects(model)
    assert_allclose(found["x"].sum(), 0, atol=1e-5)
    assert found["share_x"].iloc[0] == pytest.approx(1)
    assert_allclose(found["y"], 0, atol=1e-5)
    drawn(pl.donor_map(model))


def test_batch_effects_say_what_is_wrong(fitted):
    with pytest.raises(ScmedleyError, match="no batch effects in its decoder"):
        evaluate.batch_effects(fitted("autoencoder"))
    from tiny import unfitted

    with pytest.raises(ScmedleyError, match="not fitted"):
        evaluate.batch_effects(unfitted("random"))


def test_donor_map_places_colours_and_names(fitted, prepared):
    model = fitted("mixed")
    figure = pl.donor_map(model, prepared, "condition")
    assert drawn(figure) == ["healthy", "ill"]
    ax = figure.axes[0]
    places = evaluate.batch_effects(model)
    points = ax.collections[0]
    assert_allclose(np.asarray(points.get_offsets()), places[["x", "y"]])
    colour = [to_hex(c) for c in points.get_facecolors()]
    assert colour[1] == colour[2] != colour[0]
    assert {text.get_text() for text in ax.texts} == {"d1", "d2", "d3"}
    assert ax.get_xlabel() == f"component 1 ({places['share_x'].iloc[0]:.0%} of variance)"
    for patch, (_, row) in zip(ax.patches, places.iterrows(), strict=True):
        # The ellipse's own covariance, at the 90 % contour, is the posterior's.
        turn = np.radians(patch.angle)
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shape = axes @ np.diag([patch.width / 2, patch.height / 2]) ** 2 @ axes.T / 4.605
        assert_allclose(
            shape, [[row["var_x"], row["cov_xy"]], [row["cov_xy"], row["var_y"]]], rtol=1e-5, atol=1e-9
        )
    assert drawn(pl.donor_map(model)) == []


def test_donor_map_takes_numbers_and_missing_values(fitted, prepared):
    model = fitted("mixed")
    prepared.obs["flag"] = prepared.obs["donor"].map({"d1": 1, "d2": 2}).astype(float)
    figure = pl.donor_map(model, prepared, "flag")
    assert drawn(figure) == ["1", "2"]
    from scmedley.pl._palette import MISSING

    assert to_hex(figure.axes[0].collections[0].get_facecolors()[2]) == MISSING


def test_donor_map_says_what_is_wrong(fitted, prepared):
    model = fitted("mixed")
    with pytest.raises(ScmedleyError, match=r"batch 'd\d' has several values in obs\['cell_type'\]"):
        pl.donor_map(model, prepared, "cell_type")
    with pytest.raises(ScmedleyError, match="obs has no column 'sex'"):
        pl.donor_map(model, prepared, "sex")
    with pytest.raises(ScmedleyError, match="colours need both"):
        pl.donor_map(model, prepared)
    own = Figure()
    assert pl.donor_map(model, ax=own.add_subplot()) is own


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_labels_do_not_overlap(spread):
    from scmedley.pl._labels import place_labels

    rng = np.random.default_rng(0)
    xy = rng.normal(size=(60, 2))
    xy[:30] *= 0.15 * spread  # a crowd, or all in one place
    figure = Figure(figsize=(6, 6))
    ax = figure.add_subplot()
    ax.scatter(*xy.T)
    left_out = place_labels(ax, xy, [f"donor{i}" for i in range(60)])
    assert left_out + len(ax.texts) == 60
    assert left_out <= (0 if spread else 10)
    assert apart(ax.texts)
    at = ax.transData.transform(xy)
    frame = ax.get_window_extent()
    for text in ax.texts:
        box = text.get_window_extent()
        assert not any(box.contains(*point) for point in at)
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1


# --- several embeddings -------------------------------------------------------------------------------------


def test_embeddings_have_a_legend_a_row():
    adata = with_bases()
    figure = pl.embeddings(adata, color=["batch", "depth", "ACTB"])
    drawn(figure)
    maps = [ax for ax in figure.axes if ax.collections and ax.get_label() != "<colorbar>"]
    assert len(maps) == 9
    assert [ax.get_title("left") for ax in maps[:3]] == ["Fixed effects", "Random effects", "PCA"]
    legends = [ax.get_legend() for ax in maps]
    assert [box is not None for box in legends] == [False, False, True] + [False] * 6
    assert [t.get_text() for t in legends[2].get_texts()] == [f"level {i}" for i in range(4)]
    bars = [ax for row in maps for ax in row.child_axes]
    assert [bar.get_title() for bar in bars] == ["depth", "ACTB"]
    depth = maps[3:6]
    assert len({ax.collections[0].get_clim() for ax in depth}) == 1
    for ax, key in zip(maps[:3], (keys.FIXED, keys.RANDOM, keys.PCA), strict=True):
        xy = np.asarray(ax.collections[0].get_offsets())
        given = adata.obsm[key][:, :2]
        assert_array_equal(xy[np.lexsort(xy.T)], given[np.lexsort(given.T)])
        assert ax.collections[0].get_rasterized()


def with_bases(n: int = 200, n_levels: int = 4) -> AnnData:
    adata = cells(n, n_levels)
    rng = np.random.default_rng(3)
    for key in (keys.RANDOM, keys.PCA):
        adata.obsm[key] = rng.normal(size=(n, 5)).astype(np.float32)
    return adata


def test_embeddings_take_one_of_each_and_those_that_are_there():
    adata = with_bases()
    del adata.obsm[keys.RANDOM]
    maps = [ax for ax in pl.embeddings(adata, color="batch").axes if ax.collections]
    assert [ax.get_title("left") for ax in maps] == ["Fixed effects", "PCA"]
    adata.obsm["X_$mine"] = adata.obsm[keys.PCA]
    (ax,) = pl.embeddings(adata, "$mine", "batch").axes
    assert ax.get_title("left") == "$mine"
    expected = [to_rgb(c) for c in np.unique(ax.collections[0].get_facecolors()[:, :3], axis=0)]
    assert len(expected) == 4


def test_embeddings_keep_one_scale_where_cells_are_left_out():
    adata = with_bases()
    xy = adata.obsm[keys.PCA][:, :2].copy()
    xy[adata.obs["depth"].to_numpy() > 0.5] = np.nan
    adata.obsm[keys.umap(keys.PCA)] = xy
    maps = [ax for ax in pl.embeddings(adata, color="depth").axes if ax.collections][:3]
    expected = (adata.obs["depth"].min(), adata.obs["depth"].max())
    assert {ax.collections[0].get_clim() for ax in maps} == {expected}
    assert re.fullmatch(r"drawn: \d+ of 200 cells", maps[2].get_title("right"))
    assert maps[0].get_title("right") == ""


@pytest.mark.parametrize("n_levels", [1, 150])
def test_embeddings_are_legible(n_levels):
    figure = pl.embeddings(with_bases(3000, n_levels), color=["batch", "depth"])
    drawn(figure)
    (box,) = [ax.get_legend() for ax in figure.axes if ax.get_legend() is not None]
    assert len(box.get_texts()) == n_levels
    assert apart(box.get_texts())
    extent = box.get_window_extent()
    assert extent.x1 <= figure.bbox.x1
    assert extent.y0 >= 0
    below = [ax.get_window_extent() for ax in figure.axes if ax.collections][3:6]
    assert not any(extent.overlaps(other) for other in below)


def test_embeddings_say_what_is_wrong():
    adata = with_bases()
    with pytest.raises(ScmedleyError, match="at least one colour"):
        pl.embeddings(adata)
    with pytest.raises(ScmedleyError, match="at least one colour"):
        pl.embeddings(adata, [], "batch")
    with pytest.raises(ScmedleyError, match="did you mean 'batch'"):
        pl.embeddings(adata, color=["depth", "bacth"])
    with pytest.raises(ScmedleyError, match="obsm has no 'X_umap'"):
        pl.embeddings(adata, ["X_umap"], "batch")
    with pytest.raises(ScmedleyError, match="obs: batch, depth, doublet"):
        pl.embeddings(AnnData(obs=adata.obs), color="batch")
