"""A change of schedule turns the exact field of one path into the exact field of the other."""

import itertools
import math

import pytest
import torch

from fmkit.errors import CombinationError
from fmkit.fields import MLP, PredictionField, Rescheduled, VectorField
from fmkit.flow import Flow
from fmkit.paths import (
    ICFM,
    AffinePath,
    CondOT,
    Cosine,
    LinearVP,
    Polynomial,
    VarianceExploding,
    VariancePreserving,
)
from fmkit.solvers import DOP853
from fmkit.sources import Gaussian

PATHS = {
    "condot": CondOT(),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(),
    "cosine": Cosine(),
    "polynomial": Polynomial(),
    "linear-vp": LinearVP(),
}


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(PATHS, 2)))
def test_the_field_is_the_other_paths_own(one, other, schedules, mixtures, exact_field):
    """Against the closed form for a mixture under the other schedule, from one end of the interval to the other."""
    mixture = mixtures[2]
    field = Rescheduled(exact_field(mixture, schedules[one]), PATHS[one], PATHS[other])
    low, high = field.interval
    t = torch.linspace(low + 0.002, high - 0.002, 41, dtype=torch.float64)
    x = torch.randn(41, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = PATHS[other].coefficients(t).sigma[:, None] + 0.5
    want = mixture.velocity(schedules[other], t, x * std)
    torch.testing.assert_close(field(t, x * std), want, rtol=1e-7, atol=1e-7)
    ends = torch.tensor([low, high], dtype=torch.float64)
    assert torch.isfinite(field(ends, x[:2])).all()


@pytest.mark.parametrize("other", ["cosine", "polynomial", "linear-vp", "vp", "ve"])
def test_the_samples_are_identical(other, schedules, mixtures, exact_field):
    flow = Flow(Gaussian(), PredictionField(exact_field(mixtures[2], schedules["condot"]), CondOT()), event_shape=2)
    again = flow.rescheduled(PATHS[other])
    low, high = again.interval
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver, r = DOP853(1e-7, 1e-7), torch.tensor([low, high], dtype=torch.float64)
    angle = torch.atan2(*PATHS[other].coefficients(r)[:2])
    t = torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))  # CondOT's time of that angle
    x = flow.transport(x0, 0.0, t[0].item(), solver=solver) if t[0] > 0 else x0
    end = flow.transport(x0, 0.0, t[1].item(), solver=solver)
    moved = again.field.scale(low) * x
    reached = solver.solve(lambda s, y: again.field(torch.full((16,), s), y), moved, (low, high)).final
    torch.testing.assert_close(reached, again.field.scale(high) * end, rtol=0, atol=1e-5)


def test_the_start_is_scaled(schedules, mixtures, exact_field):
    flow = Flow(Gaussian(), PredictionField(exact_field(mixtures[2], schedules["condot"]), CondOT()), event_shape=2)
    assert flow.rescheduled(Cosine()).start.std == pytest.approx(1.0, rel=1e-12)
    # VE at its beginning has the angle of CondOT's t = 1/51, where x is 50/51 x0: times 51 that is N(0, 50²)
    assert flow.rescheduled(VarianceExploding()).field.scale(0.0) == pytest.approx(51.0, rel=1e-9)


def test_log_densities_stay(schedules, mixtures, exact_field):
    flow = Flow(Gaussian(), PredictionField(exact_field(mixtures[2], schedules["condot"]), CondOT()), event_shape=2)
    x = mixtures[2].sample(8, torch.Generator().manual_seed(2))
    again = flow.rescheduled(Cosine()).log_prob(x)
    torch.testing.assert_close(again, mixtures[2].log_prob(x), rtol=0, atol=2e-3)


class Watching(VectorField):
    """A field on a part of the interval that keeps the times it was asked at, and answers with its condition."""

    offers = frozenset({"velocity", "stochastic"})
    euclidean = False

    def __init__(self, low=0.0, high=1.0):
        super().__init__()
        self.ends, self.times = (low, high), []

    @property
    def interval(self):
        return self.ends

    def forward(self, t, x, cond=None):
        self.times += t.tolist()
        return torch.zeros_like(x) if cond is None else cond.expand_as(x)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(PATHS, 2)))
