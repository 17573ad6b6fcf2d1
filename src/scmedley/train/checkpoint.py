"""Checkpoints: one file from which a fit resumes bit for bit. Safetensors and JSON, never pickle."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scmedley.device import generator_of
from scmedley.errors import ScmedleyError
from scmedley.io import replacing
from scmedley.train.schedule import Stepper

Steppers = Mapping[str, Stepper]


class Stateful(Protocol):
    """The methods of ``nn.Module`` that a checkpoint needs."""

    def state_dict(self) -> dict[str, Any]:
        """Return all parameters and buffers."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Set all parameters and buffers."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return an iterator over all parameters."""


def save(
    path: Path, network: Stateful, best: dict[str, Tensor], steppers: Steppers, state: dict[str, Any]
) -> None:
    """Write the checkpoint atomically; ``state`` (stage, epoch, history, ...) must be valid JSON."""
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in best.items()}
    for player, stepper in steppers.items():
        for i, moments in stepper.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{player}/{i}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(network.parameters()).device
    if device.type != "cpu":
        tensors[f"rng/{device.type}"] = generator_of(device).get_state()
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    schedules = {player: stepper.schedule_state() for player, stepper in steppers.items()}
    metadata = {"state": json.dumps(state), "schedules": json.dumps(schedules)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise one error for all failures to read the checkpoint.

    Raises
    ------
    ScmedleyError
        The file is damaged, or belongs to another network.
    """
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ScmedleyError(
            f"The checkpoint {path} cannot be read, or belongs to another network ({reason}). Delete it to start anew."
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Return ``state`` alone; it holds the stage, which determines the optimisers."""
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    return state


def restore(path: Path, network: Stateful, steppers: Steppers) -> dict[str, Tensor]:
    """Restore network, optimisers, schedules and random state in place; return the best weights."""
    with safe_open(path, framework="pt") as file:
        schedules = json.loads(file.metadata()["schedules"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}}
    for player, stepper in steppers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        pattern = re.compile(rf"optimiser/{re.escape(player)}/(\d+)/(.+)")
        for name, tensor in tensors.items():
            if match := pattern.fullmatch(name):
                moments.setdefault(int(match[1]), {})[match[2]] = tensor
        stepper.optimiser.load_state_dict({**stepper.optimiser.state_dict(), "state": moments})
        stepper.restore_schedule(schedules[player])
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    torch.set_rng_state(tensors["rng/cpu"])
    device = next(network.parameters()).device
    if device.type != "cpu" and f"rng/{device.type}" in tensors:
        generator_of(device).set_state(tensors[f"rng/{device.type}"])
    return parts["best"]
