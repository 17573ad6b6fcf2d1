"""Options that several commands share, and the old names of options."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token, validators

from scmedley.cli.printing import warn
from scmedley.keys import ValueKind
from scmedley.pipeline.config import RunConfig

FORMATS = "h5ad, Zarr, 10x mtx folder, 10x h5, csv or tsv (also .gz)"
Inputs = Annotated[
    list[Path], Parameter(name="inputs", help=f"{FORMATS}. With several files, each file is one batch.")
]
RunFolder = Annotated[Path, Parameter(help="Run folder: the folder that run or fit wrote.")]
Results = Annotated[Path, Parameter(help="Folder for the results.")]
Overwrite = Annotated[bool, Parameter(help="Remove the results of an earlier run in that folder.")]
Quiet = Annotated[bool, Parameter(help="Print only errors.")]
Explorer = Annotated[
    bool, Parameter(help="Put the cells, obs and the model into the report: its maps are then interactive.")
]
Values = Annotated[ValueKind, Parameter(help="What the matrix of the file holds: see scmedley run --help.")]
Unknown = Annotated[
    Literal["error", "mean"],
    Parameter(
        help='For cells of batches that were not in training: stop ("error"), or use the population mean ("mean").'
    ),
]
UnknownOrAdapt = Annotated[
    Literal["error", "mean", "adapt"],
    Parameter(
        help='For cells of batches that were not in training: stop ("error"), use the population mean ("mean"), '
        'or first learn the effects of these batches ("adapt").'
    ),
]


def _whole(kind: type, tokens: Sequence[Token]) -> int:
    """Return a whole number; by default 1.5 would be rounded."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is not a whole number.") from None


Threads = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Whole = Annotated[int, Parameter(converter=_whole)]
Settings = Annotated[RunConfig, Parameter(name="*")]
NO_SETTINGS = RunConfig()

# The present name of the option that was called --cells, by command.
RENAMED = {"run": "explorer", "report": "explorer", "demo": "explorer", "project": "select"}
FILES = (".h5ad", ".zarr", ".h5", ".csv", ".tsv", ".gz", ".mtx")


def with_new_names(tokens: list[str]) -> list[str]:
    """Return the arguments with the present names of options, and warn about each old one."""
    found = list(tokens)
    for i, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name not in ("--cells", "--no-cells") or tokens[0] not in RENAMED:
            continue
        option = RENAMED[tokens[0]]
        if option == "select" and _is_a_file(value or (tokens[i + 1 : i + 2] or [""])[0]):
            option = "input"
        found[i] = name.replace("cells", option) + equals + value
        now = found[i].partition("=")[0]
        warn(f"{name} of {tokens[0]} is now {now}. The old name will be removed.")
    return found


def _is_a_file(text: str) -> bool:
    with suppress(OSError):  # a long query is not a valid path
        if text and Path(text).exists():
            return True
    return text.lower().endswith(FILES) and not any(sign in text for sign in "=<>!'\"")
