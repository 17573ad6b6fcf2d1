"""A map of samples by their distances, and the columns of the samples that go with the distances.

Shapes: D samples, X columns of a design.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scmedley.data.design import as_categories
from scmedley.errors import ScmedleyError, check_seed, listed, warn
from scmedley.evaluate.statistics import adjusted
from scmedley.interpret.donors import is_number


def sample_columns(obs: pd.DataFrame, sample_key: str) -> pd.DataFrame:
    """Return the columns of ``obs`` that have one value for each sample, one row a sample.

    Columns with one value for all samples are left out, as are those that name each sample.
    """
    if sample_key not in obs:
        raise ScmedleyError(
            f"The sample key {sample_key!r} is not a column of obs. It has {listed(list(map(str, obs.columns)), 20)}."
        )
    sample = pd.Series(as_categories(obs[sample_key]).astype(object), obs.index, name="sample")
    known = obs[sample.notna().to_numpy()]
    groups = known.groupby(sample[sample.notna()].to_numpy())
    found = {}
    for name in obs.columns.drop(sample_key):
        values = groups[name].nunique()
        constant = (values <= 1).all() and known[name].nunique() > 1
        if constant and (pd.api.types.is_numeric_dtype(known[name]) or known[name].nunique() < len(values)):
            found[str(name)] = groups[name].first()
    return pd.DataFrame(found, index=groups.size().index).rename_axis(index="sample")


def sample_matrix(distances: pd.DataFrame, label: str | None = None) -> pd.DataFrame:
    """Return the distances of :func:`sample_distances` as a square table, samples x samples.

    Parameters
    ----------
    distances
        Table of :func:`sample_distances`.
    label
        Label to use. By default, the root mean square over the labels in which both samples are; samples that
        share no label with some others are left out, with a warning.
    """
    rows = distances if label is None else distances[distances["label"] == label]
    if rows.empty:
        raise ScmedleyError(
            f"The distances have no label {label!r}. Choose one of {listed(sorted(set(distances['label'])), 20)}."
        )
    names = sorted(set(rows["sample_1"]) | set(rows["sample_2"]))
    squared = (rows["distance"] ** 2).groupby([rows["sample_1"], rows["sample_2"]]).mean()
    half = squared.unstack().reindex(index=names, columns=names)
    both = half.fillna(half.T).mask(np.eye(len(names), dtype=bool), 0.0)
    left_out = []
    while both.isna().to_numpy().any():  # the sample with the most unknown distances first
        left_out.append(str(both.isna().sum().idxmax()))
        both = both.drop(index=left_out[-1], columns=left_out[-1])
    if left_out:
        warn(f"{listed(left_out)} share no label with some other samples, and are left out.")
    return both.pow(0.5).rename_axis(index="sample", columns=None)


def sample_map(
    distances: pd.DataFrame,
    obs: pd.DataFrame | None = None,
    sample_key: str = "",
    *,
    label: str | None = None,
) -> pd.DataFrame:
    """Return a map of the samples in two dimensions, by classical multidimensional scaling of their distances.

    Parameters
    ----------
    distances
        Table of :func:`sample_distances`.
    obs, sample_key
        Annotation of the cells and its column of samples: its columns with one value for each sample are added.
    label
        Label to map; by default all labels together (:func:`sample_matrix`).

    Returns
    -------
    pandas.DataFrame
        One row a sample: ``sample``, ``x``, ``y`` (in the unit of the distances), ``share_x``, ``share_y`` (share of
        the sum of positive eigenvalues; the same in all rows), and the columns of ``obs``.
    """
    matrix = sample_matrix(distances, label)
    if len(matrix) < 3:
        raise ScmedleyError(f"A map needs 3 samples or more, not {len(matrix)}.")
    size, axes = np.linalg.eigh(_centred(matrix.to_numpy()))
    size, axes = size[::-1].clip(min=0), axes[:, ::-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), range(len(axes))] < 0, -1, 1)  # signs are arbitrary
    xy_D2, total = axes[:, :2] * np.sqrt(size[:2]), max(size.sum(), np.finfo(float).tiny)
    found = pd.DataFrame({"sample": matrix.index, "x": xy_D2[:, 0], "y": xy_D2[:, 1]})
    found["share_x"], found["share_y"] = size[:2] / total
    if obs is not None:
        known = sample_columns(obs, sample_key).drop(columns=list(found), errors="ignore")
        found = found.join(known, on="sample")
    return found


def sample_association(
    distances: pd.DataFrame,
    obs: pd.DataFrame,
    sample_key: str,
    columns: Sequence[str] | None = None,
    *,
    donor_key: str | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """Test whether distances of samples go with columns of the samples, within each label (PERMANOVA).

    The pseudo-F of Anderson (2001) compares squared distances between and within groups of samples; for a column of
    numbers it is that of a regression on it. Its null is that of values permuted among samples: the observations
    are samples, not cells. Samples of one donor, as under two conditions, are not independent: give ``donor_key``.

    Parameters
    ----------
    distances
        Table of :func:`sample_distances`.
    obs, sample_key
        Annotation of the cells and its column of samples.
    columns
        Columns with one value for each sample; default: all of them (:func:`sample_columns`).
    donor_key
        Column of ``obs`` with the donor of each sample. Values of a column that has one value for each donor, such as
        sex, are then permuted among donors; those of any other column, such as the condition, within donors.
    permutations
        Number of permutations.
    seed
        Random seed.

    Returns
    -------
    pandas.DataFrame
        One row for every label and column: ``label``, ``column``, ``samples``, ``groups`` (nan for numbers), ``r2``
        (share of the sum of squared distances), ``pseudo_f``, ``p``, ``least_p`` (the smallest that so many samples
        can give) and ``q`` (Benjamini-Hochberg over all rows). Rows without a group of two samples, or with one
        group, are left out.

    Raises
    ------
    ScmedleyError
        A column does not exist, or has several values in a sample, which may be the donor too.
    """
    check_seed(seed)
    columns = [columns] if isinstance(columns, str) else columns
    known = sample_columns(obs, sample_key)
    if wrong := [name for name in columns or [] if name not in known]:
        raise ScmedleyError(
            f"{listed(wrong)}: not a column with one value for each sample of obs[{sample_key!r}], and several "
            f"values in all. Columns that are: {listed([str(name) for name in known], 20)}."
        )
    donor = None if donor_key is None else _donors(obs, sample_key, donor_key)
    rng = np.random.default_rng(seed)
    rows = []
    for label in dict.fromkeys(distances["label"]):
        matrix = sample_matrix(distances, label)
        for name in columns or [str(name) for name in known if name != donor_key]:
            values = known[name].reindex(matrix.index)
            there = values.notna().to_numpy()
            own = np.arange(there.sum()) if donor is None else donor.reindex(matrix.index)[there].to_numpy()
            row = _permanova(matrix.to_numpy()[np.ix_(there, there)], values[there], own, permutations, rng)
            if row is not None:
                rows.append({"label": label, "column": name, **row})
    found = pd.DataFrame(
        rows, columns=["label", "column", "samples", "groups", "r2", "pseudo_f", "p", "least_p"]
    )
    return found.assign(q=adjusted(found["p"].to_numpy(np.float64)))


def _donors(obs: pd.DataFrame, sample_key: str, donor_key: str) -> pd.Series[Any]:
    """Return the code of each sample's donor."""
    if donor_key not in obs:
        raise ScmedleyError(
            f"obs has no column {donor_key!r}. It has {listed(list(map(str, obs.columns)), 20)}."
        )
    donor = pd.Series(as_categories(obs[donor_key]).codes, obs.index)
    groups = donor.groupby(np.asarray(as_categories(obs[sample_key]).astype(object)))
    wrong = (groups.nunique() > 1) | (groups.min() < 0)
    if wrong.any():
        raise ScmedleyError(
            f"The sample {wrong.idxmax()!r} has several values of obs[{donor_key!r}], or none. Choose a column with "
            "one donor for each sample."
        )
    return groups.first()


