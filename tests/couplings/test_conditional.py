"""Optimal transport that leaves x0 independent of the condition."""

import itertools

import pytest
import torch

from fmkit.couplings import ConditionalOptimalTransport, OptimalTransport
from fmkit.couplings.conditional import weight_of
from fmkit.errors import ArgumentError


def draws(seeded, n, d=2):
    x = torch.randn(2, n, d, generator=seeded(0), dtype=torch.float64)
    return x[0], 2 * x[1] + 1


def cost_of(x0, x1, i0, i1):
    return (x0[i0] - x1[i1]).square().flatten(1).sum(1).sum().item()


def test_no_permutation_that_keeps_labels_is_cheaper(seeded):
    x0, x1 = draws(seeded, 7)
    labels = torch.tensor([2, 0, 2, 0, 2, 5, 0])
    i0, i1 = ConditionalOptimalTransport().pair(x0, x1, None, labels)
    assert torch.equal(labels[i0], labels[i1])
    assert i1.tolist() == list(range(7))
    keeping = (p for p in itertools.permutations(range(7)) if torch.equal(labels[list(p)], labels))
    best = min(cost_of(x0, x1, list(p), list(range(7))) for p in keeping)
    assert cost_of(x0, x1, i0, i1) == pytest.approx(best, rel=1e-12)


def test_labels_of_x0_that_lie_otherwise(seeded):
    x0, x1 = draws(seeded, 60)
    labels1 = torch.arange(60) % 3
    labels0 = labels1.flip(0)
    i0, i1 = ConditionalOptimalTransport().pair(x0, x1, labels0, labels1)
    assert torch.equal(labels0[i0], labels1[i1])
    assert i0.sort().values.tolist() == list(range(60))


@pytest.mark.parametrize("labels", [torch.bool, torch.int32, torch.uint8])
def test_any_integers_are_labels(labels, seeded):
    x0, x1 = draws(seeded, 20)
    y = torch.arange(20) % 2
    assert torch.equal(
        ConditionalOptimalTransport().pair(x0, x1, None, y.to(labels))[0],
        ConditionalOptimalTransport().pair(x0, x1, None, y)[0],
    )


def test_a_row_of_labels_is_one_label(seeded):
    x0, x1 = draws(seeded, 40)
    rows = torch.randint(2, (40, 3), generator=seeded(4))
    i0, i1 = ConditionalOptimalTransport().pair(x0, x1, None, rows)
    assert torch.equal(rows[i0], rows[i1])


def test_given_its_label_the_noise_is_as_it_was_drawn(seeded):
    """What plain optimal transport breaks: labels on either side of the origin draw the noise apart."""
    n = 400
    x0 = torch.randn(n, 2, generator=seeded(0), dtype=torch.float64)
    labels = torch.arange(n) % 2
    x1 = torch.randn(n, 2, generator=seeded(1), dtype=torch.float64) + 4 * (2 * labels[:, None] - 1)
    means = {}
    for coupling in (OptimalTransport(), ConditionalOptimalTransport()):
        i0, i1 = coupling.pair(x0, x1, None, labels)
        means[type(coupling)] = x0[i0][labels[i1] == 1].mean(0).norm().item()
    drawn = x0[labels == 1].mean(0).norm().item()
    assert means[ConditionalOptimalTransport] == pytest.approx(drawn, abs=1e-12)
    assert means[OptimalTransport] == pytest.approx((2 / torch.pi) ** 0.5, abs=0.1)  # half of a normal law


