"""Geodesic solvers: orders against closed-form flows, drift, integrals beside the point, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from fmkit import registry
from fmkit.errors import ArgumentError, SolverError
from fmkit.shapes import batch_time
from fmkit.solvers import RK4, Solver
from fmkit_riemannian import GeodesicEuler, GeodesicMidpoint, GeodesicRK4, Sphere, Torus

SOLVERS = [GeodesicEuler, GeodesicMidpoint, GeodesicRK4]
C = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)


@pytest.fixture
def start():
    return Sphere().uniform((20, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def turning(t, x):
    """x' = g'(t) A x with A skew and g = sin 2t: a rotation, back and forth."""
    rate = 2 * torch.cos(2 * batch_time(t, x))
    return rate[:, None] * torch.linalg.cross(2 * C.expand_as(x), x)


def turned(x, t):
    """x(t) = exp(g(t) A) x, by the matrix exponential."""
    skew = torch.linalg.cross(2 * C.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    return x @ torch.matrix_exp(math.sin(2 * t) * skew).T


def climbing(t, x):
    """x' = c - <c, x> x, the gradient of the height <c, x> on the sphere: heights follow h' = |c|² - h²."""
    return C - (x @ C)[:, None] * x


def climbed(x, t):
    """h(t) = |c| tanh(|c| t + artanh(h/|c|)), and the direction across c does not change."""
    size = C.norm()
    height = x @ C / size
    end = torch.tanh(size * t + torch.atanh(height))
    across = x - height[:, None] * C / size
    across = across / across.norm(dim=-1, keepdim=True)
    return end[:, None] * C / size + torch.sqrt(1 - end**2)[:, None] * across


def winding(t, x):
    """theta' = 3 + sin theta on the torus, round and round."""
    return 3 + torch.sin(x)


def wound(x, t):
    """With q = tan(theta/2): q(t) = (sqrt 8 tan(sqrt 8 t/2 + atan((3 q + 1)/sqrt 8)) - 1)/3."""
    root = math.sqrt(8)
    phase = root * t / 2 + torch.atan((3 * torch.tan(x / 2) + 1) / root)
    return 2 * torch.atan((root * torch.tan(phase) - 1) / 3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("field", "exact"), [(turning, turned), (climbing, climbed)])
@pytest.mark.parametrize("backward", [False, True])
def test_orders_on_the_sphere(start, solver, field, exact, backward):
    times = (1.0, 0.0) if backward else (0.0, 1.0)
    begin, end = (exact(start, 1.0), start) if backward else (start, exact(start, 1.0))
    errors = [(solver(Sphere(), n).solve(field, begin, times).final - end).norm(dim=-1).mean() for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.15)
    assert errors[1] < {1: 0.1, 2: 3e-3, 4: 1e-6}[solver.order]


