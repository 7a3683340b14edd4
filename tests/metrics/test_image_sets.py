"""FID, KID, inception score, precision and recall: closed forms, second implementations, and streams."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import ImageSet, Moments, image_distances, kernel_inception_distance, moments_distance
from fmkit.metrics import precision_recall as of_sets


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flat(images):
    return images.flatten(1)


class TestMoments:
    def test_a_stream_is_the_whole_in_any_order_and_any_batches(self):
        x = normal(1000, 7) @ normal(7, 7, seed=1) + 3
        for order in (x, x.flip(0), x[torch.randperm(1000, generator=torch.Generator().manual_seed(2))]):
            moments = Moments()
            for batch in order.split([1, 499, 3, 497]):
                moments.add(batch)
            assert moments.count == 1000
            torch.testing.assert_close(moments.mean, x.mean(0))
            torch.testing.assert_close(moments.covariance, torch.cov(x.T))

    def test_two_streams_are_joined(self):
        x = normal(100, 3)
        joined = Moments().add(x[:30]).join(Moments().add(x[30:])).join(Moments())
        torch.testing.assert_close(joined.covariance, torch.cov(x.T))

    def test_a_far_mean_costs_no_digits(self):
        """E[xx'] - mm' in float64 has no digit left of a variance of 1 at 1e9."""
        x = normal(500, 3) + 1e9
        moments = Moments()
        for batch in x.split(50):
            moments.add(batch)
        torch.testing.assert_close(moments.covariance, torch.cov(x.T), rtol=1e-6, atol=1e-7)

    def test_float32_features_are_added_in_float64(self):
        x = (normal(4000, 2) + 100).float()
        moments = Moments()
        for batch in x.split(10):
            moments.add(batch)
        torch.testing.assert_close(moments.covariance, torch.cov(x.double().T), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 4), torch.full((2, 3), math.nan), None])
    def test_what_are_no_rows_is_refused(self, bad):
        with pytest.raises(ArgumentError, match="features"):
            Moments().add(torch.zeros(2, 3)).add(bad)

    def test_one_row_has_no_covariance(self):
        with pytest.raises(ArgumentError, match="1 rows were added"):
            _ = Moments().add(torch.zeros(1, 3)).covariance


class TestFrechet:
    def test_gaussians_of_known_moments(self):
        """Commuting covariances: |m1 - m2|² + sum (s1 - s2)². Features are standardised to have exactly these."""
        x = normal(500, 3)
        x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
        s1, s2, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 0.5, 0.5]), torch.tensor([1.0, -1.0, 3.0])
        got = moments_distance(Moments().add(x * s1), Moments().add(x * s2 + shift))
        assert got == pytest.approx((shift.square().sum() + (s1 - s2).square().sum()).item(), rel=1e-10)

    @pytest.mark.parametrize("f", [4, 64])
    def test_against_a_matrix_square_root_of_scipy(self, f):
        """The formula as FID's authors compute it, from the root of the product, on covariances that do not commute."""
        x, y = normal(50 * f, f) @ normal(f, f, seed=1), normal(50 * f, f, seed=2) @ normal(f, f, seed=3) + 0.3
        a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
        root = scipy.linalg.sqrtm(a @ b)
        want = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a + b - 2 * root.real)
        assert moments_distance(Moments().add(x), Moments().add(y)) == pytest.approx(want, rel=1e-8)

    def test_too_few_samples_are_said(self):
        few, many = Moments().add(normal(8, 8)), Moments().add(normal(9, 8, seed=1))
        with pytest.warns(UserWarning, match="8 samples for 8 features"):
            moments_distance(few, many)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            moments_distance(many, many)


class TestKernelDistance:
    def test_by_hand(self):
        """Three and two numbers, every pair written out."""
        x, y = [0.0, 1.0, 2.0], [1.0, 3.0]

        def k(a, b):
            return (a * b + 1) ** 3

        want = (k(0, 1) + k(0, 2) + k(1, 2)) / 3 + k(1, 3) - 2 * sum(k(a, b) for a in x for b in y) / 6
        assert kernel_inception_distance(torch.tensor(x)[:, None], torch.tensor(y)[:, None]) == pytest.approx(want)

    def test_is_unbiased(self):
        """On equal laws, small sets: the mean over 4,000 is zero within 4 standard errors; a biased one is not."""
        values = [
            kernel_inception_distance(normal(5, 2, seed=2 * s), normal(5, 2, seed=2 * s + 1)) for s in range(4000)
        ]
        mean, error = np.mean(values), np.std(values) / len(values) ** 0.5
        assert abs(mean) < 4 * error
        # Diagonals kept would add E[(|x|²/2 + 1)³] - E[k(x, x')] over 5, twice: far above.
        assert error < 0.2


