"""Probes: nothing is read from noise, everything from the codes themselves, and the null tells which."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scmedley.evaluate import probes
from scmedley.evaluate.probes import (
    Leak,
    ProbeName,
    _null_variance,
    _recalls,
    _stratified,
    _variance,
    batch_leak,
    batch_leaks,
    knn_accuracy,
    knn_probe,
    label_leak,
    logistic_probe,
)

EVERY: list[ProbeName] = ["kNN", "logistic", "network"]


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean([(predicted[true == c] == c).mean() for c in np.unique(true)]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps for the network, which is slow."""
    monkeypatch.setattr(probes, "_STEPS", 100)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def leak(
    z: np.ndarray,
    batch: np.ndarray,
    label: np.ndarray | None = None,
    seed: int = 0,
    probe: ProbeName = "kNN",
) -> Leak:
    """Leak with the first two thirds of the cells as training cells."""
    label = np.zeros_like(batch) if label is None else label
    cut = len(z) * 2 // 3
    return batch_leak(
        z[:cut], batch[:cut], label[:cut], z[cut:], batch[cut:], label[cut:], probe=probe, seed=seed
    )


def test_knn_accuracy_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 2, 300)  # two classes and odd k: no ties
    z = rng.normal(size=(300, 3)) + codes[:, None]
    oracle = KNeighborsClassifier(15).fit(z[:200], codes[:200]).score(z[200:], codes[200:])
    assert knn_accuracy(z[:200], codes[:200], z[200:], codes[200:]) == pytest.approx(oracle)


def test_knn_accuracy_leaves_out_cells_without_a_label() -> None:
    z = np.array([[0.0], [0.1], [5.0], [5.1]])
    assert knn_accuracy(z, np.array([0, -1, 1, -1]), z, np.array([0, 0, 1, -1]), k=1) == 1
    assert knn_accuracy(z, np.array([0, 0, 1, 1]), z, np.array([0, 0, 2, -1]), k=1) == pytest.approx(2 / 3)
    assert np.isnan(knn_accuracy(z, np.full(4, -1), z, np.zeros(4, int)))
    assert np.isnan(knn_accuracy(z, np.zeros(4, int), z, np.full(4, -1)))


def test_a_tie_goes_to_the_nearest() -> None:
    train, query = np.array([[0.0], [1.0]]), np.array([[0.9], [0.2]])
    assert knn_accuracy(train, np.array([0, 1]), query, np.array([1, 0]), k=2) == 1


def test_probe_of_equal_batches_is_the_plain_majority(rng: np.random.Generator) -> None:
    batch = np.arange(300) % 2
    z = rng.normal(size=(300, 3)) + batch[:, None]
    oracle = KNeighborsClassifier(15).fit(z[:200], batch[:200]).predict(z[200:])
    np.testing.assert_array_equal(knn_probe(z[:200], batch[:200], z[200:]), oracle)


@pytest.mark.parametrize("n_batches", [2, 5, 40])
def test_noise_leaks_nothing_and_codes_everything(rng: np.random.Generator, n_batches: int) -> None:
    batch = rng.choice(n_batches, 3000, p=rng.dirichlet(np.full(n_batches, 3.0)))  # unequal batches
    label = rng.integers(0, 3, 3000)
    noise = leak(rng.normal(size=(3000, 5)), batch, label)
    assert abs(noise.value) < 3 * noise.null_sd < 0.15
    assert leak(np.eye(n_batches)[batch], batch, label).value == pytest.approx(1)


@pytest.mark.parametrize("probe", EVERY)
@pytest.mark.parametrize("n_batches", [2, 12])
def test_every_probe_reads_codes_and_not_noise(
    rng: np.random.Generator, n_batches: int, probe: ProbeName
) -> None:
    batch, label = rng.choice(n_batches, 2400, p=rng.dirichlet(np.full(n_batches, 3.0))), np.arange(2400) % 2
    noise = leak(rng.normal(size=(2400, 5)), batch, label, probe=probe)
    assert abs(noise.value) < 3 * noise.null_sd < 0.12
    assert leak(np.eye(n_batches)[batch], batch, label, probe=probe).value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("probe", ["logistic", "network"])
