"""Odd contents of an AnnData: what an h5ad can hold is kept, and what was converted or left out is named."""

import datetime
import decimal
import os
import pathlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from numpy.testing import assert_array_equal
from scipy.sparse import coo_matrix, csr_matrix

from scmedley import caches, io
from scmedley.data.inplace import layers_of
from scmedley.errors import ScmedleyError
from scmedley.io import writing
from scmedley.io.storable import CLEANED, LEFT_OUT, RENAMED, SLASH, TEXT, storable_obs

N, G = 6, 4
NAMES = [f"cell{i}" for i in range(N)]
TIMES = ["2024-01-01T00:00:00"] * N
PLAIN = {
    "array",
    "string-array",
    "categorical",
    "nullable-integer",
    "nullable-boolean",
}  # what old readers know


def odd() -> AnnData:
    return AnnData(
        csr_matrix(np.ones((N, G), dtype=np.float32)),
        pd.DataFrame({"batch": list("aabbcc")}, index=NAMES),
        pd.DataFrame(index=[f"gene{i}" for i in range(G)]),
    )


def written(adata: AnnData, path: Path) -> tuple[AnnData, list[str]]:
    """Write and read, with all warnings as errors while writing."""
    said = io.write_h5ad(adata, path / "o.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_h5ad(path / "o.h5ad"), said


def plain(column: "pd.Series[Any]") -> list[Any]:
    return [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]


COLUMNS: dict[str, tuple[Any, list[Any], str | None]] = {  # values; what is read; what is said
    "int and text": ([1, "a", 2.0, "b", None, 1.5], ["1", "a", "2", "b", None, "1.5"], TEXT),
    "bool and text": ([True, "NA", False, "NA", None, "x"], ["True", "NA", "False", "NA", None, "x"], TEXT),
    "bool and missing": ([True, None, False] * 2, [True, None, False] * 2, None),
    "int and float": (pd.Series([1, 2.5, None] * 2, dtype=object).to_list(), [1, 2.5, None] * 2, None),
    "Int64": (pd.array([1, None, 2**60] * 2, "Int64"), [1, None, 2**60] * 2, None),
    "Int64, full": (pd.array([1, 2] * 3, "Int64"), [1, 2] * 3, None),
    "boolean": (pd.array([True, None] * 3, "boolean"), [True, None] * 3, None),
    "Float64": (pd.array([0.5, None] * 3, "Float64"), [0.5, None] * 3, None),
    "string": (pd.array(["a", None] * 3, "string"), ["a", None] * 3, None),
    "string, unique": (pd.array(list("abcdef"), "string"), list("abcdef"), None),
    "string, unique, missing": (pd.array([*"abcde", None], "string"), [*"abcde", None], None),
    "string categories": (pd.Categorical(pd.array(list("xyxyxy"), "string")), list("xyxyxy"), None),
    "mixed categories": (pd.Categorical([1, "a", None] * 2), ["1", "a", None] * 2, TEXT),
    "number categories": (pd.Categorical([2, 1, None] * 2), [2, 1, None] * 2, None),
    "bool categories": (pd.Categorical([True, False] * 3), [True, False] * 3, None),
    "interval categories": (pd.cut([0, 1, 2] * 2, [-1, 0, 2]), ["(-1, 0]", "(0, 2]", "(0, 2]"] * 2, TEXT),
    "all missing": ([None] * N, [None] * N, None),
    "datetime": (pd.to_datetime(TIMES), TIMES, TEXT),
    "datetime, missing": (pd.to_datetime([*TIMES[1:], None]), [*TIMES[1:], None], TEXT),
    "time zone": (pd.to_datetime(TIMES).tz_localize("UTC"), [f"{TIMES[0]}+00:00"] * N, TEXT),
    "period": (pd.PeriodIndex(["2024-02"] * N, freq="M"), ["2024-02"] * N, TEXT),
    "timedelta": (pd.to_timedelta([1] * N, "h"), ["P0DT1H0M0S"] * N, TEXT),
    "date": ([datetime.date(2024, 1, 2)] * N, ["2024-01-02"] * N, TEXT),
    "decimal": ([decimal.Decimal("0.10")] * N, ["0.10"] * N, TEXT),
    "bytes": ([b"a", b"b"] * 3, ["a", "b"] * 3, TEXT),
    "lists": ([[1, 2], []] * 3, ["[1, 2]", "[]"] * 3, TEXT),
    "huge": ([2**70, 1] * 3, [str(2**70), "1"] * 3, TEXT),
    "sparse": (pd.arrays.SparseArray([0, 3] * 3), [0, 3] * 3, None),
    "complex": ([1j, 2] * 3, [1j, 2] * 3, None),
    "long double": (np.arange(N).astype(np.longdouble), list(range(N)), None),
    "NUL": (["a\0b", "a"] * 3, ["a\ufffdb", "a"] * 3, CLEANED),
    "half a pair": (["\udce9", "\n\t🧬é"] * 3, ["\ufffd", "\n\t🧬é"] * 3, CLEANED),
    "two become one": (pd.Categorical(["\udce9", "\udce8"] * 3), ["\ufffd"] * N, CLEANED),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_kind(kind: str, tmp_path: Path) -> None:
    values, expected, sentence = COLUMNS[kind]
    adata = odd()
    adata.obs["odd"] = pd.Series(values, index=NAMES)
    before = adata.obs.copy()
    found, said = written(adata, tmp_path)
    assert plain(found.obs["odd"]) == expected
    assert len(said) == (sentence is not None)
    if sentence is not None:
        assert said[0].startswith(sentence)
        assert "obs['odd']" in said[0]
    pd.testing.assert_frame_equal(adata.obs, before)
    with h5py.File(tmp_path / "o.h5ad") as file:
        assert {file["obs"][name].attrs["encoding-type"] for name in ("odd", "batch", "_index")} <= PLAIN


def test_order_of_categories_stays(tmp_path: Path) -> None:
    adata = odd()
    adata.obs["dose"] = pd.Categorical(["low", "high"] * 3, categories=["low", "none", "high"], ordered=True)
    found = written(adata, tmp_path)[0].obs["dose"].cat
    assert found.ordered
    assert list(found.categories) == ["low", "none", "high"]


NAMED: dict[str, tuple[list[Any], list[str], str]] = {  # further columns; what they are called; what is said
    "slash": (["G1/S", "G1/T"], ["G1/S", "G1/T"], SLASH),
    "slash below a column": (["batch/x"], ["batch_x"], RENAMED),
    "slash below a slash": (["a/b", "a/b/c"], ["a/b", "a_b_c"], RENAMED),
    "slashes that are no path": (["/a", "a//b", "a/", "./q"], ["_a", "a__b", "a_", "._q"], RENAMED),
    "reserved": (["_index", "_index/a"], ["_index_", "_index_a"], RENAMED),
    "no text": ([("t", "u"), 5, "5"], ["t_u", "5", "5_"], RENAMED),
    "empty": (["", "."], ["_", "._"], RENAMED),
    "twice": (["x", "x", "x_"], ["x", "x_", "x__"], RENAMED),
    "odd characters": (["a\0", "\udce9"], ["a\ufffd", "\ufffd"], RENAMED),
}


@pytest.mark.parametrize("kind", NAMED)
def test_names_of_any_kind(kind: str, tmp_path: Path) -> None:
    names, expected, sentence = NAMED[kind]
    more = pd.DataFrame(
        [[f"{j}{i % 2}" for j in range(len(names))] for i in range(N)], index=NAMES, columns=names
    )
    adata = odd()
    adata.obs = pd.concat([adata.obs, more], axis=1)
    adata.obsm["table"] = more.copy()
    adata.var = pd.concat([adata.var, more.iloc[:G].set_axis(adata.var_names)], axis=1)
    adata.raw = adata.copy()
    found, said = written(adata, tmp_path)
    for table, all_names in (
        (found.obs, ["batch", *expected]),
        (found.var, expected),
        (found.raw.var, expected),
    ):
        if kind != "slash below a column" or table is found.obs:
            assert list(table.columns) == all_names
        assert_array_equal(table.iloc[:, -len(names) :].astype(str), more.iloc[: len(table)])
    assert len(found.obsm["table"].columns) == len(names)
    assert any(line.startswith(sentence) for line in said)
    assert list(adata.obs.columns) == ["batch", *names]


def test_a_column_that_is_looked_for_later_keeps_its_name_or_is_refused() -> None:
    adata = odd()
    adata.obs["donor/lane"] = list("xyxyxy")
    io.check_columns(adata, ("donor/lane", "batch"))
    adata.obs["donor"] = 1
    io.check_columns(adata, ("donor", "batch"))
    with pytest.raises(ScmedleyError, match=r"'donor/lane'.* only as 'donor_lane'.*Rename"):
        io.check_columns(adata, ("donor/lane", "batch"))


def test_names_of_the_index(tmp_path: Path) -> None:
    adata = odd()
    adata.obs["barcode"] = NAMES[::-1]
    adata.obs.index.name, adata.var.index.name = "barcode", "symbol"
    found, said = written(adata, tmp_path)
    assert list(found.obs_names) == NAMES
    assert list(found.obs["barcode"]) == NAMES[::-1]
    assert found.var.index.name == "symbol"
    assert [line for line in said if "the index of obs, 'barcode'" in line] == said


def test_keys_with_slashes_and_wide_tables(tmp_path: Path) -> None:
    adata = odd()
    adata.obsm["X_a/b"], adata.layers["a/b"], adata.obsp["a/b"] = np.ones((N, 2)), adata.X, csr_matrix((N, N))
    adata.uns |= {"DE": 1, "DE/t0": 2}
    wide = pd.DataFrame(np.ones((N, 4500)), NAMES, [f"protein {i}" for i in range(4500)])
    adata.obsm["wide"] = wide
    found, said = written(adata, tmp_path)
    pd.testing.assert_frame_equal(found.obsm["wide"], wide)
    assert set(found.obsm) == {"X_a_b", "wide"}
    assert (set(layers_of(found)), set(found.obsp)) == ({"a_b"}, {"a_b"})
    assert found.uns["DE_t0"] == 2
    for place in ("obsm['X_a/b'] (now 'X_a_b')", "layers['a/b']", "obsp['a/b']", "uns['DE/t0']"):
        assert place in said[0]


KEPT: dict[str, tuple[Any, Any]] = {
    "text": ("", ""),
    "flag": (np.True_, True),
    "complex": (1 + 2j, 1 + 2j),
    "empty list": ([], []),
    "numbers": ((1, 2.5), [1, 2.5]),
    "words": ({"b", "a"}, ["a", "b"]),
    "equal lists": ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    "object array": (np.array(["a", "b"], dtype=object), ["a", "b"]),
    "string array": (pd.array(["a", "b"], "string"), ["a", "b"]),
    "masked": (np.ma.masked_equal([1, 2], 2), [1, np.nan]),
    "index": (pd.Index(["a"]), ["a"]),
    "ordered": (OrderedDict(a=1), {"a": 1}),
    "nested": ({"a": {"b": {}}}, {"a": {"b": {}}}),
}
CONVERTED: dict[str, tuple[Any, Any]] = {
    "mixed": ([1, "a"], ["1", "a"]),
    "time": (datetime.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
    "times": (np.array(["2024-01-02"], dtype="M8[ns]"), ["2024-01-02T00:00:00"]),
    "path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "bytes": (b"a", "a"),
    "fixed bytes": (np.array([b"a"]), ["a"]),
    "huge": (2**80, str(2**80)),
}
LOST: dict[str, Any] = {
    "function": print,
    "object": object(),
    "model": odd(),
    "ragged": [[1], [2, 3]],
    "dicts": [{"a": 1}],
    "missing": pd.NA,
    "void": np.void(b"ab"),
}


def test_uns_of_any_kind(tmp_path: Path) -> None:
    adata = odd()
    adata.uns |= {name: value for name, (value, _) in (KEPT | CONVERTED).items()}
    adata.uns["log1p"] = {"base": None, 3: 4}
    adata.uns["lost"] = LOST
    records = np.rec.array([("a", 1.0), ("b", np.nan)], dtype=[("name", "O"), ("score", "f8")])
    frame = pd.DataFrame({"q": ["x", "y"]}, index=[1, 2])
    adata.uns |= {"rank": records, "frame": frame, "series": frame["q"], "coo": coo_matrix(np.eye(2))}
    found, said = written(adata, tmp_path)
    for name, (_, expected) in (KEPT | CONVERTED).items():
        value = found.uns[name]
        if isinstance(expected, list):
            assert_array_equal(value, np.array(expected, dtype=np.asarray(value).dtype))
        else:
            assert value == expected, name
    assert found.uns["log1p"] == {"3": 4}
    assert found.uns["lost"] == {}
    assert found.uns["rank"]["name"].tolist() == ["a", "b"]
    assert list(found.uns["frame"].index) == [1, 2]
    assert list(found.uns["series"]["q"]) == ["x", "y"]
    assert_array_equal(found.uns["coo"].toarray(), np.eye(2))
    by_kind = {
        sentence: next(s for s in said if s.startswith(sentence)) for sentence in (TEXT, LEFT_OUT, RENAMED)
    }
    assert len(said) == 3
    for name in CONVERTED:
        assert f"uns[{name!r}]" in by_kind[TEXT]
    for name in LOST:
        assert f"uns['lost'][{name!r}]" in by_kind[LEFT_OUT]
    assert "['base']" not in by_kind[LEFT_OUT]
    assert by_kind[TEXT].count("uns[") == len(CONVERTED)


def test_results_are_added_to_the_file(tmp_path: Path) -> None:
    adata = odd()
    adata.layers["counts"] = adata.X.copy()
    io.write_h5ad(adata, tmp_path / "o.h5ad")
    adata.obs["split"], adata.obsm["X_new"], adata.uns["about"] = list("xyxyxy"), np.ones((N, 2)), {"seed": 1}
    io.add_results(adata, tmp_path / "o.h5ad")
    found = read_h5ad(tmp_path / "o.h5ad")
    assert list(found.obs["split"]) == list("xyxyxy")
    assert_array_equal(found.obsm["X_new"], 1)
    assert_array_equal(found.layers["counts"].toarray(), 1)
    assert found.uns["about"]["seed"] == 1


def test_what_fails_beside_the_writing_leaves_no_file(tmp_path: Path) -> None:
    adata = odd()

    def fail() -> None:
        with io.with_results(adata, tmp_path / "o.h5ad"):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with io.with_results(adata, tmp_path / "o.h5ad"):
        adata.obsm["X_new"] = np.ones((N, 2))
    assert "X_new" in read_h5ad(tmp_path / "o.h5ad").obsm


def test_an_error_of_the_writer_names_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_elem = writing.write_elem

    def refuse(group, name, *rest, **options):
        if name == "batch":
            error = TypeError("no method for this")
            error.add_note("Error raised while writing key 'batch'")
            raise error
        write_elem(group, name, *rest, **options)

    monkeypatch.setattr(writing, "write_elem", refuse)
    adata = odd()
    adata.uns["batch"] = 1
    with pytest.raises(ScmedleyError, match=r"o\.h5ad: an h5ad cannot hold this: no method.*key 'batch'"):
        io.write_h5ad(adata, tmp_path / "o.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_zarr_holds_no_slash() -> None:
    obs = pd.DataFrame({"a/b": [1, "x"], "a_b": 2, "c": pd.to_datetime(TIMES[:2])})
    found, said = storable_obs(obs)
    assert list(found.columns) == ["a_b", "a_b_", "c"]
    assert [line.split(":")[0] for line in said] == [RENAMED, TEXT]


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    io.check_place(tmp_path / "new" / "deep" / "o.h5ad")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ScmedleyError, match="cannot be written"):
        io.check_place(tmp_path / "file" / "o.h5ad")
    with pytest.raises(ScmedleyError, match="cannot be written"):
        io.check_place("/proc/o.h5ad")


def test_caches_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("NUMBA_CACHE_DIR", "MPLCONFIGDIR")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    caches.ensure()
    assert not set(names) & set(os.environ)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    caches.ensure()
    (folder,) = tmp_path.glob("scmedley-caches-*")
    assert {Path(os.environ[name]).parent for name in names} == {folder}
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)  # anyone may have written into it
    for name in names:
        monkeypatch.delenv(name)
    caches.ensure()
    assert Path(os.environ["NUMBA_CACHE_DIR"]).parent != folder
