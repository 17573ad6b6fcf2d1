"""The one training loop, for every network.

A network is an ``nn.Module`` that offers

- ``players()``: the parameters of each player, in playing order;
- ``play(cells)``: a generator that yields, for one minibatch, one :class:`Move` after another. The
  loop steps the player of a move before it asks for the next one, so a later move sees the earlier
  players as they are after their step, while activations computed before are shared;
- ``after_epoch()``: closed-form updates between epochs.

The last player's loss is the total that early stopping watches. Terms named "weight: ..." are the weights of other
terms in it, where these change while training.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scmedley.data.resident import Minibatch, Resident
from scmedley.device import autocast
from scmedley.errors import ScmedleyError
from scmedley.nn.balance import ROW
from scmedley.train import checkpoint

CHECKPOINT_SECONDS = 15.0


@dataclass(frozen=True)
class Move:
    """One player's loss for a minibatch, and the named terms it is made of (unweighted)."""

    player: str
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """How to train: sizes, stopping rule and where to keep the checkpoint.

    ``patience`` is the number of epochs without a better validation total after which training stops; it
    is not counted in the first ``settling_steps`` minibatches, while BatchNorm's running statistics ensure_not_view.
    ``fingerprint`` says what is fitted to what, so that a checkpoint of something else is not taken up.
    ``decay`` lowers the learning rate along half a cosine, from ``learning_rate`` to nearly 0 in the last
    of ``max_epochs``: a game between players swings as long as they take long steps.
    """

    batch_size: int
    max_epochs: int
    patience: int
    learning_rate: float
    decay: bool = False
    settling_steps: int = 0
    precision: str = "float32"
    checkpoint: Path | None = None
    fingerprint: str = ""
    label: str = "training"
    progress: bool = True


@dataclass
class Progress:
    """What has happened so far; ``rows`` become the history table."""

    fingerprint: str = ""
    epoch: int = 0
    best_epoch: int = 0
    best_total: float = float("inf")
    stopped: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def history(self) -> pd.DataFrame:
        """Give the tidy history: epoch, part, term, value."""
        return pd.DataFrame(self.rows, columns=["epoch", "part", "term", "value"])


