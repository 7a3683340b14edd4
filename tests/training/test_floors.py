"""The least loss of a run: closed forms, brute force, and what training and evaluation say of it."""

import json
import math

import pytest
import torch
from torch.utils.data import TensorDataset

import fmkit
from fmkit.couplings import Independent, OptimalTransport
from fmkit.data import (
    Checkerboard,
    Data,
    EightGaussians,
    GaussianMixture,
    Moons,
    Pinwheel,
    Rings,
    SCurve,
    Stratum,
    Tabular,
)
from fmkit.errors import ArgumentError, CombinationError
from fmkit.evaluation import above_floor
from fmkit.objectives import DataPrediction, LogitNormal, Regression, ScoreMatching, VelocityMatching
from fmkit.oracle import Boxes, Mixture, MixtureOracle
from fmkit.paths import CondOT, VariancePreserving
from fmkit.sources import Gaussian, Uniform
from fmkit.training import Callback, Progress
from fmkit.training.floors import floor_of
from fmkit.transforms import Affine, Transform

ONE = math.pi / 2  # of one standard Gaussian on the straight path: the integral of 1 / (t² + (1 - t)²)


def least(data, path=None, objective=None, source=None, coupling=None, **more):
    objective = VelocityMatching() if objective is None else objective
    return floor_of(data, path or CondOT(), objective, source or Gaussian(), coupling or Independent(), **more)


def close(floor, value, sigmas=4):
    assert abs(floor.value - value) < sigmas * floor.standard_error + 1e-12
    assert floor.standard_error < 0.02 * value  # or the line above would say nothing


# -- where the law is known -------------------------------------------------------------------------------------------

KNOWN = [
    GaussianMixture(),
    GaussianMixture([[0.0, 1.0], [2.0, 2.0]], [0.2, 0.8], covariances=[[[1.0, 0.4], [0.4, 0.5]], [[0.2, 0], [0, 1]]]),
    Rings((0.5, 1.5), 0.2),
    Moons(0.1),
    SCurve(0.1),
    Checkerboard(),
]


@pytest.mark.parametrize("objective", [VelocityMatching, DataPrediction, ScoreMatching], ids=lambda c: c.__name__)
@pytest.mark.parametrize("toy", KNOWN, ids=lambda t: type(t).__name__)
def test_the_floor_of_a_law_is_that_of_very_many_samples(toy, objective, seeded):
    """At times when no sample stands alone: an independent estimate, since it knows the samples alone."""
    early = objective(LogitNormal(-1.5, 0.5))
    floor = least(toy.load(0).train, CondOT(), early)
    assert (floor.points, str(floor)) == (None, "of the data's law")
    x = toy.sample(10_000, seeded(1)).double()
    many = MixtureOracle.empirical(CondOT(), x).loss_floor(early, 500, seeded(2))
    error = math.hypot(many.standard_error, floor.standard_error)
    assert floor.value == pytest.approx(many.value, abs=4 * error, rel=0.03)
    assert error < 0.05 * floor.value


@pytest.mark.parametrize("toy", [Moons(), SCurve(), Pinwheel(arms=3)], ids=repr)
def test_points_learnt_by_heart_leave_less(toy, seeded):
    """The least mean squared error is concave in the law."""
    x = toy.sample(1000, seeded(0))
    floors = [least(Data(x[:n]), VariancePreserving()).value for n in (10, 100, 1000)]
    assert floors == sorted(floors)
    if toy.law():
        assert floors[-1] < least(Data(x, density=toy.load().train.density), VariancePreserving()).value


def test_each_condition_has_a_floor_of_its_own():
    labelled = EightGaussians(std=1.0, labels=True).load(0).train
    close(least(labelled), ONE)
    assert sum(s.share for s in labelled.density) == pytest.approx(1)
    unequal = GaussianMixture([[0.0], [50.0]], [0.9, 0.1], std=[1.0, 3.0], labels=True).load(0).train
    close(least(unequal), 0.9 * ONE + 0.1 * 3 * ONE)


