"""Gradients by the adjoint: closed forms, and those through the steps of an accurate solver; memory; refusals."""

import math

import pytest
import torch

from fmkit.adjoint import solve_by_adjoint
from fmkit.divergence import ExactDivergence, HutchinsonDivergence
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import VectorField
from fmkit.flow import Flow
from fmkit.solvers import DOP853, RK4, Dopri5, EulerMaruyama, Solution, Solver, count
from fmkit.sources import Gaussian
from fmkit.transforms import Affine

ACCURATE = Dopri5(1e-9, 1e-9)


class Scale(VectorField):
    """v = w x: x(1) = e^w x(0), and log p(x) = log N(e^-w x) - D w."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, x, cond=None):
        return self.w * x


class Network(VectorField):
    """A smooth network: v = B tanh(A x + C cond + a t + b)."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        shapes = {"A": (8, 3), "B": (3, 8), "C": (8, 2), "a": (8,), "b": (8,)}
        generator = torch.Generator().manual_seed(3)
        for name, shape in shapes.items():
            value = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, torch.nn.Parameter(value.to(dtype)))

    def forward(self, t, x, cond=None):
        push = 0 if cond is None else cond @ self.C.T
        return torch.tanh(x @ self.A.T + push + t[:, None].to(x.dtype) * self.a + self.b) @ self.B.T


@pytest.mark.parametrize("solver", [ACCURATE, RK4(50), DOP853(1e-10, 1e-10)], ids=repr)
def test_closed_form(solver, seeded):
    """Also through scipy's solver, through whose steps no gradient passes."""
    flow, x = Flow(Gaussian(), Scale(), solver, 2), torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    x.requires_grad_()
    dw, dx = torch.autograd.grad(flow.log_prob(x, differentiable="adjoint").sum(), (flow.field.w, x))
    shrink = math.exp(-0.6)
    assert dw.item() == pytest.approx((x.square() * shrink).sum().item() - 8, rel=1e-6)
    torch.testing.assert_close(dx, -x.detach() * shrink, rtol=1e-6, atol=0)
    y = flow.sample(4, generator=seeded(0), differentiable="adjoint")
    assert torch.autograd.grad(y.sum(), flow.field.w)[0].item() == pytest.approx(y.sum().item(), rel=1e-6)
    z = flow.transport(x, 1.0, 0.0, differentiable="adjoint")
    dw, dx = torch.autograd.grad(z.sum(), (flow.field.w, x))
    assert dw.item() == pytest.approx(-z.sum().item(), rel=1e-6)
    torch.testing.assert_close(dx, torch.full_like(x, math.exp(-0.3)), rtol=1e-6, atol=0)
    _, log_prob = flow.sample_with_log_prob(4, generator=seeded(0), differentiable="adjoint")
    assert torch.autograd.grad(log_prob.sum(), flow.field.w)[0].item() == pytest.approx(-8, rel=1e-6)


@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence(2, "gaussian")], ids=repr)
def test_equals_the_gradient_through_accurate_steps(divergence, seeded):
    """Weights, points, a condition, and a transform outside; the same probes for both."""
    field, transform = Network(), Affine(0.5, 2.0)
    flow = Flow(Gaussian(), field, RK4(40), 3, transform, divergence)
    x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    cond = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    inputs = (x, cond, *field.parameters())
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    grads = [
        torch.autograd.grad(flow.log_prob(x, cond, generator=seeded(2), differentiable=how) @ weights, inputs)
        for how in (True, "adjoint")
    ]
    for through, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(adjoint, through, rtol=1e-5, atol=1e-7)
        assert through.abs().min() > 1e-4
    assert torch.equal(
        flow.log_prob(x, cond, generator=seeded(2), differentiable="adjoint"),
        flow.log_prob(x, cond, generator=seeded(2)),
    )


def saved_numbers(flow, x, how):
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        flow.transport(x, differentiable=how)
    return sum(saved)


