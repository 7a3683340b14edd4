"""What precision a number was computed in, seen from its digits."""

from __future__ import annotations

import torch
from torch import Tensor


def has_float32s_digits(value: Tensor) -> bool:
    """Whether no number of a float64 tensor needs more than float32 holds; whole and half numbers say nothing."""
    telling = value[2 * value != (2 * value).round()]
    return telling.numel() > 1 and torch.equal(telling, telling.float().double())
