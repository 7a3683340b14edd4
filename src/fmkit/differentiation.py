"""Derivatives in time, by forward-mode differentiation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def time_derivative(function: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
    """function(t) and its derivative, for a function that works elementwise in t; any nesting of tensors comes out.

    `t` needs memory of its own (forward mode refuses expanded tensors), so it is made contiguous.
    """
    _import_quietly()
    t = t.contiguous()
    value, rate = torch.func.jvp(function, (t,), (torch.ones_like(t),))  # type: ignore[misc]
    return value, rate


@functools.cache
def _import_quietly() -> None:
    """torch scripts its forward-mode decompositions at their first use, and warns of its own scripting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
