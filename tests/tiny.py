"""The tiny nested design that the tests of the networks share: 3 donors x 4 types, and small settings."""

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.models import (
    Autoencoder,
    FixedEffects,
    MixedEffects,
    RandomEffects,
)
from scmedley.pp import prepare

DONORS, TYPES, PER_STRATUM, GENES = ("d1", "d2", "d3"), ("B", "NK", "T", "mono"), 15, 40

SIZES = {"hidden": (16, 8), "n_latent": 4, "max_epochs": 3, "batch_size": 32}
FIT = {"seed": 0, "threads": 1, "precision": "float32", "device": "cpu", "progress": False}

MODELS = {"autoencoder": Autoencoder, "fixed": FixedEffects, "random": RandomEffects}


def small(name: str, preset: str = "default", **changes):
    """Give a preset's settings with the sizes of the tests."""
    settings = MODELS[name].preset(preset)
    adversary = {"adversary_hidden": (16, 8)} if (name, preset) == ("fixed", "paper") else {}
    return settings.replace(**{**SIZES, **adversary, **changes})


def unfitted(name: str, preset: str = "default", **changes):
    """Give a model with small settings."""
    return MODELS[name]("donor", settings=small(name, preset, **changes))


def fit_default(adata: AnnData, batch_key: str) -> MixedEffects:
    """Fit default networks, in full size but for a few epochs, and store all that they embed."""
    short = [kind.preset("default").replace(max_epochs=10) for kind in (FixedEffects, RandomEffects)]
    model = MixedEffects(batch_key, fixed_settings=short[0], random_settings=short[1]).fit(adata, **FIT)
    model.embed(adata)
    adata.obsm[keys.RANDOM_MASKED] = model.random.get_latent_representation(adata, mask_batch=True)
    return model


def nested_design(sparse: bool = True, seed: int = 0) -> AnnData:
    """Counts of 3 donors, nested in 2 conditions, x 4 types x 15 cells, 40 genes; about half are zeros."""
    rng = np.random.default_rng(seed)
    donor, kind = (
        np.repeat(np.arange(3), 4 * PER_STRATUM),
        np.tile(np.repeat(np.arange(4), PER_STRATUM), 3),
    )
    mean = rng.gamma(1.0, 1.0, GENES) * rng.lognormal(0, 0.4, (len(donor), 1))
    mean = mean * rng.lognormal(0, 0.8, (4, GENES))[kind] * rng.lognormal(0, 0.5, (3, GENES))[donor]
    x = rng.poisson(mean).astype(np.float32)
    order = rng.permutation(len(donor))
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(np.array(DONORS)[donor]),
            "cell_type": pd.Categorical(np.array(TYPES)[kind]),
            "condition": pd.Categorical(np.array(["healthy", "ill", "ill"])[donor]),
        },
        index=[f"cell{i}" for i in range(len(donor))],
    )
    x, obs = x[order], obs.iloc[order]
    return AnnData(
        csr_matrix(x) if sparse else x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    )


def prepared_design(sparse: bool = True) -> AnnData:
    """The design after ``prepare``, with a split: every tenth cell validates, two in ten are held out."""
    adata = nested_design(sparse)
    prepare(adata, "donor", label_key="cell_type", min_genes=5, min_cells=1)
    part = np.array(["train"] * 7 + ["validation"] + ["test"] * 2)[np.arange(adata.n_obs) % 10]
    adata.obs[keys.SPLIT] = pd.Categorical(part)
    return adata


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Give the names of the tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}
