"""Figures of an exploration. Names from the data are not drawn; the page holds them as text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from scmedley.pl._palette import BASE, DISTINCT, MISSING
from scmedley.pp.dispersion import Dispersion
from scmedley.pp.exploration import Exploration
from scmedley.pp.normalisations import NAMES, Comparison
from scmedley.report.figures import Picture, picture
from scmedley.report.numbers import number

BLUE, ORANGE, GREEN, PINK = BASE[:4]
SIZE = (4.6, 3.3)
WIDE = (5.6, 4.0)
# From pale to strong blue on white and on near-black alike.
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#b9d9ee", "#56a5d8", "#0b62a8", "#6a3d9a", "#d4458b"]
)


def titles(found: Exploration) -> dict[str, str]:
    """Return what the page calls each kind of values."""
    known = found.values == "counts"
    return {
        "counts": "Counts",
        "prepared": "log1p of counts per 10,000" if known else "Log-normalised values",
    }


def values(found: Exploration) -> list[Picture]:
    """Draw the histograms of counts and of prepared values, whole and without the upper tail."""
    pictures = []
    for name, rows in found.histograms.groupby("values", sort=False):
        summary = found.summary[found.summary["values"] == name].iloc[0]
        end = float(summary["tail_from"])
        colour = BLUE if name == "counts" else GREEN
        what = titles(found)[str(name)]
        whole = f"{what}: {number(summary['zeros'] * 100, 1)} % zeros, not drawn; largest {number(summary['max'])}."
        draw = partial(_whole, rows=rows, colour=colour, is_counts=name == "counts", end=end)
        pictures.append(picture(draw, SIZE, whole, f"{what}, all values above 0"))
        below = rows[rows["below"] <= end * (1 + 1e-9)]
        alt = f"{what} up to {number(end)}: 99 % of the values above 0."
        draw = partial(_body, rows=below, colour=colour)
        pictures.append(picture(draw, SIZE, alt, f"{what}, without the upper tail (largest 1 %)"))
    return pictures


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() == "log":  # by default the labels of many ticks overlap
            is_short = high < 100 * max(low, 1e-300)
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=6))
            axis.set_minor_formatter(NullFormatter())
            if is_short:
                axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _whole(ax: Axes, rows: pd.DataFrame, colour: str, is_counts: bool, end: float) -> None:
    """Draw with a logarithmic number of values, so that single large values are seen."""
    if is_counts:  # bins of equal width on the logarithmic axis
        edges = np.unique(np.rint(np.geomspace(1, max(rows["below"].max(), 2), 60)))
        place = np.clip(np.searchsorted(edges, rows["from"].to_numpy(), side="right") - 1, 0, len(edges) - 2)
        heights = np.bincount(place, weights=rows["n"], minlength=len(edges) - 1)
        ax.set_xscale("log")
    else:
        edges = np.append(rows["from"].to_numpy(), rows["below"].iloc[-1])
        heights = rows["n"].to_numpy()
    ax.stairs(heights, edges, fill=True, color=colour, alpha=0.85)
    ax.axvline(end, color=MISSING, linestyle=":", lw=1.3)
    ax.annotate(
        "99 % below", (end, 0.97), xycoords=("data", "axes fraction"), fontsize=8, va="top",
        xytext=(4, 0), textcoords="offset points",
    )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    ax.set_xlabel("value", fontsize=9)
    ax.set_ylabel("number of values", fontsize=9)
    _plain(ax)


def _body(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    edges = np.append(rows["from"].to_numpy(), rows["below"].iloc[-1])
    heights = rows["n"].to_numpy(dtype=float)
    if len(heights) > 80:  # whole numbers stay whole
        step = int(np.ceil(len(heights) / 80))
        starts = np.arange(0, len(heights), step)
        heights, edges = np.add.reduceat(heights, starts), np.append(edges[starts], edges[-1])
    ax.stairs(heights / heights.sum() * 100, edges, fill=True, color=colour, alpha=0.85)
    ax.set_xlabel("value", fontsize=9)
    ax.set_ylabel("% of the values drawn", fontsize=9)
    _plain(ax)


def noise(found: Exploration) -> list[Picture]:
    """Draw variance and share of zeros of each gene against its mean, with Poisson's and the fitted line."""
    if "mean" not in found.genes:
        return []
    genes = found.genes[found.genes["mean"] > 0]
    fit = found.dispersion
    said = "" if fit is None else f" The line of the negative binomial has dispersion {number(fit.value, 3)}."
    pairs: list[tuple[Callable[[Axes], object], str, str]] = [
        (
            partial(_mean_variance, genes=genes, fit=fit),
            f"Variance against mean of {len(genes):,} genes, both logarithmic.{said}",
            "Mean and variance of each gene's counts",
        ),
        (
            partial(_zeros, genes=genes, fit=fit),
            f"Share of cells without the gene against the mean of {len(genes):,} genes.{said}",
            "Zeros of each gene",
        ),
    ]
    return [picture(draw, WIDE, alt, title) for draw, alt, title in pairs]


