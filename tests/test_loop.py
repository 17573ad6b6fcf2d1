"""The loop: who is stepped, when it stops, what it keeps, and that it goes on with the same bits."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from scmedley import keys
from scmedley.data.resident import Minibatch, Resident
from scmedley.device import engine, resolve_device, resolve_precision
from scmedley.errors import ScmedleyError
from scmedley.io.progress import progress_bar
from scmedley.models import FixedEffects, MixedEffects, reference
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.models.fixed_effects import FixedEffectsNetwork
from scmedley.train import loop
from scmedley.train.loop import Losses, Plan, Progress, Stage, Term, Trainable, TrainingCells
from tiny import FIT, differing, prepared_design, small, unfitted, weights

TESTS = Path(__file__).parent


class Scripted(nn.Module, Trainable):
    """A network whose validation totals are given; its one weight counts the epochs."""

    def __init__(self, totals: list[float], interrupt_in: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.totals, self.interrupt_in = totals, interrupt_in

    def stages(self) -> list[Stage]:
        return [Stage({"only": [self.weight]}, 1e-3)]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        total = 0.0 if self.training else self.totals[int(self.epoch) - 1]
        yield "only", {"term": Term(self.weight * 0 + total, 1.0), "other": Term(torch.tensor(1.0), 0.0)}

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        self.epoch += 1
        if int(self.epoch) == self.interrupt_in:
            raise KeyboardInterrupt


@contextmanager
def register_step(look) -> Iterator[None]:
    """Call ``look`` after every step of any optimiser."""
    hook = register_optimizer_step_post_hook(look)
    try:
        yield
    finally:
        hook.remove()


def run(network: nn.Module, max_epochs: int = 10, patience: int = 3, **options) -> loop.State:
    cells = Resident(np.ones((8, 2), np.float32), np.zeros(8), torch.device("cpu"))
    plan = Plan(4, max_epochs, patience, progress=False, label="Scripted", **options)
    return loop.fit(network, cells, torch.arange(6), torch.arange(6, 8), plan)


def test_the_best_epoch_is_restored() -> None:
    network = Scripted([5, 3, 1, 4, 2])
    done = run(network, max_epochs=5, patience=9)
    assert (done.epoch, done.best_epoch, done.stopped) == (5, 3, "last epoch")
    assert done.best_values == {"term": 1.0, "other": 1.0, "total": 1.0}
    assert int(network.epoch) == 3
    assert not network.training


def test_stops_after_patience_epochs_without_a_better_total() -> None:
    network = Scripted([5, 4, 4, 6, 4, 0])
    done = run(network, patience=3)
    assert (done.epoch, done.best_epoch, done.stopped) == (5, 2, "early stopping")
    assert int(network.epoch) == 2


def test_patience_is_not_counted_while_the_network_settles() -> None:
    done = run(Scripted([2, 9, 9, 9, 9, 9, 1, 9]), max_epochs=8, patience=3, settling_steps=8)  # 2 an epoch
    assert (done.epoch, done.best_epoch, done.stopped) == (8, 7, "last epoch")
    done = run(Scripted([2] + [9] * 9), max_epochs=9, patience=3, settling_steps=8)
    assert (done.epoch, done.best_epoch, done.stopped) == (7, 1, "early stopping")


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    where = {"checkpoint": tmp_path / "a.safetensors"}
    run(Scripted([5, 3]), max_epochs=2, fingerprint="one", **where)
    with pytest.raises(ScmedleyError, match="of another fit"):
        run(Scripted([5, 3]), max_epochs=2, fingerprint="two", **where)


@pytest.mark.parametrize("what", ["batches", "values"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_checkpoint_of_other_cells_is_refused(what: str, sparse: bool, tmp_path: Path) -> None:
    adata = prepared_design(sparse)
    where = {**FIT, "checkpoint": tmp_path / "a.safetensors"}
    unfitted("random", max_epochs=1).fit(adata, **where)
    unfitted("random", max_epochs=1).fit(adata.copy(), **where)
    if what == "batches":  # the same number of cells of each, in every part
        for part in ("train", "validation", "test"):
            mine = adata.obs_names[adata.obs[keys.SPLIT] == part]
            adata.obs.loc[mine, "donor"] = adata.obs.loc[mine, "donor"].to_numpy()[::-1]
    else:  # within the range of its gene, so that the scaling is the same
        x = adata.layers[keys.LOGNORM]
        values = (x.data if sparse else x).flat  # whatever the order in memory
        values[np.argsort(values)[len(values) // 2]] += 1e-3
    with pytest.raises(ScmedleyError, match="of another fit"):
        unfitted("random", max_epochs=1).fit(adata, **where)


def test_history_is_tidy_and_has_the_totals() -> None:
    table = run(Scripted([5, 3]), max_epochs=2).history()
    assert list(table) == ["epoch", "part", "term", "value", "weight", "kept"]
    assert table[table.kept].epoch.unique().tolist() == [2]
    assert table.groupby("term").weight.unique().explode().to_dict() == {"term": 1, "other": 0, "total": 1}
    wide = table.pivot_table(index="epoch", columns=["part", "term"], values="value")
    assert wide["validation"]["total"].tolist() == wide["validation"]["term"].tolist() == [5, 3]
    assert set(table.term) == {"term", "other", "total"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_stops_and_is_named(value: float) -> None:
    with pytest.raises(
        ScmedleyError, match=r"Scripted: the validation term 'term' is -?(nan|inf) in epoch 2\."
    ):
        run(Scripted([5, value, 1]))


def test_ctrl_c_keeps_the_best_epoch() -> None:
    network = Scripted([2, 3, 1], interrupt_in=3)
    done = run(network)
    assert (done.epoch, done.best_epoch, done.stopped) == (2, 1, "interrupted")
    assert int(network.epoch) == 1
    assert done.history().epoch.max() == 2


def test_ctrl_c_before_the_first_epochs_end_is_not_caught() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Scripted([1], interrupt_in=1))


def test_after_ctrl_c_the_checkpoint_goes_on_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    totals = [4.0, 3.0, 2.0, 1.0]
    assert run(Scripted(totals, interrupt_in=3), 4, checkpoint=tmp_path / "c").stopped == "interrupted"
    again = Scripted(totals)
    done = run(again, 4, checkpoint=tmp_path / "c")
    assert (done.epoch, done.best_epoch, done.stopped) == (4, 4, "last epoch")
    assert int(again.epoch) == 4
    assert done.history().epoch.max() == 4


def test_means_are_over_cells_not_over_minibatches() -> None:
    class Sized(Scripted):
        def losses(self, cells: Minibatch, progress: Progress) -> Losses:
            yield "only", {"size": Term(self.weight * 0 + len(cells.b_N), 1.0)}

    table = run(Sized([]), max_epochs=1).history().query("term == 'total'").set_index("part")
    assert table.loc["validation", "value"] == 2
    cells = Resident(np.ones((9, 2), np.float32), np.zeros(9), torch.device("cpu"))
    done = loop.fit(Sized([]), cells, torch.arange(7), torch.arange(7, 9), Plan(4, 1, 1, progress=False))
    table = done.history().query("term == 'total'").set_index("part")
    assert table.loc["train", "value"] == pytest.approx((4 * 4 + 3 * 3) / 7)


def test_ctrl_c_in_a_model_leaves_it_fitted_to_an_epoch(
    prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(network: FixedEffectsNetwork, *where: object) -> None:
        after_epoch(network, *where)
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    epochs: list[int] = []
    after_epoch = FixedEffectsNetwork.after_epoch
    monkeypatch.setattr(FixedEffectsNetwork, "after_epoch", interrupting)
    model = unfitted("fixed", max_epochs=5, decay=False).fit(prepared, **FIT)
    assert model.fitted["stopped"] == "interrupted"
    assert model.fitted["epochs"] == 2
    monkeypatch.setattr(FixedEffectsNetwork, "after_epoch", after_epoch)
    assert model.fitted["best_epoch"] == 2
    assert np.isfinite(model.get_latent_representation(prepared)).all()


def test_a_failed_fit_is_no_fit(prepared: AnnData) -> None:
    model = unfitted("random", mse_weight=1e300)
    with pytest.raises(
        ScmedleyError, match=r"RandomEffects by donor: the train term '\w+' is (inf|nan) in epoch 1"
    ):
        model.fit(prepared, **FIT)
    with pytest.raises(ScmedleyError, match="not fitted"):
        model.embed(prepared)


# --- two players ---------------------------------------------------------------------------------


def test_each_step_changes_its_own_player_alone(prepared: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real loop: after every optimiser step, which weights are others than before?"""
    model = unfitted("fixed", "paper", max_epochs=1, batch_size=64)
    changes: list[set[str]] = []
    last: dict[str, torch.Tensor] = {}

    def look(*_: object) -> None:
        now = {name: p.detach().clone() for name, p in model.network.named_parameters()}
        changes.append(differing(now, last))
        last.update(now)

    begin = AdversarialNetwork.begin

    def beginning(network: AdversarialNetwork, *where: object) -> None:
        begin(network, *where)
        last.update({name: p.detach().clone() for name, p in network.named_parameters()})

    monkeypatch.setattr(AdversarialNetwork, "begin", beginning)
    with register_step(look):
        model.fit(prepared, **FIT)
    names = dict(model.network.named_parameters())
    adversary = {name for name in names if name.startswith("adversary.")}
    assert len(changes) == 2 * 2  # 126 training cells are two minibatches of at most 64
    for i, changed in enumerate(changes):
        if i % 2 == 0:
            assert changed
            assert changed <= adversary
        else:
            assert changed.isdisjoint(adversary)
            assert {"encoder.linears.0.weight", "decoder.biases.0"} <= changed


