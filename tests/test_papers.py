"""Readers of the papers' data, on small files in the layouts of the real ones; and the published numbers."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from scmedley.datasets import papers
from scmedley.datasets.papers import read_alzheimer, read_aml, read_asd, read_bmmc, read_healthy_heart
from scmedley.datasets.text import read_genes
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import AdversarialSettings, RandomEffectsSettings
from scmedley.pp.checks import check
from scmedley.pp.folds import donor_folds

GENES = ["A1BG", "MT-CO1", "NA", "XIST"]  # a gene may be called NA
ANNO = (
    "Cell\tNumberOfReads\tCyclingScore\tMutTranscripts\tPredictionRF2\tPredictionRefined\tCellType\tScore_HSC"
)


def write(path: Path, text: str) -> None:
    """Write text, gzipped where the name says so."""
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def table(corner: str, columns: list[str], rows: dict[str, list]) -> str:
    """Give tab-separated text with a header."""
    lines = ["\t".join([name, *map(str, values)]) for name, values in rows.items()]
    return "\n".join(["\t".join([corner, *columns] if corner else columns), *lines]) + "\n"


def write_sample(folder: Path, number: int, sample: str, types: list[str]) -> np.ndarray:
    """Write a sample's two files, named as on GEO; give its counts, cells x genes."""
    x = np.random.default_rng(number).poisson(0.8, (len(types), len(GENES))) * 11
    cells = [f"{sample}_{'ACGT'[i]}TTG" for i in range(len(types))]
    counts = table("Gene", cells, dict(zip(GENES, x.T.tolist(), strict=True)))
    write(folder / f"GSM{number}_{sample}.dem.txt.gz", counts)
    rows = [f"{c}\t900\t0.1\t\tnormal\tnormal\t{t}\t0.2" for c, t in zip(cells, types, strict=True)]
    write(folder / f"GSM{number + 1}_{sample}.anno.txt.gz", "\n".join([ANNO, *rows]) + "\n")
    return x


@pytest.fixture
def aml(tmp_path: Path) -> dict[str, np.ndarray]:
    """Give the counts of some samples of GSE116256, whose files are in ``tmp_path``."""
    write(tmp_path / "GSM9_AML1012-D0.nanopore.txt.gz", "not for us")
    types = {
        "AML1012-D0": ["HSC-like", "T", "", "Mono"],
        "AML210A-D0": ["NA", "T"],
        "AML314-D31": ["Prog", "T"],
        "AML722B-D0": ["T"],
        "AML328-D113": ["GMP", "B"],
        "BM5-34p38n": ["HSC", "Prog"],
        "BM5-34p": ["HSC"],
        "MUTZ3": ["Mono-like"],
        "OCI-AML3": ["HSC-like"],
    }
    return {s: write_sample(tmp_path, 10 * i, s, kinds) for i, (s, kinds) in enumerate(types.items())}


def test_aml(tmp_path: Path, aml: dict[str, np.ndarray]) -> None:
    adata = read_aml(tmp_path)
    assert isinstance(adata.X, csr_matrix)
    assert adata.X.dtype == np.float32
    assert list(adata.var_names) == GENES
    obs = adata.obs
    assert list(obs.columns) == ["donor", "sample", "cell_type", "patient_group"]
    assert all(isinstance(obs[name].dtype, pd.CategoricalDtype) for name in obs)
    groups = obs.drop_duplicates("donor").set_index("donor")["patient_group"].to_dict()
    assert groups == {
        "AML1012": "AML",
        "AML210A": "AML",
        "AML328": "AML",
        "BM5": "healthy",
        "MUTZ3": "cell line",
        "OCI-AML3": "cell line",
    }
    assert obs["sample"].nunique() == 7
    assert obs["donor"].value_counts()["BM5"] == 3
    assert not obs.isna().any().any()
    assert adata.n_obs == 11  # of 16: two without a type, three of ambiguous donors
    here = adata[obs["sample"] == "AML1012-D0"]
    assert list(here.obs_names) == ["AML1012-D0_ATTG", "AML1012-D0_CTTG", "AML1012-D0_TTTG"]
    assert list(here.obs["cell_type"]) == ["HSC-like", "T", "Mono"]
    assert_array_equal(here.X.toarray(), aml["AML1012-D0"][[0, 1, 3]])
    assert check(adata, "donor", "cell_type").values == "counts"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob(name)).unlink()


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def mend(folder: Path) -> None:
        path = next(folder.glob(name))
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert old.encode() in text
        write(path, text.decode().replace(old, new))

    return mend


