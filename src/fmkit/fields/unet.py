"""The UNet of Dhariwal & Nichol (arXiv 2105.05233), on images of any size.

Level k has sides ceil(H / 2^k) x ceil(W / 2^k) and `channels * channel_mult[k]` channels. On the way down each level
has `res_blocks` residual blocks, on the way up one more, each of which takes what a block on the way down left behind;
sizes are matched on the way up, so odd and non-square images need no padding. In the middle there are two more, with
attention between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError
from fmkit.fields.base import Dropped, VectorField
from fmkit.fields.blocks import (
    Attention,
    Change,
    Downsample,
    Norm,
    ResBlock,
    Upsample,
    check_image_shape,
    differentiated,
    heads_of,
    preset_of,
)
from fmkit.fields.embeddings import ConditionEmbedding, TimeEmbedding, check_condition, check_share, drop, zeroed

# The last four are Table 3 of Lipman et al. (arXiv 2210.02747); "attention" is by the longer side of a level.
UNET_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": {"channels": 32, "channel_mult": (1, 2), "res_blocks": 1, "attention": ()},
        "small": {"channels": 32, "channel_mult": (1, 2, 2), "res_blocks": 2, "attention": (8,)},
        "medium": {"channels": 64, "channel_mult": (1, 2, 2), "res_blocks": 2, "attention": (16, 8)},
        "cifar10": {"channels": 256, "channel_mult": (1, 2, 2, 2), "res_blocks": 2, "attention": (16,)},
        "imagenet32": {"channels": 256, "channel_mult": (1, 2, 2, 2), "res_blocks": 3, "attention": (16, 8)},
        "imagenet64": {"channels": 192, "channel_mult": (1, 2, 3, 4), "res_blocks": 3, "attention": (32, 16, 8)},
        "imagenet128": {"channels": 256, "channel_mult": (1, 1, 2, 3, 4), "res_blocks": 3, "attention": (32, 16, 8)},
    }
)


class UNet(VectorField):
    """v(t, x, c) on images `(C, H, W)`: residual blocks at several resolutions, attention at some, skips between.

    A preset gives the sizes, and what is said beside it overrides it. The last layer begins at zero, so an untrained
    field is v = 0. A missing condition is learnt, and trained with `cond_dropout`, for classifier-free guidance.

    Args:
        event_shape: (C, H, W), of any height and width.
        preset: "tiny" (for tests), "small" (CPU), "medium", or one of the paper's Table 3: "cifar10", "imagenet32",
            "imagenet64", "imagenet128".
        classes: number of classes, if conditions are labels `(B,)` in 0 .. classes - 1.
        cond_dim: length of the condition, if conditions are vectors `(B, cond_dim)`.
        cond_channels: channels of the condition, if conditions are images `(B, cond_channels, h, w)`; they stand beside
            x as channels, resized to H x W (bilinearly) where their size is another: low-resolution images, for
            super-resolution.
        cond_dropout: in [0, 1): share of conditions dropped while training.
        channels: of the first level, >= 1.
        channel_mult: each level's channels, as multiples of these.
        res_blocks: residual blocks of a level on the way down, >= 1.
        attention: where attention follows each block: longer sides of levels, rounded up to powers of two (a level of
            28x28 is at 32).
        heads: of attention; by default as many as have `head_channels`.
        head_channels: of one head, 64 by default.
        dropout: in [0, 1), inside the blocks, while training.
        scale_shift: the embedding scales and shifts a norm; otherwise it is added before it.
        resblock_updown: residual blocks change the resolution, not convolutions.
        channels_last: keep weights in that memory format, which convolutions on a GPU are faster in.
        checkpointing: keep no activations inside blocks while training: less memory, a third more time.

    Raises:
        ArgumentError: for sizes out of range, an unknown preset, attention where no level is, conditions of two sorts.

    Examples:
        >>> import torch
        >>> UNet((1, 27, 30), preset="tiny")(torch.rand(2), torch.randn(2, 1, 27, 30)).shape
        torch.Size([2, 1, 27, 30])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        preset: str = "small",
        classes: int | None = None,
        cond_dim: int | None = None,
        cond_channels: int | None = None,
        cond_dropout: float = 0.0,
        channels: int | None = None,
        channel_mult: Sequence[int] | None = None,
        res_blocks: int | None = None,
        attention: Sequence[int] | None = None,
        heads: int | None = None,
        head_channels: int = 64,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resblock_updown: bool = False,
        channels_last: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = check_image_shape(event_shape)
        given = {"channels": channels, "channel_mult": channel_mult, "res_blocks": res_blocks, "attention": attention}
        size = _checked(preset_of(UNET_PRESETS, preset, given))
        sides = _sides(self.event_shape, len(size["channel_mult"]))
        if attention is not None and (absent := [side for side in attention if side not in sides]):
            raise ArgumentError(
                f"attention is at {absent[0]}, and the levels of {self.event_shape[1]}x{self.event_shape[2]} images "
                f"are at {', '.join(map(str, sides))}"
            )
        if cond_channels is not None and (classes is not None or cond_dim is not None):
            raise ArgumentError("cond_channels is given beside classes or cond_dim; a condition is of one sort")
        self.classes, self.cond_dim, self.cond_dropout = classes, cond_dim, cond_dropout
        embedding = 4 * size["channels"]
        self.time = TimeEmbedding(embedding, max(1, size["channels"] // 2))
        self.condition = ConditionEmbedding(embedding, classes, cond_dim, cond_dropout)
        self.image = None if cond_channels is None else ConditionImage(cond_channels, cond_dropout)
        made = Maker(embedding, dropout, scale_shift, resblock_updown, heads, head_channels, checkpointing)
        widths = [size["channels"] * mult for mult in size["channel_mult"]]
        attended = [side in size["attention"] for side in sides]
        self.first = nn.Conv2d(self.event_shape[0] + (cond_channels or 0), widths[0], 3, padding=1)
        self.down, left = made.way_down(widths, size["res_blocks"], attended)
        self.middle = nn.ModuleList([made.stage(widths[-1], widths[-1], k == 0) for k in range(2)])
        self.up = made.way_up(widths, size["res_blocks"], attended, left)
        self.norm, self.last = Norm(widths[0]), zeroed(nn.Conv2d(widths[0], self.event_shape[0], 3, padding=1))
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def drops_rows(self) -> bool:
        return self.condition.conditional or self.image is not None

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(
                f"x has events of shape {tuple(x.shape[1:])}, this UNet was made for {self.event_shape}"
            )
        plainly, e = differentiated(x), self.time(t)
        if self.image is not None:
            h = self.first(torch.cat([x, self.image(cond, x)], dim=1))
        else:
            if self.condition.conditional or cond is not None:
                e = e + self.condition(cond, len(x), "UNet")
            h = self.first(x)
        e = F.silu(e)
        left = [h]
        for level in self.down:
            h = level(h, e, left, plainly)
        for stage in self.middle:
            h = stage(h, e, plainly)
        for level in self.up:
            h = level(h, e, left, plainly)
        return self.last(F.silu(self.norm(h)))


@dataclass(frozen=True)
class Maker:
    """Makes the pieces of one network, which have all but their channels in common; see `UNet`."""

    embedding: int
    dropout: float
    scale_shift: bool
    resblock_updown: bool
    heads: int | None
    head_channels: int
    checkpointing: bool

    def __post_init__(self) -> None:
        check_share("dropout", self.dropout)
        check_count("head_channels", self.head_channels)
        if self.heads is not None:
            check_count("heads", self.heads)

    def block(self, channels: int, out: int, change: Change = "none") -> ResBlock:
        """A residual block."""
        return ResBlock(channels, out, self.embedding, self.dropout, self.scale_shift, change)

    def stage(self, channels: int, out: int, attended: bool) -> Stage:
        """A residual block, with attention after it or not."""
        heads = heads_of(out, self.heads, self.head_channels) if attended else None
        return Stage(self.block(channels, out), Attention(out, heads) if heads else None, self.checkpointing)

    def change(self, channels: int, to: Literal["down", "up"]) -> nn.Module:
        """A change of resolution."""
        if self.resblock_updown:
            return self.block(channels, channels, to)
        return Downsample(channels) if to == "down" else Upsample(channels)

    def way_down(self, widths: list[int], res_blocks: int, attended: list[bool]) -> tuple[nn.ModuleList, list[int]]:
        """The levels, and how many channels each of the things has that they leave behind, the input's first."""
        levels, h, left = nn.ModuleList(), widths[0], [widths[0]]
        for k, width in enumerate(widths):
            stages = [self.stage(c, width, attended[k]) for c in [h] + [width] * (res_blocks - 1)]
            change = None if k + 1 == len(widths) else self.change(width, "down")
            levels.append(Down(stages, change))
            left += [width] * (len(stages) + (change is not None))
            h = width
        return levels, left

    def way_up(self, widths: list[int], res_blocks: int, attended: list[bool], left: list[int]) -> nn.ModuleList:
        """The levels, which take up what was left behind, the last first."""
        levels, h, left = nn.ModuleList(), widths[-1], list(left)
        for k, width in reversed(list(enumerate(widths))):
            stages = [self.stage(c + left.pop(), width, attended[k]) for c in [h] + [width] * res_blocks]
            levels.append(Up(stages, self.change(width, "up") if k else None))
            h = width
        return levels


class Stage(nn.Module):
    """A residual block, and attention after it if there is any."""

    def __init__(self, block: ResBlock, attention: Attention | None, checkpointing: bool) -> None:
        super().__init__()
        self.block, self.attention, self.checkpointing = block, attention, checkpointing

    def forward(self, h: Tensor, e: Tensor, plainly: bool) -> Tensor:
        # Derivatives by x are taken by torch.func as well, which does not know how to compute things again.
        if self.checkpointing and self.training and torch.is_grad_enabled() and not plainly:
            return checkpoint(self._run, h, e, plainly, use_reentrant=False)
        return self._run(h, e, plainly)

    def _run(self, h: Tensor, e: Tensor, plainly: bool) -> Tensor:
        h = self.block(h, e)
        return h if self.attention is None else self.attention(h, plainly)


class Down(nn.Module):
    """A level on the way down: what each of its parts answers is left behind."""

    def __init__(self, stages: list[Stage], change: nn.Module | None) -> None:
        super().__init__()
        self.stages, self.change = nn.ModuleList(stages), change

    def forward(self, h: Tensor, e: Tensor, left: list[Tensor], plainly: bool) -> Tensor:
        for stage in self.stages:
            h = stage(h, e, plainly)
            left.append(h)
        if self.change is not None:
            h = self.change(h, e)
            left.append(h)
        return h


class Up(nn.Module):
    """A level on the way up: each stage takes what was left behind last, and sizes are matched to the next one's."""

    def __init__(self, stages: list[Stage], change: nn.Module | None) -> None:
        super().__init__()
        self.stages, self.change = nn.ModuleList(stages), change

    def forward(self, h: Tensor, e: Tensor, left: list[Tensor], plainly: bool) -> Tensor:
        for stage in self.stages:
            h = stage(torch.cat([h, left.pop()], dim=1), e, plainly)
        return h if self.change is None else self.change(h, e, left[-1].shape[2:])


class ConditionImage(nn.Module):
    """An image as a condition, in the size of x; a learnt colour in every pixel where it is missing."""

    def __init__(self, channels: int, cond_dropout: float) -> None:
        super().__init__()
        self.channels = check_count("cond_channels", channels)
        self.cond_dropout = check_share("cond_dropout", cond_dropout)
        self.null = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, cond: Any, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` for x `(B, C, H, W)`, from `(B, channels, h, w)` or from None."""
        if cond is None:
            return self.null.expand(len(x), -1, *x.shape[2:])
        if isinstance(cond, Dropped):
            return torch.where(cond.rows[:, None, None, None], self.null, self(cond.cond, x))
        cond = check_condition(cond)
        if cond.ndim != 4 or cond.shape[:2] != (len(x), self.channels) or not cond.is_floating_point():
            raise ArgumentError(
                f"cond is {cond.dtype} of shape {tuple(cond.shape)}, expected images ({len(x)}, {self.channels}, h, w) "
                "in floating point"
            )
        cond = cond.to(x.dtype)
        if cond.shape[2:] != x.shape[2:]:
            cond = F.interpolate(cond, size=x.shape[2:], mode="bilinear")
        return drop(cond, self.null, self.cond_dropout if self.training else 0.0)


def _checked(size: dict[str, Any]) -> dict[str, Any]:
    """The sizes, if they are whole numbers of at least 1."""
    check_count("channels", size["channels"])
    check_count("res_blocks", size["res_blocks"])
    for name in ("channel_mult", "attention"):
        if not isinstance(size[name], Sequence) or isinstance(size[name], str):
            raise ArgumentError(f"{name} is {shown(size[name])}, expected a list of whole numbers")
        for value in size[name]:
            check_count(f"an entry of {name}", value)
    if not size["channel_mult"]:
        raise ArgumentError("channel_mult is empty, expected a multiple of the channels for each level")
    return size


def _sides(event_shape: tuple[int, ...], levels: int) -> list[int]:
    """Each level's longer side, rounded up to a power of two."""
    longest = max(event_shape[1:])
    return [1 << (-(-longest // 2**k) - 1).bit_length() for k in range(levels)]
