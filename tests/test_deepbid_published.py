"""The published DeepBID: its objective by hand, gradients, closed forms, stops, resume, and bad input."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix
from scipy.stats import nbinom
from torch import Tensor

from scmedley import keys
from scmedley.data.resident import Resident
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import store
from scmedley.models.base import Model
from scmedley.models.deepbid_published import (
    CLUSTERING,
    FALLING,
    INNER,
    OUTER,
    WHOLE,
    PublishedDeepBIDNetwork,
    PublishedDeepBIDSettings,
)
from scmedley.models.settings import named
from scmedley.nn import clustering
from scmedley.pp import prepare
from scmedley.train import loop
from scmedley.train.trainable import Progress, TrainingCells
from tiny import FIT, differing, nested_design, prepared_design, weights

STAGES = (OUTER, INNER, WHOLE, CLUSTERING)
SMALL = {"hidden": (16,), "n_latent": 6, "max_epochs": 2, "batch_size": 32, "n_clusters": 4, "tolerance": 0.0}


class Published(Model[PublishedDeepBIDSettings]):
    """The published network alone."""

    key = "X_published"
    has_label_head = False
    networks: ClassVar = {PublishedDeepBIDSettings: PublishedDeepBIDNetwork}

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> PublishedDeepBIDSettings:
        return named(name, default=PublishedDeepBIDSettings(), paper=PublishedDeepBIDSettings())


def unfitted(**changes: Any) -> Published:
    return Published("donor", settings=PublishedDeepBIDSettings().replace(**{**SMALL, **changes}))


def blobs(n: int = 30, n_genes: int = 8, n_batches: int = 2, spread: float = 3.0) -> Resident:
    """Cells of two types, in batches that hold both."""
    rng = np.random.default_rng(0)
    x_NG = rng.gamma(1.0, 1.0, (n, n_genes)) + spread * (np.arange(n) % 2)[:, None] * (np.arange(n_genes) < 4)
    return Resident(x_NG.astype(np.float32), np.arange(n) // 2 % n_batches, torch.device("cpu"))


def network(cells: Resident, **changes: Any) -> tuple[PublishedDeepBIDNetwork, TrainingCells]:
    """A network at the beginning of the clustering, without pre-training."""
    torch.manual_seed(0)
    settings = PublishedDeepBIDSettings().replace(**{**SMALL, "n_clusters": 3, **changes})
    made, known = (
        PublishedDeepBIDNetwork(cells.n_genes, int(cells.b_N.max()) + 1, settings),
        TrainingCells(cells, torch.arange(cells.n_cells)),
    )
    made.begin(known, Progress(CLUSTERING, 0.0))
    made.inputs(cells)
    return made, known


@pytest.fixture(scope="module")
def prepared() -> AnnData:
    return prepared_design()


@pytest.fixture(scope="module")
def fitted(prepared: AnnData) -> Published:
    return unfitted().fit(prepared, **FIT)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_objective_is_equation_11(reduction: str) -> None:
    cells = blobs()
    made, known = network(cells, reduction=reduction, batch_size=30)
    batch = cells.take(known.rows)
    found = made.objective(batch)
    with torch.no_grad():
        x = batch.x_NG
        h = torch.tanh(made.inner_encoder(torch.tanh(made.outer_encoder(x))))
        d = torch.tanh(made.inner_decoder(h))
        mean, theta = made.log_mean(d).exp().double().numpy(), made.log_dispersion(d).exp().double().numpy()
        c, p = made.centre_KP, made.membership_NK
    nb = nbinom.logpmf(np.round(x.numpy()), theta, theta / (theta + mean)).sum()
    own = clustering.memberships(h, c)
    by_hand = {
        "negative log-likelihood": (-nb, 1.0),
        "adaptive": (clustering.adaptive_loss(h, c, p), 5.0),
        "weights": (sum(float(w.detach().square().sum()) for w in made.parameters()), 0.01),
        "neighbours": (clustering.neighbour_kl(h, batch.b_N), 0.01),
        "composition": (clustering.composition_kl(own, batch.b_N, torch.tensor([16 / 30, 14 / 30])), 100.0),
    }
    n = 1 if reduction == "sum" else 30
    for name, (value, weight) in by_hand.items():
        term = found[name]
        assert float(term.weight * term.value.detach()) == pytest.approx(
            weight * float(value) / n, rel=1e-4
        ), name
    assert float(loop.total(found).detach()) == pytest.approx(
        sum(weight * float(value) for value, weight in by_hand.values()) / n, rel=1e-4
    )


@pytest.mark.parametrize("term", ["negative log-likelihood", "adaptive", "neighbours", "composition"])
def test_the_gradient_of_each_term_reaches_the_encoder(term: str) -> None:
    cells = blobs()
    made, known = network(cells)
    # The memberships of L_A and the target of L_KL1 are constants.
    made.objective(cells.take(known.rows))[term].value.backward()
    for layer in (made.outer_encoder, made.inner_encoder):
        assert layer.weight.grad is not None
        assert float(layer.weight.grad.abs().sum()) > 1e-6
    assert made.centre_KP.grad is None


def test_pretraining_is_greedy(prepared: AnnData) -> None:
    changed = []

    class Watched(PublishedDeepBIDNetwork):
        def begin(self, known: TrainingCells, progress: Progress) -> None:
            super().begin(known, progress)
            changed.append(weights(self))

    class Model(Published):
        networks: ClassVar = {PublishedDeepBIDSettings: Watched}

    made = Model("donor", settings=unfitted().settings).fit(prepared, **FIT)
    changed.append(weights(made.network))
    layers = [{name.split(".")[0] for name in differing(*pair) if "." in name} for pair in pairwise(changed)]
    outer, inner = {"outer_encoder", "reconstruction"}, {"inner_encoder", "inner_decoder"}
    heads = {"log_mean", "log_dispersion"}
    assert layers == [outer, inner, outer | inner | heads, outer | inner | heads]
    history = made.history
    assert history.groupby("stage", sort=False).epoch.nunique().to_dict() == dict.fromkeys(STAGES, 2)
    rates = {stage.name: (stage.optimiser, stage.rate, stage.keep) for stage in made.network.stages()}
    assert rates == dict.fromkeys(STAGES[:3], ("adam", 1e-3, "last")) | {CLUSTERING: ("sgd", 1e-3, "last")}


def test_centres_and_memberships_are_updated_in_closed_form() -> None:
    cells = blobs()
    made, known = network(cells)
    before_NK = made.membership_NK.clone()
    with torch.no_grad():
        made.outer_encoder.weight += 0.1
        h_NP = made.encode(cells.take(known.rows).x_NG, cells.b_N)
    made.after_epoch(TrainingCells(cells, known.rows[:20]), Progress(CLUSTERING, 1.0))
    centre_KP = (before_NK[:20].t() @ h_NP[:20]) / before_NK[:20].sum(0)[:, None]  # of training cells
    torch.testing.assert_close(made.centre_KP, centre_KP)
    torch.testing.assert_close(made.membership_NK, made.memberships(h_NP))  # of all cells
    moved = 0.5 * (made.membership_NK - before_NK)[:20].abs().sum(1).mean()
    assert float(made.moved) == pytest.approx(float(moved), rel=1e-5)


def test_clusters_of_separate_types_are_found() -> None:
    cells = blobs(60, n_genes=40, spread=20.0)
    made, known = network(cells, n_clusters=2, hidden=(64,), n_latent=100)
    loop.fit(made, cells, known.rows, known.rows[:4], loop.Plan(32, 10, 10, progress=False))
    code_N = made.memberships(made.encode(cells.take(known.rows).x_NG, cells.b_N)).argmax(1)
    assert len(set(zip(code_N.tolist(), (known.rows % 2).tolist(), strict=True))) == 2


def test_permuting_clusters_or_cells_permutes_memberships(fitted: Published, prepared: AnnData) -> None:
    z_NP = torch.tensor(fitted.get_latent_representation(prepared))
    p_NK, order = fitted.network.memberships(z_NP), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(p_NK.sum(1), torch.ones(len(p_NK)))
    torch.testing.assert_close(fitted.network.memberships(z_NP.flip(0)), p_NK.flip(0))
    before = fitted.network.centre_KP.clone()
    fitted.network.centre_KP.copy_(before[order])
    permuted_NK = fitted.network.memberships(z_NP)
    fitted.network.centre_KP.copy_(before)
    torch.testing.assert_close(permuted_NK, p_NK[:, order])


@pytest.mark.parametrize("stop", [2, 4, 5, 7, 8])
def test_resumes_to_the_same_bits_in_each_stage(
    stop: int, fitted: Published, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    epochs, after_epoch = [], PublishedDeepBIDNetwork.after_epoch

    def stopped(network: PublishedDeepBIDNetwork, *where: Any) -> None:
        epochs.append(where)
        if len(epochs) == stop:
            raise KeyboardInterrupt
        after_epoch(network, *where)

    with monkeypatch.context() as patch:
        patch.setattr(PublishedDeepBIDNetwork, "after_epoch", stopped)
        none_yet = pytest.warns(ScmedleyWarning, match="so there are no clusters")
        with none_yet if stop < 8 else nullcontext():  # the first epoch of the clustering is the 7th
            first = unfitted().fit(prepared, **FIT, checkpoint=tmp_path / "c")
        assert first.fitted["stopped"] == "interrupted"
    resumed = unfitted().fit(prepared, **FIT, checkpoint=tmp_path / "c")
    assert not differing(weights(resumed.network), weights(fitted.network))
    assert resumed.history.equals(fitted.history)
    assert torch.equal(resumed.network.membership_NK, fitted.network.membership_NK)


def spoilt(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[PublishedDeepBIDNetwork], object]) -> None:
    """Change the network at the beginning of the clustering."""
    begin = PublishedDeepBIDNetwork.begin

    def changed(network: PublishedDeepBIDNetwork, known: TrainingCells, progress: Progress) -> None:
        begin(network, known, progress)
        if progress.stage == CLUSTERING:
            with torch.no_grad():
                spoil(network)

    monkeypatch.setattr(PublishedDeepBIDNetwork, "begin", changed)


@pytest.mark.parametrize(
    ("term", "spoil"),
    [
        ("negative log-likelihood", lambda network: network.log_mean.bias.fill_(1e4)),
        ("weights", lambda network: network.reconstruction.bias.fill_(1e25)),
    ],
)
def test_a_term_that_is_not_finite_stops_the_training_and_names_itself(
    term: str, spoil: Any, prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(monkeypatch, spoil)
    made = unfitted()
    with pytest.raises(ScmedleyError, match=f"train term '{term}' is (nan|inf) in epoch 7"):
        made.fit(prepared, **FIT)
    assert made.network is None


def test_memberships_that_say_nothing_stop_the_training(
    prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(monkeypatch, lambda network: network.centre_KP.copy_(network.centre_KP[:1].expand(4, -1)))
    with pytest.raises(ScmedleyError, match="every cell has the membership 1/4 in every cluster"):
        unfitted().fit(prepared, **FIT)


def test_centres_that_merge_end_the_training_with_a_warning() -> None:
    """In 300 dimensions distances within a cluster are as long as those between centres."""
    cells = blobs(40, n_genes=50)
    made, known = network(cells, n_latent=300, n_clusters=4)
    plan = loop.Plan(32, 20, 20, progress=False)
    made.stages = lambda: PublishedDeepBIDNetwork.stages(made)[-1:]  # type: ignore[method-assign]
    with pytest.warns(ScmedleyWarning, match=f"the centres merge.*after {FALLING} epochs"):
        done = loop.fit(made, cells, known.rows, known.rows[:4], plan)
    assert (done.epoch, done.stopped) == (FALLING, "early stopping")


def test_settled_memberships_end_the_training(prepared: AnnData) -> None:
    made = unfitted(tolerance=1.0).fit(prepared, **FIT)
    assert made.history[made.history.stage == CLUSTERING].epoch.unique().tolist() == [7]
    assert made.fitted["stopped"] == "early stopping"
    assert 0 < float(made.network.moved) < 1


def test_the_fuzzy_start_is_that_of_fuzzy_k_means() -> None:
    cells = blobs()
    made, known = network(cells, start="fuzzy")
    first, _ = network(cells)
    h_NP = made.encode(cells.take(known.rows).x_NG, cells.b_N).detach()
    p_NK, _ = clustering.fuzzy_k_means(h_NP, first.centre_KP, 2.0)
    torch.testing.assert_close(made.centre_KP, clustering.centres(p_NK, h_NP, first.centre_KP))
    assert differing(weights(made), weights(first)) >= {"centre_KP"}


@pytest.mark.parametrize("n_clusters", [1, 30])
def test_one_cluster_and_clusters_without_cells(n_clusters: int) -> None:
    cells = blobs(30)
    cells = Resident(
        np.repeat(cells.take(torch.arange(5)).x_NG.numpy(), 6, axis=0), cells.b_N.numpy(), cells.device
    )
    made, known = network(cells, n_clusters=n_clusters)  # 5 distinct cells: at most 5 clusters have any
    loop.fit(made, cells, known.rows, known.rows[:4], loop.Plan(32, 2, 2, progress=False))
    p_NK = made.memberships(made.encode(cells.take(known.rows).x_NG, cells.b_N))
    assert made.centre_KP.isfinite().all()
    torch.testing.assert_close(p_NK.sum(1), torch.ones(30))
    assert len(p_NK.argmax(1).unique()) <= 5


def test_more_clusters_than_cells_are_refused(prepared: AnnData) -> None:
    n_train = int((prepared.obs[keys.SPLIT] == "train").sum())
    with pytest.raises(
        ScmedleyError, match=f"n_clusters={n_train + 1} is above the number of training cells"
    ):
        unfitted(n_clusters=n_train + 1).fit(prepared, **FIT)


@pytest.mark.parametrize("code", [0, -1])
def test_one_batch_or_none(code: int) -> None:
    cells = blobs(n_batches=1)
    cells.b_N.fill_(code)
    made, known = network(cells)
    made.n_batches = 1 + code
    done = loop.fit(made, cells, known.rows, known.rows[:4], loop.Plan(32, 2, 2, progress=False))
    values = {row["term"]: row["value"] for row in done.rows if row["part"] == "train"}
    assert values["composition"] == pytest.approx(0, abs=1e-5)
    assert values["neighbours"] > 0


def test_a_batch_of_3_cells() -> None:
    adata = nested_design()
    small = (adata.obs["donor"] != "d3").to_numpy()
    small[np.flatnonzero(~small)[:3]] = True
    adata = adata[small].copy()
    prepare(adata, "donor", min_genes=5, min_cells=1, method="deepbid")
    made = unfitted().fit(adata, **FIT)
    assert np.isfinite(made.history["value"]).all()


def test_it_is_saved_and_loaded(fitted: Published, prepared: AnnData, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = store.read(tmp_path / "model", Published)
    assert not differing(weights(loaded.network), weights(fitted.network))
    assert_array_equal(loaded.get_latent_representation(prepared), fitted.get_latent_representation(prepared))
    assert loaded.settings == fitted.settings
    assert np.isfinite(loaded.reconstruct(prepared).X).all()


def test_settings() -> None:
    settings = PublishedDeepBIDSettings(n_clusters=4)
    assert settings.for_cells(9_999) == settings
    large = settings.for_cells(10_000)
    assert (large.lambda1, large.lambda2, large.learning_rate) == (1.0, 1e-4, 1e-5)
    assert (large.kappa1, large.kappa2) == (0.01, 100.0)
    with pytest.raises(ScmedleyError, match="needs the number of clusters"):
        PublishedDeepBIDNetwork(5, 2, PublishedDeepBIDSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_clusters": 0},
        {"n_clusters": 2.5},
        {"start": "random"},
        {"reduction": "median"},
        {"fuzzifier": 1.0},
        {"hidden": (500, 300)},
        {"scale": "standard"},
        {"kappa2": -1.0},
    ],
)
def test_settings_out_of_range_name_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ScmedleyError, match=next(iter(wrong))):
        PublishedDeepBIDSettings(**wrong)


def two_batches(n_genes: int = 60) -> AnnData:
    """Two batches of 40 cells; gene 0 is found in 2 cells of each, and nowhere else."""
    rng = np.random.default_rng(3)
    x = rng.poisson(rng.gamma(1, 1, n_genes) * rng.lognormal(0, 0.6, (80, n_genes))).astype(np.float32)
    x[:, 0] = 0
    x[[0, 1, 40, 41], 0] = 50
    adata = AnnData(csr_matrix(x))
    adata.obs["batch"] = np.repeat(["a", "b"], 40)
    adata.obs[keys.SPLIT] = "train"
    return adata


def test_preparation_flags_the_genes_of_each_batch() -> None:
    adata = two_batches()
    prepare(adata, "batch", n_top_genes=10, method="deepbid")
    expected: set[str] = set()
    for batch in ("a", "b"):
        own = adata[adata.obs["batch"] == batch].copy()
        own.X = own.layers[keys.LOGNORM].copy()
        sc.pp.filter_genes(own, min_cells=3)
        sc.pp.highly_variable_genes(own, n_top_genes=10)
        expected |= set(own.var_names[own.var["highly_variable"]])
    flagged = set(adata.var_names[adata.var[keys.HVG]])
    assert flagged == expected
    assert 10 < len(flagged) < 30
    assert adata.uns[keys.UNS]["prepare"]["method"] == "deepbid"


def test_preparation_takes_1000_genes_of_each_batch_that_are_found_in_3_of_its_cells() -> None:
    adata = two_batches()
    prepare(adata, "batch", method="deepbid")
    assert "0" in adata.var_names  # 4 cells in all
    assert not adata.var.loc["0", keys.HVG]
    found_BG = np.stack([(adata.X[rows] != 0).sum(0).A1 for rows in (slice(0, 40), slice(40, 80))])
    assert_array_equal(adata.var[keys.HVG], (found_BG >= 3).any(0))
    many = two_batches(1400)
    prepare(many, "batch", method="deepbid")
    assert 1000 < many.var[keys.HVG].sum() < many.n_vars
    log1p = two_batches()
    prepare(log1p, "batch", n_top_genes=10, method="deepbid")
    log1p.X, log1p.layers = log1p.layers[keys.LOGNORM].copy(), {}
    chosen = log1p.var[keys.HVG].copy()
    prepare(log1p, "batch", n_top_genes=10, method="deepbid")  # log-normalised values alone
    assert_array_equal(log1p.var[keys.HVG], chosen)


def test_memberships_are_recorded(fitted: Published) -> None:
    last = fitted.history[(fitted.history.stage == CLUSTERING) & (fitted.history.part == "validation")]
    entropy = last[last.term == "membership entropy"]
    assert ((entropy.value > 0) & (entropy.value <= math.log(4) + 1e-6)).all()
    assert (entropy.weight == 0).all()


def test_latents_of_permuted_cells_are_permuted(fitted: Published, prepared: AnnData) -> None:
    z_NP: Tensor = torch.tensor(fitted.get_latent_representation(prepared))
    flipped = torch.tensor(fitted.get_latent_representation(prepared[::-1].copy()))
    torch.testing.assert_close(flipped, z_NP.flip(0))
