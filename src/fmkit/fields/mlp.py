"""A residual multilayer perceptron with a time embedding and an optional condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fmkit.errors import ArgumentError
from fmkit.fields.base import VectorField
from fmkit.fields.embeddings import ConditionEmbedding, TimeEmbedding, check_share, zeroed

EMBEDDING = 128  # features of time and condition


class MLP(VectorField):
    """v(t, x, c): residual blocks on the flattened event, each modulated by an embedding e of time and condition.

        h = W x,   h <- h + f(norm(h) (1 + scale(e)) + shift(e)) in every block,   v = V norm(h) + gain(e) x

    The gain lets the part of a velocity that is linear in x, most of it near either end, bypass the network. Blocks
    begin as the identity and V and the gain at zero, so an untrained field is v = 0. A missing condition (`cond=None`)
    is a learnt embedding of its own; with `cond_dropout` it is also trained, for classifier-free guidance.

    Args:
        event_shape: shape of one sample, as `(64,)`, or its length, as `64`.
        width: hidden units, >= 1.
        depth: residual blocks, >= 1.
        classes: number of classes, if conditions are labels `(B,)` in 0 .. classes - 1.
        cond_dim: length of the condition, if conditions are vectors `(B, cond_dim)`.
        dropout: in [0, 1), inside the blocks, while training.
        cond_dropout: in [0, 1): share of conditions dropped while training.

    Raises:
        ArgumentError: for sizes out of range, or both `classes` and `cond_dim`.

    Examples:
        >>> import torch
        >>> MLP(2, width=32, depth=1)(torch.rand(5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        width: int = 256,
        depth: int = 3,
        classes: int | None = None,
        cond_dim: int | None = None,
        dropout: float = 0.0,
        cond_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        for name, size in {"width": width, "depth": depth, "event_shape": min(self.event_shape, default=0)}.items():
            if size < 1:
                raise ArgumentError(f"{name} is {size}, expected at least 1")
        check_share("dropout", dropout)
        dim = math.prod(self.event_shape)
        self.classes, self.cond_dim, self.cond_dropout = classes, cond_dim, cond_dropout
        self.time = TimeEmbedding(EMBEDDING)
        self.condition = ConditionEmbedding(EMBEDDING, classes, cond_dim, cond_dropout)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, dim))
        self.gain = zeroed(nn.Linear(EMBEDDING, 1))

    @property
    def drops_rows(self) -> bool:
        return self.condition.conditional

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this MLP was made for {self.event_shape}")
        embedding = self.time(t)
        if self.condition.conditional or cond is not None:
            embedding = embedding + self.condition(cond, len(x), "MLP")
        embedding = nn.functional.silu(embedding)
        flat = x.flatten(1)
        h = self.first(flat)
        for block in self.blocks:
            h = block(h, embedding)
        return (self.last(self.norm(h)) + self.gain(embedding) * flat).reshape(x.shape)


class Block(nn.Module):
    """h + f(norm(h) (1 + scale(e)) + shift(e)): adaptive normalisation, as in diffusion transformers."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zeroed(nn.Linear(EMBEDDING, 2 * width))
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), drop, zeroed(nn.Linear(width, width)))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=1)
        return h + self.layers(self.norm(h) * (1 + scale) + shift)
