"""FID, KID, inception score, precision and recall on the same features as other people's code has them.

torchmetrics takes the root in FID from the eigenvalues of S1 S2, and its covariances from sums of squares; another FID
is the formula itself in 50 digits. Precision and recall are by scipy's k-d trees.
"""

import warnings

import mpmath
import pytest
import torch
from scipy.spatial import cKDTree
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from fmkit.metrics import (
    ImageSet,
    frechet_distance,
    image_distances,
    kernel_inception_distance,
    precision_recall,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Rows(torch.nn.Module):
    """Features that are the pixels and some products of them, so that they are no Gaussians; classes, their first."""

    num_features = 24

    def forward(self, images):
        x = images.double().flatten(1)
        return torch.cat([x, x.roll(1, 1) * x], dim=1)

    def with_logits(self, images):
        features = self(images)
        return features, 2 * features[:, :5]


def images(n, shift=0.0, seed=0):
    """`(n, 3, 2, 2)`, correlated and far from zero."""
    mixed = normal(n, 12, seed=seed) @ (torch.eye(12, dtype=torch.float64) + normal(12, 12, seed=9) / 3)
    return (mixed + 2 + shift).reshape(n, 3, 2, 2)


def fid_of_torchmetrics(samples, reference):
    metric = FrechetInceptionDistance(feature=Rows(), normalize=True).set_dtype(torch.float64)
    for batch in reference.split(70):
        metric.update(batch, real=True)
    for batch in samples.split(32):
        metric.update(batch, real=False)
    return metric.compute().item()


@pytest.mark.parametrize(("n", "m", "shift"), [(400, 300, 0.2), (90, 500, 0.0), (60, 60, 1.0)])
def test_fid_against_torchmetrics(n, m, shift):
    samples, reference = images(n, shift, seed=1), images(m, seed=2) * 1.1
    sets = [ImageSet(Rows()).extend(x.split(64)) for x in (samples, reference)]
    assert image_distances(*sets)["fid"] == pytest.approx(fid_of_torchmetrics(samples, reference), rel=1e-9)


def in_50_digits(mean1, cov1, mean2, cov2):
    """|m1 - m2|² + tr (S1 + S2 - 2 (S1 S2)^½), the trace of the root by the eigenvalues of the product."""
    with mpmath.workdps(50):
        a, b = (mpmath.matrix(cov.tolist()) for cov in (cov1, cov2))
        values, _ = mpmath.eig(a * b)
        root = mpmath.fsum(mpmath.sqrt(abs(v)) for v in values)
        apart = mpmath.fsum(mpmath.mpf(float(x - y)) ** 2 for x, y in zip(mean1, mean2, strict=True))
        return float(apart + mpmath.fsum(a[i, i] + b[i, i] for i in range(a.rows)) - 2 * root)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-3, 1e3), (1e4, 1e4)])
def test_fid_against_50_digits(scales):
    """Well and badly conditioned: standard deviations over three decades, and sets far apart in size."""
    spread = torch.logspace(0, -3, 6, dtype=torch.float64)
    moments = []
    for seed, scale in enumerate(scales):
        x = normal(40, 6, seed=seed) @ normal(6, 6, seed=seed + 5) * spread * scale + seed * scale
        moments += [x.mean(0), torch.cov(x.T)]
    assert frechet_distance(*moments) == pytest.approx(in_50_digits(*moments), rel=1e-9)


def test_kid_against_torchmetrics():
    samples, reference = Rows()(images(200, 0.3, seed=1)), Rows()(images(200, seed=2))
    want = poly_mmd(reference, samples).item()
    assert kernel_inception_distance(samples, reference) == pytest.approx(want, rel=1e-9)


def test_inception_score_against_torchmetrics():
    x, known = images(150, seed=3), Rows()
    logits = torch.nn.Module()
    logits.forward = lambda images: known.with_logits(images)[1]
    with warnings.catch_warnings():  # of its memory, and of the spread over a single part
        warnings.simplefilter("ignore")
        metric = InceptionScore(feature=logits, splits=1)
        for batch in x.split(40):
            metric.update(batch)
        want = metric.compute()[0].item()
    assert want > 1.2
    assert ImageSet(known).extend(x.split(64)).inception_score() == pytest.approx(want, rel=1e-9)


def share_among(points, others, k):
    """The share of points that lie in a ball around one of `others` which reaches to its k-th neighbour."""
    radii = cKDTree(others).query(others, k + 1)[0][:, -1]
    trees = cKDTree(points), cKDTree(others)
    near = trees[0].sparse_distance_matrix(trees[1], radii.max(), output_type="coo_matrix")
    return len(set(near.row[near.data <= radii[near.col]])) / len(points)


@pytest.mark.parametrize("neighbours", [1, 3, 10])
def test_precision_and_recall_against_trees(neighbours):
    samples, reference = Rows()(images(150, 0.5, seed=1)), Rows()(images(220, seed=2) * 1.3)
    want = share_among(samples, reference, neighbours), share_among(reference, samples, neighbours)
    assert precision_recall(samples, reference, neighbours) == pytest.approx(want, abs=1e-12)
    assert want[0] > want[1] + 0.05
