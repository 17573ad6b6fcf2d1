"""The one training loop, for every network that is :class:`Trainable`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scmedley.data.resident import Minibatch, Resident
from scmedley.device import autocast
from scmedley.errors import ScmedleyError
from scmedley.train import checkpoint
from scmedley.train.schedule import CONSTANT, OptimiserName, Schedule, Stepper

CHECKPOINT_SECONDS = 15.0
COLUMNS = ["epoch", "part", "term", "value", "weight"]  # of the history
TOTAL = "total"  # the last player's loss among the terms


@dataclass(frozen=True)
class Term:
    """One term of a player's loss, which is the sum of weight * value over its terms.

    Attributes
    ----------
    value
        Unweighted.
    weight
        0: the term is recorded only.
    watched
        Whether early stopping looks at it. Not at what cannot be compared between epochs, such as the adversarial
        term, which rises as the adversary learns.
    recorded
        Whether it stands in the history.
    """

    value: Tensor
    weight: float | Tensor
    watched: bool = True
    recorded: bool = True


Losses = Iterator[tuple[str, Mapping[str, Term]]]


@dataclass(frozen=True)
class Stage:
    """One stage of training: who plays, how they are stepped, and how long.

    Attributes
    ----------
    players
        The parameters of each player, in playing order. The last player's loss is the "total" of the history.
    rate
        Learning rate.
    name
        In the history, where there are several stages.
    optimiser, schedule
        Of every player.
    clip
        Largest norm of a player's gradient; ``None``: as it is.
    epochs
        At most; ``None``: those of the plan.
    patience
        Epochs without a better validation loss (of the watched terms) after which the stage ends. ``None``:
        the plan's.
    keep
        Weights with which the stage ends: of the ``"best"`` epoch, or of the ``"last"``, without early stopping.
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
    """The stage, and how much of it is done: 0 to 1."""

    stage: str
    share: float


class TrainingCells(NamedTuple):
    """All cells, and the row numbers of those that are trained on."""

    cells: Resident
    rows: Tensor


