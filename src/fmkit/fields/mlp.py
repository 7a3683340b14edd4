"""A residual multilayer perceptron with a time embedding and an optional condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmkit.arguments import shown
from fmkit.errors import ArgumentError
from fmkit.fields.base import VectorField

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
        sizes = {"width": width, "depth": depth, "classes": classes, "cond_dim": cond_dim}
        for name, size in {**sizes, "event_shape": min(self.event_shape, default=0)}.items():
            if size is not None and size < 1:
                raise ArgumentError(f"{name} is {size}, expected at least 1")
        for name, share in {"dropout": dropout, "cond_dropout": cond_dropout}.items():
            if not 0 <= share < 1:
                raise ArgumentError(f"{name} is {share}, expected a share in [0, 1)")
        if classes is not None and cond_dim is not None:
            raise ArgumentError("classes and cond_dim are both given; a condition is a label or a vector")
        dim = math.prod(self.event_shape)
        self.classes, self.cond_dim, self.cond_dropout = classes, cond_dim, cond_dropout
        self.time = TimeEmbedding(EMBEDDING)
        self.label = None if classes is None else nn.Embedding(classes, EMBEDDING)
        self.vector = None if cond_dim is None else nn.Linear(cond_dim, EMBEDDING)
        self.null = None if classes is None and cond_dim is None else nn.Parameter(torch.zeros(EMBEDDING))
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = _zeroed(nn.Linear(width, dim))
        self.gain = _zeroed(nn.Linear(EMBEDDING, 1))

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this MLP was made for {self.event_shape}")
        embedding = self.time(t)
        if self.null is not None or cond is not None:
            embedding = embedding + self._embed(cond, len(x))
        embedding = nn.functional.silu(embedding)
        flat = x.flatten(1)
        h = self.first(flat)
        for block in self.blocks:
            h = block(h, embedding)
        return (self.last(self.norm(h)) + self.gain(embedding) * flat).reshape(x.shape)

    def _embed(self, cond: Any, n: int) -> Tensor:
        if self.null is None:
            raise ArgumentError("a condition was given to an unconditional MLP; make it with classes= or cond_dim=")
        if cond is None:
            return self.null.expand(n, -1)
        if not isinstance(cond, Tensor):
            raise ArgumentError(f"cond is {shown(cond)}, expected a tensor of one condition for each sample")
        if cond.device.type == "meta":
            raise ArgumentError("cond is on the meta device, expected conditions that have values")
        if self.label is not None:
            embedded = self.label(self._check_labels(cond, n))
        else:
            if cond.shape != (n, self.cond_dim):
                raise ArgumentError(f"cond has shape {tuple(cond.shape)}, expected ({n}, {self.cond_dim})")
            assert self.vector is not None  # one of the two is there, as null is
            embedded = self.vector(cond.to(self.first.weight.dtype))
        if self.training and self.cond_dropout:
            dropped = torch.rand(n, 1, device=embedded.device) < self.cond_dropout
            embedded = torch.where(dropped, self.null, embedded)
        return embedded

    def _check_labels(self, cond: Tensor, n: int) -> Tensor:
        if cond.is_floating_point() or cond.shape != (n,):
            raise ArgumentError(f"cond is {cond.dtype} of shape {tuple(cond.shape)}, expected integer labels ({n},)")
        if cond.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(cond):
            low, high = (int(v) for v in torch.aminmax(cond))
            known = self.classes or 0
            if low < 0 or high >= known:
                raise ArgumentError(f"labels range over {low} .. {high}, expected 0 .. {known - 1}")
        return cond


class TimeEmbedding(nn.Module):
    """t, and sines and cosines of omega t at 16 geometric frequencies from pi to 32 pi, then two layers."""

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


class Block(nn.Module):
    """h + f(norm(h) (1 + scale(e)) + shift(e)): adaptive normalisation, as in diffusion transformers."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = _zeroed(nn.Linear(EMBEDDING, 2 * width))
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), drop, _zeroed(nn.Linear(width, width)))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=1)
        return h + self.layers(self.norm(h) * (1 + scale) + shift)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