def cut(name: str) -> Callable[[Path], None]:
    def half(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return half


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("*AML328*.anno*"), r"no .anno.txt.gz of 1 samples \('AML328-D113'\)"),
        (remove("*MUTZ3.dem*"), r"no .dem.txt.gz of 1 samples \('MUTZ3'\)"),
        (
            change("*MUTZ3.anno*", "CellType", "Type"),
            r"MUTZ3.anno.txt.gz has no column 'CellType'; its columns",
        ),
        (change("*MUTZ3.anno*", "MUTZ3_", "K562_"), "has none of the cells of GSM70_MUTZ3.dem.txt.gz"),
        (change("*MUTZ3.dem*", "XIST\t", "XIST\t3\t"), "line 5, gene 'XIST', has 2 values, but .* 1 cells"),
        (change("*MUTZ3.dem*", "XIST\t", "XIST\t-7"), "line 5: gene 'XIST' has values that are negative"),
        (change("*MUTZ3.dem*", "XIST\t", "XIST\tx"), "line 5: gene 'XIST': could not convert"),
        (
            change("*MUTZ3.dem*", "XIST\t", "XIST\tnan\t"),
            "line 5: gene 'XIST' has values that are .* missing",
        ),
        (cut("*MUTZ3.dem*"), "GSM70_MUTZ3.dem.txt.gz cannot be read"),
        (cut("*MUTZ3.anno*"), "GSM71_MUTZ3.anno.txt.gz cannot be read"),
        (lambda folder: write(next(folder.glob("*MUTZ3.dem*")), ""), "has no genes"),
        (lambda folder: write(next(folder.glob("*MUTZ3.anno*")), ""), "is empty"),
        (lambda folder: [p.unlink() for p in folder.glob("*.dem.*")], "Download GSE116256_RAW.tar"),
        (lambda folder: write_sample(folder, 500, "HL60", ["T"]), "'HL60' is no sample of GSE116256"),
        (
            lambda folder: [p.unlink() for p in folder.glob("*") if "314" not in p.name],
            "samples of 'AML314', 'AML371', .* only",
        ),
    ],
)
@pytest.mark.usefixtures("aml")
def test_aml_that_is_spoilt(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(tmp_path)
    with pytest.raises(ScmedleyError, match=message):
        read_aml(tmp_path)


META = [
    "cell",
    "cluster",
    "sample",
    "individual",
    "region",
    "age",
    "sex",
    "diagnosis",
    "RNA Integrity Number",
]


def write_asd(folder: Path, log2: np.ndarray, digits: int = 6) -> None:
    """Write the cell browser's two files; values are cells x genes."""
    cells = [f"AAACG{i}-1_4341_BA24_10x" for i in range(len(log2))]
    genes = ["ENSG01|WASH7P", "ENSG02|Y_RNA", "ENSG03|Y_RNA", "ENSG04|SHANK3"]
    values = [[f"{v:.{digits}g}" for v in row] for row in log2.T]
    write(folder / "exprMatrix.tsv.gz", table("gene", cells, dict(zip(genes, values, strict=True))))
    donors = ["4341", "5144", "5144", "5144", "6033"]
    rows = {
        cell: [
            "L2/3",
            f"{donor}_BA24",
            donor,
            "ACC",
            20 + i,
            "M",
            "ASD" if donor == "5144" else "Control",
            7.1,
        ]
        for i, (cell, donor) in enumerate(zip(cells, donors, strict=True))
    }
    write(folder / "meta.tsv", table("cell", META[1:], dict(reversed(rows.items()))))


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).negative_binomial(0.3, 0.01, (5, 4))


@pytest.mark.parametrize("digits", [4, 6, 17])
def test_asd(tmp_path: Path, counts: np.ndarray, digits: int) -> None:
    counts = np.minimum(counts, 900)
    write_asd(tmp_path, np.log2(counts + 1), digits)
    adata = read_asd(tmp_path)
    assert isinstance(adata.X, csr_matrix)
    assert_array_equal(adata.X.toarray(), counts)
    assert list(adata.var_names) == ["WASH7P", "Y_RNA_ENSG02", "Y_RNA_ENSG03", "SHANK3"]
    assert list(adata.var["gene_ids"]) == ["ENSG01", "ENSG02", "ENSG03", "ENSG04"]
    obs = adata.obs
    assert list(obs["donor"]) == ["4341", "5144", "5144", "5144", "6033"]  # in the matrix's order
    assert list(obs["diagnosis"]) == ["Control", "ASD", "ASD", "ASD", "Control"]
    assert list(obs["age"]) == [20, 21, 22, 23, 24]
    for name in ("donor", "cell_type", "diagnosis", "sample", "region", "sex"):
        assert isinstance(obs[name].dtype, pd.CategoricalDtype)
    assert {"individual", "cluster"}.isdisjoint(obs.columns)


