"""Files of cells that hold different kinds of values: convert them to one kind, so that they can be joined."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import Matrix
from scmedley.data.evidence import Checked
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.scan import LN
from scmedley.errors import ScmedleyError, warn
from scmedley.keys import ValueKind

_IN_WORDS = {
    "counts": "counts",
    "log-normalised": "log-normalised values",
    "other": "scaled or centred values",
}


def brought_together(
    parts: Sequence[AnnData], names: Sequence[Any], asked: ValueKind = "auto"
) -> list[AnnData]:
    """Return files of cells with the same kind of values in ``X``, unchanged if they agree already.

    ``X`` then holds counts of all counted genes, or logarithms of counts per 10,000, natural unless another
    base was ``asked`` for. If each file has counts of a subset of the genes and the cells' totals over all
    genes, ``layers["counts"]`` holds the counts and ``X`` the logarithms with these totals. If files differ,
    a warning says what each one holds.

    Raises
    ------
    ScmedleyError
        Counts in one file and log-normalised values in another; or as :func:`find_values`, after the file's
        name.
    """
    found = to_convert(parts, names, asked)
    if found is None:
        return list(parts)
    return [_with_x(part, this, asked) for part, this in zip(parts, found, strict=True)]


def to_convert(
    parts: Sequence[AnnData], names: Sequence[Any], asked: ValueKind = "auto"
) -> list[Checked] | None:
    """Return what each file holds, if :func:`brought_together` must convert them; None if they agree.

    Raises
    ------
    ScmedleyError
        As :func:`brought_together`.
    """
    found: list[Checked] = []
    for name, part in zip(names, parts, strict=True):
        try:
            found.append(find_values(part, asked))
        except ScmedleyError as error:
            raise ScmedleyError(f"{name}: {error}") from error
    kinds = {this.values: name for this, name in zip(found, names, strict=True)}
    if len(kinds) > 1:
        contents = ", ".join(f"{name} holds {_IN_WORDS[kind]}" for kind, name in kinds.items())
        raise ScmedleyError(
            f"{contents}: these cannot be joined. Give counts in all files, in X, layers['counts'] or raw."
        )
    alike = len({(this.where, this.base, this.total, _identity(this.sizes)) for this in found}) == 1
    if not alike or len({(this.reason, *this.warnings) for this in found}) > 1:
        _warn_of_each(found, names)
    if alike:
        return None
    unknown = [str(name) for this, name in zip(found, names, strict=True) if not this.sizes]
    if 0 < len(unknown) < len(found):  # totals over all genes in some files only would give two scales
        warn(
            f"Some files have the cells' totals over more genes than their counts, but others do not (such as "
            f"{unknown[0]}). All totals are therefore over the genes of the counts."
        )
        found = [replace(this, sizes=None) for this in found]
    return found


def _warn_of_each(found: Sequence[Checked], names: Sequence[Any]) -> None:
    """Warn of the finding for each file without whole counts: the joined cells do not show it."""
    for this, name in zip(found, names, strict=True):
        for words in [this.reason] * (this.rank > 0 or this.nearly_whole) + this.warnings:
            warn(f"{name}: {words}")


def _identity(sizes: Checked | None) -> tuple[Any, ...] | None:
    return None if sizes is None else (sizes.where, sizes.base, sizes.total)


def converted(
    part: AnnData, found: Checked, asked: ValueKind, rows: Any = None
) -> tuple[Matrix, Matrix | None]:
    """Return ``X`` of a file that was brought together with others, and ``layers["counts"]`` if it needs that."""
    x, total_N, _ = counted(part, found, rows)
    if found.values == "counts" and not found.sizes:
        return (x if asked in ("auto", "counts") else _to_base(_log1p(x), asked)), None
    logs = normalised(x, total_N, found)
    if found.values == "counts":
        return logs, x
    return (logs if asked == "auto" else _to_base(logs, asked)), None


def _with_x(part: AnnData, found: Checked, asked: ValueKind) -> AnnData:
    x, counts = converted(part, found, asked)
    if found.where == "raw.X":
        part = AnnData(obs=part.obs, var=part.raw.var, obsm=dict(part.obsm))
    del part.raw
    part.layers.pop(keys.COUNTS, None)
    part.X = x
    if counts is not None:
        part.layers[keys.COUNTS] = counts
    return part


def _log1p(x: Matrix) -> Matrix:
    return np.log1p(x) if isinstance(x, np.ndarray) else x.log1p()


def _to_base(logs: Matrix, base: Any) -> Matrix:
    return logs * np.float32(1 / LN[base])
