"""Exploration: against scanpy and numpy, on disk as in memory, on bad input, and as a page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csc_matrix, csr_matrix

import scmedley as sm
from corpus import cells, counts
from running import Shell, tree
from scmedley.data.arrays import log1p_cp10k, totals
from scmedley.errors import ScmedleyError
from scmedley.pl._figure import NotebookFigure
from scmedley.pp import explore, value_sums
from scmedley.pp.columns import confounding_table, describe, keys_of
from scmedley.pp.exploration import Exploration
from scmedley.report import explore_figures
from scmedley.report.figures import Picture
from test_report import Page


@pytest.fixture
def shell(capsys) -> Shell:
    return Shell(capsys)


def real() -> AnnData:
    """Two hundred real cells, with genes of both families by name."""
    adata = sm.datasets.hashing()[::8].copy()
    assert adata.var_names.str.startswith("MT-").any()
    return adata


def same(one: Exploration, other: Exploration) -> None:
    """Fail unless all tables and the dispersion are the same bits."""
    assert one.tables().keys() == other.tables().keys()
    for name, table in one.tables().items():
        pd.testing.assert_frame_equal(table, other.tables()[name], check_exact=True, obj=name)
    assert one.dispersion == other.dispersion


def drawn_once(draw, size, alt, title) -> Picture:
    """Draw, but do not write the pixels of the light and the dark page, which takes most of the time."""
    draw(NotebookFigure(figsize=size).add_subplot())
    return Picture("", "", alt, title)


# Oracles


def test_cells_and_genes_are_those_of_scanpy_and_numpy():
    adata = real()
    found = explore(adata)
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    by_cell, by_gene = sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False)
    assert_array_equal(found.cells["counts"], by_cell["total_counts"])
    assert_array_equal(found.cells["genes"], by_cell["n_genes_by_counts"])
    assert_allclose(100 * found.cells["mitochondrial"], by_cell["pct_counts_mt"], rtol=1e-5)
    assert_array_equal(found.genes["cells"], by_gene["n_cells_by_counts"])
    x = adata.X.toarray().astype(np.float64)
    assert_allclose(found.genes["mean"], x.mean(0))
    assert_allclose(found.genes["variance"], x.var(0, ddof=1), rtol=1e-9)
    logs = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    assert_allclose(found.genes["variance_prepared"], logs.var(0, ddof=1), rtol=1e-4, atol=1e-8)
    summary = found.summary.set_index("values")
    assert summary.loc["counts", "max"] == x.max()
    assert_allclose(
        summary.loc["prepared", ["mean", "max"]].astype(float), [logs.mean(), logs.max()], rtol=1e-5
    )
    assert_allclose(summary["zeros"], (x == 0).mean())
    median = by_cell.groupby(adata.obs["batch"], observed=True)["total_counts"].median()
    rows = found.quality.query("metric == 'counts' and not is_all").set_index("batch")
    assert_allclose(rows["median"], median[rows.index])


def test_histograms_hold_every_value_and_the_tail_is_one_percent():
    adata = real()
    found = explore(adata)
    for name, x in (("counts", adata.X.data), ("prepared", log1p_cp10k(adata.X, totals(adata.X)).data)):
        rows = found.histograms[found.histograms["values"] == name]
        edges = np.append(rows["from"], rows["below"].iloc[-1])
        assert_array_equal(rows["n"], np.histogram(x, edges)[0])
        assert rows["n"].sum() == len(x)
        tail = found.summary.set_index("values").loc[name, "tail_from"]
        assert 0 <= (x >= tail).mean() <= 0.01


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_known_dispersion_is_recovered(depth):
    rng = np.random.default_rng(0)
    phi, n = 0.7, 3_000
    mean = rng.lognormal(0, 1.2, 300) * rng.lognormal(-(depth**2) / 2, depth, (n, 1))
    x = rng.poisson(rng.gamma(1 / phi, phi * mean)).astype(np.float32)
    fit = explore(AnnData(csr_matrix(x), obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))).dispersion
    assert fit is not None
    assert fit.beyond_depth == pytest.approx(phi, rel=0.06)
    assert fit.value == pytest.approx((1 + phi) * np.exp(depth**2) - 1, rel=0.08)


def test_poisson_counts_have_no_dispersion():
    x = np.random.default_rng(0).poisson(np.linspace(0.2, 5, 100), (2_000, 100)).astype(np.float32)
    fit = explore(AnnData(csr_matrix(x))).dispersion
    assert fit is not None
    assert fit.value < 0.01


# The same bits from any place


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("ending", ["h5ad", "zarr", "backed", "dense"])
def test_on_disk_as_in_memory(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(value_sums, "BLOCK", 5_000)  # several blocks
    adata = real()
    if ending == "dense":
        adata.X = adata.X.toarray()
    path = tmp_path / f"cells.{'zarr' if ending == 'zarr' else 'h5ad'}"
    adata.write_zarr(path) if ending == "zarr" else adata.write_h5ad(path)
    cells: AnnData | Path = sc.read_h5ad(path, backed="r") if ending == "backed" else path
    same(explore(cells, compare=True), explore(adata, compare=True))


def test_the_block_size_changes_no_count(monkeypatch):
    whole = explore(real())
    monkeypatch.setattr(value_sums, "BLOCK", 1_000)
    parts = explore(real())
    pd.testing.assert_frame_equal(whole.cells, parts.cells)
    pd.testing.assert_frame_equal(whole.genes, parts.genes, rtol=1e-12)


def test_matrices_on_disk_are_never_read_whole(tmp_path, monkeypatch):
    adata = real()
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(value_sums, "BLOCK", 5_000)
    seen = []
    original = value_sums.counted

    def noted(*args):
        seen.append(original(*args)[0].nnz)
        return original(*args)

    monkeypatch.setattr(value_sums, "counted", noted)
    explore(tmp_path / "cells.h5ad")
    assert len(seen) > 5
    assert max(seen) < adata.X.nnz / 3


@pytest.mark.parametrize("change", ["fraction", "negative"])
def test_what_the_sample_did_not_show_is_found(monkeypatch, change):
    monkeypatch.setattr(value_sums, "SAMPLED", 0)
    monkeypatch.setattr(value_sums, "_SPANS", 2)
    monkeypatch.setattr(value_sums, "_SPAN", 5)
    x = counts()
    assert explore(cells(csr_matrix(x))).values == "counts"
    x[30, 3] = 0.5 if change == "fraction" else -1
    found = explore(cells(csr_matrix(x)))
    words = " ".join([*found.reasons, *found.warnings])
    assert ("non-integer" if change == "fraction" else "negative") in words


def test_files_that_cannot_be_read_in_blocks_are_read_whole(tmp_path):
    adata = cells(csc_matrix(counts()))
    adata.write_h5ad(tmp_path / "by_gene.h5ad")
    adata.to_df().to_csv(tmp_path / "cells.csv")
    adata.var["feature_types"] = ["Gene Expression"] * 25 + ["Antibody Capture"] * 5
    adata.X = csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "with_antibodies.h5ad")
    means = counts().mean(0, dtype=np.float64)
    for name, n in (("by_gene.h5ad", 30), ("cells.csv", 30), ("with_antibodies.h5ad", 25)):
        assert_allclose(explore(tmp_path / name).genes["mean"], means[:n])
    assert_allclose(explore(adata).genes["mean"], means[:25])


def test_layers_and_raw_on_disk_are_used(tmp_path):
    adata = real()
    logs = adata[:, :300].copy()
    logs.raw = adata
    sc.pp.log1p(logs)
    logs.write_h5ad(tmp_path / "raw.h5ad")
    found = explore(tmp_path / "raw.h5ad")
    assert found.reasons[0].startswith("raw.X holds counts")
    assert_array_equal(found.cells["counts"], np.asarray(adata.X.sum(1)).ravel())


def test_repeated_gene_names_are_no_obstacle_in_one_file():
    adata = cells()
    adata.var_names = ["one", *adata.var_names[1:-1], "one"]
    assert explore(adata).n_genes == adata.n_vars


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_several_files_are_explored_on_their_common_genes(tmp_path):
    adata = real()
    one, other = adata[:100].copy(), adata[100:, 50:][:, ::-1].copy()
    one.write_h5ad(tmp_path / "one.h5ad")
    other.write_zarr(tmp_path / "other.zarr")
    found = explore([tmp_path / "one.h5ad", tmp_path / "other.zarr"])
    assert found.n_cells == adata.n_obs
    assert found.n_genes == adata.n_vars - 50
    assert any("Genes lost" in line for line in found.warnings)
    assert list(found.columns["column"]) == ["file", *adata.obs.columns]
    x = adata[:, 50:].X.toarray().astype(float)
    assert_allclose(found.genes["mean"], x.mean(0))
    assert_array_equal(found.cells["counts"], np.asarray(adata.X.sum(1)).ravel() - _lost(adata))


def _lost(adata: AnnData) -> np.ndarray:
    """Counts of the genes that the second file lacks."""
    lost = np.asarray(adata[:, :50].X.sum(1)).ravel()
    lost[:100] = 0
    return lost


# obs


def obs() -> pd.DataFrame:
    n = 240
    donor = np.arange(n) % 12
    return pd.DataFrame(
        {
            "barcode": [f"ACGT{i}" for i in range(n)],
            "DonorID": [f"d{i}" for i in donor],
            "donor_age": 20 + 3 * donor,
            "Site": [f"s{i // 3}" for i in donor],
            "site_no": (donor // 3).astype(int),
            "country": ["x" if i < 6 else "y" for i in donor],
            "cell_type_color": np.array(["red", "blue"])[np.arange(n) // 20 % 2],
            "cell_type": pd.Categorical(np.array(["B", "T", None], dtype=object)[np.arange(n) // 20 % 3]),
            "n_counts": np.linspace(0, 1, n),
            "nothing": np.full(n, np.nan),
            "organism": "human",
            "Samplename": [f"run{i // 2}" for i in donor],
        },
        index=[f"c{i}" for i in range(n)],
    )


def test_columns_are_described():
    table = explore(AnnData(counts(240), obs=obs())).columns.set_index("column")
    kinds = table["kind"].to_dict()
    assert kinds == {
        "barcode": "identifier",
        "DonorID": "categorical",
        "donor_age": "number",
        "Site": "categorical",
        "site_no": "categorical",
        "country": "categorical",
        "cell_type_color": "categorical",
        "cell_type": "categorical",
        "n_counts": "number",
        "nothing": "empty",
        "organism": "constant",
        "Samplename": "categorical",
    }
    # Of Site and site_no, which are the same, one is listed; country is above Site.
    assert table.loc["DonorID", "nested_in"] == "Site; Samplename"
    assert table.loc["Samplename", "nested_in"] == "country"  # runs of two donors cross sites of three
    assert table.loc["Site", "same_as"] == "site_no"
    assert table.loc["Site", "nested_in"] == "country"
    assert table.loc["cell_type", "missing"] == 80
    assert table.loc["cell_type", "most_frequent"] == "B (80), T (80)"
    assert table.loc["donor_age", ["min", "median", "max"]].tolist() == [20, 36.5, 53]
    assert table["role"][table["role"] != ""].to_dict() == {
        "DonorID": "donor",
        "Site": "site",
        "cell_type": "label",
        "Samplename": "batch",
    }


@pytest.mark.parametrize(
    ("names", "role", "chosen"),
    [
        (["sample", "batch_id"], "batch", "batch_id"),
        (["cell_type_broad", "cell_type"], "label", "cell_type"),
        (["leiden", "celltype"], "label", "celltype"),
        (["donorid", "donor_sex"], "donor", "donorid"),
        (["donor_sex"], "donor", None),
        (["patients"], "donor", "patients"),
        (["sampled_at"], "batch", None),
        (["seurat_clusters"], "label", "seurat_clusters"),
        (["location"], "site", None),
    ],
)
def test_a_key_is_guessed_from_its_name(names, role, chosen):
    table = pd.DataFrame({name: ["a", "b"] * 20 for name in names})
    keys = keys_of(table, describe(table), {})
    assert (keys[role].column.name if role in keys else None) == chosen


def test_confounding_of_a_known_design():
    n = 60
    columns = {"batch": np.arange(n) % 3, "donor": np.arange(n) % 3, "cell_type": np.arange(n) // 30}
    found = explore(AnnData(counts(n), obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)])))
    rows = found.confounding.set_index(["one", "other"])
    assert rows.loc[("batch", "donor"), "cramers_v"] == pytest.approx(1)
    assert rows.loc[("batch", "label"), "cramers_v"] == pytest.approx(0, abs=1e-9)
    assert rows.loc[("batch", "label"), "by_chance"] == pytest.approx(np.sqrt(2 / 59))
    assert_array_equal(found.composition, np.full((2, 3), 10))
    assert "Each batch is one donor: their effects cannot be told apart." in found.findings()


def test_cramers_v_by_chance_is_that_of_permuted_levels():
    rng = np.random.default_rng(0)
    batch = pd.Series(rng.choice([f"b{i}" for i in range(4)], 50))
    label = rng.choice([f"l{i}" for i in range(9)], 50)

    def row():
        obs = pd.DataFrame({"batch": batch, "label": rng.permutation(label)})
        found = describe(obs)
        return confounding_table(keys_of(obs, found, {})).iloc[0]

    rows = [row() for _ in range(300)]
    assert rows[0]["by_chance"] == pytest.approx(
        np.sqrt(np.mean([r["cramers_v"] ** 2 for r in rows])), rel=0.05
    )


# Bad input


BAD = {
    "negative": (lambda: cells(counts() - counts().mean(0)), (), "negative values"),
    "all zero": (lambda: cells(csr_matrix((60, 30), dtype=np.float32)), (), "no value above 0"),
    "one cell": (lambda: cells()[:1].copy(), (), "has 1 cell"),
    "5,000 levels": (
        lambda: cells(counts(12_000), many=[f"l{i % 5000}" for i in range(12_000)]),
        ("--batch", "many"),
        "5,000 levels",
    ),
    "key twice": (cells, ("--label", "batch", "--batch", "batch"), "another role"),
    "wrong key": (cells, ("--label", "cell_typ"), "Did you mean 'cell_type'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_one_line_and_leaves_nothing(shell, tmp_path, name):
    make, options, words = BAD[name]
    make().write_h5ad(tmp_path / "cells.h5ad")
    before = tree(tmp_path)
    said = shell("explore", tmp_path / "cells.h5ad", "--out", tmp_path / "out", "--quiet", *options)
    assert said.code == 1
    assert words in said.error
    assert tree(tmp_path) == before


def test_log_normalised_values_lack_some_tables_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(explore_figures, "picture", drawn_once)
    adata = real()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    found = explore(adata, compare=True)
    assert found.values == "log-normalised"
    assert {"counts", "dispersion", "normalisations"} <= set(found.missing)
    assert found.dispersion is None
    assert "counts" not in found.cells
    # Shares of the counts are known: undone logarithms are proportional to them.
    assert_allclose(found.cells["mitochondrial"], explore(real()).cells["mitochondrial"], rtol=1e-4)
    found.report(tmp_path / "page.html")
    assert "counts cannot be computed from them" in (tmp_path / "page.html").read_text()


def test_many_levels_and_no_obs_are_explored_without_their_tables():
    many = cells(counts(12_000), many=[f"l{i % 5000}" for i in range(12_000)])
    found = explore(many)
    assert any("many (5,000)" in line for line in found.warnings)
    assert found.columns.set_index("column").loc["many", "kind"] == "text"
    bare = explore(AnnData(counts()))
    assert {"columns", "batch", "label", "composition"} <= set(bare.missing)
    assert set(bare.quality["batch"]) == {"all cells"}


# The folder and the page


def test_the_command_writes_all_of_the_folder(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(explore_figures, "picture", drawn_once)
    real().write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "out"
    said = shell.well(
        "explore", tmp_path / "cells.h5ad", "--out", out, "--compare", "--threads", 1, "--quiet"
    )
    assert said == ""
    tables = {"columns", "levels", "composition", "confounding", "quality", "values", "histograms", "genes"}
    assert {p.name for p in out.iterdir()} == {
        *(f"{name}.csv" for name in (*tables, "normalisations")),
        *("report.html", "explore.json", "versions.json"),
    }
    record = json.loads((out / "explore.json").read_text())
    assert record["keys"]["batch"] == {"column": "batch", "why": "its name begins with 'batch'"}
    page = (out / "report.html").read_text()
    assert "Two normalisations" in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    parsed = Page(page)  # fails on tags that are not closed
    links = {attrs["href"][1:] for tag, attrs in parsed.tags if tag == "a"}
    assert links <= set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)
    again = shell("explore", tmp_path / "cells.h5ad", "--out", out, "--quiet")
    assert "--overwrite" in again.error
    (out / "mine.txt").write_text("notes")
    assert (
        "mine.txt" in shell("explore", tmp_path / "cells.h5ad", "--out", out, "--overwrite", "--quiet").error
    )
    (out / "mine.txt").unlink()
    shell.well("explore", tmp_path / "cells.h5ad", "--out", out, "--overwrite", "--quiet")
    assert not (out / "normalisations.csv").exists()  # the folder is that of the last exploration
    before = tree(tmp_path)
    other = shell("explore", tmp_path / "cells.h5ad", "--out", tmp_path, "--overwrite", "--quiet")
    assert "no folder of an exploration" in other.error
    assert tree(tmp_path) == before


def test_names_from_the_data_cannot_break_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(
        explore_figures, "picture", lambda draw, size, alt, title: Picture("", "", alt, title)
    )
    odd = "<script>alert(1)</script>"
    adata = cells(cell_type=np.array([odd, "T"])[np.arange(60) % 2])
    explore(adata).report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert odd not in text
    assert "&lt;script&gt;alert(1)" in text


def test_an_error_names_the_file(tmp_path):
    cells(counts() - counts().mean(0)).write_h5ad(tmp_path / "scaled.h5ad")
    cells().write_h5ad(tmp_path / "good.h5ad")
    with pytest.raises(ScmedleyError, match="scaled: X has negative values"):
        explore([tmp_path / "good.h5ad", tmp_path / "scaled.h5ad"])


def test_pearson_residuals_are_those_of_scanpy():
    adata = real()
    found = explore(adata, compare=True).comparison
    assert found is not None
    with np.errstate(invalid="ignore"):  # of genes that no cell has
        residuals = sc.experimental.pp.normalize_pearson_residuals(adata, inplace=False)["X"]
    expected = residuals[:, adata.var_names.get_indexer(found.genes["gene"])]
    assert_allclose(found.genes["variance_pearson"], expected.var(0, ddof=1), rtol=1e-4)
    row = found.table.set_index("normalisation").loc["pearson"]
    assert row["max"] == pytest.approx(np.sqrt(adata.n_obs), rel=1e-6)
    assert 0.8 < row["same_label"] <= 1


@pytest.mark.filterwarnings("error")
def test_cells_that_are_all_alike_have_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(explore_figures, "picture", drawn_once)
    alike = AnnData(np.tile(np.random.default_rng(0).poisson(2.0, (1, 60)), (60, 1)).astype(np.float32))
    alike.obs["batch"] = ["a", "b"] * 30
    found = explore(alike, batch="batch", compare=True)
    assert "all alike" in found.missing["normalisations"]
    assert found.report(tmp_path / "page.html").exists()


def test_parts_of_the_dispersion_are_said_to_multiply_and_identifiers_are_named():
    found = explore(real())
    fit = found.dispersion
    assert f"1 + {fit.value:.3g} is the product of 1 + {fit.depth:.3g} and" in " ".join(found.findings())
    assert_allclose(1 + fit.value, (1 + fit.depth) * (1 + fit.beyond_depth))
    adata = cells()
    adata.obs["cell_id"] = [f"id{i}" for i in range(adata.n_obs)]
    with pytest.raises(ScmedleyError, match="one for nearly every cell: these are identifiers, not a batch"):
        explore(adata, batch="cell_id")


def test_a_logarithmic_axis_has_few_labels():
    for end in (30, 1e5):
        ax = NotebookFigure(figsize=(4, 3)).add_subplot()
        ax.set_xscale("log")
        ax.set_xlim(2, end)
        explore_figures._plain(ax)
        assert 2 <= sum(2 <= tick <= end for tick in ax.xaxis.get_majorticklocs()) <= 6
        assert not any(label.get_text() for label in ax.xaxis.get_minorticklabels())
