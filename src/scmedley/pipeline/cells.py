"""The cells of a run, an experiment or a search: read and prepared, and the user told what was found in them."""

from collections.abc import Callable

from anndata import AnnData

from scmedley.data.evidence import Checked
from scmedley.errors import heard

Say = Callable[[str], None]


def read_and_prepare(
    name: str, read: Callable[[], AnnData], prepare: Callable[[AnnData], Checked], say: Say
) -> tuple[AnnData, list[str]]:
    """Return the cells that ``read`` reads, as ``prepare`` leaves them, and all warnings; each is said at once."""
    say(f"Reading {name}")
    with heard(lambda line: say(f"Warning: {line}")) as warnings:  # before an error that may follow from it
        adata = read()
    checked = prepare(adata)
    say(checked.reason)
    for warning in checked.warnings:
        say(f"Warning: {warning}")
    return adata, warnings + checked.warnings
