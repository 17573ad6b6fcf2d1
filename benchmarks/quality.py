"""How good are the two latents? Real data sets, several seeds, each number beside rival methods and its null.

    python benchmarks/quality.py --data FOLDER --out FOLDER

Each (data set, seed, method) is fitted once and kept as JSON under ``--out``, so that a stopped run can be
resumed. A method is scored on held-out test cells (20 %, stratified by batch and label); highly variable
genes, scaling, PCA and the networks see the training and validation cells only, and so do the rivals that can
embed new cells (scVI, scANVI). The others are fitted on all cells, labels unseen: ``scmedley.peers.PEERS``.

Shapes: N cells, G genes, P latent dimensions.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import scmedley as sm
from common import BATCH, DATA_SETS, LABEL, cached, find, record
from scmedley import keys
from scmedley.evaluate import asw, batch_leaks, knn_accuracy
from scmedley.interpret import counterfactual_check
from scmedley.io import write_json
from scmedley.peers import PEERS, embed_peer

if TYPE_CHECKING:
    from anndata import AnnData

    from scmedley.models.base import Model

N_COMPONENTS = 50  # of the PCA, and of every latent
SCORES = ("accuracy", "leak", "asw_batch", "asw_label", "shift", "seconds")
SEPARATION = 0.02  # smaller margins of the random latent over its null do not count
ACCURACY_LOSS = 0.02

# name: (model, preset, obs column that it is trained on and scored by)
NETWORKS: dict[str, tuple[str, str, str]] = {
    "AE": ("Autoencoder", "default", BATCH),
    "FE": ("FixedEffects", "default", BATCH),
    "RE": ("RandomEffects", "default", BATCH),
    "RE, permuted batches": ("RandomEffects", "default", keys.PERMUTED),
    "FE, paper": ("FixedEffects", "paper", BATCH),
    "RE, paper": ("RandomEffects", "paper", BATCH),
    "RE, paper, permuted batches": ("RandomEffects", "paper", keys.PERMUTED),
}


def main() -> None:
    """Run what is missing, print the tables and the PASS and FAIL lines, store the summary."""
    options = _options()
    methods = ["PCA"] + [m for m in NETWORKS if options.paper or "paper" not in m]
    if options.peers:
        for name, peer in PEERS.items():
            if peer.installed:
                methods.append(name)
            else:
                print(f"{name}: not installed (pip install {peer.package})")
    runs = []
    for name in options.sets:
        raw = find(name, options.data)
        if raw is None:
            continue
        for seed in range(options.seeds):
            prepare = cache(partial(prepared, raw, seed))  # only when a method is missing
            for method in methods:
                fitted = partial(lambda p, m, s: run(p(), m, s, options.threads), prepare, method, seed)
                file = re.sub(r"\W+", "-", method) + f"-{_settings_hash(method)}.json"
                try:
                    scores = cached(options.out / name / f"seed{seed}" / file, fitted)
                except sm.ScmedleyError as error:
                    if method not in PEERS:
                        raise
                    print(f"{name} seed {seed} {error}")  # a rival that cannot do this data set
                    continue
                runs.append({"set": name, "seed": seed, "method": method} | scores)
                print(_line(runs[-1]), file=sys.stderr, flush=True)
    table = pd.DataFrame(runs)
    if table.empty:
        sys.exit("No data set was found.")
    summary = summarise(table)
    print(as_text(summary))
    lines = accept(table)
    print("\n".join(lines))
    about = record(options.threads) | {"seeds": options.seeds, "acceptance": lines}
    write_json(about | {"summary": summary.to_dict("records"), "runs": runs}, options.results)


def prepared(raw: AnnData, seed: int) -> AnnData:
    """Prepare, with genes chosen on the training cells; add principal components and the null's batches."""
    adata = raw.copy()
    sm.pp.prepare(adata, BATCH, label_key=LABEL, seed=seed)
    sm.pp.pca(adata, N_COMPONENTS, seed)
    sm.pp.permute_batches(adata, BATCH, LABEL, seed=seed)
    return adata


def run(adata: AnnData, method: str, seed: int, threads: int) -> dict[str, Any]:
    """Fit one method and score its latent on the held-out cells."""
    started = time.perf_counter()
    model: Model[Any] | None = None
    key = BATCH
    if method in NETWORKS:
        kind, preset, key = NETWORKS[method]
        model = getattr(sm, kind)(key, settings=preset)
        model.fit(adata, seed=seed, threads=threads, progress=sys.stderr.isatty())
        z_NP = model.get_latent_representation(adata)
    elif method in PEERS:
        z_NP = embed_peer(method, adata, BATCH, LABEL, n_latent=N_COMPONENTS, seed=seed, threads=threads)
    else:
        z_NP = np.asarray(adata.obsm[keys.PCA])
    seconds = time.perf_counter() - started
    extra: dict[str, Any] = {}
    if model is not None:
        extra = {k: model.fitted[k] for k in ("epochs", "best_epoch", "stopped")}
        if model.has_effects:
            extra |= shift_agreement(model, adata, seed)
    return score(adata, z_NP, key, seed) | extra | {"seconds": seconds}


