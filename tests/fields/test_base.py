"""Fields: any module as one, predictions turned into velocities, and what SDE solvers read."""

import pytest
import torch

from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import MLP, ModuleField, PredictionField, VectorField, as_field, predict
from fmkit.paths import ICFM, CondOT, Cosine, PathSample, ProbabilityPath, VariancePreserving


class Two(torch.nn.Module):
    def forward(self, t, x):
        return t[:, None] * x


class Three(torch.nn.Module):
    def forward(self, t, x, cond):
        return x if cond is None else x + cond


class Any(torch.nn.Module):
    def forward(self, *arguments):
        return arguments[1] + (0 if arguments[2] is None else arguments[2])


class Option(torch.nn.Module):
    """A third parameter that is no condition's business is still the condition; the call is by position."""

    def forward(self, t, x, cond=None):
        return x if cond is None else 2 * x


t, x = torch.tensor([0.0, 0.5, 1.0]), torch.ones(3, 2)


def test_modules_of_two_arguments_and_of_three():
    assert ModuleField(Two())(t, x)[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert torch.equal(ModuleField(Three())(t, x), x)
    assert torch.equal(ModuleField(Three())(t, x, torch.ones(3, 1)), x + 1)
    assert torch.equal(ModuleField(Any())(t, x, torch.ones(3, 1)), x + 1)
    assert torch.equal(ModuleField(Option())(t, x), x)
    assert torch.equal(ModuleField(Option())(t, x, torch.ones(3)), 2 * x)


class Line(torch.nn.Module):
    """torch.lerp(t, x, cond) = t + cond (x - t), which has no signature to look at."""

    forward = torch.lerp


def test_time_point_and_condition_reach_a_module_without_a_signature():
    x, cond = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 1.0])
    want = torch.tensor([0.0, 1.25, 3.0])
    assert torch.equal(ModuleField(Line())(t, x, cond), want)
    assert torch.equal(ModuleField(Line()).velocity(t, x, cond), want)


def test_a_condition_for_a_module_that_takes_none_is_refused():
    with pytest.raises(ArgumentError, match=r"Two takes \(t, x\) and was given a condition"):
        ModuleField(Two())(t, x, torch.ones(3))


def test_an_output_of_another_shape_is_refused():
    class Half(torch.nn.Module):
        def forward(self, t, x):
            return x[:, :1]

    with pytest.raises(ArgumentError, match=r"Half returned a tensor of shape \(3, 1\) for x of shape \(3, 2\)"):
        ModuleField(Half())(t, x)


def test_modules_that_are_no_field_are_refused():
    with pytest.raises(
        ArgumentError, match=r"Linear\.forward takes 1 argument\(s\), expected \(t, x\) or \(t, x, cond\)"
    ):
        ModuleField(torch.nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"module is a function, expected a torch\.nn\.Module"):
        ModuleField(lambda t, x: x)


def test_as_field():
    field = MLP(2, 4, 1)
    assert as_field(field) is field
    assert isinstance(as_field(Two()), ModuleField)
    assert isinstance(PredictionField(Two(), CondOT()).network, ModuleField)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_networks_time_has_its_precision(dtype):
    """Solvers keep time in float64; a user's module concatenates it with x."""

    class Cat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2, dtype=dtype)

        def forward(self, t, x):
            assert t.dtype == dtype
            return self.layer(torch.cat([x, t[:, None]], 1))

    data, times = torch.zeros(3, 2, dtype=dtype), torch.zeros(3, dtype=torch.float64)
    assert predict(ModuleField(Cat()), times, data).dtype == dtype
    assert PredictionField(ModuleField(Cat()), CondOT())(times, data).dtype == dtype
    assert ModuleField(Cat())(times, data).dtype == dtype


def test_predict_keeps_the_time_of_16_bit_networks_in_single_precision():
    seen = []

    class Look(torch.nn.Module):
        def forward(self, t, x):
            seen.append(t)
            return x

    predict(Look(), torch.full((3,), 1 - 1e-5, dtype=torch.float64), x.bfloat16())
    assert seen[0].dtype == torch.float32
    assert seen[0][0] < 1


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, t, x, cond=None):
        return self.value if cond is None else self.value * cond


