"""Broken and odd inputs, each with what must come of it: its own error, or results and maybe a warning."""

import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.io import mmwrite
from scipy.sparse import csc_matrix, csr_matrix

CELLS, GENES = 60, 30


@dataclass(frozen=True)
class Case:
    """One input. ``error``: a pattern of the one error it must give; None: it must be handled.

    ``warning``: a pattern that one of the sentences for the report must match; None: there may be none.
    """

    name: str
    build: Callable[[Path], Path]
    batch_key: str = "batch"
    label_key: str | None = "cell_type"
    error: str | None = None
    warning: str | None = None


def counts(n: int = CELLS, g: int = GENES, seed: int = 0) -> np.ndarray:
    """Give n x g counts that differ by gene, cell, batch (every third cell) and label (every second cell)."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(2.0, 1.5, (1, g)) * rng.lognormal(0, 0.3, (n, 1))
    mean = (
        mean
        * rng.lognormal(0, 0.3, (3, g))[np.arange(n) % 3]
        * rng.lognormal(0, 0.7, (2, g))[np.arange(n) % 2]
    )
    return rng.poisson(mean).astype(np.float32)


def cells(x: Any = None, **columns: Any) -> AnnData:
    """Give a small clean AnnData, 3 batches x 2 labels, with other values or obs columns if asked."""
    x = csr_matrix(counts()) if x is None else x
    n, g = x.shape
    obs = {
        "batch": np.array(["a", "b", "c"])[np.arange(n) % 3],
        "cell_type": np.array(["B", "T"])[np.arange(n) % 2],
    }
    index = [f"cell{i}" for i in range(n)]
    return AnnData(
        x,
        obs=pd.DataFrame({**obs, **columns}, index=index),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(g)]),
    )


def _file(make: Callable[[], AnnData]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "input.h5ad"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata warns of the very oddities that are wanted here
            make().write_h5ad(path)
        return path

    return build


def _with(**columns: Any) -> Callable[[Path], Path]:
    return _file(lambda: cells(**columns))


def _matrix(make: Callable[[np.ndarray], Any]) -> Callable[[Path], Path]:
    return _file(lambda: cells(make(counts())))


def _raw(name: str, content: bytes | None) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        if content is not None:
            (folder / name).write_bytes(content)
        return folder / name

    return build


def _put(x: np.ndarray, value: float) -> csr_matrix:
    x[7, 3] = value
    return csr_matrix(x)


def _renamed(names: str, new: list[str]) -> Callable[[], AnnData]:
    def make() -> AnnData:
        adata = cells()
        old = list(getattr(adata, names))
        setattr(adata, names, new + old[len(new) :])
        return adata

    return make


def _zeroed(x: np.ndarray, rows: Any = slice(None), cols: Any = slice(None)) -> csr_matrix:
    x[rows, cols] = 0
    return csr_matrix(x)


def _scaled(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / (x.std(0) + 1e-3)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


def _scaled_with_raw() -> AnnData:
    adata = cells()
    adata.raw = adata.copy()
    adata.X = _scaled(counts())
    return adata


def _scaled_with_counts() -> AnnData:
    adata = cells(_scaled(counts()))
    adata.layers["counts"] = counts()
    return adata


def _counts_layer_only() -> AnnData:
    adata = cells()
    adata.layers["counts"] = adata.X
    adata.X = None
    return adata


def _strings_in_x(folder: Path) -> Path:
    path = _with()(folder)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = np.full((CELLS, GENES), b"many")
        file["X"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    return path


def _truncated(folder: Path) -> Path:
    path = _with()(folder)
    path.write_bytes(path.read_bytes()[:20_000])
    return path


def _other_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "weights.h5", "w") as file:
        file["weights"] = np.ones(3)
    return folder / "weights.h5"


def _truncated_gzip(folder: Path) -> Path:
    content = gzip.compress(b"\n".join([b"," + b"g" * 50_000] + [b"c%d,%d" % (i, i) for i in range(20_000)]))
    (folder / "m.csv.gz").write_bytes(content[: len(content) // 2])
    return folder / "m.csv.gz"


def _mtx(n_barcodes: int | None) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        mmwrite(folder / "matrix.mtx", csr_matrix(counts().T.astype(int)))
        (folder / "genes.tsv").write_text("".join(f"ENSG{i}\tgene{i}\n" for i in range(GENES)))
        if n_barcodes is not None:
            (folder / "barcodes.tsv").write_text("".join(f"AAAC-{i}\n" for i in range(n_barcodes)))
        return folder

    return build


_SCRIPT = "<script>alert('x')</script>"
_UNUSED = pd.Categorical(list("abc") * 20, categories=list("abcxyz"))
_UNICODE = np.array(["Köln/α", "a\\b", "../Ω"])[np.arange(CELLS) % 3]
_SCRIPTS = np.where(np.arange(CELLS) % 3, "a", _SCRIPT)
_SINGLE = np.where(np.arange(CELLS) == 5, "lonely", np.array(list("ab") * 30))
_SOME_LABELS = np.where(np.arange(CELLS) < 12, None, np.array(list("BT") * 30))
_NO_BATCH = np.where(np.arange(CELLS) == 4, None, np.array(list("abc") * 20))
_TOO_LARGE = np.where(np.arange(GENES) == 3, 1e300, 1.0)

CASES = [
    # the file
    Case("path that does not exist", _raw("nowhere.h5ad", None), error="nowhere.h5ad does not exist"),
    Case("empty file", _raw("input.h5ad", b""), error="is empty"),
    Case("text called h5ad", _raw("input.h5ad", b"hello, this is text\n"), error="is not an HDF5 file"),
    Case("truncated h5ad", _truncated, error="input.h5ad cannot be read: .*truncated"),
    Case("HDF5 of something else", _other_hdf5, error="neither h5ad .* nor 10x"),
    Case("folder of nothing known", lambda folder: folder, error="is a folder without matrix.mtx"),
    Case("10x folder without barcodes", _mtx(None), error="no barcodes.tsv"),
    Case("10x folder of two runs", _mtx(7), error="60 cells, but there are 30 features and 7 barcodes"),
    Case(
        "csv with text", _raw("m.csv", b",g1,g2\nc1,1,2\nc2,x<y,3\n"), error="'c2', column 'g1' holds 'x<y'"
    ),
    Case(
        "csv with rows of unequal length",
        _raw("m.csv", b",g1\nc1,1\nc2,1,2,3\n"),
        error="m.csv cannot be read",
    ),
    Case("csv of a header only", _raw("m.csv", b",g1,g2\n"), error="no cells or no genes|cannot be read"),
    Case("csv that is binary", _raw("m.csv", bytes(range(128, 256)) * 9), error="m.csv cannot be read"),
    Case("csv.gz cut short", _truncated_gzip, error="m.csv.gz cannot be read"),
    Case("strings in X", _strings_in_x, error="not numbers|cannot be read"),
    # the values
    Case("NaN", _matrix(lambda x: _put(x, np.nan)), error=r"NaN.* cell 'cell7', gene 'gene3'"),
    Case("infinite", _matrix(lambda x: _put(x, np.inf)), error=r"infinite.* cell 'cell7', gene 'gene3'"),
    Case(
        "beyond float32", _matrix(lambda x: x * _TOO_LARGE + _TOO_LARGE), error="cell 'cell0', gene 'gene3'"
    ),
    Case(
        "one negative count",
        _matrix(lambda x: _put(x, -1)),
        warning="X has 1 negative .*-1 in cell 'cell7', gene 'gene3'",
    ),
    Case("shifted counts", _matrix(lambda x: x - 1), error="negative values"),
    Case("z-scored", _matrix(_scaled), error="scaled or centred"),
    Case("z-scored with counts in raw", _file(_scaled_with_raw)),
    Case("z-scored with counts layer", _file(_scaled_with_counts)),
    Case("counts layer only", _file(_counts_layer_only)),
    Case("non-integer counts", _matrix(lambda x: csr_matrix(x * 17.3)), warning="non-integer counts"),
    Case("log-normalised", _matrix(lambda x: csr_matrix(_log(x)))),
    Case("log-normalised, few genes", _matrix(lambda x: _log(x)[:, :15]), warning="used as log-normalised"),
    Case("int64 counts", _matrix(lambda x: csr_matrix(x.astype(np.int64)))),
    Case("dense", _matrix(lambda x: x)),
    Case("csc", _matrix(csc_matrix)),
    Case("float64", _matrix(lambda x: csr_matrix(x.astype(np.float64)))),
    Case("huge values", _matrix(lambda x: csr_matrix(x * np.float32(1e36)))),
    Case("empty cell", _matrix(lambda x: _zeroed(x, rows=7))),
    Case("empty gene", _matrix(lambda x: _zeroed(x, cols=3))),
    Case("constant gene", _matrix(lambda x: csr_matrix(np.where(np.arange(GENES) == 3, 5, x)))),
    Case("all zero", _matrix(lambda x: csr_matrix(x * 0)), error="No cell has 10 genes or more"),
    Case(
        "no gene shared",
        _file(lambda: cells(csr_matrix(np.kron(np.eye(60), np.ones(12))))),
        error="No gene is",
    ),
    Case(
        "all cells identical",
        _matrix(lambda x: csr_matrix(x * 0 + x[:1] + 1)),
        error="same values in every gene",
    ),
    Case(
        "only one batch passes",
        _matrix(lambda x: _zeroed(x, np.arange(60) % 3 > 0)),
        error="Only batch 'a' has",
    ),
    Case(
        "one batch does not pass",
        _matrix(lambda x: _zeroed(x, np.arange(60) % 3 == 2)),
        warning="cell of 'c'",
    ),
    # the names
    Case("zero cells", _file(lambda: cells()[:0].copy()), error="0 cells and 30 genes"),
    Case("zero genes", _file(lambda: cells()[:, :0].copy()), error="60 cells and 0 genes"),
    Case("duplicate genes", _file(_renamed("var_names", ["gene1"])), error="1 gene names occur .* 'gene1'"),
    Case("duplicate cells", _file(_renamed("obs_names", ["cell1"])), warning="1 cell names are duplicates"),
    # batch and label
    Case("batch key missing", _with(), "Bacth", error="'Bacth' is not a column of obs. Did you mean 'batch'"),
    Case("label key missing", _with(), label_key="celltype", error="Did you mean 'cell_type'"),
    Case("one batch", _with(batch="a"), error="only one batch, 'a'"),
    Case("cells without a batch", _with(batch=_NO_BATCH), error="1 of 60 cells have no batch .*'cell4'"),
    Case("measurement as batch", _with(depth=np.linspace(0, 1, CELLS)), "depth", error="measurements"),
    Case(
        "barcode as batch", _with(barcode=[f"{i}" for i in range(CELLS)]), "barcode", error="names of cells"
    ),
    Case("numeric batch", _with(batch=np.arange(CELLS) % 3)),
    Case("numeric batch as floats", _with(batch=np.arange(CELLS) % 3.0)),
    Case("two batches", _with(batch=np.arange(CELLS) % 2), warning="only 2 batches|not identifiable"),
    Case("batch of one cell", _with(batch=_SINGLE), warning=r"fewer than 20 cells.*lonely \(1\)"),
    Case("slashes and unicode", _with(batch=_UNICODE, cell_type=np.repeat(["T/NK cell", 'β, "x"'], 30))),
    Case("script as batch", _with(batch=_SCRIPTS), warning="only 2 batches"),
    Case("script as label", _with(cell_type=np.where(np.arange(CELLS) % 2, "B", _SCRIPT))),
    Case("unused categories", _with(batch=_UNUSED, cell_type=_UNUSED.take(np.arange(CELLS) // 20))),
    Case("some labels missing", _with(cell_type=_SOME_LABELS), warning="12 of 60 cells have no label"),
    Case("all labels missing", _with(cell_type=""), error="No cell has a label"),
    Case("label is batch", _with(cell_type=np.array(list("abc") * 20)), warning="not identifiable"),
    Case("one label", _with(cell_type="T"), warning="All labelled cells are 'T'"),
    Case("no label key", _with(), label_key=None),
]
