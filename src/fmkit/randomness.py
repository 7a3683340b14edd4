"""Stateless randomness: every draw of a step follows from (seed, purpose, step, rank), so nothing need be saved.

The key is hashed: CPU generators take 32 bits of a seed, and packing a step into high bits would lose it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_device, check_instance


def stream_seed(seed: int, purpose: str, step: int = 0, rank: int = 0) -> int:
    """32 well-mixed bits of (seed, purpose, step, rank).

    Raises:
        ArgumentError: for a seed, step or rank that is no whole number >= 0, however large, or a purpose that is no
            text: True and 1, or 1 and 1.0, would be two streams.
    """
    for name, value in (("seed", seed), ("step", step), ("rank", rank)):
        check_count(name, value, least=0)
    check_instance("purpose", purpose, str)
    key = f"{seed}/{purpose}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little")


def stream(
    seed: int, purpose: str, step: int = 0, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for one purpose at one step; errors as of `stream_seed`, and for what is no device."""
    return torch.Generator(check_device(device) or "cpu").manual_seed(stream_seed(seed, purpose, step, rank))


def normal_like(x: Tensor, generator: torch.Generator | None, *batch: int) -> Tensor:
    """Standard normal numbers of shape (*batch, *x.shape), drawn where the generator is and moved to x."""
    device = x.device if generator is None else generator.device
    return torch.randn((*batch, *x.shape), generator=generator, dtype=x.dtype, device=device).to(x.device)


def signs_like(x: Tensor, generator: torch.Generator | None, *batch: int) -> Tensor:
    """Independent signs, +1 or -1 with equal chance (Rademacher numbers), of shape (*batch, *x.shape)."""
    device = x.device if generator is None else generator.device
    coins = torch.randint(2, (*batch, *x.shape), generator=generator, device=device)
    return coins.to(x.device, x.dtype).mul_(2).sub_(1)


def seed_dropout(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Seed what dropout draws from, the global generator: torch gives no other way in."""
    key = stream_seed(seed, "dropout", step, rank)
    torch.default_generator.manual_seed(key)  # a hundredth of the cost of torch.manual_seed
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch seeds the current one, which need not be this
            torch.cuda.manual_seed(key)
