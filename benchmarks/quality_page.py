"""The page and the picture of quality.py: batch removal against label keeping, and every table."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quality_methods import ALL, GROUPS, METHODS, RANDOM, TRAINING
from quality_tables import SCORES, best_methods
from scmedley.pl._palette import BASE, MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REMOVED, KEPT = "batch removed: 1 − worst leak", "labels kept: mean of accuracy and NMI"
# Colours of the methods that are drawn, by name without ", all cells" or ", applied".
COLOURS = {
    **{"PCA": MISSING, "AE": BASE[6], "FE": BASE[0], "FE, paper": BASE[5], "Harmony": BASE[4]},
    **{"scVI": BASE[2], "scANVI": BASE[3], "Scanorama": BASE[1], "LIGER": BASE[7], "BBKNN": "#7a4b2a"},
}


def plotted(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a point for each set and method that is drawn: removed, kept, colour, filled.

    ``kept`` is the mean of kNN accuracy and NMI: accuracy alone is near 1 for all methods where types are
    clear, and looks at small neighbourhoods only; NMI asks whether types are the clusters of the whole map.
    """
    points = summary.assign(
        removed=1 - summary["leak"].clip(lower=0),
        kept=(summary["accuracy"] + summary["nmi"]) / 2,
        base=summary["method"].str.removesuffix(", all cells").str.removesuffix(", applied"),
        filled=summary["group"] == TRAINING,
    ).dropna(subset=["removed", "kept"])
    points = points[points["base"].isin(COLOURS) & (points["group"] != RANDOM)]
    return points.assign(colour=points["base"].map(COLOURS))


