"""Building blocks of networks for images: normalisation, attention, residual blocks, changes of resolution.

Attention is torch's fused one, but for a field that is differentiated by its points (a likelihood, gradients through
samples, forward mode): fused kernels have no forward mode, no batching rule and no second derivative, so there it is
written out, softmax(q k^T / sqrt d) v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError, did_you_mean
from fmkit.fields.embeddings import zeroed

Change = Literal["none", "down", "up"]


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) of whole numbers >= 1; otherwise an ArgumentError."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise ArgumentError(f"event_shape is {shown(shape)}, expected that of images, (channels, height, width)")
    c, h, w = (check_count("a length of event_shape", n) for n in shape)
    return c, h, w


def preset_of(presets: Mapping[str, Mapping[str, Any]], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's sizes, with those `given` that are not None in their place.

    Raises:
        ArgumentError: if there is none of that name.
    """
    if name not in presets:
        raise ArgumentError(f"there is no preset {name!r}{did_you_mean(str(name), presets)}")
    return {**presets[name], **{key: value for key, value in given.items() if value is not None}}


def differentiated(x: Tensor) -> bool:
    """Whether derivatives by the points x may be asked for: then attention is written out."""
    if torch.compiler.is_compiling():
        return x.requires_grad
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return x.requires_grad or transformed or forward_ad._current_level >= 0


def attend(q: Tensor, k: Tensor, v: Tensor, plainly: bool) -> Tensor:
    """softmax(q k^T / sqrt d) v of `(B, heads, N, d)`; fused unless `plainly`."""
    if not plainly:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1).to(v.dtype) @ v


def heads_of(channels: int, heads: int | None, head_channels: int) -> int:
    """How many heads: as many as asked for, or as have `head_channels` each, at least one.

    Raises:
        ArgumentError: if they do not divide the channels.
    """
    number = max(1, channels // head_channels) if heads is None else heads
    if channels % number:
        raise ArgumentError(f"{channels} channels do not divide into {number} heads of equal size")
    return number


class Norm(nn.GroupNorm):
    """Group normalisation of 32 groups (fewer where a group would have under 4 channels); torch sums in float32.

    Args:
        channels: of its input `(B, channels, ...)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0), channels)


class Attention(nn.Module):
    """x + W attention(norm(x)): self-attention over the positions of `(B, C, H, W)`, the identity at first.

    Args:
        channels: C.
        heads: of equal size.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, plainly: bool) -> Tensor:
        """The same shape; `plainly` writes the attention out."""
        parts = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = parts.transpose(-1, -2).unbind(1)
        return x + self.out(attend(q, k, v, plainly).transpose(-1, -2).reshape(x.shape))


class ResBlock(nn.Module):
    """skip(x) + f(x, e), where e is the embedding of time and condition (Dhariwal & Nichol, arXiv 2105.05233).

        f = conv(silu(norm(conv(silu(norm(x)))) (1 + scale(e)) + shift(e)))

    without `scale_shift` W e is added before the second norm instead. The second convolution begins at zero.

    Args:
        channels: of x.
        out: of the result; `skip` is a 1x1 convolution where they differ.
        embedding: length of e.
        dropout: before the second convolution.
        scale_shift: whether the norm is modulated.
        change: halve or double both sides between the first norm and convolution, and along the skip.
    """

    def __init__(
        self, channels: int, out: int, embedding: int, dropout: float, scale_shift: bool, change: Change = "none"
    ) -> None:
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.first_norm, self.first = Norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * out if scale_shift else out)
        self.norm, self.last = Norm(out), zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`(B, out, ...)`; `size` is the one wanted of a block that doubles."""
        h = F.silu(self.first_norm(x))
        x, h = (resized(v, self.change, size) for v in (x, h))
        h = self.first(h)
        modulation = self.modulate(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.norm(h) * (1 + scale) + shift
        else:
            h = self.norm(h + modulation)
        return self.skip(x) + self.last(self.dropout(F.silu(h)))


def resized(x: Tensor, change: Change, size: tuple[int, int] | None = None) -> Tensor:
    """Both sides halved by means of 2x2 pixels (rounded up), or doubled by copies, to `size` exactly."""
    if change == "down":
        return F.avg_pool2d(x, 2, ceil_mode=True)
    return F.interpolate(x, size=size or [2 * n for n in x.shape[2:]], mode="nearest") if change == "up" else x


class Downsample(nn.Module):
    """Both sides halved, rounded up, by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Both sides doubled by copies, to the size wanted exactly, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(resized(x, "up", size))
