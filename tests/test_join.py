"""Several files, one batch each: what they are called, and what they share."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from corpus import counts
from scmedley import read_batches
from scmedley.errors import ScmedleyError, heard
from scmedley.io import write_h5ad
from scmedley.pp.join import batch_names, file_titles

IDS = [f"ENSG{i:011d}" for i in range(30)]


def sample(**columns: object) -> AnnData:
    return AnnData(
        csr_matrix(counts()),
        obs=pd.DataFrame(columns, index=[f"cell{i}" for i in range(60)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(30)]),
    )


def joined(folder: Path, **files: AnnData) -> tuple[AnnData, list[str]]:
    paths = [folder / f"{name}.h5ad" for name in files]
    for path, adata in zip(paths, files.values(), strict=True):
        adata.write_h5ad(path)
    with heard() as said:
        return read_batches(paths), said


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.h5ad", "b.csv.gz"], ["a", "b"]),
        (["s.1.h5ad", "s.2.h5ad"], ["s.1", "s.2"]),
        (["A/outs/raw.h5", "B/outs/raw.h5"], ["A", "B"]),
        (["A/outs/filtered_feature_bc_matrix", "B/outs/filtered_feature_bc_matrix"], ["A", "B"]),
        (["x/A/m.h5", "y/A/m.h5", "x/B/m.h5"], ["x_A", "y_A", "x_B"]),
        (["A/m.h5", "B/m.h5", "n.h5"], ["A_m", "B_m", None]),
        (["m.h5ad", "m.zarr"], ["m.h5ad", "m.zarr"]),
    ],
)
def test_batches_are_called_by_what_tells_them_apart(paths: list[str], names: list[str | None]) -> None:
    with heard() as said:
        found = batch_names([Path(path) for path in paths])
    assert all(name in (None, one) for name, one in zip(names, found, strict=True))
    assert len(set(found)) == len(found)
    assert len(said) == (
        len({Path(path).name.split(".")[0] for path in paths}) < len(paths) and "s.1" not in found
    )


def test_ids_meet_symbols(tmp_path: Path) -> None:
    one, two, three = sample(), sample(), sample()
    one.var["gene_ids"] = IDS
    two.var_names = [f"{name}.3" for name in IDS]
    three.var["feature_name"], three.var_names = three.var_names, IDS[::-1]
    three.var["feature_name"] = three.var["feature_name"].to_numpy()[::-1]
    three.X = csr_matrix(three.X[:, ::-1])
    three.raw = three
    two.raw = two
    one.raw = one
    adata, said = joined(tmp_path, one=one, two=two, three=three)
    assert list(adata.var_names) == list(one.var_names)
    assert list(adata.var["gene_ids"]) == IDS
    for name in ("one", "two", "three"):
        assert_array_equal(adata[adata.obs["batch"] == name].X.toarray(), counts())
    assert set(adata.var_names) <= set(adata.raw.var_names)
    assert [line.split(":")[0] for line in said] == ["two", "three"]


def test_columns_of_one_file_stay(tmp_path: Path) -> None:
    one = sample(
        cell_type=pd.Categorical(["B", "T"] * 30), sex=["f"] * 60, ok=[True, False] * 30, age=np.arange(60)
    )
    one.obsm["X_umap"] = np.ones((60, 2))
    two = sample(cell_type=pd.Categorical(["T", "NK"] * 30))
    three = sample()
    adata, said = joined(tmp_path, one=one, two=two, three=three)
    types = adata.obs["cell_type"].astype(object)
    assert list(types[:2]) + list(types[60:62]) == ["B", "T", "T", "NK"]
    assert types[120:].isna().all()
    assert (
        adata.obs["sex"].isna().sum() == adata.obs["ok"].isna().sum() == adata.obs["age"].isna().sum() == 120
    )
    assert "obs['cell_type'] is missing for all cells of 'three'." in said
    assert "obsm 'X_umap' is not in all files and left out." in said
    write_h5ad(adata, tmp_path / "out.h5ad")


def test_lost_genes_are_counted_and_too_few_refused(tmp_path: Path) -> None:
    two = sample()
    two.var_names = [*two.var_names[:6], *(f"other{i}" for i in range(24))]
    adata, said = joined(tmp_path, one=sample(), two=two)
    assert adata.n_vars == 6
    assert said == ["6 genes are in all files and used. Genes lost: one 24 of 30, two 24 of 30."]
    two.var_names = [*two.var_names[:2], *(f"another{i}" for i in range(28))]
    with pytest.raises(ScmedleyError, match=r"two\.h5ad shares only 2 genes with one"):
        joined(tmp_path, one=sample(), two=two)


def test_three_files_that_share_too_little_together(tmp_path: Path) -> None:
    two, three = sample(), sample()
    two.var_names = [*two.var_names[:15], *(f"x{i}" for i in range(15))]
    three.var_names = [*(f"y{i}" for i in range(15)), *three.var_names[15:]]
    with pytest.raises(ScmedleyError, match="Only 0 genes are in all files"):
        joined(tmp_path, one=sample(), two=two, three=three)


@pytest.mark.parametrize("turned", [("one",), ("two",)])
def test_genes_x_cells_is_known_by_the_other_file(turned: tuple[str, ...], tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        table = pd.DataFrame(counts(), [f"{name}-{i}" for i in range(60)], [f"gene{i}" for i in range(30)])
        paths.append(tmp_path / f"{name}.csv")
        (table.T if name in turned else table).to_csv(paths[-1])
    with heard() as said:
        adata = read_batches(paths)
    assert list(adata.var_names) == [f"gene{i}" for i in range(30)]
    assert_array_equal(adata.X.toarray(), np.vstack([counts(), counts()]))
    assert said[0].startswith(f"{', '.join(turned)}: read as genes x cells and transposed")


def test_cells_of_one_name_are_no_genes(tmp_path: Path) -> None:
    adata, said = joined(tmp_path, one=sample(), two=sample())
    assert adata.shape == (120, 30)
    assert said == []


def test_files_of_one_name_are_titled_by_their_folders() -> None:
    assert file_titles([Path("a/m.h5ad"), Path("b/n.h5ad")]) == ["m", "n"]
    folders = [Path(f"patient_{p}/outs/filtered_feature_bc_matrix") for p in "AB"]
    assert file_titles(folders) == ["patient_A", "patient_B"]
