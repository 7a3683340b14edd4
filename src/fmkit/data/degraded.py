"""Images, each with itself degraded as the condition: pairs for flows from what is left of an image to the image."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from fmkit.arguments import check_count, check_instance, check_number
from fmkit.data.base import DataSet, Split
from fmkit.data.pixels import dequantize
from fmkit.errors import ArgumentError
from fmkit.transforms import Transform


class Degraded(DataSet):
    """Another set of images, whose condition is the image blurred, or with its lower part hidden, in the model's units.

    The condition has the image's own shape, so the source `conditioned` begins with it; a field that takes images as
    conditions (the UNet's `cond_channels`) reads it too.

    Args:
        data: images (C, H, W) of whole grey levels, in memory, as digits (flat=False), mnist-5k or image-folder.
        hidden: share of the rows that are hidden, from below, in [0, 1): they are of the middle grey.
        blur: side of the box whose mean each pixel becomes, odd; 1 for none. The border is continued.

    Raises:
        ArgumentError: if neither is asked for, or out of range; on loading, for what are no such images, images too
            small for that, or flipped while training: image and condition would no longer fit.
    """

    def __init__(self, data: DataSet, hidden: float = 0.0, blur: int = 1) -> None:
        super().__init__()
        self.data = check_instance("data", data, DataSet)
        self.hidden, self.blur = check_number("hidden", hidden), check_count("blur", blur)
        if not 0 <= hidden < 1:
            raise ArgumentError(f"hidden is {hidden}, expected a share of the rows in [0, 1)")
        if blur % 2 == 0:
            raise ArgumentError(f"blur is {blur}, expected an odd number: a box has its pixel in the middle")
        if hidden == 0 and blur == 1:
            raise ArgumentError("hidden is 0 and blur 1, which degrades nothing; expected one of them to be more")

    def load(self, seed: int = 0) -> Split:
        split = self.data.load(seed)
        train, levels, name = split.train, split.levels, type(self.data).__name__
        if len(split.event_shape) != 3 or levels is None or not isinstance(train.x, Tensor):
            raise ArgumentError(
                f"{name} has events of shape {split.event_shape}, expected whole grey levels (C, H, W), in memory"
            )
        if train.augment not in (None, dequantize):
            raise ArgumentError(f"{name} is flipped while training, and its condition is not: flip=False")
        height, width = split.event_shape[1:]
        if self.blur > min(height, width):
            raise ArgumentError(f"blur is {self.blur}, a box that is larger than images of {height}x{width} pixels")
        if self.hidden and not self._rows(height):
            raise ArgumentError(f"hidden is {self.hidden}, which is no row of {height}")

        def degrade(x: Tensor) -> Tensor:
            return self._degraded(x, (levels - 1) / 2)

        cond, test_cond = (_in_model_units(degrade(x), train.transform) for x in (train.x, split.test))
        train = dataclasses.replace(train, cond=cond)
        return Split(train, split.test, test_cond, levels=levels, degrade=degrade)

    def _degraded(self, x: Tensor, grey: float) -> Tensor:
        x = x.float().clone()
        if self.blur > 1:
            x = F.avg_pool2d(F.pad(x, (self.blur // 2,) * 4, mode="replicate"), self.blur, stride=1)
        height = x.shape[2]
        x[:, :, height - self._rows(height) :] = grey
        return x

    def _rows(self, height: int) -> int:
        return round(self.hidden * height)


def _in_model_units(x: Tensor, transform: Transform | None) -> Tensor:
    """Grey levels in the middle of what dequantization makes of them."""
    return (x if transform is None else transform(x + 0.5)).to(torch.get_default_dtype())
