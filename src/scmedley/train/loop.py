"""The training loop for every network that is :class:`~scmedley.train.trainable.Trainable`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from scmedley import distributed
from scmedley.data.order import WHOLE, Shares, n_minibatches, split
from scmedley.data.resident import Minibatch, Resident
from scmedley.device import autocast
from scmedley.errors import ScmedleyError, listed
from scmedley.io.progress import progress_bar
from scmedley.train import checkpoint
from scmedley.train.schedule import Stepper
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells

CHECKPOINT_SECONDS = 15.0
COLUMNS = ["epoch", "part", "term", "value", "weight", "kept"]  # of the history
TOTAL = "total"  # the term that is the loss of the last player


@dataclass(frozen=True)
class Plan:
    """Sizes, stopping rule and checkpoint of a training.

    Attributes
    ----------
    batch_size
        Cells in a minibatch.
    max_epochs, patience
        Defaults for stages without their own.
    settling_steps
        Minibatches in each stage before patience is counted, while BatchNorm's running statistics converge.
    fingerprint
        Hash of model, settings and data; a checkpoint with another fingerprint is refused.
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
        """Return the number of minibatches in an epoch."""
        return n_minibatches(n_train, self.batch_size)


@dataclass
class State:
    """Progress of the training so far; ``rows`` become the history table."""

    fingerprint: str = ""
    stage: int = -1  # no stage has begun
    stage_began: int = 0  # epochs before this stage
    epoch: int = 0
    best_epoch: int = 0  # of this stage, or of the last one until this one has an epoch; 0: none yet
    best_values: dict[str, float] = field(default_factory=dict)  # of the terms of this stage, unweighted
    stopped: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, stage: int) -> None:
        """Begin a stage; what the last one kept remains the best until this one has an epoch."""
        self.stage, self.stage_began, self.best_values = stage, self.epoch, {}

    def progress(self, stage: Stage, epochs: int, more: float = 0.0) -> Progress:
        """Return the progress in a stage of ``epochs``, plus ``more`` epochs."""
        return Progress(stage.name, (self.epoch - self.stage_began + more) / epochs)

    def history(self) -> pd.DataFrame:
        """Return the history: epoch, part, term, value, weight, kept, and stage if there are several."""
        several = len({row["stage"] for row in self.rows}) > 1
        table = pd.DataFrame(self.rows, columns=["stage", *COLUMNS] if several else COLUMNS)
        return table.assign(kept=table["epoch"] == self.best_epoch)


@dataclass
class _Run:
    """What a checkpoint holds besides the network."""

    state: State
    best: dict[str, Tensor]
    steppers: dict[str, Stepper]
    saved_at: float = field(default_factory=time.monotonic)

    def save(self, network: Trainable, plan: Plan, after: float = -1.0) -> None:
        """Write the checkpoint if the plan has one and the last is older than ``after`` seconds.

        Of several processes, which have the same state, process 0 writes it.
        """
        if plan.checkpoint is None or not distributed.is_first():
            return
        if time.monotonic() - self.saved_at > after:
            checkpoint.save(plan.checkpoint, network, self.best, self.steppers, vars(self.state))
            self.saved_at = time.monotonic()


def fit(network: Trainable, cells: Resident, train: Tensor, validation: Tensor, plan: Plan) -> State:
    """Train ``network`` in place; it ends with the weights that its last stage keeps.

    Of several processes (:mod:`scmedley.distributed`) each computes its part of every minibatch. All of them end with
    the same network.

    Parameters
    ----------
    network
        Network on the device of ``cells``.
    cells
        All cells, in memory.
    train, validation
        Row numbers (int64).
    plan
        If its ``checkpoint`` exists, training resumes from it, bit for bit.

    Raises
    ------
    ScmedleyError
        A term is not finite.
    """
    _check_sizes(len(train), plan)
    stages = network.stages()
    run = _resume(network, stages, plan, len(train))
    state = run.state
    n_epochs = [stage.epochs or plan.max_epochs for stage in stages]
    shown = plan.progress and distributed.is_first()
    bar = progress_bar(sum(n_epochs), plan.label, "epoch", shown)
    bar.update(state.epoch)
    try:
        for number in range(max(state.stage, 0), len(stages)):
            if number > state.stage:
                state.enter(number)
                network.begin(TrainingCells(cells, train), state.progress(stages[number], n_epochs[number]))
                distributed.synchronise(network.state_dict().values())
                run.steppers = _steppers(stages[number], plan, len(train))
            known = TrainingCells(network.inputs(cells), train)
            _train_stage(network, known, validation, stages[number], run, plan, bar)
            if number == len(stages) - 1 and not state.stopped:
                whole = state.epoch - state.stage_began == n_epochs[number]
                state.stopped = "last epoch" if whole else "early stopping"
            run.save(network, plan)
            network.load_state_dict(run.best)
    except KeyboardInterrupt:
        if not state.best_epoch or distributed.world().size > 1:
            raise  # there are no weights to keep yet, or other processes are elsewhere in an epoch
        # The checkpoint remains at the end of an epoch, so that training can resume from it.
        state.stopped = "interrupted"
        network.load_state_dict(run.best)
    finally:
        bar.close()
    network.eval()
    network.finish(known)
    distributed.synchronise(network.state_dict().values())
    return state


