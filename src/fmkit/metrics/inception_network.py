"""The network of FID: Inception v3 as TensorFlow released it in 2015, frozen in that form by every published FID.

It differs from later Inceptions (torchvision's among them) in its 1,008 classes, in average pooling that does not count
the padding, in a maximum where the last block should have an average, and in the way images are resized. Tensors are
named as in the file of weights that pytorch-fid and torch-fidelity share. (Szegedy et al., arXiv 1512.00567.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, FEATURES, CLASSES = 299, 2048, 1008

Layer = tuple[str, int, int | tuple[int, int]]  # its name, channels and kernel


class Convolution(nn.Module):
    """Convolution, normalisation by constants, and the positive part."""

    def __init__(
        self, before: int, channels: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(before, channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, and beside them a pooling.

    Args:
        before: channels that come in.
        branches: chains of layers; one whose name ends in "ab" is two, 1x3 and 3x1, of the same input.
        pool: "mean" or "max", over 3x3 pixels and then through a layer `branch_pool` of so many channels, or "halve":
            the maximum of 3x3, and every branch's last layer without padding, at every second pixel.
        pooled: channels of `branch_pool`.
    """

    def __init__(self, before: int, branches: tuple[tuple[Layer, ...], ...], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.chains: list[list[tuple[str, ...]]] = []
        self.pool, self.channels = pool, pooled or before
        for branch in branches:
            wide, chain = before, list[tuple[str, ...]]()
            for name, channels, kernel in branch:
                last = pool == "halve" and name == branch[-1][0]
                forked = name.endswith("ab")
                names = (name[:-1], name[:-2] + "b") if forked else (name,)
                for one, side in zip(names, ((1, 3), (3, 1)) if forked else (kernel,), strict=True):
                    self.add_module(one, Convolution(wide, channels, side, 2 if last else 1, padded=not last))
                chain.append(names)
                wide = channels * len(names)
            self.chains.append(chain)
            self.channels += wide
        self.branch_pool = Convolution(before, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for chain in self.chains:
            h = x
            for names in chain:
                h = torch.cat([self.get_submodule(name)(h) for name in names], dim=1)
            out.append(h)
        if self.pool == "mean":
            h = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        else:
            h = F.max_pool2d(x, 3, 2) if self.pool == "halve" else F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([*out, self.branch_pool(h)], dim=1)


def _a(before: int, pooled: int) -> Mixed:
    fives: tuple[Layer, ...] = (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    threes: tuple[Layer, ...] = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return Mixed(before, ((("branch1x1", 64, 1),), fives, threes), "mean", pooled)


def _b(before: int) -> Mixed:
    threes: tuple[Layer, ...] = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return Mixed(before, ((("branch3x3", 384, 3),), threes), "halve")


def _c(before: int, c: int) -> Mixed:
    sevens: tuple[Layer, ...] = (("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1)))
    doubled: tuple[Layer, ...] = (
        ("branch7x7dbl_1", c, 1),
        ("branch7x7dbl_2", c, (7, 1)),
        ("branch7x7dbl_3", c, (1, 7)),
        ("branch7x7dbl_4", c, (7, 1)),
        ("branch7x7dbl_5", 192, (1, 7)),
    )
    return Mixed(before, ((("branch1x1", 192, 1),), sevens, doubled), "mean", 192)


def _d(before: int) -> Mixed:
    sevens: tuple[Layer, ...] = (
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    )
    return Mixed(before, ((("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)), sevens), "halve")


def _e(before: int, pool: str) -> Mixed:
    threes: tuple[Layer, ...] = (("branch3x3_1", 384, 1), ("branch3x3_2ab", 384, 3))
    doubled: tuple[Layer, ...] = (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), ("branch3x3dbl_3ab", 384, 3))
    return Mixed(before, ((("branch1x1", 320, 1),), threes, doubled), pool, 192)


class InceptionNetwork(nn.Module):
    """Images `(B, 3, H, W)` of grey levels 0 .. 255 to features `(B, 2048)` and logits `(B, 1008)` without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = _b(288), _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = _c(768, 160), _c(768, 192), _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (resized(images) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


def resized(images: Tensor, side: int = SIDE) -> Tensor:
    """`(B, C, side, side)`, bilinear as in TensorFlow 1: pixel k of n lies at k/n, not in the middle of its square.

    That is neither of `torch.nn.functional.interpolate`'s two ways, and it shifts the image by up to half a pixel.
    """
    for dim in (2, 3):
        n = images.shape[dim]
        at = torch.arange(side, device=images.device, dtype=torch.float32) * (n / side)
        low = at.long().clamp_max(n - 1)
        share = (at - low).to(images.dtype).reshape(-1, 1) if dim == 2 else (at - low).to(images.dtype)
        first, next_one = images.index_select(dim, low), images.index_select(dim, (low + 1).clamp_max(n - 1))
        images = first + (next_one - first) * share
    return images
