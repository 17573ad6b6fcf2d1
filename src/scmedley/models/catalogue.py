"""The catalogue of models, one row for each, and ``load``.

Tables, figures, reports, experiments and the command line read the names, titles, order and outputs of models
from here, and those of embeddings from :data:`scmedley.keys.EMBEDDINGS`, which does not import torch. A new
model needs one file with its class and one row, written below or added by another package with :func:`add`.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from scmedley import keys
from scmedley.errors import ScmedleyError, listed, one_line, warn
from scmedley.models.autoencoder import Autoencoder
from scmedley.models.base import Model
from scmedley.models.deepbid import DeepBID
from scmedley.models.fixed_effects import FixedEffects
from scmedley.models.linear_mixed import LinearMixed
from scmedley.models.linear_store import read as read_linear
from scmedley.models.mixed_effects import MixedEffects
from scmedley.models.random_effects import RandomEffects
from scmedley.models.settings import PRESETS, Settings
from scmedley.models.store import DESCRIPTION, read, read_description
from scmedley.models.vae import VAE

Output = Literal["latent", "clusters", "denoised", "effects"]

MIXED = "mixed"  # the run that fits fixed and random effects
ENTRY_POINTS = "scmedley.models"  # in which other packages name their rows
PCA = "PCA"  # a baseline in experiments, not a network


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes
    ----------
    model
        Its class.
    name
        Short name in tables and settings files, such as ``"FE"``.
    embeddings
        Its embeddings in :mod:`scmedley.keys`: first its latent (``model.key``), then those derived from it.
    outputs
        What it computes. ``"effects"``: counterfactuals and ``adapt``, if its settings include batch effects.
    labelled
        Short name with a label head, such as ``"FEC"``; empty if it has none.
    null
        Short name when trained on permuted batches; empty if it has no such null.
    tuned
        Weights that ``scmedley tune`` searches; empty if it cannot be tuned.
    command
        What ``scmedley run --model`` calls it, such as ``"vae"``; empty if a run does not fit it alone.
    """

    model: type[Model[Any]]
    name: str
    embeddings: tuple[keys.Embedding, ...]
    outputs: tuple[Output, ...] = ("latent", "denoised")
    labelled: str = ""
    null: str = ""
    tuned: tuple[str, ...] = ()
    command: str = ""

    def methods(self) -> "list[Method]":
        """Return the methods of an experiment that use this model."""
        found = [Method(self.name, self)]
        found += [Method(self.labelled, self, labelled=True)] if self.labelled else []
        return found + ([Method(self.null, self, permuted=True)] if self.null else [])


@dataclass(frozen=True)
class Method:
    """A model in an experiment: alone, with a label head, or trained on permuted batches."""

    name: str
    row: Row
    labelled: bool = False
    permuted: bool = False

    @property
    def set_by(self) -> str:
        """The name of its settings in settings files; a null uses those of its network."""
        return self.row.name if self.permuted else self.name

    @property
    def holds_batch(self) -> bool:
        """Whether its latent models what the batch adds, and is joined with a batch-free latent."""
        return self.row.embeddings[0].batch > 0

    @property
    def tuned(self) -> tuple[str, ...]:
        """The weights that ``scmedley tune`` searches."""
        return (*self.row.tuned, "label_weight") if self.row.tuned and self.labelled else self.row.tuned

    def preset(self, name: str) -> Any:
        """Return the settings of a preset."""
        return self.row.model.preset(name, self.labelled)

    def unfitted(self, batch_key: str, label_key: str, settings: Settings) -> Model[Any]:
        """Return a new model; only a model with a label head uses ``label_key``."""
        return self.row.model(batch_key, label_key if self.labelled else None, settings)


def _embeddings(*names: str) -> tuple[keys.Embedding, ...]:
    return tuple(keys.EMBEDDINGS[name] for name in names)