def test_dropped_conditions_are_learnt_without():
    labelled, plain = (EightGaussians(labels=labels).load(0).train for labels in (True, False))
    close(least(labelled, dropped=0.3), 0.7 * ONE + 0.3 * least(plain).value)
    assert least(plain, dropped=0.3).value == least(plain).value  # there is nothing to drop
    full = GaussianMixture([[0.0, 0.0], [9.0, 0.0]], covariances=[[[1.0, 0.5], [0.5, 1.0]]] * 2)
    pooled = Mixture.pooled([0.5, 0.5], [full.law(0), full.law(1)])
    torch.testing.assert_close(pooled.covariances, full.law().covariances)
    torch.testing.assert_close(pooled.means, full.law().means)


def test_the_floor_is_in_the_models_units():
    """Standardised, one Gaussian of any size is the standard one, in two coordinates of different scale as well."""
    wide = GaussianMixture([[30.0, -4.0]], covariances=[[[9.0, 0.0], [0.0, 0.25]]]).load(0).train
    wide.transform = Affine(torch.tensor([30.0, -4.0]), torch.tensor([3.0, 0.5]))
    close(least(wide), ONE)
    round_ = GaussianMixture([[30.0, -4.0]], std=3.0).load(0).train
    round_.transform = Affine(0.0, 3.0)
    close(least(round_), ONE)
    board = Checkerboard(side=2.0).load(0).train
    board.transform = Affine(0.0, 4.0)
    assert least(board).value == pytest.approx(least(Checkerboard(side=0.5).load(0).train).value, rel=1e-12)


@pytest.mark.parametrize("toy", [Moons(0.0), SCurve(dim=3), Pinwheel(), Rings((1.0,), 1e-4)], ids=repr)
def test_without_a_known_law_it_is_the_samples(toy):
    floor = least(toy.load(0).train)
    assert (floor.points, floor.of) == (1000, 10_000)
    assert str(floor) == "of 1000 of 10000 training samples, learnt by heart"


# -- where the samples are all there is -------------------------------------------------------------------------------


def test_points_are_those_of_the_empirical_field(seeded):
    x = torch.randn(40, 3, generator=seeded(0))
    floor = least(Data(x), VariancePreserving())
    assert (floor.points, floor.of, str(floor)) == (40, 40, "of 40 training samples, learnt by heart")
    close(floor, MixtureOracle.empirical(VariancePreserving(), x).loss_floor(VelocityMatching(), 200_000).value, 6)
    shift, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 4.0])
    moved = least(Data(x * scale + shift, transform=Affine(shift, scale)), VariancePreserving())
    assert moved.value == pytest.approx(floor.value, rel=1e-6)


def test_points_of_one_label_each_cost_nothing(seeded):
    """Two labels, one point each: with the label known, x1 is; what is left is x0 given x_t, which is known too."""
    x = torch.tensor([[-1.0], [1.0]])
    assert least(Data(x, torch.tensor([0, 1]))).value < 1e-12
    both = least(Data(x))
    close(both, MixtureOracle.empirical(CondOT(), x).loss_floor(VelocityMatching(), 200_000).value, 6)


def test_points_are_augmented_and_then_transformed():
    x, doubled = X[:, :1], Affine(0.0, 0.5)
    got = least(Data(x, augment=lambda x, generator: x + 1, transform=doubled, density=[STANDARD]))
    assert got.points == 20  # a law is not that of augmented data
    assert got.value == pytest.approx(least(Data(2 * (x + 1))).value, rel=1e-6)


def test_an_augmentation_may_change_shapes_and_is_given_the_datas_precision():
    """As cropping does; and a convolution in it has weights of one precision."""
    seen = []

    def crop(x, generator):
        seen.append(x.dtype)
        return x[:, :1]

    got = least(Data(X, augment=crop, density=[STANDARD]))
    assert got.value == pytest.approx(least(Data(X[:, :1])).value, rel=1e-6)
    assert seen == [torch.float32]


def test_a_dataset_may_come_with_its_density():
    close(least(Data(TensorDataset(X), density=[STANDARD])), ONE)


def test_equal_seeds_give_equal_floors():
    data = Data(X)
    assert least(data, seed=3).value == least(data, seed=3).value
    assert least(data, seed=3).value != least(data, seed=4).value


def test_the_points_taken_are_drawn_from_all_of_them():
    """Two thousand samples in their order, of which the first thousand are one point: that would cost nothing."""
    x = torch.cat([torch.zeros(1000, 1), torch.ones(1000, 1)])
    floor = least(Data(x))
    assert (floor.points, floor.of) == (1000, 2000)
    close(floor, least(Data(torch.tensor([[0.0], [1.0]]))).value, 6)
    assert least(Data(x[:1000])).points == 1000


