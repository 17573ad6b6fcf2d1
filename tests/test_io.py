"""read in every format, and writes that are all or nothing."""

import errno
import gzip
import json
import lzma
import os
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import mmwrite
from scipy.sparse import csc_matrix, csr_matrix, issparse

from corpus import cells, counts
from scmedley import io
from scmedley.data.matrix import find_values
from scmedley.errors import ScmedleyError, ScmedleyWarning, heard
from scmedley.io import formats, tables
from scmedley.pipeline import stages
from scmedley.pipeline.config import RunConfig
from scmedley.pp.join import read_batches

CELLS = [f"cell{i}" for i in range(60)]
GENES = [f"gene{i}" for i in range(30)]
BARCODES = [f"AAACATACAACC{'ACGT'[i % 4]}-{i}" for i in range(60)]


def same(adata: AnnData) -> None:
    assert adata.X.dtype == np.float32
    assert list(adata.obs_names) == CELLS
    assert list(adata.var_names) == GENES
    assert_array_equal(adata.X.toarray() if issparse(adata.X) else adata.X, counts())


def write_zarr(adata: AnnData, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata announces its coming change of Zarr version
        adata.write_zarr(path)


@pytest.mark.parametrize("form", [np.asarray, csr_matrix, csc_matrix])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint16, np.bool_])
def test_h5ad_and_zarr_of_any_matrix(form, kind: type, tmp_path: Path) -> None:
    x = counts().astype(kind)
    cells(form(x)).write_h5ad(tmp_path / "a.h5ad")
    write_zarr(cells(form(x)), tmp_path / "a.zarr")
    for name in ("a.h5ad", "a.zarr"):
        found = io.read(tmp_path / name).X
        assert type(found) is (np.ndarray if form is np.asarray else csr_matrix)
        assert found.dtype == np.float32
        assert_array_equal(found.toarray() if issparse(found) else found, x.astype(np.float32))


def test_zarr_is_known_by_its_content(tmp_path: Path) -> None:
    write_zarr(cells(), tmp_path / "store")
    same(io.read(str(tmp_path / "store")))