def test_both_players_share_one_pass_of_the_encoder(
    prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    begin = AdversarialNetwork.begin

    def counting(network: AdversarialNetwork, *where: object) -> None:
        begin(network, *where)
        network.encoder.register_forward_hook(lambda *_: passes.append(1))

    monkeypatch.setattr(AdversarialNetwork, "begin", counting)
    monkeypatch.setattr(reference, "learn", lambda *_: None)  # which encodes cells after training
    unfitted("fixed", "paper", max_epochs=2, batch_size=64).fit(prepared, **FIT)
    assert len(passes) == 2 * (2 + 1)  # epochs x (minibatches + validation)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_parameter_has_one_player_and_tied_kernels_stand_once(
    model_name: str, preset: str, fitted
) -> None:
    network = fitted(model_name, preset).network
    (stage,) = network.stages()
    played = [id(p) for parameters in stage.players.values() for p in parameters]
    assert len(played) == len(set(played))
    assert set(played) == {id(p) for p in network.parameters()}


# --- the same bits ---------------------------------------------------------------------------------


def test_same_seed_same_bits_other_seed_other_bits(model_name: str, prepared: AnnData, fitted) -> None:
    first = fitted(model_name)
    again = unfitted(model_name).fit(prepared, **FIT)
    other = unfitted(model_name).fit(prepared, **{**FIT, "seed": 1})
    assert not differing(weights(first.network), weights(again.network))
    assert first.history.equals(again.history)
    kernels = {
        name for name in weights(first.network) if name.startswith("encoder") and name.endswith("weight")
    }
    assert kernels & differing(weights(first.network), weights(other.network))


