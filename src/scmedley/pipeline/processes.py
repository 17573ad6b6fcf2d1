"""The processes of a run that torchrun started beside process 0: they fit with it, and write and print nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from scmedley import distributed
from scmedley.device import engine
from scmedley.models import DeepBID
from scmedley.pipeline.backed import Place, place_of
from scmedley.pipeline.checks import unfitted
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.fit import fit_networks
from scmedley.pipeline.preparing import prepared_cells, reading_of
from scmedley.pipeline.sample import Sample
from scmedley.pipeline.work import Work
from scmedley.pp.stored import read_store
from scmedley.runs.folder import RECORD
from scmedley.runs.record import Record

PLACE, READY = "place of the cells", "ready to fit"  # what process 0 announces


def announce_place(place: Place | None) -> None:
    """Let the other processes prepare the cells in memory, as process 0 does, or wait for its store."""
    distributed.announce(PLACE, "memory" if place is None else "store")


def announce_ready() -> None:
    """Let the other processes fit: the cells are prepared, and the run folder has been cleared."""
    distributed.announce(READY)


def take_part(inputs: Sequence[Path], out: Path, config: RunConfig, files_key: str, only_fit: bool) -> None:
    """Prepare or open the same cells as process 0, and fit the same networks with it."""
    on_disk = distributed.wait_for(PLACE) == "store"
    place = place_of(replace(config, backed=on_disk), inputs, out, overwrite=False)
    if on_disk:
        distributed.wait_for(READY)
    record = Record(out / RECORD, {"input": {"name": ""}, "warnings": []})  # never written
    this = Work(out, config, record, say=lambda _: None, progress=False)
    adata = prepared_cells(this, inputs, files_key, place, held_out=not only_fit)
    distributed.wait_for(READY)
    with engine(config.threads, torch.device("cpu")):
        new = unfitted(config)
        if isinstance(new, DeepBID):
            new.fit_to_values(adata if place is None else read_store(place.folder))
        reading = reading_of(adata, config, place, new.reads)
        fit_networks(this, new, adata, reading, Sample.of(adata, config))