def _density(ax: Axes, x: np.ndarray, y: np.ndarray, **scales: str) -> None:
    ax.hexbin(x, y, gridsize=70, bins="log", mincnt=1, cmap=DENSITY, linewidths=0.1, **scales)  # type: ignore[arg-type]


def _mean_variance(ax: Axes, genes: pd.DataFrame, fit: Dispersion | None) -> None:
    varied = genes[genes["variance"] > 0]
    mean = genes["mean"].to_numpy()
    if len(varied):  # in cells that are all alike no gene varies
        _density(ax, varied["mean"].to_numpy(), varied["variance"].to_numpy(), xscale="log", yscale="log")
    ax.set_xscale("log")
    ax.set_yscale("log")
    line = np.geomspace(mean.min(), mean.max(), 200)
    ax.plot(line, line, color=MISSING, lw=1.8, linestyle="--", label="Poisson: variance = mean")
    if fit is not None:
        ax.plot(
            line, line + fit.value * line**2, color=ORANGE, lw=2.2,
            label=f"negative binomial, dispersion {number(fit.value, 2)}",
        )  # fmt: skip
        if fit.depth > 0:
            ax.plot(
                line, line + fit.depth * line**2, color=ORANGE, lw=1.4, linestyle=":",
                label=f"totals alone, {number(fit.depth, 2)}",
            )  # fmt: skip
    ax.set_xlabel("mean count", fontsize=9)
    ax.set_ylabel("variance", fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    _plain(ax)


def _zeros(ax: Axes, genes: pd.DataFrame, fit: Dispersion | None) -> None:
    mean = genes["mean"].to_numpy()
    _density(ax, mean, 1 - genes["detected"].to_numpy(), xscale="log")
    line = np.geomspace(mean.min(), mean.max(), 200)
    ax.plot(line, np.exp(-line), color=MISSING, lw=1.8, linestyle="--", label="Poisson")
    if fit is not None and fit.value > 0:
        expected = np.exp(-np.log1p(fit.value * line) / fit.value)
        ax.plot(line, expected, color=ORANGE, lw=2.2, label="negative binomial, same dispersion")
    ax.set_xlabel("mean count", fontsize=9)
    ax.set_ylabel("share of cells with 0", fontsize=9)
    ax.set_ylim(-0.03, 1.03)
    ax.legend(fontsize=8, frameon=False, loc="lower left")
    _plain(ax)


def cells(found: Exploration) -> list[Picture]:
    """Draw genes against counts of all cells, and the mitochondrial share against counts."""
    if "counts" not in found.cells:
        draw = partial(_genes_alone, genes=found.cells["genes"].to_numpy())
        alt = f"Histogram of the genes detected in each of {found.n_cells:,} cells."
        return [picture(draw, SIZE, alt, "Genes detected in each cell")]
    table = found.cells[found.cells["counts"] > 0]
    x = table["counts"].to_numpy()
    alt = f"Genes detected against counts of {len(table):,} cells."
    draw = partial(_pair, x=x, y=table["genes"].to_numpy(), label="genes detected", log=True)
    pictures = [picture(draw, SIZE, alt, "Counts and genes of each cell")]
    for name in ("mitochondrial", "ribosomal"):
        if table[name].notna().any():
            share = 100 * table[name].to_numpy()
            draw = partial(_pair, x=x, y=share, label=f"{name} share, %", log=False)
            alt = f"{name.capitalize()} share of the counts against counts of {len(table):,} cells."
            pictures.append(picture(draw, SIZE, alt, f"Counts and {name} share of each cell"))
    return pictures


def _pair(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, log: bool) -> None:
    scales = {"xscale": "log"} | ({"yscale": "log"} if log else {})
    _density(ax, x, np.maximum(y, 1) if log else y, **scales)
    ax.set_xlabel("counts", fontsize=9)
    ax.set_ylabel(label, fontsize=9)
    _plain(ax)


def _genes_alone(ax: Axes, genes: np.ndarray) -> None:
    ax.hist(genes, bins=60, color=BLUE, alpha=0.85)
    ax.set_xlabel("genes detected", fontsize=9)
    ax.set_ylabel("cells", fontsize=9)
    _plain(ax)


def normalisations(found: Comparison, levels: pd.DataFrame) -> list[Picture]:
    """Draw, for each normalisation, the variance of the genes against their mean, and the cells on two components."""
    pictures = []
    for name, title in NAMES.items():
        draw: Any = partial(_variance, genes=found.genes, name=name)
        alt = f"{title}: variance of {len(found.genes):,} genes after normalisation against their mean count."
        pictures.append(picture(draw, SIZE, alt, f"Variance after {title}"))
    for of, groups in sorted(found.groups.items(), reverse=True):
        for name, title in NAMES.items():
            draw = partial(_map, xy=found.maps[name], codes=_ranked(groups, levels[levels["role"] == of]))
            alt = f"{title}: first two principal components of {len(groups):,} cells, coloured by {of}."
            pictures.append(picture(draw, (4.2, 3.6), alt, f"{title}, coloured by {of}"))
    return pictures


def _ranked(groups: pd.Series[Any], levels: pd.DataFrame) -> np.ndarray:
    """Return the rank of each cell's level by its number of cells, which is its colour in the whole page."""
    ranks = pd.Index(levels["level"].astype(str)).get_indexer(pd.Index(groups.cat.categories.astype(str)))
    return np.append(ranks, -1)[groups.cat.codes.to_numpy()]


def _variance(ax: Axes, genes: pd.DataFrame, name: str) -> None:
    used = genes[(genes["mean"] > 0) & (genes[f"variance_{name}"] > 0)]
    ax.scatter(
        used["mean"],
        used[f"variance_{name}"],
        s=7,
        alpha=0.5,
        linewidths=0,
        color=GREEN if name == "log1p" else PINK,
    )
    ax.axhline(1, color=MISSING, lw=1.2, linestyle="--")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("mean count", fontsize=9)
    ax.set_ylabel("variance", fontsize=9)
    _plain(ax)


def _map(ax: Axes, xy: np.ndarray, codes: np.ndarray) -> None:
    shades = np.array([*DISTINCT, MISSING])[np.where(codes < 0, -1, codes % len(DISTINCT))]
    order = np.random.default_rng(0).permutation(len(codes))
    low, high = np.percentile(xy, [0.5, 99.5], axis=0)
    room = 0.08 * (high - low)
    ax.scatter(xy[order, 0], xy[order, 1], c=list(shades[order]), s=6, linewidths=0, alpha=0.8)
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("component 1", fontsize=9)
    ax.set_ylabel("component 2", fontsize=9)
    _plain(ax)