def _permanova(
    distance_DD: NDArray[np.float64],
    values: pd.Series[Any],
    donor_D: NDArray[np.int64],
    permutations: int,
    rng: np.random.Generator,
) -> dict[str, float] | None:
    """Return the pseudo-F of one column and its p-value; None if there is nothing to compare."""
    n, names = len(values), values.astype(str).to_numpy()
    if values.nunique() < 2:
        return None
    one_hot = pd.get_dummies(names).to_numpy(np.float64)
    x_DX, groups = one_hot[:, 1:], float(one_hot.shape[1])
    if is_number(values):
        x_DX, groups = values.to_numpy(np.float64)[:, None], float("nan")
    df = x_DX.shape[1]
    if df >= n - 1:
        return None
    _, first, code_D = np.unique(donor_D, return_index=True, return_inverse=True)
    among_donors = bool((names == names[first][code_D]).all())
    centred_DD = _centred(distance_DD)
    total = max(float(np.trace(centred_DD)), np.finfo(float).tiny)

    def order() -> NDArray[np.int64]:
        if among_donors:
            return np.asarray(first[rng.permutation(len(first))][code_D])
        within = np.empty(n, np.int64)
        within[np.argsort(code_D, kind="stable")] = np.lexsort((rng.random(n), code_D))
        return within

    def explained(order: NDArray[np.int64]) -> float:
        x = x_DX[order]
        u = np.linalg.qr(x - x.mean(0))[0]
        return float((u * (centred_DD @ u)).sum())

    seen = explained(np.arange(n))
    null = np.array([explained(order()) for _ in range(permutations)])
    # With the total fixed, pseudo-F grows with the explained part, so comparing the parts is the same test.
    p = (1 + np.sum(null >= seen - 1e-12 * total)) / (permutations + 1)
    left = total - seen
    f = float("inf") if left < 1e-12 * total else (seen / df) / (left / (n - 1 - df))
    table = one_hot[first].sum(0)[None] if among_donors else pd.DataFrame(one_hot).groupby(code_D).sum()
    ways = _arrangements(np.asarray(table, int).tolist(), bool(np.isnan(groups)))
    least = 1 / min(ways, permutations + 1)
    return {
        "samples": n,
        "groups": groups,
        "r2": seen / total,
        "pseudo_f": f,
        "p": max(float(p), least),  # drawn permutations may meet the few arrangements too rarely
        "least_p": least,
    }


def _arrangements(sizes_DK: list[list[int]], numbers: bool) -> int:
    """Return the number of different ways to permute values within blocks: of each, how often each value occurs.

    Groups that change places, and numbers in the reverse order, give the same statistic and count once.
    """
    ways = math.prod(math.factorial(sum(row)) // math.prod(map(math.factorial, row)) for row in sizes_DK)
    alike = Counter(zip(*sizes_DK, strict=True)).values()
    return max(1, ways // (2 if numbers else math.prod(map(math.factorial, alike))))


def _centred(distance_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inner products of centred points that have these distances (Gower 1966)."""
    half = -(distance_DD**2) / 2
    return np.asarray(half - half.mean(0) - half.mean(1)[:, None] + half.mean())
