"""A diffusion transformer (Peebles & Xie, arXiv 2212.09748; as a velocity: SiT, arXiv 2401.08740).

An image is cut into patches, one token each. With e the embedding of time and condition, a block is

    h <- h + gate_1(e) attention(norm(h) (1 + scale_1(e)) + shift_1(e))
    h <- h + gate_2(e) mlp(norm(h) (1 + scale_2(e)) + shift_2(e))

where all six begin at zero (adaLN-zero), so that a block begins as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fmkit.arguments import check_count
from fmkit.errors import ArgumentError
from fmkit.fields.base import VectorField
from fmkit.fields.blocks import attend, check_image_shape, differentiated, heads_of, preset_of
from fmkit.fields.embeddings import ConditionEmbedding, TimeEmbedding, check_share, zeroed

# The last four are Table 1 of Peebles & Xie; their letters are followed by the patch size there, as in DiT-XL/2.
DIT_PRESETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "tiny": {"width": 64, "depth": 2, "heads": 4},
        "mini": {"width": 192, "depth": 6, "heads": 3},
        "S": {"width": 384, "depth": 12, "heads": 6},
        "B": {"width": 768, "depth": 12, "heads": 12},
        "L": {"width": 1024, "depth": 24, "heads": 16},
        "XL": {"width": 1152, "depth": 28, "heads": 16},
    }
)
FREQUENCIES = 128  # of time
LONGEST = 10_000.0  # 2 pi times this many patches is the longest wavelength of a position


class DiT(VectorField):
    """v(t, x, c) on images `(C, H, W)`: transformer blocks on patches, modulated by time and condition.

    A preset gives the sizes, and what is said beside it overrides it. Blocks begin as the identity and the last layer
    at zero, so an untrained field is v = 0. A missing condition is learnt, and trained with `cond_dropout`, for
    classifier-free guidance.

    Args:
        event_shape: (C, H, W), H and W multiples of the patch size.
        preset: "tiny" (for tests), "mini" (CPU), "S", "B", "L" or "XL".
        patch_size: side of a patch, in pixels.
        classes: number of classes, if conditions are labels `(B,)` in 0 .. classes - 1.
        cond_dim: length of the condition, if conditions are vectors `(B, cond_dim)`.
        cond_dropout: in [0, 1): share of conditions dropped while training.
        width: length of a token.
        depth: blocks, >= 1.
        heads: of attention.
        mlp_ratio: hidden units of a block's MLP for each of the width, > 0.
        positions: "sinusoidal", added to the tokens at the beginning, or "rotary" (arXiv 2104.09864), which turns
            queries and keys, half of each head by the row and half by the column.
        qk_norm: normalise queries and keys by their root mean square (arXiv 2302.05442): steadier in 16 bits.
        dropout: in [0, 1), after attention and MLP, while training.
        checkpointing: keep no activations inside blocks while training: less memory, a third more time.

    Raises:
        ArgumentError: for sizes out of range or that do not divide, an unknown preset, both `classes` and `cond_dim`.

    Examples:
        >>> import torch
        >>> DiT((1, 8, 12), preset="tiny")(torch.rand(2), torch.randn(2, 1, 8, 12)).shape
        torch.Size([2, 1, 8, 12])
    """

    added: Tensor | None
    angles: Tensor | None

    def __init__(
        self,
        event_shape: Sequence[int],
        preset: str = "mini",
        patch_size: int = 2,
        classes: int | None = None,
        cond_dim: int | None = None,
        cond_dropout: float = 0.0,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        positions: Literal["sinusoidal", "rotary"] = "sinusoidal",
        qk_norm: bool = False,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = check_image_shape(event_shape)
        size = preset_of(DIT_PRESETS, preset, {"width": width, "depth": depth, "heads": heads})
        for name, value in size.items():
            check_count(name, value)
        d, head = size["width"], size["width"] // heads_of(size["width"], size["heads"], 1)
        if not 0 < mlp_ratio < math.inf or (hidden := round(mlp_ratio * d)) < 1:
            raise ArgumentError(f"mlp_ratio is {mlp_ratio}, expected a positive number")
        check_share("dropout", dropout)
        self.grid = _grid(self.event_shape, patch_size)
        where = _places(self.grid, positions, d, head)
        added = torch.cat([where.sin(), where.cos()], 1) if positions == "sinusoidal" else None
        self.register_buffer("added", added, persistent=False)
        self.register_buffer("angles", where if positions == "rotary" else None, persistent=False)
        self.classes, self.cond_dim, self.cond_dropout = classes, cond_dim, cond_dropout
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.time = TimeEmbedding(d, FREQUENCIES)
        self.condition = ConditionEmbedding(d, classes, cond_dim, cond_dropout)
        # Small weights here and Xavier's in the blocks, as in the paper's code.
        for layer in (self.time.first, self.time.second, self.condition.label):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        pixels = self.event_shape[0] * patch_size**2
        self.first = _xavier(nn.Linear(pixels, d))
        self.blocks = nn.ModuleList(Block(d, size["heads"], hidden, qk_norm, dropout) for _ in range(size["depth"]))
        self.norm = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.modulate, self.last = zeroed(nn.Linear(d, 2 * d)), zeroed(nn.Linear(d, pixels))

    @property
    def drops_rows(self) -> bool:
        return self.condition.conditional

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this DiT was made for {self.event_shape}")
        plainly, e = differentiated(x), self.time(t)
        if self.condition.conditional or cond is not None:
            e = e + self.condition(cond, len(x), "DiT")
        e = F.silu(e)
        h = self.first(patchify(x, self.patch_size))
        if self.added is not None:
            h = h + self.added.to(h.dtype)
        turn = None if self.angles is None else (self.angles.cos().to(h.dtype), self.angles.sin().to(h.dtype))
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled() and not plainly:
                h = checkpoint(block, h, e, turn, plainly, use_reentrant=False)
            else:
                h = block(h, e, turn, plainly)
        scale, shift = self.modulate(e)[:, None].chunk(2, dim=-1)
        return unpatchify(self.last(self.norm(h) * (1 + scale) + shift), self.patch_size, self.grid)


class Block(nn.Module):
    """Attention and an MLP, each modulated and gated by e, the identity at first."""

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.out = _xavier(nn.Linear(width, 3 * width)), _xavier(nn.Linear(width, width))
        self.q_norm, self.k_norm = (RootMeanSquare(width // heads) if qk_norm else nn.Identity() for _ in range(2))
        widen, narrow = _xavier(nn.Linear(width, hidden)), _xavier(nn.Linear(hidden, width))
        self.mlp = nn.Sequential(widen, nn.GELU("tanh"), narrow)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, h: Tensor, e: Tensor, turn: tuple[Tensor, Tensor] | None, plainly: bool) -> Tensor:
        """`(B, N, width)` tokens; `turn` is the cosine and sine of each position's angles, if they are rotary."""
        gate1, scale1, shift1, gate2, scale2, shift2 = self.modulate(e)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.dropout(self._attend(self.norm(h) * (1 + scale1) + shift1, turn, plainly))
        return h + gate2 * self.dropout(self.mlp(self.norm(h) * (1 + scale2) + shift2))

    def _attend(self, h: Tensor, turn: tuple[Tensor, Tensor] | None, plainly: bool) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = (rotated(tokens, *turn) for tokens in (q, k))
        return self.out(attend(q, k, v, plainly).transpose(1, 2).flatten(2))


