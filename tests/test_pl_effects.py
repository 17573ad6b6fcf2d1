"""Plots of the effects of a condition."""

import numpy as np
import pandas as pd
import pytest

from donors_in_groups import donors_in_groups
from scmedley import pl
from scmedley.errors import ScmedleyError
from scmedley.interpret import composition, condition_effects
from scmedley.pl._figure import png
from scmedley.pl.effects import DOWN, UP, first_genes


@pytest.fixture(scope="module")
def adata():
    return donors_in_groups(6, 60, 8, paired=True, change=2.5)


@pytest.fixture(scope="module")
def table(adata) -> pd.DataFrame:
    return condition_effects(adata, "condition", "donor", "type")


def texts(ax) -> set[str]:
    return {text.get_text() for text in ax.texts}


def test_volcano_colours_what_is_significant_and_names_the_first_genes(table):
    ax = pl.volcano(table, "B", n_names=4).axes[0]
    rows = table[table["label"] == "B"]
    called = rows[rows["q"] <= 0.05]
    grey, up, down = ax.collections[:3]
    assert len(up.get_offsets()) == (called["effect"] > 0).sum() > 2
    assert len(down.get_offsets()) == (called["effect"] < 0).sum() > 2
    assert len(grey.get_offsets()) == len(rows) - len(called)
    assert [tuple(c.get_facecolor()[0][:3]) for c in (up, down)] == [
        tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in (UP, DOWN)
    ]
    assert texts(ax) <= set(rows.sort_values("p")["gene"][:8])
    assert ax.get_title(loc="left") == "B: stim - ctrl"


def test_dots_show_effects_and_rings(table):
    ax = pl.effect_dots(table, ["g0", "g1", "g40"]).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["g0", "g1", "g40"]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    dots = ax.collections[0]
    wide = table.pivot(index="label", columns="gene", values=["effect", "q"]).loc[labels]
    genes = ["g0", "g1", "g40"]
    np.testing.assert_allclose(dots.get_array(), wide["effect"][genes].to_numpy().ravel())
    ringed = np.asarray(dots.get_linewidths()) > 0
    np.testing.assert_array_equal(ringed, (wide["q"][genes] <= 0.05).to_numpy().ravel())
    order = np.argsort(dots.get_sizes())
    assert (np.diff(wide["q"][genes].to_numpy().ravel()[order]) <= 0).all()


def test_heat_map_marks_what_is_significant(table):
    ax = pl.effect_heatmap(table, n_genes=10).axes[0]
    genes = [text.get_text() for text in ax.get_yticklabels()]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    best = table.groupby("gene")["p"].min().sort_values()
    assert set(genes) == set(best.index[:10])
    wide = table.pivot(index="gene", columns="label", values=["effect", "q"]).loc[genes]
    np.testing.assert_allclose(ax.images[0].get_array(), wide["effect"][labels])
    marked = {tuple(xy) for xy in ax.collections[0].get_offsets().astype(int).tolist()}
    assert marked == {(x, y) for y, x in np.argwhere(wide["q"][labels].to_numpy() <= 0.05)}


def test_composition_shows_every_sample(adata):
    table = composition(adata, "condition", "donor", "type")
    ax = pl.composition(table).axes[0]
    points = [c for c in ax.collections if len(c.get_offsets()) == 12]
    assert len(points) == 2  # six donors x two labels, of each condition
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ctrl", "stim"]
    adata = donors_in_groups(6, 20)
    adata.obs["age"] = adata.obs["donor"].astype(str).str[1:].astype(float)
    assert pl.composition(composition(adata, "age", "donor", "type")).axes[0].get_legend() is None


@pytest.mark.parametrize("name", ["volcano", "effect_dots", "effect_heatmap"])
def test_odd_names_and_tables_without_a_test_are_drawn_or_refused(table, name):
    odd = table[table["label"] == "A"].assign(label="$x_{", gene=[f"$g{i}^\n" for i in range(60)])
    assert png(getattr(pl, name)(odd), 50)
    untested = odd.assign(p=np.nan, q=np.nan)
    if name == "volcano":
        with pytest.raises(ScmedleyError, match="No gene of these rows has a p-value"):
            pl.volcano(untested)
    else:
        assert png(getattr(pl, name)(untested), 50)
    with pytest.raises(ScmedleyError, match="is empty"):
        getattr(pl, name)(table[:0])
    with pytest.raises(ScmedleyError, match="no contrast 'x'"):
        getattr(pl, name)(table, contrast="x")


def test_what_is_not_there_is_named(table, adata):
    with pytest.raises(ScmedleyError, match="several values of 'label': name one of 'A', 'B'"):
        pl.volcano(table)
    with pytest.raises(ScmedleyError, match="no gene 'nope'"):
        pl.effect_dots(table, ["g0", "nope"])
    lost = composition(adata, "condition", "donor", "type")
    lost.attrs = {}
    with pytest.raises(ScmedleyError, match="no shares in attrs"):
        pl.composition(lost)


def test_first_genes_are_those_of_each_label(table):
    genes = first_genes(table, 2)
    assert set(genes) == {
        gene for _, own in table.groupby("label") for gene in own.sort_values("p")["gene"][:2]
    }
