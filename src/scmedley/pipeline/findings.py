"""What a run found, in plain words, each number beside its null or baseline."""

from typing import Any

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.evaluate.counterfactual import ALL, TOO_FEW, agreement, summarise
from scmedley.evaluate.shifts import HELD_OUT, batch_distances, source_of

NULL_NAME = "random, permuted batches"  # the network that is the null of the random effects
LEAK_SEEN = 0.05  # a leak that exceeds its null by less, or by less than its error, is called nothing to find


def findings(
    scores: pd.DataFrame, shifts: pd.DataFrame, check: pd.DataFrame, record: dict[str, Any]
) -> list[str]:
    """Give the findings as sentences, the most important first."""
    has_labels = bool((scores.of == "label").any())
    said = [
        _fixed(scores),
        _labels(scores),
        _random(scores, has_labels, record.get("networks", {})),
        _most_different(shifts, check),
    ]
    said.insert(0 if summarise(check).verdict == "none" else 3, _trust(check))
    if not has_labels:
        said.append(
            "Without labels, a leak includes differences in composition: batches with other cell types."
        )
    if record.get("verdict"):  # what cannot be compared comes before what was found by comparing
        said.insert(len(said) if record.get("comparable", True) else 0, record["verdict"])
    return [sentence for sentence in said if sentence]


def _row(scores: pd.DataFrame, embedding: str, score: str, of: str) -> pd.Series | None:
    rows = scores[(scores.embedding == embedding) & (scores.score == score) & (scores.of == of)]
    return None if rows.empty or not np.isfinite(rows.value.iloc[0]) else rows.iloc[0]


def _fixed(scores: pd.DataFrame) -> str:
    fixed, pca = (_row(scores, key, "kNN leak", "batch") for key in (keys.FIXED, keys.PCA))
    if fixed is None or pca is None:
        return (
            "Whether the fixed-effects embedding gives away the batch could not be measured: no label has "
            "enough cells, held out and not, in two batches."
        )
    gap, error = fixed.value - pca.value, _error(fixed, pca)
    left = ""
    if fixed.value > max(fixed.null + 2 * float(fixed.se), LEAK_SEEN):
        left = " Something of the batch is left in it."
    much = "about as much as" if abs(gap) <= error else "less than" if gap < 0 else "more than"
    return (
        f"Fixed effects: this embedding gives away a held-out cell's batch {much} the principal components do "
        f"(leak {fixed.value:z.2f} against {pca.value:z.2f}, a difference known to ±{error:.2f} with so many "
        f"held-out cells, and less well with one fit alone; 0 is chance, 1 is all).{left}"
    )


def _error(one: pd.Series, other: pd.Series) -> float:
    """Give two standard errors of the difference of two leaks.

    As if they were measured on different cells: the same cells make it smaller, so that this is on the safe side.
    """
    return 2 * float(np.hypot(one.se, other.se))


def _labels(scores: pd.DataFrame) -> str:
    fixed, pca = (_row(scores, key, "kNN accuracy", "label") for key in (keys.FIXED, keys.PCA))
    if fixed is None or pca is None or fixed.null > 0.999:  # one label only
        return ""
    return (
        f"Cell types: {fixed.value:.1%} of held-out cells have neighbours of their own label in the "
        f"fixed-effects embedding ({pca.value:.1%} in the principal components, {fixed.null:.1%} by chance)."
    )


def _random(scores: pd.DataFrame, has_labels: bool, networks: dict[str, Any]) -> str:
    random, null = (_row(scores, key, "kNN leak", "batch") for key in (keys.RANDOM, keys.NULL))
    if random is None:
        return ""
    if null is None:
        return (
            f"Random effects: this embedding tells batches apart with a leak of {random.value:z.2f}. No network was "
            "trained on permuted batches, so how much of that is the label being read back is not known."
        )
    margin = random.value - null.value
    within = " within cell types" if has_labels else ""
    cut = [
        f"of {what} after epoch {networks[name]['epochs']}"
        for name, what in (("random", "this network"), (NULL_NAME, "the null"))
        if networks.get(name, {}).get("stopped") == "interrupted"
    ]
    if cut:
        return (
            f"Random effects: this embedding has a leak of {random.value:z.2f}, and its null, the same network for "
            f"batch labels permuted{within}, {null.value:z.2f}; but the comparison is void, as training was "
            f"interrupted: {', '.join(cut)}. Run again with --overwrite to compare."
        )
    least = max(_error(random, null), LEAK_SEEN)
    verdict = "tells batches apart beyond its null" if margin > least else "finds no more than its null does"
    return (
        f"Random effects: this embedding {verdict} (leak {random.value:z.2f}; {null.value:z.2f} for the same "
        f"network, fitted once, to batch labels permuted{within})."
    )


def _most_different(shifts: pd.DataFrame, check: pd.DataFrame) -> str:
    """Name the batch farthest from the average and its genes, unless check or null speak against them."""
    seen, distances = shifts[shifts.seen], batch_distances(shifts)
    if seen.empty or summarise(check).verdict == "none" or shifts.batch.nunique() < 2:
        return ""
    if distances.empty:
        return "No cell type is in all batches, so it is not said which batch differs most from the others."
    said, stands_out = _farthest(distances, "" if set(seen.label) == {ALL} else " within cell types")
    if not stands_out:
        return said
    batch = distances.batch.iloc[0]
    own = seen[seen.batch == batch]
    words = agreement(check).set_axis(check.label)[(check.batch == batch).to_numpy()]
    judged = words[words != TOO_FEW]
    if judged.empty:
        trusted = own
    else:
        trusted = own[own.label.isin(judged.index[judged != "none"])]
    named = "No gene is named: no label that was judged agrees"
    if not trusted.empty:
        named = f"Genes that shift most there, in the direction observed: {_genes(trusted)}"
    return (
        f"{said} {named}.{_included(own)} Agreement with held-out cells in {batch}: "
        f"{_judged(judged, own.label.nunique())}."
    )