class Trainable(checkpoint.Stateful, Protocol):
    """What the loop asks of a network: an ``nn.Module`` with these methods."""

    def train(self, mode: bool = True) -> Any:
        """Go into training mode, as ``nn.Module`` does."""

    def eval(self) -> Any:
        """Go into evaluation mode, as ``nn.Module`` does."""

    def stages(self) -> Sequence[Stage]:
        """Return the stages of training, in order."""

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield each player and its terms for a minibatch, one player after another.

        The loop steps a player before it asks for the next one, so a later player sees the earlier ones as they
        are after their step, while activations computed before are shared.
        """

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Learn what a stage starts from (numbers of cells, centroids). Default: nothing."""

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update in closed form what is not learnt by gradient. Default: nothing."""

    def finish(self, known: TrainingCells) -> None:
        """Update in closed form for the last time, after the kept weights are restored. Default: nothing."""


@dataclass(frozen=True)
class Plan:
    """How to train: sizes, stopping rule and where to keep the checkpoint.

    Attributes
    ----------
    batch_size
        Cells of a minibatch.
    max_epochs, patience
        Of a stage that does not say its own.
    settling_steps
        Minibatches of each stage before patience is counted, while BatchNorm's running statistics settle.
    fingerprint
        What is fitted to what, so that a checkpoint of something else is refused.
    """

    batch_size: int
    max_epochs: int
    patience: int
    settling_steps: int = 0
    precision: str = "float32"
    checkpoint: Path | None = None
    fingerprint: str = ""
    label: str = "training"
    progress: bool = True

    def n_steps(self, n_train: int) -> int:
        """Return the number of minibatches of an epoch."""
        return -(-n_train // self.batch_size)


@dataclass
class State:
    """What has happened so far; ``rows`` become the history table."""

    fingerprint: str = ""
    stage: int = -1  # none has begun
    stage_began: int = 0  # epochs before this stage
    epoch: int = 0
    best_epoch: int = 0  # of this stage; 0: none yet
    best_values: dict[str, float] = field(default_factory=dict)  # of the watched terms, unweighted
    stopped: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, stage: int) -> None:
        """Begin a stage: none of its epochs is the best yet."""
        self.stage, self.stage_began, self.best_epoch, self.best_values = stage, self.epoch, 0, {}

    def progress(self, stage: Stage, epochs: int, more: float = 0.0) -> Progress:
        """Return how much of a stage of ``epochs`` is done, and ``more`` epochs."""
        return Progress(stage.name, (self.epoch - self.stage_began + more) / epochs)

    def history(self) -> pd.DataFrame:
        """Return the tidy history: epoch, part, term, value, weight; and stage, where there are several."""
        several = len({row["stage"] for row in self.rows}) > 1
        return pd.DataFrame(self.rows, columns=["stage", *COLUMNS] if several else COLUMNS)


@dataclass
class _Run:
    """What changes while training, beside the network: all that a checkpoint holds."""

    state: State
    best: dict[str, Tensor]
    steppers: dict[str, Stepper]
    saved_at: float = field(default_factory=time.monotonic)

    def save(self, network: Trainable, plan: Plan, after: float = -1.0) -> None:
        """Write the checkpoint, if the plan has one and the last is older than ``after`` seconds."""
        if plan.checkpoint is not None and time.monotonic() - self.saved_at > after:
            checkpoint.save(plan.checkpoint, network, self.best, self.steppers, vars(self.state))
            self.saved_at = time.monotonic()


def fit(network: Trainable, cells: Resident, train: Tensor, validation: Tensor, plan: Plan) -> State:
    """Train ``network`` in place and leave it with the weights that its last stage keeps.

    Parameters
    ----------
    network
        On the device of ``cells``.
    cells
        All cells, resident.
    train, validation
        Row numbers (int64).
    plan
        With ``checkpoint`` set and the file there, training goes on from it, to the same bits.

    Raises
    ------
    ScmedleyError
        At the first epoch in which a term is not finite, naming it.
    """
    stages, known = network.stages(), TrainingCells(cells, train)
    run = _resume(network, stages, plan, len(train))
    state = run.state
    n_epochs = [stage.epochs or plan.max_epochs for stage in stages]
    bar = tqdm(total=sum(n_epochs), desc=plan.label, unit="epoch", mininterval=0.5, disable=not plan.progress)
    bar.update(state.epoch)
    try:
        for number in range(max(state.stage, 0), len(stages)):
            if number > state.stage:
                state.enter(number)
                network.begin(known, state.progress(stages[number], n_epochs[number]))
                run.best, run.steppers = _copy(network), _steppers(stages[number], plan, len(train))
            _train_stage(network, known, validation, stages[number], run, plan, bar)
            if number == len(stages) - 1 and not state.stopped:
                whole = state.epoch - state.stage_began == n_epochs[number]
                state.stopped = "last epoch" if whole else "early stopping"
            run.save(network, plan)
            network.load_state_dict(run.best)
    except KeyboardInterrupt:
        if not state.best_epoch:
            raise  # nothing to keep yet
        # The checkpoint stays as it is, at the end of an epoch, so that training can go on from it.
        state.stopped = "interrupted"
        network.load_state_dict(run.best)
    finally:
        bar.close()
    network.eval()
    network.finish(known)
    return state


def _resume(network: Trainable, stages: Sequence[Stage], plan: Plan, n_train: int) -> _Run:
    """Take up the plan's checkpoint, or begin anew."""
    if plan.checkpoint is None or not plan.checkpoint.exists():
        return _Run(State(plan.fingerprint), {}, {})
    with checkpoint.reading(plan.checkpoint):
        state = State(**checkpoint.read_state(plan.checkpoint))
        steppers = _steppers(stages[state.stage], plan, n_train)
        best = checkpoint.restore(plan.checkpoint, network, steppers)
    if state.fingerprint != plan.fingerprint:
        raise ScmedleyError(
            f"The checkpoint {plan.checkpoint} is of another fit (other data, settings or seed). Repeat those, or "
            "delete it to start anew."
        )
    return _Run(state, best, steppers)


def _train_stage(
    network: Trainable,
    known: TrainingCells,
    validation: Tensor,
    stage: Stage,
    run: _Run,
    plan: Plan,
    bar: Any,
) -> None:
    """Train until the stage's last epoch, or until patience ends; the best weights are in ``run``."""
    state, n_epochs, n_steps = run.state, stage.epochs or plan.max_epochs, plan.n_steps(len(known.rows))
    last_player = list(stage.players)[-1]
    while not (state.stopped or _is_over(state, stage, plan, n_steps)):
        network.train()
        trained = _Means(last_player)
        for step, cells in enumerate(known.cells.minibatches(known.rows, plan.batch_size, shuffle=True)):
            progress = state.progress(stage, n_epochs, step / n_steps)
            for player, terms in _losses(network, cells, progress, plan):
                loss = total(terms)
                run.steppers[player].step(loss)
                trained.add(player, terms, loss, len(cells.x_NG))
        for stepper in run.steppers.values():
            stepper.after_epoch()
        progress = state.progress(stage, n_epochs, 1.0)
        network.after_epoch(known, progress)
        validated = evaluate(network, known.cells, validation, progress, plan, last_player)
        state.epoch += 1
        _record(state, stage, {"train": trained.read(), "validation": validated}, plan)
        if stage.keep == "last" or _is_best(state, validated):
            state.best_epoch, state.best_values = state.epoch, validated.values
            run.best = _copy(network)
        bar.set_postfix(validation=f"{validated.values[TOTAL]:.4g}", best=state.best_epoch, refresh=False)
        bar.update()
        run.save(network, plan, after=CHECKPOINT_SECONDS)


