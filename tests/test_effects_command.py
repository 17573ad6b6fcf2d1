"""``scmedley effects``: what it writes, what its page shows, and what it says when it cannot go on."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from donors_in_groups import donors_in_groups
from running import Shell
from scmedley.interpret import composition, condition_effects
from scmedley.pipeline.effects import findings
from scmedley.report import figures
from scmedley.report.effects import limits
from test_report import EVIL, Page

FILES = {
    *("effects.csv", "composition.csv", "shares.csv", "effects.html", "effects.json", "versions.json"),
    *("variance.csv", "sample_distances.csv", "sample_association.csv"),
}
ASKED = ("--condition", "condition", "--donor", "donor")


@pytest.fixture
def shell(capsys):
    return Shell(capsys)


@pytest.fixture
def quick(monkeypatch):
    """Draw nothing."""
    monkeypatch.setattr(
        figures, "picture", lambda draw, size, alt, title: figures.Picture("", "", alt, title)
    )


def cells(**changes):
    """Paired donors; types of the cells, ages of the donors and studies; B cells of a donor are missing."""
    adata = donors_in_groups(6, 60, 8, paired=True, change=2.5, **changes)
    place = adata.obs["donor"].astype(str).str[1:].astype(int)
    adata.obs["age"], adata.obs["study"] = 30.0 + place, np.where(place < 3, "one", "two")
    return adata


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


def test_the_folder_holds_tables_page_and_record(shell, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        figures, "png", lambda figure, dpi: b""
    )  # drawn, but not rendered, which takes seconds
    out = tmp_path / "effects"
    said = shell.well("effects", data, *ASKED, "--label", "type", "--out", out, "--threads", 1)
    assert {path.name for path in out.iterdir()} == FILES
    adata = cells()
    table = condition_effects(adata, "condition", "donor", "type")
    stored = pd.read_csv(out / "effects.csv", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(stored.fillna({"reason": ""}), table, check_dtype=False, rtol=1e-6)
    shares = composition(adata, "condition", "donor", "type")
    assert pd.read_csv(out / "composition.csv")["label"].tolist() == shares["label"].tolist()
    assert len(pd.read_csv(out / "shares.csv")) == 12 * 2
    record = json.loads((out / "effects.json").read_text())
    assert record["config"]["condition"] == "condition"
    assert [c["label"] for c in record["contrasts"]] == ["A", "B"]
    assert record["findings"][: len(findings(table))] == findings(table)
    assert "B, stim - ctrl (6 donors): " in said
    assert all(f"  - {sentence}" in said for sentence in record["findings"])
    assert f"Report: {(out / 'effects.html').resolve()}" in said
    shown = Page((out / "effects.html").read_text(encoding="utf-8"))
    for words in (
        "Effects of condition, with donors as replicates",
        "B, stim - ctrl (6 donors): ",
        "ctrl: 6, stim: 6",
        "Composition",
    ):
        assert words in shown.text
    images = [attrs for tag, attrs in shown.tags if tag == "img"]
    assert len(images) == 2 + 2 + 1 + 3  # dots and heat map, volcanoes, composition, variance and samples
    assert all(attrs["alt"] for attrs in images)
    first = table[table["label"] == "B"].iloc[0]
    assert first["gene"] in shown.text
    assert f"{first['effect']:+.2f}".replace("-", "−") in shown.text


def test_covariates_studies_and_a_reference(shell, data, tmp_path, quick):
    out = tmp_path / "effects"
    options = (
        "--reference",
        "stim",
        "--covariate",
        "age",
        "--nested-in",
        "study",
        "--label",
        "type",
        "--quiet",
    )
    assert shell.well("effects", data, *ASKED, *options, "--out", out) == ""
    table = pd.read_csv(out / "effects.csv")
    assert set(table["contrast"]) == {"ctrl - stim"}
    assert table["influential_donor"].str.match("(one|two)/d[0-5]").all()
    assert json.loads((out / "effects.json").read_text())["config"]["covariates"] == ["age"]
    assert "adjusted for study, and adjusted for age" in (out / "effects.html").read_text()


def test_without_labels_all_cells_are_tested_and_the_page_says_what_that_means(shell, data, tmp_path, quick):
    out = tmp_path / "effects"
    shell.well("effects", data, *ASKED, "--out", out)
    assert {path.name for path in out.iterdir()} == FILES - {"composition.csv", "shares.csv"}
    assert set(pd.read_csv(out / "effects.csv")["label"]) == {"all cells"}
    shown = Page((out / "effects.html").read_text())
    assert "No composition: no labels were given." in shown.text
    assert "a change of composition alone gives effects" in shown.text


def test_few_donors_and_confounding_are_told(shell, tmp_path, quick):
    adata = donors_in_groups(4, 40)
    adata.obs["study"] = np.where(adata.obs["condition"] == "ctrl", "one", "two")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "few"
    said = shell(
        "effects", tmp_path / "cells.h5ad", *ASKED, "--label", "type", "--nested-in", "study", "--out", out
    )
    assert said.code == 0
    assert (
        "No test: A, stim - ctrl; B, stim - ctrl: confounded: obs 'study' determines the condition"
        in said.out
    )
    assert pd.read_csv(out / "effects.csv")["p"].isna().all()
    assert "Composition: no test (confounded" in said.out
    shell.well("effects", tmp_path / "cells.h5ad", *ASKED, "--label", "type", "--out", out, "--overwrite")
    shown = Page((out / "effects.html").read_text()).text
    assert "All tests rest on fewer than 5 donors a group" in shown
    assert "whatever else differs between the groups" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--condition", "conditon", "--donor", "donor"], "Did you mean 'condition'?"),
        (
            ["--condition", "condition", "--donor", "patient"],
            "The donor key 'patient' is not a column of obs.",
        ),
        ([*ASKED, "--label", "kind"], "The label key 'kind' is not a column of obs."),
        ([*ASKED, "--covariate", "sex"], "The covariate key 'sex' is not a column of obs."),
        ([*ASKED, "--nested-in", "donor"], "The column 'donor' has two roles."),
        ([*ASKED, "--reference", "untreated"], "The reference 'untreated' is no level of obs['condition']."),
        ([*ASKED, "--min-donors", "1"], "min_donors=1"),
        ([*ASKED, "--min-cells", "1.5"], "1.5 is not a whole number"),
        (["--condition", "condition"], "--donor"),
    ],
)
def test_bad_flags_say_why_and_leave_nothing(shell, data, tmp_path, options, words):
    out = tmp_path / "effects"
    assert words in shell("effects", data, *options, "--out", out).error
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_if_asked_and_only_its_own(shell, data, tmp_path, quick):
    out = tmp_path / "effects"
    shell.well("effects", data, *ASKED, "--out", out)
    assert "holds an estimate of effects already" in shell("effects", data, *ASKED, "--out", out).error
    shell.well("effects", data, *ASKED, "--out", out, "--overwrite")
    (out / "mine.txt").write_text("mine")
    assert "other files" in shell("effects", data, *ASKED, "--out", out, "--overwrite").error
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    assert (
        "is no folder of" in shell("effects", data, *ASKED, "--out", tmp_path / "other", "--overwrite").error
    )


def test_a_failure_while_writing_leaves_nothing(shell, data, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scmedley.pipeline.effects.write_effects", fails)
    assert "The disk is full" in shell("effects", data, *ASKED, "--out", tmp_path / "effects").error
    assert not list(tmp_path.iterdir())


def test_names_from_the_data_are_escaped(shell, tmp_path, quick):
    adata = cells()
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"A": EVIL, "B": "b"})
    adata.obs["donor"] = adata.obs["donor"].astype(str) + EVIL
    adata.var_names = [EVIL + gene for gene in adata.var_names]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "effects"
    shell("effects", tmp_path / "cells.h5ad", *ASKED, "--label", "type", "--out", out)
    html = (out / "effects.html").read_text(encoding="utf-8")
    assert not re.findall("<script", html)
    assert Page(html).text.count(EVIL) > 30


@pytest.mark.parametrize("name", ["gene", "sample", "cells"])
def test_columns_may_have_the_names_of_ours_and_blank_values(shell, tmp_path, quick, name):
    adata = cells()
    adata.obs["donor"] = adata.obs["donor"].cat.add_categories([" "])
    adata.obs.iloc[:5, adata.obs.columns.get_loc("donor")] = " "
    adata.obs = adata.obs.rename(columns={"donor": name})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    asked = ("--condition", "condition", "--donor", name, "--label", "type", "--out", tmp_path / "out")
    assert shell("effects", tmp_path / "cells.h5ad", *asked).code == 0
    assert json.loads((tmp_path / "out" / "effects.json").read_text())["not_shown"] == {}


def test_findings_name_genes_that_rest_on_one_donor():
    table = pd.DataFrame(
        {
            "label": "A",
            "contrast": "b - a",
            "gene": ["g0", "g1", "g2"],
            "effect": [2.0, -2.0, 1.0],
            "influence": [-1.5, 0.5, np.nan],
            "q": [0.01, 0.01, 0.5],
        }
    )
    table.attrs["contrasts"] = [
        {"label": "A", "contrast": "b - a", "donors": 6, "reason": "", "tested": 3},
    ]
    assert findings(table) == [
        "A, b - a (6 donors): 2 of 3 genes at q ≤ 0.05: g0 (+2.0), g1 (-2.0). 1 of them would be less than half as "
        "large without one donor."
    ]


def test_limits_are_about_the_smaller_group():
    one = {"label": "A", "contrast": "b - a", "reason": "", "design": "groups", "donors": 12}
    config = {"covariates": ["age"], "label": "type"}
    record = {"config": config, "input": {"genes": 2000}}
    record["contrasts"] = [one | {"label": label, "donors_by_level": "a: 6, b: 6"} for label in "AB"]
    assert limits(record) == []
    record["contrasts"] = [one | {"label": label, "donors_by_level": "a: 9, b: 3"} for label in "AB"]
    assert limits(record)[0].startswith("All tests rest on fewer than 5 donors a group")


def test_limits_name_a_single_label_and_a_panel():
    one = {"label": "A", "contrast": "b - a", "reason": "", "design": "paired", "donors": 6}
    record = {"config": {"covariates": [], "label": "type"}, "input": {"genes": 100}, "contrasts": [one]}
    single, panel = limits(record)
    assert single.startswith("All cells are 'A': a change of composition alone gives effects")
    assert panel.startswith("The file has 100 genes, and depths are estimated from them")


def test_one_label_is_no_term_of_the_variance(shell, tmp_path, quick):
    adata = cells()
    adata.obs["type"] = "unlabelled"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "effects"
    shell.well("effects", tmp_path / "cells.h5ad", *ASKED, "--label", "type", "--out", out)
    assert list(pd.read_csv(out / "variance.csv", index_col=0)) == ["condition", "donor", "residual"]
    assert "All cells are 'unlabelled'" in Page((out / "effects.html").read_text()).text


def test_small_slopes_keep_their_digits(shell, tmp_path, quick):
    adata = donors_in_groups(8, 40)
    adata.obs["dose"] = 1000.0 * adata.obs["donor"].astype(str).str[1:].astype(float)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "effects"
    shell.well("effects", tmp_path / "cells.h5ad", "--condition", "dose", "--donor", "donor", "--out", out)
    row = pd.read_csv(out / "effects.csv").iloc[0]
    shown = Page((out / "effects.html").read_text()).text
    assert "dose, per unit" in shown
    assert f"{row['effect']:+.5f}".replace("-", "−") in shown
