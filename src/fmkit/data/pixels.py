"""What is done to the pixels of images `(N, C, H, W)`: once, when they are read, and afresh for every batch.

Cropping and resizing forget pixels, so they have no log-determinant: the density is that of the images that come out.
Integer images stay integer, rounded to the nearest grey level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fmkit.arguments import check_count, check_generator, shown
from fmkit.data.base import Augment
from fmkit.errors import ArgumentError
from fmkit.shapes import check_data


def center_crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle `height` x `width` pixels; where it is not in the middle of one, half a pixel up or left.

    Raises:
        ArgumentError: if the images are smaller.
    """
    h, w = _images(x).shape[2:]
    check_count("height", height)
    check_count("width", width)
    if height > h or width > w:
        raise ArgumentError(f"{h}x{w} images have no {height}x{width} pixels in the middle")
    top, left = (h - height) // 2, (w - width) // 2
    return x[..., top : top + height, left : left + width]


def box_downsample(x: Tensor, factor: int) -> Tensor:
    """Means of `factor` x `factor` pixels, as ImageNet-32 and -64 were made (Chrabaszcz et al., arXiv 1707.08819).

    Raises:
        ArgumentError: if the factor does not divide both sides.
    """
    h, w = _images(x).shape[2:]
    check_count("factor", factor)
    if h % factor or w % factor:
        raise ArgumentError(f"{h}x{w} images do not divide into boxes of {factor}x{factor} pixels")
    return x if factor == 1 else _rounded(F.avg_pool2d(_float(x), factor), x)


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Images of `height` x `width` pixels: box means where both sides shrink by one whole factor, else bicubic.

    Bicubic interpolation widens its kernel where it shrinks (antialiasing), and is cut to the range of its input.
    """
    h, w = _images(x).shape[2:]
    check_count("height", height)
    check_count("width", width)
    if (h, w) == (height, width):
        return x
    if h % height == 0 and w % width == 0 and h // height == w // width:
        return box_downsample(x, h // height)
    values = _float(x)
    out = F.interpolate(values, size=(height, width), mode="bicubic", antialias=True)
    return _rounded(out.clamp(values.amin(), values.amax()), x)


def fit(x: Tensor, size: int) -> Tensor:
    """Square images of `size` pixels a side: the largest square in the middle, resized."""
    side = min(_images(x).shape[2:])
    return resize(center_crop(x, side, side), size, size)


def dequantize(x: Tensor, generator: torch.Generator) -> Tensor:
    """x + u, u ~ U(0, 1): integer grey levels k, in floating point, become densities over [k, k + 1)."""
    check_data(x)
    check_generator(generator)
    return x + torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image, or its mirror image (left for right), with equal chance."""
    check_data(x)
    check_generator(generator)
    coins = torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, device=x.device)
    return torch.where(coins < 0.5, x, x.flip(-1))


class InTurn:
    """Augmentations one after the other, which draw from one generator.

    Args:
        steps: the augmentations.
    """

    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = tuple(steps)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for step in self.steps:
            x = step(x, generator)
        return x


def _images(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 4 or x.numel() == 0 or x.is_complex() or x.dtype == torch.bool:
        raise ArgumentError(f"x is {shown(x)}, expected images (N, C, H, W), of integers or floating point")
    return x


def _float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def _rounded(out: Tensor, like: Tensor) -> Tensor:
    """In the precision it had; halves of grey levels go up."""
    return out if like.is_floating_point() else (out + 0.5).floor().to(like.dtype)
