"""README and docs hold what they promise: blocks run, commands are understood, every public name is listed."""

import importlib
import re
import runpy
import shlex
import tomllib
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import scmedley as sm
from pages import PAGES, STAND_INS
from running import without_drawing
from scmedley.cli import app
from scmedley.errors import ScmedleyWarning
from scmedley.experiment import Experiment, read_config
from scmedley.models import fitting

ROOT = Path(__file__).parents[1]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in path.parts and "generated" not in path.parts
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A cluster of machines; scvi-tools, which is not installed. Cells of tutorials run in `make docs`.
NOT_RUN = {"docs/experiments.md", "docs/tutorials/from-harmony-and-scvi.md"}
MODULES = [
    "",
    "datasets",
    "evaluate",
    "experiment",
    "interpret",
    "interpret.genomap",
    "io",
    "models",
    "models.parts",
    "peers",
    "pl",
    "pp",
    "report",
]


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(TEXTS[page]) if language in languages]


def pages_with(*languages: str) -> list[str]:
    return [page for page in TEXTS if blocks(page, *languages)]


# --- Python -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Work in an empty folder, with one epoch for every network and a part of each shipped data set."""
    fit, load = fitting.fit, sm.datasets._load

    def fit_briefly(model, *options):
        model.settings = model.settings.replace(max_epochs=1)
        fit(model, *options)

    monkeypatch.setattr(fitting, "fit", fit_briefly)
    monkeypatch.setattr(sm.datasets, "_load", lambda name: load(name)[::6, :150].copy())
    without_drawing(monkeypatch)
    for (module, name), stand_in in STAND_INS.items():
        monkeypatch.setattr(module, name, stand_in)
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context({"backend": "agg"}):
        yield


def test_every_page_with_python_is_run():
    assert set(pages_with("python")) <= {*PAGES, *NOT_RUN}


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, quick):
    document = Document.parse(str(ROOT / page), PythonCodeBlockParser(), SkipParser())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScmedleyWarning)  # of few cells, of one epoch
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # scanpy's, of matplotlib
        document.namespace.update(sm=sm, **PAGES[page]())
        examples = list(document.examples())
        for example in examples:
            example.evaluate()
    assert len(examples) >= len(blocks(page, "python"))


# --- commands, settings and names ---------------------------------------------------------------------------


def commands(page: str) -> list[list[str]]:
    """Return the commands of a page's shell blocks, as words."""
    text = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


@pytest.mark.parametrize("page", pages_with("sh", "bash"))
def test_commands_are_understood(page):
    makefile, project = (ROOT / "Makefile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    for words in commands(page):
        match words:
            case ["scmedley", *rest]:
                app.parse_args(rest, exit_on_error=False, print_error=False)
            case ["torchrun", _, "-m", "scmedley", *rest]:
                app.parse_args(rest, exit_on_error=False, print_error=False)
            case ["make", target]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), words
            case ["python", script, *rest]:
                assert {word for word in rest if word.startswith("--")} <= options_of(ROOT / script), words
            case ["pip", "install", *rest]:
                asked = {name for word in rest for name in re.findall(r"\[(.*)\]", word)}
                extras = {name for names in asked for name in names.split(",")}
                assert extras <= set(project["project"]["optional-dependencies"]), words
            case _:
                pytest.fail(f"{page}: no rule for {words}")


def options_of(script: Path) -> set[str]:
    """Return the options that the text of a script mentions."""
    return set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", TEXTS)
def test_options_in_running_text_exist(page):
    known = {
        option
        for command in app
        if not command.startswith("-")
        for argument in app[command].assemble_argument_collection()
        for option in argument.names
    }
    for words in re.findall(r"`(scmedley [a-z]+ [^`]*)`", TEXTS[page]):
        assert set(re.findall(r"(?<= )--[a-z-]+", words)) <= known | {"--help", "--debug"}, words


def test_toml_blocks_are_read(tmp_path):
    fields = set(Experiment.__dataclass_fields__)
    for text in blocks("docs/experiments.md", "toml"):
        table = tomllib.loads(text)
        assert set(table) <= fields
        if "data" in table:
            (tmp_path / "recipe.toml").write_text(text)
            (tmp_path / table["data"]).touch()
            assert read_config(tmp_path / "recipe.toml").batch_key == table["batch_key"]


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_lists_every_public_name(name):
    module = importlib.import_module(f"scmedley.{name}".rstrip("."))
    page = TEXTS[f"docs/api/{name.rpartition('.')[2] or 'scmedley'}.md"]
    names = re.findall(r"^   ([A-Za-z]\w*)(\.\w+)?$", page, re.MULTILINE)
    listed = {first for first, rest in names if not rest or first in module.__all__}
    listed |= set(re.findall(rf"py:data:: {module.__name__}\.(\w+)", page))
    modules = {path.stem for path in (ROOT / "docs/api").glob("*.md")}
    others = {"": modules, "models": set(sm.__all__), "models.parts": {"Model", "Settings"}}
    elsewhere = others.get(name, set())
    assert set(module.__all__) - elsewhere == listed - elsewhere
    for public in listed:
        assert getattr(module, public).__doc__, f"{public} has no docstring"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ('<a href="a.html#x">', ["a.html: no anchor for a.html#x"]),
        ('<a href="b.html"><a id="x" href="#x">', ["a.html: no file for b.html"]),
        ('<a href="../beside.html">', ["a.html: no file for ../beside.html"]),
        (
            '<a href="http://[x"><script src="//x/y.js">',
            ["a.html: http://[x is no address", "a.html: loads //x/y.js"],
        ),
        (f'<a href="{"x" * 5000}"><img src="data:{"x" * 5000}">', ["a.html: xxx"]),
        (None, ["holds no page"]),
    ],
)
def test_links_that_lead_nowhere_are_found(page, words, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "beside.html").touch()
    if page is not None:
        (tmp_path / "site" / "a.html").write_text(page)
    found = runpy.run_path(str(ROOT / "docs" / "check_links.py"))["broken"](tmp_path / "site")
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