def test_samples_may_be_an_array_and_labels_a_list():
    x, labels = X.numpy(), [0] * 10 + [1] * 10
    assert least(Data(x)).value == least(Data(X)).value
    of_labels = least(Data(x, labels))
    assert of_labels.value == least(Data(X, torch.tensor(labels))).value
    assert of_labels.value < 0.9 * least(Data(X)).value
    assert least(Data(x, torch.tensor(labels) == 1)).value == of_labels.value
    with pytest.raises(CombinationError, match="conditions are no labels"):
        least(Data(X, torch.zeros(20, dtype=torch.complex64)))


def test_up_to_a_hundred_labels_are_labels():
    x, labels = torch.arange(202.0)[:, None], torch.arange(202)
    assert least(Data(x[:200], labels[:200] % 100)).points == 200
    with pytest.raises(CombinationError, match="over 100 different labels"):
        least(Data(x, labels % 101))


def test_the_error_of_several_labels_is_that_of_the_value():
    """Unequal shares: the spread over forty seeds is what each says of itself."""
    data = Data(X, torch.tensor([0] * 16 + [1] * 4))
    floors = [least(data, seed=seed) for seed in range(40)]
    spread = torch.tensor([f.value for f in floors], dtype=torch.float64).std().item()
    said = math.sqrt(sum(f.standard_error**2 for f in floors) / len(floors))
    assert spread == pytest.approx(said, rel=0.4)


def test_the_shares_of_labels_are_those_of_the_points():
    """Three of four samples are on one point, known by its label; the fourth's label has two points."""
    x = torch.tensor([[0.0]] * 6 + [[-1.0], [1.0]])
    pair = least(Data(x[6:])).value
    close(least(Data(x, torch.tensor([7] * 6 + [3] * 2))), pair / 4, 6)


def test_a_network_is_asked_about_each_label_with_it():
    """With one point a label, (label - x)/(1 - t) is the velocity; and where the label is dropped, it is none."""

    class Knows(torch.nn.Module):
        def __init__(self, off=0):
            super().__init__()
            self.off, self.asked = off, set()

        def forward(self, t, x, cond):
            self.asked |= {None} if cond is None else set(cond.tolist())
            cond = torch.full_like(t, 3.0) if cond is None else cond + self.off
            return (cond[:, None] - x) / (1 - t[:, None]).to(x.dtype)

    data, objective = Data(torch.tensor([[2.0], [4.0]]), torch.tensor([2, 4])), VelocityMatching(LogitNormal(-1.0, 0.5))
    floor = least(data, objective=objective)
    network = Knows()
    assert floor.excess(network).value < 1e-9
    assert network.asked == {2, 4}
    assert floor.excess(Knows(off=1)).value > 1
    dropped, network = least(data, objective=objective, dropped=0.25), Knows()
    close(dropped, 0.25 * least(Data(data.x), objective=objective).value, 6)
    assert 0 < dropped.excess(network).value < 0.25 * floor.excess(Knows(off=1)).value
    assert network.asked == {2, 4, None}


def test_digits_that_single_precision_has_not_are_kept_for_the_transform():
    x = torch.tensor([[1e9 + 1.0], [1e9 - 1.0]], dtype=torch.float64)
    moved = least(Data(x, transform=Affine(1e9, 1.0)))
    assert moved.value == pytest.approx(least(Data(torch.tensor([[1.0], [-1.0]]))).value, rel=1e-12)


# -- refusals ---------------------------------------------------------------------------------------------------------


class Own(Regression):
    view = "velocity"

    def target(self, path, point):
        return 2 * point.velocity


class Cube(Transform):
    def forward(self, x):
        return x**3

    def inverse(self, y):
        return y.sign() * y.abs() ** (1 / 3)

    def log_det(self, x):
        return (3 * x**2).log().flatten(1).sum(1)