def test_asd_that_was_normalised_is_not_rounded(tmp_path: Path, counts: np.ndarray) -> None:
    x = counts / (counts.sum(axis=1, keepdims=True) + 1) * 1e4
    write_asd(tmp_path, np.log2(x + 1), 12)
    np.testing.assert_allclose(read_asd(tmp_path).X.toarray(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("meta.tsv"), "has no meta.tsv.gz or meta.tsv"),
        (remove("expr*"), "has no exprMatrix.tsv.gz or exprMatrix.tsv"),
        (change("meta.tsv", "individual", "donor"), "no column 'individual'"),
        (
            change("meta.tsv", "AAACG3", "AAACG7"),
            "1 of 5 cells .* are not in meta.tsv .*'AAACG3-1_4341_BA24_10x'",
        ),
        (
            change("expr*", "SHANK3\t", "SHANK3\tinf\t"),
            "line 5: gene 'ENSG04|SHANK3' has values that are negative",
        ),
    ],
)
def test_asd_that_is_spoilt(
    tmp_path: Path, counts: np.ndarray, spoil: Callable[[Path], None], message: str
) -> None:
    write_asd(tmp_path, np.log2(counts + 1))
    spoil(tmp_path)
    with pytest.raises(ScmedleyError, match=message):
        read_asd(tmp_path)


def heart(columns: dict[str, list[str]]) -> AnnData:
    x = csr_matrix(np.random.default_rng(0).poisson(1.0, (4, 3)).astype(np.float32))
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(4)])
    return AnnData(x, obs=obs.astype("category"), var=pd.DataFrame(index=["TTN", "MYH6", "NPPA"]))


HEART = {
    "sampleID": ["H1", "H1", "H2", "H3"],
    "celltype": ["Fibroblast", "NotAssigned", "NotAssigned", "Endothelial"],
    "region": ["AX", "AX", "LV", "LA"],
    "donor": ["D1", "D1", "D1", "D2"],
}


@pytest.mark.parametrize("donor", [True, False])
def test_healthy_heart(tmp_path: Path, donor: bool) -> None:
    adata = heart(HEART if donor else {k: v for k, v in HEART.items() if k != "donor"})
    adata.write_h5ad(tmp_path / "Healthy_human_heart_adata.h5ad")
    for path in (tmp_path, tmp_path / "Healthy_human_heart_adata.h5ad"):
        read = read_healthy_heart(path)
        assert_array_equal(read.X.toarray(), adata.X.toarray())
        assert isinstance(read.X, csr_matrix)
        assert list(read.obs.columns) == ["sample", "cell_type", "tissue"] + ["donor"] * donor
        assert list(read.obs["sample"]) == HEART["sampleID"]
        assert list(read.obs["cell_type"]) == HEART["celltype"]
        assert list(read.obs["tissue"]) == HEART["region"]
        assert all(isinstance(read.obs[name].dtype, pd.CategoricalDtype) for name in read.obs)


def test_healthy_heart_counts_of_raw(tmp_path: Path) -> None:
    adata = heart(HEART)
    counts = adata.X.toarray()
    adata.raw = adata.copy()
    adata.X = csr_matrix(np.log1p(counts))
    adata[:, ["NPPA", "TTN"]].write_h5ad(tmp_path / "heart.h5ad")
    assert_array_equal(read_healthy_heart(tmp_path).X.toarray(), counts[:, [2, 0]])


def test_healthy_heart_that_is_spoilt(tmp_path: Path) -> None:
    with pytest.raises(ScmedleyError, match=r"has 0 \.h5ad files, not one"):
        read_healthy_heart(tmp_path)
    adata = heart({k: v for k, v in HEART.items() if k != "region"})
    adata.write_h5ad(tmp_path / "heart.h5ad")
    with pytest.raises(
        ScmedleyError, match=r"no obs column 'tissue', 'region'; .*Rename the column with .* tissue"
    ):
        read_healthy_heart(tmp_path)
    adata = heart(HEART)
    x = adata.X.toarray()
    adata.X = csr_matrix(np.log1p(1e4 * x / x.sum(1, keepdims=True)))
    adata.write_h5ad(tmp_path / "heart.h5ad")
    with pytest.raises(ScmedleyError, match="has no counts: X holds log-normalised values"):
        read_healthy_heart(tmp_path)


