"""Read a run folder into one value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scmedley import keys
from scmedley.data.gene_names import shown_in
from scmedley.errors import ScmedleyError
from scmedley.interpret.check import CHECK_COLUMNS

TABLES = {  # text columns, number columns
    "history.csv": (["network", "part", "term"], ["epoch", "value"]),
    "scores.csv": (["embedding", "score", "of", "null_kind"], ["value", "null", "null_sd", "n_cells", "se"]),
    "gene_shifts.csv": (
        ["label", "batch", "gene", "observed_from", "seen"],
        [
            *("shift", "q05", "q95", "observed", "size", "observed_size"),
            *("null_size", "null_sd", "n_cells", "n_observed"),
        ],
    ),
    "counterfactual_check.csv": (
        ["label", "batch", "seen"],
        [name for name in CHECK_COLUMNS if name not in ("label", "batch", "seen")],
    ),
}
# What parts of run.json hold, and what their values are, where a section counts on it; "*": each of them.
PARTS: dict[str, type] = {
    **dict.fromkeys(("config", "versions", "input", "prepare", "networks", "seconds", "intervals"), dict),
    **dict.fromkeys(("warnings", "findings", "verdicts"), list),
}
VALUES: dict[str, Any] = {
    **dict.fromkeys(("config.batch", "config.label", "config.fixed"), str),
    **dict.fromkeys(("input.cells", "input.genes", "seconds.*", "intervals.*"), int | float),
    **{f"prepare.{part}_{when}": int | float for part in ("cells", "genes") for when in ("before", "after")},
    **{"prepare.n_hvg": int | float, "networks.*": dict},
}
KINDS: dict[Any, str] = {int | float: "a number", dict: "an object", list: "a list", str: "a text"}
GIVEN = "Given fixed part"  # instead of "Fixed effects", which were not trained then


@dataclass(frozen=True)
class Run:
    """A run folder. A table is None where its file is missing."""

    folder: Path
    settings: dict[str, Any]
    obs: pd.DataFrame | None
    maps: dict[str, tuple[str, NDArray[np.float32]]]  # embedding -> (obsm key drawn, cells x 2)
    history: pd.DataFrame | None
    scores: pd.DataFrame | None
    shifts: pd.DataFrame | None
    check: pd.DataFrame | None

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run."""
        return dict(self.settings.get("config") or {})

    @property
    def given(self) -> str | None:
        """The obsm key of the user's embedding that stands for the fixed part, if one was given."""
        return self.config.get("fixed") or None

    def key(self, embedding: str) -> str:
        """Return the obsm key by which the user knows an embedding: a given one keeps its own."""
        return self.given if self.given and embedding == keys.FIXED else embedding

    def name(self, embedding: str) -> str:
        """Name an embedding; a given one without its key, which is for the page and not for pictures."""
        return GIVEN if self.key(embedding) != embedding else keys.title(embedding)

    def column(self, kind: str) -> pd.Series | None:
        """Return the ``"batch"`` or ``"label"`` column of the cells, if there is one."""
        key = self.config.get(kind)
        return None if self.obs is None or not key or key not in self.obs else self.obs[key]


def read(folder: Path) -> Run:
    """Read what a run left in its folder."""
    if not folder.is_dir():
        raise ScmedleyError(f"{folder} is not a folder; give the folder that `scmedley run` wrote")
    settings = _settings(folder / "run.json")
    obs, maps = _cells(folder / "integrated.h5ad")
    history, scores, shifts, check = (_table(folder / name) for name in TABLES)
    shifts = None if shifts is None else shown_in(shifts)
    return Run(folder, settings, obs, maps, history, scores, shifts, check)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ScmedleyError(f"{path} is missing; a report needs the folder that `scmedley run` wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScmedleyError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ScmedleyError(f"{path} must hold a JSON object, not a {type(settings).__name__}")
    for name, kind in PARTS.items():
        _must_be(settings.get(name), kind, name, path)
    for name, kind in VALUES.items():
        part, _, key = name.partition(".")
        held: dict[str, Any] = settings.get(part) or {}
        for found in held if key == "*" else [key]:
            _must_be(held.get(found), kind, f"{part}.{found}", path)
    return settings


def _must_be(value: Any, kind: Any, name: str, path: Path) -> None:
    """Raise where a part of run.json holds something other than it must."""
    if value is not None and not isinstance(value, kind):
        raise ScmedleyError(f"{path}: {name!r} must hold {KINDS[kind]}, not {str(value)[:40]!r}. Run again.")


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    texts, numbers = TABLES[path.name]
    try:
        # A gene or a label may be called "NA": only the number columns have missing values.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise ScmedleyError(f"{path} cannot be read: {error}") from error
    missing = [column for column in texts + numbers if column not in table]
    if missing:
        raise ScmedleyError(
            f"{path} lacks the column(s) {', '.join(missing)}. An older version wrote it: scmedley evaluate "
            f"{path.parent} writes it again."
        )
    for column in numbers:
        values = pd.to_numeric(table[column].replace("", "nan"), errors="coerce")
        wrong = values.isna() & ~table[column].str.lower().isin(["", "nan", "none", "na"])
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise ScmedleyError(
                f"{path}: column {column}, line {row + 2}: {table[column].iloc[row]!r} is not a number"
            )
        table[column] = values
    if "seen" in table:
        table["seen"] = table["seen"].str.lower().isin(["true", "1"])
    return table


def _cells(path: Path) -> tuple[pd.DataFrame | None, dict[str, tuple[str, NDArray[np.float32]]]]:
    """Read obs and the columns to draw, and leave the matrices on the disk."""
    import h5py
    from anndata.io import read_elem

    if not path.is_file():
        return None, {}
    maps: dict[str, tuple[str, NDArray[np.float32]]] = {}
    try:
        with h5py.File(path, "r") as file:
            obs = read_elem(file["obs"])
            obsm = file.get("obsm", {})
            for key in keys.MAPS:
                found = next((name for name in (keys.umap(key), key) if name in obsm), None)
                if found is not None and isinstance(obsm[found], h5py.Dataset) and obsm[found].ndim == 2:
                    xy = np.asarray(obsm[found][:, :2], dtype=np.float32)
                    if xy.shape[1] == 2:
                        maps[key] = (found, xy)
                    if len(xy) != len(obs):
                        raise ValueError(f"obsm {found} has {len(xy):,} rows for {len(obs):,} cells")
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise ScmedleyError(f"{path} cannot be read: {error}") from error
    return obs, maps
