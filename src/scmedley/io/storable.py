"""Convert an AnnData to what an h5ad can hold: unusual contents are converted or left out, with a warning.

Text is written as plain strings or categories, never in the nullable encoding of pandas 3, which R, cellxgene
and older anndata cannot read. Conversions are copies: the AnnData is not changed.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from scmedley.data.inplace import layers_of

TEXT = "Written as text, because the file cannot hold their types"
LEFT_OUT = "Left out, because the file cannot hold them"
RENAMED = "Written under another name, because the file cannot hold their names"
SLASH = "Written with the / in their names, which some programs other than anndata cannot read"
CLEANED = "Characters that the file cannot hold were replaced by \N{REPLACEMENT CHARACTER}"
MOST_NAMED = 50  # places in one sentence

Notes = dict[str, list[str]]  # sentence: the places that it is about

_NUMBERS = "biufc"  # kinds of NumPy dtypes
_AS_TEXT = (
    *(datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64),
    *(pd.Period, pd.Interval, PurePath, Decimal, UUID, bytes),
)
_LAZY = ("dask", "h5py", "anndata", "zarr", "awkward", "cupy")  # anndata writes their arrays
_NOTHING = object()  # marks a value that is left out


def storable(adata: AnnData) -> tuple[dict[str, Any], list[str]]:
    """Return the parts of ``adata`` as an h5ad can hold them, and a sentence for each kind of conversion.

    ===================================  ==============================================================
    in ``adata``                         in the file
    ===================================  ==============================================================
    text, of any dtype                   categories in ``obs`` and ``var`` where values repeat or are
                                         missing, else plain strings
    nullable integers and booleans       as they are; plain where no value is missing
    nullable or mixed numbers            float64, NaN where missing
    values of several kinds in a column  text, with a warning; missing values stay missing
    dates, times, intervals, bytes       text (ISO 8601 for times), with a warning
    names that are not text, are used,   the closest free name, with a warning
    empty, or ``_index``
    ``/`` in a name                      kept in columns, which anndata can read; ``_`` in keys
    functions and objects in ``uns``     left out, with a warning; None without one
    ===================================  ==============================================================
    """
    notes: Notes = defaultdict(list)
    parts: dict[str, Any] = {} if adata.X is None else {"X": _converted(adata.X, "X", notes)}
    parts |= {axis: _frame(getattr(adata, axis), axis, notes) for axis in ("obs", "var")}
    for name in ("obsm", "varm", "obsp", "varp", "uns"):
        parts[name] = _mapping(dict(getattr(adata, name)), name, notes)
    parts["layers"] = _mapping(layers_of(adata), "layers", notes)
    if adata.raw is not None:
        parts["raw"] = {
            "X": _converted(adata.raw.X, "raw.X", notes),
            "var": _frame(adata.raw.var, "raw.var", notes),
            "varm": _mapping(dict(adata.raw.varm), "raw.varm", notes),
        }
    return parts, _sentences(notes)


def storable_obs(obs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return ``obs`` as a Zarr store can hold it (``_`` for ``/`` in names), and a sentence per change."""
    notes: Notes = defaultdict(list)
    named = obs.set_axis(_names(obs.columns, "obs", notes, columns=False), axis=1)
    return _frame(named, "obs", notes), _sentences(notes)


def names_in_file(adata: AnnData) -> dict[Any, str]:
    """Return the name in the file of each column of ``obs``."""
    return dict(
        zip(adata.obs.columns, _names(adata.obs.columns, "obs", defaultdict(list), True), strict=True)
    )


