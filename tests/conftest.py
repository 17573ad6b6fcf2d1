"""Fixtures of the tiny nested design and of small models fitted to it, once a session."""

from collections.abc import Callable
from typing import Any

import pytest
from anndata import AnnData

from scmedley import datasets
from scmedley.models import MixedEffects
from scmedley.pp import pca, prepare
from tiny import FIT, MODELS, fit_default, nested_design, prepared_design, small, unfitted


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write the loss curves of tests/golden anew, and fail"
    )


@pytest.fixture(params=["sparse", "dense"])
def design(request: pytest.FixtureRequest) -> AnnData:
    """Counts: 3 donors x 4 types, sparse and dense."""
    return nested_design(sparse=request.param == "sparse")


@pytest.fixture(scope="session")
def _prepared() -> AnnData:
    return prepared_design()


@pytest.fixture
def prepared(_prepared: AnnData) -> AnnData:
    """The sparse design after ``prepare``, with a split; a copy of the test's own."""
    return _prepared.copy()


@pytest.fixture(scope="session")
def fitted(_prepared: AnnData) -> Callable[..., Any]:
    """Give the model of a name and preset, fitted once a session: look, do not change."""
    kept: dict[tuple[str, str], Any] = {}

    def get(name: str, preset: str = "default") -> Any:
        if (name, preset) not in kept:
            if name == "mixed":
                model: Any = MixedEffects(
                    "donor",
                    preset=preset,
                    fixed_settings=small("fixed", preset),
                    random_settings=small("random", preset),
                )
            else:
                model = unfitted(name, preset)
            kept[name, preset] = model.fit(_prepared.copy(), **FIT)
        return kept[name, preset]

    return get


@pytest.fixture(scope="session")
def default_fit() -> tuple[AnnData, MixedEffects]:
    """Return 12 donors of onek1k, prepared and embedded, and a default model of 10 epochs: look, do not change.

    Held-out cells are those with "test" in ``obs["scmedley_split"]``; batches are ``obs["batch"]`` and labels
    ``obs["cell_type"]``. The embeddings of :mod:`scmedley.keys` are in ``obsm``.
    """
    adata = datasets.onek1k()
    adata = adata[adata.obs["batch"].isin(adata.obs["batch"].cat.categories[:12])].copy()
    prepare(adata, "batch", label_key="cell_type")
    pca(adata)
    return adata, fit_default(adata, "batch")


@pytest.fixture(params=sorted(MODELS))
def model_name(request: pytest.FixtureRequest) -> str:
    """Each of the three models in turn."""
    return request.param
