"""Minibatch OT: a permutation, the best one, with labels where they belong."""

import itertools

import pytest
import torch

from fmkit.couplings import OptimalTransport
from fmkit.errors import ArgumentError


def cost(x0, x1, i0, i1):
    return (x0[i0] - x1[i1]).square().flatten(1).sum(1).sum().item()


def draws(seeded, n, *event, dtype=torch.float64):
    x0 = torch.randn(n, *event, generator=seeded(0), dtype=torch.float64)
    return x0.to(dtype), (2 * torch.randn(n, *event, generator=seeded(1), dtype=torch.float64) + 1).to(dtype)


@pytest.mark.parametrize("event", [(), (2,), (2, 3, 4)])
def test_a_permutation_that_leaves_the_data_in_order(event, seeded):
    x0, x1 = draws(seeded, 50, *event)
    i0, i1 = OptimalTransport().pair(x0, x1)
    assert i0.dtype == i1.dtype == torch.int64
    assert i0.sort().values.tolist() == list(range(50))
    assert i1.tolist() == list(range(50))


@pytest.mark.parametrize("seed", range(5))
def test_no_permutation_is_cheaper(seed, seeded):
    x0 = torch.randn(6, 2, generator=seeded(seed), dtype=torch.float64)
    x1 = torch.randn(6, 2, generator=seeded(seed + 100), dtype=torch.float64) * 2 + 1
    got = cost(x0, x1, *OptimalTransport().pair(x0, x1))
    best = min(cost(x0, x1, list(p), list(range(6))) for p in itertools.permutations(range(6)))
    assert got == pytest.approx(best, rel=1e-12)


def test_as_cheap_as_an_independent_implementation(seeded):
    ot = pytest.importorskip("ot")
    x0, x1 = draws(seeded, 100, 3)
    plan_cost = ot.emd2([], [], torch.cdist(x0, x1).square().numpy()) * 100
    assert cost(x0, x1, *OptimalTransport().pair(x0, x1)) == pytest.approx(plan_cost, rel=1e-10)


def test_in_one_dimension_it_sorts(seeded):
    x0, x1 = draws(seeded, 200, 1)
    i0, i1 = OptimalTransport().pair(x0, x1)
    order = x1[i1].flatten().argsort()
    assert (x0[i0].flatten()[order].diff() >= 0).all()


def test_far_from_the_origin(seeded):
    """|a|² and |b|² are left out of the cost, so a common offset must not drown the differences."""
    x0, x1 = draws(seeded, 64, 2)
    near = OptimalTransport().pair(x0, x1)
    far = OptimalTransport().pair(x0 + 1e6, x1 + 1e6)
    assert cost(x0, x1, *far) == pytest.approx(cost(x0, x1, *near), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_solved_in_double(dtype, seeded):
    x0, x1 = draws(seeded, 20, 2, dtype=dtype)
    assert cost(x0.double(), x1.double(), *OptimalTransport().pair(x0, x1)) == pytest.approx(
        cost(x0.double(), x1.double(), *OptimalTransport().pair(x0.double(), x1.double())), rel=1e-12
    )


def test_nothing_is_drawn_and_conditions_are_not_looked_at(seeded):
    x0, x1 = draws(seeded, 20, 2)
    before = torch.get_rng_state()
    generator = seeded(0)
    state = generator.get_state()
    plain = OptimalTransport().pair(x0, x1)
    labelled = OptimalTransport().pair(x0, x1, None, torch.arange(20), generator=generator)
    assert torch.equal(plain[0], labelled[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), state)
    assert not OptimalTransport().independent


def test_gradients_do_not_reach_the_plan(seeded):
    x0, x1 = draws(seeded, 5, 2)
    i0, _ = OptimalTransport().pair(x0.requires_grad_(), x1)
    assert not i0.requires_grad


x = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("x0", "x1", "message"),
    [
        (x, x[:3], r"x0 has shape \(4, 2\) and x1 \(3, 2\); pairing needs equal shapes"),
        (x, x[:, :1], r"pairing needs equal shapes"),
        (x[:0], x[:0], r"x0 has shape \(0, 2\), expected a non-empty"),
        (x.long(), x, r"x0 has dtype torch\.int64, expected floating point"),
        (x, x.long(), r"x1 has dtype torch\.int64, expected floating point"),
        (x + float("nan"), x, "x0 has 8 non-finite values, the first in row 0"),
        (x, x + float("inf"), "x1 has 8 non-finite values"),
    ],
)
def test_batches_without_a_plan_are_refused(x0, x1, message):
    with pytest.raises(ArgumentError, match=message):
        OptimalTransport().pair(x0, x1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"cond0": [1, 2]}, "^cond0 has 2"), ({"cond1": [1, 2]}, "^cond1 has 2"), ({"generator": 7}, "^generator is")],
)
def test_what_comes_with_the_batches_is_looked_at(wrong, message, seeded):
    with pytest.raises(ArgumentError, match=message):
        OptimalTransport().pair(*draws(seeded, 5, 2), **wrong)