AE = Row(Autoencoder, "AE", _embeddings(keys.AUTOENCODER), labelled="AEC")
FE = Row(
    FixedEffects,
    "FE",
    _embeddings(keys.FIXED),
    outputs=("latent", "denoised", "effects"),
    labelled="FEC",
    tuned=("offset_weight",),
)
RE = Row(
    RandomEffects,
    "RE",
    _embeddings(keys.RANDOM, keys.RANDOM_MASKED, keys.NULL, keys.NULL_MASKED),
    outputs=("latent", "denoised", "effects"),
    null="RE, permuted batches",
)
VAE_ROW = Row(VAE, "VAE", _embeddings(keys.VAE), outputs=("latent", "denoised", "effects"), command="vae")
DEEPBID = Row(
    DeepBID,
    "DeepBID",
    _embeddings(keys.DEEPBID),
    outputs=("latent", "clusters", "denoised", "effects"),
    command="deepbid",
)
SCMEDAL = (AE, FE, RE)  # the networks of the scMEDAL paper
OWN = (*SCMEDAL, VAE_ROW, DEEPBID)
_rows = list(OWN)
_asked: list[bool] = []  # whether the entry points were read


def rows() -> list[Row]:
    """Return all models, in the order of tables."""
    add_installed()
    return list(_rows)


def run_models() -> dict[str, Row | None]:
    """Return the models that ``scmedley run --model`` knows, by name; mixed effects are two models, so ``None``."""
    return {MIXED: None} | {row.command: row for row in rows() if row.command}


def run_row(name: str) -> Row | None:
    """Return the row of the model of a run; ``None`` for mixed effects.

    Raises
    ------
    ScmedleyError
        There is no such model.
    """
    known = run_models()
    if name not in known:
        raise ScmedleyError(
            f"The model {name!r} is not known. Choose one of {listed(list(known), 20)} for --model; if "
            "another package has it, install that package."
        )
    return known[name]


def maps_of(name: str) -> tuple[str, ...]:
    """Return the embeddings that a run draws, by the name of its model; the first is the one that is judged."""
    row = run_row(name)
    return keys.MAPS if row is None else (row.embeddings[0].key, keys.PCA)


def methods() -> dict[str, Method]:
    """Return all networks that experiments can compare, by name."""
    return {method.name: method for row in rows() for method in row.methods()}


def is_null(name: str) -> bool:
    """Return whether a method is a null (trained on permuted batches), which is shown but not judged."""
    return any(row.null == name for row in rows() if row.null)


def add_installed() -> None:
    """Add the models of installed packages, once: the rows that their entry points ``scmedley.models`` name.

    A package that cannot be imported is skipped, with a warning.
    """
    if _asked:
        return
    _asked.append(True)  # before the imports: a package may ask for the rows in turn
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            row = entry.load()
            if not isinstance(row, Row):
                raise ScmedleyError(f"it is an object of type {type(row).__name__}, not a Row.")
            if row not in _rows:  # the package may have added it itself
                add(row)
        except (Exception, SystemExit) as error:  # whatever another package raises
            warn(f"The model {entry.name!r} ({entry.value}) was not added: {one_line(error)}")


def add(row: Row) -> None:
    """Add a model of your own to tables, figures, reports, ``load`` and ``scmedley run``.

    A package need not call it: it names its row in an entry point (docs/adding-a-model.md).

    It is added in this process, and in the workers of the experiments that this process starts
    (``scmedley experiment --jobs 2``); they must be able to import the module of its class.

    Raises
    ------
    ScmedleyError
        A name, an ``obsm`` key or the name of the class is in use, or the first embedding is not the class's
        key.
    """
    classes = (other.model.__name__ for other in _rows)
    taken = {*_names(), PCA, *keys.EMBEDDINGS, *classes, MixedEffects.__name__}
    names = [row.model.__name__, *(m.name for m in row.methods()), *(e.key for e in row.embeddings)]
    if not row.name:
        raise ScmedleyError(f"The row of {row.model.__name__} needs a short name.")
    for name in names:
        if name in taken or names.count(name) > 1:
            raise ScmedleyError(f"The name {name!r} already exists in the catalogue. Choose another name.")
    if not row.embeddings or row.embeddings[0].key != row.model.key:
        raise ScmedleyError(
            f"{row.model.__name__} stores its latent as {row.model.key!r}. Make this the first embedding of its row."
        )
    commands = {MIXED, *(other.command for other in _rows if other.command)}
    if row.command in commands:
        raise ScmedleyError(f"scmedley run --model {row.command} already exists. Choose another command.")
    _check_outputs(row)
    _rows.append(row)
    keys.EMBEDDINGS.update({embedding.key: embedding for embedding in row.embeddings})


