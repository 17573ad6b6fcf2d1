"""Genes chosen from sums: scanpy as oracle, any blocks, and groups in which nothing can be ranked."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from scmedley import datasets, keys
from scmedley.data.blocks import slices
from scmedley.errors import ScmedleyError
from scmedley.pp import prepare
from scmedley.pp.gene_moments import GroupMoments
from scmedley.pp.genes import gene_groups, select_genes


def moments(x_NG, group_N: np.ndarray, size: int = 64) -> GroupMoments:
    made = GroupMoments(int(group_N.max()) + 1, x_NG.shape[1])
    for rows in slices(len(group_N), size):
        made.add(x_NG[rows], group_N[rows])
    return made


def scanpys(x_NG, group_N: np.ndarray, n_top_genes: int) -> np.ndarray | None:
    """Flags of scanpy; None if it cannot rank the genes of some group."""
    obs = pd.DataFrame({"group": pd.Categorical(group_N)}, index=[f"c{i}" for i in range(len(group_N))])
    # Scanpy sorts by name, and so breaks ties by it.
    var = pd.DataFrame(index=[f"{i:05d}" for i in range(x_NG.shape[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = sc.pp.highly_variable_genes(
                AnnData(x_NG, obs=obs, var=var),
                n_top_genes=n_top_genes,
                flavor="seurat",
                batch_key="group",
                inplace=False,
            )
        except (ValueError, IndexError):
            return None
    return table["highly_variable"].to_numpy()


def awkward(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Log-normalised cells in groups of 1 to 60; genes that are 0 in some groups, constant genes, few levels."""
    rng = np.random.default_rng(seed)
    n_genes, n_groups = int(rng.integers(5, 300)), int(rng.integers(1, 6))
    n_cells = int(rng.integers(2, 60)) * n_groups
    group_N = np.unique(rng.integers(0, n_groups, n_cells), return_inverse=True)[1]
    absent_BG = rng.random((n_groups, n_genes)) < 0.1
    x_NG = rng.poisson(rng.gamma(0.3, 1, n_genes) * ~absent_BG[group_N]).astype(np.float32)
    if seed % 3 == 0:
        x_NG[:, :3] = 1
    total_N1 = x_NG.sum(axis=1, keepdims=True)
    scaled_NG = x_NG if seed % 2 else x_NG * 1e4 / np.maximum(total_N1, 1)
    return np.log1p(scaled_NG).astype(np.float32), group_N, int(rng.integers(1, n_genes + 1))


@pytest.mark.parametrize("seed", range(24))
def test_flags_are_scanpys(seed: int) -> None:
    x_NG, group_N, n_top_genes = awkward(seed)
    for as_type in (csr_matrix, np.asarray):
        expected = scanpys(as_type(x_NG), group_N, n_top_genes)
        if expected is not None:  # see test_without_a_ranking_all_cells_are_one_group
            assert_array_equal(moments(as_type(x_NG), group_N).chosen(n_top_genes), expected)


@pytest.mark.parametrize("name", ["onek1k", "pancreas", "sc_mixology"])
def test_flags_of_shipped_sets_are_scanpys(name: str) -> None:
    adata = getattr(datasets, name)()
    prepare(adata, "batch", n_top_genes=10_000)
    select_genes(adata, "batch", 300)
    train = (adata.obs[keys.SPLIT] == "train").to_numpy()
    group_N = gene_groups(adata.obs, "batch")[train]
    expected = scanpys(adata.layers[keys.LOGNORM][train], group_N, 300)
    assert_array_equal(adata.var[keys.HVG], expected)


def test_neither_blocks_nor_the_type_of_matrix_change_a_bit() -> None:
    x_NG, group_N, _ = awkward(0)
    expected = moments(csr_matrix(x_NG), group_N, len(group_N))
    for other in (moments(csr_matrix(x_NG), group_N, 7), moments(x_NG, group_N, 10)):
        for name, values in vars(expected).items():
            assert_array_equal(getattr(other, name), values)


def test_only_cells_of_a_group_count() -> None:
    x_NG, group_N, n = awkward(2)
    group_N[::3] = -1
    kept = group_N >= 0
    assert_array_equal(moments(x_NG, group_N).chosen(n), moments(x_NG[kept], group_N[kept]).chosen(n))
    assert moments(x_NG, group_N).cells_B.sum() == kept.sum()


def test_without_a_ranking_all_cells_are_one_group() -> None:
    x_NG, group_N, _ = awkward(4)
    x_NG[group_N == 0] = 0
    assert scanpys(x_NG, group_N, 5) is None
    one = sc.pp.highly_variable_genes(AnnData(x_NG), n_top_genes=5, flavor="seurat", inplace=False)
    assert_array_equal(moments(x_NG, group_N).chosen(5), one["highly_variable"])
    with pytest.raises(ScmedleyError, match="No gene varies"):
        moments(np.zeros((30, 4), np.float32), np.repeat([0, 1], 15)).chosen(2)


def test_groups_are_batches_of_training_cells_with_small_ones_pooled() -> None:
    sizes = {"large": 40, "larger": 50, "tiny": 5, "small": 12}
    batch = np.repeat(list(sizes), list(sizes.values()))
    obs = pd.DataFrame({"batch": pd.Categorical(batch), keys.SPLIT: "train"})
    obs.loc[::10, keys.SPLIT] = "test"
    group_N = gene_groups(obs, "batch")
    assert set(group_N[obs[keys.SPLIT] == "test"]) == {-1}
    in_training = obs[obs[keys.SPLIT] == "train"].assign(group=group_N[group_N >= 0])
    # The two smallest have fewer than 20 cells together, so the next joins their pool.
    assert in_training.groupby("group")["batch"].unique().map(set).tolist() == [
        {"tiny", "small", "large"},
        {"larger"},
    ]
    assert set(gene_groups(obs, None)) == {-1, 0}