class RootMeanSquare(nn.RMSNorm):
    """torch's, with its gain in the precision of the tokens, as its fused kernel wants; it sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def patchify(x: Tensor, p: int) -> Tensor:
    """Images `(B, C, H, W)` as tokens `(B, H/p * W/p, C p²)`, rows of patches after one another."""
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, H/p, p, W/p, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, p: int, grid: tuple[int, int]) -> Tensor:
    """The images that `patchify` cut into this grid of patches."""
    x = tokens.unflatten(1, grid).unflatten(3, (-1, p, p))  # (B, H/p, W/p, C, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def place(rows: int, columns: int, length: int) -> Tensor:
    """`(rows * columns, length / 2)` angles of the patches: half of row, half of column, at falling frequencies."""
    omega = LONGEST ** -(torch.arange(length // 4, dtype=torch.float64) / (length // 4))
    of = [torch.arange(n, dtype=torch.float64)[:, None] * omega for n in (rows, columns)]
    angles = torch.cat([of[0].repeat_interleave(columns, 0), of[1].repeat(rows, 1)], dim=1)
    return angles.to(torch.get_default_dtype())


def rotated(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of numbers of `(..., N, 2k)` turned by the angles of their position, given by `(N, k)` cos and sin."""
    a, b = tokens.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _places(grid: tuple[int, int], positions: str, width: int, head: int) -> Tensor:
    """The angles of the patches, as many as half a token or half a head is long."""
    lengths = {"sinusoidal": ("width", width), "rotary": ("length of a head", head)}
    if positions not in lengths:
        raise ArgumentError(f"positions is {positions!r}, expected 'sinusoidal' or 'rotary'")
    name, length = lengths[positions]
    if length % 4:
        raise ArgumentError(f"{positions} positions take a {name} that is a multiple of 4, and it is {length}")
    return place(*grid, length)


def _xavier(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _grid(event_shape: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Patches in a column and in a row."""
    check_count("patch_size", patch_size)
    _, h, w = event_shape
    if h % patch_size or w % patch_size:
        fit = [p for p in range(1, min(h, w) + 1) if h % p == 0 and w % p == 0]
        raise ArgumentError(
            f"{h}x{w} images do not divide into patches of {patch_size}; patch_size can be {', '.join(map(str, fit))}"
        )
    return h // patch_size, w // patch_size