X, LABELS = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(20, dtype=torch.int64)
STANDARD, UNIT_SQUARE = Stratum(1.0, Mixture([[0.0, 0.0]])), Stratum(1.0, Boxes([[0.0, 0.0]], [[1.0, 1.0]]), 0)


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("OptimalTransport is not independent", {"coupling": OptimalTransport()}),
        ("Uniform is not Gaussian", {"source": Uniform()}),
        ("Own is no regression of a view", {"objective": Own()}),
        ("comes in pairs", {"data": Data(X, x0=X)}),
        ("a TensorDataset: only the least loss of a tensor", {"data": Data(TensorDataset(X))}),
        ("conditions are no labels", {"data": Data(X, torch.randn(20))}),
        ("conditions are no labels", {"data": Data(X, torch.zeros(20, 2, dtype=torch.int64))}),
        ("over 100 different labels", {"data": Data(torch.randn(500, 2), torch.arange(500))}),
        ("law through Cube is not known", {"data": Data(X, transform=Cube(), density=[STANDARD])}),
        ("the law of all the data is not known", {"data": Data(X, LABELS, density=[UNIT_SQUARE]), "dropped": 0.1}),
    ],
)
def test_an_unknown_floor_is_refused_with_the_reason(said, change):
    with pytest.raises(CombinationError, match=said):
        least(**{"data": Data(X), **change})


def test_a_density_of_other_events_is_refused():
    with pytest.raises(ArgumentError, match=r"have events of shapes \[\(1,\), \(2,\)\]"):
        least(Data(X, density=[Stratum(1.0, Mixture([[0.0]]))]))
    with pytest.raises(ArgumentError, match="^share is 2.0"):
        Stratum(2.0, Mixture([[0.0, 0.0]]))
    with pytest.raises(ArgumentError, match="^network is 3"):
        least(Data(X)).excess(3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "velocity"),
        ("solver", "dopri5"),
        ("settings", {"steps": 3}),
        ("callbacks", [3]),
        ("coupling", "ot"),
    ],
)
def test_a_trainer_of_what_are_no_parts_is_refused(name, value):
    with pytest.raises(ArgumentError, match=f"^{name} is "):
        fmkit.Trainer(CondOT(), fmkit.fields.MLP(2, width=8), **{name: value})
    with pytest.raises(ArgumentError, match="^initial is 3"):
        trainer().fit(X, initial=3)


# -- training ---------------------------------------------------------------------------------------------------------


def trainer(field=None, callbacks=(), **settings):
    settings = {"steps": 6, "batch_size": 8, "log_every": 3, "checkpoint_every": 3, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = field or fmkit.fields.MLP(2, width=8, depth=1)
    return fmkit.Trainer(CondOT(), field, settings=fmkit.Settings(**settings), callbacks=callbacks)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_shows_the_excess_beside_the_loss(tmp_path):
    data = Moons().load(0).train
    trainer().fit(data, folder=tmp_path)
    first, *rest = lines_of(tmp_path)
    floor = trainer().loss_floor(data)
    assert first == {"step": 0, "loss_floor": floor.value, "loss_floor_standard_error": floor.standard_error}
    assert [r["step"] for r in rest] == [3, 6]
    assert all(r["loss_excess"] == r["loss"] - floor.value for r in rest)


def test_the_floor_leaves_the_run_as_it_is(tmp_path):
    data, before = Pinwheel().load(0).train, torch.get_rng_state()
    flows = [trainer(loss_floor=shown).fit(data, folder=tmp_path / str(shown)) for shown in (True, False)]
    for a, b in zip(*(flow.parameters() for flow in flows), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
    with_, without = lines_of(tmp_path / "True"), lines_of(tmp_path / "False")
    assert [{k: v for k, v in r.items() if k != "loss_excess"} for r in with_[1:]] == without


def test_a_resumed_run_goes_on_with_the_same_floor(tmp_path):
    data = Moons().load(0).train
    trainer(steps=6).fit(data, folder=tmp_path / "whole")
    trainer(steps=3).fit(data, folder=tmp_path / "cut")
    trainer(steps=6).fit(data, folder=tmp_path / "cut", resume=True)
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "cut")


def test_where_it_is_unknown_training_goes_on_without(tmp_path):
    fmkit.Trainer(
        CondOT(),
        fmkit.fields.MLP(2, width=8, depth=1),
        coupling=OptimalTransport(),
        settings=fmkit.Settings(steps=3, batch_size=8, log_every=3),
        callbacks=(),
    ).fit(X, folder=tmp_path)
    assert [{name for name in r if "floor" in name or "excess" in name} for r in lines_of(tmp_path)] == [set()]


def test_dropped_conditions_count_in_training(tmp_path):
    data = EightGaussians(labels=True).load(0).train
    trainer(fmkit.fields.MLP(2, width=8, depth=1, classes=8, cond_dropout=0.5)).fit(data, folder=tmp_path)
    assert lines_of(tmp_path)[0]["loss_floor"] == pytest.approx(least(data, dropped=0.5).value)
    assert lines_of(tmp_path)[0]["loss_floor"] > 1.2 * ONE


def test_the_progress_line_says_it():
    seen = []

    class Look(Callback):
        def on_log(self, run, record):
            seen.append(progress._loss)

    progress = Progress()
    trainer(callbacks=[progress, Look()]).fit(Moons().load(0).train)
    assert seen[0] == ""
    assert all(" above the least possible" in line and line.startswith("loss ") for line in seen[1:])


def test_what_is_learnt_by_heart_is_not_called_the_least_possible(tmp_path):
    """On a first run and on a resumed one."""
    seen = []

    class Look(Callback):
        def on_log(self, run, record):
            seen.append(progress._loss)

    for steps in (3, 6):
        progress = Progress()
        trainer(callbacks=[progress, Look()], steps=steps).fit(X, folder=tmp_path, resume=steps > 3)
    assert lines_of(tmp_path)[0]["loss_floor_points"] == len(X)
    assert [line.endswith(" above learning the samples by heart") for line in seen] == [False, True, False, True]
    assert [r["step"] for r in lines_of(tmp_path)] == [0, 3, 6]


# -- evaluation -------------------------------------------------------------------------------------------------------


class Perfect(torch.nn.Module):
    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, t, x):
        return self.oracle(t, x)