def marrow() -> AnnData:
    """Four cells in the layout of GSE194122: genes and proteins, counts in a layer, GEX_* columns."""
    counts = csr_matrix(np.random.default_rng(0).poisson(2.0, (4, 5)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "GEX_size_factors": [0.5, 1.0, 1.5, 1.0],
            "GEX_phase": ["G1", "S", "G1", "G2M"],
            "ADT_total_counts": [10.0, 20.0, 30.0, 40.0],
            "cell_type": ["NK", "B1 B", "NK", "B1 B"],
            "batch": ["s1d1", "s1d2", "s2d1", "s2d1"],
            "Site": ["site1", "site1", "site2", "site2"],
            "DonorNumber": ["donor1", "donor2", "donor1", "donor1"],
            "DonorID": [15078, 10886, 15078, 15078],
        },
        index=[f"cell{i}" for i in range(4)],
    )
    var = pd.DataFrame(
        {"feature_types": ["GEX"] * 3 + ["ADT"] * 2}, index=["CD19", "NKG7", "CD14", "CD19-1", "CD56"]
    )
    adata = AnnData(csr_matrix(counts / 3), obs=obs, var=var)
    adata.layers["counts"] = counts
    return adata


def test_bmmc(tmp_path: Path) -> None:
    adata = marrow()
    adata.write_h5ad(tmp_path / "cite.h5ad")
    with pytest.warns(ScmedleyWarning, match="the 3 of type GEX are used; left out: 2 ADT"):
        read = read_bmmc(tmp_path / "cite.h5ad")
    assert_array_equal(read.X.toarray(), adata.layers["counts"].toarray()[:, :3])
    assert list(read.obs.columns) == ["batch", "cell_type", "site", "donor", "GEX_size_factors", "GEX_phase"]
    assert list(read.obs["donor"]) == ["15078", "10886", "15078", "15078"]
    assert list(read.obs["batch"]) == list(adata.obs["batch"])
    adata = adata[:, :3].copy()
    adata.obs = adata.obs.drop(columns="Site")
    adata.write_h5ad(tmp_path / "cite.h5ad")
    with pytest.raises(ScmedleyError, match=r"no obs column for the site"):
        read_bmmc(tmp_path / "cite.h5ad")


@pytest.fixture
def alzheimer(tmp_path: Path) -> np.ndarray:
    """Give the counts of four cells of GSE138852, whose files, as R writes them, are in ``tmp_path``."""
    start = "AACCTGGTAGAAAGG"
    cells = [f"A{start}_AD5_AD6", f"C{start}_AD5_AD6", f"G{start}_Ct1_Ct2", f"T{start}_AD1_AD2"]
    x = np.random.default_rng(0).poisson(2, (4, 3))
    lines = ['"",' + ",".join(f'"{cell}"' for cell in cells)]
    lines += [
        f'"{gene}",' + ",".join(map(str, x[:, i])) for i, gene in enumerate(["FO538757.2", "NOC2L", "APOE"])
    ]
    write(tmp_path / "GSE138852_counts.csv.gz", "\n".join(lines) + "\n")
    names = ["batchCond", "cellType", "cellType_batchCond", "subclustID", "subclustCond"]
    rows = ['"",' + ",".join(f'"oupSample.{name}"' for name in names)]
    kinds = [("AD", "oligo"), ("AD", "unID"), ("ct", "mg"), ("AD", "mg")]
    for cell, (condition, kind) in zip(cells, kinds, strict=True):
        rows.append(f'"{cell}","{condition}","{kind}","{kind}_{condition}","{kind[0]}1","{condition}"')
    write(tmp_path / "GSE138852_covariates.csv.gz", "\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    return x


def test_alzheimer(tmp_path: Path, alzheimer: np.ndarray) -> None:
    adata = read_alzheimer(tmp_path)
    assert_array_equal(adata.X.toarray(), alzheimer)
    assert list(adata.var_names) == ["FO538757.2", "NOC2L", "APOE"]
    assert list(adata.obs.columns) == ["donor", "cell_type", "condition", "subcluster"]
    assert list(adata.obs["donor"]) == ["AD5_AD6", "AD5_AD6", "Ct1_Ct2", "AD1_AD2"]
    assert list(adata.obs["condition"]) == ["AD", "AD", "ct", "AD"]
    assert list(adata.obs["cell_type"]) == ["oligo", "unID", "mg", "mg"]
    assert list(adata.obs["subcluster"]) == ["o1", "u1", "m1", "m1"]
    assert check(adata, "donor", "cell_type").values == "counts"
    path = tmp_path / "GSE138852_counts.csv.gz"
    write(tmp_path / "GSE138852_counts.csv", gzip.decompress(path.read_bytes()).decode())
    path.unlink()
    assert_array_equal(read_alzheimer(tmp_path).X.toarray(), alzheimer)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("*counts*"), r"has no GSE138852_counts.csv.gz or GSE138852_counts.csv"),
        (change("*covariates*", 'cellType"', 'kind"'), "has no column 'oupSample.cellType'"),
        (change("*covariates*", "_AD1_AD2", "_AD2_AD1"), r"1 of 4 cells .*'TAACCTGGTAGAAAGG_AD1_AD2'"),
        (cut("*covariates*"), "cannot be read"),
    ],
)
def test_alzheimer_errors(tmp_path: Path, alzheimer: np.ndarray, spoil: Callable, message: str) -> None:
    spoil(tmp_path)
    with pytest.raises(ScmedleyError, match=message):
        read_alzheimer(tmp_path)


