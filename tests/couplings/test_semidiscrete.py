"""Semidiscrete transport against maps that are known: quantiles on a line, halves and quarters in the plane."""

import copy

import pytest
import torch

from fmkit.couplings import OptimalTransport, Semidiscrete
from fmkit.errors import ArgumentError, CombinationError
from fmkit.sources import Gaussian, Uniform


def fitted(x1, source=None, seed=0, **arguments):
    coupling = Semidiscrete(**arguments)
    progress = list(coupling.prepare(source or Gaussian(), x1, seed=seed))
    assert progress == [(k + 1) / coupling.steps for k in range(coupling.steps)]
    return coupling


def test_on_a_line_the_cells_are_the_quantiles():
    """The map is the monotone one: sample k of N in order gets x0 between the quantiles k/N and (k + 1)/N."""
    x1 = torch.tensor([[-4.0], [-0.5], [0.1], [0.2], [9.0]])
    coupling = fitted(x1, steps=400)
    normal = torch.distributions.Normal(0.0, 1.0)
    borders = normal.icdf(torch.tensor([0.2, 0.4, 0.6, 0.8]))
    x0 = torch.linspace(-3, 3, 601)[:, None]
    expected = torch.bucketize(x0[:, 0], borders)
    i0, i1 = coupling.pair(x0, x1)
    assert i0.tolist() == list(range(601))
    wrong = x0[i1 != expected, 0]
    assert all((borders - x).abs().min() < 0.02 for x in wrong)  # at the borders alone
    assert coupling.marginal_error < 0.02


def test_the_dual_numbers_are_those_of_the_quantiles():
    """At a border b between y_j and y_k: |b - y_j|² - g_j = |b - y_k|² - g_k."""
    x1 = torch.tensor([[-1.0], [0.5], [2.0]])
    b = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([1 / 3, 2 / 3])).double()
    g = torch.zeros(3, dtype=torch.float64)
    for k in range(2):
        g[k + 1] = g[k] + (b[k] - x1[k + 1]).square().item() - (b[k] - x1[k]).square().item()
    coupling = fitted(x1, steps=400)
    torch.testing.assert_close(coupling.potentials, g - g.mean(), atol=0.03, rtol=0)
    assert coupling.potentials.mean().abs() < 1e-12


def test_equal_masses_from_a_source_that_is_not_gaussian(seeded):
    x1 = torch.randn(40, 2, generator=seeded(0)) + 1
    coupling = fitted(x1, Uniform(), steps=300)
    x0 = Uniform().sample((200_000, 2), generator=seeded(1))
    masses = torch.bincount(coupling.pair(x0, x1)[1], minlength=40) / 200_000
    assert (40 * masses - 1).abs().max().item() < 0.1
    truth = (40 * (masses - 1 / 40).square().sum()).sqrt().item()
    assert coupling.marginal_error.item() == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("d", [2, 8])
def test_cheaper_than_any_minibatch_and_near_the_optimum(d, seeded):
    """The dual bounds the cost of any minibatch of all x1 from below (weak duality); a large one comes near it."""
    x1 = 2 * torch.randn(64, d, generator=seeded(0)) + 1
    coupling = fitted(x1, steps=400)
    x0 = torch.randn(2048, d, generator=seeded(1))
    i0, i1 = coupling.pair(x0, x1)
    dual = ((x0[i0] - x1[i1]).square().sum(1).double() - coupling.potentials[i1]).mean().item()

    def minibatch(n):
        costs = []
        for k in range(0, 2048, n):
            rows = torch.arange(k, k + n) % 64
            i0, i1 = OptimalTransport().pair(x0[k : k + n], x1[rows])
            costs.append((x0[k : k + n][i0] - x1[rows][i1]).square().sum(1).mean().item())
        return sum(costs) / len(costs)

    assert 0.98 * minibatch(2048) < dual <= minibatch(2048)
    assert dual < 0.97 * minibatch(64)


