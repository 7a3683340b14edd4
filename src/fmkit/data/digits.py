"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, 17 grey levels, 10 classes."""

from __future__ import annotations

import torch

from fmkit.arguments import check_count
from fmkit.data.base import Data, DataSet, Split
from fmkit.data.pixels import dequantize
from fmkit.errors import ArgumentError
from fmkit.randomness import stream
from fmkit.transforms import Affine

LEVELS = 17


class Digits(DataSet):
    """The digits, flattened to 64 numbers or as 1x8x8 images, 80/20 split, uniformly dequantized while training.

    Values in the user's units are k + u, grey level k in 0 .. 16 and u in [0, 1).

    Args:
        flat: events of shape (64,) instead of (1, 8, 8).
        labels: the digit as a condition.
        split_seed: of the split into 1,437 training and 360 held-out images.

    Raises:
        ArgumentError: if the split's seed is no whole number of at least 0.
    """

    def __init__(self, flat: bool = True, labels: bool = False, split_seed: int = 0) -> None:
        super().__init__()
        self.flat, self.labels, self.split_seed = flat, labels, check_count("split_seed", split_seed, least=0)

    def load(self, seed: int = 0) -> Split:
        check_count("seed", seed, least=0)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ArgumentError("the data set 'digits' needs scikit-learn: pip install 'fmkit[data]'") from error
        raw = load_digits()
        x = torch.from_numpy(raw.data).float()
        x = x if self.flat else x.reshape(-1, 1, 8, 8)
        y = torch.from_numpy(raw.target).long()
        order = torch.randperm(len(x), generator=stream(self.split_seed, "digits-split"))
        cut = int(0.8 * len(x))
        train, test = order[:cut], order[cut:]
        cond = (y[train], y[test]) if self.labels else (None, None)
        # The mean image of the dequantized values is subtracted; one scale for all pixels makes their variance 1.
        kept = x[train].double()
        variance = kept.var(0, correction=0).mean() + 1 / 12
        transform = Affine(kept.mean(0) + 0.5, variance.sqrt())
        data = Data(x[train], cond[0], transform=transform, augment=dequantize)
        return Split(data, x[test], cond[1], 10 if self.labels else None, LEVELS)
