"""Feature extractors that are known by a name: what distances between images may be taken in, beside a classifier's."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor

from fmkit.parts import Part


class FeatureExtractor(Part):
    """The base class. A subclass implements `forward` and `identity`.

    With a method `with_logits`, `images -> (features (B, F), logits (B, K))`, the inception score is known as well.
    """

    group: ClassVar[str] = "fmkit.features"

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """`(B, F)` features of images `(B, C, H, W)` in the data's units, k + u of grey level k and u in [0, 1)."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """A text that is another where the features are: what is remembered of images is kept under it."""