def test_seeded_by_its_argument_alone(seeded):
    x1 = torch.randn(30, 2, generator=seeded(0))
    before = torch.get_rng_state()
    first, again, other = fitted(x1, steps=20), fitted(x1, steps=20), fitted(x1, steps=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.potentials, again.potentials)
    assert not torch.equal(first.potentials, other.potentials)


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_fit_that_was_cut_off_goes_on_to_the_same_numbers(cut, seeded):
    x1 = torch.randn(30, 2, generator=seeded(0))
    whole, broken = fitted(x1, steps=20), Semidiscrete(steps=20)
    progress = broken.prepare(Gaussian(), x1, seed=0)
    for _ in range(cut):
        next(progress)
    progress.close()
    state = copy.deepcopy(broken.state_dict())
    again = Semidiscrete(steps=20)
    again.load_state_dict(state)
    assert len(list(again.prepare(Gaussian(), x1, seed=0))) == 20 - cut
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_saved_fit_is_not_fitted_again(seeded):
    x1 = torch.randn(30, 2, generator=seeded(0))
    whole, again = fitted(x1, steps=20), Semidiscrete(steps=20)
    again.load_state_dict(whole.state_dict())
    assert list(again.prepare(Gaussian(), x1, seed=0)) == []
    x0 = torch.randn(50, 2, generator=seeded(1))
    assert torch.equal(again.pair(x0, x1)[1], whole.pair(x0, x1)[1])


def test_other_data_is_fitted_anew_and_not_paired_with(seeded):
    x1 = torch.randn(30, 2, generator=seeded(0))
    coupling = fitted(x1, steps=20)
    for other in (x1 + 1, x1[:20], x1.flip(0)):
        with pytest.raises(CombinationError, match="were fitted to other data than these"):
            coupling.pair(x1, other)
        assert len(list(copy.deepcopy(coupling).prepare(Gaussian(), other, seed=0))) == 20


@pytest.mark.parametrize("done", [0, 5])
def test_before_the_fit_is_done_there_are_no_pairs(done, seeded):
    x1 = torch.randn(30, 2, generator=seeded(0))
    coupling = Semidiscrete(steps=20)
    for _, _ in zip(range(done), coupling.prepare(Gaussian(), x1, seed=0), strict=False):
        pass
    with pytest.raises(CombinationError, match=f"not fitted: {done} of 20 steps are done"):
        coupling.pair(x1, x1)


def test_one_sample_and_equal_samples():
    one = torch.ones(1, 2)
    assert fitted(one, steps=3).pair(torch.zeros(4, 2), one)[1].tolist() == [0, 0, 0, 0]
    same = torch.ones(5, 2)
    assert len(fitted(same, steps=3).pair(torch.zeros(4, 2), same)[1]) == 4


def test_events_of_any_shape(seeded):
    x1 = torch.randn(20, 2, 3, generator=seeded(0))
    x0 = torch.randn(7, 2, 3, generator=seeded(1))
    flat = fitted(x1.flatten(1), steps=20).pair(x0.flatten(1), x1.flatten(1))[1]
    coupling = fitted(x1, steps=20)
    i0, i1 = coupling.pair(x0, x1)
    assert i1.dtype == torch.int64
    assert i0.tolist() == list(range(7))
    assert torch.equal(i1, flat)
    with pytest.raises(ArgumentError, match="pairing needs equal events"):
        coupling.pair(x0[:, 0], x1)


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (torch.zeros(0, 2), r"x0 has shape \(0, 2\)"),
        (torch.full((3, 2), torch.nan), "x0 has 6 non-finite"),
        ([[0.0, 0.0]], "x0 is a list"),
    ],
)
def test_what_cannot_be_paired_is_refused(x0, message):
    x1 = torch.arange(8.0).reshape(4, 2)
    with pytest.raises(ArgumentError, match=message):
        fitted(x1, steps=2).pair(x0, x1)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "many"])
def test_steps_are_a_count(steps):
    with pytest.raises(ArgumentError, match="steps is"):
        Semidiscrete(steps=steps)