def write_mtx(folder: Path, zipped: bool, prefix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    mmwrite(folder / "matrix.mtx", csr_matrix(counts().T.astype(int)))
    features = [f"ENSG{i}\t{gene}\tGene Expression" for i, gene in enumerate(GENES)]
    features[5] = "ENSG5\tNA\tGene Expression"
    features[4] = "ENSG4\tCD4-antibody\tAntibody Capture"
    files = {
        "matrix.mtx": (folder / "matrix.mtx").read_text(),
        "features.tsv": "\n".join(features),
        "barcodes.tsv": "\n".join(CELLS),
    }
    (folder / "matrix.mtx").unlink()
    for name, text in files.items():
        if zipped:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{prefix}{name}").write_text(text)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "GSM1_sample_"])
def test_mtx_folder(zipped: bool, prefix: str, tmp_path: Path) -> None:
    write_mtx(tmp_path / "10x", zipped, prefix)
    with pytest.warns(ScmedleyWarning, match="Of 30 features the 29 .* left out: 1 Antibody Capture"):
        adata = io.read(tmp_path / "10x")
    assert list(adata.var_names) == [*GENES[:4], "NA", *GENES[6:]]
    assert adata.var["gene_ids"].iloc[4] == "ENSG5"
    assert_array_equal(adata.X.toarray(), np.delete(counts(), 4, axis=1))


def write_10x_h5(path: Path, legacy: bool) -> None:
    x = csr_matrix(counts().astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38" if legacy else "matrix")
        names = group if legacy else group.create_group("features")
        for key, value in {
            "data": x.data,
            "indices": x.indices,
            "indptr": x.indptr,
            "shape": [30, 60],
        }.items():
            group[key] = value
        group["barcodes"] = np.array(CELLS, dtype="S")
        names["gene_names" if legacy else "name"] = np.array(["MT", "MT", *GENES[2:]], dtype="S")
        names["genes" if legacy else "id"] = np.array([f"ENSG{i}" for i in range(30)], dtype="S")
        if not legacy:
            names["feature_type"] = np.array(["Gene Expression"] * 30, dtype="S")


@pytest.mark.parametrize("legacy", [True, False])
def test_10x_h5_and_its_repeated_symbols(legacy: bool, tmp_path: Path) -> None:
    write_10x_h5(tmp_path / "a.h5", legacy)
    adata = io.read(tmp_path / "a.h5")
    assert list(adata.var_names[:3]) == ["MT_ENSG0", "MT_ENSG1", "gene2"]
    assert_array_equal(adata.X.toarray(), counts())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.txt.gz", "a.b.CSV"])
def test_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS", 7)
    table = pd.DataFrame(counts(), CELLS, GENES)
    table.to_csv(tmp_path / name, sep="," if ".csv" in name.lower() else "\t")
    same(io.read(tmp_path / name))


def test_text_as_r_writes_it_and_repeated_genes_stay_visible(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("g1\tg1\n006\t1\t2\n007\t3\t\n")  # no corner, a gap
    adata = io.read(tmp_path / "a.tsv")
    assert list(adata.var_names) == ["g1", "g1"]
    assert list(adata.obs_names) == ["006", "007"]
    assert_array_equal(adata.X.toarray(), [[1, 2], [3, np.nan]])


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells().write_h5ad(tmp_path / "a.h5ad")

    def refuse(*_: object) -> AnnData:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(formats, "_read_hdf5", refuse)
    with pytest.raises(ScmedleyError, match=r"cannot be read \(Perm"):
        io.read(tmp_path / "a.h5ad")


def test_read_batches(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "one.h5ad")
    second = cells()[:10, ::-1].copy()
    second.var_names = ["new", *second.var_names[1:]]
    second.write_h5ad(tmp_path / "two.h5ad")
    with heard() as said:
        adata = read_batches([tmp_path / "one.h5ad", tmp_path / "two.h5ad"], batch_key="donor")
    assert said == ["29 genes are in all files and used. Genes lost: one 1 of 30, two 1 of 30."]
    assert adata.obs["donor"].value_counts().to_dict() == {"one": 60, "two": 10}
    assert set(adata.var_names) == set(GENES) - {"gene29"}
    assert adata.obs_names[0] == "one_cell0"
    assert_array_equal(adata["two_cell3"].to_df()[["gene5", "gene2"]], counts()[3:4, [5, 2]])
    assert adata.X.dtype == np.float32


def test_read_batches_that_do_not_fit(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "one.h5ad")
    other = cells()
    other.var_names = [f"ENSG{i}" for i in range(30)]
    other.write_h5ad(tmp_path / "two.h5ad")
    (tmp_path / "sub").mkdir()
    cells().write_h5ad(tmp_path / "sub" / "one.h5ad")
    (tmp_path / "three.csv").write_text(",g,g\nc,1,2\n")
    one = tmp_path / "one.h5ad"
    with pytest.raises(ScmedleyError, match=r"shares no gene name .*'ENSG0'.*'gene0'"):
        read_batches([one, tmp_path / "two.h5ad"], "file")
    with pytest.raises(ScmedleyError, match=r"one\.h5ad already has an obs column 'batch'"):
        read_batches([one, tmp_path / "two.h5ad"])
    with pytest.raises(ScmedleyError, match=r"one\.h5ad is given more than once"):
        read_batches([one, tmp_path / "sub" / ".." / "one.h5ad"])
    with pytest.raises(ScmedleyError, match="two or more files"):
        read_batches([one])
    with pytest.raises(ScmedleyError, match="gene 'g' occurs more than once"):
        read_batches([one, tmp_path / "three.csv"], "file")


def _log_normalised(total: float) -> AnnData:
    x = counts().astype(np.float64)
    adata = cells(csr_matrix(np.log1p(total * x / x.sum(1, keepdims=True)).astype(np.float32)))
    del adata.obs["batch"]
    return adata


def _written(folder: Path, **files: AnnData) -> list[Path]:
    for name, adata in files.items():
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in files]


def test_read_batches_brings_counts_together(tmp_path: Path) -> None:
    logged, plain, raw = _log_normalised(1e4), cells(), _log_normalised(1e4)
    logged.layers["counts"] = csr_matrix(counts())
    raw.raw = cells()
    paths = _written(tmp_path, logged=logged, plain=plain, raw=raw)
    with heard():  # layers and obs columns that not all files have
        adata = read_batches(paths, "file")
    assert find_values(adata).values == "counts"
    for name in ("logged", "plain", "raw"):
        assert_array_equal(adata[adata.obs["file"] == name].X.toarray(), counts())
    # Where all files are alike, X stays as it is.
    adata = read_batches(_written(tmp_path, logged=logged, again=logged), "file")
    assert_array_equal(adata["again_cell4"].X.toarray(), logged["cell4"].X.toarray())
    assert find_values(adata).where == "layers['counts']"


def test_read_batches_brings_log_normalised_values_to_one_total(tmp_path: Path) -> None:
    with heard() as said:
        adata = read_batches(_written(tmp_path, a=_log_normalised(812.0), b=_log_normalised(1e4)))
    assert "a.h5ad: X holds natural logarithms (log1p) of 812 counts per cell" in said[0]
    assert_allclose(adata["a_cell3"].X.toarray(), adata["b_cell3"].X.toarray(), rtol=1e-5)
    assert find_values(adata).total == 1e4


def test_read_batches_does_not_mix_kinds(tmp_path: Path) -> None:
    paths = _written(tmp_path, a=_log_normalised(1e4), b=cells())
    with pytest.raises(
        ScmedleyError, match=r"a\.h5ad holds log-normalised values, .*b\.h5ad holds counts: these"
    ):
        read_batches(paths, "file")
    bad = cells()
    bad.X[3, 4] = np.nan
    with pytest.raises(ScmedleyError, match=r"bad\.h5ad: X has a value that is missing"):
        read_batches([paths[1], *_written(tmp_path, bad=bad)], "file")


def test_counts_that_stand_in_for_x_are_a_copy(tmp_path: Path) -> None:
    layer, raw = cells(), cells()
    layer.layers["counts"] = layer.X
    raw.raw = cells()
    layer.X = raw.X = None
    for path in _written(tmp_path, layer=layer, raw=raw):
        adata = io.read(path)
        adata.X.data += 1
        kept = adata.raw.X if adata.raw is not None else adata.layers["counts"]
        assert_array_equal(kept.toarray(), counts())


@pytest.mark.parametrize(
    "error", [RuntimeError("stop"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")]
)
@pytest.mark.parametrize("folder", [True, False])
def test_a_failed_write_leaves_the_old_one_and_nothing_else(
    error: BaseException, folder: bool, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    write(path, "old", folder)
    with pytest.raises(type(error)):
        break_off(path, error, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert content(path) == "old"


@pytest.mark.parametrize("folder", [True, False])
def test_a_write_takes_the_old_ones_place(folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.x"
    for text in ("first", "second"):
        with io.replacing(path) as temporary:
            write(temporary, text, folder)
            assert temporary.parent == path.parent
            assert temporary.suffix == ".x"
        assert content(path) == text
    assert [p.name for p in path.parent.iterdir()] == ["out.x"]


def break_off(path: Path, error: BaseException, folder: bool = False) -> None:
    with io.replacing(path) as temporary:
        write(temporary, "half", folder)
        raise error


def write(path: Path, text: str, folder: bool) -> None:
    if folder:
        path.mkdir(exist_ok=True)
        path = path / "part"
    path.write_text(text)


def content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Can't write data (errno = 28, error message = 'No space left on device')"),
    ],
)
def test_full_disk(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(ScmedleyError, match=r"disk is full: .*out\.csv was not written"):
        break_off(path, error)
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("code", [errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG, errno.EACCES])
def test_what_the_system_refuses(code: int, tmp_path: Path) -> None:
    with pytest.raises(ScmedleyError, match=r"out\.csv cannot be written \(.*\)\. Choose another folder"):
        break_off(tmp_path / "out.csv", OSError(code, "refused"))
    with pytest.raises(OSError, match="odd"):  # not the user's to mend
        break_off(tmp_path / "out.csv", OSError(errno.EIO, "odd"))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScmedleyError, match="cannot be written"):
        io.write_csv(pd.DataFrame({"a": [1]}), tmp_path / "file" / "a.csv")


def test_write_h5ad(tmp_path: Path) -> None:
    adata = cells()
    io.write_h5ad(adata, tmp_path / "a.h5ad")
    same(io.read(tmp_path / "a.h5ad"))
    io.write_h5ad(adata[:5], tmp_path / "a.h5ad")
    assert io.read(tmp_path / "a.h5ad").n_obs == 5
    assert stat.S_IMODE(os.stat(tmp_path / "a.h5ad").st_mode) & stat.S_IRUSR
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_write_csv_and_json(tmp_path: Path) -> None:
    table = pd.DataFrame({"gene": ["a,b", "ü"], "shift": [0.1, np.nan]})
    io.write_csv(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)
    obj = {
        "n": np.int64(3),
        4: np.float32(0.5),
        "x": np.arange(2),
        "nan": float("nan"),
        "p": Path("a"),
        "t": ("ü",),
    }
    io.write_json(obj, tmp_path / "t.json")
    read = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert read == {"n": 3, "4": 0.5, "x": [0, 1], "nan": None, "p": "a", "t": ["ü"]}
    with pytest.raises(TypeError):
        io.write_json({"a": object()}, tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == read


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert io.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    folder = io.sha256(tmp_path)
    (tmp_path / "abc").rename(tmp_path / "abd")
    assert io.sha256(tmp_path) != folder
    (tmp_path / "abd").rename(tmp_path / "abc")
    assert io.sha256(tmp_path) == folder
    (tmp_path / "abc").write_bytes(b"abd")
    assert io.sha256(tmp_path) != folder


def test_a_table_without_cell_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("g1,g2,g3\n0,1,2\n3,0,1\n0,2,2\n")
    with pytest.raises(ScmedleyError, match="the first column holds repeated numbers"):
        io.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(",g2,g3\n0,1,2\n1,0,1\n2,2,2\n")  # pandas' own row numbers are names
    assert list(io.read(tmp_path / "b.csv").obs_names) == ["0", "1", "2"]


def test_counts_in_raw_alone_are_found(tmp_path: Path) -> None:
    adata = cells()
    adata.raw = adata.copy()
    adata.X = None
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = io.read(tmp_path / "a.h5ad").X
    assert (found != cells().X).nnz == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux")
def test_a_place_that_cannot_be_is_said() -> None:
    with pytest.raises(ScmedleyError, match=r"x\.csv cannot be written \(.*\)\. Choose another folder"):
        io.write_csv(pd.DataFrame({"a": [1]}), "/proc/nowhere/x.csv")


TABLE = pd.DataFrame(counts().astype(int), [f"cell {i}" for i in range(60)], GENES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolon.csv", TABLE.to_csv(sep=";").encode()),
        ("tabs.csv", TABLE.to_csv(sep="\t").encode()),
        ("commas.tsv", TABLE.to_csv().encode()),
        ("spaces.txt", TABLE.to_csv(sep=" ", quoting=1).encode()),
        ("quotes.csv", TABLE.to_csv(quoting=1).encode()),
        ("bom.csv", b"\xef\xbb\xbf" + TABLE.to_csv().encode()),
        ("bom-and-no-corner.csv", b"\xef\xbb\xbf" + TABLE.to_csv()[1:].encode()),
        ("utf16.csv", TABLE.to_csv().encode("utf-16")),
        ("crlf.csv", (TABLE.to_csv() + "\n\n").replace("\n", "\r\n").encode()),
        ("floats.csv", TABLE.astype(float).to_csv(sep=";").encode()),
        ("packed.csv.xz", lzma.compress(TABLE.to_csv().encode())),
        ("packed-in-secret.csv", gzip.compress(TABLE.to_csv().encode())),
        ("turned.csv", TABLE.set_axis(BARCODES).T.to_csv().encode()),
    ],
)
def test_dialects_of_tables(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with heard() as said:
        adata = io.read(tmp_path / name)
    assert list(adata.obs_names) == (BARCODES if name == "turned.csv" else list(TABLE.index))
    assert list(adata.var_names) == GENES
    assert_array_equal(adata.X.toarray(), counts())
    assert [line.split(":")[0] for line in said] == [
        "turned.csv was read as genes x cells and transposed"
    ] * (name == "turned.csv")


def test_latin_letters_and_columns_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TABLE.to_csv().replace("cell 3,", "célula,").encode("latin-1"))
    assert io.read(tmp_path / "a.csv").obs_names[3] == "célula"
    TABLE.set_axis([f"V{i}" for i in range(30)], axis=1).to_csv(tmp_path / "b.csv")
    with pytest.warns(ScmedleyWarning, match="if they are genes, transpose the table"):
        io.read(tmp_path / "b.csv")


@pytest.mark.parametrize("number", ["1,5", "12,345", "1,234,567.8"])
def test_numbers_with_commas_are_refused(number: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f";g1;g2\nc1;{number};1\nc2;2;3\n")
    with pytest.raises(ScmedleyError, match=f"'{number}', which may mean decimals or thousands"):
        io.read(tmp_path / "a.csv")


def _hdf5(**parts: object):
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, value in parts.items():
                file[name.replace("__", "/")] = value

    return write


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "a.csv")


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("a.loom", _hdf5(matrix=[1], row_attrs__a=[1], col_attrs__a=[1]), "is a loom file"),
        ("a.h5mu", _hdf5(mod__rna__X=[1], obs__a=[1], var__a=[1]), "is MuData of mod/rna"),
        ("m.h5", _hdf5(barcode_idx=[1], barcodes=[1]), r"molecule_info\.h5"),
        ("a.h5ad.gz", lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "gunzip"),
        ("GSE1_RAW.tar", _tar, "tar -xf"),
        ("a.rds", lambda path: path.write_bytes(gzip.compress(b"X\n")), "writeH5AD"),
        ("a.zarr.zip", lambda path: zipfile.ZipFile(path, "w").close(), "unzip"),
        ("pipe.csv", lambda path: os.mkfifo(path), "is a pipe"),
        ("outs", lambda path: write_mtx(path / "filtered", False) or None, "give .*filtered"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, write, told: str, tmp_path: Path) -> None:
    if name == "outs":
        (tmp_path / name).mkdir()
    write(tmp_path / name)
    with pytest.raises(ScmedleyError, match=told):
        io.read(tmp_path / name)


def test_10x_matrices_with_headers_or_the_other_way_round(tmp_path: Path) -> None:
    write_mtx(tmp_path / "10x", False)
    features, barcodes = (tmp_path / "10x" / f"{name}.tsv" for name in ("features", "barcodes"))
    features.write_text(
        "id\tname\ttype\n" + features.read_text().replace("Antibody Capture", "Gene Expression")
    )
    barcodes.write_text("barcode\n" + barcodes.read_text())
    assert_array_equal(io.read(tmp_path / "10x").X.toarray(), counts())
    mmwrite(tmp_path / "10x" / "matrix.mtx", csr_matrix(counts().astype(int)))
    with pytest.warns(ScmedleyWarning, match="it was transposed"):
        assert_array_equal(io.read(tmp_path / "10x").X.toarray(), counts())


def test_an_embedding_in_another_dialect(tmp_path: Path) -> None:
    table = pd.DataFrame([[0.5, 1], [2, 3.5]], ["a", "b"])
    (tmp_path / "z.csv").write_bytes(b"\xef\xbb\xbf" + table.to_csv(sep=";").encode())
    assert_array_equal(io.read_embedding(tmp_path / "z.csv", ["b", "a"]), [[2, 3.5], [0.5, 1]])


def test_what_was_said_before_an_error_is_not_lost() -> None:
    said: list[str] = []

    def body() -> None:
        with heard(said.append):
            for kind, words in (*[(ScmedleyWarning, "turned")] * 2, (UserWarning, "of another")):
                warnings.warn(words, kind, stacklevel=1)
            raise KeyError

    with pytest.warns(UserWarning, match="of another"), pytest.raises(KeyError):
        body()
    assert said == ["turned"]


def test_a_run_says_what_reading_changed_before_an_error_that_may_follow(tmp_path: Path) -> None:
    table = pd.DataFrame(counts().T, ["CD3E", "MS4A1", *GENES[2:]], BARCODES)
    table.to_csv(tmp_path / "t.csv")
    said: list[str] = []
    with pytest.raises(ScmedleyError, match="batch"):
        stages.run([tmp_path / "t.csv"], tmp_path / "out", RunConfig(), say=said.append, only_fit=True)
    assert any("transposed" in line for line in said)