def _included(own: pd.DataFrame) -> str:
    """Warn where what is called observed is not of held-out cells alone."""
    source = source_of(own.observed_from)
    return "" if source == HELD_OUT else f" Observed means are of {source}: training cells are included."


def _farthest(distances: pd.DataFrame, within: str) -> tuple[str, bool]:
    """Say which batch lies farthest, and whether the cells themselves lie farther apart than permuted ones."""
    first, second = distances.iloc[0], distances.iloc[1]
    times = (
        2 if len(distances) == 2 else 1
    )  # two batches lie twice as far from each other as from their average
    beside = (
        f"root mean square over genes; observed in {first.observed_from} {times * first.observed:.2f}, and "
        f"{times * first.null:.2f} for batches permuted{within}"
    )
    if first.observed <= first.null + 2 * first.null_sd:
        far = f"{first.batch} lies farthest from the average batch, but no farther than by chance"
        return f"No batch is seen to differ: {far} ({beside}).", False
    interval = f"{times * first.distance:.2f} [{times * first.q05:.2f}, {times * first.q95:.2f}] log1p CP10k"
    if times == 2:
        return f"Batches {first.batch} and {second.batch} lie {interval} apart ({beside}).", True
    said = (
        f"Batch {first.batch} lies farthest from the average batch, by {interval}, before {second.batch} with"
    )
    unsure = ", which this fit does not tell apart" if second.q95 >= first.q05 else ""
    return f"{said} {second.distance:.2f}{unsure} ({beside}).", True


def _judged(words: "pd.Series[str]", n_labels: int) -> str:
    """Say how many of the labels of a batch were judged, and how."""
    if words.empty:
        return "no label could be checked" if n_labels > 1 else "it could not be checked"
    if n_labels == 1:
        return str(words.iloc[0])
    n = words.value_counts()
    said = ", ".join(f"{n[word]} {word}" for word in ("good", "some", "none") if word in n)
    said = said.replace(" ", f" of {len(words)} judged label{'s' * (len(words) > 1)} ", 1)
    few = n_labels - len(words)
    return said + (f"; {few} could not be judged" if few else "")


def _genes(own: pd.DataFrame) -> str:
    """List the largest shifts whose interval excludes 0 and whose sign is the observed one."""
    sure = own[((own.q05 > 0) | (own.q95 < 0)) & (np.sign(own.observed) == np.sign(own["shift"]))]
    order = sure["shift"].abs().sort_values(ascending=False, kind="stable").index
    top = sure.loc[order].drop_duplicates("gene").head(5)
    where = "" if set(own.label) == {ALL} else " in {label}"
    named = [
        f"{row.gene} ({row.shift:+.2f}{where.format(label=row.label)}; observed {row.observed:+.2f})"
        for row in top.itertuples()
    ]
    return ", ".join(named) or "none for sure"


def _trust(check: pd.DataFrame) -> str:
    found = summarise(check)
    if not found.n_judged:
        return (
            "Counterfactuals could not be checked: no label has a shift between batches that stands out from the "
            "noise of its held-out cells (they are few, or the batches hardly differ). Take gene shifts as guesses."
        )
    pairs = f"{found.n_judged} seen pairs of label and batch"
    if found.verdict == TOO_FEW:
        opening = (
            "Counterfactuals could not be checked well, so take gene shifts as guesses. Only "
            f"{found.n_judged} of {len(check)} pairs of label and batch have cells and shift enough to judge by: "
            f"{found.tally['good']} good, {found.tally['some']} some"
        )
    else:
        not_to_use = "Do not use the counterfactuals and gene shifts of this run"
        verdict = not_to_use if found.verdict == "none" else "Counterfactuals"
        opening = f"{verdict}: {found.tally['good']} of {pairs} good, {found.tally['some']} some"
    shared = ""
    if found.n_shared:
        shared = f" In {found.n_shared} the prediction for another batch does nearly as well."
    size = ""
    if found.verdict in ("good", "some"):
        size = f" The slope of observed on predicted is {found.median['slope']:z.2f} (1: the right size)."
    return f"{opening}{_against(found.against)}.{shared} {_bounds(found.median)}{size}"


def _against(against: dict[str, int]) -> str:
    """Return how often the model is better, ties or is worse than the baseline."""
    if not sum(against.values()):
        return ""
    return (
        f"; better than the plain difference of training means in {against['better']}, tie in {against['tie']}, "
        f"worse in {against['worse']}"
    )


def _bounds(median: dict[str, float | None]) -> str:
    """Return what predicted and observed shifts correlate with, beside baseline, ceiling and the best wrong batch."""
    beside = [
        f"{median[name]:z.2f} for {what}"
        for name, what in (
            ("additive_pearson", "the plain difference"),
            ("ceiling_pearson", "a perfect prediction, given how few the cells are"),
            ("best_wrong_pearson", "the best of the wrong batches"),
        )
        if median[name] is not None
    ]
    said = (
        f"Predicted shifts correlate with those of held-out cells with {median['pearson']:z.2f} (median; "
        f"{'; '.join(beside)})."
    )
    r2, additive_r2 = median["r2_delta"], median["additive_r2_delta"]
    if r2 is not None and additive_r2 is not None:
        said += f" R² of the shift is {r2:z.2f}, and {additive_r2:z.2f} for the plain difference."
    return said
