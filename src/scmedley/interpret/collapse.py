"""Has the latent of a VAE collapsed? Posterior collapse: the decoder ignores the latent, which holds nothing.

Shapes: N cells, G genes, P latent dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.data.reader import Cells, Reading
from scmedley.device import modes
from scmedley.errors import ScmedleyError
from scmedley.models import VAE
from scmedley.models.posterior import check_posterior, minibatches
from scmedley.models.vae import LEAST_HELD_OUT, is_collapsed, remedies
from scmedley.models.vae_network import ACTIVE
from scmedley.nn.likelihoods import kl_of_units

MOST_CELLS = 3000  # drawn from each part
LEAST_SENSITIVITY = 0.01  # share of the variance that latents must drive


@dataclass(frozen=True)
class Collapse:
    """Diagnostics of the latent of a VAE.

    Attributes
    ----------
    units
        One row for each latent dimension: kl (nats per cell), variance (over cells, of the posterior mean), active
        (variance above 0.01; Burda et al. 2016).
    sensitivity
        Half the mean squared change of the reconstruction if the latents are swapped between cells, as a share of
        the variance of the expression over cells: 0 if the decoder ignores the latent.
    r2
        1 - squared error of the reconstruction / squared error of each gene's mean (log1p CP10k). With a
        likelihood of counts it is not what was fitted, and noise limits it: compare models, not with 1.
    elbo_train, elbo_held_out
        Evidence lower bound of training and held-out cells, nats per cell; nan without a split, or with fewer than
        5 held-out cells. The gap between them is overfitting.
    collapsed
        Whether fewer than two units are active, the KL is below log 2 nats per cell (too little to tell two groups
        of cells apart), latents drive less than 1 % of the variance, or a Gaussian of log1p CP10k predicts
        held-out cells no better than each gene's mean does.
    sentence
        The finding, with the remedy.
    """

    units: pd.DataFrame
    sensitivity: float
    r2: float
    elbo_train: float
    elbo_held_out: float
    collapsed: bool
    sentence: str

    @property
    def n_active(self) -> int:
        """Number of active units."""
        return int(self.units["active"].sum())

    @property
    def kl_P(self) -> np.ndarray:
        """KL of each latent dimension, nats per cell."""
        return self.units["kl"].to_numpy()

    @property
    def gap(self) -> float:
        """Nats per cell by which the bound is better on training cells than on held-out cells."""
        return self.elbo_train - self.elbo_held_out

    def described(self) -> dict[str, Any]:
        """Return all fields as valid JSON; a bound that is not known is left out."""
        numbers = {name: getattr(self, name) for name in ("sensitivity", "r2", "elbo_train", "elbo_held_out")}
        found = {name: value for name, value in numbers.items() if np.isfinite(value)}
        units = {str(name): values.tolist() for name, values in self.units.items()}
        return {"units": units, "collapsed": self.collapsed, "sentence": self.sentence} | found


@modes(grad=False)
def diagnose(model: VAE, adata: Cells, *, seed: int = 0) -> Collapse:
    """Return the diagnostics of collapse, on held-out cells if there are any.

    Parameters
    ----------
    model
        A fitted VAE.
    adata
        Cells; with ``obs["scmedley_split"]``, its test cells (else its validation cells) are held out.
    seed
        Random seed of draws.
    """
    if not isinstance(model, VAE):
        raise ScmedleyError(
            f"A {type(model).__name__} has no posterior that could collapse. Give a fitted VAE."
        )
    check_posterior(model)
    reading, rng = model.read(adata), np.random.default_rng(seed)
    held_out, train = _parts(reading, rng)
    cells = reading.take(held_out)
    parts = [model.network.posterior(c.x_NG) for c in minibatches(model, cells)]
    mean_NP, log_variance_NP = (torch.cat(side).cpu() for side in zip(*parts, strict=True))
    kl_P = kl_of_units(mean_NP, log_variance_NP).mean(0).numpy()
    variance_P = mean_NP.numpy().var(axis=0)
    units = pd.DataFrame({"kl": kl_P, "variance": variance_P, "active": variance_P > ACTIVE})
    sensitivity, r2 = _of_decoder(model, cells, rng)
    bounds = [
        float(model.elbo(reading.take(rows), seed=seed)["elbo"].mean()) if len(rows) else float("nan")
        for rows in (train, held_out if len(train) else train)
    ]
    n_active = int(units["active"].sum())
    kl = float(units["kl"].sum())
    # The squared error of log1p CP10k is what a Gaussian of it is fitted to, so there the mean of each gene must be
    # beaten. Pearson residuals have another squared error.
    of_log1p = not model.settings.counts and model.settings.scale != "pearson"
    useless = sensitivity < LEAST_SENSITIVITY or (of_log1p and r2 <= 0)
    collapsed = is_collapsed(n_active, kl, len(units)) or useless
    sentence = (
        f"{n_active} of {len(units)} latent units are active, the KL is {kl:.3g} nats per cell, "
        f"and latents drive {sensitivity:.1%} of the variance: "
    )
    if collapsed:
        sentence += f"the latent has collapsed. {remedies(model.settings)}"
    else:
        spare = " These cells need no more units." * (n_active < min(len(units), 10) / 2)
        sentence += f"no sign of collapse.{spare}"
    return Collapse(units, sensitivity, r2, bounds[0], bounds[1], collapsed, sentence)


def _parts(reading: Reading, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of held-out cells (all, without a split or with very few) and of training cells, 3,000 at most."""
    part_N = reading.obs[keys.SPLIT].to_numpy() if keys.SPLIT in reading.obs else np.array([""])
    held_out = next((name for name in ("test", "validation") if (part_N == name).any()), "train")
    if (part_N == held_out).sum() < LEAST_HELD_OUT:  # units cannot be judged by these
        return _drawn(np.arange(reading.n_cells), rng), np.empty(0, np.int64)
    return tuple(_drawn(np.flatnonzero(part_N == name), rng) for name in (held_out, "train"))  # type: ignore[return-value]


def _drawn(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(rows)[:MOST_CELLS])


def _of_decoder(model: VAE, cells: Reading, rng: np.random.Generator) -> tuple[float, float]:
    """Return sensitivity and R^2, from the decoder's expression of the cells and after a swap of their latents."""
    x_NG = dense(cells.log1p_NG)
    order = rng.permutation(cells.n_cells)
    loaded = list(minibatches(model, cells))
    z_NP = torch.cat([model.network.encode(c.x_NG, c.b_N) for c in loaded])
    b_N = torch.cat([c.b_N for c in loaded])
    changed = error = 0.0
    for rows in np.array_split(np.arange(cells.n_cells), -(-cells.n_cells // 512)):
        own, swapped = (
            model.scale.inverse(model.network.decode(z_NP[of], b_N[rows]).cpu().numpy())
            for of in (rows, order[rows])
        )
        changed += float(np.square(swapped - own, dtype=np.float64).sum())
        error += float(np.square(x_NG[rows] - own, dtype=np.float64).sum())
    spread = float(np.square(x_NG - x_NG.mean(axis=0), dtype=np.float64).sum())
    return 0.5 * changed / max(spread, 1e-12), 1 - error / max(spread, 1e-12)
