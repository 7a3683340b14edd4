"""Images beside the images they should be: PSNR, SSIM, and whether a super-resolved image shrinks to what was given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmkit.arguments import check_count, check_number, shown
from fmkit.errors import ArgumentError
from fmkit.shapes import check_finite

WINDOW, SPREAD = 11, 1.5


def psnr(images: Tensor, targets: Tensor, span: float) -> Tensor:
    """10 log10(span² / MSE) of each image, `(B,)`, in decibels; infinite for equal ones.

    Args:
        images: `(B, C, H, W)`.
        targets: the same shape.
        span: width of the range of values, as 255, or 2 for [-1, 1].

    Raises:
        ArgumentError: for other shapes, integers, values that are not finite, or a span that they do not fit in.
    """
    x, y = _pair(images, targets, span)
    return 10 * torch.log10(span**2 / (x - y).square().flatten(1).mean(1))


def ssim(images: Tensor, targets: Tensor, span: float) -> Tensor:
    """Structural similarity of each image, `(B,)`, 1 for equal ones (Wang et al. 2004); arguments as of `psnr`.

    As in the paper: a Gaussian window of 11x11 pixels and standard deviation 1.5, K = 0.01 and 0.03, moments of the
    window as a distribution, and the mean over windows that lie inside the image, over channels.

    Raises:
        ArgumentError: as `psnr`, or for images of fewer than 11 pixels a side.
    """
    x, y = _pair(images, targets, span)
    if min(x.shape[2:]) < WINDOW:
        raise ArgumentError(f"images have {x.shape[2]}x{x.shape[3]} pixels, expected at least {WINDOW} a side for SSIM")
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mx, my = _blurred(x), _blurred(y)
    vx, vy, both = _blurred(x * x) - mx**2, _blurred(y * y) - my**2, _blurred(x * y) - mx * my
    similarity = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return similarity.flatten(1).mean(1)


def consistency(images: Tensor, given: Tensor) -> Tensor:
    """Mean squared difference between super-resolved images, shrunk by box means, and what was given; `(B,)`.

    Args:
        images: `(B, C, f H, f W)`.
        given: `(B, C, H, W)`, the low resolution.

    Raises:
        ArgumentError: if the sides are no whole multiple f of the given ones.
    """
    x, y = _images("images", images), _images("given", given)
    factor = x.shape[2] // y.shape[2]
    if (*x.shape[:2], *x.shape[2:]) != (*y.shape[:2], *(factor * side for side in y.shape[2:])) or not factor:
        got = f"images have shape {tuple(x.shape)} and given {tuple(y.shape)}"
        raise ArgumentError(f"{got}; expected sides that are one whole multiple of the given ones")
    return (F.avg_pool2d(x, factor) - y).square().flatten(1).mean(1)


def bicubic(given: Tensor, factor: int) -> Tensor:
    """Images `(B, C, f H, f W)` by bicubic interpolation, in the range of what was given: the baseline to beat.

    The kernel is Keys's, a = -1/2, as in Pillow and in the papers; torch takes it only where it antialiases, and
    a = -3/4 elsewhere, which does not even reproduce a ramp.
    """
    check_count("factor", factor)
    x = _images("given", given)
    out = F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)
    return out.clamp(x.amin(), x.amax()).to(given.dtype)


def _blurred(x: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SPREAD**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, -1)
    along = F.conv2d(x, weights[:, :, None, :], groups=x.shape[1])
    return F.conv2d(along, weights[:, :, :, None], groups=x.shape[1])


def _pair(images: Tensor, targets: Tensor, span: float) -> tuple[Tensor, Tensor]:
    x, y = _images("images", images), _images("targets", targets)
    if x.shape != y.shape:
        raise ArgumentError(f"images have shape {tuple(x.shape)} and targets {tuple(y.shape)}, expected the same")
    if not check_number("span", span) > 0:
        raise ArgumentError(f"span is {span}, expected a positive number")
    low, high = (v.item() for v in torch.aminmax(y))
    if high - low > span * (1 + 1e-6):
        raise ArgumentError(f"span is {span}, and targets range over {low:.4g} .. {high:.4g}: say the true width")
    return x, y


def _images(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.numel() or not x.is_floating_point():
        raise ArgumentError(f"{name} is {shown(x)}, expected floating-point images (B, C, H, W)")
    check_finite(x, name)
    return x.detach().double() if x.device.type != "mps" else x.detach().float()
