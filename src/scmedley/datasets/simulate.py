"""Counts of donors in studies under two conditions, drawn from a model whose effects are known.

The rate of gene g in a cell of label k and donor d, who belongs to study s, is

    log rate = log depth + base_g + label_kg + study_sg + donor_dg + donor_label_dkg
               + age_g * (standardised age of d) + treated * (condition_kg + donor_condition_dg)

and its count is negative binomial with the dispersion of the gene. How far these terms spread was measured on public
sets: donors of one technology, and 10x chemistries for studies. A model of all effects is exact in these logarithms;
values normalised to a cell's total differ by a small amount that is common to all its genes.

Shapes: N cells, G genes, D donors, S studies, K labels.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from scmedley.data.design import as_categories
from scmedley.data.matrix import counted, find_values
from scmedley.errors import ScmedleyError, check_seed

Condition = Literal["crossed", "between", "confounded"]
LABEL, CONTROL, TREATED = "cell_type", "ctrl", "stim"
UNS = "simulated"
CELLS_OF_DONOR = (20, 500)  # uniform on the logarithmic scale
CELLS_SD, DONORS_SD = 0.55, 0.35  # of log depth: between cells of a donor, and between donors
CONCENTRATION = 8.0  # of the Dirichlet distribution of a donor's shares of labels
# Median and 90 % quantile over genes of the standard deviation of effects, and of the dispersion.
LABELS, STUDIES, DONORS, DISPERSION = (0.6, 1.5), (0.3, 0.6), (0.18, 0.4), (0.2, 1.5)
AGE = (50.0, 15.0)  # mean and standard deviation over donors, years
Z_OF_90 = 1.2816  # 90 % quantile of the standard normal distribution
BLOCK = 2_000_000  # values drawn at once


def simulate(
    n_cells: int | None = None,
    n_genes: int = 500,
    *,
    n_donors: int = 20,
    n_studies: int = 2,
    n_labels: int = 3,
    condition: Condition | None = "crossed",
    condition_share: float = 0.2,
    condition_size: float = 0.5,
    per_label: bool = False,
    donor_by_condition: float = 0.5,
    donor_by_label: float = 0.0,
    donor_size: float = 1.0,
    study_size: float = 1.0,
    age_size: float = 0.0,
    missing: float = 0.0,
    shift: float = 0.0,
    depth: float = 2000.0,
    like: AnnData | None = None,
    seed: int = 0,
) -> AnnData:
    """Draw counts of cells of donors in studies, with known effects of every term.

    Parameters
    ----------
    n_cells
        Number of cells; by default the sum of the donors' 20 to 500. If given, their numbers are scaled to it.
    n_genes, n_donors, n_studies, n_labels
        Sizes. Donors are dealt to studies in turn.
    condition
        ``"crossed"``: each donor has cells of both conditions. ``"between"``: each donor has one, and each study
        both. ``"confounded"``: each study has one. None: no condition.
    condition_share, condition_size
        Share of genes with an effect of the condition, and its mean absolute value (log; 0 for no effect).
    per_label
        Whether each label has its own effects of the condition, on its own genes.
    donor_by_condition
        Standard deviation of a donor's own response to the condition, in units of that of donor effects.
    donor_by_label
        Standard deviation of effects of pairs of donor and label; real sets have about 0.15.
    donor_size, study_size
        Factors of the donor and study effects; 0 for none.
    age_size
        Standard deviation over genes of the effect of one standard deviation of age.
    missing
        Share of pairs of donor and label without cells. Each donor keeps its most frequent label.
    shift
        Log odds of the first label in treated cells relative to control cells: a change of composition.
    depth
        Median number of counts of a cell.
    like
        Cells with counts. Mean shares of its genes, drawn with replacement, replace the parametric ones.
    seed
        Random seed.

    Returns
    -------
    AnnData
        ``X``: counts (CSR, float32). ``obs``: ``donor``, ``study``, ``cell_type``, ``age``, and ``condition`` ("ctrl",
        "stim") if there is one. The true effects are in natural logarithms, 0 is the population mean. ``varm``:
        ``label``, ``study``, ``donor`` (a column for each level), ``condition`` (stim minus ctrl; a column for each
        label) and ``donor_condition`` (a donor's response minus that of all). ``var``: ``base``, ``dispersion``,
        ``age``. ``uns["simulated"]``: ``donor_label`` (D x K x G) if there are such effects, and the arguments.

    Raises
    ------
    ScmedleyError
        An argument is out of range, or ``like`` has no counts.
    """
    options = {name: value for name, value in locals().items() if name != "like" and value is not None}
    _check(options)
    rng = np.random.default_rng(seed)
    truth = AnnData(
        var=pd.DataFrame(
            {"base": _base(n_genes, like, rng), "dispersion": _spread(DISPERSION, n_genes, rng)},
            index=[f"g{i}" for i in range(n_genes)],
        ),
        uns={UNS: options},
    )
    donors = [f"d{i:02d}" for i in range(n_donors)]
    labels = [f"type{k}" for k in range(n_labels)]
    spread_G = donor_size * _spread(DONORS, n_genes, rng)
    effects = {
        "label": _effects(labels, _spread(LABELS, n_genes, rng), rng),
        "study": _effects(
            [f"s{i}" for i in range(n_studies)], study_size * _spread(STUDIES, n_genes, rng), rng
        ),
        "donor": _effects(donors, spread_G, rng),
    }
    if condition is not None:
        effects["condition"] = _responses(labels, condition_share, condition_size, per_label, n_genes, rng)
        effects["donor_condition"] = _effects(donors, donor_by_condition * spread_G, rng)
    for name, table in effects.items():
        truth.varm[name] = table.set_axis(truth.var_names)
    truth.var["age"] = rng.normal(0, 1, n_genes) * age_size
    if donor_by_label:
        truth.uns[UNS]["donor_label"] = rng.normal(0, donor_by_label, (n_donors, n_labels, n_genes))
    obs, log_depth_N = _cells(options, donors, labels, rng)
    few = obs.iloc[np.unique(np.linspace(0, len(obs) - 1, 500).astype(int))]
    truth.var["base"] -= np.log(np.median(np.exp(true_log_rates(truth, few)).sum(1)))  # of a total of 1
    adata = AnnData(_counts(truth, obs, log_depth_N, rng), obs=obs, var=truth.var, varm=dict(truth.varm))
    adata.uns[UNS] = truth.uns[UNS]
    return adata


def true_log_rates(adata: AnnData, obs: pd.DataFrame | None = None) -> NDArray[np.float64]:
    """Return the true log rate of every gene per unit of depth, in cells of :func:`simulate` or as if, N x G.

    Parameters
    ----------
    adata
        Result of :func:`simulate`, with its effects; other cells may have been selected.
    obs
        Columns as in ``adata.obs``, with other values for counterfactuals; default: ``adata.obs``. A column that is
        left out, or a value that is missing or unknown, has no effect: the population mean.
    """
    obs = adata.obs if obs is None else obs
    code = {name: _codes(adata, obs, name) for name in ("label", "study", "donor")}
    log_NG = np.tile(adata.var["base"].to_numpy(np.float64), (len(obs), 1))
    for name, code_N in code.items():
        log_NG += _rows(adata.varm[name], code_N)
    if "condition" in adata.varm and "condition" in obs:
        treated_N1 = (np.asarray(obs["condition"].astype(str)) == TREATED)[:, None]
        known_KG = adata.varm["condition"].to_numpy().T
        response_NG = np.where(code["label"][:, None] < 0, known_KG.mean(0), known_KG[code["label"]])
        log_NG += treated_N1 * (response_NG + _rows(adata.varm["donor_condition"], code["donor"]))
    if "age" in obs:
        centre, spread = AGE
        age_N = (obs["age"].to_numpy(np.float64, na_value=np.nan) - centre) / spread
        log_NG += np.nan_to_num(age_N)[:, None] * adata.var["age"].to_numpy()
    if (both_DKG := adata.uns[UNS].get("donor_label")) is not None:
        known_N1 = ((code["donor"] >= 0) & (code["label"] >= 0))[:, None]
        log_NG += known_N1 * np.asarray(both_DKG)[code["donor"], code["label"]]
    return log_NG


def _check(options: dict[str, Any]) -> None:
    """Raise for arguments out of range."""
    check_seed(options["seed"])
    for name in ("n_cells", "n_genes", "n_donors", "n_studies", "n_labels"):
        if options.get(name, 1) < 1:
            raise ScmedleyError(f"{name} is {options[name]}. Give 1 or more.")
    if options["n_donors"] < options["n_studies"]:
        raise ScmedleyError(
            f"{options['n_studies']} studies need as many donors or more, not {options['n_donors']}."
        )
    if options.get("n_cells", options["n_donors"]) < options["n_donors"]:
        raise ScmedleyError(f"{options['n_donors']} donors need as many cells, not {options['n_cells']}.")
    kinds = ("crossed", "between", "confounded")
    if options.get("condition", "crossed") not in kinds:
        raise ScmedleyError(f"condition is {options['condition']!r}. Choose one of {kinds}, or None.")
    if options.get("condition") == "confounded" and options["n_studies"] < 2:
        raise ScmedleyError("A condition that is confounded with the study needs 2 studies or more.")
    for name in ("condition_share", "missing"):
        if not 0 <= options[name] <= 1:
            raise ScmedleyError(f"{name} is {options[name]}. Give a share between 0 and 1.")
    sizes = ("condition_size", "donor_by_condition", "donor_by_label", "donor_size", "study_size", "age_size")
    for name in sizes:
        if options[name] < 0:
            raise ScmedleyError(f"{name} is {options[name]}. Give 0 or more: effects have both signs.")
    if not options["depth"] > 0:
        raise ScmedleyError(f"depth is {options['depth']}. Give a number of counts above 0.")


def _base(n_genes: int, like: AnnData | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the log share of each gene's counts, before all effects."""
    log_G = rng.normal(0, 1.3, n_genes)
    if like is not None:
        found = find_values(like)
        if found.values != "counts":
            raise ScmedleyError(f"Base profiles are bootstrapped from counts. {found.reason}")
        x_NG, _, _ = counted(like, found)
        total_G = np.asarray(x_NG.sum(axis=0), np.float64).ravel()
        log_G = np.log(rng.choice(total_G[total_G > 0], n_genes))
    return np.asarray(log_G - np.log(np.exp(log_G).sum()))


def _spread(of: tuple[float, float], n_genes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a value of each gene from the log-normal distribution of this median and 90 % quantile."""
    median, high = of
    return rng.lognormal(np.log(median), np.log(high / median) / Z_OF_90, n_genes)


def _effects(names: list[str], spread_G: NDArray[np.float64], rng: np.random.Generator) -> pd.DataFrame:
    """Draw the effects of levels, genes x levels. As genes differ in spread, all effects are heavy-tailed."""
    return pd.DataFrame(rng.normal(0, 1, (len(spread_G), len(names))) * spread_G[:, None], columns=names)


def _responses(
    labels: list[str], share: float, size: float, per_label: bool, n_genes: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Draw the effect of the condition on each gene in each label, genes x labels; 0 for most genes."""
    shape = (n_genes, len(labels) if per_label else 1)
    sign = rng.choice([-1.0, 1.0], shape) * (rng.random(shape) < share)
    effect = size * rng.uniform(0.5, 1.5, shape) * sign
    return pd.DataFrame(np.broadcast_to(effect, (n_genes, len(labels))).copy(), columns=labels)


def _cells(
    options: dict[str, Any], donors: list[str], labels: list[str], rng: np.random.Generator
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Draw the annotation of all cells and the logarithm of their depth."""
    n_donors, n_labels, n_studies = len(donors), len(labels), options["n_studies"]
    low, high = CELLS_OF_DONOR
    size_D = np.exp(rng.uniform(np.log(low), np.log(high), n_donors))
    if "n_cells" in options:  # at least one cell a donor
        size_D = 1 + (options["n_cells"] - n_donors) * size_D / size_D.sum()
        size_D = np.diff(np.rint(np.cumsum(np.r_[0, size_D])))
    donor_N = np.repeat(np.arange(n_donors), size_D.astype(int))
    study_D = np.arange(n_donors) % n_studies
    treated_N = rng.random(len(donor_N)) < 0.5
    if options.get("condition") == "between":
        treated_N = ((np.arange(n_donors) // n_studies) % 2 == 1)[donor_N]
    elif options.get("condition") == "confounded":
        treated_N = (study_D % 2 == 1)[donor_N]
    mean_K = 1 / np.arange(1, n_labels + 1)
    share_DK = rng.dirichlet(CONCENTRATION * mean_K / mean_K.sum(), n_donors) + 1e-12
    kept_DK = rng.random(share_DK.shape) >= options["missing"]
    share_DK = share_DK * (kept_DK | (share_DK == share_DK.max(1, keepdims=True)))
    # The largest of log share + Gumbel noise is a draw by the shares.
    with np.errstate(divide="ignore"):
        score_NK = np.log(share_DK)[donor_N] + rng.gumbel(size=(len(donor_N), n_labels))
    score_NK[:, 0] += options["shift"] * (treated_N if "condition" in options else 0)
    log_depth_N = np.log(options["depth"]) + rng.normal(0, DONORS_SD, n_donors)[donor_N]
    log_depth_N += rng.normal(0, CELLS_SD, len(donor_N))
    age_D = np.rint(rng.normal(*AGE, n_donors).clip(20, 80))
    obs = pd.DataFrame(
        {
            "donor": _named(donor_N, donors),
            "study": _named(study_D[donor_N], [f"s{i}" for i in range(n_studies)]),
            LABEL: _named(score_NK.argmax(1), labels),
            "age": age_D[donor_N],
        },
        index=[f"cell{i}" for i in range(len(donor_N))],
    )
    if "condition" in options:
        obs["condition"] = _named(treated_N, [CONTROL, TREATED])
    return obs, log_depth_N


def _counts(
    truth: AnnData, obs: pd.DataFrame, log_depth_N: NDArray[np.float64], rng: np.random.Generator
) -> csr_matrix:
    """Draw negative-binomial counts, a block of cells at a time."""
    shape_G = 1 / truth.var["dispersion"].to_numpy(np.float64)
    rows = max(1, BLOCK // truth.n_vars)
    blocks = []
    for start in range(0, len(obs), rows):
        block = slice(start, start + rows)
        mean_NG = np.exp(log_depth_N[block, None] + true_log_rates(truth, obs.iloc[block]))
        rate_NG = mean_NG * rng.gamma(shape_G, 1 / shape_G, mean_NG.shape)
        blocks.append(csr_matrix(rng.poisson(rate_NG).astype(np.float32)))
    return vstack(blocks, format="csr")


def _named(code_N: NDArray[Any], names: list[str]) -> pd.Categorical:
    return pd.Categorical(np.array(names, object)[code_N.astype(int)], categories=names)


def _codes(adata: AnnData, obs: pd.DataFrame, name: str) -> NDArray[np.int64]:
    """Return the code of each cell's level among the true effects, -1 without one."""
    key = LABEL if name == "label" else name
    if key not in obs:
        return np.full(len(obs), -1)
    levels = pd.Categorical(as_categories(obs[key]), categories=list(adata.varm[name].columns))
    return np.asarray(levels.codes, np.int64)


def _rows(table: pd.DataFrame, code_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the effects of each cell's level, 0 without one."""
    padded = np.vstack([table.to_numpy(np.float64).T, np.zeros(len(table))])
    return np.asarray(padded[code_N])
