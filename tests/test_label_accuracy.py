"""Accuracy of each label, against the accuracy of all cells and by hand."""

import anndata as ad
import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.evaluate import knn_accuracy, label_accuracy


def cells(code, part, z):
    label = pd.Categorical.from_codes(code, ["a", "b", "rare", "never held out"])
    obs = pd.DataFrame({"type": label, keys.SPLIT: part}, index=[f"cell{i}" for i in range(len(code))])
    adata = ad.AnnData(np.zeros((len(code), 1), np.float32), obs)
    adata.obsm["z"] = z
    return adata


def test_together_they_are_the_accuracy_of_all_cells():
    rng = np.random.default_rng(0)
    code = rng.choice([-1, 0, 1, 2], 400, p=[0.1, 0.5, 0.35, 0.05])
    part = rng.choice(["train", "validation", "test"], 400)
    part[0], code[0] = "train", 3
    z = rng.normal(size=(400, 2)) + code[:, None]
    table = label_accuracy(cells(code, part, z), ["z"], "type").set_index("label")
    train, test = part == "train", part == "test"
    assert table.n_right.sum() / table.n_test.sum() == knn_accuracy(
        z[train], code[train], z[test], code[test]
    )
    assert table.n_train["rare"] == ((code == 2) & train).sum()
    assert table.n_test["rare"] == ((code == 2) & test).sum()
    assert table.accuracy["rare"] == table.n_right["rare"] / table.n_test["rare"]
    assert np.isnan(table.accuracy["never held out"])


def test_without_held_out_cells_there_is_no_table():
    code = np.zeros(4, int)
    assert label_accuracy(cells(code, np.repeat("train", 4), np.zeros((4, 2))), ["z"], "type").empty
