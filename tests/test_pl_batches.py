"""Figures of shifts and of donors."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from scmedley import interpret, pl
from scmedley.errors import ScmedleyError
from test_pl import drawn
from test_pl_panels import GENES, apart


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
    assert ax.get_xlabel() == "dot: the 5–95 % interval includes 0; grey: not known"
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
    with pytest.raises(ScmedleyError, match=r"has several labels: B, T\. Choose one"):
        pl.batch_shifts(table)
    with pytest.raises(ScmedleyError, match=r"no label 'NK'\. Choose one of: B, T"):
        pl.batch_shifts(table, "NK")
    with pytest.raises(ScmedleyError, match=r"lacks the column\(s\) q05"):
        pl.batch_shifts(table.drop(columns="q05"))
    with pytest.raises(ScmedleyError, match="empty"):
        pl.batch_shifts(table[:0])
    for n_top in (0, 1.5, "3", True):
        with pytest.raises(ScmedleyError, match=f"n_top is {n_top!r}"):
            pl.batch_shifts(table, "B", n_top=n_top)
    for value in (np.nan, np.inf, "x"):
        wrong = table.astype({"shift": object})
        wrong.loc[2, "shift"] = value
        with pytest.raises(ScmedleyError, match=f"row 2, column 'shift': {value!r} is not a finite number"):
            pl.batch_shifts(wrong, "B")
    with pytest.raises(ScmedleyError, match="row 0, column 'q05': 'x' is not a number"):
        pl.batch_shifts(table.assign(q05="x"), "B")


def test_batch_shifts_takes_huge_numbers_and_those_of_pandas():
    table = shifts()
    pl.batch_shifts(table.convert_dtypes(), n_top=np.int64(2))
    with pytest.raises(ScmedleyError, match="row 2, column 'shift': <NA> is not a finite number"):
        pl.batch_shifts(table.assign(shift=table["shift"].where(table.index != 2).convert_dtypes()))
    drawn(pl.batch_shifts(table.assign(shift=1e200 * table["shift"])))


# --- donors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"), [("mixed", "default"), ("mixed", "paper"), ("random", "default")]
)
def test_batch_effects_are_the_components_of_the_decoders_tables(fitted, name, preset):
    model = fitted(name, preset)
    network = interpret.check.decoder(model).network
    tables = [table for layer in network.decoder_effects for table in layer.children()]
    mean = np.hstack([(t.loc_BH / t.prior_scale).detach().numpy() for t in tables]).astype(float)
    sd = np.hstack([(t.scale_BH() / t.prior_scale).detach().numpy() for t in tables]).astype(float)
    found = interpret.batch_effects(model)
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
    found = interpret.batch_effects(model)
    assert_allclose(found["x"].sum(), 0, atol=1e-5)
    assert found["share_x"].iloc[0] == pytest.approx(1)
    assert_allclose(found["y"], 0, atol=1e-5)
    drawn(pl.donor_map(model))


def test_batch_effects_say_what_is_wrong(fitted):
    with pytest.raises(ScmedleyError, match="no batch effects in its decoder"):
        interpret.batch_effects(fitted("autoencoder"))
    from tiny import unfitted

    with pytest.raises(ScmedleyError, match="not fitted"):
        interpret.batch_effects(unfitted("random"))


def test_donor_map_places_colours_and_names(fitted, prepared):
    model = fitted("mixed")
    figure = pl.donor_map(model, prepared, "condition")
    assert drawn(figure) == ["healthy", "ill"]
    ax = figure.axes[0]
    places = interpret.batch_effects(model)
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
    with pytest.raises(ScmedleyError, match="Only one of adata and color"):
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