def test_a_perfect_network_has_no_excess_and_any_other_has_its_error():
    toy = GaussianMixture()
    floor = least(toy.load(0).train)
    oracle = MixtureOracle(CondOT(), toy.means, std=1.0)
    assert floor.excess(Perfect(oracle)).value < 1e-9
    zero = floor.excess(fmkit.fields.ModuleField(Zero()))
    mean_square = (toy.means**2).sum(1).mean().item() / 2 + 2  # of x1 - x0, a coordinate
    assert zero.value + floor.value == pytest.approx(mean_square, abs=5 * math.hypot(*zero[1:], floor.standard_error))


class Zero(torch.nn.Module):
    def forward(self, t, x):
        return torch.zeros_like(x)


def test_the_excess_of_a_trained_network_is_its_loss_less_the_floor():
    split = EightGaussians(labels=True, n_train=4000).load(0)
    run = trainer(fmkit.fields.MLP(2, width=32, depth=1, classes=8), steps=300, batch_size=128, lr=3e-3, ema=0.9)
    flow = run.fit(split.train)
    figures = above_floor(flow, run, split.train)
    with torch.no_grad():
        x1, k = EightGaussians(labels=True).draw(40_000, torch.Generator().manual_seed(5))
        x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(6))
        generator = torch.Generator().manual_seed(7)
        loss = run.objective.loss(flow.field.network, run.path, (x0, x1, k), generator=generator).value
    error = math.hypot(figures["loss_excess_standard_error"], (loss.std() / 200).item())
    assert figures["loss_floor"] + figures["loss_excess"] == pytest.approx(loss.mean().item(), abs=4 * error)
    assert figures["loss_floor_of"] == "of the data's law"
    assert 10 * error < 3 * figures["loss_excess"]


def test_evaluation_says_why_there_is_none(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n" + "\n".join(f"{i},{i * i % 7}" for i in range(40)))
    split = Tabular(str(tmp_path / "x.csv")).load(0)
    run = fmkit.Trainer(
        CondOT(),
        fmkit.fields.MLP(2, width=8, depth=1),
        coupling=OptimalTransport(),
        settings=fmkit.Settings(steps=1, batch_size=4),
        callbacks=(),
    )
    figures = above_floor(run.fit(split.train), run, split.train)
    assert figures == {
        "loss_floor": None,
        "loss_floor_refused": "OptimalTransport is not independent: the least loss under it is not known",
    }