def fit(network: Any, cells: Resident, train: Tensor, validation: Tensor, plan: Plan) -> Progress:
    """Train ``network`` in place and leave it with the weights of the best epoch.

    Parameters
    ----------
    network
        An ``nn.Module`` with ``players``, ``play`` and ``after_epoch`` (above), on the device of ``cells``.
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
    players = {name: list(parameters) for name, parameters in network.players().items()}
    optimisers: checkpoint.Optimisers = {
        name: torch.optim.Adam(parameters, lr=plan.learning_rate, fused=True)
        for name, parameters in players.items()
    }
    so_far, best = Progress(plan.fingerprint), _copy(network)
    if plan.checkpoint is not None and plan.checkpoint.exists():
        best, state = checkpoint.load(plan.checkpoint, network, optimisers)
        so_far = Progress(**state)
        if so_far.fingerprint != plan.fingerprint:
            raise ScmedleyError(
                f"The checkpoint {plan.checkpoint} is of another fit (other data, settings or seed). Repeat those, or "
                "delete it to start anew."
            )
    bar = tqdm(
        total=plan.max_epochs,
        initial=so_far.epoch,
        desc=plan.label,
        unit="epoch",
        mininterval=0.5,
        disable=not plan.progress,
    )
    saved_at = time.monotonic()
    try:
        while not (so_far.stopped or _finished(so_far, plan, len(train))):
            network.train()
            _set_learning_rate(optimisers, so_far.epoch, plan)
            trained = _Mean()
            for minibatch in cells.minibatches(train, plan.batch_size, shuffle=True):
                for move in _moves(network, minibatch, plan):
                    optimisers[move.player].zero_grad(set_to_none=True)
                    torch.autograd.backward(move.loss, inputs=players[move.player])
                    optimisers[move.player].step()
                    trained.add(move, len(minibatch.b_N))
            network.after_epoch()
            validated = evaluate(network, cells, validation, plan)
            so_far.epoch += 1
            total = _record(so_far, {"train": trained, "validation": validated}, list(players)[-1], plan)
            if total < _best_total(so_far):
                so_far.best_total, so_far.best_epoch, best = total, so_far.epoch, _copy(network)
            bar.set_postfix(validation=f"{total:.4g}", best=so_far.best_epoch, refresh=False)
            bar.update()
            if plan.checkpoint is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                checkpoint.save(plan.checkpoint, network, best, optimisers, vars(so_far))
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        if not so_far.best_epoch:
            raise  # nothing to keep yet
        so_far.stopped = "interrupted"
    finally:
        bar.close()
    so_far.stopped = so_far.stopped or ("early stopping" if so_far.epoch < plan.max_epochs else "last epoch")
    if plan.checkpoint is not None and so_far.stopped != "interrupted":
        # After Ctrl-C the last checkpoint stays, at the end of an epoch, so that training can go on from it.
        checkpoint.save(plan.checkpoint, network, best, optimisers, vars(so_far))
    network.load_state_dict(best)
    network.eval()
    return so_far


@torch.no_grad()
def evaluate(network: Any, cells: Resident, rows: Tensor, plan: Plan) -> "_Mean":
    """Average every term over ``rows`` with the network in evaluation mode."""
    network.eval()
    mean = _Mean()
    for minibatch in cells.minibatches(rows, 4 * plan.batch_size):
        for move in _moves(network, minibatch, plan):
            mean.add(move, len(minibatch.b_N))
    return mean


def _moves(network: Any, minibatch: Minibatch, plan: Plan) -> Iterator[Move]:
    moves = network.play(minibatch)
    while True:
        with autocast(minibatch.x_NG.device, plan.precision):
            move = next(moves, None)
        if move is None:
            return
        yield move


def _set_learning_rate(optimisers: checkpoint.Optimisers, epoch: int, plan: Plan) -> None:
    share = (1 + math.cos(math.pi * epoch / plan.max_epochs)) / 2 if plan.decay else 1.0
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * share


def _finished(so_far: Progress, plan: Plan, n_train: int) -> bool:
    settled = -(-plan.settling_steps // -(-n_train // plan.batch_size))
    waited = so_far.epoch - max(so_far.best_epoch, settled)
    return so_far.epoch >= plan.max_epochs or waited >= plan.patience


def _record(so_far: Progress, parts: dict[str, "_Mean"], last_player: str, plan: Plan) -> float:
    """Append an epoch to the history, stop at a non-finite term, give the validation total."""
    for part, mean in parts.items():
        values = mean.values(last_player)
        for term, value in values.items():
            so_far.rows.append({"epoch": so_far.epoch, "part": part, "term": term, "value": value})
        broken = [term for term, value in values.items() if not -1e30 < value < 1e30]
        if broken:
            raise ScmedleyError(
                f"{plan.label}: the {part} term {broken[0]!r} is {values[broken[0]]} in epoch {so_far.epoch}. "
                f"Lower the learning rate (now {plan.learning_rate:g}) or the weight of that term, or use "
                "precision='float32'."
            )
    return values["total"]


def _best_total(so_far: Progress) -> float:
    """Give the best epoch's validation total, by today's weights where a network's weights change."""
    best, today = (
        {
            str(r["term"]): float(r["value"])
            for r in so_far.rows
            if r["epoch"] == epoch and r["part"] == "validation"
        }
        for epoch in (so_far.best_epoch, so_far.epoch)
    )
    names = [row.removeprefix(ROW) for row in best if row.startswith(ROW)]
    return so_far.best_total + sum((today[ROW + name] - best[ROW + name]) * best[name] for name in names)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


class _Mean:
    """Running means over cells, kept on the device: reading them each step would stall a GPU."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, move: Move, n_cells: int) -> None:
        for term, value in {**move.terms, f"{move.player} total": move.loss}.items():
            self.sums[term] = self.sums.get(term, 0) + value.detach().float() * n_cells
            self.counts[term] = self.counts.get(term, 0) + n_cells

    def values(self, last_player: str) -> dict[str, float]:
        means = {term: float(value) / self.counts[term] for term, value in self.sums.items()}
        total = means.pop(f"{last_player} total")
        return {t: v for t, v in means.items() if not t.endswith(" total")} | {"total": total}
