"""Interim: prepare in memory, then write the store."""
# ruff: noqa

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anndata import AnnData

from scmedley.data.evidence import Checked
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError
from scmedley.io.reading import read
from scmedley.pp import prepare
from scmedley.pp.join import read_batches
from scmedley.pp.stored import write_store


@contextmanager
def opened_cells(inputs: Sequence[Path], files_key: str, values: Any) -> Iterator[AnnData]:
    yield read(inputs[0]) if len(inputs) == 1 else read_batches(inputs, files_key, values)


def prepare_store(
    source: AnnData, folder: Path, batch_key: str | None, *, progress: bool, **options: Any
) -> Checked:
    checked = prepare(source, batch_key, **options)
    if (folder / "store.json").exists():
        Store.open(folder)
        return checked
    shutil.rmtree(folder, ignore_errors=True)
    write_store(source, folder)
    return checked
