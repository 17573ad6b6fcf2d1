"""The training protocol with a toy network: stages, schedules, closed-form updates, no batch, the same bits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from scmedley.data.resident import Minibatch, Resident
from scmedley.errors import ScmedleyError
from scmedley.train import loop
from scmedley.train.loop import Losses, Plan, Progress, Stage, State, Term, Trainable, TrainingCells
from scmedley.train.schedule import Schedule, Stepper
from tiny import differing

N_TRAIN, PLAN = 20, Plan(batch_size=5, max_epochs=4, patience=4, progress=False)  # 4 minibatches an epoch
TWO = (
    Stage({}, 0.05, "pretrain", epochs=3, schedule=Schedule("cosine", warm_up=0.25, per="step"), keep="last"),
    Stage({}, 0.02, "cluster", optimiser="adamw", schedule=Schedule("one cycle", per="step"), clip=0.1),
)


class Cells(Resident):
    """Cells of which no batch is known."""

    def take(self, rows_N: Tensor) -> Minibatch:
        return replace(super().take(rows_N), b_N=None)


class Toy(nn.Module, Trainable):
    """A linear autoencoder, then one that pulls latents to their mean, which is found in closed form."""

    def __init__(self, stages: tuple[Stage, ...] = TWO, stop_in: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Linear(6, 2), nn.Linear(2, 6)
        self.register_buffer("centre_P", torch.zeros(2))
        self._stages, self.stop_in, self.seen = stages, stop_in, []

    def stages(self) -> list[Stage]:
        return [replace(stage, players={"only": list(self.parameters())}) for stage in self._stages]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        z_NP = self.down(cells.x_NG)
        compact = (z_NP - self.centre_P).square().mean()
        share = progress.share if progress.stage == "cluster" else 0.0  # warmed up
        self.seen.append(progress)
        error = (self.up(z_NP) - cells.x_NG).square().mean()
        yield (
            "only",
            {"error": Term(error, 3.0), "compact": Term(compact, share), "one": Term(error * 0 + 1, 0.0)},
        )

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        x_NG = known.cells.take(known.rows).x_NG
        self.centre_P.copy_(self.down(x_NG).detach().mean(0))
        self.stop_in -= 1
        if self.stop_in == 0:
            raise SystemExit

    def finish(self, known: TrainingCells) -> None:
        assert not self.training
        self.after_epoch(known, Progress("end", 1.0))


def cells() -> Cells:
    x_NG = np.random.default_rng(0).normal(size=(N_TRAIN + 6, 6)).astype(np.float32)
    return Cells(csr_matrix(x_NG), np.full(len(x_NG), -1), torch.device("cpu"))


def fit(network: Toy, **options) -> State:
    torch.manual_seed(1)
    plan = replace(PLAN, **options)
    return loop.fit(network, cells(), torch.arange(N_TRAIN), torch.arange(N_TRAIN, N_TRAIN + 6), plan)


def test_stages_follow_one_another_without_a_batch() -> None:
    network = Toy()
    done = fit(network)
    assert (done.epoch, done.stage, done.stage_began, done.stopped) == (7, 1, 3, "last epoch")
    table = done.history()
    assert list(table) == ["stage", "epoch", "part", "term", "value", "weight", "kept"]
    assert table.groupby("stage").epoch.unique().map(list).to_dict() == {
        "pretrain": [1, 2, 3],
        "cluster": [4, 5, 6, 7],
    }
    shares = [p.share for p in network.seen if p.stage == "cluster"]
    assert shares[:6] == [0, 1 / 16, 2 / 16, 3 / 16, 4 / 16, 4 / 16]  # the last of these is the validation
    assert shares[-1] == 1.0
    z_NP = network.down(cells().take(torch.arange(N_TRAIN)).x_NG)
    assert torch.equal(network.centre_P, z_NP.mean(0))  # of the weights that were kept


def test_the_total_is_the_sum_of_weight_times_value() -> None:
    for table in (fit(Toy()).history(), fit(Toy(TWO[:1])).history()):
        validated = table[table.part == "validation"].pivot(index="epoch", columns="term")
        total = validated["value"].pop("total")
        rows, weights = (validated[c].drop(columns="total", errors="ignore") for c in ("value", "weight"))
        assert (rows * weights).sum(axis=1).to_numpy() == pytest.approx(total.to_numpy(), rel=1e-6)
        assert (weights["one"] == 0).all()
        assert set(table[table.term == "total"].weight) == {1}


@pytest.mark.parametrize("stop_in", [1, 2, 3, 4, 6, 7])
def test_a_fit_goes_on_in_the_middle_of_any_stage(
    stop_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    whole, path = Toy(), tmp_path / "c.safetensors"
    done = fit(whole)
    with pytest.raises(SystemExit):
        fit(Toy(stop_in=stop_in), checkpoint=path)
    assert path.exists() == (stop_in > 1)
    resumed = Toy()
    again = fit(resumed, checkpoint=path)
    assert again == done
    assert not differing(whole.state_dict(), resumed.state_dict())
    assert len(resumed.seen) == (7 - max(stop_in - 1, 0)) * 5  # 4 minibatches and a validation


def test_ctrl_c_in_the_first_epoch_of_a_stage_keeps_the_stage_before() -> None:
    class Interrupted(Toy):
        def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
            if progress.stage == "cluster":
                raise KeyboardInterrupt
            super().after_epoch(known, progress)

    network, first = Interrupted(), Toy(TWO[:1])
    done = fit(network)
    assert (done.epoch, done.best_epoch, done.stopped) == (3, 3, "interrupted")
    fit(first)
    assert not differing(network.state_dict(), first.state_dict())


@pytest.mark.parametrize("forgotten", ["stages", "losses"])
def test_a_network_without_stages_or_losses_is_refused(forgotten: str) -> None:
    methods = {name: getattr(Toy, name) for name in {"stages", "losses"} - {forgotten}}
    with pytest.raises(TypeError, match=f"abstract class Half .*{forgotten}"):
        type(Toy)("Half", (nn.Module, Trainable), methods)()


@pytest.mark.parametrize(("fingerprint", "words"), [("other", "of another fit"), ("", "another network")])
def test_a_checkpoint_of_two_stages_does_not_fit_one_stage(
    fingerprint: str, words: str, tmp_path: Path
) -> None:
    fit(Toy(), checkpoint=tmp_path / "c")
    with pytest.raises(ScmedleyError, match=words):
        fit(Toy(TWO[:1]), checkpoint=tmp_path / "c", fingerprint=fingerprint)


def rates(schedule: Schedule, epochs: int = 10, steps: int = 2) -> list[float]:
    """The rate of every step of a stage whose rate is 2."""
    weight = nn.Parameter(torch.ones(()))
    stepper = Stepper(
        [weight], optimiser="sgd", rate=2.0, schedule=schedule, clip=None, epochs=epochs, steps=steps
    )
    found = []
    for _ in range(epochs):
        for _ in range(steps):
            found.append(stepper.optimiser.param_groups[0]["lr"])
            stepper.step(weight * 1.0)
        stepper.after_epoch()
    return found


def test_schedules() -> None:
    assert rates(Schedule()) == [2.0] * 20
    cosine = [1 + np.cos(np.pi * epoch / 10) for epoch in range(10)]
    assert rates(Schedule("cosine"))[::2] == rates(Schedule("cosine"))[1::2] == pytest.approx(cosine)
    warm = rates(Schedule("constant", warm_up=0.2, per="step"))
    assert warm == pytest.approx([0.4, 0.8, 1.2, 1.6] + [2.0] * 16)
    cycle = rates(Schedule("one cycle", warm_up=0.3, per="step"))
    assert cycle[5] == max(cycle) == 2.0
    assert cycle == [*sorted(cycle[:6]), *sorted(cycle[6:], reverse=True)]
    assert cycle[-1] < 1e-4


def test_the_gradient_is_clipped_to_its_norm() -> None:
    weight = nn.Parameter(torch.zeros(2))
    stepper = Stepper([weight], optimiser="sgd", rate=1.0, schedule=Schedule(), clip=0.5, epochs=1, steps=1)
    stepper.step((weight * torch.tensor([3.0, 4.0])).sum())
    assert weight.tolist() == pytest.approx([-0.3, -0.4], rel=1e-4)


def test_the_adversarial_term_is_not_watched() -> None:
    """Epoch 2 is better by what is watched, although the total rises."""

    class Game(Toy):
        def losses(self, cells: Minibatch, progress: Progress) -> Losses:
            epoch, nothing = round(progress.share * 3), self.up.bias.sum() * 0
            yield (
                "only",
                {
                    "error": Term(nothing + 5.0 - epoch, 1.0),
                    "adversarial": Term(nothing + 3.0 * epoch, 1.0, watched=False),
                },
            )

    done = fit(Game((Stage({}, 1e-3, epochs=3),)))
    totals = [r["value"] for r in done.rows if r["part"] == "validation" and r["term"] == "total"]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]
    assert done.best_epoch == 3


def test_a_stage_ends_when_patience_does_and_leaves_its_best_weights_to_the_next() -> None:
    class Worse(Toy):
        def losses(self, cells: Minibatch, progress: Progress) -> Losses:
            yield "only", {"error": Term(self.up.bias.sum() * 0 + progress.share, 1.0)}

    stages = (Stage({}, 1e-3, "a", patience=2), Stage({}, 1e-3, "b", epochs=2, keep="last"))
    done = fit(Worse(stages))
    assert [r["epoch"] for r in done.rows if r["stage"] == "a"][-1] == 3  # the best is the first
    assert (done.epoch, done.best_epoch, done.stopped) == (5, 5, "last epoch")