def test_vectors_keep_their_marginal_better_the_greater_the_weight(seeded):
    x0, x1 = draws(seeded, 200)
    c = x1[:, :1]
    apart = []
    for weight in (0.0, 1.0, 100.0, 1e8):
        i0, i1 = ConditionalOptimalTransport(weight).pair(x0, x1, None, c)
        assert i0.sort().values.tolist() == list(range(200))
        apart.append((c[i0] - c[i1]).square().mean().item())
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] == 0  # no two conditions are equal, so each keeps its own
    assert torch.equal(ConditionalOptimalTransport(0.0).pair(x0, x1, None, c)[0], OptimalTransport().pair(x0, x1)[0])


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_no_permutation_is_cheaper_under_the_cost_with_conditions(weight, seeded):
    x0, x1 = draws(seeded, 6)
    c = torch.randn(6, 2, generator=seeded(2), dtype=torch.float64)
    i0, _ = ConditionalOptimalTransport(weight).pair(x0, x1, None, c)

    def cost(p):
        return cost_of(x0, x1, p, list(range(6))) + weight * cost_of(c, c, p, list(range(6)))

    assert cost(i0.tolist()) == pytest.approx(min(map(cost, map(list, itertools.permutations(range(6))))), rel=1e-12)


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3])
def test_the_weight_is_the_greatest_under_which_so_many_pairs_are_better(ratio, seeded):
    x0, x1 = draws(seeded, 50)
    c = torch.randn(50, 3, generator=seeded(2), dtype=torch.float64)
    w = weight_of(x0, x1, c, c, ratio)

    def share(weight):  # by the definition
        cost = torch.cdist(x0, x1).square() + weight * torch.cdist(c, c).square()
        return ((cost <= cost.diagonal()).sum().item() - 50) / (50 * 49)

    assert share(w * (1 - 1e-9)) == pytest.approx(ratio, abs=1e-9)
    assert share(w * (1 + 1e-9)) == pytest.approx(ratio - 1 / (50 * 49), abs=1e-9)


def test_the_pair_that_was_drawn_pays_for_its_conditions_too(seeded):
    """x0's conditions are near their partner's and not equal: a price is what is paid beyond the drawn pair."""
    n = 20
    x0, x1 = draws(seeded, n)
    c1 = 10 * torch.arange(n, dtype=torch.float64)[:, None]
    c0 = c1 + torch.rand(n, 1, generator=seeded(2), dtype=torch.float64)
    w = weight_of(x0, x1, c0, c1, 0.1)

    def better(weight):
        cost = torch.cdist(x0, x1).square() + weight * torch.cdist(c0, c1).square()
        return (cost <= cost.diagonal()).sum().item() - n

    assert better(w * (1 - 1e-7)) == 38
    assert better(w * (1 + 1e-7)) == 37


def test_the_least_share_is_one_pair(seeded):
    x0, x1 = draws(seeded, 5)
    c = torch.randn(5, 3, generator=seeded(2), dtype=torch.float64)
    assert weight_of(x0, x1, c, c, 0.01) == weight_of(x0, x1, c, c, 1 / 20) > weight_of(x0, x1, c, c, 2 / 20)


def test_equal_pairs_of_one_condition_may_change_places_at_any_weight():
    """Of twelve pairs four are equal to the drawn one, at no price: the fifth is the best of those that have one."""
    x0, x1 = torch.tensor([[[0.0], [0.0], [3.0], [3.0]], [[1.0], [4.0], [-1.0], [2.0]]]).double()
    c = torch.tensor([[0.0], [0.0], [1.0], [1.0]]).double()
    limits = [x1[j] ** 2 - (x1[j] - 3) ** 2 for j in (0, 1)] + [(x1[j] - 3) ** 2 - x1[j] ** 2 for j in (2, 3)]
    assert weight_of(x0, x1, c, c, 5.5 / 12) == max(limits)


def test_equal_conditions_leave_plain_optimal_transport(seeded):
    x0, x1 = draws(seeded, 30)
    for c in (torch.ones(30, 2), torch.zeros(30, dtype=torch.int64)):
        assert torch.equal(ConditionalOptimalTransport().pair(x0, x1, None, c)[0], OptimalTransport().pair(x0, x1)[0])