def test_batches_of_few_cells_are_found_by_fitted_probes(probe: ProbeName) -> None:
    batch = np.r_[np.zeros(300, int), 1, 1, 2, 2, np.zeros(146, int), [1, 2] * 3]
    assert leak(np.eye(3)[batch], batch, probe=probe).value == pytest.approx(1)


def test_a_plane_does_not_read_what_a_curve_does(rng: np.random.Generator) -> None:
    z = rng.normal(size=(1500, 2))
    batch = (z[:, 0] * z[:, 1] > 0).astype(int)
    logistic, network, knn = (leak(z, batch, probe=probe).value for probe in ("logistic", "network", "kNN"))
    assert abs(logistic) < 0.15
    assert min(network, knn) > 0.8


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("probe", ["logistic", "network"])
def test_fitted_probes_do_not_mind_units_and_keep_to_the_seed(
    rng: np.random.Generator, probe: ProbeName
) -> None:
    batch = rng.integers(0, 3, 600)
    z = rng.normal(size=(600, 4)) + 0.7 * batch[:, None]
    found = leak(z, batch, probe=probe)
    assert 0.1 < found.value < 0.95
    assert found == leak(z, batch, probe=probe)
    assert found.value == pytest.approx(leak(z * 1024 + 5, batch, probe=probe).value, abs=0.02)


def test_logistic_probe_of_equal_batches_is_plain_logistic_regression(rng: np.random.Generator) -> None:
    batch = np.arange(300) % 3
    z = rng.normal(size=(300, 3)) + batch[:, None]
    mean, sd = z[:210].mean(axis=0), z[:210].std(axis=0)
    oracle = LogisticRegression(max_iter=100).fit((z[:210] - mean) / sd, batch[:210])
    found = logistic_probe(z[:210], batch[:210], z[210:])
    np.testing.assert_array_equal(found, oracle.predict((z[210:] - mean) / sd))