def test_alzheimer_cell_without_its_pool(tmp_path: Path, alzheimer: np.ndarray) -> None:
    for kind in ("counts", "covariates"):
        change(f"*{kind}*", "_AD1_AD2", "")(tmp_path)
    with pytest.raises(ScmedleyError, match="1 cells have no pool in their name"):
        read_alzheimer(tmp_path)


def test_text_as_r_and_others_write_it(tmp_path: Path) -> None:
    """Quotes, no corner, 0.0 and 1e3, no gzip, blank lines at the end."""
    write(tmp_path / "a.tsv", '"c1"\t"c2"\t"c3"\n"g1"\t0\t0.0\t1e3\r\n"g2"\t7\t0\t0.5\n\n')
    adata = read_genes(tmp_path / "a.tsv")
    assert list(adata.obs_names) == ["c1", "c2", "c3"]
    assert list(adata.var_names) == ["g1", "g2"]
    assert_array_equal(adata.X.toarray(), [[0, 7], [0, 0], [1000, 0.5]])
    assert adata.X.nnz == 3


def test_published_scores() -> None:
    table = papers.published()
    assert not table[["data_set", "method", "score", "of", "value", "source", "dimension"]].isna().any().any()
    assert not table.duplicated(["data_set", "method", "score", "of", "source"]).any()
    assert set(map(tuple, table[["source", "dimension"]].drop_duplicates().to_numpy())) == {
        ("release", 50),
        ("preprint", 2),
    }
    asw = table[(table["source"] == "release") & (table["score"] == "ASW")]
    assert len(asw) == 11 * 3 * 2
    value = asw.set_index(["data_set", "method", "of"])["value"]
    assert value["AML", "RE", "batch"] == 0.69
    assert value["Heart", "scANVI", "label"] == 0.32
    bounded = table[~table["score"].isin(["CH", "1/DB"])]
    assert bounded["value"].abs().max() <= 1
    with_interval = table.dropna(subset="low")
    assert (with_interval["low"] <= with_interval["value"]).all()
    assert (with_interval["value"] <= with_interval["high"]).all()
    forest = table[(table["score"] == "accuracy") & (table["of"] == "label")].set_index(
        ["data_set", "method"]
    )
    assert forest.loc[("Heart", "FE+RE"), "value"] == 0.886


def test_published_weights_fit_the_settings() -> None:
    assert papers.LOSS_WEIGHTS["release"]["AML"]["FEC"] == {
        "mse_weight": 2000,
        "adversary_weight": 0.5,
        "label_weight": 3,
    }
    for source in papers.LOSS_WEIGHTS.values():
        assert list(source) == ["AML", "ASD", "Heart"]
        for methods in source.values():
            fields = {f.name for f in dataclasses.fields(AdversarialSettings)}
            assert set(methods["FE"]) <= fields
            assert set(methods["RE"]) <= {f.name for f in dataclasses.fields(RandomEffectsSettings)}


@pytest.mark.usefixtures("aml")
def test_donor_folds_take_what_was_read(tmp_path: Path) -> None:
    obs = read_aml(tmp_path).obs
    obs = obs[obs["patient_group"] != "healthy"]  # one donor only
    parts = donor_folds(obs["donor"], obs["patient_group"], n_folds=3, seed=0)
    assert ((parts == "test").sum(axis=0) == 1).all()
