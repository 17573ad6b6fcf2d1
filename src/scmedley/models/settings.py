"""Settings that all networks share, and how presets are named."""

import dataclasses
import math
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, get_args

import numpy as np
from torch import nn

from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.nn.balance import Weights
from scmedley.nn.bayesian import EffectStart
from scmedley.train.loop import Stage
from scmedley.train.schedule import Schedule

PRESETS = ("default", "paper")
LEAST_PATIENCE = 5

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """What all networks share.

    Attributes
    ----------
    hidden
        Sizes of the encoder's hidden layers.
    n_latent
        P.
    batch_norm_momentum
        Weight of the new minibatch in BatchNorm's running statistics (PyTorch's sense).
    learning_rate
        Of Adam, for every player.
    decay
        Whether the learning rate falls to nearly 0, along half a cosine, until the last of ``max_epochs``.
    batch_size
        Cells of a minibatch; ``None``: 128 below 8,192 training cells, else 512.
    max_epochs
        ``None``: as many as make about 2,000 minibatches, between 30 and 300.
    patience
        Epochs without a better validation loss after which training stops; ``None``: a fifth of ``max_epochs``, 5 at
        least. It bridges the noise of a few hundred validation cells, and the time until the falling learning rate
        brings the fixed effects further. Random effects overfit after a fifth of their epochs on small data (the
        batch head learns its training cells), and more patience finds nothing better. On the shipped data sets a
        fifth keeps the same epoch as training to the end, a tenth does not. The adversarial term is not compared
        between epochs: it rises as the adversary learns.
    settling_steps
        Minibatches before patience is counted: ten times 1 / ``batch_norm_momentum``, in which BatchNorm's running
        statistics forget where they began. Validation uses them, and would otherwise judge the untrained network.
    weights
        ``"given"``: the losses' weights are the numbers given for them. ``"auto"``: those of adversary, label
        head and batch head are not used; the gradients of these terms are kept at a share of the
        reconstruction's (:mod:`scmedley.nn.balance`), whatever the data set.
    """

    hidden: tuple[int, ...] = (512, 132)
    n_latent: int = 50
    batch_norm_momentum: float = 0.1
    learning_rate: float = 1e-3
    decay: bool = True
    batch_size: int | None = None
    max_epochs: int | None = None
    patience: int | None = None
    settling_steps: int = 100
    weights: Weights = "given"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as JSON and TOML have it
                value = tuple(value)
            elif isinstance(value, np.generic):
                value = value.item()
            elif (field.name, value) == ("weights", "fixed"):  # its name in earlier versions
                value = "given"
            elif field.name == "effects" and isinstance(value, dict):
                try:
                    value = EffectStart(**value)
                except TypeError as error:
                    raise ScmedleyError(f"effects={value} is no EffectStart ({error}).") from error
            object.__setattr__(self, field.name, value)
            default = field.default_factory() if callable(field.default_factory) else field.default
            check_setting(field.name, value, default)
        for name in ("n_latent", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ScmedleyError(f"{name}={getattr(self, name)!r} must be above 0.")
        for name, least in (("batch_size", 3), ("max_epochs", 1), ("patience", 1)):  # BatchNorm needs 2 cells
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= least):
                raise ScmedleyError(f"{name}={value!r} must be a whole number, {least} or more.")
        if self.weights not in get_args(Weights):
            raise ScmedleyError(f"weights={self.weights!r} is none of {list(get_args(Weights))}.")

    def replace(self, **changes: Any) -> Self:
        """Return the same settings with some changed."""
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            names = [f.name for f in dataclasses.fields(self)]
            raise ScmedleyError(f"{error}; the settings are {names}.") from error

    @staticmethod
    def published_training() -> dict[str, Any]:
        """Return the preprint's training settings: Adam 1e-4, minibatch 512, 500 epochs, patience 30."""
        return {
            "batch_norm_momentum": 0.01,
            "learning_rate": 1e-4,
            "decay": False,
            "batch_size": 512,
            "max_epochs": 500,
            "patience": 30,
            "settling_steps": 1000,
        }

    def as_published(self) -> Self:
        """Return the preprint's form of these settings."""
        return self.replace(**self.published_training())

    @classmethod
    def from_saved(cls, fields: dict[str, Any]) -> Self:
        """Return the settings of a saved model; those of earlier versions have old names, of which nobody is warned."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScmedleyWarning)
            return cls(**fields)

    def sizes(self, n_train: int) -> "Sizes":
        """Return batch size, epochs at most and patience for ``n_train`` training cells."""
        batch_size = self.batch_size or (128 if n_train < 8192 else 512)
        steps = -(-n_train // batch_size)
        max_epochs = self.max_epochs or min(300, max(30, -(-2000 // steps)))
        return Sizes(batch_size, max_epochs, self.patience or max(LEAST_PATIENCE, max_epochs // 5))

    def stage(self, players: Mapping[str, Sequence[nn.Parameter]]) -> Stage:
        """Return the one stage of training of ``players``: Adam, at a constant rate or along half a cosine."""
        return Stage(players, self.learning_rate, schedule=Schedule("cosine" if self.decay else "constant"))


class Sizes(NamedTuple):
    """How a network is trained to so many cells."""

    batch_size: int
    max_epochs: int
    patience: int


def check_setting(name: str, value: Any, default: Any) -> None:
    """Raise if a setting is not of the kind of its default. Defaults of ``None`` or text are checked elsewhere."""
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        right, wanted = _is_whole(value) and value >= 0, "a whole number, 0 or more"
    elif isinstance(default, float):
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        wanted = "a number, 0 or more"
    elif isinstance(default, tuple):
        right = isinstance(value, tuple) and bool(value) and all(_is_whole(n) and n > 0 for n in value)
        wanted = "at least one whole number above 0, as (512, 132)"
    elif isinstance(default, EffectStart):
        right, wanted = isinstance(value, EffectStart), "an EffectStart, or a table with its fields"
    else:
        return
    if not right:
        raise ScmedleyError(f"{name}={value!r} must be {wanted}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def named(name: str, default: S, paper: S) -> S:
    """Return the settings of a preset, or raise and name the presets."""
    if name not in PRESETS:
        raise ScmedleyError(f"There is no preset {name!r}. Choose one of {list(PRESETS)}.")
    return default if name == "default" else paper


def read_changes(path: Path) -> dict[str, dict[str, Any]]:
    """Read changes to a preset, by network, from the tables ``[settings.FE]``, ``[settings.RE]`` ... of a TOML file.

    Raises
    ------
    ScmedleyError
        No such file, not TOML, or no such tables.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError) as error:
        raise ScmedleyError(f"{path} cannot be read as TOML ({error}).") from error
    return as_changes(found, path)


def as_changes(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Return tables of settings, by network, or raise if there are none."""
    if not (isinstance(found, dict) and all(isinstance(table, dict) for table in found.values())):
        raise ScmedleyError(f"{path} has no tables such as [settings.FE] with settings of a network.")
    return found
