"""Wrong objectives fail with the right law named; the closed forms are those of a Gaussian."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.fields import PredictionField, as_field
from fmkit.objectives import (
    DataPrediction,
    Loss,
    NoisePrediction,
    Objective,
    ScoreFlow,
    ScoreMatching,
    UShaped,
    VelocityMatching,
)
from fmkit.sources import Gaussian
from fmkit.testing import check_objective
from fmkit.testing.objectives import MEAN, WIDE, conditional_mean


def broken(objective):
    return {f.id.removeprefix("objective.") for f in check_objective(objective).failed}


class WrongSign(ScoreMatching):
    def target(self, path, point):
        return -super().target(path, point)


class WrongConversion(ScoreMatching):
    """The network's score is read with the other sign."""

    def field(self, network, path, *, source=None, coupling=None):
        class Minus(torch.nn.Module):
            def forward(self, t, x, cond=None):
                return -network(t, x)

        return super().field(as_field(Minus()), path, source=source, coupling=coupling)


class TwoPercent(VelocityMatching):
    def target(self, path, point):
        return 1.02 * super().target(path, point)


class Shifted(DataPrediction):
    """Its minimiser is not quite the conditional mean."""

    def target(self, path, point):
        return super().target(path, point) + 0.05


class Scalar(VelocityMatching):
    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return Loss(loss.value.mean(), loss.t, {})


class NoGradient(VelocityMatching):
    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return Loss(loss.value.detach().requires_grad_(), loss.t, {})


class GlobalTimes(VelocityMatching):
    def loss(self, network, path, batch, *, generator=None, **options):
        return super().loss(network, path, batch, **options)


class DropsConditions(VelocityMatching):
    def loss(self, network, path, batch, **options):
        return super().loss(network, path, (batch[0], batch[1]), **options)


class AsksAnother(VelocityMatching):
    """Its loss and its question have been written apart."""

    def question(self, network, path, batch, **options):
        asked = super().question(network, path, batch, **options)
        return asked._replace(target=1.001 * asked.target)

    # the loss of the base class asks through self: here it asks as it did
    loss = lambda self, *args, **options: VelocityMatching().loss(*args, **options)  # noqa: E731


class AsksNothing(VelocityMatching):
    loss = lambda self, *args, **options: VelocityMatching().loss(*args, **options)  # noqa: E731

    def question(self, network, path, batch, **options):
        return None


class OnlyANetwork(VelocityMatching):
    def field(self, network, path, *, source=None, coupling=None):
        return torch.nn.Identity()


@pytest.mark.parametrize(
    ("objective", "law"),
    [
        (WrongSign(), "minimiser"),
        (WrongConversion(), "field"),
        (TwoPercent(), "minimiser"),
        (Shifted(), "minimiser"),
        (Scalar(), "shape"),
        (NoGradient(), "gradient"),
        (GlobalTimes(), "seeds"),
        (DropsConditions(), "condition"),
        (AsksAnother(), "question"),
        (AsksNothing(), "question"),
        (OnlyANetwork(), "field"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_a_wrong_objective_breaks_the_law_it_breaks(objective, law):
    found = broken(objective)
    assert law in found
    assert found <= {law} | ({"minimiser"} if law == "shape" else set())


class Noise(Objective):
    """Written from the contract alone: it names no view."""

    def loss(self, network, path, batch, *, ema=None, step=0, generator=None):
        x0, x1, *cond = batch
        t = 0.001 + 0.999 * torch.rand(len(x1), generator=generator, dtype=torch.float64)
        point = path.sample(t, x0, x1, generator=generator)
        return Loss((network(t, point.x, *cond) - x0).square().mean(1), t, {})

    def field(self, network, path, *, source=None, coupling=None):
        return PredictionField(as_field(network), path, "noise", (0.001, 1.0))


class Average(Noise):
    """Of a network of two times."""

    def loss(self, network, path, batch, **options):
        return network(0.0, 0.0, batch[0], None, None)

    def field(self, network, path, **options):
        raise TypeError("forward() missing 1 required positional argument: 's'")


@pytest.mark.parametrize(
    "objective",
    [VelocityMatching(UShaped()), DataPrediction(), NoisePrediction(), ScoreMatching(), ScoreFlow(), Noise()],
    ids=lambda o: type(o).__name__,
)
def test_a_right_objective_passes(objective):
    report = check_objective(objective)
    report.raise_if_failed()
    apart = {"objective.value", "objective.question"}
    assert {f.id for f in report.unchecked} == (apart if type(objective) is Noise else set())


def test_a_network_of_another_form_is_not_checked():
    report = check_objective(Average())
    assert not report.failed
    assert not report.ok
    with pytest.raises(ArgumentError, match="got a Gaussian, expected an Objective"):
        check_objective(Gaussian())


def test_the_conditional_means_are_those_of_a_regression(seeded):
    """By least squares on samples: for Gaussians the conditional mean is the linear regression."""
    n, t = 400_000, 0.37
    x0, x1 = torch.randn(2, n, 1, generator=seeded(0), dtype=torch.float64)
    x1 = MEAN + WIDE * x1
    x = t * x1 + (1 - t) * x0
    design = torch.cat([torch.ones_like(x), x], 1)
    at = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    for view, value in {"velocity": x1 - x0, "data": x1, "noise": x0, "score": -x0 / (1 - t)}.items():
        fitted = torch.linalg.lstsq(design, value).solution
        want = torch.cat([torch.ones_like(at), at], 1) @ fitted
        torch.testing.assert_close(conditional_mean(view, torch.full((3,), t), at), want, rtol=0, atol=0.02)
