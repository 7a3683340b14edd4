"""Path energies against closed forms: straight flows, rotations, and Gaussians that meet."""

import math

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError, CombinationError
from fmkit.metrics import normalized_path_energy, path_energy
from fmkit.solvers import Dopri5, Euler, EulerMaruyama


class Linear(fmkit.fields.VectorField):
    """dx/dt = A x + b."""

    def __init__(self, matrix, shift=(0.0, 0.0)):
        super().__init__()
        self.matrix, self.shift = torch.tensor(matrix).double(), torch.tensor(shift).double()

    def forward(self, t, x, cond=None):
        v = x @ self.matrix.T + self.shift
        return v if cond is None else v * cond[:, None]


def flow_of(field, solver=None, start=None, **rest):
    start = fmkit.sources.Gaussian() if start is None else start
    return fmkit.Flow(start, field, solver or Dopri5(1e-9, 1e-9), event_shape=2, **rest)


@pytest.fixture
def x0():
    return torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


ZERO = [[0.0, 0.0], [0.0, 0.0]]


def test_a_straight_flow_has_the_energy_of_its_chord_and_no_curvature(x0):
    ways = path_energy(flow_of(Linear(ZERO, (3.0, 4.0))), x0)
    torch.testing.assert_close(ways.x, x0 + torch.tensor([3.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(ways.energy, torch.full((50,), 25.0, dtype=torch.float64))
    assert ways.curvature.abs().max() < 1e-9


@pytest.mark.parametrize("angle", [0.5, math.pi])
def test_a_rotation_has_the_curvature_of_its_arc_over_its_chord(x0, angle):
    """|v| = w r all along, and the chord of the arc w r is 2 r sin(w/2)."""
    ways = path_energy(flow_of(Linear([[0.0, -angle], [angle, 0.0]])), x0)
    r2 = x0.square().sum(1)
    torch.testing.assert_close(ways.energy, angle**2 * r2, rtol=1e-7, atol=0)
    torch.testing.assert_close(ways.curvature, (angle**2 - 4 * math.sin(angle / 2) ** 2) * r2, rtol=1e-6, atol=1e-8)


def test_the_flow_that_stretches_has_the_energy_of_an_exponential(x0):
    """x_t = e^{at} x_0: the integral of a² e^{2at} is a (e^{2a} - 1)/2; the displacement (e^a - 1)²."""
    a = 0.7
    ways = path_energy(flow_of(Linear([[a, 0.0], [0.0, a]])), x0)
    r2 = x0.square().sum(1)
    torch.testing.assert_close(ways.energy, a * math.expm1(2 * a) / 2 * r2, rtol=1e-7, atol=0)
    torch.testing.assert_close(ways.displacement, math.expm1(a) ** 2 * r2, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("mean", "std"), [((3.0, 4.0), 1.0), ((0.0, 0.0), 2.0), ((1.0, -1.0), 0.5)])
def test_gaussians_under_the_optimal_map_have_no_excess_energy(mean, std):
    """x_t = (1 - t) x0 + t (m + s x0) is the optimal way: K is W2² = |m|² + d (s - 1)², its sample mean exactly so.

    The velocity at (t, x) is m + (s - 1) x0 with x0 = (x - t m)/(1 + t (s - 1)).
    """

    class Optimal(fmkit.fields.VectorField):
        def forward(self, t, x, cond=None):
            t, m = t[:, None], torch.tensor(mean, dtype=torch.float64)
            return m + (std - 1) * (x - t * m) / (1 + t * (std - 1))

    z = torch.randn(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = (z - z.mean(0)) / z.std(0, correction=0)  # a sample with the moments of the law
    ways = path_energy(flow_of(Optimal()), z)
    least = sum(m * m for m in mean) + 2 * (std - 1) ** 2
    assert ways.energy.mean().item() == pytest.approx(least, rel=1e-7)
    assert ways.curvature.abs().max() < 1e-7
    assert normalized_path_energy(ways.energy.mean().item(), least) < 1e-7


def test_the_independent_coupling_of_two_gaussians_wastes_a_known_share():
    """CondOT from N(0, I) to N(0, s² I): x_t = sqrt(V) x0, V = (1-t)² + t² s², so K is d times the integral of

    (d sqrt(V)/dt)²; by the trapezoidal rule on a fine grid here.
    """
    s = 3.0
    oracle = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[0.0, 0.0]], std=s)
    z = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = z / z.square().mean().sqrt()
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    spread = ((1 - t) ** 2 + t**2 * s**2).sqrt()
    rate = (t * s**2 - (1 - t)) / spread
    wanted = 2 * torch.trapezoid(rate.square(), t).item()
    energy = path_energy(flow_of(oracle), z).energy.mean().item()
    assert energy == pytest.approx(wanted, rel=1e-6)
    least = 2 * (s - 1) ** 2
    assert normalized_path_energy(energy, least) == pytest.approx((wanted - least) / least, rel=1e-5)
    assert energy > 1.1 * least


def test_under_euler_the_energy_is_the_sum_of_its_steps(x0):
    """The protocol of the published table; and the curvature that of the steps' deviations from the chord."""
    field, n = Linear([[0.0, -1.0], [1.0, 0.3]], (0.5, 0.0)), 7
    x, steps = x0, []
    for _ in range(n):
        steps.append(field.forward(None, x))
        x = x + steps[-1] / n
    v = torch.stack(steps)
    ways = path_energy(flow_of(field, Euler(n)), x0)
    torch.testing.assert_close(ways.x, x)
    torch.testing.assert_close(ways.energy, v.square().sum(2).mean(0))
    torch.testing.assert_close(ways.curvature, (v - (x - x0)).square().sum(2).mean(0))


def test_the_condition_and_another_solver_are_honoured(x0):
    flow, cond = flow_of(Linear(ZERO, (1.0, 0.0))), torch.arange(50.0, dtype=torch.float64)
    torch.testing.assert_close(path_energy(flow, x0, cond).energy, cond**2)
    torch.testing.assert_close(path_energy(flow, x0, 2.0).energy, torch.full((50,), 4.0, dtype=torch.float64))
    turn = flow_of(Linear([[0.0, -1.0], [1.0, 0.0]]))
    coarse = path_energy(turn, x0, solver=Euler(2))
    torch.testing.assert_close(coarse.energy, x0.square().sum(1) * (1 + 1.25) / 2)  # |x|² grows by 1 + 1/4 a step


@pytest.mark.parametrize(
    ("energy", "distance", "wanted"), [(3.0, 2.0, 0.5), (1.0, 2.0, 0.5), (2.0, 2.0, 0.0), (0.0, 4.0, 1.0)]
)
def test_the_normalized_energy_is_the_relative_distance(energy, distance, wanted):
    assert normalized_path_energy(energy, distance) == pytest.approx(wanted)


def test_mistakes_are_refused(x0):
    flow = flow_of(Linear(ZERO))
    with pytest.raises(ArgumentError, match=r"x has events of shape \(3,\), this flow's are \(2,\)"):
        path_energy(flow, torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="x0"):
        path_energy(flow, torch.zeros(0, 2))
    with pytest.raises(ArgumentError, match="49 conditions for 50 samples"):
        path_energy(flow, x0, torch.zeros(49))
    with pytest.raises(CombinationError, match="a path energy is of an ODE"):
        path_energy(flow, x0, solver=EulerMaruyama())
    with pytest.raises(ArgumentError, match="expected a positive W2²"):
        normalized_path_energy(1.0, 0.0)
    with pytest.raises(ArgumentError, match="energy is -1.0, expected 0 or more"):
        normalized_path_energy(-1.0, 1.0)
    with pytest.raises(ArgumentError, match="energy is nan, expected a number"):
        normalized_path_energy(math.nan, 1.0)
