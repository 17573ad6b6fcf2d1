"""What a matrix holds, which matrix is used, and cells given to a fitted model: decisions on real cells."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import anndata
import dask.array
import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csc_matrix, csr_array, csr_matrix, issparse, vstack

from corpus import cells, counts
from running import SMALL, Shell
from scmedley import datasets, io, keys, load, read_batches
from scmedley.data import scan
from scmedley.data.evidence import judge
from scmedley.data.matrix import find_values
from scmedley.data.scan import examine, n_stored
from scmedley.errors import ScmedleyError, ScmedleyWarning, heard
from scmedley.pp import log_normalised, prepare

GENES = [f"gene{i}" for i in range(30)]


def dense(x) -> np.ndarray:
    return x.toarray() if issparse(x) else np.asarray(x)


def _per(total: float, x: np.ndarray) -> np.ndarray:
    return total * x / np.maximum(x.sum(1, keepdims=True), 1)


def _variable(x: np.ndarray) -> np.ndarray:
    return x[:, np.argsort(-x.var(0))[: x.shape[1] // 4]]


def _lengths(x: np.ndarray) -> np.ndarray:
    return _per(1e6, x / np.random.default_rng(0).lognormal(0, 0.8, x.shape[1]))


def _noise(x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random(x.shape)


def _scran(x: np.ndarray) -> np.ndarray:
    factor = x.sum(1, keepdims=True) / x.sum(1).mean()
    return x / (factor * np.random.default_rng(0).lognormal(0, 0.2, (len(x), 1)))


# What is made of the counts, what it is recognised as, and the total behind it.
FORMS = {
    "counts": (lambda x: x, "counts", None),
    "counts thinned": (lambda x: np.random.default_rng(0).binomial(x.astype(int), 0.8), "counts", None),
    "ambient-corrected, one factor": (lambda x: x * 0.93, "counts", None),
    "ambient-corrected": (lambda x: np.maximum(x - 0.3 * _noise(x), 0), "counts", None),
    "ambient-corrected, shallow": (lambda x: np.clip(x - 0.3 * _noise(x), 0, 18), "counts", None),
    "ambient-corrected, shallow, none whole": (
        lambda x: x[:, x.max(0) < 18] * (1 - 0.3 * _noise(x[:, x.max(0) < 18])),
        "counts",
        None,
    ),
    "EM-estimated": (lambda x: np.where(_noise(x) < 0.4, x * 1.17, x), "counts", None),
    "EM-estimated, shallow": (
        lambda x: np.minimum(np.where(_noise(x) < 0.4, x * 1.17, x), 19),
        "counts",
        None,
    ),
    "expm1 of log1p": (lambda x: np.expm1(np.log1p(x)), "counts", None),
    "expm1 of log1p CP10k": (lambda x: np.expm1(np.log1p(_per(1e4, x))), "counts", None),
    "CP10k": (lambda x: _per(1e4, x), "counts", None),
    "TPM": (_lengths, "counts", None),
    "log1p CP10k": (lambda x: np.log1p(_per(1e4, x)), "log1p", 1e4),
    "log1p of another total": (lambda x: np.log1p(_per(1524, x)), "log1p", 1524),
    "log2 CP10k": (lambda x: np.log2(_per(1e4, x) + 1), "log2", 1e4),
    "log10 CP10k": (lambda x: np.log10(_per(1e4, x) + 1), "log10", 1e4),
    "log2 CPM": (lambda x: np.log2(_per(1e6, x) + 1), "log2", 1e6),
    "log2 TPM": (lambda x: np.log2(_lengths(x) + 1), "log2", 1e6),
    "log1p CP10k in 16 bits": (lambda x: np.log1p(_per(1e4, x)).astype(np.float16), "log1p", 1e4),
    "log1p of a part of the genes": (lambda x: _variable(np.log1p(_per(1e4, x))), "log1p", None),
    "log2 of a part of the genes": (lambda x: _variable(np.log2(_per(1e4, x) + 1)), "log2", None),
    "log2 of scran's size factors": (lambda x: np.log2(_scran(x) + 1), "log2", None),
    "log1p of TPM of a part of the genes": (lambda x: _variable(np.log1p(_lengths(x) / 100)), "log1p", None),
    "scaled": (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-3), "other", None),
    "centred": (lambda x: x - 1, "other", None),
    "logarithms of corrected values": (lambda x: np.log1p(_per(1e4, x)) - 0.2 * _noise(x), "other", None),
}


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Every seventh cell of three protocols."""
    return dense(datasets.sc_mixology()[::7].X).astype(np.float64)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_kinds_are_recognised(real: np.ndarray, name: str, form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_BLOCK", 20_000)  # several blocks
    make, kind, total = FORMS[name]
    x = np.asarray(make(real))
    x = x if x.dtype == np.float16 and form is np.asarray else x.astype(np.float32)
    found = judge(examine(form(x), "X", None, None), "X")
    assert (found.kind, found.total) == (kind, total if total is None else pytest.approx(total, rel=1e-4))
    assert found.reason.startswith("X ")
    assert found.reason.endswith(".")
    if kind == "counts" and name not in ("counts", "counts thinned", "expm1 of log1p"):
        assert "non-integer counts" in found.warnings[0]


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
@pytest.mark.parametrize("base", ["log1p", "log2", "log10"])
def test_a_few_values_that_are_no_logarithms_are_named(
    base: str, form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_BLOCK", 500)  # several blocks
    x = (np.log1p(_per(1e4, counts())) / scan.LN[base]).astype(np.float32)
    x[40, 7] = 1e5
    names = [f"cell{i}" for i in range(60)]
    with pytest.raises(ScmedleyError, match=r"in 1 of 60 cells .*100000 in cell 'cell40', gene 'gene7'"):
        judge(examine(form(x), "X", names, GENES), "X")
    asked = judge(examine(form(x), "X", names, GENES), "X", "counts")
    assert (asked.kind, "cell 'cell40'" in asked.warnings[0]) == ("counts", True)
    with pytest.raises(
        ScmedleyError,
        match=r"too large for a logarithm of a count \(the first such value: 100000 in cell 'cell40'",
    ):
        judge(examine(form(x), "X", names, GENES), "X", base)
    x[:9, 7] = 1e5  # so many are no errors
    assert judge(examine(form(x), "X", names, GENES), "X").kind == "counts"
    few = (counts() * 0.93).astype(np.float32)
    few[:3, 7] = 26.3
    assert judge(examine(form(few), "X", names, GENES), "X").kind == "counts"


def test_an_outlier_in_raw_leaves_the_counts_usable() -> None:
    x = _log(counts()).astype(np.float32)
    adata = cells(x)
    adata.raw = adata.copy()
    adata = adata[:, :10].copy()
    adata.layers["counts"] = csr_matrix(counts()[:, :10])
    adata.raw.X[0, 20] = 1e5
    found = find_values(adata)
    assert (found.where, found.sizes.where) == ("layers['counts']", "X")
    assert any("totals over all genes are not taken from raw.X" in words for words in found.warnings)


@pytest.mark.parametrize("many", [1, 40])
def test_proportions_are_no_logarithms(many: int) -> None:
    x = np.random.default_rng(0).negative_binomial(2, 0.4, (60, 30 * many)).astype(np.float64) + (many == 1)
    shares = _per(1, x).astype(np.float32)
    found = judge(examine(shares, "X", None, None), "X")
    assert (found.kind, found.sure) == ("counts", True)
    assert found.reason.endswith("the cells' totals agree (1).")
    logs = judge(examine(np.log1p(shares), "X", None, None), "X")
    assert (logs.kind, logs.total) == ("log1p", pytest.approx(1))


@pytest.mark.parametrize("base", ["log1p", "log2", "log10"])
def test_logarithms_of_counts_give_the_counts_back(base: str) -> None:
    adata = cells(csr_matrix(np.log1p(counts()) / scan.LN[base]))
    checked = prepare(adata, "batch")
    assert (checked.values, checked.base) == ("counts", base)
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())


@pytest.mark.parametrize("name", ["log2 CP10k", "log10 CP10k", "log2 CPM", "CP10k", "expm1 of log1p"])
def test_whatever_the_unit_log1p_cp10k_comes_out(name: str) -> None:
    prepare(wanted := cells(), "batch")
    adata = cells(FORMS[name][0](counts().astype(np.float64)).astype(np.float32))
    checked = prepare(adata, "batch")
    assert_allclose(
        dense(adata.layers[keys.LOGNORM]), dense(wanted.layers[keys.LOGNORM]), rtol=1e-4, atol=1e-4
    )
    assert checked.reason.endswith("holds natural logarithms.") == (name in ("log2 CP10k", "log10 CP10k"))
    assert not any("logarithms" in words for words in checked.warnings)


def _negative() -> np.ndarray:
    x = counts()
    x[3, 4] = x[5, 6] = -0.25
    return x


def test_a_few_negative_counts_are_taken_as_0() -> None:
    adata = cells(csr_matrix(_negative()))
    (words,) = prepare(adata, "batch").warnings
    assert "has 2 negative and" in words
    assert "-0.25 in cell 'cell3', gene 'gene4'" in words
    assert_array_equal(dense(adata.layers[keys.COUNTS]), np.maximum(_negative(), 0))
    assert_array_equal(dense(adata.X), _negative())


def test_rounding_below_0_is_no_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_BLOCK", 200)  # several blocks
    x = _log(counts())
    adata = cells(np.where(x > 0, x, -1e-6).astype(np.float32))
    prepare(adata, "batch")
    assert_allclose(dense(adata.layers[keys.LOGNORM]), x, rtol=1e-4, atol=1e-5)
    adata = cells(np.where(np.arange(30) < 20, -1e-6, counts()).astype(np.float32))
    assert find_values(adata).values == "counts"


def _masked() -> np.ma.MaskedArray:
    x = np.ma.array(counts(), mask=False)
    x[3, 5] = np.ma.masked
    return x


ODD = {
    "masked": (_masked, "missing .*cell 'cell3', gene 'gene5'"),
    "complex": (lambda: counts().astype(np.complex64), "type complex64, not numbers"),
    "text": (lambda: np.where(counts() > 3, "x", "1").astype(object), "not numbers"),
    "missing object": (lambda: np.where(counts() > 9, None, counts()), r"missing \(NaN\) in cell"),
    "nothing masked": (lambda: np.ma.array(counts(), mask=False), None),
    "objects": (lambda: counts().astype(object), None),
    "bool": (lambda: counts() > 3, None),
    "bool csr": (lambda: csr_matrix(counts() > 3), None),
    "long double": (lambda: counts().astype(np.longdouble), None),
    "other byte order": (lambda: counts().astype(">f4"), None),
    "16 bits": (lambda: counts().astype(np.float16), None),
    "csr_array": (lambda: csr_array(counts()), None),
    "Fortran": (lambda: np.asfortranarray(counts()), None),
    "dask": (lambda: dask.array.from_array(counts(), chunks=(7, 30)), None),
    "dask of csr": (
        lambda: dask.array.from_array(counts(), chunks=(7, 30)).map_blocks(csr_matrix),
        None,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_work_or_are_told_of(name: str) -> None:
    make, error = ODD[name]
    adata = cells()
    adata.X = make()
    if error:
        for refuse in (lambda: prepare(adata.copy(), "batch"), lambda: log_normalised(adata, GENES)):
            with pytest.raises(ScmedleyError, match=error):
                refuse()
        return
    wanted = cells((counts() > 3).astype(np.float32)) if "bool" in name else cells()
    assert_allclose(dense(log_normalised(adata, GENES)[0]), dense(log_normalised(wanted, GENES)[0]))
    prepare(adata, "batch", min_genes=0)
    prepare(wanted, "batch", min_genes=0)
    assert_allclose(dense(adata.layers[keys.LOGNORM]), dense(wanted.layers[keys.LOGNORM]))


def test_entries_that_repeat_are_summed_before_anything_is_decided() -> None:
    x = csr_matrix(counts())
    halves = vstack([x * 0.5]).tocsr()
    twice = csr_matrix(
        (np.repeat(halves.data, 2), np.repeat(halves.indices, 2), halves.indptr * 2), shape=x.shape
    )
    adata = cells(twice)
    assert prepare(adata, "batch").reason == "X holds counts: all values are whole numbers."
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())


def test_stored_values_on_disk_are_counted_without_reading_them(tmp_path: Path) -> None:
    for name, form in (("csr", csr_matrix), ("csc", csc_matrix), ("dense", np.asarray)):
        cells(form(counts())).write_h5ad(tmp_path / f"{name}.h5ad")
        backed = anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        assert n_stored(backed.X) == (counts().size if name == "dense" else (counts() > 0).sum())
        assert find_values(backed).values == "counts"
        backed.file.close()


# Which matrix


def _scaled(x: np.ndarray) -> np.ndarray:
    return ((x - x.mean(0)) / (x.std(0) + 1e-3)).astype(np.float32)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log1p(_per(1e4, x)).astype(np.float32)


def _cut(where: str) -> AnnData:
    """The first 10 of 30 genes, with what knows the cells' totals over all 30 in ``where``."""
    full = cells()
    adata = full[:, :10].copy()
    if where == "counts in raw":
        adata.raw, adata.X = full, _scaled(counts()[:, :10])
    elif where == "counts in raw, cut counts in X":
        adata.raw = full
    elif where == "counts in raw, cut counts in a layer":
        adata.raw, adata.layers["counts"] = full, adata.X.copy()
        adata.X = _log(counts()[:, :10])
    else:
        adata.layers["counts"] = adata.X.copy()
        adata.X = _log(counts())[:, :10]
        if where == "logarithms in raw":
            adata.raw = cells(csr_matrix(_log(counts())))
            adata.X = _scaled(counts()[:, :10])
    return adata


CUT = [
    "counts in raw",
    "counts in raw, cut counts in X",
    "counts in raw, cut counts in a layer",
    "logarithms in raw",
    "logarithms in X",
]


@pytest.mark.parametrize("where", CUT)
def test_totals_are_over_all_genes_that_were_counted(where: str, tmp_path: Path) -> None:
    adata, fresh, wanted = _cut(where), _cut(where), _log(counts())[:, :10]
    assert_allclose(dense(log_normalised(fresh, GENES[:10])[0]), wanted, rtol=1e-4)
    assert_allclose(dense(log_normalised(fresh[7:20], GENES[:10])[0]), wanted[7:20], rtol=1e-4)
    checked = prepare(adata, "batch", min_genes=1)
    assert checked.values == "counts"
    assert_allclose(dense(adata.layers[keys.LOGNORM]), wanted, rtol=1e-4)
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts()[:, :10])
    assert_array_equal(dense(adata.X), dense(fresh.X))
    io.write_h5ad(adata, tmp_path / "a.h5ad")
    assert_allclose(dense(log_normalised(io.read(tmp_path / "a.h5ad"), GENES[:10])[0]), wanted, rtol=1e-4)


@pytest.mark.parametrize("where", ["raw.X", "layers['counts']", "layers['umis']"])
def test_whole_counts_are_better_than_corrected_ones(where: str) -> None:
    adata = cells(counts() * np.float32(0.93))
    if where == "raw.X":
        adata.raw = cells()
    else:
        adata.layers[where[8:-2]] = csr_matrix(counts())
    checked = prepare(adata, "batch")
    assert checked.where == where
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())
    if where != "layers['counts']":
        assert any("X is not used" in words for words in checked.warnings)
    corrected = cells(counts() * np.float32(0.93))
    corrected.raw = cells(_log(counts()))
    assert find_values(corrected).where == "X"


