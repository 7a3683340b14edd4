"""Data on boxes: samples, and what points say in the limits; `data/test_laws.py` has scipy's truncated normals."""

import math

import pytest
import torch
from scipy import stats

from fmkit.errors import ArgumentError
from fmkit.oracle import Boxes
from fmkit.oracle.law import Row
from fmkit.sources import Gaussian

LOW, HIGH = [[-1.0, 0.0], [0.5, -2.0]], [[0.0, 1.0], [1.5, -1.0]]


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def given(boxes, x, alpha, sigma, gamma=0.0, source=None):
    """What points say at one time, or at one for each."""
    x = torch.tensor(x, dtype=torch.float64)
    at = Row(*(torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (alpha, sigma, gamma)))
    return boxes.given(source or Gaussian(), at, x)


def data(n):
    return Row(*(torch.full((n,), v, dtype=torch.float64) for v in (1.0, 0.0, 0.0)))


def test_samples_are_uniform_on_the_boxes_and_on_each_as_often(seeded):
    x = Boxes(LOW, HIGH).sample(20_000, seeded(0))
    first = ((x >= doubles(-1, 0)) & (x < doubles(0, 1))).all(1)
    second = ((x >= doubles(0.5, -2)) & (x < doubles(1.5, -1))).all(1)
    assert (first ^ second).all()
    assert first.double().mean().item() == pytest.approx(0.5, abs=0.015)
    for inside, low in ((first, LOW[0]), (second, LOW[1])):
        for i in range(2):
            assert stats.kstest(x[inside, i] - low[i], "uniform").pvalue > 1e-3


def test_the_numbers_held_for_a_point_are_those_of_its_integrals():
    boxes = Boxes(LOW, HIGH)
    made = given(boxes, [[0.0, 0.0]], 0.5, 0.5)
    assert boxes.size >= made.mean_x.numel() * 8
    assert Boxes(LOW * 3, HIGH * 3).size == 3 * boxes.size
    assert boxes.event_shape == (2,)


