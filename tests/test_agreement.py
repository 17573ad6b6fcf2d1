"""Clusters against labels: scikit-learn's values, chance, and bad cases."""

import numpy as np
import pytest
from sklearn.metrics import (
    adjusted_rand_score,
    homogeneity_completeness_v_measure,
    normalized_mutual_info_score,
)

from scmedley.evaluate import ari, completeness, homogeneity, kmeans_clusters, nmi

LABEL = np.random.default_rng(0).choice(3, 300, p=[0.6, 0.3, 0.1])
NOISE = np.random.default_rng(1).normal(size=(300, 4))
ALL = {"ari": ari, "nmi": nmi, "nmi max": lambda a, b: nmi(a, b, "max")}
ALL |= {"homogeneity": homogeneity, "completeness": completeness}


def test_separated_labels_are_found_and_noise_is_not() -> None:
    apart = kmeans_clusters(NOISE + 20 * np.eye(4)[LABEL], 3, seed=0)
    noise = kmeans_clusters(NOISE, 3, seed=0)
    for metric in ALL.values():
        assert metric(apart, LABEL) == pytest.approx(1)
        assert abs(metric(noise, LABEL)) < 0.05


def test_values_are_those_of_scikit_learn() -> None:
    clusters = np.where(NOISE[:, 0] > 0.3, LABEL, NOISE.argmax(axis=1))  # 4 clusters, half right
    assert ari(clusters, LABEL) == pytest.approx(adjusted_rand_score(LABEL, clusters))
    for mean in ("arithmetic", "max"):
        oracle = normalized_mutual_info_score(LABEL, clusters, average_method=mean)
        assert nmi(clusters, LABEL, mean) == pytest.approx(oracle)  # type: ignore[arg-type]
    oracle = homogeneity_completeness_v_measure(LABEL, clusters)[:2]
    assert (homogeneity(clusters, LABEL), completeness(clusters, LABEL)) == pytest.approx(oracle)
    split = np.where(NOISE[:, 0] > 0, LABEL, LABEL + 3)  # each label in two clusters
    assert homogeneity(split, LABEL) == pytest.approx(1)
    assert completeness(split, LABEL) < 0.8
    assert 0.05 < nmi(clusters, LABEL, "max") < nmi(clusters, LABEL)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
def test_what_does_not_matter(metric) -> None:  # type: ignore[no-untyped-def]
    clusters = np.where(NOISE[:, 0] > 0.3, LABEL, 1)
    value = metric(clusters, LABEL)
    assert metric(9 - clusters, LABEL + 4) == pytest.approx(value)
    assert metric(np.r_[clusters, [0, -1, 2]], np.r_[LABEL, [-1, 0, -1]]) == pytest.approx(value)
    for nothing in (np.zeros(300, int), np.full(300, -1)):
        assert np.isnan(metric(clusters, nothing))


def test_same_seed_same_clusters_and_fewer_different_cells_than_clusters() -> None:
    first = kmeans_clusters(NOISE, 5, seed=3)
    np.testing.assert_array_equal(first, kmeans_clusters(NOISE, 5, seed=3))
    assert len(np.unique(first)) == 5
    assert (kmeans_clusters(np.ones((20, 3)), 4, seed=0) == 0).all()
