"""What the training loop needs from a network: stages, players and the terms of their losses."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from scmedley.data.resident import Minibatch, Resident
from scmedley.train.checkpoint import Stateful
from scmedley.train.schedule import CONSTANT, OptimiserName, Schedule


@dataclass(frozen=True)
class Term:
    """One term of a player's loss. The loss is the sum of weight * value over the terms.

    Attributes
    ----------
    value
        Unweighted value.
    weight
        Weight in the loss; 0: the term is only recorded.
    watched
        Whether early stopping uses the term. Terms that cannot be compared between epochs are not used, such
        as the adversarial loss, which rises as the adversary learns.
    recorded
        Whether the term is in the history.
    """

    value: Tensor
    weight: float | Tensor
    watched: bool = True
    recorded: bool = True


Losses = Iterator[tuple[str, Mapping[str, Term]]]


@dataclass(frozen=True)
class Stage:
    """One stage of training: its players, their optimiser, and its length.

    Attributes
    ----------
    players
        The parameters of each player, in the order of their steps. The loss of the last player is "total" in
        the history.
    rate
        Learning rate.
    name
        Name in the history if there are several stages.
    optimiser, schedule
        Used for every player.
    clip
        Largest norm of a player's gradient; ``None``: no clipping.
    epochs
        Largest number of epochs; ``None``: that of the plan.
    patience
        The stage ends after this many epochs without a better validation loss (of the watched terms).
        ``None``: that of the plan.
    keep
        Weights kept at the end: of the ``"best"`` epoch, or of the ``"last"`` epoch without early stopping.
    """

    players: Mapping[str, Sequence[nn.Parameter]]
    rate: float
    name: str = "training"
    optimiser: OptimiserName = "adam"
    schedule: Schedule = CONSTANT
    clip: float | None = None
    epochs: int | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"


class Progress(NamedTuple):
    """The stage, and the share of it that is done, from 0 to 1."""

    stage: str
    share: float


class TrainingCells(NamedTuple):
    """All cells, and the row numbers of the training cells."""

    cells: Resident
    rows: Tensor


class Trainable(Stateful, Protocol):
    """A network that the loop can train: an ``nn.Module`` with these methods."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode, as ``nn.Module`` does."""

    def eval(self) -> Any:
        """Set evaluation mode, as ``nn.Module`` does."""

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Return the stages of training, in order."""

    @abstractmethod
    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield each player and its terms for a minibatch, one player after another.

        The loop updates a player before it requests the next one. A later player therefore uses the updated
        weights of the earlier ones, but may share activations that were computed before.
        """

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Prepare a stage (numbers of cells, centroids). Default: nothing."""

    def inputs(self, cells: Resident) -> Resident:
        """Return all cells as ``losses`` takes them, computed once in each stage, after ``begin``.

        For what does not change in training. Default: the cells as they are.
        """
        return cells

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update what is learnt in closed form, without a gradient. Default: nothing."""

    def settled(self) -> bool:
        """Return whether the stage has nothing left to learn, whatever its epochs. Default: never."""
        return False

    def finish(self, known: TrainingCells) -> None:
        """Make the last closed-form update, after the kept weights are restored. Default: nothing."""
