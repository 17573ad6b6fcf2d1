"""What a run found, in plain words, each number beside its null or baseline."""

from typing import Any

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.data.gene_names import shown_in
from scmedley.evaluate.probes import PROBES, ProbeName
from scmedley.interpret.check import ALL, TOO_FEW, agreement, summarise
from scmedley.interpret.shifts import HELD_OUT, batch_distances, source_of

NULL_NAME = "random, permuted batches"  # the network that is the null of the random effects
NAMES: dict[ProbeName, str] = {"kNN": "kNN", "logistic": "logistic regression", "network": "network"}
LEAK_SEEN = 0.05  # a leak that exceeds its null by less, or by less than its error, is called nothing to find


def findings(
    scores: pd.DataFrame, shifts: pd.DataFrame, check: pd.DataFrame, record: dict[str, Any]
) -> list[str]:
    """Return the findings as sentences, the most important first."""
    has_labels = bool((scores.of == "label").any())
    said = [
        _fixed(scores),
        _labels(scores),
        _random(scores, has_labels, record),
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


def _leaks(scores: pd.DataFrame, embedding: str) -> dict[ProbeName, pd.Series]:
    """Return the batch leaks of an embedding, by probe."""
    rows = {probe: _row(scores, embedding, f"{probe} leak", "batch") for probe in PROBES}
    return {probe: row for probe, row in rows.items() if row is not None}


def _worst(leaks: dict[ProbeName, pd.Series]) -> ProbeName:
    """Return the probe that reads most."""
    return max(leaks, key=lambda probe: float(leaks[probe].value))


def _listed(leaks: dict[ProbeName, pd.Series], named: bool = True) -> str:
    return ", ".join(
        f"{NAMES[probe]} {row.value:z.2f}" if named else f"{row.value:z.2f}" for probe, row in leaks.items()
    )


def _fixed(scores: pd.DataFrame) -> str:
    """Compare the worst leak of the fixed effects with the worst of the principal components."""
    fixed, pca = _leaks(scores, keys.FIXED), _leaks(scores, keys.PCA)
    if not (fixed and pca):
        return (
            "Whether the fixed-effects embedding gives away the batch could not be measured: no label has "
            "enough cells, held out and not, in two batches."
        )
    by, pca_by = _worst(fixed), _worst(pca)
    worst, pca_worst = fixed[by], pca[pca_by]
    gap, error = worst.value - pca_worst.value, _error(worst, pca_worst)
    much = "about as much as" if abs(gap) <= error else "less than" if gap < 0 else "more than"
    return (
        f"Fixed effects: this embedding gives away a held-out cell's batch {much} the principal components do. "
        f"By the worst of three probes the leak is {worst.value:z.2f} ({NAMES[by]}) against {pca_worst.value:z.2f} "
        f"({NAMES[pca_by]}), where 0 is chance and 1 is all. All three: {_listed(fixed)}; principal components "
        f"{_listed(pca, named=False)}. The difference is known to ±{error:.2f} with so many held-out cells, and less "
        f"well with one fit alone. {_left(worst)}"
    )


def _left(worst: pd.Series) -> str:
    """Return in words whether the probe that reads most reads more than chance can explain."""
    by_chance = 2 * float(worst.null_sd)
    if worst.value > max(by_chance, LEAK_SEEN):
        return "Something of the batch is left in it."
    if by_chance > LEAK_SEEN:
        return f"With so few held-out cells chance alone reaches {by_chance:.2f}: that nothing is left is not shown."
    return "No probe finds more of the batch in it than chance gives."


def _error(one: pd.Series, other: pd.Series) -> float:
    """Return two standard errors of the difference of two leaks.

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


def _random(scores: pd.DataFrame, has_labels: bool, about: dict[str, Any]) -> str:
    """Compare the leaks of the random effects with those of the null, told the batch and not told it."""
    random, null = _leaks(scores, keys.RANDOM), _leaks(scores, keys.NULL)
    if not random:
        return ""
    if not null:
        return (
            f"Random effects: this embedding tells batches apart with a leak of {_listed(random)}. No network was "
            "trained on permuted batches, so how much of that is the label being read back is not known."
            f"{_masked(scores, about.get('hides_batch', True))}"
        )
    within = " within cell types" if has_labels else ""
    networks = about.get("networks", {})
    cut = [
        f"of {what} after epoch {networks[name]['epochs']}"
        for name, what in (("random", "this network"), (NULL_NAME, "the null"))
        if networks.get(name, {}).get("stopped") == "interrupted"
    ]
    if cut:
        return (
            f"Random effects: this embedding has a leak of {_listed(random)}, and its null, the same network for "
            f"batch labels permuted{within}, {_listed(null, named=False)}; but the comparison is void, as training was "
            f"interrupted: {', '.join(cut)}. Run again with --overwrite to compare."
        )
    return (
        f"Random effects: this embedding {_beyond(random, null)} (leak by {_listed(random)}; "
        f"{_listed(null, named=False)} for the same network, fitted once, to batch labels permuted{within})."
        f"{_masked(scores, about.get('hides_batch', True))}"
    )


def _masked(scores: pd.DataFrame, hides_batch: bool) -> str:
    """Return in words what is left of that where the encoder is not told the batch."""
    random, null = _leaks(scores, keys.RANDOM_MASKED), _leaks(scores, keys.NULL_MASKED)
    if not random:
        return ""
    unlearnt = "" if hides_batch else "; in training it was always told, so that this is new to it"
    leak = _listed(random, named=False)
    if null:
        found = f"it {_beyond(random, null)} ({leak}; null {_listed(null, named=False)}{unlearnt})"
    else:
        found = f"that leak is {leak}{unlearnt}"
    return f" With the batch masked, so that the encoder sees expression alone, {found}."


def _beyond(random: dict[ProbeName, pd.Series], null: dict[ProbeName, pd.Series]) -> str:
    """Return in words by which probes a leak exceeds its null: by all three, or it is told which do not see it."""
    seen = {
        probe: row.value - null[probe].value > max(_error(row, null[probe]), LEAK_SEEN)
        for probe, row in random.items()
        if probe in null
    }
    if not any(seen.values()):
        return "finds no more than its null does"
    if all(seen.values()):
        return "tells batches apart beyond its null by all three probes"
    by, not_by = (" and ".join(NAMES[p] for p in seen if bool(seen[p]) is yes) for yes in (True, False))
    return f"tells batches apart beyond its null by {by}, but not by {not_by}"


def _most_different(shifts: pd.DataFrame, check: pd.DataFrame) -> str:
    """Name the batch farthest from the average and its genes, unless check or null speak against them."""
    seen, distances = shifts[shifts.seen], batch_distances(shifts)
    if seen.empty or summarise(check).verdict == "none" or shifts.batch.nunique() < 2:
        return ""
    if distances.empty:
        return "No cell type is in all batches, so it is not said which batch differs most from the others."
    said, batch = _farthest(distances, "" if set(seen.label) == {ALL} else " within cell types")
    if batch is None:
        return said
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


def _farthest(distances: pd.DataFrame, within: str) -> tuple[str, str | None]:
    """Return which batch lies farthest in its own cells, in words and by name; ``None``: none beyond permuted ones."""
    apart = distances[distances.observed > distances.null + 2 * distances.null_sd]
    first = distances.iloc[0] if apart.empty else apart.iloc[0]
    # Two batches lie twice as far from each other as from their average.
    times = 2 if len(distances) == 2 else 1
    far = (
        f"{times * first.observed:.2f} log1p CP10k in {first.observed_from} (root mean square over genes; "
        f"{times * first.null:.2f} for batches permuted{within}; {times * first.distance:.2f} by the model)"
    )
    if apart.empty:
        said = f"{first.batch} lies farthest from the average batch, but no farther than by chance"
        return f"No batch is seen to differ: {said}: {far}.", None
    second = distances[distances.batch != first.batch].iloc[0]
    if times == 2:
        return f"Batches {first.batch} and {second.batch} lie {far} apart.", first.batch
    noise = np.hypot(first.null_sd, second.null_sd)
    unsure = ", which these cells do not tell apart" if first.observed - second.observed <= 2 * noise else ""
    said = f"Batch {first.batch} lies farthest from the average batch, by {far}"
    return f"{said}, before {second.batch} with {second.observed:.2f}{unsure}.", first.batch


def _judged(words: "pd.Series[str]", n_labels: int) -> str:
    """Return in words how many of the labels of a batch were judged, and how."""
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
    top = shown_in(sure.loc[order]).drop_duplicates("gene").head(5)
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
