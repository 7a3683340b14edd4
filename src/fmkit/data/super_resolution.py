"""Images, each with its low resolution as the condition: what super-resolution is trained on."""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from fmkit.arguments import check_count, check_instance
from fmkit.data.base import DataSet, Split
from fmkit.data.pixels import dequantize
from fmkit.errors import ArgumentError


class SuperResolution(DataSet):
    """Another set of images, whose condition is the image shrunk by box means, in [-1, 1].

    A field that takes images as conditions (the UNet's `cond_channels`) learns p(image | low resolution).

    Args:
        data: images (C, H, W) of whole grey levels, in memory, as digits (flat=False), mnist-5k or image-folder.
        factor: how many times smaller a side of the condition is, at least 2; it must divide the sides.

    Raises:
        ArgumentError: on loading, for what are no such images, or are flipped while training: image and condition would
            no longer fit.
    """

    def __init__(self, data: DataSet, factor: int = 2) -> None:
        super().__init__()
        self.data = check_instance("data", data, DataSet)
        self.factor = check_count("factor", factor, least=2)

    def load(self, seed: int = 0) -> Split:
        split = self.data.load(seed)
        shape, name = split.event_shape, type(self.data).__name__
        if len(shape) != 3 or split.levels is None or not isinstance(split.train.x, Tensor):
            raise ArgumentError(f"{name} has events of shape {shape}, expected whole grey levels (C, H, W), in memory")
        if any(side % self.factor for side in shape[1:]):
            raise ArgumentError(f"images have {shape[1]}x{shape[2]} pixels, which factor {self.factor} does not divide")
        if split.train.augment not in (None, dequantize):
            raise ArgumentError(f"{name} is flipped while training, and its low resolution is not: flip=False")
        train = dataclasses.replace(split.train, cond=self._shrunk(split.train.x, split.levels))
        test_cond = self._shrunk(split.test, split.levels)
        return Split(train, split.test, test_cond, levels=split.levels, degrade=self._means)

    def _means(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float(), self.factor)

    def _shrunk(self, images: Tensor, levels: int) -> Tensor:
        return self._means(images) * (2 / (levels - 1)) - 1


def grey_levels_of(cond: Tensor, levels: int) -> Tensor:
    """Conditions `(B, C, h, w)` of `SuperResolution` in grey levels, 0 .. levels - 1."""
    return (cond + 1) * ((levels - 1) / 2)