def panel(ax: Axes, points: pd.DataFrame, low: float) -> None:
    """Draw one point for each method; ``low`` is the lower end of the vertical axis."""
    from matplotlib.ticker import MultipleLocator

    for one in points.to_dict("records"):
        ours = one["base"] == "FE"
        face = one["colour"] if one["filled"] else "none"
        mark: dict[str, Any] = {"marker": "D" if ours else "o", "ms": 7 if ours else 6, "ls": ""}
        ax.plot(
            one["removed"],
            one["kept"],
            mfc=face,
            mec=one["colour"],
            mew=1.4,
            alpha=0.9,
            clip_on=False,
            **mark,
        )
    ax.set_xlim(-0.04, 1.04)
    ax.set_ylim(low, 1.03)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def draw(summary: pd.DataFrame, path: Path) -> None:
    """Write the picture of all sets: the means first, then a panel for each set."""
    from scmedley.io import replacing
    from scmedley.pl._figure import NotebookFigure, save
    from scmedley.report.figures import drawing

    points = plotted(summary)
    if points.empty:
        return
    panels = [(f"mean of {_sets(n)}", mean) for n, mean in [over_sets(points)]]
    panels += [(str(name), one) for name, one in points.groupby("set", sort=False)]
    columns = min(6, len(panels))
    rows = math.ceil(len(panels) / columns)
    with drawing():
        figure = NotebookFigure(figsize=(1.9 * columns + 0.4, 1.9 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, (title, one) in zip(axes, panels, strict=False):
            panel(ax, one, _low(points))
            ax.set_title(title, fontsize=8.5, fontweight="bold" if one is panels[0][1] else "normal")
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel(REMOVED, fontsize=9)
        figure.supylabel(KEPT, fontsize=9)
        handles = [_handle(one) for one in legend(points)]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(2 * columns, 6), fontsize=8, frameon=False
        )
        with replacing(path) as temporary:
            save(figure, temporary)


def _handle(one: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    marker = "D" if one["ours"] else "o"
    face = one["colour"] if one["filled"] else "none"
    return Line2D([], [], marker=marker, ls="", mfc=face, mec=one["colour"], label=one["name"])


def legend(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Return name, colour and mark of each method that is drawn, in the order of the tables."""
    by_name = points.drop_duplicates("method").set_index("method")
    return [
        {
            "name": name + (" (told labels)" if METHODS[name].told_labels else ""),
            **{"colour": by_name.loc[name, "colour"], "filled": bool(by_name.loc[name, "filled"])},
            "ours": by_name.loc[name, "base"] == "FE",
        }
        for name in METHODS
        if name in by_name.index
    ]


def over_sets(rows: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """Return the mean of each method over the sets that all methods have, and the number of these sets.

    A method without a number on more than half of the sets is left out, or few sets would be left.
    """
    sets = rows.groupby("method")["set"].nunique()
    rows = rows[rows["method"].isin(sets[2 * sets >= rows["set"].nunique()].index)]
    n_methods = rows.groupby("set")["method"].nunique()
    common = n_methods[n_methods == rows["method"].nunique()].index
    rows = rows[rows["set"].isin(common)]
    texts = [c for c in ("group", "base", "colour", "filled") if c in rows]
    numbers = rows.select_dtypes("float").columns
    grouped = rows.groupby("method", sort=False)
    return len(common), grouped[texts].first().join(grouped[list(numbers)].mean()).reset_index()


def write_page(summary: pd.DataFrame, bars: pd.DataFrame, about: dict[str, Any], path: Path) -> None:
    """Write the page: one file, without scripts or requests."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from scmedley.io import replacing
    from scmedley.report.figures import drawing, picture

    points = plotted(summary)
    low = _low(points)
    n_sets, mean = over_sets(points)
    with drawing():
        large = _named(mean, low)
        whole = picture(large, (4.6, 3.3), _words(mean), f"Mean of {_sets(n_sets)}")
        pictures = [
            picture(partial(panel, points=one, low=low), (1.9, 1.7), _words(one), str(name))
            for name, one in points.groupby("set", sort=False)
        ]
    style = (files("scmedley.report") / "style.css").read_text(encoding="utf-8") + STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    page = environment.get_template("quality.html.j2").render(
        style=Markup(style),
        style_hash=f"sha256-{digest}",
        about=about,
        whole=whole,
        pictures=pictures,
        legend=legend(points),
        means=_mean_tables(summary),
        tables=_set_tables(summary),
        claims=_claims(bars),
        scores=SCORES,
        removed=REMOVED,
        kept=KEPT,
        n_sets=summary["set"].nunique(),
        reasons=summary[summary["reason"] != ""].to_dict("records"),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


STYLE = """
.quality td,.quality th{white-space:nowrap}
.quality tbody th{white-space:normal;min-width:min(12rem,28vw)}
.scroll:has(.quality),.scroll:has(.claims){max-height:none}
.quality .best{font-weight:700;color:var(--good)}
.quality .spread{display:block;color:var(--soft);font-size:.75rem}
.quality .group th{background:var(--tint);text-align:left;position:static}
.quality .chance th,.quality .chance td{color:var(--soft)}
.claims td,.claims th{white-space:normal}
.scroll .claims th:first-child{max-width:min(26rem,45vw)}
.claims tbody th{min-width:min(20rem,42vw)}.claims tbody td{min-width:6.5rem}.claims td.text{min-width:14rem}
.pass{color:var(--good);font-weight:600}.fail{color:var(--bad);font-weight:600}
.wide{max-width:36rem}
.grid.small{grid-template-columns:repeat(auto-fill,minmax(min(9.5rem,100%),1fr));gap:.5rem}
.grid.small figure{padding:.3rem}
"""


def _named(points: pd.DataFrame, low: float) -> Callable[[Axes], None]:
    """Return a drawing of a panel with names: of the axes, and of each point at the right, in order of height."""

    def with_names(ax: Axes) -> None:
        panel(ax, points, low)
        ax.set_xlabel(REMOVED, fontsize=8.5)
        ax.set_ylabel(KEPT, fontsize=8.5)
        gap, height = (1.03 - low) / 13, math.inf
        for one in points.sort_values("kept", ascending=False).to_dict("records"):
            height = min(height - gap, one["kept"])
            place: tuple[float, float] = (one["removed"], one["kept"])
            line = {"arrowstyle": "-", "color": one["colour"], "lw": 0.6, "alpha": 0.7, "shrinkB": 4}
            ax.annotate(
                *(one["method"], place, (1.09, height)),
                va="center",
                fontsize=8,
                arrowprops=line,
                annotation_clip=False,
            )

    return with_names


def _sets(n: int) -> str:
    return f"{n} set" if n == 1 else f"{n} sets"


def _low(points: pd.DataFrame) -> float:
    return max(0.0, math.floor(20 * float(points["kept"].min()) - 0.5) / 20) if len(points) else 0.0


def _words(points: pd.DataFrame) -> str:
    """Return a picture in words, for readers who do not see it."""
    each = [f"{one['method']} {one['removed']:.2f}, {one['kept']:.2f}" for one in points.to_dict("records")]
    return "Batch removed and labels kept: " + "; ".join(each) + "."


def _score(value: float, digits: int) -> str:
    return "–" if value != value else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _mean_tables(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Arrange the means over sets, one table for each group."""
    found = []
    for group in GROUPS:
        rows = summary[(summary["group"] == group) & (summary["n"] > 0)]
        if group == ALL:  # the baseline beside
            rows = pd.concat([summary[(summary["method"] == "PCA") & (summary["n"] > 0)], rows])
        if rows.empty:
            continue
        n, mean = over_sets(rows)
        mean = mean.assign(set="", group=group).drop(columns=[f"{s}_sd" for s in SCORES])
        found.append(_table(f"{group[0].upper()}{group[1:]}: mean of {_sets(n)}", mean) | {"n": n})
    return found


def _set_tables(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Arrange the scores of each set."""
    done = summary[summary["n"] > 0]
    return [_table(str(name), rows) for name, rows in done.groupby("set", sort=False)]


def _table(title: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Arrange methods by group; each value with its spread and whether it is the best of its group."""
    best = best_methods(rows)
    shown = [s for s in SCORES if rows[s].notna().any()]
    groups = []
    for group, of_group in rows.groupby("group", sort=False):
        lines = []
        for row in of_group.to_dict("records"):
            method = METHODS[row["method"]]
            ranked = not (method.is_null or method.told_labels)
            cells = [
                {
                    **{"value": row[s], "sd": row.get(f"{s}_sd", float("nan")), "digits": SCORES[s].digits},
                    "best": ranked
                    and best.get((row["set"], str(group), s)) == round(row[s], SCORES[s].digits),
                }
                for s in shown
            ]
            note = "told labels" if method.told_labels else "null" if method.is_null else ""
            lines.append({"name": method.name, "note": note, "cells": cells})
        groups.append({"name": group, "lines": lines})
    return {"title": title, "columns": [SCORES[s] for s in shown], "groups": groups}


def _claims(bars: pd.DataFrame) -> list[dict[str, Any]]:
    """Arrange the claims: the verdict, and the sets on which each does not hold."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (comparison, bar), tested in bars.groupby(["comparison", "bar"], sort=False):
        whole = tested.iloc[-1]
        each = tested.iloc[:-1]
        short = [
            f"{one['set']} {_score(one['ours'], 3)} against {_score(one['theirs'], 3)}"
            for one in each[~each["passed"].astype(bool)].to_dict("records")
        ]
        line = {"bar": bar, "passed": bool(whole["passed"]), "short": "; ".join(short)}
        found.setdefault(str(comparison), []).append(
            line | {"k": int(whole["ours"]), "n": int(whole["theirs"])}
        )
    return [{"comparison": comparison, "lines": lines} for comparison, lines in found.items()]