def test_raw_of_other_counts_gives_no_totals() -> None:
    adata = cells()[:, :10].copy()
    adata.raw = cells(csr_matrix(counts(seed=5)))
    assert find_values(adata).where == "X"


@pytest.mark.parametrize("name", ["raw_counts", "UMI", "spliced"])
def test_counts_in_a_layer_of_another_name(name: str) -> None:
    adata = cells(_scaled(counts()))
    adata.layers[name] = csr_matrix(counts())
    adata.layers["unspliced"] = csr_matrix(counts(seed=3))
    checked = prepare(adata, "batch")
    assert checked.where == f"layers['{name}']"
    assert any(f"taken from layers['{name}']. X has negative values" in words for words in checked.warnings)
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())
    assert adata.layers[keys.COUNTS] is not adata.layers[name]
    x = cells(_log(counts()))
    x.layers["spliced"] = csr_matrix(counts(seed=3))  # a part of the reads
    assert find_values(x).where == "X"


BAD_COUNTS = {
    "missing": lambda: np.where(np.arange(30) == 3, np.nan, counts()),
    "logarithms": lambda: np.log1p(counts()),
    "log-normalised": lambda: _log(counts()),
    "shifted": lambda: counts() - 1,
}


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_a_counts_layer_that_holds_none_is_passed_over(name: str) -> None:
    adata = cells()
    adata.layers["counts"] = BAD_COUNTS[name]().astype(np.float32)
    checked = prepare(adata, "batch")
    assert (checked.values, checked.where) == ("counts", "X")
    assert any("layers['counts'] is not used; X is used instead." in words for words in checked.warnings)
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())