def _sentences(notes: Notes) -> list[str]:
    def some(places: list[str]) -> str:
        more = len(places) - MOST_NAMED
        return ", ".join(places[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")

    return [f"{sentence}: {some(places)}." for sentence, places in notes.items()]


# --- names --------------------------------------------------------------------------------------------------


def _names(names: Iterable[Any], path: str, notes: Notes, columns: bool) -> list[str]:
    """Return names that are text, unique, not empty, and without a slash unless a column can keep it."""
    names = list(names)
    wanted = ["_".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in names]
    # Column a/b is in group a of the file, so nothing else may have the name a.
    groups = {"_index", *wanted}
    taken = {"_index"} if columns else set[str]()
    found = []
    for name, text in zip(names, wanted, strict=True):
        keeps = columns and "/" in text and _nests(text, groups)
        free = _clean(text) if keeps else _clean(text).replace("/", "_")
        while free in taken or free in ("", ".", ".."):
            free += "_"
        taken.add(free)
        found.append(free)
        if free != name:
            notes[RENAMED].append(f"{path}[{name!r}] (now {free!r})")
        elif keeps:
            notes[SLASH].append(f"{path}[{name!r}]")
    return found


def _nests(name: str, groups: AbstractSet[str]) -> bool:
    """Return whether a file can hold a name with slashes: no part is empty or the name of another entry."""
    parts = name.split("/")
    above = {"/".join(parts[:i]) for i in range(1, len(parts))}
    return not above & groups and not {"", ".", ".."} & set(parts)


def _clean(text: str) -> str:
    """Replace characters that UTF-8 or HDF5 cannot hold: halves of surrogate pairs, and NUL."""
    if "\0" in text or not text.isprintable():
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
    return text


# --- containers ---------------------------------------------------------------------------------------------


def _mapping(mapping: Mapping[Any, Any], path: str, notes: Notes) -> dict[str, Any]:
    names = _names(mapping, path, notes, columns=False)
    values = {
        name: _converted(value, f"{path}[{key!r}]", notes)
        for name, (key, value) in zip(names, mapping.items(), strict=True)
    }
    return {name: value for name, value in values.items() if value is not _NOTHING}


def _converted(value: Any, path: str, notes: Notes) -> Any:
    """Return a value as an h5ad can hold it, or ``_NOTHING``."""
    if isinstance(value, Mapping):
        return _mapping(value, path, notes)
    if isinstance(value, pd.DataFrame):
        return _frame(value, path, notes)
    if isinstance(value, pd.Series):
        return _frame(value.to_frame("values" if value.name is None else value.name), path, notes)
    if isinstance(value, pd.Index | pd.api.extensions.ExtensionArray):
        return _column(pd.Series(value), path, notes)
    if issparse(value):
        return value if value.format in ("csr", "csc") else value.tocsr()
    if isinstance(value, np.ndarray):
        return _array(value, path, notes)
    if isinstance(value, list | tuple | AbstractSet | range):
        return _list(sorted(value, key=str) if isinstance(value, AbstractSet) else list(value), path, notes)
    return _scalar(value, path, notes)


def _scalar(value: Any, path: str, notes: Notes) -> Any:
    if isinstance(value, str):
        return _texts(np.array([value], dtype=object), path, notes)[0]
    big = isinstance(value, int) and not -(2**63) <= value < 2**64
    if isinstance(value, bool | int | float | complex | np.bool_ | np.number) and not big:
        return np.complex128(value) if isinstance(value, complex) else value
    if (big or isinstance(value, _AS_TEXT)) and not pd.isna(value):
        notes[TEXT].append(f"{path} ({type(value).__name__})")
        return _texts(np.array([_as_text(value)], dtype=object), path, notes)[0]
    lazy = type(value).__module__.split(".")[0] in _LAZY and not isinstance(value, AnnData)
    if not lazy and value is not None:  # None is lost without harm, such as scanpy's log1p.base
        notes[LEFT_OUT].append(f"{path} ({type(value).__name__})")
    return value if lazy else _NOTHING


def _list(values: list[Any], path: str, notes: Notes) -> Any:
    """Return a list as an array, as anndata does; numbers in a list with text become text."""
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        try:
            array = np.asarray(values)
        except ValueError:  # rows of different lengths
            array = np.empty(0, dtype=object)
        if array.dtype.kind in _NUMBERS + "U":
            return _array(array, path, notes)
        notes[LEFT_OUT].append(f"{path} (list of lists)")
        return _NOTHING
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return _array(array, path, notes) if values else np.array([], dtype=np.float64)


def _array(array: np.ndarray, path: str, notes: Notes) -> Any:
    """Return an array of any number of dimensions; one of Python objects becomes numbers or text."""
    if isinstance(array, np.ma.MaskedArray):
        numbers = array.dtype.kind in "biuf" and np.ma.is_masked(array)
        array = np.where(array.mask, np.nan, array.data) if numbers else np.asarray(array.data)
    kind = array.dtype.kind
    if kind in _NUMBERS:
        return np.asarray(array, dtype=_short(array.dtype))
    if kind == "V":
        if array.dtype.names and all(_plain(array[name].ravel()) for name in array.dtype.names):
            return array
    else:
        flat = (
            pd.Series(array.ravel()).to_numpy(dtype=object) if kind in "mM" else array.ravel().astype(object)
        )
        if all(pd.api.types.is_scalar(value) or isinstance(value, _AS_TEXT) for value in flat):
            values = _objects(flat, path, notes)
            if array.ndim == 1:
                return values
            if isinstance(values, np.ndarray):
                return values.reshape(array.shape)
    notes[LEFT_OUT].append(f"{path} (array of {_types(array.ravel())})")
    return _NOTHING


def _plain(field: np.ndarray) -> bool:
    """Return whether this field of a structured array holds only numbers or only text."""
    text = field.dtype == object and _kind(field) == "string" and not pd.isna(field).any()
    return text or field.dtype.kind in "biufUS"


def _short(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float64 for longer floats, which other machines cannot read."""
    longest = {"f": 8, "c": 16}.get(dtype.kind)
    return np.dtype(f"{dtype.kind}{longest}") if longest and dtype.itemsize > longest else dtype


# --- tables -------------------------------------------------------------------------------------------------


def _frame(frame: pd.DataFrame, path: str, notes: Notes) -> pd.DataFrame:
    """Return a table with plain columns and names; repeated text of cells and genes becomes categories."""
    axis = path in ("obs", "var", "raw.var")
    names = _names(frame.columns, path, notes, columns=True)
    index = _index(frame.index, path, notes, taken=names, text=axis)
    columns = []
    for i, old in enumerate(frame.columns):
        values = _column(frame.iloc[:, i], f"{path}[{old!r}]", notes)
        if axis and isinstance(values, np.ndarray) and values.dtype == object:
            categories = _as_categorical(values, np.zeros(len(values), dtype=np.bool_))
            values = categories if len(categories.categories) < len(values) else values
        # Otherwise pandas 3 converts them to its own string type.
        dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
        columns.append(pd.Series(values, index=index, dtype=dtype))
    plain = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    return plain.set_axis(names, axis=1)


def _index(index: pd.Index, path: str, notes: Notes, taken: list[str], text: bool) -> pd.Index:
    """Return row names as numbers or plain strings; the index keeps its name if no column has it."""
    if isinstance(index.dtype, np.dtype) and index.dtype.kind in "iuf" and not text:
        plain = pd.Index(index.to_numpy())
    else:
        values = index.to_numpy(dtype=object)
        if _kind(values) != "string":
            notes[TEXT].append(f"the index of {path} ({_types(values)})")
        plain = pd.Index(
            _texts(np.array([_as_text(v) for v in values], dtype=object), path, notes), dtype=object
        )
    below = any(column == index.name or column.startswith(f"{index.name}/") for column in taken)
    name: Any = index.name
    if name is not None and (below or _names([name], path, defaultdict(list), False) != [name]):
        notes[RENAMED].append(f"the index of {path}, {name!r} (now without a name)")
        name = None
    named: pd.Index = pd.Index(plain, name=name)
    return named


def _column(column: "pd.Series[Any]", path: str, notes: Notes) -> Any:
    dtype: Any = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categories(column.array, path, notes)
    if isinstance(dtype, pd.SparseDtype):
        return _column(pd.Series(np.asarray(column), index=column.index), path, notes)
    if isinstance(dtype, np.dtype) and dtype.kind in _NUMBERS:
        return column.to_numpy(dtype=_short(dtype))
    return _objects(column.to_numpy(dtype=object), path, notes)


def _objects(values: np.ndarray, path: str, notes: Notes) -> Any:
    """Return an object array as numbers, booleans or text; missing values stay missing."""
    missing = pd.isna(values)
    kind = _kind(values)
    if missing.all():
        return np.full(len(values), np.nan) if len(values) else values
    if kind in ("floating", "mixed-integer-float"):
        return pd.to_numeric(pd.Series(np.where(missing, np.nan, values), dtype=object)).to_numpy(np.float64)
    if kind == "complex":
        return np.where(missing, np.nan, values).astype(np.complex128)
    if kind in ("integer", "boolean") and _fits(values[~missing], kind):
        if not missing.any():
            return values.astype(np.int64 if kind == "integer" else np.bool_)
        values = values.copy()
        values[missing] = None
        return pd.array(values, dtype="Int64" if kind == "integer" else "boolean")
    if kind != "string":
        notes[TEXT].append(f"{path} ({_types(values)})")
        values = values.copy()
        values[~missing] = [_as_text(value) for value in values[~missing]]
    texts = _texts(np.where(missing, "", values), path, notes)
    return _as_categorical(texts, missing) if missing.any() else texts


def _fits(values: np.ndarray, kind: str) -> bool:
    return kind == "boolean" or -(2**63) <= min(values) <= max(values) < 2**63


def _as_categorical(texts: np.ndarray, missing: np.ndarray) -> pd.Categorical:
    """Return texts as categories in alphabetical order."""
    categories = pd.Index(np.unique(texts[~missing]), dtype=object)
    return pd.Categorical.from_codes(np.where(missing, -1, categories.get_indexer(texts)), categories)


def _categories(values: pd.Categorical, path: str, notes: Notes) -> pd.Categorical:
    """Return a categorical whose categories are numbers or plain strings."""
    old = values.categories
    new = _column(pd.Series(old), path, notes) if len(old) else np.empty(0, dtype=object)
    unique = pd.Index(new, dtype=new.dtype).unique()  # two texts may be equal now
    codes = np.append(unique.get_indexer(pd.Index(new, dtype=new.dtype)), -1)[values.codes]
    return pd.Categorical.from_codes(codes, unique, ordered=values.ordered)


# --- text ---------------------------------------------------------------------------------------------------


def _kind(values: np.ndarray) -> str:
    kind: str = pd.api.types.infer_dtype(values.astype(object), skipna=True)
    return kind


def _types(values: np.ndarray) -> str:
    """Return the types of an array's values in words, for a warning."""
    if values.dtype != object:
        return str(values.dtype)
    return " and ".join(sorted({type(value).__name__ for value in values[~pd.isna(values)]})[:4])


def _texts(values: np.ndarray, path: str, notes: Notes) -> np.ndarray:
    """Return an array of strings without characters that the file cannot hold."""
    cleaned = np.empty(len(values), dtype=object)
    cleaned[:] = [_clean(str(value)) for value in values]
    if (cleaned != values).any():
        notes[CLEANED].append(path)
    return cleaned


def _as_text(value: Any) -> str:
    """Return a value as text: ISO 8601 for times, and 2 for 2.0, which another file may write as 2."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.datetime64 | np.timedelta64):
        return str(value)
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
