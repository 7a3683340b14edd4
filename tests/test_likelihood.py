"""Likelihoods along linear fields, whose ends and integrals are closed forms; the errors that are said of them."""

import math
import re
import warnings

import pytest
import torch

from fmkit.divergence import ExactDivergence, HutchinsonDivergence
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.flow import Flow
from fmkit.likelihood import DOUBTED, LOOSE, TOLERATED, Carried, carry, doubt
from fmkit.shapes import widen
from fmkit.solvers import DOP853, RK4, Dopri5, Euler, Solver
from fmkit.sources import Gaussian

A = torch.tensor([[0.3, -0.8, 0.1], [0.5, 0.2, 0.4], [-0.6, 0.7, -0.9]], dtype=torch.float64)


def linear(t, x):
    """dx/dt = 2 t A x: x(t1) = exp((t1² - t0²) A) x(t0), and the divergence integrates to (t1² - t0²) trace A."""
    return 2 * t * x @ A.T


class TestCarry:
    @pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7), (0.9, 0.1)])
    @pytest.mark.parametrize("adjoint", [False, True])
    def test_linear_field(self, times, adjoint, seeded):
        x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
        got = carry(linear, x, times, RK4(60), ExactDivergence(), None, [] if adjoint else None)
        span = times[1] ** 2 - times[0] ** 2
        torch.testing.assert_close(got.x, x @ torch.matrix_exp(span * A).T, rtol=1e-7, atol=1e-7)
        want = span * A.trace().expand(5)
        torch.testing.assert_close(got.integral, want, rtol=1e-7, atol=1e-9)
        assert got.integrals.shape == (5, 1)
        assert got.exact
        assert torch.equal(got.standard_error, torch.zeros(5, dtype=torch.float64))

    def test_each_probe_is_carried_in_a_column_of_its_own(self, seeded):
        """For a linear field the integral of z^T (dv/dx) z is z^T A z, with the probes of that generator."""
        divergence, x = HutchinsonDivergence(4, "gaussian"), torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
        got = carry(linear, x, (0.0, 1.0), RK4(20), divergence, seeded(1))
        once = divergence.rate(linear, x, seeded(1))(0.5, x)[1]
        torch.testing.assert_close(got.integrals, once, rtol=1e-10, atol=1e-10)
        assert not got.exact
        torch.testing.assert_close(got.integral, once.sum(1) / 4)

    def test_gradients_through_the_steps_or_by_the_adjoint(self, seeded):
        """d(integral of w x²'s divergence 2 w x)/dw, both ways; only the adjoint's pass through scipy's steps."""
        w = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        x = torch.rand(4, 1, generator=seeded(0), dtype=torch.float64)

        def f(t, y):
            return w * y**2

        # x(1) = x/(1 - w x); the integral of 2 w x(t) is -2 log(1 - w x), whose slope in w is 2 x/(1 - w x)
        want = (2 * x / (1 - w.detach() * x)).sum()
        through = carry(f, x, (0.0, 1.0), RK4(50), ExactDivergence(), None).integral.sum()
        torch.testing.assert_close(torch.autograd.grad(through, w)[0], want, rtol=1e-6, atol=0)
        by = carry(f, x, (0.0, 1.0), DOP853(1e-10, 1e-10), ExactDivergence(), None, [w]).integral.sum()
        torch.testing.assert_close(torch.autograd.grad(by, w)[0], want, rtol=1e-6, atol=0)


class TestStandardError:
    @pytest.mark.parametrize("k", [2, 5])
    def test_of_the_mean_of_normal_numbers(self, k, seeded):
        """Over 40,000 rows its square is the variance of their means, and the variance over k."""
        draws = 3 * torch.randn(40_000, k, generator=seeded(0), dtype=torch.float64)
        got = Carried(draws[:, :1], draws, False)
        assert got.standard_error.shape == got.integral.shape == (40_000,)
        assert got.standard_error.square().mean().item() == pytest.approx(9 / k, rel=0.03)
        assert got.integral.var().item() == pytest.approx(9 / k, rel=0.03)

    def test_none_of_one_estimate(self):
        one = torch.ones(3, 1)
        with pytest.raises(ArgumentError, match="one probe has no standard error"):
            _ = Carried(one, one, False).standard_error
        assert torch.equal(Carried(one, one, True).standard_error, torch.zeros(3))


class Known(Solver):
    """A solver of known error: its log-densities are off by `off` / steps^order, or by `off` times its tolerance."""

    def __init__(self, off=1.0, n=5, **known):
        super().__init__()
        self.off, self.n = off, n
        for name, value in known.items():
            setattr(self, name, value)

    def solve(self, f, x0, times, *, generator=None):
        raise NotImplementedError


