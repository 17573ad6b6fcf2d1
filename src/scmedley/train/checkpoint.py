"""One file that holds all a fit needs to go on with the same bits: safetensors and JSON, never pickle."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scmedley.errors import ScmedleyError
from scmedley.io import replacing

Optimisers = dict[str, torch.optim.Optimizer]


def save(
    path: Path, network: nn.Module, best: dict[str, Tensor], optimisers: Optimisers, state: dict[str, Any]
) -> None:
    """Write the checkpoint in one step; ``state`` is what JSON can hold (epoch, history, ...)."""
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in best.items()}
    for player, optimiser in optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{player}/{i}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(network.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})


def load(path: Path, network: nn.Module, optimisers: Optimisers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore network, optimisers and random state in place; give back (best weights, ``state``)."""
    try:
        return _restore(path, network, optimisers)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ScmedleyError(
            f"The checkpoint {path} cannot be read, or is of another network ({reason}). Delete it to start anew."
        ) from error


def _restore(
    path: Path, network: nn.Module, optimisers: Optimisers
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}}
    for player, optimiser in optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        pattern = re.compile(rf"optimiser/{re.escape(player)}/(\d+)/(.+)")
        for name, tensor in tensors.items():
            if match := pattern.fullmatch(name):
                moments.setdefault(int(match[1]), {})[match[2]] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    torch.set_rng_state(tensors["rng/cpu"])
    device = next(network.parameters()).device
    if "rng/cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
    return parts["best"], state
