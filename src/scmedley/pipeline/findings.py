"""Findings of a run beyond its verdicts: sentences with each number next to its null or baseline."""

from typing import Any

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.data.gene_names import shown_in
from scmedley.evaluate.probes import ProbeName
from scmedley.interpret.check import ALL, TOO_FEW, agreement, summarise
from scmedley.interpret.shifts import HELD_OUT, batch_distances, source_of
from scmedley.pipeline.verdicts import LEAK_SEEN, leaks_of, two_errors

NULL_NAME = "random, permuted batches"  # the null of the random effects
NAMES: dict[ProbeName, str] = {"kNN": "kNN", "logistic": "logistic regression", "network": "network"}


def findings(
    scores: pd.DataFrame,
    shifts: pd.DataFrame | None,
    check: pd.DataFrame | None,
    record: dict[str, Any],
) -> list[str]:
    """Return the findings, each of one or two sentences, the most important first.

    ``shifts`` and ``check`` are ``None`` if the model has no batch effects.
    """
    said = [
        (record.get("collapse") or {}).get("sentence", ""),
        _random(scores, record),
        "" if shifts is None or check is None else _most_different(shifts, check),
    ]
    if not (scores.of == "label").any():
        said.append("Without labels, batch leakage includes differences in cell types between batches.")
    if record.get("comparable", True):  # otherwise this sentence is shown before the verdicts
        said.append(record.get("verdict") or "")
    return [sentence for sentence in said if sentence]


def _range(leaks: dict[ProbeName, pd.Series]) -> str:
    """Return the lowest and the highest leakage of the probes."""
    low, high = (f"{extreme(row.value for row in leaks.values()):z.2f}" for extreme in (min, max))
    return low if low == high else f"{low} to {high}"


def _random(scores: pd.DataFrame, about: dict[str, Any]) -> str:
    """Compare leakage of the random effects with that of their null, with and without the batch as input."""
    random, null = leaks_of(scores, keys.RANDOM), leaks_of(scores, keys.NULL)
    if not random:
        return ""
    opening = f"Random effects: batch leakage is {_range(random)} by {len(random)} probes"
    if not null:
        unknown = "; no network was trained on permuted batches, so there is no null to compare with"
        return f"{opening}{unknown}.{_masked(scores, about)}"
    null_words = f"null, the same network trained on permuted batches: {_range(null)}"
    networks = about.get("networks", {})
    cut = [
        f"of {what} after epoch {networks[name]['epochs']}"
        for name, what in (("random", "this network"), (NULL_NAME, "the null"))
        if networks.get(name, {}).get("stopped") == "interrupted"
    ]
    if cut:
        return (
            f"{opening} ({null_words}), but the comparison is void because training was interrupted: {', '.join(cut)}. "
            "Run again with --overwrite to compare."
        )
    return f"{opening} ({null_words}): {_beyond(beyond(random, null))}.{_masked(scores, about)}"


def _masked(scores: pd.DataFrame, about: dict[str, Any]) -> str:
    """Return a sentence on the leakage that is left when the encoder does not see the batch."""
    random, null = leaks_of(scores, keys.RANDOM_MASKED), leaks_of(scores, keys.NULL_MASKED)
    if not random:
        return ""
    found = f" (null {_range(null)}): {_beyond(beyond(random, null))}" if null else ""
    new = (
        ""
        if about.get("hides_batch", True)
        else "; training never masked the batch, so this input is new to the network"
    )
    return f" With the batch masked (the encoder sees only expression), it is {_range(random)}{found}{new}."


def beyond(random: dict[ProbeName, pd.Series], null: dict[ProbeName, pd.Series]) -> dict[ProbeName, bool]:
    """Return for each probe whether leakage exceeds its null by two standard errors and by ``LEAK_SEEN``."""
    return {
        probe: bool(row.value - null[probe].value > max(two_errors(row, null[probe]), LEAK_SEEN))
        for probe, row in random.items()
        if probe in null
    }


def _beyond(seen: dict[ProbeName, bool]) -> str:
    if not any(seen.values()):
        return "no more than its null"
    if all(seen.values()):
        return "above its null by all three probes"
    by, not_by = (" and ".join(NAMES[p] for p in seen if seen[p] is yes) for yes in (True, False))
    return f"above its null by {by}, but not by {not_by}"


def _most_different(shifts: pd.DataFrame, check: pd.DataFrame) -> str:
    """Return a sentence on the batch farthest from the average, with its genes if check and null allow it."""
    seen, distances = shifts[shifts.seen], batch_distances(shifts)
    if seen.empty or summarise(check).verdict == "none" or shifts.batch.nunique() < 2:
        return ""
    if distances.empty:
        return "No label is in all batches, so the batches are not ranked by their distance from the average."
    said, batch = _farthest(distances)
    if batch is None:
        return said
    own = seen[seen.batch == batch]
    words = agreement(check).set_axis(check.label)[(check.batch == batch).to_numpy()]
    judged = words[words != TOO_FEW]
    if judged.empty:
        return f"{said} Genes that shift most in {batch} (not checked on held-out cells): {_genes(own)}."
    trusted = own[own.label.isin(judged.index[judged != "none"])]
    if trusted.empty:
        return f"{said} No genes are named, because predictions for {batch} do not agree with held-out cells."
    source = source_of(own.observed_from)
    where = "" if source == HELD_OUT else f" in {source}, training cells included"
    return f"{said} Genes that shift most in {batch}, in the direction observed{where}: {_genes(trusted)}."


def _farthest(distances: pd.DataFrame) -> tuple[str, str | None]:
    """Return a sentence and the batch farthest from the average; ``None`` if permuted batches are as far."""
    apart = distances[distances.observed > distances.null + 2 * distances.null_sd]
    first = distances.iloc[0] if apart.empty else apart.iloc[0]
    # Two batches are twice as far from each other as from their average.
    times = 2 if len(distances) == 2 else 1
    far, cells = f"{times * first.observed:.2f} log1p CP10k", first.observed_from
    null = f"permuted batches: {times * first.null:.2f}"
    if apart.empty:
        return (
            "No batch differs from the average more than permuted batches do: the farthest, "
            f"{first.batch}, is {far} away in {cells} ({null}).",
            None,
        )
    second = distances[distances.batch != first.batch].iloc[0]
    if times == 2:
        return f"Batches {first.batch} and {second.batch} are {far} apart in {cells} ({null}).", first.batch
    if first.observed - second.observed <= 2 * np.hypot(first.null_sd, second.null_sd):
        return (
            f"Batches {first.batch} and {second.batch} are farthest from the average batch ({first.observed:.2f} and "
            f"{second.observed:.2f} log1p CP10k in {cells}; not distinguishable; {null}).",
            first.batch,
        )
    return (
        f"Batch {first.batch} is farthest from the average batch: {far} in {cells} ({null}; next: {second.batch}, "
        f"{second.observed:.2f}).",
        first.batch,
    )


def _genes(own: pd.DataFrame) -> str:
    """List the largest shifts whose interval excludes 0 and whose sign is the observed sign."""
    sure = own[((own.q05 > 0) | (own.q95 < 0)) & (np.sign(own.observed) == np.sign(own["shift"]))]
    order = sure["shift"].abs().sort_values(ascending=False, kind="stable").index
    top = shown_in(sure.loc[order]).drop_duplicates("gene").head(5)
    where = "" if set(own.label) == {ALL} else " in {label}"
    named = [
        f"{row.gene} ({row.shift:+.2f}{where.format(label=row.label)}; observed {row.observed:+.2f})"
        for row in top.itertuples()
    ]
    return ", ".join(named) or "none for sure"
