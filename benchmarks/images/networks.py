"""The networks, by name, and what they cost: weights, and arithmetic counted on tensors that have no memory.

`unet 128` has 128 channels at first and is otherwise the network of torchcfm's CIFAR-10 script
(examples/images/cifar10/train_cifar10.py), which torchcfm builds by the same name; `dit L` is fmkit's preset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmkit.fields import DiT, UNet, VectorField

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
UNET: dict[str, Any] = {"channel_mult": (1, 2, 2, 2), "res_blocks": 2, "attention": (16,), "scale_shift": False}
SCRIPTS: dict[str, Any] = {"channel_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attention_resolutions": "16"}
SCRIPTS |= {"num_heads": 4, "num_head_channels": 64}
DROPOUT = 0.1


class Cost(NamedTuple):
    """Of a network: its weights, and the floating-point operations of an image.

    Attributes:
        parameters: how many weights.
        forward: operations of an evaluation.
        step: operations of an evaluation and its gradients.
    """

    parameters: int
    forward: float
    step: float


def network(name: str, **options: Any) -> VectorField:
    """fmkit's network of that name; options are its constructor's."""
    kind, _, size = name.partition(" ")
    if kind == "dit":
        return DiT(SHAPE, size, **options)
    return UNet(SHAPE, channels=int(size), dropout=DROPOUT, **UNET, **options)


def torchcfms(name: str, peer: Any) -> nn.Module:
    """torchcfm's network of that name, a UNet."""
    made: nn.Module = peer.UNetModelWrapper(dim=SHAPE, num_channels=int(name.split()[1]), dropout=DROPOUT, **SCRIPTS)
    return made


def cost(make: Callable[[], nn.Module]) -> Cost:
    """Of a network `(t, x)`, which is made without memory for its weights.

    What activation checkpointing works out twice does not count: these are the model's operations.
    """
    with torch.device("meta"):
        made = make()
        dtype = torch.float64 if isinstance(made, VectorField) else torch.float32
        t, x = torch.empty(1, dtype=dtype), torch.empty(1, *SHAPE)

    def counted(work: Callable[[Tensor], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work(made.forward(t, x))
        return counter.get_total_flops()

    parameters = sum(p.numel() for p in made.parameters())
    return Cost(parameters, counted(lambda y: y), counted(lambda y: y.square().mean().backward()))
