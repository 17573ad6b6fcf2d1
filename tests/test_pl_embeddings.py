"""Several embeddings in several colourings."""

import re

import numpy as np
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgb
from numpy.testing import assert_array_equal

from scmedley import keys, pl
from scmedley.errors import ScmedleyError
from test_pl import cells, drawn
from test_pl_panels import apart


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
    with pytest.raises(ScmedleyError, match="Did you mean 'batch'"):
        pl.embeddings(adata, color=["depth", "bacth"])
    with pytest.raises(ScmedleyError, match="obsm has no 'X_umap'"):
        pl.embeddings(adata, ["X_umap"], "batch")
    with pytest.raises(ScmedleyError, match="obs: batch, depth, doublet"):
        pl.embeddings(AnnData(obs=adata.obs), color="batch")