def test_the_callers_random_state_and_threads_are_untouched(prepared: AnnData, fitted) -> None:
    mixed, threads = fitted("mixed"), torch.get_num_threads()
    torch.set_num_threads(3)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tf32 = torch.backends.cuda.matmul.allow_tf32
    used: list[int] = []
    try:
        with register_step(lambda *_: used.append(torch.get_num_threads())):
            unfitted("fixed").fit(prepared, **FIT)
        mixed.counterfactual(prepared[:5], to="d1", draws=3)
        with pytest.raises(ScmedleyError):
            unfitted("random", mse_weight=1e300).fit(prepared, **FIT)
        assert set(used) == {FIT["threads"]}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    assert torch.backends.cuda.matmul.allow_tf32 == tf32


def test_training_draws_do_not_depend_on_the_callers_random_state(prepared: AnnData, fitted) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        torch.rand(7)
        again = unfitted("random").fit(prepared, **FIT)
    assert not differing(weights(fitted("random").network), weights(again.network))


# --- checkpoints ---------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from scmedley.models.fixed_effects import FixedEffectsNetwork
    from scmedley.models.random_effects import RandomEffectsNetwork
    from scmedley.train import loop
    from tiny import FIT, prepared_design, unfitted

    loop.CHECKPOINT_SECONDS = 0
    name, path = sys.argv[1:]
    cls = {"fixed": FixedEffectsNetwork, "random": RandomEffectsNetwork}[name]
    after_epoch, epochs = cls.after_epoch, []

    def killed(network, *where):
        after_epoch(network, *where)
        epochs.append(1)
        if len(epochs) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    cls.after_epoch = killed
    unfitted(name, max_epochs=6).fit(prepared_design(), **FIT, checkpoint=path)