def _resume(network: Trainable, stages: Sequence[Stage], plan: Plan, n_train: int) -> _Run:
    """Read the checkpoint of the plan, or begin anew."""
    if plan.checkpoint is None or not plan.checkpoint.exists():
        return _Run(State(plan.fingerprint), {}, {})
    with checkpoint.reading(plan.checkpoint):
        state = State(**checkpoint.read_state(plan.checkpoint))
    if state.fingerprint != plan.fingerprint:  # before the network or the random state changes
        raise ScmedleyError(
            f"The checkpoint {plan.checkpoint} is of another fit (other data, settings or seed). Delete it to start "
            "anew, or use the same ones."
        )
    with checkpoint.reading(plan.checkpoint):
        steppers = _steppers(stages[state.stage], plan, n_train)
        best = checkpoint.restore(plan.checkpoint, network, steppers)
    distributed.barrier()  # before process 0 writes the next checkpoint
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
    """Train until the last epoch of the stage or early stopping; ``run`` holds the best weights."""
    state, n_epochs, n_steps = run.state, stage.epochs or plan.max_epochs, plan.n_steps(len(known.rows))
    last_player = list(stage.players)[-1]
    while not (state.stopped or network.settled() or _is_over(state, stage, plan, n_steps)):
        network.train()
        trained = _Means(last_player)
        minibatches = _minibatches(known.cells, known.rows, plan.batch_size, shuffle=True)
        for step, (n_cells, cells) in enumerate(minibatches):
            progress = state.progress(stage, n_epochs, step / n_steps)
            with distributed.minibatch(n_cells):
                for player, terms in _losses(network, cells, progress, plan):
                    loss = total(terms)
                    _check_player(network, player, stage)
                    run.steppers[player].step(loss)
                    trained.add(player, terms, loss, len(cells.x_NG))
        for stepper in run.steppers.values():
            stepper.after_epoch()
        progress = state.progress(stage, n_epochs, 1.0)
        network.after_epoch(known, progress)
        distributed.synchronise(network.state_dict().values())
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
    """Return the mean of every term over ``rows``, with the network in evaluation mode."""
    network.eval()
    means = _Means(last_player)
    for n_cells, minibatch in _minibatches(cells, rows, 4 * plan.batch_size):
        with distributed.minibatch(n_cells):
            for player, terms in _losses(network, minibatch, progress, plan):
                means.add(player, terms, total(terms), len(minibatch.x_NG))
    return means.read()


def _minibatches(
    cells: Resident, rows: Tensor, size: int, shuffle: bool = False
) -> Iterator[tuple[int, Minibatch]]:
    """Yield the number of cells of each minibatch, and the part of it that this process has.

    The number is 0 if the processes do not share it: with fewer cells than processes, each has all of them.
    """
    n_processes, rank = distributed.world()
    shared = n_processes > 1 and len(rows) >= n_processes
    shares = Shares(n_processes, rank) if shared else WHOLE
    sizes = split(len(rows), n_minibatches(len(rows), size)) * shared
    yield from zip(sizes.tolist(), cells.minibatches(rows, size, shuffle, shares), strict=True)