@pytest.mark.parametrize("what", ["repeated genes", "missing"])
def test_raw_that_cannot_be_used_is_no_hindrance(what: str) -> None:
    adata, raw = cells(_log(counts())), cells(counts() * 1.5)
    if what == "missing":
        raw.X[3, 4] = np.nan
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw.var_names = ["gene1", *raw.var_names[1:]]
        adata = adata[:, 1:].copy()
    adata.raw = raw
    checked = prepare(adata, "batch")
    assert (checked.values, checked.where) == ("log-normalised", "X")
    assert any("raw.X is not used; X is used instead." in words for words in checked.warnings)


def test_nothing_usable_says_why() -> None:
    adata = cells(np.full((60, 30), np.nan, dtype=np.float32))
    adata.raw = cells(np.full((60, 30), np.inf, dtype=np.float32))
    with pytest.raises(ScmedleyError, match=r"^X has a value that is missing"):
        find_values(adata)


# The user's word


def test_the_users_word_overrules() -> None:
    x = _log(counts())
    prepare(as_counts := cells(x), "batch", values="counts")
    assert_allclose(dense(as_counts.layers[keys.LOGNORM]), np.log1p(_per(1e4, x)), rtol=1e-4)
    prepare(as_log2 := cells(x), "batch", values="log2")
    assert_allclose(dense(as_log2.layers[keys.LOGNORM]), x * np.log(2), rtol=1e-5)
    assert as_log2.uns[keys.UNS]["prepare"]["values"]["kind"] == "log2"
    adata = cells(x)
    adata.layers["counts"] = csr_matrix(counts())
    assert find_values(adata, "log1p").where == "X"
    adata.layers["spliced"], adata.X = counts(), None
    adata.layers["logcounts"] = np.log2(_per(1e4, counts()) + 1)
    assert find_values(adata, "log2").where == "layers['logcounts']"  # not the first layer that there is
    scaled = cells(_scaled(counts()))
    scaled.raw = cells(csr_matrix(_log(counts())))
    assert find_values(scaled, "log1p").where == "raw.X"


