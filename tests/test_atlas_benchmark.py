"""The atlas benchmark: its cells are real cells thinned by batch, and its results resume."""

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.exists():  # in a source distribution
    pytest.skip("no benchmarks here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import atlas  # noqa: E402
import atlas_data  # noqa: E402
import atlas_steps  # noqa: E402
import atlas_table  # noqa: E402

CELLS, GENES = 2000, 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny atlas."""
    folder = tmp_path_factory.mktemp("atlas") / str(CELLS)
    atlas_data.simulate(folder / atlas_steps.FILE, CELLS, n_genes=GENES, n_batches=3)
    return folder


def test_cells_are_real_cells_thinned_by_their_batch(folder: Path) -> None:
    adata = ad.read_h5ad(folder / atlas_steps.FILE)
    assert adata.shape == (CELLS, GENES)
    assert adata.X.indices.dtype == np.int32
    assert adata.X.has_sorted_indices
    assert adata.X.data.min() >= 1  # no zero is stored
    assert list(adata.obs) == [atlas_data.BATCH, atlas_data.LABEL]
    assert (np.diff(adata.obs[atlas_data.BATCH].cat.codes) >= 0).all()  # one batch after the other
    rng = np.random.default_rng(0)
    real_RG, names, label_R = atlas_data.real_cells(GENES, rng)
    factor_BG = rng.uniform(*atlas_data.THINNED, (3, GENES))
    rng.uniform(1, 5, 3)
    row_N = rng.integers(0, real_RG.shape[0], CELLS)
    assert list(adata.var_names) == names
    assert list(adata.obs[atlas_data.LABEL]) == list(label_R[row_N])
    whole_NG = real_RG[row_N].astype(np.int64)
    assert (whole_NG - adata.X.astype(np.int64)).min() >= 0
    for b in range(3):
        of = np.flatnonzero(adata.obs[atlas_data.BATCH].cat.codes == b)
        kept_G, all_G = (np.asarray(x[of].sum(axis=0)).ravel() for x in (adata.X, whole_NG))
        many = all_G > 2000
        assert many.sum() > 20
        np.testing.assert_allclose(kept_G[many] / all_G[many], factor_BG[b, many], atol=0.05)


def test_same_seed_same_file_and_the_file_is_read_back_in_blocks(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.h5ad" for i in range(3)]
    for i, file in enumerate(files):
        atlas_data.simulate(file, 300, seed=i // 2, n_genes=GENES, n_batches=2)
    same, again, other = (file.read_bytes() for file in files)
    assert same == again != other
    x_NG = ad.read_h5ad(folder / atlas_steps.FILE).X
    starts = range(0, CELLS, 700)
    blocks = list(atlas_data.blocks_of(folder / atlas_steps.FILE, 700))
    assert len(blocks) == len(starts)
    for start, block in zip(starts, blocks, strict=True):
        assert (block != x_NG[start : start + 700]).nnz == 0


def test_file_of_a_simulation_that_failed_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), atlas_data.SparseFile(tmp_path / "half.h5ad", 5):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_step_is_measured_once_and_errors_are_told(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    results = tmp_path / "atlas.json"
    command = [
        "atlas.py",
        "measure",
        "--cells",
        str(CELLS),
        "--out",
        str(folder.parent),
        "--results",
        str(results),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "imports"])
    atlas.main()
    first = results.read_text()
    found = json.loads(first)["measured"][str(CELLS)]["imports"]
    assert 50 < found["own_MB"] <= found["peak_MB"] < 2000
    atlas.main()
    assert results.read_text() == first
    failed = atlas.watched([sys.executable, "-c", "raise SystemExit('no store')"], 1)
    assert failed["error"] == "exit status 1: no store"
    monkeypatch.setattr(sys, "argv", ["atlas.py", "table", "--results", str(results)])
    atlas.main()
    assert "imports" in results.with_suffix(".md").read_text()
    assert atlas_table.__doc__
