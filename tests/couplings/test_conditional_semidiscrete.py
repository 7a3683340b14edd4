"""Semidiscrete transport within labels: the plain one of each label's samples, for noise that knows no labels."""

import copy
import math

import pytest
import torch

from fmkit.couplings import ConditionalSemidiscrete, Semidiscrete
from fmkit.errors import ArgumentError, CombinationError
from fmkit.sources import Gaussian


def fitted(x1, labels, seed=0, **arguments):
    coupling = ConditionalSemidiscrete(**arguments)
    progress = list(coupling.prepare(Gaussian(), x1, labels, seed=seed))
    n = coupling.steps * len(coupling.labels)
    assert progress == pytest.approx([(k + 1) / n for k in range(n)])
    return coupling


@pytest.fixture
def data(seeded):
    """Two labels of unlike places and sizes, in mixed order."""
    labels = torch.tensor([7, 2, 7, 7] * 8)
    return torch.randn(32, 2, generator=seeded(0)) + labels[:, None], labels


def test_each_label_is_paired_as_if_it_were_alone(data, seeded):
    x1, labels = data
    coupling = fitted(x1, labels, steps=30)
    assert coupling.labels.tolist() == [[2], [7]]
    x0, cond0 = torch.randn(200, 2, generator=seeded(1)), torch.arange(200) % 2 * 5 + 2
    i0, i1 = coupling.pair(x0, x1, cond0, labels)
    assert torch.equal(i0, torch.arange(200))
    assert torch.equal(labels[i1], cond0)
    for label in (2, 7):
        alone, some = Semidiscrete(steps=30), x1[labels == label]
        list(alone.prepare(Gaussian(), some, seed=0))
        at = cond0 == label
        assert torch.equal(x1[i1[at]], some[alone.pair(x0[at], some)[1]])


def test_given_a_label_the_noise_is_still_the_source(data, seeded):
    """Labels lie on a diagonal: plain transport gives each its own part of the noise, this one all of it."""
    x1, labels = data
    coupling = fitted(x1, labels, steps=100)
    x0 = torch.randn(40_000, 2, generator=seeded(1))
    i0, i1 = coupling.pair(x0, x1, None, labels, generator=seeded(2))
    share = (labels[i1] == 7).double().mean().item()
    assert share == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 40_000) ** 0.5)
    for label in (2, 7):
        noise = x0[i0][labels[i1] == label]
        assert noise.mean(0).abs().max() < 5 / len(noise) ** 0.5
        torch.testing.assert_close(noise.T.cov(), torch.eye(2), atol=7 / len(noise) ** 0.5, rtol=0)
    masses = torch.bincount(i1, minlength=32) / 40_000
    assert (32 * masses - 1).abs().max() < 0.2
    plain = Semidiscrete(steps=100)
    list(plain.prepare(Gaussian(), x1, seed=0))
    met = labels[plain.pair(x0, x1)[1]]
    assert x0[met == 2].mean(0).max() < -0.5


def test_the_labels_of_x0_are_drawn_by_the_generator_alone(data, seeded):
    x1, labels = data
    coupling, x0 = fitted(x1, labels, steps=5), torch.zeros(100, 2)
    before = torch.get_rng_state()
    one, again, other = (coupling.pair(x0, x1, None, labels, generator=seeded(k))[1] for k in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_labels_of_several_numbers(data, seeded):
    x1, labels = data
    pairs = torch.stack((labels, torch.arange(32) % 2), 1)
    coupling = fitted(x1, pairs, steps=5)
    assert coupling.labels.tolist() == [[2, 1], [7, 0], [7, 1]]
    cond0 = pairs[torch.randperm(32, generator=seeded(1))]
    assert torch.equal(pairs[coupling.pair(x1, x1, cond0, pairs)[1]], cond0)


@pytest.mark.parametrize("cut", [1, 10, 13, 19])
def test_a_fit_that_was_cut_off_goes_on_to_the_same_numbers(cut, data):
    x1, labels = data
    whole, broken = fitted(x1, labels, steps=10), ConditionalSemidiscrete(steps=10)
    progress = broken.prepare(Gaussian(), x1, labels, seed=0)
    for _ in range(cut):
        next(progress)
    progress.close()
    again = ConditionalSemidiscrete(steps=10)
    again.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert len(list(again.prepare(Gaussian(), x1, labels, seed=0))) == 20 - cut
    assert again.state_dict().keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert torch.equal(again.pair(x1, x1, labels, labels)[1], whole.pair(x1, x1, labels, labels)[1])


def test_its_figure_weighs_the_labels_by_their_samples(data):
    coupling = fitted(*data, steps=5)
    for fit, error in zip(coupling.fits, (0.3, 0.1), strict=True):
        fit.marginal_error.fill_(error)
    assert coupling.figures["marginal_error"] == pytest.approx((0.25 * 0.3**2 + 0.75 * 0.1**2) ** 0.5)
    assert math.isnan(ConditionalSemidiscrete().figures["marginal_error"])


def test_what_it_was_not_fitted_to_is_not_paired_with(data):
    x1, labels = data
    coupling = fitted(x1, labels, steps=5)
    for other, known in ((x1 + 1, labels), (x1, labels.flip(0)), (x1, labels.roll(1)), (x1[:16], labels[:16])):
        with pytest.raises(CombinationError, match="were fitted to other data than these"):
            coupling.pair(x1, other, labels, known)
    for known in (labels + 1, labels * 0):
        with pytest.raises(CombinationError, match="were fitted to 2 labels, and not to these"):
            coupling.pair(x1, x1, labels, known)
    with pytest.raises(CombinationError, match="were fitted to 0 labels"):
        ConditionalSemidiscrete().pair(x1, x1, None, labels)
    begun = ConditionalSemidiscrete(steps=5)
    next(begun.prepare(Gaussian(), x1, labels))
    with pytest.raises(CombinationError, match="not fitted"):
        begun.pair(x1, x1, None, labels)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, "without labels, Semidiscrete is what this would be"),
        (torch.zeros(32), "is of torch.float32, expected integer labels"),
        ([0] * 32, "is of list, expected integer labels"),
        (torch.tensor(1), "expected a label for each of 32 samples"),
        (torch.zeros(31, dtype=torch.int64), "31 conditions for 32 samples"),
    ],
)
def test_what_are_no_labels_is_refused(cond, message, data):
    x1, labels = data
    with pytest.raises(ArgumentError, match=message):
        ConditionalSemidiscrete().prepare(Gaussian(), x1, cond)
    coupling = fitted(x1, labels, steps=1)
    with pytest.raises(ArgumentError, match=message):
        coupling.pair(x1, x1, None, cond)


def test_labels_of_x0_that_the_data_lacks_are_refused(data):
    x1, labels = data
    coupling = fitted(x1, labels, steps=1)
    with pytest.raises(ArgumentError, match=r"cond0 has the label \[3\], which no sample of the data has"):
        coupling.pair(x1, x1, labels.where(labels == 2, 3), labels)
    with pytest.raises(ArgumentError, match="cond0 has labels of 2 numbers, the data of 1"):
        coupling.pair(x1, x1, labels[:, None].expand(-1, 2), labels)
