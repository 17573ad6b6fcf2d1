"""Do fits on a GPU agree with those on a CPU, and how many cells per second does a GPU train?

    python benchmarks/gpu.py                          # the shipped set, all models
    python benchmarks/gpu.py --data cells.h5ad --batch batch --label cell_type
    python benchmarks/gpu.py --no-agreement           # speed alone

Agreement: each model is fitted on the CPU (float32) and on the GPU (float32 and bfloat16), and its embedding is
scored by the same probes. The latent of the GPU's model computed on the CPU is compared with its own. Speed:
simulated cells x 3,000 genes x 30 batches, 10 % of the values above 0; whole epochs of ``train.loop.fit``.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

import scmedley as sm
from common import record
from scmedley import keys
from scmedley.data.resident import Resident
from scmedley.data.scale import Scale
from scmedley.evaluate import batch_leaks, knn_accuracy
from scmedley.io import write_json
from scmedley.train import loop

CPU = torch.device("cpu")
EPOCHS = 4
MODELS: dict[str, Any] = {
    "AE": sm.Autoencoder,
    "FE": sm.FixedEffects,
    "FE, paper": sm.FixedEffects,
    "RE": sm.RandomEffects,
    "VAE": sm.VAE,
}


def main() -> None:
    """Print both tables and store them."""
    options = _options()
    result: dict[str, Any] = record(torch.get_num_threads()) | {"device": _name(options.device)}
    if not options.no_agreement:
        result["agreement"] = agreement(options)
    result["speed"] = speed(options)
    write_json(result, options.results)


def agreement(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit and score each model on both devices."""
    adata = sm.datasets.sc_mixology() if options.data is None else ad.read_h5ad(options.data)
    sm.pp.prepare(adata, options.batch, label_key=options.label)
    part = adata.obs[keys.SPLIT].astype(str).to_numpy()
    train, test = part == "train", part == "test"
    b_N, y_N = (
        adata.obs[key].astype("category").cat.codes.to_numpy(np.int64)
        for key in (options.batch, options.label)
    )
    rows = []
    for name, kind in MODELS.items():
        for device, precision in (
            ("cpu", "float32"),
            (options.device, "float32"),
            (options.device, "bfloat16"),
        ):
            settings = kind.preset("paper" if "paper" in name else "default")
            began = time.perf_counter()
            model = kind(options.batch, settings=settings).fit(
                adata, device=device, precision=precision, progress=False
            )
            seconds = time.perf_counter() - began
            z_NP = model.get_latent_representation(adata)
            other = copy.deepcopy(model)
            other.network.to(CPU)
            other.device = CPU
            apart = float(np.abs(other.get_latent_representation(adata) - z_NP).max() / z_NP.std())
            leaks = batch_leaks(z_NP[train], b_N[train], y_N[train], z_NP[test], b_N[test], y_N[test], seed=0)
            row: dict[str, Any] = {
                "model": name,
                "device": device,
                "precision": precision,
                "seconds": round(seconds, 1),
                **{probe: round(leak.value, 3) for probe, leak in leaks.items()},
                "accuracy": round(float(knn_accuracy(z_NP[train], y_N[train], z_NP[test], y_N[test])), 3),
                "largest difference of the latent from the CPU's, sd": apart,
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time whole epochs of the default networks."""
    rng = np.random.default_rng(0)
    share_G = rng.beta(0.5, 4.5, options.genes)
    block = sparse.csr_matrix((rng.random((20_000, options.genes), np.float32) < share_G).astype(np.float32))
    block.data = rng.random(block.nnz, np.float32)
    x_NG = sparse.vstack([block] * max(1, options.cells // 20_000)).tocsr()
    b_N = rng.integers(0, 30, x_NG.shape[0])
    device = torch.device(options.device)
    cells = {
        name: Resident(x_NG, b_N, device, scale=Scale.fit(block, name)) for name in ("pareto", "standard")
    }
    rows_N = torch.as_tensor(rng.permutation(x_NG.shape[0]), device=device)
    rows = []
    for name in ("FE", "RE"):
        for batch_size in options.batch_sizes:
            for precision in ("float32", "bfloat16"):
                settings = MODELS[name].preset("default").replace(decay=False)
                torch.manual_seed(0)
                network = MODELS[name].networks[type(settings)](options.genes, 30, settings).to(device)
                plan = loop.Plan(
                    batch_size=batch_size, max_epochs=EPOCHS, patience=9, precision=precision, progress=False
                )
                seconds = []
                for _ in range(2):  # the first one also starts the device
                    _wait(device)
                    began = time.perf_counter()
                    loop.fit(network, cells[settings.scale], rows_N[10_000:], rows_N[:10_000], plan)
                    _wait(device)
                    seconds.append(time.perf_counter() - began)
                row = {
                    "model": name,
                    "batch size": batch_size,
                    "precision": precision,
                    "cells per second": round(EPOCHS * (len(rows_N) - 10_000) / seconds[-1]),
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="h5ad with counts; default: the shipped set")
    parser.add_argument("--batch", default="batch")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", type=int, default=200_000, help="simulated cells for the speed")
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--no-agreement", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