"""


@pytest.mark.parametrize("name", ["fixed", "random"])
def test_after_kill_9_training_goes_on_to_the_same_bits(name: str, prepared: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), name, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])},
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    steps: list[int] = []
    with register_step(lambda *_: steps.append(1)):
        resumed = unfitted(name, max_epochs=6).fit(prepared, **FIT, checkpoint=path)
    assert len(steps) == 3 * 4  # epochs 4 to 6: three were saved
    whole = unfitted(name, max_epochs=6).fit(prepared, **FIT)
    assert not differing(weights(resumed.network), weights(whole.network))
    assert resumed.history.equals(whole.history)
    assert resumed.fitted == whole.fitted
    assert resumed.history.epoch.max() == 6


def test_a_finished_fit_is_taken_from_its_checkpoint(prepared: AnnData, tmp_path: Path, fitted) -> None:
    options = {**FIT, "checkpoint": tmp_path / "new" / "c.safetensors"}
    first = unfitted("fixed").fit(prepared, **options)
    assert not differing(weights(first.network), weights(fitted("fixed").network))
    steps: list[int] = []
    with register_step(lambda *_: steps.append(1)):
        again = unfitted("fixed").fit(prepared, **options)
    assert not steps
    assert not differing(weights(first.network), weights(again.network))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_said(keep: float, prepared: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    unfitted("autoencoder", max_epochs=1).fit(prepared, **FIT, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ScmedleyError, match=r"c\.safetensors cannot be read.*Delete it to start anew"):
        unfitted("autoencoder").fit(prepared, **FIT, checkpoint=path)


@pytest.mark.parametrize("name", ["random", "autoencoder"])
def test_a_checkpoint_of_another_network_is_said(name: str, prepared: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    unfitted("autoencoder", hidden=(12, 8), max_epochs=1).fit(prepared, **FIT, checkpoint=path)
    with pytest.raises(ScmedleyError, match=r"c\.safetensors is of another fit.*Delete it to start anew"):
        unfitted(name).fit(prepared, **FIT, checkpoint=path)


def test_a_file_that_is_no_checkpoint_is_said(prepared: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for metadata in (None, {"state": "{}"}, {"state": "["}):
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(ScmedleyError, match="Delete it to start anew"):
            unfitted("autoencoder").fit(prepared, **FIT, checkpoint=path)


def test_checkpoints_of_both_networks_stand_in_a_folder(prepared: AnnData, tmp_path: Path) -> None:
    mixed = MixedEffects("donor", fixed_settings=small("fixed"), random_settings=small("random"))
    mixed.fit(prepared, **FIT, checkpoint=tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["fixed.safetensors", "random.safetensors"]


# --- device, precision, input ----------------------------------------------------------------------


def test_devices_and_precisions_are_checked() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("auto", cpu) in ("float32", "bfloat16")
    with pytest.raises(ScmedleyError, match="device='abacus'"):
        resolve_device("abacus")
    with pytest.raises(ScmedleyError, match="precision='float16'"):
        resolve_precision("float16", cpu)
    with pytest.raises(ScmedleyError, match="threads=0"), engine(0, cpu):
        pass


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(
    model_name: str, prepared: AnnData, fitted
) -> None:
    exact = fitted(model_name)
    rough = unfitted(model_name).fit(prepared, **{**FIT, "precision": "bfloat16"})
    assert rough.fitted["precision"] == "bfloat16"
    assert differing(weights(exact.network), weights(rough.network))
    assert {p.dtype for p in rough.network.parameters()} == {torch.float32}
    at = pd.DataFrame({"exact": exact.history.value, "rough": rough.history.value})[
        exact.history.term.isin(["total", "reconstruction"])
    ]
    assert at["rough"].tolist() == pytest.approx(at["exact"].tolist(), rel=0.05)
    z, z_rough = (m.get_latent_representation(prepared) for m in (exact, rough))
    assert np.corrcoef(z.ravel(), z_rough.ravel())[0, 1] > 0.95


def test_sparse_and_dense_input_give_the_same_bits(model_name: str, prepared: AnnData, fitted) -> None:
    dense = prepared.copy()
    dense.layers[keys.LOGNORM] = dense.layers[keys.LOGNORM].toarray()
    model = unfitted(model_name).fit(dense, **FIT)
    assert not differing(weights(model.network), weights(fitted(model_name).network))
    assert np.array_equal(
        model.get_latent_representation(dense), fitted(model_name).get_latent_representation(prepared)
    )


def test_the_loop_asks_for_a_split_that_can_be_trained_on(prepared: AnnData) -> None:
    prepared.obs[keys.SPLIT] = "test"
    with pytest.raises(ScmedleyError, match="0 'train' cells of 180"):
        unfitted("autoencoder").fit(prepared, **FIT)


def test_a_split_is_made_and_kept(prepared: AnnData) -> None:
    del prepared.obs[keys.SPLIT]
    unfitted("autoencoder", max_epochs=1).fit(prepared, **FIT)
    made = prepared.obs[keys.SPLIT].copy()
    assert set(made) == {"train", "validation", "test"}
    FixedEffects("donor", None, small("fixed", max_epochs=1)).fit(prepared, **{**FIT, "seed": 7})
    assert prepared.obs[keys.SPLIT].equals(made)


def test_a_log_file_gets_the_beginning_and_the_end_of_a_bar_only(capsys):
    bar = progress_bar(3, "Fit", "epoch")
    bar.start_t = bar.last_print_t = 0.0  # long ago: a live bar would be drawn at each step
    for _ in range(3):
        bar.update()
    bar.close()
    assert len(capsys.readouterr().err.split("Fit:")) == 3  # text before the first, 0 % and 100 %
