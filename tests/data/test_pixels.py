"""What is done to pixels: means, squares, mirrors, and the density of grey levels."""

import math

import numpy as np
import PIL.Image
import pytest
import torch

import fmkit
from fmkit.data import InTurn, box_downsample, center_crop, dequantize, fit, flip, resize
from fmkit.errors import ArgumentError


def images(n=3, c=2, h=6, w=8, dtype=torch.uint8):
    x = torch.randint(256, (n, c, h, w), generator=torch.Generator().manual_seed(0))
    return x.to(dtype)


def test_boxes_are_means():
    x = images(dtype=torch.float64)
    small = box_downsample(x, 2)
    assert small.shape == (3, 2, 3, 4)
    for i, j in ((0, 0), (2, 3), (1, 2)):
        torch.testing.assert_close(small[..., i, j], x[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)))
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)))
    tall = images(h=8, dtype=torch.float64)
    torch.testing.assert_close(box_downsample(tall, 4), box_downsample(box_downsample(tall, 2), 2))
    assert box_downsample(torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.uint8), 2).item() == 1  # a half goes up
    assert box_downsample(images(), 2).dtype == torch.uint8


def test_a_crop_is_the_middle():
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    assert center_crop(x, 3, 3).tolist() == [[[[9, 10, 11], [16, 17, 18], [23, 24, 25]]]]
    assert center_crop(x, 2, 2).tolist() == [[[[9, 10], [16, 17]]]]
    assert center_crop(x, 5, 7).equal(x)


def test_resizing_is_box_means_by_whole_factors_and_otherwise_pillows_bicubic():
    x = images(1, 1, 12, 12)
    assert torch.equal(resize(x, 4, 4), box_downsample(x, 3))
    assert resize(x, 12, 12) is x
    for size in ((5, 7), (7, 5), (12, 7)):
        theirs = PIL.Image.fromarray(x[0, 0].numpy()).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
        ours = resize(x, *size)[0, 0].int()
        assert (ours - torch.from_numpy(np.array(theirs)).int()).abs().max() <= 1  # rounded in another order
    flat = torch.full((1, 3, 5, 5), 200, dtype=torch.uint8)
    assert (resize(flat, 7, 3) == 200).all()


def test_fitting_is_the_largest_square_resized():
    x = images(h=6, w=8)
    assert torch.equal(fit(x, 3), box_downsample(x[..., 1:7], 2))


def test_a_mirror_image_twice_is_the_image(seeded):
    x = images(dtype=torch.float32)
    assert torch.equal(flip(flip(x, seeded(1)), seeded(1)), x)
    many = flip(torch.tensor([1.0, 2.0]).expand(4000, 1, 1, 2), seeded(0))
    turned = many[:, 0, 0, 0] == 2
    assert (many[turned][:, 0, 0] == torch.tensor([2.0, 1.0])).all()
    assert (many[~turned][:, 0, 0] == torch.tensor([1.0, 2.0])).all()
    assert turned.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    # rows and columns stay apart: only the last axis turns
    assert torch.equal(flip(x, seeded(1))[..., 0].sort(1)[0].sum(), flip(x, seeded(1))[..., 0].sum())


def test_augmentations_in_turn_draw_from_one_generator(seeded):
    x, g = images(dtype=torch.float32), seeded(3)
    assert torch.equal(InTurn([flip, dequantize])(x, seeded(3)), dequantize(flip(x, g), g))
    assert torch.equal(InTurn([])(x, seeded(3)), x)


def test_dequantized_levels_have_the_mass_of_their_level():
    """Bits per dimension of a density that is constant over each level are those of the levels' probabilities."""
    levels, d = 256, 12
    transform = fmkit.data.image_split(images(10, 1, 3, 4)).train.transform
    x = images(4, 1, 3, 4, dtype=torch.float64)
    y = transform(x + 0.5)
    assert -1 < y.min() < y.max() < 1
    torch.testing.assert_close(transform.log_det(x), torch.full((4,), -d * 7 * math.log(2), dtype=torch.float64))

    class Still(torch.nn.Module):
        def forward(self, t, x):
            return torch.zeros_like(x)

    source = fmkit.sources.Uniform(-1.0, 1.0)
    flow = fmkit.Flow(source, Still(), fmkit.solvers.Euler(1), event_shape=(1, 3, 4), transform=transform)
    bits = fmkit.metrics.bits_per_dim(flow, x, levels=levels)
    torch.testing.assert_close(bits, torch.full((4,), 8.0, dtype=torch.float64))  # log2 256, whatever u


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: center_crop(images(), 7, 2), "6x8 images have no 7x2 pixels in the middle"),
        (lambda: center_crop(images(), 0, 2), "height is 0"),
        (lambda: box_downsample(images(), 4), "6x8 images do not divide into boxes of 4x4"),
        (lambda: box_downsample(images(), 0), "factor is 0"),
        (lambda: resize(images(), 3, -1), "width is -1"),
        (lambda: fit(images()[0], 3), r"x is a tensor of shape \(2, 6, 8\), expected images \(N, C, H, W\)"),
        (lambda: fit("cat", 3), "x is 'cat', expected images"),
        (lambda: flip(images(), torch.Generator()), "x has dtype torch.uint8, expected floating point"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
