"""Method of the batch integration task of Open Problems: fixed-effects embedding of scMedley, as ``obsm["X_emb"]``."""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scmedley as sm

## VIASH START
par = {
    "input": "resources_test/task_batch_integration/cxg_immune_cell_atlas/dataset.h5ad",
    "output": "output.h5ad",
    "output_embedding": None,
    "output_versions": None,
    "n_latent": 50,
    "n_top_genes": 3000,
    "max_epochs": None,
    "seed": 0,
}
meta = {"name": "scmedley", "cpus": None}
## VIASH END

print(">> Read input", flush=True)
given = ad.read_h5ad(par["input"])
needed = {"layers": ["counts"], "obs": ["batch"], "uns": ["dataset_id", "normalization_id"]}
missing = [f"{part}[{key!r}]" for part, names in needed.items() for key in names if key not in getattr(given, part)]
if missing:
    sys.exit(f"{par['input']} has no {', '.join(missing)}. Give a dataset of the task batch_integration.")
# Every cell must come back, so none is filtered out, and none is held out for scores of our own.
cells = ad.AnnData(given.layers["counts"], obs=given.obs[["batch"]].copy(), var=given.var[[]].copy())
validated = np.random.default_rng(par["seed"]).random(cells.n_obs) < 0.1
cells.obs["scmedley_split"] = pd.Categorical(np.where(validated, "validation", "train"))

print(">> Fit", flush=True)
sm.pp.prepare(
    cells,
    batch_key="batch",
    values="counts",
    n_top_genes=par["n_top_genes"],
    min_genes=0,
    min_cells=0,
    seed=par["seed"],
)
changes = {"n_latent": par["n_latent"], "max_epochs": par["max_epochs"]}
settings = sm.FixedEffects.preset("default").replace(**{k: v for k, v in changes.items() if v is not None})
model = sm.FixedEffects("batch", settings=settings)
model.fit(cells, seed=par["seed"], threads=meta.get("cpus") or None, progress=False)
embedding = model.get_latent_representation(cells)

print(">> Write output", flush=True)
output = ad.AnnData(
    obs=given.obs[[]],
    var=given.var[[]],
    obsm={"X_emb": embedding},
    shape=given.shape,
    uns={
        "dataset_id": given.uns["dataset_id"],
        "normalization_id": given.uns["normalization_id"],
        "method_id": meta["name"],
    },
)
output.write_h5ad(par["output"], compression="gzip")
if par["output_embedding"]:
    table = pd.DataFrame(embedding, columns=[f"dim_{i}" for i in range(embedding.shape[1])])
    table.insert(0, "cell", given.obs_names)
    table.to_parquet(par["output_embedding"], index=False)
if par["output_versions"]:
    versions = {"scmedley": sm.__version__, "anndata": ad.__version__, "numpy": np.__version__}
    lines = [f'"{meta["name"]}":', *(f"    {name}: {version}" for name, version in versions.items())]
    Path(par["output_versions"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
