"""What a program has set before it calls: threads, forks, dtypes, modes. Same bits, and all of it as before."""

import asyncio
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from anndata import AnnData

from scmedley import load
from scmedley.device import engine
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import MixedEffects
from scmedley.pp import maps as umap
from scmedley.pp import prepare
from tiny import FIT, nested_design, small

# Batches are added here, and their intervals are not calibrated: test_adapt asks for that warning.
pytestmark = pytest.mark.filterwarnings("ignore:The intervals of")

PRECISIONS = ("float32", "bfloat16")


def cells() -> tuple[AnnData, AnnData]:
    """Prepared cells of the donors to fit to, and of a new one."""
    adata = nested_design()
    prepare(adata, "donor", label_key="cell_type", min_genes=5, min_cells=1)
    known, new = (adata[(adata.obs["donor"] == "d3") == there].copy() for there in (False, True))
    return known, new


def results(folder: Path, precision: str = "float32") -> dict[str, np.ndarray]:
    """What every verb gives, from counts on."""
    return verbs(*cells(), folder, precision)


def verbs(known: AnnData, new: AnnData, folder: Path, precision: str = "float32") -> dict[str, np.ndarray]:
    """What every verb of a model gives: fit, save, load, adapt, embed, counterfactual, predict."""
    settings = {f"{name}_settings": small(name, max_epochs=2) for name in ("fixed", "random")}
    MixedEffects("donor", "cell_type", **settings).fit(known, **{**FIT, "precision": precision}).save(folder)
    model = load(folder).adapt(new, steps=3, threads=1)
    model.save(folder)
    model = load(folder)
    model.embed(new)
    shown, one = model.counterfactual(new, ["d1", "mean"], draws=2), model.counterfactual(new, "d1")
    return {
        "fixed": new.obsm["X_scmedley_fixed"],
        "random": new.obsm["X_scmedley_random"],
        "masked": model.random.get_latent_representation(new, mask_batch=True),
        "reconstruction": model.reconstruct(new).X,
        "labels": model.predict(new).to_numpy(),
        "drawn": shown.layers["difference_q05"],
        "counterfactual": one.X,
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        assert np.array_equal(found[name], value), f"other bits: {name}"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The results in a process that has set nothing, by precision."""
    return {p: results(tmp_path_factory.mktemp("plain") / "model", p) for p in PRECISIONS}


@contextmanager
def changed(change: Callable[[Any], None], value: object, before: object) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of anndata 0.13 with pandas 3.1, wherever an AnnData is made: no caller can do without.
        warnings.filterwarnings("ignore", "The '.*' option is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "The intervals of", ScmedleyWarning)  # of batches that were added
        yield


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": partial(changed, torch.set_default_dtype, torch.float64, torch.float32),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "deterministic": partial(changed, torch.use_deterministic_algorithms, True, False),
    "default device": partial(changed, torch.set_default_device, "meta", None),
    "device that is not there": partial(changed, torch.set_default_device, "cuda", None),
    "device for a while": partial(torch.device, "meta"),
    "imprecise products": partial(changed, torch.set_float32_matmul_precision, "medium", "highest"),
    "threads": partial(changed, torch.set_num_threads, 2, torch.get_num_threads()),
    "NumPy raises": partial(np.errstate, all="raise"),
    "warnings are errors": warnings_are_errors,
}


def state() -> list[object]:
    """All that a caller can set and that results must not change."""
    return [
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        np.geterr(),
        list(warnings.filters),
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_program_has_set(name: str, expected, tmp_path: Path) -> None:
    """Same bits, and the settings are as they were."""
    for precision in PRECISIONS if name == "autocast" else PRECISIONS[:1]:
        with SETTINGS[name]():
            before = state()
            found = results(tmp_path / precision, precision)
            assert state() == before
        assert_same(found, expected[precision])


def test_the_settings_are_given_back_after_an_error() -> None:
    with torch.inference_mode(), changed(torch.set_default_dtype, torch.float64, torch.float32):
        before = state()
        with suppress(ZeroDivisionError), engine(1, torch.device("cpu")):
            torch.manual_seed(5)
            assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
            raise ZeroDivisionError
        assert state() == before


# anndata switches this warning of pandas off for the whole process while it makes a view: one thread turns it on again
# for the other.
@pytest.mark.filterwarnings(r"ignore:\s*A value is trying to be set on a copy")
def test_threads_and_loops(expected, tmp_path: Path) -> None:
    """In a thread that is not the main one, in a running loop, and two at once."""

    async def cell() -> dict[str, np.ndarray]:
        return results(tmp_path / "loop")

    assert_same(asyncio.run(cell()), expected["float32"])
    pairs = [cells(), cells()]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(verbs, *pair, tmp_path / f"{i}") for i, pair in enumerate(pairs)]
        for one in running:
            assert_same(one.result(), expected["float32"])


def test_a_spawned_process_gives_the_same_bits(expected, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert_same(pool.submit(results, tmp_path / "model").result(120), expected["float32"])


NUMBA = """
    import numpy as np
    from numba import njit, prange

    @njit(parallel=True)
    def total(x):
        s = 0.0
        for i in prange(len(x)):
            s += x[i]
        return s
{first}
    import torch
    from scmedley.device import engine

    def used(threads=None):
        with engine(threads, torch.device("cpu")):
            return torch.get_num_threads()

    def nested():
        with engine(3, torch.device("cpu")):
            return used()

    before = used()
    total(np.ones(9))
    print(torch.get_num_threads(), before, used(), used(2), nested(), used())
"""


@pytest.mark.parametrize("first", ["", "    total(np.ones(9))"], ids=["numba later", "numba first"])
def test_numba_does_not_change_the_threads_of_a_fit(first: str) -> None:
    """scanpy and UMAP run numba, which sets the threads of the process: a fit after a UMAP would have other bits."""
    code = textwrap.dedent(NUMBA.format(first=first))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "2",
        "NUMBA_THREADING_LAYER": "omp",
    }
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == ["2", "1", "1", "2", "3", "1"], ran.stderr


FORKED = """
    import multiprocessing, sys, warnings
    import numpy as np, torch
    from scmedley.data.neighbors import nearest
    from scmedley.errors import ScmedleyWarning
    from scmedley.models import RandomEffects
    from tiny import FIT, prepared_design

    torch.set_num_threads(2)
    adata = prepared_design()
    settings = RandomEffects.preset("default").replace(max_epochs=1, n_latent=4)

    def fit():  # at this size PyTorch shares the work among threads
        return RandomEffects("donor", settings=settings).fit(adata, **{**FIT, "threads": 2})

    def neighbours():
        return nearest(np.random.default_rng(0).normal(size=(2000, 20)), np.zeros((2000, 20)), 5)

    model = fit()
    before = model.get_latent_representation(adata)
    neighbours()

    def child():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ScmedleyWarning)
            after = model.get_latent_representation(adata)
            fit(), model.counterfactual(adata[:5], "d1", draws=2), neighbours()
        assert np.allclose(after, before, atol=1e-5)
        assert torch.get_num_threads() == 1
        words = [str(warning.message) for warning in told if warning.category is ScmedleyWarning]
        assert len(words) == 1 and "spawn" in words[0], words

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    print("hung" if process.is_alive() else f"ended with {process.exitcode}")
    process.kill()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_ends_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of OpenMP that the parent has used are not there in the child: waiting for them never ends."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.strip() == "ended with 0", done.stdout + done.stderr


def test_umap_is_refused_where_numba_would_end_the_process(
    monkeypatch: pytest.MonkeyPatch, prepared: AnnData
) -> None:
    monkeypatch.setattr(umap, "_used_by_parent", False)
    prepared.obsm["X"] = np.zeros((prepared.n_obs, 2))
    monkeypatch.setattr(numba, "threading_layer", lambda: "omp")
    umap.umap(prepared, "X")  # threads that this very process has started do no harm
    umap._remember()  # as a fork does in the child
    with pytest.raises(ScmedleyError, match="spawn"):
        umap.umap(prepared, "X")


def test_deterministic_algorithms_on_a_gpu_need_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before training, not by an error of cuBLAS in the midst of it."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    training = engine(1, torch.device("cuda"))
    with SETTINGS["deterministic"](), pytest.raises(ScmedleyError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        training.__enter__()