def score(solver):
    """Half the samples are off to one side, half to the other: what counts is the size."""
    assert not torch.is_grad_enabled()
    if hasattr(solver, "steps"):
        error = solver.off / solver.steps ** getattr(solver, "order", 1)
    else:
        error = solver.off * max(solver.rtol, solver.atol)
    return -7.0 + error * torch.tensor([1.0, -1.0] * solver.n, dtype=torch.float64)


def warned(*arguments):
    """The warning's text, and the nats and bits it says."""
    with pytest.warns(UserWarning, match="log-densities by") as caught:
        doubt(*arguments)
    text = str(caught[0].message)
    found = re.search(r"about (\S+) nats a sample \((\S+) bits per dimension\)", text)
    return text, float(found[1]), float(found[2])


class TestDoubt:
    @pytest.mark.parametrize("order", [1, 2, 4])
    def test_the_error_of_fixed_steps_by_richardsons_rule(self, order):
        """An error of C/n^p is known exactly from n and 2n steps."""
        text, nats, bits = warned(score, Known(0.5 * 3**order, steps=3, order=order), 2)
        assert "Known in 3 steps" in text
        assert "twice the steps show" in text
        assert nats == pytest.approx(0.5, rel=0.01)
        assert bits == pytest.approx(0.25 / math.log(2), rel=0.05)

    def test_a_method_that_claims_no_order_is_taken_for_one_of_the_first(self):
        assert warned(score, Known(1.5, steps=3), 1)[1] == pytest.approx(0.5, rel=0.01)

    @pytest.mark.parametrize(("rtol", "atol"), [(0.1, 1e-9), (1e-9, 0.1)])
    def test_a_loose_tolerance_shows_its_change_from_a_tight_one(self, rtol, atol):
        text, nats, bits = warned(score, Known(5.0, rtol=rtol, atol=atol), 1)
        assert "at a tolerance of 0.1" in text
        assert "a tighter one shows" in text
        assert nats == pytest.approx(0.5, rel=0.01)
        assert bits == pytest.approx(0.5 / math.log(2), rel=0.05)

    @pytest.mark.parametrize("dim", [1, 2, 3072])
    def test_warns_above_a_hundredth_of_a_bit_per_dimension_alone(self, dim):
        limit = 0.01 * math.log(2) * dim
        assert TOLERATED == 0.01
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            doubt(score, Known(0.99 * limit, steps=1), dim)
        warned(score, Known(1.01 * limit, steps=1), dim)

    def test_a_tight_tolerance_and_a_solver_without_a_finer_one_are_not_tried(self):
        def refuse(solver):
            raise AssertionError("tried")

        for solver in (Known(rtol=LOOSE, atol=LOOSE), Dopri5(), Known(rtol=0.5), Known(atol=0.5), Known()):
            doubt(refuse, solver, 1)
        assert LOOSE == 1e-3

    def test_what_is_done_already_is_not_done_again(self):
        asked = []

        def count(solver):
            asked.append(solver.steps)
            return score(solver)

        solver = Known(4.0, steps=4)
        done = (torch.zeros(10, dtype=torch.float64, requires_grad=True) - 7.0) * 1
        # done is off by 0 and the finer by 1/2: it is these that are compared
        assert warned(count, solver, 1, done)[1] == pytest.approx(1.0)
        assert asked == [8]
        warned(count, solver, 1)
        assert asked == [8, 4, 8]

    def test_zero_densities_agree_and_one_that_is_no_number_does_not(self):
        def constant(*values):
            return lambda solver: torch.tensor(values)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            doubt(constant(-math.inf, -2.0), Known(steps=4), 1)
        assert math.isnan(warned(constant(math.nan, -2.0), Known(steps=4), 1)[1])
        done = torch.tensor([-1.0, -2.0])
        assert warned(constant(-math.inf, -2.0), Known(steps=4), 1, done)[1] == math.inf


class Spread(VectorField):
    """dx/dt = 3 t² x: log p changes by 1 a dimension."""

    def forward(self, t, x, cond=None):
        return widen(3 * t**2, x) * x


def test_a_few_samples_are_tried_and_the_warning_points_at_the_users_line():
    """Sixteen at the most are taken again, whatever the batch."""
    seen, field = [], Spread()
    field.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[1])))
    flow = Flow(Gaussian(), field, Euler(2), 2)
    with pytest.warns(UserWarning, match="Euler in 2 steps are off by about") as caught:
        flow.log_prob(torch.ones(20, 2))
    assert caught[0].filename == __file__
    assert seen == [20] * 2 + [16] * 4
    assert DOUBTED == 16
