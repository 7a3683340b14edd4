"""Activation checkpointing of any network: its blocks keep nothing while they train, and are computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fmkit.errors import CombinationError
from fmkit.training.distributed import blocks_of


@contextmanager
def recomputing(network: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Within, the blocks of a network (the modules in its lists) keep no activations for `backward`.

    Raises:
        CombinationError: if the network has no blocks.
    """
    blocks = list(blocks_of(network)) if wanted else []
    if wanted and not blocks:
        raise CombinationError(
            f"checkpoint_activations: {type(network).__name__} has no blocks (modules in a torch.nn.ModuleList) to "
            "compute twice"
        )
    for block in blocks:
        block.forward = partial(_twice, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _twice(block: torch.nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
    # Derivatives by the points (torch.func, forward mode) pass through no recomputation.
    plain = torch._C._functorch.peek_interpreter_stack() is None and torch.autograd.forward_ad._current_level < 0
    if block.training and torch.is_grad_enabled() and plain:
        return checkpoint(forward, *arguments, use_reentrant=False, **named)
    return forward(*arguments, **named)