@pytest.mark.parametrize(
    ("cond0", "cond1", "message"),
    [
        (None, None, "no conditions for x1; without any, OptimalTransport"),
        (None, torch.arange(5), "cond1 has 5 conditions for 6"),
        (
            torch.tensor([0, 0, 0, 1, 1, 1]),
            torch.tensor([0, 0, 1, 1, 1, 1]),
            r"label \[0\] is on 3 rows of x0 and 2",
        ),
        (None, ["a"] * 6, "cond1 is a list, expected a tensor"),
        (None, torch.full((6, 1), torch.nan), "cond1 has non-finite values"),
        (torch.arange(6), torch.randn(6, 1), "expected conditions of one kind"),
        (torch.randn(6, 2), torch.randn(6, 1), "expected conditions of one kind"),
    ],
)
def test_conditions_without_a_plan_are_refused(cond0, cond1, message, seeded):
    with pytest.raises(ArgumentError, match=message):
        ConditionalOptimalTransport().pair(*draws(seeded, 6), cond0, cond1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": -1.0}, "^weight is -1.0, expected a number from 0"),
        ({"weight": "x"}, "weight is 'x'"),
        ({"ratio": 0.0}, "^ratio is 0.0, expected a share between 0 and 1"),
        ({"ratio": 1.0}, "^ratio is 1.0"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        ConditionalOptimalTransport(**wrong)


def test_rows_of_one_condition_may_always_change_places(seeded):
    """Between equal conditions any weight is low enough; where such pairs are enough, w is the greatest finite one."""
    x0, x1 = draws(seeded, 40)
    c = (torch.arange(40) % 2).double()[:, None]
    limits = []
    near, apart = torch.cdist(x0, x1).square(), torch.cdist(c, c).square()
    for j in range(40):
        for i in range(40):
            if apart[i, j] > 0:
                limits.append(((near[j, j] - near[i, j]) / apart[i, j]).item())
    assert weight_of(x0, x1, c, c, 0.01) == pytest.approx(max(limits), rel=1e-12)
    better = sum((near[i, j] <= near[j, j]).item() for i in range(40) for j in range(40) if i != j and not apart[i, j])
    place = int(0.3 * 40 * 39) - better  # after those between equal conditions
    assert weight_of(x0, x1, c, c, 0.3) == pytest.approx(sorted(limits, reverse=True)[place - 1], rel=1e-9)


@pytest.mark.parametrize("n", [1, 2])
def test_where_there_is_nothing_to_weigh_the_weight_is_zero(n):
    x, c = torch.zeros(n, 2).double(), torch.ones(n, 1).double()
    assert weight_of(x, x + 1, c, c, 0.1) == 0
    assert ConditionalOptimalTransport().pair(x, x, None, c)[0].sort().values.tolist() == list(range(n))


def test_a_weight_is_never_negative(seeded):
    """Every other pair is worse than the one that was drawn: nothing can be gained, whatever the conditions."""
    x = 10.0 * torch.arange(5, dtype=torch.float64)[:, None]
    c = torch.randn(5, 1, generator=seeded(0), dtype=torch.float64)
    assert weight_of(x, x, c, c, 0.2) == 0


def test_a_weight_is_in_units_of_squared_distance_and_condition(seeded):
    x0, x1 = draws(seeded, 30)
    c = torch.randn(30, 2, generator=seeded(2), dtype=torch.float64)
    w = weight_of(x0, x1, c, c, 0.1)
    assert weight_of(3 * x0, 3 * x1, c, c, 0.1) == pytest.approx(9 * w, rel=1e-9)
    assert weight_of(x0, x1, 2 * c, 2 * c, 0.1) == pytest.approx(w / 4, rel=1e-9)
    assert torch.equal(
        ConditionalOptimalTransport(ratio=0.1).pair(x0, x1, None, c)[0],
        ConditionalOptimalTransport(w).pair(x0, x1, None, c)[0],
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"cond0": torch.arange(5)}, "^cond0 has 5 conditions for 6"), ({"generator": 7}, "^generator is 7")],
)
def test_what_comes_with_the_batches_is_looked_at(wrong, message, seeded):
    with pytest.raises(ArgumentError, match=message):
        ConditionalOptimalTransport().pair(*draws(seeded, 6), **{"cond1": torch.arange(6), **wrong})


def test_a_ratio_that_is_no_number_is_named():
    with pytest.raises(ArgumentError, match="ratio is 'x'"):
        ConditionalOptimalTransport(ratio="x")
