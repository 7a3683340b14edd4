"""Toy densities against closed forms, quadrature and independent implementations.

Statistical tests have fixed seeds; a correct program with a fresh seed would fail one of them with probability 1e-6 or
less (five standard errors, or a p-value).
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import make_moons, make_s_curve

from fmkit import specs
from fmkit.data import (
    Checkerboard,
    DataSet,
    EightGaussians,
    GaussianMixture,
    Moons,
    Pinwheel,
    Rings,
    SCurve,
)
from fmkit.errors import ArgumentError, CombinationError, ConfigError

N = 100_000
FALSE_ALARM = 1e-6
NAMES = ("moons", "8gaussians", "checkerboard", "scurve", "pinwheel", "rings", "gaussian-mixture")
COVARIANCES = [[[1.0, 0.6], [0.6, 0.5]], [[0.3, -0.1], [-0.1, 0.2]], [[0.5, 0.0], [0.0, 0.5]]]
MEANS = [[-2.0, 0.0], [2.0, 1.0], [0.0, -3.0]]
WEIGHTS = [1.0, 2.0, 5.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(toy, n=N, seed=0):
    """Samples in float64 and their components."""
    x, k = toy.draw(n, seeded(seed))
    return x.double(), k


def assert_mean(values, expected):
    """The sample mean is `expected`, within five standard errors."""
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error, f"{values.mean():.6f} is not {expected:.6f} +- {error:.6f}"


def assert_moments(x, mean, second):
    """First moments, and second ones E x_i x_j."""
    for i in range(x.shape[1]):
        assert_mean(x[:, i], mean[i])
        for j in range(i + 1):
            assert_mean(x[:, i] * x[:, j], second[i][j])


def grid(half_width, steps):
    """Midpoints of a square grid around the origin, and the area of a cell."""
    step = 2 * half_width / steps
    axis = (torch.arange(steps, dtype=torch.float64) + 0.5) * step - half_width
    return torch.cartesian_prod(axis, axis), step**2


class TestMoments:
    def test_eight_gaussians(self):
        x, _ = drawn(EightGaussians(radius=5.0, std=1.0))
        assert_moments(x, [0, 0], [[13.5, 0], [0, 13.5]])  # R²/2 + std²
        # The ring's fourth harmonic tells eight Gaussians from four: E (x1 + i x2)^4 = 0, E (x1 + i x2)^8 = R^8.
        w = torch.complex(x[:, 0], x[:, 1])
        assert_mean((w**4).real, 0.0)
        assert_mean((w**8).real, 5.0**8)

    def test_moons(self):
        x, _ = drawn(Moons(noise=0.05, scale=2.0, shift=-1.0))
        raw, noise = (x + 1) / 2, 0.05**2
        yy = 0.625 - 1 / math.pi + noise
        assert_moments(raw, [0.5, 0.25], [[1 + noise, None], [0.25 - 1 / math.pi, yy]])

    def test_s_curve(self):
        x, _ = drawn(SCurve(noise=0.1, dim=3))
        across = -1 / (3 * math.pi)
        second = [[0.51, 0, 0], [0, 1.01 + 1 / 3, 0], [across, 0, 1.51 + 4 / (3 * math.pi)]]
        assert_moments(x, [0, 1, 0], second)

    def test_s_curve_is_two_dimensional_by_default_and_drops_the_middle(self):
        x, _ = drawn(SCurve(noise=0.1))
        assert_moments(x, [0, 0], [[0.51, 0], [-1 / (3 * math.pi), 1.51 + 4 / (3 * math.pi)]])

    def test_rings(self):
        x, _ = drawn(Rings(radii=(1.0, 3.0), std=0.5))
        assert_moments(x, [0, 0], [[2.75, 0], [0, 2.75]])  # (1 + 9)/4 + 1/4

    def test_pinwheel_by_quadrature(self):
        # With w = x1 + i x2 = scale (f_1 + i f_2) exp(-i angle): arms cancel from E w^arms but not its handedness.
        toy = Pinwheel(arms=3, radial_std=0.3, tangential_std=0.1, rate=0.25, scale=2.0)
        x, k = drawn(toy)
        assert_moments(x, [0, 0], [[2.2, None], [0, 2.2]])  # scale² (1 + 0.09 + 0.01)/2
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        a, b = np.meshgrid(1 + 0.3 * nodes, 0.1 * nodes, indexing="ij")
        p = np.outer(weights, weights) / (2 * np.pi)
        turned = 2 * (a + 1j * b) * np.exp(-0.25j * np.exp(a))
        w = torch.complex(x[:, 0], x[:, 1])
        for got, power in ((w**3, 3), (w * torch.exp(2j * math.pi * k / 3), 1)):
            expected = (p * turned**power).sum()
            assert_mean(got.real, expected.real)
            assert_mean(got.imag, expected.imag)

    def test_gaussian_mixture_by_component(self):
        toy = GaussianMixture(MEANS, WEIGHTS, covariances=COVARIANCES)
        x, k = drawn(toy)
        for component in range(3):
            mean, cov = np.array(MEANS[component]), np.array(COVARIANCES[component])
            assert_moments(x[k == component], mean, cov + np.outer(mean, mean))

    def test_gaussian_mixture_in_five_dimensions_with_a_std_each(self):
        toy = GaussianMixture(np.eye(2, 5).tolist(), std=[0.5, 2.0])
        x, k = drawn(toy)
        for component, std in ((0, 0.5), (1, 2.0)):
            mean = np.eye(2, 5)[component]
            assert_moments(x[k == component], mean, std**2 * np.eye(5) + np.outer(mean, mean))


class TestLawAgainstOthers:
    @pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0.6, 0.8), (-0.8, 0.6)])
    def test_moons_are_those_of_scikit_learn(self, direction):
        ours = drawn(Moons(noise=0.1), n=20_000)[0].numpy()
        theirs = make_moons(20_000, noise=0.1, random_state=0)[0] * 2 - 1
        assert scipy.stats.ks_2samp(ours @ direction, theirs @ direction).pvalue > FALSE_ALARM

    @pytest.mark.parametrize("label", [0, 1])
    def test_moons_are_labelled_as_in_scikit_learn(self, label):
        x, k = drawn(Moons(noise=0.1), n=20_000)
        theirs, labels = make_moons(20_000, noise=0.1, random_state=0)
        for i in range(2):
            ours = x[k == label, i].numpy()
            assert scipy.stats.ks_2samp(ours, theirs[labels == label, i] * 2 - 1).pvalue > FALSE_ALARM

    @pytest.mark.parametrize("n", [1, 2, 10, 11])
    def test_even_moons_are_scikit_learns_to_the_point(self, n):
        x, k = Moons(noise=0.0, even=True).draw(n, torch.Generator().manual_seed(0))
        theirs, labels = make_moons(n, shuffle=False)
        assert k.bincount(minlength=2).tolist() == [n - n // 2, n // 2]
        if n % 2 == 0:  # of odd numbers the one more is theirs below, ours above
            for label in range(2):
                ours, want = x[k == label].numpy(), theirs[labels == label] * 2 - 1
                np.testing.assert_allclose(ours[ours[:, 0].argsort()], want[want[:, 0].argsort()], atol=1e-6)

    def test_even_moons_in_another_order_each_time_and_blurred_as_the_others(self):
        one, two = (Moons(even=True).draw(1000, torch.Generator().manual_seed(s)) for s in (0, 1))
        assert not torch.equal(one[1], two[1])
        ours, free = (drawn(Moons(noise=0.1, even=even), n=20_000)[0].numpy() for even in (True, False))
        for i in range(2):
            assert scipy.stats.ks_2samp(ours[:, i], free[:, i]).pvalue > FALSE_ALARM
        noise = one[0] - Moons(noise=0.0, even=True).draw(1000, torch.Generator().manual_seed(0))[0]
        assert noise.std().item() == pytest.approx(0.1, rel=0.1)

    @pytest.mark.parametrize("direction", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8), (-0.8, 0, 0.6)])
    def test_s_curve_is_that_of_scikit_learn(self, direction):
        ours = drawn(SCurve(noise=0.1, dim=3), n=20_000)[0].numpy()
        theirs = make_s_curve(20_000, noise=0.1, random_state=0)[0]
        assert scipy.stats.ks_2samp(ours @ direction, theirs @ direction).pvalue > FALSE_ALARM

    def test_checkerboard_fills_dark_squares_evenly_and_no_other(self):
        x, _ = drawn(Checkerboard(cells=4, side=2.0))
        assert x.abs().max() < 4
        counts, _, _ = np.histogram2d(*x.T.numpy(), bins=8, range=[[-4, 4], [-4, 4]])
        # Row by row as printed, of quarters of squares: the corner at (-4, -4) is dark.
        dark = np.kron(np.indices((4, 4)).sum(0) % 2 == 0, np.ones((2, 2), bool))
        assert counts[~dark].sum() == 0
        assert scipy.stats.chisquare(counts[dark]).pvalue > FALSE_ALARM


DENSITIES = {
    "8gaussians": (EightGaussians(2.0, 0.5), 6.0),
    "gaussian-mixture": (GaussianMixture(MEANS, WEIGHTS, covariances=COVARIANCES), 10.0),
    "rings": (Rings((0.5, 1.5), 0.2), 4.0),
    "checkerboard": (Checkerboard(), 5.0),
}


class TestLogProb:
    @pytest.mark.parametrize("name", DENSITIES)
    def test_integrates_to_one_and_has_the_samples_entropy(self, name):
        toy, half_width = DENSITIES[name]
        points, area = grid(half_width, 900)  # its lines fall between the squares of the board: 10/900 divides 2.2222
        log_p = toy.log_prob(points)
        p = log_p.exp()
        assert p.sum() * area == pytest.approx(1.0, abs=1e-9)
        entropy = -torch.xlogy(p, p).sum() * area
        at_samples = toy.log_prob(drawn(toy)[0])
        assert at_samples.isfinite().all()
        if name == "checkerboard":
            assert at_samples.unique().tolist() == pytest.approx([-entropy.item()], abs=1e-9)
        else:
            assert_mean(at_samples, -entropy.item())

    def test_gaussian_mixture_agrees_with_scipy(self):
        x = 3 * torch.randn(50, 2, dtype=torch.float64, generator=seeded())
        density = sum(
            w / 8 * scipy.stats.multivariate_normal(m, c).pdf(x)
            for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        )
        got = GaussianMixture(MEANS, WEIGHTS, covariances=COVARIANCES).log_prob(x)
        np.testing.assert_allclose(got, np.log(density), rtol=1e-12)

    def test_gaussian_mixture_far_out_does_not_underflow(self):
        assert GaussianMixture([[0.0]]).log_prob(torch.tensor([[100.0]])).item() == pytest.approx(-5000.919, abs=1e-3)

    def test_rings_agree_with_a_sum_over_the_circle(self):
        toy, x = Rings((0.5, 1.5), 0.2), torch.randn(20, 2, dtype=torch.float64, generator=seeded())
        angle = 2 * math.pi * torch.arange(4000) / 4000
        centres = torch.cat([r * torch.stack([angle.cos(), angle.sin()], 1) for r in (0.5, 1.5)]).double()
        terms = -0.5 * torch.cdist(x, centres) ** 2 / 0.04 - math.log(2 * math.pi * 0.04)
        torch.testing.assert_close(toy.log_prob(x), terms.logsumexp(1) - math.log(8000), rtol=1e-6, atol=1e-6)

    def test_checkerboard_entropies_of_the_literature(self):
        assert Checkerboard().entropy == pytest.approx(3.676, abs=5e-4)
        assert Checkerboard(side=2.0).entropy == pytest.approx(math.log(32))

    def test_checkerboard_is_zero_outside(self):
        outside = torch.tensor([[-0.5, 0.5], [4.6, 4.6], [-6.6, -6.6], [0.5, 8.9]])
        assert Checkerboard().log_prob(outside).tolist() == [-math.inf] * 4

    def test_keeps_dtype(self):
        assert EightGaussians().log_prob(torch.zeros(1, 2)).dtype == torch.float32

    @pytest.mark.parametrize("toy", [Moons(), Pinwheel(), SCurve()], ids=lambda t: type(t).__name__)
    def test_refused_without_a_closed_form(self, toy):
        with pytest.raises(CombinationError, match=f"{type(toy).__name__} has no log-density in closed form"):
            toy.log_prob(torch.zeros(1, 2))

    def test_refuses_points_of_another_dimension(self):
        with pytest.raises(ArgumentError, match=r"x has shape \(3, 3\), expected \(B, 2\)"):
            EightGaussians().log_prob(torch.zeros(3, 3))


class TestComponents:
    @pytest.mark.parametrize(
        ("toy", "weights"),
        [
            (EightGaussians(), [1 / 8] * 8),
            (Moons(), [1 / 2] * 2),
            (Rings(), [1 / 4] * 4),
            (Pinwheel(), [1 / 5] * 5),
            (GaussianMixture(MEANS, WEIGHTS), [1 / 8, 2 / 8, 5 / 8]),
        ],
        ids=lambda v: type(v).__name__,
    )
    def test_weights(self, toy, weights):
        _, k = drawn(toy)
        counts = np.bincount(k.numpy(), minlength=len(weights))
        assert scipy.stats.chisquare(counts, N * np.array(weights)).pvalue > FALSE_ALARM

    def test_eight_gaussians_are_counted_anticlockwise(self):
        x, k = drawn(EightGaussians(5.0, 0.1), n=2000)
        nearest = torch.round(torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)) % 8
        assert torch.equal(nearest.long(), k)

    def test_rings_are_counted_as_listed(self):
        x, k = drawn(Rings((3.0, 1.0), 0.05), n=2000)
        assert torch.equal((x.norm(dim=1) < 2).long(), k)

    @pytest.mark.parametrize(
        ("toy", "classes"),
        [(EightGaussians, 8), (Moons, 2), (Rings, 4), (Pinwheel, 5), (GaussianMixture, 3)],
        ids=lambda v: getattr(v, "__name__", v),
    )
    def test_are_the_conditions_of_a_split(self, toy, classes):
        split = toy(n_train=50, n_test=20, labels=True).load(3)
        plain = toy(n_train=50, n_test=20).load(3)
        assert split.classes == classes
        assert plain.classes is plain.train.cond is plain.test_cond is None
        # Labels come along; they do not change the samples.
        assert torch.equal(split.train.x, plain.train.x)
        assert split.train.cond.dtype == torch.int64
        assert len(split.train.cond) == 50
        assert len(split.test_cond) == 20
        assert 0 <= split.train.cond.min() <= split.train.cond.max() < classes


class TestSeeds:
    @pytest.mark.parametrize("name", NAMES)
    def test_samples_follow_from_the_generator_alone(self, name):
        toy = specs.build(DataSet, name, "data")
        before = torch.random.get_rng_state()
        torch.manual_seed(1)
        first = toy.sample(100, seeded(5))
        torch.manual_seed(2)
        assert torch.equal(first, toy.sample(100, seeded(5)))
        assert not torch.equal(first, toy.sample(100, seeded(6)))
        torch.random.set_rng_state(before)
        toy.sample(100, seeded(5))
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_split_follows_from_its_seed(self, name):
        toy = specs.build(DataSet, {"name": name, "n_train": 40, "n_test": 40}, "data")
        first, again, other = toy.load(0), toy.load(0), toy.load(1)
        assert torch.equal(first.train.x, again.train.x)
        assert torch.equal(first.test, again.test)
        assert not torch.equal(first.train.x, other.train.x)
        assert not torch.equal(first.test, other.test)
        # No held-out sample is a training sample.
        assert torch.cdist(first.train.x, first.test).min() > 0


class TestParameters:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Moons(n_train=0), "n_train is 0, expected a whole number of at least 1"),
            (lambda: Moons(n_test=2.5), "n_test is 2.5, expected a whole number"),
            (lambda: Moons(noise=-0.1), "noise is -0.1, expected 0 or more"),
            (lambda: Moons(scale=0.0), "scale has 0, expected positive"),
            (lambda: Moons(shift=math.nan), "shift has 1 non-finite"),
            (lambda: EightGaussians(radius=-1.0), "radius has -1, expected positive"),
            (lambda: EightGaussians(std=math.inf), "std has 1 non-finite"),
            (lambda: Rings(radii=(1.0, -2.0)), "radii has -2, expected positive"),
            (lambda: Rings(radii=()), r"radii has shape \(0,\), expected a list of radii"),
            (lambda: Checkerboard(cells=3), "cells is 3, expected an even number"),
            (lambda: Checkerboard(side=-1.0), "side has -1, expected positive"),
            (lambda: Pinwheel(arms=0), "arms is 0, expected a whole number of at least 1"),
            (lambda: Pinwheel(radial_std=-1.0), "radial_std is -1.0, expected 0 or more"),
            (lambda: SCurve(dim=4), "dim is 4, expected 2"),
            (lambda: GaussianMixture([1.0, 2.0]), r"means has shape \(2,\), expected \(K, d\)"),
            (lambda: GaussianMixture("far"), "means is no array of numbers"),
            (lambda: GaussianMixture([[0.0], [1.0]], [1.0]), r"weights has shape \(1,\), expected \(2,\)"),
            (lambda: GaussianMixture([[0.0], [1.0]], [1.0, 0.0]), "weights has 0, expected positive"),
            (lambda: GaussianMixture([[0.0]], std=1.0, covariances=[[[1.0]]]), "std and covariances are both given"),
            (
                lambda: GaussianMixture([[0.0]], covariances=[[1.0]]),
                r"covariances has shape \(1, 1\), expected \(1, 1, 1\)",
            ),
            (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[[1, 2], [0, 1]]]), "covariance 0 is not symmetric"),
            (lambda: GaussianMixture([[0.0, 0.0]], covariances=[[[1, 2], [2, 1]]]), "covariance 0 is not positive def"),
            (lambda: Moons().sample(0, seeded()), "n is 0, expected a whole number of at least 1"),
        ],
    )
    def test_mistakes_are_refused(self, make, message):
        with pytest.raises(ArgumentError, match=message):
            make()

    def test_a_mistake_in_a_configuration_names_its_place(self):
        with pytest.raises(ConfigError, match="noize"):
            specs.build(DataSet, {"name": "moons", "noize": 0.1}, "data")

    def test_a_described_mixture_is_built_again(self):
        toy = GaussianMixture(MEANS, WEIGHTS, covariances=COVARIANCES)
        again = specs.build(DataSet, specs.describe(toy), "data")
        assert torch.equal(toy.sample(10, seeded()), again.sample(10, seeded()))
