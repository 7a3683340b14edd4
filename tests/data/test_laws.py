"""The laws of toy densities: the same density as the samples', by closed forms and by quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fmkit.data import Checkerboard, EightGaussians, GaussianMixture, Moons, Rings, SCurve
from fmkit.errors import ArgumentError
from fmkit.oracle import Boxes
from fmkit.oracle.law import Row
from fmkit.oracle.posterior import view_row
from fmkit.paths import ICFM, CondOT, VariancePreserving
from fmkit.sources import Gaussian


def log_density(law, x):
    """log p(x) of a mixture: that of x_t where alpha is 1 and there is no noise."""
    one, zero = torch.ones(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    return law.given(Gaussian(), Row(one, zero, zero), x.double()).log_joint.logsumexp(1)


@pytest.mark.parametrize(
    "toy",
    [
        GaussianMixture([[0.0], [3.0]], [0.2, 0.8], std=[0.5, 1.0]),
        GaussianMixture([[0.0, 1.0], [2.0, 2.0]], [0.2, 0.8], covariances=[[[1, 0.4], [0.4, 0.5]], [[0.2, 0], [0, 1]]]),
        EightGaussians(),
        Rings(),
        Rings((0.3, 4.0), 0.5),
    ],
    ids=repr,
)
def test_the_law_has_the_density_in_closed_form(toy, seeded):
    x = torch.cat([toy.sample(500, seeded(0)), 3 * torch.randn(50, *toy.load().event_shape, generator=seeded(1))])
    near = toy.log_prob(x.double()) > -30
    torch.testing.assert_close(log_density(toy.law(), x)[near], toy.log_prob(x.double())[near], rtol=0, atol=1e-7)


def moon(k, u):
    angle = math.pi * u
    return [np.cos(angle), np.sin(angle)] if k == 0 else [1 - np.cos(angle), 0.5 - np.sin(angle)]


CURVES = {
    "moons": (Moons(0.1, 1.0, 0.0), [lambda u: moon(0, u), lambda u: moon(1, u)], 0.1),
    "upper": (Moons(0.05, 1.0, 0.0), [lambda u: moon(0, u)], 0.05),
    "scurve": (
        SCurve(0.1),
        [
            lambda u: [np.sin(-1.5 * np.pi * u), 1 - np.cos(-1.5 * np.pi * u)],
            lambda u: [np.sin(1.5 * np.pi * u), np.cos(1.5 * np.pi * u) - 1],
        ],
        0.1,
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_blurred_curve_has_the_density_of_its_integral(name, seeded):
    toy, curves, std = CURVES[name]
    law = toy.law(0) if name == "upper" else toy.law()
    x = (law.sample(12, seeded(0))).numpy()
    for point, got in zip(x, log_density(law, torch.from_numpy(x)), strict=True):
        total = 0.0
        for curve in curves:
            nodes = np.linspace(0, 1, 4001)
            values = stats.norm.pdf(point[0], curve(nodes)[0], std) * stats.norm.pdf(point[1], curve(nodes)[1], std)
            total += integrate.simpson(values, x=nodes) / len(curves)
        assert got.item() == pytest.approx(math.log(total), abs=1e-6)


@pytest.mark.parametrize("toy", [Moons(0.2, 3.0, 1.0), SCurve(0.2), Rings(labels=True), Checkerboard()], ids=repr)
def test_the_laws_samples_are_the_toys(toy, seeded):
    n = 20_000
    drawn, law = toy.sample(n, seeded(0)).double(), toy.law().sample(n, seeded(1))
    for a, b in zip(drawn.T, law.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    assert stats.ks_2samp(drawn.sum(1), law.sum(1)).pvalue > 1e-3
    assert stats.ks_2samp(drawn.norm(dim=1), law.norm(dim=1)).pvalue > 1e-3


@pytest.mark.parametrize("toy", [Rings((1.0, 5.0)), Moons(), EightGaussians()], ids=repr)
def test_a_components_law_has_its_samples(toy, seeded):
    x, k = toy.draw(4000, seeded(0))
    for component in (0, 1):
        law = toy.law(component)
        at = x[k == component].double()
        assert (at.mean(0) - law.sample(4000, seeded(1)).mean(0)).abs().max().item() < 0.15
        assert log_density(law, at).mean() > log_density(toy.law(1 - component), at).mean() + 1


# -- boxes ------------------------------------------------------------------------------------------------------------


def cut(box, y, alpha, std):
    """scipy's truncated normal law of one coordinate of x1 given y = alpha x1 + std noise, and the box's likelihood."""
    (low, high), centre, scale = box, y / alpha, std / abs(alpha)
    law = stats.truncnorm((low - centre) / scale, (high - centre) / scale, centre, scale)
    return law, stats.norm.cdf((high - centre) / scale) - stats.norm.cdf((low - centre) / scale)


@pytest.mark.parametrize("path", [CondOT(), VariancePreserving(), ICFM(0.3)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("view", ["velocity", "data", "noise"])
def test_boxes_are_scipys_truncated_normals(path, view, seeded):
    boxes, source = Boxes([[-1.0, 0.0], [0.5, -2.0]], [[0.0, 1.0], [1.5, -1.0]]), Gaussian(1.3, 0.2)
    for time in (0.05, 0.3, 0.7, 0.9):
        t = torch.tensor([time], dtype=torch.float64)
        at, row = Row.of(path.coefficients(t)), view_row(path, view, t)
        x1 = boxes.sample(1, seeded(0))
        x = path.sample(t, source.sample((1, 2), generator=seeded(1), dtype=torch.float64), x1, generator=seeded(2)).x
        a, s, g = (v.item() for v in at)
        ra, rs, rg = (v.item() for v in row)
        v = (s * source.std) ** 2 + g**2
        y = (x[0] - s * source.mean).numpy()
        gain = (rs * s * source.std**2 + rg * g) / v
        weights, means, variances = [], [], []
        for low, high in zip(boxes.low.numpy(), boxes.high.numpy(), strict=True):
            laws = [cut((low[i], high[i]), y[i], a, math.sqrt(v)) for i in range(2)]
            weights.append(laws[0][1] * laws[1][1])
            inside = np.array([law.mean() for law, _ in laws])
            means.append(ra * inside + rs * source.mean + gain * (y - a * inside))
            rest = (rs * source.std) ** 2 + rg**2 - gain**2 * v
            variances.append(sum((ra - gain * a) ** 2 * law.var() + rest for law, _ in laws))
        w = np.array(weights) / sum(weights)
        mean = (w[:, None] * means).sum(0)
        spread = (w * (np.array(variances) + ((means - mean) ** 2).sum(1))).sum()
        given = boxes.given(source, at, x)
        assert given.mean(row)[0].numpy() == pytest.approx(mean, rel=1e-6, abs=1e-8)
        assert given.variance_of(row).item() == pytest.approx(spread, rel=1e-6)
        assert given.responsibilities[0].numpy() == pytest.approx(w, abs=1e-9)


def test_where_the_data_leaves_no_trace_a_box_is_uniform():
    """alpha = 0: nothing is known of x1 but the boxes themselves."""
    boxes, zero, one = Boxes([[0.0], [4.0]], [[2.0], [6.0]]), torch.zeros(1), torch.ones(1)
    given = boxes.given(Gaussian(), Row(zero.double(), one.double(), zero.double()), torch.tensor([[0.7]]).double())
    data = Row(one.double(), zero.double(), zero.double())
    assert given.mean(data).item() == pytest.approx(3.0)
    assert given.variance_of(data).item() == pytest.approx(4 / 12 + 4)
    assert given.responsibilities[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("toy", [Rings(), Moons(), EightGaussians()], ids=repr)
def test_a_component_that_is_none_is_refused(toy):
    for wrong in (-1, toy.components, 0.5, True):
        with pytest.raises(ArgumentError, match="^component is "):
            toy.law(wrong)


@pytest.mark.parametrize(
    ("low", "high"), [([[0.0]], [[0.0]]), ([[0.0]], [[1.0, 2.0]]), ([0.0], [1.0]), ([[math.nan]], [[1.0]]), ("a", "b")]
)
def test_boxes_without_an_inside_are_refused(low, high):
    with pytest.raises(ArgumentError):
        Boxes(low, high)
