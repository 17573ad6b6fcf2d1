"""Settings that all networks share, and presets."""

import dataclasses
import math
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np
from torch import nn

from scmedley.data.scale import ScaleName
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.nn.balance import Weights
from scmedley.nn.bayesian import EffectStart
from scmedley.train.schedule import Schedule
from scmedley.train.trainable import Stage

PRESETS = ("default", "paper")
LEAST_PATIENCE = 5

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Settings that all networks share.

    Attributes
    ----------
    scale
        Scale of each gene, learnt on the training cells: ``"standard"`` (mean 0, variance 1), ``"min-max"``
        (published), ``"pearson"`` (analytic Pearson residuals; only for models that read counts) or ``"none"``.
    hidden
        Sizes of the hidden layers of the encoder.
    n_latent
        P, the number of latent dimensions.
    batch_norm_momentum
        Weight of the new minibatch in BatchNorm's running statistics (as in PyTorch).
    learning_rate
        Learning rate of Adam, for every player.
    decay
        Whether the learning rate decays along half a cosine, to nearly 0 at ``max_epochs``.
    batch_size
        Cells in a minibatch; ``None``: 128 below 8,192 training cells, else 256.
    steps
        About the number of minibatches of all epochs, where ``max_epochs`` is not given.
    max_epochs
        Largest number of epochs; ``None``: as ``steps`` says, but between 15 and 300 epochs.
    patience
        Training stops after this many epochs without a better validation loss. ``None``: a fifth of
        ``max_epochs``, at least 5. This bridges the noise of a few hundred validation cells, and the time
        until a lower learning rate improves the fixed effects. Random effects overfit after a fifth of their
        epochs on small data, so more patience does not help. On the shipped data sets a fifth keeps the same
        epoch as training to the end; a tenth does not. The adversarial loss is not compared between epochs,
        because it rises as the adversary learns. The default fixed effects train to the last epoch.
    settling_steps
        Minibatches before patience is counted, ten times 1 / ``batch_norm_momentum``. Validation uses
        BatchNorm's running statistics, which at first still depend on their start.
    weights
        ``"given"``: the weights of the losses are the given numbers. ``"auto"``: the given weights of
        adversary, label head and batch head are ignored; their gradients are kept at a fixed share of the
        gradient of the reconstruction error (:mod:`scmedley.nn.balance`), for every data set.
    """

    scale: ScaleName = "standard"
    hidden: tuple[int, ...] = (256, 128)
    n_latent: int = 20
    batch_norm_momentum: float = 0.1
    learning_rate: float = 2e-3
    decay: bool = True
    batch_size: int | None = None
    steps: int = 2000
    max_epochs: int | None = None
    patience: int | None = None
    settling_steps: int = 100
    weights: Weights = "given"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # from JSON or TOML
                value = tuple(value)
            elif isinstance(value, np.generic):
                value = value.item()
            elif (field.name, value) == ("weights", "fixed"):  # the name in earlier versions
                value = "given"
            elif field.name == "effects" and isinstance(value, dict):
                try:
                    value = EffectStart(**value)
                except TypeError as error:
                    raise ScmedleyError(
                        f"effects={value} is not an EffectStart ({error}). Give only its fields."
                    ) from error
            object.__setattr__(self, field.name, value)
            default = field.default_factory() if callable(field.default_factory) else field.default
            check_setting(field.name, value, default)
        if not self.learning_rate > 0:
            raise ScmedleyError(f"learning_rate={self.learning_rate!r} must be above 0.")
        smallest = {"batch_size": 3, "steps": 1, "max_epochs": 1, "patience": 1}  # BatchNorm needs 2 cells
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= least):
                raise ScmedleyError(f"{name}={value!r} must be a whole number, {least} or more.")
        for name, known in (("weights", get_args(Weights)), ("scale", get_args(ScaleName))):
            if getattr(self, name) not in known:
                raise ScmedleyError(f"{name}={getattr(self, name)!r} must be one of {list(known)}.")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed."""
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            names = [f.name for f in dataclasses.fields(self)]
            raise ScmedleyError(f"{error}. The settings are {names}.") from error

    @staticmethod
    def published_training() -> dict[str, Any]:
        """Return sizes and training of the preprint: Adam 1e-4, minibatch 512, 500 epochs, patience 30."""
        return {
            "scale": "min-max",
            "hidden": (512, 132),
            "n_latent": 50,
            "batch_norm_momentum": 0.01,
            "learning_rate": 1e-4,
            "decay": False,
            "batch_size": 512,
            "max_epochs": 500,
            "patience": 30,
            "settling_steps": 1000,
        }

    def as_published(self) -> Self:
        """Return a copy with the settings of the preprint."""
        return self.replace(**self.published_training())

    @classmethod
    def from_saved(cls, fields: dict[str, Any]) -> Self:
        """Return the settings of a saved model, without warnings about names of earlier versions."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScmedleyWarning)
            return cls(**fields)

    def sizes(self, n_train: int) -> "Sizes":
        """Return batch size, maximum of epochs and patience for ``n_train`` training cells."""
        batch_size = self.batch_size or (128 if n_train < 8192 else 256)
        n_steps = -(-n_train // batch_size)
        max_epochs = self.max_epochs or min(300, max(15, -(-self.steps // n_steps)))
        return Sizes(batch_size, max_epochs, self.patience or max(LEAST_PATIENCE, max_epochs // 5))

    def stage(
        self, players: Mapping[str, Sequence[nn.Parameter]], keep: Literal["best", "last"] = "best"
    ) -> Stage:
        """Return a training stage of ``players`` with Adam, at a constant rate or with cosine decay."""
        schedule = Schedule("cosine" if self.decay else "constant")
        return Stage(players, self.learning_rate, schedule=schedule, keep=keep)


class Sizes(NamedTuple):
    """Batch size, maximum of epochs and patience of a fit."""

    batch_size: int
    max_epochs: int
    patience: int


def check_setting(name: str, value: Any, default: Any) -> None:
    """Raise if a setting has not the type of its default. ``None`` and text are checked elsewhere."""
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        least = 1 if name.startswith("n_") else 0  # a number of things that a network is built of
        right, wanted = _is_whole(value) and value >= least, f"a whole number, {least} or more"
    elif isinstance(default, float):
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        wanted = "a number, 0 or more"
    elif isinstance(default, tuple) and any(isinstance(part, float) for part in default):
        right = isinstance(value, tuple) and all(
            isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value
        )
        wanted = f"numbers, such as {default}"
    elif isinstance(default, tuple):
        right = isinstance(value, tuple) and bool(value) and all(_is_whole(n) and n > 0 for n in value)
        wanted = "at least one whole number above 0, such as (256, 128)"
    elif isinstance(default, EffectStart):
        right, wanted = isinstance(value, EffectStart), "an EffectStart, or a table of its fields"
    else:
        return
    if not right:
        raise ScmedleyError(f"{name}={value!r} must be {wanted}.")


def check_n_clusters(k: Any) -> None:
    """Raise if a number of clusters is neither ``None`` nor a whole number above 0."""
    if k is not None and not (_is_whole(k) and k >= 1):
        raise ScmedleyError(f"n_clusters={k!r} must be a whole number, 1 or more, or None.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def named(name: str, default: S, paper: S | None = None) -> S:
    """Return the settings of a preset; raise if the name is unknown, or if the model has no ``paper`` preset."""
    presets = {"default": default} if paper is None else {"default": default, "paper": paper}
    if name not in presets:
        raise ScmedleyError(f"There is no preset {name!r}. Choose one of {list(presets)}.")
    return presets[name]


def read_changes(path: Path) -> dict[str, dict[str, Any]]:
    """Read the changes to a preset from the tables ``[settings.FE]``, ``[settings.RE]``, ... of a TOML file.

    Raises
    ------
    ScmedleyError
        The file does not exist, is not TOML, or has no such tables.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError) as error:
        raise ScmedleyError(
            f"{path} cannot be read as TOML ({error}). Check its path and its syntax."
        ) from error
    return as_changes(found, path)


def as_changes(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of settings by network; raise if there are none."""
    if not (isinstance(found, dict) and all(isinstance(table, dict) for table in found.values())):
        raise ScmedleyError(f"{path} has no settings of a network. Add a table such as [settings.FE].")
    return found
