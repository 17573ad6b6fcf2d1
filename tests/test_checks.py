"""check, overlap and what values are: verdicts on designs made by hand."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_matrix

from corpus import cells, counts
from scmedley import datasets
from scmedley.data import design, scan
from scmedley.data.evidence import Checked, judge
from scmedley.errors import ScmedleyError, heard
from scmedley.pp import checks, overlap

FORMS = [np.asarray, csr_matrix, csc_matrix]


def series(*values: object) -> pd.Series:
    return pd.Series(values)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_BLOCK", 100)  # a few cells at a time, so that offsets matter


def kind_of_values(x, cells=None, genes=None) -> str:
    return judge(scan.examine(x, "The matrix", cells, genes), "The matrix").values


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", FORMS)
def test_kind_of_values(form) -> None:
    x = counts()
    totals = x.sum(1, keepdims=True)
    assert kind_of_values(form(x)) == "counts"
    assert kind_of_values(form(x.astype(np.int64))) == "counts"
    assert kind_of_values(form(x * 33.3)) == "counts"
    assert kind_of_values(form(1e4 * x / totals)) == "counts"  # CP10k before the logarithm
    assert kind_of_values(form(np.log1p(1e4 * x / totals))) == "log-normalised"
    assert kind_of_values(form(np.log2(1 + 1e6 * x / totals))) == "log-normalised"
    assert kind_of_values(form(x - 1)) == "other"
    assert kind_of_values(form(np.zeros((3, 4)))) == "counts"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_the_bad_value_is_named(form, value: float) -> None:
    x = counts().astype(np.float64)
    x[41, 17] = value
    with pytest.raises(ScmedleyError, match="cell number 41, gene number 17"):
        kind_of_values(form(x))


def test_values_that_are_no_numbers() -> None:
    with pytest.raises(ScmedleyError, match="not numbers"):
        kind_of_values(np.array([["a", "b"]]))


@pytest.mark.usefixtures("small_blocks")
def test_kind_of_values_only_ever_holds_a_block() -> None:
    import tracemalloc

    x = csr_matrix(np.random.default_rng(0).poisson(1.0, (2000, 500)).astype(np.float32))
    tracemalloc.start()
    kind_of_values(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.data.nbytes / 10


def test_check_changes_nothing_and_reads_views_and_backed_files(tmp_path: Path) -> None:
    adata = cells(batch=np.arange(60) % 3)
    before = adata.obs.copy()
    found = checks.check(adata, "batch", "cell_type")
    assert found == Checked("counts", "X", [])
    pd.testing.assert_frame_equal(adata.obs, before)
    assert checks.check(adata[:, :5], "batch") == found
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert checks.check(backed, "batch", "cell_type") == found
    backed.file.close()


def test_where_the_values_are() -> None:
    adata = cells(-counts())
    assert (checks.check(adata, "batch").values, checks.check(adata, "batch").where) == ("other", "X")
    adata.raw = cells(counts())
    assert checks.check(adata, "batch").where == "raw.X"
    adata.layers["counts"] = csr_matrix(counts())
    assert checks.check(adata, "batch").where == "layers['counts']"
    del adata.layers["counts"]
    adata.var_names = [f"other{i}" for i in range(30)]  # genes that raw does not have
    adata.raw = cells(counts())
    assert checks.check(adata, "batch").where == "X"


def test_no_matrix_at_all() -> None:
    adata = cells()
    adata.X = None
    with pytest.raises(ScmedleyError, match="no matrix"):
        checks.check(adata, "batch")


def test_missing_key_without_any_likeness_lists_the_columns() -> None:
    with pytest.raises(
        ScmedleyError, match=r"'sample' is not a column of obs\. Columns with categories: 'batch', 'c"
    ):
        checks.check(cells(), "sample")


def test_as_categories() -> None:
    found = overlap.as_categories(series(10.0, 9.0, np.nan, 10.0))
    assert list(found.categories) == ["9", "10"]
    assert list(found.codes) == [1, 0, -1, 1]
    assert list(overlap.as_categories(series("a", " ", None, "", "a ")).codes) == [0, -1, -1, -1, 0]
    kept = pd.Series(pd.Categorical(["x", "a"], categories=["x", "unused", "a"], ordered=True))
    assert list(overlap.as_categories(kept).categories) == ["x", "a"]
    assert list(overlap.as_categories(series(True, False)).categories) == ["False", "True"]
    assert set(overlap.as_categories(series(1, "1", "b")).categories) == {"1", "b"}


def test_overlap_identifiable() -> None:
    found = overlap.overlap(series(*"aabbcc"), series(*"BTBTTB"))
    assert found.verdict == "identifiable"
    assert found.parts == [["a", "b", "c"]]
    assert found.table.loc["B"].to_dict() == {"a": 1, "b": 1, "c": 1}


def test_a_label_of_one_batch_is_an_exception() -> None:
    found = overlap.overlap(series(*"aabbc"), series(*"BTBTB"))
    assert found.verdict == "identifiable"
    assert "except" not in found.words
    found = overlap.overlap(series(*"aabba"), series("B", "T", "B", "T", "HSPC"))
    assert found.verdict == "identifiable"
    assert found.words.endswith("can be compared, except for 'HSPC', which is in one batch only.")


def test_overlap_linked_through_another_batch() -> None:
    found = overlap.overlap(series(*"abbc"), series(*"BBTT"))
    assert found.verdict == "partly identifiable"
    assert found.parts == [["a", "b", "c"]]
    assert "'a' with 'c'" in found.words
    assert "'a' with 'b'" not in found.words


def test_overlap_in_parts() -> None:
    found = overlap.overlap(series(*"abcd"), series(*"BBTT"))
    assert found.verdict == "partly identifiable"
    assert found.parts == [["a", "b"], ["c", "d"]]
    assert "{'a', 'b'}; {'c', 'd'}" in found.words


def test_overlap_none() -> None:
    found = overlap.overlap(series(*"aabc"), series(*"BBTN"))
    assert found.verdict == "not identifiable"
    assert found.parts == [["a"], ["b"], ["c"]]
    assert found.table.to_numpy().sum() == 4


def test_labels_of_one_batch_are_named() -> None:
    found = overlap.overlap(series(*"aabbb"), series(*"BTBTN"))
    assert found.verdict == "identifiable"
    assert found.of_one_batch == {"N": "b"}
    assert overlap.overlap(series(*"ab"), series(*"BB")).of_one_batch == {}
    adata = cells()
    kind = np.resize(["B", "T"], adata.n_obs).astype(object)
    first = adata.obs["batch"] == adata.obs["batch"].iloc[0]
    kind[np.flatnonzero(first)[:2]] = "NK"
    adata.obs["kind"] = kind
    (said,) = (w for w in checks.check(adata, "batch", "kind").warnings if "one batch only" in w)
    assert said.startswith("1 of 3 labels are found in one batch only")
    assert f"'NK ({adata.obs['batch'].iloc[0]})'" in said
    adata.obs["kind"] = adata.obs["batch"].astype(str)  # not identifiable, which says it all
    assert not any("one batch only" in w for w in checks.check(adata, "batch", "kind").warnings)


def test_overlap_leaves_cells_without_a_label_out() -> None:
    found = overlap.overlap(series(*"aabb"), series("B", None, "T", None))
    assert found.verdict == "not identifiable"
    assert found.table.to_numpy().sum() == 2


def test_overlap_does_not_list_hundreds_of_pairs() -> None:
    batch = [f"donor{i}" for i in range(60)] * 2
    label = [f"type{i // 2}" for i in range(60)] + [f"type{(i + 1) // 2}" for i in range(60)]
    found = overlap.overlap(pd.Series(batch), pd.Series(label))
    assert found.verdict == "partly identifiable"
    assert len(found.words) < 400
    assert "more pairs" in found.words


def test_real_sets_are_counts() -> None:
    for load in (datasets.sc_mixology, datasets.pancreas, datasets.hashing):
        found = checks.check(load(), "batch", "cell_type")
        assert (found.values, found.where) == ("counts", "X")
    assert (
        checks.check(datasets.pancreas(), "batch").warnings[0].startswith("2 of 8 batches have fewer than 20")
    )


def test_labels_that_are_measurements_are_refused():
    adata = cells()
    adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
    with pytest.raises(ScmedleyError, match="label column 'depth' holds measurements"):
        checks.check(adata, "batch", "depth")


def test_text_that_stands_for_missing_values() -> None:
    codes = overlap.as_categories(series("nan", "<NA>", "NaN", "NaT", "None", "NA")).codes
    assert list(codes) == [-1, -1, -1, -1, 1, 0]
    label = np.array(["B"] * 20 + ["T"] * 20 + ["nan"] * 12 + ["None"] * 8)
    found = checks.check(cells(cell_type=label), "batch", "cell_type").warnings
    assert any(
        said.startswith("12 cells have the label 'nan' in obs['cell_type'], which is the text")
        for said in found
    )
    assert any(said.startswith("12 of 60 cells have no label") for said in found)
    assert any(
        said.startswith("8 cells have the label 'None' in obs['cell_type'], which is used") for said in found
    )
    with pytest.raises(ScmedleyError, match=r"20 of 60 cells have no batch .* holds 'nan'"):
        checks.check(cells(batch=np.array(["a", "b", "nan"] * 20)), "batch")
    found = checks.check(cells(batch=np.array(["a", "b", "NA"] * 20)), "batch").warnings
    assert any(said.startswith("20 cells have the batch 'NA'") for said in found)


def test_values_that_are_one_or_nearly() -> None:
    found = checks.check(cells(batch=np.array(["ctrl", "ctrl ", "stim"] * 20)), "batch").warnings
    assert "The values 'ctrl', 'ctrl ' of obs['batch'] are merged into 'ctrl'." in found
    found = checks.check(cells(batch=np.array(["ctrl", "Ctrl", "stim"] * 20)), "batch").warnings
    assert "'ctrl', 'Ctrl' of obs['batch'] differ only in upper and lower case; they stay separate." in found
    assert design.oddly_named(series(1, "1", 1.5), "batch")[0].endswith("are merged into '1'.")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([f"AAC{i}" for i in range(60)], "Every cell has its own value .* not {}"),
        ([f"AAC{i // 2 * 2 if i < 40 else i}" for i in range(60)], "The 60 cells have 40 values .* not {}"),
        (np.arange(60) * 7, "Every cell has its own value .* not {}"),
    ],
)
def test_names_of_cells_are_neither_batches_nor_labels(values: object, error: str) -> None:
    adata = cells(wrong=values)
    with pytest.raises(ScmedleyError, match=error.format("batches")):
        checks.check(adata, "wrong")
    with pytest.raises(ScmedleyError, match=error.format("labels")):
        checks.check(adata, "batch", "wrong")


def test_many_numbers_are_no_labels_but_may_be_donors() -> None:
    adata = AnnData(
        np.tile(counts(), (20, 1)),
        obs=pd.DataFrame({"b": np.arange(1200) % 3, "n_counts": np.arange(1200) // 4}).rename(str),
    )
    with heard():
        assert checks.check(adata, "n_counts").values == "counts"
        with pytest.raises(ScmedleyError, match=r"300 different numbers .* measurements"):
            checks.check(adata, "b", "n_counts")


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_doses_are_groups(kind: type) -> None:
    adata = cells(dose=np.array([0.1, 1, 10], dtype=kind)[np.arange(60) % 3])
    checks.check(adata, "dose")
    assert list(overlap.as_categories(adata.obs["dose"]).categories) == ["0.1", "1", "10"]
    days = pd.Series(pd.to_datetime(["2024-01-01", "2024-02-01"]))
    assert list(overlap.as_categories(days).categories) == ["2024-01-01", "2024-02-01"]


def test_keys_that_are_no_key() -> None:
    with pytest.raises(ScmedleyError, match="the same column"):
        checks.check(cells(), "batch", "batch")
    for key in (["batch", "cell_type"], ("batch",), 3):
        with pytest.raises(ScmedleyError, match=r"one column of obs.* Join several"):
            checks.check(cells(), key)
    adata = cells()
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(ScmedleyError, match="several columns 'batch'"):
        checks.check(adata, "batch")


def test_a_table_that_was_not_swapped_is_warned_of() -> None:
    adata = cells()
    adata.obs_names = [f"ENSG{i:011d}" for i in range(60)]
    assert any("swap rows and columns" in said for said in checks.check(adata, "batch").warnings)