@pytest.mark.usefixtures("quick")
def test_all_probes_learn_from_one_draw(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rng.integers(0, 2, 900)
    z = rng.normal(size=(900, 3)) + 0.5 * batch[:, None]
    seen: list[np.ndarray] = []

    def spied(probe: probes.Probe) -> probes.Probe:
        def spy(
            z_train: np.ndarray, codes_train: np.ndarray, z_test: np.ndarray, **more: int
        ) -> probes.Codes:
            seen.append(z_train)
            return probe(z_train, codes_train, z_test, **more)

        return spy

    for name in ("knn_probe", "logistic_probe", "network_probe"):
        monkeypatch.setattr(probes, name, spied(getattr(probes, name)))
    monkeypatch.setattr(probes, "MAX_TRAIN", 200)
    label = np.arange(900) % 2
    found = batch_leaks(z[:600], batch[:600], label[:600], z[600:], batch[600:], label[600:], seed=0)
    assert list(found) == EVERY
    assert {leak.n_cells for leak in found.values()} == {300}
    assert [z_train.shape for z_train in seen] == [(200, 3)] * 6
    for of_label in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(of_label, [of_label[0]] * 3)
    assert (seen[0] != seen[3]).any()


def test_stratified_draw_keeps_shares_and_every_class(rng: np.random.Generator) -> None:
    codes = rng.permutation(np.repeat([0, 1, 4, 7], [700, 290, 8, 2]))
    drawn = _stratified(codes, 100, [0])
    assert len(np.unique(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert np.abs(np.bincount(codes[drawn], minlength=8)[[0, 1, 4, 7]] - [70, 29, 1, 1]).max() <= 1
    np.testing.assert_array_equal(drawn, _stratified(codes, 100, [0]))
    assert (drawn != _stratified(codes, 100, [1])).any()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("probe", EVERY)
def test_label_leak_is_the_mirror(rng: np.random.Generator, probe: ProbeName) -> None:
    batch, label = rng.integers(0, 2, 750), rng.integers(0, 3, 750)
    z = rng.normal(size=(750, 3)) + 8 * batch[:, None] * np.eye(3)[0]  # tells the batch and not the label
    parts = (z[:400], batch[:400], label[:400], z[400:], batch[400:], label[400:])
    assert label_leak(*parts, probe=probe, seed=0).value == pytest.approx(0, abs=0.15)
    assert batch_leak(*parts, probe=probe, seed=0).value == pytest.approx(1, abs=0.01)
    known = z + 8 * np.eye(3)[label]
    found = label_leak(known[:400], *parts[1:3], known[400:], *parts[4:], probe=probe, seed=0)
    assert found.value == pytest.approx(1, abs=0.01)
    assert set(found.per_label) == {0, 1}  # by batch


def test_a_probe_that_is_not_there() -> None:
    z, codes = np.zeros((4, 1)), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="no probe 'svm'; choose one of: kNN, logistic, network"):
        batch_leak(z, codes, codes, z, codes, codes, probe="svm", seed=0)  # type: ignore[arg-type]


def test_batches_smaller_than_k_are_found() -> None:
    batch = np.r_[np.zeros(300, int), 1, 1, 2, 2, np.zeros(100, int), 1, 2]
    z = np.eye(3)[batch]
    found = batch_leak(
        z[:304], batch[:304], np.zeros(304, int), z[304:], batch[304:], np.zeros(102, int), seed=0
    )
    assert found.value == pytest.approx(1)


def test_composition_is_no_leak_within_labels(rng: np.random.Generator) -> None:
    label = rng.integers(0, 2, 2000)
    batch = (rng.random(2000) < np.where(label == 1, 0.9, 0.1)).astype(int)
    z = rng.normal(size=(2000, 4)) + 8 * label[:, None]  # knows the label and nothing of the batch
    within = leak(z, batch, label)
    assert abs(within.value) < 4 * within.null_sd
    assert leak(z, batch).value > 0.7


def test_value_is_the_mean_over_labels_by_held_out_cells(rng: np.random.Generator) -> None:
    label = (np.arange(1500) % 3 == 0).astype(int)  # 333 and 167 held-out cells
    batch = rng.integers(0, 2, 1500)
    z = rng.normal(size=(1500, 2)) + 20 * label[:, None]
    z[label == 1] += 10 * batch[label == 1, None]
    found = leak(z, batch, label)
    assert found.per_label[0] == pytest.approx(0, abs=0.2)
    assert found.per_label[1] == pytest.approx(1)
    n_ones = int((label[1000:] == 1).sum())
    mean = (found.per_label[0] * (500 - n_ones) + found.per_label[1] * n_ones) / 500
    assert found.value == pytest.approx(mean)
    assert found.n_cells == 500


@pytest.mark.parametrize("probe", EVERY)
def test_probes_of_permuted_batches_average_zero_with_the_spread_that_is_told(
    rng: np.random.Generator, probe: ProbeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance is computed and not measured: fits to permuted batches must find it, small batches or not."""
    batch, label = rng.choice(6, 500, p=[0.5, 0.25, 0.13, 0.06, 0.04, 0.02]), rng.integers(0, 2, 500)
    z = rng.normal(size=(500, 4)) + 3 * rng.normal(size=(6, 4))[batch]  # the real batches lie far apart
    assert leak(z, batch, label, probe=probe).value > 0.8
    monkeypatch.setattr(probes, "_STEPS", 20)
    found = []
    for _ in range(60):
        permuted = batch.copy()
        for which in (0, 1):
            permuted[label == which] = rng.permutation(batch[label == which])
        found.append(leak(z, permuted, label, probe=probe))
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(60)
    assert np.mean([f.null_sd for f in found]) == pytest.approx(values.std(), rel=0.25)


def test_null_variance_is_that_of_all_permutations() -> None:
    true, predicted = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 0, 0])
    values = [balanced_accuracy(np.array(p), predicted) for p in permutations(true.tolist())]
    assert np.mean(values) == pytest.approx(1 / 3)
    assert _null_variance(true, predicted) == pytest.approx(np.var(values))


@pytest.mark.parametrize(("n_batches", "n_labels", "step"), [(2, 1, 0.5), (40, 1, 0.6), (8, 4, 0.7)], ids=str)
def test_se_is_the_spread_over_cells(n_batches: int, n_labels: int, step: float) -> None:
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(n_batches, 10)) * step
    found = []
    for _ in range(60):  # with training cells drawn anew as well, which adds little
        batch, label = rng.integers(0, n_batches, 1200), rng.integers(0, n_labels, 1200)
        found.append(leak(centre[batch] + rng.normal(size=(1200, 10)), batch, label))
    values, errors = ([getattr(f, name) for f in found] for name in ("value", "se"))
    assert 0.1 < np.mean(values) < 0.9
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_variance_is_that_of_the_bootstrap(rng: np.random.Generator) -> None:
    true = np.r_[np.zeros(40, int), np.ones(15, int), np.full(8, 4)]
    right = rng.random(63) < 0.6
    predicted = np.where(right, true, 2)
    drawn = []
    for _ in range(4000):
        cells = np.concatenate([rng.choice(np.flatnonzero(true == c), (true == c).sum()) for c in (0, 1, 4)])
        drawn.append(balanced_accuracy(true[cells], predicted[cells]))
    assert _recalls(true, predicted).mean() == pytest.approx(balanced_accuracy(true, predicted))
    assert _variance(true, _recalls(true, predicted)) == pytest.approx(
        np.var(drawn), rel=0.12
    )  # less n / (n - 1)
    # a class of one cell: neither certain nor more than a coin
    assert 0 < _variance(np.array([0, 0, 0, 1]), np.array([2 / 3, 1])) < 0.25


def test_what_does_not_matter(rng: np.random.Generator) -> None:
    batch, label = rng.integers(0, 3, 600), rng.integers(0, 2, 600)
    z = rng.normal(size=(600, 4)) + 0.7 * batch[:, None]
    found = leak(z, batch, label)
    assert 0.1 < found.value < 0.95
    assert found == leak(z, batch, label)
    assert found.value == pytest.approx(leak(z * 3 + 5, batch, label).value)
    assert found.value == pytest.approx(leak(z, batch * 10 + 4, label).value)
    # cells without a label or a batch, and a label with one batch, change nothing
    more = np.r_[z[:400], rng.normal(size=(90, 4)), z[400:], rng.normal(size=(45, 4))]
    extra_batch = np.r_[batch[:400], [0] * 60, [-1] * 30, batch[400:], [0] * 30, [-1] * 15]
    extra_label = np.r_[
        label[:400], [-1] * 30, [7] * 30, [0] * 30, label[400:], [-1] * 15, [7] * 15, [0] * 15
    ]
    assert leak(more, extra_batch, extra_label) == found


def test_held_out_batches_without_training_cells_are_left_out() -> None:
    z, batch = np.eye(3)[[0, 1] * 20 + [0, 1, 2] * 5], np.array([0, 1] * 20 + [0, 1, 2] * 5)
    ones = np.zeros_like(batch)
    found = batch_leak(z[:40], batch[:40], ones[:40], z[40:], batch[40:], ones[40:], seed=0)
    assert found.value == pytest.approx(1)
    assert found.n_cells == 10


@pytest.mark.parametrize(
    ("batch_train", "batch_test", "label"),
    [
        ([0] * 8, [0, 1, 0, 1], 0),
        ([0, 1] * 4, [1] * 4, 0),
        ([0, 1] * 4, [0, 1] * 2, -1),
        ([0, 1] * 4, [-1] * 4, 0),
    ],
    ids=["one batch to learn", "one batch to score", "no labels", "no batches"],
)
def test_nan_where_no_label_can_be_scored(
    rng: np.random.Generator, batch_train: list[int], batch_test: list[int], label: int
) -> None:
    z = rng.normal(size=(12, 2))
    found = batch_leak(
        z[:8],
        np.array(batch_train),
        np.full(8, label),
        z[8:],
        np.array(batch_test),
        np.full(4, label),
        seed=0,
    )
    assert np.isnan([found.value, found.null_sd, found.se]).all()
    assert found.per_label == {}
    assert found.n_cells == 0