@pytest.mark.parametrize(
    ("x", "asked", "evidence"),
    [
        (np.log2(_per(1e4, counts()) + 1), "log1p", "X holds logarithms to base 2 of 10,000 counts per cell"),
        (_log(counts()), "counts", "X holds natural logarithms (log1p) of 10,000 counts per cell"),
        (np.log1p(counts()), "counts", "X holds natural logarithms (log1p) of counts"),
        (_per(1, counts()), "log1p", "X holds non-integer counts: the cells' totals agree (1)"),
        (counts(), "counts", ""),
        (counts() * 0.93, "counts", ""),
        (_log(counts()), "log1p", ""),
        (_variable(_log(counts())), "log1p", ""),
    ],
)
def test_a_word_that_the_evidence_is_against_is_doubted(x: np.ndarray, asked: str, evidence: str) -> None:
    found = judge(examine(csr_matrix(x.astype(np.float32)), "X", None, None), "X", asked)
    doubts = [words for words in found.warnings if "The evidence is against it" in words]
    assert found.kind == asked
    assert "that you asked for" in found.reason or found.total
    assert [evidence in words for words in doubts] == [True] * bool(evidence), found


@pytest.mark.parametrize(
    ("x", "asked", "error"),
    [
        (
            _scaled(counts()),
            "counts",
            "X cannot hold counts, the kind that you asked for: it has negative values",
        ),
        (_scaled(counts()), "log2", "X cannot hold logarithms to base 2.*negative"),
        (counts(), "log1p", "X cannot hold natural logarithms .*whole numbers"),
        (counts() * 3.3, "log10", "X cannot hold logarithms to base 10.*largest value"),
        (np.where(counts() > 9, np.nan, 1), "log1p", "missing"),
    ],
)
def test_a_wrong_word_is_one_error(x: np.ndarray, asked: str, error: str) -> None:
    adata = cells(x)
    adata.raw = cells(csr_matrix(_log(counts())))
    adata.raw.X.data[:] = adata.raw.X.data if asked == "counts" else -1
    with pytest.raises(ScmedleyError, match=error) as caught:
        prepare(adata, "batch", values=asked)
    assert "\n" not in str(caught.value)


