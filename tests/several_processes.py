"""What each process does in tests/test_distributed.py: ``python several_processes.py JOB FOLDER NAME ...``."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scmedley import distributed
from scmedley.errors import ScmedleyError
from scmedley.models import VAE, Autoencoder, DeepBID, FixedEffects, RandomEffects
from scmedley.nn.layers import batch_norm
from scmedley.train import loop
from tiny import FIT, SIZES, prepared_design


def models() -> dict[str, Any]:
    """Small models without a fit: of each family, with labels that some cells lack, and with two players."""

    def of(kind: Any, preset: str = "default", **changes: Any) -> Any:
        return kind.preset(preset).replace(**{**SIZES, "max_epochs": 2, **changes})

    two_players = of(FixedEffects, "paper", adversary_hidden=(16, 8), weights="auto")
    sizes: dict[str, Any] = {"hidden": (16,), "n_latent": 6, "n_clusters": 3, "batch_size": 32}
    published = DeepBID.preset("paper").replace(**sizes, max_epochs=2, reduction="sum", learning_rate=1e-5)
    return {
        "autoencoder": Autoencoder("donor", "cell_type", settings=of(Autoencoder)),
        "fixed": FixedEffects("donor", "cell_type", settings=of(FixedEffects)),
        "adversarial": FixedEffects("donor", settings=two_players),
        "random": RandomEffects("donor", settings=of(RandomEffects)),
        "vae": VAE("donor", settings=of(VAE, dropout=0.1, free_bits=0.1)),
        "deepbid": DeepBID("donor", settings=of(DeepBID, n_clusters=3)),
        "deepbid paper": DeepBID("donor", settings=published),
    }


def curves(*names: str) -> dict[str, Any]:
    """Fit, and return the history and the latent of each model."""
    cells, found = prepared_design(), {}
    cells.obs["cell_type"] = cells.obs["cell_type"].where(torch.arange(cells.n_obs).numpy() % 5 > 0)
    for name in names:
        model = models()[name].fit(cells, **FIT)
        latent_NP = model.get_latent_representation(cells)
        found[name] = {"history": model.history.to_dict("list"), "latent": latent_NP.tolist()}
    return found


def normalised() -> dict[str, Any]:
    """Normalise 7 cells, in two steps of training and one of evaluation; return outputs, gradients and state."""
    generator, layer = torch.Generator().manual_seed(0), batch_norm(3, 0.1)
    x_NH = 100 + torch.randn(7, 3, generator=generator)
    slope_NH, found = torch.randn(7, 3, generator=generator), {}
    for step in ("first", "second", "evaluated"):
        layer.train(step != "evaluated")
        with distributed.minibatch(len(x_NH)):
            x_n = x_NH[distributed.rows()].clone().requires_grad_()
            y_n = layer(x_n)
            (y_n.square() * slope_NH[distributed.rows()]).sum().backward()
            assert x_n.grad is not None
            found[step] = [distributed.gathered(part.detach()).tolist() for part in (y_n, x_n.grad)]
    return found | {name: tensor.tolist() for name, tensor in layer.state_dict().items()}


def resumed(folder: str, end: str = "") -> dict[str, Any]:
    """Fit with a checkpoint after each epoch; process ``end`` is killed in the third."""
    loop.CHECKPOINT_SECONDS = -1.0
    record = loop._record

    def killed(state: loop.State, *more: Any) -> None:
        record(state, *more)
        if state.epoch == 3 and str(distributed.world().rank) == end:
            os.kill(os.getpid(), signal.SIGKILL)

    loop._record = killed
    model = models()["fixed"]
    model.settings = model.settings.replace(max_epochs=4)
    Path(folder).mkdir(exist_ok=True)
    model.fit(prepared_design(), checkpoint=Path(folder) / "checkpoint", **FIT)
    return {"history": model.history.to_dict("list")}


def main() -> None:
    """Do one job together with the other processes, and write what was found."""
    torch.set_num_threads(1)
    job, folder, *more = sys.argv[1:]
    jobs: dict[str, Any] = {
        "equal": lambda: {
            "curves": curves(*more),
            "normalised": normalised(),
            "whole": resumed(f"{folder}/whole"),
        },
        "resumed": partial(resumed, folder, *more),
    }
    try:
        with distributed.started("cpu") as world:
            assert world.size == 2
            Path(folder, f"{world.rank}.json").write_text(json.dumps(jobs[job]()))
    except ScmedleyError as error:
        sys.exit(f"scmedley: error: {error}" if distributed.is_first_to_fail() else 1)


if __name__ == "__main__":
    main()
