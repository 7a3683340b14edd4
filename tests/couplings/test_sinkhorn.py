"""The entropic plan is known by two properties: its marginals, and log P + C/e = f_i + g_j."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fmkit.couplings import OptimalTransport, Sinkhorn, sinkhorn
from fmkit.couplings.sinkhorn import entropic_plan
from fmkit.errors import ArgumentError


def draws(seeded, n, d=2):
    x = torch.randn(2, n, d, generator=seeded(0), dtype=torch.float64)
    return x[0], 2 * x[1] + 1


def cost_of(x0, x1):
    return torch.cdist(x0, x1).square()


def plan_of(x0, x1, epsilon, tolerance=1e-9, iterations=20_000):
    weights = torch.full((len(x0),), 1 / len(x0), dtype=torch.float64)
    return entropic_plan(cost_of(x0, x1), weights, epsilon, tolerance, iterations)


@pytest.mark.parametrize("epsilon", [100.0, 1.0, 0.1, 0.03])
def test_the_plan_is_the_one_with_these_marginals_of_this_form(epsilon, seeded):
    x0, x1 = draws(seeded, 40)
    plan = plan_of(x0, x1, epsilon)
    assert torch.allclose(plan.sum(0), torch.full((40,), 1 / 40).double(), atol=1e-9)
    assert torch.allclose(plan.sum(1), torch.full((40,), 1 / 40).double(), atol=1e-15)
    exponent = plan.log() + cost_of(x0, x1) / epsilon
    doubly = exponent - exponent[:1] - exponent[:, :1] + exponent[:1, :1]  # zero for f_i + g_j, and for nothing else
    normal = plan > 1e-290  # nearer to zero there are fewer digits, or none
    normal &= normal[:1] & normal[:, :1] & normal[0, 0]
    assert normal.double().mean().item() > 0.2
    assert doubly[normal].abs().max().item() < 1e-9


def test_unequal_weights(seeded):
    x0, _ = draws(seeded, 30)
    weights = torch.rand(30, generator=seeded(3), dtype=torch.float64) + 0.1
    weights /= weights.sum()
    plan = entropic_plan(cost_of(x0, x0), weights, 0.5, 1e-10, 10_000)
    assert torch.allclose(plan.sum(0), weights, atol=1e-9)
    assert torch.allclose(plan.sum(1), weights, atol=1e-9)
    assert torch.allclose(plan, plan.T, atol=1e-9)  # the problem is symmetric, and the solution unique


@pytest.mark.parametrize("n", [40, 150])
def test_as_an_independent_implementation_has_it(n, seeded):
    ot = pytest.importorskip("ot")
    x0, x1 = draws(seeded, n)
    theirs = ot.sinkhorn([], [], cost_of(x0, x1).numpy(), 1.0, method="sinkhorn_log", stopThr=1e-11)
    assert np.abs(plan_of(x0, x1, 1.0).numpy() - theirs).max() < 1e-8


def test_pairs_are_drawn_from_the_plan(seeded, monkeypatch):
    n, repeats = 8, 4000
    x0, x1 = draws(seeded, n)
    plan, counts, generator = plan_of(x0, x1, 2.0), torch.zeros(n, n).double(), seeded(1)
    monkeypatch.setattr(sinkhorn, "entropic_plan", lambda *arguments: plan)  # the same each time; computed once
    coupling = Sinkhorn(2.0)
    for _ in range(repeats):
        i0, i1 = coupling.pair(x0, x1, generator=generator)
        assert i1.tolist() == list(range(n))
        counts[i0, i1] += 1
    expected = plan * n * repeats
    assert ((counts - expected).square() / expected).sum().item() < 64 + 5 * (2 * 64) ** 0.5  # chi squared


def test_without_entropy_it_is_optimal_transport(seeded):
    x0, x1 = draws(seeded, 30)
    assert torch.equal(
        Sinkhorn(1e-3).pair(x0, x1, generator=seeded(0))[0],
        OptimalTransport().pair(x0, x1)[0],
    )


def test_with_all_entropy_it_is_independent(seeded):
    x0, x1 = draws(seeded, 20)
    assert torch.allclose(plan_of(x0, x1, 1e9), torch.full((20, 20), 1 / 400).double(), rtol=1e-6)


def test_the_schrodinger_bridge_of_two_gaussians(seeded):
    """Between N(0, 1) and N(0, 1) the entropic plan has the correlation sqrt(1 + (e/4)²) - e/4 (Janati et al. 2020)."""
    quantiles = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    x = (2 * quantiles - 1).erfinv()[:, None] * 2**0.5
    x /= x.square().mean().sqrt()
    e = 1.0
    plan = plan_of(x, x, e, 1e-6)
    assert (x.T @ plan @ x).item() == pytest.approx((1 + (e / 4) ** 2) ** 0.5 - e / 4, abs=2e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e150])
def test_the_default_entropy_has_the_scale_of_the_data(scale, seeded):
    x0, x1 = draws(seeded, 30)
    ours = Sinkhorn().pair(x0 * scale, x1 * scale, generator=seeded(1))
    assert torch.equal(ours[0], Sinkhorn().pair(x0, x1, generator=seeded(1))[0])
    mean = cost_of(x0, x1).mean().item()
    assert torch.equal(ours[0], Sinkhorn(0.05 * mean).pair(x0, x1, generator=seeded(1))[0])


def test_where_a_kernel_would_underflow_the_plan_is_right(seeded):
    """exp(-C/e) is zero in float64 for every pair; peers answer with the independent coupling."""
    x0, x1 = draws(seeded, 40)
    far = x1 + 1e4
    assert (-cost_of(x0, far) / 0.5).exp().max().item() == 0
    with_offset, without = (
        Sinkhorn(0.5).pair(x0, far, generator=seeded(1)),
        Sinkhorn(0.5).pair(x0, x1, generator=seeded(1)),
    )
    assert torch.equal(with_offset[0], without[0])  # a shift of all x1 changes the cost by potentials
    plan = plan_of(x0, x1 * 1e3, 1e3)  # and this one has columns without mass at first
    assert (plan.sum(0) - 1 / 40).abs().sum().item() < 1e-9


def test_a_plan_that_is_not_reached_is_an_error_that_says_so(seeded):
    x0, x1 = draws(seeded, 60)
    with pytest.raises(ArgumentError, match=r"not reached after 40 sweeps: its marginals are .* off, expected 1.0e-04"):
        Sinkhorn(1e-4, iterations=40).pair(x0, x1)


def test_one_point_and_equal_points():
    assert [i.tolist() for i in Sinkhorn().pair(torch.ones(1, 2), torch.zeros(1, 2))] == [[0], [0]]
    i0, i1 = Sinkhorn().pair(torch.zeros(5, 2), torch.zeros(5, 2))
    assert i1.tolist() == [0, 1, 2, 3, 4]
    assert bool(((i0 >= 0) & (i0 < 5)).all())


@pytest.mark.parametrize(("mass", "count"), [(0.5, 10), (0.7, 14), (0.05, 1), (0.97, 19)])
def test_a_partial_plan_moves_that_mass_and_no_more(mass, count, seeded):
    x0, x1 = draws(seeded, 20)
    i0, i1 = Sinkhorn(1.0, mass=mass).pair(x0, x1, generator=seeded(0))
    assert len(i0) == len(i1) == count
    assert len(i1.unique()) == count


def test_without_entropy_the_partial_plan_is_the_cheapest(seeded):
    """An outlier is left alone. The cheapest partial assignment, by scipy: as many dummies as stay behind."""
    x0, x1 = draws(seeded, 20)
    x1[4] += 50
    i0, i1 = Sinkhorn(0.005, mass=0.75, iterations=200_000).pair(x0, x1, generator=seeded(0))
    padded = np.zeros((25, 25))
    padded[:20, :20], padded[20:, 20:] = cost_of(x0, x1), 1e6
    rows, columns = linear_sum_assignment(padded)
    best = {(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if i < 20 and j < 20}
    assert set(zip(i0.tolist(), i1.tolist(), strict=True)) == best
    assert 4 not in i1.tolist()


def test_who_moves_under_a_partial_plan_is_as_likely_as_its_mass(seeded, monkeypatch):
    x0, x1 = draws(seeded, 10)
    weights = torch.cat((torch.full((10,), 0.1).double(), torch.tensor([0.4]).double()))
    cost = torch.zeros(11, 11).double()
    cost[:10, :10], cost[10, 10] = cost_of(x0, x1), torch.inf
    whole = entropic_plan(cost, weights, 2.0, 1e-9, 10_000)
    plan = whole[:10, :10]

    def computed_once(given_cost, given_weights, epsilon, *_):
        assert torch.allclose(given_cost / epsilon, cost / 2)
        assert torch.allclose(given_weights, weights)
        return whole

    monkeypatch.setattr(sinkhorn, "entropic_plan", computed_once)
    counts, generator, repeats = torch.zeros(10, 10).double(), seeded(1), 4000
    coupling = Sinkhorn(2.0, mass=0.6)
    for _ in range(repeats):
        i0, i1 = coupling.pair(x0, x1, generator=generator)
        counts[i0, i1] += 1
    expected = plan * 10 * repeats
    assert expected.sum().item() == pytest.approx(6 * repeats)
    assert ((counts - expected).square() / expected).sum().item() < 100 + 5 * 200**0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 0}, "^epsilon is 0, expected a number above 0$"),
        ({"epsilon": -1.0}, "^epsilon is -1"),
        ({"mass": 0.0}, "^mass is 0.0, expected a number above 0 and at most 1"),
        ({"mass": 1.5}, "^mass is 1.5"),
        ({"tolerance": 2}, "^tolerance is 2"),
        ({"iterations": 0}, "^iterations is 0"),
        ({"epsilon": "small"}, "epsilon is 'small'"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        Sinkhorn(**wrong)


def test_a_mass_that_moves_nothing_is_refused(seeded):
    with pytest.raises(ArgumentError, match="a mass of 0.01 moves none of 20 samples; expected at least 0.025"):
        Sinkhorn(mass=0.01).pair(*draws(seeded, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_and_shapes(dtype, seeded):
    x0, x1 = (torch.randn(12, 2, 3, generator=seeded(k)).to(dtype) for k in range(2))
    i0, i1 = Sinkhorn().pair(x0, x1, generator=seeded(2))
    assert i0.dtype == i1.dtype == torch.int64
    same = Sinkhorn().pair(x0.double().flatten(1), x1.double().flatten(1), generator=seeded(2))
    assert torch.equal(i0, same[0])