# Cells that come to a fitted model


def _told(model, adata: AnnData) -> tuple[np.ndarray, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        z = model.get_latent_representation(adata)
    assert all(issubclass(w.category, ScmedleyWarning) for w in caught)
    return z, [str(w.message) for w in caught]


@pytest.fixture
def query(prepared: AnnData) -> AnnData:
    """The training cells as they were before preparation."""
    return AnnData(prepared.layers[keys.COUNTS].copy(), obs=prepared.obs[["donor"]], var=prepared.var[[]])


def _as(adata: AnnData, x: np.ndarray) -> AnnData:
    return AnnData(csr_matrix(x.astype(np.float32)), obs=adata.obs, var=adata.var)


def test_cells_of_another_kind_are_converted_and_told_of(fitted, query: AnnData) -> None:
    model, x = fitted("fixed"), dense(query.X).astype(np.float64)
    wanted, said = _told(model, query)
    assert said == []
    for kind, words in (
        (np.log2(_per(1e4, x) + 1), "X of these cells holds logarithms to base 2"),
        (np.log10(_per(1e6, x) + 1), "X of these cells holds logarithms to base 10"),
        (np.log1p(_per(1e4, x)), "X of these cells holds natural logarithms"),
        (x * 0.93, "non-integer counts"),
    ):
        z, said = _told(model, _as(query, kind))
        assert any(words in line for line in said), said
        assert_allclose(z, wanted, atol=2e-3)


def test_cells_of_a_part_of_the_genes_are_told_of(query: AnnData, fitted, prepared: AnnData) -> None:
    model = fitted("fixed")
    rare = np.argsort(np.asarray(query.X.sum(0)).ravel())[:34]  # six of 40 missing
    part = query[:, np.sort(rare)].copy()
    reader = model.reader
    remembered = reader.trained_on
    assert remembered["kind"] == "counts"
    assert remembered["genes"] == 40
    assert 0.9 < remembered["share"] < 1 + 1e-6
    try:  # as if the model's genes had had a third of all counts
        model.reader = replace(reader, trained_on={**remembered, "genes": 120, "share": 0.33})
        _, said = _told(model, part)
        assert any("normalised to fewer genes" in words for words in said), said
        model.reader = replace(reader, trained_on={**remembered, "share": 0.1})
        assert any("another scale" in words for words in _told(model, query)[1])
        assert _told(model, prepared)[1] == []  # prepared cells are what they are
    finally:
        model.reader = reader


def test_the_genes_that_are_missing_are_named(query: AnnData, fitted) -> None:
    model = fitted("fixed")
    part = query[:, 10:].copy()
    part.var["gene_symbols"] = part.var_names  # genes are found by these, not by their names
    part.var_names = [f"ENSG{i:011d}" for i in range(part.n_vars)]
    absent = [gene for gene in model.genes if gene in query.var_names[:10]][:3]
    with heard(), pytest.raises(ScmedleyError, match=rf"\(such as {', '.join(absent)}\)"):
        model.get_latent_representation(part)


def test_a_wrong_key_leaves_other_features_where_they_are() -> None:
    adata = cells()
    adata.var["feature_types"] = ["Gene Expression"] * 25 + ["Antibody Capture"] * 5
    with pytest.raises(ScmedleyError, match="nowhere"):
        prepare(adata, "nowhere")
    assert adata.n_vars == 30
    assert "left out: 5 Antibody Capture" in prepare(adata, "batch").warnings[0]
    assert adata.n_vars <= 25


def test_where_values_leave_doubts_the_training_cells_decide(fitted) -> None:
    model = fitted("fixed")
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 3.0, (1, len(model.genes))).astype(np.float32)
    one = AnnData(csr_matrix(x), var={"_index": model.genes})
    one.var_names = model.genes
    one.obs["donor"] = ["d1"]
    _, said = _told(model, one)
    assert any("used as counts, as in the training cells" in words for words in said), said


