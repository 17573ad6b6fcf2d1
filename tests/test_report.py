import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import h5py
import numpy as np
import pandas as pd
import pytest

import run_folder
from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.interpret import trust
from scmedley.interpret.check import AGREEMENT, BASELINE, TOO_FEW, agreement, summarise
from scmedley.pipeline.verdicts import LOST_LITTLE, LOST_SOME
from scmedley.report import sections
from scmedley.report.build import build
from scmedley.report.figures import training
from scmedley.report.numbers import count, number, signed
from scmedley.runs.read import read

VOID = {"meta", "img", "br", "source", "circle", "rect", "line", "link", "input", "hr"}
SECTIONS = ["findings", "warnings", "explorer", "data", "maps", "scores", "shifts", "check"]
SECTIONS += ["training", "run", "glossary"]
EVIL = "<script>alert(1)</script>\"'&$x_1$"


class Page(HTMLParser):
    """Reads a page and fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.ids = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def sections_of(shown: Page) -> list[str]:
    return [i for i in shown.ids if not i.endswith("-title") and not i.startswith("ex-")]


def page(folder) -> Page:
    return Page(build(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run_folder.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def full_page(full):
    return page(full)


def test_all_sections_stand_once_and_the_links_lead_to_them(full_page):
    assert sections_of(full_page) == SECTIONS
    assert len(set(full_page.ids)) == len(full_page.ids)
    links = [attrs["href"] for tag, attrs in full_page.tags if tag == "a"]
    assert {f"#{name}" for name in SECTIONS} == set(links)
    for words in (
        "kNN leak 0.02 (null 0.01",
        "Only 3 batches",
        "identifiable",
        "never observed: extrapolation",
    ):
        assert words in full_page.text
    assert "CEL-seq2" in full_page.text
    assert "null 0.010 ± 0.012 · as the null" in full_page.text
    assert "9f" * 32 in full_page.text


def test_verdicts_come_first_each_with_a_mark_in_words(full, full_page):
    text, html = full_page.text, (full / "report.html").read_text(encoding="utf-8")
    lines = ["~ weak Is the batch out? Measured for the batch out.", "✓ good Is the label kept?"]
    places = [text.index(line) for line in [*lines, "leakage 0.270 pairs, good 9", "Only 3 batches"]]
    assert places == sorted(places)
    folds = [attrs for tag, attrs in full_page.tags if tag == "details"]
    assert "open" not in folds[0]  # the findings in words and the numbers
    assert f"within {100 * LOST_LITTLE:.0f} percentage points; weak: within {100 * LOST_SOME:.0f}." in text
    assert 'class="v-weak"' in html
    for mark in ("good", "weak", "failed"):
        assert f".v-{mark}{{" in html


def test_what_cannot_be_compared_comes_before_the_verdicts(tmp_path):
    folder = run_folder.write(tmp_path, brief=True)
    path = folder / "run.json"
    settings = json.loads(path.read_text()) | {"comparable": False, "verdict": "No two share a label."}
    path.write_text(json.dumps(settings))
    text = page(folder).text
    assert text.index("No two share a label. So no mark below is better than weak.") < text.index("weak Is")
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "verdicts"}))  # an older run
    folds = [attrs for tag, attrs in page(folder).tags if tag == "details"]
    assert "open" in folds[0]


def test_nothing_is_loaded_from_anywhere_and_no_script_but_ours_may_run(full, full_page):
    html = (full / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    scripts = [attrs for tag, attrs in full_page.tags if tag == "script"]
    assert scripts == [{"type": "text/plain", "id": "ex-data"}, {}]
    for _, attrs in full_page.tags:
        for name in ("src", "srcset", "href", "data", "action", "style", "onload", "onclick"):
            assert attrs.get(name, "#").startswith(("data:image/png;base64,", "#"))
    policy = next(a["content"] for _, a in full_page.tags if a.get("http-equiv") == "Content-Security-Policy")
    ours = digest(re.search(r"<script>(.*?)</script>", html, re.S)[1])
    style = digest(re.search(r"<style>(.*?)</style>", html, re.S)[1])
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{ours}'; "
        "base-uri 'none'; form-action 'none'"
    )


def digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def test_pictures_have_words_and_tables_have_scopes(full_page):
    pictures = [attrs for tag, attrs in full_page.tags if tag == "img" and attrs.get("class") != "dark"]
    assert len(pictures) == 6 + 11 + 14  # maps, training curves, scores
    assert all(attrs["alt"] for attrs in pictures)
    assert all("scope" in attrs for tag, attrs in full_page.tags if tag == "th")
    alts = [attrs["alt"] for attrs in pictures]
    assert "UMAP, Fixed effects: 600 cells coloured by batch, 3 levels." in alts
    assert any(alt.endswith("kept epoch 26.") for alt in alts)


def test_names_from_the_data_are_escaped_everywhere(tmp_path):
    folder = run_folder.write(
        tmp_path,
        brief=True,
        batches=[EVIL, "b", "_c"],
        labels=["x" + EVIL, "NA", "y"],
        genes=[EVIL + str(i) for i in range(12)],
    )
    settings = folder / "run.json"
    evil = EVIL.replace('"', '\\"')
    text = (
        settings.read_text()
        .replace("cells.h5ad", evil)
        .replace("Only 3 batches", evil)
        .replace("2.13.0", evil)
    )
    settings.write_text(text)
    history = pd.read_csv(folder / "history.csv").replace("kl", EVIL)
    history.to_csv(folder / "history.csv", index=False)
    shown = page(folder)
    assert len(re.findall("<script", (folder / "report.html").read_text(encoding="utf-8"))) == 2
    assert shown.text.count(EVIL) > 30
    assert "NA" in shown.text.split()  # a label called NA is not a missing value


def test_same_folder_gives_same_bytes_whatever_the_users_matplotlib_settings(full, full_page):
    import matplotlib

    first = (full / "report.html").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "red", "lines.linewidth": 9}):
        assert build(full).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 30
    assert [path.name for path in full.iterdir() if path.suffix == ".html"] == ["report.html"]


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (["labels"], ["No map by label: the run had no labels", "was not judged"]),
        (["labels"], ["leaks are not measured within labels. They include differences in composition"]),
        (["labels"], ["the observed shifts include differences in composition"]),
        (["gene_shifts.csv"], ["No gene shifts: gene_shifts.csv is not in the run folder"]),
        (["counterfactual_check.csv"], ["were not checked on held-out cells"]),
        (["pca"], ["No map: the run stored no X_scmedley_pca"]),
        (["umap"], ["first two dimensions, no UMAP in this run"]),
        (["null"], ["was not trained again on permuted batches"]),
        (["scores.csv", "history.csv"], ["No scores: ", "No training curves: "]),
        (["integrated.h5ad"], ["integrated.h5ad is not in the run folder", "No map by batch: "]),
    ],
)
def test_what_is_missing_is_said(tmp_path, without, words):
    shown = page(run_folder.write(tmp_path, brief=True, without=without))
    assert sections_of(shown) == SECTIONS
    for sentence in words:
        assert sentence in shown.text


def test_many_batches_stay_readable(tmp_path):
    batches = [f"donor {i}" for i in range(150)]
    shown = page(run_folder.write(tmp_path, batches=batches, n_cells=3000, brief=True))
    assert "they repeat" in shown.text
    legends = [attrs for tag, attrs in shown.tags if tag == "details" and attrs.get("class") == "legend"]
    assert ["open" in attrs for attrs in legends] == [False, True]
    assert all(name in shown.text for name in batches)


def test_a_history_of_a_run_killed_after_its_fit_has_numbers(tmp_path):
    folder = run_folder.write(tmp_path, brief=True)
    older = pd.read_csv(folder / "history.csv")
    older.assign(weight=0.5, kept=older["epoch"] == 7).to_csv(folder / "history.csv", index=False)
    record = json.loads((folder / "run.json").read_text())
    del record["networks"]  # written after the history
    (folder / "run.json").write_text(json.dumps(record))
    run = read(folder)
    assert run.history.weight.mul(2).eq(1).all()
    assert [group["kept"] for group in training(run)] == [7]
    older.to_csv(folder / "history.csv", index=False)
    assert [group["kept"] for group in training(read(folder))] == [None]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ScmedleyError, match="is not a run folder"):
        build(tmp_path / "none")
    with pytest.raises(ScmedleyError, match=r"run\.json is missing"):
        build(tmp_path)
    folder = run_folder.write(tmp_path / "run")
    (folder / "scores.csv").write_text("embedding,score\nX_pca,ASW\n")
    with pytest.raises(ScmedleyError, match=r"scores\.csv lacks the column\(s\) of, null_kind, value"):
        build(folder)
    run_folder.write(folder)
    (folder / "history.csv").write_text(
        "network,epoch,part,term,value\nfixed,1,train,total,0.1\nfixed,2,train,total,low\n"
    )
    with pytest.raises(ScmedleyError, match=r"history\.csv: column value, line 3: 'low' is not a number"):
        build(folder)
    run_folder.write(folder)
    (folder / "integrated.h5ad").write_bytes(b"not HDF5")
    with pytest.raises(ScmedleyError, match=r"integrated\.h5ad cannot be read"):
        build(folder)
    run_folder.write(folder)
    (folder / "run.json").write_text("[1]")
    with pytest.raises(ScmedleyError, match="must hold a JSON object"):
        build(folder)
    for change, words in (
        ({"seconds": [1]}, "'seconds' must hold an object"),
        ({"findings": "x"}, "a list"),
        ({"verdicts": {}}, "'verdicts' must hold a list"),
        ({"seconds": {"fit": "x"}}, r"'seconds\.fit' must hold a number"),
        ({"config": {"batch": 3}}, r"'config\.batch' must hold a text"),
    ):
        run_folder.write(folder)
        settings = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(settings | change))
        with pytest.raises(ScmedleyError, match=words):
            build(folder)
    run_folder.write(folder)
    with h5py.File(folder / "integrated.h5ad", "a") as file:
        key = f"obsm/{keys.umap(keys.FIXED)}"
        del file[key]
        file[key] = np.zeros((7, 2), np.float32)
    with pytest.raises(ScmedleyError, match="has 7 rows for"):
        build(folder)
    assert not (folder / "report.html").exists()


def test_distances_of_batches_stand_beside_chance(tmp_path):
    folder = run_folder.write(tmp_path / "run", labels=("T",), brief=True)
    assert "Distance of each batch from the average batch" in page(folder).text
    assert "· <b>as the null</b></td><td>" not in build(folder).read_text()
    table = pd.read_csv(folder / "gene_shifts.csv")
    table.assign(observed_size=0.11).to_csv(folder / "gene_shifts.csv", index=False)
    assert build(folder).read_text().count("· <b>as the null</b></td><td>") == 3
    check = pd.read_csv(folder / "counterfactual_check.csv")
    check.assign(pearson=-0.5, ceiling_pearson=0.9).to_csv(folder / "counterfactual_check.csv", index=False)
    assert "Use the observed distances, not those of the model" in page(folder).text
    assert "Do not use these shifts." in page(folder).text
    table.assign(seen=table["batch"] != "10x").to_csv(folder / "gene_shifts.csv", index=False)
    assert "No label is in all batches" in page(folder).text
    table[table["batch"] != "10x"].to_csv(folder / "gene_shifts.csv", index=False)
    assert "from the average batch</h3>" not in build(folder).read_text()


def test_top_genes_are_the_largest_by_size(full):
    table = pd.read_csv(full / "gene_shifts.csv")
    label = sections.shifts(read(full))["labels"][0]
    batch = label["batches"][0]
    here = table[(table["label"] == label["name"]) & (table["batch"] == batch["name"])]
    assert len(batch["genes"]) == sections.TOP
    expected = here.loc[here["shift"].abs().nlargest(sections.TOP).index, "gene"]
    assert [gene["gene"] for gene in batch["genes"]] == list(expected)
    for gene in batch["genes"]:
        assert gene["sure"] == (gene["q05"] * gene["q95"] > 0)


def test_arrows_point_where_each_embedding_should_go(full):
    found = sections.scores(read(full))
    wanted = {
        (of, key): {cells[i]["wanted"] for _, cells in rows}
        for of, rows in found["groups"]
        for i, (_, key) in enumerate(found["embeddings"])
    }
    assert wanted["batch", keys.FIXED] == {-1}
    assert wanted["label", keys.FIXED] == {1}
    assert wanted["batch", keys.RANDOM] == wanted["batch", keys.RANDOM_MASKED] == {1}
    assert wanted["batch", keys.NULL] == {0}
    for _, rows in found["groups"]:
        for _, cells in rows:
            for cell in cells:
                near = abs(cell["value"] - cell["null"]) <= 2 * cell["null_sd"]
                assert cell["distinct"] == (None if np.isnan(cell["null"]) else not near)
    errors = {score: cells[0]["se"] for of, rows in found["groups"] if of == "batch" for score, cells in rows}
    assert errors["kNN leak"] == 0.013
    assert np.isnan(errors["ASW"])
    place = {key: i for i, (_, key) in enumerate(found["embeddings"])}
    for key, null in ((keys.RANDOM, keys.NULL), (keys.RANDOM_MASKED, keys.NULL_MASKED)):
        for _, cells in dict(found["groups"])["batch"]:
            cell, other = cells[place[key]], cells[place[null]]
            assert cell["retrained"]["gap"] == pytest.approx(cell["value"] - other["value"])


NAN = float("nan")


def words(good=0, some=0, none=0, too_few=0, wrong=0.0, additive=0.5, slope=1.0):
    pearson = [0.8] * good + [0.4] * some + [wrong] * none + [0.9] * too_few
    check = pd.DataFrame(
        {"pearson": pearson, "ceiling_pearson": [1.0] * (good + some + none) + [0.1] * too_few}
    )
    check = check.assign(best_wrong_pearson=wrong, additive_pearson=additive, slope=slope, gain_se=0.01)
    return sections._words(summarise(check.assign(r2_delta=0.5, additive_r2_delta=0.4)))


def test_words_on_trust_follow_the_tally():
    bad = words(some=1, none=5, too_few=2, slope=0.3)
    assert "Of 6 seen pairs" in bad
    assert "2 more could not be judged" in bad
    assert "Do not draw conclusions" in bad
    assert "chance" not in bad
    assert "too few held-out cells" in words(too_few=2)
    assert "too few to judge the others" in words(good=2, too_few=9)
    assert "In 2 of those with none, the prediction for a wrong batch is nearly as good" in words(
        good=2, wrong=0.75
    )
    assert "wrong batch" not in bad
    assert (
        "are better in 3, tie in 0 and are worse in 0 (median Pearson of the baseline 0.50, of the model 0.80)"
        in words(good=3)
    )
    assert "are better in 0, tie in 3 and are worse in 0" in words(good=3, additive=0.815)
    worse = words(good=3, additive=0.85)
    assert "good in 0, some in 3 and none in 0" in worse
    assert "tie in 0 and are worse in 3" in worse
    assert "which needs no model" not in words(good=3, additive=NAN)


def test_words_on_size_only_where_the_direction_is_right():
    assert "predicted too small: the slope of observed on predicted shifts is 1.80" in words(
        good=3, slope=1.8
    )
    assert "predicted too large: the slope of observed on predicted shifts is 0.50" in words(
        good=3, slope=0.5
    )
    for text in (words(good=3, slope=0.9), words(none=3, slope=0.1), words(good=3, slope=NAN)):
        assert "predicted too" not in text


def test_a_leak_stands_beside_its_standard_error(full_page):
    assert re.search(r"kNN leak −?0\.\d+ ± 0\.013 . null", full_page.text)
    assert not re.search(r"ASW −?0\.\d+ ± ", full_page.text)


def test_medians_are_those_of_the_judged_pairs(tmp_path):
    folder = run_folder.write(tmp_path, brief=True)
    table = pd.read_csv(folder / "counterfactual_check.csv")
    table.loc[0, "pearson"] = np.nan
    table.loc[1, ["ceiling_pearson", "n_source", "n_target"]] = [np.nan, 10, 10]
    table.to_csv(folder / "counterfactual_check.csv", index=False)
    found = sections.check(read(folder))
    pairs = table[agreement(table) != TOO_FEW]
    assert 0 < found["n"] == len(pairs) < len(table) - 1
    for name, value in found["median"].items():
        assert value == pytest.approx(pairs[name].median())
    table["best_wrong_pearson"] = np.nan  # two batches
    table.to_csv(folder / "counterfactual_check.csv", index=False)
    shown = page(folder).text
    assert f"Medians of the {len(agreement(table)[agreement(table) != TOO_FEW])} pairs" in shown
    assert "no wrong batch to compare with" in shown


def test_a_given_fixed_part_goes_by_its_key(tmp_path, full_page):
    shown = page(run_folder.write(tmp_path, brief=True, fixed="X_mine<b>"))
    assert "Given fixed part X_mine<b>" in shown.text  # table of scores
    assert "Given fixed part: X_mine<b>" in shown.text  # map
    assert "may have included the held-out cells" in shown.text
    assert "adversary" not in shown.text
    assert "Fixed effects" not in shown.text
    assert "Given fixed part" not in full_page.text
    assert "The encoder does not use the batch" in full_page.text


def test_each_preset_is_explained_by_its_own_terms(tmp_path, full_page):
    folder = run_folder.write(tmp_path)
    settings = json.loads((folder / "run.json").read_text())
    settings["config"]["preset"] = "paper"
    settings["networks"]["fixed"] |= {"best_epoch": 27, "stopped": "early stopping", "keep": "best"}
    (folder / "run.json").write_text(json.dumps(settings))
    history = pd.read_csv(folder / "history.csv")
    published = history[~history["term"].isin(["latent kl"])].replace({"term": {"offset": "adversarial"}})
    published.to_csv(folder / "history.csv", index=False)
    paper = page(folder).text
    for words in ("an adversary cannot predict the batch", "compared without the adversarial term"):
        assert words in paper
        assert words not in full_page.text
    for words in ("Latent KL:", "Offset:", "principal components)", "network “fixed” always the last one"):
        assert words in full_page.text
        assert words not in paper


def test_maps_leave_out_cells_without_coordinates_and_say_so(tmp_path, full_page):
    shown = page(run_folder.write(tmp_path, brief=True, drawn=450))
    assert shown.text.count("(drawn: 450 of 600 cells)") == 6
    alts = [attrs["alt"] for tag, attrs in shown.tags if tag == "img"]
    assert "UMAP, PCA: 450 cells coloured by label, 3 levels." in alts
    assert "(drawn:" not in full_page.text


def test_no_cell_with_coordinates_is_no_map(tmp_path):
    folder = run_folder.write(tmp_path, brief=True)
    with h5py.File(folder / "integrated.h5ad", "r+") as file:
        file["obsm"][keys.umap(keys.PCA)][:] = np.nan
    assert page(folder).text.count("No map: X_umap_scmedley_pca has no cell with coordinates.") == 2


def test_what_is_easily_misread_is_said(full_page):
    for sentence in (
        "minus their average over the batches in which the label was observed",
        "chosen from all 3,000 modelled genes because they are the largest",
        "their intervals are too optimistic",
        "95 % of all genes and 89 % of those 20 are inside when sampling noise is allowed for",
        "The pairs of label and batch are seen: other cells of them were in training",
        "gene shift 5–95 % observed GENE",  # as gene_shifts.csv calls it
        "permuted batches",
        "The network on permuted batches is one fit. How much its scores vary",
    ):
        assert sentence in full_page.text
    for wrong in ("by chance", "leaks are not measured within labels"):
        assert wrong not in full_page.text


def test_numbers_are_shown_plainly():
    assert [number(x) for x in (0.126, -1.5, 12.34, 1234.5, -0.001, float("nan"), None)] == [
        "0.13", "−1.50", "12.3", "1,234", "0.00", "–", "–",
    ]  # fmt: skip
    assert [signed(x) for x in (0.5, -0.5, float("nan"))] == ["+0.50", "−0.50", "–"]
    assert count(1234567) == "1,234,567"


def test_importing_costs_no_matplotlib_and_no_jinja():
    code = "import sys, scmedley.report, scmedley.pl; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_word_of_the_check_has_a_sentence() -> None:
    for word in AGREEMENT:
        assert word in trust.ADVICE
        for against in ("", *BASELINE):
            said = trust.judged(word, against)
            assert said.endswith(".")
            assert ("plain difference" in said) == (against != "" and word != TOO_FEW)
