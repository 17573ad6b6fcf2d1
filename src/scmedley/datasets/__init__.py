"""Small real data sets that come with the package: raw counts, ``obs["batch"]`` and ``obs["cell_type"]``.

README.md in this folder has their sources, licences and SHA-256. :mod:`scmedley.datasets.papers` reads larger
published sets, which do not come with the package; :func:`simulate` draws counts with known effects.
"""

from pathlib import Path

from anndata import AnnData

from scmedley.datasets.simulate import simulate, true_log_rates
from scmedley.errors import ScmedleyError

__all__ = ["NAMES", "hashing", "onek1k", "pancreas", "path", "sc_mixology", "simulate", "true_log_rates"]

NAMES = {
    "sc_mixology": "cellmix_3protocols_3lines.h5ad",
    "onek1k": "onek1k_40donors.h5ad",
    "pancreas": "pancreas_8datasets_500x2000.h5ad",
    "hashing": "hashing_4lines_3replicates_1701.h5ad",
}


def path(name: str) -> Path:
    """Return the path of the h5ad file of ``"sc_mixology"``, ``"onek1k"``, ``"pancreas"`` or ``"hashing"``.

    Raises
    ------
    ScmedleyError
        There is no data set of that name.
    """
    if name not in NAMES:
        raise ScmedleyError(f"There is no data set {name!r}; there are {', '.join(NAMES)}.")
    return Path(__file__).with_name(NAMES[name])


def sc_mixology() -> AnnData:
    """Load three lung cancer cell lines, each measured with three protocols: 1,345 cells x 832 genes.

    Batch: 10x, CEL-seq2, Drop-seq. Label: the cell line, from the genotype and so independent of expression.
    Tian et al. 2019, Nature Methods, GSE118767; the 10x part from Kim et al. 2021 (Cepo), with its selection
    of genes. MIT.
    """
    return _load("sc_mixology")


def onek1k() -> AnnData:
    """Load blood cells of 40 donors: 7,811 cells x 1,000 genes, 4 cell types, sex and age of the donors.

    Batch: the donor. Yazar et al. 2022, Science (OneK1K), GSE196830; donors anonymised, cells and genes
    selected by the authors of scDesignPop. MIT.
    """
    return _load("onek1k")


def pancreas() -> AnnData:
    """Load pancreas cells from 8 data sets and 5 technologies: 500 cells x 1,947 genes, 6 cell types.

    Batch: the data set. Counts are rounded if the source corrected them for UMI collisions;
    ``layers["original"]`` has the source's values. Grün 2016 (GSE81076), Muraro 2016 (GSE85241), Baron 2016
    (GSE84133), Lawlor 2017 (GSE86469), Segerstolpe 2016 (E-MTAB-5061), as selected in bbknnR. MIT.
    """
    return _load("pancreas")


def hashing() -> AnnData:
    """Load four cell lines, hashed as three replicates of one run: 1,701 cells x 1,668 genes.

    Batch: the replicate. A negative control with almost no batch effect. Stoeckius et al. 2018,
    Genome Biology, GSE108313, through scds. MIT.
    """
    return _load("hashing")


def _load(name: str) -> AnnData:
    from scmedley import io

    return io.read(path(name))
