"""PSNR, SSIM and consistency: closed forms, and SSIM against its definition, window by window."""

import math

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import bicubic, consistency, psnr, ssim


def images(n=2, c=3, h=16, w=19, seed=0):
    return torch.rand(n, c, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    x = images()
    shifted = torch.stack([x[0] + 0.1, x[1] - 0.01])
    torch.testing.assert_close(psnr(shifted, x, 1.0), torch.tensor([20.0, 40.0], dtype=torch.float64))
    torch.testing.assert_close(psnr(255 * shifted, 255 * x, 255.0), psnr(shifted, x, 1.0))
    assert psnr(x, x, 1.0).tolist() == [math.inf, math.inf]


def test_psnr_of_gaussian_noise():
    """MSE of 30,000 normal numbers of variance s² is s² (1 ± 4 sqrt(2/30000)): -20 log10 s within 0.15 dB."""
    x = images(1, 3, 100, 100)
    noisy = x + 0.05 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    assert psnr(noisy, x, 1.0).item() == pytest.approx(-20 * math.log10(0.05), abs=0.15)


def test_ssim_is_one_for_equal_images_alone():
    x = images()
    torch.testing.assert_close(ssim(x, x, 1.0), torch.ones(2, dtype=torch.float64))
    values = [ssim(x + s * (images(seed=1) - 0.5), x, 1.0).mean().item() for s in (0.1, 0.3, 1.0)]
    assert 1 > values[0] > values[1] > values[2]


def test_ssim_of_constant_images():
    """Without variance, (2ab + c1)/(a² + b² + c1)."""
    a, b = torch.full((1, 1, 12, 12), 0.3), torch.full((1, 1, 12, 12), 0.7)
    assert ssim(a, b, 1.0).item() == pytest.approx((2 * 0.21 + 1e-4) / (0.09 + 0.49 + 1e-4), rel=1e-6)


def test_ssim_is_its_definition():
    x, y = images(1, 2, 13, 12), images(1, 2, 13, 12, seed=1)
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weights = torch.tensor(line, dtype=torch.float64)
    window = torch.outer(weights, weights) / weights.sum() ** 2
    values = []
    for c in range(2):
        for i in range(3):
            for j in range(2):
                p, q = (z[0, c, i : i + 11, j : j + 11] for z in (x, y))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                both = (window * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * both + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    torch.testing.assert_close(ssim(x, y, 1.0)[0], torch.stack(values).mean())


def test_ssim_is_that_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    x, y = images(1, 1, 40, 30), images(1, 1, 40, 30, seed=1)
    _, every = skimage.structural_similarity(
        *(z[0, 0].numpy() for z in (x, y)),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(x, y, 1.0).item() == pytest.approx(every[5:-5, 5:-5].mean(), rel=1e-10)


def test_each_image_has_its_own_number():
    x, y = images(3), images(3, seed=1)
    for of in (psnr, ssim):
        torch.testing.assert_close(of(x, y, 1.0)[1:2], of(x[1:2], y[1:2], 1.0))
    low = images(3, 3, 4, 4)
    big = images(3, 3, 8, 8)
    torch.testing.assert_close(consistency(big, low)[1:2], consistency(big[1:2], low[1:2]))


def test_consistency_of_what_shrinks_to_what_was_given():
    low = images(2, 3, 4, 5)
    enlarged = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    checks = 0.3 * (-1.0) ** (torch.arange(8)[:, None] + torch.arange(10))  # its box means are zero
    assert consistency(enlarged + checks, low).max() < 1e-30
    torch.testing.assert_close(consistency(enlarged + 0.1, low), torch.full((2,), 0.01, dtype=torch.float64))


def test_bicubic_interpolates_a_ramp_and_keeps_the_range():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 1, 8, 8)
    out = bicubic(ramp, 2)
    assert out.shape == (1, 1, 16, 16)
    middle = (torch.arange(16.0, dtype=torch.float64) + 0.5) / 2 - 0.5
    torch.testing.assert_close(out[0, 0, 5, 4:12], middle[4:12])
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1
    assert bicubic(edge.float(), 3).aminmax() == (0, 1)
    assert bicubic(edge.float(), 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((images(), images(1), 1.0), "expected the same"),
        ((images(), images().to(torch.uint8), 1.0), "targets is"),
        ((images(), images(), 0.0), "span is 0.0"),
        ((images(), images(), math.nan), "span is nan"),
        ((images(), 255 * images(), 1.0), "say the true width"),
        ((images() * math.nan, images(), 1.0), "images"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, said):
    for of in (psnr, ssim):
        with pytest.raises(ArgumentError, match=said):
            of(*arguments)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="at least 11 a side"):
        ssim(images(h=10), images(h=10), 1.0)
    for h, w in ((8, 11), (8, 15), (3, 3)):
        with pytest.raises(ArgumentError, match="one whole multiple"):
            consistency(images(1, 3, h, w), images(1, 3, 4, 5))
    with pytest.raises(ArgumentError, match="factor"):
        bicubic(images(), 0)
