"""What each term of a loss adds to the total, from a history and the settings of its networks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scmedley.models.settings import Settings
from scmedley.nn.balance import ROW

WEIGHTS = {
    "reconstruction": "mse_weight",
    "label": "label_weight",
    "batch left": "adversary_weight",
    "batch": "batch_weight",
}


def contributions(history: pd.DataFrame, settings: Mapping[str, Settings], by: str) -> pd.DataFrame:
    """Add a column ``weighted``: what each term adds to the total of the network's last player.

    Its mean times its weight; what the other terms leave of the total is the KL's. Where automatic weights change
    within an epoch, the product of means is near to, but not quite, the mean of products, and the KL takes
    the difference. Not a number for what adds nothing: the adversary's own loss, and automatic weights, which
    stand in the history as terms.

    Parameters
    ----------
    history
        Tidy: term, value and columns that say whose and when, ``by`` among them.
    settings
        Of each network that ``history[by]`` names.
    by
        Column of the networks.
    """
    place = [column for column in history if column not in ("term", "value")]
    given = [
        1.0 if term == "total" else getattr(settings[name], WEIGHTS.get(term, ""), np.nan)
        for name, term in zip(history[by], history["term"], strict=True)
    ]
    is_weight = history["term"].str.startswith(ROW)
    learnt = history[is_weight].assign(term=history["term"].str.removeprefix(ROW))
    learnt = learnt[[*place, "term", "value"]].rename(columns={"value": "learnt"})
    history = history.reset_index(drop=True).merge(learnt, how="left", on=[*place, "term"])
    history["weighted"] = history["value"] * history.pop("learnt").fillna(pd.Series(given))
    terms = history[history["term"].isin(WEIGHTS)].groupby(place)["weighted"].sum()
    total = history[history["term"] == "total"].set_index(place)["value"]
    rest = (total - terms).rename("rest").reset_index()
    history = history.merge(rest, how="left", on=place)
    is_kl = history["term"] == "kl"
    history.loc[is_kl, "weighted"] = history.loc[is_kl, "rest"]
    return history.drop(columns="rest")