def score(adata: AnnData, z_NP: np.ndarray, key: str, seed: int) -> dict[str, float]:
    """Score a latent on the test cells: label accuracy, worst batch leakage within labels, each leakage, ASW."""
    part = adata.obs[keys.SPLIT].to_numpy()
    train, test = part == "train", part == "test"
    batch, label = (adata.obs[k].cat.codes.to_numpy() for k in (key, LABEL))
    leaks = batch_leaks(
        z_NP[train], batch[train], label[train], z_NP[test], batch[test], label[test], seed=seed
    )
    leak = max(leaks.values(), key=lambda one: one.value)
    return {
        "accuracy": knn_accuracy(z_NP[train], label[train], z_NP[test], label[test]),
        "leak": leak.value,
        **{f"{probe} leak": one.value for probe, one in leaks.items()},
        "leak_null_sd": leak.null_sd,
        "asw_batch": asw(z_NP[test], batch[test], seed),
        "asw_label": asw(z_NP[test], label[test], seed),
        "n_test": int(test.sum()),
    }


def shift_agreement(model: Model[Any], adata: AnnData, seed: int) -> dict[str, float]:
    """Return the median agreement of predicted and observed batch shifts, beside ceiling and baseline."""
    check = counterfactual_check(model, adata, LABEL, seed=seed)
    columns = {"shift": "pearson", "shift_ceiling": "ceiling_pearson", "shift_baseline": "additive_pearson"}
    return {ours: float(check[theirs].median()) for ours, theirs in columns.items()}


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of every score."""
    scores = [s for s in SCORES if s in table]
    grouped = table.groupby(["set", "method"], sort=False)[scores].agg(["mean", "std"])
    grouped.columns = [c[0] if c[1] == "mean" else f"{c[0]}_sd" for c in grouped.columns.to_list()]
    return grouped.reset_index()


def as_text(summary: pd.DataFrame) -> str:
    """Return the summary as one Markdown table."""
    rows = ["| set | method | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 2) + "|"]
    for _, row in summary.iterrows():
        cells = [_cell(row.get(s), row.get(f"{s}_sd"), 0 if s == "seconds" else 3) for s in SCORES]
        rows.append(f"| {row['set']} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def accept(table: pd.DataFrame) -> list[str]:
    """Return for each data set which claims hold (means over seeds)."""
    lines = []
    for name, rows in table.groupby("set", sort=False):
        mean = rows.groupby("method")[["accuracy", "leak", "asw_batch"]].mean()
        leak, accuracy, width = mean.leak.to_dict(), mean.accuracy.to_dict(), mean.asw_batch.to_dict()
        null = "RE, permuted batches"
        more_leak, more_width = leak["RE"] - leak[null], width["RE"] - width[null]
        kept = accuracy["FE"] >= accuracy["PCA"] - ACCURACY_LOSS
        for claim, holds in (
            (f"FE leak {leak['FE']:.3f} < PCA leak {leak['PCA']:.3f}", leak["FE"] < leak["PCA"]),
            (f"FE leak {leak['FE']:.3f} < AE leak {leak['AE']:.3f}", leak["FE"] < leak["AE"]),
            (f"FE accuracy {accuracy['FE']:.3f} >= PCA {accuracy['PCA']:.3f} - {ACCURACY_LOSS}", kept),
            (f"RE leak less its null's: {more_leak:+.3f} > {SEPARATION}", more_leak > SEPARATION),
            (f"RE batch ASW less its null's: {more_width:+.3f} > {SEPARATION}", more_width > SEPARATION),
        ):
            lines.append(f"{'PASS' if holds else 'FAIL'}  {name}: {claim}")
    return lines


def _cell(mean: float | None, sd: float | None, digits: int) -> str:
    if mean is None or not np.isfinite(mean):
        return ""
    spread = f" ± {sd:.{digits}f}" if sd is not None and np.isfinite(sd) else ""
    return f"{mean:.{digits}f}{spread}"


def _settings_hash(method: str) -> str:
    """Return a short name of a method's settings, so that cached results of other settings are not used."""
    if method in PEERS:
        return version(PEERS[method].package)
    if method not in NETWORKS:
        return sm.__version__
    kind, preset, _ = NETWORKS[method]
    return hashlib.sha256(repr(getattr(sm, kind).preset(preset)).encode()).hexdigest()[:8]


def _line(run: dict[str, Any]) -> str:
    values = [f"{s} {run[s]:.3f}" for s in SCORES if run.get(s) is not None]
    return f"{run['set']} seed {run['seed']} {run['method']}: " + ", ".join(values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ["sc_mixology", "onek1k", "pbmc_8batches"]
    parser.add_argument("--sets", nargs="+", default=default, choices=DATA_SETS, help=f"default: {default}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder of the data sets that are not shipped")
    parser.add_argument("--paper", action="store_true", help="also the published form of FE and RE")
    parser.add_argument("--peers", action="store_true", help="also the rivals, where installed")
    parser.add_argument(
        "--out", type=Path, default=Path("quality-runs"), help="one JSON a fit; goes on there"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "quality.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