def test_prepared_cells_of_another_kind_are_told_of(fitted, query: AnnData) -> None:
    log2 = _as(query, np.log2(_per(1e4, dense(query.X).astype(np.float64)) + 1))
    for adata, n in ((query.copy(), 0), (log2, 1)):
        prepare(adata, "donor", min_cells=0, min_genes=0)
        _, said = _told(fitted("fixed"), adata)
        assert sum("were prepared from logarithms to base 2" in words for words in said) == n == len(said)


def test_a_model_remembers_what_it_was_trained_on(fitted, query: AnnData, tmp_path: Path) -> None:
    model = fitted("fixed")
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.reader.trained_on == model.reader.trained_on
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    del about["trained_on"]  # as earlier versions wrote it
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    old = load(tmp_path / "model")
    assert old.reader.trained_on is None
    log2 = _as(query, np.log2(_per(1e4, dense(query.X).astype(np.float64)) + 1))
    assert_allclose(_told(old, log2)[0], _told(old, query)[0], atol=2e-3)


# The command line


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_what_was_decided_is_on_the_console_and_in_run_json(shell: Shell, tmp_path: Path) -> None:
    adata = datasets.sc_mixology()[::8].copy()
    full = adata.copy()
    log2 = np.log2(_per(1e4, dense(adata.X).astype(np.float64)) + 1)
    adata.X = csr_matrix(log2.astype(np.float32))
    adata.write_h5ad(tmp_path / "log2.h5ad")
    full.write_h5ad(tmp_path / "counts.h5ad")
    options = ["--batch", "batch", *SMALL, "--no-null"]
    said = shell("fit", tmp_path / "log2.h5ad", "--out", tmp_path / "out", *options)
    reason = (
        "X holds logarithms to base 2 of 10,000 counts per cell, plus 1: after undoing them, the cells' totals agree. "
        "layers['log1p_cp10k'] holds natural logarithms."
    )
    assert reason in said.out, said
    values = json.loads((tmp_path / "out" / "run.json").read_text())["prepare"]["values"]
    assert values == {
        "where": "X",
        "kind": "log2",
        "base": "log2",
        "total": 1e4,
        "genes": 832,
        "doubtful": False,
        "reason": reason,
    }
    embedded = {}
    for name, more in (("log2", []), ("counts", []), ("counts", ["--values", "counts"])):
        out = tmp_path / f"{name}{len(more)}.out.h5ad"
        ran = shell("embed", tmp_path / "out", "--input", tmp_path / f"{name}.h5ad", "--out", out, *more)
        assert ran.code == 0
        assert ("holds counts" in ran.err) == (name == "counts")  # told or not
        assert keys.LOGNORM not in io.read(out).layers  # the user's file as it was
        embedded[out.name] = io.read(out).obsm[keys.FIXED]
    wrong = shell(
        "project", tmp_path / "out", "--to", "mean", "--out", tmp_path / "p.h5ad", "--values", "counts"
    )
    assert "the cells of the run are already prepared" in wrong.error
    to = ["--to", "mean", "--input", tmp_path / "counts.h5ad", "--out", tmp_path / "p.h5ad"]
    assert "holds counts" in shell("project", tmp_path / "out", *to, "--values", "counts").err
    integrated = io.read(tmp_path / "out" / "integrated.h5ad")
    io.write_h5ad(integrated, tmp_path / "again.h5ad")
    z, told = _told(load(tmp_path / "out" / "model"), io.read(tmp_path / "again.h5ad"))
    assert told == []
    kept = adata.obs_names.isin(integrated.obs_names)
    for found in embedded.values():
        assert_allclose(found[kept], z, atol=2e-3)
    wrong = shell("fit", tmp_path / "log2.h5ad", "--out", tmp_path / "no", *options, "--values", "log10")
    assert "cannot hold logarithms to base 10" in wrong.error
    assert not (tmp_path / "no").exists()