class TestPrecisionRecall:
    def test_a_set_beside_itself_and_far_away(self):
        x = normal(200, 5)
        assert of_sets(x, x) == (1.0, 1.0)
        assert of_sets(x + 100, x) == (0.0, 0.0)

    def test_a_mode_left_out_costs_recall_alone(self):
        modes = [normal(100, 2, seed=s) * 0.1 + 50 * s for s in range(4)]
        whole, fresh = torch.cat(modes), normal(100, 2) * 0.1
        assert of_sets(fresh, whole) == (1.0, 0.25)
        assert of_sets(whole, fresh) == (0.25, 1.0)

    def test_against_balls_by_hand(self):
        """On a line, k = 1: reference 0, 1, 3 has radii 1, 1, 2, so it covers [-1, 5]."""
        reference = torch.tensor([0.0, 1.0, 3.0])[:, None]
        samples = torch.tensor([-1.5, -0.75, 5.0, 5.5])[:, None]
        assert of_sets(samples, reference, neighbours=1) == (
            0.5,
            1 / 3,
        )  # radii 0.75, 0.75, 0.5, 0.5: of the reference 0 alone

    def test_too_few_points_are_refused(self):
        with pytest.raises(ArgumentError, match="3 points, expected more than neighbours, 3"):
            of_sets(normal(3, 2), normal(9, 2))


class Known:
    """Features that are the pixels, and classes that are the first two of them."""

    def __call__(self, images):
        return images.flatten(1)

    def with_logits(self, images):
        return self(images), images.flatten(1)[:, :2]


class TestImageSets:
    def test_streams_give_what_the_whole_gives(self):
        x, y = normal(200, 1, 2, 3).float(), normal(150, 1, 2, 3, seed=1).float() + 0.2
        whole = image_distances(ImageSet(Known()).add(x), ImageSet(Known()).add(y))
        parts = image_distances(ImageSet(Known()).extend(x.flip(0).split(7)), ImageSet(Known()).extend(y.split(64)))
        assert set(whole) == {"fid", "kid", "precision", "recall", "inception_score"}
        assert parts == pytest.approx(whole, rel=1e-9)
        assert whole["fid"] == pytest.approx(moments_distance(Moments().add(flat(x)), Moments().add(flat(y))))
        assert whole["kid"] == kernel_inception_distance(flat(x), flat(y))

    def test_only_so_many_features_are_kept_and_all_are_counted(self):
        x = normal(100, 1, 2, 2).float()
        images = ImageSet(flat, kept=30).extend(x.split(7))
        assert torch.equal(images.rows, flat(x)[:30])
        assert images.count == 100
        torch.testing.assert_close(images.moments.mean, flat(x).double().mean(0))

    def test_inception_scores_of_known_classes(self):
        sure = torch.zeros(4, 1, 1, 2)
        sure[:2, ..., 0] = sure[2:, ..., 1] = 100.0
        assert ImageSet(Known()).add(sure).inception_score() == pytest.approx(2)
        assert ImageSet(Known()).add(sure[:2]).inception_score() == pytest.approx(1)
        p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
        want = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
        images = p.log().reshape(2, 1, 1, 2)
        assert ImageSet(Known()).extend(images.split(1)).inception_score() == pytest.approx(want, rel=1e-12)
        with pytest.raises(ArgumentError, match="no method with_logits"):
            ImageSet(flat).add(sure).inception_score()

    def test_other_units_are_said(self):
        x = torch.rand(100, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        for scaled in (255 * x, x / 255, 2 * x - 2):
            with pytest.warns(UserWarning, match="the same units"):
                image_distances(ImageSet(flat).add(scaled), ImageSet(flat).add(x))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image_distances(ImageSet(flat).add(1.1 * x - 0.05), ImageSet(flat).add(x))

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (torch.zeros(4, 2, 2), r"expected a tensor \(B, C, H, W\)"),
            (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), "dtype torch.uint8"),
            (torch.zeros(4, 3, 2, 2), r"shape \(3, 2, 2\), those before had \(1, 2, 2\)"),
            (torch.full((4, 1, 2, 2), math.nan), "images"),
            (None, "images is None"),
        ],
    )
    def test_what_are_no_images_is_refused(self, bad, said):
        with pytest.raises(ArgumentError, match=said):
            ImageSet(flat).add(torch.zeros(2, 1, 2, 2)).add(bad)

    def test_sets_and_features_that_cannot_be_compared_are_refused(self):
        with pytest.raises(ArgumentError, match=r"images have shape \(1, 2, 2\) and the reference \(1, 2, 3\)"):
            image_distances(ImageSet(flat).add(normal(9, 1, 2, 2)), ImageSet(flat).add(normal(9, 1, 2, 3)))
        with pytest.raises(ArgumentError, match="no images were added"):
            image_distances(ImageSet(flat), ImageSet(flat))
        with pytest.raises(ArgumentError, match="features returned"):
            ImageSet(lambda images: images).add(normal(9, 1, 2, 2))
        with pytest.raises(ArgumentError, match="features is 3"):
            ImageSet(3)
