"""What couplings cost and what they do to the marginals, against closed forms and POT."""

import math

import ot
import pytest
import torch

import fmkit
from fmkit.couplings import Coupling, Independent, OptimalTransport
from fmkit.errors import ArgumentError
from fmkit.metrics import coupling_diagnostics


class Fixed(Coupling):
    """The very indices it was made with."""

    def __init__(self, i0, i1):
        super().__init__()
        self.i0, self.i1 = torch.tensor(i0), torch.tensor(i1)

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        return self.i0, self.i1


class Replacing(Coupling):
    """Draws both ends with replacement, as from a dense plan."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i = torch.randint(len(x0), (len(x0),), generator=generator)
        return i, i


def normal(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_costs_by_hand():
    """Points 0, 1 against 0, 3: in order 0 and 4, crossed 9 and 1; at random the mean of all four distances, 3.5."""
    x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    crossed = coupling_diagnostics(Fixed([0, 1], [1, 0]), x0, x1)
    assert crossed[:3] == pytest.approx((5.0, 3.5, 2.0))
    assert coupling_diagnostics(Independent(), x0, x1)[:3] == pytest.approx((2.0, 3.5, 2.0))


def test_the_cost_at_random_is_the_mean_over_all_pairs():
    x0, x1 = normal(40, 3) + 5, 2 * normal(40, 3, 1)
    found = coupling_diagnostics(Independent(), x0, x1)
    assert found.independent_cost == pytest.approx(torch.cdist(x0, x1).square().mean().item())


def test_the_best_cost_is_pots_and_ot_has_it():
    x0, x1 = normal(60, 3), 2 * normal(60, 3, 1) + 1
    optimum = ot.emd2(ot.unif(60), ot.unif(60), ot.dist(x0.numpy(), x1.numpy()))
    independent, exact = (coupling_diagnostics(c, x0, x1) for c in (Independent(), OptimalTransport()))
    assert independent.optimal_cost == pytest.approx(optimum)
    assert exact.cost == pytest.approx(optimum)
    assert independent.cost > 1.2 * optimum
    assert (exact.lost_source, exact.lost_data) == (0, 0)


def test_a_shift_costs_its_square_at_the_best():
    x = normal(50, 2)
    found = coupling_diagnostics(OptimalTransport(), x, x.flip(0) + torch.tensor([3.0, 4.0]))
    assert found.cost == pytest.approx(25.0)
    assert found.optimal_cost == pytest.approx(25.0)


def test_drawing_with_replacement_loses_a_share_of_one_over_e():
    x = normal(4000, 1)
    found = coupling_diagnostics(Replacing(), x, x, generator=torch.Generator().manual_seed(0))
    assert found.lost_source == pytest.approx(math.exp(-1), abs=0.03)  # its deviation is 0.005
    assert found.lost_data == found.lost_source


def test_what_is_lost_is_counted_on_each_side():
    x0, x1 = normal(4, 2), normal(4, 2, 1)
    found = coupling_diagnostics(Fixed([0, 1, 2, 3], [0, 0, 0, 1]), x0, x1)
    assert (found.lost_source, found.lost_data) == (0.0, 0.5)
    # four of ten data points cannot all be in a pair: only the one drawn twice is a loss
    found = coupling_diagnostics(Fixed([0, 1, 2, 3], [9, 9, 0, 1]), x0, normal(10, 2, 1))
    assert (found.lost_source, found.lost_data) == (0.0, 0.25)


def test_labels_that_were_dropped_or_doubled():
    x, labels = normal(4, 2), torch.tensor([0, 0, 1, 2])
    assert coupling_diagnostics(Fixed([0, 1, 2, 3], [3, 1, 0, 2]), x, x, labels).label_error == 0
    # labels 0, 0, 0, 1: shares 3/4, 1/4, 0 instead of 1/2, 1/4, 1/4
    assert coupling_diagnostics(Fixed([0, 1, 2, 3], [0, 0, 1, 2]), x, x, labels).label_error == 0.25
    assert coupling_diagnostics(Fixed([0, 1, 2, 3], [0, 0, 1, 2]), x, x).label_error is None
    assert coupling_diagnostics(Independent(), x, x, normal(4, 1)).label_error is None


def test_a_condition_that_tells_x0_leaks_all_of_it():
    x = torch.tensor([[-1.0, 0.0], [1.0, 2.0]], dtype=torch.float64).repeat(10, 1)
    labels = torch.tensor([7, 3]).repeat(10)
    assert coupling_diagnostics(Independent(), x, x, labels).leak == pytest.approx(1.0)
    assert coupling_diagnostics(Independent(), x, x, 3 * x[:, :1] + 1).leak == pytest.approx(1.0)  # as a vector
    assert coupling_diagnostics(Independent(), x, x, x[:, 0]).leak == pytest.approx(1.0)  # as a number


def test_the_leak_by_the_analysis_of_variance():
    """Two groups of means 0 and 2, and variance 2/3 within each: by the table of sums of squares."""
    x = torch.tensor([[-1.0], [0.0], [1.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    within, total = 4 / (6 - 2), 10 / (6 - 1)
    found = coupling_diagnostics(Independent(), x, x, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.leak == pytest.approx(1 - within / total)
    assert coupling_diagnostics(Independent(), x, x, torch.arange(6)).leak is None  # a label for each point


def test_optimal_transport_leaks_the_label_and_the_independent_coupling_does_not():
    """Two classes far apart on one axis: OT gives each a half plane of x0.

    E x0 given the half is sqrt(2/pi) on that axis, so it tells 2/pi of one of the two axes' variances.
    """
    labels = torch.arange(600) % 2
    x1 = torch.stack([20.0 * labels - 10, torch.zeros(600)], 1).double() + 0.01 * normal(600, 2, 1)
    x0 = normal(600, 2)
    leaks = [coupling_diagnostics(c, x0, x1, labels).leak for c in (Independent(), OptimalTransport())]
    assert leaks[0] == pytest.approx(0, abs=0.01)
    assert leaks[1] == pytest.approx(1 / math.pi, abs=0.05)


def test_images_are_summed_over_their_pixels():
    x0, x1 = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    assert coupling_diagnostics(Independent(), x0, x1).cost == pytest.approx(4.0)


def test_mistakes_are_refused():
    x = normal(4, 2)
    with pytest.raises(ArgumentError, match=r"cond has shape \(3,\) for 4 samples"):
        coupling_diagnostics(Independent(), x, x, torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"made 1 pair\(s\), expected at least two"):
        coupling_diagnostics(Independent(), x[:1], x[:1])
    with pytest.raises(ArgumentError, match="x1"):
        coupling_diagnostics(Independent(), x, torch.full((4, 2), math.nan))
    with pytest.raises(ArgumentError, match="coupling is 'ot'"):
        coupling_diagnostics("ot", x, x)
    assert fmkit.metrics.CouplingDiagnostics(1, 1, 1, 0, 0).leak is None
