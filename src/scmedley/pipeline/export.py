"""Export a run for a viewer or another program: ``scmedley export``."""

from __future__ import annotations

import shlex
import warnings
from functools import partial
from pathlib import Path

from scmedley import io
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.export import FORMATS, parquet, vitessce
from scmedley.keys import ExportFormat
from scmedley.runs.read import read


def export(folder: Path, to: ExportFormat, out: Path, *, address: str | None = None) -> list[str]:
    """Write a run in another format into the new folder ``out``; return lines to print.

    Parameters
    ----------
    folder
        Run folder.
    to
        The format: a key of :data:`scmedley.export.FORMATS`.
    out
        The new folder. On an error it is not there.
    address
        Where the folder will be served, for ``"vitess"``.

    Raises
    ------
    ScmedleyError
        The folder is no run, or the run is not finished; ``out`` exists or cannot be written; a package of an extra
        is missing.
    """
    if out.exists():
        raise ScmedleyError(f"{out} exists already. Choose another --out.")
    if address is not None and FORMATS[to].write is not vitessce.write:
        raise ScmedleyError(
            f"--address is for --to vitess: what is written for {to} holds no address. Leave it out."
        )
    if address is not None and not address.startswith(("http://", "https://")):
        raise ScmedleyError(
            f"--address {address!r} must begin with http:// or https://, because Vitessce takes whole addresses only."
        )
    write = FORMATS[to].write if address is None else partial(vitessce.write, address=address)
    if to == "parquet":
        parquet.check_extra()
    io.check_place(out)
    run = read(folder)
    if run.settings.get("status") in ("running", "fitted"):  # its files belong to different steps
        raise ScmedleyError(
            f"The run in {folder} is not finished: wait for it, or repeat its command. Of scmedley fit, compute the "
            f"rest with scmedley evaluate {folder}."
        )
    with io.replacing(out) as temporary:
        temporary.mkdir()
        notes = write(run, temporary)
        if out.exists():  # another process was quicker
            raise ScmedleyError(f"{out} was written by another process meanwhile. Choose another --out.")
    for line in notes:
        warnings.warn(f"{out.name}: {line}", ScmedleyWarning, stacklevel=2)
    files = sum(1 for path in out.iterdir())
    return [
        f"{to}: {files} files in {out.resolve()}",
        f"Next: {FORMATS[to].then.format(out=shlex.quote(str(out)))}",
    ]
