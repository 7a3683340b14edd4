"""A mixture as data: its weights, its samples, mixtures of mixtures, and other units."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.oracle import Mixture

COVARIANCES = [[[2.0, 0.6], [0.6, 0.5]], [[0.3, -0.1], [-0.1, 1.0]]]


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def moments(mixture, seeded, n=200_000):
    x = mixture.sample(n, seeded(0)).reshape(n, -1)
    return x.mean(0), x.T.cov()


def exact(w, means, covariances):
    w, means, covariances = doubles(*w) / sum(w), doubles(*means), doubles(*covariances)
    away = means - w @ means
    return w @ means, (w[:, None, None] * (covariances + away[:, :, None] * away[:, None])).sum(0)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
@pytest.mark.parametrize("covariances", [None, COVARIANCES])
def test_samples_have_the_moments_of_the_mixture(weights, covariances, seeded):
    means, std = [[-1.0, 0.5], [2.0, 3.0]], None if covariances else [0.5, 1.5]
    mixture = Mixture(means, weights, std, covariances)
    eye = torch.eye(2).tolist()
    widths = covariances or [[[0.25 * v for v in row] for row in eye], [[2.25 * v for v in row] for row in eye]]
    torch.testing.assert_close(mixture.covariances, doubles(*widths))
    assert mixture.log_weights.exp().tolist() == pytest.approx([0.75, 0.25] if weights else [0.5, 0.5])
    for got, want in zip(moments(mixture, seeded), exact(weights or [1, 1], means, widths), strict=True):
        torch.testing.assert_close(got, want, rtol=0.01, atol=0.02)
    assert (len(mixture), mixture.dim, mixture.size, mixture.device.type) == (2, 2, 4, "cpu")


def test_unless_said_components_are_standard_and_equally_heavy():
    mixture = Mixture(torch.zeros(4, 2, 3))
    assert mixture.event_shape == (2, 3)
    assert (len(mixture), mixture.dim, mixture.size) == (4, 6, 24)
    torch.testing.assert_close(mixture.covariances, torch.eye(6).double().expand(4, 6, 6))
    torch.testing.assert_close(mixture.log_weights.exp(), torch.full((4,), 0.25).double())


def test_alike_are_round_components_of_one_width():
    assert Mixture([[0.0], [1.0]], std=0.5).alike
    assert Mixture([[0.0], [1.0]], std=[0.5, 0.5]).alike
    assert not Mixture([[0.0], [1.0]], std=[0.5, 0.6]).alike
    assert not Mixture([[0.0, 1.0]], covariances=[torch.eye(2).tolist()]).alike


@pytest.mark.parametrize("round_", [True, False])
def test_a_mixture_of_mixtures_has_all_components_each_with_its_share(round_):
    one = Mixture(
        [[0.0, 1.0], [2.0, 3.0]], [1.0, 3.0], **({"std": [0.1, 0.2]} if round_ else {"covariances": COVARIANCES})
    )
    two = Mixture([[5.0, 6.0]], std=0.7)
    pooled = Mixture.pooled([0.4, 0.6], [one, two])
    torch.testing.assert_close(pooled.means, doubles([0.0, 1.0], [2.0, 3.0], [5.0, 6.0]))
    torch.testing.assert_close(pooled.log_weights.exp(), doubles(0.1, 0.3, 0.6))
    torch.testing.assert_close(pooled.covariances, torch.cat([one.covariances, two.covariances]))
    assert (pooled.axes is None) == round_
    image = Mixture(torch.zeros(2, 1, 2, 2), std=0.0)
    assert Mixture.pooled([0.5, 0.5], [image, image]).event_shape == (1, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        Mixture.pooled([1.0], [one, two])


@pytest.mark.parametrize("covariances", [None, COVARIANCES])
@pytest.mark.parametrize("scale", [doubles(2.0, 2.0), doubles(2.0, 0.25), torch.tensor(4.0)], ids=repr)
def test_in_other_units_means_are_moved_and_covariances_scaled(covariances, scale):
    mixture = Mixture([[0.0, 1.0], [2.0, 3.0]], [1.0, 3.0], None if covariances else [0.5, 1.5], covariances)
    shift = doubles(1.0, -2.0)
    moved = mixture.standardised(shift, scale)
    both = scale.double().expand(2)
    torch.testing.assert_close(moved.means, (mixture.means - shift) / both)
    torch.testing.assert_close(moved.covariances, mixture.covariances / (both[:, None] * both))
    torch.testing.assert_close(moved.log_weights, mixture.log_weights)
    alike = bool((both == both[0]).all())
    assert (moved.axes is None) == (covariances is None and alike)  # what was round stays so, and cheap
    image = Mixture(torch.zeros(2, 1, 2, 2), std=1.0).standardised(torch.tensor(1.0), torch.tensor(2.0))
    assert image.event_shape == (1, 2, 2)


def test_components_without_width_are_points(seeded):
    points = Mixture([[1.0], [2.0], [5.0]], std=0.0)
    assert set(points.sample(100, seeded(0)).flatten().tolist()) == {1.0, 2.0, 5.0}
    assert (points.variances == 0).all()


def test_a_slightly_negative_eigenvalue_is_a_zero_and_a_negative_one_is_refused():
    """Rounded to float32 a covariance may dip below 0 by 1e-7 of its largest eigenvalue, and no further."""
    for size in (1e-3, 1.0, 1e5):
        mixture = Mixture([[0.0, 0.0]], covariances=[[[size, 0.0], [0.0, -0.9e-7 * size]]])
        assert sorted(mixture.variances[0].tolist()) == [0.0, pytest.approx(size)]
        with pytest.raises(ArgumentError, match="covariance 1 has eigenvalue -"):
            Mixture([[0.0, 0.0]] * 2, covariances=[[[1.0, 0], [0, 1.0]], [[size, 0.0], [0.0, -1.1e-7 * size]]])


def test_a_lopsided_covariance_is_refused_beyond_rounding():
    for size in (1e-3, 1.0, 1e5):
        for off, fine in ((1e-7, True), (1e-4, False)):
            given = [[[size, 0.3 * size], [(0.3 + off) * size, size]]]
            if fine:
                assert Mixture([[0.0, 0.0]], covariances=given).covariances.allclose(doubles(*given), rtol=1e-6)
            else:
                with pytest.raises(ArgumentError, match="covariance 0 is not symmetric"):
                    Mixture([[0.0, 0.0]], covariances=given)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"means": 1.0}, r"means has shape \(\), expected a non-empty"),
        ({"means": torch.zeros(0, 2)}, r"means has shape \(0, 2\), expected a non-empty"),
        ({"weights": [1.0]}, r"weights has shape \(1,\), expected \(2,\)"),
        ({"weights": [1.0, 0.0]}, "weights has 0, expected positive numbers"),
        ({"weights": [1.0, -3.0]}, "weights has -3, expected positive numbers"),
        ({"std": [1.0]}, r"std has shape \(1,\), expected \(2,\)"),
        ({"std": [1.0, -0.5]}, "std has -0.5, expected standard deviations >= 0"),
        ({"std": 1.0, "covariances": [[[1.0]]] * 2}, "std and covariances are both given"),
        ({"covariances": [[[1.0]]]}, r"covariances has shape \(1, 1, 1\), expected \(2, 1, 1\)"),
        ({"weights": ["a", "b"]}, "weights is no array of numbers"),
        ({"std": "a"}, "std is no array of numbers"),
        ({"covariances": "a"}, "covariances is no array of numbers"),
    ],
)
def test_what_is_no_mixture_is_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        Mixture(**{"means": [[0.0], [1.0]], **arguments})
