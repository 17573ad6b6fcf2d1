"""The shipped sets: as documented, unaltered, and small."""

import re

import pytest

from scmedley import datasets, io
from scmedley.errors import ScmedleyError

README = (datasets.path("hashing").parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "shape", "n_batches", "n_labels"),
    [
        ("sc_mixology", (1345, 832), 3, 3),
        ("onek1k", (7811, 1000), 40, 4),
        ("pancreas", (500, 1947), 8, 6),
        ("hashing", (1701, 1668), 3, 4),
    ],
)
def test_set(name: str, shape: tuple[int, int], n_batches: int, n_labels: int) -> None:
    adata = getattr(datasets, name)()
    assert adata.shape == shape
    assert adata.obs["batch"].nunique() == n_batches
    assert adata.obs["cell_type"].nunique() == n_labels
    assert not adata.obs[["batch", "cell_type"]].isna().any().any()
    doc = getattr(datasets, name).__doc__
    assert re.search(f"{shape[0]:,} cells x {shape[1]:,} genes", doc)
    assert "MIT" in doc
    assert f"{io.sha256(datasets.path(name))}  {datasets.path(name).name}" in README


def test_unknown_name() -> None:
    with pytest.raises(ScmedleyError, match="no data set 'mnist'; there are sc_mixology"):
        datasets.path("mnist")


def test_the_package_stays_small() -> None:
    assert sum(p.stat().st_size for p in datasets.path("hashing").parent.iterdir() if p.is_file()) < 5e6
