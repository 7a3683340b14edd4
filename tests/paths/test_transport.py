"""CondOT against equations 20 to 23, and Polynomial as CondOT in another time."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import CondOT, Polynomial


def draws(seeded, n=200):
    return [torch.randn(n, 3, generator=seeded(i), dtype=torch.float64) for i in range(2)]


@pytest.mark.parametrize("sigma_min", [0.0, 1e-4, 0.1])
def test_condot_velocity_is_equation_21(sigma_min, seeded):
    """u = (x1 - (1 - sigma_min) x) / (1 - (1 - sigma_min) t)."""
    x0, x1 = draws(seeded)
    t = torch.rand(200, 1, generator=seeded(2), dtype=torch.float64) * 0.99
    point = CondOT(sigma_min).sample(t[:, 0], x0, x1)
    want = (x1 - (1 - sigma_min) * point.x) / (1 - (1 - sigma_min) * t)
    assert ((point.velocity - want).abs().max() / want.abs().max()).item() < 1e-12
    # eq. 23's target, along the straight line from x0 (eq. 22)
    torch.testing.assert_close(point.velocity, x1 - (1 - sigma_min) * x0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(point.x, (1 - (1 - sigma_min) * t) * x0 + t * x1, rtol=1e-14, atol=1e-14)


def test_condot_begins_at_the_source_and_ends_at_the_data(seeded):
    x0, x1 = draws(seeded)
    assert torch.equal(CondOT().sample(0.0, x0, x1).x, x0)
    assert torch.equal(CondOT().sample(1.0, x0, x1).x, x1)
    torch.testing.assert_close(CondOT(0.2).sample(1.0, x0, x1).x, x1 + 0.2 * x0)
    assert CondOT().interval == (0.0, 1.0)


@pytest.mark.parametrize("n", [1.0, 2.0, 3.5])
def test_polynomial_is_condot_at_time_t_to_the_n(n, seeded):
    """x_t = y(t^n) with y the straight line, so dx/dt = n t^(n-1) (x1 - x0)."""
    x0, x1 = draws(seeded)
    t = torch.rand(200, generator=seeded(2), dtype=torch.float64)
    t[0], t[1] = 0.0, 1.0
    point, line = Polynomial(n).sample(t, x0, x1), CondOT().sample(t**n, x0, x1)
    torch.testing.assert_close(point.x, line.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(point.velocity, (n * t ** (n - 1))[:, None] * (x1 - x0), rtol=1e-12, atol=1e-13)


def test_polynomials_default_is_quadratic():
    half = torch.tensor([0.5], dtype=torch.float64)
    assert Polynomial().alpha(half).item() == 0.25
    assert Polynomial().sigma(half).item() == 0.75


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, float("nan")])
def test_sigma_min_out_of_range_is_refused(value):
    with pytest.raises(ArgumentError, match=rf"sigma_min is {value}, expected .* \[0, 1\)"):
        CondOT(value)


@pytest.mark.parametrize("value", [0.5, -1.0, float("nan"), float("inf")])
def test_powers_out_of_range_are_refused(value):
    with pytest.raises(ArgumentError, match=rf"n is {value}, expected a power of at least 1"):
        Polynomial(value)
