"""diffusers' `UNet2DModel` under fmkit's contract of a field.

What the library does otherwise is put right here: its times are steps 0 .. 1000, so t is multiplied by 1000; its sides
must halve evenly, so images are padded to the next size that does, and cut again; its labels know no absence, so one
more class stands for it; its attention is fused, so where the points are differentiated it is written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.fields.blocks import check_image_shape, differentiated
from fmkit.fields.embeddings import check_condition, check_share, zeroed

STEPS = 1000  # of diffusers' time


class DiffusersUNet(VectorField):
    """v(t, x, c) on images `(C, H, W)`, by diffusers' UNet2DModel: any height and width, labels as conditions.

    The last layer begins at zero, so an untrained field is v = 0. A missing label is a class of its own, and trained
    with `cond_dropout`, for classifier-free guidance.

    Args:
        event_shape: (C, H, W).
        channels: of each level.
        layers: residual blocks of a level on the way down, >= 1.
        attention: the levels with attention, counted from 0.
        head_channels: of one head of attention.
        classes: number of classes, if conditions are labels `(B,)` in 0 .. classes - 1.
        cond_dropout: in [0, 1): share of labels dropped while training.
        dropout: in [0, 1), inside the blocks, while training.
        scale_shift: the embedding scales and shifts a norm; otherwise it is added before it.
        more: further keywords of UNet2DModel, by their names there.

    Raises:
        ArgumentError: for sizes out of range, or what UNet2DModel does not take.

    Examples:
        >>> import torch
        >>> DiffusersUNet((1, 9, 14), channels=(8, 16))(torch.rand(2), torch.randn(2, 1, 9, 14)).shape
        torch.Size([2, 1, 9, 14])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 64),
        layers: int = 2,
        attention: Sequence[int] = (2,),
        head_channels: int = 8,
        classes: int | None = None,
        cond_dropout: float = 0.0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = check_image_shape(event_shape)
        if not channels:
            raise ArgumentError("channels is empty, expected a number of them for each level")
        for name, value in (*(("an entry of channels", c) for c in channels), ("layers", layers)):
            check_count(name, value)
        check_count("head_channels", head_channels)
        if out := [level for level in attention if level not in range(len(channels))]:
            raise ArgumentError(f"attention is at level {out[0]!r}, and the levels are 0 .. {len(channels) - 1}")
        self.classes = None if classes is None else check_count("classes", classes)
        self.cond_dropout = check_share("cond_dropout", cond_dropout)
        attended = ["Attn" if level in attention else "" for level in range(len(channels))]
        arguments = {
            "sample_size": self.event_shape[1:],
            "in_channels": self.event_shape[0],
            "out_channels": self.event_shape[0],
            "block_out_channels": tuple(channels),
            "down_block_types": tuple(f"{word}DownBlock2D" for word in attended),
            "up_block_types": tuple(f"{word}UpBlock2D" for word in reversed(attended)),
            "layers_per_block": layers,
            "attention_head_dim": head_channels,
            "norm_num_groups": math.gcd(32, *channels),
            "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
            "num_class_embeds": None if classes is None else classes + 1,
            "dropout": check_share("dropout", dropout),
        }
        try:
            self.net = UNet2DModel(**(arguments | dict(more or {})))
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise ArgumentError(f"diffusers' UNet2DModel cannot be made: {error}") from error
        zeroed(self.net.conv_out)
        self.multiple = 2 ** (len(channels) - 1)

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(
                f"x has events of shape {tuple(x.shape[1:])}, this UNet was made for {self.event_shape}"
            )
        labels = self._labels(cond, x)
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple))
        # The library makes its features of time in float32, whatever comes in.
        with sdpa_kernel(SDPBackend.MATH) if differentiated(x) else nullcontext():
            out = self.net(padded, STEPS * t, labels, return_dict=False)[0]
        return out[..., :h, :w]

    def _labels(self, cond: Any, x: Tensor) -> Tensor | None:
        """The labels, with the class of their absence where there is none."""
        if self.classes is None:
            if cond is not None:
                raise ArgumentError(f"a condition was given to an unconditional {type(self).__name__}; say classes=")
            return None
        if cond is None:
            return torch.full((len(x),), self.classes, device=x.device)
        cond = check_condition(cond)
        if cond.is_floating_point() or cond.shape != x.shape[:1]:
            raise ArgumentError(f"cond is {cond.dtype}, {shown(cond)}, expected integer labels ({len(x)},)")
        if cond.device.type == "cpu" and not bool(((cond >= 0) & (cond < self.classes)).all()):
            wrong = cond[(cond < 0) | (cond >= self.classes)][0].item()
            raise ArgumentError(f"cond holds the label {wrong}, expected labels 0 .. {self.classes - 1}")
        if self.training and self.cond_dropout:
            dropped = torch.rand(len(x), device=x.device) < self.cond_dropout
            return torch.where(dropped, self.classes, cond)
        return cond
