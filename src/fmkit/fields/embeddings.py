"""What networks are told beside the points: the time, and a condition that may be missing.

A missing condition (`cond=None`) is a learnt embedding of its own; with `cond_dropout` it is also trained, which is
what classifier-free guidance needs.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fmkit.arguments import shown
from fmkit.errors import ArgumentError
from fmkit.fields.base import Dropped
from fmkit.shapes import readable

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class TimeEmbedding(nn.Module):
    """t, and sines and cosines of omega t at geometric frequencies from pi to 32 pi, then two layers.

    Args:
        width: of the embedding.
        frequencies: how many.
    """

    omega: Tensor

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("omega", math.pi * torch.logspace(0, math.log10(32), frequencies), persistent=False)
        self.first = nn.Linear(2 * frequencies + 1, width)
        self.second = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        t = t[:, None] if t.dtype == torch.float64 else t[:, None].float()  # never 16 bits: 1 - 1e-3 would be 1
        angle = t * self.omega.to(t.dtype)
        features = torch.cat([2 * t - 1, angle.sin(), angle.cos()], dim=1)
        return self.second(nn.functional.silu(self.first(features.to(self.first.weight.dtype))))


class ConditionEmbedding(nn.Module):
    """Labels or vectors as `(B, width)`, with an embedding of their absence.

    Args:
        width: of the embedding.
        classes: number of classes, if conditions are labels `(B,)` in 0 .. classes - 1.
        cond_dim: length of the condition, if conditions are vectors `(B, cond_dim)`.
        cond_dropout: in [0, 1): share of conditions dropped while training.

    Raises:
        ArgumentError: for sizes out of range, or both `classes` and `cond_dim`.
    """

    def __init__(
        self, width: int, classes: int | None = None, cond_dim: int | None = None, cond_dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, size in {"classes": classes, "cond_dim": cond_dim}.items():
            if size is not None and size < 1:
                raise ArgumentError(f"{name} is {size}, expected at least 1")
        if classes is not None and cond_dim is not None:
            raise ArgumentError("classes and cond_dim are both given; a condition is a label or a vector")
        self.classes, self.cond_dim = classes, cond_dim
        self.cond_dropout = check_share("cond_dropout", cond_dropout)
        self.label = None if classes is None else nn.Embedding(classes, width)
        self.vector = None if cond_dim is None else nn.Linear(cond_dim, width)
        self.null = None if classes is None and cond_dim is None else nn.Parameter(torch.zeros(width))

    @property
    def conditional(self) -> bool:
        """Whether it takes conditions at all."""
        return self.null is not None

    def forward(self, cond: Any, n: int, owner: str) -> Tensor:
        """`(n, width)`, of n conditions or of their absence; `owner` names the network in messages."""
        if self.null is None:
            raise ArgumentError(
                f"a condition was given to an unconditional {owner}; make it with classes= or cond_dim="
            )
        if cond is None:
            return self.null.expand(n, -1)
        if isinstance(cond, Dropped):
            return torch.where(cond.rows[:, None], self.null, self(cond.cond, n, owner))
        cond = check_condition(cond)
        if self.label is not None:
            embedded = self.label(self.check_labels(cond, n))
        else:
            if cond.shape != (n, self.cond_dim):
                raise ArgumentError(f"cond has shape {tuple(cond.shape)}, expected ({n}, {self.cond_dim})")
            assert self.vector is not None  # one of the two is there, as null is
            embedded = self.vector(cond.to(self.vector.weight.dtype))
        return drop(embedded, self.null, self.cond_dropout if self.training else 0.0)

    def check_labels(self, cond: Tensor, n: int) -> Tensor:
        """The n labels, if they are whole numbers that there are classes for; otherwise an ArgumentError."""
        if cond.is_floating_point() or cond.shape != (n,):
            raise ArgumentError(f"cond is {cond.dtype} of shape {tuple(cond.shape)}, expected integer labels ({n},)")
        if readable(cond):
            low, high = (int(v) for v in torch.aminmax(cond))
            known = self.classes or 0
            if low < 0 or high >= known:
                raise ArgumentError(f"labels range over {low} .. {high}, expected 0 .. {known - 1}")
        return cond


def check_condition(cond: Any) -> Tensor:
    """The condition, if it is a tensor that has values; otherwise an ArgumentError."""
    if not isinstance(cond, Tensor):
        raise ArgumentError(f"cond is {shown(cond)}, expected a tensor of one condition for each sample")
    if cond.device.type == "meta":
        raise ArgumentError("cond is on the meta device, expected conditions that have values")
    return cond


def check_share(name: str, share: float) -> float:
    """A number in [0, 1); otherwise an ArgumentError."""
    if not 0 <= share < 1:
        raise ArgumentError(f"{name} is {share}, expected a share in [0, 1)")
    return share


def drop(embedded: Tensor, null: Tensor, share: float) -> Tensor:
    """`(B, ...)` conditions, a random share of their rows replaced by `null`, which broadcasts to one."""
    if not share:
        return embedded
    rows = torch.rand(len(embedded), *[1] * (embedded.ndim - 1), device=embedded.device)
    return torch.where(rows < share, null, embedded)


def zeroed(layer: Layer) -> Layer:
    """The layer, its weights at zero: what comes after it begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