def _check_sizes(n_train: int, plan: Plan) -> None:
    """Raise if there is a minibatch in which a process has no cell."""
    n_processes = distributed.world().size
    if n_train // plan.n_steps(n_train) < n_processes:
        raise ScmedleyError(
            f"{plan.label}: minibatches of {n_train // plan.n_steps(n_train)} cells cannot be shared by {n_processes} "
            "processes. Start fewer (torchrun --nproc-per-node)."
        )


def total(terms: Mapping[str, Term]) -> Tensor:
    """Return the loss of a player: the sum of weight * value, in the order of the terms."""
    return reduce(torch.add, (term.weight * term.value for term in terms.values()))


def _losses(network: Trainable, cells: Minibatch, progress: Progress, plan: Plan) -> Losses:
    """Yield each player and its terms, computed in the precision of the plan."""
    losses = iter(network.losses(cells, progress))
    while True:
        with autocast(cells.x_NG.device, plan.precision):
            move = next(losses, None)
        if move is None:
            return
        _check_move(network, move)
        yield move


def _check_player(network: Trainable, player: str, stage: Stage) -> None:
    """Raise if a stage has no such player."""
    if player not in stage.players:
        raise ScmedleyError(
            f"{type(network).__name__}.losses yields the player {player!r}, but the stage {stage.name!r} has "
            f"{listed(list(stage.players))}. Use the names that stages() gives them."
        )


def _check_move(network: Trainable, move: Any) -> None:
    """Raise if ``losses`` does not yield a player and its terms by name, each a number."""
    right = isinstance(move, tuple) and len(move) == 2 and isinstance(move[1], Mapping) and move[1]
    if not right or not all(isinstance(term, Term) for term in move[1].values()):
        raise ScmedleyError(
            f"{type(network).__name__}.losses must yield a player's name and its terms, such as "
            'yield "autoencoder", {"reconstruction": Term(error, 1.0)}.'
        )
    for name, term in move[1].items():
        if term.value.ndim:
            raise ScmedleyError(
                f"The term {name!r} of {type(network).__name__}.losses has the shape {tuple(term.value.shape)}. Make "
                "it one number: its mean over the cells."
            )


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
    """Return whether the stage has no epochs or no patience left."""
    done = state.epoch - state.stage_began
    if stage.keep == "last" or done >= (stage.epochs or plan.max_epochs):
        return done >= (stage.epochs or plan.max_epochs)
    counted_from = state.stage_began - (-plan.settling_steps // n_steps)
    waited = state.epoch - max(state.best_epoch, counted_from)
    return waited >= (stage.patience or plan.patience)


def _is_best(state: State, validated: "_Means") -> bool:
    """Compare with the best epoch by the current weights, because automatic weights change between epochs."""
    now, best = (
        sum(validated.weights[term] * values[term] for term in validated.watched)
        for values in (validated.values, state.best_values or validated.values)
    )
    return not state.best_values or now < best


def _record(state: State, stage: Stage, parts: dict[str, "_Means"], plan: Plan) -> None:
    """Append an epoch to the history; raise if a term is not finite."""
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
    """Means over cells of the terms of an epoch; on the device, as reading each step would stall a GPU.

    Attributes
    ----------
    values
        Mean of each recorded term, and of the loss of the last player as "total".
    weights
        Mean weight of each term in the total: 1 for "total", 0 for terms that are only recorded or of other
        players.
    watched
        The terms that early stopping uses.
    """

    def __init__(self, last_player: str) -> None:
        self.last_player = last_player
        self.watched: set[str] = set()
        self._sums: dict[str, list[Any]] = {}  # sums of value * cells, weight * cells, and cells

    def add(self, player: str, terms: Mapping[str, Term], loss: Tensor, n_cells: int) -> None:
        """Add the terms of one player for a minibatch."""
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
        """Compute the means over the cells of all processes, off the device."""
        names = sorted(self._sums, key=lambda name: name == TOTAL)
        sums_T3 = torch.tensor([[float(part) for part in self._sums[name]] for name in names]).double()
        value_T, weight_T, n_T = distributed.sum_in_place(sums_T3).T
        self.values = dict(zip(names, (value_T / n_T).tolist(), strict=True))
        self.weights = dict(zip(names, (weight_T / n_T).tolist(), strict=True))
        return self
