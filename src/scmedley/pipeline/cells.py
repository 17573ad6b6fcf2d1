"""Read and prepare the cells of a run, an experiment or a search."""

from collections.abc import Callable

from anndata import AnnData

from scmedley.data.evidence import Checked
from scmedley.errors import heard

Say = Callable[[str], None]


def read_and_prepare(
    name: str, read: Callable[[], AnnData], prepare: Callable[[AnnData], Checked], say: Say
) -> tuple[AnnData, list[str]]:
    """Return the prepared cells and all warnings. Each warning is also passed to ``say`` at once."""
    say(f"Reading {name}")
    with heard(lambda line: say(f"Warning: {line}")) as warnings:  # printed before an error that follows
        adata = read()
    checked = prepare(adata)
    say(checked.reason)
    for warning in checked.warnings:
        say(f"Warning: {warning}")
    return adata, warnings + checked.warnings