@torch.no_grad()
def evaluate(
    network: Trainable, cells: Resident, rows: Tensor, progress: Progress, plan: Plan, last_player: str
) -> "_Means":
    """Average every term over ``rows`` with the network in evaluation mode."""
    network.eval()
    means = _Means(last_player)
    for minibatch in cells.minibatches(rows, 4 * plan.batch_size):
        for player, terms in _losses(network, minibatch, progress, plan):
            means.add(player, terms, total(terms), len(minibatch.x_NG))
    return means.read()


def total(terms: Mapping[str, Term]) -> Tensor:
    """Return a player's loss: the sum of weight * value, in the order of the terms."""
    return reduce(torch.add, (term.weight * term.value for term in terms.values()))


def _losses(network: Trainable, cells: Minibatch, progress: Progress, plan: Plan) -> Losses:
    """Ask for one player's terms after another, in the plan's precision."""
    losses = network.losses(cells, progress)
    while True:
        with autocast(cells.x_NG.device, plan.precision):
            move = next(losses, None)
        if move is None:
            return
        yield move


def _steppers(stage: Stage, plan: Plan, n_train: int) -> dict[str, Stepper]:
    return {
        player: Stepper(
            parameters,
            optimiser=stage.optimiser,
            rate=stage.rate,
            schedule=stage.schedule,
            clip=stage.clip,
            epochs=stage.epochs or plan.max_epochs,
            steps=plan.n_steps(n_train),
        )
        for player, parameters in stage.players.items()
    }


def _is_over(state: State, stage: Stage, plan: Plan, n_steps: int) -> bool:
    """Return whether the stage had all its epochs, or has waited for a better one for too long."""
    done = state.epoch - state.stage_began
    if stage.keep == "last" or done >= (stage.epochs or plan.max_epochs):
        return done >= (stage.epochs or plan.max_epochs)
    settled = state.stage_began - (-plan.settling_steps // n_steps)
    waited = state.epoch - max(state.best_epoch, settled)
    return waited >= (stage.patience or plan.patience)


def _is_best(state: State, validated: "_Means") -> bool:
    """Compare with the best epoch by today's weights: those of a balance change from epoch to epoch."""
    now, best = (
        sum(validated.weights[term] * values[term] for term in validated.watched)
        for values in (validated.values, state.best_values or validated.values)
    )
    return not state.best_epoch or now < best


def _record(state: State, stage: Stage, parts: dict[str, "_Means"], plan: Plan) -> None:
    """Append an epoch to the history; stop at a term that is not finite."""
    for part, means in parts.items():
        about = {"stage": stage.name, "epoch": state.epoch, "part": part}
        for term, value in means.values.items():
            state.rows.append(about | {"term": term, "value": value, "weight": means.weights[term]})
            if not -1e30 < value < 1e30:
                raise ScmedleyError(
                    f"{plan.label}: the {part} term {term!r} is {value} in epoch {state.epoch}. Lower the learning "
                    f"rate (now {stage.rate:g}) or the weight of that term, or use precision='float32'."
                )


def _copy(network: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


class _Means:
    """Means of an epoch's terms over cells, kept on the device: reading them each step would stall a GPU.

    Attributes
    ----------
    values
        Mean of each recorded term, and of the last player's loss as "total".
    weights
        Mean weight of each in the total: 1 for the total, 0 for what is recorded only and for other players' terms.
    watched
        The terms that early stopping looks at.
    """

    def __init__(self, last_player: str) -> None:
        self.last_player = last_player
        self.watched: set[str] = set()
        self._sums: dict[str, list[Any]] = {}  # of value and weight, times cells, and of cells

    def add(self, player: str, terms: Mapping[str, Term], loss: Tensor, n_cells: int) -> None:
        """Count in one player's terms for a minibatch."""
        last = player == self.last_player
        terms = {name: term for name, term in terms.items() if term.recorded}
        for name, term in terms.items():
            self._add(name, term.value, term.weight if last else 0.0, n_cells)
        if last:
            self.watched |= {name for name, term in terms.items() if term.watched}
            self._add(TOTAL, loss, 1.0, n_cells)

    def _add(self, name: str, value: Tensor, weight: float | Tensor, n_cells: int) -> None:
        weight = weight.detach().float() if isinstance(weight, Tensor) else weight
        new = (value.detach().float() * n_cells, weight * n_cells, n_cells)
        self._sums[name] = [a + b for a, b in zip(self._sums.get(name, (0, 0, 0)), new, strict=True)]

    def read(self) -> Self:
        """Take the means off the device."""
        sums = {name: self._sums[name] for name in sorted(self._sums, key=lambda name: name == TOTAL)}
        self.values = {name: float(value) / n for name, (value, _, n) in sums.items()}
        self.weights = {name: float(weight) / n for name, (_, weight, n) in sums.items()}
        return self
