"""Build of the documentation: ``make docs``. Needs no network; every warning is an error."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.ext.intersphinx import missing_reference
from sphinx.transforms import SphinxTransform

import scmedley

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.argv[0] = "scmedley"  # cyclopts makes the usage of commands from it

project = "scMedley"
author = "The scMedley developers"
copyright = author
release = version = scmedley.__version__.partition("+")[0]
language = "en"
smartquotes = False  # two hyphens are an option, not a dash

extensions = [
    "myst_nb",
    "cyclopts.ext.sphinx",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates", "**.ipynb_checkpoints", "_static/**"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["scmedley.css"]
html_js_files = ["scmedley.js"]
html_theme = "sphinx_book_theme"
html_title = f"scMedley {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "pygments_light_style": "a11y-high-contrast-light",  # the default has comments that are hard to read
}

# Equations: KaTeX in place of MathJax, from _static/katex (MIT licence, in the folder): pages are whole offline.
mathjax_path = "katex/render.js"
mathjax_options = {"defer": "defer"}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

# Tutorials run when the site is built; an error in one is an error of the build. Unchanged ones are read from a cache.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_timeout = 1200  # seconds a cell may take on a busy machine
nb_execution_raise_on_error = True
nb_merge_streams = True
for threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # the same numbers on every machine
    os.environ.setdefault(threads, "1")
os.environ.setdefault(  # what other packages print, which no reader can do anything about
    "PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning,ignore:IProgress not found"
)
# The reader's own settings of IPython are not used; and kernels warn of their transport, at every start.
profile = HERE / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n", encoding="utf-8")
os.environ["IPYTHONDIR"] = str(profile.parent)

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")  # as Sphinx writes an alias in a union
autodoc_type_aliases = {"ArrayLike": "numpy.typing.ArrayLike", "npt.ArrayLike": "numpy.typing.ArrayLike"}
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = True

# The inventories name what our pages link to, one line each; the network is not asked.
intersphinx_mapping = {
    name: (url, str(HERE / "_inventories" / f"{name}.txt"))
    for name, url in {
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "matplotlib": "https://matplotlib.org/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "python": "https://docs.python.org/3/",
        "scanpy": "https://scanpy.readthedocs.io/en/stable/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
}
# Annotations name classes as our modules import them.
IMPORTED = {
    "AnnData": "anndata.AnnData",
    "Axes": "matplotlib.axes.Axes",
    "DataFrame": "pandas.DataFrame",
    "Figure": "matplotlib.figure.Figure",
    "Tensor": "torch.Tensor",
    "np.ndarray": "numpy.ndarray",
    "pd.DataFrame": "pandas.DataFrame",
    "pd.Series": "pandas.Series",
}

# Pages that lie outside this folder, and the page of the site that includes each.
OUTSIDE = {
    "../benchmarks/README.md": "benchmarks.md",
    "../ARCHITECTURE.md": "architecture.md",
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "index.md",
}
# The pages of the repository are included in pages of docs/, so links to docs/ lose the folder.
INSIDE = re.compile(r"\]\((?:\.\./)?docs/")


def move_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links between files of the repository to the pages of the site."""
    for path, page in OUTSIDE.items():
        source[0] = source[0].replace(f"]({path}", f"]({page}")


def move_included_links(app: Sphinx, relative_path: Path, parent: str, content: list[str]) -> None:
    """Do the same in files that a page includes."""
    text = INSIDE.sub("](", content[0])
    for path, page in OUTSIDE.items():
        text = text.replace(f"]({path}", f"]({page}").replace(f"]({path.removeprefix('../')}", f"]({page}")
    content[0] = re.sub(r"\[([^\]]+)\]\((?:web|\.\./src|src)/[^)]+\)", r"`\1`", text)


def one_by_one(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Describe attributes that share a description, as "factors, removed", apart: napoleon splits only parameters."""
    if what != "class" or "Attributes" not in lines:
        return
    start = lines.index("Attributes") + 2
    text: list[str] = []
    block: list[str] = []
    names: list[str] = []
    for i, line in enumerate([*lines[start:], ""]):
        ends = i == len(lines) - start or (line and not line.startswith(" "))
        if ends:  # the next entry, or the end
            text += [part for each in names for part in (each, *block)]
            names, block = line.split(", "), []
        else:
            block.append(line)
    lines[start:] = text


def find_imported(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Link a class of another package by the name that our modules import it by."""
    name = IMPORTED.get(node["reftarget"])
    if name is None:
        return None
    node["reftarget"] = name
    return missing_reference(app, env, node, content)


def tidy_fields(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Set a dash between a parameter and its description, and leave a type out that "Returns" names already."""
    for fields in list(document.findall(nodes.field_list)):
        by_name = {field[0].astext(): field for field in fields}
        if "Returns" in by_name and "Return type" in by_name:
            fields.remove(by_name["Return type"])
        for text in list(fields.findall(nodes.Text)):
            new = ALIAS.sub(r"\1", re.sub("^ -- ", " \N{EN DASH} ", text))
            if new != text:
                text.parent.replace(text, nodes.Text(new))


class LinkNames(SphinxTransform):
    """Link names such as ``sm.pp.prepare`` and ``Model.fit`` in running text to the reference, where it has them."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replace each such name by a reference."""
        for node in list(self.document.findall(nodes.literal)):
            match = re.match(r"(?:sm\.|(?=Model\.))([\w.]+)", node.astext())
            if match is None or isinstance(
                node.parent, nodes.reference | addnodes.pending_xref | nodes.title
            ):
                continue
            name = match.group(1).rstrip(".")
            target = f"scmedley.{'models.base.' if name.startswith('Model.') else ''}{name}"
            reference = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=False
            )
            reference["refdoc"] = self.env.docname
            reference["py:module"] = reference["py:class"] = None
            node.replace_self(reference)
            reference += node


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    for field in PyObject.doc_field_types:  # numpydoc's word for what Sphinx calls variables
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", one_by_one, priority=100)
    app.connect("source-read", move_links)
    app.connect("include-read", move_included_links)
    app.connect("missing-reference", find_imported)
    app.connect("doctree-resolved", tidy_fields)
    app.add_transform(LinkNames)