def _names() -> set[str]:
    return {method.name for row in _rows for method in row.methods()}


def _check_outputs(row: Row) -> None:
    """Raise if the row and its class disagree."""
    name, kind = row.model.__name__, row.model
    if bool(row.labelled) != kind.has_label_head:
        raise ScmedleyError(
            f"has_label_head of {name} is {kind.has_label_head}, but its row has labelled={row.labelled!r}. Give the "
            "row a short name for the model with a label head, or set has_label_head = False."
        )
    effects = any(kind("batch", settings=settings).has_effects for settings in _presets(kind))
    if effects != ("effects" in row.outputs):
        raise ScmedleyError(
            f"has_effects of {name} is {effects}, but its row has outputs={row.outputs}. Make both say the same."
        )


def _presets(kind: type[Model[Any]]) -> Iterator[Any]:
    """Yield the settings of all presets of a class, which need not have both."""
    for name in PRESETS:
        with suppress(ScmedleyError):
            yield kind.preset(name)


def added() -> tuple[Row, ...]:
    """Return the rows that :func:`add` added."""
    return tuple(row for row in _rows if row not in OWN)


def remove(row: Row) -> None:
    """Remove a row that :func:`add` added.

    Raises
    ------
    ScmedleyError
        The row was not added, or is one of scMedley's own.
    """
    if row not in _rows or row in OWN:
        raise ScmedleyError(f"The row {row.name!r} was not added, so it cannot be removed.")
    _rows.remove(row)
    for embedding in row.embeddings:
        del keys.EMBEDDINGS[embedding.key]


def load(folder: str | Path) -> Any:
    """Load a model that ``save`` wrote: a :class:`MixedEffects`, a single network, or a :class:`LinearMixed`.

    Raises
    ------
    ScmedleyError
        The folder holds no model, or the model cannot be read.
    """
    folder = Path(folder)
    about = read_description(folder)
    if about["class"] == LinearMixed.__name__:
        return read_linear(folder, LinearMixed)
    if about["class"] != MixedEffects.__name__:
        return _load_network(folder)
    try:
        batch_key, label_key = about["batch_key"], about["label_key"]
        kept: Any = {"keep": about.get("keep", ())}
        model = MixedEffects(
            about.get("formula") or batch_key,
            label_key,
            preset=about["preset"],
            fixed=about["fixed_key"],
            **kept,
        )
    except KeyError as error:
        raise ScmedleyError(
            f"{folder / DESCRIPTION} has no {error}. Fit and save the model again."
        ) from error
    for name, network in model.networks().items():
        part = _load_network(folder / name)
        if type(part) is not type(network):
            raise ScmedleyError(
                f"{folder / name} holds a {type(part).__name__!r}, not a {type(network).__name__!r}. Fit and "
                "save the model again."
            )
        setattr(model, name, part)
    return model


def _load_network(folder: Path) -> Model[Any]:
    """Read a model of any class in the catalogue."""
    name = str(read_description(folder)["class"])
    for row in rows():
        if row.model.__name__ == name:
            return read(folder, row.model)
    raise ScmedleyError(
        f"{folder} holds a model of class {name!r}, which this version does not know. If another package defines it, "
        "import that package first."
    )
