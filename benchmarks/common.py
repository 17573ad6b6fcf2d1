"""Shared by all benchmarks: real data sets, a record of the machine, results that are kept after a stop."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import scmedley as sm
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

BATCH = "batch"
LABEL = "label"  # of every data set that `find` returns
DATA_VARIABLE = "SCMEDLEY_DATA"
PACKAGES = (
    "scmedley",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scanpy",
    "anndata",
    "harmonypy",
    "scvi-tools",
    "scanorama",
    "pyliger",
    "bbknn",
    "pydeseq2",
)


@dataclass(frozen=True)
class DataSet:
    """A data set: shipped with the package (without ``file``), or a file of the data folder.

    Attributes
    ----------
    name
        Of a shipped set, unless ``shipped`` names it, or our own.
    label
        Column of ``obs``; the batch is always ``obs["batch"]``.
    file
        Name in the data folder.
    role
        ``"control"``: replicates of one run, almost without batch effect. ``"confounded"``: clear labels that
        are missing in some batches.
    shipped
        The shipped set that it is made from.
    without
        Batch and label of cells that are left out.
    """

    name: str
    label: str = "cell_type"
    file: str = ""
    role: Literal["", "control", "confounded"] = ""
    shipped: str = ""
    without: tuple[tuple[str, str], ...] = ()

    def path(self, folder: Path | None) -> Path:
        """Return the path of the file; ``folder`` defaults to the one named in ``$SCMEDLEY_DATA``."""
        if not self.file:
            return sm.datasets.path(self.shipped or self.name)
        return (folder or Path(os.environ.get(DATA_VARIABLE, "."))) / self.file


DATA_SETS = {
    data.name: data
    for data in (
        DataSet("sc_mixology"),
        DataSet(
            "sc_mixology_missing",
            role="confounded",
            shipped="sc_mixology",
            without=(("sc_celseq2", "HCC827"), ("sc_dropseq", "H1975")),
        ),
        DataSet("onek1k"),
        DataSet("pancreas"),
        DataSet("hashing", role="control"),
        DataSet("pbmc_8batches", "cell_type_broad", "pbmc_8batches_14k.h5ad"),
        DataSet("pbmc_5batches", "cell_type_broad", "pbmc_5batches_10x_8k.h5ad"),
        DataSet("pbmc_3technologies", file="pbmc_3tech_symphony_1200.h5ad"),
        DataSet("cell_mix", file="cellmix_celseq2_dropseq_5batches_fullgenes.h5ad", role="confounded"),
        DataSet("onek1k_bcells", file="onek1k_bcell_100donors.h5ad"),
        DataSet("pancreas_1000", file="pancreas_8datasets_1000x1000.h5ad"),
        DataSet("kang_2donors", file="kang_ifnb_2donors_1556.h5ad"),
        DataSet("kang_2000", file="kang_ifnb_2000_fullgenes.h5ad"),
        DataSet("kang_3donors", file="kang_ifnb_3donors_9517_100g.h5ad"),
        DataSet("dendritic", file="deepbid_dc_569_lognorm.h5ad"),
        DataSet("dendritic_2", file="sciber_humandc_576_lognorm.h5ad"),
        DataSet("simul1", file="SIMULATED_splatter_simul1.h5ad"),
        DataSet("simul2", file="SIMULATED_splatter_simul2.h5ad"),
    )
}


def find(name: str, folder: Path | None) -> AnnData | None:
    """Read a data set; labels are copied to ``obs["label"]``.

    Parameters
    ----------
    name
        One of ``DATA_SETS``.
    folder
        Folder of the files that are not shipped; ``None``: the folder in ``$SCMEDLEY_DATA``.

    Returns
    -------
    AnnData or None
        ``None``, and a printed reason, where the file is missing.
    """
    data = DATA_SETS[name]
    path = data.path(folder)
    if not path.exists():
        print(f"{name}: skipped, there is no {path}. Name its folder with --data or {DATA_VARIABLE}.")
        return None
    adata = sm.read(path)
    adata.obs[LABEL] = adata.obs[data.label]
    for batch, label in data.without:
        adata = adata[~((adata.obs[BATCH] == batch) & (adata.obs[LABEL] == label)).to_numpy()].copy()
    return adata


def record(threads: int) -> dict[str, Any]:
    """Describe machine, versions and date of a run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "commit": _commit(),
    }


def cached(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``path`` holds, or compute and store it, so that a stopped benchmark can be resumed."""
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    path.parent.mkdir(parents=True, exist_ok=True)
    result = compute()
    write_json(result, path)
    return result


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return sm.__version__ if package == "scmedley" else "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
