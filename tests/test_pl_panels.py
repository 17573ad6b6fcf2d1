"""Cells as pictures: what is drawn is what was given, and it can be read."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import genomap, interpret, pl
from scmedley.errors import ScmedleyError
from scmedley.interpret import genomap_of as laid_out
from scmedley.pl._figure import save
from scmedley.pl.genomap import NO_GENE, OWN
from test_pl import drawn

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
    with pytest.raises(ScmedleyError, match=r"n_genes is 1\.5"):
        pl.genomap_difference(good, layout, rows=["1"], columns=["a", "b"], n_genes=1.5)
    with pytest.raises(ScmedleyError, match="not numbers"):
        pl.genomap(good.astype(str), layout, rows=["1"], columns=["a", "b"])


# --- counterfactuals ----------------------------------------------------------------------------------------


def test_panel_holds_what_the_model_gives(fitted, prepared):
    model, some = fitted("mixed"), prepared[[0, 5, 9]].copy()
    panel = interpret.panel(model, some, ["d1", "d3"], laid_out(model, prepared))
    assert panel.targets == ("fixed effects", "d1", "d3")
    assert panel.own == tuple(some.obs["donor"])
    assert panel.cells == tuple(some.obs_names)
    one = model.counterfactual(some, ["mean", "d1", "d3"])
    assert_array_equal(panel.shown_RTG[:, 2], one.X[6:])
    assert_array_equal(panel.difference_RTG[:, 0], one.layers["difference"][:3])
    assert_array_equal(panel.input_RG, some[:, model.decoder.genes].layers["log1p_cp10k"].toarray())
    assert_allclose(panel.shown_RTG - panel.own_RG[:, None], panel.difference_RTG, atol=1e-4)
    assert interpret.panel(model, some, ["mean", "d1"], laid_out(model, prepared)).targets == (
        "fixed effects",
        "d1",
    )


def test_panel_of_an_unknown_batch(fitted, prepared):
    some = prepared[:2].copy()
    some.obs["donor"] = ["elsewhere", "d1"]
    with pytest.raises(ScmedleyError, match="'elsewhere'"):
        interpret.panel(fitted("mixed"), some, "d1", laid_out(fitted("mixed"), prepared))
    panel = interpret.panel(fitted("mixed"), some, "d1", laid_out(fitted("mixed"), prepared), unknown="mean")
    assert panel.own == ("", "d1")
    figure = pl.counterfactuals(panel)
    drawn(figure)
    assert [is_framed(ax) for ax in panels(figure)[2:8:4]] == [False, True]  # the column "own batch"


def test_panel_needs_a_layout_of_its_genes(fitted, prepared):
    with pytest.raises(ScmedleyError, match="genes of the layout are not the model's"):
        interpret.panel(fitted("mixed"), prepared[:2], "d1", a_layout())


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_counterfactuals_frame_own_batches(fitted, prepared, preset):
    own = [list(prepared.obs["donor"]).index(name) for name in ("d1", "d2")]
    panel = interpret.panel(
        fitted("mixed", preset),
        prepared[own].copy(),
        ["d1", "d3"],
        laid_out(fitted("mixed", preset), prepared),
    )
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
    fixed = "fixed effects\n(population mean)" if preset == "default" else "population mean"
    titles = ["input", fixed, "own batch", "as if from\nd1", "as if from\nd3"]
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