def test_memory_does_not_grow_with_the_steps(seeded):
    field, x = Network(), torch.randn(6, 3, generator=seeded(0), dtype=torch.float64)
    few, many = (Flow(Gaussian(), field, RK4(n), 3) for n in (10, 30))
    assert saved_numbers(many, x, "adjoint") == saved_numbers(few, x, "adjoint")
    assert saved_numbers(many, x, True) > 2 * saved_numbers(few, x, True)


def test_frozen_weights_and_fields_without_any(seeded):
    class Constant(VectorField):
        def forward(self, t, x, cond=None):
            return torch.ones_like(x)

    x = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    flow = Flow(Gaussian(), Constant(), RK4(4), 2)
    (dx,) = torch.autograd.grad(flow.log_prob(x, differentiable="adjoint").sum(), x)
    torch.testing.assert_close(dx, 1 - x.detach())
    frozen = Flow(Gaussian(), Scale().requires_grad_(False), RK4(20), 2)
    (dx,) = torch.autograd.grad(frozen.log_prob(x, differentiable="adjoint").sum(), x)
    torch.testing.assert_close(dx, -x.detach() * math.exp(-0.6), rtol=1e-5, atol=0)
    assert not frozen.log_prob(x.detach(), differentiable="adjoint").requires_grad


def test_a_network_in_single_precision(seeded):
    """Gradients in its own precision, and those of the same network in double, to rounding."""
    single, double = Network(torch.float32), Network()
    x = torch.randn(7, 3, generator=seeded(0))
    gradients = []
    for field, points in ((single, x), (double, x.double())):
        log_prob = Flow(Gaussian(), field, RK4(20), 3).log_prob(points, differentiable="adjoint")
        gradients.append(torch.autograd.grad(log_prob.mean(), [field.A, field.B, field.a, field.b]))
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


class Apart(Solver):
    """Euler's method with as many steps for each row as its number says, in one call for all."""

    def solve(self, f, x0, times, *, generator=None):
        parts = x0 if isinstance(x0, tuple) else (x0,)
        begin, end = times[0], times[-1]
        steps = torch.arange(1, len(parts[0]) + 1)
        dt = (end - begin) / steps.double()
        for k in range(int(steps.max())):
            t = begin + dt * torch.minimum(steps, torch.tensor(k)).double()
            slope = f(t, parts if isinstance(x0, tuple) else parts[0])
            slopes = slope if isinstance(x0, tuple) else (slope,)
            go = (k < steps).double() * dt
            parts = tuple(p + go.reshape(-1, *[1] * (p.ndim - 1)) * s for p, s in zip(parts, slopes, strict=True))
        final = parts if isinstance(x0, tuple) else parts[0]
        return Solution(tuple(times), (x0, final), count(x0, len(steps)), count(x0, 1), count(x0, 0))


def test_steps_for_each_sample_alone_give_gradients_of_the_samples_only(seeded):
    x = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    flow = Flow(Gaussian(), Scale(), Apart(), 2)
    y = flow.transport(x, 0.0, 1.0, differentiable="adjoint")
    with pytest.raises(CombinationError, match=r"Apart gives each sample steps of its own.*differentiable=True"):
        torch.autograd.grad(y.sum(), x)
    flow = Flow(Gaussian(), Scale().requires_grad_(False), Apart(), 2)
    (dx,) = torch.autograd.grad(flow.transport(x, 0.0, 1.0, differentiable="adjoint").sum(), x)
    want = torch.tensor([(1 + 0.3 / n) ** n for n in (1, 2, 3)], dtype=torch.float64)
    torch.testing.assert_close(dx, want[:, None].expand(3, 2))


def test_refusals(seeded):
    flow = Flow(Gaussian(), Scale(), RK4(4), 2)
    for wrong in ("direct", 2, None):
        with pytest.raises(ArgumentError, match=f"differentiable is {wrong!r}, expected True.* False or 'adjoint'"):
            flow.log_prob(torch.ones(3, 2), differentiable=wrong)
    with pytest.raises(CombinationError, match="the adjoint is of ODEs"):
        solve_by_adjoint(EulerMaruyama(4), lambda t, x: x, torch.ones(2, 1), (0.0, 1.0), [])