def test_the_field_is_asked_on_its_interval_alone(one, other):
    inner = Watching(0.1, 0.9)
    field = Rescheduled(inner, PATHS[one], PATHS[other])
    field(torch.tensor(field.interval, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    assert len(inner.times) == 2
    assert inner.times == pytest.approx([0.1, 0.9] if field.interval[0] > 0 else inner.times[:1] + [0.9], abs=1e-7)
    assert 0.1 <= inner.times[0] < inner.times[1] <= 0.9


def test_the_interval_is_where_both_paths_have_the_angle():
    """CondOT has the ratio r = alpha/sigma at t = r/(1 + r); VP ends at 1 - 1e-5, whatever the field says."""
    vp = VariancePreserving()
    at = vp.coefficients(torch.tensor(vp.interval, dtype=torch.float64))
    ratio = at.alpha / at.sigma
    assert Rescheduled(Watching(), vp, CondOT()).interval == pytest.approx((ratio / (1 + ratio)).tolist(), abs=1e-12)
    # the other way round CondOT's angles before VP's beginning, 0.38 degrees, are left out
    low, high = Rescheduled(Watching(0.0, 0.8), CondOT(), vp).interval
    assert low == 0.0
    end = vp.coefficients(torch.tensor([high], dtype=torch.float64))
    assert (end.alpha / end.sigma).item() == pytest.approx(4.0, rel=1e-10)


def test_the_condition_reaches_the_field():
    """A condition that is the velocity: ū(c x) = growth c x + c t' u is linear in it, with the factor c t'."""
    field, t = Rescheduled(Watching(), CondOT(), Polynomial()), torch.tensor([0.5], dtype=torch.float64)
    x, cond = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 3.0, dtype=torch.float64)
    # Polynomial's point at r is CondOT's at r², so c = 1, t' = 2 r
    torch.testing.assert_close(field(t, x, cond) - field(t, x), 2 * 0.5 * cond)


def test_no_more_is_offered_than_a_velocity():
    field = Rescheduled(Watching(), CondOT(), Cosine())
    assert field.offers == {"velocity"}
    assert not field.euclidean


class Halting(AffinePath):
    def alpha(self, t):
        return torch.sin(4 * t) ** 2

    def sigma(self, t):
        return 1 - self.alpha(t)


class Pausing(AffinePath):
    """Half way from 0.4 to 0.6."""

    def alpha(self, t):
        return t.clamp(max=0.4) + (t - 0.6).clamp(min=0.0) * 1.5

    def sigma(self, t):
        return 1 - self.alpha(t)


def test_refusals():
    network = MLP(2, width=8, depth=1)
    with pytest.raises(CombinationError, match="ICFM has latent noise"):
        Rescheduled(network, ICFM(), CondOT())
    with pytest.raises(CombinationError, match="alpha/sigma of Halting does not grow"):
        Rescheduled(network, CondOT(), Halting())
    with pytest.raises(CombinationError, match="alpha/sigma of Halting does not grow"):
        Rescheduled(network, Halting(), CondOT())
    with pytest.raises(CombinationError, match="alpha/sigma of Pausing does not grow"):
        Rescheduled(network, CondOT(), Pausing())
    with pytest.raises(CombinationError, match="ICFM has latent noise"):
        Rescheduled(network, CondOT(), ICFM())
    with pytest.raises(CombinationError, match="only a flow trained on an affine path"):
        Flow(Gaussian(), network, event_shape=2).rescheduled(Cosine())


def test_it_is_saved_with_the_flow(tmp_path):
    flow = Flow(Gaussian(), PredictionField(MLP(2, width=8, depth=1), CondOT()), event_shape=2).rescheduled(Cosine())
    flow.save(tmp_path / "a.flow")
    again = Flow.load(tmp_path / "a.flow")
    assert again.interval == flow.interval
    first, second = (f.sample(3, generator=torch.Generator().manual_seed(0)) for f in (flow, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("t", [1 / 3, 0.7])
def test_the_scale_has_the_digits_of_double_precision(t):
    """From the straight line to the circle: at the angle pi t/2 the line's point has length 1/(sin + cos)."""
    field = Rescheduled(PredictionField(MLP(1, 4), CondOT()), CondOT(), Cosine())
    angle = math.pi / 2 * t
    assert field.scale(t) == pytest.approx(math.sin(angle) + math.cos(angle), rel=1e-13)