def test_files_whose_values_lie_in_different_places(tmp_path: Path) -> None:
    cut, whole = _cut("counts in raw"), cells()
    for name, adata in (("cut", cut), ("whole", whole)):
        del adata.obs["batch"]
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    together = read_batches([tmp_path / "cut.h5ad", tmp_path / "whole.h5ad"])
    assert together.n_vars == 30  # those of raw
    assert_array_equal(dense(together["cut_cell4"].X), dense(together["whole_cell4"].X))


def _files(folder: Path, **parts: AnnData) -> list[Path]:
    for name, adata in parts.items():
        adata.obs = adata.obs[["cell_type"]]
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in parts]


@pytest.mark.parametrize("asked", ["log1p", "log2", "log10"])
def test_what_was_asked_of_the_files_is_true_of_them_together(tmp_path: Path, asked: str) -> None:
    of = {name: np.log1p(_per(t, counts())) / scan.LN[asked] for name, t in (("a", 1e4), ("b", 1e6))}
    paths = _files(tmp_path, **{name: cells(csr_matrix(x.astype(np.float32))) for name, x in of.items()})
    with heard() as said:
        together = read_batches(paths, values=asked)
    assert ["a.h5ad: X" in said[0], "1e+06 counts per cell" in said[1]] == [True, True], said
    checked = prepare(together, "batch", values=asked)
    assert (checked.kind, checked.total) == (asked, 1e4)
    assert_allclose(dense(together["a_cell4"].layers[keys.LOGNORM]), _log(counts())[4:5], rtol=1e-4)
    assert_allclose(dense(together["b_cell4"].layers[keys.LOGNORM]), _log(counts())[4:5], rtol=1e-4)
    whole, scaled = cells(csr_matrix(np.log1p(counts()) / scan.LN[asked])), cells(_scaled(counts()))
    scaled.raw = whole
    paths = _files(tmp_path, c=whole.copy(), d=scaled)
    with heard() as said:
        together = read_batches(paths, values=asked)
    assert any("d.h5ad: raw.X holds" in words for words in said), said
    prepare(together, "batch", values=asked)
    assert_array_equal(dense(together["d_cell4"].layers[keys.COUNTS]), counts()[4:5])


