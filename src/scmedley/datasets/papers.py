"""Data sets of the papers whose models scMedley has: readers of their files, and scores published for them.

The files do not come with the package: download them, then read the folder. The result is ready for
``pp.prepare``: counts in ``X`` (CSR, float32) and categorical ``obs`` columns of the same names.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy.sparse import csr_matrix

from scmedley import io
from scmedley.data.design import as_categories
from scmedley.data.matrix import find_values, matrix
from scmedley.datasets.text import read_genes, read_table
from scmedley.errors import ScmedleyError, listed

AML_AMBIGUOUS = ("AML314", "AML371", "AML722B", "AML997")
"""Donors whose cell types Dai et al. 2021 found ambiguous; the papers leave them out."""

_AML_FILE = re.compile(r"(?:GSM\d+_)?(.+)\.(dem|anno)\.txt(?:\.gz)?")
_AML_SAMPLE = re.compile(r"(AML\w+)-D\d+|(BM\d+)(?:-\w+)?|(MUTZ-?3|OCI-?AML-?3)")
_AML_GROUPS = ("AML", "healthy", "cell line")  # in the order of the pattern's groups

_ALZHEIMER_CELL = re.compile(r"[ACGTN]+(?:-\d+)?_(.+)")  # barcode and pool
_ALZHEIMER_COLUMNS = {
    "cell_type": "oupSample.cellType",
    "condition": "oupSample.batchCond",
    "subcluster": "oupSample.subclustID",
}

_HEART_COLUMNS = {
    "sample": ("sampleID", "sample", "BATCH", "batch"),
    "cell_type": ("cell_type", "celltype"),
    "tissue": ("tissue", "region"),
    "donor": ("donor", "donorID", "donor_id"),
}


def _weights(
    fixed: tuple[float, float],
    fixed_label: tuple[float, float, float],
    autoencoder_label: tuple[float, float],
    random: tuple[float, float],
) -> dict[str, dict[str, float]]:
    """Return the loss weights of one data set, by method and by their names in the settings."""
    return {
        "FE": {"mse_weight": float(fixed[0]), "adversary_weight": fixed[1]},
        "FEC": {
            "mse_weight": fixed_label[0],
            "adversary_weight": fixed_label[1],
            "label_weight": fixed_label[2],
        },
        "AEC": {"mse_weight": autoencoder_label[0], "label_weight": autoencoder_label[1]},
        "RE": {"mse_weight": random[0], "batch_weight": random[1], "kl_per_table_weight": 1e-5},
    }


LOSS_WEIGHTS: dict[str, dict[str, dict[str, dict[str, float]]]] = {
    "release": {
        "AML": _weights((1000, 1), (2000, 0.5, 3), (100, 0.6), (110, 0.1)),
        "ASD": _weights((2000, 1), (2000, 1, 1), (100, 0.1), (110, 0.4)),
        "Heart": _weights((600, 1), (2000, 1, 1), (100, 0.1), (110, 0.1)),
    },
    "preprint": {
        "AML": _weights((4000, 1), (1500, 1, 1), (100, 0.1), (110, 0.1)),
        "ASD": _weights((1000, 1), (1000, 1, 1), (1, 0.1), (110, 0.1)),
        "Heart": _weights((5400, 1), (9450, 1, 1), (81, 0.1), (110, 0.1)),
    },
}
"""Published loss weights by source, data set, method and term, for ``settings.replace(**weights)``."""


def read_aml(folder: str | Path) -> AnnData:
    """Read the acute myeloid leukaemia data: van Galen et al. 2019, GEO GSE116256.

    Unpack ``GSE116256_RAW.tar``: each sample has ``GSM*_SAMPLE.dem.txt.gz`` (counts, genes x cells) and
    ``GSM*_SAMPLE.anno.txt.gz`` (columns ``Cell``, ``CellType`` and more). As in the papers, cells without a
    type and the four donors of :data:`AML_AMBIGUOUS` are left out. All files: about 38,400 cells of 19
    donors, 27,899 genes, 21 types; names of malignant types end in "-like".

    Returns
    -------
    AnnData
        ``obs``: ``donor`` (the papers' batch), ``sample``, ``cell_type``, ``patient_group`` ("AML",
        "healthy" or "cell line"). A gene that is not in a sample's file has 0 counts in its cells.

    Raises
    ------
    ScmedleyError
        Files or columns are missing, a file is broken, or a sample is not from this study.
    """
    folder = Path(folder)
    files = _aml_files(folder)
    samples = []
    for sample in sorted(files["dem"]):
        donor, group = _aml_donor(sample, folder)
        if donor in AML_AMBIGUOUS:
            continue
        adata = read_genes(files["dem"][sample])
        table = read_table(files["anno"][sample], ("Cell", "CellType")).set_index("Cell")
        if not adata.obs_names.isin(table.index).any():
            raise ScmedleyError(
                f"{files['anno'][sample]} has none of the cells of {files['dem'][sample].name}. "
                "Take both files of a sample from one download."
            )
        kind = table["CellType"][~table.index.duplicated()].reindex(adata.obs_names).str.strip()
        kind = kind.mask(kind.isin(["", "NA", "nan"]))
        adata.obs = pd.DataFrame(
            {"donor": donor, "sample": sample, "cell_type": kind, "patient_group": group},
            index=adata.obs_names,
        )
        samples.append(adata[kind.notna().to_numpy()].copy())
    if not samples:
        raise ScmedleyError(
            f"{folder} has samples of {listed(AML_AMBIGUOUS)} only, which are left out. Add the others."
        )
    joined: AnnData = concat(samples, join="outer", fill_value=0)
    joined.X = csr_matrix(joined.X)
    for name in joined.obs:
        joined.obs[name] = as_categories(joined.obs[name])
    joined.uns["source"] = "GEO GSE116256 (van Galen et al. 2019, Cell)"
    return joined


def read_asd(folder: str | Path) -> AnnData:
    """Read the autism data: Velmeshev et al. 2019, UCSC Cell Browser "autism".

    The folder holds ``exprMatrix.tsv.gz`` (log2(x + 1), genes x cells) and ``meta.tsv`` (columns ``cell``,
    ``cluster``, ``sample``, ``individual``, ``diagnosis`` and more), also ``.tsv`` or ``.tsv.gz``. The
    logarithm is inverted: 2^x - 1. If all values are then whole numbers, to the precision of the text, they
    are rounded to counts; otherwise they are not changed. 104,559 cells x 36,501 genes take minutes and GB.

    Returns
    -------
    AnnData
        ``obs``: ``donor`` (``individual``; the papers' batch), ``cell_type`` (``cluster``), ``diagnosis``,
        and the other columns with their names, text as categories. ``var``: gene symbols, and ``gene_ids``
        if the file has names like ``ENSG00000227232|WASH7P``. A repeated symbol gets its id appended.

    Raises
    ------
    ScmedleyError
        Files or columns are missing, a file is broken, or a cell is not in ``meta.tsv``.
    """
    folder = Path(folder)
    matrix, meta = (_one_of(folder, f"{name}.tsv.gz", f"{name}.tsv") for name in ("exprMatrix", "meta"))
    needed = ("cell", "cluster", "sample", "individual", "diagnosis")
    table = read_table(meta, needed).set_index("cell")
    adata = read_genes(matrix, log2=True)
    unknown = adata.obs_names[~adata.obs_names.isin(table.index)]
    if len(unknown):
        raise ScmedleyError(
            f"{len(unknown):,} of {adata.n_obs:,} cells of {matrix} are not in {meta.name} (the first: "
            f"{unknown[0]!r}). Take both files from one download."
        )
    obs = table[~table.index.duplicated()].loc[adata.obs_names]
    obs = obs.rename(columns={"individual": "donor", "cluster": "cell_type"})
    for name in obs:
        numbers = pd.to_numeric(obs[name], errors="coerce")
        text = (
            name in ("donor", "cell_type", "sample", "diagnosis")
            or (numbers.isna() & obs[name].notna()).any()
        )
        obs[name] = as_categories(obs[name]) if text else numbers
    adata.obs = obs
    _name_by_symbol(adata)
    adata.uns["source"] = "UCSC Cell Browser, autism (Velmeshev et al. 2019, Science)"
    return adata


def read_healthy_heart(path: str | Path) -> AnnData:
    """Read the healthy heart data: Litvinukova et al. 2020, from Yu et al. 2023, figshare 20499630.

    486,134 cells x 33,538 genes, 147 samples, 13 types; "NotAssigned" is kept as a type, as in the papers.

    Parameters
    ----------
    path
        The ``.h5ad`` file, or a folder that holds only this ``.h5ad``.

    Returns
    -------
    AnnData
        ``obs``: ``sample`` (the papers' batch), ``cell_type``, ``tissue``, and ``donor`` if the file has
        it. They are read from ``sampleID``, ``sample`` or ``batch``; ``cell_type`` or ``celltype``;
        ``tissue`` or ``region``; ``donor`` or ``donorID``, in upper or lower case. Other columns are dropped.

    Raises
    ------
    ScmedleyError
        The file or a column is missing, or the file has no counts.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.h5ad"))
        if len(files) != 1:
            raise ScmedleyError(
                f"{path} has {len(files)} .h5ad files, not one. Give the file of figshare 20499630 itself "
                "(Healthy_human_heart_adata.h5ad)."
            )
        path = files[0]
    adata = io.read(path)
    found = find_values(adata)
    if found.values != "counts":
        raise ScmedleyError(
            f"{path} has no counts: {found.where} holds {found.values} values. Give the file as published."
        )
    columns = {str(name).lower(): name for name in reversed(list(adata.obs.columns))}
    obs = pd.DataFrame(index=adata.obs_names)
    for name, known in _HEART_COLUMNS.items():
        here = [columns[other.lower()] for other in known if other.lower() in columns]
        if here:
            obs[name] = as_categories(adata.obs[here[0]])
        elif name != "donor":
            raise ScmedleyError(
                f"{path} has no obs column {listed(known)}; its columns are {listed(list(adata.obs.columns), 20)}. "
                f"Rename the column with each cell's {name.replace('_', ' ')}."
            )
    heart = AnnData(csr_matrix(matrix(adata, found), dtype=np.float32), obs=obs, var=adata.var[[]])
    heart.uns["source"] = "figshare 20499630 (Yu et al. 2023; Litvinukova et al. 2020, Nature)"
    return heart


def published() -> pd.DataFrame:
    """Return the published scores of the test folds, one per row.

    Returns
    -------
    pandas.DataFrame
        ``data_set``: "AML", "ASD" or "Heart". ``method``: PCA, AE, AEC (autoencoder with label
        head), FE, FEC, RE, FE+RE, Harmony, Scanorama, scVI, scANVI, SAUCIE, or chance. ``score``: "ASW" (raw
        silhouette), "CH" (Calinski-Harabasz), "1/DB" (inverse Davies-Bouldin), and the random forest's
        "accuracy" and "balanced_accuracy". ``of``: "batch", "label", "diagnosis" or "patient_group".
        ``value``: mean of five folds; ``low``, ``high``: its 95 % interval if published. ``source``:
        "release" or "preprint"; ``dimension`` of the embedding: 50 or 2.

    Notes
    -----
    Every donor was in training and test, and RE had the batch of the test cells as input: published scores of
    RE and FE+RE by batch, diagnosis and patient group may be leakage.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"))


def _aml_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the file of counts and the file of annotation of each sample."""
    files: dict[str, dict[str, Path]] = {"dem": {}, "anno": {}}
    for path in sorted(folder.glob("*")):
        if match := _AML_FILE.fullmatch(path.name):
            files[match[2]][match[1]] = path
    if not files["dem"]:
        raise ScmedleyError(
            f"{folder} has no files like GSM3587923_AML1012-D0.dem.txt.gz. Download GSE116256_RAW.tar from GEO "
            "and unpack it there."
        )
    for kind, other in (("dem", "anno"), ("anno", "dem")):
        alone = sorted(files[kind].keys() - files[other].keys())
        if alone:
            raise ScmedleyError(
                f"{folder} has no .{other}.txt.gz of {len(alone)} samples ({listed(alone)}), only their "
                f".{kind}.txt.gz. Unpack GSE116256_RAW.tar again."
            )
    return files


def _aml_donor(sample: str, folder: Path) -> tuple[str, str]:
    """Return donor and patient group. A sample is named after its donor and its day or sorting gate."""
    match = _AML_SAMPLE.fullmatch(sample)
    if not match:
        raise ScmedleyError(
            f"{folder}: {sample!r} is no sample of GSE116256 (such as AML1012-D0, BM5-34p, MUTZ3). Remove its files "
            "from the folder."
        )
    return match[match.lastindex or 0], _AML_GROUPS[(match.lastindex or 1) - 1]


def _one_of(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ScmedleyError(f"{folder} has no {' or '.join(names)}. Download it there.")


def _name_by_symbol(adata: AnnData) -> None:
    """Split names like ENSG00000227232|WASH7P into symbol and id; a repeated symbol gets its id appended."""
    parts = adata.var_names.to_series().str.partition("|")
    if not (parts[1] == "|").all():
        return
    ids, symbols = parts[0].to_numpy(), pd.Index(parts[2])
    names = np.where(symbols.duplicated(keep=False), symbols + "_" + ids, symbols)
    adata.var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(names, dtype=object))


def read_bmmc(path: str | Path) -> AnnData:
    """Read the bone marrow CITE-seq data of the NeurIPS 2021 competition: Luecken et al. 2021, GEO GSE194122.

    90,261 cells, 12 batches (site x donor), 9 donors, 4 sites, 45 types. Surface proteins (``ADT``) are left out,
    with a warning.

    Parameters
    ----------
    path
        The ``.h5ad`` file (``GSE194122_openproblems_neurips2021_cite_BMMC_processed.h5ad``, unpacked).

    Returns
    -------
    AnnData
        Counts of the genes. ``obs``: ``batch``, ``cell_type``, ``site``, ``donor``, and the columns ``GEX_*``.

    Raises
    ------
    ScmedleyError
        A column or ``layers["counts"]`` is missing, or it holds no counts.
    """
    adata = io.read(Path(path))
    found = find_values(adata)
    if found.values != "counts" or not adata.n_vars:
        raise ScmedleyError(
            f"{path} has no counts of genes: {found.where} holds {found.values} values. Give the file as published."
        )
    columns = {str(name).lower(): name for name in reversed(list(adata.obs.columns))}
    known: dict[str, tuple[str, ...]] = {name: (name,) for name in ("batch", "cell_type", "site")}
    known["donor"] = ("donorid", "donornumber")
    obs = pd.DataFrame(index=adata.obs_names)
    for name, others in known.items():
        here = [columns[other] for other in others if other in columns]
        if not here:
            raise ScmedleyError(
                f"{path} has no obs column for the {name.replace('_', ' ')} ({listed(list(others))}); its columns are "
                f"{listed(list(adata.obs.columns), 20)}. Rename the column."
            )
        obs[name] = as_categories(adata.obs[here[0]])
    for name in adata.obs.columns:
        if str(name).startswith("GEX_"):
            obs[str(name)] = adata.obs[name].to_numpy()
    marrow = AnnData(csr_matrix(matrix(adata, found), dtype=np.float32), obs=obs, var=adata.var[[]])
    marrow.uns["source"] = "GEO GSE194122 (Luecken et al. 2021, NeurIPS Datasets and Benchmarks)"
    return marrow


def read_alzheimer(folder: str | Path) -> AnnData:
    """Read the Alzheimer's data: Grubman et al. 2019, entorhinal cortex, GEO GSE138852.

    The folder holds ``GSE138852_counts.csv.gz`` (genes x cells; cells named like ``AAACCTGGTAGAAAGG_AD5_AD6``) and
    ``GSE138852_covariates.csv.gz``, or these unpacked (``.csv``). 13,214 nuclei of 12 people, half of them with the
    disease. **Each sample is a pool of two people**: ``donor`` is the pool (``AD5_AD6``), because nuclei of
    the two cannot be told apart by these files. The DeepBID paper uses the three pools with the disease.

    Returns
    -------
    AnnData
        ``obs``: ``donor``, ``condition`` ("AD" or "ct"), ``cell_type`` (the authors' label), and ``subcluster`` if the
        file has it.

    Raises
    ------
    ScmedleyError
        Files or columns are missing, a file is broken, a cell is not in the covariates, or has no pool in its name.
    """
    folder = Path(folder)
    counts, covariates = (
        _one_of(folder, *(f"GSE138852_{name}.csv{end}" for end in (".gz", "")))
        for name in ("counts", "covariates")
    )
    table = read_table(covariates, list(_ALZHEIMER_COLUMNS.values())[:2], separator=",")
    table = table.set_index(table.columns[0])  # written by R, without a name
    adata = read_genes(counts, separator=",")
    unknown = adata.obs_names[~adata.obs_names.isin(table.index)]
    if len(unknown):
        raise ScmedleyError(
            f"{len(unknown):,} of {adata.n_obs:,} cells of {counts} are not in {covariates.name} (the first: "
            f"{unknown[0]!r}). Take both files from one download."
        )
    table = table[~table.index.duplicated()].loc[adata.obs_names]
    pools = [_ALZHEIMER_CELL.fullmatch(str(name)) for name in adata.obs_names]
    nameless = [name for name, pool in zip(adata.obs_names, pools, strict=True) if pool is None]
    if nameless:
        raise ScmedleyError(
            f"{counts}: {len(nameless):,} cells have no pool in their name (the first: {nameless[0]!r}), as in "
            "'AAACCTGGTAGAAAGG_AD5_AD6'. Give the file as published."
        )
    obs = pd.DataFrame({"donor": [pool[1] for pool in pools if pool]}, index=adata.obs_names)
    for name, column in _ALZHEIMER_COLUMNS.items():
        if column in table:
            obs[name] = table[column]
    adata.obs = obs.apply(as_categories)
    adata.uns["source"] = (
        "GEO GSE138852 (Grubman et al. 2019, Nature Neuroscience); donor: pool of two people"
    )
    return adata