@pytest.mark.parametrize("solver", SOLVERS)
def test_orders_on_the_torus(solver):
    x0 = Torus().uniform((20, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = []
    for n in (40, 80):
        end = solver(Torus(), n).solve(winding, x0, (0.0, 3.0)).final
        assert (end >= 0).all()
        assert (end < 2 * math.pi).all()
        errors.append(Torus().log(end, Torus().nearest(wound(x0, 3.0))).abs().mean())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.15)


def test_euler_walks_along_geodesics():
    """One step is exact where the field is a geodesic's velocity: Euler in the ambient space is off by 1 - cos."""
    x0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    end = GeodesicEuler(Sphere(), 1).solve(lambda t, x: x.new_tensor([[0.0, 1.0, 0.0]]), x0, (0.0, 1.0)).final
    torch.testing.assert_close(end, x0.new_tensor([[math.cos(1), math.sin(1), 0.0]]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_stay_on_the_sphere_at_every_stage(start, solver, dtype):
    """Drift is rounding, and does not grow with steps; the same field through RK4 in ambient space leaves."""
    eps, worst = torch.finfo(dtype).eps, []

    def field(t, x):
        worst.append((x.norm(dim=-1) - 1).abs().max().item())
        return climbing(t, x.double()).to(dtype) + 0.5 * x  # a part that points outwards, as an MLP's would

    end = solver(Sphere(), 1000).solve(field, start.to(dtype), (0.0, 1.0)).final
    assert max(worst) <= 4 * eps
    assert ((end.norm(dim=-1) - 1).abs() <= 4 * eps).all()
    ambient = RK4(50).solve(lambda t, x: climbing(t, x) + 0.5 * x, start, (0.0, 1.0)).final
    assert (ambient.norm(dim=-1) - 1).abs().max() > 1e-2


@pytest.mark.parametrize("solver", SOLVERS)
def test_only_the_point_lives_on_the_manifold(start, solver):
    """The integral of <c, x> beside the point: log cosh, as h = |c| tanh(...)."""

    def f(t, state):
        return climbing(t, state[0]), state[0] @ C

    x, integral = solver(Sphere(), 200).solve(f, (start, torch.zeros(20, dtype=torch.float64)), (0.0, 1.0)).final
    phase = torch.atanh(start @ C / C.norm())
    exact = torch.log(torch.cosh(C.norm() + phase) / torch.cosh(phase))
    torch.testing.assert_close(x, climbed(start, 1.0), rtol=0, atol={1: 1e-2, 2: 1e-4, 4: 1e-9}[solver.order])
    torch.testing.assert_close(integral, exact, rtol=0, atol={1: 1e-2, 2: 1e-4, 4: 1e-9}[solver.order])


@pytest.mark.parametrize("solver", SOLVERS)
def test_nfe_and_stops(start, solver):
    calls = []

    def counted(t, x):
        calls.append(t)
        return climbing(t, x)

    out = solver(Sphere(), 10).solve(counted, start, (0.0, 0.33, 1.0))
    assert out.nfe.tolist() == [len(calls)] * 20
    stages = {1: 1, 2: 2, 4: 4}[solver.order]
    assert len(calls) == 11 * stages  # ten steps, and one beside them to the stop off the grid
    assert min(calls) == 0.0
    assert max(calls) <= 1.0
    assert torch.equal(out.final, solver(Sphere(), 10).solve(climbing, start, (0.0, 1.0)).final)
    fine = solver(Sphere(), 1000).solve(climbing, start, (0.0, 0.33)).final
    torch.testing.assert_close(out.states[1], fine, rtol=0, atol={1: 0.03, 2: 2e-3, 4: 2e-5}[solver.order])


def test_gradients_pass_through(start):
    """d/dc of the end, against finite differences; the first step begins where |u| = 0."""
    c = C.clone().requires_grad_()

    def end(c):
        f = lambda t, x: c - (x @ c)[:, None] * x  # noqa: E731
        return GeodesicRK4(Sphere(), 5).solve(f, start, (0.0, 1.0)).final[:, 0].sum()

    (grad,) = torch.autograd.grad(end(c), c)
    h = 1e-6
    for i, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        assert grad[i].item() == pytest.approx(((end(C + h * unit) - end(C - h * unit)) / (2 * h)).item(), abs=1e-7)


def test_a_field_of_zero_stays_and_has_gradients(start):
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    end = GeodesicRK4(Sphere(), 3).solve(lambda t, x: scale * climbing(t, x), start, (0.0, 1.0)).final
    torch.testing.assert_close(end, start, rtol=0, atol=1e-15)
    (grad,) = torch.autograd.grad((end @ C).sum(), scale)
    torch.testing.assert_close(grad, (climbing(0.0, start) @ C).sum(), rtol=0, atol=1e-12)


def test_a_start_off_the_manifold_is_refused(start):
    with pytest.raises(ArgumentError, match="x0 has 20 rows off the unit sphere"):
        GeodesicRK4(Sphere()).solve(climbing, 1.1 * start, (0.0, 1.0))


def test_a_step_too_long_says_so(start):
    with pytest.raises(SolverError, match="use more steps"):
        GeodesicRK4(Sphere(), 1).solve(lambda t, x: 20 * climbing(t, x), start, (0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "cls"),
    [("geodesic-euler", GeodesicEuler), ("geodesic-midpoint", GeodesicMidpoint), ("geodesic-rk4", GeodesicRK4)],
)
def test_registered_under_its_name(name, cls):
    assert registry.find(Solver.group, name).package == "fmkit-riemannian"
    assert registry.load(Solver.group, name) is cls
