"""Do the 90 % intervals of counterfactuals hold 90 % of the shifts of held-out cells? Default fits.

    python benchmarks/intervals.py                    # the shipped sets
    python benchmarks/intervals.py --data FOLDER      # the other sets too

Prints and stores, for each set, the factor that the fit learnt on the validation cells, and the share of the
shifts of test cells inside their intervals: all genes of each label and batch, and those with the largest
predicted shifts.
"""

import argparse
from pathlib import Path

import scmedley as sm
from common import BATCH, DATA_VARIABLE, LABEL, find, record
from scmedley.interpret import interval_coverage
from scmedley.io import write_json

SETS = ("sc_mixology", "pancreas", "hashing", "onek1k", "kang_2000", "pbmc_3technologies", "cell_mix")
LARGEST = (20, 10, 3)


def main() -> None:
    """Fit each set, print the table and store it."""
    options = _options()
    rows = []
    print(
        f"| data | factor | all genes | {' | '.join(f'{n} largest' for n in LARGEST)} |\n|---|---|---|---|---|---|"
    )
    for name in options.sets:
        adata = find(name, options.data)
        if adata is None:
            continue
        sm.pp.prepare(adata, BATCH, label_key=LABEL)
        model = sm.FixedEffects(BATCH).fit(adata, threads=options.threads, progress=False)
        shares = [interval_coverage(model, adata, LABEL, n_top=n) for n in LARGEST]
        factor = None if model.calibration is None else model.calibration.factor
        rows.append({"data": name, "factor": factor, "all": shares[0][0]})
        rows[-1] |= {f"{n} largest": share[1] for n, share in zip(LARGEST, shares, strict=True)}
        values = [f"{share:.0%}" for share in (shares[0][0], *(share[1] for share in shares))]
        print(f"| {name} | {factor:.2f} | {' | '.join(values)} |", flush=True)
    write_json(record(options.threads) | {"sets": rows}, options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument(
        "--data", type=Path, help=f"folder of the sets that are not shipped, or {DATA_VARIABLE}"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "intervals.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
