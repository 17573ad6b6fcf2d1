"""The section about clusters of the report, and the figures of clusters."""

import numpy as np
import pandas as pd
import pytest

import run_folder
from scmedley import keys, pl
from scmedley.clusters import find
from scmedley.errors import ScmedleyError
from scmedley.interpret import markers, tree_table
from scmedley.pipeline.clusters import write_clusters
from scmedley.report import figures
from scmedley.report.build import build
from scmedley.runs.folder import OF_CLUSTERS
from scmedley.runs.read import read, read_cells
from test_markers import cells
from test_pl import drawn
from test_report import EVIL, SECTIONS, Page, sections_of


def page(folder) -> Page:
    return Page(build(folder, cells=False).read_text(encoding="utf-8"))


@pytest.fixture
def quick(monkeypatch):
    """Draw nothing."""
    monkeypatch.setattr(
        figures, "picture", lambda draw, size, alt, title: figures.Picture("", "", alt, title)
    )
    monkeypatch.setattr(figures, "_map", lambda *args: {"title": "", "missing": ""})


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run_folder.add_clusters(run_folder.write(tmp_path_factory.mktemp("run"), brief=True))


@pytest.fixture(scope="module")
def shown(full):
    return page(full)


def test_the_section_is_there_if_there_are_clusters(shown):
    assert sections_of(shown) == [*SECTIONS[:5], "clusters", *SECTIONS[5:]]
    assert "#clusters" in [attrs.get("href") for tag, attrs in shown.tags if tag == "a"]
    for words in (
        "600 cells in 4 clusters. This number was chosen; the evidence supports 3.",
        "No gap separates HCC827 2 (100 %) from the nearest cluster",
        "99 % or more of the cells of HCC827 1 (100 %) and HCC827 2 (100 %) are from one batch",
        "a gap separates it from its nearest cluster (dip 0.70",
        "These p-values are too small",
        "5 donors compared",
        "What cannot be said",
        "Names are those of the most frequent label",
    ):
        assert words in shown.text


def test_the_numbers_of_the_page_are_those_of_the_tables(full, shown):
    obs = read(full).obs
    text = shown.text
    for what, key in (("batch", "protocol"), ("label", "cell_type")):
        part = text[text.index(f"Cells by cluster and {what}") :]
        counts = pd.crosstab(obs[keys.CLUSTER], obs[key])
        for cluster, row in counts.iterrows():
            for name, n in row[row > 0].items():
                assert f"{n} {100 * n / counts[name].sum():.0f} %" in part, (cluster, name)
    pictures = [attrs["alt"] for tag, attrs in shown.tags if tag == "img"]
    assert sum("coloured by cluster, 4 levels" in alt for alt in pictures) == 3
    assert any(alt.startswith("Tree of 19 merges") for alt in pictures)


def test_missing_tables_cost_only_their_part(quick, tmp_path):
    folder = run_folder.add_clusters(run_folder.write(tmp_path, brief=True))
    for name in ("cluster_tree.csv", "cluster_by_label.csv", "markers.csv"):
        (folder / name).unlink()
    text = page(folder).text
    assert "No tree of merges: cluster_tree.csv is not in the run folder" in text
    assert "No marker genes: markers.csv is not in the run folder." in text
    assert "Cells by cluster and label" not in text
    assert "Names are those of the most frequent label" not in text
    (folder / "cluster_evidence.csv").write_text("cluster,cells\n0,5\n")
    with pytest.raises(
        ScmedleyError, match=r"cluster_evidence.csv lacks the column\(s\) name, label, nearest"
    ):
        read(folder)


def test_clusters_that_were_not_tested_say_so(quick, tmp_path):
    """Those of the published DeepBID, whose number is given."""
    folder = run_folder.add_clusters(run_folder.write(tmp_path, brief=True))
    for name in OF_CLUSTERS:
        (folder / name).unlink(missing_ok=True)
    adata = read_cells(folder)
    adata.X = np.random.default_rng(0).poisson(3.0, adata.shape).astype(np.float32)
    said = write_clusters(adata, None, folder, batch="protocol", label="cell_type")
    assert said[0] == f"4 clusters, of 111 to {adata.obs[keys.CLUSTER].value_counts().max()} cells."
    assert "not tested: the number of clusters was given" in said[1]
    text = page(folder).text
    assert "This number was chosen, and whether the clusters stand was not tested." in text
    assert "No gap separates" not in text
    assert "this preset has no tree" in text
    assert pd.read_csv(folder / "cluster_evidence.csv")["stands"].isna().all()


def test_names_from_the_data_are_text(quick, tmp_path):
    labels = (EVIL, "B & T", "HCC827")
    folder = run_folder.add_clusters(run_folder.write(tmp_path, labels=labels, brief=True))
    assert EVIL in page(folder).text
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


# --- figures ------------------------------------------------------------------------------------------------


def test_the_tree_draws_every_merge_and_the_cut():
    rng = np.random.default_rng(0)
    clusters = find(np.concatenate([rng.normal(8 * k, 1, (60, 4)) for k in range(3)]))
    assert clusters.k == 3
    figure = pl.cluster_tree(clusters, {"0": "B cells $x_1$ (93 %)"})
    assert drawn(figure) == ["split stands", "no gap"]
    ax = figure.axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert "B cells $x_1$ (93 %)  (60)" in texts
    tree = tree_table(clusters)
    dips = [f"{dip:.2f}" for dip in tree["dip"].iloc[-2:]]
    assert set(dips) <= set(texts)
    joins = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(joins) == len(tree)
    filled = [line.get_markerfacecolor() != "white" for line in joins]
    assert filled == list(tree["stands"])
    cut = next(line for line in ax.lines if line.get_linestyle() == "--").get_xdata()[0]
    assert 2 < cut < 3
    again = pl.cluster_tree(clusters.cut(k=1))
    assert all(line.get_linestyle() != "--" for line in again.axes[0].lines)
    with pytest.raises(ScmedleyError, match="the tree of merges is empty"):
        pl.cluster_tree(tree[:0])
    with pytest.raises(ScmedleyError, match="lacks the column"):
        pl.cluster_tree(clusters.tree)


def test_shares_and_markers_are_drawn_from_the_cells():
    adata = cells()
    figure = pl.cluster_shares(adata, "donor")
    drawn(figure)
    assert [text.get_text() for text in figure.axes[0].texts][:4] == ["40"] * 4
    assert figure.axes[0].get_title(loc="left") == "% of donor"
    table = markers(adata, n_genes=2)
    figure = pl.markers(adata, table, 1)
    figure._repr_png_()
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["g0", "g1", "g2"]
    share = np.asarray(adata[adata.obs[keys.CLUSTER] == "0"][:, "g0"].X.toarray() > 0).mean()
    np.testing.assert_allclose(ax.collections[0].get_sizes()[0], 1 + 90 * share, rtol=1e-6)
    values = np.asarray(ax.collections[0].get_array()).reshape(3, 3)
    assert (np.diag(values) == 1).all()  # each gene is highest in its own cluster
    with pytest.raises(ScmedleyError, match="have no gene 'absent'"):
        pl.markers(adata, table.assign(gene="absent"))
