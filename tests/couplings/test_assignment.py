"""The head start changes how fast the optimum is found, and never which."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fmkit.couplings import assignment
from fmkit.couplings.assignment import assign, potentials, squared_distances


def gaussian(n, d, seeded):
    x = torch.randn(2, n, d, generator=seeded(0), dtype=torch.float64)
    return x[0], 2 * x[1] + 1


def clustered(n, d, seeded):
    x0, x1 = gaussian(n, d, seeded)
    centres = 8 * torch.randn(5, d, generator=seeded(1), dtype=torch.float64)
    return x0, 0.01 * x1 + centres[torch.arange(n) % 5]


def tied(n, d, seeded):
    """Few different points, so that many permutations are best."""
    x0, x1 = gaussian(n, d, seeded)
    return x0[torch.arange(n) % 7], x1[torch.arange(n) % 11]


def outlying(n, d, seeded):
    x0, x1 = gaussian(n, d, seeded)
    x1[3] *= 1e6
    return x0, x1


def on_a_lattice(n, d, seeded):
    x0, x1 = gaussian(n, d, seeded)
    return x0.round(), x1.round()


def of(kind, scale):
    return lambda n, d, seeded: tuple(scale * x for x in kind(n, d, seeded))


KINDS = {
    "gaussian": gaussian,
    "clustered": clustered,
    "tied": tied,
    "outlying": outlying,
    "on a lattice": on_a_lattice,
    "tiny": of(clustered, 1e-200),
    "huge": of(gaussian, 1e200),
    "one point": of(gaussian, 0.0),
}


def cost_of(x0, x1, i0):
    return (x0[i0] - x1).square().sum().item()


@pytest.mark.parametrize("d", [1, 2, 64])
@pytest.mark.parametrize("n", [assignment.SMALL, assignment.SMALL + 1, 300])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_as_cheap_as_the_solver_without_a_head_start(kind, n, d, seeded):
    x0, x1 = kind(n, d, seeded)
    i0 = assign(x0, x1)
    assert i0.dtype == torch.int64
    assert i0.sort().values.tolist() == list(range(n))
    unit = max(x0.abs().max().item(), 1e-300)
    a, b = (x0 / unit).numpy(), (x1 / unit).numpy()
    best = linear_sum_assignment(((b[:, None] - a) ** 2).sum(-1))[1]
    assert cost_of(x0 / unit, x1 / unit, i0) == pytest.approx(cost_of(x0 / unit, x1 / unit, best), rel=1e-11)


def test_the_optimum_is_that_of_float64(seeded):
    """The head start is computed in float32, where these points are all one."""
    x = torch.randn(2, 100, 2, generator=seeded(0), dtype=torch.float64)
    x0, x1 = x[0], torch.tensor([1e3, 0.0]) + 1e-7 * x[1]
    x0[0] = torch.tensor([-1e4, 1e4])
    far = assign(x0, x1)
    cost = ((x1[:, None] - x1.mean(0)) * -2 * x0).sum(-1).numpy()  # up to potentials
    best = linear_sum_assignment(cost)[1]
    assert cost[np.arange(100), far].sum() == pytest.approx(cost[np.arange(100), best].sum(), rel=1e-8)


def test_points_of_fewer_digits_are_computed_with_in_float64(seeded):
    x0, x1 = (1e4 + torch.randn(2, 80, 2, generator=seeded(0))).float()
    assert torch.equal(assign(x0, x1), assign(x0.double(), x1.double()))


@pytest.mark.parametrize("levels", [assignment.LEVELS, assignment.CAREFUL])
def test_an_annealing_cools(levels):
    assert sorted(levels, reverse=True) == list(levels)
    assert levels[-1] > 0


@pytest.mark.parametrize("wrong", ["noise", "zeros", "reversed"])
def test_wrong_potentials_do_not_change_the_optimum(wrong, monkeypatch, seeded):
    def rough(cost):
        noise = torch.randn(2, len(cost), generator=seeded(5)).numpy()
        return {"noise": tuple(noise), "zeros": tuple(0 * noise), "reversed": tuple(-10 * f for f in true(cost))}[wrong]

    true = potentials
    x0, x1 = clustered(200, 2, seeded)
    best = cost_of(x0, x1, assign(x0, x1))
    monkeypatch.setattr(assignment, "potentials", rough)
    assert cost_of(x0, x1, assign(x0, x1)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", [gaussian, clustered])
@pytest.mark.parametrize("d", [2, 64])
def test_the_potentials_are_nearly_dual_optimal(kind, d, seeded):
    """Made feasible, they bound the optimal cost from below (weak duality), and here within a few per cent."""
    x0, x1 = kind(256, d, seeded)
    cost = squared_distances(x1, x0)
    f, _ = potentials(cost.float().numpy())
    g = (cost - torch.from_numpy(f).double()[:, None]).amin(0)
    f = (cost - g).amin(1)
    best = cost_of(x0, x1, assign(x0, x1))
    assert 0.9 * best < (f.sum() + g.sum()).item() <= best * (1 + 1e-12)


@pytest.mark.parametrize("cost", [torch.zeros(80, 80), torch.full((80, 80), torch.inf), torch.full((80, 80), 3e38)])
def test_where_float32_fails_there_are_no_potentials(cost):
    f, g = potentials(cost.numpy())
    assert np.isfinite(f).all()
    assert np.isfinite(g).all()


def test_squared_distances_of_unequal_batches(seeded):
    a, b = torch.randn(5, 3, generator=seeded(0)).double(), torch.randn(7, 3, generator=seeded(1)).double()
    assert torch.allclose(squared_distances(a, b), torch.cdist(a, b).square(), atol=1e-12)


@pytest.mark.parametrize("n", [assignment.SMALL, 256])
@pytest.mark.parametrize("kind", [gaussian, clustered, of(gaussian, 1e-3)])
def test_the_solver_is_handed_a_cost_that_is_nearly_solved(kind, n, monkeypatch, seeded):
    """Not negative, a zero in every row and column; with the head start nearly nothing is left along the optimum."""
    handed = []

    def watched(cost):
        handed.append(cost.copy())
        return linear_sum_assignment(cost)

    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", watched)
    x0, x1 = kind(n, 2, seeded)
    i0 = assign(x0, x1)
    (left,) = handed
    assert left.min() == 0
    assert (left.min(0) < 1e-12 * left.max()).all()
    assert (left.min(1) == 0).all()
    if n > assignment.SMALL:
        assert left[np.arange(n), i0].sum() < 0.02 * n * left.mean()
    else:
        x0, x1 = x0 - x0.mean(0), x1 - x1.mean(0)
        raw = ((x1[:, None] - x0) ** 2).sum(-1).numpy()
        raw -= raw.min(0)
        raw -= raw.min(1, keepdims=True)
        assert np.allclose(left / left.max(), raw / raw.max())