@pytest.mark.parametrize("path", [CondOT(), Cosine(), VariancePreserving()], ids=repr)
def test_every_prediction_gives_the_velocity_and_the_noise(path, seeded):
    x0, x1 = (torch.randn(8, 2, generator=seeded(i), dtype=torch.float64) for i in range(2))
    times = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    point, sigma = path.sample(times, x0, x1), path.sigma(times)[:, None]
    for view, value in {"velocity": point.velocity, "data": x1, "noise": x0, "score": -x0 / sigma}.items():
        field = PredictionField(Constant(value), path, view, gaussian=True)
        torch.testing.assert_close(field(times, point.x), point.velocity, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(field.velocity(times, point.x), point.velocity, rtol=1e-9, atol=1e-9)
        at = field.stochastic(times, point.x)
        torch.testing.assert_close(at.velocity, point.velocity, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.noise, x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.std.expand(8, 1), sigma, rtol=1e-12, atol=0)


def test_the_wrong_sign_of_the_score_fails(seeded):
    """The paper's (43) predicts minus the score; fed to the true-score convention it gives another field."""
    path, times = VariancePreserving(), torch.full((4,), 0.5, dtype=torch.float64)
    x0, x1 = (torch.randn(4, 2, generator=seeded(i), dtype=torch.float64) for i in range(2))
    point = path.sample(times, x0, x1)
    score = -x0 / path.sigma(times)[:, None]
    beta = 0.1 + 0.5 * 19.9
    right = PredictionField(Constant(score), path, "score")(times, point.x)
    torch.testing.assert_close(right, beta / 2 * (point.x + score))  # u = T'(1-t)/2 [x + score]
    wrong = PredictionField(Constant(-score), path, "score")(times, point.x)
    assert (wrong - right).abs().min() > 0.1


def test_the_condition_reaches_the_network():
    field = PredictionField(Constant(torch.ones(3, 2)), CondOT())
    assert torch.equal(field(t, x, torch.full((3, 1), 5.0)), torch.full((3, 2), 5.0))


def test_the_condition_reaches_the_network_of_an_sde():
    """On CondOT the noise that a velocity u implies is x - t u."""
    field = PredictionField(Constant(torch.ones(3, 2)), CondOT(), gaussian=True)
    times = torch.full((3,), 0.5, dtype=torch.float64)
    at = field.stochastic(times, x, torch.full((3, 1), 5.0))
    torch.testing.assert_close(at.velocity, torch.full((3, 2), 5.0))
    torch.testing.assert_close(at.noise, torch.full((3, 2), 1 - 0.5 * 5.0))


def test_intervals():
    assert PredictionField(Two(), VariancePreserving()).interval == VariancePreserving().interval
    assert PredictionField(Two(), CondOT(), "noise", (0.1, 0.9)).interval == (0.1, 0.9)
    assert ModuleField(Two()).interval == (0.0, 1.0)


class Manifold(ProbabilityPath):
    euclidean = False

    def sample(self, t, x0, x1, *, generator=None):
        return PathSample(t, x1, x0, x1, x1)


class Sphere(VectorField):
    """A field in a manifold's coordinates, which offers a protocol of its own."""

    euclidean = False
    offers = frozenset({"velocity", "geodesic"})

    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)


def test_what_a_field_does_not_know_it_does_not_offer():
    assert ModuleField(Two()).offers == {"velocity"}
    assert PredictionField(Two(), CondOT()).offers == {"velocity"}
    assert PredictionField(Two(), CondOT(), gaussian=True).offers == {"velocity", "stochastic"}
    assert PredictionField(Two(), ICFM(), gaussian=True).offers == {"velocity"}
    assert not PredictionField(Two(), Manifold()).euclidean
    assert PredictionField(Two(), CondOT()).euclidean
    assert not PredictionField(Sphere(), CondOT()).euclidean
    assert torch.equal(PredictionField(Two(), Manifold())(t, x), Two()(t, x))  # a velocity needs no conversion
    with pytest.raises(CombinationError, match="ModuleField does not know its noise, so it cannot drive an SDE"):
        ModuleField(Two()).stochastic(t, x)
    with pytest.raises(CombinationError, match="an SDE needs the noise of a standard Gaussian source"):
        PredictionField(Two(), CondOT()).stochastic(t, x)
    with pytest.raises(CombinationError, match="Manifold is not affine: a prediction of data gives no velocity"):
        PredictionField(Two(), Manifold(), "data")


def test_a_view_that_is_none_is_refused():
    with pytest.raises((ArgumentError, CombinationError), match="velocty"):
        PredictionField(Two(), CondOT(), "velocty")


def test_a_field_must_say_its_velocity():
    with pytest.raises(TypeError, match="abstract"):
        VectorField()
