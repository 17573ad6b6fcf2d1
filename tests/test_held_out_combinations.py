"""The benchmarks of held-out combinations and of permuted effects: what their own steps may see and do."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.exists():  # in a source distribution
    pytest.skip("no benchmarks here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import held_out_combinations as benchmark  # noqa: E402
import held_out_data as data  # noqa: E402
import held_out_linear as linear  # noqa: E402
import permuted_effects  # noqa: E402

SETTINGS = (linear.Setting(), linear.Setting(1, "cell"), linear.Setting(1, "group"))
CELLS = 15  # of a group in a condition


def crossed(seed: int = 0) -> AnnData:
    """Return 3 groups in 2 conditions; the condition raises the first 10 of 30 genes in all groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(list("abc"), 2 * CELLS)
    target = np.tile(np.repeat([False, True], CELLS), 3)
    mean = rng.normal(1.5, 0.3, (3, 30))[np.searchsorted(list("abc"), group)]
    mean[target, :10] += 1.0
    x = np.maximum(mean + rng.normal(0, 0.3, mean.shape), 0).astype(np.float32)
    condition = np.where(target, data.TARGET, data.SOURCE)
    obs = pd.DataFrame(
        {
            data.GROUP: pd.Categorical(group),
            data.CONDITION: pd.Categorical(condition, categories=[data.SOURCE, data.TARGET]),
        },
        index=[f"cell {i}" for i in range(len(group))],
    )
    return AnnData(csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"gene {i}" for i in range(30)]))


def test_the_rules_of_choice() -> None:
    r2 = np.array([[0.4, 0.5, 0.1], [0.5, 0.4, 0.2], [0.3, 0.5, 0.1]])
    assert linear.best(r2, SETTINGS) == SETTINGS[1]
    assert linear.simplest(r2, SETTINGS) == SETTINGS[0]  # 0.07 behind, with a standard error of 0.09
    assert linear.simplest(r2 + np.array([0.0, 0.5, 0.0]), SETTINGS) == SETTINGS[1]


def test_the_choice_never_sees_the_held_out_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = crossed()
    held_out = set(adata.obs_names[(adata.obs["group"] == "b") & (adata.obs["condition"] == "target")])
    seen: list[set[str]] = []
    original = linear.linear_mixed

    def watched(train: AnnData, source: AnnData, setting: linear.Setting) -> np.ndarray:
        seen.append(set(train.obs_names) | set(source.obs_names))
        return original(train, source, setting)

    monkeypatch.setattr(linear, "linear_mixed", watched)
    train, _, target = data.parts(adata, "b")
    r2 = linear.inner_scores(train, SETTINGS[:2])
    assert set(target.obs_names) == held_out
    assert r2.shape == (2, 2)  # group b itself cannot be an inner fold
    assert len(seen) == r2.size
    for cells in seen:
        assert not cells & held_out
        assert len(cells) == adata.n_obs - 2 * CELLS  # no inner fit sees the cells that it predicts

    other = adata.copy()
    values = other.X.toarray()
    values[other.obs_names.isin(held_out)] = 99.0
    other.X = csr_matrix(values)
    changed = data.parts(other, "b")
    np.testing.assert_array_equal(linear.inner_scores(changed[0], SETTINGS[1:2])[:, 0], r2[:, 1])


def test_a_common_effect_is_predicted_and_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SETTINGS", SETTINGS[:1])
    rows = pd.DataFrame(benchmark.rows_of(crossed(), "a", [linear.LINEAR], 2, tmp_path)).set_index("method")
    assert rows.loc["no change", "R2"] == pytest.approx(0, abs=1e-6)
    assert rows.loc["no change", "E-distance"] > 10 * abs(rows.loc[linear.LINEAR, "E-distance"])
    assert rows.loc[linear.LINEAR, "R2"] > 0.9
    again = pd.DataFrame(benchmark.rows_of(crossed(1), "a", [linear.LINEAR], 2, tmp_path))
    assert again.set_index("method").loc[linear.LINEAR, "R2"] == rows.loc[linear.LINEAR, "R2"]  # resumed


def test_coordinates_of_a_group_are_those_of_its_source_cells() -> None:
    train, source, _ = data.parts(crossed(), "a")
    own = linear.coordinates(train, source, 2, "cell")
    of_group = linear.coordinates(train, source, 2, "group")
    np.testing.assert_allclose(of_group, np.broadcast_to(own.mean(axis=0), own.shape), atol=1e-9)


def test_permuted_inside_another_column() -> None:
    obs = pd.DataFrame({"donor": list("aaaabbbb"), "condition": list("xxxyyyyx")})
    found = permuted_effects.permuted(obs, "condition", "donor", np.random.default_rng(0))
    assert (pd.crosstab(obs["donor"], found) == pd.crosstab(obs["donor"], obs["condition"])).all(axis=None)
    many = pd.DataFrame({"donor": np.repeat(["a", "b"], 50), "condition": np.tile(["x", "y"], 50)})
    assert (
        permuted_effects.permuted(many, "condition", "", np.random.default_rng(0)) != many["condition"]
    ).any()
