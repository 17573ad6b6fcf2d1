"""What the README says of a default fit, asked of one: twelve donors of a shipped set, full-size networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scmedley import keys
from scmedley.evaluate import scores
from scmedley.evaluate.probes import PROBES
from scmedley.models import MixedEffects
from scmedley.pipeline.findings import findings
from scmedley.pipeline.verdicts import verdicts
from scmedley.pp import permute_batches
from test_findings import table_of_check, table_of_shifts
from tiny import fit_default

NULLS = {keys.RANDOM: keys.NULL, keys.RANDOM_MASKED: keys.NULL_MASKED}
LEAKS = [f"{probe} leak" for probe in PROBES]


@pytest.fixture(scope="module")
def real(default_fit: tuple[AnnData, MixedEffects]) -> pd.DataFrame:
    """Scores of the default fit."""
    return scores(default_fit[0], [keys.FIXED, *NULLS, keys.PCA], "batch", "cell_type")


@pytest.fixture(scope="module")
def permuted(default_fit: tuple[AnnData, MixedEffects]) -> pd.DataFrame:
    """Scores of the same networks, fitted to permuted batches and scored with them."""
    adata = default_fit[0].copy()
    permute_batches(adata, "batch", "cell_type")
    fit_default(adata, keys.PERMUTED)
    return scores(adata, [keys.FIXED, *NULLS], keys.PERMUTED, "cell_type")


def of(table: pd.DataFrame, embedding: str, score: str) -> pd.Series:
    """The one row of a score of batches, or of the accuracy of labels."""
    by = "label" if score == "kNN accuracy" else "batch"
    found = table[(table.embedding == embedding) & (table.score == score) & (table.of == by)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("leak", LEAKS)
def test_fixed_effects_leak_less_than_principal_components(real: pd.DataFrame, leak: str) -> None:
    fixed, pca = of(real, keys.FIXED, leak), of(real, keys.PCA, leak)
    assert pca.value > 5 * pca.null_sd
    assert fixed.value + np.hypot(fixed.se, pca.se) < pca.value


def test_fixed_effects_keep_the_labels(real: pd.DataFrame) -> None:
    fixed, pca = (of(real, key, "kNN accuracy").value for key in (keys.FIXED, keys.PCA))
    assert fixed > pca - 0.02
    assert fixed > 0.95


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("embedding", NULLS)
def test_random_effects_tell_batches_told_or_not(real: pd.DataFrame, embedding: str, leak: str) -> None:
    row = of(real, embedding, leak)
    assert row.value > max(5 * row.null_sd, 0.1)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("embedding", [keys.FIXED, *NULLS])
def test_nothing_is_found_in_permuted_batches(permuted: pd.DataFrame, embedding: str, leak: str) -> None:
    row = of(permuted, embedding, leak)
    assert abs(row.value) < 3 * row.null_sd < 0.1


def test_verdicts_and_findings_say_so(real: pd.DataFrame, permuted: pd.DataFrame) -> None:
    null = permuted[permuted.embedding != keys.FIXED]
    table = pd.concat([real, null.assign(embedding=null.embedding.map(NULLS))])
    batch, labels, trust = verdicts(table, table_of_check(n=0), {})
    worst = {key: max(of(real, key, leak).value for leak in LEAKS) for key in (keys.FIXED, keys.PCA)}
    assert batch.mark in ("good", "weak")
    assert (batch.numbers["leakage"], batch.numbers["PCA"]) == (worst[keys.FIXED], worst[keys.PCA])
    assert labels.mark == "good"
    assert labels.numbers["accuracy"] == of(real, keys.FIXED, "kNN accuracy").value
    assert trust.mark == "unknown"
    random = findings(table, table_of_shifts(seen=False), table_of_check(n=0), {})[0]
    assert random.count("above its null by all three probes") == 2  # with the batch, and masked


def test_permuted_batches_are_out(permuted: pd.DataFrame) -> None:
    pca = permuted[permuted.embedding == keys.FIXED].assign(embedding=keys.PCA)
    assert verdicts(pd.concat([permuted, pca]), table_of_check(n=0), {})[0].mark == "good"


def test_a_masked_latent_hangs_on_expression_alone(fitted: Callable[..., Any], prepared: AnnData) -> None:
    model = fitted("random")
    masked = model.get_latent_representation(prepared, mask_batch=True)
    other = prepared.copy()
    other.obs["donor"] = "never seen"
    np.testing.assert_array_equal(masked, model.get_latent_representation(other, mask_batch=True))
    np.testing.assert_array_equal(masked, model.get_latent_representation(other, unknown="mean"))
    assert np.abs(masked - model.get_latent_representation(prepared)).max() > 1e-4
