"""Genes by name, id or symbol: matched between files and models, and shown."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix, hstack

from scmedley import interpret, io, load
from scmedley.data.features import genes_alone, genomes
from scmedley.data.gene_names import GeneNames, match, oddities, rows_are_genes, shown, shown_in
from scmedley.errors import ScmedleyError, ScmedleyWarning, heard
from scmedley.models.counterfactual import counterfactual
from scmedley.models.export import export
from scmedley.pipeline.findings import _genes
from scmedley.pl.batch_shifts import _of_label
from scmedley.pp import log_normalised, prepare
from tiny import FIT, nested_design, prepared_design, unfitted

N = 40
IDS = [f"ENSG{i:011d}" for i in range(N)]
SYMBOLS = [f"SYM{i}" for i in range(N)]
VERSIONED = [f"{gene}.{i % 12}" for i, gene in enumerate(IDS)]


def names(index: list[str], **columns: list[str]) -> GeneNames:
    return GeneNames.of(pd.DataFrame(columns, index=index))


@pytest.mark.parametrize(
    ("wanted", "given", "way"),
    [
        (names(SYMBOLS), names(SYMBOLS), ""),
        (names(SYMBOLS), names(IDS, feature_name=SYMBOLS), "names on one side and symbols"),
        (names(IDS), names(SYMBOLS, gene_ids=IDS), "names on one side and ids"),
        (names(IDS, Gene_Symbol=SYMBOLS), names(SYMBOLS), "symbols on one side and names"),
        (names(SYMBOLS, gene_ids=IDS), names(IDS), "ids on one side and names"),
        (names([f"a{i}" for i in range(N)], gene_ids=IDS), names(SYMBOLS, ensembl=IDS), "their ids"),
        (names(IDS), names(VERSIONED), "without version"),
        (names(VERSIONED), names(SYMBOLS, gene_id=IDS), "without version"),
    ],
)
def test_genes_are_found_by_any_name_that_both_sides_have(
    wanted: GeneNames, given: GeneNames, way: str
) -> None:
    order = np.random.default_rng(0).permutation(N)
    place, said = match(wanted, given.take(order))
    assert_array_equal(order[place], np.arange(N))
    assert way in said
    assert bool(way) == bool(said)


def test_another_name_must_find_clearly_more() -> None:
    """Of 40 genes 4 is a tenth."""
    here = names([*SYMBOLS[:37], "x", "y", "z"], gene_ids=IDS)
    there = names(SYMBOLS, gene_ids=IDS)
    place, said = match(there, here)
    assert (place >= 0).sum() == 37
    assert said == ""
    here = names([*SYMBOLS[:36], "w", "x", "y", "z"], gene_ids=IDS)
    assert (match(there, here)[0] >= 0).sum() == 40


def test_a_symbol_of_several_genes_stands_for_none() -> None:
    twice = ["SYM1", "SYM1", *SYMBOLS[2:]]
    for wanted, given in (
        (names(SYMBOLS), names(IDS, symbol=twice)),
        (names(IDS, symbol=twice), names(SYMBOLS)),
    ):
        place, _ = match(wanted, given)
        assert list(place[:3]) == [-1, -1, 2]
    par = ["ENSG00000182378.14", "ENSG00000182378.14_PAR_Y", *VERSIONED[2:]]
    place, _ = match(names(["ENSG00000182378", *IDS[1:]]), names(par))
    assert list(place[:2]) == [0, -1]


def test_a_clone_is_no_id_with_a_version() -> None:
    clones = [f"AC{i:06d}.1" for i in range(N)]
    assert (match(names([c[:-2] for c in clones]), names(clones))[0] == -1).all()


def test_shown() -> None:
    assert shown(["E1", "E2", "E3", "E4"], ["A", "B", "B", ""]) == ["A", "B (E2)", "B (E3)", "E4"]
    assert names(IDS, feature_name=SYMBOLS).shown == tuple(SYMBOLS)
    assert names(SYMBOLS, gene_ids=IDS).shown == tuple(SYMBOLS)
    assert names([str(i) for i in range(N)], symbols=SYMBOLS).shown == tuple(SYMBOLS)
    table = pd.DataFrame({"gene": ["E1", "E1", "E2"], "symbol": ["A", "A", None]})
    assert list(shown_in(table)["gene"]) == ["A", "A", "E2"]
    assert shown_in(table[["gene"]]).equals(table[["gene"]])


def test_oddities() -> None:
    odd = ["1-Mar", "Sep-02", "2021-03-01 00:00:00", "nan", "", "a,b", *SYMBOLS]
    dates, blank = oddities(odd)
    assert dates.startswith("3 gene names look like dates ('1-Mar', 'Sep-02', '2021")
    assert blank.startswith("2 genes have no name ('nan', '')")
    assert oddities(["0", "1", "2"])[0].startswith("Gene names are numbers")
    assert oddities([*SYMBOLS, "MARCHF1", "NA"]) == []


@pytest.mark.parametrize(
    ("rows", "columns", "turned"),
    [
        (["ACTB", "GAPDH", "X"], ["V1", "V2"], True),
        (IDS, ["c1", "c2"], True),
        (["g1", "g2"], ["AAACATACAACCAC-1", "s_AAACATTGAGCTAC"], True),
        (["c1", "c2"], ["ACTB", "GAPDH"], False),
        (["AAACATACAACCAC-1"], ["g1", "g2"], False),
        (["c1"], ["g1", "g2"], False),
        (["ACTB", "GAPDH"], ["MT-CO1", "RPL13"], False),
    ],
)
def test_which_way_round_a_table_is(rows: list[str], columns: list[str], turned: bool) -> None:
    assert rows_are_genes(rows, columns) is turned


# -- models --------------------------------------------------------------------------------------------------------


def with_ids(adata: AnnData) -> AnnData:
    number = [int(name[1:]) for name in adata.var_names]
    adata.var["feature_name"] = pd.Categorical([SYMBOLS[i] for i in number])
    adata.var_names = [IDS[i] for i in number]
    return adata


@pytest.fixture(scope="module")
def model():
    return unfitted("random").fit(with_ids(prepared_design()), **FIT)


def called(index: list[str], **columns: list[str]) -> AnnData:
    """The cells with other names of genes, in another order."""
    adata = nested_design()
    adata.var = pd.DataFrame(columns, index=index)
    return adata[:, np.random.default_rng(1).permutation(N)].copy()


@pytest.mark.parametrize(
    "query", [called(SYMBOLS), called(VERSIONED), called([f"x{i}" for i in range(N)], gene_ids=IDS)]
)
def test_a_query_with_other_names_gives_the_same_latent(model, query: AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    expected = model.get_latent_representation(with_ids(nested_design()))
    with pytest.warns(ScmedleyWarning, match="39 of 39 were found, 0 by name"):
        found = load(tmp_path / "model").get_latent_representation(query)
    assert_allclose(found, expected, atol=1e-5)


def test_genes_of_raw_have_names_of_their_own(model) -> None:
    query = called(SYMBOLS)
    logged = AnnData(query.X.copy(), query.obs, query.var)
    logged.raw = query
    logged.X = query.X.log1p() - csr_matrix(np.full(query.shape, 0.5, np.float32))  # scaled: raw is used
    with pytest.warns(ScmedleyWarning, match="39 of 39"):
        assert_allclose(
            model.get_latent_representation(logged),
            model.get_latent_representation(with_ids(nested_design())),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        (called([f"y{i}" for i in range(N)]), r"var\['gene_ids'\]"),
        (called([name.lower() for name in IDS]), "upper and lower case"),
        (AnnData(np.ones((N, 50), np.float32), obs=pd.DataFrame(index=IDS)), "swap rows and columns"),
    ],
)
def test_genes_that_are_not_found_get_a_hint(model, query: AnnData, hint: str) -> None:
    with pytest.raises(ScmedleyError, match=rf"39 of the model's 39 genes are missing .*{hint}"):
        model.embed(query, unknown="mean")


def test_symbols_are_shown_beside_ids(model) -> None:
    adata = with_ids(prepared_design())
    assert list(model.reconstruct(adata).var["gene_symbols"]) == list(model.gene_names.symbols)
    assert list(counterfactual(model, adata[:3], "d1").var["gene_symbols"]) == list(model.gene_names.symbols)
    table = interpret.gene_shifts(model, adata, "cell_type", draws=2, n_top=3)
    assert list(table.columns[2:4]) == ["gene", "symbol"]
    assert (table["symbol"] == [SYMBOLS[IDS.index(gene)] for gene in table["gene"]]).all()
    assert set(_of_label(table, "B")["gene"]) <= set(SYMBOLS)
    sure = table.assign(q05=1.0, q95=2.0, observed=table["shift"])
    assert _genes(sure).startswith("SYM")
    assert export(model).shown == model.gene_names.symbols
    plain = unfitted("random", max_epochs=1).fit(prepared_design(), **FIT)
    assert "symbol" not in interpret.gene_shifts(plain, prepared_design(), draws=2, n_top=3)


# -- features ------------------------------------------------------------------------------------------------------


def with_antibodies(adata: AnnData, column: str = "feature_types") -> AnnData:
    extra = csr_matrix(np.random.default_rng(0).poisson(500, (adata.n_obs, 3)).astype(np.float32))
    kinds = ["Gene Expression"] * adata.n_vars + ["Antibody Capture"] * 2 + ["CRISPR Guide Capture"]
    var = pd.DataFrame({column: pd.Categorical(kinds)}, index=[*adata.var_names, "CD3", "CD4", "guide"])
    return AnnData(hstack([adata.X, extra], format="csr"), obs=adata.obs, var=var)


def test_other_features_are_left_out_everywhere(tmp_path: Path) -> None:
    plain, said = (
        nested_design(),
        "40 of type Gene Expression are used; left out: 2 Antibody Capture, 1 CRISPR",
    )
    with_antibodies(plain, "feature_type").write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(ScmedleyWarning, match=said):
        assert list(io.read(tmp_path / "a.h5ad").var_names) == list(plain.var_names)
    ours, theirs = with_antibodies(plain), plain.copy()
    ours.raw = ours
    assert any(said in line for line in prepare(ours, "donor", min_cells=1).warnings)
    prepare(theirs, "donor", min_cells=1)
    assert_array_equal(ours.layers["log1p_cp10k"].toarray(), theirs.layers["log1p_cp10k"].toarray())
    assert "CD3" not in ours.raw.var_names
    query = with_antibodies(plain)
    with pytest.warns(ScmedleyWarning, match=said):  # their counts are no part of the size factor
        x, _ = log_normalised(query, list(plain.var_names))
    assert_allclose(x.toarray(), log_normalised(plain, list(plain.var_names))[0].toarray(), rtol=1e-6)
    assert query.n_vars == 43


@pytest.mark.parametrize("names", [("Gene Expression", "Antibody Capture"), ("GEX", "ADT"), ("GEX", "ATAC")])
def test_names_of_feature_types(names: tuple[str, str]) -> None:
    adata = nested_design()
    adata.var["feature_types"] = [names[0]] * 37 + [names[1]] * 3
    alone, said = genes_alone(adata)
    assert list(alone.var_names) == list(adata.var_names[:37])
    assert said == f"Of 40 features the 37 of type {names[0]} are used; left out: 3 {names[1]}."
    with pytest.raises(ScmedleyError, match="No feature is of type"):
        genes_alone(adata[:, 37:])


def test_feature_types_that_mean_something_else() -> None:
    adata = nested_design()
    adata.var["feature_type"] = ["protein_coding", "lncRNA"] * 20
    assert genes_alone(adata) == (adata, "")
    adata.var["feature_types"] = "Peaks"
    with pytest.raises(
        ScmedleyError, match=r"No feature is of type 'Gene Expression' or 'GEX'; the types are \['Peaks'\]"
    ):
        genes_alone(adata)


def test_two_genomes_are_warned_of() -> None:
    assert genomes(pd.DataFrame({"genome": ["GRCh38"] * 3 + [""]})) == ""
    assert "GRCh38 (2), mm10 (1)" in genomes(pd.DataFrame({"genome": ["GRCh38", "GRCh38", "mm10"]}))


def test_symbols_that_repeat_get_their_id(tmp_path: Path) -> None:
    adata = nested_design()
    adata.var["gene_ids"] = IDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = ["g1", "g1", *adata.var_names[2:]]
    adata.write_h5ad(tmp_path / "a.h5ad")
    with heard() as said:
        assert list(io.read(tmp_path / "a.h5ad").var_names[:3]) == [f"g1_{IDS[0]}", f"g1_{IDS[1]}", "g2"]
    assert "2 genes share their symbol with another gene ('g1')" in said[0]


def test_antibodies_of_a_backed_file(tmp_path: Path) -> None:
    plain = nested_design()
    with_antibodies(plain).write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.warns(ScmedleyWarning, match="left out"):
        x, _ = log_normalised(backed, list(plain.var_names))
    assert_allclose(x.toarray(), log_normalised(plain, list(plain.var_names))[0].toarray(), rtol=1e-6)
