"""Sentences about the reliability of predictions, for the report, its explorer and ``scmedley project``.

The keys are the words of :mod:`scmedley.interpret.check`.
"""

from scmedley.interpret.check import TOO_FEW

UNUSABLE = "Do not use: in this run, predictions did not agree with held-out cells."
DISAGREED = "predictions did not agree with held-out cells: draw no conclusion"
UNCHECKED = "the prediction was not checked on held-out cells: treat it as a guess"
AGREED = {
    "good": "predictions agreed well with held-out cells: use them to rank genes",
    "some": "predictions agreed partly with held-out cells: trust only the direction of strong changes",
    "none": DISAGREED,
    TOO_FEW: "too few held-out cells, or too small a shift, to check the prediction: treat it as a guess",
}
COMPARED = {
    "better": " Better than the plain difference of training means.",
    "tie": " As good as the plain difference of training means.",
    "worse": " Worse than the plain difference of training means.",
}
# Advice for the whole run; it follows the number of pairs that agreed.
ADVICE = {
    "good": "Use the pairs that agree well to rank genes; confirm single genes with other data.",
    "some": "Trust the direction of strong shifts, but not their size and not single genes.",
    "none": "Do not draw conclusions from the counterfactuals of this run.",
    TOO_FEW: "These pairs are too few to judge the others: treat the counterfactuals of this run as guesses.",
}
# Cautions of ``scmedley project`` for a label in a target batch; a pair that agrees has none.
UNSEEN, WORSE = "never seen", "worse"
CAUTIONS = {
    UNSEEN: "never seen together, so this is an extrapolation without support in these data",
    "none": DISAGREED,
    WORSE: "the plain difference of training means predicts held-out cells better",
    TOO_FEW: "the prediction was not checked, or too few cells were held out to check it: treat it as a guess",
}


def judged(agreement: str, against: str) -> str:
    """Return the agreement of one pair and its comparison with the difference of training means, in words."""
    return f"{AGREED[agreement]}.{'' if agreement == TOO_FEW else COMPARED.get(against, '')}"