def _minus(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x[np.arange(3), x[:3].argmin(1)] = -7
    return x


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (lambda x: np.log2(_per(1e4, x) + 1), _log, "a.h5ad: X holds logarithms to base 2 of 10,000 counts"),
        (
            lambda x: x,
            np.log1p,
            "b.h5ad: X holds natural logarithms (log1p) of counts: undoing them",
        ),
        (lambda x: x * 100, lambda x: _minus(x * 100), "b.h5ad: X has 3 negative"),
        (lambda x: x, _lengths, "b.h5ad: X holds non-integer counts: the cells' totals agree"),
    ],
)
def test_what_was_decided_about_each_of_unlike_files_is_told(
    first, second, words: str, tmp_path: Path
) -> None:
    parts = {
        name: cells(csr_matrix(make(counts()), dtype=np.float32))
        for name, make in (("a", first), ("b", second))
    }
    with heard() as said:
        read_batches(_files(tmp_path, **parts))
    assert any(words in line for line in said), said
    assert not any("all values are whole numbers." in line for line in said), said


@pytest.mark.parametrize("make", [lambda x: x, _log, np.log1p])
def test_like_files_are_told_of_once_they_are_together(make, tmp_path: Path) -> None:
    parts = {name: cells(csr_matrix(make(counts()), dtype=np.float32)) for name in "ab"}
    with heard() as said:
        read_batches(_files(tmp_path, **parts))
    assert said == []


@pytest.mark.parametrize("asked", ["auto", "counts"])
def test_counts_put_together_stay_counts(tmp_path: Path, asked: str) -> None:
    with heard() as said:
        together = read_batches(
            _files(tmp_path, one=_cut("logarithms in X"), two=cells()[:, :10].copy()), values=asked
        )
    assert any("Some files have the cells' totals" in words for words in said), said
    prepare(together, "batch", values=asked, min_genes=0)
    for name in ("one_cell4", "two_cell4"):
        assert_array_equal(dense(together[name].layers[keys.COUNTS]), counts()[4:5, :10])
        assert_allclose(dense(together[name].layers[keys.LOGNORM]), _log(counts()[:, :10])[4:5], rtol=1e-4)


def test_totals_over_all_genes_that_every_file_knows_are_kept(tmp_path: Path) -> None:
    with heard() as said:
        together = read_batches(_files(tmp_path, one=_cut("logarithms in X"), two=_cut("logarithms in raw")))
    assert not any("totals" in words for words in said), said
    prepare(together, "batch", min_genes=0)
    for name in ("one_cell4", "two_cell4"):
        assert_array_equal(dense(together[name].layers[keys.COUNTS]), counts()[4:5, :10])
        assert_allclose(dense(together[name].layers[keys.LOGNORM]), _log(counts())[4:5, :10], rtol=1e-4)


TARGETS = {
    "deep cells": (lambda total: np.full(60, 1e4), 40),
    "10,000": (lambda total: np.full(60, 1e4), 1),
    "100,000": (lambda total: np.full(60, 1e5), 1),
    "the median": (lambda total: np.full(60, np.median(total)), 1),
    "the median, deeper": (lambda total: np.full(60, np.median(total)), 10),
}


@pytest.mark.parametrize("name", TARGETS)
def test_totals_over_all_genes_are_had_back_whatever_the_target(name: str) -> None:
    make, deeper = TARGETS[name]
    x = np.random.default_rng(1).poisson(counts() * deeper * 2.5).astype(np.float64)
    if name == "deep cells":
        x[::4] *= 40  # more than logarithms in 32 bits tell whole numbers of
    total = x.sum(1)
    adata = cells(np.log1p(make(total)[:, None] * x / total[:, None]).astype(np.float32))[:, :10].copy()
    adata.layers["counts"] = x[:, :10].astype(np.float32)
    assert find_values(adata).sizes.total == make(total)[0]
    values = dense(log_normalised(adata, GENES[:10])[0])
    assert_allclose(values, np.log1p(_per(1e4, x))[:, :10], rtol=1e-4)


def test_an_unknown_target_is_told_of_and_a_full_matrix_is_not() -> None:
    x, size = counts().astype(np.float64), np.random.default_rng(0).lognormal(0, 0.3, (60, 1))
    for logs, n in (
        (np.log1p(1234.567 * x / (x.sum(1, keepdims=True) * size)), 1),
        (_log(x), 0),
        (np.log1p(x), 0),
    ):
        adata = cells(logs.astype(np.float32))
        adata.layers["counts"] = counts()
        found = find_values(adata)
        assert found.sizes is None
        assert sum("totals are taken over these genes" in words for words in found.warnings) == n
