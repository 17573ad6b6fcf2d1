"""Rivals of LinearMixed on held-out combinations: baselines, our network, LEMUR and scVI.

Shapes: S source cells, G genes, P latent dimensions.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

import scmedley as sm
from held_out_data import CONDITION, COUNTS, GROUP, SHARE, SOURCE, TARGET, mean
from scmedley.data.arrays import dense
from scmedley.data.evidence import TARGET_SUM
from scmedley.evaluate import counterfactual as held_out

if TYPE_CHECKING:
    from anndata import AnnData

EPOCHS, SCVI_EPOCHS = 30, 200
FEW = 3000  # cells: twice the epochs for fewer, as in recipes/kang.py; 30 as in recipes/glioblastoma.py


def network(train: AnnData, source: AnnData, seed: int, design: str = CONDITION) -> np.ndarray:
    """Predict by the default network, whose batch is the condition unless a design is given."""
    cells = train.copy()
    sm.pp.prepare(cells, batch_key=CONDITION, values="log1p", min_genes=0, min_cells=0, seed=seed)
    settings = sm.FixedEffectsSettings(max_epochs=EPOCHS if train.n_obs > FEW else 2 * EPOCHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no training cell has this combination is the point
        model = sm.FixedEffects(design, settings=settings).fit(cells, seed=seed, threads=1, progress=False)
        to: Any = TARGET if design == CONDITION else {CONDITION: TARGET}
        shown: Any = model.counterfactual(cells[source.obs_names], to=to)
    return np.asarray(shown.layers["difference"], np.float64)


def network_of_design(train: AnnData, source: AnnData, seed: int) -> np.ndarray:
    """Predict by the same network with the design of LinearMixed."""
    return network(train, source, seed, f"~ {CONDITION} + ({CONDITION} | {GROUP})")


def lemur(train: AnnData, source: AnnData, seed: int) -> np.ndarray:
    """Predict by LEMUR with group and condition in its design, aligned as its tutorial does."""
    from anndata import AnnData

    lemur_model = importlib.import_module("pylemur.tl").LEMUR
    np.random.seed(seed)  # noqa: NPY002 (pylemur and harmonypy draw from it)
    cells = AnnData(dense(train.X).astype(np.float64), obs=train.obs.copy(), var=train.var)
    model = lemur_model(cells, design=f"~ {GROUP} + {CONDITION}", n_embedding=15)
    model.fit(verbose=False)
    model.align_with_harmony(verbose=False)
    z_SP = np.asarray(model.embedding)[train.obs_names.get_indexer(source.obs_names)]
    group = str(source.obs[GROUP].iloc[0])
    there, here = (
        model.predict(embedding=z_SP, new_condition=model.cond(**{GROUP: group, CONDITION: condition}))
        for condition in (TARGET, SOURCE)
    )
    return np.asarray(there - here, np.float64)


def scvi(train: AnnData, source: AnnData, seed: int) -> np.ndarray:
    """Predict by scVI with the condition as batch: the change of its decoded frequencies, as log1p CP10k."""
    import scvi as package
    from anndata import AnnData

    package.settings.seed = seed
    cells = AnnData(train.layers[COUNTS], obs=train.obs[[CONDITION, SHARE]].copy(), var=train.var)
    package.model.SCVI.setup_anndata(cells, batch_key=CONDITION)
    model = package.model.SCVI(cells)
    model.train(max_epochs=SCVI_EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
    rows = train.obs_names.get_indexer(source.obs_names)
    total_S1 = TARGET_SUM * source.obs[SHARE].to_numpy()[:, None]
    there, here = (
        np.log1p(
            total_S1 * model.get_normalized_expression(indices=rows, transform_batch=c, return_numpy=True)
        )
        for c in (TARGET, SOURCE)
    )
    return np.asarray(there - here, np.float64)


def baselines(train: AnnData, source: AnnData, target: AnnData, group: str) -> dict[str, np.ndarray]:
    """Return the change of the mean (G) that each baseline predicts; ``target`` gives only the others' mean."""
    names = train.obs[GROUP].cat.categories
    held = held_out.HeldOut(dense(source.X), dense(target.X), mean(source)[None])
    shifts = held_out.label_shifts(
        csr_matrix(train.X),
        train.obs[CONDITION].cat.codes.to_numpy(),
        train.obs[GROUP].cat.codes.to_numpy(),
        batch=1,
        label=int(names.get_loc(group)),
        weight_B=np.array([float(source.n_obs), 0.0]),
    )
    found = held_out.baselines(held, *shifts)
    del found["mean over batches"]  # with one other condition it is no change
    treated = train[train.obs[CONDITION] == TARGET]
    means = [mean(treated[treated.obs[GROUP] == other]) for other in treated.obs[GROUP].unique()]
    return {"no change": found.pop("no change"), "mean": np.mean(means, axis=0) - mean(source)} | found


@dataclass(frozen=True)
class Method:
    """A way to predict a change with a seed; ``package``: what it needs."""

    predict: Callable[[AnnData, AnnData, int], np.ndarray]
    package: str = "scmedley"

    @property
    def rival(self) -> bool:
        """Whether it is of another package."""
        return self.package != "scmedley"


METHODS = {
    "default network": Method(network),
    "default network, design": Method(network_of_design),
    "LEMUR": Method(lemur, package="pylemur"),
    "scVI": Method(scvi, package="scvi"),
}
