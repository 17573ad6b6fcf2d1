"""The order of the rooms: nothing to the left imports from the right, and no file imports in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import scmedley

SOURCE = Path(scmedley.__file__).parent
# The data's way, from left to right: a file may import from its own room and from rooms to the left.
ROOMS = (
    *(
        "errors",
        "keys",
        "caches",
        "device",
        "distributed",
        "data",
        "io",
        "pp",
        "datasets",
        "nn",
        "clusters",
        "train",
    ),
    *(
        "models",
        "evaluate",
        "interpret",
        "peers",
        "pl",
        "runs",
        "report",
        "pipeline",
        "experiment",
        "cli",
        "__main__",
    ),
)


def modules() -> dict[str, Path]:
    """Every module by its dotted name below scmedley; a package by the name of its folder."""
    paths = sorted(SOURCE.rglob("*.py"))
    names = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths]
    return {
        name.removesuffix(".__init__"): path
        for name, path in zip(names, paths, strict=True)
        if name != "__init__"
    }


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules that a file imports, inside functions too, but for those that type checkers alone see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [n for n in block if not _for_type_checkers(n)] or [ast.Pass()])
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "scmedley":
            room = (node.module or "").partition(".")[2]
            found |= {f"{room}.{alias.name}".strip(".") for alias in node.names}
            found |= {room} - {""}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("scmedley.")
            }
    return found & known


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(path, set(known)) - {name} for name, path in known.items()}


def test_every_room_has_a_place(graph):
    assert {name.split(".")[0] for name in graph} == set(ROOMS)


def test_nothing_imports_from_the_right(graph):
    place = {room: i for i, room in enumerate(ROOMS)}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if place[other.split(".")[0]] > place[name.split(".")[0]]
    ]
    assert wrong == []


def test_one_method_alone_imports_the_whole_package():
    """``import scmedley`` reaches rooms to the right unseen by the tests above."""
    found = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name == "scmedley" for alias in node.names)
    }
    assert found == {"pp.exploration"}  # Exploration.report, a short way to report.write_exploration


def test_no_file_imports_in_a_circle(graph):
    # A package's __init__ imports its files, which is no circle as long as they import each other by file.
    files = {
        name: {o for o in others if o not in {n.rpartition(".")[0] for n in graph}}
        for name, others in graph.items()
    }
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")