def test_each_point_has_a_time_of_its_own():
    boxes, x, alpha, sigma = Boxes(LOW, HIGH), [[0.3, 0.2], [0.1, -0.9], [1.0, 0.0]], [0.2, 0.5, 0.9], [0.8, 0.5, 0.1]
    together = given(boxes, x, alpha, sigma, 0.1)
    row = Row(doubles(1.0, 0.3, 0.2), doubles(-1.0, 0.5, 0.0), doubles(0.0, 0.2, 1.0))
    for i in range(3):
        alone, mine = given(boxes, x[i : i + 1], alpha[i], sigma[i], 0.1), Row(*(v[i : i + 1] for v in row))
        torch.testing.assert_close(together.mean(row)[i], alone.mean(mine)[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(together.variance_of(row)[i], alone.variance_of(mine)[0], rtol=1e-12, atol=0)


def test_with_hardly_any_noise_a_point_is_its_datum():
    """x1 = x/alpha, for certain, in the box where that lies."""
    made = given(Boxes(LOW, HIGH), [[-0.15, 0.3], [0.6, -0.55]], 0.5, 1e-13)
    torch.testing.assert_close(made.mean(data(2)), doubles([-0.3, 0.6], [1.2, -1.1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(made.responsibilities, torch.eye(2).double())
    assert made.variance_of(data(2)).abs().max() < 1e-20


@pytest.mark.parametrize("alpha", [1.0, -1.0, 0.3])
def test_little_noise_leaves_its_own_variance(alpha):
    """Deep inside a box x1 given x is N(x/alpha, (sigma/alpha)²), where sigma is a millionth of the box."""
    sigma, x1 = 1e-6, doubles([-0.3, 0.6])
    made = given(Boxes(LOW, HIGH), (alpha * x1).tolist(), alpha, sigma)
    torch.testing.assert_close(made.mean(data(1)), x1, rtol=0, atol=1e-9)
    assert made.variance_of(data(1)).item() == pytest.approx(2 * (sigma / alpha) ** 2, rel=1e-9)
    # the noise itself, of unit variance, is what is left: E = 0, given x1 nothing of it is free
    noise = Row(doubles(0.0), doubles(1.0), doubles(0.0))
    assert made.mean(noise).abs().max() < 1e-3
    assert made.variance_of(noise).item() == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("side", [-1, 1])
def test_far_outside_a_box_the_datum_is_at_its_face(side):
    """Beyond a face by d standard deviations x1 falls off from it as exp(-d z): at 1/d on average, variance 1/d²."""
    d = 1e3
    made = given(Boxes([[-1.0]], [[1.0]]), [[side * (1.0 + d)]], 1.0, 1.0)
    assert (1 - side * made.mean(data(1)).item()) * d == pytest.approx(1.0, rel=1e-5)
    assert made.variance_of(data(1)).item() * d**2 == pytest.approx(1.0, rel=1e-4)
    assert made.log_mass.item() == pytest.approx(-(d**2) / 2 - math.log(2 * d), rel=1e-9)


def test_much_noise_leaves_the_boxes_themselves():
    """sigma = 1e6: the mean and the variance of the law, 2/12 a box of two sides and what the centres are apart."""
    made = given(Boxes(LOW, HIGH), [[0.0, 0.0]], 1.0, 1e6)
    torch.testing.assert_close(made.mean(data(1)), doubles([0.25, -0.5]), rtol=0, atol=1e-9)
    assert made.variance_of(data(1)).item() == pytest.approx(2 / 12 + 0.75**2 + 1.0, rel=1e-9)


def test_the_latents_add_up_to_the_point():
    """alpha E[x1] + sigma E[x0] + gamma E[z] = x, and the state has no variance; noise from a source off its centre."""
    source = Gaussian(1.7, -0.4)
    x = [[0.3, 0.2], [2.0, -0.9], [-4.0, 4.0]]
    made = given(Boxes(LOW, HIGH), x, 0.6, 0.5, 0.3, source)
    parts = [Row(*(torch.full((3,), float(i == j)).double() for j in range(3))) for i in range(3)]
    sums = sum(c * made.mean(row) for c, row in zip((0.6, 0.5, 0.3), parts, strict=True))
    torch.testing.assert_close(sums, doubles(*x), rtol=1e-12, atol=1e-12)
    state = Row(*(torch.full((3,), c).double() for c in (0.6, 0.5, 0.3)))
    assert made.variance_of(state).abs().max() < 1e-15
    # x0 and z share what is left of the noise in proportion to their variances: E[x0 - m]/(sigma s²) = E[z]/gamma
    torch.testing.assert_close((made.mean(parts[1]) + 0.4) / (0.5 * 1.7**2), made.mean(parts[2]) / 0.3)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ([[0.0]], [[0.0]], "not above its lower one in every coordinate"),
        ([[0.0, 0.0]], [[1.0, -1.0]], "not above its lower one in every coordinate"),
        ([[0.0]], [[1.0, 2.0]], r"shapes \(1, 1\) and \(1, 2\), expected \(K, D\) both"),
        ([0.0], [1.0], r"shapes \(1,\) and \(1,\)"),
        (torch.zeros(0, 2), torch.ones(0, 2), r"shapes \(0, 2\) and \(0, 2\)"),
        ([["a"]], [[1.0]], "low is"),
        ([[0.0]], [["a"]], "high is"),
    ],
)
def test_what_are_no_boxes_is_refused(low, high, said):
    with pytest.raises(ArgumentError, match=said):
        Boxes(low, high)


def test_samples_have_the_digits_of_double_precision(seeded):
    """Of the unit interval, in float32, they would be multiples of 2^-24."""
    x = Boxes([[0.0]], [[1.0]]).sample(50, seeded(0)) * 2**24
    assert not torch.equal(x, x.round())
