"""The optimiser, learning-rate schedule and gradient clipping of a player, all from ``torch``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from scmedley import distributed
from scmedley.device import DEVICES

OptimiserName = Literal["adam", "adamw", "sgd"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a stage, as a share of the stage's rate.

    Attributes
    ----------
    shape
        ``"constant"``; ``"cosine"``: decays along half a cosine to nearly 0; ``"one cycle"``: rises and
        decays along two half cosines (Smith and Topin 2019, ``torch.optim.lr_scheduler.OneCycleLR``).
    warm_up
        Share of the stage in which the rate rises: linearly from nearly 0, or to the peak of the cycle.
    per
        Whether the rate changes after every ``"step"`` or after every ``"epoch"``.
    """

    shape: Literal["constant", "cosine", "one cycle"] = "constant"
    warm_up: float = 0.0
    per: Literal["step", "epoch"] = "epoch"

    def attach(self, optimiser: torch.optim.Optimizer, rate: float, epochs: int, steps: int) -> LRScheduler:
        """Return the scheduler for ``epochs`` epochs of ``steps`` minibatches."""
        length = epochs * steps if self.per == "step" else epochs
        if self.shape == "one cycle":
            # As for the other shapes, only the learning rate changes, not the momentum.
            return OneCycleLR(
                optimiser, rate, total_steps=length, pct_start=self.warm_up or 0.1, cycle_momentum=False
            )
        return LambdaLR(optimiser, partial(self._share, length=length))

    def _share(self, n_done: int, length: int) -> float:
        rising = round(self.warm_up * length)
        if n_done < rising:
            return (n_done + 1) / (rising + 1)
        if self.shape == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (n_done - rising) / max(length - rising, 1))) / 2


CONSTANT = Schedule()


def make_optimiser(
    name: OptimiserName, parameters: Sequence[nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """Return a new optimiser of ``parameters``."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, fused=parameters[0].device.type in DEVICES)


class Stepper:
    """The parameters of one player in one stage, with their optimiser and schedule.

    Parameters
    ----------
    parameters
        The parameters that the player updates, if they require a gradient.
    optimiser, rate, schedule, clip
        As in :class:`scmedley.train.trainable.Stage`.
    epochs, steps
        Epochs of the stage, and minibatches in an epoch.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        optimiser: OptimiserName,
        rate: float,
        schedule: Schedule,
        clip: float | None,
        epochs: int,
        steps: int,
    ):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.schedule, self.clip = schedule, clip
        self.optimiser = make_optimiser(optimiser, self.parameters, rate)
        self.scheduler = schedule.attach(self.optimiser, rate, epochs, steps)

    def step(self, loss: Tensor) -> None:
        """Minimise ``loss`` by one step of the parameters of this player alone."""
        self.optimiser.zero_grad(set_to_none=True)
        part = loss * distributed.share() if distributed.is_shared() else loss
        torch.autograd.backward(part, inputs=self.parameters)
        distributed.sum_gradients(self.parameters)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        if self.schedule.per == "step":
            self.scheduler.step()

    def after_epoch(self) -> None:
        """Update the learning rate if it changes after every epoch."""
        if self.schedule.per == "epoch":
            self.scheduler.step()

    def schedule_state(self) -> dict[str, Any]:
        """Return the state of the schedule as valid JSON."""
        return dict(self.scheduler.state_dict())

    def restore_schedule(self, state: dict[str, Any]) -> None:
        """Restore the schedule and its learning rate from ``state``."""
        self.scheduler.load_state_dict(state)
        for group, rate in zip(self.optimiser.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
